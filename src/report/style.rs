//! Colours of the terminal. Without colour every text is exactly itself.

use crate::engine::event::Outcome;

/// Whether texts are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether escape sequences may be written.
    pub colour: bool,
}

impl Style {
    /// No escape sequences.
    pub const PLAIN: Style = Style { colour: false };

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Something that went well.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Something that went wrong.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Something to look at.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something that matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Something that matters more.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A text in the colour of an outcome.
    pub fn outcome(self, outcome: Outcome, text: &str) -> String {
        match outcome {
            Outcome::Ok => self.good(text),
            Outcome::Reused | Outcome::Skipped => self.dim(text),
            Outcome::Blocked | Outcome::Cancelled => self.warn(text),
            Outcome::Invalid | Outcome::Failed => self.bad(text),
        }
    }
}
