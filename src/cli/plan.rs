//! `doe plan`: what `doe build` would do, by the same judge, without doing it.

use clap::Args;
use serde_json::json;

use super::args::{Global, Targets};
use super::out::Out;
use super::session;
use crate::engine::decide::{Decider, Decision, Hit};
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
    /// Exit with 6 when anything would run
    #[arg(long)]
    pub up_to_date: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &PlanArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let mut decider = session::decider(&graph, session::platform(global, &workspace)?, &store)?;
    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    session::warn(out, &workspace, &graph, &nodes);
    if args.rerun {
        decider = decider.rerun(nodes.iter().copied());
    }
    session::look_into_mirror(global, &workspace, &mut decider, &store, &nodes, out)?;
    let plan = decider.plan(&nodes)?;
    show(out, &decider, &plan)?;
    let runs = plan
        .iter()
        .any(|(_, d)| !matches!(d, Decision::Reuse { .. }));
    Ok(if args.up_to_date && runs { 6 } else { 0 })
}

/// Prints a plan; also what `doe build --dry-run` prints.
pub fn show(out: &mut Out, decider: &Decider<'_>, plan: &[(NodeId, Decision)]) -> Result<()> {
    let (mut run, mut may_run, mut reuse) = (Vec::new(), Vec::new(), Vec::new());
    let mut forecast = Forecast::default();
    for (node, decision) in plan {
        let label = decider.graph().label(*node).to_string();
        match decision {
            Decision::Run { why, .. } => {
                forecast.add(duration_s(decider, *node), true);
                run.push((label, why.to_string()));
            }
            Decision::MayRun { because } => {
                forecast.add(duration_s(decider, *node), false);
                may_run.push((label, waiting(decider, because)));
            }
            Decision::Reuse { hit, record, .. } => {
                let how = match hit {
                    Hit::Spec => "up to date",
                    Hit::Action => "what would be executed has not changed",
                    Hit::Rejudge => "the execution stands, its numbers are read anew",
                };
                reuse.push((label, format!("{how} (record {})", record.short())));
            }
        }
    }
    if out.json {
        let items = |list: &[(String, String)]| -> Vec<serde_json::Value> {
            list.iter()
                .map(|(label, reason)| json!({"label": label, "reason": reason}))
                .collect()
        };
        return out.json(&json!({
            "run": items(&run), "may_run": items(&may_run), "reuse": items(&reuse),
            "estimate": {
                "run_s": forecast.sure_s, "may_run_s": forecast.perhaps_s, "unknown": forecast.unknown,
            },
        }));
    }
    for (title, color, list) in [
        ("run", "33", &run),
        ("may run", "36", &may_run),
        ("reuse", "32", &reuse),
    ] {
        if list.is_empty() {
            continue;
        }
        out.line(out.paint(color, &format!("{title} ({})", list.len())))?;
        let width = list.iter().map(|(l, _)| l.len()).max().unwrap_or(0);
        for (label, reason) in list {
            out.line(format!("  {label:width$}  {reason}"))?;
        }
    }
    out.line(format!(
        "{} to run, {} may run, {} reused; {}",
        run.len(),
        may_run.len(),
        reuse.len(),
        forecast
    ))
}

fn waiting(decider: &Decider<'_>, because: &[NodeId]) -> String {
    let first = decider.graph().label(because[0]);
    match because.len() {
        1 => format!("if the output of {first} changes"),
        n => format!("if the output of {first} or of {} more changes", n - 1),
    }
}

/// How long a node is expected to take: its last successful run, else the plan's word.
pub fn duration_s(decider: &Decider<'_>, node: NodeId) -> Option<f64> {
    let pattern = decider.graph().pattern(node);
    let last = decider.snapshot().current(&pattern.label.to_string());
    match last {
        // A simulated run says nothing about a real one, nor the other way round.
        Some(last) if last.simulated == decider.platform().simulated => {
            Some(last.duration_ms as f64 / 1000.0)
        }
        _ if decider.platform().simulated => None,
        _ => pattern.estimate_s,
    }
}

#[derive(Default)]
struct Forecast {
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
