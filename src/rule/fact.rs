//! The types of facts. A text becomes a value of its type or it is refused with what it should
//! have been; versions are ordered as their numbers are, not as texts.

use std::cmp::Ordering;

use doe_cache::Value;

/// Longest text that is a fact.
const LONGEST_BYTES: usize = 1024;

/// What a fact must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactType {
    /// One line of text.
    Str,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// Numbers with dots, perhaps with something behind them: `580.126.09`, `0.16.0+cu128`.
    Version,
}

impl FactType {
    /// As rule files have them.
    pub const NAMES: &[&str] = &["str", "int", "float", "bool", "version"];

    /// The type of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "str" => Self::Str,
            "int" => Self::Int,
            "float" => Self::Float,
            "bool" => Self::Bool,
            "version" => Self::Version,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Str => "str",
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Version => "version",
        }
    }

    /// The value of a text.
    ///
    /// # Errors
    /// What it is instead, as the end of "`TEXT` is …".
    pub fn read(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let value = match self {
            _ if text.is_empty() => return Err("empty".into()),
            _ if text.len() > LONGEST_BYTES => {
                return Err(format!("longer than {LONGEST_BYTES} bytes"));
            }
            _ if text.chars().any(char::is_control) => {
                return Err("more than one line of plain text".into());
            }
            Self::Str => Some(Value::from(text)),
            Self::Int => text.parse().ok().map(Value::Int),
            Self::Float => text
                .parse()
                .ok()
                .and_then(|number| Value::float(number).ok()),
            Self::Bool => text.parse().ok().map(Value::Bool),
            Self::Version => Version::parse(text).map(|version| Value::from(version.text)),
        };
        value.ok_or_else(|| format!("not {}", self.described()))
    }

    /// The value of something in a JSON document.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn read_json(self, json: &serde_json::Value) -> Result<Value, String> {
        use serde_json::Value as Json;
        match (self, json) {
            (Self::Str | Self::Version, Json::String(text)) => self.read(text),
            (Self::Bool, Json::Bool(value)) => Ok(Value::Bool(*value)),
            (Self::Int | Self::Float, Json::Number(number)) => self.read(&number.to_string()),
            _ => Err(format!("not {}", self.described())),
        }
    }

    fn described(self) -> &'static str {
        match self {
            Self::Str => "a text",
            Self::Int => "a whole number",
            Self::Float => "a number",
            Self::Bool => "`true` or `false`",
            Self::Version => "a version such as `580.126.09`",
        }
    }
}

/// A version: numbers with dots and what stands behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version<'t> {
    /// The whole text, without a leading `v`.
    pub text: &'t str,
    numbers: Vec<u64>,
    /// `rc1`, `1044-aws`; what follows a `+` says how it was built and orders nothing.
    suffix: &'t str,
}

impl<'t> Version<'t> {
    /// Reads a version.
    pub fn parse(text: &'t str) -> Option<Self> {
        let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
        if text.is_empty() || text.contains(char::is_whitespace) {
            return None;
        }
        let mut numbers = Vec::new();
        let mut rest = text;
        loop {
            let end = rest.find(|c: char| !c.is_ascii_digit());
            let end = end.unwrap_or(rest.len());
            numbers.push(rest[..end].parse().ok()?);
            rest = &rest[end..];
            match rest.strip_prefix('.') {
                Some(more) if more.starts_with(|c: char| c.is_ascii_digit()) => rest = more,
                _ => break,
            }
        }
        let suffix = rest.split('+').next().unwrap_or("");
        let suffix = suffix.trim_start_matches(['.', '-', '_']);
        Some(Self {
            text,
            numbers,
            suffix,
        })
    }

    /// Less than nothing for what comes before the release of these numbers.
    fn stage(&self) -> i8 {
        let word = self
            .suffix
            .trim_end_matches(|c: char| !c.is_ascii_alphabetic());
        match word.split(|c: char| !c.is_ascii_alphabetic()).next() {
            Some("a" | "alpha" | "b" | "beta" | "c" | "rc" | "pre" | "dev") => -1,
            _ if self.suffix.is_empty() => 0,
            _ => 1,
        }
    }

    /// How two are ordered: `0.16` is `0.16.0`, and `0.16.0rc1` comes before both.
    pub fn order(&self, other: &Self) -> Ordering {
        let longest = self.numbers.len().max(other.numbers.len());
        let at = |version: &Self, at: usize| version.numbers.get(at).copied().unwrap_or(0);
        let mut pairs = (0..longest).map(|i| at(self, i).cmp(&at(other, i)));
        let numbers = pairs.find(|order| order.is_ne());
        numbers.unwrap_or_else(|| {
            let stages = self.stage().cmp(&other.stage());
            stages.then_with(|| self.suffix.cmp(other.suffix))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values_of_their_type_or_are_refused() {
        let read = |ty: FactType, text: &str| ty.read(text);
        assert_eq!(read(FactType::Int, " 4\n"), Ok(Value::Int(4)));
        assert_eq!(read(FactType::Float, "0.5"), Ok(Value::Float(0.5)));
        assert_eq!(read(FactType::Bool, "true"), Ok(Value::Bool(true)));
        assert_eq!(
            read(FactType::Str, "NVIDIA L40S"),
            Ok(Value::from("NVIDIA L40S"))
        );
        assert_eq!(
            read(FactType::Version, "v0.16.0"),
            Ok(Value::from("0.16.0"))
        );
        for (ty, text, why) in [
            (FactType::Int, "4.5", "not a whole number"),
            (FactType::Int, "4 GPUs", "not a whole number"),
            (FactType::Float, "nan", "not a number"),
            (FactType::Bool, "yes", "not `true` or `false`"),
            (FactType::Version, "command not found", "not a version"),
            (FactType::Version, "", "empty"),
            (FactType::Str, "a\u{1e}b", "more than one line"),
            (FactType::Str, &"x".repeat(2000), "longer than"),
        ] {
            let refused = read(ty, text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        let json = |ty: FactType, text: &str| ty.read_json(&serde_json::from_str(text).unwrap());
        assert_eq!(json(FactType::Int, "4"), Ok(Value::Int(4)));
        assert!(json(FactType::Int, "\"4\"").is_err());
        assert!(json(FactType::Str, "4").is_err());
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let order = |a: &str, b: &str| {
            let parse = |text| Version::parse(text).unwrap_or_else(|| panic!("{text}"));
            parse(a).order(&parse(b))
        };
        for (less, greater) in [
            ("0.9.0", "0.10.0"),
            ("535.104.05", "570.86"),
            ("0.16.0rc1", "0.16"),
            ("6.8.0-1044-aws", "6.8.1"),
            ("6.8.0", "6.8.0-1044-aws"),
            ("1.0rc2", "1.0.post1"),
            ("2.27.4", "2.27.5"),
        ] {
            assert_eq!(order(less, greater), Ordering::Less, "{less} {greater}");
            assert_eq!(order(greater, less), Ordering::Greater);
        }
        assert_eq!(order("0.16", "v0.16.0+cu128"), Ordering::Equal);
        for none in ["", "v", "aws", "1 2", "99999999999999999999999"] {
            assert_eq!(Version::parse(none), None, "{none}");
        }
    }
}
