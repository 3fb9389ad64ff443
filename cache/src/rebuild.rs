//! The index made again from the records, which are the truth. What is damaged is moved to
//! quarantine, what cannot be read by this version is left alone, and both are reported.

use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::index;
use crate::layout::Layout;
use crate::record::Record;
use crate::store::Store;
use crate::write;
use std::fs;
use std::path::{Path, PathBuf};

/// What a rebuild found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Records in the new index.
    pub indexed: u64,
    /// Those of them that lack an output blob, so that they cannot be reused.
    pub incomplete: Vec<Digest>,
    /// Damaged files: where they lie now, and what was wrong.
    pub quarantined: Vec<(PathBuf, String)>,
    /// Files that were left alone, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

impl Store {
    /// Makes the index of the store at `root` again. Runs and their nodes are kept when the old
    /// index can be read. Spec keys that were linked to older records come back with the next
    /// build, which finds the records by action key.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::SchemaTooNew`] when a newer program made the index.
    pub fn rebuild(root: impl AsRef<Path>) -> Result<(Self, RebuildReport)> {
        let layout = Layout::new(root.as_ref());
        let mut report = RebuildReport::default();
        let store = match Self::open(root.as_ref()) {
            Err(error) if index::is_damage(&error) => {
                set_aside(&layout, &error, &mut report)?;
                Self::open(root.as_ref())?
            }
            other => other?,
        };
        let filled = store.fill(&mut report);
        match filled {
            // The damage was further in than opening looks.
            Err(error) if index::is_damage(&error) => {
                drop(store);
                let mut report = RebuildReport::default();
                set_aside(&layout, &error, &mut report)?;
                let store = Self::open(root.as_ref())?;
                store.fill(&mut report)?;
                Ok((store, report))
            }
            other => other.map(|()| (store, report)),
        }
    }

    fn fill(&self, report: &mut RebuildReport) -> Result<()> {
        let mut files = Vec::new();
        durable::files_below(&self.layout().records(), &mut |path, _| {
            files.push(path.to_owned());
        })?;
        files.sort();
        self.transaction(|db| {
            write::clear(db)?;
            for path in &files {
                let Some(digest) = digest_of_name(path) else {
                    let why = "its name is not that of a record".to_owned();
                    report.skipped.push((path.clone(), why));
                    continue;
                };
                let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
                if Digest::of(&bytes) != digest {
                    let name = format!("{digest}.json");
                    let moved = durable::quarantine(path, &self.layout().quarantine(), &name)?;
                    let why = "its content does not match its digest".to_owned();
                    report.quarantined.push((moved, why));
                    continue;
                }
                let record = match Record::from_bytes(&bytes) {
                    Ok(record) => record,
                    Err(error) => {
                        report.skipped.push((path.clone(), error.to_string()));
                        continue;
                    }
                };
                let here = record
                    .outputs
                    .values()
                    .all(|o| self.cas().size(&o.digest) == Some(o.size_bytes));
                let complete = here || self.is_imported(&digest);
                if !complete {
                    report.incomplete.push(digest);
                }
                write::insert_record(db, &digest, bytes.len() as u64, &record, complete)?;
                report.indexed += 1;
            }
            Ok(())
        })
    }
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
