//! Blobs by digest. A blob, once visible, is complete, durable, read-only and never changes; what
//! does not match its digest is never handed out but moved to quarantine. Blobs may be *staged*
//! first: readable by this process at once, durable together with the next flush.

use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::lock;
use crate::quarantine;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A blob as it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Digest of the content.
    pub digest: Digest,
    /// Length of the content.
    pub size_bytes: u64,
}

#[derive(Debug)]
struct Staged {
    temp: Temp,
    size_bytes: u64,
}

/// The staged blobs, and where they go.
#[derive(Debug, Default)]
struct Staging {
    waiting: BTreeMap<Digest, Staged>,
    /// Lengths of those on their way from `tmp/` to their place.
    leaving: BTreeMap<Digest, u64>,
}

impl Staging {
    fn size(&self, digest: &Digest) -> Option<u64> {
        let waiting = self.waiting.get(digest).map(|staged| staged.size_bytes);
        waiting.or_else(|| self.leaving.get(digest).copied())
    }
}

/// Those that a flush has taken are on their way until it is over, however it ends.
struct OnTheirWay<'c>(&'c Cas);

impl Drop for OnTheirWay<'_> {
    fn drop(&mut self) {
        locked(&self.0.staging).leaving.clear();
    }
}

/// What became of a file that is not what its name says.
enum Discarded {
    /// It lies in quarantine.
    Aside(PathBuf),
    /// It stays where it is: this store only reads.
    Left,
    /// It was gone, and maybe another had taken its place.
    Replaced,
}

/// The content-addressed store of one root.
#[derive(Debug)]
pub struct Cas {
    layout: Layout,
    read_only: bool,
    staging: Mutex<Staging>,
    /// Held while staged blobs are on their way from `tmp/` to their place, when they are neither
    /// here nor there: until they are on disk, so only who must have such a file waits for it.
    moving: Mutex<()>,
    verified: Mutex<HashSet<Digest>>,
    /// Whether a write failed, so that files may be in their places and not on disk.
    unsynced: AtomicBool,
    /// The root, opened before the first blob is written: see `durable::publish_from`.
    root: OnceLock<Option<File>>,
}

