//! Where processes run: one trait, one wrapper, one executor per kind of cluster. Knows no TOML,
//! no plan and no key. A handle is plain data: it survives the `doe` that made it, and names a
//! process by host, pid and start time, never by a command's name.

pub mod children;
pub mod files;
pub mod folder;
pub mod killer;
pub mod local;
pub mod look;
pub mod masked;
pub mod nobody;
pub mod ports;
pub mod procfs;
pub mod reaper;
pub mod remote;
pub mod secrets;
pub mod session;
pub mod slurm;
#[cfg(feature = "aws")]
pub mod ssm;
pub mod tree;
pub mod trouble;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// One machine of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Name.
    pub name: String,
    /// Address that other hosts reach it at.
    pub address: String,
    /// Number of GPUs.
    pub gpus: u32,
}

/// A script to run: one file under `sh -eu`, in its own session.
#[derive(Clone, PartialEq)]
pub struct Script {
    /// Short name for files and messages: `service-decode`, `step-measure`.
    pub name: String,
    /// The text.
    pub text: String,
    /// Its whole environment beside what the executor itself gives (`PATH`, `HOME`, `LANG`). Those
    /// that [`secrets::NAMES_VARIABLE`] lists are secrets.
    pub env: BTreeMap<String, String>,
    /// Folder on the host that is its working directory; made if missing.
    pub work: PathBuf,
    /// Limit enforced on the host, whoever is still watching.
    pub timeout: Option<Duration>,
    /// Each of stdout and stderr is cut to this many bytes (head and tail kept).
    pub log_cap_bytes: u64,
    /// Whether it may live and die with `doe`: its work is pure and simply done again. An executor
    /// on the machine of `doe` then runs it without a wrapper; all others take no notice.
    pub attached: bool,
    /// What it asks of a scheduler that hands hosts out; all other executors take no notice.
    pub ask: Ask,
}

/// What a script asks of a scheduler beside its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// GPUs that are its own.
    pub gpus: u32,
    /// How long it may be needed, when it has no limit of its own.
    pub needed: Option<Duration>,
    /// With whom it is to be given its host: all of them at once, or none.
    pub together: Option<Together>,
}

/// Scripts that are started at one time and are of no use without each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Together {
    /// Names them; another name in every attempt.
    pub group: String,
    /// How many they are.
    pub count: u32,
}

/// How scripts find their way on hosts that do not have the files of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Folder on every host; short, since sockets have short paths.
    pub root: PathBuf,
    /// The `doe` program there.
    pub doe: PathBuf,
    /// Environment of every script: `PATH`, and the profile of a simulation.
    pub env: BTreeMap<String, String>,
}

/// Names one submission; made and stored before anything is submitted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token(pub String);

/// A process that was started, as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// Executor that made it.
    pub executor: String,
    /// Host it runs on.
    pub host: String,
    /// The submission's token; also in the environment of every process of the tree (`DOE_TOKEN`).
    pub token: Token,
    /// Folder on the host with `script`, `stdout`, `stderr`, `pid`, `exit`.
    pub dir: PathBuf,
    /// Session leader.
    pub pid: u32,
    /// Its start time in clock ticks since boot, so that a recycled pid is never mistaken.
    pub start_ticks: u64,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// Whether the limit ended it.
    pub timed_out: bool,
    /// When it started, Unix ms.
    pub started_unix_ms: u64,
    /// When it ended, Unix ms.
    pub ended_unix_ms: u64,
    /// What it and all that it waited for used of the processors, where somebody saw it.
    #[serde(default)]
    pub cpu: Option<doe_cache::CpuTime>,
}

impl Exit {
    /// Whether it ended by itself with code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0) && self.signal.is_none() && !self.timed_out
    }
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// It lives.
    Running,
    /// It ended and left its exit record.
    Exited(Exit),
    /// It is gone without an exit record (killed with its wrapper, host rebooted).
    Lost {
        /// What was seen.
        why: String,
    },
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A sign of readiness, looked for from where `doe` runs or on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// GET of the URL answers 200 within a few seconds.
    Http(String),
    /// The same of a server that may be busy: it is given longer.
    Answers(String),
    /// A connection to `host:port` is accepted.
    Tcp(String),
    /// Something listens on this TCP port of the host, seen without connecting (from the kernel's
    /// socket table): connecting would be taken for the client by servers that serve one.
    Listen(u16),
    /// A file exists on the host.
    File(PathBuf),
}

/// The fact that says how far a host's clock is ahead of ours: another one every time it is read.
pub const CLOCK_AHEAD: &str = "clock_ahead_ms";

/// Facts read from a host: `kernel`, `cpu_count`, `memory_mib`, ...
pub type Facts = BTreeMap<String, String>;

/// Runs scripts on hosts.
pub trait Executor: Send + Sync {
    /// `local`, `ssh`, ...
    fn name(&self) -> &'static str;

    /// Reads the host's facts.
    fn probe<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>>;

    /// Copies files to the host, under their digests; present ones are verified, not sent again.
    /// Returns the path of each on the host.
    fn stage<'a>(
        &'a self,
        host: &'a HostSpec,
        files: &'a [(doe_cache::Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>>;

    /// Starts a script and returns when its identity is on disk. Starting twice with one token
    /// starts once: the second call returns the first handle.
    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        script: &'a Script,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>>;

    /// The handle of a token that was begun, by this `doe` or an earlier one; `None` when nobody
    /// has begun it yet. It may have ended.
    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>>;

    /// Takes a token back: what runs of it is ended as by [`Self::cancel`], and what has not begun,
    /// a start that is on its way included, never will. The handle of what ran.
    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>>;

    /// When it ended, Unix ms, if it left a whole record: also for one that counts as lost because
    /// it was ended.
    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>>;

    /// Whether what waited for its turn when it was started has begun. Asks nobody but its folder, so
    /// many may ask for long.
    fn has_begun<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<bool>> {
        Box::pin(std::future::ready(Ok(handle.pid > 0)))
    }

    /// Whether the times of exit records are by the clock of this machine, and not by the host's.
    fn tells_our_time(&self) -> bool {
        false
    }

    /// By how much the ends of two exit records, of different hosts, may be in the wrong order.
    fn ends_differ_by(&self) -> Duration {
        Duration::ZERO
    }

    /// What is known now.
    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>>;

    /// Waits for the end.
    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>>;

    /// Ends the whole tree: politely, after `grace` hard. Returns when nothing of it is left.
    /// Cancelling what has ended is fine.
    fn cancel<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Result<()>>;

    /// Log bytes from an offset on.
    fn log<'a>(
        &'a self,
        handle: &'a Handle,
        stream: Stream,
        offset: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>>;

    /// Looks for a sign once.
    fn look<'a>(&'a self, host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>>;

    /// Looks for a sign; an executor whose looks are slow goes on looking on the host until the
    /// sign shows, and says no at the limit. All others look once.
    fn await_sign<'a>(
        &'a self,
        host: &'a HostSpec,
        sign: &'a Sign,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<bool>> {
        self.look(host, sign)
    }

    /// How often a sign may be looked for all the time that something is in use.
    fn look_every(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Fetches files from a folder on the host into a local folder; those that this machine sees
    /// stay where they are. Where they can be read now. Missing ones are left out of the answer.
    fn collect<'a>(
        &'a self,
        host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>>;

    /// Hands out a port that nobody on the host's address listens on. Never the same twice in
    /// one executor's life.
    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>>;

    /// Removes what an ended execution left in its folder on the host, logs included. Only when
    /// nothing is needed of it any more: its token could be started again afterwards.
    fn discard<'a>(&'a self, _handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
