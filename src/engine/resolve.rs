//! What becomes of a node once what it needs has ended: blocked, taken from the store, or run.
//! Gates hold back execution only: a result that is at hand is used whatever the gate says.

use std::collections::BTreeMap;

use doe_cache::{Batch, Digest, Encoded, Link, Record, Store, Summary, ValidityStatus};

use super::decide::{Decider, Decision, Hit, Keyed, Why};
use super::event::{CriterionWord, Outcome};
use super::judge::{self, Document};
use super::key::Needs;

use super::prepare::values;
use super::record::{NodeEnd, end_of};
use super::reference;
use crate::error::{Error, Kind, Result};
use crate::graph::{EdgeKind, Graph, NodeId};

/// How a node ended in this run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Final {
    /// In one word.
    pub outcome: Outcome,
    /// Why, when it is not good.
    pub reason: Option<String>,
    /// Class of the failure.
    pub class: Option<String>,
    /// The record that stands for it.
    pub record: Option<Digest>,
    /// Digest of its outputs, when others may use them.
    pub output: Option<Digest>,
    /// Whether its numbers are as expected.
    pub criterion: Option<CriterionWord>,
    /// Expectations that were missed.
    pub missed: Vec<String>,
    /// Whether the record comes from simulated tools.
    pub simulated: bool,
    /// Milliseconds that it took, now or when its result was made.
    pub duration_ms: Option<u64>,
    /// Which attempt it was and how many there may be, when that was a question.
    pub attempt: Option<(u32, u32)>,
}

impl Final {
    /// A node that never began.
    pub(super) fn without_result(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: Some(reason.into()),
            class: None,
            record: None,
            output: None,
            criterion: None,
            missed: Vec::new(),
            simulated: false,
            duration_ms: None,
            attempt: None,
        }
    }
}

/// What is to be done with a node.
pub(super) enum Resolution {
    /// It cannot begin.
    Blocked(String),
    /// A stored result stands for it.
    Reuse {
        /// The record.
        record: Digest,
        /// How it was found.
        hit: Hit,
        /// The keys.
        keyed: Box<Keyed>,
    },
    /// It is to be executed.
    Run {
        /// The keys.
        keyed: Box<Keyed>,
        /// Why.
        why: Why,
    },
    /// A replicate that is not needed.
    Enough(String),
    /// Something it depends on has not ended.
    Wait {
        /// Whether it is known already that it runs, unless a gate stays shut.
        runs: bool,
    },
}

/// Resolves a node by how its dependencies ended.
pub(super) fn resolve<'f>(
    graph: &Graph<'_>,
    decider: &Decider<'_>,
    ended: impl Fn(NodeId) -> Option<&'f Final>,
    node: NodeId,
) -> Result<Resolution> {
    let mut needs = Needs::new();
    let mut waits = false;
    let mut blocked = Vec::new();
    let mut gates = Vec::new();
    let (mut series, mut open) = (Vec::new(), false);
    for (dep, kind) in graph.deps(node) {
        match (kind, ended(dep)) {
            (EdgeKind::Gate, ended) => gates.push((dep, ended)),
            (EdgeKind::Series, None) => open = true,
            (EdgeKind::Series, Some(ended)) => {
                series.push(ended.record.filter(|_| ended.outcome.is_good()));
            }
            // There is none, and none is missing.
            (EdgeKind::Data, Some(ended)) if ended.outcome == Outcome::Skipped => {}
            (EdgeKind::Data, None) => waits = true,
            (
                EdgeKind::Data,
                Some(Final {
                    outcome,
                    output: Some(output),
                    ..
                }),
            ) if outcome.is_good() => {
                let need = decider.need(dep, *output);
                needs.insert(graph.label(dep).clone(), need);
            }
            (EdgeKind::Data, Some(ended)) => {
                blocked.push(format!("needs {}, which {}", graph.label(dep), fate(ended)));
            }
        }
    }
    if let Some(reason) = joined(blocked) {
        return Ok(Resolution::Blocked(reason));
    }
    if waits {
        return Ok(Resolution::Wait { runs: false });
    }
    let (keyed, why) = match decider.decide(node, &needs)? {
        Decision::Reuse {
            record,
            hit,
            keyed: Some(keyed),
            ..
        } => return Ok(Resolution::Reuse { record, hit, keyed }),
        // What was refused is told as it was then.
        Decision::Refused {
            record,
            keyed: Some(keyed),
            ..
        } => {
            return Ok(Resolution::Reuse {
                record,
                hit: Hit::Rejudge,
                keyed,
            });
        }
        Decision::Run { keyed, why } => (keyed, why),
        Decision::Reuse { keyed: None, .. }
        | Decision::Refused { keyed: None, .. }
        | Decision::MayRun { .. }
        | Decision::Blocked { .. }
        | Decision::Enough { .. } => {
            return Err(Error::new(
                Kind::Bug,
                "undecided",
                format!(
                    "{} is undecided although all it needs is known",
                    graph.label(node)
                ),
            ));
        }
    };
    if open {
        return Ok(Resolution::Wait { runs: false });
    }
    if !decider.is_asked(node)
        && let Some(why) = decider.enough(node, &series)
    {
        return Ok(Resolution::Enough(why));
    }
    let mut blocked = Vec::new();
    for (dep, ended) in gates {
        let label = graph.label(dep);
        match ended {
            None => waits = true,
            Some(ended) if !ended.outcome.is_good() => {
                blocked.push(format!("is gated on {label}, which {}", fate(ended)));
            }
            Some(ended) if ended.criterion == Some(CriterionWord::Missed) => {
                let missed = ended.missed.join("; ");
                blocked.push(format!("is gated on {label}, where {missed}"));
            }
            Some(_) => {}
        }
    }
    if let Some(reason) = joined(blocked) {
        return Ok(Resolution::Blocked(reason));
    }
    if waits {
        return Ok(Resolution::Wait { runs: true });
    }
    Ok(Resolution::Run { keyed, why })
}

