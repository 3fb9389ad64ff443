//! Collection: mark what is wanted, remove the rest. Wanted is every record that is pinned, with
//! all that it was made from, every record that stands for a label on some platform, in earnest or
//! simulated, or happened last under it, and whatever no limit asks to go. The mark changes nothing; the sweep needs the writer's lock, so
//! nothing that a running build reads or has just written can be removed. The index forgets a
//! record before its file goes, and blobs go last: a crash in between leaves rubbish, never a hole.

use crate::candidates;
use crate::checked;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result, if_there};
use crate::links::LinkFile;
use crate::lock::WriterLock;
use crate::quarantine;
use crate::runs::{self, RunStatus};
use crate::store::Store;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files of a run's folder that a collection leaves: what happened, not what it happened with.
const KEPT_OF_RUNS: &[&str] = &["notes", "events.jsonl", "trace.json"];

/// What asks records to go. Without limits only rubbish goes: what no record refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcLimits {
    /// Records recorded and last linked before this time go.
    pub before_unix_ms: Option<u64>,
    /// The oldest records go until records and blobs have at most this many bytes.
    pub max_bytes: Option<u64>,
    /// Records that stay whatever is asked: those that the caller's plans would reuse.
    pub keep: BTreeSet<Digest>,
}

/// A record that would go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// The record.
    pub record: Digest,
    /// Its label.
    pub label: String,
    /// When it was recorded.
    pub recorded_unix_ms: u64,
    /// Bytes that go with it: its file, and blobs that no other record needs.
    pub size_bytes: u64,
}

/// What a collection would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcPlan {
    /// Records that go, the oldest first.
    pub records: Vec<Doomed>,
    /// Blobs that go, with their length.
    pub blobs: Vec<(Digest, u64)>,
    /// Files of links to records that are gone.
    pub links: Vec<PathBuf>,
    /// Folders below those of ended runs, and single files, with their length.
    pub runs: Vec<(PathBuf, u64)>,
    /// Bytes that all of that has.
    pub freed_bytes: u64,
    /// Records that stay.
    pub kept_records: u64,
    /// Those of them that are pinned, or needed by what is pinned.
    pub kept_pinned: u64,
    /// Bytes of records and blobs that stay.
    pub kept_bytes: u64,
}

#[derive(Debug)]
struct Row {
    digest: Digest,
    label: String,
    output: Digest,
    used_unix_ms: u64,
    recorded_unix_ms: u64,
    size: u64,
    standing: bool,
    blobs: BTreeSet<Digest>,
}

impl Store {
    /// Says what a collection would remove. Nothing of the runs `in_use` is: whoever went on with
    /// what an ended run had started works in that one's folder.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a pin cannot be read; [`Error::Io`], [`Error::Database`].
    pub fn gc_plan(&self, limits: &GcLimits, in_use: &BTreeSet<String>) -> Result<GcPlan> {
        let rows = rows(&self.index())?;
        let pinned = self.pinned(&rows)?;
        let mut on_disk: BTreeMap<Digest, u64> = BTreeMap::new();
        durable::files_below(&self.layout().cas(), &mut |path, meta| {
            if let Some(digest) = blob_of(path) {
                on_disk.insert(digest, meta.len());
            }
        })?;
        let mut users: HashMap<Digest, u64> = HashMap::new();
        for blob in rows.iter().flat_map(|row| &row.blobs) {
            *users.entry(*blob).or_default() += 1;
        }
        let of_strangers = self.mentioned_by_strangers(&rows)?;
        let mut plan = GcPlan {
            kept_records: rows.len() as u64,
            kept_pinned: pinned.len() as u64,
            ..GcPlan::default()
        };
        let needed = on_disk.iter().filter(|(blob, _)| users.contains_key(*blob));
        let mut kept: u64 = needed.map(|(_, size)| size).sum();
        kept += rows.iter().map(|row| row.size).sum::<u64>();
        let mut candidates: Vec<&Row> = rows
            .iter()
            .filter(|row| !row.standing && !pinned.contains(&row.digest))
            .filter(|row| !limits.keep.contains(&row.digest))
            .collect();
        candidates.sort_by_key(|row| (row.used_unix_ms, row.digest));
        let mut gone = HashSet::new();
        for row in candidates {
            let old = limits.before_unix_ms.is_some_and(|t| row.used_unix_ms < t);
            let large = limits.max_bytes.is_some_and(|most| kept > most);
            if !old && !large {
                continue;
            }
            let mut freed = row.size;
            for blob in &row.blobs {
                let Some(left) = users.get_mut(blob) else {
                    continue;
                };
                *left -= 1;
                if *left == 0 && !of_strangers.contains(blob) {
                    freed += on_disk.get(blob).copied().unwrap_or(0);
                }
            }
            kept = kept.saturating_sub(freed);
            gone.insert(row.digest);
            plan.kept_records -= 1;
            plan.records.push(Doomed {
                record: row.digest,
                label: row.label.clone(),
                recorded_unix_ms: row.recorded_unix_ms,
                size_bytes: freed,
            });
        }
        plan.kept_bytes = kept;
        plan.blobs = on_disk
            .into_iter()
            .filter(|(blob, _)| users.get(blob).is_none_or(|left| *left == 0))
            .filter(|(blob, _)| !of_strangers.contains(blob))
            .collect();
        self.dead_links(&rows, &gone, &mut plan)?;
        if let Some(before) = limits.before_unix_ms {
            self.old_runs(before, in_use, &mut plan)?;
        }
        plan.freed_bytes = plan.blobs.iter().map(|(_, size)| size).sum::<u64>()
            + plan.runs.iter().map(|(_, size)| size).sum::<u64>()
            + rows
                .iter()
                .filter(|r| gone.contains(&r.digest))
                .map(|r| r.size)
                .sum::<u64>();
        Ok(plan)
    }

