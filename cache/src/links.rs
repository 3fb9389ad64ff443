//! Links in files: that a stored record came to stand for a key or a label which it was not
//! recorded under. The links of one batch are one immutable file named by its digest, so the
//! index can be made again with every link in it; a link whose record is gone means nothing.

use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result, if_there};
use crate::json::canonical_json;
use crate::quarantine;
use crate::store::Store;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Version of the format that this program writes, and the newest it reads.
const LINKS_SCHEMA: u32 = 1;

/// A link with its time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// All links that the index has, in the order in which they were made.
pub(crate) fn all(db: &Connection) -> Result<Vec<Linked>> {
    let mut statement = db.prepare(
        "SELECT k.spec_key, r.digest, k.label, k.linked_unix_ms
         FROM link k JOIN record r ON r.id = k.record_id
         ORDER BY k.linked_unix_ms, k.spec_key, k.label",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Linked {
            spec_key: Digest::from_bytes(row.get(0)?),
            record: Digest::from_bytes(row.get(1)?),
            label: row.get(2)?,
            linked_unix_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The digest that a file says by its name.
fn named(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".json")?.parse().ok()
}

impl Store {
    /// Files of links, and of those the damaged ones.
    pub(crate) fn link_files(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut files, mut damaged) = (Vec::new(), Vec::new());
        for path in durable::sorted_below(&self.layout().links())? {
            let Some(found) = if_there(Digest::of_file(&path))? else {
                continue; // collected meanwhile
            };
            if named(&path) != Some(found) {
                damaged.push(path.clone());
            }
            files.push(path);
        }
        Ok((files, damaged))
    }

    /// Puts damaged files of links aside, after what the index has of them was written anew.
    /// Gives where each lay and where it lies now.
    pub(crate) fn mend_links(&self, db: &Connection) -> Result<Vec<(PathBuf, PathBuf)>> {
        let (files, damaged) = self.link_files()?;
        if damaged.is_empty() {
            return Ok(Vec::new());
        }
        let mut held = HashSet::new();
        for path in files.iter().filter(|path| !damaged.contains(path)) {
            let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
            // One of a newer version holds what we cannot know: written twice does no harm.
            held.extend(LinkFile::from_bytes(&bytes).map_or(Vec::new(), |file| file.links));
        }
        let lost: Vec<Linked> = all(db)?.into_iter().filter(|l| !held.contains(l)).collect();
        let mut kept = Vec::new();
        for path in damaged {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("links-{name}");
            let now = quarantine::keep(self.layout(), &path, &name, quarantine::MISMATCH)?;
            kept.push((path, now));
        }
        let bytes = LinkFile::new(lost.clone()).to_bytes()?;
        let renewed = self.layout().link(&Digest::of(&bytes));
        if !lost.is_empty() {
            let temp = Temp::with(&self.layout().tmp(), &bytes)?;
            self.cas().flush_before(vec![(temp, renewed.clone())])?;
        }
        // A batch that nothing else is known of is written anew under its old name.
        let old = kept.iter().map(|(path, _)| path.as_path());
        let old = old.filter(|path| lost.is_empty() || **path != renewed);
        old.clone()
            .try_for_each(|path| durable::remove(path).map(|_| ()))?;
        durable::sync_parents(old)?;
        Ok(kept)
    }

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
