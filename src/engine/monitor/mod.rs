//! Monitors: commands that run beside a node on its hosts. Each is up before the node's steps
//! begin and gone when they have ended, whatever way that was; its token is announced with the
//! node's, so what a killed `doe` leaves of it is found like everything else. A monitor never makes
//! a node fail: what is wrong with one is told and stands in the record.

mod cut;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use doe_cache::{Class, Manifest, Value};

use super::context::{Context, now_unix_ms};
use super::intent::{Place, StepIntent};
use super::job::Job;
use super::steps::{Ran, Site};
use super::unended::Left;
use crate::error::Result;
use crate::exec::{CLOCK_AHEAD, Executor, Handle, HostSpec, Status, Stream};
use crate::plan::model::{Monitor, Platform, SampleTime};
use crate::rule::action::StepAction;
use crate::rule::model::{Rule, RuleKind};
use crate::rule::shell;
use crate::source::Text;

pub use cut::SCHEMA;
use cut::{Samples, Window};

/// Name of the hidden command that stamps lines.
pub const STAMP_COMMAND: &str = "__stamp";

/// What a monitor's script prints when its command ends by itself; its exit code follows.
const ENDED: &str = "--- doe: the monitor ended with exit code ";

/// How long the first sample is waited for before the steps begin.
const FIRST_SAMPLE: Duration = Duration::from_secs(5);
/// Between the polite and the hard end.
const GRACE: Duration = Duration::from_secs(2);
/// A monitor that nobody stops ends so long after the limits of all steps.
const SPARE_S: f64 = 600.0;

/// Which monitors a record was made with. Only those in keys decide anything.
pub(super) fn entries(manifest: &mut Manifest, rule: &Rule, platform: &Platform) {
    for monitor in of_rule(platform, rule) {
        let Monitor {
            name,
            run,
            roles,
            rules: _, // this one is among them
            time,
            during,
            output,
            in_key,
            site: _,
        } = monitor;
        let class = match in_key {
            true => Class::Result,
            false => Class::Scheduling,
        };
        let list = |words: &[Text]| {
            let words = words.iter().map(|word| Value::from(word.text.as_str()));
            Value::List(words.collect())
        };
        let at = |what: &str| format!("monitor.{name}.{what}");
        manifest.set(at("run"), run.as_str(), class);
        manifest.set(at("roles"), list(roles), class);
        if let SampleTime::Column(column) = time {
            manifest.set(at("time_column"), column.as_str(), class);
        }
        if let Some(during) = during {
            manifest.set(at("during"), during.text.as_str(), class);
        }
        manifest.set(at("output"), *output, class);
    }
}

/// The monitors of a platform that watch a rule.
pub fn of_rule<'p>(platform: &'p Platform, rule: &'p Rule) -> impl Iterator<Item = &'p Monitor> {
    let measures = rule.kind == RuleKind::Measure;
    let all = platform.monitors.iter().filter(move |_| measures);
    all.filter(|monitor| monitor.watches(&rule.id.0))
}

/// A monitor on a host.
pub(super) struct Attached<'c> {
    monitor: &'c Monitor,
    host: HostSpec,
    intent: StepIntent,
    handle: Option<Handle>,
    problem: Option<String>,
}

/// What came of the monitors of a node.
#[derive(Default)]
pub(super) struct Kept {
    /// By monitor: whether it is an output, and its document.
    pub(super) documents: Vec<(String, bool, Vec<u8>)>,
    /// By monitor and host, in words, for the record.
    pub(super) told: BTreeMap<String, String>,
    /// What is wrong, in words.
    pub(super) problems: Vec<String>,
    /// Their processes, all ended.
    pub(super) processes: Vec<(Arc<dyn Executor>, Handle)>,
}

