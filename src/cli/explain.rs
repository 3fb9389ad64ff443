//! `doe explain`: why a pattern would run, down to the field, its old and new value and the line
//! it came from; through the chain when the cause lies upstream. It walks the manifests that make
//! the keys, so it cannot disagree with them.

use clap::Args;
use doe_cache::{Change, Class, Entry, Manifest};
use serde_json::json;

use super::args::{Global, Targets};
use super::out::Out;
use super::plan::{Takes, needed};
use super::session;
use crate::engine::decide::{Decider, Decision, Keyed, Why};
use crate::engine::followup;
use crate::error::Result;
use crate::graph::NodeId;

/// Say why a pattern would run again, field by field
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe explain //phase2:p2-efa-4k-c1\n  doe explain //phase2:L3 --settings"
)]
pub struct ExplainArgs {
    /// What to explain.
    #[command(flatten)]
    pub targets: Targets,
    /// Also print every setting with its value and the place it came from
    #[arg(long)]
    pub settings: bool,
    /// Also print what would be executed, rendered
    #[arg(long)]
    pub action: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &ExplainArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let platform = session::platform(global, &workspace)?;
    super::facts::tell_age(out, platform);
    let decider = session::decider(&graph, platform, &store)?;
    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    let plan = decider.plan(&nodes)?;
    for &node in &nodes {
        let decision = plan.iter().find(|(n, _)| *n == node).map(|(_, d)| d);
        let Some(decision) = decision else { continue };
        if out.json {
            as_json(out, &decider, node, decision, &plan)?;
        } else {
            as_text(out, &decider, node, decision, &plan)?;
            exploratory(out, &decider, node)?;
            let takes = Takes::of(&decider, node);
            if !takes.is_empty() {
                out.line(format!("  takes {takes} while it runs (in no key)"))?;
            }
            if args.settings {
                settings(out, &decider, node)?;
            }
            if args.action {
                action(out, &decider, node)?;
            }
        }
    }
    Ok(0)
}

fn as_text(
    out: &mut Out,
    decider: &Decider<'_>,
    node: NodeId,
    decision: &Decision,
    plan: &[(NodeId, Decision)],
) -> Result<()> {
    let label = decider.graph().label(node);
    match decision {
        Decision::Reuse { record, .. } if decision.is_read_anew() => {
            let verdict = out.paint("33", "is read anew");
            out.line(format!(
                "{label} {verdict}: the execution of record {record} stands, \
                 a build judges its numbers as they are defined now"
            ))?;
        }
        Decision::Reuse { record, .. } => {
            let verdict = out.paint("32", "is up to date");
            out.line(format!("{label} {verdict}: record {record} stands for it"))?;
        }
        Decision::Refused { record, why, .. } => {
            let verdict = out.paint("31", "is invalid");
            out.line(format!("{label} {verdict}: {why}"))?;
            out.line(format!(
                "  the execution of record {record} stands, and its numbers were read anew; \
                 `--rerun` executes it again"
            ))?;
        }
        Decision::Blocked { because } => {
            let verdict = out.paint("31", "is blocked");
            out.line(format!("{label} {verdict}: {}", needed(decider, because)))?;
        }
        Decision::Enough { why } => out.line(format!("{label} is not needed: {why}"))?,
        Decision::Run { why, keyed } => {
            let verdict = out.paint("33", "runs");
            match why {
                Why::Changed(changes) => {
                    out.line(format!("{label} {verdict}, because it changed:"))?;
                    for change in changes {
                        field(out, change, "  ")?;
                    }
                    rendered(out, decider, node, keyed)?;
                }
                other => out.line(format!("{label} {verdict}: {other}"))?,
            }
        }
        Decision::MayRun { .. } => {
            let verdict = out.paint("36", "may run");
            out.line(format!(
                "{label} {verdict}: it reads the outputs of patterns that run"
            ))?;
            for (root, why) in roots(decider, node, plan) {
                out.line(format!("  {} runs: {why}", decider.graph().label(root)))?;
            }
        }
    }
    Ok(())
}

