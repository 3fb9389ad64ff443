//! Writes to the store. What belongs together becomes durable together: all blobs, then the files
//! of records and links, then everything that the index says of them in one transaction.

use crate::candidates;
use crate::digest::Digest;
use crate::durable::Temp;
use crate::error::{Error, Result};
use crate::links::{LinkFile, Linked};
use crate::notes;
use crate::read;
use crate::record::{Encoded, Record};
use crate::runs::NodeUpdate;
use crate::store::{Store, missing};
use crate::write;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Lets a spec key and a label lead to a stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The key that missed, or whose label stood for another record.
    pub spec_key: Digest,
    /// The record that stands for it.
    pub record: Digest,
    /// The label that it stands for.
    pub label: String,
}

/// Writes that become durable together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// New records.
    pub records: &'a [Encoded],
    /// Reuses of stored records (those of this batch included).
    pub links: &'a [Link],
    /// States of nodes in runs.
    pub nodes: &'a [NodeUpdate],
}

impl Store {
    /// Stores a record. Its outputs and logs must have been put or staged before.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the record breaks a rule of the format, [`Error::NotFound`] when
    /// one of its blobs is missing, [`Error::Io`], [`Error::Locked`], [`Error::ReadOnly`].
    pub fn commit(&self, record: &Record) -> Result<Digest> {
        let mut digests = self.commit_batch(std::slice::from_ref(record))?;
        digests
            .pop()
            .ok_or_else(|| Error::invalid("a batch of one record gave no digest"))
    }

    /// Stores records in one go; the cost of being durable is shared.
    ///
    /// # Errors
    /// As [`Store::commit`]; then none of them is in the index.
    pub fn commit_batch(&self, records: &[Record]) -> Result<Vec<Digest>> {
        let records: Vec<Encoded> = records
            .iter()
            .cloned()
            .map(Record::encode)
            .collect::<Result<_>>()?;
        self.write(&Batch {
            records: &records,
            ..Batch::default()
        })
    }

    /// Lets a spec key and a label lead to a stored record: after a hit by action key, and after
    /// a hit by spec key when the label stood for another record.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the record may not be reused, [`Error::NotFound`].
    pub fn link_spec(&self, spec_key: Digest, record: Digest, label: &str) -> Result<()> {
        let link = Link {
            spec_key,
            record,
            label: label.to_owned(),
        };
        self.write(&Batch {
            links: &[link],
            ..Batch::default()
        })?;
        Ok(())
    }

    /// Writes a batch: all staged blobs, then the records, then everything else in one
    /// transaction. Returns the digests of the records, in order.
    ///
    /// # Errors
    /// As [`Store::commit`] and [`Store::link_spec`]; then none of it is in the index.
    pub fn write(&self, batch: &Batch<'_>) -> Result<Vec<Digest>> {
        self.writable()?;
        let mut new = Vec::with_capacity(batch.records.len());
        let mut files: Vec<(Temp, PathBuf)> = Vec::new();
        for Encoded {
            digest,
            bytes,
            record,
        } in batch.records
        {
            self.stage_object(bytes, self.layout().record(digest), &mut files)?;
            new.push((*digest, bytes.len() as u64, record));
        }
        let links = self.stamped(batch.links, &new)?;
        if !links.is_empty() {
            let bytes = LinkFile::new(links.clone()).to_bytes()?;
            let path = self.layout().link(&Digest::of(&bytes));
            self.stage_object(&bytes, path, &mut files)?;
        }
        let records = || batch.records.iter().map(|encoded| &encoded.record);
        self.cas().flush_checked(files, || {
            records().try_for_each(|record| self.check_blobs(record))
        })?;
        self.transaction(|db| {
            let records = new
                .iter()
                .map(|(digest, size, record)| (digest, *size, *record));
            write::insert_records(db, records, true)?;
            if !new.is_empty() {
                // What was produced again may be what an older record lacked.
                self.found_blobs(db)?;
            }
            for link in &links {
                if !candidates::link(db, link)? {
                    return Err(self.no_link(&link.record, &link.label));
                }
            }
            notes::set_nodes(db, self.layout(), batch.nodes)
        })?;
        if let Some(latest) = batch
            .records
            .iter()
            .map(|r| r.record.recorded_unix_ms)
            .max()
        {
            self.last_stamp.fetch_max(latest, Ordering::AcqRel);
        }
        Ok(new.into_iter().map(|(digest, ..)| digest).collect())
    }

    /// Prepares a file that is named by its content, unless it is there already, byte for byte.
    fn stage_object(
        &self,
        bytes: &[u8],
        path: PathBuf,
        files: &mut Vec<(Temp, PathBuf)>,
    ) -> Result<()> {
        // One that is there and damaged is replaced by what it should be.
        if !fs::read(&path).is_ok_and(|found| found == bytes) {
            files.push((Temp::with(&self.layout().tmp(), bytes)?, path));
        }
        Ok(())
    }

    /// Gives links their times. Those that cannot hold are refused before anything is written.
    fn stamped(&self, links: &[Link], new: &[(Digest, u64, &Record)]) -> Result<Vec<Linked>> {
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let fresh: HashMap<&Digest, bool> = new.iter().map(|(d, _, r)| (d, r.usable())).collect();
        let stamp = |link: &Link| {
            let usable = match fresh.get(&link.record) {
                Some(usable) => *usable,
                None => read::is_usable(&self.index(), &link.record)?,
            };
            if !usable {
                return Err(self.no_link(&link.record, &link.label));
            }
            Ok(Linked {
                spec_key: link.spec_key,
                record: link.record,
                label: link.label.clone(),
                linked_unix_ms: self.stamp_unix_ms(),
            })
        };
        links.iter().map(stamp).collect()
    }

    fn no_link(&self, record: &Digest, label: &str) -> Error {
        if self.layout().record(record).exists() {
            return Error::invalid(format!(
                "record `{}` may not stand for `{label}`: only executed, valid and reusable \
                 records may",
                record.short()
            ));
        }
        missing(record)
    }

    fn check_blobs(&self, record: &Record) -> Result<()> {
        let outputs = record.outputs.iter();
        let outputs = outputs.map(|(name, o)| ("output", name, &o.digest, o.size_bytes));
        let logs = record.logs.iter();
        let logs = logs.map(|l| ("log", &l.name, &l.digest, l.size_bytes));
        for (what, name, digest, size) in outputs.chain(logs) {
            match self.cas().size(digest) {
                Some(found) if found == size => {}
                Some(found) => {
                    return Err(Error::invalid(format!(
                        "{what} `{name}` of `{}` has {size} bytes according to the record, but \
                         its blob has {found}",
                        record.label
                    )));
                }
                None => {
                    return Err(Error::not_found(format!(
                        "blob `{digest}`, {what} `{name}` of `{}`,",
                        record.label
                    )));
                }
            }
        }
        Ok(())
    }
}
