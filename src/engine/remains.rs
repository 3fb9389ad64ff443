//! What a killed run left: looked up by the tokens that it announced, told apart by what may still
//! be made of it. A result is taken only when every step of its node has run or goes on and every
//! service it used lived long enough; whatever is in doubt is ended, and runs again.

use std::collections::BTreeSet;
use std::time::Duration;

use doe_cache::{Digest, RunStatus, Store};

use super::intent::{self, Intent, NodeIntent, ServiceIntent};
use super::scratch::Scratch;
use crate::error::{Error, Kind, Result};
use crate::exec::{Executor, Handle, Status, Token};

/// Between the polite and the hard end of what nobody wants.
const GRACE: Duration = Duration::from_secs(5);

/// A node of a killed run.
#[derive(Debug, Clone)]
pub(super) struct LeftNode {
    /// What was announced.
    pub intent: NodeIntent,
    /// How it stands.
    pub standing: Standing,
}

/// How the steps of a node stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Every step has ended well.
    Over,
    /// A step runs or the next one is to be started, and its services are up.
    UnderWay,
    /// It cannot be taken over.
    Torn(String),
}

/// A service of a killed run.
#[derive(Debug, Clone)]
pub(super) struct LeftService {
    /// What was announced.
    pub intent: ServiceIntent,
    /// Its process.
    pub handle: Handle,
    /// Whether it lives.
    pub lives: bool,
}

/// See the module.
#[derive(Default)]
pub struct Remains {
    /// Runs that count as running and are dead.
    pub(super) runs: Vec<String>,
    pub(super) services: Vec<LeftService>,
    pub(super) nodes: Vec<LeftNode>,
    /// What runs and no run announced.
    strays: Vec<Handle>,
    /// Services that were announced and of which nobody knows whether they began.
    unbegun: Vec<ServiceIntent>,
}

impl Remains {
    /// Looks for what dead runs left. The caller holds the writer's lock, so every run that counts
    /// as running is dead. `living` is everything that runs.
    ///
    /// # Errors
    /// From the store and the executors.
    pub async fn find(
        store: &Store,
        executor: &dyn Executor,
        local: &dyn Executor,
        living: Vec<Handle>,
    ) -> Result<Self> {
        let mut remains = Self::default();
        let mut seen: Vec<Token> = Vec::new();
        for (run, open) in intent::open_runs(store)? {
            remains.runs.push(run.info.run_id.clone());
            for intent in open.services {
                if seen.contains(&intent.token) {
                    continue;
                }
                seen.push(intent.token.clone());
                let spec = intent.place.spec();
                match executor.find(&spec, &intent.token).await? {
                    Some(handle) => {
                        let lives = executor.poll(&handle).await? == Status::Running;
                        remains.services.push(LeftService {
                            intent,
                            handle,
                            lives,
                        });
                    }
                    None => remains.unbegun.push(intent),
                }
            }
            for intent in open.nodes {
                if !seen.contains(&intent.token) {
                    seen.push(intent.token.clone());
                    let standing = remains.standing(&intent, executor, local).await?;
                    remains.nodes.push(LeftNode { intent, standing });
                }
            }
        }
        let nodes = remains.nodes.iter();
        let steps = nodes.flat_map(|left| left.intent.steps.iter().map(|step| &step.token));
        let known: Vec<&Token> = steps.chain(&seen).collect();
        let strays = living
            .iter()
            .filter(|handle| !known.contains(&&handle.token));
        remains.strays = strays.cloned().collect();
        Ok(remains)
    }

