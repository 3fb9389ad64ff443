//! What is known of an execution, waiting for its end, and ending it. The exit record decides, as
//! long as Slurm left the script alone; then what the task says of itself; the controller is asked
//! for the rest. What was once said to be lost stays lost.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::clock::now_ms;
use super::guard::forsaken;
use super::queue::{Job, JobKey};
use super::submit::{LIMIT, placed};
use super::together::to_end;
use super::{LOOK, OVER, SlurmExecutor};
use crate::error::{Error, Kind, Result};
use crate::exec::folder::{self, Claim, Record};
use crate::exec::remote::call::nonce;
use crate::exec::{Handle, Status, Token};

/// How long an execution whose job the controller does not know to run counts as running after
/// its last sign of life. Its task gives one every two seconds.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a record may take to be seen after the end of its job was.
const LAG: Duration = Duration::from_secs(3);
/// Between questions to the controller while nothing changes, first and at most.
const ASK: Duration = Duration::from_secs(5);
const ASK_SELDOM: Duration = Duration::from_secs(30);
/// What a task may take beside the grace to end a tree.
const SLOW: Duration = Duration::from_secs(15);
/// After this a job that does not end is an error.
const STUCK: Duration = Duration::from_secs(120);
/// There when Slurm, or somebody through it, asked the job to end.
const INTERRUPTED: &str = "interrupted";
/// There when the wrapper of a job did not begin: its exit code.
pub(super) const FAILED: &str = "failed";
/// There when a task ended without a word, in a job that others have a part in.
const GONE: &str = "gone";
/// Says why an execution counts as lost.
const LOST: &str = "lost";

/// What the controller knows of a job.
enum Known {
    /// This.
    Job(Job),
    /// The controller answers and does not know it.
    Forgotten,
    /// The controller does not answer.
    Silence,
    /// It was never submitted.
    Never,
}

impl SlurmExecutor {
    /// What is known now. Who waited says between which two moments a record came into sight.
    pub(super) async fn status(&self, handle: &Handle, seen: Option<(i64, i64)>) -> Result<Status> {
        self.check(handle)?;
        let dir = &handle.dir;
        if let Some(why) = folder::read_if_there(&dir.join(LOST))? {
            return Ok(lost(why.trim_end()));
        }
        if !dir.exists() {
            return Ok(lost("its folder is gone"));
        }
        let over = dir.join(OVER).exists();
        let record = match Record::read(dir)? {
            Record::Missing if over => seen_anew(dir)?,
            record => record,
        };
        // After the record: what is ended may leave a good one, and is marked before.
        if let Some(why) = forsaken(dir).await? {
            return Ok(lost(why));
        }
        match record {
            Record::Whole(_) if is_interrupted(dir, over) => {
                let said = match self.job(handle).await {
                    Ok(Known::Job(job)) => format!(": {}", told(&job, dir)),
                    Ok(Known::Forgotten) => match self.accounted(dir).await? {
                        Some(why) => format!(": {why}"),
                        None => String::new(),
                    },
                    _ => String::new(),
                };
                return Ok(lost(&format!("Slurm ended its job before it ended{said}")));
            }
            // Its task may be about to say that Slurm made it end.
            Record::Whole(_) if !over && self.is_new(&dir.join(folder::EXIT)) => {
                return Ok(Status::Running);
            }
            Record::Whole(exit) => {
                return Ok(Status::Exited(self.by_our_clock(dir, exit, seen)?));
            }
            Record::Torn => return Ok(lost("its exit record is not whole")),
            Record::Missing => {}
        }
        let claim = Claim::read(dir)?;
        match &claim {
            Some(claim) if claim.boot_id == folder::REVOKED => {
                return Ok(lost("it was taken back before it began"));
            }
            Some(claim) if over => {
                let pid = claim.leader.pid;
                return Ok(lost(&format!(
                    "process {pid} is gone and left no exit record"
                )));
            }
            None => {
                if let Some(why) = refusal(dir)? {
                    return Ok(lost(&format!("it did not begin: {why}")));
                }
            }
            Some(_) => {}
        }
        let begun = claim.is_some();
        let known = match self.job(handle).await {
            // What shows that it lives needs nobody's word for it.
            Err(_) if self.shows_life(&handle.token, dir) => return Ok(Status::Running),
            known => known?,
        };
        match known {
            Known::Silence => Ok(Status::Running),
            Known::Job(job) if job.is_open() => {
                // Begun once and waiting again: nothing runs, and nothing will run twice.
                let is_silent = begun && !self.shows_life(&handle.token, dir);
                if is_silent && job.waits() {
                    return self
                        .record_or(handle, &format!("its {}", told(&job, dir)))
                        .await;
                }
                if is_silent && dir.join(GONE).exists() {
                    return self
                        .record_or(handle, "its task is gone, while its job goes on")
                        .await;
                }
                Ok(Status::Running)
            }
            // What the controller has given up may live on: its node does not hear it.
            _ if self.shows_life(&handle.token, dir) => Ok(Status::Running),
            Known::Job(job) => self.record_or(handle, &told(&job, dir)).await,
            Known::Never => self.record_or(handle, "it was never submitted").await,
            Known::Forgotten => {
                let why = match self.accounted(dir).await? {
                    Some(why) => why,
                    None => "the controller does not know its job any more".into(),
                };
                self.record_or(handle, &why).await
            }
        }
    }

