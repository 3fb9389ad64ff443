//! Questions to the graph. An answer depends on the graph and the question alone, names every node
//! once and keeps the order of the graph.

use std::collections::BTreeSet;

use crate::graph::{Graph, NodeId};

/// Which way to walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To what a node needs.
    Needs,
    /// To what needs it.
    NeededBy,
}

/// What the seeds reach: everything and themselves, or one step and without them.
pub fn walk(
    graph: &Graph<'_>,
    seeds: &[NodeId],
    direction: Direction,
    one_step: bool,
) -> Vec<NodeId> {
    if !one_step {
        return graph.closure(seeds, direction == Direction::NeededBy);
    }
    let next = |&node: &NodeId| match direction {
        Direction::Needs => graph.deps(node),
        Direction::NeededBy => graph.rdeps(node),
    };
    let found: BTreeSet<NodeId> = seeds.iter().flat_map(next).map(|(node, _)| node).collect();
    found.into_iter().collect()
}