/// What an ad-hoc pattern owes its being to: the follow-up that its last record names, else those
/// that may bring it in.
fn exploratory(out: &mut Out, decider: &Decider<'_>, node: NodeId) -> Result<()> {
    let graph = decider.graph();
    if !graph.pattern(node).adhoc {
        return Ok(());
    }
    let label = graph.label(node);
    if let Some(cause) = decider.last(label).as_ref().and_then(followup::cause_in) {
        return out.line(format!("  exploratory, begun by {cause}"));
    }
    out.line("  exploratory: not part of the planned campaign")?;
    for plan in graph.workspace().plans.values() {
        let bring = plan
            .followups
            .iter()
            .filter(|up| up.patterns.contains(label));
        for up in bring {
            let (id, when) = (&up.id, &up.when.text().text);
            let package = &plan.package;
            out.line(format!("  //{package}#{id} brings it in if `{when}`"))?;
        }
    }
    Ok(())
}

/// The changed fields of what would be executed: which script, which flag.
fn rendered(out: &mut Out, decider: &Decider<'_>, node: NodeId, keyed: &Keyed) -> Result<()> {
    let changes = action_changes(decider, node, keyed);
    if !changes.is_empty() {
        out.line("  and so does what would be executed:")?;
    }
    for change in &changes {
        match (&change.old, &change.new) {
            (Some(Entry { value: old, .. }), Some(Entry { value: new, .. }))
                if change.path.ends_with(".script") =>
            {
                let new_entry = change.new.as_ref().and_then(|e| e.origin.as_deref());
                let origin = new_entry.map_or(String::new(), |o| format!("  ({o})"));
                out.line(format!("    {}{origin}", change.path))?;
                lines(out, old.as_str().unwrap_or(""), new.as_str().unwrap_or(""))?;
            }
            _ => field(out, change, "    ")?,
        }
    }
    Ok(())
}

/// What the label's last record executed against what would be executed now.
fn action_changes(decider: &Decider<'_>, node: NodeId, keyed: &Keyed) -> Vec<Change> {
    let last = decider.last(decider.graph().label(node));
    let (Some((_, new)), Some(last)) = (&keyed.action, last) else {
        return Vec::new();
    };
    Manifest::diff(&last.action_manifest, new)
        .into_iter()
        .filter(|c| c.class == Class::Result && !c.path.starts_with("need."))
        .collect()
}

/// The lines (split at flags too, as one command is often one line) that differ.
fn lines(out: &mut Out, old: &str, new: &str) -> Result<()> {
    let pieces = |text: &str| -> Vec<String> {
        text.replace(" --", "\n--")
            .lines()
            .map(|l| l.trim().trim_end_matches('\\').trim().to_string())
            .filter(|l| !l.is_empty())
            .collect()
    };
    let (old, new) = (pieces(old), pieces(new));
    for line in old.iter().filter(|l| !new.contains(l)) {
        out.line(out.paint("31", &format!("      - {line}")))?;
    }
    for line in new.iter().filter(|l| !old.contains(l)) {
        out.line(out.paint("32", &format!("      + {line}")))?;
    }
    Ok(())
}

fn field(out: &mut Out, change: &Change, indent: &str) -> Result<()> {
    let show = |entry: &Option<Entry>| match entry {
        Some(entry) => {
            let origin = entry.origin.as_deref().map(|o| format!("  ({o})"));
            format!("{}{}", entry.value, origin.unwrap_or_default())
        }
        None => "(absent)".to_string(),
    };
    out.line(format!("{indent}{}", change.path))?;
    out.line(out.paint("31", &format!("{indent}  - {}", show(&change.old))))?;
    out.line(out.paint("32", &format!("{indent}  + {}", show(&change.new))))
}

