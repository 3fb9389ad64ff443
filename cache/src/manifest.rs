//! Every input of a key, by name. The key is made from the manifest and two manifests are
//! compared entry by entry with the very same walk, so an explanation can never disagree with
//! the key: the keys differ exactly when a change of class `result` is listed.

use crate::canon::KeyEncoder;
use crate::digest::Digest;
use crate::value::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What an input can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Only how it looks: titles, descriptions, tags.
    Cosmetic,
    /// When, where beside what, or how patiently it runs: priorities, retries, time limits.
    Scheduling,
    /// What comes out. Only these enter the key.
    Result,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cosmetic => "cosmetic",
            Self::Scheduling => "scheduling",
            Self::Result => "result",
        })
    }
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it can change.
    pub class: Class,
    /// Where it was set, as `file:line`. Never in the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Its value, whole.
    pub value: Value,
}

/// All inputs of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What kind of key it makes, for example `doe.spec`.
    pub domain: String,
    /// Inputs by dotted path: `setting.max_tokens`, `step.measure.script`,
    /// `need.//phase1:p4k.output`.
    pub entries: BTreeMap<String, Entry>,
    /// Version of the meaning of the entries; raised when the same entries come to mean
    /// something else.
    pub version: u32,
}

/// One difference between two manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Path of the entry; [`Change::SCHEMA`] when the kind or version of the key changed.
    pub path: String,
    /// What the change can change: the greater class of the two sides.
    pub class: Class,
    /// Before; `None` when it was added.
    pub old: Option<Entry>,
    /// After; `None` when it was removed.
    pub new: Option<Entry>,
}

impl Change {
    /// Path of the change of domain or version. Not a possible path of [`Manifest::set`] by
    /// convention (paths are dotted words).
    pub const SCHEMA: &'static str = "(key schema)";
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) if old.value == new.value => {
                write!(f, "{}: {} -> {}", self.path, old.class, new.class)
            }
            (Some(old), Some(new)) => write!(f, "{}: {} -> {}", self.path, old.value, new.value),
            (None, Some(new)) => write!(f, "{}: added, {}", self.path, new.value),
            (Some(old), None) => write!(f, "{}: removed, was {}", self.path, old.value),
            (None, None) => write!(f, "{}", self.path),
        }
    }
}

impl Manifest {
    /// A manifest without entries.
    pub fn new(domain: impl Into<String>, version: u32) -> Self {
        Self {
            domain: domain.into(),
            version,
            entries: BTreeMap::new(),
        }
    }

    /// Sets an entry, replacing what was there.
    pub fn set(
        &mut self,
        path: impl Into<String>,
        value: impl Into<Value>,
        class: Class,
    ) -> &mut Self {
        self.insert(path.into(), value.into(), class, None)
    }

    /// Sets an entry and says where its value comes from (`file:line`).
    pub fn set_from(
        &mut self,
        path: impl Into<String>,
        value: impl Into<Value>,
        class: Class,
        origin: impl Into<String>,
    ) -> &mut Self {
        self.insert(path.into(), value.into(), class, Some(origin.into()))
    }

    fn insert(
        &mut self,
        path: String,
        value: Value,
        class: Class,
        origin: Option<String>,
    ) -> &mut Self {
        let entry = Entry {
            value,
            class,
            origin,
        };
        self.entries.insert(path, entry);
        self
    }

