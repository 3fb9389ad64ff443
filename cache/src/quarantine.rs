//! What may not be used is put aside, never deleted: under `quarantine/`, with a note that says
//! why and since when. A record that a person refused can be taken back as long as it lies there.

use crate::checked;
use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::rebuild::RebuildReport;
use crate::record::Record;
use crate::standing;
use crate::store::{Store, now_unix_ms};
use crate::write;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
    let note = Note {
        why: why.to_owned(),
        since_unix_ms: now_unix_ms(),
    };
    checked::write(layout, note_of(&moved), &note)?;
    Ok(moved)
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
        let path = self.layout().record(record);
        if !path.exists() {
            return Err(Error::not_found(format!("record `{record}`")));
        }
        self.transaction(|db| standing::forget(db, record))?;
        aside(self.layout(), &path, &format!("{record}.json"), why)
    }

    /// Takes a record back from quarantine.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there; [`Error::Corrupt`] when its content does not
    /// match its digest: then it stays where it is.
    pub fn restore(&self, record: &Digest) -> Result<()> {
        self.writable()?;
        let path = self.layout().quarantine().join(format!("{record}.json"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("record `{record}` in quarantine")));
            }
            Err(e) => return Err(Error::io("read", &path, &e)),
        };
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
        durable::publish(self.layout().root(), vec![vec![file]])?;
        self.index_record(record, bytes.len() as u64, &parsed)?;
        for path in [note_of(&path), path] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, &e));
                }
                _ => {}
            }
        }
        Ok(())
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
