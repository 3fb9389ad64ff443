//! A plan in which everything is reused, in short: what is needed to say what becomes of it when
//! some settings change. It is kept under the world that it was made in, and like every answer it
//! counts for nothing when that world is gone; but plans whose text changed in values of settings
//! alone (see [`crate::plan::part`]) are another matter: then only nodes that these settings reach
//! are judged again, by the same judge.

use std::collections::HashMap;

use doe_cache::{Digest, Store};

use super::World;
use crate::engine::decide::{Decider, Decision, History, Hit, Why};
use crate::engine::key::{self, Need, Needs};
use crate::error::Result;
use crate::graph::{EdgeKind, Graph, NodeId};
use crate::label::Label;
use crate::plan::model::Platform;
use crate::plan::part::Part;
use crate::rule::action::Binding;
use crate::rule::render::render;

/// More changed nodes than that are as quickly decided with all others.
const MOST_CHANGED: usize = 2000;

/// See the module. Nodes are in the order of the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// The world that it holds in.
    pub world: World,
    /// Text of every plan by its name in the world.
    pub texts: Vec<(String, String)>,
    /// All labels, one after the other.
    pub(super) labels: String,
    /// Where each label ends.
    pub(super) label_ends: Vec<u32>,
    /// The record that stands for each node.
    pub(super) records: Vec<Digest>,
    /// Digest of each node's outputs.
    pub(super) outputs: Vec<Digest>,
    /// Digest of the settings that each node shows to others.
    pub(super) settings: Vec<Digest>,
    /// Seconds that each is expected to take; NaN when nobody knows.
    pub(super) seconds: Vec<f64>,
    /// What each node needs, by place in the plan.
    pub(super) needs: Vec<u32>,
    /// Where each node's needs end.
    pub(super) need_ends: Vec<u32>,
}

/// What becomes of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// The record stands for it.
    Reuse(Digest, Hit),
    /// It runs.
    Run(Why),
    /// It runs when these come out differently: the first of them, and how many there are.
    MayRun(u32, usize),
}

impl Outline {
    /// The outline of a plan, when all of it is reused and nothing is out of the ordinary.
    pub fn of(
        world: World,
        texts: Vec<(String, String)>,
        decider: &Decider<'_>,
        plan: &[(NodeId, Digest)],
        seconds: &dyn Fn(NodeId) -> Option<f64>,
    ) -> Option<Self> {
        let graph = decider.graph();
        let workspace = graph.workspace();
        let ordinary =
            |plan: &crate::plan::model::Plan| plan.compares.is_empty() && plan.followups.is_empty();
        if !workspace.warnings.is_empty() || !workspace.plans.values().all(ordinary) {
            return None;
        }
        let mut out = Self {
            world,
            texts,
            labels: String::new(),
            label_ends: Vec::with_capacity(plan.len()),
            records: Vec::with_capacity(plan.len()),
            outputs: Vec::with_capacity(plan.len()),
            settings: Vec::with_capacity(plan.len()),
            seconds: Vec::with_capacity(plan.len()),
            needs: Vec::new(),
            need_ends: Vec::with_capacity(plan.len()),
        };
        let mut places = vec![u32::MAX; graph.len()];
        for (&(node, record), at) in plan.iter().zip(0_u32..) {
            // Whether a replicate runs does not follow from its own settings alone.
            if graph.pattern(node).repeats.stop.is_some() {
                return None;
            }
            places[node.index()] = at;
            out.labels.push_str(&graph.label(node).to_string());
            out.label_ends.push(u32::try_from(out.labels.len()).ok()?);
            out.records.push(record);
            let output = decider.snapshot().record(&record)?.output_digest;
            let Need { output, settings } = Need::of(graph.pattern(node), output);
            out.outputs.push(output);
            out.settings.push(settings);
            out.seconds.push(seconds(node).unwrap_or(f64::NAN));
            for (dep, kind) in graph.deps(node) {
                if kind == EdgeKind::Data {
                    let place = places[dep.index()];
                    out.needs.push((place != u32::MAX).then_some(place)?);
                }
            }
            out.need_ends.push(u32::try_from(out.needs.len()).ok()?);
        }
        Some(out)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.label_ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.label_ends.is_empty()
    }

    /// A node's label.
    pub fn label(&self, at: usize) -> &str {
        let from = at
            .checked_sub(1)
            .map_or(0, |before| self.label_ends[before]);
        &self.labels[from as usize..self.label_ends[at] as usize]
    }

