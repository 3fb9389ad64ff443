//! `doe log`: what runs told, read again from the events that they left. Nothing else is looked at,
//! so it says the same of a run whatever has become of the workspace since.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressDrawTarget;
use serde_json::json;

use super::args::Global;
use super::out::{Out, table};
use super::session;
use crate::engine::event::{Event, Sink};
use crate::error::{Error, Kind, Result, nearest};
use crate::plan::workspace::folders;
use crate::report::account::{Account, Node, differences};
use crate::report::live::Live;
use crate::report::plain::Plain;
use crate::report::style::Style;
use crate::report::text::milliseconds;
use crate::report::trace::trace;
use crate::report::view::View;
use crate::report::{read_events, summary};

/// Read what runs told: show, replay, trace, what ran, what failed, how two differ
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe log show                  the last run
  doe log replay --speed 60     an hour in a minute
  doe log what-failed latest-1  the run before the last
  doe log diff latest-1 latest
  doe log trace > trace.json    for chrome://tracing or Perfetto

A run is named by its id (`SELECT run_id FROM runs`), the begin of it, `latest` or `latest-N`. A run that had nothing to do
leaves no events.")]
pub struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Show a run: a line for what ended, and the closing block (with --json: its events)
    Show(One),
    /// Tell a run again, in its own time or faster
    Replay {
        #[command(flatten)]
        one: One,
        /// How many times faster; 0 tells all at once
        #[arg(long, value_name = "X", default_value_t = 0.0)]
        speed: f64,
    },
    /// Print a run as a Chrome trace: hosts as lanes, nodes with their phases and services as spans
    Trace(One),
    /// Show what was executed, and why
    WhatRan(One),
    /// Show what has no result, and why
    WhatFailed(One),
    /// Show what came out differently in two runs
    Diff {
        /// The earlier run
        #[arg(value_name = "RUN")]
        old: String,
        /// The later run
        #[arg(value_name = "RUN", default_value = "latest")]
        new: String,
    },
}

#[derive(Debug, Args)]
struct One {
    /// Which run
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,
}

/// Runs the command.
pub fn run(global: &Global, args: &LogArgs, out: &mut Out) -> Result<u8> {
    let runs = runs_dir(global)?;
    match &args.command {
        LogCommand::Show(one) => show(&events(&runs, &one.run)?, out),
        LogCommand::Replay { one, speed } => replay(&events(&runs, &one.run)?, *speed, out),
        LogCommand::Trace(one) => {
            out.line(trace(&events(&runs, &one.run)?))?;
            Ok(0)
        }
        LogCommand::WhatRan(one) => list(&account(&runs, &one.run)?, Node::ran, out),
        LogCommand::WhatFailed(one) => list(&account(&runs, &one.run)?, Node::is_bad, out),
        LogCommand::Diff { old, new } => diff(&account(&runs, old)?, &account(&runs, new)?, out),
    }
}

/// The folder of the runs. The plans need not load, unless a mirror makes the store more than that.
fn runs_dir(global: &Global) -> Result<PathBuf> {
    let (root, _) = session::place(global)?;
    Ok(match folders(&root) {
        Some(folders) => root.join(folders.state).join("runs"),
        None => session::workspace(global)?.state_dir.join("runs"),
    })
}

fn events(runs: &Path, name: &str) -> Result<Vec<Event>> {
    read_events(&find(runs, name)?.join("events.jsonl"))
}

fn account(runs: &Path, name: &str) -> Result<Account> {
    Ok(Account::of(&events(runs, name)?))
}

/// The folder of a run that left events.
fn find(runs: &Path, name: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(runs).into_iter().flatten().flatten();
    let told = entries.filter(|entry| entry.path().join("events.jsonl").exists());
    let mut names: Vec<String> = told
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    // Names begin with the time.
    names.sort_unstable();
    among(&names, name).map(|run| runs.join(run))
}

/// The run that a word names among these, the latest last: its id, the begin of it, `latest` or
/// `latest-N`.
pub fn among<'n>(names: &'n [String], name: &str) -> Result<&'n str> {
    let back = match name.strip_prefix("latest") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix('-').and_then(|n| n.parse::<usize>().ok()),
        None => None,
    };
    let mut matching = names.iter().filter(|run| run.starts_with(name));
    let found = match back {
        Some(back) => names.iter().rev().nth(back),
        None => match (matching.next(), matching.next()) {
            (Some(run), None) => Some(run),
            (Some(run), Some(_)) if run != name => {
                let text = format!("`{name}` could be several runs");
                return Err(
                    Error::new(Kind::Usage, "ambiguous-run", text).hint("write more of its name")
                );
            }
            (found, _) => found,
        },
    };
    if let Some(run) = found {
        return Ok(run);
    }
    let text = format!("there is no run `{name}` that left anything");
    let mut error = Error::new(Kind::Usage, "no-run", text);
    if let Some(near) = nearest(name, names.iter().map(String::as_str)) {
        error = error.hint(format!("did you mean `{near}`?"));
    }
    let last: Vec<&str> = names.iter().rev().take(5).map(String::as_str).collect();
    Err(match last.is_empty() {
        true => error.hint("`doe build` makes one"),
        false => error.hint(format!("the last runs: {}", last.join(", "))),
    })
}

