//! What the controller says of our jobs. It is asked for all of them at once and not more often
//! than once in a while, however many wait. A job is its comment and its place in the array,
//! never its number: a controller that lost its memory gives numbers twice.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::{Error, Kind, Result};

/// Code of the error of a controller that does not answer.
pub const SILENT: &str = "controller-silent";
/// Code of the error of a program of Slurm that is not there.
const MISSING: &str = "slurm-missing";
/// How old an answer may be at least; one that took long may be older.
const FRESH: Duration = Duration::from_secs(1);
/// How many times as long as an answer took it holds.
const HOLDS: u32 = 20;
/// How old an answer may be at most.
const STALE: Duration = Duration::from_secs(30);
/// The question for all jobs.
const ALL: [&str; 7] = ["-h", "-a", "-r", "--me", "-t", "all", "-o%i|%T|%V|%N|%r|%k"];
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The environment of Slurm's programs.
const KEPT: [&str; 7] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "SLURM_CONF",
    "SLURM_CLUSTERS",
];
/// What Slurm's programs say when the controller could not be asked, or not now. What they say
/// otherwise is a word of the controller.
const NO_ANSWER: [&str; 8] = [
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Zero Bytes were transmitted",
    "Transport endpoint",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Slurm backup controller",
];

/// Which job: the comment of its array or heterogeneous job, and its index there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// Comment.
    pub comment: String,
    /// Index in the array, or of the component.
    pub index: u32,
}

/// What the controller says of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number now, with its place in the array (`12_3`) or heterogeneous job (`12+3`); good for
    /// signals, not for identity.
    pub number: String,
    /// `RUNNING`, `NODE_FAIL`, ...
    pub state: String,
    /// Why it is in that state.
    pub reason: String,
    /// When it was submitted.
    pub submitted: String,
    /// Its node, once it has one.
    pub node: String,
}

impl Job {
    /// Whether it waits for its turn.
    pub fn waits(&self) -> bool {
        ["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"].contains(&self.state.as_str())
    }

    /// Whether it waits for what no time brings.
    pub fn waits_in_vain(&self) -> bool {
        const NEVER: [&str; 12] = [
            "AssocMaxWallDurationPerJobLimit",
            "BadConstraints",
            "DependencyNeverSatisfied",
            "InvalidAccount",
            "InvalidQOS",
            "JobHeldAdmin",
            "JobHeldUser",
            "PartitionConfig",
            "PartitionNodeLimit",
            "PartitionTimeLimit",
            "QOSMaxWallDurationPerJobLimit",
            "launch_failed_requeued_held",
        ];
        let held = self.reason.contains("held");
        self.waits() && (held || NEVER.contains(&self.reason.as_str()))
    }

    /// Whether it may still run, as far as its state tells.
    pub fn is_open(&self) -> bool {
        // What the documentation lists as not final. An unknown word is not taken for an end.
        const FINAL: [&str; 11] = [
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "REVOKED",
            "SPECIAL_EXIT",
            "TIMEOUT",
        ];
        !FINAL.contains(&self.state.as_str())
    }
}

/// Every job of ours that the controller knows.
pub type Jobs = HashMap<JobKey, Job>;

/// Asks the controller.
pub struct Queue {
    config: Option<PathBuf>,
    patience: Duration,
    last: Mutex<Last>,
}

struct Last {
    /// When it was last asked, unless the answer does not hold any more.
    asked: Option<Instant>,
    /// When the first of the last questions failed, unless the last one was answered.
    silent: Option<Instant>,
    holds: Duration,
    jobs: Arc<Jobs>,
}

impl Queue {
    /// A controller as the configuration names it.
    pub fn new(config: Option<PathBuf>, patience: Duration) -> Self {
        Self {
            config,
            patience,
            last: Mutex::new(Last {
                asked: None,
                silent: None,
                holds: FRESH,
                jobs: Arc::default(),
            }),
        }
    }

