//! Reading of TOML files with a place for everything. A [`Doc`] holds a whole file as a tree in
//! which every key and every value knows the bytes it came from and keys stand in file order; any
//! text at all makes a `Doc` and a list of findings, never a panic.

mod duration;
mod form;
mod table;
mod text;
mod tree;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Diagnostic, Error, Result, Site, SourceFile};

pub use duration::{format_duration, parse_duration};
pub use table::Table;
pub use text::{Spanned, Text};
pub use tree::{Entry, Item, ItemValue};

/// Largest file that is read: plans and rules are written by people.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A TOML file as a tree with places.
#[derive(Debug, Clone)]
pub struct Doc {
    file: Arc<SourceFile>,
    root: Vec<Entry>,
}

impl Doc {
    /// Reads and parses a file; `name` is how messages call it. The findings are syntax errors;
    /// with any of them the tree is only what could be made out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path, name: &str) -> Result<(Self, Vec<Diagnostic>)> {
        let read = |cause| {
            Error::io("read", path, &cause).hint("check that the file exists and may be read")
        };
        let meta = std::fs::metadata(path).map_err(read)?;
        if !meta.is_file() {
            // A pipe would be waited for, a device read for ever.
            let doc = Self::empty(name, String::new());
            let found = Diagnostic::error("not-regular", format!("`{name}` is not a regular file"));
            let found = found.at(doc.site(0..0), "");
            return Ok((doc, vec![found]));
        }
        let size = meta.len();
        if size > MAX_FILE_BYTES {
            let diagnostic = Diagnostic::error(
                "file-too-large",
                format!("`{name}` has {size} bytes; at most {MAX_FILE_BYTES} are read"),
            );
            return Ok((Self::empty(name, String::new()), vec![diagnostic]));
        }
        let bytes = std::fs::read(path).map_err(read)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::parse(name, &text)),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let doc = Self::empty(name, text);
                // The lossy text is the same up to the first wrong byte.
                let site = doc.site(valid..valid);
                let found = Diagnostic::error("not-utf8", format!("`{name}` is not UTF-8"));
                let found = found.at(site, "the first byte that is not");
                let mut found = found.hint("save the file as UTF-8");
                keep_secret(&mut found);
                Ok((doc, vec![found]))
            }
        }
    }

    /// Parses a text; `name` is how messages call the file. A byte order mark is dropped and lines
    /// end in `\n`, so that a file means the same (and makes the same keys) on every system.
    pub fn parse(name: &str, text: &str) -> (Self, Vec<Diagnostic>) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut doc = Self::empty(name, text.replace("\r\n", "\n"));
        let (table, errors) = toml::de::DeTable::parse_recoverable(&doc.file.text);
        let mut diagnostics = Vec::new();
        for error in &errors {
            let message = error.message().trim_end();
            let mut diagnostic = Diagnostic::error("syntax", format!("not valid TOML: {message}"));
            if let Some(range) = error.span() {
                diagnostic = diagnostic.at(doc.site(range), "");
            }
            if let Some(hint) = syntax_hint(message) {
                diagnostic = diagnostic.hint(hint);
            }
            if !diagnostics.contains(&diagnostic) {
                diagnostics.push(diagnostic);
            }
        }
        diagnostics.sort_by_key(|d| d.sites.first().map_or(0, |(site, _)| site.range.start));
        // A header that was not closed makes equal keys of what follows it.
        let unclosed = diagnostics
            .iter()
            .position(|found| found.message.contains("unclosed table"));
        if let Some(unclosed) = unclosed {
            let mut at = 0..;
            diagnostics.retain(|found| {
                let follows = at.next().is_some_and(|at| at > unclosed);
                !(follows && found.message.contains("duplicate key"))
            });
        }
        let root = tree::entries(&doc.file, table.get_ref(), &mut diagnostics);
        doc.root = root;
        diagnostics.iter_mut().for_each(keep_secret);
        (doc, diagnostics)
    }

    fn empty(name: &str, text: String) -> Self {
        let file = Arc::new(SourceFile::new(name, text));
        Self {
            file,
            root: Vec::new(),
        }
    }

    /// The file.
    pub fn file(&self) -> &Arc<SourceFile> {
        &self.file
    }

    /// A cursor over the top level. Its place is the start of the file.
    pub fn table(&self) -> Table<'_> {
        Table::new("the file", &self.root, self.site(0..0))
    }

    fn site(&self, range: std::ops::Range<usize>) -> Site {
        Site {
            file: self.file.clone(),
            range,
        }
    }
}

/// Where `secrets` may stand, what was written wrongly may be one: the place is said in words. Of a
/// text that does not parse only the table is known, by its header.
fn keep_secret(found: &mut Diagnostic) {
    let secret = |site: &Site| {
        let text = site.file.text.as_bytes();
        let start = site.range.start.min(text.len());
        let line = text[start..].iter().skip(site.range.len());
        let end = text.len() - line.skip_while(|byte| **byte != b'\n').count();
        let from = text[..start].windows(2).rposition(|two| two == b"\n[");
        let said = &text[from.unwrap_or(0)..end.max(start)];
        said.windows(7).any(|word| word == b"secrets")
    };
    if let Some((site, _)) = found.sites.iter().find(|(site, _)| secret(site)) {
        found.message = format!("{} ({})", found.message, site.short());
        found.sites.clear();
    }
}

/// What to do about a syntax error, by the parser's words.
fn syntax_hint(message: &str) -> Option<&'static str> {
    let hints = [
        (
            "duplicate key",
            "a key or table can be written once; give one of them another name",
        ),
        (
            "string values must be quoted",
            "write text in quotes, for example `name = \"text\"`",
        ),
        (
            "invalid basic string",
            "close the string with `\"` on the same line; inside it write `\\\"` for a quote and `\\\\` for a backslash, or use '...' as it stands",
        ),
        (
            "invalid literal string",
            "close the string with `'` on the same line",
        ),
        (
            "unclosed array table",
            "close the header: `[name]` or `[[name]]`",
        ),
        ("unclosed table", "close the header: `[name]` or `[[name]]`"),
        ("unclosed array", "close the list with `]`"),
        ("unclosed inline table", "close the table with `}`"),
        ("key with no value", "write `key = value`"),
        (
            "extra `",
            "a value ends its line; separate the entries of lists and inline tables with `,`",
        ),
        ("newline", "one `key = value` a line"),
    ];
    let found = hints.iter().find(|(words, _)| message.contains(words));
    Some(found.map_or(
        "a file is `key = value` lines below `[table]` headers; text stands in quotes, lists in `[]`",
        |(_, hint)| hint,
    ))
}

#[cfg(test)]
mod tests;
