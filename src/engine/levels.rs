//! Decisions about many nodes. What is needed of others comes before those who need it, level by
//! level; within a level nobody waits for anybody, so keys are made on all cores. What comes out
//! is in topological order and the same whatever the number of threads.

use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Digest;
use rayon::prelude::*;

use super::decide::{Decider, Decision, Hit};
use super::key::{Need, Needs};
use crate::error::Result;
use crate::graph::{EdgeKind, NodeId};

/// Below so many nodes of a level waking threads costs more than they save.
const PARALLEL_FROM: usize = 64;

/// What is decided, and what dependents see of a node that stands.
struct Decided {
    decision: Decision,
    need: Option<Need>,
}

/// What earlier levels came to.
#[derive(Default)]
struct Known {
    /// What dependents see of nodes that stand.
    seen: BTreeMap<NodeId, Need>,
    /// Records of replicates, in series; none of those that are not needed.
    standing: BTreeMap<NodeId, Option<Digest>>,
    /// Replicates that are not needed.
    skipped: BTreeSet<NodeId>,
    /// Nodes that nothing may be made of: refused, or blocked by such a one.
    barred: BTreeSet<NodeId>,
}

impl Decider<'_> {
    /// Decides about nodes and everything they depend on, in topological order.
    ///
    /// # Errors
    /// What keeps a key from being made, of the first node in that order within its level.
    pub fn plan(&self, nodes: &[NodeId]) -> Result<Vec<(NodeId, Decision)>> {
        let order = self.in_order(nodes);
        let mut known = Known::default();
        let mut made: Vec<Option<Decision>> = order.iter().map(|_| None).collect();
        for level in self.levels(&order) {
            let decide = |at: &usize| self.with_what_is_known(order[*at], &known);
            let decided: Vec<Result<Decided>> = match level.len() < PARALLEL_FROM {
                true => level.iter().map(decide).collect(),
                false => level.par_iter().map(decide).collect(),
            };
            for (at, decided) in level.into_iter().zip(decided) {
                let Decided { decision, need } = decided?;
                let stops = self.graph().pattern(order[at]).repeats.stop.is_some();
                known.take_in(order[at], &decision, need, stops);
                made[at] = Some(decision);
            }
        }
        let made = order.into_iter().zip(made);
        Ok(made.filter_map(|(node, it)| Some((node, it?))).collect())
    }

    /// The nodes and what they depend on, each after what it depends on.
    fn in_order(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let graph = self.graph();
        let wanted: BTreeSet<NodeId> = graph.closure(nodes, false).into_iter().collect();
        let order = graph.order().iter().copied();
        order.filter(|node| wanted.contains(node)).collect()
    }

    /// Places in the order, by level: a node is one level above what its decision looks at.
    fn levels(&self, order: &[NodeId]) -> Vec<Vec<usize>> {
        let graph = self.graph();
        let mut level_of = vec![0; graph.len()];
        let mut levels: Vec<Vec<usize>> = Vec::new();
        for (at, node) in order.iter().enumerate() {
            let deps = graph.deps(*node).into_iter();
            let looked_at = deps.filter(|(_, kind)| *kind != EdgeKind::Gate);
            let level = looked_at.map(|(dep, _)| level_of[dep.index()] + 1).max();
            let level = level.unwrap_or(0);
            level_of[node.index()] = level;
            if levels.len() <= level {
                levels.resize_with(level + 1, Vec::new);
            }
            levels[level].push(at);
        }
        levels
    }

    /// Decides about a node after all it depends on.
    fn with_what_is_known(&self, node: NodeId, known: &Known) -> Result<Decided> {
        let graph = self.graph();
        let mut needs = Needs::new();
        let mut because = Vec::new();
        let (mut series, mut open) = (Vec::new(), Vec::new());
        let mut barred = Vec::new();
        for (dep, kind) in graph.deps(node) {
            match (kind, known.seen.get(&dep)) {
                (EdgeKind::Gate, _) => {}
                (EdgeKind::Series, _) => match known.standing.get(&dep) {
                    Some(record) => series.push(*record),
                    None => open.push(dep),
                },
                (EdgeKind::Data, None) if known.skipped.contains(&dep) => {}
                (EdgeKind::Data, Some(need)) => {
                    needs.insert(graph.label(dep).clone(), *need);
                }
                (EdgeKind::Data, None) if known.barred.contains(&dep) => barred.push(dep),
                (EdgeKind::Data, None) => because.push(dep),
            }
        }
        let mut decision = if !barred.is_empty() {
            // As a build has it, whatever becomes of the rest.
            Decision::Blocked { because: barred }
        } else if because.is_empty() {
            self.decide(node, &needs)?
        } else {
            Decision::MayRun { because }
        };
        if matches!(decision, Decision::Run { .. }) && !self.is_asked(node) {
            decision = match self.enough(node, &series) {
                Some(why) if open.is_empty() => Decision::Enough { why },
                _ if open.is_empty() => decision,
                _ => Decision::MayRun { because: open },
            };
        }
        let mut need = None;
        if let Decision::Reuse { output, keyed, .. } = &mut decision {
            need = Some(self.need(node, *output));
            // Here, so that those of a whole level are never there at once.
            *keyed = None;
        }
        if let Decision::Refused { keyed, .. } = &mut decision {
            *keyed = None;
        }
        Ok(Decided { decision, need })
    }
}

