//! Questions to the index. Look-ups by key give only records that may be reused: the condition is
//! a generated column of the schema, written once.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::record::RecordKind;
use crate::summary::{Snapshot, Summary};
use crate::verdict::{CriterionStatus, ExecutionStatus, ValidityStatus};
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, Row};
use std::collections::BTreeMap;
use std::sync::Arc;

const SUMMARY: &str = "r.id, r.digest, r.label, r.spec_key, r.action_key, r.judge, \
     r.output_digest, r.simulated, r.recorded_unix_ms, r.started_unix_ms, r.ended_unix_ms, \
     r.execution, r.validity, r.criterion, r.reusable AND r.complete";

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    let digest = |i| row.get::<_, [u8; 32]>(i).map(Digest::from_bytes);
    let (started, ended) = (time(row, 9)?, time(row, 10)?);
    Ok(Summary {
        record: digest(1)?,
        label: row.get_ref(2)?.as_str()?.into(),
        spec_key: digest(3)?,
        action_key: digest(4)?,
        judge: digest(5)?,
        output_digest: digest(6)?,
        simulated: row.get(7)?,
        recorded_unix_ms: time(row, 8)?,
        ended_unix_ms: ended,
        duration_ms: ended.saturating_sub(started),
        execution: row.get(11)?,
        validity: row.get(12)?,
        criterion: row.get(13)?,
        reusable: row.get(14)?,
    })
}

pub(crate) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// The usable record that a spec key leads to.
pub(crate) fn by_spec(db: &Connection, key: &Digest) -> Result<Option<Summary>> {
    let sql = format!(
        "SELECT {SUMMARY} FROM spec_link k JOIN record r ON r.id = k.record_id
         WHERE k.spec_key = ?1 AND r.usable"
    );
    Ok(db
        .prepare_cached(&sql)?
        .query_row([key.as_bytes()], summary)
        .optional()?)
}

/// The latest usable record with an action key.
pub(crate) fn by_action(db: &Connection, key: &Digest) -> Result<Option<Summary>> {
    let sql = format!(
        "SELECT {SUMMARY} FROM record r WHERE r.action_key = ?1 AND r.usable
         ORDER BY r.recorded_unix_ms DESC, r.digest DESC LIMIT 1"
    );
    Ok(db
        .prepare_cached(&sql)?
        .query_row([key.as_bytes()], summary)
        .optional()?)
}

/// Whether a record is there and may be reused.
pub(crate) fn is_usable(db: &Connection, record: &Digest) -> Result<bool> {
    Ok(db
        .prepare_cached("SELECT 1 FROM record WHERE digest = ?1 AND usable")?
        .exists([record.as_bytes()])?)
}

/// Whether the index has a record.
pub(crate) fn is_there(db: &Connection, record: &Digest) -> Result<bool> {
    Ok(db
        .prepare_cached("SELECT 1 FROM record WHERE digest = ?1")?
        .exists([record.as_bytes()])?)
}

fn place(id: i64) -> usize {
    usize::try_from(id).unwrap_or(0)
}

/// Everything that decisions look at: one scan a table.
pub(crate) fn bulk(db: &Connection) -> Result<Snapshot> {
    // One transaction, so that the three scans see the same moment.
    let db = db.unchecked_transaction()?;
    let count = |table: &str| -> Result<usize> {
        let sql = format!("SELECT count(*) FROM {table}");
        let count: i64 = db.query_row(&sql, [], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    };
    let records = count("record")?;
    let mut snapshot = Snapshot::with_capacity(records, count("spec_link")?, count("label_state")?);
    let last: Option<i64> = db.query_row("SELECT max(id) FROM record", [], |row| row.get(0))?;
    // From ids of the index to rows of the snapshot: ids are handed out in sequence.
    let mut rows: Vec<Option<u32>> = vec![None; last.map_or(0, |id| place(id) + 1)];
    let row_of = |rows: &[Option<u32>], id| rows.get(place(id)).copied().flatten();
    // Old failures are few: to leave them out would cost more than to read them.
    let sql = format!("SELECT {SUMMARY} FROM record r");
    let mut statement = db.prepare_cached(&sql)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let at = place(row.get(0)?);
        let loaded = snapshot.load_row(summary(row)?);
        if let Some(slot) = rows.get_mut(at) {
            *slot = Some(loaded);
        }
    }
    drop(found);
    drop(statement);

    let mut statement = db.prepare_cached("SELECT spec_key, record_id FROM spec_link")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        if let Some(record) = row_of(&rows, row.get(1)?) {
            snapshot.load_spec(Digest::from_bytes(row.get(0)?), record);
        }
    }
    drop(found);
    drop(statement);

    let mut statement = db.prepare_cached("SELECT label, latest, current FROM label_state")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let at = |column| -> rusqlite::Result<Option<u32>> {
            let id: Option<i64> = row.get(column)?;
            Ok(id.and_then(|id| row_of(&rows, id)))
        };
        let (latest, current) = (at(1)?, at(2)?);
        let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        // Nearly always the label is that of its record: share the text.
        let shared = latest
            .map(|row| snapshot.label_of(row))
            .filter(|l| ***l == *text);
        let label = shared.map_or_else(|| text.into(), Arc::clone);
        snapshot.load_label(label, latest, current);
    }
    drop(found);
    drop(statement);
    Ok(snapshot)
}

