//! What follow-ups would do in a build, said before it: by the results at hand, without writing
//! anything. A condition over results that are still to come may hold; that is all that is said.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Store;

use super::watch::{Known, Look, Watch};
use super::{Cause, Choice};
use crate::engine::decide::{Decider, Decision, Hit};
use crate::engine::forecast::expected_s;
use crate::error::Result;
use crate::graph::NodeId;

/// What follow-ups would do.
#[derive(Debug, Default)]
pub struct Outlook {
    /// Nodes that they bring in, and nodes that they may.
    pub nodes: Vec<Foreseen>,
    /// Names of follow-ups whose budget leaves patterns out, and how many.
    pub left_out: Vec<(String, usize)>,
}

/// A node that a follow-up brings in, or may.
#[derive(Debug)]
pub struct Foreseen {
    /// The node.
    pub node: NodeId,
    /// Plan and id of the follow-up.
    pub followup: String,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a node that a follow-up brings in.
#[derive(Debug)]
pub enum Fate {
    /// The follow-up holds, and this is decided.
    Decided(Cause, Decision),
    /// It depends on results that are still to come, by this condition and within this budget.
    Open(String, Option<f64>),
}

/// What the follow-ups would do after a plan.
///
/// # Errors
/// Those of deciding.
pub fn foresee(
    decider: &Decider<'_>,
    store: &Store,
    choice: &Choice,
    plan: &[(NodeId, Decision)],
) -> Result<Outlook> {
    let mut outlook = Outlook::default();
    let wanted: BTreeSet<NodeId> = plan.iter().map(|(node, _)| *node).collect();
    let mut watch = Watch::new(decider.graph(), choice, &wanted);
    if watch.is_empty() {
        return Ok(outlook);
    }
    let known: BTreeMap<NodeId, Known> = plan
        .iter()
        .map(|(node, decision)| match decision {
            // What is read anew may come to other numbers.
            Decision::Reuse {
                hit: Hit::Rejudge, ..
            } => (*node, Known::Open),
            Decision::Reuse { record, .. } => (*node, Known::Good(*record)),
            Decision::Refused { .. } | Decision::Blocked { .. } => (*node, Known::Bad),
            _ => (*node, Known::Open),
        })
        .collect();
    watch.look(&Look {
        known: &|node| known.get(&node).copied().unwrap_or(Known::Open),
        stands: &|node| super::stands(decider, node),
        record: &|digest| Ok(store.record(digest)?),
    });
    let expected = |node| expected_s(decider, node);
    for up in watch.all() {
        let name = watch.name(up).to_owned();
        let members: Vec<NodeId> = watch.units(up).flatten().copied().collect();
        let Some(cause) = watch.cause(up).cloned() else {
            let (condition, budget_s) = (watch.condition(up).to_owned(), watch.budget_s(up));
            if watch.is_open(up) {
                outlook
                    .nodes
                    .extend(members.into_iter().map(|node| Foreseen {
                        node,
                        followup: name.clone(),
                        fate: Fate::Open(condition.clone(), budget_s),
                    }));
            }
            continue;
        };
        let decisions: RefCell<BTreeMap<NodeId, Decision>> =
            RefCell::new(decider.plan(&members)?.into_iter().collect());
        let mut decided = |node: NodeId| {
            let decision = decisions.borrow_mut().remove(&node);
            outlook.nodes.extend(decision.map(|decision| Foreseen {
                node,
                followup: name.clone(),
                fate: Fate::Decided(cause.clone(), decision),
            }));
        };
        for node in members {
            let at_hand = matches!(
                decisions.borrow().get(&node),
                Some(Decision::Reuse { .. } | Decision::Refused { .. } | Decision::Blocked { .. })
            );
            if at_hand && watch.brought_by(node).is_none() {
                watch.at_hand(up, node, expected(node).unwrap_or(0.0));
                decided(node);
            }
        }
        while let Some(nodes) = watch.next(up, &expected) {
            for node in nodes {
                watch.ended(node, expected(node).unwrap_or(0.0));
                decided(node);
            }
        }
        outlook
            .left_out
            .extend(watch.left_out(up).map(|left| (name.clone(), left)));
    }
    Ok(outlook)
}
