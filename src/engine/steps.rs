//! The steps of one node: one after another, members of a gang side by side. The node's steps
//! have succeeded only when every one has; the first failure, the death of a service in use or a
//! cancellation ends all that still run, and nothing of them is left when this returns.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use doe_cache::CpuTime;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::context::{Context, token_text};
pub(super) use super::failure::Failure;
use super::gangs::{has_its_turn, is_at_once, together};
use super::intent::Home;
use super::judge::Cause;
use super::ready::{Unready, describe, logs, telling_tail, wait_ready};
use super::resources::own_gpus;
use super::services::Instance;
use super::unended::Left;
use crate::error::Result;
use crate::exec::{Ask, Executor, Exit, Handle, HostSpec, Status, Token};
use crate::label::Label;
use crate::rule::action::{Action, StepAction};

/// Between the polite and the hard end of a step.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long after the failure of a step the end of a service is taken for its cause.
const HINDSIGHT: Duration = Duration::from_secs(3);

/// Tells the steps of a further replicate its number, for what is drawn.
const REPLICATE: &str = crate::measure::sim::REPLICATE;

/// A service that the node uses, and where its share of the service's logs begins.
#[derive(Debug, Clone)]
pub(super) struct Used {
    /// The service.
    pub instance: Arc<Instance>,
    /// Whether it was started for this node.
    pub started_for_this: bool,
    /// Offsets in its logs.
    pub log_from: [u64; 2],
}

/// What the steps left behind.
#[derive(Default)]
pub(super) struct Ran {
    /// Logs by name (`step-measure.stdout`), in order of steps.
    pub logs: Vec<(String, Vec<u8>)>,
    /// How they failed, if they did.
    pub failure: Option<Failure>,
    /// What they used of the processors of their hosts, by name.
    pub cpu: BTreeMap<String, CpuTime>,
    /// Their processes, all ended.
    pub(super) processes: Vec<(Arc<dyn Executor>, Handle)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Pending,
    Ready,
    Never,
}

struct Member<'s> {
    step: &'s StepAction,
    host: HostSpec,
    ask: Ask,
    readiness: watch::Sender<Readiness>,
    after: Vec<(String, watch::Receiver<Readiness>)>,
    /// Known when it has ended, where anybody saw it.
    cpu: OnceLock<CpuTime>,
}

/// Where the steps of a node run, and who may ask for their end.
pub(super) struct Site<'s> {
    /// The run that makes their tokens: this one, or a killed one that is gone on with.
    pub home: &'s Home,
    /// The node.
    pub label: &'s Label,
    /// Name of the node in tokens.
    pub name: &'s str,
    /// Which replicate the node is, from 1.
    pub replicate: u32,
    /// Working folder.
    pub work: &'s Path,
    /// Folder for temporary files.
    pub tmp: &'s Path,
    /// True once this node is to end.
    pub cancel: &'s watch::Receiver<bool>,
}

impl Site<'_> {
    /// The token of a step.
    pub(super) fn token(&self, step: &str) -> Token {
        token(&self.home.run_id, self.name, step)
    }

    /// The token of the execution.
    pub(super) fn execution(&self) -> Token {
        self.home.token(self.name)
    }

    async fn cancelled(&self, context: &Context) {
        let mut cancel = self.cancel.clone();
        tokio::select! {
            () = context.aborted() => {}
            () = is_true(&mut cancel) => {}
        }
    }
}

/// The token of a step of an attempt of this name.
pub(super) fn token(run_id: &str, name: &str, step: &str) -> Token {
    Token(token_text(run_id, &format!("{name}-step-{step}")))
}

/// Runs all steps; one that was begun before, by whomever, is gone on with.
pub(super) async fn run(
    context: &Context,
    site: &Site<'_>,
    action: &Action,
    used: &[Used],
) -> Result<Ran> {
    let mut ran = Ran::default();
    let mut rest = &action.steps[..];
    while let Some(first) = rest.first() {
        let together = match &first.gang {
            None => 1,
            Some(_) => rest
                .iter()
                .take_while(|step| step.gang == first.gang)
                .count(),
        };
        let (gang, after) = rest.split_at(together);
        rest = after;
        ran.failure = if context.is_aborted() || *site.cancel.borrow() {
            Some(Failure::cancelled())
        } else {
            run_gang(context, site, action, gang, used, &mut ran).await?
        };
        if ran.failure.is_some() {
            break;
        }
    }
    Ok(ran)
}

