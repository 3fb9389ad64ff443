//! What the infrastructure spoiled is tried again: a further attempt of the same node, with a
//! record, folders and tokens of its own. Between attempts the node holds nothing. That a further
//! one is to come is noted together with the record of the one before, so a `doe` that is killed
//! in between goes on with the next number, and no attempt is recorded twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::{Digest, NodeState as StoredState, NodeUpdate, Store};
use tokio::time::{Duration, Instant};

use super::drive::Drive;
use super::event::{Body, NodeState, Outcome, Retrying};
use super::job::{Job, Previous};
use super::order::seed_of;
use super::record::NodeEnd;
use super::resolve::{Final, final_of};
use super::schedule::TaskId;
use crate::analysis::sample::{rng, uniform};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::label::Label;
use crate::rule::classes::is_infrastructure;
use crate::rule::retry::RetryPolicy;

/// The seed of the pause after an attempt: another one for every attempt of every node and run,
/// and the same whenever it is asked for. At most 48 bits, so that every reader of JSON keeps it.
pub fn seed(run_id: &str, label: &str, attempt: u32) -> u64 {
    seed_of(&format!("{run_id} {label} {attempt}"))
}

/// Milliseconds between this attempt and the next: `base * factor^(attempt - 1)`, at most `cap`,
/// of which half is certain and half is drawn ("equal jitter": M. Brooker, Exponential Backoff And
/// Jitter, AWS Architecture Blog, 2015), so that what failed together does not come back together.
pub fn delay_ms(policy: &RetryPolicy, attempt: u32, seed: u64) -> u64 {
    let grown = policy.factor.powf(f64::from(attempt.saturating_sub(1)));
    let pause_s = (policy.base_s * grown).min(policy.cap_s);
    let drawn = uniform(&mut rng(seed, 0));
    let pause_ms = pause_s * 1000.0 * (0.5 + 0.5 * drawn);
    // Durations are checked when they are read; the conversion saturates.
    pause_ms.round() as u64
}

/// Further attempts of a run.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// Nodes whose last attempt was of a killed run, with its record.
    left: BTreeMap<String, Digest>,
    /// Nodes that were attempted in this run: when the next attempt is due, and how the last one
    /// ended.
    tried: BTreeMap<TaskId, (Option<Instant>, Final)>,
}

impl Retries {
    /// Takes over what killed runs were to try again: noted for this run before those are closed.
    pub(super) fn take_over(
        store: &Store,
        (dead, recorded): (&[String], &BTreeMap<String, Digest>),
        run_id: &str,
        graph: &Graph<'_>,
        nodes: &[NodeId],
    ) -> Result<Self> {
        // By label: how it stood last, and after which record, where it had not ended.
        let mut stood: BTreeMap<String, Option<Option<Digest>>> = BTreeMap::new();
        for run in dead.iter().rev() {
            for node in store.run_nodes(run)? {
                let open = !node.state.is_terminal();
                stood.insert(node.label, open.then_some(node.record));
            }
        }
        // What was stored just before the end no note may know of.
        for (label, record) in recorded {
            if let Some(last) = stood.entry(label.clone()).or_insert(Some(None)) {
                *last = Some(*record);
            }
        }
        let left = stood.into_iter();
        let left = left.filter_map(|(label, stood)| Some((label, stood??)));
        let mut left: BTreeMap<String, Digest> = left.collect();
        if left.is_empty() {
            return Ok(Self::default());
        }
        let wanted: Vec<String> = nodes.iter().map(|n| graph.label(*n).to_string()).collect();
        left.retain(|label, _| wanted.contains(label));
        let notes: Vec<NodeUpdate> = left
            .iter()
            .map(|(label, record)| NodeUpdate {
                run_id: run_id.to_owned(),
                label: label.clone(),
                state: StoredState::Retrying,
                reason: None,
                record: Some(*record),
            })
            .collect();
        store.set_nodes(&notes)?;
        Ok(Self {
            left,
            ..Self::default()
        })
    }

    /// The last attempt of a task, after which there is none.
    pub(super) fn keep(&mut self, task: TaskId, last: Final) {
        self.tried.insert(task, (None, last));
    }

    /// When the next attempt is due, if one is to come.
    pub(super) fn due(&self) -> Option<Instant> {
        self.tried.values().filter_map(|(due, _)| *due).min()
    }
}