    /// A program of Slurm with the right configuration.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        // A job gets the environment of who submits it; asked to leave it out, Slurm would log in
        // as the user first. What a user set for other jobs shall not act on ours either.
        command.env_clear();
        for name in KEPT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(config) = &self.config {
            command.env("SLURM_CONF", config);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a program of Slurm; what it printed, or what it complained of. `silent` of the error
    /// tells whether the controller was not to be asked.
    pub async fn ask(&self, name: &str, arguments: &[String]) -> Result<String> {
        let failed = |why: String| {
            let silent = NO_ANSWER.iter().any(|words| why.contains(words));
            let (code, what) = match silent {
                true => (SILENT, "Slurm's controller does not answer"),
                false => ("slurm-refused", "Slurm did not do what was asked"),
            };
            Error::new(Kind::Infra, code, format!("{what} (`{name}`)")).cause(why)
        };
        let mut command = self.program(name);
        let output = tokio::time::timeout(LIMIT, command.args(arguments).output()).await;
        let output = output.map_err(|_| failed(NO_ANSWER[1].into()))?;
        let output = output.map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::new(Kind::Infra, MISSING, format!("no `{name}` is here"))
                .cause(e)
                .hint("doe must run where Slurm's commands are: a login node"),
            _ => failed(e.to_string()),
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(said))
    }

    /// Finds out whether there is a controller. What it refuses now it would refuse later too.
    pub async fn hello(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.ask("squeue", &ALL.map(str::to_owned)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code != SILENT => return Err(error),
                Err(error) if begun.elapsed() > self.patience => {
                    return Err(unreachable(begun.elapsed(), error));
                }
                Err(_) => tokio::time::sleep(FRESH).await,
            }
        }
    }

    /// What was answered before does not hold any more.
    pub async fn outdate(&self) {
        self.last.lock().await.asked = None;
    }

    /// All our jobs, as of now or a moment ago; `fresh` asks in any case. `None` while the
    /// controller does not answer, for whatever reason, and there is patience left. That runs out
    /// by the time since the first question that failed, whoever asked it.
    pub async fn jobs(&self, fresh: bool) -> Result<Option<Arc<Jobs>>> {
        let called = Instant::now();
        let mut last = self.last.lock().await;
        // Who waited here while somebody else asked has an answer that is new enough.
        let holds = last.asked.is_some_and(|asked| match fresh {
            true => asked >= called,
            false => asked.elapsed() < last.holds,
        });
        if holds {
            return Ok(last.silent.is_none().then(|| last.jobs.clone()));
        }
        let asked = Instant::now();
        last.asked = Some(asked);
        let answer = self.ask("squeue", &ALL.map(str::to_owned)).await;
        last.holds = holds_for(asked.elapsed(), answer.is_ok());
        let error = match answer {
            Ok(text) => {
                last.jobs = Arc::new(parse(&text));
                last.silent = None;
                return Ok(Some(last.jobs.clone()));
            }
            Err(error) => error,
        };
        let silence = last.silent.get_or_insert_with(Instant::now).elapsed();
        match error.code {
            MISSING => Err(error),
            _ if silence > self.patience => Err(unreachable(silence, error)),
            _ => Ok(None),
        }
    }

    /// How long a controller that does not answer is waited for.
    pub fn patience(&self) -> Duration {
        self.patience
    }
}

/// How long an answer holds that took so long; what was no answer does not keep the next question.
fn holds_for(took: Duration, good: bool) -> Duration {
    match good {
        true => (took * HOLDS).clamp(FRESH, STALE),
        false => FRESH,
    }
}

/// The error about a controller that was waited for in vain.
pub fn unreachable(after: Duration, last: Error) -> Error {
    let after = after.as_secs();
    Error::new(
        Kind::Infra,
        "controller-unreachable",
        format!("Slurm's controller did not answer for {after} s"),
    )
    .cause(last)
    .hint("whatever runs goes on; run again when `squeue` answers")
}

