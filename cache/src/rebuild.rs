//! The index made again from the files, which are the truth: records, links, notes of runs. What
//! is damaged is moved to quarantine, what cannot be read by this version is left alone, and both
//! are reported. After a crash the same walk takes in what had become durable but not indexed.

use crate::candidates;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::index;
use crate::layout::Layout;
use crate::links::LinkFile;
use crate::lock::WriterLock;
use crate::notes::{self, Told};
use crate::quarantine;
use crate::record::{LAST_UNIX_MS, Record};
use crate::store::Store;
use crate::whole;
use crate::write;
use rusqlite::Connection;
use serde::Deserialize;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a rebuild found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Records in the new index.
    pub indexed: u64,
    /// Links between keys and records recorded under other keys.
    pub links: u64,
    /// Runs in the new index.
    pub runs: u64,
    /// Those of the records that lack an output blob, so that they cannot be reused.
    pub incomplete: Vec<Digest>,
    /// Damaged files: where they lie now, and what was wrong.
    pub quarantined: Vec<(PathBuf, String)>,
    /// Files that were left alone, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// What was found after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Who died holding the lock, in words.
    pub died: Option<String>,
    /// Records that were durable and are in the index only now.
    pub records: u64,
    /// Half-written files that were removed.
    pub swept: u64,
}

/// The little of a record that its place in the index depends on.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    recorded_unix_ms: u64,
}

impl Store {
    /// Makes the index of the store at `root` again. Runs whose folders are gone are kept when
    /// the old index can be read.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::SchemaTooNew`] when a newer program made the index.
    pub fn rebuild(root: impl AsRef<Path>) -> Result<(Self, RebuildReport)> {
        let root = root.as_ref();
        let mut report = RebuildReport::default();
        // Filled anew an index keeps its shape and the rows that no record tells: only one that
        // has all of these is filled.
        let filled = Self::open_index(root).and_then(|store| {
            whole::check(&store.index())?;
            whole::check_pages(&store.index())?;
            store.fill(&mut report)?;
            Ok(store)
        });
        let store = match filled {
            Err(error) if index::is_damage(&error) => {
                report = RebuildReport::default();
                Self::bring_out(root, &mut report);
                set_aside(&Layout::new(root), &error, &mut report)?;
                let store = Self::open_index(root)?;
                store.fill(&mut report)?;
                store
            }
            other => other?,
        };
        Ok((store, report))
    }

    /// What only an index knows that is to be put aside: brought to the files, as far as it can be
    /// asked. One whose pages do not fit together is not believed.
    fn bring_out(root: &Path, report: &mut RebuildReport) {
        let Ok(store) = Self::open_index(root) else {
            return;
        };
        if whole::check_pages(&store.index()).is_err() {
            return;
        }
        let brought = store.transaction(|db| notes::bring(db, store.layout()));
        report.quarantined.extend(brought.unwrap_or_default());
        // What it does not tell is lost with it.
        let _ = store.transaction(|db| store.mend(db, report));
    }

    /// Fills the index from the files, whatever it held before.
    pub(crate) fn fill(&self, report: &mut RebuildReport) -> Result<()> {
        durable::sync_all(self.layout().root())?;
        self.transaction(|db| {
            // What a healthy index knows of damaged files must not go with them.
            report.quarantined.extend(notes::bring(db, self.layout())?);
            self.mend(db, report)?;
            write::clear(db)?;
            report.indexed = self.take_records(db, &HashSet::new(), report)?;
            report.links = self.take_links(db, report)?;
            report.runs = self.take_runs(db, report)?;
            Ok(())
        })?;
        self.reload_stamp()
    }

