//! Rows for records. What is in them follows from the record alone, so a rebuilt index equals the
//! one that grew.

use crate::candidates::{Offers, age};
use crate::digest::Digest;
use crate::error::Result;
use crate::record::Record;
use crate::value::Value;
use crate::verdict::Check;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use serde::Serialize;

/// SQLite has signed integers only; no time or size reaches the limit.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn json(value: &impl Serialize) -> Result<String> {
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
    insert_records(db, [(digest, size_bytes, record)], complete)
}

/// [`insert_record`] for many at once: digests, sizes and records.
pub(crate) fn insert_records<'r>(
    db: &Connection,
    records: impl IntoIterator<Item = (&'r Digest, u64, &'r Record)>,
    complete: bool,
) -> Result<()> {
    let mut rows = Rows::new(db)?;
    let mut latest = None;
    for (digest, size_bytes, record) in records {
        if rows.insert(digest, size_bytes, record, complete)? {
            latest = latest.max(Some(record.recorded_unix_ms));
        }
    }
    latest.map_or(Ok(()), |unix_ms| raise_stamp(db, unix_ms))
}

/// The statements that add records, looked up once for many.
struct Rows<'db> {
    db: &'db Connection,
    record: CachedStatement<'db>,
    detail: CachedStatement<'db>,
    output: CachedStatement<'db>,
    log: CachedStatement<'db>,
    metric: CachedStatement<'db>,
    series: CachedStatement<'db>,
    sample: CachedStatement<'db>,
    offers: Offers<'db>,
}

impl<'db> Rows<'db> {
    fn new(db: &'db Connection) -> Result<Self> {
        Ok(Self {
            db,
            record: db.prepare_cached(
                "INSERT INTO record (digest, label, spec_key, action_key, judge, output_digest,
                     simulated, recorded_unix_ms, started_unix_ms, ended_unix_ms, execution,
                     validity, criterion, reusable, complete, kind, plan, layer, rule, run_id,
                     attempt, exploratory, size_bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                     ?17, ?18, ?19, ?20, ?21, ?22, ?23)
                 ON CONFLICT (digest) DO NOTHING",
            )?,
            detail: db.prepare_cached(
                "INSERT INTO record_detail VALUES
                     (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?,
            output: db.prepare_cached("INSERT INTO record_output VALUES (?1, ?2, ?3, ?4, ?5)")?,
            log: db.prepare_cached("INSERT INTO record_log VALUES (?1, ?2, ?3, ?4, ?5)")?,
            metric: db.prepare_cached("INSERT INTO record_metric VALUES (?1, ?2, ?3, ?4, ?5)")?,
            series: db
                .prepare_cached("INSERT INTO record_series (record_id, name) VALUES (?1, ?2)")?,
            sample: db.prepare_cached("INSERT INTO record_sample VALUES (?1, ?2, ?3)")?,
            offers: Offers::new(db)?,
        })
    }

    /// Says whether it was not there before.
    fn insert(
        &mut self,
        digest: &Digest,
        size_bytes: u64,
        record: &Record,
        complete: bool,
    ) -> Result<bool> {
        let inserted = self.record.execute(params![
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
            return Ok(false);
        }
        let id = self.db.last_insert_rowid();
        self.insert_details(id, record)?;
        let age = age(record.recorded_unix_ms, digest);
        let usable = record.usable() && complete;
        if usable {
            self.offers.spec(&record.spec_key, id, &age)?;
        }
        self.offers.label(&record.label, id, &age, usable)?;
        Ok(true)
    }

    fn insert_details(&mut self, id: i64, record: &Record) -> Result<()> {
        let verdicts = &record.verdicts;
        let checks: Vec<Told<'_>> = verdicts.criterion.checks.iter().map(Told::of).collect();
        self.detail.execute(params![
            id,
            record.rejudged_from.as_ref().map(Digest::as_bytes),
            record.provenance.platform,
            record.provenance.executor,
            record.provenance.doe_version,
            verdicts.execution.class,
            verdicts.execution.reason,
            verdicts.execution.exit_code,
            json(&verdicts.validity.failed)?,
            json(&checks)?,
            record.not_reusable_because,
            json(&record.settings)?,
            json(&record.tags)?,
            json(&record.texts)?,
        ])?;
        for (name, output) in &record.outputs {
            self.output.execute(params![
                id,
                name,
                output.digest.as_bytes(),
                int(output.size_bytes),
                output.schema,
            ])?;
        }
        for (position, log) in record.logs.iter().enumerate() {
            self.log.execute(params![
                id,
                int(position as u64),
                log.name,
                log.digest.as_bytes(),
                int(log.size_bytes),
            ])?;
        }
        for (name, metric) in &record.metrics {
            self.metric
                .execute(params![id, name, metric.value, metric.unit, metric.better])?;
        }
        for (name, values) in &record.samples {
            let series_id = self.series.insert(params![id, name])?;
            for (position, value) in values.iter().enumerate() {
                self.sample
                    .execute(params![series_id, int(position as u64), value])?;
            }
        }
        Ok(())
    }
}

/// A check as the views have it. The order of its fields is theirs and not the record's: an index
/// that grew under an earlier program must say what one says that is made again.
#[derive(Serialize)]
struct Told<'r> {
    metric: &'r str,
    expected: &'r Value,
    got: Option<&'r Value>,
    met: bool,
}

impl<'r> Told<'r> {
    fn of(check: &'r Check) -> Self {
        let Check {
            expected,
            got,
            met,
            metric,
        } = check;
        Self {
            metric,
            expected,
            got: got.as_ref(),
            met: *met,
        }
    }
}

/// Empties the tables that are made from files.
pub(crate) fn clear(db: &Connection) -> Result<()> {
    db.execute_batch(
        "DELETE FROM link; DELETE FROM spec_link; DELETE FROM label_state; DELETE FROM record_sample;
         DELETE FROM record_series; DELETE FROM record_metric; DELETE FROM record_log;
         DELETE FROM record_output; DELETE FROM record_detail; DELETE FROM record;
         DELETE FROM run_node; DELETE FROM run;
         DELETE FROM meta WHERE name = 'last_stamp';",
    )?;
    Ok(())
}

pub(crate) fn raise_stamp(db: &Connection, unix_ms: u64) -> Result<()> {
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
