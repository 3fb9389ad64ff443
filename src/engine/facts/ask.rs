//! Asks hosts: the probe's script runs through the platform's executor like any other script, with
//! the environment that scripts have there, limited in time; nothing of it is left afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::file;
use super::key::when;
use super::parse::{HostValues, parse};
use crate::engine::context::{new_run_id, now_unix_ms, token_text};
use crate::engine::search_path::search_path;
use crate::error::{Error, Kind, Result};
use crate::exec::{Executor, Exit, HostSpec, Script, Site, Status, Stream, Token};
use crate::plan::model::{HostFacts, Platform, Probing};
use crate::rule::host::HostProbe;

/// Each log of a probe is cut to this many bytes.
const LOG_CAP_BYTES: u64 = 256 << 10;

/// What runs scripts on a platform's hosts, before there is a run.
pub struct Ground<'a> {
    /// Runs them.
    pub executor: &'a dyn Executor,
    /// Where things are on the hosts, when these are not this machine.
    pub site: Option<&'a Site>,
    /// Folders put first on the search path of this machine.
    pub path_prefix: &'a [PathBuf],
    /// Environment of scripts on this machine.
    pub env: &'a BTreeMap<String, String>,
    /// The `doe` program of this machine.
    pub doe: &'a std::path::Path,
    /// Folder of the store.
    pub state: &'a std::path::Path,
}

/// The platform with what its probe says of these hosts now, which is kept for others; `None` when
/// it has no probe.
///
/// # Errors
/// A host that cannot be asked, or whose answer is not what the probe declares.
pub async fn ask(
    ground: &Ground<'_>,
    platform: &Platform,
    hosts: &[HostSpec],
) -> Result<Option<Platform>> {
    let Some((probing, probe)) = probe_of(platform) else {
        return Ok(None);
    };
    let id = new_run_id();
    let asked = hosts.iter().map(|host| async {
        let script = script(ground, platform, probe, &host.name)?;
        let token = Token(token_text(&id, &format!("probe-{}", host.name)));
        let facts = read(ground.executor, host, probe, &script, &token).await?;
        let facts = marked(platform, facts);
        Ok::<_, Error>((host.name.clone(), facts, now_unix_ms()))
    });
    let answers = futures_util::future::try_join_all(asked).await?;
    let mut known = probing.known.clone();
    let mut news = Vec::new();
    for (host, facts, read_unix_ms) in answers {
        let new = HostFacts {
            facts,
            read_unix_ms,
            just_read: true,
        };
        if let Some(old) = known.get(&host) {
            news.extend(moved(&host, old, &new));
        }
        known.insert(host, Arc::new(new));
    }
    let mut platform = platform.clone();
    if let Some(probing) = &mut platform.probing {
        (probing.known, probing.news) = (known, news);
    }
    file::keep(ground.state, &platform)?;
    Ok(Some(platform))
}

/// Facts of a simulation say so.
pub(super) fn marked(platform: &Platform, mut facts: HostValues) -> HostValues {
    if platform.simulated {
        facts.insert("simulated".into(), true.into());
    }
    facts
}

/// The probe of a platform.
pub(super) fn probe_of(platform: &Platform) -> Option<(&Probing, &Arc<HostProbe>)> {
    let probing = platform.probing.as_ref()?;
    Some((probing, probing.probe.as_ref()?))
}

/// What a host says now that it did not say before, in words.
fn moved(host: &str, old: &HostFacts, new: &HostFacts) -> Vec<String> {
    let names = old.facts.keys().chain(new.facts.keys());
    let names: std::collections::BTreeSet<&String> = names.collect();
    let said = |facts: &HostFacts, name: &str| match facts.facts.get(name) {
        Some(value) => format!("`{}`", plain(value)),
        None => "not there".to_owned(),
    };
    let changed = names
        .into_iter()
        .filter(|name| old.facts.get(*name) != new.facts.get(*name));
    let told = changed.map(|name| {
        format!(
            "fact `{name}` of host `{host}` is {}; it was {} when it was read {}",
            said(new, name),
            said(old, name),
            when(old.read_unix_ms)
        )
    });
    told.collect()
}

/// A value without the quotes of a text.
pub(super) fn plain(value: &doe_cache::Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    }
}

fn script(
    ground: &Ground<'_>,
    platform: &Platform,
    probe: &HostProbe,
    host: &str,
) -> Result<Script> {
    let mut env;
    let work;
    match ground.site {
        Some(site) => {
            env = site.env.clone();
            work = site.root.join("work").join("probe");
        }
        None => {
            env = ground.env.clone();
            let folder = file::folder(ground.state);
            let path = search_path(&folder.join("bin"), ground.path_prefix, ground.doe)?;
            env.insert("PATH".into(), path);
            work = folder.join("work").join(host);
        }
    }
    env.insert("TMPDIR".into(), work.display().to_string());
    env.extend(platform.env.clone());
    env.extend(probe.env.clone());
    Ok(Script {
        name: "probe".into(),
        text: probe.script(),
        env,
        work,
        timeout: limit(probe),
        log_cap_bytes: LOG_CAP_BYTES,
        attached: false,
        ask: Default::default(),
    })
}

pub(super) fn limit(probe: &HostProbe) -> Option<Duration> {
    Duration::try_from_secs_f64(probe.timeout_s).ok()
}

/// Runs the script of a probe and reads what it printed.
pub(super) async fn read(
    executor: &dyn Executor,
    host: &HostSpec,
    probe: &HostProbe,
    script: &Script,
    token: &Token,
) -> Result<HostValues> {
    let failed = |why: String| {
        let text = format!("probe `{}` on host `{}` {why}", probe.id, host.name);
        Error::new(Kind::Infra, "probe-failed", text)
    };
    let handle = executor.start(host, script, token).await?;
    let status = executor.wait(&handle).await?;
    let stdout = executor.log(&handle, Stream::Stdout, 0).await?;
    let stderr = executor.log(&handle, Stream::Stderr, 0).await?;
    let stderr = String::from_utf8_lossy(&stderr);
    // What is left there is of no use; that it cannot be removed is no reason to stop.
    let _ = executor.discard(&handle).await;
    match &status {
        Status::Exited(exit) if exit.success() => {}
        Status::Exited(Exit {
            timed_out: true, ..
        }) => {
            let limit = crate::source::format_duration(probe.timeout_s);
            return Err(failed(format!("took longer than {limit}")));
        }
        other => {
            let error = failed(crate::engine::ready::describe(other));
            let said = stderr.lines().rev().find(|line| !line.trim().is_empty());
            return Err(match said {
                Some(said) => error.cause(said.trim()),
                None => error,
            });
        }
    }
    parse(
        probe,
        &host.name,
        &String::from_utf8_lossy(&stdout),
        &stderr,
    )
}