    /// Clears up after a process that died while it wrote: half-written files are removed, and
    /// records and links that had become durable but not indexed are taken in.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn recover(&self, lock: &WriterLock) -> Result<Recovered> {
        let swept = self.sweep_tmp(lock)?;
        let unsettled = self.layout().unsettled();
        let failed = unsettled.exists().then_some("a write failed");
        let died = lock.predecessor().or(failed);
        if died.is_some() {
            // Files that are in their places may not be on disk, and are about to be built on.
            durable::sync_all(self.layout().root())?;
        }
        self.settle_notes(died.is_some())?;
        let Some(died) = died else {
            return Ok(Recovered {
                swept,
                ..Recovered::default()
            });
        };
        let mut report = RebuildReport::default();
        let records = self.transaction(|db| {
            self.mend(db, &mut report)?;
            for digest in quarantine::all_refused(self.layout())? {
                candidates::forget(db, &digest)?;
            }
            let known: HashSet<Digest> = db
                .prepare("SELECT digest FROM record")?
                .query_map([], |row| row.get(0).map(Digest::from_bytes))?
                .collect::<rusqlite::Result<_>>()?;
            // What died may have put files aside, or lost them, and told nobody.
            let is_gone = |digest: &&Digest| !self.layout().record(digest).exists();
            for digest in known.iter().filter(is_gone) {
                candidates::forget(db, digest)?;
            }
            self.lost_blobs(db)?;
            let records = self.take_records(db, &known, &mut report)?;
            // Blobs that were lost before may have come back with what was being written.
            self.found_blobs(db)?;
            self.take_links(db, &mut report)?;
            Ok(records)
        })?;
        self.reload_stamp()?;
        if failed.is_some() {
            fs::remove_file(&unsettled).map_err(|e| Error::io("remove", &unsettled, &e))?;
        }
        Ok(Recovered {
            died: Some(died.to_owned()),
            records,
            swept,
        })
    }

    fn mend(&self, db: &Connection, report: &mut RebuildReport) -> Result<()> {
        let aside = self.mend_links(db)?.into_iter();
        let told = aside.map(|(_, now)| (now, quarantine::MISMATCH.to_owned()));
        report.quarantined.extend(told);
        Ok(())
    }

    pub(crate) fn take_records(
        &self,
        db: &Connection,
        known: &HashSet<Digest>,
        report: &mut RebuildReport,
    ) -> Result<u64> {
        let mut found = Vec::new();
        let refused = quarantine::all_refused(self.layout())?;
        for (path, digest) in named(&self.layout().records(), known, report)? {
            // Whoever refused it died before its file was gone.
            if refused.contains(&digest) {
                if self.writable().is_ok() {
                    quarantine::put_away(self.layout(), &path, &digest)?;
                }
                continue;
            }
            if let Some(bytes) = self.intact(&path, &digest, report)? {
                let head = serde_json::from_slice::<Head>(&bytes);
                found.push((head.map_or(0, |h| h.recorded_unix_ms), digest, path));
            }
        }
        // As they came, so that even rows in no asked-for order come out alike.
        found.sort();
        let mut count = 0;
        for (_, digest, path) in found {
            let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
            let record = match Record::from_bytes(&bytes) {
                // It would stand above all that is still to come.
                Ok(record) if record.recorded_unix_ms > LAST_UNIX_MS => {
                    let why = "its time is beyond the year 9999".to_owned();
                    report.skipped.push((path, why));
                    continue;
                }
                Ok(record) => record,
                Err(error) => {
                    report.skipped.push((path, error.to_string()));
                    continue;
                }
            };
            let mut outputs = record.outputs.values();
            let complete = outputs.all(|o| self.cas().size(&o.digest) == Some(o.size_bytes));
            let complete = complete || self.is_imported(&digest);
            if !complete {
                report.incomplete.push(digest);
            }
            write::insert_record(db, &digest, bytes.len() as u64, &record, complete)?;
            count += 1;
        }
        Ok(count)
    }

    pub(crate) fn take_links(&self, db: &Connection, report: &mut RebuildReport) -> Result<u64> {
        let mut links = Vec::new();
        for (path, digest) in named(&self.layout().links(), &HashSet::new(), report)? {
            let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
            if Digest::of(&bytes) != digest {
                // What the index has of it is to be written anew before it is put aside.
                report.skipped.push((path, quarantine::MISMATCH.to_owned()));
                continue;
            }
            match LinkFile::from_bytes(&bytes) {
                Ok(file) => links.extend(file.links),
                Err(error) => report.skipped.push((path, error.to_string())),
            }
        }
        links.sort_by_key(|link| link.linked_unix_ms);
        let mut count = 0;
        for link in &links {
            count += u64::from(candidates::link(db, link)?);
        }
        Ok(count)
    }

    pub(crate) fn take_runs(&self, db: &Connection, report: &mut RebuildReport) -> Result<u64> {
        let mut runs: Vec<Told> = Vec::new();
        for path in notes::files(self.layout())? {
            match notes::read(&path)? {
                Ok(told) => {
                    if let Some(damage) = &told.damage {
                        report.skipped.push((path, damage.clone()));
                    }
                    runs.push(told);
                }
                Err(why) => report.skipped.push((path, why.to_string())),
            }
        }
        runs.sort_by_key(Told::place);
        runs.iter().try_for_each(|told| notes::replay(db, told))?;
        Ok(runs.len() as u64)
    }

    /// The content of a file named by its digest; a damaged one is moved to quarantine.
    fn intact(
        &self,
        path: &Path,
        digest: &Digest,
        report: &mut RebuildReport,
    ) -> Result<Option<Vec<u8>>> {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
        if Digest::of(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        let why = quarantine::MISMATCH.to_owned();
        let place = match self.writable() {
            Ok(()) => quarantine::aside(self.layout(), path, &format!("{digest}.json"), &why)?,
            // Whoever only looks moves nothing.
            Err(_) => path.to_owned(),
        };
        report.quarantined.push((place, why));
        Ok(None)
    }
}

/// Files two levels down with the digest that each is named by, less the known ones, in order.
fn named(
    dir: &Path,
    known: &HashSet<Digest>,
    report: &mut RebuildReport,
) -> Result<Vec<(PathBuf, Digest)>> {
    let mut files = Vec::new();
    durable::files_below(dir, &mut |path, _| files.push(path.to_owned()))?;
    files.sort();
    let mut found = Vec::with_capacity(files.len());
    for path in files {
        match digest_of_name(&path) {
            Some(digest) if known.contains(&digest) => {}
            Some(digest) => found.push((path, digest)),
            None => {
                let why = "its name is not a digest".to_owned();
                report.skipped.push((path, why));
            }
        }
    }
    Ok(found)
}

fn set_aside(layout: &Layout, error: &Error, report: &mut RebuildReport) -> Result<()> {
    for path in index::set_aside(layout)? {
        report.quarantined.push((path, error.to_string()));
    }
    Ok(())
}

fn digest_of_name(path: &Path) -> Option<Digest> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".json")?;
    stem.parse().ok()
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;
