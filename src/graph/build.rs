//! Nodes and edges from a workspace. The order of nodes is that of the files, the topological
//! order is the smallest one in it (Kahn with a heap), so that two runs never differ by chance.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::{EdgeKind, NodeId};
use crate::error::Diagnostic;
use crate::label::Label;
use crate::plan::model::{Layer, Pattern, Plan, Workspace};

/// The graph of every pattern of a workspace.
#[derive(Debug)]
pub struct Graph<'w> {
    workspace: &'w Workspace,
    patterns: Vec<(&'w Plan, &'w Pattern)>,
    by_label: HashMap<&'w Label, NodeId>,
    graph: DiGraph<(), EdgeKind, u32>,
    order: Vec<NodeId>,
}

impl<'w> Graph<'w> {
    /// Builds the graph; a cycle is told whole, with the place of each of its patterns.
    pub fn build(workspace: &'w Workspace) -> Result<Self, Vec<Diagnostic>> {
        let patterns: Vec<(&Plan, &Pattern)> = workspace
            .plans
            .values()
            .flat_map(|plan| plan.patterns.iter().map(move |pattern| (plan, pattern)))
            .collect();
        let mut by_label = HashMap::with_capacity(patterns.len());
        let mut graph = DiGraph::with_capacity(patterns.len(), patterns.len() * 4);
        for (at, (_, pattern)) in patterns.iter().enumerate() {
            by_label.insert(&pattern.label, NodeId(at as u32));
            graph.add_node(());
        }
        for (at, (_, pattern)) in patterns.iter().enumerate() {
            let to = NodeIndex::new(at);
            let edges = [
                (&pattern.needs, EdgeKind::Data),
                (&pattern.gate, EdgeKind::Gate),
            ];
            for (labels, kind) in edges {
                for from in labels.iter().filter_map(|label| by_label.get(label)) {
                    graph.add_edge(NodeIndex::new(from.index()), to, kind);
                }
            }
            // Replicates stand one after the other.
            let stop = pattern.repeats.stop.as_ref();
            if stop.is_some_and(|stop| pattern.replicate > stop.min) {
                for from in at + 1 - pattern.replicate as usize..at {
                    graph.add_edge(NodeIndex::new(from), to, EdgeKind::Series);
                }
            }
        }
        let mut built = Self {
            workspace,
            patterns,
            by_label,
            graph,
            order: Vec::new(),
        };
        let cycles = built.cycles();
        if !cycles.is_empty() {
            return Err(cycles);
        }
        built.order = built.topological();
        Ok(built)
    }

