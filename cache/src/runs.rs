//! What each run did with each node. A run is an event, not a result: its rows say what happened
//! and may name records, but nothing is ever reused because of them.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::read::time;
use crate::verdict::words;
use crate::write::int;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use std::collections::BTreeMap;

words! {
    /// How a run stands.
    RunStatus {
        /// It goes on, or died without a word.
        Running = "running",
        /// Everything asked for is there.
        Ok = "ok",
        /// At least one node did not succeed.
        Failed = "failed",
        /// The user stopped it.
        Interrupted = "interrupted",
        /// It was found dead by a later run.
        Abandoned = "abandoned",
    }
}

words! {
    /// How a node stands in a run.
    NodeState {
        /// It is to be executed and has not begun.
        Planned = "planned",
        /// It is being executed.
        Running = "running",
        /// An attempt failed for a reason of the infrastructure, a further one is to come.
        Retrying = "retrying",
        /// Executed, valid.
        Ok = "ok",
        /// A stored result stands for it.
        Reused = "reused",
        /// Executed, but its numbers may not be used.
        Invalid = "invalid",
        /// It did not come through.
        Failed = "failed",
        /// Something that it needs did not succeed.
        Blocked = "blocked",
        /// It was stopped, or never begun because the run was.
        Cancelled = "cancelled",
        /// The run had no need of it.
        Skipped = "skipped",
    }
}

impl NodeState {
    /// Whether `@failed` selects it.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Failed | Self::Invalid | Self::Blocked | Self::Retrying
        )
    }

    /// Whether the run is done with it.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Planned | Self::Running | Self::Retrying)
    }
}

/// What is known of a run when it begins.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RunInfo {
    /// Its name, unique in the store.
    pub run_id: String,
    /// What the user asked for.
    pub command: String,
    /// Platform by name.
    pub platform: String,
    /// Whether its tools are simulated.
    pub simulated: bool,
    /// Version of the program.
    pub doe_version: String,
    /// Where it runs.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// When it began, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
}

/// A run, as far as it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What was known at its begin.
    pub info: RunInfo,
    /// How it stands.
    pub status: RunStatus,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// Nodes by state; states without nodes are left out.
    pub nodes: BTreeMap<NodeState, u64>,
}

/// A change of a node's state in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUpdate {
    /// The run.
    pub run_id: String,
    /// The node.
    pub label: String,
    /// How it stands from now on.
    pub state: NodeState,
    /// Why, for people.
    pub reason: Option<String>,
    /// The record that it produced or that stands for it.
    pub record: Option<Digest>,
}

/// A node of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunNode {
    /// Its label.
    pub label: String,
    /// How it stands.
    pub state: NodeState,
    /// Why, for people.
    pub reason: Option<String>,
    /// The record that it produced or that stands for it.
    pub record: Option<Digest>,
    /// When its state last changed.
    pub updated_unix_ms: u64,
}

/// Adds a run; gives its place among all runs.
pub(crate) fn begin(db: &Connection, info: &RunInfo) -> Result<i64> {
    let RunInfo {
        run_id,
        command,
        platform,
        simulated,
        doe_version,
        host,
        pid,
        started_unix_ms,
    } = info;
    let new = db.execute(
        "INSERT INTO run (run_id, command, platform, simulated, doe_version, host, pid,
             started_unix_ms, status)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (run_id) DO NOTHING",
        params![
            run_id,
            command,
            platform,
            simulated,
            doe_version,
            host,
            pid,
            int(*started_unix_ms),
            RunStatus::Running,
        ],
    )?;
    if new == 0 {
        return Err(Error::invalid(format!("the run `{run_id}` exists already")));
    }
    Ok(db.last_insert_rowid())
}

pub(crate) fn end(db: &Connection, run_id: &str, status: RunStatus, now: u64) -> Result<()> {
    let changed = db.execute(
        "UPDATE run SET status = ?2, ended_unix_ms = ?3 WHERE run_id = ?1",
        params![run_id, status, int(now)],
    )?;
    if changed == 0 {
        return Err(unknown(run_id));
    }
    Ok(())
}

/// The nodes of one run, for noting how they stand; the run is looked up once for all of them.
pub(crate) struct Nodes<'db> {
    run_seq: i64,
    set: CachedStatement<'db>,
}

