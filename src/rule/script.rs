//! What a `run` text says before any value is in it: which instruments of `doe` it calls, and
//! whether a value stands where the quotes that values bring with them would not be quotes.

use std::ops::Range;

use super::lex::{self, Part};
use super::model::Rule;
use super::sh_reader::{Call, Reader};
use super::shell;
use crate::error::{Diagnostic, nearest};
use crate::source::Text;

/// Findings about values in places where they cannot be quoted. `plain` says of a name whether its
/// value never needs quotes; such a one may stand in a here-document.
pub(super) fn lint(text: &Text, plain: impl Fn(&str) -> bool) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let source = text.text.as_str();
    let mut reader = Reader::new(source);
    for part in lex::parts(source) {
        match part {
            Part::Literal(range) => reader.read(range),
            Part::Statement(_) => {}
            Part::Output(range) => {
                let free = is_raw(source, range.clone())
                    || (reader.in_here_document() && plain(source[range.clone()].trim()));
                if !free && let Some((what, hint)) = reader.obstacle() {
                    let outer = range.start.saturating_sub(2)..(range.end + 2).min(source.len());
                    found.push(
                        Diagnostic::error("quoted-value", format!("a value stands {what}"))
                            .at(text.locate(outer), "")
                            .hint(hint),
                    );
                }
                reader.value();
            }
        }
    }
    found
}

/// Whether the last filter of an output is `raw`.
fn is_raw(source: &str, code: Range<usize>) -> bool {
    let tokens = lex::tokens(source, code);
    let word = |i: usize| tokens.get(i).map_or("", |t| &source[t.range.clone()]);
    tokens.len() >= 3 && word(tokens.len() - 1) == "raw" && word(tokens.len() - 2) == "|"
}

/// Whether a `run` text of a rule calls an instrument.
pub fn calls(rule: &Rule, run: &Text) -> bool {
    let known: Vec<_> = rule.instruments.iter().map(String::as_str).collect();
    let mut calls = calls_in(run).into_iter();
    !known.is_empty() && calls.any(|call| instrument(&call, &known).is_some())
}

/// Whether a script holds the word `doe`, in whatever place.
pub fn names_doe(run: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || ['_', '-'].contains(&c);
    let mut words = run.split(|c| !letter(c));
    words.any(|word| word == "doe")
}

fn calls_in(text: &Text) -> Vec<Call> {
    let mut reader = Reader::new(&text.text);
    for part in lex::parts(&text.text) {
        match part {
            Part::Literal(range) => reader.read(range),
            Part::Statement(_) => {}
            Part::Output(_) => reader.value(),
        }
    }
    reader.finish()
}

/// The instruments that a `run` text calls: entries of `known`, which are one or two words.
pub(super) fn instruments(text: &Text, known: &[&str], diags: &mut Vec<Diagnostic>) -> Vec<String> {
    let mut found = Vec::new();
    for call in calls_in(text) {
        if let Some(name) = instrument(&call, known) {
            found.push(name.to_owned());
            continue;
        }
        if !call.command {
            continue;
        }
        let words: Vec<_> = call.words.iter().map(|(word, _)| word.as_str()).collect();
        let name = words.join(" ");
        let end = call
            .words
            .last()
            .map_or(call.doe.end, |(_, range)| range.end);
        let site = text.locate(call.doe.start..end);
        if call.cut && known.iter().any(|k| k.starts_with(name.as_str())) {
            diags.push(
                Diagnostic::error(
                    "unknown-instrument",
                    "the name of an instrument must be written out",
                )
                .at(site, "")
                .hint("its version is part of the key, so it must be known before values are"),
            );
            continue;
        }
        let mut diagnostic = Diagnostic::error(
            "unknown-instrument",
            format!("`doe {name}` is no instrument"),
        )
        .at(site, "");
        diagnostic = match nearest(&name, known.iter().copied()) {
            Some(near) => diagnostic.hint(format!("did you mean `doe {near}`?")),
            None => diagnostic.hint(format!("instruments: {}", known.join(", "))),
        };
        diags.push(diagnostic);
    }
    found
}

fn instrument<'a>(call: &Call, known: &[&'a str]) -> Option<&'a str> {
    let words: Vec<_> = call.words.iter().map(|(word, _)| word.as_str()).collect();
    let named = |name: &&&str| {
        let name: Vec<_> = name.split(' ').collect();
        words.starts_with(&name)
    };
    known
        .iter()
        .filter(named)
        .max_by_key(|name| name.len())
        .copied()
}

/// A finished script with every call of an instrument made through `doe`'s own path.
pub(super) fn with_program(script: &str, known: &[&str], program: &str) -> String {
    let mut reader = Reader::new(script);
    reader.read(0..script.len());
    let mut out = String::with_capacity(script.len());
    let mut from = 0;
    for call in reader.finish() {
        if instrument(&call, known).is_some() {
            out.push_str(&script[from..call.doe.start]);
            out.push_str(&shell::quote(program));
            from = call.doe.end;
        }
    }
    out.push_str(&script[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::names_doe;

    #[test]
    fn the_word_is_seen_wherever_it_stands() {
        for script in [
            "doe parse x",
            "sh -c 'cat x | doe parse y'",
            "\"$(doe proxy)\"",
        ] {
            assert!(names_doe(script), "{script}");
        }
        for script in ["", "echo doe_value", "./doe-else; undoe does"] {
            assert!(!names_doe(script), "{script}");
        }
    }
}
