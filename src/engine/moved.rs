//! What a node was made from is looked at again when it has run: the facts of its hosts, the
//! results that it read, the program that its instruments are. When any of that moved meanwhile,
//! nobody can say what was measured: the record is kept, and never reused.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use doe_cache::Digest;

use super::context::Context;
use super::job::Job;
use crate::error::Result;
use crate::exec::{CLOCK_AHEAD, Facts};
use crate::rule::model::RuleKind;

/// What a host said of itself, and when it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) facts: Facts,
    pub(crate) asked: Instant,
}

/// Facts by host, as they were when a node began.
pub(super) type Before = BTreeMap<String, Facts>;

/// Which file a program is: replaced means another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program(Option<(u64, u64, u64, i64, i64)>);

impl Program {
    /// The program at a path, as it is now.
    pub(crate) fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path).ok();
        Self(meta.map(|m| (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec())))
    }
}

/// Reads the facts of the node's hosts before it begins.
pub(super) async fn before(context: &Context, job: &Job) -> Result<Before> {
    let mut before = Before::new();
    if job.rule.kind == RuleKind::Measure {
        for role in &job.roles {
            let host = context.host(Some(role))?;
            let facts = context.facts(&host).await;
            before.insert(host.name, facts);
        }
    }
    Ok(before)
}

/// What moved since, in one sentence; `None` when nothing did. Facts that cannot be read now say
/// nothing.
pub(super) async fn since(context: &Context, job: &Job, before: &Before) -> Result<Option<String>> {
    let ended = Instant::now();
    for role in &job.roles {
        let host = context.host(Some(role))?;
        let Some(old) = before.get(&host.name) else {
            continue;
        };
        let new = context.facts_since(&host, ended).await;
        for (fact, was) in old.iter().filter(|(fact, _)| *fact != CLOCK_AHEAD) {
            if let Some(is) = new.get(fact).filter(|is| *is != was) {
                let name = &host.name;
                return Ok(Some(format!(
                    "fact `{fact}` of host `{name}` changed from `{was}` to `{is}` while it ran"
                )));
            }
        }
    }
    for input in &job.inputs {
        for (name, digest) in &input.digests {
            let unchanged = match input.outputs.get(name).filter(|_| input.early) {
                // Gone is as bad as changed.
                Some(path) => Digest::of_file(path).is_ok_and(|found| found == *digest),
                None => context.store.unchanged(digest)?,
            };
            if !unchanged {
                let label = &input.label;
                return Ok(Some(format!(
                    "output `{name}` of {label}, which it reads, changed while it ran"
                )));
            }
        }
    }
    if Program::of(&context.doe) != context.program {
        return Ok(Some("the `doe` program was replaced while it ran".into()));
    }
    Ok(None)
}
