//! Facts are read again when a node has run, while it still holds its hosts: when one that the
//! keys rest on has moved, nobody can say under what the node ran. Its record is kept and never
//! reused, and no node that was planned with the old facts begins on that host any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use super::ask::{limit, marked, plain, probe_of, read};
use super::parse::HostValues;
use crate::engine::context::{Context, now_unix_ms};
use crate::engine::job::Job;
use crate::error::{Error, Kind, Result};
use crate::exec::{HostSpec, trouble};
use crate::plan::model::{HostFacts, Platform};
use crate::rule::host::HostProbe;
use crate::rule::model::RuleKind;

/// The readings of a run, by host; each host is asked by one at a time.
pub(in crate::engine) type Readings = Mutex<BTreeMap<String, Arc<Mutex<Option<Probed>>>>>;

/// A reading of this run.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Probed {
    facts: Arc<HostFacts>,
    asked: Instant,
}

/// Code of the error of a node whose host is not what it was when it was planned: in the same run
/// it never will be.
pub(in crate::engine) const MOVED: &str = "facts-moved";

/// What the hosts of a node say when it has run.
#[derive(Debug, Default)]
pub(in crate::engine) struct After {
    /// Why nobody can say under what it ran, in one sentence.
    pub moved: Option<String>,
    /// By host: why it could not be asked.
    pub unread: BTreeMap<String, String>,
}

/// Makes sure that the node's hosts are what its keys say: read by this program, and not moved
/// since.
///
/// # Errors
/// They are not, or cannot be asked.
pub(in crate::engine) async fn before(context: &Context, job: &Job) -> Result<()> {
    let Some((probing, probe)) = probe_of(&context.platform) else {
        return Ok(());
    };
    for host in hosts(context, job)? {
        let known = probing.known.get(&host.name);
        let latest = slot(context, &host.name).await.lock().await.clone();
        let now = match (latest, known) {
            (Some(latest), _) => latest.facts,
            (None, Some(known)) if known.just_read => continue,
            (None, _) => ask_since(context, probe, &host, Instant::now()).await?,
        };
        if let Some((fact, was, is)) = moved(&context.platform, &host.name, &now.facts) {
            let host = &host.name;
            let text = format!(
                "fact `{fact}` of host `{host}` was {was} when this was planned and is {is} now"
            );
            return Err(Error::new(Kind::Infra, MOVED, text)
                .hint("build again: it is planned with what the host is now"));
        }
    }
    Ok(())
}

/// What has moved since the keys were made. A host that cannot be reached now says nothing, and
/// that is noted; one that is reached and cannot say what the keys rest on has moved.
pub(in crate::engine) async fn after(context: &Context, job: &Job) -> Result<After> {
    let mut after = After::default();
    let Some((probing, probe)) = probe_of(&context.platform) else {
        return Ok(after);
    };
    let ended = Instant::now();
    let hosts = hosts(context, job)?;
    let asked = hosts
        .iter()
        .map(|host| ask_since(context, probe, host, ended));
    let readings = futures_util::future::join_all(asked).await;
    let rests_on_it = !probing.fixed(&context.platform.facts).is_empty();
    for (HostSpec { name, .. }, now) in hosts.iter().zip(readings) {
        let said = match now {
            Ok(now) => moved(&context.platform, name, &now.facts).map(|(fact, was, is)| {
                format!("fact `{fact}` of host `{name}` changed from {was} to {is} while it ran")
            }),
            Err(error) => {
                after.unread.insert(name.clone(), error.to_string());
                let answers = trouble::of(&error).is_none();
                (answers && rests_on_it)
                    .then(|| format!("the facts of host `{name}` could not be read again: {error}"))
            }
        };
        after.moved = after.moved.or(said);
    }
    Ok(after)
}

/// What the probe read of a host last.
pub(in crate::engine) fn known(context: &Context, host: &str) -> Option<Arc<HostFacts>> {
    let (probing, _) = probe_of(&context.platform)?;
    probing.known.get(host).cloned()
}

fn hosts(context: &Context, job: &Job) -> Result<Vec<HostSpec>> {
    let mut hosts: Vec<HostSpec> = Vec::new();
    if job.rule.kind == RuleKind::Measure {
        for role in &job.roles {
            let host = context.host(Some(role))?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    Ok(hosts)
}

/// A reading that was asked for at this time or later. Those who wait together share one.
async fn ask_since(
    context: &Context,
    probe: &HostProbe,
    host: &HostSpec,
    since: Instant,
) -> Result<Arc<HostFacts>> {
    let slot = slot(context, &host.name).await;
    let mut probed = slot.lock().await;
    if let Some(known) = probed.as_ref().filter(|known| known.asked >= since) {
        return Ok(known.facts.clone());
    }
    let asked = Instant::now();
    let name = format!("probe-{}-{}", host.name, now_unix_ms());
    let below = std::path::Path::new("probe").join(&host.name);
    let work = context.work(&context.home, &below, true);
    let seconds = limit(probe).map(|limit| limit.as_secs_f64());
    let folders = (work.as_path(), work.as_path());
    let script = context.script(
        "probe".into(),
        &probe.script(),
        &probe.env,
        folders,
        seconds,
        true,
    );
    let executor = &*context.executor;
    let facts = read(executor, host, probe, &script, &context.token(&name)).await?;
    let facts = Arc::new(HostFacts {
        facts: marked(&context.platform, facts),
        read_unix_ms: now_unix_ms(),
        just_read: true,
    });
    let reading = Probed {
        facts: facts.clone(),
        asked,
    };
    *probed = Some(reading);
    Ok(facts)
}

async fn slot(context: &Context, host: &str) -> Arc<Mutex<Option<Probed>>> {
    let mut slots = context.probed.lock().await;
    slots.entry(host.to_owned()).or_default().clone()
}

/// The first fact that the keys rest on and that is not what they say, with both values.
fn moved(platform: &Platform, host: &str, now: &HostValues) -> Option<(String, String, String)> {
    let (probing, _) = probe_of(platform)?;
    let known = probing.known.get(host);
    let names = probing.fixed(&platform.facts).into_iter();
    let mut pairs = names.map(|name| {
        let was = known.and_then(|known| known.facts.get(name));
        (name, was, now.get(name))
    });
    let (name, was, is) = pairs.find(|(_, was, is)| was != is)?;
    let said = |value: Option<&doe_cache::Value>| match value {
        Some(value) => format!("`{}`", plain(value)),
        None => "not there".to_owned(),
    };
    Some((name.to_owned(), said(was), said(is)))
}
