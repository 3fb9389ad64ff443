//! What a decision needs to know of a record, and all summaries at once: a [`Snapshot`] is plain
//! data, read in one go, so that deciding is a pure function. Look-ups by key only ever give
//! records that may be reused.

use crate::digest::{Digest, DigestState};
use crate::verdict::{CriterionStatus, ExecutionStatus, ValidityStatus};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

/// A record in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Digest of the record.
    pub record: Digest,
    /// Label that it was recorded under.
    pub label: Arc<str>,
    /// Its spec key.
    pub spec_key: Digest,
    /// Its action key.
    pub action_key: Digest,
    /// Definitions that gave its verdicts.
    pub judge: Digest,
    /// What downstream keys see of it.
    pub output_digest: Digest,
    /// Whether any tool was simulated.
    pub simulated: bool,
    /// When the record was made.
    pub recorded_unix_ms: u64,
    /// When the execution ended.
    pub ended_unix_ms: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// Did it run?
    pub execution: ExecutionStatus,
    /// May its numbers be used?
    pub validity: ValidityStatus,
    /// Are they as expected?
    pub criterion: CriterionStatus,
    /// Whether the engine allowed reuse and all its outputs are in the store.
    pub reusable: bool,
}

impl Summary {
    /// Whether it may stand for another execution.
    pub fn usable(&self) -> bool {
        self.reusable
            && self.execution == ExecutionStatus::Ok
            && self.validity == ValidityStatus::Valid
    }

    /// Of two records for one key or label, the greater is the later one.
    pub(crate) fn age(&self) -> (u64, Digest) {
        (self.recorded_unix_ms, self.record)
    }
}

/// What stands for a label.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    latest: Option<u32>,
    current: Option<u32>,
}

type Rows = HashMap<Digest, u32, DigestState>;

/// All that decisions look at, in memory.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    rows: Vec<Summary>,
    by_spec: Rows,
    /// Made when first asked for: a build with nothing to do never asks.
    by_record: OnceLock<Rows>,
    /// As `by_record`.
    by_action: OnceLock<Rows>,
    by_label: HashMap<Arc<str>, Standing>,
    /// Why the last record under a label lies in quarantine, where one does.
    refused: BTreeMap<String, String>,
}

impl Snapshot {
    /// A snapshot of an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The latest usable record that the spec key leads to.
    pub fn by_spec(&self, key: &Digest) -> Option<&Summary> {
        self.by_spec.get(key).map(|i| &self.rows[*i as usize])
    }

    /// The latest usable record with the action key.
    pub fn by_action(&self, key: &Digest) -> Option<&Summary> {
        let by_action = self.by_action.get_or_init(|| {
            let mut by_action = Rows::default();
            for (summary, row) in self.rows.iter().zip(0..) {
                offer(&self.rows, &mut by_action, &summary.action_key, row);
            }
            by_action
        });
        by_action.get(key).map(|i| &self.rows[*i as usize])
    }

    /// What happened last under the label, failures included.
    pub fn latest(&self, label: &str) -> Option<&Summary> {
        let standing = self.by_label.get(label)?;
        standing.latest.map(|i| &self.rows[i as usize])
    }

    /// The usable record that stands for the label in tables: the last one recorded or linked.
    pub fn current(&self, label: &str) -> Option<&Summary> {
        let standing = self.by_label.get(label)?;
        standing.current.map(|i| &self.rows[i as usize])
    }

    /// Why a result of the label was put in quarantine, where one lies there.
    pub fn refused(&self, label: &str) -> Option<&str> {
        self.refused.get(label).map(String::as_str)
    }

    pub(crate) fn load_refused(&mut self, refused: BTreeMap<String, String>) {
        self.refused = refused;
    }

    /// A record by digest, when it is one that a decision could look at.
    pub fn record(&self, digest: &Digest) -> Option<&Summary> {
        self.row_of(digest).map(|i| &self.rows[i as usize])
    }

