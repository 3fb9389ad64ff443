//! Work done once for all cells that agree in what it depends on. A [`Row`] is a cell while it is
//! being made: one value, or none yet, for every parameter; a [`Memo`] is a function of a few of
//! them. Two rows that hold the same pointers give the same answer, so pointers are the key; the
//! memo keeps every setting of a key alive, so that no pointer can come to mean another value.

use std::collections::HashMap;
use std::sync::Arc;

use crate::plan::model::Setting;
use crate::rule::Scope;

/// The settings of a cell while it is being made, in order of the rule's parameter names.
#[derive(Debug, Clone)]
pub(super) struct Row {
    names: Arc<[Arc<str>]>,
    values: Vec<Option<Arc<Setting>>>,
}

impl Row {
    /// No values yet. `names` are sorted.
    pub(super) fn new(names: Arc<[Arc<str>]>) -> Self {
        Self {
            values: vec![None; names.len()],
            names,
        }
    }

    /// The parameter names.
    pub(super) fn names(&self) -> &Arc<[Arc<str>]> {
        &self.names
    }

    /// The place of a parameter.
    pub(super) fn slot(&self, name: &str) -> Option<usize> {
        self.names
            .binary_search_by(|other| other.as_ref().cmp(name))
            .ok()
    }

    /// The value in a place.
    pub(super) fn get(&self, slot: usize) -> Option<&Arc<Setting>> {
        self.values.get(slot)?.as_ref()
    }

    /// Puts a value in a place and returns what was there.
    pub(super) fn set(&mut self, slot: usize, value: Option<Arc<Setting>>) -> Option<Arc<Setting>> {
        match self.values.get_mut(slot) {
            Some(place) => std::mem::replace(place, value),
            None => None,
        }
    }

    /// The values of some places as an expression sees them; places without a value are left out.
    pub(super) fn scope(&self, slots: &[usize]) -> Scope {
        let mut scope = Scope::new();
        for slot in slots {
            if let (Some(name), Some(setting)) = (self.names.get(*slot), self.get(*slot)) {
                scope.set(name, &setting.value);
            }
        }
        scope
    }
}

/// A function of some settings, evaluated once per combination of them.
#[derive(Debug)]
pub(super) struct Memo<T> {
    slots: Vec<usize>,
    key: Vec<usize>,
    known: HashMap<Vec<usize>, Known<T>>,
}

/// An answer, and the settings whose pointers are its key.
#[derive(Debug)]
struct Known<T> {
    answer: T,
    _kept: Box<[Option<Arc<Setting>>]>,
}

impl<T> Memo<T> {
    /// A function of the parameters in these places.
    pub(super) fn new(slots: Vec<usize>) -> Self {
        Self {
            key: Vec::with_capacity(slots.len()),
            slots,
            known: HashMap::new(),
        }
    }

    /// The places.
    pub(super) fn slots(&self) -> &[usize] {
        &self.slots
    }

    /// Whether all of its parameters have a value.
    pub(super) fn is_ready(&self, row: &Row) -> bool {
        self.slots.iter().all(|slot| row.get(*slot).is_some())
    }

    /// The answer for a row.
    pub(super) fn get(&mut self, row: &Row, make: impl FnOnce(&Row, &[usize]) -> T) -> &T {
        self.key.clear();
        self.key.extend(self.slots.iter().map(|slot| {
            row.get(*slot)
                .map_or(0, |setting| Arc::as_ptr(setting) as usize)
        }));
        if !self.known.contains_key(&self.key) {
            let answer = make(row, &self.slots);
            let kept = self.slots.iter().map(|slot| row.get(*slot).cloned());
            let _kept = kept.collect();
            self.known.insert(self.key.clone(), Known { answer, _kept });
        }
        &self.known[&self.key].answer
    }
}
