//! A workspace after loading: plans expanded into patterns, every setting with its value, its
//! source and its place. A `Workspace` that exists has passed every check that needs no store and
//! no cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use doe_cache::Value;
use doe_cache::remote::Target;

pub use super::reach_slurm::{DriverTable, SlurmTable};
use crate::error::{Diagnostic, Site};
use crate::label::Label;
use crate::rule::Expr;
use crate::rule::model::{Rule, RuleId};
use crate::rule::retry::RetryPolicy;

pub use super::monitor::{Monitor, SampleTime};
pub use super::probing::{HostFacts, Probing};
pub use super::secrets::Secrets;
pub use super::uses::{Token, Uses};
pub use super::values::Settings;

/// Everything that was read.
#[derive(Debug)]
pub struct Workspace {
    /// Folder with `doe.toml`.
    pub root: PathBuf,
    /// Folder of the store: `.doe` unless the file says otherwise.
    pub state_dir: PathBuf,
    /// How long what runs outlives a `doe` that was killed, for the next build to go on with it.
    pub survive: Duration,
    /// Rules by id.
    pub rules: BTreeMap<RuleId, Arc<Rule>>,
    /// Plans by package.
    pub plans: BTreeMap<String, Plan>,
    /// The mirror of the store, when there is one.
    pub remote: Option<Target>,
    /// Platforms by name; `sim` always exists.
    pub platforms: BTreeMap<String, Platform>,
    /// The platform used when nobody names one.
    pub default_platform: String,
    /// Findings that refuse nothing.
    pub warnings: Vec<Diagnostic>,
}

/// One campaign.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `phase2`, or `a/b`.
    pub package: String,
    /// For people.
    pub title: String,
    /// Layers in file order.
    pub layers: Vec<Layer>,
    /// Patterns in expansion order: file order, matrix keys in file order, the last fastest.
    pub patterns: Vec<Pattern>,
    /// Conditions that bring ad-hoc patterns into a run.
    pub followups: Vec<Followup>,
    /// Pairs of layers that are compared.
    pub compares: Vec<Compare>,
    /// What its hosts must be.
    pub requires: Vec<HostClaim>,
}

/// What a plan says of a host: `gpu_count = ">= 4"`.
#[derive(Debug, Clone, PartialEq)]
pub struct HostClaim {
    /// Only of the host of this role.
    pub role: Option<String>,
    /// Name of the fact.
    pub fact: String,
    /// As written.
    pub text: String,
    /// Where.
    pub site: Site,
}

impl Plan {
    /// The layers that a short name could mean, whatever its case: both `L2-EFA` and `L2-TCP` for
    /// `l2`. One that is the id or the alias of a layer needs no asking.
    pub fn layers_called(&self, short: &str) -> Vec<&str> {
        let layers = self.layers.iter();
        let called = layers
            .filter(|layer| (layer.short()).is_some_and(|own| own.eq_ignore_ascii_case(short)));
        called.map(|layer| layer.label.name()).collect()
    }
}

/// An ordered group of patterns.
#[derive(Debug, Clone)]
pub struct Layer {
    /// `//phase2:L2-EFA`.
    pub label: Label,
    /// `L2`, when no other layer of the plan has the same.
    pub alias: Option<String>,
    /// For people.
    pub title: String,
    /// Whether its patterns are left out of `:all`.
    pub adhoc: bool,
    /// Where it is defined.
    pub site: Site,
}

impl Layer {
    /// The part of the id before its first `-`, which may be that of other layers too.
    pub fn short(&self) -> Option<&str> {
        super::alias::short(self.label.name())
    }
}

/// Who set a value; later ones win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The rule's default.
    Default,
    /// `[settings]` of the plan.
    Plan,
    /// `settings` of the layer.
    Layer,
    /// `[[layer.override]]` whose condition held.
    Override,
    /// The pattern's own settings or its matrix cell.
    Pattern,
    /// `--set` on the command line.
    CommandLine,
}

/// A value with its history.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The value, checked against the parameter's type.
    pub value: Value,
    /// Who set it.
    pub source: Source,
    /// Where; `None` for the command line.
    pub site: Option<Site>,
}

