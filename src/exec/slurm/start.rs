//! Starting, finding and taking back. Whatever was submitted, however often and by whom: the claim
//! in the execution's folder decides who runs the script, and who makes the claim first has it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::meeting::Seat;
use super::state::{FAILED, is_over, refusal};
use super::submit::{Start, placed, unplace};
use super::{BATCH, HOST, LOOK, SlurmExecutor, TOGETHER};
use crate::error::{Error, Kind, Result};
use crate::exec::folder::{self, Claim, WRAPPER};
use crate::exec::remote::call::nonce;
use crate::exec::{Handle, HostSpec, Script, Token};

/// How often a script is submitted again when its job ended before it began.
const TRIES: u32 = 3;
/// File of an execution that says what all it is made of looks like.
const STAGED: &str = "staged";
/// What helps where Slurm has no job for several.
const APART: &str = "members of a gang are one heterogeneous job, which needs Slurm's backfill scheduler; `together = false` in the platform's table `slurm` makes each a job of its own";
/// Code of the error that nobody knows whether a script has begun: as of a host that is away.
const UNTOLD: &str = "host-unreachable";
/// Between questions about a job that has not begun.
const ASK: Duration = Duration::from_secs(2);
/// How long what the controller has just acknowledged may be unknown to it, and how long a claim
/// may take to be seen after the end of its job.
const LAG: Duration = Duration::from_secs(5);

/// What waiting for the beginning of a job came to.
enum Begun {
    /// It has begun, or it waits for its turn and is left to.
    Handle(Handle),
    /// It never will.
    Refused(Error),
    /// The job is gone and nobody has begun: it may be submitted again.
    Gone(String),
}

impl SlurmExecutor {
    /// Submits a script unless its token was; returns when it has begun. One that fails leaves
    /// nothing that could begin: who is told that there is nothing does not look for it.
    pub(super) async fn begin(
        &self,
        host: &HostSpec,
        script: &Script,
        token: &Token,
    ) -> Result<Handle> {
        // Who does not come to be submitted is not waited for.
        let seat = self.submitter.seat(&script.ask, token, 0);
        let texts = folder::files(&folder::Job {
            token,
            script,
            grace: self.grace,
            adopts: false,
        })?;
        let mut texts = Vec::from(texts);
        let _turn = self.turn(&token.0).await;
        let dir = self.layout.run(token);
        if let Some((settings, files)) = self.attended(&dir) {
            texts[0].1.push_str(&settings);
            texts.extend(files);
        }
        // They may have been lost since this build began.
        for text in [WRAPPER, BATCH, TOGETHER] {
            self.staged.put_text(text)?;
        }
        texts.push((STAGED, self.staged.list(&dir, &texts, &self.wrapper)?));
        self.make_folder(&dir, &texts, host)?;
        let error = match self.bring(host, script, token, seat).await {
            Err(error) => error,
            begun => return begun,
        };
        let claimed = match folder::revoke_claim(&dir) {
            Ok(true) => {
                self.dismiss(&dir).await;
                return Err(error);
            }
            Ok(false) => self.claimed_soon(host, token).await,
            Err(unknown) => Err(unknown),
        };
        match claimed {
            // It has begun after all.
            Ok(Some(Some(handle))) => Ok(handle),
            Ok(Some(None)) => Err(error),
            Ok(None) | Err(_) => {
                let (script, host) = (&script.name, &host.name);
                let text = format!("whether `{script}` began on node `{host}` cannot be told");
                Err(Error::new(Kind::Infra, UNTOLD, text).cause(error))
            }
        }
    }

    /// Has a job begin the script of a folder.
    async fn bring(
        &self,
        host: &HostSpec,
        script: &Script,
        token: &Token,
        mut seat: Option<Seat>,
    ) -> Result<Handle> {
        let dir = self.layout.run(token);
        let not_started = |cause: &dyn std::fmt::Display| {
            let (script, host) = (&script.name, &host.name);
            let text = format!("the script `{script}` did not start on node `{host}`");
            Error::new(Kind::Infra, "not-started", text).cause(cause)
        };
        let (mut tries, mut round) = (0, 0);
        loop {
            if let Some(handle) = self.claimed(host, token)? {
                return handle.ok_or_else(|| not_started(&"its token was taken back"));
            }
            if self.is_submitted(&dir).await? {
                drop(seat.take());
            } else {
                tries += 1;
                let start = Start {
                    host: host.clone(),
                    token: token.clone(),
                    timeout: script.timeout,
                    ask: script.ask.clone(),
                };
                let is_gang = seat.is_some();
                if let Err(cause) = self.submitter.submit(start, seat.take()).await {
                    return Err(match cause.code {
                        "slurm-refused" if is_gang => not_started(&said(&cause)).hint(APART),
                        "slurm-refused" => not_started(&said(&cause)),
                        _ => cause,
                    });
                }
            }
            match self.begun(host, token, &dir).await? {
                Begun::Handle(handle) => return Ok(handle),
                Begun::Refused(cause) => {
                    unplace(&dir);
                    return Err(not_started(&said(&cause)));
                }
                Begun::Gone(why) if tries >= TRIES => return Err(not_started(&why)),
                Begun::Gone(_) => {
                    unplace(&dir);
                    // What took the job from all before any of them began brings all here again.
                    round += 1;
                    seat = self.submitter.seat(&script.ask, token, round);
                }
            }
        }
    }

