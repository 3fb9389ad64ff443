//! The work that runs beside the loop: tasks and services, each with its reports. Every piece of
//! work sends exactly one last report, even when it panics.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::drive::Drive;
use super::event::{Body, Outcome, ServiceState};
use super::health;
use super::job::Job;
use super::judge::Cause;
use super::node_run;
use super::record::NodeEnd;
use super::remains::LeftService;
use super::schedule::{ServiceId, TaskId};
use super::services::{self, Instance, ServiceDef, ServiceFailure};
use super::steps::{Failure, Used};
use super::unended;
use crate::error::Result;
use crate::exec::{HostSpec, Status};

pub(super) use super::reports::Report;

/// Failed starts and deaths after which a service is not started again in a run.
const TRIES: u32 = 2;

/// A service as the loop sees it.
pub(super) struct Live {
    pub(super) def: Arc<ServiceDef>,
    instance: Option<Arc<Instance>>,
    starts: u32,
    failures: u32,
    /// Failures of the infrastructure since a node last succeeded with it.
    spoiled: u32,
    last_failure: String,
    pub(super) stopping: bool,
    /// Whether it lives and does not answer any more: that is its failure.
    silent: bool,
    /// Whether it is up or on its way, and the task that had it started.
    wanted_by: Option<TaskId>,
    /// Whether a killed run started it.
    adopted: bool,
}

impl From<Arc<ServiceDef>> for Live {
    fn from(def: Arc<ServiceDef>) -> Self {
        Self {
            def,
            instance: None,
            starts: 0,
            failures: 0,
            spoiled: 0,
            last_failure: String::new(),
            stopping: false,
            silent: false,
            wanted_by: None,
            adopted: false,
        }
    }
}

impl Live {
    /// Why it is not started again, when it is not.
    pub(super) fn broken(&self) -> Option<&str> {
        (self.failures >= TRIES).then_some(self.last_failure.as_str())
    }

    /// Its process, when it is up.
    pub(super) fn instance(&self) -> Option<&Arc<Instance>> {
        self.instance.as_ref()
    }

    /// This start of it lives and does not answer: how that is said. None when it is not up.
    pub(super) fn silence(&mut self, start: u32, patience: u32) -> Option<String> {
        let instance = self.instance.as_ref()?;
        if self.starts != start || self.stopping {
            return None;
        }
        let how = super::ready::describe(instance.ended.borrow().as_ref()?);
        let reason = format!("service `{}` {how}", self.def.name);
        self.silent = true;
        self.failed(reason.clone(), true, patience);
        Some(reason)
    }

    /// It failed. What the infrastructure spoiled counts apart: it may happen as often as the most
    /// patient of those who wait for it tries.
    fn failed(&mut self, reason: String, spoiled: bool, patience: u32) {
        self.last_failure = reason;
        if !spoiled {
            self.failures += 1;
            return;
        }
        self.spoiled += 1;
        if self.spoiled >= patience.max(TRIES) {
            self.failures = TRIES;
        }
    }

    /// A node that uses it has succeeded.
    pub(super) fn proved(&mut self) {
        self.spoiled = 0;
    }

    /// A task has acquired it.
    pub(super) fn wanted_by(&mut self, task: TaskId) {
        self.wanted_by.get_or_insert(task);
    }

    pub(super) fn gone(&mut self) {
        self.instance = None;
        self.wanted_by = None;
        self.adopted = false;
        self.stopping = false;
        self.silent = false;
    }
}

impl<'w> Drive<'_, '_, 'w> {
    /// Runs work beside the loop. `otherwise` is reported when it panics.
    pub(super) fn spawn(
        &mut self,
        work: impl Future<Output = Report> + Send + 'static,
        otherwise: impl FnOnce() -> Report + Send + 'static,
    ) {
        self.outstanding += 1;
        let reports = self.reports.clone();
        tokio::spawn(async move {
            let report = AssertUnwindSafe(work).catch_unwind().await;
            let report = report.unwrap_or_else(|_| otherwise());
            // Nobody listens once the user has left.
            let _ = reports.send(report);
        });
    }