/// What a decision about one node looks at, as [`bulk`] has it, put into a snapshot.
pub(crate) fn slice(
    db: &Connection,
    snapshot: &mut Snapshot,
    label: &str,
    spec_key: &Digest,
    action_key: &Digest,
) -> Result<()> {
    let db = db.unchecked_transaction()?;
    let sql = format!("SELECT {SUMMARY} FROM record r WHERE r.id = ?1");
    let by_id = |id: i64| -> Result<Option<Summary>> {
        Ok(db
            .prepare_cached(&sql)?
            .query_row([id], summary)
            .optional()?)
    };
    let standing: Option<(Option<i64>, Option<i64>)> = db
        .prepare_cached("SELECT latest, current FROM label_state WHERE label = ?1")?
        .query_row([label], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((latest, current)) = standing {
        let mut row = |id: Option<i64>| -> Result<Option<u32>> {
            let found = id.map(by_id).transpose()?.flatten();
            Ok(found.map(|found| snapshot.load_once(found)))
        };
        let (latest, current) = (row(latest)?, row(current)?);
        snapshot.load_label(label.into(), latest, current);
    }
    if let Some(found) = by_spec(&db, spec_key)? {
        let row = snapshot.load_once(found);
        snapshot.load_spec(*spec_key, row);
    }
    if let Some(found) = by_action(&db, action_key)? {
        snapshot.load_once(found);
    }
    Ok(())
}

/// Which records to list; an empty filter lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this plan.
    pub plan: Option<String>,
    /// Only this label.
    pub label: Option<String>,
    /// Only this kind.
    pub kind: Option<RecordKind>,
    /// Only this execution status.
    pub execution: Option<ExecutionStatus>,
    /// Only this validity.
    pub validity: Option<ValidityStatus>,
    /// Only this criterion.
    pub criterion: Option<CriterionStatus>,
    /// Only what may (or may not) be reused.
    pub usable: Option<bool>,
    /// Only simulated (or only real) results.
    pub simulated: Option<bool>,
    /// Only this run.
    pub run_id: Option<String>,
    /// At most this many, the latest.
    pub limit: Option<usize>,
}

/// Records that pass a filter, the latest first.
pub(crate) fn list(db: &Connection, filter: &Filter) -> Result<Vec<Summary>> {
    let Filter {
        plan,
        label,
        kind,
        execution,
        validity,
        criterion,
        usable,
        simulated,
        run_id,
        limit,
    } = filter;
    let text = |t: &Option<String>| t.clone().map(SqlValue::from);
    let word = |w: Option<&'static str>| w.map(|w| SqlValue::from(w.to_owned()));
    let conditions = [
        ("plan", text(plan)),
        ("label", text(label)),
        ("kind", word(kind.map(RecordKind::as_str))),
        ("execution", word(execution.map(ExecutionStatus::as_str))),
        ("validity", word(validity.map(ValidityStatus::as_str))),
        ("criterion", word(criterion.map(CriterionStatus::as_str))),
        ("usable", usable.map(SqlValue::from)),
        ("simulated", simulated.map(SqlValue::from)),
        ("run_id", text(run_id)),
    ];
    let mut sql = format!("SELECT {SUMMARY} FROM record r WHERE 1");
    let mut values = Vec::new();
    for (column, value) in conditions {
        if let Some(value) = value {
            sql.push_str(&format!(" AND r.{column} = ?"));
            values.push(value);
        }
    }
    sql.push_str(" ORDER BY r.recorded_unix_ms DESC, r.digest DESC LIMIT ?");
    values.push(SqlValue::from(
        limit.map_or(-1, |l| i64::try_from(l).unwrap_or(-1)),
    ));
    let mut statement = db.prepare(&sql)?;
    let rows = statement.query_map(rusqlite::params_from_iter(values), summary)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What a beginning of a digest may name, in the order in which it is looked for.
const NAMES: [&str; 3] = [
    "SELECT DISTINCT digest, digest FROM record WHERE digest BETWEEN ?1 AND ?2 LIMIT 2",
    "SELECT DISTINCT k.spec_key, r.digest FROM spec_link k JOIN record r ON r.id = k.record_id
     WHERE k.spec_key BETWEEN ?1 AND ?2 LIMIT 2",
    "SELECT action_key, digest FROM (
         SELECT action_key, digest, row_number() OVER (PARTITION BY action_key
             ORDER BY usable DESC, recorded_unix_ms DESC, digest DESC) AS place
         FROM record WHERE action_key BETWEEN ?1 AND ?2)
     WHERE place = 1 LIMIT 2",
];

