//! Facts of hosts in the commands: all go by what was read last and say how old that is when it is
//! old; `build` reads them before it begins anything, and `probe` whenever it is called.

use super::out::Out;
use crate::engine::decide::{Decider, Decision};
use crate::engine::facts::file;
use crate::engine::followup::Choice;
use crate::error::Result;
use crate::exec::HostSpec;
use crate::graph::NodeId;
use crate::label::{Selector, Target};
use crate::plan::model::{Platform, Workspace};

/// Gives the platforms what was read of their hosts.
pub fn recall(workspace: &mut Workspace) {
    let Workspace {
        state_dir,
        platforms,
        ..
    } = workspace;
    for platform in platforms.values_mut() {
        file::recall(state_dir, platform);
    }
}

/// Says what a command that only looks goes by, where that is old or nothing.
pub fn tell_age(out: &mut Out, platform: &Platform) {
    let Some(probing) = &platform.probing else {
        return;
    };
    let old = |host: &&String| !file::is_fresh(probing, host);
    let names = |known: bool| -> Vec<&str> {
        let hosts = platform.hosts.keys().filter(old);
        let hosts = hosts.filter(|host| probing.known.contains_key(*host) == known);
        hosts.map(String::as_str).collect()
    };
    let (old, unread) = (names(true), names(false));
    if !old.is_empty() {
        out.note(format!(
            "note: what {} said of itself may have moved since it was asked; `doe probe` asks again",
            old.join(", ")
        ));
    }
    if !unread.is_empty() {
        out.note(format!(
            "note: nobody has asked yet what {} is; `doe probe` and `doe build` do",
            unread.join(", ")
        ));
    }
}

/// Whether nothing is to run, by facts that are fresh enough to decide that by where hosts are asked.
pub fn nothing_to_do(
    decider: &Decider<'_>,
    nodes: &[NodeId],
    hosts: &[HostSpec],
    followups: &Choice,
) -> Result<bool> {
    let probing = decider.platform().probing.as_ref();
    let fresh = probing.is_none_or(|probing| {
        let mut hosts = hosts.iter();
        hosts.all(|host| file::is_fresh(probing, &host.name))
    });
    if !fresh || !followups.plans.is_empty() {
        return Ok(false);
    }
    let plan = decider.plan(nodes)?;
    let idle = |decision: &Decision| {
        matches!(
            decision,
            Decision::Reuse { .. } | Decision::Refused { .. } | Decision::Blocked { .. }
        )
    };
    Ok(plan.iter().all(|(_, decision)| idle(decision)))
}

/// The nodes whose hosts are looked at: those that are asked for, and where hosts are probed or other
/// machines also those that may come in, or all where which these are depends on what the hosts are.
pub fn concerned(
    decider: &Decider<'_>,
    targets: &[Selector],
    nodes: &[NodeId],
    followups: &Choice,
) -> Vec<NodeId> {
    let graph = decider.graph();
    let probed = decider.platform().probing.is_some();
    if !probed && decider.platform().executor == "local" {
        return graph.closure(nodes, false);
    }
    let stale = |selector: &Selector| matches!(selector.target, Target::Stale);
    if probed && targets.iter().any(stale) {
        return graph.nodes().collect();
    }
    let plans = &graph.workspace().plans;
    let plans = followups.plans.iter().filter_map(|plan| plans.get(plan));
    let brought = plans.flat_map(|plan| plan.followups.iter().flat_map(|up| &up.patterns));
    let mut all = nodes.to_vec();
    all.extend(brought.filter_map(|label| graph.node(label)));
    graph.closure(&all, false)
}
