//! One error type for the whole house. Every error has a kind (which fixes the exit code), a
//! stable code, a message that says what was expected, where it is in a file when it is in one,
//! and hints that say what to do. Nothing here prints: `cli` renders.

mod hints;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// What went wrong, in the terms that decide the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node failed or its result is invalid (exit 1).
    NodeFailed,
    /// The command line makes no sense (exit 2).
    Usage,
    /// A plan, rule or workspace file is wrong (exit 3).
    Plan,
    /// The machine, network or cluster did not do its part (exit 4).
    Infra,
    /// Another `doe` holds the lock (exit 5).
    Lock,
    /// Something is not up to date (exit 6).
    Stale,
    /// The store is damaged (exit 7).
    Integrity,
    /// A defect of `doe` itself (exit 70).
    Bug,
    /// The user interrupted (exit 130).
    Interrupted,
}

impl Kind {
    /// The process exit code for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::NodeFailed => 1,
            Kind::Usage => 2,
            Kind::Plan => 3,
            Kind::Infra => 4,
            Kind::Lock => 5,
            Kind::Stale => 6,
            Kind::Integrity => 7,
            Kind::Bug => 70,
            Kind::Interrupted => 130,
        }
    }
}

/// A text file that was read once: name as the user knows it, and content.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Path as shown to the user, relative to the workspace where possible.
    pub name: String,
    /// The whole text.
    pub text: String,
    starts: LineStarts,
}

/// Where lines start, found when first asked for: a plan of a hundred thousand patterns asks as
/// often. It follows from the text, so it tells no two files apart.
#[derive(Debug, Default)]
struct LineStarts(OnceLock<Vec<usize>>);

impl PartialEq for LineStarts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for LineStarts {}

impl SourceFile {
    /// A file of this name and content.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            starts: LineStarts::default(),
        }
    }

    /// Line and column (both from 1, the column in characters) of a byte offset.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.line(offset);
        let start = self.starts()[line - 1];
        (line, self.text[start..offset].chars().count() + 1)
    }

    /// Line (from 1) of a byte offset. The column costs as much as the line is long, and that of a
    /// matrix may hold a value for every pattern.
    pub fn line(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        self.starts().partition_point(|start| *start <= offset)
    }

    fn starts(&self) -> &[usize] {
        self.starts.0.get_or_init(|| {
            let ends = self.text.match_indices('\n');
            std::iter::once(0)
                .chain(ends.map(|(at, _)| at + 1))
                .collect()
        })
    }
}

/// A byte range in a source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The file.
    pub file: Arc<SourceFile>,
    /// Byte range in its text.
    pub range: Range<usize>,
}

impl Site {
    /// `file:line:column` of the start.
    pub fn short(&self) -> String {
        let (line, column) = self.file.line_column(self.range.start);
        format!("{}:{line}:{column}", self.file.name)
    }
}

/// How bad a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing runs until it is mended.
    Error,
    /// Worth a look; nothing is refused.
    Warning,
}

/// One finding about what the user wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnostic {
    /// Stable kebab-case code, for example `unknown-key`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// One sentence: what is wrong and what was expected.
    pub message: String,
    /// Where, when it is in a file. The first is underlined as the primary place; the others
    /// carry their own note ("first defined here").
    pub sites: Vec<(Site, String)>,
    /// What to do about it, nearest names included, where the place that found it knows;
    /// [`Diagnostic::advice`] is never empty-handed.
    pub hints: Vec<String>,
    /// The label of the pattern or layer concerned.
    pub label: Option<String>,
}

impl Diagnostic {
    /// A new error without a place.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            sites: Vec::new(),
            hints: Vec::new(),
            label: None,
        }
    }

    /// A new warning without a place.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, message)
        }
    }

    /// Adds a place with a note (may be empty for the primary one).
    pub fn at(mut self, site: Site, note: impl Into<String>) -> Self {
        self.sites.push((site, note.into()));
        self
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// What to do about it: the hints, or what is always true of the code.
    pub fn advice(&self) -> Vec<&str> {
        if self.hints.is_empty() {
            hints::standing(self.code).into_iter().collect()
        } else {
            self.hints.iter().map(String::as_str).collect()
        }
    }

    /// Names the pattern or layer concerned.
    pub fn label(mut self, label: impl fmt::Display) -> Self {
        self.label = Some(label.to_string());
        self
    }
}

/// An error that ends a command.
#[derive(Debug, Clone)]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// Stable kebab-case code.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
    /// Findings in files, when the error is about what the user wrote.
    pub diagnostics: Vec<Diagnostic>,
}

/// The result type of the house.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
            diagnostics: Vec::new(),
        }
    }

    /// An error made of findings; its message counts them.
    pub fn from_diagnostics(diagnostics: Vec<Diagnostic>) -> Self {
        let errors = diagnostics
            .iter()
            .filter(|d| d.severity == Severity::Error)
            .count();
        let plural = if errors == 1 { "error" } else { "errors" };
        Self {
            diagnostics,
            ..Self::new(
                Kind::Plan,
                "plan-invalid",
                format!("{errors} {plural} in the plan"),
            )
        }
    }

    /// An input or output failure on a path.
    pub fn io(what: &str, path: &std::path::Path, cause: &std::io::Error) -> Self {
        Self::new(
            Kind::Infra,
            "io",
            format!("could not {what} `{}`", path.display()),
        )
        .cause(cause)
    }

    /// Adds a cause.
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<doe_cache::Error> for Error {
    fn from(error: doe_cache::Error) -> Self {
        use doe_cache::Error as Store;
        let kind = match &error {
            Store::Io { .. } | Store::Database { .. } | Store::Mirror { .. } => Kind::Infra,
            Store::Corrupt { .. } | Store::SchemaTooNew { .. } | Store::Bundle { .. } => {
                Kind::Integrity
            }
            Store::Locked { .. } => Kind::Lock,
            Store::NotFound { .. } | Store::BadDigest { .. } => Kind::Usage,
            // What the store refuses to take was made by this program; new variants are unknown.
            _ => Kind::Bug,
        };
        let made = Self::new(kind, error.code(), error.to_string());
        match error.hint() {
            Some(hint) => made.hint(hint),
            None => made,
        }
    }
}

/// The nearest of `candidates` to `name`, when one is near enough to be meant. A letter in the
/// wrong case counts for nothing, unless two candidates differ in that alone.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |text: &str| text.chars().count();
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .filter(|(distance, c)| {
            let longer = letters(name).max(letters(c));
            // Where every letter differs nothing speaks for the one rather than another.
            *distance <= (longer / 3).max(1) && *distance < longer
        })
        .min_by_key(|(distance, c)| (*distance, strsim::damerau_levenshtein(name, c), *c))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn case_counts_for_nothing_unless_it_is_all() {
        let names = ["L2-EFA", "L2-TCP", "all", "p2-efa-4k-c1"];
        for (wrong, right) in [
            ("L2-efa", Some("L2-EFA")),
            ("P2-EFA-4K-C1", Some("p2-efa-4k-c1")),
            ("ALL", Some("all")),
            ("al", Some("all")),
            ("L2-TPC", Some("L2-TCP")),
            ("nothing", None),
        ] {
            assert_eq!(nearest(wrong, names), right, "{wrong}");
        }
        assert_eq!(nearest("ab", ["AB", "aB"]), Some("aB"));
    }
}
