//! Looks at everything that is stored: each file against the digest that names it, each record
//! against the blobs that it needs, the index against one made from the files alone. What is
//! damaged is put aside when the store was opened for writing, and told in any case.

use crate::candidates;
use crate::checked;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Error, Result, if_there};
use crate::gc::blob_of;
use crate::index;
use crate::notes;
use crate::pins::Pin;
use crate::quarantine::{self, MISMATCH};
use crate::rebuild::RebuildReport;
use crate::record::Record;
use crate::runs::{self, Run, RunStatus};
use crate::store::Store;
use crate::whole;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VerifyOptions {
    /// Share of the records and blobs that are read: 1 for all.
    pub share: f64,
    /// Which ones, when it is not all.
    pub seed: u64,
    /// Whether the index is held against the files; only while nobody writes.
    pub index: bool,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// `record`, `blob`, `links`, `notes`, `pin`, `import`, `imported`, `index`, `file`.
    pub kind: &'static str,
    /// Which one.
    pub name: String,
    /// What is wrong.
    pub detail: String,
    /// Where it was put aside.
    pub quarantined: Option<PathBuf>,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Records that were read.
    pub records: u64,
    /// Blobs that were read.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Files of links, notes, pins and imports that were read.
    pub others: u64,
    /// Whether the index was held against the files.
    pub index: bool,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// Blobs whose file has another length than a record says, with the words for it.
type Uneven = HashMap<Digest, String>;

/// What the index says, in an order that does not depend on how it came about.
pub(crate) const SAYINGS: &[(&str, &str)] = &[
    ("attempts", "SELECT * FROM attempts ORDER BY record"),
    ("results", "SELECT * FROM results ORDER BY label"),
    ("metrics", "SELECT * FROM metrics ORDER BY label, metric"),
    (
        "samples",
        "SELECT * FROM samples ORDER BY label, series, position",
    ),
    ("runs", "SELECT * FROM runs ORDER BY run_id"),
    (
        "keys",
        "SELECT hex(k.spec_key), hex(r.digest) FROM spec_link k JOIN record r ON r.id = k.record_id
         ORDER BY 1",
    ),
    (
        "logs",
        "SELECT hex(r.digest), l.position, l.name, hex(l.digest), l.size_bytes
         FROM record_log l JOIN record r ON r.id = l.record_id ORDER BY 1, 2",
    ),
    (
        "outputs",
        "SELECT hex(r.digest), o.name, hex(o.digest), o.size_bytes, o.doc_schema
         FROM record_output o JOIN record r ON r.id = o.record_id ORDER BY 1, 2",
    ),
    (
        "nodes of runs",
        "SELECT r.run_id, n.label, n.state, n.reason, hex(n.record), n.updated_unix_ms
         FROM run_node n JOIN run r ON r.seq = n.run_seq ORDER BY 1, 2",
    ),
];

impl Store {
    /// All of it; damage to the index that nothing can be asked through is an error here.
    pub(crate) fn verify_all(
        &self,
        options: &VerifyOptions,
        report: &mut VerifyReport,
    ) -> Result<()> {
        // First, as what follows asks the index, and tells it what is put aside.
        whole::check(&self.index())?;
        if options.index {
            whole::check_pages(&self.index())?;
        }
        self.verify_files(options, report)?;
        if options.index {
            report.index = true;
            self.verify_index(report)?;
        }
        Ok(())
    }

    pub(crate) fn verify_files(
        &self,
        options: &VerifyOptions,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let mut uneven = Uneven::new();
        self.verify_records(options, &mut uneven, report)?;
        self.verify_blobs(options, uneven, report)?;
        self.verify_others(options, report)
    }

    fn verify_records(
        &self,
        options: &VerifyOptions,
        uneven: &mut Uneven,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let files = durable::sorted_below(&self.layout().records())?;
        let mut seen = HashSet::new();
        for path in files {
            let Some(digest) = digest_of(&path) else {
                report.stray(&path);
                continue;
            };
            if !options.picks(&digest) {
                seen.insert(digest);
                continue;
            }
            let Some(bytes) = if_there(durable::read(&path))? else {
                continue; // collected meanwhile, or its row tells
            };
            seen.insert(digest);
            report.records += 1;
            report.bytes += bytes.len() as u64;
            if Digest::of(&bytes) != digest {
                let name = format!("{digest}.json");
                let quarantined = self.aside(&path, &name, || {
                    self.transaction(|db| candidates::forget(db, &digest))
                        .map(|_| ())
                })?;
                report.found("record", digest.hex(), MISMATCH, quarantined);
                continue;
            }
            let record = match Record::from_bytes(&bytes) {
                Ok(record) => record,
                Err(Error::SchemaTooNew { .. }) => continue,
                Err(error) => {
                    report.found("record", digest.hex(), error.to_string(), None);
                    continue;
                }
            };
            self.verify_needs(&digest, &record, uneven, report)?;
        }
        // Rows whose file is gone.
        let rows: Vec<Digest> = self
            .index()
            .prepare("SELECT digest FROM record ORDER BY digest")?
            .query_map([], |row| row.get(0).map(Digest::from_bytes))?
            .collect::<rusqlite::Result<_>>()?;
        for digest in rows.iter().filter(|digest| !seen.contains(digest)) {
            if self.layout().record(digest).exists() {
                continue; // recorded meanwhile
            }
            if self.writable().is_ok() {
                self.transaction(|db| candidates::forget(db, digest))?;
            }
            report.found("record", digest.hex(), "its file is gone", None);
        }
        Ok(())
    }

    /// Whether the blobs of a record are there; their content is looked at elsewhere, and so are
    /// those of another length, which must not be told twice.
    fn verify_needs(
        &self,
        digest: &Digest,
        record: &Record,
        uneven: &mut Uneven,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let complete: Option<bool> = self
            .index()
            .prepare_cached("SELECT complete FROM record WHERE digest = ?1")?
            .query_row([digest.as_bytes()], |row| row.get(0))
            .optional()?;
        // What a mirror gave may have left its blobs there.
        let elsewhere = self.is_imported(digest);
        let mut is_gone = |blob: &Digest, size: u64, what: &dyn Fn() -> String| {
            let found = self.cas().size(blob);
            if let Some(found) = found.filter(|found| *found != size) {
                let how = match found < size {
                    true => "shorter than it was",
                    false => "longer than it was",
                };
                let words = || format!("{} is {how}: {found} bytes, not {size}", what());
                uneven.entry(*blob).or_insert_with(words);
            }
            // Who collects removes the record first.
            let is_collected = || !self.layout().record(digest).exists();
            found.is_none() && !elsewhere && !is_collected()
        };
        for (name, output) in &record.outputs {
            let what = || format!("output `{name}` of `{}`", record.label);
            // One that is known to be gone was told when it went.
            if is_gone(&output.digest, output.size_bytes, &what) && complete != Some(false) {
                if self.writable().is_ok() {
                    self.transaction(|db| self.lost_blob(db, &output.digest))?;
                }
                let detail = format!("{} is gone", what());
                report.found("blob", output.digest.hex(), detail, None);
            }
        }
        for log in &record.logs {
            let what = || format!("log `{}` of `{}`", log.name, record.label);
            // One that was put aside was told then; nothing can bring it back.
            let aside = self.layout().quarantine().join(log.digest.hex());
            if is_gone(&log.digest, log.size_bytes, &what) && !aside.exists() {
                let detail = format!("{} is gone", what());
                report.found("blob", log.digest.hex(), detail, None);
            }
        }
        Ok(())
    }

    fn verify_blobs(
        &self,
        options: &VerifyOptions,
        mut uneven: Uneven,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let mut files = Vec::new();
        durable::files_below(&self.layout().cas(), &mut |path, meta| {
            files.push((path.to_owned(), meta.len()));
        })?;
        files.sort();
        for (path, size) in files {
            let Some(digest) = blob_of(&path) else {
                report.stray(&path);
                continue;
            };
            // A length that is wrong shows without reading all of it.
            let length = uneven.remove(&digest);
            if !options.picks(&digest) && length.is_none() {
                continue;
            }
            report.blobs += 1;
            report.bytes += size;
            let Some(found) = if_there(Digest::of_file(&path))? else {
                continue; // collected meanwhile
            };
            if found != digest {
                let quarantined = self.aside(&path, &digest.hex(), || {
                    self.transaction(|db| self.lost_blob(db, &digest))
                        .map(|_| ())
                })?;
                let detail = length.unwrap_or_else(|| MISMATCH.to_owned());
                report.found("blob", digest.hex(), detail, quarantined);
            } else if let Some(length) = length {
                // It is what its name says: the record is wrong about it.
                report.found("blob", digest.hex(), length, None);
            }
        }
        Ok(())
    }

    fn verify_others(&self, options: &VerifyOptions, report: &mut VerifyReport) -> Result<()> {
        let (links, damaged) = self.link_files()?;
        report.others += links.len() as u64;
        let aside: HashMap<PathBuf, PathBuf> = match self.writable() {
            Ok(()) => self
                .transaction(|db| self.mend_links(db))?
                .into_iter()
                .collect(),
            Err(_) => HashMap::new(),
        };
        for path in damaged {
            report.found(
                "links",
                file_name(&path),
                MISMATCH,
                aside.get(&path).cloned(),
            );
        }
        self.verify_notes(options, report)?;
        for path in checked::files(&self.layout().pins(), ".json")? {
            report.others += 1;
            let pin = checked::read::<Pin>(&path);
            if !pin.is_ok_and(|pin| self.layout().pin(&pin.record) == path) {
                report.found("pin", file_name(&path), "it does not match its check", None);
            }
        }
        for path in checked::files(&self.layout().imports(), ".json")? {
            report.others += 1;
            let found = if_there(Digest::of_file(&path))?;
            if found.is_some() && digest_of(&path) != found {
                let name = file_name(&path);
                let quarantined = self.aside(&path, &format!("imports-{name}"), || Ok(()))?;
                report.found("import", name, MISMATCH, quarantined);
            }
        }
        for (path, why) in quarantine::damage(self.layout())? {
            report.found("file", path.display().to_string(), why, None);
        }
        let imported = durable::sorted_below(&self.layout().imported())?;
        for path in imported {
            report.others += 1;
            if !Self::is_sound_note(&path)? {
                let name = file_name(&path);
                let why = "it does not match its check";
                let mut quarantined = None;
                if self.writable().is_ok() {
                    let kept = format!("imported-{name}");
                    let kept = quarantine::keep(self.layout(), &path, &kept, why)?;
                    // That it is there says that the blobs are elsewhere: only the place is lost.
                    self.renew_note(&path)?;
                    quarantined = Some(kept);
                }
                report.found("imported", name, why, quarantined);
            }
        }
        Ok(())
    }

    /// What is wrong with notes; those of runs that the index has are written anew from it.
    fn verify_notes(&self, options: &VerifyOptions, report: &mut VerifyReport) -> Result<()> {
        let runs = runs::all(&self.index())?.into_iter();
        let known: HashMap<PathBuf, Run> = runs
            .map(|(_, run)| (self.layout().notes(&run.info.run_id), run))
            .collect();
        let mut damaged = Vec::new();
        for path in notes::files(self.layout())? {
            let run = known.get(&path);
            // Who only reads may meet a line that is just being written. Which runs ended is not
            // known without the index; there it does while nobody writes.
            let ended = run.is_some_and(|run| run.status != RunStatus::Running);
            let still = ended || self.index_damage.is_some() && options.index;
            if self.writable().is_err() && !still {
                continue;
            }
            report.others += 1;
            if let Some(why) = notes::damage(&path, run)? {
                damaged.push((path, why));
            }
        }
        if !damaged.is_empty() && self.writable().is_ok() {
            notes::mend(&self.index(), self.layout())?;
        }
        for (path, why) in damaged {
            let run = path.parent().map(file_name).unwrap_or_default();
            report.found("notes", run, why, None);
        }
        Ok(())
    }

    /// Makes a second index from the files, in memory, and compares what the two say.
    fn verify_index(&self, report: &mut VerifyReport) -> Result<()> {
        if self.writable().is_ok() {
            // Somebody may have put a lost blob back; all of them were looked at above.
            self.transaction(|db| self.found_blobs(db))?;
        }
        let fresh = index::scratch()?;
        let mut ignored = RebuildReport::default();
        self.take_records(&fresh, &HashSet::new(), &mut ignored)?;
        self.take_links(&fresh, &mut ignored)?;
        self.take_runs(&fresh, &mut ignored)?;
        for (name, sql) in SAYINGS {
            if saying(&self.index(), sql)? != saying(&fresh, sql)? {
                let detail = "it says something else than the files that it was made from; \
                              `doe cache rebuild` makes it again";
                report.found("index", *name, detail, None);
            }
        }
        Ok(())
    }

    /// Puts a damaged file aside, when this store may, after the index was told.
    fn aside(
        &self,
        path: &Path,
        name: &str,
        tell: impl FnOnce() -> Result<()>,
    ) -> Result<Option<PathBuf>> {
        if self.writable().is_err() {
            return Ok(None);
        }
        tell()?;
        quarantine::aside(self.layout(), path, name, MISMATCH).map(Some)
    }
}

impl VerifyOptions {
    /// Everything, the index included.
    pub const ALL: Self = Self {
        share: 1.0,
        seed: 0,
        index: true,
    };

    fn picks(&self, digest: &Digest) -> bool {
        if self.share >= 1.0 {
            return true;
        }
        let mut seeded = digest.as_bytes().to_vec();
        seeded.extend(self.seed.to_be_bytes());
        let hash = Digest::of(&seeded);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        (u64::from_be_bytes(first) as f64) < self.share * u64::MAX as f64
    }
}

impl VerifyReport {
    fn found(
        &mut self,
        kind: &'static str,
        name: impl Into<String>,
        detail: impl Into<String>,
        quarantined: Option<PathBuf>,
    ) {
        self.damage.push(Damage {
            kind,
            name: name.into(),
            detail: detail.into(),
            quarantined,
        });
    }

    fn stray(&mut self, path: &Path) {
        let name = path.display().to_string();
        self.found("file", name, "its name is not a digest", None);
    }
}

/// A digest over all rows of an answer.
pub(crate) fn saying(db: &Connection, sql: &str) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut statement = db.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            let (tag, bytes): (u8, Vec<u8>) = match row.get_ref(column)? {
                ValueRef::Null => (0, Vec::new()),
                ValueRef::Integer(int) => (1, int.to_be_bytes().to_vec()),
                ValueRef::Real(real) => (2, real.to_bits().to_be_bytes().to_vec()),
                ValueRef::Text(text) => (3, text.to_vec()),
                ValueRef::Blob(blob) => (4, blob.to_vec()),
            };
            hasher.update(&[tag]);
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(&bytes);
        }
    }
    Ok(hasher.finalize().into())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn digest_of(path: &Path) -> Option<Digest> {
    path.file_name()?
        .to_str()?
        .strip_suffix(".json")?
        .parse()
        .ok()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
pub(crate) mod tests;
