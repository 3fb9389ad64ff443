//! Asks the mirror before anything is decided for good: what it has becomes an ordinary record of
//! the store, and what a run will read of it is fetched and verified at once. A record whose
//! outputs cannot be had stands for nothing, so its node runs as if there were no mirror.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use doe_cache::remote::{Fault, Lookup, Mirror, Uploader};
use doe_cache::{Blob, Digest, Store};
use tokio::sync::watch;

use super::decide::{Decider, Decision, Hit, Why};
use super::event::Body;
use super::journal::Journal;
use super::key::{Need, Needs};
use super::run::Options;
use crate::error::Result;
use crate::graph::{EdgeKind, NodeId};

/// What came of asking.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Warmed {
    /// Where the mirror is.
    pub place: String,
    /// Keys that were asked for.
    pub asked: usize,
    /// Records that were taken in.
    pub imported: BTreeSet<Digest>,
    /// What the user is told.
    pub warnings: Vec<String>,
}

/// What a mirror may be asked for, and how.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The mirror, when there is one that may be read.
    pub mirror: Option<&'a Mirror>,
    /// The store of the workspace.
    pub store: &'a Store,
    /// Whether records are kept and outputs fetched; otherwise one only looks.
    pub keep: bool,
}

/// Takes in what the mirror has for these nodes and all they depend on.
///
/// # Errors
/// A rule that does not render, a store that cannot be read or written; never the mirror.
pub fn warm(decider: &mut Decider<'_>, from: Source<'_>, targets: &[NodeId]) -> Result<Warmed> {
    let mut warm = Warm {
        from,
        wanted: decider
            .graph()
            .closure(targets, false)
            .into_iter()
            .collect(),
        asked: BTreeSet::new(),
        warmed: Warmed {
            place: from.mirror.map_or("", Mirror::place).to_owned(),
            ..Warmed::default()
        },
        mirror: from.mirror,
    };
    if warm.mirror.is_none() && !from.store.has_imported() {
        return Ok(warm.warmed);
    }
    loop {
        let standing = warm.ask(decider)?;
        if !from.keep || warm.fetch(decider, &standing)? {
            return Ok(warm.warmed);
        }
    }
}

/// How a node stands: the record and how it was found.
type Standing = BTreeMap<NodeId, (Digest, Hit)>;

struct Warm<'a> {
    from: Source<'a>,
    wanted: BTreeSet<NodeId>,
    /// Nodes that were asked for: once is enough.
    asked: BTreeSet<NodeId>,
    warmed: Warmed,
    /// As long as it answers.
    mirror: Option<&'a Mirror>,
}