    /// The one walk over the entries, in ascending byte order of the paths. [`Self::key`] and
    /// [`Self::diff`] see nothing else.
    pub fn walk(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_str(), entry))
    }

    /// The key: domain, version and the entries of class `result`.
    pub fn key(&self) -> Digest {
        let mut encoder = KeyEncoder::new(&self.domain, self.version);
        for (path, entry) in self.walk() {
            if entry.class == Class::Result {
                encoder.entry(path, &entry.value);
            }
        }
        encoder.finish()
    }

    /// What changed from `old` to `new`, in path order; origins are not compared.
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if (&old.domain, old.version) != (&new.domain, new.version) {
            let schema = |m: &Self| Entry {
                value: Value::Str(format!("{} v{}", m.domain, m.version)),
                class: Class::Result,
                origin: None,
            };
            changes.push(Change {
                path: Change::SCHEMA.to_owned(),
                class: Class::Result,
                old: Some(schema(old)),
                new: Some(schema(new)),
            });
        }
        let (mut left, mut right) = (old.walk().peekable(), new.walk().peekable());
        loop {
            let (a, b) = match (left.peek(), right.peek()) {
                (None, None) => return changes,
                (Some(a), Some(b)) if a.0 == b.0 => (left.next(), right.next()),
                (Some(a), Some(b)) if a.0 > b.0 => (None, right.next()),
                (Some(_), _) => (left.next(), None),
                (None, Some(_)) => (None, right.next()),
            };
            let same = matches!((a, b), (Some((_, a)), Some((_, b)))
                if a.value == b.value && a.class == b.class);
            if let (Some((path, _)), false) = (a.or(b), same) {
                let class = a.map(|(_, e)| e.class).max(b.map(|(_, e)| e.class));
                changes.push(Change {
                    path: path.to_owned(),
                    class: class.unwrap_or(Class::Result),
                    old: a.map(|(_, e)| e.clone()),
                    new: b.map(|(_, e)| e.clone()),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::any_value;
    use proptest::prelude::*;

    fn any_class() -> impl Strategy<Value = Class> {
        prop_oneof![
            3 => Just(Class::Result),
            1 => Just(Class::Scheduling),
            1 => Just(Class::Cosmetic),
        ]
    }

    fn any_manifest() -> impl Strategy<Value = Manifest> {
        let entry = (any_value(), any_class(), prop::option::of("[a-z]:[0-9]")).prop_map(
            |(value, class, origin)| Entry {
                value,
                class,
                origin,
            },
        );
        (
            prop_oneof![4 => Just("doe.spec"), 1 => Just("doe.action")],
            1..3_u32,
            prop::collection::btree_map("[a-c]{1,2}", entry, 0..5),
        )
            .prop_map(|(domain, version, entries)| Manifest {
                domain: domain.to_owned(),
                version,
                entries,
            })
    }

    fn results_of(manifest: &Manifest) -> (String, u32, Vec<(String, Value)>) {
        let entries = manifest.entries.iter();
        (
            manifest.domain.clone(),
            manifest.version,
            entries
                .filter(|(_, e)| e.class == Class::Result)
                .map(|(p, e)| (p.clone(), e.value.clone()))
                .collect(),
        )
    }

    #[test]
    fn the_difference_reads_well() {
        let mut old = Manifest::new("doe.spec", 1);
        old.set("setting.max_tokens", 128, Class::Result)
            .set("setting.old", "x", Class::Result)
            .set("setting.retries", 1, Class::Scheduling)
            .set("title", "A", Class::Cosmetic);
        let mut new = Manifest::new("doe.spec", 2);
        new.set_from("setting.max_tokens", 256, Class::Result, "plans/a.toml:7")
            .set("setting.new", true, Class::Result)
            .set("setting.retries", 1, Class::Result)
            .set("title", "A", Class::Cosmetic);
        let changes = Manifest::diff(&old, &new);
        let text: Vec<_> = changes
            .iter()
            .map(|c| format!("{} [{}]", c, c.class))
            .collect();
        assert_eq!(
            text,
            [
                "(key schema): doe.spec v1 -> doe.spec v2 [result]",
                "setting.max_tokens: 128 -> 256 [result]",
                "setting.new: added, true [result]",
                "setting.old: removed, was x [result]",
                "setting.retries: scheduling -> result [result]",
            ]
        );
        let origin = changes[1].new.as_ref().and_then(|e| e.origin.as_deref());
        assert_eq!(origin, Some("plans/a.toml:7"));
    }

    #[test]
    fn json_is_stable() {
        let mut manifest = Manifest::new("doe.spec", 1);
        manifest.set_from(
            "b",
            0.5_f64.try_into().unwrap_or(Value::Null),
            Class::Result,
            "f:1",
        );
        manifest.set("a", "x", Class::Cosmetic);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(
            json,
            r#"{"domain":"doe.spec","entries":{"a":{"class":"cosmetic","value":"x"},"b":{"class":"result","origin":"f:1","value":0.5}},"version":1}"#
        );
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    proptest! {
        #[test]
        fn the_key_depends_on_results_alone(a in any_manifest(), b in any_manifest()) {
            prop_assert_eq!(a.key() == b.key(), results_of(&a) == results_of(&b));
        }

        #[test]
        fn any_change_of_a_result_changes_the_key(
            mut manifest in any_manifest(), path in "[a-c]{1,2}", value in any_value(),
        ) {
            let before = manifest.key();
            let old = manifest.entries.get(&path).cloned();
            manifest.set(path, value.clone(), Class::Result);
            let same = old.is_some_and(|e| e.class == Class::Result && e.value == value);
            prop_assert_eq!(manifest.key() == before, same);
        }

        #[test]
        fn nothing_else_changes_the_key(
            mut manifest in any_manifest(), value in any_value(), origin in "[a-z]{0,4}",
        ) {
            let before = manifest.key();
            for entry in manifest.entries.values_mut() {
                entry.origin = Some(origin.clone());
                if entry.class != Class::Result {
                    entry.value = value.clone();
                }
            }
            manifest.set("zz.scheduling", value.clone(), Class::Scheduling);
            manifest.set("zz.cosmetic", value, Class::Cosmetic);
            prop_assert_eq!(manifest.key(), before);
        }

        /// The explanation and the key are one: a `result` change is listed exactly when the
        /// keys differ, and what is listed is exactly what a naive comparison finds.
        #[test]
        fn the_difference_explains_the_key(a in any_manifest(), b in any_manifest()) {
            let changes = Manifest::diff(&a, &b);
            let explained = changes.iter().any(|c| c.class == Class::Result);
            prop_assert_eq!(explained, a.key() != b.key());
            for path in a.entries.keys().chain(b.entries.keys()) {
                let strip = |m: &Manifest| m.entries.get(path).map(|e| (e.value.clone(), e.class));
                let listed = changes.iter().any(|c| &c.path == path);
                prop_assert_eq!(listed, strip(&a) != strip(&b), "{}", path);
            }
            prop_assert!(changes.iter().is_sorted_by(|x, y| x.path < y.path));
            prop_assert!(Manifest::diff(&a, &a).is_empty());
        }
    }
}
