//! Runs scripts as jobs of Slurm, over a folder that the nodes share with this machine. Every
//! script is a task of a job array that runs the same wrapper as everywhere; how it ended is in
//! its exit record, and the controller is asked only for what no record can say. A job is its
//! comment and its place in the array, never its number.

mod executor;
mod queue;
mod submit;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use doe_cache::Digest;

use self::queue::{Job, Queue};
pub use self::submit::Common;
use self::submit::{Place, Start, Submitter, placed};
use super::files::{self, Blobs};
use super::folder::{self, Layout, Record, WRAPPER};
use super::{Handle, HostSpec, Script, Status, Token};
use crate::error::{Error, Kind, Result};

const BATCH: &str = include_str!("batch.sh");
const NAME: &str = "slurm";
/// How long a job that the controller does not know counts as running after its last sign of life.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a record may take to be seen after the controller has seen the end.
const RECORD_LAG: Duration = Duration::from_secs(3);
/// How long a start waits for its job to begin before it lets it wait alone.
const QUEUE: Duration = Duration::from_secs(5);
/// Between looks at the shared folder.
const LOOK: Duration = Duration::from_millis(100);

/// How it behaves.
#[derive(Debug, Clone)]
pub struct SlurmOptions {
    /// Folder that the nodes and this machine share.
    pub root: PathBuf,
    /// Slurm's configuration, when it is not the usual one.
    pub config: Option<PathBuf>,
    /// What all jobs have in common.
    pub common: Common,
    /// How long a controller that does not answer is waited for.
    pub patience: Duration,
    /// Time between TERM and KILL when a script's limit is up or it leaves processes behind.
    pub grace: Duration,
}

/// Runs scripts as jobs.
pub struct SlurmExecutor {
    layout: Layout,
    blobs: Arc<Blobs>,
    queue: Arc<Queue>,
    submitter: Submitter,
    wrapper: PathBuf,
    grace: Duration,
    ports: super::remote::RemotePorts,
    /// Signs of life of jobs that the controller does not know: the last one, and since when.
    beats: Mutex<HashMap<Token, (String, Instant)>>,
}

impl SlurmExecutor {
    /// An executor with its files under the shared root (made if missing, private).
    pub async fn new(options: SlurmOptions) -> Result<Self> {
        folder::make_private(&options.root)?;
        let root = options.root.canonicalize();
        let root = root.map_err(|e| Error::io("find", &options.root, &e))?;
        let layout = Layout::new(root.clone());
        folder::make_private(&layout.runs())?;
        let blobs = Arc::new(Blobs::new(layout.blobs()));
        let put = |text: &str| -> Result<PathBuf> {
            let source = root.join(format!(".new-{}", super::remote::call::nonce()));
            folder::write_private(&source, text.as_bytes())?;
            let path = blobs.put(Digest::of(text), &source);
            let _ = fs::remove_file(&source);
            path
        };
        let (wrapper, batch) = (put(WRAPPER)?, put(BATCH)?);
        let queue = Arc::new(Queue::new(options.config, options.patience));
        queue
            .ask("sinfo", &["-h".into(), "-o".into(), "%P".into()])
            .await?;
        let place = Place {
            root,
            batch,
            wrapper: wrapper.clone(),
            common: options.common,
        };
        Ok(Self {
            submitter: Submitter::new(queue.clone(), place),
            layout,
            blobs,
            queue,
            wrapper,
            grace: options.grace,
            ports: Default::default(),
            beats: Mutex::default(),
        })
    }

