//! Pins: records that no collection removes, with all that they were made from. A pin is a file
//! of its own beside the records, so it survives the loss of the index.

use crate::checked;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::read;
use crate::store::{Store, now_unix_ms};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The record.
    pub record: Digest,
    /// What for, for people.
    pub reason: String,
    /// Since when.
    pub pinned_unix_ms: u64,
}

impl Store {
    /// Pins a record. An older pin of it is replaced.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such record, [`Error::Io`], [`Error::ReadOnly`].
    pub fn pin(&self, record: &Digest, reason: &str) -> Result<Pin> {
        self.writable()?;
        self.record(record)?;
        let pin = Pin {
            record: *record,
            reason: reason.to_owned(),
            pinned_unix_ms: now_unix_ms(),
        };
        checked::write(self.layout(), self.layout().pin(record), &pin)?;
        Ok(pin)
    }

    /// Takes a pin away; says whether there was one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn unpin(&self, record: &Digest) -> Result<bool> {
        self.writable()?;
        let path = self.layout().pin(record);
        let there = durable::remove(&path)?;
        durable::sync_parents([&*path])?;
        Ok(there)
    }

    /// Takes the pins of several records away, or none when one of them has none.
    ///
    /// # Errors
    /// [`Error::NotFound`] when one is not pinned; [`Error::Io`], [`Error::ReadOnly`].
    pub fn unpin_all(&self, records: &[Digest]) -> Result<()> {
        let is_free = |record: &&Digest| !self.layout().pin(record).exists();
        if let Some(free) = records.iter().find(is_free) {
            return Err(Error::not_found(format!("a pin of record `{free}`")));
        }
        records
            .iter()
            .try_for_each(|record| self.unpin(record).map(|_| ()))
    }

    /// The one pinned record whose digest begins with these digits (at least four), whether or not
    /// it is in the store: a pin outlives a refusal, and one that is damaged keeps its name.
    ///
    /// # Errors
    /// [`Error::BadDigest`] when several do, [`Error::NotFound`] when none does.
    pub fn resolve_pin(&self, prefix: &str) -> Result<Digest> {
        let (low, high) = read::range(prefix)?;
        let pinned = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<Digest>().ok();
        let files = checked::files(&self.layout().pins(), ".json")?;
        let mut found: Vec<Digest> = files.iter().filter_map(pinned).collect();
        found.retain(|record| (low..=high).contains(record));
        match found[..] {
            [one] => Ok(one),
            [] => Err(Error::not_found(format!("a pin of record `{prefix}…`"))),
            _ => Err(read::ambiguous(prefix)),
        }
    }

    /// All pins, by record.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when one cannot be read: nothing may be collected then.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        let mut pins = Vec::new();
        for path in checked::files(&self.layout().pins(), ".json")? {
            let pin: Pin = checked::read(&path)?;
            if self.layout().pin(&pin.record) != path {
                return Err(Error::Corrupt {
                    what: format!("`{}`", path.display()),
                    detail: format!("it pins `{}`", pin.record.short()),
                    quarantined: None,
                });
            }
            pins.push(pin);
        }
        Ok(pins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::put;
    use std::fs;

    #[test]
    fn pins_are_taken_away_together_and_without_their_records() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let [one, two, free] = [1, 2, 3].map(|seed| put(&store, "//t:p", seed));
        store.pin(&one, "paper").unwrap();
        store.pin(&two, "paper").unwrap();
        let error = store.unpin_all(&[one, free]).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert_eq!(store.pins().unwrap().len(), 2);
        // Refused since, and the pin damaged: it still says what it is of.
        store.quarantine(&one, "no").unwrap();
        assert!(store.resolve(&one.hex()).is_err());
        let pin = store.layout().pin(&one);
        fs::remove_file(&pin).unwrap();
        fs::write(&pin, "rubbish").unwrap();
        assert_eq!(store.resolve_pin(&one.hex()[..8]).unwrap(), one);
        let error = store.resolve_pin(&free.hex()).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        for bad in ["", "abc", "wxyz"] {
            let error = store.resolve_pin(bad).unwrap_err();
            assert!(matches!(error, Error::BadDigest { .. }), "{error}");
        }
        store.unpin_all(&[one, two]).unwrap();
        assert_eq!(store.pins().unwrap(), []);
    }
}
