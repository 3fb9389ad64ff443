//! Blobs as the store hands them out: always verified, and when one turns out to be damaged the
//! index hears of it, so that no record which needs it is reused.

use crate::candidates;
use crate::cas::Blob;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;
use rusqlite::Connection;
use std::path::{Path, PathBuf};

impl Store {
    /// The file of a blob, verified, to hand it to another program.
    ///
    /// # Errors
    /// As [`crate::Cas::get`].
    pub fn blob_path(&self, digest: &Digest) -> Result<PathBuf> {
        let found = self
            .cas()
            .open(digest)
            .and_then(|_| self.cas().path(digest));
        self.told(digest, found)
    }

    /// Reads a blob again although this process has verified it before: whether it is still what
    /// its digest says. One that is not is put aside.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`].
    pub fn unchanged(&self, digest: &Digest) -> Result<bool> {
        self.cas().distrust(digest);
        let found = self.cas().open(digest).map(|_| true);
        match self.told(digest, found) {
            Err(Error::Corrupt { .. } | Error::NotFound { .. }) => Ok(false),
            other => other,
        }
    }

    /// A damaged blob was moved away, or other hands took it: records that need it can no longer
    /// be reused.
    pub(crate) fn told<T>(&self, digest: &Digest, found: Result<T>) -> Result<T> {
        if self.writable().is_err() {
            return found;
        }
        match &found {
            Err(Error::Corrupt { .. }) => {
                self.transaction(|db| self.lost_blob(db, digest))?;
            }
            Err(Error::NotFound { .. }) if self.is_counted_on(digest)? => {
                self.transaction(|db| match self.cas().contains(digest) {
                    // Somebody made it again meanwhile.
                    true => Ok(0),
                    false => self.lost_blob(db, digest),
                })?;
            }
            _ => {}
        }
        found
    }

    /// Whether a record is reused because the index takes this blob to be here.
    fn is_counted_on(&self, digest: &Digest) -> Result<bool> {
        let losers = candidates::losers(&self.index(), digest, &|record| self.is_imported(record))?;
        Ok(!losers.is_empty())
    }

    /// Stores a blob: see [`crate::Cas::put_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Blob> {
        self.cas().put_bytes(bytes)
    }

    /// Stores a file as a blob: see [`crate::Cas::put_file`].
    ///
    /// # Errors
    /// As there.
    pub fn put_file(&self, path: impl AsRef<Path>) -> Result<Blob> {
        self.cas().put_file(path)
    }

    /// Tells the index of blobs that it held for gone and that are here again.
    pub(crate) fn found_blobs(&self, db: &Connection) -> Result<()> {
        candidates::found_blobs(db, &|blob, size| self.cas().size(blob) == Some(size))
    }

    /// Tells the index of all blobs that it counts on and that are gone.
    pub(crate) fn lost_blobs(&self, db: &Connection) -> Result<()> {
        candidates::lost_blobs(db, &|record, blob, size| {
            self.cas().size(blob) == Some(size) || self.is_imported(record)
        })
    }

    /// Tells the index that a blob is gone. Records of a mirror still have theirs there.
    pub(crate) fn lost_blob(&self, db: &Connection, blob: &Digest) -> Result<usize> {
        candidates::lost_blob(db, blob, &|record| self.is_imported(record))
    }
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
