//! What a run could not end: a host did not answer when a step or a service was to be stopped. It
//! is told, its announcement stays open, and nothing that would run beside it is begun without
//! ending it first. A run has a mark in the store from its begin until nothing is left of it, by which
//! whoever looks next finds it, however it ended and however long ago.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use doe_cache::{Run, RunStatus, Store};

use super::context::Context;
use super::drive::Drive;
use super::intent::{NodeIntent, Open, read};
use super::judge::Cause;
use super::schedule::ServiceId;
use super::services::{Instance, ServiceDef, ServiceFailure};
use crate::error::{Error, Result};
use crate::exec::Token;
use crate::label::Label;

/// Something that is to be told.
#[derive(Debug)]
struct Untold {
    code: &'static str,
    message: String,
    label: Option<Label>,
}

/// What a run could not end so far.
#[derive(Debug, Default)]
pub(super) struct Unended(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    open: HashSet<Token>,
    untold: Vec<Untold>,
    /// Services that are to know it before their next start.
    services: Vec<(ServiceId, Token)>,
}

impl Unended {
    /// Something of an execution (its token) could not be ended: `what` is the begin of a sentence.
    pub(super) fn of_node(&self, execution: &Token, label: &Label, what: &str, why: &Error) {
        self.note(
            execution,
            Untold {
                code: "step-left",
                message: format!("{what} could not be ended and may still run: {why}"),
                label: Some(label.clone()),
            },
        );
    }

    /// A service could not be stopped.
    pub(super) fn of_service(&self, instance: &Instance, why: &Error) {
        let (def, token) = (&instance.def, &instance.handle.token);
        let message = format!("service `{}` could not be stopped: {why}", def.name);
        self.service(def, token, message);
    }

    /// Whether a service was started is not known: its host did not answer.
    pub(super) fn of_start(&self, def: &ServiceDef, token: &Token, why: &Error) {
        if Cause::of(why).is_some() {
            let message = format!("service `{}` may have been started: {why}", def.name);
            self.service(def, token, message);
        }
    }

    fn service(&self, def: &ServiceDef, token: &Token, message: String) {
        let code = "service-left";
        let untold = Untold {
            code,
            message,
            label: None,
        };
        self.note(token, untold);
        self.again(def.id, token.clone());
    }

    /// A service is to end this before its next start.
    fn again(&self, service: ServiceId, token: Token) {
        self.state().services.push((service, token));
    }

    /// What an earlier run left could not be ended now either.
    pub(super) fn of_others(&self, tokens: impl IntoIterator<Item = Token>) {
        self.state().open.extend(tokens);
    }

    fn note(&self, token: &Token, untold: Untold) {
        let mut state = self.state();
        // Said once, however many parts of it there are.
        if state.open.insert(token.clone()) {
            state.untold.push(untold);
        }
    }

    /// Whether something of this may still run.
    pub(super) fn has(&self, token: &Token) -> bool {
        self.state().open.contains(token)
    }

    /// It was ended after all.
    pub(super) fn ended(&self, token: &Token) {
        self.state().open.remove(token);
    }

    /// Whether everything was ended.
    pub(super) fn is_empty(&self) -> bool {
        self.state().open.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drive<'_, '_, '_> {
    /// Whether nothing is left that the next run has to end.
    pub(super) fn is_all_over(&self) -> bool {
        self.outstanding == 0 && self.context.unended.is_empty()
    }

    /// Tells what could not be ended since the last time; services remember it for their next start.
    pub(super) fn tell_unended(&mut self) {
        let (untold, services) = {
            let mut state = self.context.unended.state();
            let untold = std::mem::take(&mut state.untold);
            (untold, std::mem::take(&mut state.services))
        };
        for Untold {
            code,
            message,
            label,
        } in untold
        {
            self.journal.warn(code, message, label.as_ref());
        }
        for (service, token) in services {
            self.services[service.index()].left(token);
        }
    }
}

/// Ends earlier processes of a service before it is started again: two would share its host.
pub(super) async fn end_service(
    context: &Context,
    def: &ServiceDef,
    left: Vec<Token>,
) -> Result<(), ServiceFailure> {
    let mut failed = None;
    for token in left {
        match context
            .executor
            .revoke(&def.host, &token, def.stop_grace)
            .await
        {
            Ok(_) => {
                context.intents.done(&token);
                context.unended.ended(&token);
            }
            Err(error) => {
                context.unended.again(def.id, token);
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), |error| {
        Err(ServiceFailure {
            reason: format!(
                "service `{}` could not be started: the one before may still run: {error}",
                def.name
            ),
            cause: Cause::of(&error).unwrap_or(Cause::ServiceLost),
            logs: Vec::new(),
            cancelled: false,
            taints: None,
        })
    })
}

/// Runs that are looked at without a mark: those of a `doe` that made none.
const LATEST: usize = 64;

fn marks(store: &Store) -> PathBuf {
    store.layout().runs().with_file_name("left")
}

/// Marks a run that begins: until it is settled, it may leave something.
pub(super) fn mark(store: &Store, run_id: &str) -> Result<()> {
    let dir = marks(store);
    let path = dir.join(run_id);
    std::fs::create_dir_all(&dir)
        .and_then(|()| std::fs::write(&path, ""))
        .and_then(|()| std::fs::File::open(&dir)?.sync_all())
        .map_err(|e| Error::io("write", &path, &e))
}

/// Nothing is left of this run, or another one answers for it.
pub(super) fn settle(store: &Store, run_id: &str) {
    // A mark that stays makes the next one look in vain.
    let _ = std::fs::remove_file(marks(store).join(run_id));
}

/// Runs that count as running and those that ended and left something, the latest first, each with
/// what it has open. Whether the `doe` of one that counts as running lives is the caller's to know:
/// whoever holds the writer's lock is the only one.
///
/// # Errors
/// From the store.
pub fn open_runs(store: &Store) -> Result<Vec<(Run, Open)>> {
    let marked: BTreeSet<String> = match std::fs::read_dir(marks(store)) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
        Err(_) => BTreeSet::new(),
    };
    let mut runs = store.runs(LATEST)?;
    // What runs on a cluster may be older than any number of short runs elsewhere.
    let known = |id: &String| runs.iter().any(|run| run.info.run_id == *id);
    if !marked.iter().all(known) {
        runs = store.runs(usize::MAX)?;
    }
    let mut found = Vec::new();
    for run in runs {
        let id = &run.info.run_id;
        let is_over = run.status != RunStatus::Running;
        if is_over && !marked.contains(id) {
            continue;
        }
        let mut open = read(&store.layout().runs().join(id))?;
        if is_over {
            // Nobody goes on with what a run was told to end.
            open.unended.append(&mut open.nodes);
        }
        // What was recorded is over, whether its line came to be written or not: all of a node
        // that has ended, and the attempts before one that was to come.
        let mut over: BTreeMap<String, u32> = BTreeMap::new();
        for node in store.run_nodes(id)? {
            let attempts = match (node.state.is_terminal(), &node.record) {
                (true, _) => u32::MAX,
                (false, Some(record)) => store.record(record).map_or(0, |record| record.attempt),
                (false, None) => 0,
            };
            over.insert(node.label, attempts);
        }
        let is_over = |node: &NodeIntent| over.get(&node.label) >= Some(&node.attempt);
        open.nodes.retain(|node| !is_over(node));
        found.push((run, open));
    }
    Ok(found)
}
