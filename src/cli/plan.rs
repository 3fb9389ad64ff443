//! `doe plan`: what `doe build` would do, by the same judge, without doing it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use clap::Args;
use doe_cache::{Digest, Store};
use serde_json::json;

mod chain;
mod foreseen;

use chain::Chain;
use foreseen::Foreseen;

use super::args::{Global, Targets};
use super::out::Out;
use super::recall::outline::Outlined;
use super::session;
use crate::engine::decide::{Decider, Decision, Hit};
use crate::engine::followup::Choice;
use crate::engine::forecast::{cost, expected_s};
use crate::engine::recall::{Fate, Outline};
use crate::engine::uses;
use crate::error::Result;
use crate::graph::NodeId;

/// Show what would run, what may run and what is reused, and why
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe plan //phase2:all\n  doe plan //phase2:L3 --set kv_buffer_size=2000000000"
)]
pub struct PlanArgs {
    /// What to plan.
    #[command(flatten)]
    pub targets: Targets,
    /// Plan as if these ran again although their results are stored
    #[arg(long)]
    pub rerun: bool,
    /// Also show the longest chain of patterns that wait for each other, with what each would save
    #[arg(long)]
    pub critical_path: bool,
    /// Leave out what follow-ups would do
    #[arg(long)]
    pub no_followups: bool,
    /// Exit with 6 when anything would run or be read anew, or has a result that is refused
    #[arg(long)]
    pub up_to_date: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &PlanArgs, out: &mut Out) -> Result<u8> {
    let targets = &args.targets.targets;
    let outlined = match args.rerun || args.critical_path {
        true => None,
        false => Outlined::new(global, targets, out),
    };
    // What goes wrong there goes wrong on the long way too, and is told then.
    let replanned = outlined
        .as_ref()
        .and_then(|outlined| outlined.replan().ok()?);
    let runs = match replanned {
        Some((outline, fates)) => {
            let shown = Shown::of_outline(&outline, &fates);
            shown.print(out)?;
            shown.runs()
        }
        None => {
            let workspace = session::workspace(global)?;
            let graph = session::graph(&workspace)?;
            let store = session::store(&workspace)?;
            let platform = session::platform(global, &workspace)?;
            super::facts::tell_age(out, platform);
            let mut decider = session::decider(&graph, platform, &store)?;
            let nodes = session::targets(&graph, targets, &decider, &store)?;
            session::warn(out, &workspace, &graph, &nodes);
            if args.rerun {
                decider = decider.rerun(nodes.iter().copied());
            }
            session::look_into_mirror(global, &workspace, &mut decider, &store, &nodes, out)?;
            let plan = decider.plan(&nodes)?;
            let mut shown = Shown::of(&decider, &plan);
            if !args.no_followups {
                let choice = session::followups(&graph, targets, &nodes, &decider, &store)?;
                shown.foreseen = Foreseen::of(&decider, &store, &choice, &plan)?;
            }
            if args.critical_path {
                shown.chain = Some(Chain::of(&decider, &plan));
            }
            shown.print(out)?;
            if let Some(outlined) = &outlined {
                let records = plan.iter().map(|(node, decision)| match decision {
                    Decision::Reuse {
                        record,
                        hit: Hit::Spec,
                        ..
                    } => Some((*node, *record)),
                    _ => None,
                });
                if let Some(records) = records.collect::<Option<Vec<_>>>() {
                    let outline = outlined.of(&decider, &records);
                    outlined.keep(outline);
                }
            }
            shown.runs()
        }
    };
    Ok(if args.up_to_date && runs { 6 } else { 0 })
}

/// Prints a plan; also what `doe build --dry-run` prints.
pub fn show(
    out: &mut Out,
    decider: &Decider<'_>,
    store: &Store,
    followups: &Choice,
    plan: &[(NodeId, Decision)],
) -> Result<()> {
    let mut shown = Shown::of(decider, plan);
    shown.foreseen = Foreseen::of(decider, store, followups, plan)?;
    shown.print(out)
}