async fn run_gang(
    context: &Context,
    site: &Site<'_>,
    action: &Action,
    gang: &[StepAction],
    used: &[Used],
    ran: &mut Ran,
) -> Result<Option<Failure>> {
    let (stop, stopped) = watch::channel(false);
    let mut readiness: BTreeMap<&str, watch::Sender<Readiness>> = BTreeMap::new();
    for step in gang {
        readiness.insert(&step.name, watch::channel(Readiness::Pending).0);
    }
    let together = together(context, site, gang)?;
    let mut members = FuturesUnordered::new();
    for step in gang {
        let after = step.after.iter().filter_map(|other| {
            let sender = readiness.get(other.as_str())?;
            Some((other.clone(), sender.subscribe()))
        });
        let member = Member {
            step,
            host: context.host(step.role.as_deref())?,
            ask: Ask {
                gpus: step.role.as_ref().map_or(0, |role| own_gpus(action, role)),
                needed: None,
                together: together.clone().filter(|_| is_at_once(step)),
            },
            readiness: readiness[step.name.as_str()].clone(),
            after: after.collect(),
            cpu: OnceLock::new(),
        };
        let stopped = stopped.clone();
        members.push(async move {
            let (handle, end) = run_member(context, site, &member, stopped).await;
            if end.is_err() {
                member.readiness.send_if_modified(|now| {
                    let pending = *now == Readiness::Pending;
                    if pending {
                        *now = Readiness::Never;
                    }
                    pending
                });
            }
            (member.step, handle, end, member.cpu.get().copied())
        });
    }
    let mut failure: Option<Failure> = None;
    let mut logs_by_step: BTreeMap<&str, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    loop {
        tokio::select! {
            end = members.next() => {
                let Some((step, handle, end, cpu)) = end else { break };
                ran.cpu.extend(cpu.map(|cpu| (step.name.clone(), cpu)));
                let executor = context.executor(step.role.as_deref());
                let found = match &handle {
                    Some(handle) => logs(&**executor, handle, [0; 2]).await,
                    None => Vec::new(),
                };
                ran.processes.extend(handle.map(|handle| (executor.clone(), handle)));
                if let Err(mut why) = end && failure.is_none() {
                    why.tail = telling_tail(&found)
                        .map(|(stream, lines)| (format!("step-{}.{stream}", step.name), lines));
                    failure = Some(blame(context, used, why).await);
                    stop.send_replace(true);
                }
                let named = found.into_iter();
                let named = named.map(|(stream, log)| (format!("step-{}.{stream}", step.name), log));
                logs_by_step.insert(&step.name, named.collect());
            }
            dead = first_death(used), if failure.is_none() => {
                // Its last words may be older than this node.
                let found = dead.instance.failure(context, [0; 2]).await;
                failure = Some(match found {
                    Some(found) => Failure::of_service(&found),
                    None => Failure::plain(
                        format!("service `{}` ended", dead.instance.def.name),
                        Cause::Service,
                    ),
                });
                stop.send_replace(true);
            }
            () = site.cancelled(context), if failure.is_none() => {
                failure = Some(Failure::cancelled());
                stop.send_replace(true);
            }
        }
    }
    for step in gang {
        ran.logs
            .extend(logs_by_step.remove(step.name.as_str()).unwrap_or_default());
    }
    Ok(failure)
}

