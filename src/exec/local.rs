//! Runs scripts as processes of this machine. Every host of the platform is this machine under
//! another address. What is started here cannot outlive `doe` unless that was asked for: its
//! token is with the reaper before the first process can carry it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::children::{self, Children, Ended};
use super::files::{self, Blobs};
use super::folder::{self, Claim, Job, Layout, Record};
use super::killer::Killer;
use super::procfs::{self, ProcessId};
use super::reaper::{REAPED, Reaper};
use super::session::SESSION_COMMAND;
use super::tree::{self, TOKEN_VARIABLE, Target};
use super::{Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token, look};
use crate::error::{Error, Kind, Result};

const NAME: &str = "local";
/// Who and where, for a `doe` that finds the folder later.
const ABOUT: &str = "about.json";
/// A script that has not begun after this time does not begin any more.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often a start is tried again when the process was killed before it had begun.
const START_TRIES: u32 = 3;
/// Looks at a process that is not our child, while one waits for it.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(50);
const PORT_TRIES: u32 = 64;

/// How a local executor behaves.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// The `doe` program: it is run again for sessions and for the reaper.
    pub doe: PathBuf,
    /// Whether scripts go on when `doe` dies, to be attached to again later.
    pub keep_on_death: bool,
    /// Time between TERM and KILL when a script's limit is up or it leaves processes behind.
    pub grace: Duration,
}

impl LocalOptions {
    /// The usual behaviour with this `doe` program: nothing outlives `doe`, 5 s of grace.
    pub fn new(doe: impl Into<PathBuf>) -> Self {
        Self {
            doe: doe.into(),
            keep_on_death: false,
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
    blobs: Blobs,
    /// Executions whose leader is our child; the value turns true when their end is settled.
    running: Mutex<HashMap<Token, watch::Receiver<bool>>>,
    ports: Mutex<HashSet<u16>>,
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        if let Some(reaper) = &self.inner.reaper {
            reaper.close();
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
            .then(|| Reaper::new(options.doe.clone(), root, children.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                blobs: Blobs::new(layout.blobs()),
                layout,
                options,
                children,
                killer: Killer::default(),
                reaper,
                running: Mutex::default(),
                ports: Mutex::default(),
            }),
        })
    }

