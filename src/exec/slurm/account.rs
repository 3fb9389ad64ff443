//! What Slurm's accounting says of a job that the controller does not know any more, where there
//! is accounting. An absent row proves nothing: it may be on its way, or not be kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OnceCell};

use super::queue::{Job, JobKey, Queue, index_of};
use crate::error::Result;

/// How long an answer about one array holds: its tasks are mostly lost together.
const HOLDS: Duration = Duration::from_secs(3);
/// How long accounts that were not to be had are not asked for, by anybody: each question waits
/// for as long as `sacct` tries.
const AWAY: Duration = Duration::from_secs(60);
/// How far the clocks of Slurm's machines may be off from that of the shared folder.
const SKEW_H: u64 = 48;

/// The jobs of one array, by place.
type Rows = HashMap<u32, Job>;

/// Asks the accounting.
pub struct Accounting {
    queue: Arc<Queue>,
    is_kept: OnceCell<bool>,
    asked: Mutex<Asked>,
}

/// What was asked lately.
#[derive(Default)]
struct Asked {
    answers: HashMap<String, (Instant, Arc<Rows>)>,
    failed: Option<Instant>,
}

impl Asked {
    /// Whether the accounts were not to be had a moment ago.
    fn is_away(&self) -> bool {
        self.failed.is_some_and(|at| at.elapsed() < AWAY)
    }
}

impl Accounting {
    /// Of the cluster that this controller is of.
    pub fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            is_kept: OnceCell::new(),
            asked: Mutex::default(),
        }
    }

    /// Whether the controller tells anybody how its jobs end. Found out once, when first of use.
    async fn is_kept(&self) -> bool {
        let look = async || -> Result<bool> {
            let arguments = ["show", "config"].map(str::to_owned);
            Ok(is_kept(&self.queue.ask("scontrol", &arguments).await?))
        };
        // Not to be found out: then nothing is asked, and the next one tries again.
        let kept = self.is_kept.get_or_try_init(look).await;
        kept.is_ok_and(|kept| *kept)
    }

    /// Whether it is of use to ask again what was just asked in vain.
    pub async fn may_answer(&self) -> bool {
        self.is_kept().await && !self.asked.lock().await.is_away()
    }

    /// How a job ended that was submitted not longer ago than this; nothing where the accounting
    /// has not heard of its end, or is not to be asked.
    pub async fn ended(&self, key: &JobKey, age: Duration) -> Option<Job> {
        if !self.is_kept().await {
            return None;
        }
        let mut asked = self.asked.lock().await;
        asked.answers.retain(|_, (at, _)| at.elapsed() < HOLDS);
        let rows = match asked.answers.get(&key.comment) {
            Some((_, rows)) => rows.clone(),
            None if asked.is_away() => return None,
            None => {
                let Ok(said) = self.queue.ask("sacct", &question(key, age)).await else {
                    asked.failed = Some(Instant::now());
                    return None;
                };
                let rows = Arc::new(parse(&said));
                let now = Instant::now();
                asked
                    .answers
                    .insert(key.comment.clone(), (now, rows.clone()));
                rows
            }
        };
        let job = rows.get(&key.index)?;
        (!job.is_open()).then(|| job.clone())
    }
}

/// By the job's name, which is its comment: that is always stored, comments are not. Without a
/// begin `sacct` speaks of today only, and without an end of nothing that a clock ahead has dated.
fn question(key: &JobKey, age: Duration) -> [String; 8] {
    let hours = age.as_secs() / 3600 + SKEW_H;
    [
        "-X".into(),
        "-P".into(),
        "-n".into(),
        "--duplicates".into(),
        format!("--name={}", key.comment),
        format!("--starttime=now-{hours}hours"),
        format!("--endtime=now+{SKEW_H}hours"),
        "--format=JobID,State,Submit,NodeList".into(),
    ]
}

/// Whether the controller's configuration names something that keeps accounts.
fn is_kept(config: &str) -> bool {
    let mut lines = config.lines().filter_map(|line| line.split_once('='));
    let kind = lines.find(|(name, _)| name.trim() == "AccountingStorageType");
    kind.is_some_and(|(_, kind)| {
        let kind = kind.trim().trim_start_matches("accounting_storage/");
        !["", "none", "(null)"].contains(&kind)
    })
}

