//! `doe jobs`: what runs now: steps and services, of a build that runs or of one that was killed.
//! Only looks: starts nothing, ends nothing, takes no lock.

use std::time::{Duration, SystemTime};

use clap::Args;
use doe_cache::Store;
use serde::Serialize;

use super::args::Global;
use super::driving::Holders;
use super::looking::Looking;
use super::out::Out;
use super::session;
use crate::engine::intent::{self, Home, Place};
use crate::error::{Error, Kind, Result};
use crate::exec::{Handle, Token};

/// Show what runs now, for which run, where and since when
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe jobs
  doe jobs --json

What a killed doe left goes on for a while (`survive` in doe.toml): the next `doe build` goes on
with it, `doe cancel --all` ends it.")]
pub struct JobsArgs {}

/// Something that runs.
#[derive(Debug, Serialize)]
pub struct Job {
    /// `step`, `service` or `monitor`.
    pub kind: &'static str,
    /// The pattern, of a step or a monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Name of the step or service.
    pub name: String,
    /// Host.
    pub host: String,
    /// Unix milliseconds.
    pub since_unix_ms: u64,
    /// The run that started it.
    pub run_id: String,
    /// The `doe` that runs it; none when that was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doe_pid: Option<u32>,
    /// Its process.
    pub handle: Handle,
}

/// Runs the command.
pub fn run(global: &Global, _args: &JobsArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let store = session::store(&workspace)?;
    let mut looking = Looking::new(&workspace)?;
    let mut holders = Holders::find(&workspace)?;
    let jobs = jobs(&mut looking, &holders, &store)?;
    let drivers = holders
        .driving()
        .map_or(Vec::new(), |driving| driving.seen());
    for blind in &looking.blind {
        out.note(format!("warning: {blind}"));
    }
    if let Some(error) = holders.unknown() {
        out.note(format!(
            "warning: whether jobs drive a build is not known: {error}"
        ));
    }
    if out.json {
        let values =
            (jobs.iter().map(serde_json::to_value)).chain(drivers.iter().map(serde_json::to_value));
        let values: Result<Vec<_>, _> = values.collect();
        let values =
            values.map_err(|e| Error::new(Kind::Bug, "json", "a job has no text").cause(e))?;
        out.json(&values)?;
        return Ok(0);
    }
    for driver in &drivers {
        let on = match driver.host.as_str() {
            "" => String::new(),
            host => format!(" on {host}"),
        };
        out.line(format!(
            "driver {}: job {}{on}, {}, for {}",
            driver.name,
            driver.job,
            driver.state,
            age(driver.since_unix_ms)
        ))?;
    }
    if jobs.is_empty() {
        if drivers.is_empty() {
            out.line("nothing runs")?;
        }
        return Ok(0);
    }
    let mut table = super::out::table(["what", "host", "pid", "for", "run", "doe"]);
    for job in &jobs {
        let what = match &job.label {
            Some(label) => format!("{label} {}", job.name),
            None => format!("service {}", job.name),
        };
        let doe = match job.doe_pid {
            Some(pid) => format!("pid {pid}"),
            None => "killed".into(),
        };
        let pid = job.handle.pid.to_string();
        table.add_row([
            &what,
            &job.host,
            &pid,
            &age(job.since_unix_ms),
            &job.run_id,
            &doe,
        ]);
    }
    out.line(table)?;
    if drivers.is_empty() && jobs.iter().any(|job| job.doe_pid.is_none()) {
        out.line(
            "a doe was killed: `doe build` goes on with what it left, `doe cancel --all` ends it",
        )?;
    }
    Ok(0)
}

fn age(since_unix_ms: u64) -> String {
    let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since_unix_ms);
    let age = since.elapsed().unwrap_or_default();
    humantime::format_duration(Duration::from_secs(age.as_secs())).to_string()
}

/// All that runs.
pub fn jobs(looking: &mut Looking<'_>, holders: &Holders, store: &Store) -> Result<Vec<Job>> {
    let mut jobs: Vec<Job> = Vec::new();
    for (run, open) in intent::open_runs(store)? {
        let mut look = |kind, name: &str, at: (&Place, &Home), token: &Token, since_unix_ms| {
            if jobs.iter().any(|known| known.handle.token == *token) {
                return Ok(None);
            }
            let handle = looking.running(store, &run, at, token)?;
            Ok::<_, Error>(handle.map(|handle| Job {
                kind,
                label: None,
                name: name.to_owned(),
                host: at.0.host.clone(),
                since_unix_ms,
                run_id: run.info.run_id.clone(),
                doe_pid: holders.has(&run.info).then_some(run.info.pid),
                handle,
            }))
        };
        let mut found = Vec::new();
        for service in &open.services {
            let (name, at) = (&service.name, (&service.place, &service.home));
            found.extend(look(
                "service",
                name,
                at,
                &service.token,
                service.at_unix_ms,
            )?);
        }
        for node in open.all_nodes() {
            for step in &node.steps {
                let (name, at) = (&step.name, (&step.place, &node.home));
                let job = look("step", name, at, &step.token, node.acquired_unix_ms)?;
                found.extend(job.map(|job| Job {
                    label: Some(node.label.clone()),
                    ..job
                }));
            }
            for monitor in &node.monitors {
                let (name, at) = (&monitor.name, (&monitor.place, &node.home));
                let job = look("monitor", name, at, &monitor.token, node.acquired_unix_ms)?;
                found.extend(job.map(|job| Job {
                    label: Some(node.label.clone()),
                    ..job
                }));
            }
        }
        jobs.extend(found);
    }
    Ok(jobs)
}