fn show(events: &[Event], out: &mut Out) -> Result<u8> {
    if out.json {
        events.iter().try_for_each(|event| out.json(event))?;
        return Ok(0);
    }
    let style = Style { colour: out.color };
    let mut view = View::default();
    for event in events {
        view.event(event);
        if let Some(line) = crate::report::plain::line(&event.body, &view, style) {
            out.line(line)?;
        }
    }
    out.line(summary::summary(&view, style).trim_end())?;
    if !view.is_over {
        out.line("its doe was killed, or it still runs: `doe jobs`")?;
    }
    Ok(0)
}

fn replay(events: &[Event], speed: f64, out: &mut Out) -> Result<u8> {
    if out.json {
        return show(events, out);
    }
    out.flush()?;
    let style = Style { colour: out.color };
    let mut sink: Box<dyn Sink> = if out.terminal {
        Box::new(Live::new(ProgressDrawTarget::stdout(), out.width(), style))
    } else {
        Box::new(Plain::new(std::io::stdout(), style))
    };
    let mut view = View::default();
    let mut before: Option<u64> = None;
    for event in events {
        if let (Some(before), Some(at), true) = (before, event.at_unix_ms, speed > 0.0) {
            let ms = at.saturating_sub(before) as f64 / speed;
            std::thread::sleep(Duration::from_secs_f64((ms / 1000.0).min(3600.0)));
        }
        before = event.at_unix_ms.or(before);
        view.event(event);
        sink.event(event);
    }
    drop(sink);
    out.line(summary::summary(&view, style).trim_end())?;
    Ok(0)
}

fn list(account: &Account, wanted: fn(&Node) -> bool, out: &mut Out) -> Result<u8> {
    let nodes = account.nodes.iter().filter(|(_, node)| wanted(node));
    if out.json {
        let items = nodes.map(|(label, node)| {
            let mut item = json!(node);
            item["label"] = json!(label);
            item
        });
        out.json(&items.collect::<Vec<_>>())?;
        return Ok(0);
    }
    let mut rows = table(["label", "outcome", "took", "why"]);
    let mut count = 0;
    for (label, node) in nodes {
        count += 1;
        rows.add_row([
            label.clone(),
            node.outcome.into(),
            took(node),
            because(node),
        ]);
    }
    if count > 0 {
        out.line(rows)?;
    }
    out.line(format!(
        "{count} of {} nodes of {}",
        account.nodes.len(),
        account.run_id
    ))?;
    Ok(0)
}

fn diff(old: &Account, new: &Account, out: &mut Out) -> Result<u8> {
    let found = differences(old, new);
    if out.json {
        let document = json!({
            "old": {"run_id": old.run_id, "command": old.command},
            "new": {"run_id": new.run_id, "command": new.command},
            "differences": found,
        });
        out.json(&document)?;
        return Ok(0);
    }
    let side = |node: &Option<Node>| match node {
        None => "no part of it".to_owned(),
        Some(node) => {
            let record = node
                .record
                .as_deref()
                .map(|r| format!(" {}", &r[..r.len().min(12)]));
            format!("{}{}", node.outcome, record.unwrap_or_default())
        }
    };
    let mut rows = table(["label", &old.run_id, &new.run_id, "why"]);
    for difference in &found {
        let why = difference.new.as_ref().map(because).unwrap_or_default();
        let (before, now) = (side(&difference.old), side(&difference.new));
        rows.add_row([difference.label.clone(), before, now, why]);
    }
    if !found.is_empty() {
        out.line(rows)?;
    }
    out.line(format!("{} differ", found.len()))?;
    Ok(0)
}

fn took(node: &Node) -> String {
    node.duration_ms.map_or("-".to_owned(), milliseconds)
}

fn because(node: &Node) -> String {
    let mut parts: Vec<&str> = Vec::new();
    parts.extend(node.reason.as_deref());
    parts.extend(node.why.as_deref().filter(|_| node.reason.is_none()));
    parts.extend(node.followup.as_deref());
    let spoiled = node.spoiled.iter().map(|spoiled| {
        let (attempt, of) = (spoiled.attempt, spoiled.attempts);
        format!(
            "attempt {attempt} of {of} failed ({}): {}",
            spoiled.class, spoiled.reason
        )
    });
    let parts = parts.into_iter().map(str::to_owned);
    parts.chain(spoiled).collect::<Vec<_>>().join("; ")
}
