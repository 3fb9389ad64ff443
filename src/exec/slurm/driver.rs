//! Jobs that drive a build whose client is gone. A chain of them is submitted at once; each waits
//! until all before it ended otherwise than well, so one takes over from another that was killed
//! and none begins once the build chose its end. What they drive is found again by whoever drives
//! next, as after every death; that two never drive at once is the matter of the writer's lock.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SlurmExecutor;
use super::queue::{Job, JobKey, Queue};
use super::submit::{of_every_job, once};
use crate::error::{Error, Kind, Result};
use crate::exec::files::sums;
use crate::exec::folder::{self, durable, quote};
use crate::exec::remote::call::nonce;

const DRIVE: &str = include_str!("drive.sh");
/// Set for a build that drives: the folder of its chain.
pub const DRIVER_VAR: &str = "DOE_DRIVER";
/// File of a chain that says what it is.
const CHAIN: &str = "chain.json";

/// What a chain of drivers is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Platform by name.
    pub platform: String,
    /// Folder that the build is run in.
    pub workspace: PathBuf,
    /// State folder there.
    pub state: PathBuf,
    /// The `doe` of the shared folder.
    pub doe: PathBuf,
    /// Its arguments.
    pub words: Vec<String>,
    /// How many drivers there may be, one after another.
    pub count: u32,
    /// When it was asked for.
    pub at_unix_ms: u64,
}

/// A chain of drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Names it: the comment of driver `K` is `doe:NONCE-K`.
    pub nonce: String,
    /// The folder that the nodes share.
    pub root: PathBuf,
    /// What it does.
    pub order: Order,
}

/// Where a driver's build runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// Number of its process.
    pub pid: u32,
    /// When it began.
    pub at_unix_s: u64,
    /// Node, as Slurm calls it.
    pub node: String,
    /// The same, as it calls itself.
    pub host: String,
}

/// A driver as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Which of the chain, from 1.
    pub number: u32,
    /// What the controller says of its job; nothing when it knows none.
    pub job: Option<Job>,
    /// Where it runs, once it has begun.
    pub begun: Option<Begun>,
    /// Why it could not begin.
    pub failed: Option<String>,
}

impl Driver {
    /// Whether its job is not over, as far as the controller knows.
    pub fn is_open(&self) -> bool {
        self.job.as_ref().is_some_and(Job::is_open)
    }

    /// Whether it is the one that drives.
    pub fn drives(&self) -> bool {
        let runs = |job: &Job| job.is_open() && !job.waits();
        self.begun.is_some() && self.job.as_ref().is_some_and(runs)
    }
}

impl Chain {
    /// The chain that was submitted last for the workspace with this state folder.
    ///
    /// # Errors
    /// What says so cannot be read.
    pub fn last(state: &Path) -> Result<Option<Self>> {
        let path = state.join("driver.json");
        let Some(text) = folder::read_if_there(&path)? else {
            return Ok(None);
        };
        let bad = |cause| {
            let text = format!("`{}` does not say which jobs drive", path.display());
            Error::new(Kind::Integrity, "bad-chain", text)
                .cause(cause)
                .hint("`squeue --me` shows jobs named `doe:…`; remove the file once none is left")
        };
        serde_json::from_str(&text).map(Some).map_err(bad)
    }

    /// The chain that this process is a driver of.
    ///
    /// # Errors
    /// What says so cannot be read.
    pub fn own() -> Result<Option<Self>> {
        let Some(dir) = std::env::var_os(DRIVER_VAR) else {
            return Ok(None);
        };
        let path = PathBuf::from(dir).join(CHAIN);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
        let bad = |cause| Error::new(Kind::Integrity, "bad-chain", "no chain").cause(cause);
        serde_json::from_str(&text).map(Some).map_err(bad)
    }

    fn dir(&self) -> PathBuf {
        self.root.join("drivers").join(&self.nonce)
    }