    /// The shared folder.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Puts programs into the shared folder, each under a name of its own in one folder, which is
    /// returned and named by its content.
    pub fn install(&self, programs: &[(String, Digest, PathBuf)]) -> Result<PathBuf> {
        let list: String = programs
            .iter()
            .map(|(name, digest, _)| format!("{name} {}\n", files::hex(*digest)))
            .collect();
        let dir = self.root().join("links").join(Digest::of(&list).short());
        folder::make_private(&dir)?;
        for (name, digest, source) in programs {
            let blob = self.blobs.put(*digest, source)?;
            let new = dir.join(format!(".new-{}", super::remote::call::nonce()));
            let link = dir.join(name);
            std::os::unix::fs::symlink(&blob, &new)
                .and_then(|()| fs::rename(&new, &link))
                .map_err(|e| Error::io("link", &link, &e))?;
        }
        Ok(dir)
    }

    /// Executions that were submitted, left no exit record and whose jobs the controller knows as
    /// open.
    pub async fn sweep(&self, host_of: impl Fn(&Token) -> String) -> Result<Vec<Handle>> {
        let Some(jobs) = self.queue.jobs(true).await? else {
            return Err(Error::new(
                Kind::Infra,
                "controller-unreachable",
                "Slurm's controller does not answer",
            ));
        };
        let runs = self.layout.runs();
        let entries = fs::read_dir(&runs).map_err(|e| Error::io("read", &runs, &e))?;
        let mut open = Vec::new();
        for entry in entries.flatten() {
            let Some(token) = entry
                .file_name()
                .to_str()
                .map(|name| Token(name.to_owned()))
            else {
                continue;
            };
            let dir = entry.path();
            if folder::check_token(&token).is_err()
                || matches!(Record::read(&dir)?, Record::Whole(_))
            {
                continue;
            }
            let job = placed(&dir)?.and_then(|key| jobs.get(&key).cloned());
            if job.is_some_and(|job| job.is_open()) {
                open.push(self.handle(host_of(&token), &token));
            }
        }
        Ok(open)
    }

    fn handle(&self, host: String, token: &Token) -> Handle {
        Handle {
            executor: NAME.to_owned(),
            host,
            token: token.clone(),
            dir: self.layout.run(token),
            // The numbers are the node's to know; the job is found by its comment.
            pid: 0,
            start_ticks: 0,
        }
    }

    async fn begin(&self, host: &HostSpec, script: &Script, token: &Token) -> Result<Handle> {
        let texts = folder::files(&folder::Job {
            token,
            script,
            grace: self.grace,
            adopts: false,
        })?;
        let dir = self.layout.run(token);
        if !dir.exists() {
            let new = self
                .layout
                .runs()
                .join(format!(".new-{}", super::remote::call::nonce()));
            folder::make_private(&new)?;
            for (name, text) in &texts {
                folder::write_private(&new.join(name), text.as_bytes())?;
            }
            if let Err(cause) = fs::rename(&new, &dir) {
                let _ = fs::remove_dir_all(&new);
                if !dir.exists() {
                    return Err(Error::io("make the folder", &dir, &cause));
                }
            }
        }
        let handle = self.handle(host.name.clone(), token);
        let claimed = dir.join(folder::PID).exists();
        let known = match placed(&dir)? {
            // Submitted before: if neither a claim nor the controller knows of it, it never came.
            Some(key) if !claimed => match self.queue.jobs(true).await? {
                Some(jobs) => jobs.contains_key(&key),
                None => true,
            },
            Some(_) => true,
            None => claimed,
        };
        if !known {
            let start = Start {
                host: host.clone(),
                token: token.clone(),
                timeout: script.timeout,
            };
            self.submitter.submit(start).await.map_err(|cause| {
                Error::new(
                    Kind::Infra,
                    "not-started",
                    format!(
                        "the script `{}` could not be submitted for node `{}`",
                        script.name, host.name
                    ),
                )
                .cause(cause)
            })?;
            // Where a node is free it begins at once: a moment, so that what is done next finds it.
            let begun = Instant::now();
            while begun.elapsed() < QUEUE && !dir.join(folder::PID).exists() {
                tokio::time::sleep(LOOK / 2).await;
            }
        }
        Ok(handle)
    }

