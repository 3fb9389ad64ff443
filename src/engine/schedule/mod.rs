//! The scheduler: a deterministic state machine without clock, thread or socket. It is told what
//! happened and answers with commands; the same history always gives the same commands. A task
//! is admitted to its hosts, units and services in one move or not at all, so nothing waits while
//! it holds; every command is answered by exactly one report, so the machine never stalls while
//! there is something to do.
//!
//! The order. Tasks whose services are up go first, in file order; when none is left that could
//! run, the next set of services is the one that `sequence` names. A task that is first
//! in line and lacks a host keeps later ones off its hosts, so none starves. What no pending task
//! needs is stopped at once.

use std::collections::{BTreeSet, VecDeque};

use self::sequence::{Choice, Snapshot};
use super::resources::{Claim, Inventory, Ledger, PoolId};

mod sequence;
#[cfg(test)]
mod tests;

/// A node of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u32);

/// A service of this run: one key on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

impl TaskId {
    /// Position in tables that have one entry a task.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ServiceId {
    /// Position in tables that have one entry a service.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the scheduler knows of a task. Tasks stand in file order.
#[derive(Debug, Clone, Default)]
pub struct TaskSpec {
    /// Tasks that must have ended first, each once.
    pub deps: Vec<TaskId>,
    /// Services it uses, those they stand on included, sorted.
    pub services: Vec<ServiceId>,
    /// What it holds while it runs, beside its services.
    pub claim: Claim,
}

/// What the scheduler knows of a service.
#[derive(Debug, Clone, Default)]
pub struct ServiceSpec {
    /// What it holds while it lives.
    pub units: Vec<(PoolId, u32)>,
    /// Services that must be ready first and that it stands on.
    pub after: Vec<ServiceId>,
}

/// Tasks and services of a run.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// By task.
    pub tasks: Vec<TaskSpec>,
    /// By task: those that name it in `deps`.
    pub rdeps: Vec<Vec<TaskId>>,
    /// By service.
    pub services: Vec<ServiceSpec>,
}

impl Problem {
    /// Completes the tables. Dependencies among tasks and among services must have no cycle.
    pub fn new(tasks: Vec<TaskSpec>, services: Vec<ServiceSpec>) -> Self {
        let mut rdeps = vec![Vec::new(); tasks.len()];
        for (at, task) in tasks.iter().enumerate() {
            for dep in &task.deps {
                rdeps[dep.index()].push(TaskId(at as u32));
            }
        }
        Self {
            tasks,
            rdeps,
            services,
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The task got all it asked for; its services are being brought up.
    Acquired(TaskId),
    /// Start the service; answer with [`Scheduler::service_up`] or [`Scheduler::service_down`].
    Start(ServiceId),
    /// Stop the service; answer with [`Scheduler::service_down`].
    Stop(ServiceId),
    /// Run the task; answer with [`Scheduler::finish`].
    Run(TaskId),
}

/// Limits on how many run at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tasks of any kind.
    pub tasks: usize,
    /// Tasks that take no host.
    pub hostless: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Something it depends on has not ended.
    Waiting,
    /// Nobody has said yet whether it runs.
    Undecided,
    /// It is to run and holds nothing.
    Ready,
    /// It holds all it asked for and waits for its services.
    Acquired,
    Running,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    /// Holds its units; waits for those who had them before, or for services it stands on.
    Queued,
    Starting,
    Up,
    /// Gave its units up; waits for the end of services that stand on it.
    Draining,
    Stopping,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    problem: Problem,
    limits: Limits,
    ledger: Ledger,
    stage: Vec<Stage>,
    missing_deps: Vec<u32>,
    undecided: VecDeque<TaskId>,
    /// Tasks in `Ready`, those that take hosts or units apart from the others.
    ready_hosted: BTreeSet<TaskId>,
    ready_hostless: BTreeSet<TaskId>,
    acquired: BTreeSet<TaskId>,
    active: usize,
    active_hostless: usize,
    phase: Vec<Phase>,
    /// Up, but to be used by nobody any more.
    tainted: Vec<bool>,
    /// Tasks not ended that use the service.
    pending_users: Vec<u32>,
    /// Tasks that hold the service now.
    pins: Vec<u32>,
    draining: bool,
    left: usize,
    starts: u64,
}

impl Scheduler {
    /// A run that has not begun.
    pub fn new(problem: Problem, inventory: &Inventory, limits: Limits) -> Self {
        Self::with_ledger(problem, Ledger::new(inventory), limits)
    }

