//! The last block: counts, what was reused, time saved, every failure with its reason, the tail
//! of its log and the command to look closer. What it says follows from the events alone.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::style::Style;
use super::text::{count, seconds};
use super::view::View;
use crate::engine::event::{NodeFinished, Outcome};

/// Failures that are shown with their log; of further ones only a line is.
const WHOLE: usize = 5;
/// Lines of a log.
const LINES: usize = 12;
/// Labels of a group of nodes that were held back by the same thing.
const LABELS: usize = 3;

/// The block, ending in a line break.
pub fn summary(view: &View, style: Style) -> String {
    let mut out = String::new();
    failures(&mut out, view, style);
    held_back(&mut out, view, style);
    missed(&mut out, view, style);
    followups(&mut out, view, style);
    counts(&mut out, view, style);
    out
}

fn failures(out: &mut String, view: &View, style: Style) {
    let bad = |node: &&NodeFinished| matches!(node.outcome, Outcome::Failed | Outcome::Invalid);
    for (at, node) in view.finished.iter().filter(bad).enumerate() {
        let class = node.class.as_deref().map(|class| format!(" ({class})"));
        let head = format!("{}{}", node.outcome, class.unwrap_or_default());
        let reason = node.reason.as_deref().unwrap_or("no reason is known");
        let _ = writeln!(
            out,
            "{} {}: {reason}",
            style.bad(&head),
            style.bold(&node.label)
        );
        let Some((log, lines)) = view.tails.get(&node.label).filter(|_| at < WHOLE) else {
            let _ = writeln!(out, "  look closer: doe logs {}", node.label);
            continue;
        };
        let _ = writeln!(out, "  end of {log}:");
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            let _ = writeln!(out, "{} {line}", style.dim("  |"));
        }
        let _ = writeln!(out, "  look closer: doe logs {}", node.label);
    }
}

fn held_back(out: &mut String, view: &View, style: Style) {
    let mut groups: BTreeMap<(Outcome, &str), Vec<&str>> = BTreeMap::new();
    for node in &view.finished {
        use Outcome::{Blocked, Cancelled, Skipped};
        if matches!(node.outcome, Blocked | Cancelled | Skipped) {
            let reason = node.reason.as_deref().unwrap_or("no reason is known");
            groups
                .entry((node.outcome, reason))
                .or_default()
                .push(&node.label);
        }
    }
    for ((outcome, reason), labels) in groups {
        let names = labels
            .iter()
            .take(LABELS)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        let more = match labels.len().saturating_sub(LABELS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let head = style.warn(outcome.as_str());
        let _ = writeln!(out, "{head} {names}{more}: {reason}");
    }
}

fn missed(out: &mut String, view: &View, style: Style) {
    for (label, missed) in &view.missed {
        let _ = writeln!(
            out,
            "{} {label}: {}",
            style.warn("missed"),
            missed.join("; ")
        );
    }
}

fn followups(out: &mut String, view: &View, style: Style) {
    for followup in &view.followups {
        let _ = writeln!(
            out,
            "{} {} (exploratory): {}",
            style.warn("follow-up"),
            followup.name,
            followup.cause
        );
    }
}

fn counts(out: &mut String, view: &View, style: Style) {
    let counts = &view.counts;
    let mut parts = vec![style.good(&format!("{} ok", counts.ok))];
    parts.push(match counts.remote_hits {
        0 => format!("{} reused", counts.reused),
        hits => format!("{} reused ({hits} from the mirror)", counts.reused),
    });
    for (number, outcome) in [
        (counts.failed, Outcome::Failed),
        (counts.invalid, Outcome::Invalid),
        (counts.blocked, Outcome::Blocked),
        (counts.cancelled, Outcome::Cancelled),
        (counts.skipped, Outcome::Skipped),
    ] {
        if number > 0 {
            parts.push(style.outcome(outcome, &format!("{number} {outcome}")));
        }
    }
    let total = count(view.nodes as u64, "node");
    let _ = write!(
        out,
        "{total}: {} in {}",
        parts.join(", "),
        seconds(counts.wall_s)
    );
    if counts.followups > 0 {
        let _ = write!(out, ", {} of follow-ups", count(counts.followups, "node"));
        if counts.followups_failed > 0 {
            let bad = format!("{} without a result", counts.followups_failed);
            let _ = write!(out, " ({})", style.bad(&bad));
        }
    }
    if counts.service_starts > 0 {
        let _ = write!(out, ", {}", count(counts.service_starts, "service start"));
    }
    match counts.retries {
        0 => {}
        1 => out.push_str(", 1 attempt was tried again"),
        more => {
            let _ = write!(out, ", {more} attempts were tried again");
        }
    }
    if counts.time_saved_s >= 1.0 {
        let _ = write!(out, ", {} saved by reuse", seconds(counts.time_saved_s));
    }
    out.push('\n');
    if view.simulated_results > 0 {
        let brought = counts.followups - counts.followups_failed;
        let results = counts.ok + counts.reused + brought;
        let what = match view.simulated_results == results {
            true => "all results are simulated".to_owned(),
            false => format!("{} simulated", count(view.simulated_results, "result")),
        };
        let _ = writeln!(
            out,
            "{}",
            style.warn(&format!("{what}: they say nothing about hardware"))
        );
    }
    if !view.finished.is_empty() {
        let folder = &view.run_dir;
        let _ = writeln!(out, "logs: doe logs LABEL; events: {folder}");
    }
    if counts.failed + counts.invalid + counts.blocked > 0 {
        let _ = writeln!(out, "run what failed again: doe build @failed");
    }
}
