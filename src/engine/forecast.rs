//! How long nodes are expected to take, what that costs, and which of them the others wait for.
//! Nothing is made up: a node takes as long as it took when it last ran on the same kind of
//! platform, else what the plan says, else nobody knows. A plan speaks of real hardware, so it
//! says nothing about a simulation, nor a simulated run about a real one.

use std::collections::{BTreeSet, HashMap};

use super::decide::Decider;
use super::preflight::host_of;
use crate::graph::{Graph, NodeId};
use crate::plan::model::{Pattern, Platform};

/// Seconds, when anybody knows.
pub fn expected_s(decider: &Decider<'_>, node: NodeId) -> Option<f64> {
    let pattern = decider.graph().pattern(node);
    let simulated = decider.platform().simulated;
    let history = decider.snapshot().current(&pattern.label.to_string());
    let history = history.filter(|summary| summary.simulated == simulated);
    let history = history.map(|summary| summary.duration_ms as f64 / 1000.0);
    history.or(pattern.estimate_s.filter(|_| !simulated))
}

/// Number of hosts that a pattern holds while it runs; none of an analysis.
pub fn host_count(platform: &Platform, pattern: &Pattern) -> usize {
    let roles = pattern.rule.roles.keys();
    let hosts: BTreeSet<&str> = roles
        .filter_map(|role| Some(host_of(platform, role)?.name.as_str()))
        .collect();
    hosts.len()
}

/// What so many seconds of a pattern cost, where the platform says what an hour of a host does.
pub fn cost(platform: &Platform, pattern: &Pattern, seconds: f64) -> Option<f64> {
    let price = platform.cost_per_hour.as_ref()?;
    Some(price.amount * host_count(platform, pattern) as f64 * seconds / 3600.0)
}

/// A node on the critical path.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The node.
    pub node: NodeId,
    /// Seconds that it is expected to take; nothing when nobody knows.
    pub seconds: Option<f64>,
    /// Seconds that the path would be shorter by if it took none.
    pub gain_s: f64,
}

/// The longest chain of nodes that wait for each other, among these, with its length in seconds.
/// Nodes of which nobody knows how long they take count as nothing.
pub fn critical_path(
    graph: &Graph<'_>,
    nodes: &[NodeId],
    seconds: &dyn Fn(NodeId) -> Option<f64>,
) -> (Vec<Step>, f64) {
    let (path, length) = longest(graph, nodes, &|node| seconds(node).unwrap_or(0.0));
    let steps = path.iter().map(|&node| {
        let without = |other: NodeId| match other == node {
            true => 0.0,
            false => seconds(other).unwrap_or(0.0),
        };
        Step {
            node,
            seconds: seconds(node),
            gain_s: length - longest(graph, nodes, &without).1,
        }
    });
    (steps.collect(), length)
}

fn longest(
    graph: &Graph<'_>,
    nodes: &[NodeId],
    seconds: &dyn Fn(NodeId) -> f64,
) -> (Vec<NodeId>, f64) {
    let among: BTreeSet<NodeId> = nodes.iter().copied().collect();
    // By node: the length of the longest chain that ends with it, and who is before it there.
    let mut ends: HashMap<NodeId, (f64, Option<NodeId>)> = HashMap::with_capacity(among.len());
    let mut best: Option<(NodeId, f64)> = None;
    for &node in graph.order().iter().filter(|node| among.contains(node)) {
        let mut before: Option<(NodeId, f64)> = None;
        for (dep, _) in graph.deps(node) {
            let Some((length, _)) = ends.get(&dep) else {
                continue;
            };
            if before.is_none_or(|(_, longest)| *length > longest) {
                before = Some((dep, *length));
            }
        }
        let length = before.map_or(0.0, |(_, length)| length) + seconds(node);
        ends.insert(node, (length, before.map(|(dep, _)| dep)));
        if best.is_none_or(|(_, longest)| length > longest) {
            best = Some((node, length));
        }
    }
    let Some((mut at, length)) = best else {
        return (Vec::new(), 0.0);
    };
    let mut path = vec![at];
    while let Some((_, Some(before))) = ends.get(&at) {
        at = *before;
        path.push(at);
    }
    path.reverse();
    (path, length)
}
