//! What became of every node of a run, from its events. A node that was announced and has no end
//! was aborted: its `doe` was killed. That a node ends more than once, or goes on after its end, is
//! a broken account, and said.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::event::{Body, Event, NodeState, Outcome, Retrying, Summary};

/// A run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Account {
    /// Names the run.
    pub run_id: String,
    /// What the user asked for.
    pub command: String,
    /// Nodes by label.
    pub nodes: BTreeMap<String, Node>,
    /// The last event; none when the run was killed.
    pub summary: Option<Summary>,
    /// What is wrong with the account, in words.
    pub broken: Vec<String>,
}

/// A node of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// `ok`, `reused`, ..., or `aborted`.
    pub outcome: &'static str,
    /// Why it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Why it ended badly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Class of the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Milliseconds that it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// The record that stands for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Expectations that it missed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<String>,
    /// The follow-up that brought it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub followup: Option<String>,
    /// Attempts before the last one, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spoiled: Vec<Retrying>,
    /// Whether its steps were begun.
    #[serde(skip)]
    began: bool,
}

/// Word for a node whose run was killed.
pub const ABORTED: &str = "aborted";

impl Node {
    fn announced() -> Self {
        Self {
            outcome: ABORTED,
            why: None,
            reason: None,
            class: None,
            duration_ms: None,
            record: None,
            missed: Vec::new(),
            followup: None,
            spoiled: Vec::new(),
            began: false,
        }
    }

    /// Whether it was executed, or was being so.
    pub fn ran(&self) -> bool {
        let executed = ["ok", "failed", "invalid"].contains(&self.outcome);
        let ended = self.outcome == Outcome::Cancelled.as_str() && self.began;
        executed || ended || (self.outcome == ABORTED && self.why.is_some())
    }

    /// Whether it has no result that others may use.
    pub fn is_bad(&self) -> bool {
        !["ok", "reused", "skipped"].contains(&self.outcome)
    }
}

impl Account {
    /// The account that events give.
    pub fn of<'e>(events: impl IntoIterator<Item = &'e Event>) -> Self {
        let mut account = Self::default();
        for event in events {
            account.take(&event.body);
        }
        let promised = account.summary.as_ref().map(|summary| {
            let Summary {
                ok,
                reused,
                failed,
                invalid,
                blocked,
                cancelled,
                followups,
                skipped,
                ..
            } = summary;
            ok + reused + failed + invalid + blocked + cancelled + followups + skipped
        });
        let ended = account.nodes.values().filter(|n| n.outcome != ABORTED);
        let ended = ended.count() as u64;
        if promised.is_some_and(|promised| promised != ended || account.nodes.len() as u64 != ended)
        {
            let of = account.nodes.len();
            let text = format!("the run is over, and {ended} of {of} nodes have an end");
            account.broken.push(text);
        }
        account
    }

    fn take(&mut self, body: &Body) {
        match body {
            Body::RunStarted {
                run_id, command, ..
            } => {
                self.run_id.clone_from(run_id);
                self.command.clone_from(command);
            }
            Body::NodeState {
                label, why, state, ..
            } => {
                let node = self
                    .nodes
                    .entry(label.clone())
                    .or_insert_with(Node::announced);
                if node.outcome != ABORTED {
                    self.broken.push(format!("{label} goes on after its end"));
                }
                if why.is_some() {
                    node.why.clone_from(why);
                }
                node.began |= *state == NodeState::Running;
            }
            Body::NodeFinished(end) => {
                let entry = self.nodes.entry(end.label.clone());
                let node = entry.or_insert_with(Node::announced);
                if node.outcome != ABORTED {
                    self.broken.push(format!("{} ended twice", end.label));
                }
                // What is blocked, reused or cancelled before it began did not run.
                let ran = match end.outcome {
                    Outcome::Ok | Outcome::Failed | Outcome::Invalid => true,
                    Outcome::Cancelled => node.began,
                    _ => false,
                };
                *node = Node {
                    outcome: end.outcome.as_str(),
                    why: node.why.take().filter(|_| ran),
                    reason: end.reason.clone(),
                    class: end.class.clone(),
                    duration_ms: end.duration_ms,
                    record: end.record.clone(),
                    missed: end.missed.clone(),
                    followup: end.followup.clone(),
                    spoiled: std::mem::take(&mut node.spoiled),
                    began: node.began,
                };
            }
            Body::Retrying(spoiled) => {
                let entry = self.nodes.entry(spoiled.label.clone());
                let node = entry.or_insert_with(Node::announced);
                if node.outcome != ABORTED {
                    let label = &spoiled.label;
                    self.broken.push(format!("{label} goes on after its end"));
                }
                node.spoiled.push(spoiled.clone());
            }
            Body::Summary(summary) => self.summary = Some(summary.clone()),
            _ => {}
        }
    }
}

/// A node that two runs tell differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Label.
    pub label: String,
    /// In the first run; none when it was no part of it.
    pub old: Option<Node>,
    /// In the second.
    pub new: Option<Node>,
}

/// Nodes whose result or end differs between two runs, by label. Having run and being at hand with
/// the same record are the same.
pub fn differences(old: &Account, new: &Account) -> Vec<Difference> {
    let labels: std::collections::BTreeSet<&String> =
        old.nodes.keys().chain(new.nodes.keys()).collect();
    let differ = |a: Option<&Node>, b: Option<&Node>| match (a, b) {
        (Some(a), Some(b)) if !a.is_bad() && !b.is_bad() => a.record != b.record,
        (Some(a), Some(b)) => a.outcome != b.outcome || a.reason != b.reason,
        _ => true,
    };
    let found = labels.into_iter().filter_map(|label| {
        let (a, b) = (old.nodes.get(label), new.nodes.get(label));
        differ(a, b).then(|| Difference {
            label: label.clone(),
            old: a.cloned(),
            new: b.cloned(),
        })
    });
    found.collect()
}
