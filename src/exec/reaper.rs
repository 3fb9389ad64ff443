//! Sees to it that nothing outlives `doe` for long, even when `doe` is killed with a signal that
//! nobody can catch. The reaper is a process in a session of its own that reads from a pipe which
//! only `doe` holds: when the pipe closes without a farewell, it gives a new `doe` some time to
//! take over what runs, and then ends every tree it was told of. It is told of a token before
//! anything can carry that token.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Token;
use super::children::{self, Children};
use super::folder::{Claim, Record, write_private};
use super::procfs::ProcessId;
use super::session::become_leader;
use super::tree::{self, Target};
use crate::error::{Error, Kind, Result};

/// Name of the hidden command.
pub const REAPER_COMMAND: &str = "__reaper";
/// File in the folder of an execution that says that the reaper ended it.
pub const REAPED: &str = "reaped";

/// File under the root with the number of the reaper that guards what runs there.
const GUARDIAN: &str = "guardian";

const GRACE: Duration = Duration::from_secs(2);
/// Between two looks for a `doe` that takes over.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
const READY: &str = "ready";

/// What `doe` tells the reaper; one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// Processes with this token may exist from now on.
    Watch { token: Token, dir: PathBuf },
    /// The leader of the token's session.
    Leader {
        token: Token,
        pid: u32,
        start_ticks: u64,
    },
    /// Nothing of the token exists any more.
    Forget { token: Token },
    /// `doe` ends in an orderly way and leaves nothing behind.
    Bye,
    /// `doe` ends and what it leaves is not wanted any more.
    End,
}

/// How `doe` went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    Bye,
    End,
    /// It was killed.
    None,
}

// ---- the process -------------------------------------------------------------------------------

/// Runs the hidden command `doe __reaper ROOT SURVIVE_MS`; `arguments` are those after its name.
/// Returns the exit code when `doe` is gone and everything that it left has been ended or is
/// guarded by another reaper.
pub fn reaper_main(arguments: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let mut arguments = arguments.into_iter();
    let root = arguments.next().map(PathBuf::from);
    let survive = arguments.next().and_then(|ms| ms.to_str()?.parse().ok());
    let (Some(root), Some(survive), None) = (root, survive, arguments.next()) else {
        return Err(Error::new(
            Kind::Usage,
            "usage",
            format!("expected `doe {REAPER_COMMAND} ROOT SURVIVE_MS`: doe calls this itself"),
        ));
    };
    become_leader()?;
    let mut stdout = std::io::stdout();
    // When nobody reads this, `doe` is gone already and the pipe below says so.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    let (mut watched, farewell) = listen(std::io::stdin().lock());
    if farewell == Farewell::Bye {
        return Ok(0);
    }
    // What has no folder lives and dies with `doe`: nobody can take it over.
    let attached: Vec<Target> = watched
        .extract_if(.., |_, target| !target.dir.exists())
        .map(|(_, target)| target)
        .collect();
    // One that will not end must not keep the others from being guarded.
    let attached = tree::end_all(attached, GRACE).map(|()| 0);
    if watched.is_empty() {
        return attached;
    }
    if farewell == Farewell::None && is_settled(&root, &watched, Duration::from_millis(survive))? {
        return attached;
    }
    end_everything(&root, watched).and(attached)
}

/// Waits for a `doe` that takes over. Whether it came, or everything ended by itself.
fn is_settled(root: &Path, watched: &BTreeMap<String, Target>, survive: Duration) -> Result<bool> {
    if survive.is_zero() {
        return Ok(false);
    }
    let mut log = Log::open(root);
    log.say(&format!(
        "doe is gone: {} it started go on for {} s at most, unless a new doe takes them over",
        watched.len(),
        survive.as_secs()
    ));
    let mut targets: Vec<Target> = watched.values().cloned().collect();
    let begun = Instant::now();
    loop {
        if guardian(root).is_some_and(|guardian| guardian != std::process::id()) {
            log.say("a new doe has taken over");
            return Ok(true);
        }
        for target in targets.iter_mut().filter(|target| target.leader.is_none()) {
            target.leader = Claim::read(&target.dir).ok().flatten().map(|c| c.leader);
        }
        if tree::alive(&targets)?.is_empty() {
            log.say("everything ended by itself");
            return Ok(true);
        }
        let left = survive.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(LOOK_PAUSE.min(left));
    }
}

/// The number of the reaper that guards what runs under a root.
fn guardian(root: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(root.join(GUARDIAN)).ok()?;
    text.trim().parse().ok()
}

