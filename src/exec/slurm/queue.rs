//! What the controller says of our jobs. It is asked for all of them at once and not more often
//! than once in a while, however many wait. A job is its comment and its place in the array,
//! never its number: a controller that lost its memory gives numbers twice.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::{Error, Kind, Result};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Which job: the comment of its array and its index there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// Comment.
    pub comment: String,
    /// Index in the array.
    pub index: u32,
}

/// What the controller says of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number now; good for signals, not for identity.
    pub number: u32,
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
    asked: Option<Instant>,
    answered: Instant,
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
                answered: Instant::now(),
                jobs: Arc::default(),
            }),
        }
    }

    /// A program of Slurm with the right configuration.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        if let Some(config) = &self.config {
            command.env("SLURM_CONF", config);
        }
        // What a user set for other jobs shall not act on ours.
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if [
                "SBATCH_",
                "SQUEUE_",
                "SLURM_TIME",
                "SLURM_NODELIST",
                "SLURM_MEM",
            ]
            .iter()
            .any(|p| text.starts_with(p))
            {
                command.env_remove(&variable);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a program of Slurm; what it printed, or what it complained of.
    pub async fn ask(&self, name: &str, arguments: &[String]) -> Result<String> {
        let failed = |why: String| {
            Error::new(
                Kind::Infra,
                "slurm-refused",
                format!("`{name}` did not do what was asked"),
            )
            .cause(why)
        };
        let mut command = self.program(name);
        let output = tokio::time::timeout(LIMIT, command.args(arguments).output()).await;
        let output = output.map_err(|_| failed("it did not answer".into()))?;
        let output = output
            .map_err(|e| failed(e.to_string()).hint("doe must run where Slurm's commands are"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }

    /// What was answered before does not hold any more.
    pub async fn outdate(&self) {
        self.last.lock().await.asked = None;
    }

    /// All our jobs, as of now or at most a second ago; `fresh` asks in any case. `None` while the
    /// controller does not answer and there is patience left.
    pub async fn jobs(&self, fresh: bool) -> Result<Option<Arc<Jobs>>> {
        let mut last = self.last.lock().await;
        let recent = last.asked.is_some_and(|asked| asked.elapsed() < FRESH);
        if recent && !fresh {
            return Ok(
                (last.answered >= last.asked.unwrap_or(last.answered)).then(|| last.jobs.clone())
            );
        }
        last.asked = Some(Instant::now());
        let arguments = [
            "-h",
            "-a",
            "-r",
            "--me",
            "-t",
            "all",
            "-o",
            "%A|%K|%T|%V|%N|%r|%k",
        ];
        match self.ask("squeue", &arguments.map(str::to_owned)).await {
            Ok(text) => {
                last.jobs = Arc::new(parse(&text));
                last.answered = Instant::now();
                Ok(Some(last.jobs.clone()))
            }
            Err(error) if last.answered.elapsed() > self.patience => Err(Error::new(
                Kind::Infra,
                "controller-unreachable",
                format!(
                    "Slurm's controller did not answer for {} s",
                    last.answered.elapsed().as_secs()
                ),
            )
            .cause(error)
            .hint("whatever runs goes on; run again when the controller answers")),
            Err(_) => Ok(None),
        }
    }
}

/// Reads `NUMBER|INDEX|STATE|SUBMITTED|NODE|REASON|COMMENT` lines. Of two jobs of one name the later
/// submission counts.
fn parse(text: &str) -> Jobs {
    let mut jobs = Jobs::new();
    for line in text.lines() {
        let mut fields = line.splitn(7, '|');
        let mut next = || fields.next().map(str::trim);
        let (
            Some(number),
            Some(index),
            Some(state),
            Some(submitted),
            Some(node),
            Some(reason),
            Some(comment),
        ) = (next(), next(), next(), next(), next(), next(), next())
        else {
            continue;
        };
        let (Ok(number), Ok(index)) = (number.parse(), index.parse()) else {
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
            number,
            state: state.to_owned(),
            reason: reason.to_owned(),
            submitted: submitted.to_owned(),
            node: node.to_owned(),
        };
        // Written so that the order of time is that of text.
        match jobs.get(&key) {
            Some(known) if known.submitted > job.submitted => {}
            _ => {
                jobs.insert(key, job);
            }
        }
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_its_comment_and_its_place() {
        let text = "12|0|RUNNING|2026-01-01T00:00:01|n1|None|doe:aa\n13|1|PENDING|2026-01-01T00:00:01||Resources|doe:aa\n\
                    14|0|NODE_FAIL|2026-01-01T00:00:00|n1|NodeDown|doe:aa\n15|N/A|RUNNING|x|n1|None|doe:bb\n16|0|RUNNING|x|n1|None|somebody else's|doe:cc\n\nnonsense\n";
        let jobs = parse(text);
        let of = |index| {
            &jobs[&JobKey {
                comment: "doe:aa".into(),
                index,
            }]
        };
        assert_eq!(jobs.len(), 2);
        assert_eq!((of(0).number, of(0).is_open()), (12, true));
        assert_eq!((of(1).state.as_str(), of(1).is_open()), ("PENDING", true));
    }

    #[test]
    fn an_unknown_state_is_no_end() {
        let job = |state: &str| Job {
            number: 1,
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
