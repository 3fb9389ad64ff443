//! A reader of template text that keeps byte places: which parts are literal, which are code, and
//! the words inside code. It only serves messages and lints; what a template means is minijinja's
//! business, so text that this reader misjudges costs a less exact place, never a wrong result.

use std::ops::Range;

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Text that is copied.
    Literal(Range<usize>),
    /// Code between `{{` and `}}`, dashes excluded.
    Output(Range<usize>),
    /// Code between `{%` and `%}`, dashes excluded.
    Statement(Range<usize>),
}

/// A word of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: TokenKind,
    pub range: Range<usize>,
}

/// What kind of word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Name or keyword.
    Name,
    /// Number.
    Number,
    /// Quoted text.
    Str,
    /// Operator or bracket.
    Op,
}

/// The parts of a template in order. `{% raw %}` content is literal; comments are left out.
pub(super) fn parts(source: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = 0;
    let mut literal = 0;
    while let Some(found) = source[at..].find('{') {
        let open = at + found;
        let close = match source.as_bytes().get(open + 1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => "#}",
            _ => {
                at = open + 1;
                continue;
            }
        };
        if literal < open {
            parts.push(Part::Literal(literal..open));
        }
        let inside = open + 2;
        let end = code_end(source, inside, close);
        let code = trim_dashes(source, inside..end);
        let after = (end + 2).min(source.len());
        match close {
            "}}" => parts.push(Part::Output(code)),
            "%}" if source[code.clone()].trim() == "raw" => {
                let rest = end_of_raw(source, after);
                if after < rest.start {
                    parts.push(Part::Literal(after..rest.start));
                }
                at = rest.end;
                literal = at;
                continue;
            }
            "%}" => parts.push(Part::Statement(code)),
            _ => {}
        }
        at = after;
        literal = at;
    }
    if literal < source.len() {
        parts.push(Part::Literal(literal..source.len()));
    }
    parts
}

/// Where code that starts at `from` ends: before `close` outside quotes and brackets, or at the
/// end of the text.
fn code_end(source: &str, from: usize, close: &str) -> usize {
    if close == "#}" {
        return (source[from..].find(close)).map_or(source.len(), |at| from + at);
    }
    let bytes = source.as_bytes();
    let mut depth = 0usize;
    let mut at = from;
    while at < bytes.len() {
        // `{{ {"a": {}} }}`: braces of maps close before the mark does.
        if depth == 0 && source[at..].starts_with(close) {
            return at;
        }
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            b'{' | b'[' | b'(' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' | b')' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += char_len(source, at),
        }
    }
    source.len()
}

fn string_end(bytes: &[u8], open: usize, quote: u8) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn char_len(source: &str, at: usize) -> usize {
    source[at..].chars().next().map_or(1, char::len_utf8)
}

fn trim_dashes(source: &str, code: Range<usize>) -> Range<usize> {
    let mut code = code;
    if source[code.clone()].starts_with(['-', '+']) {
        code.start += 1;
    }
    if source[code.clone()].ends_with(['-', '+']) {
        code.end -= 1;
    }
    code
}

/// The `{% endraw %}` after `from`.
fn end_of_raw(source: &str, from: usize) -> Range<usize> {
    let mut at = from;
    while let Some(found) = source[at..].find("{%") {
        let open = at + found;
        let end = (source[open + 2..].find("%}")).map_or(source.len(), |e| open + 2 + e);
        if source[trim_dashes(source, open + 2..end)].trim() == "endraw" {
            return open..(end + 2).min(source.len());
        }
        at = open + 2;
    }
    source.len()..source.len()
}

/// The words of a stretch of code.
pub(super) fn tokens(source: &str, code: Range<usize>) -> Vec<Token> {
    let bytes = &source.as_bytes()[..code.end];
    let mut tokens = Vec::new();
    let mut at = code.start;
    while at < code.end {
        let byte = bytes[at];
        let start = at;
        let kind = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'"' | b'\'' => {
                at = string_end(bytes, at, byte).min(code.end);
                TokenKind::Str
            }
            b'0'..=b'9' => {
                let number = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                while at < code.end
                    && (number(bytes[at])
                        || (bytes[at] == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)))
                {
                    at += 1;
                }
                TokenKind::Number
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                while at < code.end && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_') {
                    at += 1;
                }
                TokenKind::Name
            }
            _ => {
                let two = source.get(at..at + 2).unwrap_or_default();
                at += match two {
                    "==" | "!=" | "<=" | ">=" | "//" | "**" => 2,
                    _ => char_len(source, at),
                };
                TokenKind::Op
            }
        };
        // A character of several bytes may straddle an end that was misjudged.
        at = at.min(code.end);
        tokens.push(Token {
            kind,
            range: start..at,
        });
    }
    tokens
}

/// A dotted name that code mentions: `service.decode.ip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    /// The names between the dots.
    pub names: Vec<String>,
    /// From the first name to the last.
    pub range: Range<usize>,
    /// The place of each name.
    pub places: Vec<Range<usize>>,
}

