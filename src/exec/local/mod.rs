//! Runs scripts as processes of this machine. Every host of the platform is this machine under
//! another address. What is started here cannot outlive `doe` unless that was asked for: its
//! token is with the reaper before the first process can carry it. Most scripts run under the
//! wrapper and can be found again by a later `doe`; attached ones live and die with this one.

mod attached;
mod outcome;
mod start;

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::children::Children;
use super::files::{self, Blobs};
use super::folder::{self, Layout};
use super::killer::Killer;
use super::ports::Ports;
use super::reaper::Reaper;
use super::{Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token, look};
use crate::error::{Error, Kind, Result};

const NAME: &str = "local";
/// Who and where, for a `doe` that finds the folder later.
const ABOUT: &str = "about.json";
/// How a local executor behaves.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// The `doe` program: it is run again for sessions and for the reaper.
    pub doe: PathBuf,
    /// Whether scripts go on when `doe` dies, to be attached to again later.
    pub keep_on_death: bool,
    /// How long scripts go on when `doe` was killed and nobody takes them over; then they are
    /// ended. Zero: at once.
    pub survive: Duration,
    /// Time between TERM and KILL when a script's limit is up or it leaves processes behind.
    pub grace: Duration,
}

impl LocalOptions {
    /// The usual behaviour with this `doe` program: nothing outlives `doe`, 5 s of grace.
    pub fn new(doe: impl Into<PathBuf>) -> Self {
        Self {
            doe: doe.into(),
            keep_on_death: false,
            survive: Duration::ZERO,
            grace: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct About {
    host: String,
    script: String,
}

/// Runs scripts on this machine.
#[derive(Debug)]
pub struct LocalExecutor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    options: LocalOptions,
    children: Children,
    killer: Killer,
    reaper: Option<Arc<Reaper>>,
    /// Whether something may be guarded that an earlier `doe` began.
    has_taken_over: AtomicBool,
    blobs: Blobs,
    /// Executions whose leader is our child; the value turns true when their end is settled.
    running: Mutex<HashMap<Token, watch::Receiver<bool>>>,
    ports: Ports,
    attached: attached::Attached,
    /// How many starts go on at a time.
    turns: Semaphore,
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        // What another began and nobody has said to be unwanted: whoever fails before it could go
        // on with that must not end it.
        match self.inner.has_taken_over.load(Ordering::Acquire) {
            true => self.hand_back(),
            false => self.leave(),
        }
    }
}

impl LocalExecutor {
    /// An executor that keeps its files under `root` (made if missing, private).
    pub fn new(root: impl AsRef<Path>, options: LocalOptions) -> Result<Self> {
        let root = root.as_ref();
        folder::make_private(root)?;
        let root = root
            .canonicalize()
            .map_err(|e| Error::io("read", root, &e))?;
        let layout = Layout::new(root.clone());
        folder::make_private(&layout.runs())?;
        let wrapper = layout.wrapper();
        if folder::read_if_there(&wrapper)?.as_deref() != Some(folder::WRAPPER) {
            let temporary = root.join(format!(".wrapper-{}-{}", std::process::id(), unique()));
            folder::write_private(&temporary, folder::WRAPPER.as_bytes())?;
            fs::rename(&temporary, &wrapper).map_err(|e| Error::io("write", &wrapper, &e))?;
        }
        let children = Children::default();
        let reaper = (!options.keep_on_death)
            .then(|| Reaper::new(options.doe.clone(), root, options.survive, children.clone()));
        let starts_at_a_time = 4 * std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            inner: Arc::new(Inner {
                blobs: Blobs::new(layout.blobs()),
                layout,
                options,
                children,
                killer: Killer::default(),
                reaper,
                has_taken_over: AtomicBool::new(false),
                running: Mutex::default(),
                ports: Ports::new(),
                attached: attached::Attached::default(),
                turns: Semaphore::new(starts_at_a_time),
            }),
        })
    }

    /// Ends what still runs without waiting for it, now and not when the time to survive is over:
    /// the user does not want it any more. Nothing can be started afterwards.
    pub fn leave(&self) {
        if let Some(reaper) = &self.inner.reaper {
            self.inner.leave_attached();
            reaper.close();
        }
    }

    /// Goes as if killed: what still runs goes on for the time to survive, and who comes next may go
    /// on with it.
    fn hand_back(&self) {
        if let Some(reaper) = &self.inner.reaper {
            self.inner.leave_attached();
            reaper.hand_back();
        }
    }

    /// Executions of former lives under this root that left no exit record but living processes.
    /// From here on our reaper guards them and no other does; cancel them or wait for them. Dropped
    /// without [`LocalExecutor::leave`], the executor leaves them as it found them.
    pub async fn sweep(&self) -> Result<Vec<Handle>> {
        self.inner.has_taken_over.store(true, Ordering::Release);
        let inner = self.inner.clone();
        blocking(move || inner.sweep()).await
    }
}

