//! Whether an index has all that it must have: the shape that this program makes, the rows that
//! nothing works without, and pages that fit together. Ordinary commands do not look; they meet
//! what is damaged when SQLite refuses their questions ([`Error::Corrupt`]).

use crate::cas::Cas;
use crate::error::{Error, Result};
use crate::index;
use crate::layout::Layout;
use crate::lock::WriterLock;
use crate::store::Store;
use crate::verify::{Damage, VerifyOptions, VerifyReport};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, OnceLock};

/// Says what an index lacks, as [`Error::Corrupt`]. Looks at no page that it need not.
pub(crate) fn check(db: &Connection) -> Result<()> {
    let (found, made) = (shape(db)?, shape(&index::scratch()?)?);
    for (object, text) in &made {
        match found.get(object) {
            None => return Err(Error::index(format!("{object} is missing"))),
            Some(other) if other != text => {
                return Err(Error::index(format!("{object} is not what it should be")));
            }
            Some(_) => {}
        }
    }
    // What somebody added may change answers as well: a trigger, a table in the place of a view.
    if let Some(object) = found.keys().find(|object| !made.contains_key(*object)) {
        return Err(Error::index(format!("{object} does not belong there")));
    }
    for name in ["epoch", "generation"] {
        let sql = "SELECT EXISTS (SELECT 1 FROM meta WHERE name = ?1)";
        if !db.query_row(sql, [name], |row| row.get::<_, bool>(0))? {
            return Err(Error::index(format!("the row `{name}` of meta is missing")));
        }
    }
    let sql = "SELECT coalesce((SELECT value FROM meta WHERE name = 'last_stamp'), 0) <
               max(coalesce((SELECT max(recorded_unix_ms) FROM record), 0),
                   coalesce((SELECT max(linked_unix_ms) FROM link), 0))";
    if db.query_row(sql, [], |row| row.get::<_, bool>(0))? {
        let why = "the row `last_stamp` of meta is older than what is stored";
        return Err(Error::index(why));
    }
    Ok(())
}

/// Says where its pages do not fit together; reads all of them.
pub(crate) fn check_pages(db: &Connection) -> Result<()> {
    let words: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    match words == "ok" {
        true => Ok(()),
        false => Err(Error::index(words)),
    }
}

/// Tables, indexes, views and triggers by name, as they were written down.
fn shape(db: &Connection) -> Result<BTreeMap<String, (String, Option<String>)>> {
    // Statistics are kept by whoever runs ANALYZE, and change no answer.
    let sql = "SELECT type || ' `' || name || '`', tbl_name, sql FROM sqlite_schema
               WHERE name NOT LIKE 'sqlite_stat%'";
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

impl Store {
    /// Opens the store at `root` for [`Store::verify`], which goes on without the index where
    /// that is damaged. With the lock it is opened for writing and cleared up after a crash; where
    /// the index is damaged it is opened for reading all the same: nothing is put aside that an
    /// index counts on which cannot be told. An index that is lost or empty is made again with the
    /// lock, as by [`Store::open`], and told without it.
    ///
    /// # Errors
    /// As [`Store::open`], but for damage to the index.
    pub fn open_to_verify(root: impl AsRef<Path>, lock: Option<&WriterLock>) -> Result<Self> {
        let root = root.as_ref();
        let opened = match lock {
            None => Self::open_read_only(root),
            // What is cleared up after a crash is told to the index, which must be one for that.
            Some(lock) => Self::open(root).and_then(|store| {
                check(&store.index())?;
                store.recover(lock)?;
                Ok(store)
            }),
        };
        match opened {
            Err(error) if index::is_damage(&error) => Self::bare(Layout::new(root), error),
            other => other,
        }
    }

    /// The files alone, for reading, with an index that knows nothing in the place of a damaged one.
    fn bare(layout: Layout, damage: Error) -> Result<Self> {
        Ok(Self {
            cas: Cas::new(layout.clone(), true),
            last_stamp: AtomicU64::new(0),
            layout,
            index: Mutex::new(index::scratch()?),
            index_damage: Some(damage),
            read_only: true,
            mirror: OnceLock::new(),
        })
    }

    /// Looks at everything, or at a share of it. Where the index is damaged that is one finding,
    /// and the files are looked at without it.
    ///
    /// # Errors
    /// What keeps it from looking; damage is no error but a finding.
    pub fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let damage = match &self.index_damage {
            Some(damage) => damage.clone(),
            None => match self.verify_all(options, &mut report) {
                Err(error) if index::is_damage(&error) => error,
                other => return other.map(|()| report),
            },
        };
        let detail = match &damage {
            Error::Corrupt { detail, .. } => detail.clone(),
            other => other.to_string(),
        };
        // All is looked at again; what was put aside before the damage showed is not found again.
        let mut found = report.damage;
        found.retain(|damage| damage.quarantined.is_some() || damage.kind == "notes");
        found.push(Damage {
            kind: "index",
            name: "index.sqlite".to_owned(),
            detail: format!(
                "{detail}; `doe cache rebuild` makes it again, until then other damage is only told"
            ),
            quarantined: None,
        });
        let mut report = VerifyReport {
            index: options.index,
            ..VerifyReport::default()
        };
        let bare = Self::bare(self.layout.clone(), damage)?;
        bare.verify_files(options, &mut report)?;
        report.damage.retain(|damage| {
            let same = |other: &Damage| (other.kind, &other.name) == (damage.kind, &damage.name);
            !found.iter().any(same)
        });
        found.append(&mut report.damage);
        report.damage = found;
        Ok(report)
    }
}

#[cfg(test)]
#[path = "whole_tests.rs"]
mod tests;
