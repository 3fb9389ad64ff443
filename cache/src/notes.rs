//! The notes of a run: what it did with each node, appended line by line in the run's own folder,
//! each line with a check of its own. The index says the same; the notes are there so that it can
//! be made again. They are appended as the run goes; when it ends, or is found dead, they are
//! written anew from the index, which is durable at every commit.

use crate::checked;
use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::fault::{self, Point};
use crate::layout::Layout;
use crate::quarantine;
use crate::runs::{self, NodeState, NodeUpdate, Run, RunInfo, RunNode, RunStatus};
use crate::store::{Store, now_unix_ms};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Version of the format.
const NOTES_SCHEMA: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Note {
    /// The first one.
    Begin {
        schema: u32,
        /// Place among all runs of the store.
        seq: i64,
        run: RunInfo,
    },
    /// How a node stands from now on.
    Node {
        label: String,
        state: NodeState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        record: Option<Digest>,
        unix_ms: u64,
    },
    /// The last one.
    End { status: RunStatus, unix_ms: u64 },
}

/// A run as its notes tell it.
#[derive(Debug)]
pub(crate) struct Told {
    /// Place among all runs.
    pub(crate) seq: i64,
    /// What was known at its begin.
    pub(crate) info: RunInfo,
    /// Everything after.
    pub(crate) notes: Vec<Note>,
    /// Lines that could not be read, in words.
    pub(crate) damage: Option<String>,
}

impl Told {
    /// Whether nothing can be missing: the end is the last line.
    fn is_ended(&self) -> bool {
        matches!(self.notes.last(), Some(Note::End { .. }))
    }

    /// Runs are told in this order.
    pub(crate) fn place(&self) -> (i64, u64, String) {
        (
            self.seq,
            self.info.started_unix_ms,
            self.info.run_id.clone(),
        )
    }
}

fn lines(notes: &[Note]) -> Result<String> {
    notes.iter().map(checked::line).collect()
}

fn append(layout: &Layout, run_id: &str, notes: &[Note], durably: bool) -> Result<()> {
    let path = layout.notes(run_id);
    let io = |e: io::Error| Error::io("append to", &path, &e);
    if !path.exists() {
        durable::create_dir(&layout.runs().join(run_id))?;
    }
    let tear = fault::before_write(Point::BeforeAppend).map_err(io)?;
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(&path)
        .map_err(io)?;
    let mut text = lines(notes)?;
    if file.metadata().map_err(io)?.len() > 0 {
        // A line that a full disk or a crash cut short must not take ours with it.
        let mut last = [0];
        file.seek(SeekFrom::End(-1))
            .and_then(|_| file.read_exact(&mut last))
            .map_err(io)?;
        if last != *b"\n" {
            text.insert(0, '\n');
        }
    }
    tear.write(text.as_bytes(), &mut file).map_err(io)?;
    durable::at(Point::AfterAppend, "append to", &path)?;
    if durably {
        file.sync_all().map_err(io)?;
        durable::sync_one(&layout.runs().join(run_id))?;
    }
    Ok(())
}

/// Writes the notes of a run anew, as the index has it.
fn rewrite(layout: &Layout, seq: i64, run: &Run, nodes: &[RunNode]) -> Result<()> {
    let mut notes = vec![Note::Begin {
        schema: NOTES_SCHEMA,
        seq,
        run: run.info.clone(),
    }];
    notes.extend(nodes.iter().map(|node| Note::Node {
        label: node.label.clone(),
        state: node.state,
        reason: node.reason.clone(),
        record: node.record,
        unix_ms: node.updated_unix_ms,
    }));
    if let Some(unix_ms) = run.ended_unix_ms {
        let status = run.status;
        notes.push(Note::End { status, unix_ms });
    }
    let temp = Temp::with(&layout.tmp(), lines(&notes)?.as_bytes())?;
    let path = layout.notes(&run.info.run_id);
    durable::publish(layout.root(), vec![vec![(temp, path)]])
}

/// Writes the notes of runs that have not ended anew: nobody synced what was appended to them, so
/// that even whole lines may be all that a power cut left, and nothing in them says so.
fn settle(db: &Connection, layout: &Layout, runs: &[(i64, Run)]) -> Result<()> {
    for (seq, run) in runs {
        if run.status == RunStatus::Running {
            let nodes = runs::nodes(db, &run.info.run_id)?;
            rewrite(layout, *seq, run, &nodes)?;
        }
    }
    Ok(())
}

/// Writes the notes of runs that have none, as they were begun by an older version, and those
/// that are damaged, as the index has them. Gives the copies of the damaged, and what was wrong.
pub(crate) fn mend(db: &Connection, layout: &Layout) -> Result<Vec<(PathBuf, String)>> {
    let mut kept = Vec::new();
    for (seq, run) in &runs::all(db)? {
        let path = layout.notes(&run.info.run_id);
        if path.exists() {
            let Some(why) = damage(&path, Some(run))? else {
                continue;
            };
            let name = format!("notes-{}", run.info.run_id);
            kept.push((quarantine::keep(layout, &path, &name, &why)?, why));
        }
        let nodes = runs::nodes(db, &run.info.run_id)?;
        rewrite(layout, *seq, run, &nodes)?;
    }
    Ok(kept)
}