    fn with_ledger(problem: Problem, ledger: Ledger, limits: Limits) -> Self {
        let mut pending_users = vec![0; problem.services.len()];
        for service in problem.tasks.iter().flat_map(|task| &task.services) {
            pending_users[service.index()] += 1;
        }
        let missing_deps: Vec<u32> = problem.tasks.iter().map(|t| t.deps.len() as u32).collect();
        let mut scheduler = Self {
            stage: vec![Stage::Waiting; problem.tasks.len()],
            undecided: VecDeque::new(),
            ready_hosted: BTreeSet::new(),
            ready_hostless: BTreeSet::new(),
            acquired: BTreeSet::new(),
            active: 0,
            active_hostless: 0,
            phase: vec![Phase::Down; problem.services.len()],
            tainted: vec![false; problem.services.len()],
            pins: vec![0; problem.services.len()],
            draining: false,
            left: problem.tasks.len(),
            starts: 0,
            missing_deps,
            pending_users,
            problem,
            limits,
            ledger,
        };
        for at in 0..scheduler.problem.tasks.len() {
            if scheduler.missing_deps[at] == 0 {
                scheduler.stage[at] = Stage::Undecided;
                scheduler.undecided.push_back(TaskId(at as u32));
            }
        }
        scheduler
    }

    /// A task whose dependencies have all ended and of which nobody has said yet whether it runs.
    /// Answer with [`Self::admit`] or [`Self::finish`], now or later.
    pub fn next_undecided(&mut self) -> Option<TaskId> {
        self.undecided.pop_front()
    }

    /// The task is to run.
    pub fn admit(&mut self, task: TaskId) {
        debug_assert_eq!(self.stage[task.index()], Stage::Undecided);
        self.stage[task.index()] = Stage::Ready;
        if self.is_hostless(task) {
            self.ready_hostless.insert(task);
        } else {
            self.ready_hosted.insert(task);
        }
    }

    /// The task has ended, whatever the outcome and whether it ran or not. What depends on it
    /// comes up as undecided.
    pub fn finish(&mut self, task: TaskId) {
        let at = task.index();
        match self.stage[at] {
            Stage::Ended => return,
            Stage::Acquired | Stage::Running => self.release(task),
            Stage::Ready => {
                self.ready_hosted.remove(&task);
                self.ready_hostless.remove(&task);
            }
            Stage::Waiting | Stage::Undecided => self.undecided.retain(|t| *t != task),
        }
        self.stage[at] = Stage::Ended;
        self.left -= 1;
        for service in &self.problem.tasks[at].services {
            self.pending_users[service.index()] -= 1;
        }
        for next in self.problem.rdeps[at].clone() {
            let missing = &mut self.missing_deps[next.index()];
            *missing -= 1;
            if *missing == 0 && self.stage[next.index()] == Stage::Waiting {
                self.stage[next.index()] = Stage::Undecided;
                self.undecided.push_back(next);
            }
        }
    }

    /// The service is ready.
    pub fn service_up(&mut self, service: ServiceId) {
        self.phase[service.index()] = Phase::Up;
    }

    /// The service is gone: it was stopped, failed to start, or died. Returns the tasks that hold
    /// it; they should be finished, since it won't come back for them.
    pub fn service_down(&mut self, service: ServiceId) -> Vec<TaskId> {
        let at = service.index();
        if matches!(self.phase[at], Phase::Queued | Phase::Starting | Phase::Up) {
            self.ledger.give_units(&self.problem.services[at].units);
        }
        self.phase[at] = Phase::Down;
        self.tainted[at] = false;
        // What stands on it was told its address, which is void now.
        for other in 0..self.problem.services.len() {
            if matches!(self.phase[other], Phase::Starting | Phase::Up) && self.stands_on(other, at)
            {
                self.tainted[other] = true;
            }
        }
        let holders = (0..self.problem.tasks.len()).filter(|&task| {
            matches!(self.stage[task], Stage::Acquired | Stage::Running)
                && self.problem.tasks[task].services.contains(&service)
        });
        holders.map(|task| TaskId(task as u32)).collect()
    }

