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

/// A refused record that cannot be taken back.
const DAMAGED: &str =
    "its content does not match its digest: it stays refused and cannot be taken back";

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

/// Whether a file there refuses the record that it is named by. What a person refused stays refused
/// when its content is damaged later, as its note says; and when the note is, as the content does.
/// What was put aside because it was damaged refuses nothing: a good copy of it may come back.
fn refuses(path: &Path, record: &Digest) -> bool {
    let note = checked::read::<Note>(&note_of(path));
    note.is_ok_and(|note| note.why != MISMATCH) || is_whole(path, record)
}

/// Where the whole copy of a refused record lies.
fn whole(layout: &Layout, record: &Digest) -> Result<Option<PathBuf>> {
    let copies = copies(layout, record)?;
    Ok(copies.into_iter().find(|path| is_whole(path, record)))
}

/// Takes away the file of a refused record that came back among the others. Where the copy in
/// quarantine is damaged it goes there, so that the refusal can be taken back.
pub(crate) fn put_away(layout: &Layout, file: &Path, record: &Digest) -> Result<()> {
    if is_whole(file, record) && whole(layout, record)?.is_none() {
        let mut notes = copies(layout, record)?.into_iter().filter_map(|copy| {
            let note = checked::read::<Note>(&note_of(&copy)).ok()?;
            (note.why != MISMATCH).then_some(note.why)
        });
        let why = notes.next().unwrap_or_else(|| "refused before".to_owned());
        return aside(layout, file, &name_of(record), &why).map(|_| ());
    }
    durable::remove(file)?;
    durable::sync_parents([file])
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
    let refused = |path: &PathBuf| named_by(path).filter(|record| refuses(path, record));
    Ok(records(layout)?.iter().filter_map(refused).collect())
}

/// All records that are refused, those whose outputs they were read out of, and of these others
/// those that were read anew, here or elsewhere, out of one of them: they stand for the same
/// execution, whichever of its records are here.
pub(crate) fn refused_with<'r>(
    layout: &Layout,
    others: impl Iterator<Item = (Digest, &'r Record)> + Clone,
) -> Result<HashSet<Digest>> {
    let mut refused = all_refused(layout)?;
    let origins = whole_records(layout)?.into_iter();
    refused.extend(origins.filter_map(|(_, record)| record.rejudged_from));
    loop {
        let before = refused.len();
        for (digest, record) in others.clone() {
            if record
                .rejudged_from
                .is_some_and(|from| refused.contains(&from))
            {
                refused.insert(digest);
            }
        }
        if refused.len() == before {
            return Ok(refused);
        }
    }
}

/// Records that are refused and can be taken back, as files.
pub(crate) fn whole_records(layout: &Layout) -> Result<Vec<(Digest, Record)>> {
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).ok()?;
        let digest = named_by(&path).filter(|digest| *digest == Digest::of(&bytes))?;
        Some((digest, Record::from_bytes(&bytes).ok()?))
    };
    Ok(records(layout)?.into_iter().filter_map(read).collect())
}

