//! Rows for records. Which record stands for a key or a label never depends on the order in which
//! records arrive: every row has an age, and the greater age wins. So a rebuilt index equals the
//! one that grew.

use crate::digest::Digest;
use crate::error::Result;
use crate::record::Record;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, params};

/// SQLite has signed integers only; no time or size reaches the limit.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Time and digest as bytes that sort like the pair.
pub(crate) fn age(unix_ms: u64, record: &Digest) -> [u8; 40] {
    let mut age = [0; 40];
    age[..8].copy_from_slice(&unix_ms.to_be_bytes());
    age[8..].copy_from_slice(record.as_bytes());
    age
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| crate::Error::invalid(e.to_string()))
}

/// Adds the rows of a record, unless they are there. `complete` says whether all its outputs are
/// in the store. Runs inside the caller's transaction.
pub(crate) fn insert_record(
    db: &Connection,
    digest: &Digest,
    size_bytes: u64,
    record: &Record,
    complete: bool,
) -> Result<()> {
    let inserted = db
        .prepare_cached(
            "INSERT INTO record (digest, label, spec_key, action_key, judge, output_digest,
                 simulated, recorded_unix_ms, started_unix_ms, ended_unix_ms, execution, validity,
                 criterion, reusable, complete, kind, plan, layer, rule, run_id, attempt,
                 exploratory, size_bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                 ?18, ?19, ?20, ?21, ?22, ?23)
             ON CONFLICT (digest) DO NOTHING",
        )?
        .execute(params![
            digest.as_bytes(),
            record.label,
            record.spec_key.as_bytes(),
            record.action_key.as_bytes(),
            record.judge.as_bytes(),
            record.output_digest.as_bytes(),
            record.provenance.simulated,
            int(record.recorded_unix_ms),
            int(record.timings.started_unix_ms),
            int(record.timings.ended_unix_ms),
            record.verdicts.execution.status,
            record.verdicts.validity.status,
            record.verdicts.criterion.status,
            record.reusable,
            complete,
            record.kind,
            record.plan,
            record.layer,
            record.rule,
            record.run_id,
            record.attempt,
            record.exploratory,
            int(size_bytes),
        ])?;
    if inserted == 0 {
        return Ok(());
    }
    let id = db.last_insert_rowid();
    insert_details(db, id, record)?;
    let age = age(record.recorded_unix_ms, digest);
    let usable = record.usable() && complete;
    if usable {
        offer_spec(db, &record.spec_key, id, &age)?;
    }
    offer_label(db, &record.label, id, &age, usable)?;
    raise_stamp(db, record.recorded_unix_ms)
}

fn insert_details(db: &Connection, id: i64, record: &Record) -> Result<()> {
    let verdicts = &record.verdicts;
    db.prepare_cached(
        "INSERT INTO record_detail VALUES
             (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?
    .execute(params![
        id,
        record.rejudged_from.as_ref().map(Digest::as_bytes),
        record.provenance.platform,
        record.provenance.executor,
        record.provenance.doe_version,
        verdicts.execution.class,
        verdicts.execution.reason,
        verdicts.execution.exit_code,
        json(&verdicts.validity.failed)?,
        json(&verdicts.criterion.checks)?,
        record.not_reusable_because,
        json(&record.settings)?,
        json(&record.tags)?,
        json(&record.texts)?,
    ])?;
    let mut insert = db.prepare_cached("INSERT INTO record_output VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (name, output) in &record.outputs {
        insert.execute(params![
            id,
            name,
            output.digest.as_bytes(),
            int(output.size_bytes),
            output.schema,
        ])?;
    }
    let mut insert = db.prepare_cached("INSERT INTO record_log VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (position, log) in record.logs.iter().enumerate() {
        insert.execute(params![
            id,
            int(position as u64),
            log.name,
            log.digest.as_bytes(),
            int(log.size_bytes),
        ])?;
    }
    let mut insert = db.prepare_cached("INSERT INTO record_metric VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (name, metric) in &record.metrics {
        insert.execute(params![id, name, metric.value, metric.unit, metric.better])?;
    }
    let mut series =
        db.prepare_cached("INSERT INTO record_series (record_id, name) VALUES (?1, ?2)")?;
    let mut sample = db.prepare_cached("INSERT INTO record_sample VALUES (?1, ?2, ?3)")?;
    for (name, values) in &record.samples {
        let series_id = series.insert(params![id, name])?;
        for (position, value) in values.iter().enumerate() {
            sample.execute(params![series_id, int(position as u64), value])?;
        }
    }
    Ok(())
}

fn offer_spec(db: &Connection, spec_key: &Digest, id: i64, age: &[u8; 40]) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO spec_link (spec_key, record_id, age) VALUES (?1, ?2, ?3)
         ON CONFLICT (spec_key) DO UPDATE SET record_id = excluded.record_id, age = excluded.age
         WHERE excluded.age >= spec_link.age",
    )?
    .execute(params![spec_key.as_bytes(), id, age])?;
    Ok(())
}

fn offer_label(db: &Connection, label: &str, id: i64, age: &[u8; 40], usable: bool) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO label_state (label, latest, latest_age) VALUES (?1, ?2, ?3)
         ON CONFLICT (label) DO UPDATE SET latest = excluded.latest, latest_age = excluded.latest_age
         WHERE label_state.latest IS NULL OR excluded.latest_age >= label_state.latest_age",
    )?
    .execute(params![label, id, age])?;
    if usable {
        db.prepare_cached(
            "UPDATE label_state SET current = ?2, current_age = ?3
             WHERE label = ?1 AND (current IS NULL OR ?3 >= current_age)",
        )?
        .execute(params![label, id, age])?;
    }
    Ok(())
}

