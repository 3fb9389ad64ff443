//! `doe attach`: follows a running build from another terminal, or what the steps of a running
//! pattern write. Only looks: leaving it ends nothing.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use doe_cache::{RunInfo, Store};
use serde_json::json;

use super::args::Global;
use super::driving::Holders;
use super::jobs::{Job, jobs};
use super::looking::Looking;
use super::out::Out;
use super::session;
use crate::engine::event::{Body, Event, Sink};
use crate::engine::intent;
use crate::error::{Error, Kind, Result};
use crate::exec::Stream;
use crate::label::Label;
use crate::plan::model::Workspace;
use crate::report::jsonl::JsonLines;
use crate::report::plain::Plain;
use crate::report::style::Style;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Follow a running build, or what a running pattern writes
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe attach
  doe attach //phase2:p2-efa-4k-c1
  doe attach --json | jq 'select(.event == \"node-finished\")'

Ends with the build (exit code 0 when it went well, else 1) or with the pattern's steps. A build that
jobs of a cluster drive is followed from driver to driver. Ctrl-C leaves and ends nothing.")]
pub struct AttachArgs {
    /// The pattern whose steps to follow; without it, the build
    #[arg(value_name = "LABEL")]
    pub label: Option<Label>,
}

/// Runs the command.
pub fn run(global: &Global, args: &AttachArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    match &args.label {
        Some(label) => follow_steps(&workspace, &label.to_string(), out),
        None => follow_build(&workspace, out),
    }
}

fn follow_build(workspace: &Workspace, out: &mut Out) -> Result<u8> {
    let store = session::store(workspace)?;
    let mut holders = Holders::find(workspace)?;
    let mut sink: Box<dyn Sink> = if out.json {
        Box::new(JsonLines::new(std::io::stdout()))
    } else {
        Box::new(Plain::new(std::io::stdout(), Style { colour: out.color }))
    };
    let mut told = String::new();
    loop {
        let runs = intent::open_runs(&store)?;
        if let Some((run, _)) = runs.iter().find(|(run, _)| holders.has(&run.info)) {
            if let Some(code) = follow_run(workspace, &store, &mut holders, &run.info, &mut *sink)?
            {
                return Ok(code);
            }
            let Some(driving) = holders.driving().filter(|driving| driving.is_open()) else {
                let text = format!("the build (pid {}) ended without a word", run.info.pid);
                return Err(Error::new(Kind::Infra, "build-died", text)
                    .hint("`doe build` goes on with what it left, `doe jobs` shows it"));
            };
            out.note(format!(
                "the driver (pid {} on `{}`) is gone: {} goes on",
                run.info.pid,
                run.info.host,
                driving.in_words()?
            ));
        }
        if let Some(error) = holders.unknown() {
            return Err(error.clone());
        }
        let Some(driving) = holders.driving() else {
            return Err(no_build(
                runs.first().map(|(run, _)| run.info.run_id.as_str()),
            ));
        };
        // A build with nothing to do leaves no run.
        if let Some((code, log)) = driving.over()? {
            out.note(format!(
                "the build ended with exit code {code}: {}",
                log.display()
            ));
            return Ok(code);
        }
        if !driving.is_open() {
            return Err(no_build(
                runs.first().map(|(run, _)| run.info.run_id.as_str()),
            ));
        }
        let words = driving.in_words()?;
        if words != told {
            out.note(format!("waiting for the driver: {words}"));
            told = words;
        }
        std::thread::sleep(LOOK_EVERY * 5);
        holders.look(workspace)?;
    }
}

fn no_build(left: Option<&str>) -> Error {
    let error = Error::new(Kind::Usage, "no-build", "no build is running");
    match left {
        Some(run_id) => error.hint(format!(
            "the doe of run {run_id} was killed: `doe jobs` shows what goes on, `doe build` goes on with it",
        )),
        None => error.hint("`doe logs` shows what the last attempts wrote"),
    }
}

