//! `doe jobs`: what runs now: steps and services, of a build that runs or of one that was killed.
//! Only looks: starts nothing, ends nothing, takes no lock.

use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::Args;
use doe_cache::{Run, Store, lock_holder};
use serde::Serialize;

use super::args::Global;
use super::out::Out;
use super::session;
use crate::engine::intent::{self, Place};
use crate::error::{Error, Kind, Result};
use crate::exec::local::{LocalExecutor, LocalOptions};
use crate::exec::{Executor, Handle, Status, Token};
use crate::plan::model::Workspace;

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
    /// `step` or `service`.
    pub kind: &'static str,
    /// The pattern, of a step.
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
    let jobs = jobs(&workspace, &store)?;
    if out.json {
        out.json(&jobs)?;
        return Ok(0);
    }
    if jobs.is_empty() {
        out.line("nothing runs")?;
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
    if jobs.iter().any(|job| job.doe_pid.is_none()) {
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
pub fn jobs(workspace: &Workspace, store: &Store) -> Result<Vec<Job>> {
    let Some(executor) = looking(&workspace.state_dir)? else {
        return Ok(Vec::new());
    };
    let holder = lock_holder(&workspace.state_dir);
    let mut jobs: Vec<Job> = Vec::new();
    for (run, open) in intent::open_runs(store)? {
        let doe_pid = holder.filter(|pid| *pid == run.info.pid);
        let mut add = |job: Option<Job>| {
            let new = job.filter(|job| {
                !jobs
                    .iter()
                    .any(|known| known.handle.token == job.handle.token)
            });
            jobs.extend(new.map(|job| Job { doe_pid, ..job }));
        };
        for service in open.services {
            let found = job(&executor, &run, &service.place, &service.token)?;
            add(found.map(|job| Job {
                kind: "service",
                name: service.name,
                since_unix_ms: service.at_unix_ms,
                ..job
            }));
        }
        for node in open.nodes {
            for step in node.steps {
                let found = job(&executor, &run, &step.place, &step.token)?;
                add(found.map(|job| Job {
                    label: Some(node.label.clone()),
                    name: step.name,
                    since_unix_ms: node.acquired_unix_ms,
                    ..job
                }));
            }
        }
    }
    Ok(jobs)
}

fn job(executor: &LocalExecutor, run: &Run, place: &Place, token: &Token) -> Result<Option<Job>> {
    let handle = running(executor, place, token)?;
    Ok(handle.map(|handle| Job {
        kind: "step",
        label: None,
        name: String::new(),
        host: place.host.clone(),
        since_unix_ms: 0,
        run_id: run.info.run_id.clone(),
        doe_pid: None,
        handle,
    }))
}

fn running(executor: &LocalExecutor, place: &Place, token: &Token) -> Result<Option<Handle>> {
    let host = place.spec();
    futures_util::FutureExt::now_or_never(async {
        let Some(handle) = executor.find(&host, token).await? else {
            return Ok(None);
        };
        let runs = executor.poll(&handle).await? == Status::Running;
        Ok(runs.then_some(handle))
    })
    .unwrap_or_else(|| {
        let text = "a look at a local process had to wait";
        Err(Error::new(Kind::Bug, "waits", text))
    })
}

/// An executor that only looks; none where nothing was ever started.
pub fn looking(state_dir: &Path) -> Result<Option<LocalExecutor>> {
    let root = state_dir.join("exec");
    if !root.is_dir() {
        return Ok(None);
    }
    let doe = std::env::current_exe()
        .map_err(|e| Error::new(Kind::Infra, "io", "cannot tell where `doe` is").cause(e))?;
    let options = LocalOptions {
        keep_on_death: true,
        ..LocalOptions::new(doe)
    };
    LocalExecutor::new(root, options).map(Some)
}
