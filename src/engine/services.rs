//! Long-lived processes that nodes share. A service that was started is always stopped by its
//! handle, also when it never became ready; its end, whoever caused it, is seen by every node
//! that uses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use doe_cache::{Digest, Value};
use tokio::sync::watch;

use super::context::{Context, now_unix_ms};
use super::health::Watched;
use super::intent::{Intent, Place, PortMap, ServiceIntent};
use super::judge::{self, Cause};
use super::ready::{Unready, describe, logs, wait_ready};
use super::released::{Release, Unreleased};
use super::remains::LeftService;
use super::schedule::ServiceId;
use crate::error::{Error, Kind, Result};
use crate::exec::{Ask, Handle, HostSpec, Status, Stream};
use crate::rule::action::{Binding, RealBinding, ServiceAction};
use crate::rule::classes;
use crate::rule::model::Rule;
use crate::rule::render::render;

/// Between two looks whether anybody still uses a service that died.
const LOOK: Duration = Duration::from_millis(100);

/// What is needed to start a service.
#[derive(Debug)]
pub(super) struct ServiceDef {
    /// Which.
    pub id: ServiceId,
    /// Its key.
    pub key: Digest,
    /// Name in the rule.
    pub name: String,
    /// Its host.
    pub host: HostSpec,
    /// The rule that defines it.
    pub rule: Arc<Rule>,
    /// Settings of the first pattern that needs it; any other gives the same service.
    pub settings: BTreeMap<String, Value>,
    /// Roles of the rule that it may mention.
    pub roles: Vec<String>,
    /// All services of that pattern by name, itself included, with their preferred ports.
    pub siblings: Vec<(String, ServiceId, BTreeMap<String, u16>)>,
    /// Time between the polite and the hard end.
    pub stop_grace: Duration,
    /// What it asks of a scheduler: GPUs, and as long as everything of the run that uses it may
    /// take, one after another.
    pub ask: Ask,
}

/// A service that runs.
#[derive(Debug)]
pub(super) struct Instance {
    /// What it is.
    pub def: Arc<ServiceDef>,
    /// Its process.
    pub handle: Handle,
    /// Its ports by name.
    pub ports: BTreeMap<String, u16>,
    /// How it ended, once it has.
    pub ended: watch::Receiver<Option<Status>>,
    /// What says that it does its work.
    pub watched: Watched,
    /// What is to hold of its host without it.
    pub release: Release,
    /// Bytes of its logs that are known to exist.
    seen: [AtomicU64; 2],
    /// Whether nothing of it is left but its folder.
    is_gone: AtomicBool,
}

/// Why a service is not there.
#[derive(Debug, Clone)]
pub(super) struct ServiceFailure {
    /// A sentence that begins with its name.
    pub reason: String,
    /// What to look up the class by.
    pub cause: Cause,
    /// Its logs by name (`service-decode.stderr`).
    pub logs: Vec<(String, Vec<u8>)>,
    /// Whether somebody asked for it.
    pub cancelled: bool,
    /// Why its host is not to be used any more, when it is not.
    pub taints: Option<String>,
}

impl ServiceFailure {
    /// Work for it panicked.
    pub(super) fn defect(name: &str) -> Self {
        Self {
            reason: format!("service `{name}` could not be started: a defect of doe"),
            cause: Cause::Service,
            logs: Vec::new(),
            cancelled: false,
            taints: None,
        }
    }

    /// Whether the infrastructure is the cause.
    pub(super) fn is_of_infrastructure(&self, rule: &Rule) -> bool {
        let logs = self.logs.iter();
        let logs: Vec<_> = logs.map(|(_, log)| String::from_utf8_lossy(log)).collect();
        let mut texts: Vec<&str> = logs.iter().map(|log| log.as_ref()).collect();
        texts.push(&self.reason);
        classes::is_infrastructure(rule, &judge::classify(rule, self.cause, &texts))
    }
}

