//! What is known of a node that is to be executed, before it is: what it asks for, what it reads,
//! which attempt it is. Made when it is decided; an attempt that is put off makes the next one of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use doe_cache::{Digest, Manifest, Record, Value};
use serde::Serialize;
use tokio::sync::watch;

use super::context::{Context, attempt_name};
use super::decide::Keyed;
use super::drive::Drive;
use super::followup::with_cause;
use super::intent::{Home, NodeIntent};
use super::key;
use super::prepare::values;
use super::reference;
use super::schedule::TaskId;
use super::scratch::Scratch;
use crate::error::Result;
use crate::graph::{EdgeKind, NodeId};
use crate::label::Label;
use crate::plan::model::Expectation;
use crate::rule::model::Rule;
use crate::rule::retry::RetryPolicy;

/// A node that is to be executed.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Its label.
    pub label: Label,
    /// Its layer.
    pub layer: String,
    /// How it is measured.
    pub rule: Arc<Rule>,
    /// Exactly the rule's parameters.
    pub settings: BTreeMap<String, Value>,
    /// What its numbers should be.
    pub expect: Vec<Expectation>,
    /// The class of the failure that is its result, when it is expected to fail.
    pub expect_class: Option<Arc<str>>,
    /// How often, and after which pauses, it is tried.
    pub retry: Arc<RetryPolicy>,
    /// Which replicate of its pattern it is, from 1.
    pub replicate: u32,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The one before.
    pub previous: Option<Previous>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it stands outside the planned campaign.
    pub exploratory: bool,
    /// What was asked for.
    pub spec: Manifest,
    /// What is executed.
    pub action: Manifest,
    /// Its key.
    pub key: Digest,
    /// What turns its outputs into numbers.
    pub judge: Digest,
    /// Results that it reads.
    pub inputs: Vec<InputRef>,
    /// Roles that it uses.
    pub roles: Vec<String>,
    /// Its task, for the short name of its folder for temporary files.
    pub task: TaskId,
    /// When it got its hosts.
    pub acquired_unix_ms: u64,
    /// Whether its steps have been begun.
    pub running: bool,
    /// What a killed run had begun of it.
    pub resumed: Option<Arc<Resumed>>,
    /// True once it is to end.
    pub cancel: watch::Receiver<bool>,
}

/// An execution that a killed run had begun.
#[derive(Debug)]
pub(super) struct Resumed {
    /// What was announced of it.
    pub intent: NodeIntent,
    /// Temporary files of that run.
    pub scratch: Arc<Scratch>,
}

/// The attempt before one, and the last before it that may have begun something.
#[derive(Debug, Clone)]
pub(super) struct Previous {
    /// The record of the attempt before.
    pub record: Digest,
    /// The run of the last that may have begun something.
    pub run_id: String,
    /// The number of that.
    pub attempt: u32,
    /// What was announced of that; nobody knows where its run was killed.
    pub intent: Option<Arc<NodeIntent>>,
}

impl Previous {
    /// The attempt of a record.
    pub(super) fn of(digest: Digest, record: &Record) -> Self {
        Self {
            record: digest,
            run_id: record.run_id.clone(),
            attempt: record.attempt,
            intent: None,
        }
    }
}

impl Job {
    /// Its name in tokens: another one for every attempt.
    pub(super) fn name(&self) -> String {
        attempt_name(&self.label, self.attempt)
    }

    /// Short name of its folder for temporary files.
    pub(super) fn scratch(&self) -> String {
        match self.attempt {
            1 => format!("n{}", self.task.0),
            more => format!("n{}-{more}", self.task.0),
        }
    }

    pub(super) fn home<'c>(&'c self, context: &'c Context) -> &'c Home {
        match &self.resumed {
            Some(resumed) => &resumed.intent.home,
            None => &context.home,
        }
    }
}

