//! The scheduler on graphs of the shape of the shipped campaigns: no service is started twice.

use super::cases::{Case, Rng};
use super::tests::{WIDE, World};
use super::*;
use crate::engine::resources::{Claim, HostId};

/// The shape of the two-node serving campaign: per layer some server configurations, each of
/// which takes all GPUs of one or both hosts (prefill, decode and a proxy that stands on them),
/// and cells that use them, interleaved as a file that goes by prompt length and concurrency has
/// them.
fn campaign(configurations: &[(usize, bool)], cells: usize) -> Case {
    let mut services = Vec::new();
    let mut sets = Vec::new();
    for &(count, pair) in configurations {
        let mut layer = Vec::new();
        for _ in 0..count {
            let first = services.len() as u32;
            services.push(ServiceSpec {
                host: Some(HostId(0)),
                units: vec![(PoolId(0), 4)],
                after: vec![],
            });
            if pair {
                services.push(ServiceSpec {
                    host: Some(HostId(1)),
                    units: vec![(PoolId(1), 4)],
                    after: vec![],
                });
                services.push(ServiceSpec {
                    host: Some(HostId(0)),
                    units: vec![],
                    after: vec![ServiceId(first), ServiceId(first + 1)],
                });
            }
            layer.push(
                (first..services.len() as u32)
                    .map(ServiceId)
                    .collect::<Vec<_>>(),
            );
        }
        sets.push(layer);
    }
    let gate = TaskSpec {
        claim: Claim {
            hosts: vec![(HostId(0), true), (HostId(1), true)],
            units: vec![],
        },
        ..TaskSpec::default()
    };
    let mut tasks = vec![gate];
    let longest = configurations.len() * cells;
    for at in 0..longest {
        // Layers alternate, as in an order that puts compared cells side by side.
        let layer = &sets[at % sets.len()];
        tasks.push(TaskSpec {
            deps: vec![TaskId(0)],
            services: layer[(at / sets.len()) % layer.len()].clone(),
            claim: Claim {
                hosts: vec![(HostId(0), true), (HostId(1), true)],
                units: vec![],
            },
        });
    }
    Case {
        problem: Problem::new(tasks, services),
        hosts: 2,
        capacities: vec![4, 4],
    }
}

#[test]
fn campaigns_need_no_more_starts_than_they_have_distinct_services() {
    for (configurations, cells) in [
        (vec![(3, false), (5, true), (4, true)], 12),
        (vec![(4, false), (4, true), (4, true)], 25),
        (vec![(40, false), (60, true)], 100),
    ] {
        let case = campaign(&configurations, cells);
        let distinct = case.problem.services.len() as u64;
        for seed in 0..3 {
            let starts = World::new(&case, WIDE).run(&mut Rng(seed), 0, 0);
            assert_eq!(starts, distinct, "{configurations:?}");
        }
    }
}
