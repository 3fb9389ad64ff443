//! What happens in a run, as data: schema version 1. One event is one line of JSON, in the order
//! it happened. Every node of a run ends in exactly one `node-finished`; `summary` is the last
//! event. Fields are only ever added within a version; readers ignore what they do not know.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::label::Label;

/// Version of the schema.
pub const VERSION: u32 = 1;

/// Names of the events of this version that this program knows.
pub const KNOWN: &[&str] = &[
    "run-started",
    "planned",
    "ordered",
    "mirror-asked",
    "mirror-sent",
    "node-state",
    "node-finished",
    "retrying",
    "followup",
    "service",
    "log-tail",
    "warning",
    "summary",
];

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What.
    #[serde(flatten)]
    pub body: Body,
    /// [`VERSION`]; absent in a summary, whose fields are fixed by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<u32>,
    /// When, in milliseconds since the Unix epoch; absent in a summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_unix_ms: Option<u64>,
}

impl Event {
    /// An event that happens at this time.
    pub fn new(at_unix_ms: u64, body: Body) -> Self {
        let stamped = !matches!(body, Body::Summary(_));
        Self {
            body,
            v: stamped.then_some(VERSION),
            at_unix_ms: stamped.then_some(at_unix_ms),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Body {
    /// The first event.
    RunStarted {
        /// Names the run.
        run_id: String,
        /// Platform that it runs on.
        platform: String,
        /// Whether its tools are simulated.
        simulated: bool,
        /// Number of nodes, those that are reused included.
        nodes: usize,
        /// Folder of the run; made only when something is executed or noted.
        run_dir: String,
        /// What the user asked for.
        command: String,
    },
    /// What is known before anything runs.
    Planned {
        /// Nodes that run.
        run: usize,
        /// Nodes that run when what they need comes out differently.
        may_run: usize,
        /// Nodes whose result is at hand.
        reuse: usize,
        /// Expected seconds of work, from history or the plan; absent when unknown for a node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        estimate_s: Option<f64>,
    },
    /// Nodes of a plan stand in an order that was drawn; comes after what is planned.
    Ordered {
        /// The plan.
        plan: String,
        /// What the order was drawn with.
        seed: u64,
        /// How many nodes stand by it.
        nodes: usize,
    },
    /// The mirror was asked for results before anything was decided.
    MirrorAsked {
        /// Where it is.
        place: String,
        /// Keys that were asked for.
        keys: usize,
        /// Results that were taken in.
        found: usize,
    },
    /// New results were sent to the mirror; comes before the summary.
    MirrorSent {
        /// Where it is.
        place: String,
        /// Results that are there now.
        sent: u64,
        /// Results that are not; a warning says why.
        left: u64,
    },
    /// A node moved on.
    NodeState {
        /// Its label.
        label: String,
        /// Where it is now.
        state: NodeState,
        /// Hosts that it holds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        hosts: Vec<String>,
        /// Expected seconds of its execution, when known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        estimate_s: Option<f64>,
        /// Why it runs; said once, when it becomes ready.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A node ended: the only event of its kind for the node.
    NodeFinished(NodeFinished),
    /// The infrastructure spoiled an attempt of a node: a further one is to come.
    Retrying(Retrying),
    /// A follow-up holds: comes before anything of it begins, once at most.
    Followup {
        /// Plan and id: `//phase2#tpot-apart`.
        followup: String,
        /// Its condition.
        when: String,
        /// The condition, what it holds for and the values, in words.
        cause: String,
        /// Labels of the results that it holds for.
        results: Vec<String>,
        /// What the condition mentions, with the values found.
        values: BTreeMap<String, serde_json::Value>,
        /// Patterns that it brings in, as far as its budget goes and no other has.
        patterns: Vec<String>,
        /// Seconds that they may take together.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        budget_s: Option<f64>,
        /// Seconds that they are expected to take, when known of all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        estimate_s: Option<f64>,
        /// Always: what comes of it was not planned.
        exploratory: bool,
    },
    /// A service moved on.
    Service {
        /// Name in the rule.
        name: String,
        /// First digits of its key.
        key: String,
        /// Host.
        host: String,
        /// Where it is now.
        state: ServiceState,
        /// How often it was started in this run.
        starts: u32,
        /// Why, when it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The end of a log of a node that failed; comes before its `node-finished`.
    LogTail {
        /// Label of the node.
        label: String,
        /// `step-measure.stderr`, `service-decode.stdout`.
        log: String,
        /// The last lines.
        lines: Vec<String>,
    },
    /// Something to know that stops nothing.
    Warning {
        /// Stable kebab-case code.
        code: String,
        /// One sentence.
        message: String,
        /// Label of the node concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// The last event.
    Summary(Summary),
}

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFinished {
    /// Its label.
    pub label: String,
    /// How.
    pub outcome: Outcome,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Class of the failure: `oom`, `timeout`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Milliseconds that it took now, or took when its result was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Digest of the record that stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Whether that record comes from simulated tools.
    #[serde(default)]
    pub simulated: bool,
    /// Whether this run took that record from the mirror.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remote: bool,
    /// Whether its numbers are as expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criterion: Option<CriterionWord>,
    /// Expectations that were missed, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<String>,
    /// Which attempt it was, when a further one was possible after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How many there might have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The follow-up that brought it in; it is not counted among the patterns of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followup: Option<String>,
    /// Whether it was brought in by a follow-up rather than planned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exploratory: bool,
}

impl NodeFinished {
    /// A node that ended in this way; the rest is to be filled in.
    pub fn new(label: &Label, outcome: Outcome) -> Self {
        Self {
            label: label.to_string(),
            outcome,
            reason: None,
            class: None,
            duration_ms: None,
            record: None,
            simulated: false,
            remote: false,
            criterion: None,
            missed: Vec::new(),
            attempt: None,
            attempts: None,
            followup: None,
            exploratory: false,
        }
    }
}

/// An attempt that is not the last one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrying {
    /// Label of the node.
    pub label: String,
    /// The attempt that ended, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts: u32,
    /// Class of its failure.
    pub class: String,
    /// Why it failed, in one sentence.
    pub reason: String,
    /// Milliseconds until the next one may begin.
    pub delay_ms: u64,
    /// What that pause was drawn with.
    pub seed: u64,
    /// Digest of the attempt's record.
    pub record: String,
    /// Milliseconds that it took.
    pub duration_ms: u64,
}

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Waits for other nodes.
    Blocked,
    /// Waits for its turn.
    Ready,
    /// Has its hosts; its services are being brought up.
    Acquiring,
    /// Its folder and files are being made.
    Staging,
    /// Its steps run.
    Running,
    /// Its outputs are fetched, judged and stored.
    Collecting,
}

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Ran now and is valid.
    Ok,
    /// Its result was at hand.
    Reused,
    /// Ran, and its numbers may not be used.
    Invalid,
    /// Did not run to its end, or left no outputs.
    Failed,
    /// Somebody stopped it, or it was never begun because somebody stopped the run.
    Cancelled,
    /// Never begun, because of what it depends on.
    Blocked,
    /// Never begun, because it is not needed: a replicate after enough others.
    Skipped,
}

impl Outcome {
    /// Whether all is well with it: there is a result that others may use, or none is needed.
    pub fn is_good(self) -> bool {
        matches!(self, Outcome::Ok | Outcome::Reused | Outcome::Skipped)
    }

    /// The word used in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Reused => "reused",
            Outcome::Invalid => "invalid",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::Blocked => "blocked",
            Outcome::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether numbers are as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CriterionWord {
    /// Every expectation is met.
    Met,
    /// At least one is missed.
    Missed,
}

/// Where a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Started, not ready yet.
    Starting,
    /// Ready.
    Ready,
    /// Ended because it is not needed any more.
    Stopped,
    /// Could not be started, or died.
    Failed,
}

/// Counts of patterns; services, probes and comparisons are not counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Ran now and valid.
    pub ok: u64,
    /// Taken from the store.
    pub reused: u64,
    /// Failed.
    pub failed: u64,
    /// Ran, and the numbers may not be used.
    pub invalid: u64,
    /// Never begun, because of what they depend on.
    pub blocked: u64,
    /// How often a service was started.
    pub service_starts: u64,
    /// Seconds from the first event to the last.
    pub wall_s: f64,
    /// Stopped, or never begun because the run was stopped.
    #[serde(default)]
    pub cancelled: u64,
    /// Seconds that the reused results once took.
    #[serde(default)]
    pub time_saved_s: f64,
    /// Reused results that this run took from the mirror.
    #[serde(default)]
    pub remote_hits: u64,
    /// Patterns that follow-ups brought in, however they ended; none of the counts above has them.
    #[serde(default)]
    pub followups: u64,
    /// Those among them that have no result.
    #[serde(default)]
    pub followups_failed: u64,
    /// Further attempts after failures of the infrastructure.
    #[serde(default, skip_serializing_if = "is_none")]
    pub retries: u64,
    /// Replicates that were not needed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub skipped: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Summary {
    /// Counts one more node.
    pub fn count(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Ok => &mut self.ok,
            Outcome::Reused => &mut self.reused,
            Outcome::Failed => &mut self.failed,
            Outcome::Invalid => &mut self.invalid,
            Outcome::Blocked => &mut self.blocked,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Skipped => &mut self.skipped,
        } += 1;
    }

    /// Counts one more node that a follow-up brought in.
    pub fn count_followup(&mut self, outcome: Outcome) {
        self.followups += 1;
        self.followups_failed += u64::from(!outcome.is_good());
    }

    /// Whether every node has a result.
    pub fn is_good(&self) -> bool {
        self.failed + self.invalid + self.blocked + self.cancelled + self.followups_failed == 0
    }
}

/// Takes events in as they happen.
pub trait Sink: Send {
    /// One event. Must not block for long: the run waits.
    fn event(&mut self, event: &Event);

    /// What was told so far is to be seen now: comes before the run waits for anything.
    fn flush(&mut self) {}

    /// Why not all of it could be passed on, if so; a reader that went away is no reason.
    fn broken(&self) -> Option<&std::io::Error> {
        None
    }
}

/// Keeps events, for tests and for readers of whole runs.
impl Sink for Vec<Event> {
    fn event(&mut self, event: &Event) {
        self.push(event.clone());
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
