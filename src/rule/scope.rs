//! The names that an expression or template may use, with their values. Looking up what is not
//! there is an error with the nearest name, at any depth; numbers that are equal are the same, so
//! `2.0` and `2` print alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::Value;
use minijinja::value::{Enumerator, Object, Value as Jinja, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::error::nearest;

/// Names with values.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    root: Arc<Root>,
}

impl Scope {
    /// No names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a name.
    pub fn set(&mut self, name: &str, value: &Value) {
        self.set_raw(name, to_jinja(name, value));
    }

    /// Sets a name to a JSON document.
    pub fn set_json(&mut self, name: &str, value: &serde_json::Value) {
        self.set_raw(name, json_to_jinja(name, value));
    }

    fn set_raw(&mut self, name: &str, value: Jinja) {
        Arc::make_mut(&mut self.root).0.insert(name.into(), value);
    }

    /// Whether a name is there.
    pub fn has(&self, name: &str) -> bool {
        self.root.0.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.root.0.keys().map(|name| &**name)
    }

    /// A name's value for a message.
    pub(super) fn show(&self, name: &str) -> Option<String> {
        let value = from_jinja(self.root.0.get(name)?).ok()?;
        serde_json::to_string(&value).ok()
    }

    pub(super) fn context(&self) -> Jinja {
        Jinja::from_dyn_object(self.root.clone())
    }

    /// What kind of thing a dotted name is, when it is there.
    pub(super) fn kind_of(&self, path: &[String]) -> Option<ValueKind> {
        let (first, rest) = path.split_first()?;
        let mut value = self.root.0.get(first.as_str())?.clone();
        for name in rest {
            value = value.get_item(&Jinja::from(name.as_str())).ok()?;
            if value.is_undefined() {
                return None;
            }
        }
        Some(value.kind())
    }
}

impl<K: AsRef<str>, V: std::borrow::Borrow<Value>> FromIterator<(K, V)> for Scope {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut scope = Self::new();
        for (name, value) in pairs {
            scope.set(name.as_ref(), value.borrow());
        }
        scope
    }
}

#[derive(Debug, Clone, Default)]
struct Root(BTreeMap<Arc<str>, Jinja>);

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        self.0.get(key.as_str()?).cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Jinja> {
        self.0.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(|k| Jinja::from(k.clone())).collect())
    }
}

/// A table whose absent attributes are errors. `'name' in table` still asks without an error.
#[derive(Debug)]
struct StrictMap {
    path: String,
    items: BTreeMap<Arc<str>, Jinja>,
}

impl Object for StrictMap {
    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        self.items.get(key.as_str()?).cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Jinja> {
        let value = self.items.get(key).cloned();
        Some(value.unwrap_or_else(|| {
            let mut message = format!("`{key}` is not in `{}`", self.path);
            if let Some(near) = nearest(key, self.items.keys().map(|name| &**name)) {
                message.push_str(&format!("\ndid you mean `{near}`?"));
            }
            Jinja::from(Error::new(ErrorKind::UndefinedError, message))
        }))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.keys().map(|k| Jinja::from(k.clone())).collect())
    }
}

/// Whole numbers beyond this are not exact in a double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A float as the language sees it: a whole number when it is one.
fn number(value: f64) -> Jinja {
    if value.fract() == 0.0 && value.abs() <= EXACT {
        Jinja::from(value as i64)
    } else {
        Jinja::from(value)
    }
}

fn map(path: &str, items: impl Iterator<Item = (Arc<str>, Jinja)>) -> Jinja {
    Jinja::from_object(StrictMap {
        path: path.to_owned(),
        items: items.collect(),
    })
}

fn to_jinja(path: &str, value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(value) => Jinja::from(*value),
        Value::Int(value) => Jinja::from(*value),
        Value::Float(value) => number(*value),
        Value::Str(value) => Jinja::from(value.as_str()),
        Value::List(items) => items.iter().map(|item| to_jinja(path, item)).collect(),
        Value::Map(items) => map(
            path,
            items.iter().map(|(name, value)| {
                let value = match value {
                    // Only what has parts tells its path.
                    Value::List(_) | Value::Map(_) => to_jinja(&format!("{path}.{name}"), value),
                    _ => to_jinja("", value),
                };
                (Arc::from(name.as_str()), value)
            }),
        ),
    }
}

fn json_to_jinja(path: &str, value: &serde_json::Value) -> Jinja {
    use serde_json::Value as Json;
    match value {
        Json::Null => Jinja::from(()),
        Json::Bool(value) => Jinja::from(*value),
        Json::Number(value) => match value.as_i64() {
            Some(whole) => Jinja::from(whole),
            None => number(value.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(value) => Jinja::from(value.as_str()),
        Json::Array(items) => items.iter().map(|item| json_to_jinja(path, item)).collect(),
        Json::Object(items) => map(
            path,
            items.iter().map(|(name, value)| {
                let value = json_to_jinja(&format!("{path}.{name}"), value);
                (Arc::from(name.as_str()), value)
            }),
        ),
    }
}

/// A value of the language as a plain one; the error says why it cannot be.
pub(super) fn from_jinja(value: &Jinja) -> Result<Value, String> {
    match value.kind() {
        ValueKind::None => Ok(Value::Null),
        ValueKind::Bool => Ok(Value::Bool(value.is_true())),
        ValueKind::Number if value.is_integer() => value
            .as_i64()
            .map(Value::Int)
            .ok_or_else(|| format!("{value} does not fit a whole number of 64 bits")),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if number.is_finite() => Ok(Value::Float(number)),
            _ => Err(format!("{value} is not a finite number")),
        },
        ValueKind::String => Ok(Value::Str(value.as_str().unwrap_or_default().to_owned())),
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()
            .map_err(|error| error.to_string())?
            .map(|item| from_jinja(&item))
            .collect::<Result<_, _>>()
            .map(Value::List),
        ValueKind::Map => {
            let mut items = BTreeMap::new();
            for key in value.try_iter().map_err(|error| error.to_string())? {
                let item = value.get_item(&key).map_err(|error| error.to_string())?;
                let Some(name) = key.as_str() else {
                    return Err(format!("the key {key} of a table is not a string"));
                };
                items.insert(name.to_owned(), from_jinja(&item)?);
            }
            Ok(Value::Map(items))
        }
        ValueKind::Undefined => Err("it has no value (an `if` without `else`?)".to_owned()),
        kind => Err(format!("a value of kind {kind} is no setting")),
    }
}
