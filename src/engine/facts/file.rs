//! What was read of hosts, on disk: one file a platform, with when, by which probe and in which
//! surroundings it was read. A reading that was made by another probe, of another machine, or with
//! other tools than the platform has now is none; an older one than the platform allows is one
//! that only a look goes by, never a decision to run nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe_cache::{Digest, KeyEncoder, Value};
use serde::{Deserialize, Serialize};

use super::ask::probe_of;
use crate::engine::context::now_unix_ms;
use crate::error::{Error, Kind, Result};
use crate::plan::model::{Host, HostFacts, Platform, Probing};

const SCHEMA: u32 = 1;

/// The document.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    schema: u32,
    platform: String,
    executor: String,
    probe: String,
    /// Everything that decides what a reading means beside the host.
    meaning: String,
    simulated: bool,
    max_age_ms: u64,
    doe_version: String,
    hosts: BTreeMap<String, HostEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HostEntry {
    /// Which machine it was.
    machine: String,
    read_unix_ms: u64,
    facts: BTreeMap<String, Value>,
}

/// Folder of the readings.
pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("facts")
}

fn path(state: &Path, platform: &str) -> PathBuf {
    // Names of platforms may hold anything.
    let plain = platform
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let name = match plain && !platform.is_empty() && platform.len() <= 100 {
        true => platform.to_owned(),
        false => format!("_{}", Digest::of(platform).short()),
    };
    folder(state).join(format!("{name}.json"))
}

/// What decides what the probe would print, the host apart.
fn meaning(platform: &Platform, probe: Digest) -> String {
    let map = |values: &BTreeMap<String, Value>| Value::Map(values.clone());
    let list = |words: &[String]| {
        let words = words.iter().map(|word| Value::from(word.as_str()));
        Value::List(words.collect())
    };
    let env = platform.env.iter();
    let env = env.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
    let mut key = KeyEncoder::new("doe.facts", SCHEMA);
    key.entry("env", &Value::Map(env.collect()));
    key.entry(
        "path",
        &list(
            &[
                &platform.ssh.path[..],
                &platform.ssm.path[..],
                &platform.slurm.path[..],
            ]
            .concat(),
        ),
    );
    key.entry("probe", &Value::from(probe));
    key.entry("sim", &map(&platform.sim));
    key.entry("simulated", &Value::Bool(platform.simulated));
    key.finish().hex()
}

/// Which machine a host is, as far as `doe.toml` says.
fn machine(platform: &Platform, host: &Host) -> String {
    let Host {
        name: _,
        address,
        gpus: _,
        ssh,
        instance,
    } = host;
    let here = match platform.executor.as_str() {
        "local" => doe_cache::host(),
        _ => String::new(),
    };
    let table = &platform.ssh;
    let words = [
        Some(&platform.executor),
        Some(address),
        Some(&here),
        ssh.as_ref(),
        instance.as_ref(),
        table.config.as_ref(),
        table.jump.as_ref(),
        platform.ssm.region.as_ref(),
        platform.ssm.tag.as_ref(),
        platform.slurm.config.as_ref(),
    ];
    Digest::of(format!("{words:?} {:?}", table.port)).hex()
}

/// Gives a platform what was read of its hosts, as far as it still means the same.
pub fn recall(state: &Path, platform: &mut Platform) {
    let Some((_, probe)) = probe_of(platform) else {
        return;
    };
    let Some(file) = read(&path(state, &platform.name)) else {
        return;
    };
    if file.meaning != meaning(platform, probe.digest()) {
        return;
    }
    let mut known = BTreeMap::new();
    for (name, entry) in file.hosts {
        let same = |host: &Host| machine(platform, host) == entry.machine;
        if platform.hosts.get(&name).is_some_and(same) {
            let facts = HostFacts {
                facts: entry.facts,
                read_unix_ms: entry.read_unix_ms,
                just_read: false,
            };
            known.insert(name, Arc::new(facts));
        }
    }
    if let Some(probing) = &mut platform.probing {
        // A reading stands for as long as was said when it was made, or shorter.
        let then = std::time::Duration::from_millis(file.max_age_ms);
        probing.known = match then == probing.max_age {
            true => known,
            false => aged(known),
        };
    }
}

