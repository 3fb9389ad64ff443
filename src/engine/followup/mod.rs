//! Follow-ups of a run: which finished results call for which ad-hoc patterns, and how much time
//! these may take. A watch knows no executor and no event; what has begun once is never begun
//! again, and what a follow-up brought in calls for nothing itself, so that it always comes to an
//! end.

mod begin;
mod condition;
pub mod foresee;
mod watch;

use std::collections::BTreeSet;

use doe_cache::{Digest, Manifest, Record};

use super::decide::Decider;
use crate::graph::NodeId;

pub(super) use begin::{at_the_begin, tell_left_out, tell_opening, with_cause};
pub use condition::Cause;
pub(super) use watch::Watch;

/// Path of the entry in a record's spec manifest that says why a follow-up was begun.
pub const CAUSE: &str = "followup";

/// Whose follow-ups a build begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Plans whose follow-ups belong to the targets.
    pub plans: BTreeSet<String>,
    /// Nodes that the targets take away: a follow-up does not bring them back.
    pub excluded: BTreeSet<NodeId>,
}

/// The record that stands for a node of another run: that of its last good execution on the same
/// kind of platform.
fn stands(decider: &Decider<'_>, node: NodeId) -> Option<Digest> {
    let label = decider.graph().label(node).to_string();
    let summary = decider.snapshot().current(&label)?;
    let same = summary.simulated == decider.platform().simulated;
    (same && summary.usable()).then_some(summary.record)
}

/// Why a follow-up brought a record about, when one did.
pub fn cause_in(record: &Record) -> Option<&str> {
    record.spec_manifest.entries.get(CAUSE)?.value.as_str()
}

/// A spec manifest with the cause that a record names: it was executed for that.
pub(super) fn with_the_same_cause(mut spec: Manifest, old: &Record) -> Manifest {
    if let Some(entry) = old.spec_manifest.entries.get(CAUSE) {
        spec.entries.insert(CAUSE.to_owned(), entry.clone());
    }
    spec
}