impl Known {
    /// `stops`: whether replicates of the node are made until they are enough.
    fn take_in(&mut self, node: NodeId, decision: &Decision, need: Option<Need>, stops: bool) {
        self.seen.extend(need.map(|need| (node, need)));
        match decision {
            // What is read anew may come to other numbers: what follows from them is open.
            Decision::Reuse { record, hit, .. } if stops && *hit != Hit::Rejudge => {
                self.standing.insert(node, Some(*record));
            }
            Decision::Refused { .. } | Decision::Blocked { .. } => {
                self.barred.insert(node);
                // It is there and says nothing, as one that was executed and refused.
                if stops {
                    self.standing.insert(node, None);
                }
            }
            Decision::Enough { .. } => {
                self.skipped.insert(node);
                self.standing.insert(node, None);
            }
            Decision::Reuse { .. } | Decision::Run { .. } | Decision::MayRun { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use doe_cache::{CriterionStatus, ExecutionStatus, Snapshot, Summary, ValidityStatus};
    use proptest::prelude::*;

    use super::*;
    use crate::engine::{instruments, key};
    use crate::graph::Graph;
    use crate::plan::model::Workspace;
    use crate::plan::workspace::LoadOptions;

    fn summary(label: &str, spec: Digest) -> Summary {
        Summary {
            record: Digest::of(format!("record {spec}")),
            label: label.into(),
            spec_key: spec,
            action_key: Digest::of(format!("action {spec}")),
            judge: Digest::of(""),
            output_digest: Digest::of(format!("output {spec}")),
            simulated: true,
            recorded_unix_ms: 1,
            ended_unix_ms: 1,
            duration_ms: 1,
            execution: ExecutionStatus::Ok,
            validity: ValidityStatus::Valid,
            criterion: CriterionStatus::None,
            reusable: true,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// Against one node after another, with a store that holds whatever half of it holds.
        #[test]
        fn levels_come_to_what_one_after_another_comes_to(seed in any::<u64>(), share in 0..=4_u8) {
            let options = LoadOptions {
                known_instruments: instruments::known(),
                ..LoadOptions::default()
            };
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let workspace = Workspace::load(root, &options).unwrap();
            let graph = Graph::build(&workspace).unwrap();
            let platform = &workspace.platforms["sim"];
            let mut snapshot = Snapshot::new();
            let mut outputs: BTreeMap<NodeId, (Digest, Digest)> = BTreeMap::new();
            let mut wanted = Vec::new();
            for &node in graph.order() {
                let deps = graph.deps(node).into_iter();
                let data: Vec<NodeId> = deps
                    .filter(|(_, kind)| *kind == EdgeKind::Data)
                    .map(|(dep, _)| dep)
                    .collect();
                let open: Vec<NodeId> = data.iter().copied().filter(|d| !outputs.contains_key(d)).collect();
                if !open.is_empty() {
                    wanted.push((node, format!("may run: {open:?}")));
                    continue;
                }
                let needs = data.iter().map(|dep| {
                    let need = Need::of(graph.pattern(*dep), outputs[dep].1);
                    (graph.label(*dep).clone(), need)
                });
                let pattern = graph.pattern(node);
                let manifest = key::spec_manifest(pattern, platform, &needs.collect()).unwrap();
                let spec = manifest.key();
                let drawn = Digest::of(format!("{seed} {spec}")).as_bytes()[0] % 4;
                if drawn >= share {
                    wanted.push((node, "run".to_owned()));
                    continue;
                }
                let made = summary(&pattern.label.to_string(), spec);
                outputs.insert(node, (made.record, made.output_digest));
                wanted.push((node, format!("reuse {}", made.record)));
                snapshot.insert(made);
            }
            let decider = Decider::new(&graph, platform, snapshot, Box::new(|_| None));
            let nodes: Vec<NodeId> = graph.nodes().collect();
            let order = decider.in_order(&nodes);
            let widest = decider.levels(&order).iter().map(Vec::len).max();
            prop_assert!(widest >= Some(PARALLEL_FROM), "{:?}", widest);
            let plan = decider.plan(&nodes).unwrap();
            let found: Vec<(NodeId, String)> = plan
                .into_iter()
                .map(|(node, decision)| {
                    let told = match decision {
                        Decision::Reuse { record, keyed, .. } => {
                            assert!(keyed.is_none());
                            format!("reuse {record}")
                        }
                        Decision::Refused { why, .. } => format!("refused: {why}"),
                        Decision::Run { .. } => "run".to_owned(),
                        Decision::MayRun { because } => format!("may run: {because:?}"),
                        Decision::Blocked { because } => format!("blocked: {because:?}"),
                        Decision::Enough { why } => why,
                    };
                    (node, told)
                })
                .collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
