//! The only judge of what must run. It is pure: a graph, a platform and a snapshot of the store
//! go in, a decision comes out, and `build`, `plan`, `explain`, `status` and `check` all ask here.
//! While a node's inputs are not known it says so instead of guessing.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use doe_cache::{
    Change, Class, Digest, ExecutionStatus, Manifest, Record, Snapshot, Summary, ValidityStatus,
};
use serde::Serialize;

use super::enough::enough;
use super::key::{self, Need, Needs};
use super::record::end_of;
use super::rule_key::RuleKey;
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::label::Label;
use crate::plan::model::{Pattern, Platform};
use crate::rule::action::{Action, Binding};
use crate::rule::model::Rule;
use crate::rule::render::render;

/// A node's keys, as far as they were needed.
#[derive(Debug, Clone)]
pub struct Keyed {
    /// What was asked for.
    pub spec: Manifest,
    /// The digest of what turns its outputs into numbers.
    pub judge: Digest,
    /// What would be executed; only rendered when the spec key was not known.
    pub action: Option<(Action, Manifest)>,
}

/// How a stored result was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hit {
    /// The same was asked for before.
    Spec,
    /// Something else was asked for, the same would be executed.
    Action,
    /// The execution stands, its numbers are read from the outputs anew.
    Rejudge,
}

/// Why a node runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// Its label has no record.
    NeverRan,
    /// Its only results lie in quarantine.
    PutAside(String),
    /// What is asked for changed since the label's last record.
    Changed(Vec<Change>),
    /// The last attempt failed or its result was refused.
    LastFailed(String),
    /// The last result may not be used again.
    NotReusable(String),
    /// `--rerun`.
    Asked,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NeverRan => f.write_str("never ran"),
            Why::PutAside(why) => write!(f, "its result is in quarantine: {why}"),
            Why::Asked => f.write_str("asked to run again"),
            Why::LastFailed(reason) => write!(f, "failed when it last ran: {reason}"),
            Why::NotReusable(reason) => write!(f, "the last result is not reusable: {reason}"),
            Why::Changed(changes) => {
                for (at, change) in changes.iter().take(3).enumerate() {
                    if at > 0 {
                        f.write_str("; ")?;
                    }
                    f.write_str(&brief(change))?;
                }
                if changes.len() > 3 {
                    write!(f, "; and {} more", changes.len() - 3)?;
                }
                Ok(())
            }
        }
    }
}

/// A change on one line: values that are long (scripts, digests) are not printed whole.
fn brief(change: &Change) -> String {
    let short = |entry: &Option<doe_cache::Entry>| {
        let text = entry.as_ref().map(|e| e.value.to_string());
        text.filter(|t| t.len() <= 60 && !t.contains('\n'))
    };
    match (short(&change.old), short(&change.new)) {
        (Some(_), Some(_)) if change.path.starts_with("need.") => {
            let need = &change.path["need.".len()..];
            match need.strip_suffix(".settings") {
                Some(label) => format!("other settings of {label}"),
                None => format!("new output of {}", need.trim_end_matches(".output")),
            }
        }
        (Some(old), Some(new)) if !change.path.starts_with("rule.definition") => {
            format!("{} {old} -> {new}", change.path)
        }
        _ if change.old.is_none() => format!("{} is new", change.path),
        _ if change.new.is_none() => format!("{} is gone", change.path),
        _ => format!("{} changed", change.path),
    }
}

/// What is to be done with a node.
#[derive(Debug, Clone)]
pub enum Decision {
    /// A stored result stands for it.
    Reuse {
        /// The record.
        record: Digest,
        /// The digest of its outputs, which enters the keys of dependents.
        output: Digest,
        /// How it was found.
        hit: Hit,
        /// The keys; a plan keeps none, for a hundred thousand would be most of its memory.
        keyed: Option<Box<Keyed>>,
    },
    /// An execution stands for it whose numbers were refused when they were read anew: a build says
    /// so again and runs nothing.
    Refused {
        /// The record of the execution.
        record: Digest,
        /// The keys, as above.
        keyed: Option<Box<Keyed>>,
        /// What does not hold.
        why: String,
    },
    /// It must run.
    Run {
        /// The keys.
        keyed: Box<Keyed>,
        /// Why.
        why: Why,
    },
    /// Whether it must run shows when these have run.
    MayRun {
        /// What it waits for.
        because: Vec<NodeId>,
    },
    /// What it needs was refused, or is blocked itself: a build says so, and runs nothing of it.
    Blocked {
        /// What it needs of that.
        because: Vec<NodeId>,
    },
    /// A replicate that is not needed: those before it say enough.
    Enough {
        /// What they say.
        why: String,
    },
}

impl Decision {
    /// Whether it is executed, for sure or perhaps.
    pub fn may_run(&self) -> bool {
        matches!(self, Decision::Run { .. } | Decision::MayRun { .. })
    }

    /// Whether nothing is to be done, and nothing is wrong.
    pub fn is_settled(&self) -> bool {
        let enough = matches!(self, Decision::Reuse { .. } | Decision::Enough { .. });
        enough && !self.is_read_anew()
    }

