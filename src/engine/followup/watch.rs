//! Which follow-ups hold, and what each may still begin. Pure but for reading records. A condition
//! is looked at once for each result (or pair), at the moment the last of them is final; the first
//! that it holds for is the cause.
//!
//! The budget. What ended counts with the time it took, reused results with the time they once
//! took, what is under way with the time it is expected to take. A pattern begins when all of that
//! and its own expected time fit. One whose time nobody knows begins only while nothing else of
//! its follow-up is under way and the budget is not spent, so that it can be overrun by one
//! pattern at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use doe_cache::{Digest, Record};

use super::Choice;
use super::condition::{self, Cause};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::plan::followup::{EXPECTED, OFF, SIMULATED};
use crate::plan::model::{Followup, Over, Pattern, Plan};

/// What is known of a node's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing yet.
    Open,
    /// There will be none that may be used.
    Bad,
    /// This record.
    Good(Digest),
}

/// How results are looked up.
pub struct Look<'a> {
    /// What is known of a node of the run.
    pub known: &'a dyn Fn(NodeId) -> Known,
    /// The record that stands for a node that is not part of the run.
    pub stands: &'a dyn Fn(NodeId) -> Option<Digest>,
    /// A record.
    pub record: &'a dyn Fn(&Digest) -> Result<Record>,
}

/// See the module.
pub struct Watch<'w> {
    graph: &'w Graph<'w>,
    /// By follow-up.
    ups: Vec<Up<'w>>,
    cells: Vec<Cell>,
    by_node: HashMap<NodeId, Vec<usize>>,
    /// What was brought in, by which follow-up.
    brought: BTreeMap<NodeId, usize>,
}

struct Up<'w> {
    /// `//phase2#tpot-apart`.
    name: String,
    followup: &'w Followup,
    units: Vec<Unit>,
    cause: Option<Cause>,
    spent_s: f64,
    under_way: BTreeMap<NodeId, Option<f64>>,
    told: bool,
}

/// A pattern with what it depends on and is not part of the run, in topological order.
struct Unit {
    members: Vec<NodeId>,
    begun: bool,
}

/// Results that a condition is held against together.
struct Cell {
    up: usize,
    nodes: Vec<(Option<String>, NodeId)>,
    is_done: bool,
}

impl<'w> Watch<'w> {
    /// Watches the results of a run over the wanted nodes.
    pub fn new(graph: &'w Graph<'w>, choice: &Choice, wanted: &BTreeSet<NodeId>) -> Self {
        let mut watch = Self {
            graph,
            ups: Vec::new(),
            cells: Vec::new(),
            by_node: HashMap::new(),
            brought: BTreeMap::new(),
        };
        let plans = &graph.workspace().plans;
        for plan in choice.plans.iter().filter_map(|name| plans.get(name)) {
            for followup in &plan.followups {
                watch.add(plan, followup, choice, wanted);
            }
        }
        watch
    }

    fn add(
        &mut self,
        plan: &'w Plan,
        followup: &'w Followup,
        choice: &Choice,
        wanted: &BTreeSet<NodeId>,
    ) {
        let graph = self.graph;
        let mut units = Vec::new();
        for label in &followup.patterns {
            let Some(node) = graph.node(label).filter(|node| !wanted.contains(node)) else {
                continue;
            };
            let closure: BTreeSet<NodeId> = graph.closure(&[node], false).into_iter().collect();
            let members = graph.order().iter().filter(|n| closure.contains(n));
            let members: Vec<NodeId> = members.filter(|n| !wanted.contains(n)).copied().collect();
            if members.iter().any(|node| choice.excluded.contains(node)) {
                continue;
            }
            units.push(Unit {
                members,
                begun: false,
            });
        }
        if units.is_empty() {
            return;
        }
        let up = self.ups.len();
        self.ups.push(Up {
            name: format!("//{}#{}", plan.package, followup.id),
            followup,
            units,
            cause: None,
            spent_s: 0.0,
            under_way: BTreeMap::new(),
            told: false,
        });
        for nodes in cells(graph, plan, followup) {
            let part = nodes.iter().filter(|(_, node)| wanted.contains(node));
            let part: Vec<NodeId> = part.map(|(_, node)| *node).collect();
            if part.is_empty() {
                continue;
            }
            for node in part {
                self.by_node.entry(node).or_default().push(self.cells.len());
            }
            self.cells.push(Cell {
                up,
                nodes,
                is_done: false,
            });
        }
    }

    /// Whether there is nothing to watch.
    pub fn is_empty(&self) -> bool {
        self.ups.is_empty()
    }

    /// Plan and id of a follow-up.
    pub fn name(&self, up: usize) -> &str {
        &self.ups[up].name
    }

