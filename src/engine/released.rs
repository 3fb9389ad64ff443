//! Whether a host is free of a service: nobody listens on its ports, and what its rule says of a
//! released host holds. Looked at before a service is started and after it was stopped, never
//! assumed; where it does not hold in time, nothing more is begun on that host in this run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::context::Context;
use super::drive::Drive;
use super::event::{Outcome, ServiceState};
use super::judge::Cause;
use super::ready::{describe, human_s, logs, telling_tail};
use super::schedule::{ServiceId, TaskId};
use super::services::ServiceFailure;
use crate::error::{Error, Result};
use crate::exec::{Exit, HostSpec, Script, Sign, Status, Token};
use crate::rule::action::Released;
use crate::rule::shell;

/// How long a port may stay in use by what has been ended.
const PORT_WITHIN: Duration = Duration::from_secs(5);

/// What every such finding ends with.
const HINT: &str = "look what runs there (`ss -ltnp`, `nvidia-smi`), end it and build again";

/// What is to hold of a service's host when nothing of the service is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Release {
    host: Option<HostSpec>,
    service: String,
    ports: BTreeMap<String, u16>,
    /// Succeeds as soon as the rule's condition holds; and for how long it may be tried.
    script: Option<(Script, f64)>,
    /// Names its processes: that of the service, and which look it is.
    token: String,
}

/// Why a host is not free.
#[derive(Debug)]
pub(super) enum Unreleased {
    /// Something is there, in words.
    Occupied(String),
    /// It could not be asked.
    Unknown(Error),
    /// Nobody wants to know any more.
    Cancelled,
}

impl Release {
    /// Of a service on this host, with the ports that it was given. `folders` are its working
    /// folder and that for temporary files; `token` is its own.
    pub(super) fn of(
        context: &Context,
        host: &HostSpec,
        service: &str,
        ports: &BTreeMap<String, u16>,
        released: Option<&Released>,
        folders: (&Path, &Path),
        token: &Token,
    ) -> Self {
        let script = released.map(|released| {
            let Released { script, within_s } = released;
            // Tried on the host: elsewhere every command is a journey.
            let text = format!(
                "until sh -eu -c {}; do sleep 0.2; done\n",
                shell::quote(script)
            );
            let name = format!("released-{service}");
            let limit = Some(*within_s);
            let script = context.script(name, &text, &BTreeMap::new(), folders, limit, true);
            (script, *within_s)
        });
        Self {
            host: Some(host.clone()),
            service: service.to_owned(),
            ports: ports.clone(),
            script,
            token: token.0.clone(),
        }
    }

    /// Whether the host is free for the service. Ports that were handed out just now were free.
    pub(super) async fn before(&self, context: &Context) -> Result<(), Unreleased> {
        let look_at_ports = !context.platform.dynamic_ports;
        let found = self.look(context, look_at_ports, "before").await;
        found.map_err(|unreleased| match unreleased {
            Unreleased::Occupied(what) => Unreleased::Occupied(format!(
                "{what} before service `{}` was to be started",
                self.service
            )),
            other => other,
        })
    }

    /// Why the host is not free after the service was stopped, in words.
    pub(super) async fn after(&self, context: &Context) -> Option<String> {
        if context.is_aborted() {
            return None;
        }
        match self.look(context, true, "after").await {
            Ok(()) | Err(Unreleased::Cancelled) => None,
            Err(Unreleased::Occupied(what)) => Some(format!(
                "{what} after service `{}` was stopped",
                self.service
            )),
            Err(Unreleased::Unknown(error)) => Some(format!(
                "could not be asked whether it is free after service `{}` was stopped: {error}",
                self.service
            )),
        }
    }

    async fn look(&self, context: &Context, ports: bool, when: &str) -> Result<(), Unreleased> {
        let Some(host) = &self.host else {
            return Ok(());
        };
        for (name, port) in self.ports.iter().filter(|_| ports) {
            if !port_is_free(context, host, *port).await? {
                let waited = human_s(PORT_WITHIN.as_secs_f64());
                return Err(Unreleased::Occupied(format!(
                    "port {port} (`{name}`) stayed in use for {waited}"
                )));
            }
        }
        match &self.script {
            Some((script, within_s)) => {
                let token = Token(format!("{}.{when}", self.token));
                self.hold(context, host, script, *within_s, &token).await
            }
            None => Ok(()),
        }
    }

