//! Which record the plans of the workspace call for, where they are sound. Under one label there are
//! results of several platforms and settings; what was made last is not what a build would take.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use doe_cache::remote::Mirror;
use doe_cache::{Digest, Store};

use crate::cli::args::Global;
use crate::cli::session;
use crate::engine::decide::Decision;
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::plan::model::{Platform, Workspace};

/// The plans, read when somebody first asks.
pub(super) struct Planned<'g> {
    global: &'g Global,
    workspace: OnceCell<Option<Workspace>>,
}

impl<'g> Planned<'g> {
    pub(super) fn new(global: &'g Global) -> Self {
        let workspace = OnceCell::new();
        Self { global, workspace }
    }

    /// The workspace. What is stored can be looked at whatever is wrong with it.
    pub(super) fn workspace(&self) -> Option<&Workspace> {
        let read = || session::workspace(self.global).ok();
        self.workspace.get_or_init(read).as_ref()
    }

    /// The mirror that the workspace names.
    pub(super) fn mirror(&self) -> Result<Option<Arc<Mirror>>> {
        match self.workspace() {
            Some(workspace) => session::mirror(self.global, workspace),
            None => Ok(None),
        }
    }

    /// # Errors
    /// The options name a platform that the workspace does not have: nobody meant another one.
    pub(super) fn check_platform(&self) -> Result<()> {
        match (&self.global.platform, self.workspace()) {
            (Some(_), Some(workspace)) => session::platform(self.global, workspace).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// What a build on the platform that the options name would take for a label; nothing where it
    /// would run. `None`: the plans do not have it, or are not sound.
    pub(super) fn record(&self, store: &Store, label: &str) -> Option<Option<Digest>> {
        let only = |graph: &Graph<'_>, node: NodeId| graph.label(node).to_string() == label;
        self.taken(store, only).ok()??.remove(label)
    }

    /// What a build would take, by label.
    pub(super) fn records(&self, store: &Store) -> BTreeMap<String, Digest> {
        let found = self.taken(store, |_, _| true);
        let found = found.ok().flatten().unwrap_or_default().into_iter();
        found
            .filter_map(|(label, record)| Some((label, record?)))
            .collect()
    }

    /// What builds would take, on whatever platform.
    ///
    /// # Errors
    /// The plans are not sound, or cannot be decided on: what they would take is not known then.
    pub(super) fn on_any_platform(&self, store: &Store) -> Result<BTreeSet<Digest>> {
        let workspace = session::workspace(self.global)?;
        let mut found = BTreeSet::new();
        for platform in workspace.platforms.values() {
            let taken = taken(store, &workspace, platform, |_, _| true)?;
            found.extend(taken.into_values().flatten());
        }
        Ok(found)
    }

    fn taken(
        &self,
        store: &Store,
        of: impl Fn(&Graph<'_>, NodeId) -> bool,
    ) -> Result<Option<Taken>> {
        let Some(workspace) = self.workspace() else {
            return Ok(None);
        };
        let platform = session::platform(self.global, workspace)?;
        taken(store, workspace, platform, of).map(Some)
    }
}

/// By label: the record that a build would take; nothing where it would run.
type Taken = BTreeMap<String, Option<Digest>>;

/// What a build on a platform would take, of the nodes that are asked for.
fn taken(
    store: &Store,
    workspace: &Workspace,
    platform: &Platform,
    of: impl Fn(&Graph<'_>, NodeId) -> bool,
) -> Result<Taken> {
    let graph = session::graph(workspace)?;
    let decider = session::decider(&graph, platform, store)?;
    let nodes: Vec<NodeId> = graph.nodes().filter(|&node| of(&graph, node)).collect();
    let decisions = decider.plan(&nodes)?.into_iter();
    let found = decisions.map(|(node, decision)| {
        let record = match decision {
            Decision::Reuse { record, .. } | Decision::Refused { record, .. } => Some(record),
            _ => None,
        };
        (graph.label(node).to_string(), record)
    });
    Ok(found.collect())
}
