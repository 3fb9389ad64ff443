//! Who is next: tasks whose services are up, in file order; then the next set of services. What is
//! taken is taken whole, and whoever is first in line and lacks something keeps later ones off it.

use std::collections::BTreeSet;

use super::sequence::{self, Choice, Snapshot};
use super::{Command, Phase, Scheduler, ServiceId, Stage, TaskId};
use crate::engine::resources::{Claim, HostId, PoolId};

/// Results that may wait to become durable at a time: each holds its logs in memory.
const MOST_VACATED: usize = 256;

/// What is kept for tasks that are first in line and do not get all they ask for: whoever comes
/// later takes nothing of it, or one that asks for much would never get it.
struct Kept {
    /// By host.
    hosts: Vec<bool>,
    /// Pools of which a task itself takes units: tokens and links, GPUs and ports of steps.
    pools: BTreeSet<PoolId>,
}

impl Kept {
    fn is_everything(&self) -> bool {
        !self.hosts.is_empty() && self.hosts.iter().all(|kept| *kept)
    }

    fn bars(&self, claim: &Claim) -> bool {
        let host = |(host, _): &(HostId, bool)| self.hosts[host.0 as usize];
        let pool = |(pool, _): &(PoolId, u32)| self.pools.contains(pool);
        claim.hosts.iter().any(host) || claim.units.iter().any(pool)
    }

    fn keep(&mut self, claim: &Claim) {
        for (host, _) in &claim.hosts {
            self.hosts[host.0 as usize] = true;
        }
        self.pools.extend(claim.units.iter().map(|(pool, _)| *pool));
    }
}

impl Scheduler {
    /// The service of a `Start` command is not started after all, and no start is counted.
    pub fn not_started(&mut self) {
        self.starts -= 1;
    }

    /// One pass over the tasks in line; says whether services are being set up, after which
    /// more tasks may be free.
    pub(super) fn dispatch(&mut self, commands: &mut Vec<Command>) -> bool {
        while self.active < self.limits.tasks
            && self.active_hostless < self.limits.hostless
            && self.vacated.len() < MOST_VACATED
        {
            let Some(task) = self.ready_hostless.pop_first() else {
                break;
            };
            self.acquire(task, &[], commands);
        }
        let mut kept = Kept {
            hosts: vec![false; self.ledger.host_count()],
            pools: BTreeSet::new(),
        };
        let mut needs_setup = false;
        let candidates: Vec<TaskId> = self.ready_hosted.iter().copied().collect();
        for task in candidates {
            if self.active >= self.limits.tasks || kept.is_everything() {
                return false;
            }
            if !self.is_free(task) {
                needs_setup = true;
                continue;
            }
            self.acquire_or_keep(task, &[], &mut kept, commands);
        }
        needs_setup && self.active < self.limits.tasks && self.set_up(&mut kept, commands)
    }

    /// Whether all its services are up or on their way, and its own units are to be had without
    /// stopping one (or are held by tasks that will end).
    pub(super) fn is_free(&self, task: TaskId) -> bool {
        let spec = &self.problem.tasks[task.index()];
        spec.services.iter().all(|s| self.is_usable(s.index()))
            && spec.claim.units.iter().all(|&(pool, count)| {
                let services = self.problem.services.iter().enumerate();
                let held: u32 = services
                    .filter(|(at, _)| self.holds_units(*at))
                    .flat_map(|(_, service)| &service.units)
                    .filter(|(p, _)| *p == pool)
                    .map(|(_, c)| *c)
                    .sum();
                self.ledger.capacity(pool) - held >= count
            })
    }

    fn is_usable(&self, service: usize) -> bool {
        !self.tainted[service]
            && matches!(
                self.phase[service],
                Phase::Queued | Phase::Starting | Phase::Up
            )
    }

    fn holds_units(&self, service: usize) -> bool {
        matches!(
            self.phase[service],
            Phase::Queued | Phase::Starting | Phase::Up
        )
    }

    fn acquire_or_keep(
        &mut self,
        task: TaskId,
        victims: &[ServiceId],
        kept: &mut Kept,
        commands: &mut Vec<Command>,
    ) {
        let claim = &self.problem.tasks[task.index()].claim;
        if !kept.bars(claim)
            && self.ledger.hosts_fit(&claim.hosts)
            && self.fits_without(task, victims)
        {
            self.acquire(task, victims, commands);
            return;
        }
        kept.keep(claim);
    }

    fn fits_without(&self, task: TaskId, victims: &[ServiceId]) -> bool {
        let spec = &self.problem.tasks[task.index()];
        let mut ledger = self.ledger.clone();
        for victim in victims {
            if self.pins[victim.index()] > 0 || self.phase[victim.index()] != Phase::Up {
                return false;
            }
            // An earlier choice of the sequence was to end what stands on it, and could not be
            // taken yet: the victim would wait for that, and the task for the victim.
            if self.bears(*victim, victims) {
                return false;
            }
            ledger.give_units(&self.problem.services[victim.index()].units);
        }
        for service in &spec.services {
            if self.is_usable(service.index()) {
                continue;
            }
            // On its way down: it must be gone before it can be started again.
            if self.phase[service.index()] != Phase::Down {
                return false;
            }
            let units = &self.problem.services[service.index()].units;
            if !ledger.units_fit(units) {
                return false;
            }
            ledger.take_units(units);
        }
        ledger.units_fit(&spec.claim.units)
    }