    /// What Slurm's accounting says of the end of a job that left the queue unseen, where it keeps
    /// any. A row may be on its way: it is asked for twice.
    async fn accounted(&self, dir: &Path) -> Result<Option<String>> {
        let Some(key) = placed(dir)? else {
            return Ok(None);
        };
        let age = self.age(&dir.join(LIMIT)).unwrap_or_default();
        for turn in 0..2 {
            if turn > 0 {
                tokio::time::sleep(LAG).await;
            }
            if let Some(job) = self.accounting.ended(&key, age).await {
                return Ok(Some(format!("{}, by its accounting", told(&job, dir))));
            }
            if !self.accounting.may_answer().await {
                break;
            }
        }
        Ok(None)
    }

    async fn job(&self, handle: &Handle) -> Result<Known> {
        let Some(key) = placed(&handle.dir)? else {
            return Ok(Known::Never);
        };
        Ok(match self.queue.jobs(false).await? {
            None => Known::Silence,
            Some(jobs) => jobs.get(&key).cloned().map_or(Known::Forgotten, Known::Job),
        })
    }

    /// The record, which may come into sight a moment after the end, or that there is none.
    async fn record_or(&self, handle: &Handle, why: &str) -> Result<Status> {
        let (begun, dir) = (Instant::now(), &handle.dir);
        loop {
            let late = begun.elapsed() > LAG;
            let record = match late {
                true => seen_anew(dir)?,
                false => Record::read(dir)?,
            };
            match record {
                Record::Whole(exit) => {
                    if let Some(why) = forsaken(dir).await? {
                        return Ok(lost(why));
                    }
                    if is_interrupted(dir, false) {
                        return Ok(lost(&format!("Slurm ended it: {why}")));
                    }
                    return Ok(Status::Exited(self.by_our_clock(dir, exit, None)?));
                }
                _ if late => {
                    return Ok(lost(&format!("{why}, and it left no exit record")));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Whether a file of the shared folder was written a moment ago.
    fn is_new(&self, path: &Path) -> bool {
        self.age(path).is_some_and(|age| age < LAG)
    }

    /// Whether an execution showed a sign of life lately: by our own clock since we look, and by
    /// the file system's before.
    pub(super) fn shows_life(&self, token: &Token, dir: &Path) -> bool {
        // The claim comes a moment before the first beat.
        let read = |name: &str| {
            let path = dir.join(name);
            let text = folder::read_if_there(&path).ok()??;
            Some((path, text))
        };
        let Some((path, beat)) = read("beat").or_else(|| read(folder::PID)) else {
            return false;
        };
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        match beats.get_mut(token) {
            Some(last) if last.0 == beat => last.1.elapsed() < SILENCE,
            Some(last) => {
                *last = (beat, Instant::now());
                true
            }
            None => {
                let age = self.age(&path);
                beats.insert(token.clone(), (beat, Instant::now()));
                age.is_none_or(|age| age < SILENCE * 2)
            }
        }
    }

    /// Waits for the end.
    pub(super) async fn ended(&self, handle: &Handle) -> Result<Status> {
        self.check(handle)?;
        let (mut asked, mut ask) = (Instant::now(), ASK);
        let mut recorded: Option<Instant> = None;
        let mut pause = LOOK / 2;
        // When there was no record yet, and when there was one, Unix ms.
        let (mut absent, mut seen) = (None, None);
        loop {
            let looked = now_ms();
            // Over says more than a record: nothing of it is left.
            let over = handle.dir.join(OVER).exists() || !handle.dir.exists();
            match handle.dir.join(folder::EXIT).exists() {
                true if recorded.is_none() => {
                    recorded = Some(Instant::now());
                    seen = absent.zip(Some(now_ms()));
                }
                true => {}
                false => absent = Some(looked),
            }
            if over || recorded.is_some_and(|at| at.elapsed() > LAG) || asked.elapsed() > ask {
                let status = self.status(handle, seen).await?;
                if let Status::Lost { why } = &status {
                    self.bury(handle, why).await?;
                }
                if status != Status::Running {
                    return Ok(status);
                }
                (asked, ask) = (Instant::now(), (ask * 3 / 2).min(ASK_SELDOM));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 5 / 4).min(LOOK * 5);
        }
    }

    /// Lost means gone, and stays lost.
    async fn bury(&self, handle: &Handle, why: &str) -> Result<()> {
        self.end(handle, self.grace).await?;
        if handle.dir.exists() {
            let why = format!("{why}\n");
            folder::write_private(&handle.dir.join(LOST), why.as_bytes())?;
        }
        Ok(())
    }

    /// Asks the task to end the tree, through the shared folder; then the controller.
    pub(super) async fn end(&self, handle: &Handle, grace: Duration) -> Result<()> {
        self.check(handle)?;
        let dir = &handle.dir;
        if !dir.exists() || dir.join(OVER).exists() {
            return Ok(());
        }
        if folder::revoke_claim(dir)? {
            // It had not begun, and never will.
            self.dismiss(dir).await;
            return Ok(());
        }
        if Claim::read(dir)?.is_some_and(|claim| claim.boot_id == folder::REVOKED) {
            return Ok(());
        }
        folder::write_private(&dir.join("unwanted"), b"")?;
        let new = dir.join(format!(".cancel-{}", nonce()));
        folder::write_private(&new, format!("{}\n", grace.as_millis()).as_bytes())?;
        let cancel = dir.join("cancel");
        fs::rename(&new, &cancel).map_err(|e| Error::io("write", &cancel, &e))?;
        let (begun, mut asked) = (Instant::now(), Instant::now());
        let mut forced = false;
        while !dir.join(OVER).exists() {
            if asked.elapsed() > ASK / 3 {
                // The task needs no controller to end it.
                let known = self.job(handle).await.unwrap_or(Known::Silence);
                asked = Instant::now();
                match known {
                    Known::Job(job)
                        if job.is_open() && !job.waits() && !dir.join(GONE).exists() =>
                    {
                        // It does not heed.
                        let force = !forced && begun.elapsed() > grace + SLOW;
                        if force {
                            // Asked for anew: a number seen a while ago may be another's by now.
                            self.dismiss(dir).await;
                        }
                        forced |= force;
                    }
                    Known::Silence => {}
                    _ if !self.shows_life(&handle.token, dir) => return Ok(()),
                    _ => {}
                }
            }
            if begun.elapsed() > grace + STUCK {
                let (token, host) = (&handle.token.0, &handle.host);
                let text = format!("the job of `{token}` on node `{host}` did not end");
                let hint = "`squeue --me -o '%i %T %k'` shows it";
                return Err(Error::new(Kind::Infra, "not-ended", text).hint(hint));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Takes a job that is to do nothing any more out of the queue, where the controller can be
    /// told: it is its claim, or its task, that keeps it from doing anything.
    pub(super) async fn dismiss(&self, dir: &Path) {
        let Ok(Some(key)) = placed(dir) else {
            return;
        };
        if let Ok(Some(jobs)) = self.queue.jobs(true).await
            && let Some(job) = jobs.get(&key).filter(|job| job.is_open())
        {
            self.scancel(&key, job).await;
        }
    }

    /// Ends a job by the number that it has had a moment ago.
    pub(super) async fn scancel(&self, key: &JobKey, job: &Job) {
        let Some(number) = to_end(self.root(), key, job) else {
            return;
        };
        // Only if it bears the right name. Of a task of an array, or a component, that would be all.
        let is_part = number.contains(['_', '+']);
        let name = (!is_part).then(|| format!("--name={}", key.comment));
        let arguments: Vec<String> = [number].into_iter().chain(name).collect();
        // It may have ended meanwhile, or the controller be away: the claim and the task in the
        // folder are what it depends on.
        let _ = self.queue.ask("scancel", &arguments).await;
    }
}

/// Whether nothing of an execution is left, nor will come, for all that its folder shows.
pub(super) fn is_over(dir: &Path) -> Result<bool> {
    let revoked = |claim: Claim| claim.boot_id == folder::REVOKED;
    Ok(dir.join(OVER).exists()
        || matches!(Record::read(dir)?, Record::Whole(_))
        || Claim::read(dir)?.is_some_and(revoked))
}

/// Looks at a folder as the file server has it: a file that was once missed may count as missing
/// on this machine for a while after it has come, until the folder is seen to have changed.
fn look_anew(dir: &Path) {
    let mark = dir.join(format!(".seen-{}", nonce()));
    // Where it cannot be made, there was time enough for others to come into sight.
    if folder::write_private(&mark, b"").is_ok() {
        let _ = fs::remove_file(&mark);
    }
}

fn seen_anew(dir: &Path) -> Result<Record> {
    look_anew(dir);
    Record::read(dir)
}

/// Whether Slurm made it end, by what its task says: that is there before `over` is.
fn is_interrupted(dir: &Path, over: bool) -> bool {
    if !over {
        look_anew(dir);
    }
    dir.join(INTERRUPTED).exists()
}

/// What the wrapper had to say when it did not begin, and its code.
pub(super) fn refusal(dir: &Path) -> Result<Option<String>> {
    let Some(code) = folder::read_if_there(&dir.join(FAILED))? else {
        return Ok(None);
    };
    let said = folder::read_if_there(&dir.join(folder::WRAPPER_LOG))?;
    let said = said.unwrap_or_default();
    Ok(Some(format!("{} (code {})", said.trim(), code.trim())))
}

/// What Slurm says of a job.
fn told(job: &Job, dir: &Path) -> String {
    let said = match job.reason.as_str() {
        "" | "None" => format!("job is {} for Slurm", job.state),
        reason => format!("job is {} for Slurm ({reason})", job.state),
    };
    // The reason says it while the job is still completing.
    if job.state != "TIMEOUT" && job.reason != "TimeLimit" {
        return said;
    }
    let limit = folder::read_if_there(&dir.join(LIMIT)).ok().flatten();
    match limit.unwrap_or_default().trim_end() {
        "" | "0" => format!("{said}: the partition's time was up"),
        minutes => format!("{said}: its {minutes} min were up"),
    }
}

fn lost(why: &str) -> Status {
    Status::Lost {
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_folder_has_changed_before_a_record_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let open = || fs::File::open(dir.path()).unwrap();
        open().set_modified(old).unwrap();
        assert_eq!(seen_anew(dir.path()).unwrap(), Record::Missing);
        assert!(open().metadata().unwrap().modified().unwrap() > old);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
