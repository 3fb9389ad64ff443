//! What a run finds before it begins: which nodes have a result that can be used, and which are to
//! be executed. What the nodes to be executed will read is read here once, so damage shows while
//! nothing runs yet: a damaged result counts as none, and its node is executed again.

use std::collections::BTreeSet;

use doe_cache::{Digest, Store};

use super::decide::{Decider, Hit};
use super::event::Outcome;
use super::made::Known;
use super::resolve::{Final, Resolution, Told, is_damage, resolve, reuse};
use crate::error::{Error, Result};
use crate::graph::{EdgeKind, NodeId};

/// See the module.
pub(super) struct Survey {
    /// By node: those that have ended already.
    pub finals: Vec<Option<Final>>,
    /// The nodes of `finals`, in topological order.
    pub ended: Vec<NodeId>,
    /// What is left, sorted.
    pub tasks: Vec<NodeId>,
    /// Of `tasks`: those that run, and those that may.
    pub planned: (usize, usize),
    /// Records whose numbers were read anew.
    pub rejudged: Vec<Digest>,
    /// What the inputs of the tasks are.
    pub made: Known,
    /// What was damaged.
    pub warnings: Vec<String>,
}

/// Looks at every wanted node; what is `shown` at the end is read.
pub(super) fn survey(
    store: &Store,
    decider: &mut Decider<'_>,
    run_id: &str,
    wanted: &BTreeSet<NodeId>,
    shown: &[NodeId],
) -> Result<Survey> {
    let mut rejudged = Vec::new();
    let mut warnings = Vec::new();
    let mut lost = BTreeSet::new();
    loop {
        let mut told = Told::new(store);
        let found = look(&mut told, decider, run_id, wanted, &mut rejudged);
        // What shares what was found to be damaged is lost with it.
        for record in told.lost()? {
            decider.lose(record);
        }
        // Judged anew is judged anew, whatever else was found.
        told.write()?;
        let (damaged, error) = match found? {
            Ok((finals, ended, tasks, planned)) => {
                let mut made = Known::default();
                let damage = match unreadable(store, decider, &finals, &tasks, &mut made)? {
                    None => unshowable(store, &finals, shown)?,
                    damage => damage,
                };
                match damage {
                    Some(damage) => damage,
                    None => {
                        return Ok(Survey {
                            finals,
                            ended,
                            tasks,
                            planned,
                            rejudged,
                            made,
                            warnings,
                        });
                    }
                }
            }
            Err(damage) => damage,
        };
        if !lost.insert(damaged) {
            // It was given up and yet stands: what is wrong is something else.
            return Err(error);
        }
        decider.lose(damaged);
        let short = damaged.short();
        warnings.push(format!(
            "record {short} cannot be used, what it stands for is executed again: {}",
            error.message
        ));
    }
}

type Damage = (Digest, Error);
type Looked = (Vec<Option<Final>>, Vec<NodeId>, Vec<NodeId>, (usize, usize));

fn look(
    told: &mut Told<'_>,
    decider: &mut Decider<'_>,
    run_id: &str,
    wanted: &BTreeSet<NodeId>,
    rejudged: &mut Vec<Digest>,
) -> Result<std::result::Result<Looked, Damage>> {
    let graph = decider.graph();
    let mut finals: Vec<Option<Final>> = vec![None; graph.len()];
    let (mut ended, mut tasks, mut planned) = (Vec::new(), Vec::new(), (0, 0));
    for &node in graph.order().iter().filter(|node| wanted.contains(node)) {
        let pattern = graph.pattern(node);
        let stop = pattern.repeats.stop.as_ref();
        if stop.is_some_and(|stop| pattern.replicate > stop.min) {
            // Whether there are enough is read from the records before it.
            told.write()?;
        }
        let end = match resolve(
            graph,
            decider,
            |dep: NodeId| finals[dep.index()].as_ref(),
            node,
        )? {
            Resolution::Reuse { record, hit, keyed } => {
                match reuse(told, decider, run_id, node, record, hit, &keyed) {
                    Ok(end) => {
                        rejudged.extend(end.record.filter(|_| hit == Hit::Rejudge));
                        end
                    }
                    Err(error) if is_damage(&error) => return Ok(Err((record, error))),
                    Err(error) => return Err(error),
                }
            }
            Resolution::Enough(why) => Final::without_result(Outcome::Skipped, why),
            Resolution::Blocked(reason) => Final::without_result(Outcome::Blocked, reason),
            Resolution::Run { .. } | Resolution::Wait { runs: true } => {
                planned.0 += 1;
                tasks.push(node);
                continue;
            }
            Resolution::Wait { runs: false } => {
                planned.1 += 1;
                tasks.push(node);
                continue;
            }
        };
        finals[node.index()] = Some(end);
        ended.push(node);
    }
    tasks.sort_unstable();
    Ok(Ok((finals, ended, tasks, planned)))
}

/// The first record of what is shown that cannot be read.
fn unshowable(store: &Store, finals: &[Option<Final>], shown: &[NodeId]) -> Result<Option<Damage>> {
    let ended = shown
        .iter()
        .filter_map(|node| finals[node.index()].as_ref());
    let good = ended.filter(|ended| ended.outcome.is_good());
    for record in good.filter_map(|ended| ended.record) {
        match store.record(&record) {
            Ok(_) => {}
            Err(error) => {
                let error = Error::from(error);
                return if is_damage(&error) {
                    Ok(Some((record, error)))
                } else {
                    Err(error)
                };
            }
        }
    }
    Ok(None)
}

/// The first input of a task that cannot be read.
fn unreadable(
    store: &Store,
    decider: &Decider<'_>,
    finals: &[Option<Final>],
    tasks: &[NodeId],
    made: &mut Known,
) -> Result<Option<Damage>> {
    let graph = decider.graph();
    let mut seen = BTreeSet::new();
    for &task in tasks {
        for (dep, kind) in graph.deps(task) {
            let ended = finals[dep.index()].as_ref();
            let good = ended.filter(|ended| ended.outcome.is_good());
            let record = good.and_then(|ended| ended.record);
            let Some(record) = record.filter(|_| kind == EdgeKind::Data) else {
                continue;
            };
            if !seen.insert(record) {
                continue;
            }
            match made.of(store, record) {
                Ok(_) => {}
                Err(error) if is_damage(&error) => return Ok(Some((record, error))),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}