/// The maps are valid after every statement, so a panic elsewhere does not spoil them.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cas {
    pub(crate) fn new(layout: Layout, read_only: bool) -> Self {
        Self {
            layout,
            read_only,
            staging: Mutex::default(),
            moving: Mutex::default(),
            verified: Mutex::default(),
            unsynced: AtomicBool::new(false),
            root: OnceLock::new(),
        }
    }

    /// Stores bytes; durable on return.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Blob> {
        let blob = self.stage_bytes(bytes)?;
        self.flush_one(&blob.digest)?;
        Ok(blob)
    }

    /// Stores a copy of a file, hashed while it is copied; durable on return. The digest is that
    /// of the bytes that were copied, even if the file changes meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn put_file(&self, path: impl AsRef<Path>) -> Result<Blob> {
        let blob = self.stage_file(path)?;
        self.flush_one(&blob.digest)?;
        Ok(blob)
    }

    /// Like [`Self::put_bytes`], but durable only after [`Self::flush`] (which every commit of a
    /// record does first). Blobs that are staged when the process dies are gone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn stage_bytes(&self, bytes: &[u8]) -> Result<Blob> {
        self.writable()?;
        let blob = Blob {
            digest: Digest::of(bytes),
            size_bytes: bytes.len() as u64,
        };
        if !self.present(&blob)? {
            self.stage(blob, Temp::with(&self.layout.tmp(), bytes)?);
        }
        Ok(blob)
    }

    /// Like [`Self::put_file`], but durable only after [`Self::flush`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`].
    pub fn stage_file(&self, path: impl AsRef<Path>) -> Result<Blob> {
        self.writable()?;
        let (temp, digest, size_bytes) = Temp::copy(&self.layout.tmp(), path.as_ref())?;
        let blob = Blob { digest, size_bytes };
        if !self.present(&blob)? {
            self.stage(blob, temp);
        }
        Ok(blob)
    }

    /// Makes all staged blobs durable.
    ///
    /// # Errors
    /// [`Error::Io`]; what was staged is then staged still, as far as it is whole and there is room
    /// for a copy. The rest counts as missing and is to be put again.
    pub fn flush(&self) -> Result<()> {
        self.flush_before(Vec::new())
    }

    /// Makes all staged blobs durable and then `after`, in one pass: no file of `after` is ever
    /// seen without the blobs. Blobs that it does not come to stay staged.
    pub(crate) fn flush_before(&self, after: Vec<(Temp, PathBuf)>) -> Result<()> {
        self.flush_checked(after, || Ok(()))
    }

    /// [`Self::flush_before`] that `check` may refuse, at a time when no blob is on its way: each
    /// is staged, in its place or missing.
    pub(crate) fn flush_checked(
        &self,
        after: Vec<(Temp, PathBuf)>,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _moving = locked(&self.moving);
        check()?;
        let (staged, _leaving) = self.take(std::mem::take);
        self.publish(staged, after)
    }

    /// Takes blobs that are to be brought to their places, while the caller holds `moving`.
    fn take(
        &self,
        which: impl FnOnce(&mut BTreeMap<Digest, Staged>) -> BTreeMap<Digest, Staged>,
    ) -> (BTreeMap<Digest, Staged>, OnTheirWay<'_>) {
        let mut staging = locked(&self.staging);
        let staged = which(&mut staging.waiting);
        let sizes = staged.iter().map(|(digest, s)| (*digest, s.size_bytes));
        staging.leaving.extend(sizes);
        drop(staging);
        (staged, OnTheirWay(self))
    }

    /// Brings blobs and then other files to their places, while the caller holds `moving`.
    fn publish(&self, staged: BTreeMap<Digest, Staged>, after: Vec<(Temp, PathBuf)>) -> Result<()> {
        let sizes: Vec<(Digest, u64)> = staged.iter().map(|(d, s)| (*d, s.size_bytes)).collect();
        let place = |(digest, staged): (Digest, Staged)| (staged.temp, self.layout.blob(&digest));
        let blobs: Vec<(Temp, PathBuf)> = staged.into_iter().map(place).collect();
        let mut groups = [blobs, after];
        let published = self.publish_synced(&mut groups);
        if published.is_err() {
            self.unsettle();
            let [blobs, _] = groups;
            for ((digest, size_bytes), (temp, _)) in sizes.into_iter().zip(blobs) {
                if temp.is_published() {
                    continue;
                }
                self.distrust(&digest);
                if let Some(temp) = temp.again(&digest) {
                    self.stage(Blob { digest, size_bytes }, temp);
                }
            }
        }
        published
    }

    fn publish_synced(&self, groups: &mut [Vec<(Temp, PathBuf)>]) -> Result<()> {
        // What an earlier failure left unsynced is found in its place, and must be on disk before
        // anything is built on it.
        if self.unsynced.swap(false, Ordering::AcqRel) {
            durable::sync_all(self.layout.root())?;
        }
        match groups.iter().all(Vec::is_empty) {
            true => Ok(()),
            false => durable::publish_from(self.layout.root(), self.opened(), groups),
        }
    }

    fn opened(&self) -> Option<&File> {
        let open = || File::open(self.layout.root()).ok();
        self.root.get_or_init(open).as_ref()
    }

    /// Says that a write failed half-way: files may say more than the index does, and may not be
    /// on disk. This process syncs before it builds on them; the next writer is told by a mark or,
    /// where none can be made, by the lock, which is then found as if its holder had died.
    pub(crate) fn unsettle(&self) {
        self.unsynced.store(true, Ordering::Release);
        let root = self.layout.root();
        let mark = File::create(self.layout.unsettled());
        if mark.and_then(|_| File::open(root)?.sync_all()).is_err() {
            lock::hand_on(root);
        }
    }

    /// Whether the blob is stored or staged.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.size(digest).is_some()
    }

    /// Length of the blob, when it is stored or staged. Waits for nobody.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let staged = locked(&self.staging).size(digest);
        staged.or_else(|| self.in_place(digest).map(|(_, size)| size))
    }

    /// Where the blob's file lies for good, to hand it to another program; a staged one is brought
    /// there first. The content is not verified; [`Self::open`] does that.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Io`] when it cannot be brought there.
    pub fn path(&self, digest: &Digest) -> Result<PathBuf> {
        let place = self.layout.blob(digest);
        loop {
            match self.locate(digest) {
                Some((path, _)) if path == place => return Ok(place),
                // Also when it is in its place already: who staged the same content at the same
                // time left a second copy.
                Some(_) => self.flush_one(digest)?,
                None => return Err(missing(digest)),
            }
        }
    }

    fn locate(&self, digest: &Digest) -> Option<(PathBuf, u64)> {
        let waiting = |staging: &Staging| {
            let staged = staging.waiting.get(digest)?;
            Some((staged.temp.path().to_owned(), staged.size_bytes))
        };
        let staging = locked(&self.staging);
        if let Some(found) = waiting(&staging) {
            return Some(found);
        }
        let leaves = staging.leaving.contains_key(digest);
        drop(staging);
        let _moving = leaves.then(|| locked(&self.moving));
        // It is staged again when it could not be brought there.
        let back = leaves.then(|| waiting(&locked(&self.staging))).flatten();
        back.or_else(|| self.in_place(digest))
    }

    fn in_place(&self, digest: &Digest) -> Option<(PathBuf, u64)> {
        let path = self.layout.blob(digest);
        let meta = fs::metadata(&path).ok()?;
        meta.is_file().then_some((path, meta.len()))
    }

    fn open_file(&self, digest: &Digest) -> Result<(File, PathBuf)> {
        let mut moved = false;
        loop {
            let (path, _) = self.locate(digest).ok_or_else(|| missing(digest))?;
            match File::open(&path) {
                Ok(file) => return Ok((file, path)),
                // A flush took it from `tmp/` to its place, which happens once.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !moved => moved = true,
                Err(e) => return Err(Error::io("open", &path, &e)),
            }
        }
    }

    /// The whole blob.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Corrupt`] when the content does not match the digest, in
    /// which case the file was moved to quarantine.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        loop {
            let (mut file, path) = self.open_file(digest)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)
                .map_err(|e| Error::io("read", &path, &e))?;
            if locked(&self.verified).contains(digest) {
                return Ok(bytes);
            }
            if self.is_good(digest, Digest::of(&bytes), &file, &path)? {
                return Ok(bytes);
            }
        }
    }

    /// The blob as a verified open file, for those too large to hold in memory.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn open(&self, digest: &Digest) -> Result<File> {
        loop {
            let (mut file, path) = self.open_file(digest)?;
            if locked(&self.verified).contains(digest) {
                return Ok(file);
            }
            let mut hasher = blake3::Hasher::new();
            hasher
                .update_reader(&mut file)
                .and_then(|_| file.rewind())
                .map_err(|e| Error::io("read", &path, &e))?;
            if self.is_good(digest, hasher.finalize().into(), &file, &path)? {
                return Ok(file);
            }
        }
    }

    /// The next read of the blob verifies it again.
    pub(crate) fn distrust(&self, digest: &Digest) {
        locked(&self.verified).remove(digest);
    }

    /// Whether a file that was read is the blob. One that is not is put aside; `false` when a good
    /// one has taken its place meanwhile, so that it is worth another look.
    fn is_good(&self, digest: &Digest, found: Digest, file: &File, path: &Path) -> Result<bool> {
        if found == *digest {
            locked(&self.verified).insert(*digest);
            return Ok(true);
        }
        let read = file
            .metadata()
            .map_err(|e| Error::io("look at", path, &e))?;
        let same = |now: &Metadata| (now.dev(), now.ino()) == (read.dev(), read.ino());
        let quarantined = match self.discard(digest, path, same)? {
            Discarded::Replaced => return Ok(false),
            Discarded::Aside(place) => Some(place),
            Discarded::Left => None,
        };
        Err(Error::Corrupt {
            what: format!("blob `{}`", digest.short()),
            detail: format!("its content has the digest `{}`", found.short()),
            quarantined,
        })
    }

    /// Puts a file aside that is not what its name says, unless another, which `is_bad` does not
    /// know, has taken its place.
    fn discard(
        &self,
        digest: &Digest,
        path: &Path,
        is_bad: impl Fn(&Metadata) -> bool,
    ) -> Result<Discarded> {
        locked(&self.verified).remove(digest);
        if self.read_only {
            return Ok(Discarded::Left);
        }
        // Nobody in this process brings a good one here meanwhile.
        let _moving = locked(&self.moving);
        if !fs::metadata(path).is_ok_and(|now| is_bad(&now)) {
            return Ok(Discarded::Replaced);
        }
        let moved = quarantine::aside(&self.layout, path, &digest.hex(), quarantine::MISMATCH)
            // It may be gone from its place without anybody being told.
            .inspect_err(|_| self.unsettle())?;
        // A staged file is gone from its place: it must not be published.
        let waiting = &mut locked(&self.staging).waiting;
        if waiting.get(digest).is_some_and(|s| s.temp.path() == path) {
            waiting.remove(digest);
        }
        Ok(Discarded::Aside(moved))
    }

    /// Whether the blob is there, whole. A file with other content cannot be it: it is moved to
    /// quarantine, so that the good copy at hand can take its place.
    fn present(&self, blob: &Blob) -> Result<bool> {
        match self.size(&blob.digest) {
            None => Ok(false),
            Some(size) if size == blob.size_bytes => match self.open(&blob.digest) {
                Ok(_) => Ok(true),
                Err(Error::Corrupt { .. } | Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(error),
            },
            Some(_) => {
                let wrong = |now: &Metadata| now.len() != blob.size_bytes;
                self.discard(&blob.digest, &self.layout.blob(&blob.digest), wrong)?;
                Ok(false)
            }
        }
    }

    /// Stages a finished file whose content the caller has held against the digest.
    pub(crate) fn adopt(&self, blob: Blob, temp: Temp) -> Result<()> {
        self.writable()?;
        if !self.present(&blob)? {
            self.stage(blob, temp);
        }
        Ok(())
    }

    fn stage(&self, blob: Blob, temp: Temp) {
        // Another thread may have staged the same: then this copy is dropped.
        let size_bytes = blob.size_bytes;
        let waiting = &mut locked(&self.staging).waiting;
        waiting
            .entry(blob.digest)
            .or_insert(Staged { temp, size_bytes });
    }

    fn flush_one(&self, digest: &Digest) -> Result<()> {
        let _moving = locked(&self.moving);
        let one = |waiting: &mut BTreeMap<_, _>| waiting.remove_entry(digest).into_iter().collect();
        let (staged, _leaving) = self.take(one);
        // It was there before, or another thread's flush took it along.
        if staged.is_empty() && !self.layout.blob(digest).is_file() {
            return Err(missing(digest));
        }
        self.publish(staged, Vec::new())
    }

    fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly {
                root: self.layout.root().to_owned(),
            });
        }
        self.opened();
        Ok(())
    }
}

fn missing(digest: &Digest) -> Error {
    Error::not_found(format!("blob `{digest}`"))
}

#[cfg(test)]
#[path = "cas_tests.rs"]
mod tests;