/// Runs a blocking piece of work beside the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(cause) => Err(
            Error::new(Kind::Bug, "task-failed", "a task of the executor broke off").cause(cause),
        ),
    }
}

fn unique() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one insertion or removal: a panic cannot tear it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read_log(handle: &Handle, stream: Stream, offset: u64) -> Result<Vec<u8>> {
    let path = handle.dir.join(match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    });
    let mut bytes = Vec::new();
    let read = fs::File::open(&path).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => Ok(bytes),
        // It has only just begun.
        Err(e) if e.kind() == ErrorKind::NotFound && handle.dir.exists() => Ok(bytes),
        Err(e) => Err(Error::io("read", &path, &e)),
    }
}

impl Executor for LocalExecutor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe<'a>(&'a self, _host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>> {
        let wrapper = self.inner.layout.wrapper();
        blocking(move || {
            let failed = || {
                Error::new(
                    Kind::Infra,
                    "probe-failed",
                    "could not read the facts of this machine",
                )
            };
            let output = Command::new("/bin/sh")
                .arg(wrapper)
                .arg("facts")
                .stdin(Stdio::null())
                .output()
                .map_err(|e| failed().cause(e))?;
            if !output.status.success() {
                return Err(failed().cause(String::from_utf8_lossy(&output.stderr).trim()));
            }
            Ok(folder::parse_facts(&String::from_utf8_lossy(
                &output.stdout,
            )))
        })
        .boxed()
    }

    fn stage<'a>(
        &'a self,
        _host: &'a HostSpec,
        files: &'a [(doe_cache::Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        let (inner, files) = (self.inner.clone(), files.to_vec());
        blocking(move || {
            files
                .iter()
                .map(|(digest, source)| inner.blobs.put(*digest, source))
                .collect()
        })
        .boxed()
    }

    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        script: &'a Script,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>> {
        if attached::fits(script) {
            return self.inner.start_attached(host, script, token).boxed();
        }
        self.inner.start(host, script, token).boxed()
    }

    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        async move { self.inner.find(host, token) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        self.inner.revoke(host, token, grace).boxed()
    }

    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>> {
        async move {
            if let Some(status) = self.inner.attached.poll(&handle.token) {
                return Ok(match status {
                    Status::Exited(exit) => Some(exit.ended_unix_ms),
                    _ => None,
                });
            }
            folder::ended_unix_ms(&handle.dir)
        }
        .boxed()
    }

    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        async move { self.inner.poll(handle) }.boxed()
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        self.inner.wait(handle).boxed()
    }

    fn cancel<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.inner.cancel(handle, grace).boxed()
    }

    fn log<'a>(
        &'a self,
        handle: &'a Handle,
        stream: Stream,
        offset: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        if let Some(text) = self.inner.attached.log(&handle.token, stream, offset) {
            return std::future::ready(Ok(text)).boxed();
        }
        let handle = handle.clone();
        blocking(move || read_log(&handle, stream, offset)).boxed()
    }

    fn look<'a>(&'a self, host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        look::from_here(sign, async |port| {
            let addresses = tokio::net::lookup_host((host.address.as_str(), port)).await;
            let addresses = addresses.map_err(|cause| {
                let text = format!("the host `{}` has no address", host.name);
                Error::new(Kind::Infra, "no-address", text).cause(cause)
            })?;
            let addresses: Vec<_> = addresses.map(|address| address.ip()).collect();
            look::listens(&addresses, port)
        })
        .boxed()
    }

    fn collect<'a>(
        &'a self,
        _host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        _into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        // A look at each of a few files: not worth a thread.
        std::future::ready(files::found(from, names)).boxed()
    }

    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        let (inner, host) = (self.inner.clone(), host.clone());
        blocking(move || inner.ports.take(&host)).boxed()
    }

    fn discard<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        if self.inner.attached.discard(&handle.token) {
            return std::future::ready(Ok(())).boxed();
        }
        let (inner, handle) = (self.inner.clone(), handle.clone());
        blocking(move || inner.discard(&handle)).boxed()
    }
}
