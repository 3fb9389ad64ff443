//! A build that has nothing to do and did not have anything to do before: it is told again, and
//! nothing is opened for it that it does not need.

use std::time::Instant;

use doe_cache::Store;

use super::super::args::Waiting;
use super::super::out::{Out, closed};
use super::super::recall::Recall;
use super::super::session;
use super::{Numbers, command_line, last_words};
use crate::engine::event::Sink;
use crate::engine::recall::{Answer, Gather, Nothing};
use crate::error::Result;
use crate::report::plain;
use crate::report::style::Style;
use crate::report::view::View;

/// The exit code, when the answer is known and was given. The right to write is taken as any
/// build takes it, so that two never meet.
pub fn again(
    recall: &mut Recall,
    waiting: &Waiting,
    out: &mut Out,
    started: Instant,
) -> Result<Option<u8>> {
    let command = command_line();
    let mut lock = None;
    if recall.may_know() {
        lock = Some(session::hold(recall.state_dir(), waiting, out)?);
    }
    let Some((Answer::Nothing(nothing), lines)) = recall.answer() else {
        return Ok(None);
    };
    let state_dir = recall.state_dir();
    let Some(numbers) = numbers(&nothing, state_dir) else {
        return Ok(None);
    };
    out.notes_again(&nothing.notes);
    let mut view = View::default();
    let events = nothing.begin(&state_dir.join("runs"), &command);
    for event in &events {
        view.event(event);
        if out.json {
            out.json(event)?;
        }
    }
    if out.json {
        Nothing::tell_nodes(&lines, out).map_err(closed)?;
    }
    for event in nothing.told() {
        view.event(&event);
        let style = Style { colour: out.color };
        if let (false, Some(line)) = (out.json, plain::line(&event.body, &view, style)) {
            out.line(line)?;
        }
    }
    let end = nothing.end(started);
    view.event(&end);
    view.missed = nothing.missed;
    view.simulated_results = nothing.simulated_results;
    if out.json {
        out.json(&end)?;
    }
    last_words(out, state_dir, Some(&numbers), &view)?;
    out.flush()?;
    drop(lock);
    Ok(Some(0))
}

/// The numbers that were shown, whole and checked; nothing when one is not at hand.
fn numbers(nothing: &Nothing, state_dir: &std::path::Path) -> Option<Numbers> {
    let more = nothing.more_analyses;
    if nothing.analyses.is_empty() {
        let shown = Vec::new();
        return Some(Numbers { shown, more });
    }
    let store = Store::open_read_only(state_dir).ok()?;
    let records = nothing.analyses.iter().map(|(label, record)| {
        let record = store.record(&record.parse().ok()?).ok()?;
        Some((label.clone(), record))
    });
    let shown = records.collect::<Option<_>>()?;
    Some(Numbers { shown, more })
}

/// Keeps what a build told, when that was that there is nothing to do.
pub fn keep(
    recall: &Recall,
    notes: String,
    gathered: Gather,
    view: &View,
    numbers: Option<&Numbers>,
) {
    let Some((planned, told, lines)) = gathered.nothing() else {
        return;
    };
    let shown = numbers.map_or(&[][..], |numbers| &numbers.shown);
    let ids = shown
        .iter()
        .map(|(label, record)| Some((label.clone(), record.id().ok()?.hex())));
    let Some(analyses) = ids.collect() else {
        return;
    };
    let nothing = Nothing {
        planned,
        notes,
        platform: view.platform.clone(),
        simulated: view.simulated,
        nodes: view.nodes as u64,
        time_saved_s: view.counts.time_saved_s,
        simulated_results: view.simulated_results,
        missed: view.missed.clone(),
        told,
        followups: view.counts.followups,
        analyses,
        more_analyses: numbers.map_or(0, |numbers| numbers.more),
    };
    recall.keep(&Answer::Nothing(Box::new(nothing)), &lines);
}
