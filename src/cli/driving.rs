//! Who drives the build of a workspace when that is jobs of a cluster: for the commands that look
//! at a build from outside. The process that holds the lock is on another machine then, so that a
//! run is driven is told by the chain's own files and by the controller.

use std::time::{Duration, Instant};

use doe_cache::{RunInfo, lock_holder};
use serde::Serialize;

use super::fleet::slurm;
use super::session;
use crate::error::{Error, Kind, Result};
use crate::exec::slurm::{Chain, Driver, Drivers};
use crate::plan::model::Workspace;

/// How long a controller that does not answer is waited for by somebody who looks.
const PATIENCE_S: f64 = 10.0;
/// How long an answer about the drivers holds.
const HOLDS: Duration = Duration::from_secs(3);
/// How long what was killed may take to be gone.
const GONE: Duration = Duration::from_secs(90);

/// A chain of drivers of which at least one was there when it was found.
pub struct Driving {
    drivers: Drivers,
    runtime: tokio::runtime::Runtime,
    last: Vec<Driver>,
    looked: Instant,
}

/// A driver, for `doe jobs`.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// `driver`.
    pub kind: &'static str,
    /// Which of how many.
    pub name: String,
    /// Its job.
    pub job: String,
    /// What Slurm says of it.
    pub state: String,
    /// Its node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Unix milliseconds: since when it runs, or the chain is there.
    pub since_unix_ms: u64,
    /// Where its words are.
    pub log: std::path::PathBuf,
}

impl Driving {
    /// The drivers of a workspace, while there are some.
    pub fn find(workspace: &Workspace) -> Result<Option<Self>> {
        let Some(chain) = Chain::last(&workspace.state_dir)? else {
            return Ok(None);
        };
        // Slurm takes the others out of the queue.
        if chain.over()?.is_some() {
            return Ok(None);
        }
        // Without its platform nobody can be asked.
        let Some(platform) = workspace.platforms.get(&chain.order.platform) else {
            return Ok(None);
        };
        let mut platform = platform.clone();
        platform.slurm.patience_s = platform.slurm.patience_s.min(PATIENCE_S);
        let mut driving = Self {
            drivers: slurm::drivers(workspace, &platform, chain),
            runtime: session::runtime()?,
            last: Vec::new(),
            looked: Instant::now(),
        };
        driving.look_now()?;
        Ok(driving.is_open().then_some(driving))
    }

    fn look_now(&mut self) -> Result<()> {
        let drivers = &self.drivers;
        let look = async {
            loop {
                match drivers.look().await? {
                    Some(all) => return Ok::<_, Error>(all),
                    None => tokio::time::sleep(HOLDS / 3).await,
                }
            }
        };
        self.last = self.runtime.block_on(look)?;
        self.looked = Instant::now();
        Ok(())
    }

    /// Looks again, if it is time. While the controller is away things count as they were.
    pub fn look(&mut self) -> Result<()> {
        if self.looked.elapsed() <= HOLDS {
            return Ok(());
        }
        match self.look_now() {
            Err(error) if error.kind == Kind::Infra => {
                self.looked = Instant::now();
                Ok(())
            }
            looked => looked,
        }
    }

    /// Whether one of them drives or waits.
    pub fn is_open(&self) -> bool {
        self.last.iter().any(Driver::is_open)
    }

    /// Whether a run is that of the driver that drives.
    pub fn drives(&self, run: &RunInfo) -> bool {
        let mut driving = self.last.iter().filter(|driver| driver.drives());
        let is = |driver: &Driver| {
            let begun = driver.begun.as_ref();
            begun.is_some_and(|begun| (begun.pid, &begun.host) == (run.pid, &run.host))
        };
        driving.any(is)
    }

    /// The platform by name.
    pub fn platform(&self) -> &str {
        &self.drivers.chain.order.platform
    }

    /// The exit code that the build chose for its end, and where its words are.
    pub fn over(&self) -> Result<Option<(u8, std::path::PathBuf)>> {
        let over = self.drivers.chain.over()?;
        Ok(over.map(|(number, code)| (code, self.drivers.chain.log(number))))
    }