/// A plan as it is shown: label and reason of every node.
#[derive(Default)]
struct Shown<'p> {
    run: Vec<(Cow<'p, str>, String)>,
    may_run: Vec<(Cow<'p, str>, String)>,
    reuse: Vec<(Cow<'p, str>, Reused)>,
    enough: Vec<(Cow<'p, str>, String)>,
    /// Executed, and refused as it is judged now.
    refused: Vec<(Cow<'p, str>, String)>,
    /// Needs what is refused.
    blocked: Vec<(Cow<'p, str>, String)>,
    /// What those take that run or may run.
    takes: Vec<(Cow<'p, str>, Takes)>,
    forecast: Forecast,
    foreseen: Foreseen,
    chain: Option<Chain>,
}

/// Units by token or link.
pub(super) struct Takes(pub(super) BTreeMap<String, u32>);

impl Takes {
    /// What a pattern takes while it runs.
    pub(super) fn of(decider: &Decider<'_>, node: NodeId) -> Self {
        let pattern = decider.graph().pattern(node);
        Self(uses::taken(pattern, decider.platform()).0)
    }

    /// Whether it takes nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Takes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self
            .0
            .iter()
            .map(|(name, count)| format!("{count} of `{name}`"));
        f.write_str(&all.collect::<Vec<_>>().join(", "))
    }
}

/// Why a node is reused.
#[derive(Clone, Copy)]
struct Reused {
    hit: Hit,
    record: Digest,
}

impl std::fmt::Display for Reused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.hit {
            Hit::Spec => "up to date",
            Hit::Action => "what would be executed has not changed",
            Hit::Rejudge => "the execution stands, its numbers are read anew",
        };
        write!(f, "{how} (record {})", self.record.short())
    }
}

impl<'p> Shown<'p> {
    fn of(decider: &Decider<'_>, plan: &[(NodeId, Decision)]) -> Self {
        let mut shown = Self::default();
        let (graph, platform) = (decider.graph(), decider.platform());
        let price = platform.cost_per_hour.as_ref();
        shown.forecast.cost = price.map(|price| Cost {
            sure: 0.0,
            perhaps: 0.0,
            currency: price.currency.clone(),
            simulated: platform.simulated,
        });
        let costs = |node, seconds: Option<f64>| cost(platform, graph.pattern(node), seconds?);
        for (node, decision) in plan {
            let label: Cow<'_, str> = Cow::Owned(decider.graph().label(*node).to_string());
            if decision.may_run() {
                let takes = Takes::of(decider, *node);
                if !takes.is_empty() {
                    shown.takes.push((label.clone(), takes));
                }
            }
            match decision {
                Decision::Run { why, .. } => {
                    let seconds = expected_s(decider, *node);
                    shown.forecast.add(seconds, true);
                    shown.forecast.add_cost(costs(*node, seconds), true);
                    shown.run.push((label, why.to_string()));
                }
                Decision::MayRun { because } => {
                    let seconds = expected_s(decider, *node);
                    shown.forecast.add(seconds, false);
                    shown.forecast.add_cost(costs(*node, seconds), false);
                    let first = decider.graph().label(because[0]).to_string();
                    shown.may_run.push((label, waiting(&first, because.len())));
                }
                Decision::Refused { why, .. } => shown.refused.push((label, why.clone())),
                Decision::Blocked { because } => {
                    shown.blocked.push((label, needed(decider, because)));
                }
                Decision::Enough { why } => shown.enough.push((label, why.clone())),
                Decision::Reuse { hit, record, .. } => {
                    let (hit, record) = (*hit, *record);
                    shown.reuse.push((label, Reused { hit, record }));
                }
            }
        }
        shown
    }

    fn of_outline(outline: &'p Outline, fates: &[Fate]) -> Self {
        let mut shown = Self::default();
        for (at, fate) in fates.iter().enumerate() {
            let label = Cow::Borrowed(outline.label(at));
            match fate {
                Fate::Run(why) => {
                    shown.forecast.add(outline.seconds(at), true);
                    shown.run.push((label, why.to_string()));
                }
                Fate::MayRun(first, count) => {
                    shown.forecast.add(outline.seconds(at), false);
                    let first = outline.label(*first as usize);
                    shown.may_run.push((label, waiting(first, *count)));
                }
                Fate::Reuse(record, hit) => {
                    let (hit, record) = (*hit, *record);
                    shown.reuse.push((label, Reused { hit, record }));
                }
            }
        }
        shown
    }

    /// Whether anything would run, has numbers that are to be read anew, or a result that is refused.
    fn runs(&self) -> bool {
        let nothing = self.run.is_empty() && self.may_run.is_empty() && self.refused.is_empty();
        let read_anew = |(_, reused): &(_, Reused)| reused.hit == Hit::Rejudge;
        !nothing || self.reuse.iter().any(read_anew) || self.foreseen.runs()
    }

    fn print(&self, out: &mut Out) -> Result<()> {
        let forecast = &self.forecast;
        if out.json {
            let mut document = json!({
                "run": items(&self.run), "may_run": items(&self.may_run),
                "reuse": items(&self.reuse),
                "followups": self.foreseen.as_json(),
                "estimate": {
                    "run_s": forecast.sure_s, "may_run_s": forecast.perhaps_s,
                    "unknown": forecast.unknown,
                },
            });
            if let Some(object) = document.as_object_mut() {
                if let Some(cost) = &forecast.cost {
                    object["estimate"]["cost"] = json!({
                        "run": cost.sure, "may_run": cost.perhaps,
                        "currency": cost.currency, "simulated": cost.simulated,
                    });
                }
                if !self.refused.is_empty() {
                    object.insert("refused".into(), items(&self.refused).into());
                }
                if !self.blocked.is_empty() {
                    object.insert("blocked".into(), items(&self.blocked).into());
                }
                if !self.enough.is_empty() {
                    object.insert("enough".into(), items(&self.enough).into());
                }
                if !self.takes.is_empty() {
                    let takes = self.takes.iter();
                    let takes =
                        takes.map(|(label, Takes(taken))| (label.to_string(), json!(taken)));
                    object.insert("uses".into(), takes.collect());
                }
                if let Some(chain) = &self.chain {
                    object.insert("critical_path".into(), chain.as_json());
                }
            }
            return out.json(&document);
        }
        list(out, "run", "33", &self.run)?;
        list(out, "may run", "36", &self.may_run)?;
        self.foreseen.print(out)?;
        list(out, "reuse", "32", &self.reuse)?;
        list(out, "invalid", "31", &self.refused)?;
        list(out, "blocked", "31", &self.blocked)?;
        list(out, "not needed", "2", &self.enough)?;
        list(out, "take tokens and links", "2", &self.takes)?;
        let told = |count: usize, what: &str| match count {
            0 => String::new(),
            count => format!(", {count} {what}"),
        };
        let invalid = told(self.refused.len(), "invalid") + &told(self.blocked.len(), "blocked");
        out.line(format!(
            "{} to run, {} may run, {} reused{invalid}; {}",
            self.run.len(),
            self.may_run.len(),
            self.reuse.len(),
            forecast
        ))?;
        self.foreseen.last_words(out)?;
        match &self.chain {
            Some(chain) => chain.print(out),
            None => Ok(()),
        }
    }
}

fn items<R: std::fmt::Display>(list: &[(Cow<'_, str>, R)]) -> Vec<serde_json::Value> {
    list.iter()
        .map(|(label, reason)| json!({"label": label, "reason": reason.to_string()}))
        .collect()
}

pub(super) fn list<R: std::fmt::Display>(
    out: &mut Out,
    title: &str,
    color: &str,
    list: &[(Cow<'_, str>, R)],
) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    out.line(out.paint(color, &format!("{title} ({})", list.len())))?;
    let width = list.iter().map(|(l, _)| l.len()).max().unwrap_or(0);
    for (label, reason) in list {
        out.line(format_args!("  {label:width$}  {reason}"))?;
    }
    Ok(())
}

pub(super) fn waiting(first: &str, count: usize) -> String {
    match count {
        1 => format!("if the output of {first} changes"),
        n => format!("if the output of {first} or of {} more changes", n - 1),
    }
}

/// Why a build blocks it.
pub(super) fn needed(decider: &Decider<'_>, because: &[NodeId]) -> String {
    let first = decider.graph().label(because[0]);
    let more = match because.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    format!("needs {first}{more}, of which no result may be used")
}

/// What work is expected to cost.
struct Cost {
    sure: f64,
    perhaps: f64,
    currency: String,
    simulated: bool,
}

#[derive(Default)]
struct Forecast {
    cost: Option<Cost>,
    sure_s: f64,
    perhaps_s: f64,
    unknown: usize,
}

impl Forecast {
    fn add(&mut self, seconds: Option<f64>, sure: bool) {
        match seconds {
            Some(seconds) if sure => self.sure_s += seconds,
            Some(seconds) => self.perhaps_s += seconds,
            None => self.unknown += 1,
        }
    }
}

impl Forecast {
    fn add_cost(&mut self, amount: Option<f64>, sure: bool) {
        if let (Some(cost), Some(amount)) = (&mut self.cost, amount) {
            *(if sure {
                &mut cost.sure
            } else {
                &mut cost.perhaps
            }) += amount;
        }
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, ", {:.2} {}", self.sure, self.currency)?;
        if self.perhaps > 0.0 {
            write!(f, " and perhaps {:.2} more", self.perhaps)?;
        }
        match self.simulated {
            true => f.write_str(" (of simulated time)"),
            false => Ok(()),
        }
    }
}

impl std::fmt::Display for Forecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.unknown > 0 && self.sure_s + self.perhaps_s == 0.0 {
            return f.write_str("how long is not known yet: nothing like it ran here");
        }
        write!(f, "about {} of work", people(self.sure_s))?;
        if self.perhaps_s > 0.0 {
            write!(
                f,
                ", {} more if all that may run does",
                people(self.perhaps_s)
            )?;
        }
        if let Some(cost) = &self.cost {
            write!(f, "{cost}")?;
        }
        if self.unknown > 0 {
            write!(f, ", not counting {} whose time is not known", self.unknown)?;
        }
        Ok(())
    }
}

/// Seconds as people say them.
pub fn people(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0 if seconds > 0.0 => "under a second".to_string(),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
