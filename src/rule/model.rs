//! What a rule says, after its file was read and checked. A `Rule` that exists is complete: every
//! template compiles, every name it mentions is a parameter, a role, a service or an output.

use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Value;

use super::retry::RetryDef;
use crate::error::Site;
pub use crate::source::Text;

/// `serving.unified`: the file's stem and the table's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub String);

impl std::fmt::Display for RuleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a rule's nodes do to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// Runs on the platform's hosts and yields a measurement.
    Measure,
    /// A pure function from results to a result; runs beside `doe`, never on a host.
    Analysis,
}

/// How a kind of pattern is measured.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `file.table`.
    pub id: RuleId,
    /// Measure or analysis.
    pub kind: RuleKind,
    /// For people; never in a key.
    pub doc: String,
    /// Bumped by the rule's author to rerun everything made by it; in every key.
    pub version: i64,
    /// Parameters by name.
    pub params: BTreeMap<String, Param>,
    /// What must hold of the settings of every pattern.
    pub require: Vec<Require>,
    /// Derived variables, evaluated in order of name dependency before templates are rendered.
    pub lets: BTreeMap<String, Text>,
    /// Environment of every service and step of the rule: templates.
    pub env: BTreeMap<String, Text>,
    /// Places where steps and services run.
    pub roles: BTreeMap<String, Role>,
    /// Long-lived processes, in file order.
    pub services: Vec<ServiceDef>,
    /// What is executed, in file order.
    pub steps: Vec<StepDef>,
    /// Files a node must leave behind.
    pub outputs: BTreeMap<String, OutputDef>,
    /// Numbers read from outputs.
    pub metrics: BTreeMap<String, MetricDef>,
    /// Series read from outputs.
    pub samples: BTreeMap<String, SampleDef>,
    /// Expressions over outputs, metrics and settings; false refuses the result.
    pub valid: Vec<Text>,
    /// Parameters in which compared patterns may differ.
    pub compare_only_on: Vec<String>,
    /// How failures are named.
    pub failures: Vec<FailureDef>,
    /// How often what the infrastructure spoiled is tried again.
    pub retry: RetryDef,
    /// `measure openai`, `analyze bimodality`: instruments of `doe` that the scripts call; their
    /// code versions enter the key. Found in the templates, not declared, so none is forgotten.
    pub instruments: Vec<String>,
    /// Parameters that could change the result by their `affects`, but that nothing mentions.
    pub unread: BTreeSet<String>,
    /// Where the rule's table starts.
    pub site: Site,
}

impl Rule {
    /// Whether any of its steps names the list of results that it is given.
    pub fn mentions_inputs(&self) -> bool {
        let texts = self
            .steps
            .iter()
            .flat_map(|step| step.env.values().chain([&step.run]));
        let mut texts = texts.chain(self.env.values());
        texts.any(|text| text.text.contains("inputs"))
    }
}

/// A parameter's type.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamType {
    /// Whole number with optional bounds (inclusive).
    Int {
        /// Least value.
        min: Option<i64>,
        /// Greatest value.
        max: Option<i64>,
    },
    /// Real number with optional bounds (inclusive). A whole number is accepted.
    Float {
        /// Least value.
        min: Option<f64>,
        /// Greatest value.
        max: Option<f64>,
    },
    /// `true` or `false`.
    Bool,
    /// Text, optionally matching a regular expression as a whole.
    Str {
        /// Regular expression for the whole text.
        pattern: Option<String>,
    },
    /// One of the named values.
    Enum {
        /// Allowed values, in file order.
        of: Vec<String>,
    },
    /// A length of time such as `90s`, `15m`; kept as seconds.
    Duration,
    /// A list whose items have one type.
    List(Box<ParamType>),
    /// A table of anything; for structured options that a template prints as JSON.
    Table,
}

/// Which part of the world a parameter can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affects {
    /// The numbers: enters the keys.
    Result,
    /// When and where it runs only.
    Scheduling,
    /// What people read only.
    Cosmetic,
}

/// One parameter of a rule.
#[derive(Debug, Clone)]
pub struct Param {
    /// Type and bounds.
    pub ty: ParamType,
    /// Value when nobody sets it; without one the parameter is required.
    pub default: Option<Value>,
    /// Unit for people: `tokens`, `ms`, `GiB`.
    pub unit: Option<String>,
    /// For people.
    pub doc: String,
    /// Classification for the keys; `result` unless the file says otherwise.
    pub affects: Affects,
    /// Where it is defined.
    pub site: Site,
}

/// A condition on settings.
#[derive(Debug, Clone)]
pub struct Require {
    /// Expression that must be true.
    pub that: Text,
    /// Why, for the error message.
    pub why: String,
}

/// A named place.
#[derive(Debug, Clone)]
pub struct Role {
    /// Expression for the number of GPUs the role's services take; none means none.
    pub gpus: Option<Text>,
    /// Whether a node that uses the role takes the whole host (default for measurements).
    pub exclusive: bool,
    /// Where it is defined.
    pub site: Site,
}

