//! How that is ended which a run left and nobody goes on with. What a killed run began must go, or
//! nothing else begins; what an ended run could not end may stay once more: it is told, and kept by its
//! hosts, where it is in the way of whatever is begun there.

use std::time::Duration;

use doe_cache::{RunStatus, Store};

use super::intent::{self, NodeIntent, Place, ServiceIntent};
use super::remains::{LeftNode, Remains, Standing, executor_of};
use super::scratch::Scratch;
use crate::error::{Error, Kind, Result};
use crate::exec::{Executor, Handle, HostSpec, Token};

/// Between the polite and the hard end of what nobody wants.
const GRACE: Duration = Duration::from_secs(5);

/// What could not be ended once more.
#[derive(Debug)]
pub(super) struct Stuck {
    /// The node's or service's token.
    pub announced: Token,
    /// What of it may run, and where.
    pub parts: Vec<(Place, Token)>,
    /// Whether its hosts are not this machine.
    pub is_away: bool,
}

impl Stuck {
    fn node(intent: &NodeIntent) -> Self {
        let on_hosts = intent.all().filter(|step| step.place.role.is_some());
        Self {
            announced: intent.token.clone(),
            parts: on_hosts
                .map(|step| (step.place.clone(), step.token.clone()))
                .collect(),
            is_away: intent.home.is_away(),
        }
    }

    fn service(intent: &ServiceIntent) -> Self {
        Self {
            announced: intent.token.clone(),
            parts: vec![(intent.place.clone(), intent.token.clone())],
            is_away: intent.home.is_away(),
        }
    }
}

impl Remains {
    /// Ends all that is still in here and notes that it is over in what the dead runs announced: what
    /// does not go stays open, and what went is not told again. Adds what is said of it.
    ///
    /// # Errors
    /// A process would not go, or it could not be noted.
    pub(super) async fn clear(
        &mut self,
        store: &Store,
        executor: &dyn Executor,
        local: &dyn Executor,
        said: &mut Vec<String>,
    ) -> Result<()> {
        let mut over = Vec::new();
        let ended = self.end(executor, local, said, &mut over).await;
        for run in self.runs.iter().chain(&self.ended) {
            let run_dir = store.layout().runs().join(run);
            for token in over.iter().filter(|_| run_dir.is_dir()) {
                intent::close(&run_dir, token)?;
            }
        }
        ended
    }