    /// Whether the next build reads its numbers out of stored outputs, as they are defined now.
    pub fn is_read_anew(&self) -> bool {
        let Decision::Reuse { hit, .. } = self else {
            return false;
        };
        *hit == Hit::Rejudge
    }
}

/// Fetches a record, to say why a node runs; decisions themselves never need one.
pub type History<'w> = Box<dyn Fn(&Digest) -> Option<Record> + Send + Sync + 'w>;

/// Says whether a record's file is there.
pub type Present<'w> = Box<dyn Fn(&Digest) -> bool + Send + Sync + 'w>;

/// The judge with what it judges by.
pub struct Decider<'w> {
    graph: &'w Graph<'w>,
    platform: &'w Platform,
    snapshot: Snapshot,
    history: History<'w>,
    present: Option<Present<'w>>,
    /// Records that no file here need have: of a mirror, or about to be written.
    elsewhere: BTreeSet<Digest>,
    rerun: BTreeSet<NodeId>,
    /// Records whose outputs cannot be had: they stand for nothing.
    lost: BTreeSet<Digest>,
    /// By node, once asked for: the digest of the settings that dependents see.
    shown: Vec<OnceLock<Digest>>,
    /// By the address of the rule, which the graph keeps where it is: what is the same for all of
    /// its nodes.
    rules: RwLock<HashMap<usize, Arc<RuleKey>>>,
}

impl<'w> Decider<'w> {
    /// A judge over one graph, one platform and one state of the store.
    pub fn new(
        graph: &'w Graph<'w>,
        platform: &'w Platform,
        snapshot: Snapshot,
        history: History<'w>,
    ) -> Self {
        Self {
            graph,
            platform,
            snapshot,
            history,
            present: None,
            elsewhere: BTreeSet::new(),
            rerun: BTreeSet::new(),
            lost: BTreeSet::new(),
            shown: vec![OnceLock::new(); graph.len()],
            rules: RwLock::default(),
        }
    }

    /// Holds against the files what the snapshot says is stored: the index may know of a record
    /// that is gone.
    pub fn looking(mut self, present: Present<'w>) -> Self {
        self.present = Some(present);
        self
    }

    fn stands(&self, record: &Digest) -> bool {
        let present = self.present.as_ref();
        let there = || present.is_none_or(|present| present(record));
        !self.lost.contains(record) && (self.elsewhere.contains(record) || there())
    }

    /// What dependents see of a node once it has these outputs.
    pub fn need(&self, node: NodeId, output: Digest) -> Need {
        let shown = || key::shown_digest(self.graph.pattern(node));
        Need {
            output,
            settings: *self.shown[node.index()].get_or_init(shown),
        }
    }