    /// Whether nothing was left and no run is to be closed.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.strays.is_empty()
    }

    async fn standing(
        &self,
        node: &NodeIntent,
        executor: &dyn Executor,
        local: &dyn Executor,
    ) -> Result<Standing> {
        let torn = |why: String| Ok(Standing::Torn(why));
        let (mut begun, mut over, mut last_end) = (0, 0, 0);
        for step in &node.steps {
            let executor = match step.place.role {
                Some(_) => executor,
                None => local,
            };
            let Some(handle) = executor.find(&step.place.spec(), &step.token).await? else {
                continue;
            };
            begun += 1;
            match executor.poll(&handle).await? {
                Status::Running => {}
                Status::Exited(exit) => {
                    over += usize::from(exit.success());
                    last_end = last_end.max(exit.ended_unix_ms);
                }
                Status::Lost { why } => return torn(format!("step `{}`: {why}", step.name)),
            }
        }
        if begun == 0 {
            return torn("none of its steps had begun".into());
        }
        let is_over = over == node.steps.len();
        for used in &node.services {
            let found = self.services.iter().find(|s| s.intent.token == used.token);
            let Some(service) = found else {
                return torn("a service that it uses is not known".into());
            };
            if service.lives {
                continue;
            }
            let ended = executor.ended_unix_ms(&service.handle).await?;
            if !is_over || ended.is_none_or(|ended| ended < last_end) {
                return torn(format!("service `{}` is gone", service.intent.name));
            }
        }
        Ok(match is_over {
            true => Standing::Over,
            false => Standing::UnderWay,
        })
    }

    /// The lines that announce all of it again, for the run that goes on with it.
    pub(super) fn intents(&self) -> Vec<Intent> {
        let services = self.services.iter().map(|left| left.intent.clone());
        let services = services.chain(self.unbegun.iter().cloned());
        let nodes = self.nodes.iter().map(|left| left.intent.clone());
        services
            .map(Intent::Service)
            .chain(nodes.map(Intent::Node))
            .collect()
    }

    /// Takes the node with this action out, when it can be taken over.
    pub(super) fn take_node(&mut self, action: &Digest) -> Option<LeftNode> {
        let at = self.nodes.iter().position(|left| {
            left.intent.action == *action && !matches!(left.standing, Standing::Torn(_))
        })?;
        Some(self.nodes.remove(at))
    }

    /// Takes a living service out.
    pub(super) fn take_service(&mut self, key: &Digest, host: &str) -> Option<LeftService> {
        let at = self.services.iter().position(|left| {
            left.lives && left.intent.key == *key && left.intent.place.host == host
        })?;
        Some(self.services.remove(at))
    }

    /// Puts a node back that cannot be taken over after all.
    pub(super) fn put_back(&mut self, intent: NodeIntent, why: &str) {
        self.nodes.push(LeftNode {
            intent,
            standing: Standing::Torn(why.to_owned()),
        });
    }

    /// Puts a service back that cannot be taken over after all.
    pub(super) fn put_service_back(&mut self, left: LeftService) {
        self.services.push(left);
    }

    /// Ends all that is still in here, for good: what has not begun never will. What is said of it,
    /// and the tokens that are over.
    ///
    /// # Errors
    /// A process would not go.
    pub(super) async fn end(
        &mut self,
        executor: &dyn Executor,
        local: &dyn Executor,
    ) -> Result<(Vec<String>, Vec<Token>)> {
        let mut said = Vec::new();
        let mut over = Vec::new();
        for LeftNode { intent, standing } in std::mem::take(&mut self.nodes) {
            let mut pids = Vec::new();
            for step in &intent.steps {
                let executor = match step.place.role {
                    Some(_) => executor,
                    None => local,
                };
                let host = step.place.spec();
                let ended = executor.revoke(&host, &step.token, GRACE).await?;
                pids.extend(ended.map(|handle| handle.pid.to_string()));
            }
            let why = match &standing {
                Standing::Torn(why) => why.as_str(),
                _ => "this build does not want it",
            };
            let run = &intent.home.run_id;
            said.push(match pids.as_slice() {
                [] => format!(
                    "{} of the killed run {run} is not taken over: {why}",
                    intent.label
                ),
                pids => format!(
                    "ended {} of the killed run {run} (pid {}): {why}",
                    intent.label,
                    pids.join(", ")
                ),
            });
            over.push(intent.token);
        }
        for handle in std::mem::take(&mut self.strays) {
            executor.cancel(&handle, GRACE).await?;
            said.push(format!(
                "ended what nobody had announced: {} (pid {})",
                handle.token.0, handle.pid
            ));
        }
        let services = std::mem::take(&mut self.services).into_iter();
        let services = services.map(|left| left.intent);
        for intent in services.chain(std::mem::take(&mut self.unbegun)) {
            let host = intent.place.spec();
            if let Some(handle) = executor.revoke(&host, &intent.token, GRACE).await? {
                said.push(format!(
                    "ended service `{}` of the killed run {} (pid {}): no pattern of this build needs it",
                    intent.name, intent.home.run_id, handle.pid
                ));
            }
            over.push(intent.token);
        }
        Ok((said, over))
    }

    /// Runs whose folders are in use, those that are closed included.
    pub(super) fn homes(&self) -> BTreeSet<String> {
        let homes = self
            .intents()
            .into_iter()
            .filter_map(|intent| match intent {
                Intent::Service(service) => Some(service.home.run_id),
                Intent::Node(node) => Some(node.home.run_id),
                Intent::Done { .. } => None,
            });
        homes.chain(self.runs.iter().cloned()).collect()
    }
}

/// Cancels what a killed run left, with no build running: one pattern, or everything. The caller
/// holds the writer's lock. What was done, in words.
///
/// # Errors
/// `nothing-runs` when there is no such pattern; a process would not go.
pub async fn cancel(
    mut remains: Remains,
    label: Option<&str>,
    store: &Store,
    executor: &dyn Executor,
    local: &dyn Executor,
) -> Result<Vec<String>> {
    let runs = remains.runs.clone();
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
    for left in &mut remains.nodes {
        left.standing = Standing::Torn("cancelled on request".into());
    }
    let homes = remains.homes();
    let (said, over) = remains.end(executor, local).await?;
    for run in &runs {
        let run_dir = store.layout().runs().join(run);
        for token in over.iter().filter(|_| run_dir.is_dir()) {
            intent::close(&run_dir, token)?;
        }
        if label.is_none() {
            store.end_run(run, RunStatus::Abandoned)?;
        }
    }
    if label.is_none() {
        homes.iter().for_each(|run| Scratch::forget(run));
    }
    Ok(said)
}