/// Reads `NUMBER[_INDEX]|STATE|SUBMITTED|NODES` lines. Of several rows of one job the one that was
/// submitted last counts: the others were put back into the queue, or forgotten.
fn parse(said: &str) -> Rows {
    let mut rows = Rows::new();
    for line in said.lines() {
        let mut fields = line.split('|').map(str::trim);
        let mut next = || fields.next().unwrap_or_default();
        let (number, state, submitted, node) = (next(), next(), next(), next());
        let (Some(index), false) = (index_of(number), state.is_empty()) else {
            continue;
        };
        // `CANCELLED by 1000`
        let state = state.split(' ').next().unwrap_or_default();
        let job = Job {
            number: number.to_owned(),
            state: state.to_owned(),
            reason: String::new(),
            submitted: submitted.to_owned(),
            node: node.to_owned(),
        };
        // Written so that the order of time is that of text.
        let known: Option<&Job> = rows.get(&index);
        if known.is_none_or(|known| known.submitted <= job.submitted) {
            rows.insert(index, job);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_rows_the_last_submission_counts() {
        let said = "12_0|REQUEUED|2026-01-01T00:00:01|n1\n12_0|CANCELLED by 0|2026-01-01T00:02:02|n1\n\
                    12_1|NODE_FAIL|2026-01-01T00:00:01|n2\n12_[2-5%2]|CANCELLED|2026-01-01T00:00:01|None assigned\n\nnonsense\n";
        let rows = parse(said);
        let state = |at: u32| rows[&at].state.as_str();
        assert_eq!(
            (rows.len(), state(0), state(1)),
            (2, "CANCELLED", "NODE_FAIL")
        );
        let parts = parse("14+0|COMPLETED|x|n1\n14+1|NODE_FAIL|x|n2\n");
        assert_eq!(parts[&1].state, "NODE_FAIL");
        let alone = parse("13|TIMEOUT|2026-01-01T00:00:01|n1\n");
        assert_eq!(alone[&0].state, "TIMEOUT");
    }

    #[tokio::test]
    async fn accounts_that_were_just_away_are_not_asked_again() {
        // Whether `sacct` is here or not, it has no answer for who names no cluster.
        let queue = Queue::new(Some("/dev/null".into()), Duration::from_secs(1));
        let accounts = Accounting {
            is_kept: OnceCell::new_with(Some(true)),
            ..Accounting::new(Arc::new(queue))
        };
        let key = JobKey {
            comment: "doe:ab".into(),
            index: 3,
        };
        let failed = async || {
            assert_eq!(accounts.ended(&key, Duration::ZERO).await, None);
            accounts.asked.lock().await.failed
        };
        assert!(accounts.may_answer().await);
        let first = failed().await;
        assert!(first.is_some(), "it was asked, in vain");
        assert_eq!(failed().await, first, "it was asked again");
        assert!(!accounts.may_answer().await);
        // After a while it is.
        let long_ago = Instant::now().checked_sub(AWAY);
        accounts.asked.lock().await.failed = long_ago;
        assert!(long_ago.is_some() && accounts.may_answer().await);
        assert_ne!(failed().await, long_ago);
    }

    #[test]
    fn what_keeps_accounts_is_read_from_the_configuration() {
        let of = |kind: &str| {
            is_kept(&format!(
                "AccountingStorageHost   = localhost\nAccountingStorageType   = {kind}\nX = y\n"
            ))
        };
        assert!(of("accounting_storage/slurmdbd"));
        for none in ["accounting_storage/none", "(null)", ""] {
            assert!(!of(none), "{none}");
        }
        assert!(!is_kept("nothing"));
    }

    #[test]
    fn the_question_reaches_back_to_the_submission() {
        let key = JobKey {
            comment: "doe:ab".into(),
            index: 3,
        };
        let words = question(&key, Duration::from_secs(5 * 3600));
        assert!(words.contains(&"--name=doe:ab".into()), "{words:?}");
        assert!(
            words.contains(&"--starttime=now-53hours".into()),
            "{words:?}"
        );
    }
}
