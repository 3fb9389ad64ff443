//! Scripts that live and die with `doe`: direct children without wrapper, folder or record, for
//! work that is pure and simply done again when `doe` was killed (analyses). Their logs are held
//! in memory until they are kept elsewhere. All of them carry one mark, which the reaper knows
//! before the first can: when `doe` has gone nothing of them stays behind, and there is no word about
//! each of them.

use std::collections::HashMap;
use std::io::pipe;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{OnceCell, watch};

use super::{Inner, locked, unique};
use crate::error::{Error, Kind, Result};
use crate::exec::children::{self, Ended};
use crate::exec::folder;
use crate::exec::procfs::ProcessId;
use crate::exec::tree::{self, GROUP_VARIABLE, TOKEN_VARIABLE, Target};
use crate::exec::{Exit, Handle, HostSpec, Script, Status, Stream, Token};

/// The longest script that is passed as one argument; Linux takes 128 KiB. A longer one runs under
/// the wrapper, unannounced: what a killed `doe` leaves of it is found and ended by the next one.
const LONGEST_ARGUMENT_BYTES: usize = 120 << 10;
/// Room for the note where a log was cut.
const NOTE_BYTES: usize = 256;
/// For `env`: what it runs hears these signals.
const RESET: &str = "--default-signal=INT,QUIT";
/// How long logs are read on when the script has ended and something still holds them.
const DRAIN: Duration = Duration::from_secs(2);

/// The attached scripts of one executor.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// An empty cell: somebody is starting it, or could not.
    known: Mutex<HashMap<Token, Arc<OnceCell<Entry>>>>,
    /// Whether scripts must be given back the signals that we were started without.
    resets: OnceLock<bool>,
    group: Mutex<Group>,
}

/// What the reaper knows of attached scripts.
#[derive(Debug, Default)]
struct Group {
    /// The mark of all of them, once the reaper knows it.
    mark: Option<Token>,
    /// Whether the reaper is being let go.
    is_closed: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    handle: Handle,
    /// `None` while it runs.
    status: watch::Receiver<Option<Status>>,
    logs: [Arc<Mutex<Log>>; 2],
}

/// The first and the last bytes of a log.
#[derive(Debug, Default)]
struct Log {
    head: Vec<u8>,
    tail: Vec<u8>,
    cut_bytes: u64,
    cap_bytes: usize,
}

impl Log {
    fn new(cap_bytes: u64) -> Self {
        Self {
            cap_bytes: usize::try_from(cap_bytes).unwrap_or(usize::MAX),
            ..Self::default()
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let keeps = self.cap_bytes / 4;
        let room = self.cap_bytes.saturating_sub(keeps + NOTE_BYTES);
        let room = room.saturating_sub(self.head.len());
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        self.tail.extend_from_slice(rest);
        // Cut seldom: moving the tail costs its length.
        if self.tail.len() > 2 * keeps {
            self.cut(keeps);
        }
    }

    fn cut(&mut self, keeps: usize) {
        let over = self.tail.len().saturating_sub(keeps);
        self.tail.drain(..over);
        self.cut_bytes += over as u64;
    }

    fn text(&mut self) -> Vec<u8> {
        self.cut(self.cap_bytes / 4);
        let mut text = self.head.clone();
        if self.cut_bytes > 0 {
            text.extend_from_slice(note(self.cut_bytes).as_bytes());
        }
        text.extend_from_slice(&self.tail);
        text
    }
}

/// Whether this process ignores INT or QUIT.
fn ignores_interrupts() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal N is bit N - 1.
    mask.is_some_and(|mask| mask & 0b110 != 0)
}

/// As the wrapper says it.
fn note(cut_bytes: u64) -> String {
    format!("\n[doe: {cut_bytes} bytes or a few more were cut here: the log is limited]\n")
}

impl Attached {
    fn entry(&self, token: &Token) -> Option<Entry> {
        locked(&self.known).get(token)?.get().cloned()
    }

    /// A shell that hears INT and QUIT. Whoever started us in the background of a shell made us
    /// ignore them, and what is ignored at its start no shell can hear again by itself.
    fn shell(&self) -> Command {
        let resets = self.resets.get_or_init(|| {
            let reset = || Command::new("env").args([RESET, "true"]).output();
            ignores_interrupts() && reset().is_ok_and(|output| output.status.success())
        });
        if !resets {
            return Command::new("/bin/sh");
        }
        let mut command = Command::new("env");
        command.args([RESET, "/bin/sh"]);
        command
    }

    pub(super) fn find(&self, token: &Token) -> Option<Handle> {
        self.entry(token).map(|entry| entry.handle)
    }

