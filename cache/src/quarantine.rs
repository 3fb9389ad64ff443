//! What may not be used is put aside, never deleted: under `quarantine/`, with a note that says
//! why and since when. A record that a person refused can be taken back as long as it lies there.

use crate::candidates;
use crate::checked;
use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::rebuild::RebuildReport;
use crate::record::Record;
use crate::store::{Store, now_unix_ms};
use crate::write;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Why most of it is there.
pub(crate) const MISMATCH: &str = "its content does not match its digest";

/// Ends the name of the note beside a file in quarantine.
const WHY: &str = ".why";

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    why: String,
    since_unix_ms: u64,
}

/// A file in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it lies.
    pub path: PathBuf,
    /// Why, when a note says so.
    pub why: Option<String>,
    /// Since when.
    pub since_unix_ms: Option<u64>,
}

/// Puts a file aside under this name or a numbered one, with a note. Where it went.
pub(crate) fn aside(layout: &Layout, file: &Path, name: &str, why: &str) -> Result<PathBuf> {
    let moved = durable::quarantine(file, &layout.quarantine(), name)?;
    explain(layout, &moved, why)?;
    Ok(moved)
}

/// The same, and the file stays where it is too: for one that is about to be replaced.
pub(crate) fn keep(layout: &Layout, file: &Path, name: &str, why: &str) -> Result<PathBuf> {
    let kept = durable::keep(file, &layout.quarantine(), name)?;
    explain(layout, &kept, why)?;
    Ok(kept)
}

fn explain(layout: &Layout, file: &Path, why: &str) -> Result<()> {
    let note = Note {
        why: why.to_owned(),
        since_unix_ms: now_unix_ms(),
    };
    checked::write(layout, note_of(file), &note)
}

fn name_of(record: &Digest) -> String {
    format!("{record}.json")
}

/// Where a refused record lies. What lies there under its name and is not what the name says was
/// put aside because it was damaged: a good copy of that may come back.
pub(crate) fn refused(layout: &Layout, record: &Digest) -> Result<Option<PathBuf>> {
    let copies = copies(layout, record)?;
    Ok(copies.into_iter().find(|path| is_whole(path, record)))
}

fn is_whole(path: &Path, record: &Digest) -> bool {
    Digest::of_file(path).is_ok_and(|found| found == *record)
}

/// What lies there under the name of a record. A person may take any of them away, so that the
/// numbers need not follow on each other.
fn copies(layout: &Layout, record: &Digest) -> Result<Vec<PathBuf>> {
    let mut files = records(layout)?;
    files.retain(|path| named_by(path) == Some(*record));
    Ok(files)
}

/// The record that a file there is, or should be.
fn named_by(path: &Path) -> Option<Digest> {
    let (stem, _) = path.file_name()?.to_str()?.split_once(".json")?;
    stem.parse().ok()
}

/// All records that lie there, whole or not.
pub(crate) fn all(layout: &Layout) -> Result<HashSet<Digest>> {
    let files = records(layout)?;
    Ok(files.iter().filter_map(|path| named_by(path)).collect())
}

/// Files that are, or may once have been, records; see [`durable::numbered`].
pub(crate) fn records(layout: &Layout) -> Result<Vec<PathBuf>> {
    let mut files = checked::files(&layout.quarantine(), "")?;
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let end = name.split_once(".json").map(|(_, end)| end);
        let number = |end: &str| {
            end.strip_prefix('.')
                .is_some_and(|n| n.parse::<u32>().is_ok())
        };
        end.is_some_and(|end| end.is_empty() || number(end))
    });
    Ok(files)
}

/// All records that are refused.
pub(crate) fn all_refused(layout: &Layout) -> Result<HashSet<Digest>> {
    let refused = |path: &PathBuf| named_by(path).filter(|record| is_whole(path, record));
    Ok(records(layout)?.iter().filter_map(refused).collect())
}

/// Why records are there, by the label that they were of. Of several of one label, any; a file that
/// is no whole record says nothing.
pub(crate) fn labels(layout: &Layout) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for path in records(layout)? {
        let record = fs::read(&path).ok();
        let record = record.and_then(|bytes| Record::from_bytes(&bytes).ok());
        if let Some(record) = record {
            let note = checked::read::<Note>(&note_of(&path)).ok();
            let why = note.map_or_else(|| "no note says why".to_owned(), |note| note.why);
            found.insert(record.label, why);
        }
    }
    Ok(found)
}