    /// Seconds that a node is expected to take.
    pub fn seconds(&self, at: usize) -> Option<f64> {
        Some(self.seconds[at]).filter(|seconds| !seconds.is_nan())
    }

    pub(super) fn needs(&self, at: usize) -> &[u32] {
        let from = at.checked_sub(1).map_or(0, |before| self.need_ends[before]);
        &self.needs[from as usize..self.need_ends[at] as usize]
    }

    /// What becomes of every node with the settings of `part`, and what the changed ones are now
    /// expected to take. `None` when more has to be judged than is at hand.
    ///
    /// # Errors
    /// Of the judge and of the store.
    pub fn replan(
        &mut self,
        part: &Part,
        graph: &Graph<'_>,
        platform: &Platform,
        store: &Store,
        seconds: &dyn Fn(&Decider<'_>, NodeId) -> Option<f64>,
    ) -> Result<Option<Vec<Fate>>> {
        if part.changed.len() > MOST_CHANGED {
            return Ok(None);
        }
        let changed: HashMap<String, &Label> = part
            .changed
            .iter()
            .map(|label| (label.to_string(), label))
            .collect();
        // By node: its outputs are not what they were, or not known.
        let mut undecided = vec![false; self.len()];
        let mut moved = vec![false; self.len()];
        let mut fates = Vec::with_capacity(self.len());
        for at in 0..self.len() {
            let mut because = self.needs(at).iter().filter(|&&n| undecided[n as usize]);
            let first = because.next().copied();
            let more = because.count();
            let own = match changed.is_empty() {
                true => None,
                false => changed.get(self.label(at)).copied(),
            };
            let node = own.and_then(|label| graph.node(label));
            if own.is_some() && node.is_none() {
                return Ok(None);
            }
            if let Some(first) = first {
                undecided[at] = true;
                if let Some(node) = node {
                    let decider = self.judge(graph, platform, store, node, at)?;
                    self.seconds[at] = seconds(&decider, node).unwrap_or(f64::NAN);
                }
                fates.push(Fate::MayRun(first, more + 1));
                continue;
            }
            let Some(node) = node else {
                if self.needs(at).iter().any(|&need| moved[need as usize]) {
                    return Ok(None);
                }
                fates.push(Fate::Reuse(self.records[at], Hit::Spec));
                continue;
            };
            let decider = self.judge(graph, platform, store, node, at)?;
            self.seconds[at] = seconds(&decider, node).unwrap_or(f64::NAN);
            let needs = self.inputs(at)?;
            match decider.decide(node, &needs)? {
                Decision::Reuse {
                    record,
                    output,
                    hit,
                    ..
                } => {
                    let need = Need::of(graph.pattern(node), output);
                    moved[at] = need != self.shown(at);
                    Need {
                        output: self.outputs[at],
                        settings: self.settings[at],
                    } = need;
                    fates.push(Fate::Reuse(record, hit));
                }
                Decision::Run { why, .. } => {
                    undecided[at] = true;
                    fates.push(Fate::Run(why));
                }
                Decision::Refused { .. }
                | Decision::MayRun { .. }
                | Decision::Blocked { .. }
                | Decision::Enough { .. } => {
                    return Ok(None);
                }
            }
        }
        Ok(Some(fates))
    }

    /// What the dependents of a node see of it.
    fn shown(&self, at: usize) -> Need {
        Need {
            output: self.outputs[at],
            settings: self.settings[at],
        }
    }

    fn inputs(&self, at: usize) -> Result<Needs> {
        let needs = self.needs(at).iter().map(|&need| {
            let label: Label = self.label(need as usize).parse()?;
            Ok((label, self.shown(need as usize)))
        });
        needs.collect()
    }

    /// The judge, knowing of the store what concerns one node.
    fn judge<'g>(
        &self,
        graph: &'g Graph<'g>,
        platform: &'g Platform,
        store: &'g Store,
        node: NodeId,
        at: usize,
    ) -> Result<Decider<'g>> {
        let pattern = graph.pattern(node);
        let needs = self.inputs(at)?;
        let spec = key::spec_manifest(pattern, platform, &needs)?;
        let settings = pattern.settings.plain();
        let action = render(&pattern.rule, &settings, &Binding::Symbolic)?;
        let action = key::action_manifest(pattern, &action, &spec).key();
        let snapshot = store.slice(self.label(at), &spec.key(), &action)?;
        let history: History<'g> = Box::new(move |digest| store.record(digest).ok());
        let present = move |digest: &Digest| store.layout().record(digest).is_file();
        let decider = Decider::new(graph, platform, snapshot, history);
        Ok(decider.looking(Box::new(present)))
    }
}