/// Lets a spec key and a label lead to a record from now on. Says whether the record is there
/// and usable; if not, nothing happens.
pub(crate) fn link(
    db: &Connection,
    spec_key: &Digest,
    record: &Digest,
    label: &str,
    unix_ms: u64,
) -> Result<bool> {
    let id: Option<i64> = db
        .prepare_cached("SELECT id FROM record WHERE digest = ?1 AND usable")?
        .query_row([record.as_bytes()], |row| row.get(0))
        .optional()?;
    let Some(id) = id else { return Ok(false) };
    let age = age(unix_ms, record);
    // This is what holds now, so it replaces whatever was there; the age only ever grows.
    db.prepare_cached(
        "INSERT INTO spec_link (spec_key, record_id, age) VALUES (?1, ?2, ?3)
         ON CONFLICT (spec_key) DO UPDATE SET record_id = excluded.record_id,
             age = max(excluded.age, spec_link.age)",
    )?
    .execute(params![spec_key.as_bytes(), id, age])?;
    db.prepare_cached(
        "INSERT INTO label_state (label, latest, latest_age, current, current_age)
         VALUES (?1, ?2, ?3, ?2, ?3)
         ON CONFLICT (label) DO UPDATE SET
             latest = excluded.latest,
             latest_age = max(excluded.latest_age, label_state.latest_age),
             current = excluded.current,
             current_age = max(excluded.current_age,
                 coalesce(label_state.current_age, excluded.current_age))",
    )?
    .execute(params![label, id, age])?;
    raise_stamp(db, unix_ms)?;
    Ok(true)
}

/// Takes a record out of the index, because its file is gone or damaged; older ones take its
/// place.
pub(crate) fn forget(db: &Connection, digest: &Digest) -> Result<()> {
    let id: Option<i64> = db
        .query_row(
            "SELECT id FROM record WHERE digest = ?1",
            [digest.as_bytes()],
            |row| row.get(0),
        )
        .optional()?;
    let Some(id) = id else { return Ok(()) };
    let column = |sql: &str| -> Result<Vec<SqlValue>> {
        let mut statement = db.prepare(sql)?;
        let rows = statement.query_map([id], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    let specs = column("SELECT spec_key FROM spec_link WHERE record_id = ?1")?;
    let labels = column("SELECT label FROM label_state WHERE ?1 IN (latest, current)")?;
    db.execute("DELETE FROM record WHERE id = ?1", [id])?;
    for spec in specs {
        let key = match &spec {
            SqlValue::Blob(b) => <[u8; 32]>::try_from(b.as_slice()).ok(),
            _ => None,
        };
        let best = newest(db, "spec_key = ?1 AND usable", &spec)?;
        if let (Some(key), Some((id, age))) = (key, best) {
            offer_spec(db, &Digest::from_bytes(key), id, &age)?;
        }
    }
    for label in labels {
        db.execute("DELETE FROM label_state WHERE label = ?1", [&label])?;
        let usable = newest(db, "label = ?1 AND usable", &label)?;
        let any = newest(db, "label = ?1", &label)?;
        let best = [(any, false), (usable, true)];
        for (id, age, usable) in best
            .into_iter()
            .filter_map(|(b, u)| b.map(|(i, a)| (i, a, u)))
        {
            if let SqlValue::Text(label) = &label {
                offer_label(db, label, id, &age, usable)?;
            }
        }
    }
    Ok(())
}

/// The youngest record that fulfils a condition, with its age.
fn newest(
    db: &Connection,
    condition: &str,
    parameter: &SqlValue,
) -> Result<Option<(i64, [u8; 40])>> {
    let sql = format!(
        "SELECT id, recorded_unix_ms, digest FROM record WHERE {condition}
         ORDER BY recorded_unix_ms DESC, digest DESC LIMIT 1"
    );
    let found = db
        .query_row(&sql, [parameter], |row| {
            let (id, unix_ms, digest): (i64, i64, [u8; 32]) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let unix_ms = u64::try_from(unix_ms).unwrap_or(0);
            Ok((id, age(unix_ms, &Digest::from_bytes(digest))))
        })
        .optional()?;
    Ok(found)
}

/// Empties the tables that are made from records.
pub(crate) fn clear(db: &Connection) -> Result<()> {
    db.execute_batch(
        "DELETE FROM spec_link; DELETE FROM label_state; DELETE FROM record_sample;
         DELETE FROM record_series; DELETE FROM record_metric; DELETE FROM record_log;
         DELETE FROM record_output; DELETE FROM record_detail; DELETE FROM record;
         DELETE FROM meta WHERE name = 'last_stamp';",
    )?;
    Ok(())
}

fn raise_stamp(db: &Connection, unix_ms: u64) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO meta (name, value) VALUES ('last_stamp', ?1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value
         WHERE excluded.value > meta.value",
    )?
    .execute([int(unix_ms)])?;
    Ok(())
}

/// The greatest time that any record or link carries.
pub(crate) fn last_stamp(db: &Connection) -> Result<u64> {
    let found: Option<i64> = db
        .query_row(
            "SELECT value FROM meta WHERE name = 'last_stamp'",
            [],
            |row| row.get(0),
        )
        .optional()?;
    Ok(found.map_or(0, |v| u64::try_from(v).unwrap_or(0)))
}
