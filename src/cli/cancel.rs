//! `doe cancel`: ends a running pattern, or everything. A running build is asked to do it, so that
//! its account stays true; what a killed one left is ended here.

use std::time::Duration;

use clap::Args;
use doe_cache::{Store, WriterLock};
use serde_json::json;

use super::args::Global;
use super::driving::Holders;
use super::fleet::{self, Reached};
use super::out::Out;
use super::{looking, session};
use crate::engine::{intent, remains, request};
use crate::error::{Error, Kind, Result};
use crate::label::Label;
use crate::plan::model::{Platform, Workspace};

/// How long the running build may take to answer: it looks a few times a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Cancel a running pattern, or everything
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cancel //phase2:p2-efa-4k-c1
  doe cancel --all

A running build does it itself: the pattern ends as cancelled and the rest goes on; --all is like
the second Ctrl-C, and takes the jobs of --detach that would go on out of the queue. Where a doe was
killed, what it left is ended.")]
pub struct CancelArgs {
    /// The pattern
    #[arg(
        value_name = "LABEL",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub label: Option<Label>,
    /// Everything that runs, services included
    #[arg(long)]
    pub all: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &CancelArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let label = args.label.as_ref().map(Label::to_string);
    let mut holders = Holders::find(&workspace)?;
    let mut ended = Vec::new();
    let store = session::store(&workspace)?;
    let runs = intent::open_runs(&store)?;
    let run = runs.into_iter().find(|(run, _)| holders.has(&run.info));
    let mut name = None;
    if let (true, Some(driving)) = (args.all, holders.driving()) {
        // First who would go on with what ends now. One that has begun no run waits for the lock,
        // or does not hear.
        let drives = run
            .as_ref()
            .is_some_and(|(run, _)| driving.drives(&run.info));
        ended = driving.end(!drives)?;
        name = Some(driving.platform().to_owned());
    }
    if let (true, Some(error)) = (args.all, holders.unknown()) {
        out.note(format!(
            "warning: jobs that would go on were not ended: {error}"
        ));
    }
    if let Some((run, _)) = run {
        let pid = run.info.pid;
        let run_dir = store.layout().runs().join(&run.info.run_id);
        let answer = request::ask_to_cancel(&run_dir, label.as_deref())?;
        let answer = request::answer(&answer, PATIENCE)?;
        if out.json {
            out.json(&json!({"run_id": run.info.run_id, "doe_pid": pid, "answer": answer}))?;
        } else {
            let what = label.as_deref().unwrap_or("everything");
            out.line(format!(
                "{what}: {answer} (run {}, pid {pid})",
                run.info.run_id
            ))?;
        }
        let known = answer.starts_with("cancel");
        return Ok(if known { 0 } else { Kind::Usage.exit_code() });
    }
    if let Some(error) = holders.unknown() {
        return Err(error.clone());
    }
    let local = holders.local();
    if let (None, Some(pid)) = (holders.driving(), local) {
        let text = format!("process {pid} holds the workspace and has begun no run");
        return Err(Error::new(Kind::Lock, "no-run", text).hint("try again in a moment"));
    }
    drop(store);
    let platform = match name.and_then(|name| workspace.platforms.get(&name)) {
        Some(platform) => platform,
        None => session::platform(global, &workspace)?,
    };
    let mut said: Vec<String> = ended
        .iter()
        .map(|job| format!("driver: job {job}"))
        .collect();
    let cancelled = cancel_what_is_left(&workspace, platform, label.as_deref(), &mut said);
    if cancelled.is_err() && said.is_empty() {
        return cancelled.map(|()| 0);
    }
    if out.json {
        out.json(&json!({"ended": said}))?;
    } else if said.is_empty() {
        out.line("nothing runs")?;
    } else {
        for line in said {
            out.line(line)?;
        }
    }
    cancelled.map(|()| 0)
}

/// Adds what was ended, in words, also when something would not go.
fn cancel_what_is_left(
    workspace: &Workspace,
    platform: &Platform,
    label: Option<&str>,
    said: &mut Vec<String>,
) -> Result<()> {
    // Without a reaper of its own: who guards the rest goes on to do so.
    let Some(local) = looking::local(workspace)? else {
        return Ok(());
    };
    let lock = WriterLock::acquire(&workspace.state_dir, "doe cancel")?;
    let store = Store::open(&workspace.state_dir)?;
    let runtime = session::runtime()?;
    let ended = runtime.block_on(async {
        let hosts = fleet::left_on(platform, &store)?;
        let reached = Reached::new(workspace, platform, &hosts, local).await?;
        let found = reached.remains(&store).await?;
        let executor = reached.executor();
        remains::cancel(found, label, &store, &*executor, &*reached.local, said).await
    });
    drop(lock);
    ended
}