impl Instance {
    /// A service that a killed run left, whether it lives or not; nobody watches its end.
    pub(super) fn left(def: Arc<ServiceDef>, left: &LeftService) -> Self {
        Self {
            handle: left.handle.clone(),
            ports: left
                .intent
                .ports
                .get(&def.name)
                .cloned()
                .unwrap_or_default(),
            ended: watch::channel(None).1,
            watched: Watched::not(),
            release: Release::default(),
            seen: Default::default(),
            is_gone: AtomicBool::new(false),
            def,
        }
    }

    /// The length of both logs now; what comes later belongs to whoever asked.
    pub(super) async fn log_lengths(&self, context: &Context) -> [u64; 2] {
        let mut lengths = [0; 2];
        for (at, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let seen = self.seen[at].load(Ordering::Acquire);
            let new = context.executor.log(&self.handle, stream, seen).await;
            lengths[at] = seen + new.map_or(0, |new| new.len() as u64);
            self.seen[at].fetch_max(lengths[at], Ordering::AcqRel);
        }
        lengths
    }

    /// Its logs from these offsets on, by the names they are kept under.
    pub(super) async fn logs(&self, context: &Context, from: [u64; 2]) -> Vec<(String, Vec<u8>)> {
        let found = logs(&*context.executor, &self.handle, from).await;
        named(&self.def.name, found)
    }

    /// The failure that its end is, when it has ended. Asks the host, which may know before the
    /// one who watches.
    pub(super) async fn failure(
        &self,
        context: &Context,
        from: [u64; 2],
    ) -> Option<ServiceFailure> {
        let seen = self.ended.borrow().clone();
        let status = match seen {
            Some(status) => status,
            None => match context.executor.poll(&self.handle).await {
                Ok(Status::Running) => return None,
                Ok(status) => status,
                Err(error) => Status::Lost {
                    why: error.to_string(),
                },
            },
        };
        Some(ServiceFailure {
            reason: format!("service `{}` {}", self.def.name, describe(&status)),
            cause: cause_of(&status),
            logs: self.logs(context, from).await,
            cancelled: false,
            taints: None,
        })
    }
}

/// Whether it died or vanished.
pub(super) fn cause_of(status: &Status) -> Cause {
    match status {
        Status::Lost { .. } => Cause::ServiceLost,
        _ => Cause::Service,
    }
}