/// Waits for that time; for ever when there is none.
pub(super) async fn wait_for(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Drive<'_, '_, '_> {
    /// Goes on counting where a killed run was, when the same is to be executed.
    pub(super) fn count_on(&mut self, label: &Label, action: &Digest, job: &mut Job) {
        let left = self.retries.left.remove(&label.to_string());
        if let Some(resumed) = &job.resumed {
            job.attempt = resumed.intent.attempt;
            let record = resumed.intent.previous;
            let known = record.and_then(|r| Some((r, self.context.store.record(&r).ok()?)));
            job.previous = known.map(|(digest, record)| Previous::of(digest, &record));
            return;
        }
        let Some(digest) = left else {
            return;
        };
        let Ok(record) = self.context.store.record(&digest) else {
            return;
        };
        let class = record.verdicts.execution.class.as_deref();
        let spoiled = class.is_some_and(|class| is_infrastructure(&job.rule, class));
        if record.action_key == *action && spoiled && record.attempt < job.retry.attempts {
            job.attempt = record.attempt + 1;
            job.previous = Some(Previous::of(digest, &record));
            let (attempt, of) = (job.attempt, job.retry.attempts);
            let message = format!(
                "goes on with attempt {attempt} of {of} where the killed run {} was",
                record.run_id
            );
            self.journal.warn("re-attached", message, Some(label));
        }
    }

    /// Puts a node off whose attempt the infrastructure spoiled. False when nothing new begins any
    /// more: then that was its end.
    pub(super) fn put_off(&mut self, task: TaskId, end: &NodeEnd) -> Result<bool> {
        if self.tainted_for(task).is_some() {
            // It would stand in line for a host that nobody gets.
            return Ok(false);
        }
        let Some(job) = self.jobs.get_mut(&task).map(Arc::make_mut) else {
            return Ok(false);
        };
        let (Some(summary), false) = (&end.summary, self.scheduler.is_draining()) else {
            return Ok(false);
        };
        let record = self.context.store.record(&summary.record)?;
        let label = job.label.to_string();
        let seed = seed(&self.context.home.run_id, &label, job.attempt);
        let delay_ms = delay_ms(&job.retry, job.attempt, seed);
        self.journal.summary.retries += 1;
        self.journal.tell(Body::Retrying(Retrying {
            label,
            attempt: job.attempt,
            attempts: job.retry.attempts,
            class: end.class.clone().unwrap_or_default(),
            reason: end.reason.clone().unwrap_or_default(),
            delay_ms,
            seed,
            record: summary.record.to_string(),
            duration_ms: end.duration_ms,
        }));
        job.attempt += 1;
        job.previous = Some(match (&end.intent, job.previous.take()) {
            // It began nothing: what the one before it may have left is still to be ended.
            (None, Some(before)) => Previous {
                record: summary.record,
                ..before
            },
            (intent, _) => Previous {
                intent: intent.clone(),
                ..Previous::of(summary.record, &record)
            },
        });
        job.resumed = None;
        job.running = false;
        job.acquired_unix_ms = 0;
        self.scheduler.put_off(task);
        let seconds = end.duration_ms as f64 / 1000.0;
        self.gate.put_off(task, seconds);
        let node = self.tasks[task.index()].node;
        self.watch.put_off(node, seconds);
        let due = Instant::now() + Duration::from_millis(delay_ms);
        self.retries.tried.insert(task, (Some(due), final_of(end)));
        Ok(true)
    }

    /// Lets in whose pause is over. Whether anything came of it.
    pub(super) fn readmit(&mut self) -> Result<bool> {
        let now = Instant::now();
        let tried = self.retries.tried.iter_mut();
        let due: Vec<TaskId> = tried
            .filter_map(|(task, (due, _))| due.take_if(|due| *due <= now).map(|_| *task))
            .collect();
        for &task in &due {
            if let Some((name, why)) = self.broken_service(task) {
                let why = format!("service `{name}` could not be kept up: {why}");
                self.end_idle(task, Outcome::Blocked, &why)?;
                continue;
            }
            if let Some(job) = self.jobs.get(&task) {
                let why = format!("attempt {} of {}", job.attempt, job.retry.attempts);
                self.tell_state(task, NodeState::Ready, Some(why));
            }
            self.ask_again(task);
        }
        Ok(!due.is_empty())
    }

    /// Ends a node that is not under way: as its last attempt did, when it had one.
    pub(super) fn end_idle(&mut self, task: TaskId, outcome: Outcome, why: &str) -> Result<()> {
        let last = self.retries.tried.get(&task).map(|(_, last)| last.clone());
        if last.is_some() {
            // It counted when it was put off.
            let node = self.tasks[task.index()].node;
            self.watch.has_counted(node);
        }
        let ended = match last {
            None => Final::without_result(outcome, why),
            Some(last) => {
                let reason = last.reason.as_deref().unwrap_or_default();
                Final {
                    reason: Some(format!("{reason}; not tried again: {why}")),
                    ..last
                }
            }
        };
        self.end(task, ended)
    }

    /// A node has ended, and nothing is left to be tried. Whether its last attempt was noted as
    /// one that a further one follows, and no record has said otherwise.
    pub(super) fn settle_attempts(&mut self, task: TaskId, ended: &Final) -> bool {
        let last = self.retries.tried.remove(&task);
        last.is_some_and(|(_, last)| last.record == ended.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_bounded_and_come_back_from_their_seed() {
        let policy = RetryPolicy {
            attempts: 9,
            base_s: 2.0,
            factor: 3.0,
            cap_s: 60.0,
        };
        for (attempt, most_ms) in [(1, 2000), (2, 6000), (3, 18_000), (4, 54_000), (5, 60_000)] {
            let mut seen = std::collections::BTreeSet::new();
            for node in 0..50 {
                let seed = seed("r", &format!("//t:{node}"), attempt);
                assert!(seed < 1 << 48);
                let delay = delay_ms(&policy, attempt, seed);
                assert!(
                    (most_ms / 2..=most_ms).contains(&delay),
                    "{attempt}: {delay}"
                );
                assert_eq!(delay, delay_ms(&policy, attempt, seed));
                seen.insert(delay);
            }
            assert!(seen.len() > 40, "what failed together comes back together");
        }
        let at_once = RetryPolicy {
            base_s: 0.0,
            ..policy
        };
        assert_eq!(delay_ms(&at_once, 7, 1), 0);
        // A pause that no number holds is still the longest.
        let steep = RetryPolicy {
            factor: 1e300,
            ..policy
        };
        assert!(delay_ms(&steep, 21, 1) <= 60_000);
    }
}