    /// The drivers that are there.
    pub fn seen(&self) -> Vec<Seen> {
        let chain = &self.drivers.chain;
        let open = self.last.iter().filter(|driver| driver.is_open());
        open.filter_map(|driver| {
            let job = driver.job.as_ref()?;
            let begun = driver.begun.as_ref();
            Some(Seen {
                kind: "driver",
                name: format!("{} of {}", driver.number, chain.order.count),
                job: job.number.clone(),
                state: match job.waits() {
                    true => format!("{} ({})", job.state, job.reason),
                    false => job.state.clone(),
                },
                host: begun.map_or(job.node.clone(), |begun| begun.node.clone()),
                since_unix_ms: begun.map_or(chain.order.at_unix_ms, |b| b.at_unix_s * 1000),
                log: chain.log(driver.number),
            })
        })
        .collect()
    }

    /// The first of them in words.
    pub fn in_words(&self) -> Result<String> {
        let first = self.seen().into_iter().next();
        Ok(first.map_or("its jobs have just ended".into(), |seen| {
            let on = match seen.host.as_str() {
                "" => String::new(),
                host => format!(" on {host}"),
            };
            format!("job {}{on}, {}", seen.job, seen.state)
        }))
    }

    /// Takes those out of the queue that would take over; with `all`, kills the one that drives
    /// too, and waits until nothing of them is left. Their numbers.
    pub fn end(&mut self, all: bool) -> Result<Vec<String>> {
        let open = self.last.iter().filter(|driver| driver.is_open());
        let doomed = open.filter(|driver| all || !driver.drives());
        let doomed: Vec<Driver> = doomed.cloned().collect();
        self.runtime.block_on(self.drivers.end(&doomed))?;
        let since = Instant::now();
        while all && !doomed.is_empty() {
            self.look_now()?;
            if !self.is_open() {
                break;
            }
            if since.elapsed() > GONE {
                let text = format!("the build is still driven: {}", self.in_words()?);
                return Err(Error::new(Kind::Infra, "not-ended", text)
                    .hint("`squeue --me` shows its jobs; try again once they are gone"));
            }
            std::thread::sleep(HOLDS / 6);
        }
        if all {
            self.drivers.chain.close()?;
        }
        let numbers = doomed.into_iter().filter_map(|driver| driver.job);
        Ok(numbers.map(|job| job.number).collect())
    }
}

/// Whose runs go on: of this machine by the lock, of others by their jobs.
pub struct Holders {
    local: Option<u32>,
    driving: Option<Driving>,
    unknown: Option<Error>,
}

impl Holders {
    /// As things are.
    pub fn find(workspace: &Workspace) -> Result<Self> {
        let (driving, unknown) = match Driving::find(workspace) {
            Err(error) if error.kind == Kind::Infra => (None, Some(error)),
            found => (found?, None),
        };
        let local = lock_holder(&workspace.state_dir);
        Ok(Self {
            local,
            driving,
            unknown,
        })
    }

    /// Why it could not be found out whether jobs drive, when it could not.
    pub fn unknown(&self) -> Option<&Error> {
        self.unknown.as_ref()
    }

    /// Whether somebody goes on with a run.
    pub fn has(&self, run: &RunInfo) -> bool {
        let driven = self.driving.as_ref();
        self.local == Some(run.pid) || driven.is_some_and(|driving| driving.drives(run))
    }

    /// The process of this machine that holds the lock.
    pub fn local(&self) -> Option<u32> {
        self.local
    }

    /// The jobs that drive.
    pub fn driving(&mut self) -> Option<&mut Driving> {
        self.driving.as_mut()
    }

    /// As things are now.
    pub fn look(&mut self, workspace: &Workspace) -> Result<()> {
        self.local = lock_holder(&workspace.state_dir);
        match &mut self.driving {
            Some(driving) => driving.look(),
            None => Ok(()),
        }
    }
}
