//! The naive way to the fewest starts, to hold the search against: every reachable state of a small
//! case is looked at.

use std::collections::{HashMap, VecDeque};

use super::cases::Case;

/// The fewest starts of any sequence, by looking at every reachable state. Any set of idle
/// services may be stopped at any time here, useful or not.
pub(super) fn fewest_starts(case: &Case) -> u64 {
    let problem = &case.problem;
    let (tasks, services) = (problem.tasks.len(), problem.services.len());
    let closed = |up: u32| {
        (0..services).all(|s| {
            up & (1 << s) == 0
                || problem.services[s]
                    .after
                    .iter()
                    .all(|a| up & (1 << a.0) != 0)
        })
    };
    let fits = |up: u32, task: usize| {
        let held = (0..services)
            .filter(|s| up & (1 << s) != 0)
            .flat_map(|s| &problem.services[s].units);
        let held: Vec<_> = held.chain(&problem.tasks[task].claim.units).collect();
        case.capacities.iter().enumerate().all(|(pool, capacity)| {
            held.iter()
                .filter(|(p, _)| p.0 as usize == pool)
                .map(|(_, c)| *c)
                .sum::<u32>()
                <= *capacity
        })
    };
    let mut best: HashMap<(u32, u32), u64> = HashMap::from([((0, 0), 0)]);
    let mut queue = VecDeque::from([(0u32, 0u32, 0u64)]);
    let mut answer = u64::MAX;
    while let Some((done, up, cost)) = queue.pop_front() {
        if best[&(done, up)] < cost {
            continue;
        }
        if done == (1 << tasks) - 1 {
            answer = answer.min(cost);
            continue;
        }
        for task in 0..tasks {
            let spec = &problem.tasks[task];
            if done & (1 << task) != 0 || spec.deps.iter().any(|d| done & (1 << d.0) == 0) {
                continue;
            }
            let needed: u32 = spec.services.iter().map(|s| 1 << s.0).sum();
            let starts = u64::from((needed & !up).count_ones());
            // Every subset of what is up may be kept, as long as it is closed and fits.
            let keepable = up & !needed;
            let mut kept = keepable;
            loop {
                let next_up = needed | kept;
                if closed(next_up) && fits(next_up, task) {
                    let next = (done | 1 << task, next_up);
                    let total = cost + starts;
                    if best.get(&next).is_none_or(|known| total < *known) {
                        best.insert(next, total);
                        queue.push_back((next.0, next.1, total));
                    }
                }
                if kept == 0 {
                    break;
                }
                kept = (kept - 1) & keepable;
            }
        }
    }
    answer
}