/// A name in a position where only certain names make sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mention {
    pub name: String,
    pub range: Range<usize>,
}

/// What a stretch of code mentions.
#[derive(Debug, Clone, Default)]
pub(super) struct Mentions {
    /// Variables with their attributes.
    pub paths: Vec<Path>,
    /// Names after `|`.
    pub filters: Vec<Mention>,
    /// Names after `is`.
    pub tests: Vec<Mention>,
}

/// Words of the language that are no variables.
const KEYWORDS: &[&str] = &[
    "and",
    "or",
    "not",
    "is",
    "in",
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "endfor",
    "recursive",
    "set",
    "endset",
    "with",
    "endwith",
    "filter",
    "endfilter",
    "autoescape",
    "endautoescape",
    "do",
    "raw",
    "endraw",
    "true",
    "True",
    "false",
    "False",
    "none",
    "None",
];

/// Whether a name is a word of the language.
pub(super) fn is_keyword(name: &str) -> bool {
    KEYWORDS.contains(&name)
}

/// Finds what a stretch of code mentions.
pub(super) fn mentions(source: &str, code: Range<usize>) -> Mentions {
    let tokens = tokens(source, code);
    let text = |i: usize| tokens.get(i).map_or("", |t| &source[t.range.clone()]);
    let is_name = |i: usize| tokens.get(i).is_some_and(|t| t.kind == TokenKind::Name);
    let mention = |i: usize| Mention {
        name: text(i).to_owned(),
        range: tokens[i].range.clone(),
    };
    let mut found = Mentions::default();
    let mut at = 0;
    while at < tokens.len() {
        if !is_name(at) {
            at += 1;
            continue;
        }
        let before = if at == 0 { "" } else { text(at - 1) };
        if before == "|" || (before == "filter" && at == 1) {
            found.filters.push(mention(at));
        } else if (before == "is" || (before == "not" && at >= 2 && text(at - 2) == "is"))
            && text(at) != "not"
        {
            found.tests.push(mention(at));
        } else if before != "." && !is_keyword(text(at)) {
            let first = at;
            while text(at + 1) == "." && is_name(at + 2) {
                at += 2;
            }
            // `round(precision=2)` names an argument.
            if text(at + 1) != "=" || text(0) == "set" || text(0) == "with" {
                let places: Vec<_> = (first..=at).step_by(2).collect();
                found.paths.push(Path {
                    names: places.iter().map(|&i| text(i).to_owned()).collect(),
                    range: tokens[first].range.start..tokens[at].range.end,
                    places: places.iter().map(|&i| tokens[i].range.clone()).collect(),
                });
            }
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(source: &str) -> Vec<(char, &str)> {
        parts(source)
            .into_iter()
            .map(|part| match part {
                Part::Literal(range) => ('L', &source[range]),
                Part::Output(range) => ('O', &source[range]),
                Part::Statement(range) => ('S', &source[range]),
            })
            .collect()
    }

    #[test]
    fn parts_are_told_apart() {
        assert_eq!(
            show("a {{- b -}} c {# {{ no }} #}{% if x %}d{% raw %}{{ e }}{% endraw %}${f}"),
            vec![
                ('L', "a "),
                ('O', " b "),
                ('L', " c "),
                ('S', " if x "),
                ('L', "d"),
                ('L', "{{ e }}"),
                ('L', "${f}"),
            ]
        );
        assert_eq!(
            show("{{ {'a': {'b': '}}'}} | json }}!"),
            vec![('O', " {'a': {'b': '}}'}} | json "), ('L', "!")]
        );
    }

    #[test]
    fn mentions_are_found() {
        let source =
            "a.b.c | round(precision=d) is not odd and x[e].f == \"g.h\" or not (y is in z)";
        let found = mentions(source, 0..source.len());
        let paths: Vec<_> = found.paths.iter().map(|p| p.names.join(".")).collect();
        assert_eq!(paths, ["a.b.c", "d", "x", "e", "y", "z"]);
        assert_eq!(&source[found.paths[0].range.clone()], "a.b.c");
        assert_eq!(found.filters[0].name, "round");
        let tests: Vec<_> = found.tests.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(tests, ["odd", "in"]);
    }

    proptest! {
        #[test]
        fn any_text_is_covered(source in "[a{}%#\"'é\\\\ .|-]{0,60}") {
            let mut end = 0;
            for part in parts(&source) {
                let (Part::Literal(range) | Part::Output(range) | Part::Statement(range)) = part;
                prop_assert!(range.start >= end && range.end >= range.start);
                prop_assert!(source.get(range.clone()).is_some());
                end = range.end;
                mentions(&source, range);
            }
        }

        #[test]
        fn any_code_is_read(source in "\\PC{0,60}") {
            for token in tokens(&source, 0..source.len()) {
                prop_assert!(source.get(token.range).is_some());
            }
        }
    }
}
