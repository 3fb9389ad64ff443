//! Errors and findings as people read them: message, file, line, caret, what to do.

use std::borrow::Cow;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::json;

use super::out::Out;
use crate::error::{Diagnostic, Error, Severity};

/// Prints an error that ends a command.
pub fn report(out: &mut Out, error: &Error) {
    for diagnostic in &error.diagnostics {
        let text = render(diagnostic, out.color_err);
        out.note(text);
    }
    let group = Group::with_title(Level::ERROR.primary_title(error.message.as_str()))
        .elements(error.causes.iter().map(|c| Level::NOTE.message(c.as_str())))
        .elements(error.hints.iter().map(|h| Level::HELP.message(h.as_str())));
    let text = renderer(out.color_err).render(&[group]);
    out.note(text);
    if out.json {
        // The machine's copy, errors first; the people's copy went to standard error.
        let mut found: Vec<&Diagnostic> = error.diagnostics.iter().collect();
        found.sort_by_key(|d| d.severity == Severity::Warning);
        let _ = out.json(&json!({
            "event": "error", "code": error.code, "message": error.message,
            "causes": error.causes, "hints": error.hints, "exit_code": error.kind.exit_code(),
            "diagnostics": found.into_iter().map(as_json).collect::<Vec<_>>(),
        }));
        let _ = out.flush();
    }
}

/// One finding as text, with every place underlined.
pub fn render(diagnostic: &Diagnostic, color: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = match &diagnostic.label {
        Some(label) => format!("{label}: {}", diagnostic.message),
        None => diagnostic.message.clone(),
    };
    let title = level.primary_title(title).id(diagnostic.code);
    let mut group = Group::with_title(title);
    for (at, (site, note)) in diagnostic.sites.iter().enumerate() {
        let range = clamp(&site.file.text, &site.range);
        let kind = if at == 0 {
            AnnotationKind::Primary
        } else {
            AnnotationKind::Context
        };
        let mut annotation = kind.span(range);
        if !note.is_empty() {
            annotation = annotation.label(note.as_str());
        }
        group = group.element(
            Snippet::source(masked(&site.file.text))
                .path(site.file.name.as_str())
                .annotation(annotation),
        );
    }
    let group = group.elements(
        diagnostic
            .advice()
            .into_iter()
            .map(|hint| Level::HELP.message(hint)),
    );
    renderer(color).render(&[group]).to_string()
}

/// A text in which who an address is asked as cannot be read: `s3://KEY:SECRET@bucket`. It keeps its
/// length, so that carets stay where they are.
fn masked(text: &str) -> Cow<'_, str> {
    let mut masked = Cow::Borrowed(text);
    for (at, _) in text.match_indices("://") {
        let from = at + 3;
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'');
        let host = &text[from..];
        let host = &host[..host.find(ends).unwrap_or(host.len())];
        if let Some(length) = host.rfind('@') {
            let hidden = from..from + length;
            masked.to_mut().replace_range(hidden, &"*".repeat(length));
        }
    }
    masked
}

/// One finding for machines: the fields that the machine interface names.
pub fn as_json(diagnostic: &Diagnostic) -> serde_json::Value {
    let place = diagnostic.sites.first().map(|(site, _)| {
        let (line, column) = site.file.line_column(site.range.start);
        (site.file.name.clone(), line, column)
    });
    json!({
        "code": diagnostic.code,
        "severity": match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        },
        "message": diagnostic.message,
        "file": place.as_ref().map(|p| &p.0),
        "line": place.as_ref().map(|p| p.1),
        "column": place.as_ref().map(|p| p.2),
        "label": diagnostic.label,
        "hints": diagnostic.advice(),
    })
}

fn renderer(color: bool) -> Renderer {
    if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    }
}

/// A range that the renderer can take: inside the text, on character boundaries, not reversed.
fn clamp(text: &str, range: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(range.start);
    start..floor(range.end).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_not_shown() {
        for (text, shown) in [
            (
                "a = \"s3://me:hunter2@lab/x\"\n",
                "a = \"s3://**********@lab/x\"\n",
            ),
            (
                "b = 'http://k\u{e9}y:p@ss@h:1' # a@b",
                "b = 'http://*********@h:1' # a@b",
            ),
            (
                "c = \"s3://lab/x\" # me@home",
                "c = \"s3://lab/x\" # me@home",
            ),
            ("://", "://"),
        ] {
            assert_eq!(masked(text), shown);
            assert_eq!(masked(text).len(), text.len());
        }
    }
}
