//! What a killed run left: looked up by the tokens that it announced, told apart by what may still
//! be made of it. A result is taken only when every step of its node has run or goes on and every
//! service it used lived long enough; whatever is in doubt is ended, and runs again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::time::Duration;

use doe_cache::{Digest, Filter, Record, Run, RunStatus, Store};

use super::ending::Stuck;
pub use super::ending::cancel;
use super::intent::{self, Home, Intent, NodeIntent, Open, Place, ServiceIntent};
use super::unended;
use crate::error::Result;
use crate::exec::{Executor, Handle, HostSpec, Status, Token};

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
    /// Its run could not end it, and nobody waits for it.
    Unended,
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

/// What can be looked after: the processes of this machine, and those of one platform elsewhere.
#[derive(Clone, Copy)]
pub struct Within<'a> {
    /// Runs what has a role.
    pub executor: &'a dyn Executor,
    /// Runs what has none, beside `doe`.
    pub local: &'a dyn Executor,
    /// Where the hosts are, when they are not this machine.
    pub away: Option<Away<'a>>,
}

/// Hosts that are not this machine.
#[derive(Clone, Copy)]
pub struct Away<'a> {
    /// Name of their platform.
    pub platform: &'a str,
    /// Folder on them.
    pub root: &'a Path,
    /// Those that can be asked.
    pub hosts: &'a [HostSpec],
}

impl<'a> Within<'a> {
    /// Whether everything that a run has open is here.
    fn holds(&self, run: &Run, open: &Open) -> bool {
        let mut places = open.on_hosts().filter(|(_, home)| home.is_away());
        places.all(|(place, home)| {
            self.away.is_some_and(|away| {
                away.platform == run.info.platform
                    && home.host_dir.starts_with(away.root)
                    && away.hosts.iter().any(|host| host.name == place.host)
            })
        })
    }

    fn of(&self, place: &Place, home: &Home) -> &'a dyn Executor {
        executor_of(place, home, self.executor, self.local)
    }
}

pub(super) fn executor_of<'a>(
    place: &Place,
    home: &Home,
    executor: &'a dyn Executor,
    local: &'a dyn Executor,
) -> &'a dyn Executor {
    match place.role {
        Some(_) if home.is_away() => executor,
        _ => local,
    }
}

/// A dead run that left something where this build does not look.
struct OutOfReach {
    run_id: String,
    platform: String,
    /// It was killed, so that what it began may be gone on with.
    was_killed: bool,
}

/// See the module.
#[derive(Default)]
pub struct Remains {
    /// Whether the hosts of this build are elsewhere.
    away: bool,
    /// What is not looked for.
    out_of_reach: Vec<OutOfReach>,
    /// Runs that count as running and are dead.
    pub(super) runs: Vec<String>,
    /// Runs that ended and left something.
    pub(super) ended: Vec<String>,
    /// What could not be ended once more.
    pub(super) stuck: Vec<Stuck>,
    pub(super) services: Vec<LeftService>,
    pub(super) nodes: Vec<LeftNode>,
    /// By label: the record of an execution that its run stored and could not close any more.
    pub(super) recorded: BTreeMap<String, Digest>,
    /// Services of runs that ended: those could not end them.
    pub(super) unended_services: HashSet<Token>,
    /// What runs and no run announced.
    pub(super) strays: Vec<Handle>,
    /// Services that were announced and of which nobody knows whether they began.
    pub(super) unbegun: Vec<ServiceIntent>,
}

