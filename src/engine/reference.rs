//! The reference of a plan: one pattern that is measured again and again between the others, so that
//! what drifts with time is seen. Its replicates are spread evenly over what runs; each is held
//! against the first, and one that is too far from it has missed an expectation, which is told, kept
//! and shown like any other. What waits for what is made so that no order of needs can be in its way.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Decider;
use super::prepare::values;
use crate::graph::{Graph, NodeId};
use crate::plan::model::{Condition, Expectation};
use crate::rule::model::RuleKind;

/// For every node that has to wait: nodes that must have ended before it, however they did. The
/// nodes stand in line; those that may never begin are not among `sure`, which is sorted, and
/// nobody waits for them.
pub(super) fn waits(
    graph: &Graph<'_>,
    line: &[NodeId],
    sure: &[NodeId],
) -> BTreeMap<NodeId, Vec<NodeId>> {
    let line: Vec<NodeId> = line
        .iter()
        .copied()
        .filter(|node| sure.binary_search(node).is_ok())
        .collect();
    let mut waits: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    let mut references: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for &node in &line {
        if graph.pattern(node).repeats.reference.is_some() {
            let package = graph.label(node).package();
            references.entry(package).or_default().push(node);
        }
    }
    for (package, mut references) in references {
        references.sort_by_key(|node| graph.pattern(*node).replicate);
        // Who needs the reference or is needed by it has its place already.
        let near: BTreeSet<NodeId> = [false, true]
            .into_iter()
            .flat_map(|along| graph.closure(&references, along))
            .collect();
        let between: Vec<NodeId> = line
            .iter()
            .copied()
            .filter(|node| {
                let measures = graph.pattern(*node).rule.kind == RuleKind::Measure;
                measures && graph.label(*node).package() == package && !near.contains(node)
            })
            .collect();
        let gaps = (references.len() - 1).max(1);
        let size = between.len().div_ceil(gaps).max(1);
        let mut gap: BTreeMap<NodeId, usize> = line.iter().map(|node| (*node, 0)).collect();
        gap.extend(
            between
                .iter()
                .enumerate()
                .map(|(at, node)| (*node, at / size)),
        );
        // Nobody stands in an earlier gap than what it depends on.
        for &node in graph.order() {
            let Some(mut own) = gap.get(&node).copied() else {
                continue;
            };
            let deps = graph.deps(node).into_iter();
            own = deps
                .filter_map(|(dep, _)| gap.get(&dep))
                .fold(own, |a, b| a.max(*b));
            gap.insert(node, own);
        }
        for node in between {
            let at = gap[&node];
            if let Some(before) = references.get(at) {
                waits.entry(node).or_default().push(*before);
            }
            if let Some(behind) = references.get(at + 1) {
                waits.entry(*behind).or_default().push(node);
            }
        }
        for pair in references.windows(2) {
            waits.entry(pair[1]).or_default().push(pair[0]);
        }
    }
    waits
}

/// What a further replicate of a reference is held against: the metric of the first one, or of the
/// first that is good when that is not. What stands for other settings or another platform says
/// nothing about drift.
pub(super) fn expectation(decider: &Decider<'_>, node: NodeId) -> Option<Expectation> {
    let pattern = decider.graph().pattern(node);
    let reference = pattern.repeats.reference.as_ref()?;
    let settings = values(pattern);
    let platform = &decider.platform().name;
    let mut before = (1..pattern.replicate).map(|at| pattern.label.replicate(at));
    let (first, value) = before.find_map(|label| {
        let standing = decider.snapshot().current(&label.to_string())?;
        let record = decider.record(&standing.record)?;
        let same = record.settings == settings && record.provenance.platform == *platform;
        let value = record.metrics.get(&reference.metric)?.value;
        (same && record.verdicts.good()).then_some((label, value))
    })?;
    let reach = value.abs() * reference.within;
    let (low, high) = (value - reach, value + reach);
    Some(Expectation {
        metric: reference.metric.clone(),
        condition: Condition::Range { low, high },
        text: format!("within {} % of {value} ({first})", reference.within * 100.0),
        site: pattern.site.clone(),
    })
}
