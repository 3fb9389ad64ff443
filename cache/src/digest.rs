//! A digest is the BLAKE3 hash of some bytes: 32 bytes, written as 64 lowercase hexadecimal
//! digits everywhere a person or a file sees it. Two equal digests mean equal bytes.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// The digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(*blake3::hash(bytes.as_ref()).as_bytes())
    }

    /// The digest of a file's content, read as a stream (a mapping could change underneath us
    /// and would die with a signal when the file is cut short).
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened or read.
    pub fn of_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(|e| Error::io("open", path, &e))?;
        // Most are small: a large buffer would cost more than what is read into it.
        let mut first = [0; 4096];
        let mut filled = 0;
        while filled < first.len() {
            match file.read(&mut first[filled..]) {
                Ok(0) => return Ok(Self::of(&first[..filled])),
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", path, &e)),
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&first)
            .update_reader(file)
            .map_err(|e| Error::io("read", path, &e))?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }

    /// The digest with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.digits().as_str().to_owned()
    }

    /// The first twelve hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.digits().as_str()[..12].to_owned()
    }

    /// The 64 hexadecimal digits, for whoever only copies them somewhere.
    pub(crate) fn digits(&self) -> Digits {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 2 * Self::LEN];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        Digits(digits)
    }
}

/// A digest as text. `blake3::Hash::to_hex` makes the same, one digit at a time: for a small record
/// that took longer than to hash it.
pub(crate) struct Digits([u8; 2 * Digest::LEN]);

impl Digits {
    pub(crate) fn as_str(&self) -> &str {
        // Always text, as all of them are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The bytes are uniform already: eight of them are as good as all, and quicker.
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        state.write_u64(u64::from_le_bytes(first));
    }
}

/// Hasher state for maps with [`Digest`] keys: the digest is its own hash.
pub type DigestState = BuildHasherDefault<DigestHasher>;

/// See [`DigestState`]. Meant for digests only; other keys still work, but hash poorly.
#[derive(Debug, Default, Clone, Copy)]
pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 ^= value;
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.digits().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| Error::BadDigest {
            text: text.chars().take(80).collect(),
            why,
        };
        if let Some(at) = text.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(bad(format!("{at:?} is not one of the digits 0-9 and a-f")));
        }
        if text.len() != 2 * Self::LEN {
            return Err(bad(format!(
                "it has {} digits, expected {}",
                text.len(),
                2 * Self::LEN
            )));
        }
        let nibble = |c: u8| if c <= b'9' { c - b'0' } else { c - b'a' + 10 };
        let mut bytes = [0; Self::LEN];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.digits().as_str())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest of 64 hexadecimal digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Test vectors published with BLAKE3: the input is the bytes 0, 1, … 250 repeated.
    #[test]
    fn agrees_with_the_published_vectors() {
        let input = |len: usize| (0..=250_u8).cycle().take(len).collect::<Vec<_>>();
        for (len, expected) in [
            (
                0,
                "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
            ),
            (
                1,
                "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
            ),
            (
                1024,
                "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
            ),
        ] {
            assert_eq!(Digest::of(input(len)).to_string(), expected, "length {len}");
        }
    }

    #[test]
    fn a_file_has_the_digest_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes = vec![7_u8; 300_000];
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Digest::of_file(&path).unwrap(), Digest::of(&bytes));
        let error = Digest::of_file(dir.path().join("none")).unwrap_err();
        assert!(error.to_string().starts_with("could not open"), "{error}");
    }

    #[test]
    fn bad_text_is_refused_with_the_reason() {
        let upper = Digest::of(b"x").hex().to_uppercase();
        for (text, why) in [
            ("", "it has 0 digits, expected 64"),
            ("ab", "it has 2 digits, expected 64"),
            ("é", "'é' is not one of the digits"),
            (upper.as_str(), "is not one of the digits"),
        ] {
            let error = text.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(bytes: [u8; 32]) {
            let digest = Digest::from_bytes(bytes);
            prop_assert_eq!(digest.hex().parse::<Digest>().unwrap(), digest);
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(&json, &format!("\"{}\"", digest));
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
            prop_assert_eq!(digest.short(), &digest.hex()[..12]);
        }

        #[test]
        fn order_is_the_order_of_the_text(a: [u8; 32], b: [u8; 32]) {
            let (a, b) = (Digest::from_bytes(a), Digest::from_bytes(b));
            prop_assert_eq!(a.cmp(&b), a.hex().cmp(&b.hex()));
        }
    }
}
