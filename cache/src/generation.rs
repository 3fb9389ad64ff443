//! Where an index is in its history. Every write transaction moves it on within the transaction
//! itself, so whoever kept something computed from the index may use it exactly as long as the
//! generation is the same. An index that was made anew has another epoch: counts of different
//! epochs are never taken for each other.

use crate::error::Result;
use crate::index::{self, Access};
use crate::layout::Layout;
use rusqlite::Connection;
use std::fmt;
use std::path::Path;

/// Two equal generations of one store have seen the same writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation {
    /// Drawn at random when the index was made.
    pub epoch: i64,
    /// Write transactions since.
    pub count: i64,
}

impl Generation {
    /// The generation of the index of the store at `root`, without opening the store; `None`
    /// when there is no index.
    ///
    /// # Errors
    /// As [`crate::Store::open_read_only`].
    pub fn of(root: impl AsRef<Path>) -> Result<Option<Self>> {
        let layout = Layout::new(root.as_ref());
        if !layout.index().exists() {
            return Ok(None);
        }
        // Whatever is wrong with it, the usual way says it better.
        if let Some(Ok(at_rest)) = index::open_at_rest(&layout).map(|index| read(&index)) {
            return Ok(Some(at_rest));
        }
        let connection = index::open(&layout, Access::Read)?;
        read(&connection).map(Some)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.epoch, self.count)
    }
}

pub(crate) fn read(db: &Connection) -> Result<Generation> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    let mut number = |name: &str| statement.query_row([name], |row| row.get(0));
    Ok(Generation {
        epoch: number("epoch")?,
        count: number("generation")?,
    })
}

/// Moves on; part of the transaction that does the work.
pub(crate) fn advance(db: &Connection) -> Result<()> {
    db.prepare_cached("UPDATE meta SET value = value + 1 WHERE name = 'generation'")?
        .execute([])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use crate::store::tests::put;
    use std::collections::HashSet;

    #[test]
    fn every_write_moves_it_and_no_read_does() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Generation::of(root.path()).unwrap(), None);
        let mut seen = HashSet::new();
        let mut look = |moved: bool| {
            let now = Generation::of(root.path()).unwrap().unwrap();
            assert_eq!(seen.insert(now.to_string()), moved, "{now}");
            now
        };
        let store = Store::open(root.path()).unwrap();
        look(true);
        put(&store, "//t:a", 1);
        look(true);
        store.bulk().unwrap();
        store.stats().unwrap();
        drop(Store::open(root.path()).unwrap());
        look(false);
        put(&store, "//t:a", 1);
        assert_eq!(store.generation().unwrap(), look(true));
        drop(store);
        let (store, _) = Store::rebuild(root.path()).unwrap();
        let before = look(true);
        drop(store);
        std::fs::remove_file(root.path().join("index.sqlite")).unwrap();
        Store::rebuild(root.path()).unwrap();
        assert_ne!(look(true).epoch, before.epoch);
    }

    /// Nobody holds the index and its log is empty: looking makes no file and gives the same answer.
    #[test]
    fn an_index_at_rest_is_only_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("a store? #1 100%");
        let store = Store::open(&root).unwrap();
        put(&store, "//t:a", 1);
        let known = store.generation().unwrap();
        assert!(index::open_at_rest(store.layout()).is_none(), "in use");
        assert_eq!(Generation::of(&root).unwrap(), Some(known));
        drop(store);
        let beside = || std::fs::read_dir(&root).unwrap().count();
        let before = beside();
        assert!(index::open_at_rest(&Layout::new(&root)).is_some());
        assert_eq!(Generation::of(&root).unwrap(), Some(known));
        assert_eq!(beside(), before);
        let file = root.join("index.sqlite");
        let mut bytes = std::fs::read(&file).unwrap();
        (bytes[18], bytes[19]) = (1, 1);
        std::fs::write(&file, bytes).unwrap();
        assert!(index::open_at_rest(&Layout::new(&root)).is_none(), "no WAL");
    }

    /// What fails changes nothing, so it need not be seen.
    #[test]
    fn a_transaction_that_fails_leaves_it() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let before = store.generation().unwrap();
        let refused = store.transaction(|_| Err::<(), _>(crate::Error::invalid("no")));
        assert!(refused.is_err());
        assert_eq!(store.generation().unwrap(), before);
    }
}
