//! From the nodes of a run to what the scheduler works on. Services of the same key on the same
//! host are one; what could never fit is refused here, before anything starts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use doe_cache::{Digest, Value};

use super::key;
use super::resources::{Inventory, PoolId, PoolKind};
use super::schedule::{Problem, ServiceId, ServiceSpec, TaskId, TaskSpec};
use super::services::ServiceDef;
use super::uses;
use crate::error::{Error, Result};
use crate::exec::{Ask, HostSpec};
use crate::graph::{Graph, NodeId};
use crate::plan::model::{Pattern, Platform};
use crate::rule::action::{Action, Binding};
use crate::rule::model::RuleKind;
use crate::rule::render::render;

/// A node that may have to be executed.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// The node.
    pub node: NodeId,
    /// Its services by name in the rule.
    pub services: Vec<(String, ServiceId)>,
    /// Names of the hosts that it holds.
    pub hosts: Vec<String>,
    /// Roles that it uses.
    pub roles: Vec<String>,
}

/// A run, ready to be scheduled.
#[derive(Debug)]
pub(super) struct Prepared {
    /// For the scheduler.
    pub problem: Problem,
    /// Hosts and pools.
    pub inventory: Inventory,
    /// By task.
    pub tasks: Vec<Task>,
    /// By service.
    pub services: Vec<Arc<ServiceDef>>,
}

/// Plain values of a pattern's settings.
pub(super) fn values(pattern: &Pattern) -> BTreeMap<String, Value> {
    let settings = pattern.settings.iter();
    settings
        .map(|(name, setting)| (name.to_string(), setting.value.clone()))
        .collect()
}

/// Prepares the nodes, which stand in file order.
///
/// # Errors
/// A rule that does not render, a role without a host, a demand that no host can ever meet.
pub(super) fn prepare(
    graph: &Graph<'_>,
    platform: &Platform,
    nodes: &[NodeId],
) -> Result<Prepared> {
    let mut builder = Builder {
        platform,
        inventory: Inventory::of(platform),
        specs: Vec::new(),
        services: Vec::new(),
        by_key: HashMap::new(),
    };
    let places: HashMap<NodeId, TaskId> = nodes
        .iter()
        .enumerate()
        .map(|(at, node)| (*node, TaskId(at as u32)))
        .collect();
    let mut tasks = Vec::with_capacity(nodes.len());
    let mut specs = Vec::with_capacity(nodes.len());
    for &node in nodes {
        let deps: BTreeSet<TaskId> = graph
            .deps(node)
            .into_iter()
            .filter_map(|(dep, _)| places.get(&dep).copied())
            .collect();
        let (task, mut spec) = builder.task(graph, node)?;
        spec.deps = deps.into_iter().collect();
        tasks.push(task);
        specs.push(spec);
    }
    Ok(Prepared {
        problem: Problem::new(specs, builder.specs),
        inventory: builder.inventory,
        tasks,
        services: builder.services.into_iter().map(Arc::new).collect(),
    })
}

impl Prepared {
    /// Makes nodes wait for others as well, of those that are prepared.
    pub(super) fn wait(&mut self, waits: &BTreeMap<NodeId, Vec<NodeId>>) {
        let places = self.tasks.iter().enumerate();
        let places: HashMap<NodeId, TaskId> = places
            .map(|(at, task)| (task.node, TaskId(at as u32)))
            .collect();
        for (node, others) in waits {
            for other in others {
                if let (Some(task), Some(other)) = (places.get(node), places.get(other)) {
                    self.problem.wait(*task, *other);
                }
            }
        }
    }
}

struct Builder<'p> {
    platform: &'p Platform,
    inventory: Inventory,
    specs: Vec<ServiceSpec>,
    services: Vec<ServiceDef>,
    by_key: HashMap<(Digest, String), ServiceId>,
}