    fn key(&self, number: u32) -> JobKey {
        JobKey {
            comment: format!("doe:{}-{number}", self.nonce),
            index: 0,
        }
    }

    /// Where a driver's build writes what it says.
    pub fn log(&self, number: u32) -> PathBuf {
        self.dir().join(format!("log-{number}"))
    }

    /// Which driver's build chose its end, and its exit code.
    ///
    /// # Errors
    /// The shared folder cannot be read.
    pub fn over(&self) -> Result<Option<(u32, u8)>> {
        let text = folder::read_if_there(&self.dir().join("over"))?;
        let words = |text: String| {
            let (number, code) = text.trim_end().split_once(' ')?;
            Some((number.parse().ok()?, code.parse().ok()?))
        };
        Ok(text.and_then(words))
    }

    /// Whatever of it still begins does nothing.
    ///
    /// # Errors
    /// The shared folder cannot be written.
    pub fn close(&self) -> Result<()> {
        durable(&self.dir().join("over"), b"0 0\n")
    }

    /// Why a driver ended that did not come to its build's own end: its exit code.
    ///
    /// # Errors
    /// The shared folder cannot be read.
    pub fn ended(&self, number: u32) -> Result<Option<u8>> {
        let text = folder::read_if_there(&self.dir().join(format!("ended-{number}")))?;
        Ok(text.and_then(|text| text.trim_end().parse().ok()))
    }

    fn begun(&self, number: u32) -> Result<Option<Begun>> {
        let text = folder::read_if_there(&self.dir().join(format!("begun-{number}")))?;
        let words = |text: String| {
            let mut words = text.split_whitespace();
            Some(Begun {
                pid: words.next()?.parse().ok()?,
                at_unix_s: words.next()?.parse().ok()?,
                node: words.next()?.to_owned(),
                host: words.next()?.to_owned(),
            })
        };
        Ok(text.and_then(words))
    }

    /// What the drivers read, and then what says in the workspace that they are there.
    fn write(&self) -> Result<()> {
        let (dir, order) = (self.dir(), &self.order);
        let marks = order.state.join("drivers");
        // What the last one said stays; what was before it is of no use any more.
        let last = Self::last(&order.state).ok().flatten();
        let last = last.as_ref().map_or("", |last| &last.nonce);
        remove_all_but(last, &marks, &self.root.join("drivers"));
        folder::make_own(&self.root)?;
        folder::make_private(&dir)?;
        folder::make_private(&marks)?;
        let mark = marks.join(&self.nonce);
        let mut command = format!("cd {} || exit 67\nexec", word(&order.workspace));
        for one in [order.doe.display().to_string()].iter().chain(&order.words) {
            command.push(' ');
            command.push_str(&quote(one));
        }
        command.push('\n');
        let (_, sha256) = sums(&order.doe)?;
        let doe = format!("{sha256} {}\n", order.doe.display());
        let chain = serde_json::to_string_pretty(self)
            .map_err(|e| Error::new(Kind::Bug, "json", "a chain has no text").cause(e))?;
        for (path, text) in [
            (dir.join("command"), &command),
            (dir.join("mark"), &format!("{}\n", mark.display())),
            (dir.join("doe"), &doe),
            (dir.join(CHAIN), &chain),
            (mark, &String::new()),
            (order.state.join("driver.json"), &chain),
        ] {
            durable(&path, text.as_bytes())?;
        }
        Ok(())
    }
}

/// Removes the chains that left these marks. Best effort: what stays is a few small files.
fn remove_all_but(kept: &str, marks: &Path, chains: &Path) {
    for mark in std::fs::read_dir(marks).into_iter().flatten().flatten() {
        if mark.file_name().to_string_lossy() != kept {
            let _ = std::fs::remove_dir_all(chains.join(mark.file_name()));
            let _ = std::fs::remove_file(mark.path());
        }
    }
}

fn word(path: &Path) -> String {
    quote(&path.display().to_string())
}

