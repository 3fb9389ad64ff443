//! The one door to a store. A commit returns when blobs, record and index rows are durable, in
//! that order: whatever survives a crash is complete, and what the index forgot a rebuild finds.

use crate::candidates;
use crate::cas::Cas;
use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::fault::Point;
use crate::generation::{self, Generation};
use crate::index::{self, Access};
use crate::layout::Layout;
use crate::links::{LinkFile, Linked};
use crate::lock::WriterLock;
use crate::notes;
use crate::quarantine;
use crate::read::{self, Filter, Stats};
use crate::rebuild::RebuildReport;
use crate::record::{Encoded, Record};
use crate::remote::Mirror;
use crate::runs::NodeUpdate;
use crate::summary::{Snapshot, Summary};
use crate::write;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Records, blobs and their index below one root. Shared freely between threads. Several
/// processes may read while one writes; who writes should hold the [`crate::WriterLock`].
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    cas: Cas,
    index: Mutex<Connection>,
    read_only: bool,
    pub(crate) last_stamp: AtomicU64,
    /// Where blobs are read from that are not here.
    pub(crate) mirror: OnceLock<Arc<Mirror>>,
}

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
    /// Opens the store at `root` for reading and writing, and makes it when there is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::SchemaTooNew`]; [`Error::Corrupt`] when the index is damaged (then
    /// [`Store::rebuild`] makes it again).
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::with(root.as_ref(), Access::Write)
    }

    /// Opens the store at `root` for reading. Where there is nothing yet it is empty, and nothing
    /// is made.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_read_only(root: impl AsRef<Path>) -> Result<Self> {
        Self::with(root.as_ref(), Access::Read)
    }

    fn with(root: &Path, access: Access) -> Result<Self> {
        let layout = Layout::new(root);
        let lost = |how: &str| Error::Corrupt {
            what: "the index".to_owned(),
            detail: format!("it is {how}, although there are records"),
            quarantined: None,
        };
        let missing = !layout.index().exists();
        if missing && access == Access::Read && durable::any_below(&layout.records())? {
            return Err(lost("missing"));
        }
        let store = Self::with_index(layout, access)?;
        if !store.was_never_written()? {
            return Ok(store);
        }
        let records = durable::any_below(&store.layout.records())?;
        if access == Access::Read {
            return if records {
                Err(lost("empty"))
            } else {
                Ok(store)
            };
        }
        // From now on what it does not know is on its way into it, or was when somebody died:
        // whoever recovers takes it in.
        match records || !notes::files(&store.layout)?.is_empty() {
            true => store.fill(&mut RebuildReport::default())?,
            false => store.transaction(|_| Ok(()))?,
        }
        Ok(store)
    }

    /// Whether nothing was ever written to the index: it is new, was cut to nothing, or whoever
    /// made it again died before it was full.
    fn was_never_written(&self) -> Result<bool> {
        let index = self.index();
        let has_record = "SELECT EXISTS (SELECT 1 FROM record)";
        Ok(generation::read(&index)?.count == 0
            && !index.query_row(has_record, [], |row| row.get::<_, bool>(0))?)
    }

    /// Opens the store for writing with whatever its index holds.
    pub(crate) fn open_index(root: &Path) -> Result<Self> {
        Self::with_index(Layout::new(root), Access::Write)
    }

    fn with_index(layout: Layout, access: Access) -> Result<Self> {
        let connection = index::open(&layout, access)?;
        Ok(Self {
            cas: Cas::new(layout.clone(), access == Access::Read),
            last_stamp: AtomicU64::new(write::last_stamp(&connection)?),
            layout,
            index: Mutex::new(connection),
            read_only: access == Access::Read,
            mirror: OnceLock::new(),
        })
    }

    /// Takes in the greatest time that the index holds.
    pub(crate) fn reload_stamp(&self) -> Result<()> {
        let last = write::last_stamp(&self.index())?;
        self.last_stamp.fetch_max(last, Ordering::AcqRel);
        Ok(())
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The blobs.
    pub fn cas(&self) -> &Cas {
        &self.cas
    }

    /// Where the index is in its history: two equal generations have seen the same writes.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn generation(&self) -> Result<Generation> {
        generation::read(&self.index())
    }

    /// The current time for [`Record::recorded_unix_ms`]: never before, and never the same as,
    /// one that was handed out or stored earlier, even when the clock was set back.
    pub fn stamp_unix_ms(&self) -> u64 {
        let now = now_unix_ms();
        let next = |last: u64| now.max(last.saturating_add(1));
        let last = self
            .last_stamp
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }

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
            self.check_blobs(record)?;
            self.stage_object(bytes, self.layout.record(digest), &mut files)?;
            new.push((*digest, bytes.len() as u64, record));
        }
        let links = self.stamped(batch.links, &new)?;
        if !links.is_empty() {
            let bytes = LinkFile::new(links.clone()).to_bytes()?;
            let path = self.layout.link(&Digest::of(&bytes));
            self.stage_object(&bytes, path, &mut files)?;
        }
        self.cas.flush_before(files)?;
        self.transaction(|db| {
            for (digest, size, record) in &new {
                write::insert_record(db, digest, *size, record, true)?;
            }
            if !new.is_empty() {
                // What was produced again may be what an older record lacked.
                self.found_blobs(db)?;
            }
            for link in &links {
                if !candidates::link(db, link)? {
                    return Err(self.no_link(&link.record, &link.label));
                }
            }
            notes::set_nodes(db, &self.layout, batch.nodes)
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
            files.push((Temp::with(&self.layout.tmp(), bytes)?, path));
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
        if self.layout.record(record).exists() {
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
            match self.cas.size(digest) {
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

    /// The usable record that a spec key leads to.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn by_spec(&self, key: &Digest) -> Result<Option<Summary>> {
        read::by_spec(&self.index(), key)
    }

    /// The latest usable record with an action key.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn by_action(&self, key: &Digest) -> Result<Option<Summary>> {
        read::by_action(&self.index(), key)
    }

    /// All that decisions look at, as of one moment.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn bulk(&self) -> Result<Snapshot> {
        read::bulk(&self.index())
    }

    /// What the decision about one node looks at, which is a small part of [`Self::bulk`]: what
    /// stands for its label and for its two keys. All other questions to this snapshot are void.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn slice(&self, label: &str, spec_key: &Digest, action_key: &Digest) -> Result<Snapshot> {
        let mut snapshot = Snapshot::new();
        read::slice(&self.index(), &mut snapshot, label, spec_key, action_key)?;
        Ok(snapshot)
    }

    /// Records that pass a filter, the latest first.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Summary>> {
        read::list(&self.index(), filter)
    }

    /// The one record whose digest begins with these digits (at least four), else the one that a
    /// spec key or an action key which begins so leads to.
    ///
    /// # Errors
    /// [`Error::BadDigest`] when several do, [`Error::NotFound`] when none does.
    pub fn resolve(&self, prefix: &str) -> Result<Digest> {
        read::resolve(&self.index(), prefix)
    }

    /// A record by digest, verified.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Corrupt`] when the file does not match its digest: then it
    /// was moved to quarantine and is no longer in the index.
    pub fn record(&self, digest: &Digest) -> Result<Record> {
        let path = self.layout.record(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing(digest)),
            Err(e) => return Err(Error::io("read", &path, &e)),
        };
        let found = Digest::of(&bytes);
        if found == *digest {
            return Record::from_bytes(&bytes);
        }
        let mut quarantined = None;
        if !self.read_only {
            let name = format!("{digest}.json");
            let moved = quarantine::aside(&self.layout, &path, &name, quarantine::MISMATCH)?;
            quarantined = Some(moved);
            self.transaction(|db| candidates::forget(db, digest))?;
        }
        Err(Error::Corrupt {
            what: format!("record `{}`", digest.short()),
            detail: format!("its content has the digest `{}`", found.short()),
            quarantined,
        })
    }

    /// What is stored, counted. Walks the folder of the blobs.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Database`].
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = read::stats(&self.index())?;
        durable::files_below(&self.layout.cas(), &mut |_, meta| {
            stats.blobs += 1;
            stats.blob_bytes += meta.len();
        })?;
        Ok(stats)
    }

    /// Removes half-written files that dead processes left behind, and says how many. The lock
    /// shows that nobody else is writing.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn sweep_tmp(&self, _lock: &WriterLock) -> Result<u64> {
        self.writable()?;
        durable::sweep(&self.layout.tmp())
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction has rolled it back: the connection is fine.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does all of it or nothing. Takes the right to write first: a reader that turns writer
    /// half-way would fail at once when another process writes.
    pub(crate) fn transaction<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.writable()?;
        self.settled(|| {
            let mut index = self.index();
            let transaction = index.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            generation::advance(&transaction)?;
            let path = self.layout.index();
            durable::at(Point::BeforeCommit, "commit to", &path)?;
            transaction.commit()?;
            durable::at(Point::AfterCommit, "commit to", &path)?;
            Ok(value)
        })
    }

    /// Does something that may leave files which the index knows nothing of when it fails; the
    /// next writer is told then.
    pub(crate) fn settled<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().inspect_err(|_| self.cas.unsettle())
    }

    pub(crate) fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly {
                root: self.layout.root().to_owned(),
            });
        }
        Ok(())
    }
}

fn missing(digest: &Digest) -> Error {
    Error::not_found(format!("record `{digest}`"))
}

/// Milliseconds since the Unix epoch, by this machine's clock.
pub(crate) fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(crate) mod tests;