    /// Removes what a plan says. Make the plan under the same lock.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ReadOnly`]; what is left goes with the next collection.
    pub fn gc_sweep(&self, _lock: &WriterLock, plan: &GcPlan) -> Result<()> {
        self.writable()?;
        self.settled(|| self.remove_all(plan))
    }

    fn remove_all(&self, plan: &GcPlan) -> Result<()> {
        self.transaction(|db| {
            let mut records = plan.records.iter();
            records.try_for_each(|doomed| candidates::forget(db, &doomed.record).map(|_| ()))
        })?;
        let mut gone = Vec::new();
        for doomed in &plan.records {
            gone.push(self.layout().record(&doomed.record));
            gone.push(self.layout().imported_note(&doomed.record));
        }
        gone.extend(plan.links.iter().cloned());
        // Blobs only when nothing on the disk asks for them any more.
        self.remove_files(&gone)?;
        let blobs = plan.blobs.iter().map(|(blob, _)| self.layout().blob(blob));
        self.remove_files(&blobs.collect::<Vec<_>>())?;
        for (path, _) in &plan.runs {
            let removed = match path.is_dir() && !path.is_symlink() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            };
            removed.map_err(|e| Error::io("remove", path, &e))?;
        }
        durable::sync_parents(plan.runs.iter().map(|(path, _)| path.as_path()))
    }

    fn remove_files(&self, paths: &[PathBuf]) -> Result<()> {
        paths
            .iter()
            .try_for_each(|path| durable::remove(path).map(|_| ()))?;
        durable::sync_parents(paths.iter().map(PathBuf::as_path))
    }

    /// Records that are pinned, and those that they were made from.
    fn pinned(&self, rows: &[Row]) -> Result<HashSet<Digest>> {
        let mut by_output: HashMap<Digest, Vec<&Row>> = HashMap::new();
        for row in rows {
            by_output.entry(row.output).or_default().push(row);
        }
        let known: HashSet<Digest> = rows.iter().map(|row| row.digest).collect();
        let mut pinned = HashSet::new();
        let mut next: Vec<Digest> = self.pins()?.into_iter().map(|pin| pin.record).collect();
        while let Some(digest) = next.pop() {
            if !known.contains(&digest) || !pinned.insert(digest) {
                continue;
            }
            let record = self.record(&digest)?;
            next.extend(record.rejudged_from);
            for (_, output) in record.needs() {
                let made = by_output.get(&output).into_iter().flatten();
                next.extend(made.map(|row| row.digest));
            }
        }
        Ok(pinned)
    }

    /// Digests in record files that are not in the index: a newer version wrote them and what they
    /// mean is not known, or they are in quarantine and may be taken back. What they mention
    /// stays.
    fn mentioned_by_strangers(&self, rows: &[Row]) -> Result<HashSet<Digest>> {
        let known: HashSet<PathBuf> = rows
            .iter()
            .map(|row| self.layout().record(&row.digest))
            .collect();
        let mut strangers = Vec::new();
        durable::files_below(&self.layout().records(), &mut |path, _| {
            if !known.contains(path) {
                strangers.push(path.to_owned());
            }
        })?;
        strangers.extend(quarantine::records(self.layout())?);
        let mut found = HashSet::new();
        for path in strangers {
            let Some(bytes) = if_there(durable::read(&path))? else {
                continue; // another collects, and this one only looks
            };
            let text = String::from_utf8_lossy(&bytes);
            let words = text.split(|c: char| !c.is_ascii_alphanumeric());
            found.extend(words.filter_map(|word| word.parse::<Digest>().ok()));
        }
        Ok(found)
    }

    fn dead_links(&self, rows: &[Row], gone: &HashSet<Digest>, plan: &mut GcPlan) -> Result<()> {
        let known: HashSet<Digest> = rows.iter().map(|row| row.digest).collect();
        let aside = quarantine::all(self.layout())?;
        let mut files = Vec::new();
        durable::files_below(&self.layout().links(), &mut |path, _| {
            files.push(path.to_owned())
        })?;
        for path in files {
            let Some(bytes) = if_there(durable::read(&path))? else {
                continue; // another collects, and this one only looks
            };
            // What cannot be read is for `verify` to tell.
            let Ok(file) = LinkFile::from_bytes(&bytes) else {
                continue;
            };
            // A record that is in quarantine may come back, and wants its links then; one that only
            // a newer version can read has them there.
            let there =
                |record: &Digest| known.contains(record) || self.layout().record(record).exists();
            let alive =
                |record: &Digest| !gone.contains(record) && there(record) || aside.contains(record);
            if !file.links.iter().any(|link| alive(&link.record)) {
                plan.links.push(path);
            }
        }
        plan.links.sort();
        Ok(())
    }

    fn old_runs(&self, before: u64, in_use: &BTreeSet<String>, plan: &mut GcPlan) -> Result<()> {
        let runs = runs::all(&self.index())?;
        for (_, run) in runs {
            let ended = run.ended_unix_ms.unwrap_or(run.info.started_unix_ms);
            let used = run.status == RunStatus::Running || in_use.contains(&run.info.run_id);
            if used || ended >= before {
                continue;
            }
            let folder = self.layout().runs().join(&run.info.run_id);
            for path in checked::files(&folder, "")? {
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
                if !name.is_some_and(|name| KEPT_OF_RUNS.contains(&name.as_str())) {
                    let size = size_of(&path);
                    plan.runs.push((path, size));
                }
            }
        }
        Ok(())
    }
}