    /// All labels that anything is known of, in no particular order.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.by_label.keys().map(|label| &**label)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is nothing to reuse and nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes in a record as a commit does: it becomes the latest of its label, and when usable
    /// what stands for its keys and label, unless a later one does already.
    pub fn insert(&mut self, summary: Summary) {
        let (age, usable) = (summary.age(), summary.usable());
        let (spec, action, label) = (summary.spec_key, summary.action_key, summary.label.clone());
        let row = self.push(summary);
        let later = |old: Option<u32>| old.is_none_or(|old| self.rows[old as usize].age() <= age);
        let standing = self.by_label.entry(label).or_default();
        if later(standing.latest) {
            standing.latest = Some(row);
        }
        if usable && later(standing.current) {
            standing.current = Some(row);
        }
        offer(&self.rows, &mut self.by_spec, &spec, row);
        if let Some(by_action) = self.by_action.get_mut() {
            offer(&self.rows, by_action, &action, row);
        }
    }

    /// Lets a spec key and a label lead to a record that is already here, as
    /// `Store::link_spec` does. Returns false, and does nothing, when the record is not here or
    /// may not be reused.
    pub fn link(&mut self, spec_key: Digest, record: &Digest, label: &str) -> bool {
        let Some(row) = self.row_of(record) else {
            return false;
        };
        if !self.rows[row as usize].usable() {
            return false;
        }
        self.by_spec.insert(spec_key, row);
        let standing = Standing {
            latest: Some(row),
            current: Some(row),
        };
        self.by_label.insert(label.into(), standing);
        true
    }

    fn row_of(&self, record: &Digest) -> Option<u32> {
        let by_record = self.by_record.get_or_init(|| {
            let rows = self.rows.iter().map(|summary| summary.record);
            rows.zip(0..).collect()
        });
        by_record.get(record).copied()
    }

    fn push(&mut self, summary: Summary) -> u32 {
        if let Some(row) = self.row_of(&summary.record) {
            self.rows[row as usize] = summary;
            return row;
        }
        let record = summary.record;
        let row = self.load_row(summary);
        if let Some(by_record) = self.by_record.get_mut() {
            by_record.insert(record, row);
        }
        row
    }

    pub(crate) fn with_capacity(records: usize, specs: usize, labels: usize) -> Self {
        Self {
            rows: Vec::with_capacity(records),
            by_spec: HashMap::with_capacity_and_hasher(specs, DigestState::default()),
            by_label: HashMap::with_capacity(labels),
            ..Self::default()
        }
    }

    /// Adds a row as the index has it, each record once; keys and labels follow.
    pub(crate) fn load_row(&mut self, summary: Summary) -> u32 {
        // More rows than that do not fit in memory.
        let row = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.rows.push(summary);
        row
    }

    /// As [`Self::load_row`], for records that may be here already.
    pub(crate) fn load_once(&mut self, summary: Summary) -> u32 {
        let known = self
            .rows
            .iter()
            .position(|row| row.record == summary.record);
        match known.and_then(|at| u32::try_from(at).ok()) {
            Some(row) => row,
            None => self.load_row(summary),
        }
    }

    pub(crate) fn load_spec(&mut self, spec_key: Digest, row: u32) {
        self.by_spec.insert(spec_key, row);
    }

    pub(crate) fn load_label(
        &mut self,
        label: Arc<str>,
        latest: Option<u32>,
        current: Option<u32>,
    ) {
        self.by_label.insert(label, Standing { latest, current });
    }

    pub(crate) fn label_of(&self, row: u32) -> &Arc<str> {
        &self.rows[row as usize].label
    }
}

/// Lets a key lead to a row, when the row is usable and no later one is there.
fn offer(rows: &[Summary], map: &mut Rows, key: &Digest, row: u32) {
    let new = &rows[row as usize];
    if !new.usable() {
        return;
    }
    let old = map.entry(*key).or_insert(row);
    if rows[*old as usize].age() <= new.age() {
        *old = row;
    }
}