    /// Runs the rule's condition until it holds or its time is up.
    async fn hold(
        &self,
        context: &Context,
        host: &HostSpec,
        script: &Script,
        within_s: f64,
        token: &Token,
    ) -> Result<(), Unreleased> {
        let executor = &*context.executor;
        let started = executor.start(host, script, token).await;
        let handle = started.map_err(Unreleased::Unknown)?;
        let status = tokio::select! {
            status = executor.wait(&handle) => status.map_err(Unreleased::Unknown)?,
            () = context.aborted() => {
                // What cannot be ended has its limit.
                let _ = executor.cancel(&handle, super::steps::GRACE).await;
                return Err(Unreleased::Cancelled);
            }
        };
        let said = logs(executor, &handle, [0; 2]).await;
        // A copy of nothing that is needed any more.
        let _ = executor.discard(&handle).await;
        let how = match &status {
            Status::Exited(exit) if exit.success() => return Ok(()),
            Status::Exited(Exit {
                timed_out: true, ..
            }) => format!("`released` did not hold within {}", human_s(within_s)),
            other => format!("`released` {}", describe(other)),
        };
        let last = telling_tail(&said).and_then(|(_, lines)| lines.last().cloned());
        Err(Unreleased::Occupied(match last {
            Some(last) => format!("{how} (it said: {})", last.trim()),
            None => how,
        }))
    }
}

async fn port_is_free(context: &Context, host: &HostSpec, port: u16) -> Result<bool, Unreleased> {
    let until = Instant::now() + PORT_WITHIN;
    let mut pause = Duration::from_millis(20);
    loop {
        let used = context.executor.look(host, &Sign::Listen(port)).await;
        if !used.map_err(Unreleased::Unknown)? {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.aborted() => return Err(Unreleased::Cancelled),
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

impl Drive<'_, '_, '_> {
    pub(super) fn service_stopped(
        &mut self,
        service: ServiceId,
        unreleased: Option<String>,
    ) -> Result<()> {
        let live = &mut self.services[service.index()];
        let died = !live.stopping;
        let host = live.def.host.name.clone();
        live.gone();
        self.ports.forget(service);
        self.scheduler.service_down(service);
        if !died {
            self.service_event(service, ServiceState::Stopped, unreleased.clone());
        }
        match unreleased {
            Some(why) => self.taint(&host, &why),
            None => Ok(()),
        }
    }

    /// A host is not free, and nobody knows what that does to a measurement: nothing
    /// more is begun on it in this run.
    pub(super) fn taint(&mut self, host: &str, why: &str) -> Result<()> {
        let message = format!("host `{host}` is not used any more in this build: {why}; {HINT}");
        self.journal.warn("host-tainted", message, None);
        if self.tainted.contains_key(host) {
            return Ok(());
        }
        self.tainted.insert(host.to_owned(), why.to_owned());
        let active: Vec<TaskId> = self.jobs.keys().copied().collect();
        for task in active {
            let Some(reason) = self.tainted_for(task) else {
                continue;
            };
            if self.scheduler.is_active(task) && !self.is_running(task) {
                self.fail_before_run(task, &unreleased(reason));
            }
        }
        for task in self.scheduler.idle_tasks() {
            // Whoever is not decided yet may have a result at hand.
            if let (true, Some(reason)) = (self.jobs.contains_key(&task), self.tainted_for(task)) {
                self.end_idle(task, Outcome::Blocked, &reason)?;
            }
        }
        Ok(())
    }

    /// Why a task cannot be begun, when it needs a host that is not used any more.
    pub(super) fn tainted_for(&self, task: TaskId) -> Option<String> {
        let mut hosts = self.tasks[task.index()].hosts.iter();
        hosts.find_map(|host| self.tainted_host(host))
    }

    fn tainted_host(&self, host: &str) -> Option<String> {
        let why = self.tainted.get(host)?;
        Some(format!("host `{host}` is not free: {why}"))
    }

    /// The failure of a service whose host is not used any more.
    pub(super) fn tainted_service(&self, service: ServiceId) -> Option<ServiceFailure> {
        let host = &self.services[service.index()].def.host.name;
        self.tainted_host(host).map(unreleased)
    }
}

fn unreleased(reason: String) -> ServiceFailure {
    ServiceFailure {
        reason,
        cause: Cause::NotReleased,
        logs: Vec::new(),
        cancelled: false,
        taints: None,
    }
}