/// What stands for a label is what would be reused, and that is another record for each platform,
/// and another where tools are simulated: the latest of each.
const STANDING: &str = "
    SELECT id FROM (
        SELECT id, row_number() OVER (
            PARTITION BY label, platform, simulated ORDER BY at DESC, digest DESC) AS place
        FROM (
            SELECT r.label, d.platform, r.simulated, r.recorded_unix_ms AS at, r.digest, r.id
            FROM record r JOIN record_detail d ON d.record_id = r.id WHERE r.usable
            UNION ALL
            SELECT k.label, d.platform, r.simulated, k.linked_unix_ms, r.digest, r.id
            FROM link k JOIN record r ON r.id = k.record_id
                JOIN record_detail d ON d.record_id = r.id WHERE r.usable))
    WHERE place = 1
    UNION SELECT latest FROM label_state WHERE latest IS NOT NULL
    UNION SELECT current FROM label_state WHERE current IS NOT NULL";

fn rows(db: &Connection) -> Result<Vec<Row>> {
    let db = db.unchecked_transaction()?;
    let standing: HashSet<i64> = db
        .prepare(STANDING)?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut statement = db.prepare(
        "SELECT r.id, r.digest, r.label, r.output_digest, r.recorded_unix_ms, r.size_bytes,
             coalesce((SELECT max(linked_unix_ms) FROM link k WHERE k.record_id = r.id), 0)
         FROM record r ORDER BY r.id",
    )?;
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    let mut rows = Vec::new();
    let mut place = HashMap::new();
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let id: i64 = row.get(0)?;
        let recorded_unix_ms = unsigned(row.get(4)?);
        place.insert(id, rows.len());
        rows.push(Row {
            digest: Digest::from_bytes(row.get(1)?),
            label: row.get(2)?,
            output: Digest::from_bytes(row.get(3)?),
            recorded_unix_ms,
            used_unix_ms: recorded_unix_ms.max(unsigned(row.get(6)?)),
            size: unsigned(row.get(5)?),
            standing: standing.contains(&id),
            blobs: BTreeSet::new(),
        });
    }
    let mut blobs = db.prepare(
        "SELECT record_id, digest FROM record_output UNION SELECT record_id, digest FROM record_log",
    )?;
    let mut found = blobs.query([])?;
    while let Some(row) = found.next()? {
        let id: i64 = row.get(0)?;
        if let Some(at) = place.get(&id) {
            rows[*at].blobs.insert(Digest::from_bytes(row.get(1)?));
        }
    }
    Ok(rows)
}

/// The digest that the path of a blob says.
pub(crate) fn blob_of(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent()?.file_name()?.to_str()?;
    format!("{folder}{name}").parse().ok()
}

fn size_of(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !meta.is_dir() {
        return meta.len();
    }
    let Ok(list) = fs::read_dir(path) else {
        return 0;
    };
    list.flatten().map(|entry| size_of(&entry.path())).sum()
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
