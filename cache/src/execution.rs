//! Records that stand for the same execution: the one that was made when it ended, and those that
//! were read out of its outputs anew, or out of those of one of these.

use crate::digest::Digest;
use crate::error::Result;
use crate::quarantine;
use crate::store::Store;
use rusqlite::OptionalExtension;
use std::collections::{HashMap, HashSet};

/// From what each record was judged anew.
struct Origins(HashMap<Digest, Digest>);

impl Origins {
    /// The record at the beginning of a chain, or the first one that nothing is known of.
    fn root(&self, record: &Digest) -> Digest {
        let mut root = record;
        // No record can hold the digest of one that holds its own; whatever the index says, this
        // ends.
        for _ in 0..self.0.len() {
            match self.0.get(root) {
                Some(origin) => root = origin,
                None => break,
            }
        }
        *root
    }

    /// All that are known of the execution of a record; the root is first.
    fn execution(&self, record: &Digest) -> Vec<Digest> {
        let root = self.root(record);
        let others = self.0.keys().copied();
        let others = others.filter(|other| *other != root && self.root(other) == root);
        std::iter::once(root).chain(others).collect()
    }
}

impl Store {
    /// The records in the store that stand for the execution of a record, itself among them when
    /// it is there: the one at the beginning of the chain that [`crate::Record::rejudged_from`]
    /// makes, then those whose chains lead to it, the latest last. A chain is followed through
    /// records that are refused too.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::Database`].
    pub fn execution(&self, record: &Digest) -> Result<Vec<Digest>> {
        let all = self.origins()?.execution(record);
        let index = self.index();
        let mut time = index.prepare("SELECT recorded_unix_ms FROM record WHERE digest = ?1")?;
        let mut found = Vec::new();
        for (place, digest) in all.into_iter().enumerate() {
            let time = time.query_row([digest.as_bytes()], |row| row.get::<_, i64>(0));
            if let Some(time) = time.optional()? {
                found.push((place > 0, time, digest));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(.., digest)| digest).collect())
    }

    /// Those of the execution that are refused and whole, in the same order.
    pub(crate) fn refused_of_execution(&self, record: &Digest) -> Result<Vec<Digest>> {
        let all: HashSet<Digest> = self.origins()?.execution(record).into_iter().collect();
        let refused = quarantine::whole_records(self.layout())?.into_iter();
        let mut found: Vec<_> = refused
            .filter(|(digest, _)| all.contains(digest))
            .map(|(digest, it)| (it.rejudged_from.is_some(), it.recorded_unix_ms, digest))
            .collect();
        found.sort_unstable();
        found.dedup();
        Ok(found.into_iter().map(|(.., digest)| digest).collect())
    }

    fn origins(&self) -> Result<Origins> {
        let refused = quarantine::whole_records(self.layout())?.into_iter();
        let mut origins: HashMap<Digest, Digest> = refused
            .filter_map(|(digest, record)| Some((digest, record.rejudged_from?)))
            .collect();
        let index = self.index();
        let mut rows = index.prepare(
            "SELECT r.digest, d.rejudged_from FROM record_detail d JOIN record r ON r.id = d.record_id
             WHERE d.rejudged_from IS NOT NULL",
        )?;
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for row in rows {
            let (record, origin) = row?;
            origins.insert(Digest::from_bytes(record), Digest::from_bytes(origin));
        }
        Ok(Origins(origins))
    }
}
