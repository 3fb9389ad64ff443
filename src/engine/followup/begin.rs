//! How follow-ups join a run: at its begin by the results that are at hand, then whenever a result
//! becomes final. Each is told with its cause before anything of it begins; its patterns wait in
//! the schedule from the start and hold nothing until they are let in.

use std::collections::BTreeSet;

use doe_cache::{Class, Manifest, Store};

use super::watch::{Known, Look, Watch};
use super::{CAUSE, Cause};
use crate::engine::decide::{Decider, Hit};
use crate::engine::drive::Drive;
use crate::engine::event::Body;
use crate::engine::forecast::expected_s;
use crate::engine::journal::Journal;
use crate::engine::resolve::{Final, Resolution, Told, is_damage, resolve, reuse};
use crate::engine::schedule::TaskId;
use crate::error::Result;
use crate::graph::NodeId;

/// What the results at hand call for.
#[derive(Debug, Default)]
pub(in crate::engine) struct Opening {
    /// Follow-ups that hold.
    held: Vec<usize>,
    /// Their patterns whose results are at hand.
    pub reused: Vec<NodeId>,
    /// Records among these whose numbers were read anew.
    pub rejudged: Vec<doe_cache::Digest>,
    /// What may have to be executed, in no order.
    pub candidates: BTreeSet<NodeId>,
    /// Whether any of it begins at once.
    pub begins: bool,
    /// What was damaged.
    pub damaged: Vec<String>,
    wrong: Vec<String>,
}

/// Looks at the results at hand, and takes those of the follow-ups that hold.
pub(in crate::engine) fn at_the_begin(
    watch: &mut Watch<'_>,
    store: &Store,
    decider: &mut Decider<'_>,
    run_id: &str,
    finals: &mut [Option<Final>],
) -> Result<Opening> {
    let mut opening = Opening::default();
    if watch.is_empty() {
        return Ok(opening);
    }
    (opening.held, opening.wrong) = look(watch, store, decider, finals, None);
    for up in opening.held.clone() {
        let units: Vec<Vec<NodeId>> = watch.units(up).map(<[NodeId]>::to_vec).collect();
        for node in units.into_iter().flatten() {
            if finals[node.index()].is_some() {
                continue;
            }
            let Some(ended) = at_hand(&mut opening, store, decider, run_id, finals, node)? else {
                continue;
            };
            watch.at_hand(up, node, ended.duration_ms.unwrap_or(0) as f64 / 1000.0);
            finals[node.index()] = Some(ended);
            opening.reused.push(node);
        }
    }
    for up in watch.all() {
        if watch.cause(up).is_some() || watch.is_open(up) {
            let nodes = watch.units(up).flatten().copied();
            let missing = nodes.filter(|node| finals[node.index()].is_none());
            opening.candidates.extend(missing);
        }
        opening.begins |= watch.would_begin(up, &|node| expected_s(decider, node));
    }
    Ok(opening)
}

