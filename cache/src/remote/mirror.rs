//! What is asked of the mirror and what is believed of the answers. A record is served only when
//! it is, byte for byte, what its name says, when its own manifests give the key that was asked
//! for, when it may be reused, and when every blob that it names is there in full length; a blob
//! only when its content has its digest.

use super::breaker::Breaker;
use super::fault::Fault;
use super::guard::{Guard, Traffic};
use super::import::Imported;
use super::names;
use super::objects::{Body, Objects, Put};
use super::place::{RemoteMode, Target};
use super::pool;
use crate::cas::Blob;
use crate::digest::Digest;
use crate::durable::Temp;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A record larger than this is none of ours. Tests have none that large, and blobs that are.
const MOST_RECORD_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// Names in one page of a listing.
const PAGE: u16 = 1000;

/// Blobs up to this length are sent without asking first whether they are there.
const SMALL_BYTES: u64 = 64 << 10;

/// How long one question about keys may take before the answers at hand must do.
pub const LOOKUP_BUDGET: Duration = Duration::from_secs(30);

/// The answers to a question about keys.
#[derive(Debug, Default)]
pub struct Lookup {
    /// Keys asked for.
    pub asked: usize,
    /// Records that may be served, not yet in the store.
    pub found: Vec<Imported>,
    /// Records that an entry names and that are not served, and why.
    pub refused: Vec<(Digest, String)>,
    /// Why some keys have no answer.
    pub trouble: Option<Fault>,
}

/// The mirror of a store. Shared between threads.
#[derive(Debug)]
pub struct Mirror {
    guard: Guard,
    place: String,
    mode: RemoteMode,
    /// Objects that are there in full length, as far as this process knows.
    present: Mutex<HashSet<Digest>>,
    /// Objects that were not what their name says: the next put replaces them.
    bad: Mutex<HashSet<Digest>>,
}

