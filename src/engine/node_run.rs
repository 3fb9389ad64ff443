//! One execution of one node: render, run, collect, judge, record. It ends in exactly one record,
//! durable before anybody hears of it, whatever went wrong on the way; exit status 0 without the
//! declared outputs is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe_cache::{CpuTime, Digest, Output};

use super::context::{Context, attempt_name, folder_of, now_unix_ms};
use super::early::Early;
use super::event::NodeState;
use super::facts;
use super::intent::{Intent, NodeIntent, Place, PortMap, StepIntent, UseIntent};
use super::job::Job;
use super::judge::{self, Cause, Document};
use super::monitor;
use super::moved::{self, Before};
use super::record::{NodeEnd, record};
use super::services::real_ports;
use super::steps::{self, Failure, GRACE, Used};
use super::unended::{self, Left};
use crate::error::{Error, Result};
use crate::exec::{Executor, Handle, HostSpec};
use crate::rule::action::{Action, Binding, OutputAction, RealBinding};
use crate::rule::render::render;

/// What an execution has brought up to some point.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) failure: Option<Failure>,
    pub(super) logs: Vec<(String, Vec<u8>)>,
    pub(super) documents: BTreeMap<String, Document>,
    pub(super) outputs: BTreeMap<String, Output>,
    /// Name, digest and file of each of these.
    pub(super) files: Vec<(String, Digest, PathBuf)>,
    pub(super) phases: BTreeMap<String, u64>,
    /// What the hosts said of themselves before it began.
    pub(super) before: Before,
    /// What was seen beside it.
    pub(super) monitors: monitor::Kept,
    /// What its probe says that has moved while it ran.
    pub(super) moved: Option<String>,
    /// By host: why its facts could not be read again.
    pub(super) unread: BTreeMap<String, String>,
    /// What its steps used of the processors, by name.
    pub(super) cpu: BTreeMap<String, CpuTime>,
    /// Whether a further attempt of this run would fail in the same way.
    pub(super) is_last: bool,
    /// Processes whose folders hold nothing that is not kept elsewhere once the record is stored.
    pub(super) processes: Vec<(Arc<dyn Executor>, Handle)>,
    /// What was announced of it before it began.
    pub(super) announced: Option<Arc<NodeIntent>>,
    /// When its steps had ended, Unix ms, where that was not just now.
    pub(super) ended_unix_ms: Option<u64>,
}

/// Is told where a node is, and what it has made.
pub(super) type News<'n> = (
    &'n (dyn Fn(NodeState) + Sync),
    &'n (dyn Fn(Early) + Send + Sync),
);

/// Executes a node whose services are up.
pub(super) async fn run(
    context: &Context,
    job: &Job,
    used: &[Used],
    (state, made): News<'_>,
) -> NodeEnd {
    let mut draft = Draft::default();
    if job.resumed.is_none() {
        draft.phase("services", job.acquired_unix_ms);
    }
    if let Err(error) = execute(context, job, used, state, &mut draft).await {
        draft.is_last = error.code == facts::again::MOVED;
        draft.failure.get_or_insert_with(|| Failure {
            reason: error.to_string(),
            cause: Cause::of_work(&error),
            exit_code: None,
            tail: None,
            cancelled: context.is_aborted(),
        });
    }
    if draft.failure.is_some() {
        end_resumed(context, job).await;
    }
    for service in used {
        draft
            .logs
            .extend(service.instance.logs(context, service.log_from).await);
    }
    record(context, job, used, draft, made).await
}

/// Records a node whose services could not be brought up. What a killed run had begun of it is
/// ended first: nobody waits for it any more.
pub(super) async fn never_ran(
    context: &Context,
    job: &Job,
    used: &[Used],
    failure: Failure,
    logs: Vec<(String, Vec<u8>)>,
) -> NodeEnd {
    let mut draft = Draft {
        failure: Some(failure),
        logs,
        ..Draft::default()
    };
    end_resumed(context, job).await;
    draft.phase("services", job.acquired_unix_ms);
    record(context, job, used, draft, &|_| ()).await
}

/// What a killed run had begun of a node that has failed: it may not have been looked at yet, and
/// nobody else knows of it.
async fn end_resumed(context: &Context, job: &Job) {
    let Some(resumed) = &job.resumed else {
        return;
    };
    let intent = &resumed.intent;
    if let Err(error) = revoke_all(context, intent).await {
        let (token, run) = (&intent.token, &intent.home.run_id);
        let what = format!("what the killed run {run} had begun of it");
        let left = Left::all_of(context, intent);
        let unended = &context.unended;
        unended.of_node(token, &job.label, &what, left, &error);
    }
}

impl Draft {
    /// Steps that nobody watched ended when they say, not when somebody came to look.
    async fn resumed(&mut self, acquired_unix_ms: u64) -> Result<()> {
        for (executor, handle) in &self.processes {
            let ended = executor.ended_unix_ms(handle).await?;
            self.ended_unix_ms = self.ended_unix_ms.max(ended);
        }
        let ended = self.ended_unix_ms.unwrap_or_else(now_unix_ms);
        let running = ended.saturating_sub(acquired_unix_ms);
        self.phases = BTreeMap::from([("running".into(), running)]);
        Ok(())
    }

