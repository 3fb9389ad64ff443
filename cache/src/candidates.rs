//! Which record stands for a key or a label. It never depends on the order in which records and
//! links arrive: every candidate has an age, and the greatest age among those that count wins. So
//! a rebuilt index equals the one that grew, and when a candidate goes the next one takes over.

use crate::digest::Digest;
use crate::error::Result;
use crate::links::Linked;
use crate::read::time;
use crate::write::{int, raise_stamp};
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use std::collections::BTreeSet;

/// Time and digest as bytes that sort like the pair.
pub(crate) fn age(unix_ms: u64, record: &Digest) -> [u8; 40] {
    let mut age = [0; 40];
    age[..8].copy_from_slice(&unix_ms.to_be_bytes());
    age[8..].copy_from_slice(record.as_bytes());
    age
}

/// The statements that offer a record for a key or a label, looked up once for many offers.
///
/// What is new is inserted and what is there updated by two statements rather than by one upsert.
/// An upsert that sets a foreign key has SQLite copy every page before it touches it, as half of
/// the statement might have to be taken back; an insert of one row has not, and most are new.
pub(crate) struct Offers<'db> {
    new_spec: CachedStatement<'db>,
    known_spec: CachedStatement<'db>,
    new_label: CachedStatement<'db>,
    known_label: CachedStatement<'db>,
}

impl<'db> Offers<'db> {
    pub(crate) fn new(db: &'db Connection) -> Result<Self> {
        Ok(Self {
            new_spec: db.prepare_cached(
                "INSERT INTO spec_link (spec_key, record_id, age) VALUES (?1, ?2, ?3)
                 ON CONFLICT (spec_key) DO NOTHING",
            )?,
            known_spec: db.prepare_cached(
                "UPDATE spec_link SET record_id = ?2, age = ?3 WHERE spec_key = ?1 AND ?3 >= age",
            )?,
            new_label: db.prepare_cached(
                "INSERT INTO label_state (label, latest, latest_age, current, current_age)
                 VALUES (?1, ?2, ?3, iif(?4, ?2, NULL), iif(?4, ?3, NULL))
                 ON CONFLICT (label) DO NOTHING",
            )?,
            // What is set on the left is not yet seen on the right.
            known_label: db.prepare_cached(
                "UPDATE label_state SET
                     latest = iif(latest IS NULL OR ?3 >= latest_age, ?2, latest),
                     latest_age = iif(latest IS NULL OR ?3 >= latest_age, ?3, latest_age),
                     current = iif(?4 AND (current IS NULL OR ?3 >= current_age), ?2, current),
                     current_age =
                         iif(?4 AND (current IS NULL OR ?3 >= current_age), ?3, current_age)
                 WHERE label = ?1",
            )?,
        })
    }

    /// Offers a record for a spec key; it must be usable.
    pub(crate) fn spec(&mut self, spec_key: &Digest, id: i64, age: &[u8; 40]) -> Result<()> {
        let offer = params![spec_key.as_bytes(), id, age];
        if self.new_spec.execute(offer)? == 0 {
            self.known_spec.execute(offer)?;
        }
        Ok(())
    }

    /// Offers a record for a label: as what happened last, and when usable as what stands for it.
    pub(crate) fn label(
        &mut self,
        label: &str,
        id: i64,
        age: &[u8; 40],
        usable: bool,
    ) -> Result<()> {
        let offer = params![label, id, age, usable];
        if self.new_label.execute(offer)? == 0 {
            self.known_label.execute(offer)?;
        }
        Ok(())
    }
}

/// Lets a spec key and a label lead to a record from the link's time on. Says whether the record
/// is there and usable; if not, the link is kept only where the record is there: it counts once
/// the record is usable again.
pub(crate) fn link(db: &Connection, link: &Linked) -> Result<bool> {
    let Linked {
        spec_key,
        record,
        label,
        linked_unix_ms,
    } = link;
    let found: Option<(i64, bool)> = db
        .prepare_cached("SELECT id, usable FROM record WHERE digest = ?1")?
        .query_row([record.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, usable)) = found else {
        return Ok(false);
    };
    db.prepare_cached(
        "INSERT INTO link (record_id, spec_key, label, linked_unix_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        id,
        spec_key.as_bytes(),
        label,
        int(*linked_unix_ms)
    ])?;
    raise_stamp(db, *linked_unix_ms)?;
    if usable {
        let age = age(*linked_unix_ms, record);
        let mut offers = Offers::new(db)?;
        offers.spec(spec_key, id, &age)?;
        offers.label(label, id, &age, true)?;
    }
    Ok(usable)
}