    /// The handle of a token that was submitted or begun, unless it was taken back.
    fn found(&self, host: &HostSpec, token: &Token) -> Result<Option<Handle>> {
        folder::check_token(token)?;
        let dir = self.layout.run(token);
        let claim = folder::Claim::read(&dir)?;
        let revoked = claim
            .as_ref()
            .is_some_and(|claim| claim.boot_id == folder::REVOKED);
        let known = claim.is_some() || placed(&dir)?.is_some();
        Ok((known && !revoked).then(|| self.handle(host.name.clone(), token)))
    }

    /// Makes the claim, so that no wrapper on its way runs the script; what runs is ended.
    async fn take_back(
        &self,
        host: &HostSpec,
        token: &Token,
        grace: Duration,
    ) -> Result<Option<Handle>> {
        folder::check_token(token)?;
        let dir = self.layout.run(token);
        if !dir.exists() {
            return Ok(None);
        }
        let handle = self.handle(host.name.clone(), token);
        let begun = !folder::revoke_claim(&dir)?;
        let runs = begun && self.status(&handle).await? == Status::Running;
        if placed(&dir)?.is_some() {
            self.end(&handle, grace).await?;
        }
        Ok(runs.then_some(handle))
    }

    fn recorded(&self, handle: &Handle) -> Result<Option<Status>> {
        Ok(match Record::read(&handle.dir)? {
            Record::Missing => None,
            Record::Whole(exit) => Some(Status::Exited(exit)),
            Record::Torn => Some(lost("its exit record is not whole")),
        })
    }

    async fn job(&self, handle: &Handle, fresh: bool) -> Result<Known> {
        let Some(key) = placed(&handle.dir)? else {
            return Ok(Known::Never);
        };
        Ok(match self.queue.jobs(fresh).await? {
            None => Known::Silence,
            Some(jobs) => jobs.get(&key).cloned().map_or(Known::Forgotten, Known::Job),
        })
    }

    async fn status(&self, handle: &Handle) -> Result<Status> {
        check(handle)?;
        if let Some(status) = self.recorded(handle)? {
            return Ok(status);
        }
        if !handle.dir.exists() {
            return Ok(lost("its folder is gone"));
        }
        match self.job(handle, false).await? {
            Known::Silence => Ok(Status::Running),
            Known::Job(job) if job.is_open() => Ok(Status::Running),
            Known::Job(job) => {
                let why = format!(
                    "Slurm says {} ({}), and it left no exit record",
                    job.state, job.reason
                );
                Ok(self
                    .record_after(handle)
                    .await?
                    .unwrap_or(Status::Lost { why }))
            }
            Known::Never => Ok(lost("it was never submitted")),
            // A controller that died forgets what it acknowledged, and the job goes on.
            Known::Forgotten if self.beats(handle) => Ok(Status::Running),
            Known::Forgotten => {
                let gone = lost("its job has left the queue and it left no exit record");
                Ok(self.record_after(handle).await?.unwrap_or(gone))
            }
        }
    }

