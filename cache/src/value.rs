//! A value as it enters keys, settings and facts. Two values that mean the same are equal, hash
//! the same and encode the same: `0`, `0.0` and `-0.0` are one number, and a float that is a
//! whole number within the range of `i64` is that whole number. NaN and infinities are refused
//! where values are made and again where they are written as JSON.

use crate::digest::Digest;
use crate::error::{Error, Result};
use serde::de::{self, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

/// A canonical value. The variants are open for matching; make floats with [`Value::float`],
/// which refuses what has no canonical form.
#[derive(Debug, Clone)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, never NaN or infinite.
    Float(f64),
    /// Text.
    Str(String),
    /// A list; order counts.
    List(Vec<Value>),
    /// A table; order does not count.
    Map(BTreeMap<String, Value>),
}

/// A number after canonicalisation.
#[derive(Clone, Copy)]
pub(crate) enum Number {
    Int(i64),
    Float(f64),
}

/// The canonical form of a float: whole numbers that fit are whole numbers.
pub(crate) fn canonical(float: f64) -> Number {
    // 2^63 is the first float beyond i64; every whole float below it is exactly an i64.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if float.trunc() == float && (-LIMIT..LIMIT).contains(&float) {
        Number::Int(float as i64)
    } else if float.is_nan() {
        Number::Float(f64::NAN) // one bit pattern for all
    } else {
        Number::Float(float)
    }
}

impl Value {
    /// A number in canonical form.
    ///
    /// # Errors
    /// [`Error::Invalid`] for NaN and infinities.
    pub fn float(float: f64) -> Result<Self> {
        if !float.is_finite() {
            return Err(Error::invalid(format!(
                "a finite number was expected, not {float}"
            )));
        }
        Ok(match canonical(float) {
            Number::Int(int) => Self::Int(int),
            Number::Float(float) => Self::Float(float),
        })
    }

    /// The value of a JSON document.
    ///
    /// # Errors
    /// [`Error::Invalid`] for whole numbers that neither an `i64` nor an `f64` holds exactly.
    pub fn from_json(json: &serde_json::Value) -> Result<Self> {
        Self::deserialize(json).map_err(|e| Error::invalid(e.to_string()))
    }

    /// The value as a JSON document. Numbers that JSON cannot say (only to be had by writing
    /// [`Value::Float`] by hand) become null.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Null => Json::Null,
            Self::Bool(bool) => Json::Bool(*bool),
            Self::Int(int) => Json::from(*int),
            Self::Float(float) => match canonical(*float) {
                Number::Int(int) => Json::from(int),
                Number::Float(float) => Json::from(float),
            },
            Self::Str(text) => Json::String(text.clone()),
            Self::List(list) => Json::Array(list.iter().map(Self::to_json).collect()),
            Self::Map(map) => Json::Object(
                map.iter()
                    .map(|(key, value)| (key.clone(), value.to_json()))
                    .collect(),
            ),
        }
    }

    /// What kind of value it is, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "string",
            Self::List(_) => "list",
            Self::Map(_) => "map",
        }
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(bool) => Some(*bool),
            _ => None,
        }
    }

    /// The whole number, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Float(float) => match canonical(*float) {
                Number::Int(int) => Some(int),
                Number::Float(_) => None,
            },
            _ => None,
        }
    }

    /// The number as a float (rounded beyond 2^53), if it is a number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(int) => Some(*int as f64),
            Self::Float(float) => Some(*float),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// The table, if it is one.
    pub fn as_map(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Float(_) => 2,
            Self::Str(_) => 3,
            Self::List(_) => 4,
            Self::Map(_) => 5,
        }
    }

    fn number(&self) -> Option<Number> {
        match self {
            Self::Int(int) => Some(Number::Int(*int)),
            Self::Float(float) => Some(canonical(*float)),
            _ => None,
        }
    }
}

fn compare_numbers(a: Number, b: Number) -> Ordering {
    // A canonical float is either not whole or outside i64: never equal to a whole number.
    fn int_to_float(int: i64, float: f64) -> Ordering {
        if float.is_nan() || float >= 9_223_372_036_854_775_808.0 {
            Ordering::Less
        } else if float < -9_223_372_036_854_775_808.0 || int > float.floor() as i64 {
            Ordering::Greater
        } else {
            Ordering::Less
        }
    }
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => a.cmp(&b),
        (Number::Float(a), Number::Float(b)) => a.total_cmp(&b),
        (Number::Int(a), Number::Float(b)) => int_to_float(a, b),
        (Number::Float(a), Number::Int(b)) => int_to_float(b, a).reverse(),
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return compare_numbers(a, b);
        }
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Str(a), Self::Str(b)) => a.cmp(b),
            (Self::List(a), Self::List(b)) => a.cmp(b),
            (Self::Map(a), Self::Map(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.rank().hash(state);
        match self {
            Self::Null => {}
            Self::Bool(bool) => bool.hash(state),
            Self::Int(int) => int.hash(state),
            Self::Float(float) => match canonical(*float) {
                Number::Int(int) => int.hash(state),
                Number::Float(float) => float.to_bits().hash(state),
            },
            Self::Str(text) => text.hash(state),
            Self::List(list) => list.hash(state),
            Self::Map(map) => map.hash(state),
        }
    }
}

