//! A canonical value.

use std::collections::BTreeMap;

/// A value as it enters keys: numbers that are equal are the same.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
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
    /// A list.
    List(Vec<Value>),
    /// A table.
    Map(BTreeMap<String, Value>),
}