    fn rule_key(&self, rule: &Arc<Rule>) -> Result<Arc<RuleKey>> {
        let address = Arc::as_ptr(rule).addr();
        let known = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&address) {
            return Ok(found.clone());
        }
        drop(known);
        let made = Arc::new(RuleKey::new(rule, self.platform)?);
        let mut known = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(address).or_insert(made).clone())
    }

    /// Nodes that run again whatever the store holds.
    pub fn rerun(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        self.rerun.extend(nodes);
        self
    }

    /// Whether a node runs whatever the store holds.
    pub(super) fn is_asked(&self, node: NodeId) -> bool {
        self.rerun.contains(&node)
    }

    /// What it judges.
    pub fn graph(&self) -> &'w Graph<'w> {
        self.graph
    }

    /// Where it would run.
    pub fn platform(&self) -> &'w Platform {
        self.platform
    }

    /// What is known of the store.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Takes in what was made since the snapshot, though it may not be durable yet; a node that was asked to run again has.
    pub fn learn(&mut self, node: NodeId, summary: Summary) {
        self.rerun.remove(&node);
        self.absorb(summary);
    }

    /// Takes in that a spec key now stands for a record.
    pub fn learn_link(&mut self, spec: Digest, record: &Digest, label: &Label) {
        self.snapshot.link(spec, record, &label.to_string());
    }

    /// Takes in a record that was made elsewhere, or whose file may still be on its way.
    pub fn absorb(&mut self, summary: Summary) {
        self.elsewhere.insert(summary.record);
        self.snapshot.insert(summary);
    }

    /// From now on this record stands for nothing: its outputs cannot be had.
    pub fn lose(&mut self, record: Digest) {
        self.lost.insert(record);
    }

    /// Whether a record was given up so.
    pub(super) fn is_lost(&self, record: &Digest) -> bool {
        self.lost.contains(record)
    }

    /// A record that was kept.
    pub(super) fn record(&self, digest: &Digest) -> Option<Record> {
        (self.history)(digest)
    }

    /// The record of the label's last attempt.
    pub fn last(&self, label: &Label) -> Option<Record> {
        let summary = self.snapshot.latest(&label.to_string())?;
        (self.history)(&summary.record)
    }

    /// Decides about a node whose inputs are all known.
    pub fn decide(&self, node: NodeId, needs: &Needs) -> Result<Decision> {
        let pattern = self.graph.pattern(node);
        let rule = self.rule_key(&pattern.rule)?;
        let spec = key::spec_manifest_of(&rule, pattern, self.platform, needs);
        let judge = rule.judge.digest(pattern);
        let asked = self.rerun.contains(&node);
        let spec_key = spec.key();
        if !asked && let Some(found) = self.asked_before(&pattern.label, &spec_key, judge) {
            let hit = if found.judge == judge {
                Hit::Spec
            } else {
                Hit::Rejudge
            };
            let keyed = Box::new(Keyed {
                spec,
                judge,
                action: None,
            });
            return Ok(self.reuse(pattern, found, hit, keyed));
        }
        let settings = pattern.settings.iter();
        let settings = settings.map(|(name, setting)| (name, &setting.value));
        let action = render(&pattern.rule, settings, &Binding::Symbolic)?;
        let manifest = key::action_manifest(pattern, &action, &spec);
        let action_key = manifest.key();
        let keyed = Box::new(Keyed {
            spec,
            judge,
            action: Some((action, manifest)),
        });
        if asked {
            return Ok(Decision::Run {
                keyed,
                why: Why::Asked,
            });
        }
        if let Some(found) = self.snapshot.by_action(&action_key)
            && self.stands(&found.record)
        {
            let hit = if found.judge == judge {
                Hit::Action
            } else {
                Hit::Rejudge
            };
            return Ok(self.reuse(pattern, found, hit, keyed));
        }
        let why = self.why(node, &keyed);
        Ok(Decision::Run { keyed, why })
    }

    fn reuse(&self, pattern: &Pattern, found: &Summary, hit: Hit, keyed: Box<Keyed>) -> Decision {
        if hit == Hit::Rejudge
            && let Some(refused) = self.refused(pattern, &found.record, keyed.judge)
        {
            return Decision::Refused {
                record: found.record,
                keyed: Some(keyed),
                why: end_of(&refused).reason.unwrap_or_default(),
            };
        }
        Decision::Reuse {
            record: found.record,
            output: found.output_digest,
            hit,
            keyed: Some(keyed),
        }
    }

    /// The record that says that the numbers of an execution were read anew as they are to be read
    /// now, and refused: a good one would have been found by its key.
    pub(super) fn refused(
        &self,
        pattern: &Pattern,
        from: &Digest,
        judge: Digest,
    ) -> Option<Record> {
        let latest = self.snapshot.latest(&pattern.label.to_string())?;
        // Mostly it says enough, and no record is read.
        if latest.judge != judge || latest.validity == ValidityStatus::Valid {
            return None;
        }
        let last = (self.history)(&latest.record)?;
        // What validity looks at of the settings is in the judge's digest.
        (last.rejudged_from == Some(*from)).then_some(last)
    }

    /// What stands for a spec key. Patterns that differ only in how they are judged share one, and
    /// each has its own record.
    fn asked_before(&self, label: &Label, spec: &Digest, judge: Digest) -> Option<&Summary> {
        let found = self.snapshot.by_spec(spec)?;
        let own = || {
            let own = self.snapshot.current(&label.to_string())?;
            (own.spec_key == *spec && own.judge == judge && self.stands(&own.record)).then_some(own)
        };
        let own = if found.judge == judge { None } else { own() };
        own.or_else(|| self.stands(&found.record).then_some(found))
    }

    /// Why a replicate is not needed after those before it, in their order; those without a result
    /// have no record.
    pub(super) fn enough(&self, node: NodeId, series: &[Option<Digest>]) -> Option<String> {
        let pattern = self.graph.pattern(node);
        let stop = pattern.repeats.stop.as_ref()?;
        if pattern.replicate <= stop.min {
            return None;
        }
        let values = series.iter().flatten().filter_map(|record| {
            let record = (self.history)(record)?;
            Some(record.metrics.get(&stop.metric)?.value)
        });
        enough(stop, &values.collect::<Vec<_>>())
    }

    fn why(&self, node: NodeId, keyed: &Keyed) -> Why {
        let label = self.graph.label(node);
        let label = label.to_string();
        let Some(latest) = self.snapshot.latest(&label) else {
            return match self.snapshot.refused(&label) {
                Some(why) => Why::PutAside(why.to_owned()),
                None => Why::NeverRan,
            };
        };
        let Some(last) = (self.history)(&latest.record) else {
            return Why::NotReusable("its record is no longer in the store".to_owned());
        };
        let changes: Vec<Change> = Manifest::diff(&last.spec_manifest, &keyed.spec)
            .into_iter()
            .filter(|change| change.class == Class::Result)
            .collect();
        if !changes.is_empty() {
            return Why::Changed(changes);
        }
        let execution = &last.verdicts.execution;
        if execution.status != ExecutionStatus::Ok {
            let reason = execution.reason.clone();
            return Why::LastFailed(reason.unwrap_or_else(|| execution.status.to_string()));
        }
        if !last.verdicts.good() {
            let failed = last.verdicts.validity.failed.join("; ");
            return Why::LastFailed(format!("its result was refused: {failed}"));
        }
        Why::NotReusable(
            last.not_reusable_because
                .unwrap_or_else(|| "its outputs are no longer in the store".to_string()),
        )
    }
}
