//! Readers of a run's events: lines of JSON, the console, the closing summary, a Chrome trace.
//! A reader never changes a run and needs nothing but the events, so that each can be made again
//! from the file that a run left behind.

pub mod account;
pub mod jsonl;
pub mod live;
pub mod plain;
pub mod style;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod text;
pub mod trace;
pub mod view;

use std::io::{BufWriter, Write};
use std::path::Path;

use crate::engine::event::{Event, KNOWN, Sink, VERSION};
use crate::error::{Error, Kind, Result};

/// The events of a run, from its `events.jsonl`. The last line of a killed run may be cut short;
/// it is left out, and so is what a later `doe` added within the version.
pub fn read_events(path: &Path) -> Result<Vec<Event>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
    let whole = text.ends_with('\n');
    let lines: Vec<&str> = text.lines().collect();
    let mut events = Vec::with_capacity(lines.len());
    for (at, line) in lines.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(event) => events.push(event),
            Err(_) if at + 1 == lines.len() && !whole => {}
            Err(_) if added_later(line) => {}
            Err(cause) => {
                let message = format!("line {} of `{}` is no event", at + 1, path.display());
                return Err(Error::new(Kind::Integrity, "bad-event", message).cause(cause));
            }
        }
    }
    Ok(events)
}

/// Whether a line is an event of our version that we do not know.
fn added_later(line: &str) -> bool {
    let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else {
        return false;
    };
    event["v"] == VERSION
        && event["event"]
            .as_str()
            .is_some_and(|name| !KNOWN.contains(&name))
}

/// Passes every event to several readers, in order.
pub struct All<'s>(pub Vec<Box<dyn Sink + 's>>);

impl Sink for All<'_> {
    fn event(&mut self, event: &Event) {
        for sink in &mut self.0 {
            sink.event(event);
        }
    }

    fn flush(&mut self) {
        for sink in &mut self.0 {
            sink.flush();
        }
    }
}

/// A writer whose first error is kept and silences it: a closed pipe stops no run.
pub struct Quiet<W: Write> {
    out: BufWriter<W>,
    error: Option<std::io::Error>,
}

impl<W: Write> Quiet<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        let out = BufWriter::new(out);
        Self { out, error: None }
    }

    /// Writes a text; [`Self::flush`] passes it on.
    pub fn text(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = self.out.write_all(text.as_bytes()).err();
        }
    }

    /// Passes on what was written.
    pub fn flush(&mut self) {
        if self.error.is_none() {
            self.error = self.out.flush().err();
        }
    }

    /// The first error, unless it is that nobody reads any more.
    pub fn error(&self) -> Option<&std::io::Error> {
        let gone = |error: &&std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
        self.error.as_ref().filter(|error| !gone(error))
    }
}
