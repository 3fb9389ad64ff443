//! Values with the place they came from. A part of a text finds its own place in the file: the
//! string's escapes are walked again, so the place is exact or, where that is impossible, the
//! whole string.

use std::ops::Range;

use crate::error::Site;

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands in the file.
    pub site: Site,
}

/// Text with the place it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// The text as parsed (escapes resolved).
    pub text: String,
    /// Where its value stands in the file.
    pub site: Site,
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Text {
    /// The place of a byte range of the text. Exact for a TOML string or bare key whose site
    /// covers its raw form; the whole site when the two cannot be matched.
    pub fn locate(&self, range: Range<usize>) -> Site {
        let whole = || self.site.clone();
        let Some(raw) = self.site.file.text.get(self.site.range.clone()) else {
            return whole();
        };
        let Some(offsets) = offsets(raw, &self.text) else {
            return whole();
        };
        let at = |offset: usize| offsets.get(offset).copied().flatten();
        match (at(range.start), at(range.end)) {
            (Some(start), Some(end)) if start <= end => Site {
                file: self.site.file.clone(),
                range: self.site.range.start + start..self.site.range.start + end,
            },
            _ => whole(),
        }
    }
}

/// For each byte offset of `text` (its end included) the offset in `raw` that it came from, when
/// it is the start of a character. `None` when `raw` does not decode to `text`.
fn offsets(raw: &str, text: &str) -> Option<Vec<Option<usize>>> {
    let (open, close, escapes) = if raw.starts_with("\"\"\"") {
        (3, 3, true)
    } else if raw.starts_with("'''") {
        (3, 3, false)
    } else if raw.starts_with('"') {
        (1, 1, true)
    } else if raw.starts_with('\'') {
        (1, 1, false)
    } else {
        (0, 0, false)
    };
    let end = raw.len().checked_sub(close)?;
    let mut at = open;
    if open == 3 {
        // The first newline of a multi-line string is not part of it.
        at += usize::from(raw.get(at..end)?.starts_with('\n'));
    }
    let mut map = vec![None; text.len() + 1];
    let mut decoded = 0;
    while at < end {
        let rest = raw.get(at..end)?;
        let here = rest.chars().next()?;
        let (character, taken) = if here == '\\' && escapes {
            match unescape(rest)? {
                (None, taken) => {
                    at += taken;
                    continue;
                }
                (Some(character), taken) => (character, taken),
            }
        } else {
            (here, here.len_utf8())
        };
        if !text.get(decoded..)?.starts_with(character) {
            return None;
        }
        *map.get_mut(decoded)? = Some(at);
        decoded += character.len_utf8();
        at += taken;
    }
    if decoded != text.len() {
        return None;
    }
    map[decoded] = Some(end);
    Some(map)
}

/// What an escape at the start of `rest` stands for, and its length. A backslash at a line's end
/// stands for nothing.
fn unescape(rest: &str) -> Option<(Option<char>, usize)> {
    let kind = rest[1..].chars().next()?;
    let digits = match kind {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let code = u32::from_str_radix(rest.get(2..2 + digits)?, 16).ok()?;
        return Some((Some(char::from_u32(code)?), 2 + digits));
    }
    let character = match kind {
        'b' => '\u{8}',
        't' => '\t',
        'n' => '\n',
        'f' => '\u{c}',
        'r' => '\r',
        'e' => '\u{1b}',
        '"' => '"',
        '\\' => '\\',
        ' ' | '\t' | '\r' | '\n' => {
            let blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
            let after = rest[1..].trim_start_matches(blank);
            return Some((None, rest.len() - after.len()));
        }
        _ => return None,
    };
    Some((Some(character), 2))
}