fn bad(prefix: &str, why: &str) -> Error {
    Error::BadDigest {
        text: prefix.to_owned(),
        why: why.to_owned(),
    }
}

pub(crate) fn ambiguous(prefix: &str) -> Error {
    bad(
        prefix,
        "several records or keys begin with it; give more digits",
    )
}

/// The first and the last digest that start with these digits.
pub(crate) fn range(prefix: &str) -> Result<(Digest, Digest)> {
    let bad = |why| bad(prefix, why);
    if prefix.len() < 4 {
        return Err(bad("at least 4 digits are needed"));
    }
    if prefix.len() > 2 * Digest::LEN {
        return Err(bad("it has more than 64 digits"));
    }
    let low: Digest = format!("{prefix:0<64}")
        .parse()
        .map_err(|_| bad("it has other characters than 0-9 and a-f"))?;
    Ok((low, format!("{prefix:f<64}").parse()?))
}

/// The record whose digest starts with these digits, or else the one that a key which does leads
/// to.
pub(crate) fn resolve(db: &Connection, prefix: &str) -> Result<Digest> {
    let (low, high) = range(prefix)?;
    for sql in NAMES {
        let found: Vec<[u8; 32]> = db
            .prepare(sql)?
            .query_map([low.as_bytes(), high.as_bytes()], |row| row.get(1))?
            .collect::<rusqlite::Result<_>>()?;
        match found[..] {
            [one] => return Ok(Digest::from_bytes(one)),
            [] => {}
            _ => return Err(ambiguous(prefix)),
        }
    }
    Err(Error::not_found(format!("record `{prefix}…`")))
}

/// What is stored, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records.
    pub records: u64,
    /// Records that may be reused.
    pub usable: u64,
    /// Bytes of all record files.
    pub record_bytes: u64,
    /// Blobs in the content-addressed store.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Labels that anything is known of.
    pub labels: u64,
    /// Spec keys that lead to a record.
    pub spec_keys: u64,
    /// Runs.
    pub runs: u64,
    /// Records by plan.
    pub by_plan: BTreeMap<String, u64>,
    /// Records by status: `ok`, or `invalid`, or the execution status that is not ok.
    pub by_status: BTreeMap<String, u64>,
}

/// Counts what the index knows; blobs are for the caller to count.
pub(crate) fn stats(db: &Connection) -> Result<Stats> {
    let db = db.unchecked_transaction()?;
    let number = |sql: &str| -> Result<u64> { Ok(db.query_row(sql, [], |row| time(row, 0))?) };
    let groups = |sql: &str| -> Result<BTreeMap<String, u64>> {
        let mut statement = db.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, time(row, 1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    Ok(Stats {
        records: number("SELECT count(*) FROM record")?,
        usable: number("SELECT count(*) FROM record WHERE usable")?,
        record_bytes: number("SELECT coalesce(sum(size_bytes), 0) FROM record")?,
        blobs: 0,
        blob_bytes: 0,
        labels: number("SELECT count(*) FROM label_state")?,
        spec_keys: number("SELECT count(*) FROM spec_link")?,
        runs: number("SELECT count(*) FROM run")?,
        by_plan: groups("SELECT plan, count(*) FROM record GROUP BY plan")?,
        by_status: groups(
            "SELECT iif(execution = 'ok' AND validity <> 'valid', validity, execution) AS status,
                 count(*) FROM record GROUP BY status",
        )?,
    })
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