fn settings(out: &mut Out, decider: &Decider<'_>, node: NodeId) -> Result<()> {
    let mut table = super::out::table(["setting", "value", "set by", "at"]);
    for (name, setting) in &decider.graph().pattern(node).settings {
        let source = format!("{:?}", setting.source).to_lowercase();
        let site = setting.site.as_ref().map_or(String::new(), |s| s.short());
        table.add_row([name.to_string(), setting.value.to_string(), source, site]);
    }
    out.line(table)
}

fn action(out: &mut Out, decider: &Decider<'_>, node: NodeId) -> Result<()> {
    let pattern = decider.graph().pattern(node);
    let settings = pattern.settings.plain();
    let action = crate::rule::render::render(
        &pattern.rule,
        &settings,
        &crate::rule::action::Binding::Symbolic,
    )?;
    let scripts = action
        .services
        .iter()
        .map(|s| {
            (
                format!("service {} on {}", s.name, s.role),
                &s.env,
                &s.script,
            )
        })
        .chain(action.steps.iter().map(|s| {
            let role = s.role.as_deref().unwrap_or("doe's own host");
            (format!("step {} on {role}", s.name), &s.env, &s.script)
        }));
    for (title, env, script) in scripts {
        out.line(format!("-- {title}"))?;
        for (name, value) in env {
            out.line(format!("   {name}={value}"))?;
        }
        out.line(script.trim_end())?;
    }
    Ok(())
}

/// The nodes at the start of the chain, each with its own reason.
fn roots<'p>(
    decider: &Decider<'_>,
    node: NodeId,
    plan: &'p [(NodeId, Decision)],
) -> Vec<(NodeId, &'p Why)> {
    let above = decider.graph().closure(&[node], false);
    plan.iter()
        .filter(|(n, _)| above.contains(n))
        .filter_map(|(n, d)| match d {
            Decision::Run { why, .. } => Some((*n, why)),
            _ => None,
        })
        .collect()
}

fn as_json(
    out: &mut Out,
    decider: &Decider<'_>,
    node: NodeId,
    decision: &Decision,
    plan: &[(NodeId, Decision)],
) -> Result<()> {
    let label = decider.graph().label(node).to_string();
    let changes = |why: &Why| match why {
        Why::Changed(changes) => json!(changes),
        _ => json!([]),
    };
    let pattern = decider.graph().pattern(node);
    let cause = match pattern.adhoc {
        true => decider.last(&pattern.label),
        false => None,
    };
    let mut document = match decision {
        Decision::Reuse { record, hit, .. } => {
            json!({"label": label, "decision": "reuse", "record": record.to_string(), "hit": hit})
        }
        Decision::Refused { record, why, .. } => json!({
            "label": label, "decision": "refused", "record": record.to_string(), "reason": why,
        }),
        Decision::Blocked { because } => json!({
            "label": label, "decision": "blocked", "reason": needed(decider, because),
        }),
        Decision::Enough { why } => {
            json!({"label": label, "decision": "enough", "reason": why})
        }
        Decision::Run { why, keyed } => json!({
            "label": label, "decision": "run", "reason": why.to_string(), "changes": changes(why),
            "action_changes": action_changes(decider, node, keyed),
            "spec_key": keyed.spec.key().to_string(),
            "action_key": keyed.action.as_ref().map(|(_, m)| m.key().to_string()),
        }),
        Decision::MayRun { .. } => json!({
            "label": label, "decision": "may_run",
            "roots": roots(decider, node, plan).into_iter().map(|(root, why)| json!({
                "label": decider.graph().label(root).to_string(),
                "reason": why.to_string(), "changes": changes(why),
            })).collect::<Vec<_>>(),
        }),
    };
    if let (Some(object), true) = (document.as_object_mut(), pattern.adhoc) {
        object.insert("exploratory".into(), true.into());
        let cause = cause.as_ref().and_then(followup::cause_in);
        object.insert("followup".into(), json!(cause));
    }
    let Takes(takes) = Takes::of(decider, node);
    if let (Some(object), false) = (document.as_object_mut(), takes.is_empty()) {
        object.insert("uses".into(), json!(takes));
    }
    out.json(&document)
}