/// How one knows that a process is ready.
#[derive(Debug, Clone, PartialEq)]
pub enum ProbeDef {
    /// GET answers 200: a URL template.
    Http(Text),
    /// A connection is accepted: `host:port` template.
    Tcp(Text),
    /// Something listens on this port of the process's host, seen without connecting: a port
    /// template. For servers that take whoever connects for their client.
    Listen(Text),
    /// A file exists: path template.
    File(Text),
    /// A line of the log matches: regular expression.
    Log(Text),
    /// The process is alive after having been started (no better sign exists).
    Alive,
}

/// Readiness of a process.
#[derive(Debug, Clone)]
pub struct ReadyDef {
    /// The sign.
    pub probe: ProbeDef,
    /// How long it may take: seconds.
    pub within_s: f64,
    /// Regular expressions; a log line that matches one fails the start at once.
    pub fail_on_log: Vec<Text>,
}

/// How a service is watched while nodes use it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    /// Seconds between two looks; none: as the executor can afford it.
    pub every_s: Option<f64>,
    /// Looks in a row without an answer that are its death; 0: nobody looks.
    pub misses: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            every_s: None,
            misses: 3,
        }
    }
}

/// A service of a rule.
#[derive(Debug, Clone)]
pub struct ServiceDef {
    /// Name, unique in the rule.
    pub name: String,
    /// The role on whose host it runs.
    pub role: String,
    /// Shell script template.
    pub run: Text,
    /// Environment templates, over the rule's own.
    pub env: BTreeMap<String, Text>,
    /// Port names and the numbers they have where ports are not handed out (`http = 8200`).
    pub ports: BTreeMap<String, u16>,
    /// Services of the same rule that must be ready first; their keys enter this one's.
    pub after: Vec<String>,
    /// Readiness.
    pub ready: ReadyDef,
    /// Seconds between the polite and the hard end.
    pub stop_grace_s: f64,
    /// How it is watched while it is used.
    pub health: Health,
    /// What holds of its host when nothing of it is there.
    pub released: Option<ReleasedDef>,
    /// Where it is defined.
    pub site: Site,
}

/// What holds of a host on which nothing of a service is: looked at before the service is started
/// and after it was stopped.
#[derive(Debug, Clone)]
pub struct ReleasedDef {
    /// Shell script template: run until it succeeds.
    pub run: Text,
    /// For how long: seconds.
    pub within_s: f64,
}

/// A step of a rule.
#[derive(Debug, Clone)]
pub struct StepDef {
    /// Name, unique in the rule.
    pub name: String,
    /// The role on whose host it runs; `None` only in analysis rules.
    pub role: Option<String>,
    /// Shell script template.
    pub run: Text,
    /// Environment templates, over the rule's own.
    pub env: BTreeMap<String, Text>,
    /// Limit in seconds: an expression or a number.
    pub timeout: Text,
    /// Steps with the same gang name run together; one failing cancels the others.
    pub gang: Option<String>,
    /// Gang members that must be ready before this one starts.
    pub after: Vec<String>,
    /// When the other members may consider this one ready.
    pub ready: Option<ReadyDef>,
    /// Port names of this step, as for services.
    pub ports: BTreeMap<String, u16>,
    /// Where it is defined.
    pub site: Site,
}

/// A file that a node must leave behind.
#[derive(Debug, Clone)]
pub struct OutputDef {
    /// File name inside the node's own folder on the host of `role`.
    pub path: String,
    /// The step's role whose host holds it; the last step's role by default.
    pub role: Option<String>,
    /// `load-v1`, `iperf3-v1`...: the `schema` field that the JSON must carry; none for raw files.
    pub schema: Option<String>,
    /// Where it is defined.
    pub site: Site,
}

/// A number read from an output.
#[derive(Debug, Clone)]
pub struct MetricDef {
    /// Name of the output.
    pub from: String,
    /// JSON pointer.
    pub at: String,
    /// Unit.
    pub unit: String,
    /// `Some(true)`: lower is better; `Some(false)`: higher is better.
    pub lower_is_better: Option<bool>,
    /// Whether the metric may be absent or null.
    pub optional: bool,
    /// Where it is defined.
    pub site: Site,
}

/// A series read from an output: a JSON pointer in which `*` runs over an array.
#[derive(Debug, Clone)]
pub struct SampleDef {
    /// Name of the output.
    pub from: String,
    /// JSON pointer with `*`.
    pub at: String,
    /// Unit.
    pub unit: String,
    /// Where it is defined.
    pub site: Site,
}

/// How a failure is named.
#[derive(Debug, Clone)]
pub struct FailureDef {
    /// `oom`, `infrastructure`, `program`, ...
    pub class: String,
    /// Regular expression searched in the logs.
    pub log: Option<Text>,
    /// Exit code.
    pub exit_code: Option<i32>,
    /// Whether failures of this class are tried again.
    pub infrastructure: bool,
}