/// Keys and labels that a change of a record concerns.
#[derive(Debug, Default)]
pub(crate) struct Concerned {
    specs: BTreeSet<[u8; 32]>,
    labels: BTreeSet<String>,
}

impl Concerned {
    /// Adds those of a record: its own and the linked ones.
    pub(crate) fn add(&mut self, db: &Connection, id: i64) -> Result<()> {
        let mut specs = db.prepare_cached(
            "SELECT spec_key FROM record WHERE id = ?1
             UNION SELECT spec_key FROM link WHERE record_id = ?1
             UNION SELECT spec_key FROM spec_link WHERE record_id = ?1",
        )?;
        for spec in specs.query_map([id], |row| row.get(0))? {
            self.specs.insert(spec?);
        }
        let mut labels = db.prepare_cached(
            "SELECT label FROM record WHERE id = ?1
             UNION SELECT label FROM link WHERE record_id = ?1
             UNION SELECT label FROM label_state WHERE latest = ?1
             UNION SELECT label FROM label_state WHERE current = ?1",
        )?;
        for label in labels.query_map([id], |row| row.get(0))? {
            self.labels.insert(label?);
        }
        Ok(())
    }

    /// Finds anew what stands for them.
    pub(crate) fn settle(&self, db: &Connection) -> Result<()> {
        let mut offers = Offers::new(db)?;
        for spec in &self.specs {
            db.prepare_cached("DELETE FROM spec_link WHERE spec_key = ?1")?
                .execute([spec])?;
            if let Some((id, age)) = best(db, BY_SPEC, spec)? {
                offers.spec(&Digest::from_bytes(*spec), id, &age)?;
            }
        }
        for label in &self.labels {
            db.prepare_cached("DELETE FROM label_state WHERE label = ?1")?
                .execute([label])?;
            if let Some((id, age)) = best(db, BY_LABEL, label)? {
                offers.label(label, id, &age, false)?;
            }
            if let Some((id, age)) = best(db, BY_LABEL_USABLE, label)? {
                offers.label(label, id, &age, true)?;
            }
        }
        Ok(())
    }
}

const BY_SPEC: &str = "
    SELECT id, recorded_unix_ms AS at, digest FROM record WHERE spec_key = ?1 AND usable
    UNION ALL
    SELECT r.id, k.linked_unix_ms, r.digest FROM link k JOIN record r ON r.id = k.record_id
    WHERE k.spec_key = ?1 AND r.usable";
const BY_LABEL: &str = "SELECT id, recorded_unix_ms AS at, digest FROM record WHERE label = ?1";
const BY_LABEL_USABLE: &str = "
    SELECT id, recorded_unix_ms AS at, digest FROM record WHERE label = ?1 AND usable
    UNION ALL
    SELECT r.id, k.linked_unix_ms, r.digest FROM link k JOIN record r ON r.id = k.record_id
    WHERE k.label = ?1 AND r.usable";

/// The candidate with the greatest age.
fn best(
    db: &Connection,
    sql: &str,
    parameter: impl rusqlite::ToSql,
) -> Result<Option<(i64, [u8; 40])>> {
    let sql = format!("SELECT * FROM ({sql}) ORDER BY at DESC, digest DESC LIMIT 1");
    let found = db
        .prepare_cached(&sql)?
        .query_row([parameter], |row| {
            let (id, unix_ms, digest): (i64, i64, [u8; 32]) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let unix_ms = u64::try_from(unix_ms).unwrap_or(0);
            Ok((id, age(unix_ms, &Digest::from_bytes(digest))))
        })
        .optional()?;
    Ok(found)
}