    /// The folder appears whole or not at all; the first one stays.
    fn make_folder(
        &self,
        dir: &Path,
        texts: &[(&'static str, String)],
        host: &HostSpec,
    ) -> Result<()> {
        let whole = || dir.join(folder::JOB).exists() || dir.join(folder::PID).exists();
        if whole() {
            return Ok(());
        }
        let new = format!("{}{}", folder::UNPLACED, nonce());
        let new = self.layout.runs().join(new);
        let host = format!("{}\n", host.name);
        let files = texts.iter().map(|(name, text)| (*name, text.as_bytes()));
        folder::make_filled(&new, files.chain([(HOST, host.as_bytes())]))?;
        if let Err(cause) = fs::rename(&new, dir) {
            let _ = fs::remove_dir_all(&new);
            // A folder with something in it is not replaced.
            if !whole() {
                return Err(Error::io("make the folder", dir, &cause));
            }
        }
        Ok(())
    }

    /// The handle of a token that somebody has claimed; `Some(None)` when it was taken back.
    fn claimed(&self, host: &HostSpec, token: &Token) -> Result<Option<Option<Handle>>> {
        let claim = Claim::read(&self.layout.run(token))?;
        Ok(claim.map(|claim| {
            let begun = claim.boot_id != folder::REVOKED;
            begun.then(|| self.handle(&host.name, token, Some(&claim)))
        }))
    }

    /// The same; whoever has just made the claim is about to write it.
    async fn claimed_soon(&self, host: &HostSpec, token: &Token) -> Result<Option<Option<Handle>>> {
        let since = Instant::now();
        loop {
            match self.claimed(host, token)? {
                None if since.elapsed() < LAG => tokio::time::sleep(LOOK / 5).await,
                claimed => return Ok(claimed),
            }
        }
    }

    /// Whether a job for an execution is with the controller, as far as can be known.
    async fn is_submitted(&self, dir: &Path) -> Result<bool> {
        let Some(key) = placed(dir)? else {
            return Ok(false);
        };
        Ok(match self.queue.jobs(true).await? {
            Some(jobs) => jobs.get(&key).is_some_and(|job| job.is_open()),
            None => true,
        })
    }

    /// Waits until a job that was submitted has begun.
    async fn begun(&self, host: &HostSpec, token: &Token, dir: &Path) -> Result<Begun> {
        let since = Instant::now();
        let (mut asked, mut gone) = (since, None::<Instant>);
        let mut pause = LOOK / 4;
        loop {
            match self.claimed(host, token)? {
                Some(Some(handle)) => return Ok(Begun::Handle(handle)),
                Some(None) => return Ok(Begun::Gone("its token was taken back".into())),
                None => {}
            }
            if let Some(why) = refusal(dir)? {
                let _ = fs::remove_file(dir.join(FAILED));
                return Ok(Begun::Refused(Error::new(Kind::Infra, "not-started", why)));
            }
            if asked.elapsed() > ASK {
                let key = placed(dir)?;
                let jobs = self.queue.jobs(false).await?;
                asked = Instant::now();
                let job = key.zip(jobs.as_ref()).map(|(key, jobs)| jobs.get(&key));
                let lag = |since: Instant| since.elapsed() > LAG;
                match job {
                    // The controller does not answer: what it took it will do.
                    None => {}
                    Some(Some(job)) if job.waits_in_vain() => {
                        let why = format!("Slurm lets it wait for ever: {}", job.reason);
                        let refused = Error::new(Kind::Infra, "not-started", why);
                        if !folder::revoke_claim(dir)? {
                            continue;
                        }
                        self.dismiss(dir).await;
                        return Ok(Begun::Refused(refused));
                    }
                    Some(Some(job)) if job.waits() && since.elapsed() > self.patience_in_queue => {
                        return Ok(Begun::Handle(self.handle(&host.name, token, None)));
                    }
                    Some(Some(job)) if job.is_open() => gone = None,
                    Some(job) => {
                        let first = *gone.get_or_insert_with(Instant::now);
                        if lag(first) {
                            return Ok(Begun::Gone(match job {
                                Some(job) => {
                                    format!("Slurm says {} ({})", job.state, job.reason)
                                }
                                None => "the controller has forgotten its job".into(),
                            }));
                        }
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 5 / 4).min(LOOK * 5);
        }
    }

    /// The handle of a token that has begun, or whose job waits for its turn.
    pub(super) async fn found(&self, host: &HostSpec, token: &Token) -> Result<Option<Handle>> {
        folder::check_token(token)?;
        let dir = self.layout.run(token);
        if let Some(handle) = self.claimed(host, token)? {
            return Ok(handle);
        }
        let is_submitted = self.is_submitted(&dir).await?;
        // It may have begun, and ended, while the controller was asked.
        match self.claimed(host, token)? {
            Some(handle) => Ok(handle),
            None => Ok(is_submitted.then(|| self.handle(&host.name, token, None))),
        }
    }

    /// Makes the claim, so that no job on its way runs the script; what has it is ended, unless it
    /// shows that it is over. That it counts as lost does not show that.
    pub(super) async fn take_back(
        &self,
        host: &HostSpec,
        token: &Token,
        grace: Duration,
    ) -> Result<Option<Handle>> {
        folder::check_token(token)?;
        let dir = self.layout.run(token);
        // Also where nobody has begun: a start that is on its way must find it.
        folder::make_private(&dir)?;
        if folder::revoke_claim(&dir)? {
            self.dismiss(&dir).await;
            return Ok(None);
        }
        let claimed = self.claimed_soon(host, token).await?.flatten();
        if is_over(&dir)? {
            return Ok(None);
        }
        // A claim that nobody can read yet is one too.
        let handle = claimed.unwrap_or_else(|| self.handle(&host.name, token, None));
        self.end(&handle, grace).await?;
        Ok(Some(handle))
    }
}

/// The last word of what went wrong.
fn said(error: &Error) -> String {
    match error.causes.first() {
        Some(cause) => cause.clone(),
        None => error.message.clone(),
    }
}
