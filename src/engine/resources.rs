//! Hosts, GPUs, ports and named tokens of one run, and who holds them. Everything that a task
//! asks for is taken in one call or not at all, so nobody ever waits while holding; what was
//! taken is given back by the same claim, and the ledger never goes below zero or above capacity.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Kind, Result};
use crate::label::Label;
use crate::plan::model::Platform;
use crate::rule::action::Action;

/// A host of the run's platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub u32);

/// A countable resource: the GPUs of a host, one port of a host, a named token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u32);

/// What a pool counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolKind {
    /// GPUs of a host.
    Gpus {
        /// Host name.
        host: String,
    },
    /// A port of a host that rules name by number; capacity 1.
    Port {
        /// Host name.
        host: String,
        /// Number.
        port: u16,
    },
    /// A named token or link of the platform.
    Token {
        /// Name.
        name: String,
    },
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolKind::Gpus { host } => write!(f, "GPUs of `{host}`"),
            PoolKind::Port { host, port } => write!(f, "port {port} of `{host}`"),
            PoolKind::Token { name } => write!(f, "`{name}`"),
        }
    }
}

/// What a task takes while it runs, beside the services it uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// Hosts, each once, sorted; `true` takes it whole, `false` shares it with other sharers.
    pub hosts: Vec<(HostId, bool)>,
    /// Units, each pool once, sorted.
    pub units: Vec<(PoolId, u32)>,
}

/// The hosts and pools of a run.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    hosts: Vec<String>,
    pools: Vec<(PoolKind, u32)>,
    pool_ids: BTreeMap<PoolKind, PoolId>,
}

impl Inventory {
    /// The inventory of a platform.
    pub fn of(platform: &Platform) -> Self {
        let mut inventory = Self::default();
        for host in platform.hosts.values() {
            inventory.add_host(&host.name, host.gpus);
        }
        for (name, token) in &platform.tokens {
            inventory.pool(PoolKind::Token { name: name.clone() }, token.capacity);
        }
        inventory
    }

    /// Adds a host with its GPUs.
    pub fn add_host(&mut self, name: &str, gpus: u32) -> HostId {
        let id = HostId(self.hosts.len() as u32);
        self.hosts.push(name.to_owned());
        self.pool(PoolKind::Gpus { host: name.into() }, gpus);
        id
    }

    /// The pool of a kind, added with this capacity when it is new.
    pub fn pool(&mut self, kind: PoolKind, capacity: u32) -> PoolId {
        if let Some(&id) = self.pool_ids.get(&kind) {
            return id;
        }
        let id = PoolId(self.pools.len() as u32);
        self.pools.push((kind.clone(), capacity));
        self.pool_ids.insert(kind, id);
        id
    }

    /// The host of a name.
    pub fn host(&self, name: &str) -> Option<HostId> {
        let at = self.hosts.iter().position(|host| host == name)?;
        Some(HostId(at as u32))
    }

    /// A host's name.
    pub fn host_name(&self, host: HostId) -> &str {
        &self.hosts[host.0 as usize]
    }

    /// Number of hosts.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }

    /// What a pool counts, and how many there are.
    pub fn describe(&self, pool: PoolId) -> (&PoolKind, u32) {
        let (kind, capacity) = &self.pools[pool.0 as usize];
        (kind, *capacity)
    }

    /// Capacities by pool.
    pub fn capacities(&self) -> Vec<u32> {
        self.pools.iter().map(|(_, capacity)| *capacity).collect()
    }