fn lock(set: &Mutex<HashSet<Digest>>) -> MutexGuard<'_, HashSet<Digest>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mirror {
    /// The mirror at a place. Nothing is connected before something is asked.
    ///
    /// # Errors
    /// [`Error::Mirror`] when this program was built without the client.
    pub fn open(target: &Target) -> Result<Self> {
        #[cfg(feature = "aws")]
        {
            let objects = Box::new(super::s3::S3::new(target.clone()));
            Ok(Self::over(objects, target.place.to_string(), target.mode))
        }
        #[cfg(not(feature = "aws"))]
        Err(Error::Mirror {
            what: format!(
                "`{}` cannot be used: this `doe` was built without the feature `aws`",
                target.place
            ),
        })
    }

    /// A mirror over any object store.
    pub fn over(objects: Box<dyn Objects>, place: String, mode: RemoteMode) -> Self {
        Self {
            guard: Guard::new(objects, Breaker::default()),
            place,
            mode,
            present: Mutex::default(),
            bad: Mutex::default(),
        }
    }

    /// Where it is, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What may be done with it.
    pub fn mode(&self) -> RemoteMode {
        self.mode
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Traffic {
        self.guard.traffic()
    }

    /// Whether it failed so often that it is left alone just now.
    pub fn is_paused(&self) -> bool {
        self.guard.is_open()
    }

    /// Records that answer to any of these keys. Takes a bounded time, whatever the mirror does.
    pub fn lookup(&self, store: &Store, keys: &[Digest]) -> Lookup {
        let deadline = Instant::now() + LOOKUP_BUDGET;
        let keys: BTreeSet<Digest> = keys.iter().copied().collect();
        let keys: Vec<Digest> = keys.into_iter().collect();
        let mut lookup = Lookup {
            asked: keys.len(),
            ..Lookup::default()
        };
        let chunks: Vec<&[Digest]> = keys
            .chunks(keys.len().div_ceil(pool::WIDTH).max(1))
            .collect();
        let answers = pool::each(&chunks, Some(deadline), |keys| {
            let mut entries = Vec::new();
            let walked = self.entries_of(keys, deadline, &mut entries);
            (entries, walked)
        });
        let mut entries = Vec::new();
        for answer in answers {
            match answer {
                Some((found, walked)) => {
                    entries.extend(found);
                    lookup.trouble = lookup.trouble.or(walked.err());
                }
                None => lookup.trouble = Some(late()),
            }
        }
        self.serve(store, entries, Some(deadline), &mut lookup);
        lookup
    }

    /// All records of the mirror that may be served and are not in the store.
    pub fn lookup_all(&self, store: &Store) -> Lookup {
        let mut lookup = Lookup::default();
        let mut entries = Vec::new();
        let mut after: Option<String> = None;
        loop {
            match self.guard.list(names::ENTRIES, after.as_deref(), PAGE) {
                Ok(page) => {
                    entries.extend(
                        page.names
                            .iter()
                            .filter_map(|name| names::parse_entry(name)),
                    );
                    let last = page.names.last().filter(|last| after.as_ref() < Some(last));
                    match last {
                        Some(last) if page.more => after = Some(last.clone()),
                        _ => break,
                    }
                }
                Err(fault) => {
                    lookup.trouble = Some(fault);
                    break;
                }
            }
        }
        let keys: BTreeSet<Digest> = entries.iter().map(|(key, _)| *key).collect();
        lookup.asked = keys.len();
        self.serve(store, entries, None, &mut lookup);
        lookup
    }

    /// Entries of sorted keys. Where keys lie close together one page answers many of them, where
    /// they are far apart each is asked for by itself: never more requests than keys, and never
    /// more than the mirror has pages.
    fn entries_of(
        &self,
        keys: &[Digest],
        deadline: Instant,
        entries: &mut Vec<(Digest, Digest)>,
    ) -> Result<(), Fault> {
        let mut at = 0;
        let mut sparse = keys.len() == 1;
        while let Some(key) = keys.get(at) {
            if Instant::now() >= deadline {
                return Err(late());
            }
            let folder = names::entries(key);
            let page = match sparse {
                true => self.guard.list(&folder, None, PAGE)?,
                false => self.guard.list(names::ENTRIES, Some(&folder), PAGE)?,
            };
            let found = page
                .names
                .iter()
                .filter_map(|name| names::parse_entry(name));
            entries.extend(found.filter(|(key, _)| keys.binary_search(key).is_ok()));
            if sparse {
                at += 1;
                continue;
            }
            let last = page.names.last().filter(|_| page.more);
            let Some(last) = last else { return Ok(()) };
            let before = at;
            let past = |key: &Digest| names::entry(key, &Digest::from_bytes([0xff; 32])) <= *last;
            while keys.get(at).is_some_and(past) {
                at += 1;
            }
            // The page ended within the first key, or soon after.
            sparse = at <= before + 1;
        }
        Ok(())
    }

    /// Fetches the records that entries name and keeps those that may be served.
    fn serve(
        &self,
        store: &Store,
        entries: Vec<(Digest, Digest)>,
        deadline: Option<Instant>,
        lookup: &mut Lookup,
    ) {
        let mut keys_of: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        for (key, record) in entries {
            keys_of.entry(record).or_default().push(key);
        }
        keys_of.retain(|record, _| store.wants(record));
        let wanted: Vec<(Digest, Vec<Digest>)> = keys_of.into_iter().collect();
        let answers = pool::each(&wanted, deadline, |(digest, keys)| {
            self.fetch_record(digest, keys)
        });
        let mut candidates = Vec::new();
        for ((digest, _), answer) in wanted.iter().zip(answers) {
            match answer {
                Some(Ok(found)) => candidates.push(found),
                Some(Err(fault @ (Fault::Damaged(_) | Fault::Missing))) => {
                    lookup.refused.push((*digest, fault.to_string()));
                }
                Some(Err(fault)) => lookup.trouble = Some(fault),
                None => lookup.trouble = Some(late()),
            }
        }
        let missing = self.missing_blobs(store, &candidates, deadline);
        for candidate in candidates {
            let blobs = blobs_of(&candidate.record);
            let fault = blobs.iter().find_map(|blob| missing.get(&blob.digest));
            match fault {
                None => lookup.found.push(candidate),
                Some(fault) if fault.is_outage() => lookup.trouble = Some(fault.clone()),
                Some(fault) => lookup.refused.push((candidate.digest, fault.to_string())),
            }
        }
    }

    fn fetch_record(&self, digest: &Digest, keys: &[Digest]) -> Result<Imported, Fault> {
        let bytes = self.verified(digest, MOST_RECORD_BYTES)?;
        let damaged = |why: &str| Err(Fault::Damaged(format!("its record {why}")));
        let record = match Record::from_bytes(&bytes) {
            Ok(record) => record,
            Err(error) => return damaged(&format!("cannot be read: {error}")),
        };
        if let Err(error) = record.check_foreign() {
            return Err(Fault::Damaged(error.to_string()));
        }
        if !keys.contains(&record.spec_key) && !keys.contains(&record.action_key) {
            return damaged("answers to another key than the entry says");
        }
        if !record.usable() {
            return damaged("may not be reused");
        }
        Ok(Imported {
            digest: *digest,
            record,
            bytes,
        })
    }

    /// An object whose content has its digest. What was spoilt on the way may come whole the next
    /// time.
    fn verified(&self, digest: &Digest, most_bytes: u64) -> Result<Vec<u8>, Fault> {
        let name = names::object(digest);
        let mut found = *digest;
        for _ in 0..2 {
            let bytes = self.guard.get(&name, most_bytes)?;
            found = Digest::of(&bytes);
            if found == *digest {
                return Ok(bytes);
            }
        }
        Err(self.damaged(digest, &found))
    }

    fn damaged(&self, digest: &Digest, found: &Digest) -> Fault {
        lock(&self.bad).insert(*digest);
        lock(&self.present).remove(digest);
        Fault::Damaged(format!(
            "`{}` has a content with the digest `{}`",
            names::object(digest),
            found.short()
        ))
    }

    /// Blobs of the candidates that are neither here nor, in full length, there.
    fn missing_blobs(
        &self,
        store: &Store,
        candidates: &[Imported],
        deadline: Option<Instant>,
    ) -> BTreeMap<Digest, Fault> {
        let blobs = candidates.iter().flat_map(|found| blobs_of(&found.record));
        let asked: BTreeMap<Digest, u64> = blobs
            .filter(|blob| store.cas().size(&blob.digest) != Some(blob.size_bytes))
            .map(|blob| (blob.digest, blob.size_bytes))
            .collect();
        let asked: Vec<(Digest, u64)> = asked.into_iter().collect();
        let answers = pool::each(&asked, deadline, |(digest, size_bytes)| {
            self.is_there(digest, *size_bytes)
        });
        let answers = asked.iter().zip(answers);
        let faults = answers.filter_map(|((digest, _), answer)| match answer {
            Some(Ok(true)) => None,
            Some(Ok(false)) => {
                let why = format!("it needs `{}`, which is not there", names::object(digest));
                Some((*digest, Fault::Damaged(why)))
            }
            Some(Err(fault)) => Some((*digest, fault)),
            None => Some((*digest, late())),
        });
        faults.collect()
    }

    /// Whether an object is there in full length.
    fn is_there(&self, digest: &Digest, size_bytes: u64) -> Result<bool, Fault> {
        if lock(&self.present).contains(digest) {
            return Ok(true);
        }
        match self.guard.head(&names::object(digest))? {
            Some(found) if found == size_bytes => {
                lock(&self.present).insert(*digest);
                Ok(true)
            }
            Some(_) => {
                lock(&self.bad).insert(*digest);
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Brings blobs into the store, verified and durable; tells those that could not be had.
    pub fn fetch(&self, store: &Store, blobs: &[Blob]) -> Vec<(Blob, Fault)> {
        let wanted: BTreeMap<Digest, Blob> = blobs
            .iter()
            .filter(|blob| store.cas().size(&blob.digest) != Some(blob.size_bytes))
            .map(|blob| (blob.digest, *blob))
            .collect();
        let wanted: Vec<Blob> = wanted.into_values().collect();
        let answers = pool::each(&wanted, None, |blob| self.fetch_one(store, blob));
        let answers = wanted.into_iter().zip(answers);
        let mut faults: Vec<(Blob, Fault)> = answers
            .filter_map(|(blob, answer)| Some((blob, answer?.err()?)))
            .collect();
        if let Err(error) = store.cas().flush() {
            let fault = Fault::from(error);
            faults.extend(blobs.iter().map(|blob| (*blob, fault.clone())));
        }
        faults
    }

    fn fetch_one(&self, store: &Store, blob: &Blob) -> Result<(), Fault> {
        let name = names::object(&blob.digest);
        let mut found = blob.digest;
        for _ in 0..2 {
            let (temp, file) = Temp::create(&store.layout().tmp())?;
            self.guard.get_into(&name, temp.path(), blob.size_bytes)?;
            // Read back: what counts is what is on this disk.
            found = Digest::of_file(temp.path())?;
            if found == blob.digest {
                temp.finish(&file)?;
                store.cas().adopt(*blob, temp)?;
                return Ok(());
            }
        }
        Err(self.damaged(&blob.digest, &found))
    }

    /// The content of a blob, verified, without keeping it. A longer object is not fetched: a
    /// record says how long it is.
    ///
    /// # Errors
    /// [`Error::Mirror`] with what stood in the way.
    pub fn blob(&self, blob: &Blob) -> Result<Vec<u8>> {
        let Blob { digest, size_bytes } = blob;
        let bytes = self.verified(digest, *size_bytes);
        bytes.map_err(|fault| Error::Mirror {
            what: format!(
                "blob `{}` could not be had from {}: {fault}",
                digest.short(),
                self.place
            ),
        })
    }

    /// Sends a record with all it needs: blobs first, then the record, then the entries. Says
    /// whether there was something to share: what may not be reused stays here.
    ///
    /// # Errors
    /// [`Fault`]; what was sent before stays, and is found there the next time.
    pub fn send(&self, store: &Store, digest: &Digest) -> Result<bool, Fault> {
        let record = store.record(digest)?;
        if !record.usable() {
            return Ok(false);
        }
        for blob in blobs_of(&record) {
            if lock(&self.present).contains(&blob.digest) {
                continue;
            }
            match store.cas().open(&blob.digest) {
                // Opening verified it: damage is not spread.
                Ok(_) => {
                    let path = store.cas().path(&blob.digest)?;
                    self.ensure(&blob, Body::File(&path, blob.size_bytes))?;
                }
                Err(Error::NotFound { .. }) if self.is_there(&blob.digest, blob.size_bytes)? => {}
                Err(error) => return Err(error.into()),
            }
        }
        let path = store.layout().record(digest);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
        let whole = Blob {
            digest: *digest,
            size_bytes: bytes.len() as u64,
        };
        self.ensure(&whole, Body::Bytes(&bytes))?;
        for key in BTreeSet::from([record.spec_key, record.action_key]) {
            self.guard
                .put(&names::entry(&key, digest), Body::Bytes(&[]), true)?;
        }
        Ok(true)
    }

    /// Stores an object unless it is there. Conditional requests only save traffic: a server that
    /// ignores them stores the same bytes once more.
    fn ensure(&self, blob: &Blob, body: Body<'_>) -> Result<(), Fault> {
        let digest = &blob.digest;
        let bad = lock(&self.bad).contains(digest);
        if lock(&self.present).contains(digest) {
            return Ok(());
        }
        if !bad && blob.size_bytes > SMALL_BYTES && self.is_there(digest, blob.size_bytes)? {
            return Ok(());
        }
        // The look may have found one of the wrong length.
        let only_new = !lock(&self.bad).contains(digest);
        let name = names::object(digest);
        let put = self.guard.put(&name, body, only_new)?;
        if put == Put::WasThere && !self.is_there(digest, blob.size_bytes)? {
            self.guard.put(&name, body, false)?;
        }
        lock(&self.bad).remove(digest);
        lock(&self.present).insert(*digest);
        Ok(())
    }
}

fn late() -> Fault {
    Fault::Down(format!(
        "the answers took longer than {} s",
        LOOKUP_BUDGET.as_secs()
    ))
}

/// All blobs that a record names, each once.
pub(super) fn blobs_of(record: &Record) -> Vec<Blob> {
    let outputs = record.outputs.values().map(|o| (o.digest, o.size_bytes));
    let logs = record.logs.iter().map(|log| (log.digest, log.size_bytes));
    let blobs: BTreeMap<Digest, u64> = outputs.chain(logs).collect();
    blobs
        .into_iter()
        .map(|(digest, size_bytes)| Blob { digest, size_bytes })
        .collect()
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