/// For people: compact, one line. Text stands bare unless it could be taken for something else
/// (`"3"`, `"true"`, the empty string) or holds control characters; use [`Value::as_str`] where
/// the exact text matters.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::Int(int) => write!(f, "{int}"),
            Self::Float(float) => match canonical(*float) {
                Number::Int(int) => write!(f, "{int}"),
                Number::Float(float) => write!(f, "{float:?}"),
            },
            Self::Str(text) if is_plain(text) => f.write_str(text),
            Self::Str(text) => write!(f, "{}", serde_json::Value::from(text.as_str())),
            Self::List(list) => {
                f.write_str("[")?;
                for (i, item) in list.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Map(map) => {
                f.write_str("{")?;
                for (i, (key, value)) in map.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.trim() == text
        && !text.contains(|c: char| c.is_control() || c == '"')
        && !text.starts_with(['[', '{'])
        && !matches!(text, "null" | "true" | "false")
        && text.parse::<f64>().is_err()
}

macro_rules! from_whole {
    ($($type:ty),*) => {$(
        impl From<$type> for Value {
            fn from(int: $type) -> Self {
                Self::Int(i64::from(int))
            }
        }
    )*};
}
from_whole!(i8, i16, i32, i64, u8, u16, u32);

macro_rules! try_from_whole {
    ($($type:ty),*) => {$(
        /// Refuses what neither an `i64` nor an `f64` holds exactly.
        impl TryFrom<$type> for Value {
            type Error = Error;

            fn try_from(int: $type) -> Result<Self> {
                if let Ok(int) = i64::try_from(int) {
                    return Ok(Self::Int(int));
                }
                let float = int as f64;
                if float < 2_f64.powi(<$type>::BITS as i32) && float as $type == int {
                    return Ok(Self::Float(float));
                }
                Err(Error::invalid(format!(
                    "the whole number {int} is larger than {} and no float holds it exactly",
                    i64::MAX
                )))
            }
        }
    )*};
}
try_from_whole!(u64, usize);

impl TryFrom<f64> for Value {
    type Error = Error;

    fn try_from(float: f64) -> Result<Self> {
        Self::float(float)
    }
}

impl From<bool> for Value {
    fn from(bool: bool) -> Self {
        Self::Bool(bool)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

impl From<Digest> for Value {
    fn from(digest: Digest) -> Self {
        Self::Str(digest.hex())
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(list: Vec<T>) -> Self {
        Self::List(list.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Value>> From<BTreeMap<String, T>> for Value {
    fn from(map: BTreeMap<String, T>) -> Self {
        Self::Map(map.into_iter().map(|(k, v)| (k, v.into())).collect())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(option: Option<T>) -> Self {
        option.map_or(Self::Null, Into::into)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(bool) => serializer.serialize_bool(*bool),
            Self::Int(int) => serializer.serialize_i64(*int),
            Self::Float(float) => match canonical(*float) {
                Number::Int(int) => serializer.serialize_i64(int),
                Number::Float(float) if float.is_finite() => serializer.serialize_f64(float),
                Number::Float(float) => Err(ser::Error::custom(format!(
                    "a finite number was expected, not {float}"
                ))),
            },
            Self::Str(text) => serializer.serialize_str(text),
            Self::List(list) => serializer.collect_seq(list),
            Self::Map(map) => serializer.collect_map(map),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a truth value, a number, text, a list or a table")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, bool: bool) -> Result<Value, E> {
        Ok(Value::Bool(bool))
    }

    fn visit_i64<E: de::Error>(self, int: i64) -> Result<Value, E> {
        Ok(Value::Int(int))
    }

    fn visit_u64<E: de::Error>(self, int: u64) -> Result<Value, E> {
        Value::try_from(int).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, float: f64) -> Result<Value, E> {
        Value::float(float).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::Str(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = access.next_entry::<String, Value>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key `{key}` is given twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
#[path = "value_tests.rs"]
pub(crate) mod tests;
