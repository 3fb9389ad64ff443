//! The events of a build that had nothing to do, told again: those that name the run and the time
//! are new, those of the nodes are as they were.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use doe_cache::Digest;

use super::Nothing;
use crate::engine::context::{new_run_id, now_unix_ms};
use crate::engine::event::{Body, Event, Outcome, Sink, Summary};

/// Stands at the end of the line of every event that carries a time.
const TIME: &str = "\"at_unix_ms\":";

/// Takes in the events of a build and says at the end whether it had nothing to do.
#[derive(Debug, Default)]
pub struct Gather {
    lines: Option<Vec<u8>>,
    records: Vec<Option<Digest>>,
    planned: Option<Body>,
    told: Vec<Body>,
    something: bool,
}

impl Gather {
    /// `lines`: whether the events themselves are wanted.
    pub fn new(lines: bool) -> Self {
        Self {
            lines: lines.then(Vec::new),
            ..Self::default()
        }
    }

    /// The record of each node, in the order they were told, when there was nothing to do.
    pub fn records(&self) -> Option<Vec<Digest>> {
        let nothing = self.planned.is_some() && !self.something;
        nothing.then(|| self.records.iter().copied().collect())?
    }

    /// What was planned, what follow-ups had to say, and all events in the middle as lines, when
    /// there was nothing to do.
    pub fn nothing(self) -> Option<(Body, Vec<Body>, Vec<u8>)> {
        let planned = self.planned.filter(|_| !self.something)?;
        Some((planned, self.told, self.lines.unwrap_or_default()))
    }

    fn line(&mut self, event: &Event) {
        let Some(lines) = &mut self.lines else { return };
        match serde_json::to_string(event) {
            Ok(line) if line.rfind(TIME).is_some() => {
                let end = line.rfind(TIME).unwrap_or(0) + TIME.len();
                lines.extend_from_slice(&line.as_bytes()[..end]);
                lines.push(b'\n');
            }
            _ => self.something = true,
        }
    }
}

impl Sink for Gather {
    fn event(&mut self, event: &Event) {
        if self.something {
            return;
        }
        match &event.body {
            Body::Planned {
                run: 0, may_run: 0, ..
            } => self.planned = Some(event.body.clone()),
            Body::NodeFinished(node) if node.outcome == Outcome::Reused => {
                if node.followup.is_none() {
                    let record = node.record.as_ref().and_then(|text| text.parse().ok());
                    self.records.push(record);
                }
                self.line(event);
            }
            Body::Followup { .. } => {
                self.told.push(event.body.clone());
                self.line(event);
            }
            Body::Warning { code, .. } if code == "followup-budget" => {
                self.told.push(event.body.clone());
                self.line(event);
            }
            Body::RunStarted { .. } | Body::Summary(_) => {}
            // Leftovers of a killed run were cleared up: that is not told again.
            Body::Warning { code, .. } if code == "leftovers" => {}
            _ => self.something = true,
        }
    }
}

impl Nothing {
    /// The first two events of a run like this one, in the run folder's parent `runs`.
    pub fn begin(&self, runs: &Path, command: &str) -> [Event; 2] {
        let run_id = new_run_id();
        let run_dir = runs.join(&run_id).display().to_string();
        let started = Body::RunStarted {
            run_id,
            platform: self.platform.clone(),
            simulated: self.simulated,
            nodes: self.nodes as usize,
            run_dir,
            command: command.to_owned(),
        };
        [started, self.planned.clone()].map(|body| Event::new(now_unix_ms(), body))
    }

    /// What follow-ups had to say, now.
    pub fn told(&self) -> impl Iterator<Item = Event> {
        let told = self.told.iter().cloned();
        told.map(|body| Event::new(now_unix_ms(), body))
    }

    /// The last event of a run that began at `started`.
    pub fn end(&self, started: Instant) -> Event {
        let summary = Summary {
            reused: self.nodes,
            time_saved_s: self.time_saved_s,
            followups: self.followups,
            wall_s: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            ..Summary::default()
        };
        Event::new(now_unix_ms(), Body::Summary(summary))
    }

    /// Writes the nodes' events with the time of now.
    ///
    /// # Errors
    /// Of the writer.
    pub fn tell_nodes(lines: &[u8], out: &mut dyn Write) -> std::io::Result<()> {
        let now = format!("{}}}\n", now_unix_ms());
        let mut text = Vec::with_capacity(lines.len() + lines.len() / 8);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(&line[..line.len() - 1]);
            text.extend_from_slice(now.as_bytes());
        }
        out.write_all(&text)
    }
}