    /// No task is started from now on; what runs may end.
    pub fn stop_submitting(&mut self) {
        self.draining = true;
    }

    /// Whether [`Self::stop_submitting`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Tasks that have not ended and hold nothing.
    pub fn idle_tasks(&self) -> Vec<TaskId> {
        let idle =
            |stage: &Stage| matches!(stage, Stage::Waiting | Stage::Undecided | Stage::Ready);
        let tasks = self
            .stage
            .iter()
            .enumerate()
            .filter(|(_, stage)| idle(stage));
        tasks.map(|(at, _)| TaskId(at as u32)).collect()
    }

    /// Tasks of those that have not ended which use a service.
    pub fn pending_users_of(&self, service: ServiceId) -> Vec<TaskId> {
        let tasks = self.problem.tasks.iter().enumerate();
        tasks
            .filter(|(at, task)| {
                self.stage[*at] != Stage::Ended && task.services.contains(&service)
            })
            .map(|(at, _)| TaskId(at as u32))
            .collect()
    }

    /// Whether every task has ended and every service is down.
    pub fn is_over(&self) -> bool {
        self.left == 0 && self.phase.iter().all(|phase| *phase == Phase::Down)
    }

    /// Number of `Start` commands so far.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// Tasks that hold resources now.
    pub fn active(&self) -> usize {
        self.active
    }

    /// What is to be done now. Call after every change.
    pub fn commands(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        self.stop_useless();
        while !self.draining && self.dispatch(&mut commands) {}
        self.advance(&mut commands);
        commands
    }

    fn is_hostless(&self, task: TaskId) -> bool {
        let spec = &self.problem.tasks[task.index()];
        spec.claim.hosts.is_empty() && spec.claim.units.is_empty() && spec.services.is_empty()
    }

    fn stands_on(&self, service: usize, other: usize) -> bool {
        let mut stack = vec![service];
        while let Some(at) = stack.pop() {
            for below in &self.problem.services[at].after {
                if below.index() == other {
                    return true;
                }
                stack.push(below.index());
            }
        }
        false
    }

    fn release(&mut self, task: TaskId) {
        let spec = &self.problem.tasks[task.index()];
        self.ledger.give_hosts(&spec.claim.hosts);
        self.ledger.give_units(&spec.claim.units);
        for service in &spec.services {
            self.pins[service.index()] -= 1;
        }
        self.acquired.remove(&task);
        self.active -= 1;
        if self.is_hostless(task) {
            self.active_hostless -= 1;
        }
    }

    /// Gives up what nobody needs (or, when nothing new starts, nobody holds), and what is
    /// tainted as soon as nobody holds it.
    fn stop_useless(&mut self) {
        for at in 0..self.phase.len() {
            if self.pins[at] > 0 {
                continue;
            }
            let useless = self.pending_users[at] == 0 || self.tainted[at] || self.draining;
            match self.phase[at] {
                Phase::Queued => {
                    self.ledger.give_units(&self.problem.services[at].units);
                    self.phase[at] = Phase::Down;
                }
                Phase::Up if useless => self.drain(at),
                _ => {}
            }
        }
    }

    fn drain(&mut self, at: usize) {
        self.ledger.give_units(&self.problem.services[at].units);
        self.phase[at] = Phase::Draining;
    }

