//! What the scheduler works on: tasks and services by dense ids, and the commands it answers with.
//! Plain data; whoever makes it sees to it that dependencies have no cycle and that every task
//! alone fits.

use crate::engine::resources::{Claim, HostId, PoolId};

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
    /// Where it lives: until it is gone for good, nothing else is begun there.
    pub host: Option<HostId>,
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

impl Problem {
    /// A task waits for the end of another one as well. This must make no cycle.
    pub fn wait(&mut self, task: TaskId, other: TaskId) {
        let deps = &mut self.tasks[task.index()].deps;
        if !deps.contains(&other) {
            deps.push(other);
            self.rdeps[other.index()].push(task);
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The task got all it asked for; its services are being brought up.
    Acquired(TaskId),
    /// Start the service; answer with [`super::Scheduler::service_up`] or [`super::Scheduler::service_down`].
    Start(ServiceId),
    /// Stop the service; answer with [`super::Scheduler::service_down`].
    Stop(ServiceId),
    /// Run the task; answer with [`super::Scheduler::finish`].
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
