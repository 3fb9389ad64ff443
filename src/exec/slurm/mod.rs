//! Runs scripts as jobs of Slurm, over a folder that the nodes share with this machine. Every
//! script is a task of a job array, or of a gang's heterogeneous job, that runs the same wrapper as
//! everywhere; how it ended is in its exit record, and the controller is asked only for what no
//! record can say. A job is its comment and its place there, never its number.

mod account;
mod ask;
mod clock;
mod driver;
mod executor;
mod guard;
mod limits;
mod meeting;
mod queue;
mod staged;
mod start;
mod state;
mod submit;
mod together;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use doe_cache::Digest;

use self::account::Accounting;
use self::clock::DiskClock;
pub use self::driver::{Begun, Chain, DRIVER_VAR, Driver, Drivers, Order};
use self::guard::Guard;
use self::limits::Limits;
pub use self::queue::Job;
use self::queue::Queue;
use self::staged::Staged;
use self::submit::{Place, Submitter, placed};
use super::files;
use super::folder::{self, Claim, Layout, Record, WRAPPER};
use super::remote::RemotePorts;
use super::remote::call::nonce;
use super::{Handle, Token};
use crate::error::{Error, Kind, Result};

const BATCH: &str = include_str!("batch.sh");
const TOGETHER: &str = include_str!("together.sh");
const NAME: &str = "slurm";
/// A folder that is not in its place after this time will never be.
const UNPLACED_FOR: Duration = Duration::from_secs(3600);
/// Between looks at the shared folder.
const LOOK: Duration = Duration::from_millis(100);
/// File of an execution that names its host.
const HOST: &str = "host";
/// File of an execution that is there when nothing of it is left.
const OVER: &str = "over";

/// How it behaves.
#[derive(Debug, Clone)]
pub struct SlurmOptions {
    /// Folder that the nodes and this machine share.
    pub root: PathBuf,
    /// Slurm's configuration, when it is not the usual one.
    pub config: Option<PathBuf>,
    /// What `sbatch` is told of every job: `--partition=…` and the like.
    pub common: Vec<String>,
    /// The kind of resource that GPUs are; without it jobs ask for none.
    pub gres: Option<String>,
    /// How long a script without a limit of its own may go on at most.
    pub service_time: Option<Duration>,
    /// Whether what is to be given its nodes together is one job.
    pub together: bool,
    /// How long a controller that does not answer is waited for.
    pub patience: Duration,
    /// How long a start waits for its job to begin before it lets it wait alone.
    pub queue: Duration,
    /// Time between TERM and KILL when a script's limit is up or it leaves processes behind.
    pub grace: Duration,
}

