//! Pins: records that no collection removes, with all that they were made from. A pin is a file
//! of its own beside the records, so it survives the loss of the index.

use crate::checked;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::store::{Store, now_unix_ms};
use serde::{Deserialize, Serialize};

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