/// What is wrong with refusals: files and words. One that was damaged still refuses, as long as
/// not both its content and its note are.
pub(crate) fn damage(layout: &Layout) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut found = Vec::new();
    for path in records(layout)? {
        let note = note_of(&path);
        let read = checked::read::<Note>(&note);
        if note.exists() && read.is_err() {
            found.push((note, "it does not match its check"));
        }
        let refused = read.is_ok_and(|note| note.why != MISMATCH);
        if refused && named_by(&path).is_some_and(|record| !is_whole(&path, &record)) {
            found.push((path, DAMAGED));
        }
    }
    Ok(found)
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
    /// Refuses an execution: a record and every other one that was read out of the same outputs
    /// (see [`Store::execution`]) are no longer in the index, and their files are put aside. What
    /// stood for their keys and labels before takes their place. Gives those that were refused.
    ///
    /// Each refusal stands by itself, and the latest record goes last: after a crash either the
    /// label still has the record that it had, and asking again refuses the rest, or all is done.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Io`], [`Error::ReadOnly`].
    pub fn quarantine(&self, record: &Digest, why: &str) -> Result<Vec<Digest>> {
        self.writable()?;
        let layout = self.layout();
        let mut all = self.execution(record)?;
        if !all.contains(record) {
            // One that waits to be indexed; or one that was refused before the others were.
            let there = layout.record(record).exists();
            if !there && (all.is_empty() || !self.is_refused(record)?) {
                return Err(Error::not_found(format!("record `{record}`")));
            }
            all.extend(there.then_some(*record));
        }
        // The refusals first: from then on neither a crash nor a rebuild brings a record back.
        self.settled(|| {
            let paths: Vec<PathBuf> = all.iter().map(|it| layout.record(it)).collect();
            for (record, path) in all.iter().zip(&paths) {
                if path.exists() && whole(layout, record)?.is_none() {
                    keep(layout, path, &name_of(record), why)?;
                }
            }
            self.transaction(|db| {
                let mut all = all.iter();
                all.try_for_each(|it| candidates::forget(db, it).map(|_| ()))
            })?;
            for path in &paths {
                durable::remove(path)?;
            }
            durable::sync_parents(paths.iter().map(PathBuf::as_path))
        })?;
        Ok(all)
    }

    /// Whether a person refused the record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_refused(&self, record: &Digest) -> Result<bool> {
        let mut copies = copies(self.layout(), record)?.into_iter();
        Ok(copies.any(|path| refuses(&path, record)))
    }

    /// Takes a record back from quarantine, with every other one of the same execution that is
    /// refused. Gives those that are back.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there; [`Error::Corrupt`] when its content does not
    /// match its digest: then it stays where it is.
    pub fn restore(&self, record: &Digest) -> Result<Vec<Digest>> {
        self.writable()?;
        let all = self.refused_of_execution(record)?;
        // When only a part came back before a crash, that one may be here again.
        let is_back = !all.is_empty() && self.layout().record(record).exists();
        if !all.contains(record) && !is_back {
            let Some(path) = copies(self.layout(), record)?.pop() else {
                return Err(Error::not_found(format!("record `{record}` in quarantine")));
            };
            if let Some(path) = whole(self.layout(), record)? {
                // Of a newer version, perhaps.
                let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
                Record::from_bytes(&bytes)?;
            }
            let found = Digest::of_file(&path)?;
            return Err(Error::Corrupt {
                what: format!("record `{}`", record.short()),
                detail: format!("its content has the digest `{}`", found.short()),
                quarantined: Some(path),
            });
        }
        all.iter().try_for_each(|it| self.restore_one(it))?;
        Ok(all)
    }

    fn restore_one(&self, record: &Digest) -> Result<()> {
        let copies = copies(self.layout(), record)?;
        let (whole, damaged): (Vec<_>, Vec<_>) =
            copies.iter().partition(|path| is_whole(path, record));
        let Some(path) = whole.first() else {
            return Err(Error::not_found(format!("record `{record}` in quarantine")));
        };
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
        let parsed = Record::from_bytes(&bytes)?;
        let file = (
            Temp::with(&self.layout().tmp(), &bytes)?,
            self.layout().record(record),
        );
        self.settled(|| {
            durable::publish(self.layout().root(), vec![vec![file]])?;
            self.index_record(record, bytes.len() as u64, &parsed)?;
            // A damaged copy is not to refuse any more.
            for path in damaged.into_iter().filter(|path| refuses(path, record)) {
                explain(self.layout(), path, MISMATCH)?;
            }
            for path in &whole {
                durable::remove(&note_of(path))?;
                durable::remove(path)?;
            }
            durable::sync_parents(whole.iter().map(|path| path.as_path()))
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
        let refuses = |path: &PathBuf| named_by(path).is_some_and(|record| refuses(path, &record));
        let files = records(self.layout())?.into_iter().filter(refuses);
        let read = files.filter_map(|path| Record::from_bytes(&fs::read(path).ok()?).ok());
        Ok(read.filter(|record| record.label == label).collect())
    }
}

#[cfg(test)]
#[path = "quarantine_tests.rs"]
mod tests;