fn named(service: &str, logs: Vec<(&'static str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let logs = logs.into_iter();
    logs.map(|(stream, log)| (format!("service-{service}.{stream}"), log))
        .collect()
}

/// Ports of services, handed out when first asked for and forgotten when the service is gone.
#[derive(Debug, Default)]
pub(super) struct PortBook(Mutex<HashMap<ServiceId, BTreeMap<String, u16>>>);

impl PortBook {
    /// The ports of a service.
    pub(super) async fn ports(
        &self,
        context: &Context,
        host: &HostSpec,
        service: ServiceId,
        preferred: &BTreeMap<String, u16>,
    ) -> Result<BTreeMap<String, u16>> {
        if let Some(ports) = self.book().get(&service) {
            return Ok(ports.clone());
        }
        let ports = real_ports(context, host, preferred).await?;
        Ok(self.book().entry(service).or_insert(ports).clone())
    }

    /// These ports were told to somebody by a killed run. False when others were told meanwhile.
    pub(super) fn seed(&self, service: ServiceId, ports: &BTreeMap<String, u16>) -> bool {
        let mut book = self.book();
        book.entry(service).or_insert_with(|| ports.clone()) == ports
    }

    /// The service is gone.
    pub(super) fn forget(&self, service: ServiceId) {
        self.book().remove(&service);
    }

    fn book(&self) -> std::sync::MutexGuard<'_, HashMap<ServiceId, BTreeMap<String, u16>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers that port names stand for: as the rule names them, or free ones where the
/// platform hands ports out.
pub(super) async fn real_ports(
    context: &Context,
    host: &HostSpec,
    preferred: &BTreeMap<String, u16>,
) -> Result<BTreeMap<String, u16>> {
    let mut ports = preferred.clone();
    if context.platform.dynamic_ports {
        for port in ports.values_mut() {
            *port = context.executor.free_port(host).await?;
        }
    }
    Ok(ports)
}

/// Starts a service and waits until it is ready. What was started of one that isn't is gone when
/// this returns. `start` counts the starts of this service in this run.
pub(super) async fn start(
    context: &Context,
    book: &PortBook,
    hosts: &HashMap<ServiceId, HostSpec>,
    def: Arc<ServiceDef>,
    start: u32,
) -> Result<(Instance, watch::Sender<Option<Status>>), ServiceFailure> {
    let early = |error: Error| ServiceFailure {
        reason: format!("service `{}` could not be started: {error}", def.name),
        cause: Cause::of(&error).unwrap_or(Cause::Service),
        logs: Vec::new(),
        cancelled: false,
        taints: None,
    };
    let folder = format!("{}-{}", def.name, def.key.short());
    let below = std::path::Path::new("services")
        .join(&folder)
        .join(start.to_string());
    let work = context.work(&context.home, &below, true);
    let token = context.token(&format!("service-{folder}-{start}"));
    let (action, told) = render_service(context, book, hosts, &def, &work, &token.0)
        .await
        .map_err(early)?;
    let name = format!("service-{}", def.name);
    let tmp = format!("s{}-{start}", def.id.0);
    let tmp = context.tmp(&context.home, &context.scratch, &tmp, true);
    let tmp = tmp.map_err(early)?;
    let folders = (work.as_path(), tmp.as_path());
    let mut script = context.script(name, &action.script, &action.env, folders, None, true);
    script.ask = def.ask.clone();
    context.secrets.give(&mut script).map_err(early)?;
    if context.is_aborted() {
        return Err(ServiceFailure {
            cancelled: true,
            ..early(cancelled())
        });
    }
    let ports = told.get(&def.name).cloned().unwrap_or_default();
    let released = action.released.as_ref();
    let release = Release::of(
        context, &def.host, &def.name, &ports, released, folders, &token,
    );
    match release.before(context).await {
        Ok(()) => {}
        Err(Unreleased::Unknown(error)) => return Err(early(error)),
        Err(Unreleased::Cancelled) => {
            return Err(ServiceFailure {
                cancelled: true,
                ..early(cancelled())
            });
        }
        Err(Unreleased::Occupied(why)) => {
            return Err(ServiceFailure {
                reason: format!("host `{}` is not free: {why}", def.host.name),
                cause: Cause::NotReleased,
                logs: Vec::new(),
                cancelled: false,
                taints: Some(why),
            });
        }
    }
    let intent = ServiceIntent {
        token: token.clone(),
        name: def.name.clone(),
        key: def.key,
        place: Place {
            role: Some(action.role.clone()),
            host: def.host.name.clone(),
            address: def.host.address.clone(),
        },
        ports: told,
        work,
        home: context.home.clone(),
        at_unix_ms: now_unix_ms(),
    };
    let announced = context.intents.announce(vec![Intent::Service(intent)]);
    announced.await.map_err(early)?;
    let started = context.executor.start(&def.host, &script, &token).await;
    let handle = started.map_err(|error| {
        context.unended.of_start(context, &def, &token, &error);
        early(error)
    })?;
    let (sender, ended) = watch::channel(None);
    let instance = Instance {
        handle,
        ports,
        ended,
        watched: Watched::not(),
        release,
        seen: Default::default(),
        is_gone: AtomicBool::new(false),
        def,
    };
    get_ready(context, instance, &action)
        .await
        .map(|up| (up, sender))
}

/// Goes on with a service that a killed run left: waits until it is ready, which it mostly is.
pub(super) async fn resume(
    context: &Context,
    book: &PortBook,
    hosts: &HashMap<ServiceId, HostSpec>,
    def: Arc<ServiceDef>,
    left: LeftService,
) -> Result<(Instance, watch::Sender<Option<Status>>), ServiceFailure> {
    let (sender, ended) = watch::channel(None);
    let mut instance = Instance {
        ended,
        ..Instance::left(def.clone(), &left)
    };
    let (work, token) = (&left.intent.work, &left.intent.token);
    match render_service(context, book, hosts, &def, work, &token.0).await {
        Ok((action, _)) => {
            let (released, folders) = (action.released.as_ref(), (work.as_path(), work.as_path()));
            let (ports, name) = (&instance.ports, &def.name);
            instance.release =
                Release::of(context, &def.host, name, ports, released, folders, token);
            let up = get_ready(context, instance, &action).await;
            up.map(|up| (up, sender))
        }
        Err(error) => {
            if stop(context, &instance).await.0 {
                let _ = context.executor.discard(&instance.handle).await;
            }
            Err(ServiceFailure {
                reason: format!("service `{}` could not be taken over: {error}", def.name),
                cause: Cause::of(&error).unwrap_or(Cause::Service),
                logs: Vec::new(),
                cancelled: false,
                taints: None,
            })
        }
    }
}

async fn get_ready(
    context: &Context,
    instance: Instance,
    action: &ServiceAction,
) -> Result<Instance, ServiceFailure> {
    let executor = &*context.executor;
    let (host, handle) = (&instance.def.host, &instance.handle);
    let ready = wait_ready(context, executor, host, handle, &action.ready);
    let Err(unready) = ready.await else {
        return Ok(Instance {
            watched: Watched::by(&action.ready, action.health),
            ..instance
        });
    };
    let (gone, taints) = stop(context, &instance).await;
    let logs = instance.logs(context, [0; 2]).await;
    if gone {
        // Whoever waits for it keeps these: what is left is a copy.
        let _ = context.executor.discard(&instance.handle).await;
    }
    Err(ServiceFailure {
        reason: format!("service `{}` {unready}", instance.def.name),
        cause: match &unready {
            Unready::Late(_) => Cause::Timeout,
            Unready::Ended(status) => cause_of(status),
            Unready::Error(error) => Cause::of(error).unwrap_or(Cause::Service),
            _ => Cause::Service,
        },
        logs,
        cancelled: matches!(unready, Unready::Cancelled),
        taints,
    })
}

/// Ends a service: politely, then hard; then looks whether its host is free of it. Whether it is
/// gone (what could not be ended is noted), and why its host is not free, when it is not.
pub(super) async fn stop(context: &Context, instance: &Instance) -> (bool, Option<String>) {
    let grace = instance.def.stop_grace;
    if let Err(error) = context.executor.cancel(&instance.handle, grace).await {
        context.unended.of_service(context, instance, &error);
        return (false, None);
    }
    instance.is_gone.store(true, Ordering::Release);
    context.intents.done(&instance.handle.token);
    (true, instance.release.after(context).await)
}

/// Removes the logs of a service that died, once everybody who used it, and who ends what it left,
/// has done with them.
pub(super) async fn discard_unused(context: &Context, instance: Arc<Instance>) {
    while Arc::strong_count(&instance) > 1 {
        tokio::time::sleep(LOOK).await;
    }
    // What could not be ended keeps its folder.
    if instance.is_gone.load(Ordering::Acquire) {
        let _ = context.executor.discard(&instance.handle).await;
    }
}

fn cancelled() -> Error {
    Error::new(Kind::Interrupted, "cancelled", "everything is cancelled")
}

async fn render_service(
    context: &Context,
    book: &PortBook,
    hosts: &HashMap<ServiceId, HostSpec>,
    def: &ServiceDef,
    work: &std::path::Path,
    session: &str,
) -> Result<(ServiceAction, PortMap)> {
    let mut ports = BTreeMap::new();
    let mut told = PortMap::new();
    for (name, id, preferred) in &def.siblings {
        let host = hosts.get(id).unwrap_or(&def.host);
        let numbers = book.ports(context, host, *id, preferred).await?;
        for (port, number) in &numbers {
            ports.insert((name.clone(), port.clone()), *number);
        }
        told.insert(name.clone(), numbers);
    }
    let binding = RealBinding {
        roles: context.bindings(def.roles.iter())?,
        ports,
        work: work.display().to_string(),
        inputs: String::new(),
        session: session.to_owned(),
        doe: context.doe(true),
    };
    let action = render(&def.rule, &def.settings, &Binding::Real(binding))?;
    let found = action
        .services
        .into_iter()
        .find(|service| service.name == def.name);
    let service = found.ok_or_else(|| {
        Error::new(
            Kind::Bug,
            "service-vanished",
            format!("rule `{}` renders no service `{}`", def.rule.id, def.name),
        )
    })?;
    Ok((service, told))
}