/// One point to measure. What the cells of a matrix have in common (settings, edges, expectations,
/// tags) is shared between them, so that a campaign of 100,000 patterns fits in memory.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// `//phase2:p2-efa-4k-c1`; of a further replicate `//phase2:p2-efa-4k-c1@2`.
    pub label: Label,
    /// Which replicate it is, from 1.
    pub replicate: u32,
    /// What is said of its replicates.
    pub repeats: Arc<Repeats>,
    /// Index into the plan's layers.
    pub layer: usize,
    /// For people.
    pub title: Option<Arc<str>>,
    /// How it is measured.
    pub rule: Arc<Rule>,
    /// Exactly the rule's parameters.
    pub settings: Settings,
    /// Names of settings that its matrix varies, in file order.
    pub factors: Arc<[Arc<str>]>,
    /// Data edges: patterns whose outputs this one reads, sorted, without duplicates.
    pub needs: Arc<[Label]>,
    /// Patterns that must have succeeded and met their expectations first, sorted, without
    /// duplicates.
    pub gate: Arc<[Label]>,
    /// What the numbers should be.
    pub expect: Arc<[Expectation]>,
    /// The class of the failure that is its result, when it is expected to fail.
    pub expect_class: Option<Arc<str>>,
    /// How often, and after which pauses, what the infrastructure spoiled is tried again.
    pub retry: Arc<RetryPolicy>,
    /// What it takes of a platform's tokens and links while it runs.
    pub uses: Arc<Uses>,
    /// For `#tag`: the plan's, the layer's and its own.
    pub tags: Arc<BTreeSet<String>>,
    /// Left out of `:all`.
    pub adhoc: bool,
    /// Seconds it is expected to take, when the plan says so.
    pub estimate_s: Option<f64>,
    /// Where it is defined (its own entry or its layer's matrix).
    pub site: Site,
}

/// In which order patterns run, and when there are enough replicates of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Repeats {
    /// Whether the order is drawn.
    pub random: bool,
    /// What it is drawn with; every run draws its own when nobody says.
    pub seed: Option<u64>,
    /// When there are enough replicates.
    pub stop: Option<StopRule>,
    /// Whether it is the plan's reference, measured again between the others.
    pub reference: Option<Reference>,
}

/// A pattern that is measured again and again, to see what drifts.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// After at most so many others.
    pub every: u32,
    /// The metric that is held against the first one's.
    pub metric: String,
    /// How far it may be from it, as a share of it.
    pub within: f64,
    /// Where it is said.
    pub site: Site,
}

/// Replicates go on until the mean of a metric is known well enough.
#[derive(Debug, Clone, PartialEq)]
pub struct StopRule {
    /// The metric.
    pub metric: String,
    /// Half the width of the mean's interval, as a share of the mean.
    pub relative_half_width: f64,
    /// Confidence of that interval.
    pub confidence: f64,
    /// Least replicates.
    pub min: u32,
    /// Most replicates.
    pub max: u32,
}

/// What a metric is held against.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// Name of a metric of the rule (or of a text field that the rule offers as a metric).
    pub metric: String,
    /// The condition.
    pub condition: Condition,
    /// As written: `30..40`, `>= 1`, `PHB or NODE`.
    pub text: String,
    /// Where.
    pub site: Site,
}

/// A parsed expectation.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// `30..40`, both ends included.
    Range {
        /// Least.
        low: f64,
        /// Greatest.
        high: f64,
    },
    /// `< x`.
    Less(f64),
    /// `<= x`.
    AtMost(f64),
    /// `> x`.
    Greater(f64),
    /// `>= x`.
    AtLeast(f64),
    /// A number: equal.
    Equal(f64),
    /// `PHB or NODE`, or one text.
    OneOf(Vec<String>),
}

/// `[[followup]]`.
#[derive(Debug, Clone)]
pub struct Followup {
    /// `tpot-apart`; `followup-2` for the second of a plan when it has no name of its own.
    pub id: String,
    /// Labels of the patterns it can bring in, in file order.
    pub patterns: Vec<Label>,
    /// The condition.
    pub when: Expr,
    /// Which results it is held against.
    pub over: Over,
    /// Seconds it may spend.
    pub budget_s: Option<f64>,
    /// Where.
    pub site: Site,
}

/// Which results the condition of a follow-up is held against.
#[derive(Debug, Clone)]
pub enum Over {
    /// Each finished pattern by itself.
    Each,
    /// The pairs of a comparison.
    Pairs {
        /// `CMP-03`.
        compare: String,
        /// What the condition calls each side, in the order of `between`, and its layer.
        sides: Vec<(String, Label)>,
    },
}

/// `[[compare]]`: cells of two layers that are paired by some settings.
#[derive(Debug, Clone)]
pub struct Compare {
    /// `CMP-03`.
    pub id: String,
    /// For people.
    pub title: String,
    /// Labels of the layers.
    pub between: Vec<Label>,
    /// Settings whose equality pairs two patterns.
    pub by: Vec<String>,
    /// Settings in which a pair may differ, beside `by` and the rules' own `compare_only_on`.
    pub only_on: Vec<String>,
    /// The pairs: one group for every combination of `by` that at least two layers have, in the
    /// order of the first layer's patterns.
    pub groups: Vec<CompareGroup>,
    /// Where.
    pub site: Site,
}

/// Patterns of a comparison that agree in `by`.
#[derive(Debug, Clone, PartialEq)]
pub struct CompareGroup {
    /// The values of `by`, in its order.
    pub key: Vec<Value>,
    /// The members, in the order of `between`; a layer may have none or several.
    pub members: Vec<Label>,
}

