//! The settings of one pattern: a sorted list of names, shared by all patterns of a rule, beside
//! a list of values, each shared by all patterns it came to from the same place. The two lists
//! have the same length and the names are in ascending order without duplicates.

use std::sync::Arc;

use doe_cache::Value;

use super::model::Setting;

/// Settings by name: exactly the parameters of the pattern's rule.
#[derive(Debug, Clone)]
pub struct Settings {
    names: Arc<[Arc<str>]>,
    values: Box<[Arc<Setting>]>,
}

impl Settings {
    /// Puts names and values side by side. The names must be sorted and without duplicates, and
    /// as many as the values; otherwise they are sorted here and of two equal names the last wins.
    pub fn new(names: Arc<[Arc<str>]>, values: Vec<Arc<Setting>>) -> Self {
        if names.len() == values.len() && names.is_sorted_by(|a, b| a < b) {
            return Self {
                names,
                values: values.into_boxed_slice(),
            };
        }
        names.iter().cloned().zip(values).collect()
    }

    /// The setting of this name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.shared(name).map(Arc::as_ref)
    }

    /// The value of this name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.get(name).map(|setting| &setting.value)
    }

    /// The setting of this name as it is shared between patterns: two patterns that got it from
    /// the same place hold the same pointer.
    pub fn shared(&self, name: &str) -> Option<&Arc<Setting>> {
        let at = self
            .names
            .binary_search_by(|other| other.as_ref().cmp(name))
            .ok()?;
        self.values.get(at)
    }

    /// Whether there is a setting of this name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether the rule has no parameters.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Names and settings in order of name.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            names: self.names.iter(),
            values: self.values.iter(),
        }
    }

    /// Names in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// Settings in order of name.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Setting> {
        self.values.iter().map(AsRef::as_ref)
    }
}

/// Iterates over [`Settings`] in order of name.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    names: std::slice::Iter<'a, Arc<str>>,
    values: std::slice::Iter<'a, Arc<Setting>>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a Setting);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.names.next()?.as_ref(), self.values.next()?.as_ref()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.values.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Settings {
    type Item = (&'a str, &'a Setting);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, Arc<Setting>)> for Settings {
    fn from_iter<I: IntoIterator<Item = (N, Arc<Setting>)>>(items: I) -> Self {
        let sorted: std::collections::BTreeMap<Arc<str>, Arc<Setting>> =
            items.into_iter().map(|(n, s)| (n.into(), s)).collect();
        Self {
            names: sorted.keys().cloned().collect(),
            values: sorted.into_values().collect(),
        }
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, Setting)> for Settings {
    fn from_iter<I: IntoIterator<Item = (N, Setting)>>(items: I) -> Self {
        items
            .into_iter()
            .map(|(name, setting)| (name, Arc::new(setting)))
            .collect()
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
            let unsorted = Settings::new(
                items.iter().map(|(n, _)| Arc::from(n.as_str())).collect(),
                items.iter().map(|(_, v)| Arc::new(setting(*v))).collect(),
            );
            for settings in [collected, unsorted] {
                prop_assert_eq!(settings.len(), map.len());
                prop_assert_eq!(settings.value(&probe).cloned(), map.get(&probe).map(|v| Value::Int(*v)));
                let listed: Vec<(String, Value)> = settings.iter().map(|(n, s)| (n.to_owned(), s.value.clone())).collect();
                let expected: Vec<(String, Value)> = map.iter().map(|(n, v)| (n.clone(), Value::Int(*v))).collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