/// Brings all that the index knows into the notes, before it is made again from them. Only for
/// whoever holds the lock, as a run that goes on appends meanwhile.
pub(crate) fn bring(db: &Connection, layout: &Layout) -> Result<Vec<(PathBuf, String)>> {
    let kept = mend(db, layout)?;
    let mut open = Vec::new();
    for (seq, run) in runs::all(db)? {
        // Notes with their end were written as a whole: then it is the index that is behind.
        let told = read(&layout.notes(&run.info.run_id))?;
        if !told.is_ok_and(|told| told.is_ended()) {
            open.push((seq, run));
        }
    }
    settle(db, layout, &open)?;
    Ok(kept)
}

/// What is wrong with the notes of a run that the index has, or of one that it does not have.
/// Those of a newer version are not for us to judge.
pub(crate) fn damage(path: &Path, run: Option<&Run>) -> Result<Option<String>> {
    let told = match read(path)? {
        Ok(told) => told,
        Err(Unread::Newer(_)) => return Ok(None),
        Err(why) => return Ok(Some(why.to_string())),
    };
    let ended = run.is_some_and(|run| run.ended_unix_ms.is_some());
    // Whatever was cut off took the end along.
    let cut = ended && !told.is_ended();
    Ok(told.damage.or(cut.then(|| "its end is missing".to_owned())))
}

/// Why notes do not tell the run in whose folder they lie.
#[derive(Debug)]
pub(crate) enum Unread {
    Damaged(String),
    Newer(u32),
    /// They are of this other run: somebody copied or renamed its folder.
    Stray(String),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(why) => f.write_str(why),
            Self::Newer(schema) => write!(f, "it has schema version {schema}"),
            Self::Stray(run) => write!(f, "it is of the run `{run}`, not of this folder's"),
        }
    }
}

/// Reads the notes of a run.
pub(crate) fn read(path: &Path) -> Result<Result<Told, Unread>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    let mut notes = Vec::new();
    let mut bad = Vec::new();
    let whole = bytes.split_inclusive(|b| *b == b'\n').enumerate();
    for (at, line) in whole.filter(|(_, line)| *line != b"\n") {
        let note = checked::of_line(line);
        match note {
            Some(note) => notes.push(note),
            None => bad.push((at + 1).to_string()),
        }
    }
    let damage = (!bad.is_empty()).then(|| format!("line {} is damaged", bad.join(", ")));
    if notes.is_empty() || !matches!(notes[0], Note::Begin { .. }) {
        let why = "its first line is missing or damaged".to_owned();
        return Ok(Err(Unread::Damaged(why)));
    }
    let Note::Begin { schema, seq, run } = notes.remove(0) else {
        let why = "its first line is not the begin of a run".to_owned();
        return Ok(Err(Unread::Damaged(why)));
    };
    if schema > NOTES_SCHEMA {
        return Ok(Err(Unread::Newer(schema)));
    }
    let folder = path.parent().and_then(Path::file_name);
    if folder != Some(OsStr::new(&run.run_id)) {
        return Ok(Err(Unread::Stray(run.run_id)));
    }
    Ok(Ok(Told {
        seq,
        info: run,
        notes,
        damage,
    }))
}