    /// Whether a service that is to stay stands on this one.
    fn bears(&self, service: ServiceId, victims: &[ServiceId]) -> bool {
        let services = self.problem.services.iter().enumerate();
        services
            .filter(|(_, spec)| spec.after.contains(&service))
            .any(|(above, _)| {
                self.holds_units(above) && !victims.contains(&ServiceId(above as u32))
            })
    }

    fn acquire(&mut self, task: TaskId, victims: &[ServiceId], commands: &mut Vec<Command>) {
        for victim in victims {
            self.drain(victim.index());
        }
        let spec = self.problem.tasks[task.index()].clone();
        for service in &spec.services {
            let at = service.index();
            self.pins[at] += 1;
            if self.phase[at] == Phase::Down {
                self.ledger.take_units(&self.problem.services[at].units);
                self.phase[at] = Phase::Queued;
            }
        }
        self.ledger.take_hosts(&spec.claim.hosts);
        self.ledger.take_units(&spec.claim.units);
        self.ready_hosted.remove(&task);
        self.stage[task.index()] = Stage::Acquired;
        self.acquired.insert(task);
        self.active += 1;
        if self.is_hostless(task) {
            self.active_hostless += 1;
        }
        commands.push(Command::Acquired(task));
    }

    /// Brings up the next set of services, and further ones that touch nothing of those before.
    fn set_up(&mut self, kept: &mut Kept, commands: &mut Vec<Command>) -> bool {
        let before = self.active;
        let snapshot = self.snapshot();
        let choices = sequence::sequence(&self.problem, &snapshot);
        let mut touched: BTreeSet<PoolId> = BTreeSet::new();
        for choice in choices {
            if self.active >= self.limits.tasks {
                break;
            }
            let pools = self.pools_of(&choice);
            let apart = pools.is_disjoint(&touched);
            touched.extend(pools);
            let ready = self.stage[choice.task.index()] == Stage::Ready;
            if apart && ready && !self.is_early(&choice, &snapshot) {
                self.acquire_or_keep(choice.task, &choice.victims, kept, commands);
            }
        }
        self.active > before
    }

    /// Pools whose holders the choice changes.
    fn pools_of(&self, choice: &Choice) -> BTreeSet<PoolId> {
        let spec = &self.problem.tasks[choice.task.index()];
        let services = spec.services.iter().chain(&choice.victims);
        let units = services.flat_map(|s| &self.problem.services[s.index()].units);
        units
            .chain(&spec.claim.units)
            .map(|(pool, _)| *pool)
            .collect()
    }

    /// Whether a task that the sequence runs before the choice still needs one of its victims, or
    /// units that it takes. What is out of sight was done before the sequence began.
    fn is_early(&self, choice: &Choice, snapshot: &Snapshot) -> bool {
        let pools = self.pools_of(choice);
        self.problem.tasks.iter().enumerate().any(|(at, task)| {
            let pending = matches!(
                self.stage[at],
                Stage::Waiting | Stage::Undecided | Stage::Ready
            );
            let uses_victim = || task.services.iter().any(|s| choice.victims.contains(s));
            let uses_units = || {
                task.claim
                    .units
                    .iter()
                    .any(|(pool, _)| pools.contains(pool))
            };
            let is_before = choice.done[at] && !snapshot.done[at];
            is_before && pending && (uses_victim() || uses_units())
        })
    }

    fn snapshot(&self) -> Snapshot {
        let mut free = self.ledger.capacities();
        let up: Vec<bool> = (0..self.phase.len()).map(|at| self.is_usable(at)).collect();
        for (at, service) in self.problem.services.iter().enumerate() {
            if up[at] {
                for &(pool, count) in &service.units {
                    free[pool.0 as usize] -= count;
                }
            }
        }
        let done = self.out_of_sight();
        // Tasks that are kept out, or wait for one that is, keep their services up.
        let mut stays = vec![false; self.phase.len()];
        for (at, task) in self.problem.tasks.iter().enumerate() {
            use Stage::{Parked, Ready, Undecided, Waiting};
            let is_to_come = matches!(self.stage[at], Waiting | Undecided | Parked | Ready);
            for service in task.services.iter().filter(|_| is_to_come && done[at]) {
                stays[service.index()] = true;
            }
        }
        Snapshot {
            done,
            up,
            stays,
            free,
        }
    }

    /// By task: whether nothing is to be brought up for it now, because it has what it needs, has
    /// ended, is kept out or waits for one that is.
    fn out_of_sight(&self) -> Vec<bool> {
        let seen =
            |stage: &Stage| matches!(stage, Stage::Waiting | Stage::Undecided | Stage::Ready);
        let mut out: Vec<bool> = self.stage.iter().map(|stage| !seen(stage)).collect();
        let kept = |stage: &Stage| matches!(stage, Stage::Parked | Stage::Held);
        let mut stack: Vec<usize> = (0..self.stage.len())
            .filter(|at| kept(&self.stage[*at]))
            .collect();
        while let Some(at) = stack.pop() {
            for next in &self.problem.rdeps[at] {
                if !std::mem::replace(&mut out[next.index()], true) {
                    stack.push(next.index());
                }
            }
        }
        out
    }
}