    /// Runs what ends with the record of a node.
    fn spawn_node(
        &mut self,
        work: impl Future<Output = Report> + Send + 'static,
        otherwise: impl FnOnce() -> Report + Send + 'static,
    ) {
        self.executing += 1;
        self.spawn(work, otherwise);
    }

    pub(super) fn service_event(
        &mut self,
        service: ServiceId,
        state: ServiceState,
        reason: Option<String>,
    ) {
        let live = &self.services[service.index()];
        self.journal.tell(Body::Service {
            name: live.def.name.clone(),
            key: live.def.key.short(),
            host: live.def.host.name.clone(),
            state,
            starts: live.starts,
            reason,
        });
    }

    fn service_hosts(&self) -> HashMap<ServiceId, HostSpec> {
        let services = self.services.iter();
        services
            .map(|live| (live.def.id, live.def.host.clone()))
            .collect()
    }

    /// Goes on with a service of a killed run that the scheduler counts as starting.
    pub(super) fn resume_service(&mut self, service: ServiceId, left: LeftService) {
        let hosts = self.service_hosts();
        let live = &mut self.services[service.index()];
        live.starts = 1;
        live.adopted = true;
        let (def, key) = (live.def.clone(), live.def.name.clone());
        let (context, ports) = (self.context.clone(), self.ports.clone());
        self.spawn(
            async move {
                match services::resume(&context, &ports, &hosts, def, left).await {
                    Ok((instance, sender)) => {
                        Report::ServiceUp(service, Box::new(instance), sender)
                    }
                    Err(failure) => Report::ServiceFailed(service, Box::new(failure)),
                }
            },
            move || Report::ServiceFailed(service, Box::new(ServiceFailure::defect(&key))),
        );
    }

    pub(super) fn start_service(&mut self, service: ServiceId) {
        if let Some(failure) = self.tainted_service(service) {
            self.scheduler.not_started();
            let report = move || Report::ServiceFailed(service, Box::new(failure));
            let again = report.clone();
            return self.spawn(async move { report() }, again);
        }
        let hosts = self.service_hosts();
        let live = &mut self.services[service.index()];
        let wanted_by = live.wanted_by.map(|task| self.tasks[task.index()].node);
        let brought = wanted_by.and_then(|node| self.watch.brought_by(node));
        self.brought_starts += u64::from(brought.is_some());
        live.starts += 1;
        let (def, start) = (live.def.clone(), live.starts);
        self.service_event(service, ServiceState::Starting, None);
        let (context, ports) = (self.context.clone(), self.ports.clone());
        let name = def.name.clone();
        self.spawn(
            async move {
                if let Err(failure) = unended::end_before(&context, &def).await {
                    return Report::ServiceFailed(service, Box::new(failure));
                }
                match services::start(&context, &ports, &hosts, def, start).await {
                    Ok((instance, sender)) => {
                        Report::ServiceUp(service, Box::new(instance), sender)
                    }
                    Err(failure) => Report::ServiceFailed(service, Box::new(failure)),
                }
            },
            move || Report::ServiceFailed(service, Box::new(ServiceFailure::defect(&name))),
        );
    }

    pub(super) fn service_came_up(
        &mut self,
        service: ServiceId,
        instance: Box<Instance>,
        sender: watch::Sender<Option<Status>>,
    ) {
        let instance: Arc<Instance> = Arc::from(instance);
        self.services[service.index()].instance = Some(instance.clone());
        let start = self.services[service.index()].starts;
        let context = self.context.clone();
        let reports = self.reports.clone();
        self.spawn(
            async move {
                let wait = async {
                    match context.executor.wait(&instance.handle).await {
                        Ok(status) => status,
                        Err(error) => Status::Lost {
                            why: error.to_string(),
                        },
                    }
                };
                tokio::pin!(wait);
                tokio::select! {
                    status = &mut wait => sender.send_replace(Some(status)),
                    why = health::fell_silent(&context, &instance) => {
                        let before = sender.send_replace(Some(Status::Lost { why }));
                        // Nobody listens once the user has left.
                        let _ = reports.send(Report::ServiceSilent(service, start));
                        // It lives until it is stopped.
                        let _ = wait.await;
                        before
                    }
                };
                Report::ServiceEnded(service, start)
            },
            move || Report::ServiceEnded(service, start),
        );
        self.scheduler.service_up(service);
        self.service_event(service, ServiceState::Ready, None);
    }

