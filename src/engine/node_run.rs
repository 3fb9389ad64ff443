//! One execution of one node: render, run, collect, judge, record. It ends in exactly one record,
//! durable before anybody hears of it, whatever went wrong on the way; exit status 0 without the
//! declared outputs is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe_cache::{
    Digest, Execution, ExecutionStatus, Manifest, NodeState as StoredState, NodeUpdate, Output,
    Provenance, RECORD_SCHEMA, Record, RecordKind, ServiceUse, Summary, Timings, Value, Verdicts,
};
use serde::Serialize;

use super::context::{Context, folder_of, now_unix_ms};
use super::event::{CriterionWord, NodeState, Outcome};
use super::judge::{self, Cause, Document};
use super::services::real_ports;
use super::steps::{self, Failure, Used};
use crate::error::{Error, Result};
use crate::label::Label;
use crate::plan::model::Expectation;
use crate::rule::action::{Action, Binding, OutputAction, RealBinding};
use crate::rule::model::{Rule, RuleKind};
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

/// How an execution ended.
#[derive(Debug, Clone)]
pub(super) struct NodeEnd {
    /// In one word.
    pub outcome: Outcome,
    /// Why, when it is not ok.
    pub reason: Option<String>,
    /// Class of the failure.
    pub class: Option<String>,
    /// The stored record in short; `None` when it could not be stored.
    pub summary: Option<Summary>,
    /// Whether its numbers are as expected, when something was expected and they may be used.
    pub criterion: Option<CriterionWord>,
    /// Expectations that were missed.
    pub missed: Vec<String>,
    /// Name and last lines of the log that tells most.
    pub tail: Option<(String, Vec<String>)>,
    /// Milliseconds from the acquisition to the end.
    pub duration_ms: u64,
}

impl NodeEnd {
    /// The end of an execution that could not even be recorded.
    pub(super) fn unrecorded(acquired_unix_ms: u64, error: &Error) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason: Some(error.to_string()),
            class: Some("infrastructure".into()),
            summary: None,
            criterion: None,
            missed: Vec::new(),
            tail: None,
            duration_ms: now_unix_ms().saturating_sub(acquired_unix_ms),
        }
    }
}

/// What an execution has brought up to some point.
#[derive(Default)]
struct Draft {
    failure: Option<Failure>,
    logs: Vec<(String, Vec<u8>)>,
    documents: BTreeMap<String, Document>,
    outputs: BTreeMap<String, Output>,
    phases: BTreeMap<String, u64>,
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
    let work = context.host_dir.join(&below).join("work");
    let kept = context.run_dir.join(&below).join("out");
    for folder in [&kept, &work.join("tmp")] {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, &e))?;
    }
    let inputs = context.run_dir.join(&below).join("inputs.json");
    write_inputs(&inputs, &job.inputs)?;
    let action = render_real(context, job, used, &work, &inputs, &name).await?;
    state(NodeState::Running);
    let began = draft.phase("staging", began);
    let ran = steps::run(context, &name, &action.steps, &work, used).await?;
    draft.logs = ran.logs;
    draft.failure = ran.failure;
    state(NodeState::Collecting);
    let began = draft.phase("running", began);
    collect(context, job, &action.outputs, &work, &kept, draft).await?;
    draft.phase("collecting", began);
    Ok(())
}

