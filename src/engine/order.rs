//! In which order the nodes of a run stand in line. Nodes whose plan asks for it change places with
//! each other, drawn with a seed; all others stay where the file has them. A node's draw depends on
//! the seed and its label alone, so a part of a campaign stands in the order of the whole, and the
//! same seed gives the same order again. Which services come up next is the scheduler's matter: the
//! draw decides among nodes that use the same ones. No order is in any key.

use std::collections::BTreeMap;

use doe_cache::{Class, Digest, Manifest};

use crate::analysis::sample::{rng, uniform};
use crate::graph::{Graph, NodeId};

/// Paths of the entries in a record's spec manifest that say in which order it ran.
pub const SEED: &str = "order.seed";
/// Its place in the line, from 1.
pub const PLACE: &str = "order.place";

/// The line of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Line {
    /// Nodes in the order in which they stand.
    pub nodes: Vec<NodeId>,
    /// Of nodes with a drawn place: the seed and the place, from 1.
    drawn: BTreeMap<NodeId, (u64, usize)>,
}

impl Line {
    /// Lines up nodes that stand in file order. `run_id` is what seeds are made of that nobody
    /// names.
    pub(super) fn up(graph: &Graph<'_>, nodes: &[NodeId], run_id: &str) -> Self {
        let mut line = Self {
            nodes: nodes.to_vec(),
            drawn: BTreeMap::new(),
        };
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, &node) in nodes.iter().enumerate() {
            if graph.pattern(node).repeats.random {
                let package = graph.label(node).package();
                places.entry(package).or_default().push(at);
            }
        }
        for (package, places) in places {
            let mut drawn: Vec<(f64, NodeId, u64)> = places
                .iter()
                .map(|&at| {
                    let node = nodes[at];
                    let named = graph.pattern(node).repeats.seed;
                    let seed = named.unwrap_or_else(|| seed_of(&format!("{run_id} {package}")));
                    let stream = seed_of(&graph.label(node).to_string());
                    (uniform(&mut rng(seed, stream)), node, seed)
                })
                .collect();
            drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (at, (_, node, seed)) in places.into_iter().zip(drawn) {
                line.nodes[at] = node;
                line.drawn.insert(node, (seed, at + 1));
            }
        }
        line
    }

    /// What was drawn: plan, seed, and how many nodes stand by it.
    pub(super) fn seeds(&self, graph: &Graph<'_>) -> Vec<(String, u64, usize)> {
        let mut seeds: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        for (node, (seed, _)) in &self.drawn {
            let package = graph.label(*node).package();
            *seeds.entry((package, *seed)).or_default() += 1;
        }
        let seeds = seeds.into_iter();
        seeds
            .map(|((package, seed), nodes)| (package.to_owned(), seed, nodes))
            .collect()
    }

    /// A spec manifest that says where its node stood.
    pub(super) fn mark(&self, node: NodeId, mut spec: Manifest) -> Manifest {
        if let Some((seed, place)) = self.drawn.get(&node) {
            // Both fit: seeds have 48 bits, places 32.
            spec.set(SEED, *seed as i64, Class::Cosmetic);
            spec.set(PLACE, *place as i64, Class::Cosmetic);
        }
        spec
    }
}

/// A number of 48 bits that follows from a text, so that every reader of JSON keeps it.
pub(super) fn seed_of(text: &str) -> u64 {
    let digest = Digest::of(text);
    let head = digest.as_bytes()[..6].iter();
    head.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