/// Tells what a run tells until it ends; no exit code when it died.
fn follow_run(
    workspace: &Workspace,
    store: &Store,
    holders: &mut Holders,
    run: &RunInfo,
    sink: &mut dyn Sink,
) -> Result<Option<u8>> {
    let path = store.layout().runs().join(&run.run_id).join("events.jsonl");
    let mut lines = Lines::open(&path)?;
    loop {
        // Whether it lives is asked first: what it wrote before it ended is seen.
        holders.look(workspace)?;
        let lives = holders.has(run);
        while let Some(line) = lines.next()? {
            let event: Event = serde_json::from_str(&line).map_err(|cause| {
                let text = format!("`{}` holds a line that is no event", path.display());
                Error::new(Kind::Integrity, "bad-event", text).cause(cause)
            })?;
            sink.event(&event);
            if let Body::Summary(summary) = &event.body {
                let code = if summary.is_good() { 0 } else { 1 };
                sink.flush();
                return match is_last(workspace, holders, run)? {
                    true => Ok(Some(code)),
                    false => Ok(None),
                };
            }
        }
        // Who reads along sees it now.
        sink.flush();
        if !lives {
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether a build is over with this run that has told its end. After a defect, or when the lock
/// or the cluster was not to be had, the next driver goes on.
fn is_last(workspace: &Workspace, holders: &mut Holders, run: &RunInfo) -> Result<bool> {
    loop {
        match holders.driving() {
            Some(driving) if driving.over()?.is_some() => return Ok(true),
            Some(driving) if driving.drives(run) => {}
            Some(driving) => return Ok(!driving.is_open()),
            None => return Ok(true),
        }
        std::thread::sleep(LOOK_EVERY);
        holders.look(workspace)?;
    }
}

/// Whole lines of a file that grows.
struct Lines {
    reader: BufReader<std::fs::File>,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, &e))?;
        Ok(Self {
            reader: BufReader::new(file),
        })
    }

    fn next(&mut self) -> Result<Option<String>> {
        let failed = |e| Error::io("read", Path::new("events.jsonl"), &e);
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).map_err(failed)?;
        if line.ends_with('\n') {
            return Ok(Some(line));
        }
        // Half a line: it is read again when it is whole.
        let back = -i64::try_from(read).unwrap_or(0);
        self.reader.seek_relative(back).map_err(failed)?;
        Ok(None)
    }
}

fn follow_steps(workspace: &Workspace, label: &str, out: &mut Out) -> Result<u8> {
    let store = session::store(workspace)?;
    let mut looking = Looking::new(workspace)?;
    let mut holders = Holders::find(workspace)?;
    let open = || -> Result<bool> {
        let runs = intent::open_runs(&store)?;
        Ok(runs
            .iter()
            .any(|(_, open)| open.nodes.iter().any(|node| node.label == label)))
    };
    let mut followed: Vec<Follow> = Vec::new();
    loop {
        // Asked first: the last words of what ends meanwhile are read.
        let goes_on = open()?;
        holders.look(workspace)?;
        for job in jobs(&mut looking, &holders, &store)? {
            if job.label.as_deref() == Some(label)
                && !followed
                    .iter()
                    .any(|follow| follow.job.handle == job.handle)
            {
                followed.push(Follow { job, at: [0; 2] });
            }
        }
        if followed.is_empty() && !goes_on {
            let error = Error::new(
                Kind::Usage,
                "nothing-runs",
                format!("nothing runs of {label}"),
            );
            return Err(error.hint(format!(
                "`doe jobs` shows what runs, `doe logs {label}` what its last attempt wrote"
            )));
        }
        for follow in &mut followed {
            follow.pass_on(&looking, out)?;
        }
        if !goes_on {
            return Ok(0);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

struct Follow {
    job: Job,
    at: [u64; 2],
}

impl Follow {
    /// Prints what was written since the last look.
    fn pass_on(&mut self, looking: &Looking<'_>, out: &mut Out) -> Result<()> {
        let streams = [("stdout", Stream::Stdout), ("stderr", Stream::Stderr)];
        for ((stream, which), at) in streams.into_iter().zip(&mut self.at) {
            // Gone once its record is stored: `doe logs` has it from then on.
            let bytes = looking.log(&self.job.handle, which, *at)?;
            if bytes.is_empty() {
                continue;
            }
            *at += bytes.len() as u64;
            let text = String::from_utf8_lossy(&bytes);
            if out.json {
                out.json(&json!({"step": self.job.name, "stream": stream, "text": text}))?;
            } else {
                let written = out.write_all(&bytes);
                written.map_err(|e| {
                    Error::new(Kind::Infra, "output", "could not write the log").cause(e)
                })?;
            }
            out.flush()?;
        }
        Ok(())
    }
}
