//! The one handle to the terminal: every line of every command goes through it, so colour, JSON
//! and a closed pipe are decided once.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Kind, Result};

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Where output goes.
#[derive(Debug)]
pub struct Out {
    stdout: std::io::BufWriter<std::io::Stdout>,
    /// Whether standard output takes colours.
    pub color: bool,
    /// Whether standard error takes colours.
    pub color_err: bool,
    /// Whether the user asked for JSON.
    pub json: bool,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// What was written, while somebody wants to keep it.
    copy: Option<Copied>,
}

/// What went through the handle.
#[derive(Debug, Default)]
pub struct Copied {
    /// To standard output.
    pub printed: Vec<u8>,
    /// To standard error.
    pub notes: String,
}

/// More is not worth keeping.
const MOST_COPIED: usize = 1 << 20;

impl Out {
    /// Opens the handle.
    pub fn new(color: Color, json: bool) -> Self {
        let wanted = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Self {
            color: wanted(std::io::stdout().is_terminal()) && !json,
            color_err: wanted(std::io::stderr().is_terminal()),
            terminal: std::io::stdout().is_terminal(),
            stdout: std::io::BufWriter::new(std::io::stdout()),
            json,
            copy: None,
        }
    }

    /// From now on keeps what is written.
    pub fn copy(&mut self) {
        self.copy = Some(Copied::default());
    }

    /// What was written since [`Self::copy`], unless it was too much to keep.
    pub fn copied(&mut self) -> Option<Copied> {
        let copy = self.copy.take()?;
        (copy.printed.len() + copy.notes.len() <= MOST_COPIED).then_some(copy)
    }

    /// Writes one line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<()> {
        writeln!(self, "{}", harmless(text.to_string())).map_err(closed)
    }

    /// Writes one JSON document on one line.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|e| {
            Error::new(Kind::Bug, "json", "a result could not be written as JSON").cause(e)
        })?;
        self.line(text)
    }

    /// Writes a dim note to standard error: never part of the answer.
    pub fn note(&mut self, text: impl std::fmt::Display) {
        // A note that nobody can read is not a reason to fail.
        let _ = self.flush();
        let text = harmless(format!("{text}\n"));
        let _ = std::io::stderr().write_all(text.as_bytes());
        if let Some(copy) = &mut self.copy {
            copy.notes.push_str(&text);
        }
    }

    /// Writes notes that were kept, as they were.
    pub fn notes_again(&mut self, notes: &str) {
        let _ = std::io::stderr().write_all(notes.as_bytes());
    }

    /// Columns of the terminal; 100 when there is none.
    pub fn width(&self) -> usize {
        rustix::termios::tcgetwinsize(std::io::stdout())
            .map_or(100, |size| usize::from(size.ws_col))
    }

    /// Writes what is buffered.
    pub fn flush(&mut self) -> Result<()> {
        self.stdout.flush().map_err(closed)
    }

    /// Text in a colour (an ANSI code such as `32`), when colours are on.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_string()
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.stdout.write(bytes)?;
        if let Some(copy) = &mut self.copy
            && copy.printed.len() <= MOST_COPIED
        {
            copy.printed.extend_from_slice(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stdout.flush()
    }
}

/// A text without what moves a cursor, clears a screen or renames a window: names and comments come
/// from bundles and programs. Escapes that only colour stay, for we write such ourselves.
fn harmless(text: String) -> String {
    let moves = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(moves) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(moves) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let colour = colour(rest);
        shown.push_str(&rest[..colour.unwrap_or(0)]);
        rest = &rest[colour.unwrap_or(first)..];
    }
    shown + rest
}

/// How long the escape is with which a text begins, when all it does is to colour.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\x1b[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then_some(2 + end + 1)
}

/// What a command ends with whose reader goes away.
static LEAVES_WITH: AtomicU8 = AtomicU8::new(0);

/// Says what the command comes to, before it tells of it: a reader that goes away changes nothing of it.
pub fn leave_with(code: u8) {
    LEAVES_WITH.store(code, Ordering::Relaxed);
}

/// The error of a write; a reader that went away is none.
pub fn closed(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        // `doe list | head`: the reader has what it wanted.
        std::process::exit(LEAVES_WITH.load(Ordering::Relaxed).into());
    }
    Error::new(Kind::Infra, "output", "could not write the output").cause(error)
}

/// A table in the house's style: no rules but one under the header, as wide as it needs.
pub fn table<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(comfy_table::ContentArrangement::Disabled)
        .set_header(header);
    table
}

/// Writes a JSON document so that it is there whole or not at all.
pub fn write_json(path: &std::path::Path, value: &serde_json::Value) -> Result<()> {
    let text = format!("{value:#}\n");
    doe_cache::replace(path, text.as_bytes()).map_err(|e| Error::io("write", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_reach_a_terminal() {
        for (text, shown) in [
            ("a\tb\nünï", "a\tb\nünï"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            ("\x1b[1;32mok\x1b[m", "\x1b[1;32mok\x1b[m"),
            ("for you\x1b[2J\x1b]0;mine\x07", "for you[2J]0;mine"),
            ("50%\r100%\u{9b}2J\x1b", "50%100%2J"),
            ("\x1b[3", "[3"),
        ] {
            assert_eq!(harmless(text.to_owned()), shown);
        }
    }
}