    /// Executions of former lives under this root that left no exit record but living processes.
    /// From here on the reaper guards them too; cancel them or wait for them.
    pub async fn sweep(&self) -> Result<Vec<Handle>> {
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

impl Inner {
    fn handle(&self, host: &str, token: &Token, leader: ProcessId) -> Handle {
        Handle {
            executor: NAME.to_string(),
            host: host.to_string(),
            token: token.clone(),
            dir: self.layout.run(token),
            pid: leader.pid,
            start_ticks: leader.start_ticks,
        }
    }

    /// Puts the folder of an execution in place, whole or not at all. The first one stays.
    fn prepare(&self, host: &HostSpec, script: &Script, token: &Token) -> Result<PathBuf> {
        let files = folder::files(&Job {
            token,
            script,
            grace: self.options.grace,
            adopts: true,
        })?;
        let dir = self.layout.run(token);
        if dir.exists() {
            return Ok(dir);
        }
        let about = About {
            host: host.name.clone(),
            script: script.name.clone(),
        };
        let about = serde_json::to_vec(&about).map_err(|e| {
            Error::new(Kind::Bug, "json", "could not describe an execution").cause(e)
        })?;
        let temporary =
            self.layout
                .runs()
                .join(format!(".new-{}-{}", std::process::id(), unique()));
        folder::make_private(&temporary)?;
        for (name, content) in &files {
            folder::write_private(&temporary.join(name), content.as_bytes())?;
        }
        folder::write_private(&temporary.join(ABOUT), &about)?;
        if let Err(cause) = fs::rename(&temporary, &dir) {
            let _ = fs::remove_dir_all(&temporary);
            if !dir.exists() {
                return Err(Error::io("make the folder", &dir, &cause));
            }
        }
        Ok(dir)
    }

    /// Launches the wrapper and adopts it. Blocks.
    fn launch(&self, dir: &Path, token: &Token) -> Result<(u32, Ended)> {
        if let Some(reaper) = &self.reaper {
            reaper.watch(Target {
                token: token.clone(),
                leader: None,
                dir: dir.to_path_buf(),
            })?;
        }
        let log = dir.join(folder::WRAPPER_LOG);
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log)
            .map_err(|e| Error::io("write", &log, &e))?;
        let mut command = Command::new(&self.options.doe);
        command
            .arg(SESSION_COMMAND)
            .arg(self.layout.wrapper())
            .arg(dir)
            .env_clear()
            .env(TOKEN_VARIABLE, &token.0)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        for name in ["PATH", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let child = command.spawn().map_err(|e| {
            Error::io("run", &self.options.doe, &e)
                .hint("the executor needs the `doe` program to start sessions")
        })?;
        let pid = child.id();
        Ok((pid, self.children.adopt(child)?))
    }

    async fn start(
        self: &Arc<Self>,
        host: &HostSpec,
        script: &Script,
        token: &Token,
    ) -> Result<Handle> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (inner, host_copy) = (self.clone(), host.clone());
            let (script_copy, token_copy) = (script.clone(), token.clone());
            let launched = blocking(move || {
                let dir = inner.prepare(&host_copy, &script_copy, &token_copy)?;
                match Claim::read(&dir)? {
                    Some(claim) => Ok((dir, Err(claim))),
                    None => inner
                        .launch(&dir, &token_copy)
                        .map(|child| (dir, Ok(child))),
                }
            })
            .await?;
            let (dir, (pid, child)) = match launched {
                (_, Err(claim)) => return Ok(self.handle(&host.name, token, claim.leader)),
                (dir, Ok(child)) => (dir, child),
            };
            let settled = self.attend(&dir, token, pid, child.clone());
            if let Some(claim) = self.claimed(&dir, &child).await? {
                if claim.leader.pid == pid {
                    locked(&self.running).insert(token.clone(), settled.clone());
                    // It may have ended, and been taken out, before it was put in.
                    if *settled.borrow() {
                        locked(&self.running).remove(token);
                    }
                }
                if let Some(reaper) = self.reaper.clone() {
                    let token = token.clone();
                    blocking(move || reaper.leader(&token, claim.leader)).await?;
                }
                return Ok(self.handle(&host.name, token, claim.leader));
            }
            // Killed before it had begun: by a Ctrl-C that came before it had left our session.
            let killed = (*child.borrow()).is_some_and(|status| status.code().is_none());
            if !killed || tries == START_TRIES {
                return Err(self.not_started(&dir, script, token).await);
            }
        }
    }