fn note_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(WHY);
    PathBuf::from(name)
}

impl Store {
    /// Refuses a record: it is no longer in the index and its file is put aside. What stood for
    /// its key and label before takes its place.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], [`Error::ReadOnly`].
    pub fn quarantine(&self, record: &Digest, why: &str) -> Result<PathBuf> {
        self.writable()?;
        let path = self.layout().record(record);
        if !path.exists() {
            return Err(Error::not_found(format!("record `{record}`")));
        }
        // The refusal first: from then on neither a crash nor a rebuild brings the record back.
        self.settled(|| {
            let kept = match refused(self.layout(), record)? {
                Some(kept) => kept,
                None => keep(self.layout(), &path, &name_of(record), why)?,
            };
            self.transaction(|db| candidates::forget(db, record))?;
            durable::remove(&path)?;
            durable::sync_parents([&*path])?;
            Ok(kept)
        })
    }

    /// Whether a person refused the record.
    pub(crate) fn is_refused(&self, record: &Digest) -> Result<bool> {
        Ok(refused(self.layout(), record)?.is_some())
    }

    /// Takes a record back from quarantine.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there; [`Error::Corrupt`] when its content does not
    /// match its digest: then it stays where it is.
    pub fn restore(&self, record: &Digest) -> Result<()> {
        self.writable()?;
        let mut copies = copies(self.layout(), record)?;
        let whole = copies.iter().position(|path| is_whole(path, record));
        if copies.is_empty() {
            return Err(Error::not_found(format!("record `{record}` in quarantine")));
        }
        let path = copies.swap_remove(whole.unwrap_or(0));
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
        let found = Digest::of(&bytes);
        if found != *record {
            return Err(Error::Corrupt {
                what: format!("record `{}`", record.short()),
                detail: format!("its content has the digest `{}`", found.short()),
                quarantined: Some(path),
            });
        }
        let parsed = Record::from_bytes(&bytes)?;
        let file = (
            Temp::with(&self.layout().tmp(), &bytes)?,
            self.layout().record(record),
        );
        self.settled(|| {
            durable::publish(self.layout().root(), vec![vec![file]])?;
            self.index_record(record, bytes.len() as u64, &parsed)?;
            durable::remove(&note_of(&path))?;
            durable::remove(&path)?;
            durable::sync_parents([&*path])
        })
    }

    /// Adds a record whose file is in its place to the index.
    pub(crate) fn index_record(&self, digest: &Digest, size: u64, record: &Record) -> Result<()> {
        let mut outputs = record.outputs.values();
        let complete = outputs.all(|o| self.cas().size(&o.digest) == Some(o.size_bytes));
        let complete = complete || self.is_imported(digest);
        self.transaction(|db| {
            write::insert_record(db, digest, size, record, complete)?;
            // Links to it may have waited for it.
            self.take_links(db, &mut RebuildReport::default())
        })?;
        self.reload_stamp()
    }

    /// Everything in quarantine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let mut found = Vec::new();
        for path in checked::files(&self.layout().quarantine(), "")? {
            if path.to_string_lossy().ends_with(WHY) || !path.is_file() {
                continue;
            }
            // A note that cannot be read says nothing; the file is there all the same.
            let note = checked::read::<Note>(&note_of(&path)).ok();
            found.push(Quarantined {
                path,
                since_unix_ms: note.as_ref().map(|n| n.since_unix_ms),
                why: note.map(|n| n.why),
            });
        }
        Ok(found)
    }
}

impl Store {
    /// The records of a label that are refused.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn refused_of(&self, label: &str) -> Result<Vec<Record>> {
        let whole = |path: &PathBuf| named_by(path).is_some_and(|record| is_whole(path, &record));
        let files = records(self.layout())?.into_iter().filter(whole);
        let read = files.filter_map(|path| Record::from_bytes(&fs::read(path).ok()?).ok());
        Ok(read.filter(|record| record.label == label).collect())
    }
}

#[cfg(test)]
#[path = "quarantine_tests.rs"]
mod tests;