    /// The workspace it was built from.
    pub fn workspace(&self) -> &'w Workspace {
        self.workspace
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// All nodes, in file order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.patterns.len() as u32).map(NodeId)
    }

    /// All nodes, each after what it depends on; among equals in file order.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// The node's pattern.
    pub fn pattern(&self, node: NodeId) -> &'w Pattern {
        self.patterns[node.index()].1
    }

    /// The node's plan.
    pub fn plan(&self, node: NodeId) -> &'w Plan {
        self.patterns[node.index()].0
    }

    /// The node's layer.
    pub fn layer(&self, node: NodeId) -> &'w Layer {
        let (plan, pattern) = self.patterns[node.index()];
        &plan.layers[pattern.layer]
    }

    /// The node's label.
    pub fn label(&self, node: NodeId) -> &'w Label {
        &self.pattern(node).label
    }

    /// The node with a pattern's label.
    pub fn node(&self, label: &Label) -> Option<NodeId> {
        self.by_label.get(label).copied()
    }

    /// What a node depends on, in file order.
    pub fn deps(&self, node: NodeId) -> Vec<(NodeId, EdgeKind)> {
        self.neighbours(node, Incoming)
    }

    /// What depends on a node, in file order.
    pub fn rdeps(&self, node: NodeId) -> Vec<(NodeId, EdgeKind)> {
        self.neighbours(node, Outgoing)
    }

    /// The nodes reachable from `seeds` against (`deps`) or along (`rdeps`) the edges, the seeds
    /// included, in file order.
    pub fn closure(&self, seeds: &[NodeId], along: bool) -> Vec<NodeId> {
        let mut seen = vec![false; self.len()];
        let mut stack = seeds.to_vec();
        while let Some(node) = stack.pop() {
            if std::mem::replace(&mut seen[node.index()], true) {
                continue;
            }
            let direction = if along { Outgoing } else { Incoming };
            stack.extend(
                self.graph
                    .neighbors_directed(NodeIndex::new(node.index()), direction)
                    .map(|n| NodeId(n.index() as u32)),
            );
        }
        self.nodes().filter(|n| seen[n.index()]).collect()
    }

    fn neighbours(&self, node: NodeId, direction: petgraph::Direction) -> Vec<(NodeId, EdgeKind)> {
        let mut found: Vec<_> = self
            .graph
            .edges_directed(NodeIndex::new(node.index()), direction)
            .map(|edge| {
                let other = match direction {
                    Incoming => edge.source(),
                    Outgoing => edge.target(),
                };
                (NodeId(other.index() as u32), *edge.weight())
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn topological(&self) -> Vec<NodeId> {
        let mut missing: Vec<usize> = self
            .graph
            .node_indices()
            .map(|n| self.graph.edges_directed(n, Incoming).count())
            .collect();
        let mut ready: BinaryHeap<Reverse<usize>> = (0..missing.len())
            .filter(|&at| missing[at] == 0)
            .map(Reverse)
            .collect();
        let mut order = Vec::with_capacity(missing.len());
        while let Some(Reverse(at)) = ready.pop() {
            order.push(NodeId(at as u32));
            for next in self.graph.neighbors_directed(NodeIndex::new(at), Outgoing) {
                missing[next.index()] -= 1;
                if missing[next.index()] == 0 {
                    ready.push(Reverse(next.index()));
                }
            }
        }
        order
    }

    fn cycles(&self) -> Vec<Diagnostic> {
        let mut found = BTreeMap::new();
        for component in tarjan_scc(&self.graph) {
            let alone = component.len() == 1;
            if alone && self.graph.find_edge(component[0], component[0]).is_none() {
                continue;
            }
            let path = self.loop_in(&component);
            let names: Vec<String> = path
                .iter()
                .chain(path.first())
                .map(|&n| self.label(n).to_string())
                .collect();
            let mut diagnostic = Diagnostic::error(
                "cycle",
                format!("these patterns need each other: {}", names.join(" -> ")),
            )
            .label(&names[0])
            .hint("a `needs` or `gate` entry of one of them has to go");
            for (at, &node) in path.iter().enumerate().take(4) {
                let note = format!("`{}` needs `{}`", names[at], names[at + 1]);
                diagnostic = diagnostic.at(self.pattern(node).site.clone(), note);
            }
            found.insert(path[0], diagnostic);
        }
        found.into_values().collect()
    }

    /// One loop through the smallest node of a strongly connected component, each node followed
    /// by one that it needs.
    fn loop_in(&self, component: &[NodeIndex<u32>]) -> Vec<NodeId> {
        let inside: std::collections::BTreeSet<_> = component.iter().map(|n| n.index()).collect();
        let start = *inside.first().unwrap_or(&0);
        // Breadth first from the start against the edges until it comes back: the shortest loop.
        let mut from: HashMap<usize, usize> = HashMap::new();
        let mut queue = std::collections::VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for (dep, _) in self.deps(NodeId(at as u32)) {
                let dep = dep.index();
                if dep == start {
                    let mut path = vec![at];
                    while let Some(&before) = path.last().and_then(|last| from.get(last)) {
                        path.push(before);
                    }
                    path.reverse();
                    return path.into_iter().map(|n| NodeId(n as u32)).collect();
                }
                if inside.contains(&dep) && !from.contains_key(&dep) {
                    from.insert(dep, at);
                    queue.push_back(dep);
                }
            }
        }
        vec![NodeId(start as u32)]
    }
}