impl Warm<'_> {
    /// Asks for what is not at hand, in waves: what is found lets the keys of dependents be known.
    fn ask(&mut self, decider: &mut Decider<'_>) -> Result<Standing> {
        let mut standing = Standing::new();
        let mut seen: BTreeMap<NodeId, Need> = BTreeMap::new();
        // Nodes that run: the mirror has nothing for them, or is not to be asked.
        let mut settled: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let mut keys = Vec::new();
            let graph = decider.graph();
            for &node in graph.order().iter().filter(|n| self.wanted.contains(n)) {
                if seen.contains_key(&node) || settled.contains(&node) {
                    continue;
                }
                let data = graph.deps(node).into_iter();
                let data = data.filter(|(_, kind)| *kind == EdgeKind::Data);
                let needs: Option<Needs> = data
                    .map(|(dep, _)| Some((graph.label(dep).clone(), *seen.get(&dep)?)))
                    .collect();
                let Some(needs) = needs else { continue };
                match decider.decide(node, &needs)? {
                    Decision::Reuse {
                        record,
                        output,
                        hit,
                        ..
                    } => {
                        standing.insert(node, (record, hit));
                        seen.insert(node, decider.need(node, output));
                    }
                    Decision::Run { keyed, why } if why != Why::Asked => {
                        if self.mirror.is_some() && self.asked.insert(node) {
                            keys.push(keyed.spec.key());
                            keys.extend(keyed.action.map(|(_, manifest)| manifest.key()));
                        } else {
                            settled.insert(node);
                        }
                    }
                    Decision::Refused { .. }
                    | Decision::Run { .. }
                    | Decision::MayRun { .. }
                    | Decision::Blocked { .. }
                    | Decision::Enough { .. } => {
                        settled.insert(node);
                    }
                }
            }
            let Some(mirror) = self.mirror.filter(|_| !keys.is_empty()) else {
                return Ok(standing);
            };
            let lookup = mirror.lookup(self.from.store, &keys);
            if !self.take(decider, mirror, lookup)? {
                return Ok(standing);
            }
        }
    }

    /// Says whether anything new is known.
    fn take(&mut self, decider: &mut Decider<'_>, mirror: &Mirror, lookup: Lookup) -> Result<bool> {
        let Lookup {
            asked,
            found,
            refused,
            trouble,
        } = lookup;
        self.warmed.asked += asked;
        for (record, why) in refused {
            self.warmed.warnings.push(format!(
                "the mirror's record {} is not used: {why}",
                record.short()
            ));
        }
        if let Some(fault) = trouble {
            let place = mirror.place();
            self.warmed
                .warnings
                .push(format!("the mirror {place} did not answer all: {fault}"));
            // What it has not answered now it is not asked again.
            self.mirror = None;
        }
        // What was refused here stays out, though the mirror has it.
        let welcome = match self.from.keep && !found.is_empty() {
            true => self.from.store.import(&found, mirror.place())?,
            false => self.from.store.welcome(&found)?,
        };
        let new = !welcome.is_empty();
        for summary in welcome {
            self.warmed.imported.insert(summary.record);
            decider.absorb(summary);
        }
        Ok(new)
    }

    /// Fetches the outputs that nodes which run, or are judged again, will read. Says whether all
    /// of them are at hand; else some records were lost and everything is asked anew.
    fn fetch(&mut self, decider: &mut Decider<'_>, standing: &Standing) -> Result<bool> {
        let graph = decider.graph();
        let store = self.from.store;
        let mut read = BTreeSet::new();
        for node in &self.wanted {
            match standing.get(node) {
                Some((record, Hit::Rejudge)) => drop(read.insert(*record)),
                Some(_) => {}
                None => {
                    let data = graph.deps(*node).into_iter();
                    let data = data.filter(|(_, kind)| *kind == EdgeKind::Data);
                    let found = data.filter_map(|(dep, _)| standing.get(&dep));
                    read.extend(found.map(|(record, _)| *record));
                }
            }
        }
        let mut users: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        let mut wanted = Vec::new();
        for record in read.into_iter().filter(|record| store.is_imported(record)) {
            for output in store.record(&record)?.outputs.values() {
                if store.cas().size(&output.digest) != Some(output.size_bytes) {
                    users.entry(output.digest).or_default().push(record);
                    wanted.push(Blob {
                        digest: output.digest,
                        size_bytes: output.size_bytes,
                    });
                }
            }
        }
        if wanted.is_empty() {
            return Ok(true);
        }
        let faults = match self.from.mirror {
            Some(mirror) => mirror.fetch(store, &wanted),
            None => {
                let off = Fault::Local("the mirror is off".into());
                wanted.iter().map(|blob| (*blob, off.clone())).collect()
            }
        };
        let mut lost: BTreeMap<Digest, Fault> = BTreeMap::new();
        for (blob, fault) in faults {
            for record in users.get(&blob.digest).into_iter().flatten() {
                lost.entry(*record).or_insert_with(|| fault.clone());
            }
        }
        let all = lost.is_empty();
        for (record, fault) in lost {
            decider.lose(record);
            self.warmed.imported.remove(&record);
            self.warmed.warnings.push(format!(
                "record {} came from a mirror without its outputs, and they cannot be had: {fault}; \
                 it is measured again",
                record.short()
            ));
        }
        Ok(all)
    }
}

/// What came of asking, as events.
pub(super) fn tell_asked(journal: &mut Journal<'_>, options: &Options) {
    let Warmed {
        place,
        asked,
        imported,
        warnings,
    } = &options.warmed;
    if *asked > 0 {
        journal.tell(Body::MirrorAsked {
            place: place.clone(),
            keys: *asked,
            found: imported.len(),
        });
    }
    for warning in warnings {
        journal.warn("mirror", warning.clone(), None);
    }
}

/// Waits until new results went over, and says what came of it. A further Ctrl-C leaves.
pub(super) async fn finish(
    journal: &mut Journal<'_>,
    mirror: &Mirror,
    uploads: Arc<Uploader>,
    mut interrupt: watch::Receiver<u8>,
) {
    interrupt.mark_unchanged();
    let waiting = tokio::task::spawn_blocking(move || uploads.finish());
    let interrupted = async {
        // Without anybody who could interrupt there is no interruption.
        if interrupt.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let uploaded = tokio::select! {
        uploaded = waiting => uploaded.unwrap_or_default(),
        () = interrupted => {
            let left = "the user did not wait until all new results were in the mirror; \
                        `doe cache push` sends the rest";
            journal.warn("mirror", left.to_owned(), None);
            return;
        }
    };
    if uploaded.sent + uploaded.left > 0 {
        journal.tell(Body::MirrorSent {
            place: mirror.place().to_owned(),
            sent: uploaded.sent,
            left: uploaded.left,
        });
    }
    if uploaded.left > 0 {
        let why = match &uploaded.fault {
            Some(fault) => fault.to_string(),
            None => "there were too many at once".to_owned(),
        };
        let what = match uploaded.left {
            1 => "1 new result is".to_owned(),
            left => format!("{left} new results are"),
        };
        let message = format!(
            "{what} not in the mirror {}: {why}; `doe cache push` sends what is missing",
            mirror.place()
        );
        journal.warn("mirror", message, None);
    }
}
