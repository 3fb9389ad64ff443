//! Ends many trees at once at the price of one: whoever is being ended, one thread looks at all
//! processes once a round and serves every ending from that look. An ending that was begun goes
//! on to its end even when nobody waits for it any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Token;
use super::tree::{self, Ending, Progress, Snapshot, Target};
use crate::error::{Error, Kind, Result};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// Ends trees.
#[derive(Debug, Clone, Default)]
pub struct Killer {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    arrived: Vec<Work>,
    has_thread: bool,
}

#[derive(Debug)]
struct Work {
    token: Token,
    ending: Ending,
    done: oneshot::Sender<Result<()>>,
}

impl Killer {
    /// Ends a tree and returns when nothing of it is left.
    pub async fn end(&self, target: Target, grace: Duration) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let work = Work {
            token: target.token.clone(),
            ending: Ending::new(target, grace),
            done,
        };
        let start = {
            let mut state = self.lock();
            state.arrived.push(work);
            !std::mem::replace(&mut state.has_thread, true)
        };
        if start {
            let killer = self.clone();
            tokio::task::spawn_blocking(move || killer.serve());
        }
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Infra,
                "shutting-down",
                "doe stopped before the processes were ended",
            ))
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut works: Vec<Work> = Vec::new();
        let mut pause = FIRST_PAUSE;
        loop {
            {
                let mut state = self.lock();
                if !state.arrived.is_empty() {
                    pause = FIRST_PAUSE;
                    works.append(&mut state.arrived);
                }
                if works.is_empty() {
                    state.has_thread = false;
                    return;
                }
            }
            let oldest = works.iter().map(|w| w.ending.oldest_ticks()).min();
            let snapshot = Snapshot::take(oldest.unwrap_or(0));
            let mut kept = Vec::with_capacity(works.len());
            for mut work in works {
                let outcome = match &snapshot {
                    Err(error) => Err(error.clone()),
                    Ok(snapshot) => match work.ending.step(snapshot) {
                        Progress::Again => {
                            kept.push(work);
                            continue;
                        }
                        Progress::Done => Ok(()),
                        Progress::Stuck(left) => Err(tree::stuck(&work.token, &left)),
                    },
                };
                // Nobody may be waiting any more; the tree is ended all the same.
                let _ = work.done.send(outcome);
            }
            works = kept;
            if !works.is_empty() {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