impl Builder<'_> {
    fn task(&mut self, graph: &Graph<'_>, node: NodeId) -> Result<(Task, TaskSpec)> {
        let pattern = graph.pattern(node);
        let label = &pattern.label;
        let nowhere = Task {
            node,
            services: Vec::new(),
            hosts: Vec::new(),
            roles: Vec::new(),
        };
        if pattern.rule.kind == RuleKind::Analysis {
            return Ok((nowhere, TaskSpec::default()));
        }
        let settings = values(pattern);
        let action = render(&pattern.rule, &settings, &Binding::Symbolic)?;
        let mut hosts: BTreeMap<String, String> = BTreeMap::new();
        for role in action.roles.keys() {
            let host = Inventory::host_of_role(self.platform, role, label)?;
            hosts.insert(role.clone(), host.to_owned());
        }
        let mut claim = self.inventory.claim(self.platform, label, &action)?;
        let (taken, refused) = uses::taken(pattern, self.platform);
        if !refused.is_empty() {
            return Err(Error::from_diagnostics(refused));
        }
        for (name, count) in taken {
            let pool = self.inventory.pool(PoolKind::Token { name }, 0);
            claim.units.push((pool, count));
        }
        claim.units.sort_unstable();
        let services = self.services_of(pattern, &settings, &action, &hosts)?;
        let mut ids: Vec<ServiceId> = services.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        let held = ids.iter().flat_map(|id| &self.specs[id.index()].units);
        let held: Vec<(PoolId, u32)> = held.chain(&claim.units).copied().collect();
        self.inventory.check(label, &held)?;
        let names: BTreeSet<String> = hosts.into_values().collect();
        let task = Task {
            services,
            hosts: names.into_iter().collect(),
            roles: action.roles.keys().cloned().collect(),
            ..nowhere
        };
        let spec = TaskSpec {
            deps: Vec::new(),
            services: ids,
            claim,
        };
        Ok((task, spec))
    }

    fn services_of(
        &mut self,
        pattern: &Pattern,
        settings: &BTreeMap<String, Value>,
        action: &Action,
        hosts: &BTreeMap<String, String>,
    ) -> Result<Vec<(String, ServiceId)>> {
        let mut keys: BTreeMap<String, Digest> = BTreeMap::new();
        let mut named: Vec<(String, ServiceId)> = Vec::new();
        let mut new = Vec::new();
        let mut served: BTreeSet<&str> = BTreeSet::new();
        for service in &action.services {
            let after: BTreeMap<String, Digest> = service
                .after
                .iter()
                .filter_map(|name| Some((name.clone(), *keys.get(name)?)))
                .collect();
            let key = key::service_key(service, hosts, &after, self.platform);
            keys.insert(service.name.clone(), key);
            let host = hosts.get(&service.role).cloned().unwrap_or_default();
            // A role's GPUs are one set: its first service holds them, others stand beside it.
            let gpus = if served.insert(&service.role) {
                service.gpus
            } else {
                0
            };
            let id = match self.by_key.get(&(key, host.clone())) {
                Some(&id) => id,
                None => {
                    let id = ServiceId(self.specs.len() as u32);
                    let below = |name: &String| {
                        named
                            .iter()
                            .find(|(other, _)| other == name)
                            .map(|(_, id)| *id)
                    };
                    self.specs.push(ServiceSpec {
                        host: self.inventory.host(&host),
                        units: self.inventory.service_units(
                            self.platform,
                            &host,
                            gpus,
                            &service.ports,
                        ),
                        after: service.after.iter().filter_map(below).collect(),
                    });
                    self.by_key.insert((key, host.clone()), id);
                    new.push((id, key, host, service, gpus));
                    id
                }
            };
            named.push((service.name.clone(), id));
        }
        let siblings: Vec<_> = named
            .iter()
            .zip(&action.services)
            .map(|((name, id), service)| (name.clone(), *id, service.ports.clone()))
            .collect();
        for (id, key, host, service, gpus) in new {
            self.services.push(ServiceDef {
                id,
                key,
                name: service.name.clone(),
                host: self.host_spec(&host)?,
                rule: pattern.rule.clone(),
                settings: settings.clone(),
                roles: action.roles.keys().cloned().collect(),
                siblings: siblings.clone(),
                stop_grace: Duration::try_from_secs_f64(service.stop_grace_s)
                    .unwrap_or(Duration::from_secs(10)),
                ask: Ask {
                    gpus,
                    needed: Some(Duration::ZERO),
                    together: None,
                },
            });
        }
        let needed = longest(pattern, action);
        for (_, id) in &named {
            let ask = &mut self.services[id.index()].ask;
            ask.needed = ask.needed.map(|so_far| so_far.saturating_add(needed));
        }
        Ok(named)
    }

    fn host_spec(&self, name: &str) -> Result<HostSpec> {
        let host = self.platform.hosts.get(name).ok_or_else(|| {
            Error::new(
                crate::error::Kind::Plan,
                "unknown-host",
                format!("platform `{}` has no host `{name}`", self.platform.name),
            )
        })?;
        Ok(HostSpec {
            name: host.name.clone(),
            address: host.address.clone(),
            gpus: host.gpus,
        })
    }
}

/// How long a pattern may need its services: until all of them are up and every step is at its
/// limit, in each of its attempts.
fn longest(pattern: &Pattern, action: &Action) -> Duration {
    let starts = action.services.iter().map(|service| service.ready.within_s);
    let steps = action.steps.iter().map(|step| step.timeout_s);
    let once: f64 = starts.chain(steps).sum();
    let all = once * f64::from(pattern.retry.attempts.max(1));
    Duration::try_from_secs_f64(all).unwrap_or(Duration::MAX)
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