impl SlurmExecutor {
    /// Submits a chain of drivers with these options of `sbatch`: the chain, and why it is shorter
    /// than it was to be.
    ///
    /// # Errors
    /// The first of them was refused, or the controller does not answer.
    pub async fn detach(&self, order: Order, options: &[String]) -> Result<(Chain, Option<Error>)> {
        let chain = Chain {
            nonce: nonce(),
            root: self.root().to_owned(),
            order,
        };
        let note = chain.order.state.join("driver.json");
        let before_us = folder::read_if_there(&note)?;
        chain.write()?;
        let script = chain.dir().join("drive.sh");
        folder::write_private(&script, DRIVE.as_bytes())?;
        let mut before: Vec<String> = Vec::new();
        for number in 1..=chain.order.count {
            let comment = chain.key(number).comment;
            let mut arguments = options.to_vec();
            arguments.extend(of_every_job(&comment));
            if !before.is_empty() {
                // All of them: one that was taken out of the queue has not ended well either.
                let each: Vec<_> = before.iter().map(|id| format!("afternotok:{id}")).collect();
                arguments.push(format!("--dependency={}", each.join(",")));
                arguments.push("--kill-on-invalid-dep=yes".into());
            }
            arguments.extend([
                script.display().to_string(),
                chain.dir().display().to_string(),
                number.to_string(),
            ]);
            match once(&self.queue, &arguments, &comment).await {
                Ok(id) => before.push(id),
                Err(error) if number > 1 => return Ok((chain, Some(error))),
                Err(error) => {
                    // It may be in the queue all the same, and is to find that it is over.
                    chain.close()?;
                    match before_us {
                        Some(text) => durable(&note, text.as_bytes())?,
                        None => drop(std::fs::remove_file(&note)),
                    }
                    let text = "no job drives the build";
                    return Err(Error::new(Kind::Infra, "not-started", text).cause(error));
                }
            }
        }
        Ok((chain, None))
    }
}

/// Looks at a chain and ends it.
pub struct Drivers {
    /// The chain.
    pub chain: Chain,
    queue: Arc<Queue>,
}

impl Drivers {
    /// With another `slurm.conf` than the usual one, and the patience with the controller.
    pub fn new(chain: Chain, config: Option<PathBuf>, patience: Duration) -> Self {
        let queue = Arc::new(Queue::new(config, patience));
        Self { chain, queue }
    }

    /// The drivers as they stand; nothing while the controller does not answer.
    ///
    /// # Errors
    /// It did not answer for longer than one has patience.
    pub async fn look(&self) -> Result<Option<Vec<Driver>>> {
        let Some(jobs) = self.queue.jobs(false).await? else {
            return Ok(None);
        };
        let drivers = (1..=self.chain.order.count).map(|number| {
            let failed = self.chain.dir().join(format!("failed-{number}"));
            Ok(Driver {
                number,
                job: jobs.get(&self.chain.key(number)).cloned(),
                begun: self.chain.begun(number)?,
                failed: folder::read_if_there(&failed)?.map(|text| text.trim_end().to_owned()),
            })
        });
        drivers.collect::<Result<_>>().map(Some)
    }

    /// Takes drivers out of the queue, or kills them: what they drive is left alone. The later
    /// ones go first, so that none begins because of another's end.
    ///
    /// # Errors
    /// The controller does not answer.
    pub async fn end(&self, drivers: &[Driver]) -> Result<()> {
        for driver in drivers.iter().rev() {
            let Some(job) = driver.job.as_ref().filter(|job| job.is_open()) else {
                continue;
            };
            let name = format!("--name={}", self.chain.key(driver.number).comment);
            // It may have ended meanwhile.
            let ended = self.queue.ask("scancel", &[job.number.clone(), name]).await;
            match ended {
                Err(error) if error.code == super::queue::SILENT => return Err(error),
                _ => {}
            }
        }
        self.queue.outdate().await;
        Ok(())
    }
}
