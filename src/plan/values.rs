//! The settings of one pattern: a frame that all cells of a matrix share, with the rule's
//! parameter names in ascending order and the values that do not vary, and beside it only the
//! values that are the cell's own. Every name has a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::Value;

use super::model::Setting;

/// What all patterns of one frame have in common.
#[derive(Debug)]
struct Frame {
    /// Parameters of the rule, sorted, without duplicates.
    names: Arc<[Arc<str>]>,
    /// For every name its value, or where a cell has it.
    places: Box<[Place]>,
}

#[derive(Debug, Clone)]
pub(super) enum Place {
    /// Every cell has the same.
    Shared(Arc<Setting>),
    /// Index into the cell's own values.
    Own(usize),
}

/// Settings by name: exactly the parameters of the pattern's rule.
#[derive(Debug, Clone)]
pub struct Settings {
    frame: Arc<Frame>,
    own: Box<[Arc<Setting>]>,
}

/// The common part of many [`Settings`].
#[derive(Debug, Clone)]
pub(super) struct Common(Arc<Frame>);

impl Common {
    /// `names` are sorted and without duplicates, `places` stand beside them.
    pub(super) fn new(names: Arc<[Arc<str>]>, places: Vec<Place>) -> Self {
        debug_assert!(names.len() == places.len() && names.is_sorted_by(|a, b| a < b));
        Self(Arc::new(Frame {
            names,
            places: places.into_boxed_slice(),
        }))
    }

    /// The settings of one cell, with its own values.
    pub(super) fn with(&self, own: Box<[Arc<Setting>]>) -> Settings {
        Settings {
            frame: self.0.clone(),
            own,
        }
    }
}

impl Settings {
    /// The setting of this name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.shared(name).map(Arc::as_ref)
    }

    /// The value of this name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.get(name).map(|setting| &setting.value)
    }

    /// The setting of this name as it is shared between patterns: two patterns that got it from
    /// the same place hold the same pointer, so that work per value can be done once.
    pub fn shared(&self, name: &str) -> Option<&Arc<Setting>> {
        let at = self
            .frame
            .names
            .binary_search_by(|other| other.as_ref().cmp(name))
            .ok()?;
        self.at(at)
    }

    fn at(&self, index: usize) -> Option<&Arc<Setting>> {
        match self.frame.places.get(index)? {
            Place::Shared(setting) => Some(setting),
            Place::Own(at) => self.own.get(*at),
        }
    }

    /// Whether there is a setting of this name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values alone, as rendering takes them.
    pub fn plain(&self) -> std::collections::BTreeMap<String, Value> {
        self.iter()
            .map(|(name, setting)| (name.to_string(), setting.value.clone()))
            .collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.frame.names.len()
    }

    /// Whether the rule has no parameters.
    pub fn is_empty(&self) -> bool {
        self.frame.names.is_empty()
    }

    /// Names and settings in order of name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Setting)> {
        Iter { of: self, next: 0 }
    }

    /// Names in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.frame.names.iter().map(AsRef::as_ref)
    }

    /// Settings in order of name.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Setting> {
        self.iter().map(|(_, setting)| setting)
    }
}

/// Iterates over [`Settings`] in order of name.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    of: &'a Settings,
    next: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a Setting);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.of.frame.names.get(self.next)?;
        let setting = self.of.at(self.next)?;
        self.next += 1;
        Some((name, setting))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.of.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Settings {
    type Item = (&'a str, &'a Setting);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        Iter { of: self, next: 0 }
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, Setting)> for Settings {
    fn from_iter<I: IntoIterator<Item = (N, Setting)>>(items: I) -> Self {
        let sorted: BTreeMap<Arc<str>, Setting> = items
            .into_iter()
            .map(|(name, setting)| (name.into(), setting))
            .collect();
        Self {
            frame: Arc::new(Frame {
                names: sorted.keys().cloned().collect(),
                places: sorted
                    .into_values()
                    .map(|setting| Place::Shared(Arc::new(setting)))
                    .collect(),
            }),
            own: Box::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::Source;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn setting(value: i64) -> Setting {
        Setting {
            value: Value::Int(value),
            source: Source::Plan,
            site: None,
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(items in proptest::collection::vec(("[a-f]{1,2}", any::<i64>()), 0..20), probe in "[a-f]{1,2}") {
            let map: BTreeMap<String, i64> = items.iter().cloned().collect();
            let collected: Settings = items.iter().map(|(n, v)| (n.clone(), setting(*v))).collect();
            // The same map again, with every second value as the cell's own.
            let mut own = Vec::new();
            let places = map
                .values()
                .enumerate()
                .map(|(at, value)| {
                    let setting = Arc::new(setting(*value));
                    if at % 2 == 0 {
                        Place::Shared(setting)
                    } else {
                        own.push(setting);
                        Place::Own(own.len() - 1)
                    }
                })
                .collect();
            let names = map.keys().map(|name| Arc::from(name.as_str())).collect();
            let framed = Common::new(names, places);
            let framed = framed.with(own.into());
            for settings in [collected, framed] {
                prop_assert_eq!(settings.len(), map.len());
                prop_assert_eq!(settings.value(&probe).cloned(), map.get(&probe).map(|v| Value::Int(*v)));
                let listed: Vec<(String, Value)> = settings.iter().map(|(n, s)| (n.to_owned(), s.value.clone())).collect();
                let expected: Vec<(String, Value)> = map.iter().map(|(n, v)| (n.clone(), Value::Int(*v))).collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
