//! Where events go: to the reader that was given, and once the run has begun to
//! `runs/<run>/events.jsonl`, line by line. What could not be written there is said once and
//! stops nothing: results do not depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use doe_cache::Digest;

use super::context::now_unix_ms;
use super::event::{Body, Event, NodeFinished, Sink, Summary};
use super::resolve::Final;
use crate::error::{Error, Result};
use crate::label::Label;

/// See the module.
pub(super) struct Journal<'s> {
    sink: &'s mut dyn Sink,
    file: Option<BufWriter<File>>,
    /// Counts of what has ended.
    pub summary: Summary,
    /// Records that this run took from the mirror.
    pub remote: BTreeSet<Digest>,
    /// What follow-ups brought in, and which.
    pub brought: BTreeMap<Label, String>,
}

impl<'s> Journal<'s> {
    /// Events go to the sink alone.
    pub(super) fn new(sink: &'s mut dyn Sink) -> Self {
        Self {
            sink,
            file: None,
            summary: Summary::default(),
            remote: BTreeSet::new(),
            brought: BTreeMap::new(),
        }
    }

    /// From now on they also go to this file.
    pub(super) fn write_to(&mut self, path: &Path) -> Result<()> {
        let file = File::create(path).map_err(|e| Error::io("create", path, &e))?;
        self.file = Some(BufWriter::new(file));
        Ok(())
    }

    /// One event, on disk when this returns.
    pub(super) fn tell(&mut self, body: Body) {
        self.tell_later(body);
        self.flush();
    }

    /// One event of many; [`Self::flush`] follows.
    pub(super) fn tell_later(&mut self, body: Body) {
        let event = Event::new(now_unix_ms(), body);
        self.sink.event(&event);
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, &event)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"));
        self.keep_or_give_up(written);
    }

    /// Brings what was told to the reader and to the file.
    pub(super) fn flush(&mut self) {
        self.sink.flush();
        if let Some(file) = &mut self.file {
            let flushed = file.flush();
            self.keep_or_give_up(flushed);
        }
    }

    /// A node ended.
    pub(super) fn finished(&mut self, label: &Label, ended: &Final) {
        let followup = self.brought.get(label).cloned();
        match followup {
            None => self.summary.count(ended.outcome),
            Some(_) => self.summary.count_followup(ended.outcome),
        }
        if ended.outcome == super::event::Outcome::Reused {
            self.summary.time_saved_s += ended.duration_ms.unwrap_or(0) as f64 / 1000.0;
        }
        let remote = ended.record.is_some_and(|r| self.remote.contains(&r));
        self.summary.remote_hits += u64::from(remote);
        self.tell_later(Body::NodeFinished(NodeFinished {
            label: label.to_string(),
            outcome: ended.outcome,
            reason: ended.reason.clone(),
            class: ended.class.clone(),
            duration_ms: ended.duration_ms,
            record: ended.record.map(|record| record.to_string()),
            simulated: ended.simulated,
            remote,
            criterion: ended.criterion,
            missed: ended.missed.clone(),
            attempt: ended.attempt.map(|(attempt, _)| attempt),
            attempts: ended.attempt.map(|(_, of)| of),
            exploratory: followup.is_some(),
            followup,
        }));
    }

    /// Something to know that stops nothing.
    pub(super) fn warn(&mut self, code: &str, message: String, label: Option<&Label>) {
        self.tell(Body::Warning {
            code: code.into(),
            message,
            label: label.map(Label::to_string),
        });
    }

    pub(super) fn warn_all<'m>(
        &mut self,
        code: &str,
        messages: impl IntoIterator<Item = &'m String>,
    ) {
        for message in messages {
            self.warn(code, message.clone(), None);
        }
    }

    fn keep_or_give_up(&mut self, written: std::io::Result<()>) {
        if let Err(cause) = written {
            self.file = None;
            let message = format!("events are no longer written to the run's folder: {cause}");
            self.warn("events-file", message, None);
        }
    }
}