/// When a step fails because a service it talks to is gone, the service is to blame. Its end is
/// seen a moment after the step's own, so it is given that moment.
async fn blame(context: &Context, used: &[Used], why: Failure) -> Failure {
    if used.is_empty() || matches!(why.cause, Cause::Timeout) || why.cancelled {
        return why;
    }
    let until = tokio::time::Instant::now() + HINDSIGHT;
    loop {
        for service in used {
            if let Some(found) = service.instance.failure(context, [0; 2]).await {
                return Failure::of_service(&found);
            }
        }
        if tokio::time::Instant::now() >= until {
            return why;
        }
        tokio::time::sleep(HINDSIGHT / 20).await;
    }
}

/// Resolves when one of the services has ended; never when there is none.
async fn first_death(used: &[Used]) -> &Used {
    let mut deaths: FuturesUnordered<_> = used
        .iter()
        .map(|service| async move {
            let mut ended = service.instance.ended.clone();
            // When nobody watches any more nobody will tell either.
            if ended.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
            service
        })
        .collect();
    match deaths.next().await {
        Some(dead) => dead,
        None => std::future::pending().await,
    }
}

async fn run_member(
    context: &Context,
    site: &Site<'_>,
    member: &Member<'_>,
    mut stopped: watch::Receiver<bool>,
) -> (Option<Handle>, Result<(), Failure>) {
    let step = member.step;
    let executor = &**context.executor(step.role.as_deref());
    let token = site.token(&step.name);
    // What has no role is beside `doe` and ends with it.
    let left = |token: &Token| match step.role {
        Some(_) => vec![Left::of(context, &member.host, token)],
        None => Vec::new(),
    };
    let begun = match has_begun(context, site, executor, member, &token).await {
        Ok(begun) => begun,
        Err(failure) => return (None, Err(failure)),
    };
    if begun {
        // A gang that is gone on with had begun as a whole: whatever one waited for was there,
        // though it may be over by now.
        member.readiness.send_replace(Readiness::Ready);
    }
    for (other, readiness) in member.after.iter().filter(|_| !begun) {
        let mut readiness = readiness.clone();
        tokio::select! {
            seen = readiness.wait_for(|now| *now != Readiness::Pending) => {
                if seen.is_ok_and(|now| *now == Readiness::Never) {
                    let reason = format!("step `{}` waits for `{other}`, which never was ready", step.name);
                    return (None, Err(Failure::plain(reason, Cause::Program)));
                }
            }
            () = is_true(&mut stopped) => return (None, Err(Failure::cancelled())),
        }
    }
    let mut script = context.script(
        format!("step-{}", step.name),
        &step.script,
        &step.env,
        (site.work, site.tmp),
        Some(step.timeout_s),
        step.role.is_some(),
    );
    if site.replicate > 1 {
        let number = site.replicate.to_string();
        script.env.insert(REPLICATE.to_owned(), number);
    }
    // What stands beside `doe` itself reads stored results and nothing else.
    script.attached = step.role.is_none();
    script.ask = member.ask.clone();
    if step.role.is_some()
        && !begun
        && let Err(error) = context.secrets.give(&mut script)
    {
        let failure = Failure::plain(error.to_string(), Cause::of_work(&error));
        return (None, Err(failure));
    }
    // Not to be dropped half-way: what was started must be known.
    let handle = match executor.start(&member.host, &script, &token).await {
        Ok(handle) => handle,
        Err(error) => {
            // Where no answer came it may run.
            if Cause::of(&error).is_some()
                && let Err(error) = executor.revoke(&member.host, &token, GRACE).await
            {
                let what = format!("step `{}` on host `{}`", step.name, member.host.name);
                let execution = site.execution();
                let left = left(&token);
                context
                    .unended
                    .of_node(&execution, site.label, &what, left, &error);
            }
            let reason = format!("step `{}` could not be started: {error}", step.name);
            return (None, Err(Failure::plain(reason, Cause::of_work(&error))));
        }
    };
    let waits = handle.pid == 0;
    if step.ready.is_none() && !waits {
        member.readiness.send_replace(Readiness::Ready);
    }
    let getting_ready = async {
        if waits {
            has_its_turn(executor, &handle).await;
            if step.ready.is_none() {
                member.readiness.send_replace(Readiness::Ready);
            }
        }
        if let Some(ready) = step.ready.as_ref().filter(|_| !begun) {
            let waited = wait_ready(context, executor, &member.host, &handle, ready).await;
            match waited {
                Ok(()) => {}
                // The end itself says more than that it came too early.
                Err(Unready::Ended(_) | Unready::Cancelled) => std::future::pending().await,
                Err(unready) => return unready,
            }
            member.readiness.send_replace(Readiness::Ready);
        }
        std::future::pending().await
    };
    let end = tokio::select! {
        status = executor.wait(&handle) => match status {
            Ok(status) => {
                if let Status::Exited(Exit { cpu: Some(cpu), .. }) = &status {
                    member.cpu.get_or_init(|| *cpu);
                }
                outcome(step, &status)
            }
            Err(error) => {
                let reason = format!("step `{}` could not be watched: {error}", step.name);
                Err(Failure::plain(reason, Cause::of(&error).unwrap_or(Cause::Lost)))
            }
        },
        unready = getting_ready => {
            let reason = format!("step `{}` {unready}", step.name);
            let cause = match &unready {
                Unready::Late(_) => Cause::Timeout,
                Unready::Error(error) => Cause::of(error).unwrap_or(Cause::Program),
                _ => Cause::Program,
            };
            Err(Failure::plain(reason, cause))
        }
        () = is_true(&mut stopped) => Err(Failure::cancelled()),
    };
    // Whatever is left of it; cancelling what has ended is fine.
    if end.is_err()
        && let Err(error) = executor.cancel(&handle, GRACE).await
    {
        let what = format!("step `{}` on host `{}`", step.name, handle.host);
        let execution = site.execution();
        let left = left(&token);
        context
            .unended
            .of_node(&execution, site.label, &what, left, &error);
        let reason = format!("step `{}` could not be cancelled: {error}", step.name);
        let cause = Cause::of(&error).unwrap_or(Cause::Lost);
        return (Some(handle), Err(Failure::plain(reason, cause)));
    }
    if end.is_ok() && *member.readiness.borrow() == Readiness::Pending {
        // It ended well before its sign was seen, for which whoever waits waits in vain; one that
        // gives none was there.
        member.readiness.send_replace(match step.ready {
            Some(_) => Readiness::Never,
            None => Readiness::Ready,
        });
    }
    (Some(handle), end)
}