/// The result of a node that is at hand, if one is. A damaged one is none.
fn at_hand(
    opening: &mut Opening,
    store: &Store,
    decider: &mut Decider<'_>,
    run_id: &str,
    finals: &[Option<Final>],
    node: NodeId,
) -> Result<Option<Final>> {
    loop {
        let known = |dep: NodeId| finals[dep.index()].as_ref();
        let resolved = resolve(decider.graph(), decider, known, node)?;
        let Resolution::Reuse { record, hit, keyed } = resolved else {
            return Ok(None);
        };
        let mut told = Told::new(store);
        match reuse(&mut told, decider, run_id, node, record, hit, &keyed) {
            Ok(ended) => {
                told.write()?;
                let rejudged = ended.record.filter(|_| hit == Hit::Rejudge);
                opening.rejudged.extend(rejudged);
                return Ok(Some(ended));
            }
            Err(error) if is_damage(&error) && !decider.is_lost(&record) => {
                decider.lose(record);
                let short = record.short();
                opening.damaged.push(format!(
                    "record {short} cannot be used, what it stands for is executed again: {}",
                    error.message
                ));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Tells what the results at hand called for.
pub(in crate::engine) fn tell_opening(
    watch: &mut Watch<'_>,
    journal: &mut Journal<'_>,
    decider: &Decider<'_>,
    finals: &[Option<Final>],
    opening: &Opening,
) {
    for message in &opening.wrong {
        journal.warn("followup", message.clone(), None);
    }
    for &up in &opening.held {
        tell_held(watch, journal, decider, up);
    }
    for &node in &opening.reused {
        let label = decider.graph().label(node);
        if let (Some(ended), Some(up)) = (&finals[node.index()], watch.brought_by(node)) {
            journal
                .brought
                .insert(label.clone(), watch.name(up).to_owned());
            journal.finished(label, ended);
        }
    }
    journal.flush();
}

/// Tells which budgets leave something out for which nothing is under way any more.
pub(in crate::engine) fn tell_left_out(watch: &mut Watch<'_>, journal: &mut Journal<'_>) {
    for up in watch.all() {
        let Some(left) = watch.left_out(up) else {
            continue;
        };
        let budget = watch.budget_s(up).map_or_else(String::new, |seconds| {
            format!(" of {}", crate::engine::ready::human_s(seconds))
        });
        let plural = if left == 1 { "" } else { "s" };
        let message = format!(
            "follow-up {}: its budget{budget} leaves out {left} pattern{plural}",
            watch.name(up)
        );
        journal.warn("followup-budget", message, None);
    }
}

fn tell_held(watch: &Watch<'_>, journal: &mut Journal<'_>, decider: &Decider<'_>, up: usize) {
    let Some(cause) = watch.cause(up) else { return };
    let graph = decider.graph();
    let patterns: Vec<NodeId> = watch
        .units(up)
        .filter_map(|unit| unit.last().copied())
        .collect();
    let estimate_s = patterns.iter().map(|node| expected_s(decider, *node)).sum();
    journal.tell(Body::Followup {
        followup: cause.followup.clone(),
        when: cause.when.clone(),
        cause: cause.to_string(),
        results: cause.results.clone(),
        values: cause
            .values
            .iter()
            .map(|(name, value)| (name.clone(), value.to_json()))
            .collect(),
        patterns: patterns
            .iter()
            .map(|node| graph.label(*node).to_string())
            .collect(),
        budget_s: watch.budget_s(up),
        estimate_s,
        exploratory: true,
    });
}

fn look(
    watch: &mut Watch<'_>,
    store: &Store,
    decider: &Decider<'_>,
    finals: &[Option<Final>],
    node: Option<NodeId>,
) -> (Vec<usize>, Vec<String>) {
    let known = |node: NodeId| match &finals[node.index()] {
        None => Known::Open,
        Some(Final {
            outcome,
            record: Some(record),
            ..
        }) if outcome.is_good() => Known::Good(*record),
        Some(_) => Known::Bad,
    };
    let look = Look {
        known: &known,
        stands: &|node| super::stands(decider, node),
        record: &|digest| Ok(store.record(digest)?),
    };
    match node {
        Some(node) => watch.look_at_node(node, &look),
        None => watch.look(&look),
    }
}

/// The spec manifest of a node that a follow-up brought in, with the cause. It enters no key.
pub(in crate::engine) fn with_cause(mut spec: Manifest, cause: Option<&Cause>) -> Manifest {
    if let Some(cause) = cause {
        let text = format!("{}: {cause}", cause.followup);
        spec.set(CAUSE, text, Class::Cosmetic);
    }
    spec
}

impl Drive<'_, '_, '_> {
    /// Begins what the results at hand called for.
    pub(in crate::engine) fn begin_follow_ups(&mut self) {
        for up in self.watch.all() {
            self.begin_more(up);
        }
    }

    /// A node has ended: follow-ups may hold now, or go on.
    pub(in crate::engine) fn follow_up(&mut self, node: NodeId) {
        if self.watch.is_empty() {
            return;
        }
        let ended = self.finals[node.index()].as_ref();
        let ran = ended.filter(|ended| ended.outcome != crate::engine::event::Outcome::Blocked);
        let seconds = ran.and_then(|ended| ended.duration_ms).unwrap_or(0) as f64 / 1000.0;
        if let Some(up) = self.watch.ended(node, seconds) {
            self.begin_more(up);
            return;
        }
        let store = self.context.store.clone();
        let (held, wrong) = look(
            &mut self.watch,
            &store,
            self.decider,
            &self.finals,
            Some(node),
        );
        for message in wrong {
            self.journal.warn("followup", message, None);
        }
        for up in held {
            tell_held(&self.watch, self.journal, self.decider, up);
            self.begin_more(up);
        }
    }

    /// How everything ended, as a node sees it that a follow-up brought in: the missed expectation
    /// that called for it is no reason to hold it back.
    pub(in crate::engine) fn forgiven(&self, node: NodeId) -> Option<Vec<Option<Final>>> {
        let cause = self.watch.cause(self.watch.brought_by(node)?)?;
        let graph = self.decider.graph();
        let gates = graph.deps(node).into_iter().filter(|(dep, _)| {
            let label = graph.label(*dep).to_string();
            cause.results.contains(&label)
        });
        let mut gates = gates.peekable();
        gates.peek()?;
        let mut finals = self.finals.clone();
        for (gate, _) in gates {
            if let Some(ended) = &mut finals[gate.index()] {
                ended.criterion = None;
            }
        }
        Some(finals)
    }

    fn begin_more(&mut self, up: usize) {
        if self.scheduler.is_draining() {
            return;
        }
        loop {
            let decider = &*self.decider;
            let next = self.watch.next(up, &|node| expected_s(decider, node));
            let Some(nodes) = next else { break };
            for node in nodes {
                self.let_in(up, node);
            }
        }
    }

    fn let_in(&mut self, up: usize, node: NodeId) {
        let label = self.decider.graph().label(node);
        let found = self.tasks.iter().position(|task| task.node == node);
        let Some(task) = found.map(|at| TaskId(at as u32)) else {
            let why = self.unfit.as_deref().unwrap_or("it was not prepared");
            let message = format!("follow-up {} cannot run here: {why}", self.watch.name(up));
            self.watch.ended(node, 0.0);
            self.journal.warn("followup", message, Some(label));
            return;
        };
        let name = self.watch.name(up).to_owned();
        self.journal.brought.insert(label.clone(), name);
        self.scheduler.let_in(task);
        self.announce_one(task);
    }
}