impl Remains {
    /// Looks for what dead runs left. The caller holds the writer's lock, so every run that counts
    /// as running is dead. `living` is everything that runs.
    ///
    /// # Errors
    /// From the store and the executors.
    pub async fn find(store: &Store, within: Within<'_>, living: Vec<Handle>) -> Result<Self> {
        let mut remains = Self {
            away: within.away.is_some(),
            ..Self::default()
        };
        let mut seen: Vec<Token> = Vec::new();
        for (run, open) in intent::open_runs(store)? {
            let was_killed = run.status == RunStatus::Running;
            if !within.holds(&run, &open) {
                // Neither ended nor closed: it is for whoever can look there.
                seen.extend(open.tokens().cloned());
                remains.out_of_reach.push(OutOfReach {
                    was_killed,
                    run_id: run.info.run_id,
                    platform: run.info.platform,
                });
                continue;
            }
            if !was_killed && open.is_empty() {
                unended::settle(store, &run.info.run_id);
                continue;
            }
            match was_killed {
                true => remains.runs.push(run.info.run_id.clone()),
                false => remains.ended.push(run.info.run_id.clone()),
            }
            for intent in open.services {
                if seen.contains(&intent.token) {
                    continue;
                }
                seen.push(intent.token.clone());
                if !was_killed {
                    remains.unended_services.insert(intent.token.clone());
                }
                let spec = intent.place.spec();
                let executor = within.of(&intent.place, &intent.home);
                match executor.find(&spec, &intent.token).await? {
                    Some(handle) => {
                        let runs = executor.poll(&handle).await? == Status::Running;
                        // What was to be ended is nobody's to use.
                        let lives = runs && was_killed;
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
                    let standing = match record_of(store, &intent)? {
                        Some(record) => {
                            remains.recorded.insert(intent.label.clone(), record);
                            Standing::Torn("its result is stored".into())
                        }
                        None if was_refused(store, &intent)? => {
                            Standing::Torn("its result was refused".into())
                        }
                        None => remains.standing(&intent, within).await?,
                    };
                    remains.nodes.push(LeftNode { intent, standing });
                }
            }
            for intent in open.unended {
                if !seen.contains(&intent.token) {
                    seen.push(intent.token.clone());
                    let standing = Standing::Unended;
                    remains.nodes.push(LeftNode { intent, standing });
                }
            }
        }
        let nodes = remains.nodes.iter();
        let steps = nodes.flat_map(|left| left.intent.all().map(|step| &step.token));
        let known: Vec<&Token> = steps.chain(&seen).collect();
        let strays = living
            .iter()
            .filter(|handle| !known.contains(&&handle.token));
        remains.strays = strays.cloned().collect();
        Ok(remains)
    }

    /// Whether nothing was left and no run is to be closed.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.ended.is_empty() && self.strays.is_empty()
    }

    /// Another run answers for what these left, or nothing is left of them.
    pub(super) fn settle(&self, store: &Store) {
        for run in self.runs.iter().chain(&self.ended) {
            unended::settle(store, run);
        }
    }

    /// What is to be told of runs that cannot be looked after here.
    pub fn notices(&self) -> Vec<String> {
        let runs = self.out_of_reach.iter();
        runs.map(|left| {
            let (run, platform) = (&left.run_id, &left.platform);
            let build = format!("`doe build --platform {platform}` goes on with it, ");
            // What a run could not end nobody goes on with.
            let build = if left.was_killed { build.as_str() } else { "" };
            format!(
                "the run {run} left something on platform `{platform}`: {build}`doe cancel --all --platform {platform}` ends it"
            )
        })
        .collect()
    }