/// Runs scripts as jobs.
pub struct SlurmExecutor {
    layout: Layout,
    staged: Arc<Staged>,
    queue: Arc<Queue>,
    accounting: Accounting,
    submitter: Submitter,
    /// What executions are told of who attends to them, and who signs.
    guard: OnceLock<Guard>,
    disk: DiskClock,
    wrapper: PathBuf,
    grace: Duration,
    patience_in_queue: Duration,
    ports: RemotePorts,
    /// Signs of life of executions: the last one, and since when.
    beats: Mutex<HashMap<Token, (String, Instant)>>,
    /// What was begun last on each node.
    there: Mutex<HashMap<String, Token>>,
    /// Who starts a token or asks something of an execution does so alone.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl SlurmExecutor {
    /// An executor with its files under the shared root (made if missing, private).
    ///
    /// # Errors
    /// `Infra`, when the folder cannot be made or the controller does not answer.
    pub async fn new(options: SlurmOptions) -> Result<Self> {
        folder::make_own(&options.root)?;
        let root = options.root.canonicalize();
        let root = root.map_err(|e| Error::io("find", &options.root, &e))?;
        let layout = Layout::new(root.clone());
        folder::make_private(&layout.runs())?;
        let staged = Arc::new(Staged::new(root.clone()));
        let put = |text| staged.put_text(text);
        let (wrapper, batch, together) = (put(WRAPPER)?, put(BATCH)?, put(TOGETHER)?);
        let queue = Arc::new(Queue::new(options.config, options.patience));
        queue.hello().await?;
        let place = Place {
            root,
            batch,
            wrapper: wrapper.clone(),
            together,
            limits: Limits::new(&options.common, options.service_time),
            common: options.common,
            gres: options.gres,
        };
        Ok(Self {
            submitter: Submitter::new(queue.clone(), place, options.together),
            accounting: Accounting::new(queue.clone()),
            guard: OnceLock::new(),
            disk: DiskClock::default(),
            layout,
            staged,
            queue,
            wrapper,
            grace: options.grace,
            patience_in_queue: options.queue,
            ports: RemotePorts::default(),
            beats: Mutex::default(),
            there: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// The shared folder.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Puts programs into the shared folder, each under a name of its own in one folder, which is
    /// returned and named by its content.
    ///
    /// # Errors
    /// `Infra`, when they cannot be read or written.
    pub fn install(&self, programs: &[(String, Digest, PathBuf)]) -> Result<PathBuf> {
        let list: String = programs
            .iter()
            .map(|(name, digest, _)| format!("{name} {}\n", files::hex(*digest)))
            .collect();
        let dir = self.root().join("links").join(Digest::of(&list).short());
        folder::make_private(&dir)?;
        for (name, digest, source) in programs {
            let blob = self.staged.put(*digest, source)?;
            let new = dir.join(format!(".new-{}", nonce()));
            let link = dir.join(name);
            std::os::unix::fs::symlink(&blob, &new)
                .and_then(|()| fs::rename(&new, &link))
                .map_err(|e| Error::io("link", &link, &e))?;
        }
        Ok(dir)
    }

    /// Executions that have begun, left no exit record and live: as the controller says, or as
    /// they show themselves.
    ///
    /// # Errors
    /// `Infra`, when the controller does not answer or the folder cannot be read.
    pub async fn sweep(&self) -> Result<Vec<Handle>> {
        let jobs = self.queue.jobs(true).await?;
        let mut open = Vec::new();
        for (token, dir) in self.runs()? {
            if dir.join(OVER).exists() || Record::read(&dir)? != Record::Missing {
                continue;
            }
            let Some(claim) = Claim::read(&dir)? else {
                continue;
            };
            let job = placed(&dir)?.zip(jobs.as_ref());
            let job = job.and_then(|(key, jobs)| jobs.get(&key));
            let lives = job.is_some_and(|job| job.is_open()) || self.shows_life(&token, &dir);
            if claim.boot_id != folder::REVOKED && lives {
                let host = folder::read_if_there(&dir.join(HOST))?.unwrap_or_default();
                open.push(self.handle(host.trim_end(), &token, Some(&claim)));
            }
        }
        Ok(open)
    }

    /// Takes back what was submitted, has not begun and is none of these: nobody will ask for it.
    ///
    /// # Errors
    /// `Infra`, when the controller does not answer or the folder cannot be read.
    pub async fn recall(&self, known: &HashSet<Token>) -> Result<()> {
        folder::remove_unplaced(&self.layout.runs(), |_, entry| {
            let changed = entry.metadata().and_then(|meta| meta.modified());
            changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > UNPLACED_FOR))
        });
        let jobs = self.queue.jobs(true).await?;
        for (token, dir) in self.runs()? {
            if known.contains(&token) || dir.join(folder::PID).exists() {
                continue;
            }
            let Some(key) = placed(&dir)? else {
                continue;
            };
            let job = jobs.as_ref().map(|jobs| jobs.get(&key));
            if job.is_some_and(|job| !job.is_some_and(Job::is_open)) {
                continue;
            }
            if folder::revoke_claim(&dir)?
                && let Some(job) = job.flatten()
            {
                self.scancel(&key, job).await;
            }
        }
        Ok(())
    }

    /// The executions that have a folder.
    fn runs(&self) -> Result<Vec<(Token, PathBuf)>> {
        let runs = self.layout.runs();
        let entries = fs::read_dir(&runs).map_err(|e| Error::io("read", &runs, &e))?;
        let named = entries.flatten().filter_map(|entry| {
            let token = Token(entry.file_name().into_string().ok()?);
            folder::check_token(&token).ok()?;
            Some((token, entry.path()))
        });
        Ok(named.collect())
    }

    /// A handle; without a claim that of a job which waits for its turn.
    fn handle(&self, host: &str, token: &Token, claim: Option<&Claim>) -> Handle {
        Handle {
            executor: NAME.to_owned(),
            host: host.to_owned(),
            token: token.clone(),
            dir: self.layout.run(token),
            pid: claim.map_or(0, |claim| claim.leader.pid),
            start_ticks: claim.map_or(0, |claim| claim.leader.start_ticks),
        }
    }

    fn check(&self, handle: &Handle) -> Result<()> {
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

    /// Lets one at a time do something, by name.
    async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let turns = self.turns.lock();
            let mut turns = turns.unwrap_or_else(std::sync::PoisonError::into_inner);
            // Those that nobody holds or waits for are of no use any more.
            if turns.len() > 10_000 {
                turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            }
            turns.entry(name.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests;