    /// Seconds that its patterns may take together.
    pub fn budget_s(&self, up: usize) -> Option<f64> {
        self.ups[up].followup.budget_s
    }

    /// Why it holds, when it does.
    pub fn cause(&self, up: usize) -> Option<&Cause> {
        self.ups[up].cause.as_ref()
    }

    /// Its condition.
    pub fn condition(&self, up: usize) -> &str {
        &self.ups[up].followup.when.text().text
    }

    /// All follow-ups, in the order of plans and files.
    pub fn all(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.ups.len()
    }

    /// The patterns that it would bring in, each with what it depends on.
    pub fn units(&self, up: usize) -> impl Iterator<Item = &[NodeId]> {
        self.ups[up].units.iter().map(|unit| &unit.members[..])
    }

    /// Whether results are still to come that it looks at.
    pub fn is_open(&self, up: usize) -> bool {
        let mut cells = self.cells.iter();
        self.ups[up].cause.is_none() && cells.any(|cell| cell.up == up && !cell.is_done)
    }

    /// Looks at everything that is final. Returns the follow-ups that hold from now on, and what
    /// went wrong in words.
    pub fn look(&mut self, look: &Look<'_>) -> (Vec<usize>, Vec<String>) {
        let (mut held, mut wrong) = (Vec::new(), Vec::new());
        for cell in 0..self.cells.len() {
            self.look_at(cell, look, &mut held, &mut wrong);
        }
        held.sort_unstable();
        (held, wrong)
    }

    /// As [`Self::look`], at what has to do with a node that is final now.
    pub fn look_at_node(&mut self, node: NodeId, look: &Look<'_>) -> (Vec<usize>, Vec<String>) {
        let (mut held, mut wrong) = (Vec::new(), Vec::new());
        for cell in self.by_node.get(&node).cloned().unwrap_or_default() {
            self.look_at(cell, look, &mut held, &mut wrong);
        }
        held.sort_unstable();
        (held, wrong)
    }

    fn look_at(
        &mut self,
        cell: usize,
        look: &Look<'_>,
        held: &mut Vec<usize>,
        wrong: &mut Vec<String>,
    ) {
        let graph = self.graph;
        let Cell { up, nodes, is_done } = &mut self.cells[cell];
        let found = &mut self.ups[*up];
        if *is_done || found.cause.is_some() {
            return;
        }
        let mut digests = Vec::with_capacity(nodes.len());
        for (_, node) in nodes.iter() {
            let known = match self.by_node.contains_key(node) {
                true => (look.known)(*node),
                false => (look.stands)(*node).map_or(Known::Bad, Known::Good),
            };
            match known {
                Known::Good(digest) => digests.push(digest),
                Known::Open => return,
                Known::Bad => {
                    *is_done = true;
                    return;
                }
            }
        }
        *is_done = true;
        let records: Result<Vec<Record>> = digests.iter().map(look.record).collect();
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                wrong.push(format!("{}: {error}", found.name));
                return;
            }
        };
        let results: Vec<condition::Result<'_>> = nodes
            .iter()
            .zip(&records)
            .map(|((side, node), record)| (side.as_deref(), graph.pattern(*node), record))
            .collect();
        match condition::holds(&found.name, found.followup, &results) {
            Ok(None) => {}
            Ok(cause) => {
                found.cause = cause;
                held.push(*up);
            }
            Err(error) => {
                let label = &results[0].1.label;
                wrong.push(format!("{} at {label}: {}", found.name, error.message));
            }
        }
    }

    /// The next pattern that it may begin, with what that depends on and nobody has brought in
    /// yet. It counts as begun from now on.
    pub fn next(
        &mut self,
        up: usize,
        expected_s: &dyn Fn(NodeId) -> Option<f64>,
    ) -> Option<Vec<NodeId>> {
        let brought = &self.brought;
        let this = &mut self.ups[up];
        this.cause.as_ref()?;
        for at in 0..this.units.len() {
            if this.units[at].begun {
                continue;
            }
            let members = this.units[at].members.iter();
            let members: Vec<NodeId> = members
                .filter(|n| !brought.contains_key(n))
                .copied()
                .collect();
            if members.is_empty() {
                this.units[at].begun = true;
                continue;
            }
            if !this.affords(&members, expected_s) {
                continue;
            }
            this.units[at].begun = true;
            for &node in &members {
                this.under_way.insert(node, expected_s(node));
                self.brought.insert(node, up);
            }
            return Some(members);
        }
        None
    }

    /// Whether [`Self::next`] would name a pattern.
    pub fn would_begin(&self, up: usize, expected_s: &dyn Fn(NodeId) -> Option<f64>) -> bool {
        let this = &self.ups[up];
        this.cause.is_some()
            && this.units.iter().any(|unit| {
                let members = unit.members.iter();
                let members = members.filter(|node| !self.brought.contains_key(node));
                let members: Vec<NodeId> = members.copied().collect();
                !unit.begun && !members.is_empty() && this.affords(&members, expected_s)
            })
    }

    /// Brings in a node whose result is at hand.
    pub fn at_hand(&mut self, up: usize, node: NodeId, seconds: f64) {
        self.brought.insert(node, up);
        self.ups[up].spent_s += seconds;
    }

    /// The follow-up that brought a node in, once it has ended after so many seconds of its own.
    pub fn ended(&mut self, node: NodeId, seconds: f64) -> Option<usize> {
        let up = *self.brought.get(&node)?;
        let this = &mut self.ups[up];
        if this.under_way.remove(&node).is_some() {
            this.spent_s += seconds;
        }
        Some(up)
    }

    /// An attempt of a node took so many seconds, and a further one is to come.
    pub fn put_off(&mut self, node: NodeId, seconds: f64) {
        if let Some(up) = self.brought.get(&node) {
            self.ups[*up].spent_s += seconds;
        }
    }

    /// A node was put off and ends so: nothing of it is under way, and all that it took has counted.
    pub fn has_counted(&mut self, node: NodeId) {
        if let Some(up) = self.brought.get(&node) {
            self.ups[*up].under_way.remove(&node);
        }
    }

    /// The follow-up that brought a node in.
    pub fn brought_by(&self, node: NodeId) -> Option<usize> {
        self.brought.get(&node).copied()
    }

    /// Patterns that the budget of a follow-up leaves out, once nothing of it is under way; said
    /// once.
    pub fn left_out(&mut self, up: usize) -> Option<usize> {
        let brought = &self.brought;
        let this = &mut self.ups[up];
        let left = this.units.iter().filter(|unit| {
            !unit.begun && unit.members.iter().any(|node| !brought.contains_key(node))
        });
        let left = left.count();
        let over = this.under_way.is_empty() && this.cause.is_some();
        if left == 0 || !over || this.told {
            return None;
        }
        this.told = true;
        Some(left)
    }
}