    /// How it stands; `None` when it is not one of these.
    pub(super) fn poll(&self, token: &Token) -> Option<Status> {
        let entry = self.entry(token)?;
        let status = entry.status.borrow().clone();
        Some(status.unwrap_or(Status::Running))
    }

    pub(super) async fn wait(&self, token: &Token) -> Option<Status> {
        let mut entry = self.entry(token)?;
        let ended = entry.status.wait_for(Option::is_some).await;
        let status = ended.ok().and_then(|status| status.clone());
        Some(status.unwrap_or_else(|| Status::Lost {
            why: "nobody watches it any more".into(),
        }))
    }

    pub(super) fn log(&self, token: &Token, stream: Stream, offset: u64) -> Option<Vec<u8>> {
        let entry = self.entry(token)?;
        let at = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        let text = locked(&entry.logs[at]).text();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        Some(text.get(from..).unwrap_or_default().to_vec())
    }

    /// True: it was one of these, and had ended.
    pub(super) fn discard(&self, token: &Token) -> bool {
        let mut known = locked(&self.known);
        let ended = known
            .get(token)
            .and_then(|cell| cell.get())
            .is_some_and(|entry| entry.status.borrow().is_some());
        ended && known.remove(token).is_some()
    }
}

/// Whether a script may be run this way.
pub(super) fn fits(script: &Script) -> bool {
    script.attached && script.text.len() <= LONGEST_ARGUMENT_BYTES
}

impl Inner {
    /// Starts an attached script, or finds that it was started; of several at once, one starts it.
    pub(super) async fn start_attached(
        self: &Arc<Self>,
        host: &HostSpec,
        script: &Script,
        token: &Token,
    ) -> Result<Handle> {
        folder::check_token(token)?;
        folder::check_script(script)?;
        let cell = locked(&self.attached.known)
            .entry(token.clone())
            .or_default()
            .clone();
        let entry = cell.get_or_try_init(|| self.spawn_attached(host, script, token));
        Ok(entry.await?.handle.clone())
    }

    async fn spawn_attached(
        self: &Arc<Self>,
        host: &HostSpec,
        script: &Script,
        token: &Token,
    ) -> Result<Entry> {
        let target = self.target(token);
        folder::make_private(&script.work).map_err(|e| not_started(script, &e))?;
        let failed = |e: std::io::Error| not_started(script, &e);
        // Before there is a child: nothing below may fail and leave one that nobody waits for.
        let [(out, stdout), (err, stderr)] = [pipe().map_err(failed)?, pipe().map_err(failed)?];
        let out = Receiver::from_owned_fd(out.into()).map_err(failed)?;
        let err = Receiver::from_owned_fd(err.into()).map_err(failed)?;
        let mut command = self.attached.shell();
        command
            .arg("-euc")
            // On the first line, so that the numbers of lines in messages stay right.
            .arg(format!("umask 077; trap '' HUP; {}", script.text))
            .arg(&script.name)
            .env_clear()
            .env("LANG", "C.UTF-8")
            .current_dir(&script.work)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        super::start::inherit(&mut command);
        command.envs(&script.env);
        command.env(TOKEN_VARIABLE, &token.0);
        command.env(GROUP_VARIABLE, &self.enter(&target)?.0);
        let started_unix_ms = unix_ms();
        let child = command.spawn().map_err(failed)?;
        // It holds the other ends of the pipes, which would never close.
        drop(command);
        let pid = child.id();
        // It is known by its token alone: when it began nobody asks.
        let leader = ProcessId {
            pid,
            start_ticks: 0,
        };
        let ended = match self.children.adopt(child) {
            Ok(ended) => ended,
            Err(error) => {
                self.killer.end(target, self.options.grace).await?;
                return Err(error);
            }
        };
        let logs = [(); 2].map(|()| Arc::new(Mutex::new(Log::new(script.log_cap_bytes))));
        let (status, receiver) = watch::channel(None);
        let entry = Entry {
            handle: self.handle(&host.name, token, leader),
            status: receiver,
            logs: logs.clone(),
        };
        let (inner, limit) = (self.clone(), script.timeout);
        tokio::spawn(async move {
            let [out_log, err_log] = logs;
            let reading = async { tokio::join!(read(out, &out_log), read(err, &err_log)) };
            let (exit, timed_out) = inner.see_end(reading, ended, &target, limit, pid).await;
            status.send_replace(Some(match exit {
                None => Status::Lost {
                    why: format!("process {pid} is gone and nobody knows how it ended"),
                },
                Some(exit) => {
                    let (code, signal) = code_and_signal(exit);
                    Status::Exited(Exit {
                        code,
                        signal,
                        timed_out,
                        started_unix_ms,
                        ended_unix_ms: unix_ms(),
                        cpu: None,
                    })
                }
            }));
        });
        Ok(entry)
    }