    /// Waits until somebody has claimed the execution; `None` when our child ended without.
    async fn claimed(&self, dir: &Path, child: &Ended) -> Result<Option<Claim>> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let over = child.borrow().is_some() || child.has_changed().is_err();
            // Looked for after the child: a claim that it made before it ended is seen.
            let claim = Claim::read(dir)?;
            if claim.is_some() || over || begun.elapsed() > START_LIMIT {
                return Ok(claim);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(8));
        }
    }

    async fn not_started(&self, dir: &Path, script: &Script, token: &Token) -> Error {
        let target = Target {
            token: token.clone(),
            leader: None,
            dir: dir.to_path_buf(),
        };
        let ended = self.killer.end(target, Duration::ZERO).await;
        let why = folder::read_if_there(&dir.join(folder::WRAPPER_LOG))
            .ok()
            .flatten();
        let mut error = Error::new(
            Kind::Infra,
            "not-started",
            format!("the script `{}` did not start", script.name),
        )
        .cause(why.as_deref().map_or("it left no word", str::trim));
        match ended {
            Ok(()) => self.forget(token).await,
            Err(cause) => error = error.cause(cause),
        }
        error.hint(format!("look into `{}`", dir.display()))
    }

    /// Settles the end of our child: when it was the leader and left no record, the rest of its
    /// tree is ended, for lost must mean gone.
    fn attend(
        self: &Arc<Self>,
        dir: &Path,
        token: &Token,
        pid: u32,
        child: Ended,
    ) -> watch::Receiver<bool> {
        let (settled, receiver) = watch::channel(false);
        let (inner, dir, token) = (self.clone(), dir.to_path_buf(), token.clone());
        tokio::spawn(async move {
            children::ended(child).await;
            // A child that came second, or died before it had begun, settles nothing.
            let claim = Claim::read(&dir).ok().flatten();
            if let Some(claim) = claim.filter(|claim| claim.leader.pid == pid) {
                let whole = matches!(Record::read(&dir), Ok(Record::Whole(_)));
                let target = Target {
                    token: token.clone(),
                    leader: Some(claim.leader),
                    dir,
                };
                if whole || inner.killer.end(target, inner.options.grace).await.is_ok() {
                    inner.forget(&token).await;
                }
                locked(&inner.running).remove(&token);
            }
            settled.send_replace(true);
        });
        receiver
    }

    async fn forget(&self, token: &Token) {
        if let Some(reaper) = self.reaper.clone() {
            let token = token.clone();
            // Only a runtime that shuts down fails here; then the reaper looks for itself.
            let _ = blocking(move || {
                reaper.forget(&token);
                Ok(())
            })
            .await;
        }
    }

    fn poll(&self, handle: &Handle) -> Result<Status> {
        self.check(handle)?;
        let leader = ProcessId {
            pid: handle.pid,
            start_ticks: handle.start_ticks,
        };
        let boot_id = procfs::boot_id();
        let claim = Claim::read(&handle.dir)?;
        let same_boot = claim.as_ref().is_some_and(|claim| claim.boot_id == boot_id);
        let alive = same_boot && procfs::lives(leader);
        // Looked for after the process: a record that comes in between is seen.
        let lost = |why: String| Ok(Status::Lost { why });
        match Record::read(&handle.dir)? {
            Record::Missing | Record::Torn if alive => Ok(Status::Running),
            _ if handle.dir.join(REAPED).exists() => {
                lost("it was ended because the doe that had started it died".to_string())
            }
            Record::Whole(exit) => Ok(Status::Exited(exit)),
            Record::Torn => lost("its exit record is not whole".to_string()),
            Record::Missing if claim.is_none() => {
                lost(format!("its folder `{}` is gone", handle.dir.display()))
            }
            Record::Missing if !same_boot => lost("the machine was restarted".to_string()),
            Record::Missing => lost(format!(
                "process {} is gone and left no exit record",
                handle.pid
            )),
        }
    }

    async fn wait(&self, handle: &Handle) -> Result<Status> {
        let mut pause = FIRST_LOOK;
        loop {
            let settled = locked(&self.running).get(&handle.token).cloned();
            match settled {
                Some(mut settled) => {
                    // An error means that the task is gone with its runtime: then look ourselves.
                    let _ = settled.wait_for(|settled| *settled).await;
                    locked(&self.running).remove(&handle.token);
                }
                None => match self.poll(handle)? {
                    Status::Running => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LAST_LOOK);
                    }
                    ended => {
                        if matches!(ended, Status::Lost { .. }) {
                            self.cancel(handle, self.options.grace).await?;
                        }
                        self.forget(&handle.token).await;
                        return Ok(ended);
                    }
                },
            }
        }
    }

    async fn cancel(&self, handle: &Handle, grace: Duration) -> Result<()> {
        self.check(handle)?;
        self.killer.end(Target::from(handle), grace).await?;
        self.forget(&handle.token).await;
        Ok(())
    }

    fn check(&self, handle: &Handle) -> Result<()> {
        if handle.executor == NAME {
            return Ok(());
        }
        Err(Error::new(
            Kind::Bug,
            "foreign-handle",
            format!(
                "a handle of the executor `{}` was given to `{NAME}`",
                handle.executor
            ),
        ))
    }

    fn sweep(&self) -> Result<Vec<Handle>> {
        let runs = self.layout.runs();
        let entries = fs::read_dir(&runs).map_err(|e| Error::io("read", &runs, &e))?;
        let boot_id = procfs::boot_id();
        let mut open = BTreeMap::new();
        for entry in entries.flatten() {
            let (dir, name) = (entry.path(), entry.file_name());
            let Some(token) = name.to_str().map(|name| Token(name.to_string())) else {
                continue;
            };
            if folder::check_token(&token).is_err()
                || matches!(Record::read(&dir)?, Record::Whole(_))
            {
                continue;
            }
            let claim = Claim::read(&dir)?.filter(|claim| claim.boot_id == boot_id);
            let about = folder::read_if_there(&dir.join(ABOUT))?
                .and_then(|text| serde_json::from_str::<About>(&text).ok());
            if let (Some(claim), Some(about)) = (claim, about) {
                open.insert(
                    token.0.clone(),
                    self.handle(&about.host, &token, claim.leader),
                );
            }
        }
        let targets: Vec<Target> = open.values().map(Target::from).collect();
        let alive = tree::alive(&targets)?;
        open.retain(|token, _| alive.contains(&Token(token.clone())));
        if let Some(reaper) = &self.reaper {
            for handle in open.values() {
                reaper.watch(Target::from(handle))?;
            }
        }
        Ok(open.into_values().collect())
    }

    fn discard(&self, handle: &Handle) -> Result<()> {
        if self.poll(handle)? == Status::Running {
            return Err(Error::new(
                Kind::Bug,
                "still-running",
                format!(
                    "`{}` still runs: cancel it before its folder is removed",
                    handle.token.0
                ),
            ));
        }
        // Not what the handle says: it may come from a file that someone changed.
        let dir = self.layout.run(&handle.token);
        folder::check_token(&handle.token)?;
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &dir, &e)),
            _ => Ok(()),
        }
    }

    fn free_port(&self, host: &HostSpec) -> Result<u16> {
        let failed = |cause: String| {
            Error::new(
                Kind::Infra,
                "no-port",
                format!(
                    "found no free port at the address `{}` of host `{}`",
                    host.address, host.name
                ),
            )
            .cause(cause)
            .hint("a local host needs an address of this machine, such as 127.0.0.1 or 127.0.0.2")
        };
        for _ in 0..PORT_TRIES {
            let listener =
                TcpListener::bind((host.address.as_str(), 0)).map_err(|e| failed(e.to_string()))?;
            let address = listener.local_addr().map_err(|e| failed(e.to_string()))?;
            if locked(&self.ports).insert(address.port()) {
                return Ok(address.port());
            }
        }
        Err(failed(format!(
            "{PORT_TRIES} tries gave only ports that were handed out before"
        )))
    }
}

fn read_log(handle: &Handle, stream: Stream, offset: u64) -> Result<Vec<u8>> {
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
        self.inner.start(host, script, token).boxed()
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
        let handle = handle.clone();
        blocking(move || read_log(&handle, stream, offset)).boxed()
    }

    fn look<'a>(&'a self, _host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        async move {
            match sign {
                Sign::Http(url) => look::http(url).await,
                Sign::Tcp(address) => look::tcp(address).await,
                Sign::Listen(port) => Ok(look::listens(*port)),
                Sign::File(path) => Ok(path.exists()),
            }
        }
        .boxed()
    }

    fn collect<'a>(
        &'a self,
        _host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        let (from, names, into) = (from.to_path_buf(), names.to_vec(), into.to_path_buf());
        blocking(move || files::collect(&from, &names, &into)).boxed()
    }

    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        async move { self.inner.free_port(host) }.boxed()
    }

    fn discard<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        let (inner, handle) = (self.inner.clone(), handle.clone());
        blocking(move || inner.discard(&handle)).boxed()
    }
}