    pub(super) fn stop_service(&mut self, service: ServiceId) {
        let live = &mut self.services[service.index()];
        let Some(instance) = live.instance.clone() else {
            self.scheduler.service_down(service);
            return;
        };
        live.stopping = true;
        let context = self.context.clone();
        self.spawn(
            async move {
                let (gone, unreleased) = services::stop(&context, &instance).await;
                if gone {
                    // Every node has kept its part of the logs: what is left is a copy.
                    let _ = context.executor.discard(&instance.handle).await;
                }
                Report::ServiceStopped(service, unreleased)
            },
            move || Report::ServiceStopped(service, None),
        );
    }

    pub(super) fn service_failed(
        &mut self,
        service: ServiceId,
        failure: &ServiceFailure,
    ) -> Result<()> {
        let patience = self.patience(service);
        let live = &mut self.services[service.index()];
        let host = live.def.host.name.clone();
        live.gone();
        if !failure.cancelled {
            let spoiled = failure.is_of_infrastructure(&live.def.rule);
            live.failed(failure.reason.clone(), spoiled, patience);
        }
        self.ports.forget(service);
        let reason = failure.reason.clone();
        self.service_event(service, ServiceState::Failed, Some(reason));
        for task in self.scheduler.service_down(service) {
            self.fail_before_run(task, failure);
        }
        self.end_users_of_broken(service)?;
        match &failure.taints {
            Some(why) => self.taint(&host, why),
            None => Ok(()),
        }
    }

    /// Ends those that hold a service which is gone and have not begun; those that run notice by
    /// themselves.
    pub(super) fn fail_those_that_wait(
        &mut self,
        holders: Vec<TaskId>,
        reason: String,
        cause: Cause,
    ) {
        let failure = ServiceFailure {
            reason,
            cause,
            logs: Vec::new(),
            cancelled: false,
            taints: None,
        };
        for task in holders {
            if self.jobs.contains_key(&task) && !self.is_running(task) {
                self.fail_before_run(task, &failure);
            }
        }
    }

    /// The process of a service ended. Unless it was stopped, it died.
    pub(super) fn service_ended(&mut self, service: ServiceId, start: u32) -> Result<()> {
        let patience = self.patience(service);
        let live = &mut self.services[service.index()];
        if live.starts != start || live.stopping {
            return Ok(());
        }
        let Some(instance) = live.instance.clone() else {
            return Ok(());
        };
        let status = instance.ended.borrow().clone();
        let cause = status.as_ref().map_or(Cause::Service, services::cause_of);
        let how = status.map_or_else(|| "ended".into(), |s| super::ready::describe(&s));
        let reason = format!("service `{}` {how}", live.def.name);
        let known = live.silent;
        if !known {
            live.failed(reason.clone(), cause == Cause::ServiceLost, patience);
        }
        live.gone();
        if !known {
            self.service_event(service, ServiceState::Failed, Some(reason.clone()));
        }
        let context = self.context.clone();
        let left = instance.clone();
        // Its children may live on: until they are gone, nothing is begun on its host.
        self.spawn(
            async move {
                let (_, unreleased) = services::stop(&context, &left).await;
                Report::ServiceStopped(service, unreleased)
            },
            move || Report::ServiceStopped(service, None),
        );
        let context = self.context.clone();
        self.spawn(
            async move {
                services::discard_unused(&context, instance).await;
                // Said of a start that is known to be over, it is nothing but the last word.
                Report::ServiceEnded(service, start)
            },
            move || Report::ServiceEnded(service, start),
        );
        let holders = self.scheduler.service_lost(service);
        self.fail_those_that_wait(holders, reason, cause);
        self.end_users_of_broken(service)
    }

