//! What a run could not end: a host did not answer when a step or a service was to be stopped. It
//! is told, its announcement stays open, and before anything else is begun on that host it is ended, or
//! nothing is. A run has a mark in the store from its begin until nothing is left of it, by which
//! whoever looks next finds it, however it ended and however long ago.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doe_cache::{Run, RunStatus, Store};

use super::context::Context;
use super::drive::Drive;
use super::ending::Stuck;
use super::intent::{NodeIntent, Open, StepIntent, read};
use super::judge::Cause;
use super::services::{Instance, ServiceDef, ServiceFailure};
use super::steps::GRACE;
use crate::error::{Error, Kind, Result};
use crate::exec::{Executor, HostSpec, Token};
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
    /// By what was announced (an execution or a service): what of it may still run.
    open: HashMap<Token, Vec<Left>>,
    /// Executions of which something was left and that are not recorded yet.
    under_way: HashSet<Token>,
    untold: Vec<Untold>,
    /// Hosts that answer and on which something will not go, and why.
    taints: Vec<(String, String)>,
}

/// Something that may still run on a host.
#[derive(Clone)]
pub(super) struct Left {
    token: Token,
    host: HostSpec,
    executor: Arc<dyn Executor>,
    grace: Duration,
}

impl std::fmt::Debug for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.token.0, self.host.name)
    }
}

impl Left {
    /// A process of a node, on the host of a role.
    pub(super) fn of(context: &Context, host: &HostSpec, token: &Token) -> Self {
        Self {
            token: token.clone(),
            host: host.clone(),
            executor: context.executor.clone(),
            grace: GRACE,
        }
    }

    /// All that an execution announced on hosts. What is beside `doe` ends with it.
    pub(super) fn all_of(context: &Context, intent: &NodeIntent) -> Vec<Self> {
        let on_hosts = intent.all().filter(|step| step.place.role.is_some());
        let left = |step: &StepIntent| Self::of(context, &step.place.spec(), &step.token);
        on_hosts.map(left).collect()
    }
}

impl Unended {
    /// Something of an execution (its token) could not be ended: `what` is the begin of a sentence.
    pub(super) fn of_node(
        &self,
        execution: &Token,
        label: &Label,
        what: &str,
        left: Vec<Left>,
        why: &Error,
    ) {
        self.state().under_way.insert(execution.clone());
        self.note(
            execution,
            left,
            Untold {
                code: "step-left",
                message: format!("{what} could not be ended and may still run: {why}"),
                label: Some(label.clone()),
            },
        );
    }

    /// A service could not be stopped.
    pub(super) fn of_service(&self, context: &Context, instance: &Instance, why: &Error) {
        let (def, token) = (&instance.def, &instance.handle.token);
        let message = format!("service `{}` could not be stopped: {why}", def.name);
        self.service(context, def, token, message);
    }

    /// Whether a service was started is not known: its host did not answer.
    pub(super) fn of_start(&self, context: &Context, def: &ServiceDef, token: &Token, why: &Error) {
        if Cause::of(why).is_some() {
            let message = format!("service `{}` may have been started: {why}", def.name);
            self.service(context, def, token, message);
        }
    }

    fn service(&self, context: &Context, def: &ServiceDef, token: &Token, message: String) {
        let code = "service-left";
        let untold = Untold {
            code,
            message,
            label: None,
        };
        let left = Left {
            grace: def.stop_grace,
            ..Left::of(context, &def.host, token)
        };
        self.note(token, vec![left], untold);
    }

    /// What an earlier run left could not be ended now either. What is on hosts elsewhere is in
    /// nobody's way when those of this run are this machine, and the other way round.
    pub(super) fn of_others(&self, context: &Context, stuck: Vec<Stuck>) {
        let mut state = self.state();
        for Stuck {
            announced,
            parts,
            is_away,
        } in stuck
        {
            let here = parts.iter().filter(|_| is_away == context.site.is_some());
            let left = here.map(|(place, token)| Left::of(context, &place.spec(), token));
            let open = state.open.entry(announced).or_default();
            open.extend(left);
        }
    }