/// Follows the messages until the pipe closes. The second value says how `doe` went.
fn listen(input: impl BufRead) -> (BTreeMap<String, Target>, Farewell) {
    let mut watched = BTreeMap::new();
    for line in input.split(b'\n').map_while(std::result::Result::ok) {
        // The last line is torn when `doe` died while it wrote: what it announces was not begun.
        match serde_json::from_slice(&line) {
            Ok(Message::Watch { token, dir }) => {
                let target = Target {
                    token: token.clone(),
                    leader: None,
                    dir,
                };
                watched.entry(token.0).or_insert(target);
            }
            Ok(Message::Leader {
                token,
                pid,
                start_ticks,
            }) => {
                if let Some(target) = watched.get_mut(&token.0) {
                    target.leader = Some(ProcessId { pid, start_ticks });
                }
            }
            Ok(Message::Forget { token }) => drop(watched.remove(&token.0)),
            Ok(Message::Bye) => return (watched, Farewell::Bye),
            Ok(Message::End) => return (watched, Farewell::End),
            Err(_) => {}
        }
    }
    (watched, Farewell::None)
}

fn end_everything(root: &Path, watched: BTreeMap<String, Target>) -> Result<u8> {
    let mut log = Log::open(root);
    let mut targets = Vec::new();
    for (_, mut target) in watched {
        if target.leader.is_none() {
            // `doe` died before it could tell; the wrapper wrote it down.
            target.leader = Claim::read(&target.dir).ok().flatten().map(|c| c.leader);
        }
        // What ended by itself keeps its outcome; the rest did not end, it was ended.
        if !matches!(Record::read(&target.dir), Ok(Record::Whole(_))) {
            let _ = write_private(&target.dir.join(REAPED), b"doe died\n");
        }
        log.say(&format!(
            "doe is gone: ending {} in {}",
            target.token.0,
            target.dir.display()
        ));
        targets.push(target);
    }
    let outcome = tree::end_all(targets, GRACE);
    match &outcome {
        Ok(()) => log.say("nothing is left"),
        Err(error) => log.say(&error.to_string()),
    }
    outcome.map(|()| 0)
}

/// The reaper's log. It is for people; that it cannot be written stops nothing.
struct Log(Option<std::fs::File>);

impl Log {
    fn open(root: &Path) -> Self {
        let path = root.join("reaper.log");
        Self(
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .ok(),
        )
    }

    fn say(&mut self, text: &str) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        if let Some(file) = &mut self.0 {
            let _ = writeln!(file, "{}.{:03} {text}", now.as_secs(), now.subsec_millis());
        }
    }
}

// ---- the side of doe ---------------------------------------------------------------------------

/// Our end of the pipe. A reaper that dies is replaced by one that knows everything it knew.
#[derive(Debug)]
pub struct Reaper {
    doe: PathBuf,
    root: PathBuf,
    survive: Duration,
    children: Children,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pipe: Option<ChildStdin>,
    generation: u64,
    closed: bool,
    watched: BTreeMap<String, Target>,
}

impl Reaper {
    /// A reaper that is started when it is first needed: `doe` is the program, `root` where it
    /// keeps its log, `survive` how long it waits for another `doe` when ours is killed.
    pub fn new(doe: PathBuf, root: PathBuf, survive: Duration, children: Children) -> Arc<Self> {
        Arc::new(Self {
            doe,
            root,
            survive,
            children,
            state: Mutex::default(),
        })
    }

