//! A node with everything resolved: scripts, environment, probes, outputs. Pure data. The same
//! rendering makes it twice: with symbolic addresses and paths for the key (so that a host's
//! address or a port never enters it) and with real ones for the run.

use std::collections::BTreeMap;

use super::model::Health;

/// How one knows that a process is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// GET of this URL answers 200.
    Http(String),
    /// A connection to `host:port` is accepted.
    Tcp(String),
    /// Something listens on this port of the process's host, seen without connecting.
    Listen(String),
    /// This file exists on the host.
    File(String),
    /// A line of the log matches this regular expression.
    Log(String),
    /// The process is alive.
    Alive,
}

/// Readiness of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    /// The sign.
    pub probe: Probe,
    /// Limit in seconds.
    pub within_s: f64,
    /// A log line that matches one of these fails the start at once.
    pub fail_on_log: Vec<String>,
}

/// A long-lived process, rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceAction {
    /// Name in the rule.
    pub name: String,
    /// Role whose host it runs on.
    pub role: String,
    /// The whole script.
    pub script: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Readiness.
    pub ready: Ready,
    /// Port names and preferred numbers.
    pub ports: BTreeMap<String, u16>,
    /// Names of services that must be ready first.
    pub after: Vec<String>,
    /// GPUs it holds on its host while it lives.
    pub gpus: u32,
    /// Seconds between the polite and the hard end.
    pub stop_grace_s: f64,
    /// How it is watched while it is used.
    pub health: Health,
    /// What holds of its host when nothing of it is there.
    pub released: Option<Released>,
}

/// What holds of a host on which nothing of a service is, rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct Released {
    /// The whole script: run until it succeeds.
    pub script: String,
    /// Limit in seconds.
    pub within_s: f64,
}

/// One script of a node, rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct StepAction {
    /// Name in the rule.
    pub name: String,
    /// Role whose host it runs on; `None` beside `doe` itself.
    pub role: Option<String>,
    /// The whole script.
    pub script: String,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Limit in seconds.
    pub timeout_s: f64,
    /// Steps of one gang run together.
    pub gang: Option<String>,
    /// Members that must be ready first.
    pub after: Vec<String>,
    /// When it counts as ready for the others.
    pub ready: Option<Ready>,
    /// Port names and preferred numbers.
    pub ports: BTreeMap<String, u16>,
}

/// A file that must exist afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputAction {
    /// Name in the rule.
    pub name: String,
    /// File name inside the node's folder.
    pub path: String,
    /// Role whose host holds it; `None` beside `doe` itself.
    pub role: Option<String>,
    /// Value of the document's `schema` field.
    pub schema: Option<String>,
}

/// What a role asks of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// GPUs taken by its services.
    pub gpus: u32,
    /// Whether the host is taken whole while the node runs.
    pub exclusive: bool,
}

/// A node with everything resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// Services, in an order in which `after` points backwards.
    pub services: Vec<ServiceAction>,
    /// Steps in order; neighbours of the same gang run together.
    pub steps: Vec<StepAction>,
    /// Outputs by name order.
    pub outputs: Vec<OutputAction>,
    /// Demands by role.
    pub roles: BTreeMap<String, Demand>,
}

/// Where a role is, for rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleBinding {
    /// Host name.
    pub host: String,
    /// Address that other hosts reach it at.
    pub ip: String,
}

/// Addresses and paths for one rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// For the key: `@prefill.ip@`, `@service.decode.port.http@`, `@out.result@`.
    Symbolic,
    /// For the run.
    Real(RealBinding),
}

/// Real addresses and paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RealBinding {
    /// Where each role is.
    pub roles: BTreeMap<String, RoleBinding>,
    /// `(service or step name, port name)` to number.
    pub ports: BTreeMap<(String, String), u16>,
    /// The node's own folder, on every host the same.
    pub work: String,
    /// JSON file that lists the inputs of an analysis.
    pub inputs: String,
    /// A token that names this execution, for instruments that label their requests.
    pub session: String,
    /// How to call `doe` on the host.
    pub doe: String,
}