    /// Notes a phase that began then and ends now. When it ended.
    fn phase(&mut self, name: &str, began_unix_ms: u64) -> u64 {
        let now = now_unix_ms();
        self.phases
            .insert(name.into(), now.saturating_sub(began_unix_ms));
        now
    }
}

async fn execute(
    context: &Context,
    job: &Job,
    used: &[Used],
    state: &(dyn Fn(NodeState) + Sync),
    draft: &mut Draft,
) -> Result<()> {
    state(NodeState::Staging);
    let began = now_unix_ms();
    if job.resumed.is_none() {
        let hosts = job.roles.iter().map(|role| context.host(Some(role)));
        let hosts: Vec<HostSpec> = hosts.collect::<Result<_>>()?;
        let names: Vec<&str> = hosts.iter().map(|host| &*host.name).collect();
        unended::end_on(context, &names).await?;
    }
    let name = job.name();
    // Every attempt has its own folders, so none is ever overwritten.
    let folder = format!("{}~{}", folder_of(&job.label), job.attempt);
    let home = job.home(context);
    let on_hosts = !job.roles.is_empty();
    let begun = job.resumed.as_ref();
    let work = match begun.and_then(|resumed| resumed.intent.work.clone()) {
        Some(work) => work,
        None => context.work(home, &Path::new("nodes").join(&folder), on_hosts),
    };
    let kept = home.run_dir.join("out").join(&folder);
    let is_alone = !on_hosts && used.is_empty();
    let tmp = match &job.resumed {
        Some(resumed) => context.tmp(home, &resumed.scratch, &resumed.intent.scratch, on_hosts)?,
        None if is_alone => context.scratch.borrow()?,
        None => context.tmp(home, &context.scratch, &job.scratch(), on_hosts)?,
    };
    draft.before = moved::before(context, job).await?;
    facts::again::before(context, job).await?;
    let inputs = home.run_dir.join("inputs").join(format!("{folder}.json"));
    super::inputs::put(job, &inputs)?;
    let site = steps::Site {
        home,
        label: &job.label,
        name: &name,
        replicate: job.replicate,
        work: &work,
        tmp: &tmp,
        cancel: &job.cancel,
    };
    let (action, ports) = render_real(context, job, used, &site, &inputs).await?;
    // What lives and dies with `doe` leaves nothing that could be gone on with.
    let outlives = !used.is_empty() || action.steps.iter().any(|step| step.role.is_some());
    if job.resumed.is_none() {
        end_previous(context, job, &action).await?;
    }
    let mut monitors = monitor::planned(context, job, &site)?;
    if job.resumed.is_none() && outlives {
        let beside = monitor::intents(&monitors);
        let intent = intent_of(context, job, used, &site, &action, ports, beside)?;
        draft.announced = Some(Arc::new(intent.clone()));
        let announced = context.intents.announce(vec![Intent::Node(intent)]);
        announced.await?;
    }
    monitor::start(context, job, &site, &action.steps, &mut monitors).await;
    state(NodeState::Running);
    let began = draft.phase("staging", began);
    let ran = steps::run(context, &site, &action, used).await;
    // Whatever became of the steps, nothing stays beside them.
    let nothing = steps::Ran::default();
    let said = ran.as_ref().unwrap_or(&nothing);
    draft.monitors = monitor::stop(context, &site, &draft.before, said, monitors).await;
    let ran = ran?;
    draft.logs = ran.logs;
    draft.processes = ran.processes;
    draft.cpu = ran.cpu;
    if job.resumed.is_some() {
        draft.resumed(job.acquired_unix_ms).await?;
    }
    draft.failure = ran.failure;
    if is_alone && job.resumed.is_none() && draft.failure.is_none() {
        context.scratch.give_back(tmp);
    }
    let mut began = match job.resumed {
        Some(_) => now_unix_ms(),
        None => draft.phase("running", began),
    };
    if draft.failure.is_none() && context.platform.probing.is_some() {
        // Still alone with its hosts: reading them disturbs nobody.
        let after = facts::again::after(context, job).await?;
        (draft.moved, draft.unread) = (after.moved, after.unread);
        began = draft.phase("probing", began);
    }
    state(NodeState::Collecting);
    collect(context, job, &action.outputs, &work, &kept, draft).await?;
    draft.phase("collecting", began);
    Ok(())
}

/// A host that could not be asked may still run what the attempt before had begun there: two at
/// once would measure each other.
async fn end_previous(context: &Context, job: &Job, action: &Action) -> Result<()> {
    let Some(previous) = &job.previous else {
        return Ok(());
    };
    if let Some(intent) = &previous.intent {
        revoke_all(context, intent).await?;
        context.intents.done(&intent.token);
        context.unended.ended(&intent.token);
        return Ok(());
    }
    // Of a killed run, whose announcement is closed.
    let name = attempt_name(&job.label, previous.attempt);
    for step in action.steps.iter().filter(|step| step.role.is_some()) {
        let host = context.host(step.role.as_deref())?;
        let token = steps::token(&previous.run_id, &name, &step.name);
        context.executor.revoke(&host, &token, GRACE).await?;
    }
    Ok(())
}