impl Up<'_> {
    fn affords(&self, members: &[NodeId], expected_s: &dyn Fn(NodeId) -> Option<f64>) -> bool {
        let Some(budget_s) = self.followup.budget_s else {
            return true;
        };
        let under_way: Option<f64> = self.under_way.values().copied().sum();
        let own: Option<f64> = members.iter().map(|node| expected_s(*node)).sum();
        match (under_way, own) {
            (Some(under_way), Some(own)) => self.spent_s + under_way + own <= budget_s,
            (Some(_), None) => self.under_way.is_empty() && self.spent_s < budget_s,
            (None, _) => false,
        }
    }
}

/// What a condition is held against, one group of patterns each time.
fn cells(
    graph: &Graph<'_>,
    plan: &Plan,
    followup: &Followup,
) -> Vec<Vec<(Option<String>, NodeId)>> {
    match &followup.over {
        Over::Each => {
            let names: Vec<String> = followup.when.vars().iter().cloned().collect();
            let has = |pattern: &&Pattern| {
                let rule = &pattern.rule;
                names.iter().all(|name| {
                    rule.params.contains_key(name)
                        || rule.metrics.contains_key(name)
                        || [EXPECTED, OFF, SIMULATED].contains(&name.as_str())
                })
            };
            let planned = plan.patterns.iter().filter(|pattern| !pattern.adhoc);
            planned
                .filter(has)
                .filter_map(|pattern| Some(vec![(None, graph.node(&pattern.label)?)]))
                .collect()
        }
        Over::Pairs { compare, sides } => {
            let compare = plan.compares.iter().find(|other| other.id == *compare);
            let groups = compare.into_iter().flat_map(|compare| &compare.groups);
            groups
                .flat_map(|group| {
                    let nodes = group.members.iter().filter_map(|label| graph.node(label));
                    let nodes: Vec<NodeId> = nodes.collect();
                    combinations(graph, sides, &nodes)
                })
                .collect()
        }
    }
}

/// One node for every side, in every way; none when a side has none.
fn combinations(
    graph: &Graph<'_>,
    sides: &[(String, crate::label::Label)],
    nodes: &[NodeId],
) -> Vec<Vec<(Option<String>, NodeId)>> {
    let mut found: Vec<Vec<(Option<String>, NodeId)>> = vec![Vec::new()];
    for (name, layer) in sides {
        let of_side = nodes.iter().filter(|n| graph.layer(**n).label == *layer);
        let of_side: Vec<NodeId> = of_side.copied().collect();
        let longer = found.iter().flat_map(|begun| {
            of_side.iter().map(|node| {
                let mut begun = begun.clone();
                begun.push((Some(name.clone()), *node));
                begun
            })
        });
        found = longer.collect();
    }
    found
}
