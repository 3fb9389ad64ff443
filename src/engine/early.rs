//! What a pure node has made may be read before its record is durable: analyses that stand on
//! analyses do not wait for the disk between them. Nothing is told of it before it is durable, and
//! records are written in the order in which they were made. Whoever reads such a result names it by
//! digest and holds it against that afterwards, so what was made of it holds whatever becomes of
//! the record; one that could not be stored stands for nothing from then on.

use std::sync::Arc;

use doe_cache::Digest;

use super::drive::Drive;
use super::made::Made;
use super::record::NodeEnd;
use super::resolve::{Final, final_of};
use super::schedule::TaskId;
use crate::graph::{EdgeKind, NodeId};
use crate::rule::model::RuleKind;

/// Results that are on their way at most: each holds its logs and its record in memory.
const MOST: usize = 256;

/// A result that is on its way to the disk.
#[derive(Debug)]
pub(super) struct Early {
    /// How the node ends once it is there.
    pub end: NodeEnd,
    /// What those that need it read, where it was made.
    pub made: Made,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Coming {
    task: TaskId,
    ended: Final,
    pub(super) made: Arc<Made>,
}

impl Drive<'_, '_, '_> {
    /// How a node ended, or will have when what it made is durable.
    pub(super) fn known(&self, node: NodeId) -> Option<&Final> {
        let ended = self.finals[node.index()].as_ref();
        ended.or_else(|| self.coming.get(&node).map(|coming| &coming.ended))
    }

    /// A task has made all that it makes: those that need it may begin, when they too are pure.
    pub(super) fn made(&mut self, task: TaskId, early: Early) {
        let node = self.tasks[task.index()].node;
        let is_full = self.coming.len() >= MOST;
        if self.fail_fast || is_full || !self.is_for_analyses_only(node) {
            return;
        }
        let ended = final_of(&early.end);
        let Some(summary) = early.end.summary else {
            return;
        };
        self.decider.learn(node, summary);
        let made = Arc::new(early.made);
        self.coming.insert(node, Coming { task, ended, made });
        self.scheduler.finish(task);
    }

    /// What a task made is durable, or could not be stored.
    pub(super) fn arrived(&mut self, task: TaskId, end: &NodeEnd) {
        let node = self.tasks[task.index()].node;
        let Some(Coming { ended, made, .. }) = self.coming.remove(&node) else {
            return;
        };
        let Some(record) = ended.record else { return };
        match end.summary {
            Some(_) => self.made.insert(&self.context.store, record, &made),
            None => self.decider.lose(record),
        }
    }

    /// The task that made a record which is not durable yet.
    pub(super) fn maker_of(&self, record: Digest) -> Option<TaskId> {
        let mut coming = self.coming.values();
        let made = coming.find(|coming| coming.ended.record == Some(record));
        made.map(|coming| coming.task)
    }

    fn is_for_analyses_only(&self, node: NodeId) -> bool {
        let graph = self.decider.graph();
        graph.rdeps(node).into_iter().all(|(next, kind)| {
            kind == EdgeKind::Data && graph.pattern(next).rule.kind == RuleKind::Analysis
        })
    }
}