impl<'db> Nodes<'db> {
    pub(crate) fn of(db: &'db Connection, run_id: &str) -> Result<Self> {
        Ok(Self {
            run_seq: seq(db, run_id)?,
            set: db.prepare_cached(
                "INSERT INTO run_node (label, run_seq, state, reason, record, updated_unix_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (label, run_seq) DO UPDATE SET state = excluded.state,
                     reason = excluded.reason, record = excluded.record,
                     updated_unix_ms = excluded.updated_unix_ms",
            )?,
        })
    }

    pub(crate) fn set(
        &mut self,
        label: &str,
        state: NodeState,
        reason: Option<&str>,
        record: Option<&Digest>,
        now: u64,
    ) -> Result<()> {
        self.set.execute(params![
            label,
            self.run_seq,
            state,
            reason,
            record.map(Digest::as_bytes),
            int(now),
        ])?;
        Ok(())
    }
}

fn unknown(run_id: &str) -> Error {
    Error::not_found(format!("run `{run_id}`"))
}

const RUN: &str = "seq, run_id, command, platform, simulated, doe_version, host, pid, \
     started_unix_ms, ended_unix_ms, status";

fn run(row: &Row<'_>) -> rusqlite::Result<(i64, Run)> {
    let ended: Option<i64> = row.get(9)?;
    let run = Run {
        info: RunInfo {
            run_id: row.get(1)?,
            command: row.get(2)?,
            platform: row.get(3)?,
            simulated: row.get(4)?,
            doe_version: row.get(5)?,
            host: row.get(6)?,
            pid: row.get(7)?,
            started_unix_ms: time(row, 8)?,
        },
        ended_unix_ms: ended.map(|ms| u64::try_from(ms).unwrap_or(0)),
        status: row.get(10)?,
        nodes: BTreeMap::new(),
    };
    Ok((row.get(0)?, run))
}

/// The latest runs first, at most `limit`.
pub(crate) fn recent(db: &Connection, limit: usize) -> Result<Vec<Run>> {
    let db = db.unchecked_transaction()?;
    let sql = format!("SELECT {RUN} FROM run ORDER BY seq DESC LIMIT ?1");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut found: Vec<(i64, Run)> = db
        .prepare_cached(&sql)?
        .query_map([limit], run)?
        .collect::<rusqlite::Result<_>>()?;
    let mut counts = db
        .prepare_cached("SELECT state, count(*) FROM run_node WHERE run_seq = ?1 GROUP BY state")?;
    for (seq, run) in &mut found {
        run.nodes = counts
            .query_map([*seq], |row| Ok((row.get(0)?, time(row, 1)?)))?
            .collect::<rusqlite::Result<_>>()?;
    }
    Ok(found.into_iter().map(|(_, run)| run).collect())
}

/// All runs with their places, in that order; nodes are not counted.
pub(crate) fn all(db: &Connection) -> Result<Vec<(i64, Run)>> {
    let sql = format!("SELECT {RUN} FROM run ORDER BY seq");
    let mut statement = db.prepare(&sql)?;
    let rows = statement.query_map([], run)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// One run with its place; nodes are not counted.
pub(crate) fn one(db: &Connection, run_id: &str) -> Result<(i64, Run)> {
    let sql = format!("SELECT {RUN} FROM run WHERE run_id = ?1");
    let found = db.query_row(&sql, [run_id], run).optional()?;
    found.ok_or_else(|| unknown(run_id))
}

/// The place of a run among all runs.
fn seq(db: &Connection, run_id: &str) -> Result<i64> {
    db.prepare_cached("SELECT seq FROM run WHERE run_id = ?1")?
        .query_row([run_id], |row| row.get(0))
        .optional()?
        .ok_or_else(|| unknown(run_id))
}

/// The nodes of a run, by label.
pub(crate) fn nodes(db: &Connection, run_id: &str) -> Result<Vec<RunNode>> {
    let seq = seq(db, run_id)?;
    let mut statement = db.prepare_cached(
        "SELECT label, state, reason, record, updated_unix_ms FROM run_node
         WHERE run_seq = ?1 ORDER BY label",
    )?;
    let rows = statement.query_map([seq], |row| {
        Ok(RunNode {
            label: row.get(0)?,
            state: row.get(1)?,
            reason: row.get(2)?,
            record: row.get::<_, Option<[u8; 32]>>(3)?.map(Digest::from_bytes),
            updated_unix_ms: time(row, 4)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The state of each label in the last run that it took part in.
pub(crate) fn latest_states(db: &Connection) -> Result<BTreeMap<String, NodeState>> {
    // With max() alone, SQLite takes the other columns from the row that holds the maximum.
    let mut statement =
        db.prepare_cached("SELECT label, state, max(run_seq) FROM run_node GROUP BY label")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
