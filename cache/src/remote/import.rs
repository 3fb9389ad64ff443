//! Records from a mirror become records of the store. Their blobs may stay behind until they are
//! read, so beside each lies a note that says where they are; a rebuilt index honours it.

use super::mirror::Mirror;
use crate::candidates;
use crate::cas::Blob;
use crate::checked;
use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result, if_there};
use crate::quarantine;
use crate::read;
use crate::rebuild::RebuildReport;
use crate::record::Record;
use crate::store::Store;
use crate::summary::Summary;
use crate::write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A record that was fetched and verified.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its digest.
    pub digest: Digest,
    /// The record.
    pub record: Record,
    /// The bytes that have the digest.
    pub(super) bytes: Vec<u8>,
}

/// What lies beside a record from a mirror.
fn note_of(place: &str) -> Result<String> {
    checked::line(&place)
}

impl Store {
    /// Whether the note beside a record from a mirror is what was written. Older ones were the
    /// mirror's address and nothing else.
    pub(crate) fn is_sound_note(path: &Path) -> Result<bool> {
        let Some(bytes) = if_there(durable::read(path))? else {
            return Ok(true); // collected meanwhile, with its record
        };
        let address = |line: &[u8]| line.starts_with(b"s3://") && !line.contains(&b'\n');
        Ok(checked::of_line::<String>(&bytes).is_some()
            || bytes.strip_suffix(b"\n").is_some_and(address))
    }

    /// Writes such a note, durably, for a record whose origin is not known any more.
    pub(crate) fn renew_note(&self, path: &Path) -> Result<()> {
        checked::write(self.layout(), path.to_owned(), &"not known any more")
    }

    /// Lets blobs that are not here be read from a mirror. The first one stays.
    pub fn attach(&self, mirror: Arc<Mirror>) {
        // A second mirror would be a mistake without consequence.
        let _ = self.mirror.set(mirror);
    }

    /// Whether the record came from a mirror, so that its blobs may not be here.
    pub fn is_imported(&self, record: &Digest) -> bool {
        self.layout().imported_note(record).exists()
    }

    /// The mirror that a record came from, where that is known.
    pub fn mirror_of(&self, record: &Digest) -> Option<String> {
        let note = fs::read(self.layout().imported_note(record)).ok()?;
        let older = || String::from_utf8(note.strip_suffix(b"\n")?.to_owned()).ok();
        checked::of_line(&note).or_else(older)
    }

    /// Whether any record came from a mirror.
    pub fn has_imported(&self) -> bool {
        self.layout().imported().exists()
    }

    /// How many records came from a mirror.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn count_imported(&self) -> Result<u64> {
        let mut count = 0;
        crate::durable::files_below(&self.layout().imported(), &mut |_, _| count += 1)?;
        Ok(count)
    }

    /// Whether the record is in the store and may be reused.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn has_usable(&self, record: &Digest) -> Result<bool> {
        read::is_usable(&self.index(), record)
    }

    /// Whether a record of a mirror is of use here: it is not here, and nobody refused it.
    pub(super) fn wants(&self, record: &Digest) -> bool {
        !self.has_usable(record).unwrap_or(false) && !self.is_refused(record).unwrap_or(true)
    }

    /// What [`Store::import`] would take in.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn welcome(&self, records: &[Imported]) -> Result<Vec<Summary>> {
        let welcome = self.not_refused(records)?.into_iter();
        Ok(welcome
            .map(|found| found.record.summary(found.digest))
            .collect())
    }

    fn not_refused<'r>(&self, records: &'r [Imported]) -> Result<Vec<&'r Imported>> {
        let brought = records.iter().map(|found| (found.digest, &found.record));
        let refused = quarantine::refused_with(self.layout(), brought)?;
        let welcome = |found: &&Imported| !refused.contains(&found.digest);
        Ok(records.iter().filter(welcome).collect())
    }

    /// Takes records of a mirror in, durably, and gives their summaries. Those that were refused
    /// here stay out.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`]; then none of them is in the index.
    pub fn import(&self, records: &[Imported], place: &str) -> Result<Vec<Summary>> {
        let mut files: Vec<(Temp, PathBuf)> = Vec::new();
        let records = self.not_refused(records)?;
        for found in &records {
            let tmp = self.layout().tmp();
            let path = self.layout().record(&found.digest);
            files.push((Temp::with(&tmp, &found.bytes)?, path));
            let note = self.layout().imported_note(&found.digest);
            files.push((Temp::with(&tmp, note_of(place)?.as_bytes())?, note));
        }
        self.cas().flush_before(files)?;
        self.transaction(|db| {
            for found in &records {
                let Imported {
                    digest,
                    record,
                    bytes,
                } = *found;
                // It may be here without its blobs.
                candidates::forget(db, digest)?;
                write::insert_record(db, digest, bytes.len() as u64, record, true)?;
            }
            // Links to them may have waited.
            self.take_links(db, &mut RebuildReport::default())
        })?;
        let latest = records.iter().map(|found| found.record.recorded_unix_ms);
        if let Some(latest) = latest.max() {
            self.last_stamp.fetch_max(latest, Ordering::AcqRel);
        }
        let summaries = records
            .iter()
            .map(|found| found.record.summary(found.digest));
        Ok(summaries.collect())
    }

    /// The whole content of a blob, verified; from the mirror when it is not here.
    ///
    /// # Errors
    /// As [`crate::Cas::get`], and [`Error::Mirror`].
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let here = match self.told(digest, self.cas().get(digest)) {
            Err(here @ (Error::NotFound { .. } | Error::Corrupt { .. })) => here,
            found => return found,
        };
        match self.mirror.get() {
            Some(mirror) if mirror.mode().reads() => match self.recorded_size(digest)? {
                Some(size_bytes) => mirror.blob(&Blob {
                    digest: *digest,
                    size_bytes,
                }),
                // No record names it, so nobody put it there for us.
                None => Err(here),
            },
            _ if self.has_imported() && matches!(here, Error::NotFound { .. }) => {
                Err(Error::Mirror {
                    what: format!(
                        "blob `{}` is not in the store; if it belongs to a result from the \
                         mirror, it was left there",
                        digest.short()
                    ),
                })
            }
            _ => Err(here),
        }
    }

    /// How long the records say that a blob is.
    fn recorded_size(&self, blob: &Digest) -> Result<Option<u64>> {
        let size: Option<i64> = self.index().query_row(
            "SELECT max(size_bytes) FROM (
                 SELECT size_bytes FROM record_output WHERE digest = ?1
                 UNION ALL SELECT size_bytes FROM record_log WHERE digest = ?1)",
            [blob.as_bytes()],
            |row| row.get(0),
        )?;
        Ok(size.and_then(|size| u64::try_from(size).ok()))
    }
}
