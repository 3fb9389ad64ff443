//! One execution of one node: render, run, collect, judge, record. It ends in exactly one record,
//! durable before anybody hears of it, whatever went wrong on the way; exit status 0 without the
//! declared outputs is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe_cache::{Digest, Manifest, Output, Value};
use serde::Serialize;

use super::context::{Context, folder_of, now_unix_ms};
use super::event::NodeState;
use super::judge::{self, Cause, Document};
use super::record::{NodeEnd, record};
use super::services::real_ports;
use super::steps::{self, Failure, Used};
use crate::error::{Error, Result};
use crate::exec::{Executor, Handle};
use crate::label::Label;
use crate::plan::model::Expectation;
use crate::rule::action::{Action, Binding, OutputAction, RealBinding};
use crate::rule::model::Rule;
use crate::rule::render::render;

/// A node that is to be executed.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Its label.
    pub label: Label,
    /// Its layer.
    pub layer: String,
    /// How it is measured.
    pub rule: Arc<Rule>,
    /// Exactly the rule's parameters.
    pub settings: BTreeMap<String, Value>,
    /// What its numbers should be.
    pub expect: Vec<Expectation>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it stands outside the planned campaign.
    pub exploratory: bool,
    /// What was asked for.
    pub spec: Manifest,
    /// What is executed.
    pub action: Manifest,
    /// What turns its outputs into numbers.
    pub judge: Digest,
    /// Results that it reads.
    pub inputs: Vec<InputRef>,
    /// Roles that it uses.
    pub roles: Vec<String>,
    /// Short name of its folder for temporary files.
    pub scratch: String,
    /// When it got its hosts.
    pub acquired_unix_ms: u64,
    /// Whether its steps have been begun.
    pub running: bool,
}

/// A result that a node reads, as its instruments see it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct InputRef {
    /// Label of the pattern.
    pub label: String,
    /// Its settings.
    pub settings: BTreeMap<String, Value>,
    /// Output name to the file with its content.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Whether any tool was simulated.
    #[serde(skip)]
    pub simulated: bool,
}

/// What an execution has brought up to some point.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) failure: Option<Failure>,
    pub(super) logs: Vec<(String, Vec<u8>)>,
    pub(super) documents: BTreeMap<String, Document>,
    pub(super) outputs: BTreeMap<String, Output>,
    pub(super) phases: BTreeMap<String, u64>,
    /// Processes whose folders hold nothing that is not kept elsewhere once the record is stored.
    pub(super) processes: Vec<(Arc<dyn Executor>, Handle)>,
}

/// Executes a node whose services are up. `state` is told where it is.
pub(super) async fn run(
    context: &Context,
    job: &Job,
    used: &[Used],
    state: &(dyn Fn(NodeState) + Sync),
) -> NodeEnd {
    let mut draft = Draft::default();
    draft.phase("services", job.acquired_unix_ms);
    if let Err(error) = execute(context, job, used, state, &mut draft).await {
        draft.failure.get_or_insert_with(|| Failure {
            reason: error.to_string(),
            cause: Cause::Program,
            exit_code: None,
            tail: None,
            cancelled: context.is_aborted(),
        });
    }
    for service in used {
        draft
            .logs
            .extend(service.instance.logs(context, service.log_from).await);
    }
    record(context, job, used, draft).await
}

/// Records a node whose services could not be brought up.
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
    draft.phase("services", job.acquired_unix_ms);
    record(context, job, used, draft).await
}

impl Draft {
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
    let name = folder_of(&job.label);
    // One attempt for now; further ones get their own folder, so none is ever overwritten.
    let below = Path::new("nodes").join(&name).join("1");
    let on_hosts = !job.roles.is_empty();
    let work = context.work(&below.join("work"), on_hosts)?;
    let kept = context.run_dir.join(&below).join("out");
    std::fs::create_dir_all(&kept).map_err(|e| Error::io("make", &kept, &e))?;
    let tmp = context.tmp(&job.scratch, on_hosts)?;
    let inputs = super::inputs::put(context, job, &context.run_dir.join(&below)).await?;
    let action = render_real(context, job, used, &work, &inputs, &name).await?;
    state(NodeState::Running);
    let began = draft.phase("staging", began);
    let ran = steps::run(context, &name, &action.steps, &work, &tmp, used).await?;
    draft.logs = ran.logs;
    draft.processes = ran.processes;
    draft.failure = ran.failure;
    state(NodeState::Collecting);
    let began = draft.phase("running", began);
    collect(context, job, &action.outputs, &work, &kept, draft).await?;
    draft.phase("collecting", began);
    Ok(())
}

async fn render_real(
    context: &Context,
    job: &Job,
    used: &[Used],
    work: &Path,
    inputs: &Path,
    name: &str,
) -> Result<Action> {
    let mut ports = BTreeMap::new();
    for service in used {
        let def = &service.instance.def;
        for (port, number) in &service.instance.ports {
            ports.insert((def.name.clone(), port.clone()), *number);
        }
    }
    for step in &job.rule.steps {
        let host = context.host(step.role.as_deref())?;
        for (port, number) in real_ports(context, &host, &step.ports).await? {
            ports.insert((step.name.clone(), port), number);
        }
    }
    let binding = RealBinding {
        roles: context.bindings(job.roles.iter())?,
        ports,
        work: work.display().to_string(),
        inputs: inputs.display().to_string(),
        session: context.token(name).0,
        doe: context.doe(!job.roles.is_empty()),
    };
    render(&job.rule, &job.settings, &Binding::Real(binding))
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
            draft.failure.get_or_insert_with(|| Failure {
                reason: format!("output `{}` was not written ({})", output.name, output.path),
                cause: Cause::NoResult,
                exit_code: None,
                tail: None,
                cancelled: false,
            });
            continue;
        };
        let blob = context.store.cas().stage_file(path)?;
        let is_read = judge::is_read(&job.rule, &output.name);
        let document = if is_read || output.schema.is_some() {
            let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
            Document::read(&bytes, output.schema.as_deref(), is_read)
        } else {
            Document::Raw
        };
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
