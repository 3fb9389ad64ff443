//! Random problems for the scheduler's tests, each made from one number.

use std::collections::BTreeSet;

use super::{Problem, ServiceId, ServiceSpec, TaskId, TaskSpec};
use crate::engine::resources::{Claim, HostId, PoolId};

/// A small generator, so that a failing case is one number.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

pub(super) struct Case {
    pub(super) problem: Problem,
    pub(super) hosts: usize,
    pub(super) capacities: Vec<u32>,
}

/// A random problem in which each task alone fits. Pool `h` is the GPUs of host `h`.
pub(super) fn case(rng: &mut Rng, max_tasks: usize, max_services: usize) -> Case {
    let hosts = 1 + rng.below(3);
    let capacities: Vec<u32> = (0..hosts).map(|_| 1 + rng.below(4) as u32).collect();
    let mut services: Vec<ServiceSpec> = Vec::new();
    let mut service_host = Vec::new();
    for at in 0..rng.below(max_services + 1) {
        let host = rng.below(hosts);
        let gpus = rng.below(capacities[host] as usize + 1) as u32;
        let after = (0..at)
            .filter(|_| rng.chance(20))
            .map(|s| ServiceId(s as u32))
            .collect();
        let units = if gpus > 0 {
            vec![(PoolId(host as u32), gpus)]
        } else {
            vec![]
        };
        services.push(ServiceSpec {
            host: Some(HostId(host as u32)),
            units,
            after,
        });
        service_host.push(host);
    }
    let mut tasks = Vec::new();
    for at in 0..1 + rng.below(max_tasks) {
        let deps = (0..at)
            .filter(|_| rng.chance(25))
            .map(|t| TaskId(t as u32))
            .collect();
        let mut used = BTreeSet::new();
        for _ in 0..rng.below(3) {
            if services.is_empty() {
                break;
            }
            let mut stack = vec![ServiceId(rng.below(services.len()) as u32)];
            while let Some(service) = stack.pop() {
                used.insert(service);
                stack.extend(&services[service.index()].after);
            }
        }
        let mut units = Vec::new();
        if rng.chance(20) {
            let host = rng.below(hosts);
            units.push((
                PoolId(host as u32),
                1 + rng.below(capacities[host] as usize) as u32,
            ));
        }
        let fits = |used: &BTreeSet<ServiceId>, units: &[(PoolId, u32)]| {
            (0..hosts).all(|host| {
                let held = used
                    .iter()
                    .flat_map(|s: &ServiceId| &services[s.index()].units);
                let sum: u32 = held
                    .chain(units)
                    .filter(|(pool, _)| pool.0 as usize == host)
                    .map(|(_, count)| *count)
                    .sum();
                sum <= capacities[host]
            })
        };
        if !fits(&used, &units) {
            units.clear();
        }
        if !fits(&used, &units) {
            used.clear();
        }
        let mut claimed: std::collections::BTreeMap<HostId, bool> = used
            .iter()
            .map(|s| (HostId(service_host[s.index()] as u32), rng.chance(70)))
            .collect();
        if rng.chance(40) {
            claimed.insert(HostId(rng.below(hosts) as u32), rng.chance(50));
        }
        tasks.push(TaskSpec {
            deps,
            services: used.into_iter().collect(),
            claim: Claim {
                hosts: claimed.into_iter().collect(),
                units,
            },
        });
    }
    Case {
        problem: Problem::new(tasks, services),
        hosts,
        capacities,
    }
}

/// The same with tokens and links: further pools, of which tasks on any host take some or all.
pub(super) fn with_tokens(mut case: Case, rng: &mut Rng) -> Case {
    for _ in 0..rng.below(4) {
        let pool = PoolId(case.capacities.len() as u32);
        let capacity = 1 + rng.below(3) as u32;
        case.capacities.push(capacity);
        for task in &mut case.problem.tasks {
            if rng.chance(40) {
                let count = match rng.chance(50) {
                    true => capacity,
                    false => 1 + rng.below(capacity as usize) as u32,
                };
                task.claim.units.push((pool, count));
            }
        }
    }
    case
}