    /// Registers a token; processes may carry it when this has returned. Blocks.
    pub fn watch(self: &Arc<Self>, target: Target) -> Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::new(
                Kind::Bug,
                "executor-closed",
                "a script was started after its executor had been closed",
            ));
        }
        state.watched.insert(target.token.0.clone(), target.clone());
        self.tell(&mut state, &messages(&target))
    }

    /// Registers what an earlier `doe` left, all of it before the reaper of that one lets go.
    pub fn take_over(self: &Arc<Self>, targets: Vec<Target>) -> Result<()> {
        if targets.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        let mut text = Vec::new();
        for target in targets {
            text.extend(messages(&target));
            state.watched.insert(target.token.0.clone(), target);
        }
        self.tell(&mut state, &text)
    }

    /// Names the leader of a registered token.
    pub fn leader(self: &Arc<Self>, token: &Token, leader: ProcessId) -> Result<()> {
        let mut state = self.lock();
        match state.watched.get_mut(&token.0) {
            Some(target) if target.leader != Some(leader) => {
                target.leader = Some(leader);
                let messages = messages(target);
                self.tell(&mut state, &messages)
            }
            _ => Ok(()),
        }
    }

    /// Nothing of this token is left.
    pub fn forget(self: &Arc<Self>, token: &Token) {
        let mut state = self.lock();
        if state.watched.remove(&token.0).is_some() && !state.closed {
            // A reaper that cannot be told any more finds nothing with that token anyway.
            let _ = self.tell(
                &mut state,
                &[Message::Forget {
                    token: token.clone(),
                }],
            );
        }
    }

    /// Lets the reaper go. What is still registered is ended by it, at once.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        if let Some(mut pipe) = state.pipe.take() {
            let nothing = state.watched.is_empty();
            let last = if nothing { Message::Bye } else { Message::End };
            let _ = write_all(&mut pipe, &[last]);
        }
    }

    /// Lets the reaper go without a word, as a `doe` that is killed does: it waits for the next one.
    pub fn hand_back(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.pipe = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(self: &Arc<Self>, state: &mut State, messages: &[Message]) -> Result<()> {
        if let Some(pipe) = &mut state.pipe
            && write_all(pipe, messages).is_ok()
        {
            return Ok(());
        }
        self.start(state)
    }

    /// Starts a reaper and tells it everything.
    fn start(self: &Arc<Self>, state: &mut State) -> Result<()> {
        let failed = |cause: String| {
            Error::new(
                Kind::Infra,
                "no-reaper",
                format!("could not start `{} {REAPER_COMMAND}`", self.doe.display()),
            )
            .cause(cause)
            .hint("without it processes could outlive doe, so nothing is started")
        };
        let mut child = Command::new(&self.doe)
            .arg(REAPER_COMMAND)
            .arg(&self.root)
            .arg(self.survive.as_millis().to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let number = child.id();
        let (pipe, answer) = (child.stdin.take(), child.stdout.take());
        let exited = self.children.adopt(child)?;
        let (Some(mut pipe), Some(answer)) = (pipe, answer) else {
            return Err(failed("it has no pipes".to_string()));
        };
        // It has left our session when it answers: no Ctrl-C reaches it any more.
        let mut line = String::new();
        BufReader::new(answer)
            .read_line(&mut line)
            .map_err(|e| failed(e.to_string()))?;
        if line.trim_end() != READY {
            return Err(failed(format!("it answered `{}`", line.trim_end())));
        }
        for target in state.watched.values() {
            write_all(&mut pipe, &messages(target)).map_err(|e| failed(e.to_string()))?;
        }
        // The reaper of an earlier doe lets go when it sees this, and not before ours knows all.
        let temporary = self.root.join(format!(".{GUARDIAN}-{number}"));
        write_private(&temporary, format!("{number}\n").as_bytes())
            .and_then(|()| {
                let path = self.root.join(GUARDIAN);
                std::fs::rename(&temporary, &path).map_err(|e| Error::io("write", &path, &e))
            })
            .map_err(|e| failed(e.to_string()))?;
        state.pipe = Some(pipe);
        state.generation += 1;
        let (generation, reaper) = (state.generation, Arc::downgrade(self));
        tokio::spawn(async move {
            children::ended(exited).await;
            if let Some(reaper) = reaper.upgrade() {
                let revived = tokio::task::spawn_blocking(move || reaper.revive(generation));
                let _ = revived.await;
            }
        });
        Ok(())
    }

    /// Replaces the reaper of a generation that has died, as long as there is something to guard.
    fn revive(self: &Arc<Self>, generation: u64) {
        let mut state = self.lock();
        if state.generation != generation || state.closed {
            return;
        }
        state.pipe = None;
        if !state.watched.is_empty() {
            // When this fails the next start tries again, and says why it cannot.
            let _ = self.start(&mut state);
        }
    }
}

fn messages(target: &Target) -> Vec<Message> {
    let mut messages = vec![Message::Watch {
        token: target.token.clone(),
        dir: target.dir.clone(),
    }];
    if let Some(leader) = target.leader {
        messages.push(Message::Leader {
            token: target.token.clone(),
            pid: leader.pid,
            start_ticks: leader.start_ticks,
        });
    }
    messages
}

fn write_all(pipe: &mut ChildStdin, messages: &[Message]) -> std::io::Result<()> {
    let mut text = Vec::new();
    for message in messages {
        serde_json::to_writer(&mut text, message)?;
        text.push(b'\n');
    }
    pipe.write_all(&text)?;
    pipe.flush()
}

#[cfg(test)]
#[path = "reaper_tests.rs"]
mod tests;
