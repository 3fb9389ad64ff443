//! One event a line, as JSON.

use std::io::Write;

use super::Quiet;
use crate::engine::event::{Event, Sink};

/// See the module.
pub struct JsonLines<W: Write> {
    out: Quiet<W>,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out: Quiet::new(out),
        }
    }
}

impl<W: Write + Send> Sink for JsonLines<W> {
    fn event(&mut self, event: &Event) {
        // Events are plain data with text keys: they always have a JSON form.
        if let Ok(mut line) = serde_json::to_string(event) {
            line.push('\n');
            self.out.text(&line);
        }
    }

    fn flush(&mut self) {
        self.out.flush();
    }

    fn broken(&self) -> Option<&std::io::Error> {
        self.out.error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::{Body, Summary};

    #[test]
    fn every_event_is_one_line() {
        let mut out = Vec::new();
        let mut lines = JsonLines::new(&mut out);
        let warning = Body::Warning {
            code: "x".into(),
            message: "two\nlines".into(),
            label: None,
        };
        lines.event(&Event::new(7, warning));
        lines.event(&Event::new(8, Body::Summary(Summary::default())));
        drop(lines);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"], "two\nlines");
        assert_eq!(lines[1]["event"], "summary");
        assert!(text.ends_with('\n'));
    }
}
