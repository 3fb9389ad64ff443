//! The one door to a store. A commit returns when blobs, record and index rows are durable, in
//! that order: whatever survives a crash is complete, and what the index forgot a rebuild finds.

use crate::candidates;
use crate::cas::Cas;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result};
use crate::fault::Point;
use crate::generation::{self, Generation};
use crate::index::{self, Access};
use crate::layout::Layout;
use crate::lock::WriterLock;
use crate::notes;
use crate::quarantine;
use crate::read::{self, Filter, Stats};
use crate::rebuild::RebuildReport;
use crate::record::Record;
use crate::remote::Mirror;
use crate::summary::{Snapshot, Summary};
use crate::write;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Records, blobs and their index below one root. Shared freely between threads. Several
/// processes may read while one writes; who writes should hold the [`crate::WriterLock`].
#[derive(Debug)]
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) cas: Cas,
    pub(crate) index: Mutex<Connection>,
    /// What is wrong with the index that lies there, when this is one without it.
    pub(crate) index_damage: Option<Error>,
    pub(crate) read_only: bool,
    pub(crate) last_stamp: AtomicU64,
    /// Where blobs are read from that are not here.
    pub(crate) mirror: OnceLock<Arc<Mirror>>,
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
        let lost = |how: &str| Error::index(format!("it is {how}, although there are records"));
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
            index_damage: None,
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
        let mut snapshot = read::bulk(&self.index())?;
        snapshot.load_refused(quarantine::labels(self.layout())?);
        Ok(snapshot)
    }

    /// What the decision about one node looks at, which is a small part of [`Self::bulk`]: what
    /// stands for its label and for its two keys. All other questions to this snapshot are void.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn slice(&self, label: &str, spec_key: &Digest, action_key: &Digest) -> Result<Snapshot> {
        let mut snapshot = Snapshot::new();
        read::slice(&self.index(), &mut snapshot, label, spec_key, action_key)?;
        snapshot.load_refused(quarantine::labels(self.layout())?);
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
    /// is moved to quarantine and no longer in the index.
    pub fn record(&self, digest: &Digest) -> Result<Record> {
        let path = self.layout.record(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.gone(digest)?;
                return Err(missing(digest));
            }
            Err(e) => return Err(Error::io("read", &path, &e)),
        };
        let found = Digest::of(&bytes);
        if found == *digest {
            return Record::from_bytes(&bytes);
        }
        let mut quarantined = None;
        if !self.read_only {
            // The index first: it must never count on a file that is put aside.
            self.transaction(|db| candidates::forget(db, digest))?;
            let name = format!("{digest}.json");
            let moved = quarantine::aside(&self.layout, &path, &name, quarantine::MISMATCH)?;
            quarantined = Some(moved);
        }
        Err(Error::Corrupt {
            what: format!("record `{}`", digest.short()),
            detail: format!("its content has the digest `{}`", found.short()),
            quarantined,
        })
    }

    /// Other hands took the file of a record: the index is not to count on it.
    fn gone(&self, digest: &Digest) -> Result<()> {
        if self.read_only || !read::is_there(&self.index(), digest)? {
            return Ok(());
        }
        self.transaction(|db| {
            // Whoever recorded it meanwhile brought the file first.
            if !self.layout.record(digest).exists() {
                candidates::forget(db, digest)?;
            }
            Ok(())
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

pub(crate) fn missing(digest: &Digest) -> Error {
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