/// Readings that nothing is decided by any more.
fn aged(known: BTreeMap<String, Arc<HostFacts>>) -> BTreeMap<String, Arc<HostFacts>> {
    let old = known.into_iter().map(|(host, facts)| {
        let facts = HostFacts {
            read_unix_ms: 0,
            ..(*facts).clone()
        };
        (host, Arc::new(facts))
    });
    old.collect()
}

fn read(path: &Path) -> Option<File> {
    let file: File = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (file.schema == SCHEMA).then_some(file)
}

/// Keeps what is known of a platform's hosts.
pub(in crate::engine) fn keep(state: &Path, platform: &Platform) -> Result<()> {
    let Some((probing, probe)) = probe_of(platform) else {
        return Ok(());
    };
    let hosts = probing.known.iter().filter_map(|(name, facts)| {
        let entry = HostEntry {
            machine: machine(platform, platform.hosts.get(name)?),
            read_unix_ms: facts.read_unix_ms,
            facts: facts.facts.clone(),
        };
        Some((name.clone(), entry))
    });
    let file = File {
        schema: SCHEMA,
        platform: platform.name.clone(),
        executor: platform.executor.clone(),
        probe: probe.id.to_string(),
        meaning: meaning(platform, probe.digest()),
        simulated: platform.simulated,
        max_age_ms: u64::try_from(probing.max_age.as_millis()).unwrap_or(u64::MAX),
        doe_version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts: hosts.collect(),
    };
    let text = serde_json::to_vec_pretty(&file)
        .map_err(|e| Error::new(Kind::Bug, "facts", "facts cannot be written").cause(e))?;
    let path = path(state, &platform.name);
    std::fs::create_dir_all(folder(state)).map_err(|e| Error::io("make", &path, &e))?;
    let new = path.with_extension(format!("part-{}", std::process::id()));
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
    written.map_err(|e| Error::io("write", &path, &e))
}

/// Removes what was read of a platform that is not probed any more.
pub fn forget(state: &Path, platform: &Platform) {
    if probe_of(platform).is_none() {
        // Most often there is none.
        let _ = std::fs::remove_file(path(state, &platform.name));
    }
}

/// What an answer that was given before depends on: what is known of a platform's hosts. One that
/// is older than the platform allows is never what it was.
pub(in crate::engine) fn standing(state: &Path, platform: &str) -> String {
    let Some(file) = read(&path(state, platform)) else {
        return "none".into();
    };
    let now = now_unix_ms();
    let fresh = |entry: &HostEntry| is_within(entry.read_unix_ms, file.max_age_ms, now);
    if !file.hosts.values().all(fresh) {
        static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let look = LOOKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return format!("too old at {now}, {} {look}", std::process::id());
    }
    let mut key = KeyEncoder::new("doe.facts.standing", SCHEMA);
    let hosts = file.hosts.into_iter().map(|(name, entry)| {
        let machine = Value::from(entry.machine);
        (name, Value::List(vec![machine, Value::Map(entry.facts)]))
    });
    key.entry("hosts", &Value::Map(hosts.collect()));
    key.text("meaning", &file.meaning);
    key.finish().hex()
}

fn is_within(read_unix_ms: u64, max_age_ms: u64, now_unix_ms: u64) -> bool {
    // A reading of the future is one by another clock.
    now_unix_ms
        .checked_sub(read_unix_ms)
        .is_some_and(|age_ms| age_ms < max_age_ms)
}

/// Whether what is known of a host may decide that nothing is to run.
pub fn is_fresh(probing: &Probing, host: &str) -> bool {
    let max_age_ms = u64::try_from(probing.max_age.as_millis()).unwrap_or(u64::MAX);
    let known = probing.known.get(host);
    known.is_some_and(|facts| {
        facts.just_read || is_within(facts.read_unix_ms, max_age_ms, now_unix_ms())
    })
}