/// Whether a killed run had begun it.
async fn has_begun(
    context: &Context,
    site: &Site<'_>,
    executor: &dyn Executor,
    member: &Member<'_>,
    token: &Token,
) -> Result<bool, Failure> {
    let own = site.home.run_id == context.home.run_id;
    if own || (member.after.is_empty() && member.step.ready.is_none()) {
        return Ok(false);
    }
    match executor.find(&member.host, token).await {
        // What waits in a queue has begun nothing yet.
        Ok(found) => Ok(found.is_some_and(|handle| handle.pid > 0)),
        Err(error) => {
            let name = &member.step.name;
            let reason = format!("step `{name}` could not be looked for: {error}");
            Err(Failure::plain(reason, Cause::of_work(&error)))
        }
    }
}

async fn is_true(stopped: &mut watch::Receiver<bool>) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn outcome(step: &StepAction, status: &Status) -> Result<(), Failure> {
    let reason = || format!("step `{}` {}", step.name, describe(status));
    match status {
        Status::Exited(exit) if exit.success() => Ok(()),
        Status::Exited(Exit {
            timed_out: true, ..
        }) => {
            let limit = super::ready::human_s(step.timeout_s);
            let reason = format!("step `{}` took longer than {limit}", step.name);
            Err(Failure::plain(reason, Cause::Timeout))
        }
        Status::Exited(exit) => {
            let cause = match (exit.signal, exit.code) {
                (Some(signal), _) => Cause::Signal(signal),
                (None, code) => Cause::Exit(code.unwrap_or(-1)),
            };
            Err(Failure {
                exit_code: exit.code,
                ..Failure::plain(reason(), cause)
            })
        }
        Status::Lost { .. } | Status::Running => Err(Failure::plain(reason(), Cause::Lost)),
    }
}
