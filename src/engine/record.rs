//! The account of an execution: verdicts, numbers, logs, provenance. It is durable before anybody
//! hears of it, and everything that is said of a node's end is read from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::{
    Digest, Execution, ExecutionStatus, NodeState as StoredState, NodeUpdate, Provenance,
    RECORD_SCHEMA, Record, RecordKind, ServiceUse, Summary, Timings, Value, Verdicts,
};

use super::context::{Context, now_unix_ms};
use super::early::Early;
use super::event::{CriterionWord, Outcome};
use super::expected;
use super::facts;
use super::intent::{Intent, NodeIntent};
use super::job::Job;
use super::judge::{self, Cause};
use super::made::Made;
use super::node_run::Draft;
use super::steps::{Failure, Used};
use super::{monitor, moved};
use crate::error::{Error, Kind, Result};
use crate::rule::classes::is_infrastructure;
use crate::rule::model::RuleKind;

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
    /// What went wrong beside it and decides nothing, each with the code of its warning.
    pub notes: Vec<(&'static str, String)>,
    /// Milliseconds from the acquisition to the end.
    pub duration_ms: u64,
    /// Which attempt it was and how many there may be, when that was a question.
    pub attempt: Option<(u32, u32)>,
    /// Whether a further attempt is to follow: it is noted so in the store.
    pub again: bool,
    /// What was announced of it.
    pub intent: Option<Arc<NodeIntent>>,
}

impl NodeEnd {
    /// The end of an execution that panicked.
    pub(super) fn defect(acquired_unix_ms: u64) -> Self {
        let error = Error::new(Kind::Bug, "panic", "a defect of doe ended the node");
        Self::unrecorded(acquired_unix_ms, &error)
    }

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
            notes: Vec::new(),
            duration_ms: now_unix_ms().saturating_sub(acquired_unix_ms),
            attempt: None,
            again: false,
            intent: None,
        }
    }
}

/// Makes the record and stores it; when that fails the node has failed. `made` is told of what
/// others may read meanwhile.
pub(super) async fn record(
    context: &Context,
    job: &Job,
    used: &[Used],
    draft: Draft,
    made: &(dyn Fn(Early) + Send + Sync),
) -> NodeEnd {
    match try_record(context, job, used, draft, made).await {
        Ok(end) => end,
        Err(error) => NodeEnd::unrecorded(job.acquired_unix_ms, &error),
    }
}