    /// One pass over the tasks in line; says whether services are being set up, after which
    /// more tasks may be free.
    fn dispatch(&mut self, commands: &mut Vec<Command>) -> bool {
        while self.active < self.limits.tasks && self.active_hostless < self.limits.hostless {
            let Some(task) = self.ready_hostless.pop_first() else {
                break;
            };
            self.acquire(task, &[], commands);
        }
        let mut kept = vec![false; self.ledger.host_count()];
        let mut needs_setup = false;
        let candidates: Vec<TaskId> = self.ready_hosted.iter().copied().collect();
        for task in candidates {
            let all_kept = !kept.is_empty() && kept.iter().all(|kept| *kept);
            if self.active >= self.limits.tasks || all_kept {
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
    fn is_free(&self, task: TaskId) -> bool {
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
        kept: &mut [bool],
        commands: &mut Vec<Command>,
    ) {
        let hosts = &self.problem.tasks[task.index()].claim.hosts;
        let barred = hosts.iter().any(|(host, _)| kept[host.0 as usize]);
        if !barred && self.ledger.hosts_fit(hosts) && self.fits_without(task, victims) {
            self.acquire(task, victims, commands);
            return;
        }
        for (host, _) in hosts {
            kept[host.0 as usize] = true;
        }
    }

    fn fits_without(&self, task: TaskId, victims: &[ServiceId]) -> bool {
        let spec = &self.problem.tasks[task.index()];
        let mut ledger = self.ledger.clone();
        for victim in victims {
            if self.pins[victim.index()] > 0 || self.phase[victim.index()] != Phase::Up {
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
    fn set_up(&mut self, kept: &mut [bool], commands: &mut Vec<Command>) -> bool {
        let before = self.active;
        let choices = sequence::sequence(&self.problem, &self.snapshot());
        let mut touched: BTreeSet<PoolId> = BTreeSet::new();
        for choice in choices {
            if self.active >= self.limits.tasks {
                break;
            }
            let pools = self.pools_of(&choice);
            let apart = pools.is_disjoint(&touched);
            touched.extend(pools);
            if apart && self.stage[choice.task.index()] == Stage::Ready && !self.is_early(&choice) {
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
    /// units that it takes.
    fn is_early(&self, choice: &Choice) -> bool {
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
            choice.done[at] && pending && (uses_victim() || uses_units())
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
        let done = self
            .stage
            .iter()
            .map(|stage| matches!(stage, Stage::Acquired | Stage::Running | Stage::Ended));
        Snapshot {
            done: done.collect(),
            up,
            free,
        }
    }

    /// Moves services and acquired tasks on as far as they can go.
    fn advance(&mut self, commands: &mut Vec<Command>) {
        for at in (0..self.phase.len()).rev() {
            let above_gone = || {
                (0..self.phase.len()).all(|other| {
                    self.phase[other] == Phase::Down
                        || self.phase[other] == Phase::Queued
                        || !self.problem.services[other]
                            .after
                            .contains(&ServiceId(at as u32))
                })
            };
            if self.phase[at] == Phase::Draining && above_gone() {
                self.phase[at] = Phase::Stopping;
                commands.push(Command::Stop(ServiceId(at as u32)));
            }
        }
        for at in 0..self.phase.len() {
            let spec = &self.problem.services[at];
            let stands = || {
                let mut below = spec.after.iter();
                below.all(|s| self.phase[s.index()] == Phase::Up && !self.tainted[s.index()])
            };
            if self.phase[at] == Phase::Queued && stands() && !self.is_occupied(&spec.units) {
                self.phase[at] = Phase::Starting;
                self.starts += 1;
                commands.push(Command::Start(ServiceId(at as u32)));
            }
        }
        for task in self.acquired.clone() {
            let spec = &self.problem.tasks[task.index()];
            let up = spec
                .services
                .iter()
                .all(|s| self.phase[s.index()] == Phase::Up);
            if up && !self.is_occupied(&spec.claim.units) {
                self.acquired.remove(&task);
                self.stage[task.index()] = Stage::Running;
                commands.push(Command::Run(task));
            }
        }
    }

    /// Whether somebody who gave these units up is not gone yet.
    fn is_occupied(&self, units: &[(PoolId, u32)]) -> bool {
        self.problem
            .services
            .iter()
            .enumerate()
            .any(|(at, service)| {
                matches!(self.phase[at], Phase::Draining | Phase::Stopping)
                    && service
                        .units
                        .iter()
                        .any(|(p, _)| units.iter().any(|(q, _)| p == q))
            })
    }
}
