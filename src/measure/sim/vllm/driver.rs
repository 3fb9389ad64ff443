//! The engine in real time: one thread that owns the schedule and sleeps to absolute deadlines,
//! so that being late once does not make everything after it late. Each job's events go to its
//! own channel; a job whose reader is gone is aborted.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::engine::{Counters, Engine, Event, Job};

/// What a job's reader is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signal {
    /// A token; the last one or not.
    Token { last: bool },
    /// The KV cache arrived.
    Fetched,
    /// The job failed: the message for the client.
    Failed(String),
}

enum Command {
    Submit(Job, UnboundedSender<Signal>),
    Abort(u64),
    Release(u64),
}

/// A running engine. It stops when the handle is dropped.
pub(super) struct Driver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    inbox: Vec<Command>,
    counters: Counters,
    stop: bool,
    /// The engine ended by an injected fault.
    crashed: bool,
}

impl Driver {
    /// Starts the engine. `time_scale` is real seconds for a virtual one; with `dies_after` the
    /// engine ends when it has put out that many tokens.
    pub(super) fn start(
        engine: Engine,
        time_scale: f64,
        dies_after: Option<u64>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            bell: Condvar::new(),
        });
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || run(&inside, engine, time_scale, dies_after))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn submit(&self, job: Job, events: UnboundedSender<Signal>) {
        self.send(Command::Submit(job, events));
    }

    pub(super) fn abort(&self, id: u64) {
        self.send(Command::Abort(id));
    }

    pub(super) fn release(&self, id: u64) {
        self.send(Command::Release(id));
    }

    pub(super) fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    pub(super) fn crashed(&self) -> bool {
        self.shared.lock().crashed
    }

    fn send(&self, command: Command) {
        self.shared.lock().inbox.push(command);
        self.shared.bell.notify_one();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was printed where it happened
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever holds the lock only moves values.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is in the inbox, the engine is told to stop, or `until`.
    fn wait(&self, until: Option<Instant>) {
        let mut state = self.lock();
        while state.inbox.is_empty() && !state.stop {
            state = match until {
                None => self
                    .bell
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    let waited = self.bell.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Longest sleep in one piece, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(200);

fn run(shared: &Shared, mut engine: Engine, time_scale: f64, dies_after: Option<u64>) {
    let start = Instant::now();
    let mut readers: HashMap<u64, UnboundedSender<Signal>> = HashMap::new();
    let mut events = Vec::new();
    let mut told = 0;
    loop {
        let commands = {
            let mut state = shared.lock();
            if state.stop {
                return;
            }
            std::mem::take(&mut state.inbox)
        };
        for command in commands {
            match command {
                Command::Submit(job, reader) => {
                    readers.insert(job.id, reader);
                    engine.submit(job);
                }
                Command::Abort(id) => {
                    readers.remove(&id);
                    engine.abort(id);
                }
                Command::Release(id) => engine.release(id),
            }
        }
        let now = start.elapsed().as_secs_f64() / time_scale;
        engine.advance(now, &mut events);
        // Before anyone is told: who hears of a token finds it counted.
        shared.lock().counters = engine.counters();
        for event in events.drain(..) {
            told += u64::from(matches!(event, Event::Token { .. }));
            deliver(event, &mut readers, &mut engine);
            if dies_after == Some(told) {
                shared.lock().crashed = true;
                return; // drops the readers' channels: every answer breaks off
            }
        }
        let until = engine.next().and_then(|at| {
            let offset = Duration::try_from_secs_f64(at * time_scale).ok()?;
            start.checked_add(offset)
        });
        match until {
            // Nothing that comes in now matters before the step is over.
            Some(until) if engine.is_stepping() => {
                let left = until.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(NAP));
            }
            until => shared.wait(until),
        }
    }
}

fn deliver(event: Event, readers: &mut HashMap<u64, UnboundedSender<Signal>>, engine: &mut Engine) {
    let (id, signal) = match event {
        Event::Token { id, last, .. } => (id, Signal::Token { last }),
        Event::Fetched { id, .. } => (id, Signal::Fetched),
    };
    let last = signal == Signal::Token { last: true };
    let gone = readers.get(&id).is_none_or(|r| r.send(signal).is_err());
    if gone && !last {
        engine.abort(id);
    }
    if gone || last {
        readers.remove(&id);
    }
}
