//! In which order services should be set up so that as few as possible are started. A pure
//! search: the same snapshot always gives the same answer.
//!
//! The method. Seen as a sequence, a run is a walk in which a task whose services are all up
//! costs nothing and starting a service costs one. Three facts shrink the walk without losing
//! the best one: running a free task never hurts (it only takes away future needs), stopping a
//! service that nobody needs any more never hurts, and stopping or starting anything earlier than
//! it must be never helps. So the only decisions are which set of services to bring up next and
//! whom to stop for it, and the number of services still needed but not up is a lower bound of
//! what is to come. Depth first, cheapest child first, with that bound and a table of states
//! seen: exact until the budget of visited states is spent, from there on the best found so far,
//! which is never worse than choosing the cheapest child each time.

use std::collections::{HashMap, HashSet};

use super::{Problem, ServiceId, TaskId};
use crate::engine::resources::PoolId;

/// What the search starts from.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// By task: finished, or running and taken as if it were finished.
    pub(super) done: Vec<bool>,
    /// By service: up or on its way.
    pub(super) up: Vec<bool>,
    /// By service: whether it stays up, although no task that is not done uses it, until it has to
    /// make room.
    pub(super) stays: Vec<bool>,
    /// By pool: units that no such service holds.
    pub(super) free: Vec<u32>,
}

/// One decision: bring up what this task misses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// The task, ready when its turn comes.
    pub(super) task: TaskId,
    /// Services that make room, dependents of stopped ones included.
    pub(super) victims: Vec<ServiceId>,
    /// By task: done before this choice.
    pub(super) done: Vec<bool>,
}

/// The decisions ahead in order; possibly only the first few of them when the problem is large.
pub(super) fn sequence(problem: &Problem, snapshot: &Snapshot) -> Vec<Choice> {
    let mut search = Search {
        problem,
        stays: &snapshot.stays,
        best: None,
        first: Vec::new(),
        seen: HashMap::new(),
        budget: (4_000_000 / (problem.tasks.len() + 1)).clamp(128, 50_000),
    };
    let mut state = State::new(problem, snapshot);
    state.settle(problem, &snapshot.stays);
    let mut path = Vec::new();
    search.descend(state, 0, &mut path);
    match search.best {
        Some((_, path)) => path,
        None => search.first,
    }
}

struct Search<'p> {
    problem: &'p Problem,
    stays: &'p [bool],
    best: Option<(u32, Vec<Choice>)>,
    /// The first descent so far, for when the budget ends before it does.
    first: Vec<Choice>,
    seen: HashMap<(Vec<bool>, Vec<bool>), u32>,
    budget: usize,
}

#[derive(Clone)]
struct State {
    done: Vec<bool>,
    missing_deps: Vec<u32>,
    up: Vec<bool>,
    free: Vec<u32>,
    /// By service: tasks that are not done and use it.
    users: Vec<u32>,
    left: usize,
}

/// Children of one state that are looked at; beyond that only the most promising are.
const CHILDREN: usize = 24;
/// Idle services that may make room, up to which every minimal set of them is tried.
const EXACT_VICTIMS: usize = 8;

impl State {
    fn new(problem: &Problem, snapshot: &Snapshot) -> Self {
        let mut users = vec![0; problem.services.len()];
        let mut missing_deps = vec![0; problem.tasks.len()];
        for (at, task) in problem.tasks.iter().enumerate() {
            if snapshot.done[at] {
                continue;
            }
            for service in &task.services {
                users[service.0 as usize] += 1;
            }
            missing_deps[at] = task
                .deps
                .iter()
                .filter(|dep| !snapshot.done[dep.0 as usize])
                .count() as u32;
        }
        Self {
            left: snapshot.done.iter().filter(|done| !**done).count(),
            done: snapshot.done.clone(),
            missing_deps,
            up: snapshot.up.clone(),
            free: snapshot.free.clone(),
            users,
        }
    }

