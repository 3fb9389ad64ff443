//! JSON as people and their scripts leave it behind: NaN and infinities, keys that occur twice, a
//! byte order mark, trailing commas. Everything that strict JSON would refuse is read in one
//! documented way and reported with its line; nothing is dropped without a finding, and no input
//! makes the reader panic or recurse without bound.

use serde_json::{Map, Number, Value};

/// Nesting beyond this is refused.
const MAX_DEPTH: usize = 128;

/// Something that strict JSON does not allow, and how it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oddity {
    /// Line from 1.
    pub line: usize,
    /// What was found and how it was read.
    pub what: String,
}

/// Why a text could not be read at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Byte offset in the text.
    pub offset: usize,
    /// What was expected.
    pub expected: String,
}

/// Reads a text. Of equal keys the last wins (its place in the order is the first one's); NaN and
/// infinities become null; comments are not JSON and are refused.
///
/// # Errors
/// [`Malformed`] with the place of the first thing that cannot be read.
pub fn read(text: &str) -> Result<(Value, Vec<Oddity>), Malformed> {
    let mut reader = Reader {
        text,
        at: 0,
        line: 1,
        oddities: Vec::new(),
    };
    if text.starts_with('\u{feff}') {
        reader.at = '\u{feff}'.len_utf8();
        reader.odd("a byte order mark was skipped");
    }
    let value = reader.value(0)?;
    reader.blank();
    if reader.at < text.len() {
        return reader.fail("the end of the text");
    }
    Ok((value, reader.oddities))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    oddities: Vec<Oddity>,
}

impl Reader<'_> {
    fn fail<T>(&self, expected: &str) -> Result<T, Malformed> {
        Err(Malformed {
            offset: self.at,
            expected: expected.to_owned(),
        })
    }

    fn odd(&mut self, what: impl Into<String>) {
        self.oddities.push(Oddity {
            line: self.line,
            what: what.into(),
        });
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.line += usize::from(byte == b'\n');
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let rest = &self.text.as_bytes()[self.at..];
        let ends = !rest.get(word.len()).is_some_and(u8::is_ascii_alphanumeric);
        let found = rest.starts_with(word.as_bytes()) && ends;
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        self.blank();
        if depth > MAX_DEPTH {
            return self.fail("at most 128 levels of nesting");
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            _ if self.word("true") => Ok(Value::Bool(true)),
            _ if self.word("false") => Ok(Value::Bool(false)),
            _ if self.word("null") => Ok(Value::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Malformed> {
        self.at += 1;
        let mut map = Map::new();
        loop {
            self.blank();
            match self.peek() {
                Some(b'}') => {
                    if !map.is_empty() {
                        self.odd("a comma before `}` was skipped");
                    }
                    self.at += 1;
                    return Ok(Value::Object(map));
                }
                Some(b'"') => {}
                _ => return self.fail("a key in double quotes, or `}`"),
            }
            let key = self.string()?;
            self.blank();
            if self.peek() != Some(b':') {
                return self.fail("`:` after the key");
            }
            self.at += 1;
            let line = self.line;
            let value = self.value(depth + 1)?;
            if let Some(earlier) = map.get(&key) {
                let same = if *earlier == value {
                    "with the same value"
                } else {
                    "with another value"
                };
                self.oddities.push(Oddity {
                    line,
                    what: format!("the key `{key}` occurs again {same}; the last one counts"),
                });
            }
            map.insert(key, value);
            self.blank();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(map));
                }
                _ => return self.fail("`,` or `}`"),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Malformed> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.blank();
            if self.peek() == Some(b']') {
                if !items.is_empty() {
                    self.odd("a comma before `]` was skipped");
                }
                self.at += 1;
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.blank();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return self.fail("`,` or `]`"),
            }
        }
    }

    /// The quoted part is found here and left to the strict reader, which knows every escape.
    fn string(&mut self) -> Result<String, Malformed> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end) {
                None | Some(b'\n') => {
                    self.at = end.min(self.text.len());
                    return self.fail("`\"` at the end of the text");
                }
                Some(b'\\') => end += 2,
                Some(b'"') => break,
                Some(_) => end += 1,
            }
        }
        match serde_json::from_str(&self.text[start..=end]) {
            Ok(text) => {
                self.at = end + 1;
                Ok(text)
            }
            Err(_) => self.fail("a text with valid escapes"),
        }
    }

    fn number(&mut self) -> Result<Value, Malformed> {
        for word in ["NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"] {
            if self.word(word) {
                self.odd(format!("`{word}` is not a JSON number; read as null"));
                return Ok(Value::Null);
            }
        }
        let rest = &self.text[self.at..];
        let length = rest
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
            .count();
        let number: Result<Number, _> = serde_json::from_str(&rest[..length]);
        match number {
            Ok(number) => {
                self.at += length;
                Ok(Value::Number(number))
            }
            Err(_) => self.fail("a value"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn oddities_are_read_and_reported_with_their_line() {
        let text =
            "\u{feff}{\n \"a\": NaN,\n \"b\": [-Infinity, 1,],\n \"a\": 2,\n \"b\": [null, 1],\n}";
        let (value, oddities) = read(text).unwrap();
        assert_eq!(value, serde_json::json!({"a": 2, "b": [null, 1]}));
        let found: Vec<(usize, &str)> =
            oddities.iter().map(|o| (o.line, o.what.as_str())).collect();
        assert_eq!(
            found,
            [
                (1, "a byte order mark was skipped"),
                (2, "`NaN` is not a JSON number; read as null"),
                (3, "`-Infinity` is not a JSON number; read as null"),
                (3, "a comma before `]` was skipped"),
                (
                    4,
                    "the key `a` occurs again with another value; the last one counts"
                ),
                (
                    5,
                    "the key `b` occurs again with the same value; the last one counts"
                ),
                (6, "a comma before `}` was skipped"),
            ]
        );
    }

    #[test]
    fn what_is_no_json_is_refused_at_its_place() {
        for (text, offset) in [
            ("", 0),
            ("{", 1),
            ("{a: 1}", 1),
            ("{\"a\" 1}", 5),
            ("[1 2]", 3),
            ("[,]", 1),
            ("\"ab", 3),
            ("\"a\\", 3),
            ("nul", 0),
            ("1 2", 2),
            ("01", 0),
            ("// x\n1", 0),
        ] {
            assert_eq!(read(text).map_err(|e| e.offset), Err(offset), "{text}");
        }
        assert!(read(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[\\[\\]{}\",:\\\\a-z0-9.NaN\u{e9} \n-]{0,40}") {
            let _ = read(&text);
        }

        #[test]
        fn agrees_with_the_strict_reader(text in "[\\[\\]{}\",:0-9a-b. -]{0,12}") {
            if let Ok(strict) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(read(&text).map(|(value, _)| value), Ok(strict));
            } else if let Ok((_, oddities)) = read(&text) {
                prop_assert!(!oddities.is_empty(), "accepted without a finding: {text}");
            }
        }
    }
}