/// The monitors that belong to a node, none of them started.
pub(super) fn planned<'c>(
    context: &'c Context,
    job: &'c Job,
    site: &Site<'_>,
) -> Result<Vec<Attached<'c>>> {
    let mut planned: Vec<Attached<'c>> = Vec::new();
    for monitor in of_rule(&context.platform, &job.rule) {
        let wanted = |role: &&String| monitor.watches_role(role);
        for role in job.roles.iter().filter(wanted) {
            let host = context.host(Some(role))?;
            let same = |known: &Attached<'_>| {
                known.monitor.name == monitor.name && known.host.name == host.name
            };
            if planned.iter().any(same) {
                continue;
            }
            // No step has such a name.
            let what = format!("monitor@{}@{}", monitor.name, host.name);
            planned.push(Attached {
                monitor,
                intent: StepIntent {
                    name: monitor.name.clone(),
                    token: site.token(&what),
                    gang: None,
                    place: Place {
                        role: Some(role.clone()),
                        host: host.name.clone(),
                        address: host.address.clone(),
                    },
                },
                host,
                handle: None,
                problem: None,
            });
        }
    }
    Ok(planned)
}

/// What is announced of them.
pub(super) fn intents(planned: &[Attached<'_>]) -> Vec<StepIntent> {
    planned.iter().map(|one| one.intent.clone()).collect()
}

/// Starts them all and waits for the first sample of each, not for long. Those that a killed run
/// had started are gone on with.
pub(super) async fn start(
    context: &Context,
    job: &Job,
    site: &Site<'_>,
    steps: &[StepAction],
    planned: &mut [Attached<'_>],
) {
    let limit_s = SPARE_S + steps.iter().map(|step| step.timeout_s).sum::<f64>();
    let starting = planned.iter_mut().map(|one| async move {
        let executor = &*context.executor;
        let begun = match job.resumed.is_some() {
            true => executor.find(&one.host, &one.intent.token).await,
            false => {
                let script = script(context, site, one, limit_s);
                let handle = executor.start(&one.host, &script, &one.intent.token).await;
                handle.map(Some)
            }
        };
        match begun {
            Ok(Some(handle)) => {
                if job.resumed.is_none() {
                    first_sample(executor, &handle).await;
                }
                one.handle = Some(handle);
            }
            Ok(None) => one.problem = Some("a killed run had not started it".into()),
            Err(error) => one.problem = Some(format!("could not be started: {error}")),
        }
    });
    futures_util::future::join_all(starting).await;
}

fn script(
    context: &Context,
    site: &Site<'_>,
    one: &Attached<'_>,
    limit_s: f64,
) -> crate::exec::Script {
    let run = shell::quote(&one.monitor.run);
    let doe = context.doe(true);
    let text = format!(
        "{{ if /bin/sh -eu -c {run}; then doe_ended=0; else doe_ended=$?; fi; printf '\\n%s%s\\n' '{ENDED}' $doe_ended; }} \
         | {} {STAMP_COMMAND}\n",
        shell::quote(&doe)
    );
    let name = format!("monitor-{}", one.monitor.name);
    let work = site.work.join(&name);
    if context.site(true).is_none() {
        // Where it cannot be made, the start will say so.
        let _ = std::fs::create_dir_all(&work);
    }
    let env = BTreeMap::new();
    context.script(name, &text, &env, (&work, site.tmp), Some(limit_s), true)
}

async fn first_sample(executor: &dyn Executor, handle: &Handle) {
    let until = tokio::time::Instant::now() + FIRST_SAMPLE;
    let mut pause = Duration::from_millis(20);
    while tokio::time::Instant::now() < until {
        let log = executor.log(handle, Stream::Stdout, 0).await;
        let runs = executor
            .poll(handle)
            .await
            .is_ok_and(|s| s == Status::Running);
        if !runs || log.is_ok_and(|log| !log.is_empty()) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Ends them, and cuts what they said to the measurement.
pub(super) async fn stop(
    context: &Context,
    site: &Site<'_>,
    before: &super::moved::Before,
    ran: &Ran,
    attached: Vec<Attached<'_>>,
) -> Kept {
    let mut kept = Kept::default();
    if attached.is_empty() {
        return kept;
    }
    let executor = &context.executor;
    // How far a host's clock is ahead of ours.
    let ahead = |host: &str| -> i64 {
        let said = before.get(host).and_then(|facts| facts.get(CLOCK_AHEAD));
        said.and_then(|ms| ms.parse().ok()).unwrap_or(0)
    };
    let ending = attached.iter().map(|one| async {
        let Some(handle) = &one.handle else {
            // Where no answer came it may run all the same.
            let revoked = executor.revoke(&one.host, &one.intent.token, GRACE).await;
            return (String::new(), String::new(), revoked.err());
        };
        let cancelled = executor.cancel(handle, GRACE).await;
        let text =
            |log: Result<Vec<u8>>| String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
        let stdout = text(executor.log(handle, Stream::Stdout, 0).await);
        let stderr = text(executor.log(handle, Stream::Stderr, 0).await);
        (stdout, stderr, cancelled.err())
    });
    let said = futures_util::future::join_all(ending).await;
    let mut documents: BTreeMap<&str, ByHost<'_>> = BTreeMap::new();
    for (one, (stdout, stderr, trouble)) in attached.iter().zip(said) {
        let host = &one.host.name;
        if let Some(error) = &trouble {
            let what = format!("monitor `{}` on host `{host}`", one.monitor.name);
            let execution = site.execution();
            let left = vec![Left::of(context, &one.host, &one.intent.token)];
            context
                .unended
                .of_node(&execution, site.label, &what, left, error);
        }
        let during = one.monitor.during.as_ref();
        let window = window(site, ran, during.map(|step| step.text.as_str()), &ahead).await;
        let mut samples = cut::cut(&one.monitor.time, window, ahead(host), &stdout);
        samples.problem = match (&one.problem, trouble) {
            (Some(problem), _) => Some(problem.clone()),
            (None, Some(error)) => Some(format!("could not be ended: {error}")),
            (None, None) => samples.problem.map(|problem| {
                let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
                last.map_or(problem.clone(), |last| {
                    format!("{problem}: {}", last.trim())
                })
            }),
        };
        let name = &one.monitor.name;
        let told = match &samples.problem {
            Some(problem) => problem.clone(),
            None => format!("{} samples", samples.samples.len()),
        };
        if let Some(problem) = &samples.problem {
            kept.problems
                .push(format!("monitor `{name}` on host `{host}` {problem}"));
        }
        kept.told.insert(format!("monitor.{name}.{host}"), told);
        let document = documents.entry(name);
        let (_, _, hosts) = document.or_insert_with(|| (one.monitor, window, Vec::new()));
        hosts.push((host.clone(), samples));
        let handle = one.handle.clone();
        kept.processes
            .extend(handle.map(|handle| (executor.clone(), handle)));
    }
    for (name, (monitor, window, hosts)) in documents {
        let document = cut::document(monitor, context.platform.simulated, window, &hosts);
        kept.documents
            .push((name.to_owned(), monitor.output, document));
    }
    kept
}

/// A monitor, when the measurement was, and what it said on each host.
type ByHost<'m> = (&'m Monitor, Window, Vec<(String, Samples)>);

/// When the measurement was, by our clock: from the begin of the first step to the end of the last.
async fn window(
    site: &Site<'_>,
    ran: &Ran,
    during: Option<&str>,
    ahead: &(dyn Fn(&str) -> i64 + Sync),
) -> Window {
    let token = during.map(|step| site.token(step));
    let named = |(_, handle): &&(Arc<dyn Executor>, Handle)| Some(&handle.token) == token.as_ref();
    let only = ran.processes.iter().any(|process| named(&process));
    let mut window: Option<Window> = None;
    for (executor, handle) in ran.processes.iter().filter(|p| !only || named(p)) {
        let Ok(Status::Exited(exit)) = executor.poll(handle).await else {
            continue;
        };
        let ahead = match executor.tells_our_time() {
            true => 0,
            false => ahead(&handle.host),
        };
        let ours = |unix_ms: u64| unix_ms.saturating_add_signed(-ahead);
        let (from, to) = (ours(exit.started_unix_ms), ours(exit.ended_unix_ms));
        let known = window.get_or_insert(Window { from, to });
        known.from = known.from.min(from);
        known.to = known.to.max(to);
    }
    // Without the record of any step there is no measurement.
    let now = now_unix_ms();
    window.unwrap_or(Window { from: now, to: now })
}