/// Takes a record out of the index, because its file is gone, damaged or refused; older ones take
/// its place. Says whether it was there.
pub(crate) fn forget(db: &Connection, digest: &Digest) -> Result<bool> {
    let id: Option<i64> = db
        .prepare_cached("SELECT id FROM record WHERE digest = ?1")?
        .query_row([digest.as_bytes()], |row| row.get(0))
        .optional()?;
    let Some(id) = id else { return Ok(false) };
    let mut concerned = Concerned::default();
    concerned.add(db, id)?;
    db.prepare_cached("DELETE FROM record WHERE id = ?1")?
        .execute([id])?;
    concerned.settle(db)?;
    Ok(true)
}

/// Records with this output can no longer be reused: it is gone, unless `elsewhere` says that the
/// record has it elsewhere. How many they are.
pub(crate) fn lost_blob(
    db: &Connection,
    blob: &Digest,
    elsewhere: &dyn Fn(&Digest) -> bool,
) -> Result<usize> {
    let ids = losers(db, blob, elsewhere)?;
    complete(db, &ids, false)?;
    Ok(ids.len())
}

/// The records that [`lost_blob`] is about.
pub(crate) fn losers(
    db: &Connection,
    blob: &Digest,
    elsewhere: &dyn Fn(&Digest) -> bool,
) -> Result<Vec<i64>> {
    let mut statement = db.prepare_cached(
        "SELECT DISTINCT r.id, r.digest FROM record_output o JOIN record r ON r.id = o.record_id
         WHERE o.digest = ?1 AND r.complete",
    )?;
    let rows = statement.query_map([blob.as_bytes()], |row| {
        Ok((row.get(0)?, Digest::from_bytes(row.get(1)?)))
    })?;
    let rows: Vec<(i64, Digest)> = rows.collect::<rusqlite::Result<_>>()?;
    let here = rows.into_iter().filter(|(_, record)| !elsewhere(record));
    Ok(here.map(|(id, _)| id).collect())
}

/// Records with an output that is gone, as `there` sees it, can no longer be reused.
pub(crate) fn lost_blobs(
    db: &Connection,
    there: &dyn Fn(&Digest, &Digest, u64) -> bool,
) -> Result<()> {
    let mut outputs = db.prepare(
        "SELECT r.id, r.digest, o.digest, o.size_bytes
         FROM record_output o JOIN record r ON r.id = o.record_id WHERE r.complete",
    )?;
    let mut lost = BTreeSet::new();
    let mut rows = outputs.query([])?;
    while let Some(row) = rows.next()? {
        let [record, blob] = [row.get(1)?, row.get(2)?].map(Digest::from_bytes);
        if !there(&record, &blob, time(row, 3)?) {
            lost.insert(row.get(0)?);
        }
    }
    drop(rows);
    let lost: Vec<i64> = lost.into_iter().collect();
    complete(db, &lost, false)
}

/// Records that lacked an output and lack none any more, as `there` sees it, may be reused again.
pub(crate) fn found_blobs(db: &Connection, there: &dyn Fn(&Digest, u64) -> bool) -> Result<()> {
    let incomplete = ids(db, "SELECT id FROM record WHERE complete = 0", [])?;
    let mut whole = Vec::new();
    for id in incomplete {
        let mut outputs =
            db.prepare_cached("SELECT digest, size_bytes FROM record_output WHERE record_id = ?1")?;
        let rows = outputs.query_map([id], |row| {
            let size: i64 = row.get(1)?;
            Ok((
                Digest::from_bytes(row.get(0)?),
                u64::try_from(size).unwrap_or(0),
            ))
        })?;
        let rows: Vec<(Digest, u64)> = rows.collect::<rusqlite::Result<_>>()?;
        if rows.iter().all(|(digest, size)| there(digest, *size)) {
            whole.push(id);
        }
    }
    complete(db, &whole, true)
}

fn complete(db: &Connection, ids: &[i64], complete: bool) -> Result<()> {
    let mut concerned = Concerned::default();
    for id in ids {
        db.prepare_cached("UPDATE record SET complete = ?2 WHERE id = ?1")?
            .execute(params![id, complete])?;
        concerned.add(db, *id)?;
    }
    concerned.settle(db)
}

fn ids(db: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<Vec<i64>> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(parameters, |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
