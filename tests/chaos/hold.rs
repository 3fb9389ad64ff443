//! What holds after every step: nothing that was done is lost or done again, what stands is what a
//! clean build would give, and the index says what the files say.

use std::collections::BTreeSet;

use crate::stored;
use crate::support::Workspace;
use crate::timeline::{PAUSE, Timeline};
use crate::world::{self, Expected};

/// A result that is known to be stored.
#[derive(Debug)]
pub struct Done {
    /// How often it was executed by then.
    count: usize,
    /// The beginning of the record that stands for it.
    record: String,
}

impl Timeline {
    /// The store as it lies there, in a place of its own.
    pub(super) fn copy(&self) -> Workspace {
        let copy = Workspace::empty();
        self.state.write(&copy, &self.ledger, PAUSE);
        stored::copy(&self.workspace, &copy);
        copy
    }

    /// These records may go, for a reason; what stands on them may be done again. Everything else
    /// is asked for as before.
    pub(super) fn let_go(&mut self, records: &BTreeSet<String>) {
        let is_one = |begin: &str| records.iter().any(|record| record.starts_with(begin));
        self.done.retain(|_, done| !is_one(&done.record));
        self.records.retain(|record| !records.contains(record));
    }

    /// What must hold at any time.
    pub(super) fn hold(&mut self) {
        let expected = self.state.expected();
        let ledger = world::ledger(&self.ledger);
        for (line, done) in &self.done {
            assert_eq!(
                ledger[line], done.count,
                "`{line}` was stored and executed again"
            );
        }
        // As it is found, maybe before the next writer has taken in what a killed one left.
        let found = world::reused(&self.workspace);
        let values = world::values(&self.workspace);
        for (name, record) in &found {
            let value = expected[name].value;
            let value = value.unwrap_or_else(|| panic!("{name} has no good result to reuse"));
            assert_eq!(values.get(name), Some(&value), "the number of {name}");
            let document = stored::document(&self.workspace, record);
            assert_eq!(document, world::document(value), "what {name} left");
        }
        // And once that is taken in: elsewhere, so that here a build still meets it.
        let copy = self.copy();
        let verified = copy.doe(&["cache", "verify", "--json"]).ok().json();
        assert_eq!(
            verified["index"], true,
            "the index was held against nothing"
        );
        let records = stored::records(&copy);
        assert_eq!(
            world::records(&copy),
            records,
            "the index lists other records than lie there"
        );
        let lost: Vec<_> = self.records.difference(&records).collect();
        assert!(lost.is_empty(), "records are gone: {lost:?}");
        let reused = world::reused(&copy);
        for (name, Expected { line, value, needs }) in &expected {
            let Some(line) = line else {
                assert!(!reused.contains_key(name), "{name} stands on what does not");
                continue;
            };
            // Whether one whose needs are to run is found again shows only when they have run:
            // they may well give the numbers that they gave before.
            let is_known = needs.iter().all(|need| reused.contains_key(need));
            if is_known && self.done.contains_key(line) && value.is_some() {
                assert!(reused.contains_key(name), "`{line}` was stored and is lost");
            }
            // A refusal that was cut short may be known to its file alone.
            let lies = |begin: &String| records.iter().any(|record| record.starts_with(begin));
            if is_known && found.get(name).is_some_and(lies) {
                assert!(
                    reused.contains_key(name),
                    "{name} stood until a writer came"
                );
            }
            if let Some(record) = reused.get(name) {
                let done = Done {
                    count: ledger[line],
                    record: record.clone(),
                };
                self.done.entry(line.clone()).or_insert(done);
            }
        }
        self.records = records;
    }
}