fn joined(reasons: Vec<String>) -> Option<String> {
    let more = reasons.len().saturating_sub(1);
    let first = reasons.into_iter().next()?;
    Some(match more {
        0 => first,
        more => format!("{first} (and {more} more)"),
    })
}

fn fate(ended: &Final) -> &'static str {
    match ended.outcome {
        Outcome::Failed => "failed",
        Outcome::Invalid => "gave an invalid result",
        Outcome::Blocked => "is blocked itself",
        Outcome::Cancelled => "was cancelled",
        Outcome::Skipped => "was not needed",
        Outcome::Ok | Outcome::Reused => "has no outputs in the store",
    }
}

/// What the store is to be told of reuses: written together, for one sync costs as much as many.
pub(super) struct Told<'s> {
    store: &'s Store,
    links: Vec<Link>,
    records: Vec<Encoded>,
}

impl<'s> Told<'s> {
    /// Records that wait at most: they may be large.
    const MOST: usize = 256;

    /// Nothing yet.
    pub(super) fn new(store: &'s Store) -> Self {
        Self {
            store,
            links: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Whether a record may stand for something: a blob that turned out to be damaged takes every
    /// record with it that has it too, which a snapshot of before does not know.
    fn may_stand(&self, record: &Digest) -> Result<bool> {
        let mut waiting = self.records.iter();
        Ok(waiting.any(|it| it.digest() == *record) || self.store.has_usable(record)?)
    }

    /// Takes links out whose records were lost since; which these are.
    pub(super) fn lost(&mut self) -> Result<Vec<Digest>> {
        let mut lost = Vec::new();
        for link in &self.links {
            if !self.may_stand(&link.record)? {
                lost.push(link.record);
            }
        }
        self.links.retain(|link| !lost.contains(&link.record));
        Ok(lost)
    }

    /// Makes all of it durable.
    pub(super) fn write(&mut self) -> Result<()> {
        if self.links.is_empty() && self.records.is_empty() {
            return Ok(());
        }
        self.store.write(&Batch {
            links: &std::mem::take(&mut self.links),
            records: &std::mem::take(&mut self.records),
            ..Batch::default()
        })?;
        Ok(())
    }
}

/// Whether an error says that what is stored cannot be used: it is then as good as not there. The
/// index says nothing of that, whatever became of it.
pub(super) fn is_damage(error: &Error) -> bool {
    let of_a_result = error.kind == Kind::Integrity && error.code != "index-corrupt";
    of_a_result || error.code == "store-not-found"
}

/// Lets a stored result stand for a node: links its key and label to the record where they led
/// elsewhere, and judges its outputs again where the definitions have changed. What is new of it
/// is in `told` and stands in the store once that is written.
pub(super) fn reuse(
    told: &mut Told<'_>,
    decider: &mut Decider<'_>,
    run_id: &str,
    node: NodeId,
    record: Digest,
    hit: Hit,
    keyed: &Keyed,
) -> Result<Final> {
    if hit == Hit::Rejudge {
        return rejudge(told, decider, run_id, node, record, keyed);
    }
    let graph = decider.graph();
    let label = graph.label(node);
    let text = label.to_string();
    let stands = decider
        .snapshot()
        .current(&text)
        .map(|summary| summary.record);
    if hit == Hit::Action || stands != Some(record) {
        if !told.may_stand(&record)? {
            let what = format!("a record `{}` that may be reused", record.short());
            return Err(doe_cache::Error::not_found(what).into());
        }
        let spec_key = keyed.spec.key();
        decider.learn_link(spec_key, &record, label);
        told.links.push(Link {
            spec_key,
            record,
            label: text,
        });
    }
    let judged = decider.criterion_of(node, || {
        // Perhaps it is one that waits.
        told.write()?;
        Ok(told.store.record(&record)?)
    })?;
    let class = graph.pattern(node).expect_class.as_deref();
    let summary = decider.snapshot().record(&record);
    Ok(Final {
        outcome: Outcome::Reused,
        reason: None,
        class: class.map(str::to_owned),
        record: Some(record),
        output: summary.map(|summary| summary.output_digest),
        criterion: judge::criterion_word(judged.status),
        missed: judge::missed(&judged),
        simulated: summary.is_some_and(|summary| summary.simulated),
        duration_ms: summary.map(|summary| summary.duration_ms),
        attempt: None,
    })
}

/// Reads the numbers out of stored outputs as they are defined now. The new record keeps the
/// times and the provenance of the execution.
fn rejudge(
    told: &mut Told<'_>,
    decider: &mut Decider<'_>,
    run_id: &str,
    node: NodeId,
    from: Digest,
    keyed: &Keyed,
) -> Result<Final> {
    let graph = decider.graph();
    let pattern = graph.pattern(node);
    if let Some(last) = decider.refused(pattern, &from, keyed.judge) {
        let summary = last.summary(last.id()?);
        return Ok(Final {
            record: Some(summary.record),
            ..refused(&last)
        });
    }
    let old = told.store.record(&from)?;
    let mut documents = BTreeMap::new();
    for (name, output) in &old.outputs {
        let is_read = judge::is_read(&pattern.rule, name);
        let schema = pattern
            .rule
            .outputs
            .get(name)
            .and_then(|def| def.schema.as_deref());
        let document = match is_read || schema.is_some() {
            true => Document::read(&told.store.blob(&output.digest)?, schema, is_read),
            false => Document::Raw,
        };
        documents.insert(name.clone(), document);
    }
    let settings = values(pattern);
    let judged = judge::judge(&pattern.rule, &settings, &documents);
    let mut record = Record {
        label: pattern.label.to_string(),
        plan: pattern.label.package().to_owned(),
        layer: graph.layer(node).label.name().to_owned(),
        run_id: run_id.to_owned(),
        judge: keyed.judge,
        rejudged_from: Some(from),
        spec_manifest: super::followup::with_the_same_cause(keyed.spec.clone(), &old),
        action_manifest: match &keyed.action {
            Some((_, manifest)) => manifest.clone(),
            None => old.action_manifest.clone(),
        },
        settings,
        tags: pattern.tags.iter().cloned().collect(),
        exploratory: pattern.adhoc,
        recorded_unix_ms: told.store.stamp_unix_ms(),
        ..old
    };
    // A failure that is the result has no numbers to be read anew.
    if pattern.expect_class.is_none() {
        if pattern.repeats.reference.is_some() {
            // The first one's record is read, which may wait to be written.
            told.write()?;
        }
        let own = pattern.expect.iter().cloned();
        let expect: Vec<_> = own.chain(reference::expectation(decider, node)).collect();
        record.verdicts.criterion = judge::criterion_of(&expect, &judged);
        if judged.validity.status == ValidityStatus::Valid {
            // What its logs were read for when it was refused.
            record.verdicts.execution.class = None;
        }
        record.verdicts.validity = judged.validity;
        (record.metrics, record.texts, record.samples) =
            (judged.metrics, judged.texts, judged.samples);
    }
    record.seal();
    let encoded = record.encode()?;
    let (digest, record) = (encoded.digest(), encoded.record());
    let summary = record.summary(digest);
    let result = match record.verdicts.good() {
        true => Final {
            outcome: Outcome::Reused,
            reason: None,
            output: Some(record.output_digest),
            record: Some(digest),
            ..refused(record)
        },
        false => Final {
            record: Some(digest),
            ..refused(record)
        },
    };
    decider.learn(node, summary);
    told.records.push(encoded);
    if told.records.len() >= Told::MOST {
        told.write()?;
    }
    Ok(result)
}

fn refused(record: &Record) -> Final {
    let ended = end_of(record);
    Final {
        outcome: ended.outcome,
        reason: ended.reason,
        class: ended.class,
        record: None,
        output: None,
        criterion: ended.criterion,
        missed: ended.missed,
        simulated: record.provenance.simulated,
        duration_ms: Some(ended.duration_ms),
        attempt: None,
    }
}

/// The end of an execution, as dependents see it.
pub(super) fn final_of(end: &NodeEnd) -> Final {
    let summary: Option<&Summary> = end.summary.as_ref();
    let good = end.outcome.is_good();
    Final {
        outcome: end.outcome,
        reason: end.reason.clone(),
        class: end.class.clone(),
        record: summary.map(|summary| summary.record),
        output: summary
            .filter(|_| good)
            .map(|summary| summary.output_digest),
        criterion: end.criterion,
        missed: end.missed.clone(),
        simulated: summary.is_some_and(|summary| summary.simulated),
        duration_ms: Some(end.duration_ms),
        attempt: end.attempt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a measurement would be made again because the index is damaged.
    #[test]
    fn a_damaged_index_says_nothing_of_a_result() {
        let damaged = |what: &str| doe_cache::Error::Corrupt {
            what: what.to_owned(),
            detail: "it is cut short".to_owned(),
            quarantined: None,
        };
        assert!(is_damage(&damaged("record `ab`").into()));
        assert!(is_damage(&doe_cache::Error::not_found("blob `ab`").into()));
        assert!(!is_damage(&damaged("the index").into()));
    }
}