/// Ends all that may run of an execution.
async fn revoke_all(context: &Context, intent: &NodeIntent) -> Result<()> {
    for step in intent.all() {
        let executor = context.executor(step.place.role.as_deref());
        let host = step.place.spec();
        executor.revoke(&host, &step.token, GRACE).await?;
    }
    Ok(())
}

/// What is about to be started.
fn intent_of(
    context: &Context,
    job: &Job,
    used: &[Used],
    site: &steps::Site<'_>,
    action: &Action,
    ports: PortMap,
    monitors: Vec<StepIntent>,
) -> Result<NodeIntent> {
    let mut steps = Vec::with_capacity(action.steps.len());
    for step in &action.steps {
        let host = context.host(step.role.as_deref())?;
        steps.push(StepIntent {
            name: step.name.clone(),
            token: site.token(&step.name),
            gang: step.gang.clone(),
            place: Place {
                role: step.role.clone(),
                host: host.name,
                address: host.address,
            },
        });
    }
    let services = used.iter().map(|service| UseIntent {
        token: service.instance.handle.token.clone(),
        started_for_this: service.started_for_this,
        log_from: service.log_from,
    });
    Ok(NodeIntent {
        token: site.execution(),
        label: job.label.to_string(),
        action: job.key,
        home: site.home.clone(),
        work: Some(site.work.to_owned()),
        scratch: job.scratch(),
        ports,
        attempt: job.attempt,
        previous: job.previous.as_ref().map(|previous| previous.record),
        services: services.collect(),
        steps,
        monitors,
        acquired_unix_ms: job.acquired_unix_ms,
    })
}

/// The action with everything resolved, and the ports that its steps were given.
async fn render_real(
    context: &Context,
    job: &Job,
    used: &[Used],
    site: &steps::Site<'_>,
    inputs: &Path,
) -> Result<(Action, PortMap)> {
    let mut ports = BTreeMap::new();
    for service in used {
        let def = &service.instance.def;
        for (port, number) in &service.instance.ports {
            ports.insert((def.name.clone(), port.clone()), *number);
        }
    }
    let mut told = PortMap::new();
    for step in job.rule.steps.iter().filter(|step| !step.ports.is_empty()) {
        let host = context.host(step.role.as_deref())?;
        let before = job.resumed.as_ref();
        let numbers = match before.and_then(|resumed| resumed.intent.ports.get(&step.name)) {
            Some(numbers) => numbers.clone(),
            None => real_ports(context, &host, &step.ports).await?,
        };
        for (port, number) in &numbers {
            ports.insert((step.name.clone(), port.clone()), *number);
        }
        told.insert(step.name.clone(), numbers);
    }
    let binding = RealBinding {
        roles: context.bindings(job.roles.iter())?,
        ports,
        work: site.work.display().to_string(),
        inputs: inputs.display().to_string(),
        session: site.home.token(site.name).0,
        doe: context.doe(!job.roles.is_empty()),
    };
    let action = render(&job.rule, &job.settings, &Binding::Real(binding))?;
    Ok((action, told))
}

/// Fetches the outputs, also those of a failure, for whoever looks closer.
async fn collect(
    context: &Context,
    job: &Job,
    outputs: &[OutputAction],
    work: &Path,
    kept: &Path,
    draft: &mut Draft,
) -> Result<()> {
    for output in outputs {
        let host = context.host(output.role.as_deref())?;
        let executor = context.executor(output.role.as_deref());
        let names = std::slice::from_ref(&output.path);
        let found = executor.collect(&host, work, names, kept).await?;
        let Some(path) = found.first() else {
            // That it ran to its end is what is wrong then.
            if job
                .expect_class
                .as_deref()
                .is_some_and(|class| class != "no-result")
            {
                continue;
            }
            draft.failure.get_or_insert_with(|| Failure {
                reason: format!("output `{}` was not written ({})", output.name, output.path),
                cause: Cause::NoResult,
                exit_code: None,
                tail: None,
                cancelled: false,
            });
            continue;
        };
        let is_read = judge::is_read(&job.rule, &output.name);
        let (blob, document) = if is_read || output.schema.is_some() {
            // What is judged is what is stored, whatever becomes of the file.
            let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
            let document = Document::read(&bytes, output.schema.as_deref(), is_read);
            (context.store.cas().stage_bytes(&bytes)?, document)
        } else {
            (context.store.cas().stage_file(path)?, Document::Raw)
        };
        let file = (output.name.clone(), blob.digest, path.clone());
        draft.files.push(file);
        draft.documents.insert(output.name.clone(), document);
        draft.outputs.insert(
            output.name.clone(),
            Output {
                digest: blob.digest,
                size_bytes: blob.size_bytes,
                schema: output.schema.clone(),
            },
        );
    }
    Ok(())
}