    fn note(&self, token: &Token, left: Vec<Left>, untold: Untold) {
        let mut state = self.state();
        // Said once, however many parts of it there are.
        if !state.open.contains_key(token) {
            state.untold.push(untold);
        }
        let open = state.open.entry(token.clone()).or_default();
        open.extend(left);
    }

    /// What may still run on these hosts, each with what it was announced by.
    fn on(&self, hosts: &[&str]) -> Vec<(Token, Left)> {
        let state = self.state();
        let all = state.open.iter();
        let all = all.flat_map(|(of, left)| left.iter().map(move |left| (of, left)));
        all.filter(|(_, left)| hosts.contains(&&*left.host.name))
            .map(|(of, left)| (of.clone(), left.clone()))
            .collect()
    }

    /// This part of what was announced has ended. Whether that was the last of it: an execution
    /// that is not recorded yet may leave more.
    fn part_ended(&self, announced: &Token, part: &Token) -> bool {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(announced) else {
            return false;
        };
        open.retain(|left| left.token != *part);
        let is_over = open.is_empty();
        if is_over {
            state.open.remove(announced);
        }
        is_over && !state.under_way.contains(announced)
    }

    /// An execution is recorded. Whether something of it may still run.
    pub(super) fn recorded(&self, token: &Token) -> bool {
        let mut state = self.state();
        state.under_way.remove(token);
        state.open.contains_key(token)
    }

    /// Whether something of this may still run.
    pub(super) fn has(&self, token: &Token) -> bool {
        self.state().open.contains_key(token)
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

    /// Tells what could not be ended since the last time; nothing more is begun on hosts on which it
    /// will not go.
    pub(super) fn tell_unended(&mut self) -> Result<()> {
        let (untold, taints) = {
            let mut state = self.context.unended.state();
            let untold = std::mem::take(&mut state.untold);
            (untold, std::mem::take(&mut state.taints))
        };
        for Untold {
            code,
            message,
            label,
        } in untold
        {
            self.journal.warn(code, message, label.as_ref());
        }
        for (host, why) in taints {
            self.taint(&host, &why)?;
        }
        Ok(())
    }
}

/// Ends what is still there on these hosts and could not be ended before: what is begun beside it
/// would measure it too, and share its memory and ports.
///
/// # Errors
/// It does not go: the host does not answer (that may pass), or is not used any more in this run.
pub(super) async fn end_on(context: &Context, hosts: &[&str]) -> Result<()> {
    for (announced, left) in context.unended.on(hosts) {
        let Left {
            token,
            host,
            executor,
            grace,
        } = &left;
        match executor.revoke(host, token, *grace).await {
            Ok(_) if context.unended.part_ended(&announced, token) => {
                context.intents.done(&announced);
            }
            Ok(_) => {}
            Err(error) if Cause::of(&error).is_some() => return Err(error),
            Err(error) => {
                let why = format!("what was left there could not be ended: {error}");
                let text = format!("host `{}` is not free: {why}", host.name);
                let taint = (host.name.clone(), why);
                context.unended.state().taints.push(taint);
                return Err(Error::new(Kind::Infra, NOT_RELEASED, text));
            }
        }
    }
    Ok(())
}

/// The code of the error that a host cannot be used, since something on it does not go.
pub(super) const NOT_RELEASED: &str = "not-released";

/// The same for a service that is about to be started.
pub(super) async fn end_before(context: &Context, def: &ServiceDef) -> Result<(), ServiceFailure> {
    let ended = end_on(context, &[&def.host.name]).await;
    ended.map_err(|error| ServiceFailure {
        reason: format!("service `{}` could not be started: {error}", def.name),
        cause: Cause::of_work(&error),
        logs: Vec::new(),
        cancelled: false,
        taints: None,
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

/// Runs in whose folders something that was started may still work, and those whose folder holds
/// the only account of it.
///
/// # Errors
/// From the store.
pub fn in_use(store: &Store) -> Result<BTreeSet<String>> {
    let runs = open_runs(store)?;
    let open = runs.iter().filter(|(_, open)| !open.is_empty());
    let names = open.flat_map(|(run, open)| {
        let homes = open.homes().map(|home| &home.run_id);
        homes.chain([&run.info.run_id])
    });
    Ok(names.cloned().collect())
}