    async fn standing(&self, node: &NodeIntent, within: Within<'_>) -> Result<Standing> {
        let torn = |why: String| Ok(Standing::Torn(why));
        let (mut begun, mut over, mut last_end) = (0, 0, 0);
        // By gang: whether any of its members has begun, and whether any has not.
        let mut gangs: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        for step in &node.steps {
            let executor = within.of(&step.place, &node.home);
            let found = executor.find(&step.place.spec(), &step.token).await?;
            if let Some(gang) = &step.gang {
                let (some, not_all) = gangs.entry(gang).or_default();
                *some |= found.is_some();
                *not_all |= found.is_none();
            }
            let Some(handle) = found else {
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
        // What measured alone while nobody was there to start the others is no measurement.
        if let Some((gang, _)) = gangs.iter().find(|(_, stand)| **stand == (true, true)) {
            return torn(format!("only a part of gang `{gang}` had begun"));
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
            let executor = within.of(&service.intent.place, &service.intent.home);
            let ended = executor.ended_unix_ms(&service.handle).await?;
            if !is_over || !outlived(ended, last_end, executor.ends_differ_by()) {
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
        let unended = self.nodes.iter();
        let unended = unended.filter(|left| left.standing == Standing::Unended);
        let unended = unended.map(|left| Intent::Unended {
            token: left.intent.token.clone(),
        });
        services
            .map(Intent::Service)
            .chain(nodes.map(Intent::Node))
            .chain(unended)
            .collect()
    }

    /// Takes the node with this action out, when it can be taken over.
    pub(super) fn take_node(&mut self, action: &Digest) -> Option<LeftNode> {
        let at = self.nodes.iter().position(|left| {
            left.intent.action == *action
                && left.intent.home.is_away() == self.away
                && matches!(left.standing, Standing::Over | Standing::UnderWay)
        })?;
        Some(self.nodes.remove(at))
    }

    /// Takes a living service out.
    pub(super) fn take_service(&mut self, key: &Digest, host: &str) -> Option<LeftService> {
        let at = self.services.iter().position(|left| {
            let ServiceIntent { place, home, .. } = &left.intent;
            left.lives
                && left.intent.key == *key
                && place.host == host
                && home.is_away() == self.away
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

    /// Runs whose folders are in use, those that are closed included.
    pub(super) fn homes(&self) -> BTreeSet<String> {
        let homes = self
            .intents()
            .into_iter()
            .filter_map(|intent| match intent {
                Intent::Service(service) => Some(service.home.run_id),
                Intent::Node(node) => Some(node.home.run_id),
                Intent::Done { .. } | Intent::Unended { .. } => None,
            });
        homes
            .chain(self.runs.iter().chain(&self.ended).cloned())
            .collect()
    }
}

/// The record of this execution, by what no other execution shares with it: which attempt of what it
/// was, and since when.
fn record_of(store: &Store, intent: &NodeIntent) -> Result<Option<Digest>> {
    let filter = Filter {
        label: Some(intent.label.clone()),
        ..Filter::default()
    };
    let found = store.list(&filter)?;
    let mut found = found.iter().filter(|it| it.action_key == intent.action);
    let is_it = found.find(|it| {
        // One that cannot be read is as good as not there.
        (store.record(&it.record)).is_ok_and(|record| is_of(&record, intent))
    });
    Ok(is_it.map(|it| it.record))
}

/// Whether somebody refused the record of this execution: it is not to be made once more of what is
/// left of it.
fn was_refused(store: &Store, intent: &NodeIntent) -> Result<bool> {
    let mut refused = store.refused_of(&intent.label)?.into_iter();
    Ok(refused.any(|record| record.action_key == intent.action && is_of(&record, intent)))
}

fn is_of(record: &Record, intent: &NodeIntent) -> bool {
    record.attempt == intent.attempt && record.timings.started_unix_ms == intent.acquired_unix_ms
}

/// Whether what ended then was there until the last step ended, whatever their clocks.
fn outlived(ended: Option<u64>, last_end: u64, differ_by: Duration) -> bool {
    let differ_ms = u64::try_from(differ_by.as_millis()).unwrap_or(u64::MAX);
    ended.is_some_and(|ended| ended >= last_end.saturating_add(differ_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_outlived_a_step_only_beyond_doubt() {
        let doubt = Duration::from_secs(4);
        assert!(outlived(Some(10_000), 10_000, Duration::ZERO));
        assert!(!outlived(Some(9999), 10_000, Duration::ZERO));
        assert!(!outlived(Some(13_999), 10_000, doubt));
        assert!(outlived(Some(14_000), 10_000, doubt));
        assert!(!outlived(None, 0, doubt));
    }
}