    /// Ends all that is still in here, for good: what has not begun never will. Adds what is said of
    /// it, and the tokens that are over, also when something else would not go.
    ///
    /// # Errors
    /// A process would not go.
    pub(super) async fn end(
        &mut self,
        executor: &dyn Executor,
        local: &dyn Executor,
        said: &mut Vec<String>,
        over: &mut Vec<Token>,
    ) -> Result<()> {
        let recorded = &self.recorded;
        let is_recorded = |intent: &NodeIntent| recorded.contains_key(&intent.label);
        for LeftNode { intent, standing } in std::mem::take(&mut self.nodes) {
            let mut pids = Vec::new();
            let mut stuck = None;
            for step in intent.all() {
                let executor = executor_of(&step.place, &intent.home, executor, local);
                let host = step.place.spec();
                match end_whole(executor, &host, &step.token).await {
                    Ok(ended) => pids.extend(ended.map(|handle| handle.pid.to_string())),
                    // It did not go before: that is no reason to do nothing at all.
                    // And what is stored is over, whatever its host has to say.
                    Err(error) if standing == Standing::Unended || is_recorded(&intent) => {
                        stuck = Some(error);
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = stuck {
                let (label, run) = (&intent.label, &intent.home.run_id);
                said.push(format!(
                    "{label} of the run {run} still could not be ended: {error}"
                ));
                self.stuck.push(Stuck::node(&intent));
                continue;
            }
            let why = match &standing {
                Standing::Torn(why) => why.as_str(),
                Standing::Unended => "its run could not end it",
                _ => "this build does not want it",
            };
            let whose = match standing {
                Standing::Unended => "the run",
                _ => "the killed run",
            };
            let run = &intent.home.run_id;
            said.push(match pids.as_slice() {
                [] => format!("{} of {whose} {run} is not taken over: {why}", intent.label),
                pids => format!(
                    "ended {} of {whose} {run} (pid {}): {why}",
                    intent.label,
                    pids.join(", ")
                ),
            });
            over.push(intent.token);
        }
        for handle in std::mem::take(&mut self.strays) {
            let its = match handle.executor == local.name() {
                true => local,
                false => executor,
            };
            its.cancel(&handle, GRACE).await?;
            let _ = its.discard(&handle).await;
            said.push(format!(
                "ended what nobody had announced: {} (pid {})",
                handle.token.0, handle.pid
            ));
        }
        let services = std::mem::take(&mut self.services).into_iter();
        let services = services.map(|left| left.intent);
        for intent in services.chain(std::mem::take(&mut self.unbegun)) {
            let host = intent.place.spec();
            let executor = executor_of(&intent.place, &intent.home, executor, local);
            let (name, run) = (&intent.name, &intent.home.run_id);
            let unended = self.unended_services.contains(&intent.token);
            match end_whole(executor, &host, &intent.token).await {
                Ok(Some(handle)) => said.push(format!(
                    "ended service `{name}` of the {} {run} (pid {}): {}",
                    if unended { "run" } else { "killed run" },
                    handle.pid,
                    match unended {
                        true => "its run could not end it",
                        false => "no pattern of this build needs it",
                    }
                )),
                Ok(None) => {}
                // As with nodes.
                Err(error) if unended => {
                    said.push(format!(
                        "service `{name}` of the run {run} still could not be ended: {error}"
                    ));
                    self.stuck.push(Stuck::service(&intent));
                    continue;
                }
                Err(error) => return Err(error),
            }
            over.push(intent.token);
        }
        Ok(())
    }
}

/// Ends what was begun with a token, and removes what is left of it: its logs as its script printed
/// them, which nobody takes over. What has not begun keeps its folder, by which it never will.
async fn end_whole(
    executor: &dyn Executor,
    host: &HostSpec,
    token: &Token,
) -> Result<Option<Handle>> {
    let ended = executor.revoke(host, token, GRACE).await?;
    let begun = match &ended {
        Some(handle) => Some(handle.clone()),
        // It was over by itself, or never begun.
        None => executor.find(host, token).await.ok().flatten(),
    };
    if let Some(handle) = begun {
        let _ = executor.discard(&handle).await;
    }
    Ok(ended)
}

/// Cancels what a killed run left, with no build running: one pattern, or everything. The caller
/// holds the writer's lock. Adds what was done, in words, also when something would not go.
///
/// # Errors
/// `nothing-runs` when there is no such pattern; a process would not go.
pub async fn cancel(
    mut remains: Remains,
    label: Option<&str>,
    store: &Store,
    executor: &dyn Executor,
    local: &dyn Executor,
    said: &mut Vec<String>,
) -> Result<()> {
    if let Some(label) = label {
        let labels: Vec<String> = remains
            .nodes
            .iter()
            .map(|n| n.intent.label.clone())
            .collect();
        remains.nodes.retain(|left| left.intent.label == label);
        if remains.nodes.is_empty() {
            let text = format!("nothing runs of {label}");
            let error = Error::new(Kind::Usage, "nothing-runs", text);
            return Err(match labels.as_slice() {
                [] => error.hint("no build is running and no killed one left a pattern"),
                labels => error.hint(format!("what runs: {}", labels.join(", "))),
            });
        }
        remains.services.clear();
        remains.strays.clear();
        remains.unbegun.clear();
    }
    let asked = remains.nodes.iter_mut();
    for left in asked.filter(|left| left.standing != Standing::Unended) {
        left.standing = Standing::Torn("cancelled on request".into());
    }
    let homes = remains.homes();
    let elsewhere = remains.notices();
    remains.clear(store, executor, local, said).await?;
    for run in remains.runs.iter().filter(|_| label.is_none()) {
        store.end_run(run, RunStatus::Abandoned)?;
    }
    if label.is_none() && remains.stuck.is_empty() {
        remains.settle(store);
    }
    if label.is_none() {
        homes.iter().for_each(|run| Scratch::forget(run));
    }
    said.extend(elsewhere);
    Ok(())
}
