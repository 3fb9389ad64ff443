//! `doe status`: one line a pattern: would it run, what is stored for it, what was the verdict.

use super::args::{Global, Targets};
use super::out::Out;
use super::plan::needed;
use super::session;
use crate::engine::decide::{Decider, Decision, Why};
use crate::engine::followup;
use crate::error::Result;
use crate::graph::NodeId;
use doe_cache::{CriterionStatus, ExecutionStatus, ValidityStatus};
use serde_json::json;

/// Runs the command.
pub fn run(global: &Global, args: &Targets, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let platform = session::platform(global, &workspace)?;
    super::facts::tell_age(out, platform);
    let decider = session::decider(&graph, platform, &store)?;
    let nodes = session::targets(&graph, &args.targets, &decider, &store)?;
    let plan = decider.plan(&nodes)?;
    let states = store.latest_states()?;
    let reasons: std::collections::BTreeMap<String, String> = match store.last_run()? {
        Some(run) => store
            .run_nodes(&run.info.run_id)?
            .into_iter()
            .filter_map(|node| Some((node.label, node.reason?)))
            .collect(),
        None => std::collections::BTreeMap::new(),
    };
    let decisions: std::collections::HashMap<NodeId, &Decision> = plan
        .iter()
        .map(|(node, decision)| (*node, decision))
        .collect();
    let mut rows = Vec::with_capacity(nodes.len());
    for &node in &nodes {
        let Some(decision) = decisions.get(&node) else {
            continue;
        };
        let label = graph.label(node).to_string();
        let blocked = states
            .get(&label)
            .filter(|s| **s == doe_cache::NodeState::Blocked)
            .map(|_| reasons.get(&label).cloned().unwrap_or_default());
        let mut row = row(&decider, node, decision, blocked);
        if let Decision::Reuse { record, .. } = decision {
            // What stands for it, which need not be what was made last.
            let stands = decider.snapshot().record(record);
            row.simulated = stands.is_some_and(|summary| summary.simulated);
            let judged = decider.criterion_of(node, || Ok(store.record(record)?))?;
            row.criterion = word(judged.status);
        }
        if graph.pattern(node).adhoc {
            row.exploratory = true;
            let last = decider.last(graph.label(node));
            row.followup = last.and_then(|last| followup::cause_in(&last).map(str::to_owned));
        }
        rows.push(row);
    }
    if out.json {
        let list: Vec<_> = rows
            .iter()
            .map(|r| json!({"label": r.label, "state": r.state, "detail": r.detail, "criterion": r.criterion, "simulated": r.simulated, "exploratory": r.exploratory, "followup": r.followup}))
            .collect();
        out.json(&list)?;
        return Ok(0);
    }
    let mut table = super::out::table(["label", "state", "criterion", "detail"]);
    for row in &rows {
        let mut detail = row.detail.clone();
        if row.exploratory {
            detail = match &row.followup {
                Some(cause) => format!("exploratory; {detail}; begun by {cause}"),
                None => format!("exploratory; {detail}"),
            };
        }
        if row.simulated {
            detail = format!("simulated; {detail}");
        }
        table.add_row([&row.label, row.state, row.criterion, &detail]);
    }
    out.line(table)?;
    let count = |state: &str| rows.iter().filter(|r| r.state == state).count();
    let summary: Vec<String> = [
        "up to date",
        "stale",
        "waiting",
        "failed",
        "invalid",
        "blocked",
        "never ran",
    ]
    .into_iter()
    .filter(|state| count(state) > 0)
    .map(|state| format!("{} {state}", count(state)))
    .collect();
    out.line(summary.join(", "))?;
    Ok(0)
}

struct Row {
    label: String,
    state: &'static str,
    criterion: &'static str,
    detail: String,
    simulated: bool,
    exploratory: bool,
    followup: Option<String>,
}

fn row(decider: &Decider<'_>, node: NodeId, decision: &Decision, blocked: Option<String>) -> Row {
    let label = decider.graph().label(node).to_string();
    let last = decider.snapshot().latest(&label);
    let refused = last.and_then(|last| match (last.execution, last.validity) {
        (ExecutionStatus::Ok, ValidityStatus::Valid) => None,
        (ExecutionStatus::Ok, _) => Some("invalid"),
        _ => Some("failed"),
    });
    let (state, detail) = match decision {
        Decision::Enough { why } => ("not needed", why.clone()),
        Decision::Refused { record, why, .. } => (
            "invalid",
            format!("{why}; read anew from record {}", record.short()),
        ),
        Decision::Reuse { record, .. } if decision.is_read_anew() => {
            let record = record.short();
            let detail =
                format!("the execution of record {record} stands, its numbers are read anew");
            ("stale", detail)
        }
        Decision::Reuse { record, .. } => ("up to date", format!("record {}", record.short())),
        Decision::Blocked { because } => (
            "blocked",
            blocked.unwrap_or_else(|| needed(decider, because)),
        ),
        Decision::Run { .. } if blocked.is_some() => ("blocked", blocked.unwrap_or_default()),
        Decision::Run { why, .. } => match refused {
            Some(state) => (state, why.to_string()),
            None if last.is_some() || matches!(why, Why::PutAside(_)) => ("stale", why.to_string()),
            None => ("never ran", why.to_string()),
        },
        Decision::MayRun { because } => match blocked {
            Some(reason) => ("blocked", reason),
            None => (
                "waiting",
                format!("for {}", decider.graph().label(because[0])),
            ),
        },
    };
    Row {
        criterion: last.map_or("-", |last| word(last.criterion)),
        simulated: last.is_some_and(|l| l.simulated),
        exploratory: false,
        followup: None,
        label,
        state,
        detail,
    }
}

fn word(criterion: CriterionStatus) -> &'static str {
    match criterion {
        CriterionStatus::Met => "met",
        CriterionStatus::Missed => "missed",
        CriterionStatus::Unknown => "unknown",
        CriterionStatus::None => "-",
    }
}