/// The files of all notes, by run.
pub(crate) fn files(layout: &Layout) -> Result<Vec<PathBuf>> {
    let runs = layout.runs();
    let list = match fs::read_dir(&runs) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", &runs, &e)),
    };
    let mut files = Vec::new();
    for entry in list {
        let entry = entry.map_err(|e| Error::io("list", &runs, &e))?;
        let path = entry.path().join("notes");
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Tells the index what notes say.
pub(crate) fn replay(db: &Connection, told: &Told) -> Result<()> {
    runs::begin(db, &told.info)?;
    tell(db, &told.info.run_id, &told.notes)
}

/// Tells the index what further notes of a run say.
fn tell(db: &Connection, run_id: &str, notes: &[Note]) -> Result<()> {
    let mut nodes = runs::Nodes::of(db, run_id)?;
    for note in notes {
        match note {
            Note::Begin { .. } => {}
            Note::Node {
                label,
                state,
                reason,
                record,
                unix_ms,
            } => nodes.set(label, *state, reason.as_deref(), record.as_ref(), *unix_ms)?,
            Note::End { status, unix_ms } => runs::end(db, run_id, *status, *unix_ms)?,
        }
    }
    Ok(())
}

/// Notes states of nodes in the index and then in the notes of their runs, inside a transaction.
pub(crate) fn set_nodes(db: &Connection, layout: &Layout, nodes: &[NodeUpdate]) -> Result<()> {
    let unix_ms = now_unix_ms();
    let mut by_run: BTreeMap<&str, Vec<Note>> = BTreeMap::new();
    for node in nodes {
        by_run.entry(&node.run_id).or_default().push(Note::Node {
            label: node.label.clone(),
            state: node.state,
            reason: node.reason.clone(),
            record: node.record,
            unix_ms,
        });
    }
    for (run_id, notes) in &by_run {
        tell(db, run_id, notes)?;
    }
    let mut runs = by_run.into_iter();
    runs.try_for_each(|(run_id, notes)| append(layout, run_id, &notes, false))
}

impl Store {
    /// Notes the begin of a run.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is a run of that name, or the name is not one of a folder.
    pub fn begin_run(&self, info: &RunInfo) -> Result<()> {
        let run_id = &info.run_id;
        if run_id.is_empty() || run_id.starts_with('.') || run_id.contains(['/', '\0']) {
            return Err(Error::invalid(format!("`{run_id}` cannot name a run")));
        }
        self.transaction(|db| {
            let begin = Note::Begin {
                schema: NOTES_SCHEMA,
                seq: runs::begin(db, info)?,
                run: info.clone(),
            };
            append(self.layout(), run_id, &[begin], true)
        })
    }

    /// Notes how a node stands in a run. [`Store::set_nodes`] and [`Store::write`] do so for many
    /// at the price of one.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the run never began.
    pub fn set_node(
        &self,
        run_id: &str,
        label: &str,
        state: NodeState,
        reason: Option<&str>,
        record: Option<Digest>,
    ) -> Result<()> {
        self.set_nodes(&[NodeUpdate {
            run_id: run_id.to_owned(),
            label: label.to_owned(),
            state,
            reason: reason.map(str::to_owned),
            record,
        }])
    }

    /// Notes how nodes stand in a run, together.
    ///
    /// # Errors
    /// [`Error::NotFound`] when a run never began; then nothing is noted.
    pub fn set_nodes(&self, nodes: &[NodeUpdate]) -> Result<()> {
        self.transaction(|db| set_nodes(db, self.layout(), nodes))
    }

    /// Notes the end of a run.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it never began.
    pub fn end_run(&self, run_id: &str, status: RunStatus) -> Result<()> {
        self.transaction(|db| {
            let unix_ms = now_unix_ms();
            runs::end(db, run_id, status, unix_ms)?;
            // What was noted of a transaction that then failed must not stay.
            let (seq, run) = runs::one(db, run_id)?;
            rewrite(self.layout(), seq, &run, &runs::nodes(db, run_id)?)
        })
    }

    /// Makes the notes of dead runs say what the index says: a process that dies between the two
    /// leaves notes of what was never committed. Only for whoever holds the lock.
    pub(crate) fn settle_notes(&self, crashed: bool) -> Result<()> {
        let runs = runs::all(&self.index())?;
        settle(&self.index(), self.layout(), &runs)?;
        if !crashed {
            return Ok(());
        }
        let known: HashSet<PathBuf> = runs
            .iter()
            .map(|(_, run)| self.layout().notes(&run.info.run_id))
            .collect();
        let mut lost = Vec::new();
        for path in files(self.layout())? {
            if known.contains(&path) {
                continue;
            }
            match read(&path)? {
                // It did something, so its begin was committed: the index lost it.
                Ok(told) if !told.notes.is_empty() => lost.push(told),
                // Nor is a copy that somebody made ours to move.
                Err(Unread::Newer(_) | Unread::Stray(_)) => {}
                // Its begin was never committed, so it did nothing.
                _ => {
                    let run = path.parent().and_then(Path::file_name).unwrap_or_default();
                    let name = format!("notes-{}", run.to_string_lossy());
                    quarantine::aside(self.layout(), &path, &name, "the index has no such run")?;
                }
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        lost.sort_by_key(Told::place);
        self.transaction(|db| lost.iter().try_for_each(|told| replay(db, told)))?;
        // They have other places among the runs now, which a rebuild is to give them too.
        for told in &lost {
            let (seq, run) = runs::one(&self.index(), &told.info.run_id)?;
            let nodes = self.run_nodes(&run.info.run_id)?;
            rewrite(self.layout(), seq, &run, &nodes)?;
        }
        Ok(())
    }

    /// The latest runs first, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        runs::recent(&self.index(), limit)
    }

    /// The run that began last.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn last_run(&self) -> Result<Option<Run>> {
        Ok(self.runs(1)?.pop())
    }

    /// The nodes of a run, by label.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the run never began.
    pub fn run_nodes(&self, run_id: &str) -> Result<Vec<RunNode>> {
        runs::nodes(&self.index(), run_id)
    }

    /// The state of each label in the last run that it took part in (for `@failed`:
    /// [`NodeState::is_failure`]).
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index.
    pub fn latest_states(&self) -> Result<BTreeMap<String, NodeState>> {
        runs::latest_states(&self.index())
    }
}

#[cfg(test)]
#[path = "notes_tests.rs"]
mod tests;