    /// The host that a role is bound to on this platform.
    pub fn host_of_role<'p>(platform: &'p Platform, role: &str, label: &Label) -> Result<&'p str> {
        let host = platform
            .roles
            .get(role)
            .or_else(|| platform.roles.get("*"))
            .ok_or_else(|| {
                Error::new(
                    Kind::Plan,
                    "unbound-role",
                    format!(
                        "platform `{}` binds no host to the role `{role}` of `{label}`",
                        platform.name
                    ),
                )
                .hint(format!(
                    "add `{role} = \"HOST\"` (or `\"*\" = \"HOST\"`) to `roles` of [platform.{}] in doe.toml",
                    platform.name
                ))
            })?;
        if platform.hosts.contains_key(host) {
            return Ok(host);
        }
        let known: Vec<_> = platform.hosts.keys().map(String::as_str).collect();
        Err(Error::new(
            Kind::Plan,
            "unknown-host",
            format!(
                "platform `{}` binds the role `{role}` to `{host}`, which is none of its hosts ({})",
                platform.name,
                known.join(", ")
            ),
        ))
    }

    /// What a node's own steps take on this platform: its hosts, the GPUs that its roles ask for
    /// beyond those of its services, and the ports that its steps name by number.
    pub fn claim(&mut self, platform: &Platform, label: &Label, action: &Action) -> Result<Claim> {
        let mut hosts: BTreeMap<HostId, bool> = BTreeMap::new();
        let mut units: BTreeMap<PoolId, u32> = BTreeMap::new();
        for (role, demand) in &action.roles {
            let name = Self::host_of_role(platform, role, label)?;
            let Some(host) = self.host(name) else {
                continue;
            };
            *hosts.entry(host).or_default() |= demand.exclusive;
            let own = own_gpus(action, role);
            if own > 0 {
                let pool = self.pool(PoolKind::Gpus { host: name.into() }, 0);
                *units.entry(pool).or_default() += own;
            }
        }
        if !platform.dynamic_ports {
            for step in &action.steps {
                let Some(role) = &step.role else { continue };
                let host = Self::host_of_role(platform, role, label)?;
                for &port in step.ports.values() {
                    let pool = self.pool(
                        PoolKind::Port {
                            host: host.into(),
                            port,
                        },
                        1,
                    );
                    units.insert(pool, 1);
                }
            }
        }
        Ok(Claim {
            hosts: hosts.into_iter().collect(),
            units: units.into_iter().collect(),
        })
    }

    /// What a service holds from its start to its end.
    pub fn service_units(
        &mut self,
        platform: &Platform,
        host: &str,
        gpus: u32,
        ports: &BTreeMap<String, u16>,
    ) -> Vec<(PoolId, u32)> {
        let mut units = BTreeMap::new();
        if gpus > 0 {
            units.insert(self.pool(PoolKind::Gpus { host: host.into() }, 0), gpus);
        }
        if !platform.dynamic_ports {
            for &port in ports.values() {
                let kind = PoolKind::Port {
                    host: host.into(),
                    port,
                };
                units.insert(self.pool(kind, 1), 1);
            }
        }
        units.into_iter().collect()
    }

    /// Refuses a demand that could never be met, before anything starts. `units` are all those a
    /// task holds at once: its own and those of all its services.
    pub fn check<'a>(
        &self,
        label: &Label,
        units: impl IntoIterator<Item = &'a (PoolId, u32)>,
    ) -> Result<()> {
        let mut total: BTreeMap<PoolId, u32> = BTreeMap::new();
        for &(pool, count) in units {
            *total.entry(pool).or_default() += count;
        }
        for (pool, asked) in total {
            let (kind, capacity) = self.describe(pool);
            if asked > capacity {
                let message = match kind {
                    PoolKind::Port { host, port } => {
                        format!("`{label}` uses port {port} of `{host}` {asked} times at once")
                    }
                    _ => format!("`{label}` needs {asked} {kind}, there are {capacity}"),
                };
                return Err(Error::new(Kind::Plan, "impossible-demand", message).hint(
                    "bind its roles to other hosts in doe.toml, or lower what the rule asks for",
                ));
            }
        }
        Ok(())
    }
}

/// Who holds what, by count.
#[derive(Debug, Clone)]
pub struct Ledger {
    capacity: Vec<u32>,
    free: Vec<u32>,
    sharers: Vec<u32>,
    whole: Vec<bool>,
}

impl Ledger {
    /// Nothing is held.
    pub fn new(inventory: &Inventory) -> Self {
        Self::with(inventory.host_count(), inventory.capacities())
    }

    /// Nothing is held of these.
    pub fn with(hosts: usize, capacities: Vec<u32>) -> Self {
        Self {
            free: capacities.clone(),
            capacity: capacities,
            sharers: vec![0; hosts],
            whole: vec![false; hosts],
        }
    }

    /// Whether the hosts could be taken now.
    pub fn hosts_fit(&self, hosts: &[(HostId, bool)]) -> bool {
        hosts.iter().all(|&(host, whole)| {
            let at = host.0 as usize;
            !self.whole[at] && (!whole || self.sharers[at] == 0)
        })
    }

    /// Number of hosts.
    pub fn host_count(&self) -> usize {
        self.whole.len()
    }

    /// All units of a pool.
    pub fn capacity(&self, pool: PoolId) -> u32 {
        self.capacity[pool.0 as usize]
    }

    /// All units by pool.
    pub fn capacities(&self) -> Vec<u32> {
        self.capacity.clone()
    }

    /// Units of a pool that nobody holds.
    pub fn free(&self, pool: PoolId) -> u32 {
        self.free[pool.0 as usize]
    }

    /// Takes hosts that fit.
    pub fn take_hosts(&mut self, hosts: &[(HostId, bool)]) {
        debug_assert!(self.hosts_fit(hosts));
        for &(host, whole) in hosts {
            if whole {
                self.whole[host.0 as usize] = true;
            } else {
                self.sharers[host.0 as usize] += 1;
            }
        }
    }

    /// Gives hosts back.
    pub fn give_hosts(&mut self, hosts: &[(HostId, bool)]) {
        for &(host, whole) in hosts {
            if whole {
                self.whole[host.0 as usize] = false;
            } else {
                self.sharers[host.0 as usize] -= 1;
            }
        }
    }

    /// Whether the units could be taken now.
    pub fn units_fit(&self, units: &[(PoolId, u32)]) -> bool {
        units.iter().all(|&(pool, count)| self.free(pool) >= count)
    }

    /// Takes units that fit.
    pub fn take_units(&mut self, units: &[(PoolId, u32)]) {
        for &(pool, count) in units {
            self.free[pool.0 as usize] -= count;
        }
    }

    /// Gives units back.
    pub fn give_units(&mut self, units: &[(PoolId, u32)]) {
        for &(pool, count) in units {
            self.free[pool.0 as usize] += count;
        }
    }
}

/// GPUs of a role that its services do not hold, and so are those of its steps.
pub(super) fn own_gpus(action: &Action, role: &str) -> u32 {
    let asked = action.roles.get(role).map_or(0, |demand| demand.gpus);
    let services = action.services.iter();
    let served = services.filter(|service| service.role == role);
    let served: u32 = served.map(|service| service.gpus).sum();
    asked.saturating_sub(served)
}