/// Where nodes run.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Name in `doe.toml`.
    pub name: String,
    /// `local`, `ssh`, `slurm` or `ssm`.
    pub executor: String,
    /// Whether its tools are simulated; every record made there says so.
    pub simulated: bool,
    /// Hosts by name.
    pub hosts: BTreeMap<String, Host>,
    /// Role name to host name; `"*"` is the fallback.
    pub roles: BTreeMap<String, String>,
    /// Facts that enter the keys: instance type, GPU, driver, versions.
    pub facts: BTreeMap<String, Value>,
    /// Things of which it has only so many, links between hosts included, by name.
    pub tokens: BTreeMap<String, Token>,
    /// Where each fact is declared.
    pub fact_sites: BTreeMap<String, Site>,
    /// How its hosts are looked at before anything runs, when they are.
    pub probing: Option<Probing>,
    /// What runs beside its nodes.
    pub monitors: Vec<Monitor>,
    /// Whether service ports are handed out (loopback) rather than taken as the rule names them.
    pub dynamic_ports: bool,
    /// What an hour of one host costs, when the workspace says so.
    pub cost_per_hour: Option<Price>,
    /// Options of the simulation, when it is one: overrides of the simulator's own defaults.
    pub sim: BTreeMap<String, Value>,
    /// Environment given to every script.
    pub env: BTreeMap<String, String>,
    /// What scripts with a role are given beside it, and nothing keeps.
    pub secrets: Secrets,
    /// How its hosts are reached by ssh.
    pub ssh: SshTable,
    /// How its instances are reached through AWS Systems Manager.
    pub ssm: SsmTable,
    /// How its nodes are had from Slurm.
    pub slurm: SlurmTable,
}

/// The table `ssh` of a platform. What is not said is as OpenSSH's own configuration says.
#[derive(Debug, Clone, PartialEq)]
pub struct SshTable {
    /// User to log in as.
    pub user: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Another configuration file of OpenSSH.
    pub config: Option<String>,
    /// File with the private key.
    pub identity: Option<String>,
    /// File with the hosts' keys.
    pub known_hosts: Option<String>,
    /// Hosts to go through.
    pub jump: Option<String>,
    /// Folder on every host; `%w` stands for the workspace.
    pub root: String,
    /// How long a host that does not answer is waited for.
    pub patience_s: f64,
    /// Folders put in front of the usual search path.
    pub path: Vec<String>,
    /// The `doe` program that is shipped to the hosts, when it is not this one.
    pub doe: Option<String>,
}

impl Default for SshTable {
    fn default() -> Self {
        Self {
            user: None,
            port: None,
            config: None,
            identity: None,
            known_hosts: None,
            jump: None,
            root: super::reach::ROOT.to_owned(),
            patience_s: 300.0,
            path: Vec::new(),
            doe: None,
        }
    }
}

/// The table `ssm` of a platform.
#[derive(Debug, Clone, PartialEq)]
pub struct SsmTable {
    /// Region; else that of the environment or the profile.
    pub region: Option<String>,
    /// Another server than AWS for Systems Manager.
    pub endpoint: Option<String>,
    /// Another server than AWS for S3.
    pub s3_endpoint: Option<String>,
    /// Profile whose credentials are taken.
    pub profile: Option<String>,
    /// File with profiles, when it is not the usual one.
    pub credentials: Option<String>,
    /// Where results and files go through.
    pub bucket: Option<doe_cache::remote::Place>,
    /// Tag of an instance whose value is its host's name.
    pub tag: Option<String>,
    /// Document that runs a shell script, when it is not `AWS-RunShellScript`.
    pub document: Option<String>,
    /// Folder on every host; `%w` stands for the workspace.
    pub root: String,
    /// How long a host or a service that does not answer is waited for.
    pub patience_s: f64,
    /// Folders put in front of the usual search path.
    pub path: Vec<String>,
    /// The `doe` program that is shipped to the hosts, when it is not this one.
    pub doe: Option<String>,
}

impl Default for SsmTable {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            s3_endpoint: None,
            profile: None,
            credentials: None,
            bucket: None,
            tag: None,
            document: None,
            root: super::reach::ROOT.to_owned(),
            patience_s: 300.0,
            path: Vec::new(),
            doe: None,
        }
    }
}

/// An amount of money.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    /// How much.
    pub amount: f64,
    /// Of what, as it is to be printed: `USD`.
    pub currency: String,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Host {
    /// Name.
    pub name: String,
    /// Address that other hosts reach it at.
    pub address: String,
    /// Number of GPUs.
    pub gpus: u32,
    /// What ssh calls it, when that is not its address.
    pub ssh: Option<String>,
    /// Its instance, when it is one of AWS.
    pub instance: Option<String>,
}
