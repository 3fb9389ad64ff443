//! Links in files: that a stored record came to stand for a key or a label which it was not
//! recorded under. The links of one batch are one immutable file named by its digest, so the
//! index can be made again with every link in it; a link whose record is gone means nothing.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::json::canonical_json;
use crate::store::Store;
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

/// Version of the format that this program writes, and the newest it reads.
const LINKS_SCHEMA: u32 = 1;

/// A link with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    /// The key that leads to the record.
    pub spec_key: Digest,
    /// The record that stands for it.
    pub record: Digest,
    /// The label that it stands for.
    pub label: String,
    /// Since when: against records and other links, the later one wins.
    pub linked_unix_ms: u64,
}

/// What one file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkFile {
    schema: u32,
    /// In the order in which they were made.
    pub(crate) links: Vec<Linked>,
}

impl LinkFile {
    pub(crate) fn new(links: Vec<Linked>) -> Self {
        Self {
            schema: LINKS_SCHEMA,
            links,
        }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        canonical_json(self)
    }

    /// Reads a file; the caller has checked the digest of the bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| Error::Corrupt {
            what: "a file of links".to_owned(),
            detail: e.to_string(),
            quarantined: None,
        })?;
        if file.schema > LINKS_SCHEMA {
            return Err(Error::SchemaTooNew {
                what: "file of links",
                found: file.schema,
                supported: LINKS_SCHEMA,
            });
        }
        Ok(file)
    }
}

impl Store {
    /// The links that lead to a record, in the order in which they were made.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn links_of(&self, record: &Digest) -> Result<Vec<Linked>> {
        let db = self.index();
        let mut statement = db.prepare_cached(
            "SELECT k.spec_key, k.label, k.linked_unix_ms
             FROM link k JOIN record r ON r.id = k.record_id WHERE r.digest = ?1
             ORDER BY k.linked_unix_ms, k.spec_key, k.label",
        )?;
        let rows = statement.query_map([record.as_bytes()], |row| {
            Ok(Linked {
                spec_key: Digest::from_bytes(row.get(0)?),
                record: *record,
                label: row.get(1)?,
                linked_unix_ms: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The record with these outputs: one of the label rather than another, a usable one rather
    /// than not, the latest.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn by_output(&self, output: &Digest, label: &str) -> Result<Option<Digest>> {
        let db = self.index();
        let found = db
            .prepare_cached(
                "SELECT digest FROM record WHERE output_digest = ?1
                 ORDER BY label = ?2 DESC, usable DESC, recorded_unix_ms DESC, digest DESC LIMIT 1",
            )?
            .query_row(rusqlite::params![output.as_bytes(), label], |row| {
                row.get(0)
            })
            .optional()?;
        Ok(found.map(Digest::from_bytes))
    }
}