    /// The most attempts that any node has which still waits for a service.
    pub(super) fn patience(&self, service: ServiceId) -> u32 {
        let users = self.scheduler.pending_users_of(service).into_iter();
        let graph = self.decider.graph();
        let attempts = users.map(|task| {
            let node = self.tasks[task.index()].node;
            graph.pattern(node).retry.attempts
        });
        attempts.max().unwrap_or(1)
    }

    pub(super) fn is_running(&self, task: TaskId) -> bool {
        self.jobs.get(&task).is_some_and(|job| job.running)
    }

    /// Nobody waits for a service that is given up.
    pub(super) fn end_users_of_broken(&mut self, service: ServiceId) -> Result<()> {
        let live = &self.services[service.index()];
        let Some(why) = live.broken() else {
            return Ok(());
        };
        let reason = format!("service `{}` could not be kept up: {why}", live.def.name);
        let users = self.scheduler.pending_users_of(service);
        let idle: Vec<TaskId> = self.scheduler.idle_tasks();
        for task in users.into_iter().filter(|task| idle.contains(task)) {
            // One that others wait for, or that waits, is decided in its turn.
            if self.jobs.contains_key(&task) {
                self.end_idle(task, Outcome::Blocked, &reason)?;
            }
        }
        Ok(())
    }

    pub(super) fn fail_before_run(&mut self, task: TaskId, failure: &ServiceFailure) {
        let Some(job) = self.jobs.get(&task).cloned() else {
            return;
        };
        if !self.doomed.insert(task) {
            return;
        }
        let context = self.context.clone();
        let logs = failure.logs.clone();
        let failure = Failure::of_service(failure);
        let began = job.acquired_unix_ms;
        self.spawn_node(
            async move {
                let end = node_run::never_ran(&context, &job, &[], failure, logs).await;
                Report::Done(task, Box::new(end))
            },
            move || Report::Done(task, Box::new(NodeEnd::defect(began))),
        );
    }

    pub(super) fn start_task(&mut self, task: TaskId) {
        if self.doomed.contains(&task) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&task) else {
            return;
        };
        Arc::make_mut(job).running = true;
        let job = job.clone();
        let mut used = Vec::new();
        for (_, id) in &self.tasks[task.index()].services {
            let live = &self.services[id.index()];
            if let Some(instance) = &live.instance {
                used.push(Used {
                    instance: instance.clone(),
                    started_for_this: !live.adopted && live.wanted_by == Some(task),
                    log_from: [0; 2],
                });
            }
        }
        self.execute(task, job, used);
    }

    /// Runs a job's steps, or goes on with them, and records how it ended.
    pub(super) fn execute(&mut self, task: TaskId, job: Arc<Job>, mut used: Vec<Used>) {
        let context = self.context.clone();
        let reports = self.reports.clone();
        let began = job.acquired_unix_ms;
        self.spawn_node(
            async move {
                for service in &mut used {
                    let token = &service.instance.handle.token;
                    let before = job.resumed.iter().flat_map(|r| &r.intent.services);
                    match before.into_iter().find(|before| before.token == *token) {
                        Some(before) => {
                            service.started_for_this = before.started_for_this;
                            service.log_from = before.log_from;
                        }
                        None if service.started_for_this => {}
                        None => service.log_from = service.instance.log_lengths(&context).await,
                    }
                }
                let tell = |report| {
                    // Nobody listens once the user has left.
                    let _ = reports.send(report);
                };
                let state = |state| tell(Report::State(task, state));
                let made = |early| tell(Report::Made(task, Box::new(early)));
                let in_use: Vec<_> = used.iter().map(|s| s.instance.watched.used()).collect();
                let end = node_run::run(&context, &job, &used, (&state, &made)).await;
                drop(in_use);
                Report::Done(task, Box::new(end))
            },
            move || Report::Done(task, Box::new(NodeEnd::defect(began))),
        );
    }
}