async fn try_record(
    context: &Context,
    job: &Job,
    used: &[Used],
    mut draft: Draft,
    made: &(dyn Fn(Early) + Send + Sync),
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
    for (name, is_output, document) in &draft.monitors.documents {
        let blob = context.store.cas().stage_bytes(document)?;
        let (digest, size_bytes) = (blob.digest, blob.size_bytes);
        if *is_output {
            let schema = Some(monitor::SCHEMA.to_owned());
            let output = doe_cache::Output {
                digest,
                size_bytes,
                schema,
            };
            draft.outputs.insert(format!("monitor.{name}"), output);
        } else {
            logs.push(doe_cache::Log {
                name: format!("monitor-{name}.json"),
                digest,
                size_bytes,
            });
        }
    }
    let failure = draft.failure.take();
    let class = failure
        .as_ref()
        .filter(|failure| !failure.cancelled)
        .map(|failure| classify(job, failure, &draft.logs));
    let expected = job.expect_class.as_deref();
    let met = expected.filter(|expected| class.as_deref() == Some(*expected));
    let spoiled = class
        .as_deref()
        .is_some_and(|class| is_infrastructure(&job.rule, class));
    let mut metrics = BTreeMap::new();
    let mut texts = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let verdicts = match (&failure, met) {
        (Some(failure), Some(class)) => expected::met(class, failure),
        (Some(failure), None) => Verdicts::not_ok(Execution {
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
        (None, _) => {
            let mut judged = judge::judge(&job.rule, &job.settings, &draft.documents);
            if let Some(class) = expected {
                judged.validity = expected::missed(class);
            }
            let criterion = judge::criterion_of(&job.expect, &judged);
            (metrics, texts, samples) = (judged.metrics, judged.texts, judged.samples);
            let is_valid = judged.validity.failed.is_empty();
            Verdicts {
                execution: Execution {
                    status: ExecutionStatus::Ok,
                    class: match is_valid {
                        true => None,
                        false => {
                            with_texts(&draft.logs, |logs| judge::class_in_logs(&job.rule, logs))
                        }
                    },
                    reason: None,
                    exit_code: Some(0),
                },
                validity: judged.validity,
                criterion,
            }
        }
    };
    let ended = draft.ended_unix_ms.unwrap_or_else(now_unix_ms);
    let failed = failure.is_some() && met.is_none();
    let moved = match failed {
        true => None,
        false => match draft.moved.take() {
            None => moved::since(context, job, &draft.before).await?,
            moved => moved,
        },
    };
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
        run_id: context.home.run_id.clone(),
        attempt: job.attempt,
        attempts: (spoiled || job.attempt > 1).then_some(job.retry.attempts),
        previous_attempt: job.previous.as_ref().map(|previous| previous.record),
        spec_key: Digest::from_bytes([0; 32]),
        action_key: Digest::from_bytes([0; 32]),
        judge: job.judge,
        rejudged_from: None,
        spec_manifest: job.spec.clone(),
        action_manifest: job.action.clone(),
        provenance: provenance(context, job, &draft).await?,
        reusable: !failed && moved.is_none(),
        not_reusable_because: failure
            .as_ref()
            .filter(|_| failed)
            .map(|failure| failure.reason.clone())
            .or(moved),
        settings: job.settings.clone(),
        tags: job.tags.clone(),
        cpu: draft.cpu,
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
    end.tail = failure.filter(|_| failed).and_then(|failure| failure.tail);
    let stopped = context.is_aborted() || *job.cancel.borrow();
    end.again = spoiled && job.attempt < job.retry.attempts && !stopped && !draft.is_last;
    let problems = std::mem::take(&mut draft.monitors.problems).into_iter();
    end.notes = problems.map(|problem| ("monitor", problem)).collect();
    let unread = draft.unread.iter();
    end.notes.extend(unread.map(|(host, why)| {
        let text = format!("the facts of host `{host}` were not read again after it: {why}");
        ("facts", text)
    }));
    let never_again = record.not_reusable_because.iter().filter(|_| !failed);
    end.notes.extend(never_again.map(|why| {
        let text = format!("its result is kept and never used again: {why}");
        ("not-reusable", text)
    }));
    let update = NodeUpdate {
        run_id: context.home.run_id.clone(),
        label: record.label.clone(),
        state: match end.again {
            true => StoredState::Retrying,
            false => stored_state(end.outcome),
        },
        reason: end.reason.clone(),
        record: None,
    };
    let resumed = job.resumed.as_ref();
    let announced = draft.announced.as_deref();
    let announced = announced.or(resumed.map(|resumed| &resumed.intent));
    end.intent = announced.cloned().map(Arc::new);
    let unended = announced.filter(|intent| context.unended.has(&intent.token));
    if let Some(NodeIntent { token, .. }) = unended {
        // Before the record closes it.
        let token = token.clone();
        let told = context.intents.announce(vec![Intent::Unended { token }]);
        told.await?;
    }
    let mut summary = record.summary(Digest::from_bytes([0; 32]));
    // Pure, and beside `doe`: whoever reads its files reads them where they were made.
    let is_pure = job.roles.is_empty() && used.is_empty() && job.resumed.is_none();
    let is_good = end.outcome == Outcome::Ok && record.reusable;
    let simulated = record.provenance.simulated;
    let stored = context.committer.begin(record, update)?;
    summary.record = stored.digest;
    end.summary = Some(summary);
    if is_pure && is_good {
        let (end, outputs) = (end.clone(), std::mem::take(&mut draft.files));
        made(Early {
            end,
            made: Made { outputs, simulated },
        });
    }
    context.committer.end(stored).await?;
    // While the execution is still announced: who is killed here leaves no log, with whatever secrets
    // a script printed, that nobody looks for any more.
    for (executor, handle) in draft.processes.iter().chain(&draft.monitors.processes) {
        // What is left there is a copy: no result depends on its removal.
        let _ = executor.discard(handle).await;
    }
    if let Some(intent) = announced
        && !context.unended.recorded(&intent.token)
    {
        context.intents.done(&intent.token);
    }
    Ok(end)
}

fn classify(job: &Job, failure: &Failure, logs: &[(String, Vec<u8>)]) -> String {
    with_texts(logs, |texts| {
        let texts: Vec<&str> = texts.iter().copied().chain([&*failure.reason]).collect();
        judge::classify(&job.rule, failure.cause, &texts)
    })
}

fn with_texts<T>(logs: &[(String, Vec<u8>)], read: impl FnOnce(&[&str]) -> T) -> T {
    let logs = logs.iter().map(|(_, log)| String::from_utf8_lossy(log));
    let logs: Vec<_> = logs.collect();
    let texts: Vec<&str> = logs.iter().map(|log| log.as_ref()).collect();
    read(&texts)
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
        notes: Vec::new(),
        duration_ms: record.duration_ms(),
        attempt: record.attempts.map(|of| (record.attempt, of)),
        again: false,
        intent: None,
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
        Outcome::Skipped => StoredState::Skipped,
    }
}

async fn provenance(context: &Context, job: &Job, draft: &Draft) -> Result<Provenance> {
    let measures = job.rule.kind == RuleKind::Measure;
    let mut hosts = BTreeMap::new();
    let mut told = BTreeMap::new();
    if measures {
        told = context.platform.facts.clone();
        for role in &job.roles {
            let host = context.host(Some(role))?;
            let known = match draft.before.get(&host.name) {
                Some(known) => known.clone(),
                None => context.facts(&host).await,
            };
            for (fact, value) in known {
                told.insert(format!("host.{}.{fact}", host.name), Value::Str(value));
            }
            // What the platform's own probe read, with its types, goes before.
            if let Some(read) = facts::again::known(context, &host.name) {
                let at = |fact: &str| format!("host.{}.{fact}", host.name);
                let read_ms = i64::try_from(read.read_unix_ms).unwrap_or(i64::MAX);
                told.insert(at("facts_read_unix_ms"), Value::Int(read_ms));
                told.extend(
                    read.facts
                        .iter()
                        .map(|(fact, value)| (at(fact), value.clone())),
                );
            }
            hosts.insert(role.clone(), host.name);
        }
    }
    let unread = draft.unread.iter();
    told.extend(unread.map(|(host, why)| {
        let at = format!("host.{host}.facts_not_read_again");
        (at, why.as_str().into())
    }));
    let beside = draft.monitors.told.iter();
    told.extend(beside.map(|(name, said)| (name.clone(), said.as_str().into())));
    // What is made from simulated numbers is simulated.
    let inputs_simulated = job.inputs.iter().any(|input| input.simulated);
    Ok(Provenance {
        simulated: (measures && context.platform.simulated) || inputs_simulated,
        platform: context.platform.name.clone(),
        executor: context.executor(measures.then_some("")).name().to_owned(),
        doe_version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts,
        facts: told,
    })
}