/// A result that a node reads, as its instruments see it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct InputRef {
    /// Label of the pattern.
    pub label: String,
    /// Those of its settings that affect results.
    pub settings: BTreeMap<String, Value>,
    /// Output name to the file with its content.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Output name to the digest of its content.
    #[serde(skip)]
    pub digests: BTreeMap<String, Digest>,
    /// Whether any tool was simulated.
    #[serde(skip)]
    pub simulated: bool,
    /// Whether it is read where it was made, since it was not stored yet.
    #[serde(skip)]
    pub early: bool,
}

impl Drive<'_, '_, '_> {
    /// Fails unless what others of this run may read of a stored result is there. The survey could not
    /// look, as it was not known yet to stand; what is gone shows while its node can still be executed.
    /// Content is hashed by whoever reads it.
    pub(super) fn check_readable(&mut self, node: NodeId, record: Digest) -> Result<()> {
        let is_task = |node: NodeId| self.tasks.iter().any(|task| task.node == node);
        let mut needed_by = self.decider.graph().rdeps(node).into_iter();
        let is_read = |(by, kind): (NodeId, _)| {
            kind == EdgeKind::Data && self.finals[by.index()].is_none() && is_task(by)
        };
        if !needed_by.any(is_read) {
            return Ok(());
        }
        let store = &self.context.store;
        let mut outputs = store.record(&record)?.outputs.into_values();
        match outputs.all(|output| store.cas().size(&output.digest) == Some(output.size_bytes)) {
            true => Ok(()),
            // It says what is wrong, or fetches what came from a mirror and was left there.
            false => self.made.of(store, record).map(drop),
        }
    }

    /// What is known of a task that is to be executed; `key` is the key of `action`.
    pub(super) fn job(
        &mut self,
        task: TaskId,
        keyed: Keyed,
        action: Manifest,
        key: Digest,
    ) -> Result<Job> {
        let planned = &self.tasks[task.index()];
        let graph = self.decider.graph();
        let pattern = graph.pattern(planned.node);
        let mut inputs = Vec::new();
        for (dep, kind) in graph.deps(planned.node) {
            let record = self.known(dep).and_then(|ended| ended.record);
            let (EdgeKind::Data, Some(record)) = (kind, record) else {
                continue;
            };
            let coming = self.coming.get(&dep);
            let made = match coming {
                Some(coming) => coming.made.clone(),
                None => self.made.of(&self.context.store, record)?,
            };
            let outputs = made.outputs.iter();
            inputs.push(InputRef {
                label: graph.label(dep).to_string(),
                digests: outputs.clone().map(|o| (o.0.clone(), o.1)).collect(),
                settings: key::shown_settings(graph.pattern(dep)),
                outputs: outputs.map(|o| (o.0.clone(), o.2.clone())).collect(),
                simulated: made.simulated,
                early: coming.is_some(),
            });
        }
        let cause = self.watch.brought_by(planned.node);
        let cause = cause.and_then(|up| self.watch.cause(up));
        // By label, as they enter the key.
        inputs.sort_by(|a, b| a.label.cmp(&b.label));
        Ok(Job {
            label: pattern.label.clone(),
            layer: graph.layer(planned.node).label.name().to_owned(),
            rule: pattern.rule.clone(),
            settings: values(pattern),
            expect: (pattern.expect.iter().cloned())
                .chain(reference::expectation(self.decider, planned.node))
                .collect(),
            expect_class: pattern.expect_class.clone(),
            retry: pattern.retry.clone(),
            replicate: pattern.replicate,
            attempt: 1,
            previous: None,
            tags: pattern.tags.iter().cloned().collect(),
            exploratory: pattern.adhoc,
            spec: self.line.mark(planned.node, with_cause(keyed.spec, cause)),
            action,
            key,
            judge: keyed.judge,
            inputs,
            roles: planned.roles.clone(),
            task,
            acquired_unix_ms: 0,
            running: false,
            resumed: None,
            cancel: self.cancels.entry(task).or_default().subscribe(),
        })
    }
}
