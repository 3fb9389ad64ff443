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

#[cfg(test)]
mod campaign_tests;
#[cfg(test)]
mod cases;
mod dispatch;
#[cfg(test)]
mod held_tests;
#[cfg(test)]
mod oracle;
mod problem;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use super::resources::{HostId, Inventory, Ledger, PoolId};

pub use problem::{Command, Limits, Problem, ServiceId, ServiceSpec, TaskId, TaskSpec};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not part of the run unless it is let in: a follow-up.
    Held,
    /// Something it depends on has not ended.
    Waiting,
    /// Nobody has said yet whether it runs.
    Undecided,
    /// It is to run, but something that the scheduler knows nothing of keeps it for now.
    Parked,
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
    /// Tasks that run nothing any more and whose results are not durable yet.
    vacated: BTreeSet<TaskId>,
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
            vacated: BTreeSet::new(),
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

    /// Keeps a task out of the run until it is let in. To be called before anything has happened.
    pub fn hold(&mut self, task: TaskId) {
        let at = task.index();
        if self.stage[at] == Stage::Held {
            return;
        }
        self.undecided.retain(|other| *other != task);
        self.stage[at] = Stage::Held;
        self.left -= 1;
        for service in &self.problem.tasks[at].services {
            self.pending_users[service.index()] -= 1;
        }
    }

    /// Whether the task is kept out of the run.
    pub fn is_held(&self, task: TaskId) -> bool {
        self.stage[task.index()] == Stage::Held
    }

    /// Makes a task that was held a part of the run. What it depends on must be one, or have ended.
    pub fn let_in(&mut self, task: TaskId) {
        let at = task.index();
        if self.stage[at] != Stage::Held {
            return;
        }
        self.stage[at] = Stage::Waiting;
        self.left += 1;
        for service in &self.problem.tasks[at].services {
            self.pending_users[service.index()] += 1;
        }
        if self.missing_deps[at] == 0 {
            self.stage[at] = Stage::Undecided;
            self.undecided.push_back(task);
        }
    }

    /// A task whose dependencies have all ended and of which nobody has said yet whether it runs.
    /// Answer with [`Self::admit`] or [`Self::finish`], now or later.
    pub fn next_undecided(&mut self) -> Option<TaskId> {
        self.undecided.pop_front()
    }

    /// The task is to run, but not yet: until it is admitted or finished, everything goes on as if
    /// there were neither it nor what depends on it, except that its services stay.
    pub fn park(&mut self, task: TaskId) {
        debug_assert_eq!(self.stage[task.index()], Stage::Undecided);
        self.stage[task.index()] = Stage::Parked;
    }

    /// The task did not come through and is tried again later: it gives up all that it holds and
    /// is parked.
    pub fn put_off(&mut self, task: TaskId) {
        let at = task.index();
        match self.stage[at] {
            Stage::Ended | Stage::Held => return,
            Stage::Acquired | Stage::Running => self.release(task),
            Stage::Ready | Stage::Waiting | Stage::Undecided | Stage::Parked => {
                self.ready_hosted.remove(&task);
                self.ready_hostless.remove(&task);
                self.undecided.retain(|other| *other != task);
            }
        }
        self.stage[at] = Stage::Parked;
    }

    /// The task is to run.
    pub fn admit(&mut self, task: TaskId) {
        debug_assert!(matches!(
            self.stage[task.index()],
            Stage::Undecided | Stage::Parked
        ));
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
            Stage::Ended | Stage::Held => return,
            Stage::Acquired | Stage::Running => self.release(task),
            Stage::Ready => {
                self.ready_hosted.remove(&task);
                self.ready_hostless.remove(&task);
            }
            Stage::Waiting | Stage::Undecided | Stage::Parked => {
                self.undecided.retain(|t| *t != task);
            }
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

    /// The service runs already and is getting ready: it holds its units from now on. Answer as to
    /// [`Command::Start`]. False when somebody else has its units.
    pub fn adopt(&mut self, service: ServiceId) -> bool {
        let at = service.index();
        let units = &self.problem.services[at].units;
        if self.phase[at] != Phase::Down || !self.ledger.units_fit(units) {
            return false;
        }
        self.ledger.take_units(units);
        self.phase[at] = Phase::Starting;
        true
    }

    /// Whether everything that the service directly stands on is so.
    pub fn stands_on_all(&self, service: ServiceId, is: impl Fn(ServiceId) -> bool) -> bool {
        let below = &self.problem.services[service.index()].after;
        below.iter().all(|below| is(*below))
    }

    /// Whether the task holds what it asked for.
    pub fn is_active(&self, task: TaskId) -> bool {
        matches!(self.stage[task.index()], Stage::Acquired | Stage::Running)
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
        let holders = self.taint(service);
        self.tainted[at] = false;
        holders
    }

    /// Nobody gets the service any more, nor what stands on it, which was told its address: each is
    /// stopped as soon as nobody holds it. Returns the tasks that hold it.
    pub fn taint(&mut self, service: ServiceId) -> Vec<TaskId> {
        let at = service.index();
        self.tainted[at] = true;
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

    /// The process of a service that was up has ended by itself. Its units and its host are free for
    /// nobody before [`Self::service_down`]. Returns the tasks that hold it, as that does.
    pub fn service_lost(&mut self, service: ServiceId) -> Vec<TaskId> {
        let holders = self.service_down(service);
        self.phase[service.index()] = Phase::Stopping;
        holders
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
        let idle = |stage: &Stage| {
            use Stage::{Parked, Ready, Undecided, Waiting};
            matches!(stage, Waiting | Undecided | Parked | Ready)
        };
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
                !matches!(self.stage[*at], Stage::Ended | Stage::Held)
                    && task.services.contains(&service)
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
        if self.vacated.remove(&task) {
            return;
        }
        self.active -= 1;
        if self.is_hostless(task) {
            self.active_hostless -= 1;
        }
    }

    /// What the task ran has ended and it holds nothing that others wait for: while its result
    /// becomes durable another may begin.
    pub fn vacate(&mut self, task: TaskId) {
        let runs = self.stage[task.index()] == Stage::Running;
        if runs && self.is_hostless(task) && self.vacated.insert(task) {
            self.active -= 1;
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
            let hosts = spec.host.as_slice();
            if self.phase[at] == Phase::Queued
                && stands()
                && !self.is_occupied(&spec.units, |host| hosts.contains(&host))
            {
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
            let hosts = &spec.claim.hosts;
            let takes = |host| hosts.iter().any(|(other, _)| *other == host);
            if up && !self.is_occupied(&spec.claim.units, takes) {
                self.acquired.remove(&task);
                self.stage[task.index()] = Stage::Running;
                commands.push(Command::Run(task));
            }
        }
    }

    /// Whether somebody who gave these units up, or is on one of these hosts, is not gone yet.
    fn is_occupied(&self, units: &[(PoolId, u32)], on: impl Fn(HostId) -> bool) -> bool {
        self.problem
            .services
            .iter()
            .enumerate()
            .any(|(at, service)| {
                let same = |(p, _): &(PoolId, u32)| units.iter().any(|(q, _)| p == q);
                matches!(self.phase[at], Phase::Draining | Phase::Stopping)
                    && (service.units.iter().any(same) || service.host.is_some_and(&on))
            })
    }
}