fn write_inputs(path: &Path, inputs: &[InputRef]) -> Result<()> {
    let text = serde_json::to_vec_pretty(inputs).map_err(|e| {
        Error::new(crate::error::Kind::Bug, "inputs", "inputs are not JSON").cause(e)
    })?;
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
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
        doe: context.doe.display().to_string(),
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

async fn record(context: &Context, job: &Job, used: &[Used], draft: Draft) -> NodeEnd {
    match try_record(context, job, used, draft).await {
        Ok(end) => end,
        Err(error) => NodeEnd::unrecorded(job.acquired_unix_ms, &error),
    }
}

async fn try_record(
    context: &Context,
    job: &Job,
    used: &[Used],
    mut draft: Draft,
) -> Result<NodeEnd> {
    let mut logs = Vec::new();
    for (name, content) in &draft.logs {
        if !content.is_empty() {
            let blob = context.store.cas().stage_bytes(content)?;
            logs.push(doe_cache::Log {
                name: name.clone(),
                digest: blob.digest,
                size_bytes: blob.size_bytes,
            });
        }
    }
    let failure = draft.failure.take();
    let class = failure
        .as_ref()
        .map(|failure| classify(job, failure, &draft.logs));
    let mut metrics = BTreeMap::new();
    let mut texts = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let verdicts = match &failure {
        Some(failure) => Verdicts::not_ok(Execution {
            status: match failure {
                Failure {
                    cancelled: true, ..
                } => ExecutionStatus::Cancelled,
                Failure {
                    cause: Cause::Timeout,
                    ..
                } => ExecutionStatus::Timeout,
                _ => ExecutionStatus::Failed,
            },
            class: class.clone(),
            reason: Some(failure.reason.clone()),
            exit_code: failure.exit_code,
        }),
        None => {
            let judged = judge::judge(&job.rule, &job.settings, &draft.documents);
            let criterion = judge::criterion_of(&job.expect, &judged);
            (metrics, texts, samples) = (judged.metrics, judged.texts, judged.samples);
            Verdicts {
                execution: Execution {
                    status: ExecutionStatus::Ok,
                    class: None,
                    reason: None,
                    exit_code: Some(0),
                },
                validity: judged.validity,
                criterion,
            }
        }
    };
    let ended = now_unix_ms();
    let mut record = Record {
        schema: RECORD_SCHEMA,
        kind: match job.rule.kind {
            RuleKind::Measure => RecordKind::Measure,
            RuleKind::Analysis => RecordKind::Analysis,
        },
        label: job.label.to_string(),
        plan: job.label.package().to_owned(),
        layer: job.layer.clone(),
        rule: job.rule.id.to_string(),
        run_id: context.run_id.clone(),
        attempt: 1,
        spec_key: Digest::from_bytes([0; 32]),
        action_key: Digest::from_bytes([0; 32]),
        judge: job.judge,
        rejudged_from: None,
        spec_manifest: job.spec.clone(),
        action_manifest: job.action.clone(),
        provenance: provenance(context, job).await?,
        reusable: failure.is_none(),
        not_reusable_because: failure.as_ref().map(|failure| failure.reason.clone()),
        settings: job.settings.clone(),
        tags: job.tags.clone(),
        exploratory: job.exploratory,
        outputs: draft.outputs,
        output_digest: Digest::from_bytes([0; 32]),
        metrics,
        texts,
        samples,
        logs,
        services: used
            .iter()
            .map(|service| ServiceUse {
                name: service.instance.def.name.clone(),
                key: service.instance.def.key,
                started_for_this: service.started_for_this,
            })
            .collect(),
        timings: Timings {
            started_unix_ms: job.acquired_unix_ms,
            ended_unix_ms: ended,
            phases: draft.phases,
        },
        recorded_unix_ms: context.store.stamp_unix_ms(),
        verdicts,
    };
    record.seal();
    let mut end = end_of(&record);
    end.tail = failure.and_then(|failure| failure.tail);
    let update = NodeUpdate {
        run_id: context.run_id.clone(),
        label: record.label.clone(),
        state: stored_state(end.outcome),
        reason: end.reason.clone(),
        record: None,
    };
    let summary = record.clone();
    let digest = context.committer.commit(record, update).await?;
    end.summary = Some(summary.summary(digest));
    Ok(end)
}

fn classify(job: &Job, failure: &Failure, logs: &[(String, Vec<u8>)]) -> String {
    if failure.cancelled {
        return "cancelled".into();
    }
    let logs: Vec<_> = logs
        .iter()
        .map(|(_, log)| String::from_utf8_lossy(log))
        .collect();
    let mut texts: Vec<&str> = logs.iter().map(|log| log.as_ref()).collect();
    texts.push(&failure.reason);
    judge::classify(&job.rule, failure.cause, &texts)
}

/// What a finished record says about its node.
pub(super) fn end_of(record: &Record) -> NodeEnd {
    let Verdicts {
        execution,
        validity,
        criterion,
    } = &record.verdicts;
    let (outcome, reason) = match execution.status {
        ExecutionStatus::Cancelled => (Outcome::Cancelled, execution.reason.clone()),
        ExecutionStatus::Failed | ExecutionStatus::Timeout => {
            (Outcome::Failed, execution.reason.clone())
        }
        ExecutionStatus::Ok if record.verdicts.good() => (Outcome::Ok, None),
        ExecutionStatus::Ok => (Outcome::Invalid, Some(invalid_because(&validity.failed))),
    };
    NodeEnd {
        outcome,
        reason,
        class: execution.class.clone(),
        summary: None,
        criterion: judge::criterion_word(criterion.status),
        missed: judge::missed(criterion),
        tail: None,
        duration_ms: record.duration_ms(),
    }
}

fn invalid_because(failed: &[String]) -> String {
    match failed {
        [] => "its numbers may not be used".into(),
        [one] => format!("does not hold: {one}"),
        [first, rest @ ..] => format!("does not hold: {first} (and {} more)", rest.len()),
    }
}

/// The word that the store has for an outcome.
pub(super) fn stored_state(outcome: Outcome) -> StoredState {
    match outcome {
        Outcome::Ok => StoredState::Ok,
        Outcome::Reused => StoredState::Reused,
        Outcome::Invalid => StoredState::Invalid,
        Outcome::Failed => StoredState::Failed,
        Outcome::Cancelled => StoredState::Cancelled,
        Outcome::Blocked => StoredState::Blocked,
    }
}

async fn provenance(context: &Context, job: &Job) -> Result<Provenance> {
    let measures = job.rule.kind == RuleKind::Measure;
    let mut hosts = BTreeMap::new();
    let mut facts = BTreeMap::new();
    if measures {
        facts = context.platform.facts.clone();
        for role in &job.roles {
            let host = context.host(Some(role))?;
            for (fact, value) in context.facts(&host).await {
                facts.insert(format!("host.{}.{fact}", host.name), Value::Str(value));
            }
            hosts.insert(role.clone(), host.name);
        }
    }
    // What is made from simulated numbers is simulated.
    let inputs_simulated = job.inputs.iter().any(|input| input.simulated);
    Ok(Provenance {
        simulated: (measures && context.platform.simulated) || inputs_simulated,
        platform: context.platform.name.clone(),
        executor: context.executor(measures.then_some("")).name().to_owned(),
        doe_version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts,
        facts,
    })
}