    /// A record that comes into sight a moment after the end.
    async fn record_after(&self, handle: &Handle) -> Result<Option<Status>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.recorded(handle)? {
                return Ok(Some(status));
            }
            if begun.elapsed() > RECORD_LAG {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the job showed a sign of life lately, by our own clock.
    fn beats(&self, handle: &Handle) -> bool {
        let beat = fs::read_to_string(handle.dir.join("beat")).unwrap_or_default();
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let last = beats
            .entry(handle.token.clone())
            .or_insert_with(|| (beat.clone(), Instant::now()));
        if last.0 != beat {
            *last = (beat, Instant::now());
        }
        last.1.elapsed() < SILENCE
    }

    async fn ended(&self, handle: &Handle) -> Result<Status> {
        check(handle)?;
        let mut asked = Instant::now();
        let mut pause = LOOK / 2;
        loop {
            if let Some(status) = self.recorded(handle)? {
                if let Status::Lost { .. } = status {
                    self.end(handle, self.grace).await?;
                }
                return Ok(status);
            }
            // The record says it first; the controller is for those that leave none.
            if asked.elapsed() > Duration::from_secs(4) {
                let status = self.status(handle).await?;
                if let Status::Lost { .. } = status {
                    // Lost means gone.
                    self.end(handle, self.grace).await?;
                }
                if status != Status::Running {
                    return Ok(status);
                }
                asked = Instant::now();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK * 5);
        }
    }

    /// Asks the batch script through the shared folder, then the controller.
    async fn end(&self, handle: &Handle, grace: Duration) -> Result<()> {
        check(handle)?;
        if !handle.dir.exists() {
            return Ok(());
        }
        let write =
            |name: &str, text: &str| folder::write_private(&handle.dir.join(name), text.as_bytes());
        if !matches!(self.recorded(handle)?, Some(Status::Exited(_))) {
            write("unwanted", "")?;
            let new = ".cancel";
            write(new, &format!("{}\n", grace.as_millis()))?;
            let cancel = handle.dir.join("cancel");
            fs::rename(handle.dir.join(new), &cancel)
                .map_err(|e| Error::io("write", &cancel, &e))?;
        }
        let begun = Instant::now();
        let mut told = false;
        loop {
            let recorded = matches!(self.recorded(handle)?, Some(Status::Exited(_)));
            let claimed = handle.dir.join(folder::PID).exists();
            match self.job(handle, false).await? {
                Known::Never => return Ok(()),
                Known::Job(job) if !job.is_open() => return Ok(()),
                Known::Forgotten if recorded || !claimed || !self.beats(handle) => return Ok(()),
                Known::Job(job)
                    if !told && (!claimed || begun.elapsed() > grace + Duration::from_secs(15)) =>
                {
                    // What waits has no script to ask; what does not heed is ended by force.
                    self.queue.ask("scancel", &[job.number.to_string()]).await?;
                    told = true;
                }
                _ => {}
            }
            if begun.elapsed() > grace + Duration::from_secs(120) {
                return Err(Error::new(
                    Kind::Infra,
                    "not-ended",
                    format!(
                        "the job of `{}` on node `{}` did not end",
                        handle.token.0, handle.host
                    ),
                )
                .hint("`squeue --me` shows it"));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Runs the wrapper on a node, for an answer. `beside` is a job of ours there.
    async fn on_node(
        &self,
        host: &str,
        beside: Option<&Job>,
        arguments: &[&str],
    ) -> Result<(bool, String)> {
        let mut command = self.queue.program("timeout");
        command.args([
            "30",
            "srun",
            "--quiet",
            "--nodes=1",
            "--ntasks=1",
            "--nodelist",
            host,
            "--chdir=/",
        ]);
        if let Some(job) = beside {
            command
                .arg(format!("--jobid={}", job.number))
                .arg("--overlap");
        }
        command.arg("/bin/sh").arg(&self.wrapper).args(arguments);
        let output = command.stderr(Stdio::piped()).output().await;
        let output = output.map_err(|cause| {
            Error::new(Kind::Infra, "slurm-refused", "could not run `srun`").cause(cause)
        })?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }

    /// A running job of ours on a host.
    async fn job_on(&self, host: &str) -> Result<Option<Job>> {
        let Some(jobs) = self.queue.jobs(false).await? else {
            return Ok(None);
        };
        Ok(jobs
            .values()
            .find(|job| job.state == "RUNNING" && job.node == host)
            .cloned())
    }
}

enum Known {
    Job(Job),
    /// The controller answers and does not know it.
    Forgotten,
    /// The controller does not answer.
    Silence,
    /// It was never submitted.
    Never,
}

fn lost(why: &str) -> Status {
    Status::Lost {
        why: why.to_owned(),
    }
}

fn check(handle: &Handle) -> Result<()> {
    folder::check_token(&handle.token)?;
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