    /// Waits for the end of a script and of what it started. Whether the limit ended it.
    async fn see_end(
        &self,
        reading: impl Future,
        ended: Ended,
        target: &Target,
        limit: Option<Duration>,
        pid: u32,
    ) -> (Option<ExitStatus>, bool) {
        let grace = self.options.grace;
        let mut reading = std::pin::pin!(reading);
        let mut child = std::pin::pin!(children::ended(ended));
        let mut read_all = false;
        let mut timed_out = false;
        let mut late = std::pin::pin!(async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        });
        let exit = loop {
            tokio::select! {
                exit = &mut child => break exit,
                _ = &mut reading, if !read_all => read_all = true,
                () = &mut late, if !timed_out => {
                    timed_out = true;
                    // What will not go shows below, where the same is asked for again.
                    let _ = self.killer.end(target.clone(), grace).await;
                }
            }
        };
        if !read_all {
            // Mostly all of it is in the pipes by now.
            let soon = tokio::time::timeout(Duration::from_millis(20), &mut reading);
            read_all = soon.await.is_ok();
        }
        if !read_all || group_lives(pid) {
            // What will not go the reaper ends when we have gone.
            let _ = self.killer.end(target.clone(), grace).await;
            if !read_all {
                let _ = tokio::time::timeout(DRAIN, &mut reading).await;
            }
        }
        (exit, timed_out)
    }

    fn target(&self, token: &Token) -> Target {
        Target {
            token: token.clone(),
            leader: None,
            dir: self.layout.run(token),
        }
    }

    /// One more script. What it is to carry, of which the reaper knows.
    fn enter(&self, script: &Target) -> Result<Token> {
        let mut group = locked(&self.attached.group);
        if let (true, Some(reaper)) = (group.is_closed, &self.reaper) {
            reaper.watch(script.clone())?;
        }
        let mark = match &group.mark {
            Some(mark) => mark.clone(),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                let since_ns = since.map_or(0, |since| since.as_nanos());
                let (pid, count) = (std::process::id(), unique());
                let mark = Token(format!("attached-{pid}-{since_ns}-{count}"));
                if let Some(reaper) = &self.reaper {
                    reaper.watch(self.target(&mark))?;
                }
                group.mark.insert(mark).clone()
            }
        };
        Ok(mark)
    }

    /// The reaper is about to be let go. It keeps the mark: a script may have ended well and left a
    /// process that neither its group nor its logs show.
    pub(super) fn leave_attached(&self) {
        locked(&self.attached.group).is_closed = true;
    }

    /// Ends what carries the token of an attached script, whoever started it.
    pub(super) async fn end_attached(&self, token: &Token, grace: Duration) -> Result<bool> {
        let target = self.target(token);
        let lives = !tree::alive(std::slice::from_ref(&target))?.is_empty();
        if lives {
            self.killer.end(target, grace).await?;
        }
        // Whoever asks next shall find how it ended.
        self.attached.wait(token).await;
        Ok(lives)
    }
}

/// Whether anything is left in the process group of a script that has ended.
fn group_lives(pid: u32) -> bool {
    let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
    group.is_some_and(|group| test_kill_process_group(group).is_ok())
}

async fn read(mut pipe: impl AsyncRead + Unpin, log: &Mutex<Log>) {
    let mut buffer = [0; 8192];
    // An error ends a log as its end does: what was read is kept.
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        locked(log).add(&buffer[..count]);
    }
}

/// A script whose last command was killed ends with 128 and the signal: that is the signal here,
/// as it is for the wrapper.
fn code_and_signal(exit: ExitStatus) -> (Option<i32>, Option<i32>) {
    match exit.code() {
        Some(code @ 129..=192) => (None, Some(code - 128)),
        code => (code, exit.signal()),
    }
}

fn not_started(script: &Script, cause: &dyn std::fmt::Display) -> Error {
    let text = format!("the script `{}` did not start", script.name);
    Error::new(Kind::Infra, "not-started", text).cause(cause)
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_head_and_its_tail() {
        let all: Vec<u8> = (0..9000_u32).map(|i| (i % 251) as u8).collect();
        for step in [1, 7, 64, 4096] {
            // 2000 bytes: a tail of 500, 256 for the note, and the head.
            let mut log = Log::new(2000);
            all.chunks(step).for_each(|part| log.add(part));
            let expected = [&all[..1244], note(7256).as_bytes(), &all[8500..]].concat();
            assert!(log.text() == expected, "{step}");
            let mut log = Log::new(2000);
            all[..1700].chunks(step).for_each(|part| log.add(part));
            assert!(log.text() == all[..1700], "{step}");
        }
    }
}