    /// Does everything that costs nothing: stops useless services, runs free tasks.
    fn settle(&mut self, problem: &Problem, stays: &[bool]) {
        for service in 0..self.up.len() {
            self.drop_useless(problem, stays, service);
        }
        loop {
            let mut moved = false;
            for at in 0..self.done.len() {
                if self.is_free(problem, at) {
                    self.run(problem, stays, at);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn is_free(&self, problem: &Problem, at: usize) -> bool {
        let task = &problem.tasks[at];
        !self.done[at]
            && self.missing_deps[at] == 0
            && task.services.iter().all(|s| self.up[s.0 as usize])
            && task
                .claim
                .units
                .iter()
                .all(|&(pool, count)| self.free[pool.0 as usize] >= count)
    }

    fn run(&mut self, problem: &Problem, stays: &[bool], at: usize) {
        self.done[at] = true;
        self.left -= 1;
        for next in &problem.rdeps[at] {
            self.missing_deps[next.0 as usize] =
                self.missing_deps[next.0 as usize].saturating_sub(1);
        }
        for service in &problem.tasks[at].services {
            self.users[service.0 as usize] -= 1;
            self.drop_useless(problem, stays, service.0 as usize);
        }
    }

    fn drop_useless(&mut self, problem: &Problem, stays: &[bool], service: usize) {
        if self.up[service] && self.users[service] == 0 && !stays[service] {
            self.stop(problem, service);
        }
    }

    fn stop(&mut self, problem: &Problem, service: usize) {
        self.up[service] = false;
        for &(pool, count) in &problem.services[service].units {
            self.free[pool.0 as usize] += count;
        }
    }

    fn start(&mut self, problem: &Problem, service: usize) {
        self.up[service] = true;
        for &(pool, count) in &problem.services[service].units {
            self.free[pool.0 as usize] -= count;
        }
    }

    /// Services that are needed and not up: each must be started at least once.
    fn bound(&self) -> u32 {
        let needed = self.up.iter().zip(&self.users);
        needed.filter(|(up, users)| !**up && **users > 0).count() as u32
    }

    fn missing(&self, problem: &Problem, at: usize) -> Vec<usize> {
        let services = problem.tasks[at].services.iter().map(|s| s.0 as usize);
        services.filter(|&s| !self.up[s]).collect()
    }
}

/// Sets of idle services whose end makes room for a task, the gentlest first; empty when no set
/// does. `idle` says which services may be stopped.
fn victim_sets(
    problem: &Problem,
    state: &State,
    at: usize,
    missing: &[usize],
) -> Vec<Vec<ServiceId>> {
    let task = &problem.tasks[at];
    let mut need: HashMap<PoolId, u32> = HashMap::new();
    let starting = missing.iter().flat_map(|&s| &problem.services[s].units);
    for &(pool, count) in starting.chain(&task.claim.units) {
        *need.entry(pool).or_default() += count;
    }
    need.retain(|pool, count| *count > state.free[pool.0 as usize]);
    if need.is_empty() {
        return vec![Vec::new()];
    }
    let candidates: Vec<usize> = (0..state.up.len())
        .filter(|&s| {
            state.up[s]
                && !task.services.contains(&ServiceId(s as u32))
                && problem.services[s]
                    .units
                    .iter()
                    .any(|(pool, _)| need.contains_key(pool))
        })
        .collect();
    let enough = |stopped: &[usize]| {
        need.iter().all(|(pool, &count)| {
            let freed: u32 = stopped
                .iter()
                .flat_map(|&s| &problem.services[s].units)
                .filter(|(p, _)| p == pool)
                .map(|(_, c)| *c)
                .sum();
            state.free[pool.0 as usize] + freed >= count
        })
    };
    let mut sets: Vec<Vec<usize>> = Vec::new();
    if candidates.len() <= EXACT_VICTIMS {
        for mask in 1u32..(1 << candidates.len()) {
            let set: Vec<usize> = (0..candidates.len())
                .filter(|bit| mask & (1 << bit) != 0)
                .map(|bit| candidates[bit])
                .collect();
            let minimal = || {
                (0..set.len()).all(|skip| {
                    let less: Vec<usize> = set
                        .iter()
                        .enumerate()
                        .filter(|(at, _)| *at != skip)
                        .map(|(_, s)| *s)
                        .collect();
                    !enough(&less)
                })
            };
            if enough(&set) && minimal() {
                sets.push(set);
            }
        }
    } else {
        // Those that fewest pending tasks need go first; then whoever turned out superfluous stays.
        let mut order = candidates;
        order.sort_by_key(|&s| (state.users[s], s));
        let mut set: Vec<usize> = Vec::new();
        for service in order {
            if enough(&set) {
                break;
            }
            set.push(service);
        }
        if enough(&set) {
            for at in (0..set.len()).rev() {
                let mut less = set.clone();
                less.remove(at);
                if enough(&less) {
                    set = less;
                }
            }
            sets.push(set);
        }
    }
    let mut closed: Vec<Vec<ServiceId>> = sets
        .into_iter()
        .map(|set| with_dependents(problem, &state.up, set))
        .collect();
    closed.sort_by_key(|set| {
        let useful = set.iter().filter(|s| state.users[s.0 as usize] > 0).count();
        (useful, set.clone())
    });
    closed.dedup();
    closed
}

/// The set and every service that is up and stands on one of it, sorted.
fn with_dependents(problem: &Problem, up: &[bool], mut set: Vec<usize>) -> Vec<ServiceId> {
    let mut at = 0;
    while at < set.len() {
        let stopped = ServiceId(set[at] as u32);
        for (service, spec) in problem.services.iter().enumerate() {
            if up[service] && spec.after.contains(&stopped) && !set.contains(&service) {
                set.push(service);
            }
        }
        at += 1;
    }
    set.sort_unstable();
    set.into_iter().map(|s| ServiceId(s as u32)).collect()
}

impl Search<'_> {
    fn descend(&mut self, state: State, cost: u32, path: &mut Vec<Choice>) {
        if self.best.is_none() && path.len() > self.first.len() {
            self.first.clone_from(path);
        }
        if state.left == 0 {
            if self.best.as_ref().is_none_or(|(best, _)| cost < *best) {
                self.best = Some((cost, path.clone()));
            }
            return;
        }
        let mut children = self.children(&state, cost);
        children.sort_by_key(|child| child.rank);
        for child in children {
            let beaten = |best: u32| child.cost + child.state.bound() >= best;
            if self.best.as_ref().is_some_and(|(best, _)| beaten(*best)) {
                continue;
            }
            let key = (child.state.done.clone(), child.state.up.clone());
            match self.seen.get_mut(&key) {
                Some(known) if *known <= child.cost => continue,
                Some(known) => *known = child.cost,
                None => {
                    self.seen.insert(key, child.cost);
                }
            }
            if self.budget == 0 {
                return;
            }
            path.push(child.choice);
            self.descend(child.state, child.cost, path);
            path.pop();
        }
    }

    fn children(&mut self, state: &State, cost: u32) -> Vec<Child> {
        let problem = self.problem;
        // Tasks that miss the same services and take the same units are one decision.
        let mut kinds = HashSet::new();
        let mut drafts = Vec::new();
        for at in 0..state.done.len() {
            let task = &problem.tasks[at];
            if state.done[at] || state.missing_deps[at] > 0 {
                continue;
            }
            if !kinds.insert((&task.services, &task.claim.units)) {
                continue;
            }
            let missing = state.missing(problem, at);
            for victims in victim_sets(problem, state, at, &missing) {
                let useful = victims
                    .iter()
                    .filter(|s| state.users[s.0 as usize] > 0)
                    .count();
                drafts.push((useful, missing.len(), at, victims, missing.clone()));
            }
        }
        drafts.sort_by_key(|draft| (draft.0, draft.1, draft.2));
        if state.done.len() > 64 {
            drafts.truncate(CHILDREN);
        }
        let mut children = Vec::new();
        for (_, _, at, victims, missing) in drafts {
            self.budget = self.budget.saturating_sub(1);
            let mut next = state.clone();
            for victim in &victims {
                next.stop(problem, victim.0 as usize);
            }
            for &service in &missing {
                next.start(problem, service);
            }
            next.settle(problem, self.stays);
            let cost = cost + missing.len() as u32;
            let still_used: u32 = missing.iter().map(|&s| next.users[s]).sum();
            children.push(Child {
                rank: (cost + next.bound(), still_used, at),
                cost,
                state: next,
                choice: Choice {
                    task: TaskId(at as u32),
                    victims,
                    done: state.done.clone(),
                },
            });
        }
        children
    }
}

struct Child {
    rank: (u32, u32, usize),
    cost: u32,
    state: State,
    choice: Choice,
}
