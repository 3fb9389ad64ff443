//! `doe check`: everything that can be known without a cluster, each finding with its place.

use clap::Args;
use serde_json::json;

use super::args::{Global, Targets};
use super::out::Out;
use super::{diagnose, session};
use crate::engine::decide::Decision;
use crate::engine::{facts, instruments, preflight};
use crate::error::{Diagnostic, Error, Kind, Result, Severity};
use crate::graph::{Graph, NodeId};
use crate::label::{Selector, Target};

/// Check plans, rules and the graph without a cluster
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe check //...\n  doe check //phase2:all --up-to-date --json"
)]
pub struct CheckArgs {
    /// What to check.
    #[command(flatten)]
    pub targets: Targets,
    /// Also fail (exit 6) when anything would run or be read anew, or has a result that is refused
    #[arg(long)]
    pub up_to_date: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &CheckArgs, out: &mut Out) -> Result<u8> {
    let mut patterns = 0;
    let mut loaded = true;
    let mut found = match session::workspace(global) {
        Ok(workspace) => {
            let mut found = workspace.warnings.clone();
            match Graph::build(&workspace) {
                Err(cycles) => found.extend(cycles),
                Ok(graph) => {
                    let platform = session::platform(global, &workspace)?;
                    let store = session::store(&workspace)?;
                    let decider = session::decider(&graph, platform, &store)?;
                    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
                    patterns = nodes.len();
                    found.extend(preflight::check(&graph, &nodes, platform));
                    found.extend(facts::check::check(&graph, &nodes, platform));
                    let errors = found.iter().any(|d| d.severity == Severity::Error);
                    if args.up_to_date && !errors {
                        super::facts::tell_age(out, platform);
                        let plan = decider.plan(&nodes)?;
                        let stale = plan
                            .iter()
                            .filter(|(_, decision)| !decision.is_settled())
                            .count();
                        if stale > 0 {
                            return Err(Error::new(
                                Kind::Stale,
                                "not-up-to-date",
                                not_up_to_date(stale, &plan),
                            )
                            .hint("`doe plan` says which and why"));
                        }
                    }
                }
            }
            found
        }
        Err(error) if error.kind == Kind::Plan && !error.diagnostics.is_empty() => {
            loaded = false;
            error.diagnostics
        }
        Err(error) => return Err(error),
    };
    // Where the files make no workspace nothing can be built, whatever was asked for.
    let broken = |d: &Diagnostic| !loaded && d.severity == Severity::Error;
    found.retain(|d| broken(d) || concerns(d, &args.targets.targets));
    let (errors, warnings): (Vec<_>, Vec<_>) =
        found.iter().partition(|d| d.severity == Severity::Error);
    if out.json {
        let list = |of: &[&Diagnostic]| of.iter().map(|d| diagnose::as_json(d)).collect::<Vec<_>>();
        out.json(&json!({"errors": list(&errors), "warnings": list(&warnings)}))?;
    } else {
        for diagnostic in warnings.iter().chain(&errors) {
            let text = diagnose::render(diagnostic, out.color);
            out.line(text)?;
            out.line("")?;
        }
        let verdict = match (errors.len(), warnings.len()) {
            (0, 0) => format!(
                "{} patterns checked, {} instruments known: sound",
                patterns,
                instruments::known().len()
            ),
            (0, n) => format!("{patterns} patterns checked: sound, {n} warnings"),
            (n, w) => format!("{n} errors, {w} warnings"),
        };
        out.line(verdict)?;
    }
    Ok(if errors.is_empty() {
        0
    } else {
        Kind::Plan.exit_code()
    })
}

/// Whether a finding is about something that the targets name. One that names no label may
/// concern anything and is always told.
fn concerns(diagnostic: &Diagnostic, targets: &[Selector]) -> bool {
    let Some(label) = &diagnostic.label else {
        return true;
    };
    let package = label
        .trim_start_matches('/')
        .split(':')
        .next()
        .unwrap_or("");
    targets
        .iter()
        .filter(|s| !s.subtract)
        .any(|s| match &s.target {
            Target::Name(name) => name.package() == package,
            Target::All(name) => **name == *package,
            Target::Below(prefix) => package.starts_with(&**prefix),
            Target::Tag(_) | Target::Failed | Target::Stale => true,
        })
}

fn not_up_to_date(stale: usize, plan: &[(NodeId, Decision)]) -> String {
    let is_refused = |(_, decision): &&(_, Decision)| matches!(decision, Decision::Refused { .. });
    let refused = plan.iter().filter(is_refused).count();
    let is_blocked = |(_, decision): &&(_, Decision)| matches!(decision, Decision::Blocked { .. });
    let blocked = plan.iter().filter(is_blocked).count();
    let anew = plan.iter().filter(|(_, it)| it.is_read_anew()).count();
    let all = plan.len();
    let told = match (stale - refused - blocked - anew, refused) {
        (0, 0) => format!("{anew} of {all} patterns have numbers that are to be read anew"),
        (run, 0) => format!("{run} of {all} patterns would run"),
        (0, refused) => format!("{refused} of {all} patterns have a result that is refused"),
        (run, refused) => {
            format!("{run} of {all} patterns would run, {refused} have a result that is refused")
        }
    };
    let told = match blocked {
        0 => told,
        blocked => format!("{told}, {blocked} need one that is"),
    };
    match anew {
        anew if anew == 0 || anew == stale => told,
        anew => format!("{told}, {anew} have numbers that are to be read anew"),
    }
}