/// Reads `NUMBER|STATE|SUBMITTED|NODE|REASON|COMMENT` lines. Of two jobs of one name one that is open
/// counts, and else the later submission.
fn parse(text: &str) -> Jobs {
    fn rank(job: &Job) -> (bool, &str) {
        (job.is_open(), &job.submitted)
    }
    let mut jobs = Jobs::new();
    for line in text.lines() {
        let mut fields = line.splitn(6, '|');
        let mut next = || fields.next().map(str::trim);
        let (Some(number), Some(state), Some(submitted), Some(node), Some(reason), Some(comment)) =
            (next(), next(), next(), next(), next(), next())
        else {
            continue;
        };
        let Some(index) = index_of(number) else {
            continue;
        };
        if !comment.starts_with("doe:") {
            continue;
        }
        let key = JobKey {
            comment: comment.to_owned(),
            index,
        };
        let job = Job {
            number: number.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            submitted: submitted.to_owned(),
            node: node.to_owned(),
        };
        // Written so that the order of time is that of text.
        match jobs.get(&key) {
            Some(known) if rank(known) > rank(&job) => {}
            _ => {
                jobs.insert(key, job);
            }
        }
    }
    jobs
}

/// The place of a job by its number; a job by itself has the first one.
pub fn index_of(number: &str) -> Option<u32> {
    match number.split_once(['_', '+']) {
        Some((_, index)) => index.parse().ok(),
        None => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_its_comment_and_its_place() {
        let text = "12_0|RUNNING|2026-01-01T00:00:01|n1|None|doe:aa\n13_1|PENDING|2026-01-01T00:00:01||Resources|doe:aa\n\
                    14_0|NODE_FAIL|2026-01-01T00:00:09|n1|NodeDown|doe:aa\n15|RUNNING|x|n1|None|doe:bb\n17_x|RUNNING|x|n1|None|doe:dd\n16_0|RUNNING|x|n1|None|somebody else's|doe:cc\n\nnonsense\n\
                    20+0|RUNNING|x|n1|None|doe:ee\n20+1|PENDING|x||Resources|doe:ee\n";
        let jobs = parse(text);
        let of = |index| {
            &jobs[&JobKey {
                comment: "doe:aa".into(),
                index,
            }]
        };
        assert_eq!(jobs.len(), 5);
        // The one that runs, though the other was submitted later.
        assert_eq!((of(0).number.as_str(), of(0).is_open()), ("12_0", true));
        assert_eq!((of(1).state.as_str(), of(1).is_open()), ("PENDING", true));
        let component = JobKey {
            comment: "doe:ee".into(),
            index: 1,
        };
        assert_eq!(jobs[&component].number, "20+1");
    }

    #[test]
    fn an_answer_holds_for_a_while_and_a_failure_does_not() {
        let of = |ms, good| holds_for(Duration::from_millis(ms), good);
        assert_eq!(of(10, true), FRESH);
        assert_eq!(of(500, true), Duration::from_secs(10));
        assert_eq!(of(20_000, true), STALE);
        assert_eq!((of(10, false), of(60_000, false)), (FRESH, FRESH));
    }

    #[test]
    fn an_unknown_state_is_no_end() {
        let job = |state: &str| Job {
            number: "1".into(),
            state: state.into(),
            reason: String::new(),
            submitted: String::new(),
            node: String::new(),
        };
        for open in [
            "PENDING",
            "CONFIGURING",
            "COMPLETING",
            "SUSPENDED",
            "REQUEUED",
            "STAGE_OUT",
            "SOMETHING_NEW",
        ] {
            assert!(job(open).is_open(), "{open}");
        }
        for closed in [
            "COMPLETED",
            "TIMEOUT",
            "NODE_FAIL",
            "PREEMPTED",
            "CANCELLED",
            "OUT_OF_MEMORY",
        ] {
            assert!(!job(closed).is_open(), "{closed}");
        }
    }
}
