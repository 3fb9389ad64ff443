//! The canonical encoding of keys: a byte string that says one thing only. Every text carries its
//! length, every item its tag, every key its domain and version, so two different keys never give
//! the same bytes; and a value has one encoding, whatever order or notation it came in. A change
//! of this format must raise [`ENCODING_VERSION`]: every stored key then misses, knowingly.

use crate::digest::Digest;
use crate::value::{Number, Value, canonical};

/// Version of the byte format below. It is part of every key.
pub const ENCODING_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"doe-key\0";

const NULL: u8 = 0x00;
const FALSE: u8 = 0x01;
const TRUE: u8 = 0x02;
const INT: u8 = 0x03;
const FLOAT: u8 = 0x04;
const STR: u8 = 0x05;
const LIST: u8 = 0x06;
const MAP: u8 = 0x07;
const ENTRY: u8 = 0x10;
const END: u8 = 0x11;

/// Appends the encoding of a value. All integers are little-endian.
///
/// ```text
/// value = 00 | 01 | 02                     null, false, true
///       | 03 i64                           whole number
///       | 04 f64                           any other number
///       | 05 text                          text = length:u64, UTF-8 bytes
///       | 06 count:u64 value*              list
///       | 07 count:u64 (text value)*       map, keys ascending by byte
/// ```
pub fn encode_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(false) => out.push(FALSE),
        Value::Bool(true) => out.push(TRUE),
        Value::Int(int) => encode_int(out, *int),
        Value::Float(float) => match canonical(*float) {
            Number::Int(int) => encode_int(out, int),
            Number::Float(float) => {
                out.push(FLOAT);
                out.extend_from_slice(&float.to_bits().to_le_bytes());
            }
        },
        Value::Str(text) => {
            out.push(STR);
            encode_text(out, text);
        }
        Value::List(list) => {
            out.push(LIST);
            encode_len(out, list.len());
            for item in list {
                encode_value(out, item);
            }
        }
        Value::Map(map) => {
            out.push(MAP);
            encode_len(out, map.len());
            for (key, value) in map {
                encode_text(out, key);
                encode_value(out, value);
            }
        }
    }
}

fn encode_int(out: &mut Vec<u8>, int: i64) {
    out.push(INT);
    out.extend_from_slice(&int.to_le_bytes());
}

fn encode_text(out: &mut Vec<u8>, text: &str) {
    encode_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn encode_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u64).to_le_bytes());
}

/// Makes one key, entry by entry; reusable, so that a hundred thousand keys need one buffer.
///
/// ```text
/// key = "doe-key\0" encoding_version:u32 domain:text version:u32 (10 path:text value)* 11
/// ```
#[derive(Debug, Default)]
pub struct KeyEncoder {
    bytes: Vec<u8>,
    last: (usize, usize),
}

impl KeyEncoder {
    /// Starts a key of `domain` (what kind of key it is, for example `doe.spec`) in `version`
    /// (of the meaning of its entries).
    pub fn new(domain: &str, version: u32) -> Self {
        let mut encoder = Self {
            // Most keys fit, and none has to grow from nothing.
            bytes: Vec::with_capacity(1 << 10),
            last: (0, 0),
        };
        encoder.restart(domain, version);
        encoder
    }

    /// Forgets everything and starts another key in the same buffer.
    pub fn restart(&mut self, domain: &str, version: u32) {
        self.bytes.clear();
        self.last = (0, 0);
        self.bytes.extend_from_slice(MAGIC);
        self.bytes
            .extend_from_slice(&ENCODING_VERSION.to_le_bytes());
        encode_text(&mut self.bytes, domain);
        self.bytes.extend_from_slice(&version.to_le_bytes());
    }

    /// Adds an entry. Paths must come in ascending byte order, each once, as
    /// [`crate::Manifest`] holds them: any other order is another key.
    pub fn entry(&mut self, path: &str, value: &Value) {
        self.path(path);
        encode_value(&mut self.bytes, value);
    }

    /// Adds an entry with a text value: the same as [`Self::entry`] with [`Value::Str`], without
    /// making one.
    pub fn text(&mut self, path: &str, text: &str) {
        self.path(path);
        self.bytes.push(STR);
        encode_text(&mut self.bytes, text);
    }

    /// Adds an entry with a digest as its value: the same as [`Self::entry`] with
    /// `Value::from(digest)`.
    pub fn digest(&mut self, path: &str, digest: &Digest) {
        self.text(path, digest.digits().as_str());
    }

    fn path(&mut self, path: &str) {
        self.bytes.push(ENTRY);
        encode_len(&mut self.bytes, path.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(path.as_bytes());
        debug_assert!(
            self.last == (0, 0) || self.bytes[self.last.0..self.last.1] < *path.as_bytes(),
            "entries of a key must ascend: `{path}`"
        );
        self.last = (start, self.bytes.len());
    }

    /// Ends the key and gives its digest; [`Self::restart`] before using it again.
    pub fn finish(&mut self) -> Digest {
        Digest::of(self.finish_bytes())
    }

    /// Ends the key and gives its bytes.
    pub fn finish_bytes(&mut self) -> &[u8] {
        self.bytes.push(END);
        &self.bytes
    }
}

#[cfg(test)]
#[path = "canon_tests.rs"]
mod tests;
