//! `doe cache push` and `doe cache pull`: the mirror brought up to date, or the store, because
//! somebody asked for it. Here a mirror that fails is a failure.

use std::sync::Arc;

use doe_cache::Store;
use doe_cache::remote::{Mirror, Synced};
use serde_json::json;

use super::args::Global;
use super::cache::Pull;
use super::out::Out;
use super::session;
use crate::error::{Error, Kind, Result};
use crate::plan::model::Workspace;

/// Sends what the store has.
pub fn push(global: &Global, workspace: &Workspace, out: &mut Out) -> Result<u8> {
    let mirror = needed(global, workspace)?;
    if !mirror.mode().writes() {
        return Err(Error::new(
            Kind::Usage,
            "read-only-remote",
            format!("the mirror {} may only be read", mirror.place()),
        )
        .hint("`--remote-cache rw` lets this command write it"));
    }
    let store = session::store(workspace)?;
    let synced = mirror.push(&store)?;
    told(&mirror, synced, "sent to", out)
}

/// Takes what the mirror has.
pub fn pull(global: &Global, workspace: &Workspace, args: &Pull, out: &mut Out) -> Result<u8> {
    let mirror = needed(global, workspace)?;
    let lock = session::lock(&workspace.state_dir, &args.waiting, out)?;
    let store = Store::open(&workspace.state_dir)?;
    store.recover(&lock)?;
    let synced = mirror.pull(&store, args.blobs)?;
    told(&mirror, synced, "taken from", out)
}

fn needed(global: &Global, workspace: &Workspace) -> Result<Arc<Mirror>> {
    session::mirror(global, workspace)?.ok_or_else(|| {
        Error::new(Kind::Usage, "no-remote", "there is no mirror, or it is off").hint(
            "`[cache]` with `remote = \"s3://BUCKET/PREFIX\"` in `doe.toml` names one; \
             `--remote-cache rw` switches it on",
        )
    })
}

fn told(mirror: &Mirror, synced: Synced, how: &str, out: &mut Out) -> Result<u8> {
    let Synced {
        records,
        moved,
        failed,
        outage,
    } = synced;
    let traffic = mirror.traffic();
    if out.json {
        let failed: Vec<_> = failed
            .iter()
            .map(|(digest, why)| json!({"digest": digest, "reason": why}))
            .collect();
        out.json(&json!({
            "place": mirror.place(), "records": records, "moved": moved, "failed": failed,
            "requests": traffic.requests, "received_bytes": traffic.received_bytes,
            "sent_bytes": traffic.sent_bytes,
        }))?;
    } else {
        out.line(format!(
            "{moved} of {records} records {how} {}; {} requests, {} bytes received, {} sent",
            mirror.place(),
            traffic.requests,
            traffic.received_bytes,
            traffic.sent_bytes
        ))?;
        for (digest, why) in failed.iter().take(10) {
            out.line(format!("  not {}: {why}", digest.short()))?;
        }
        if failed.len() > 10 {
            out.line(format!("  and {} more", failed.len() - 10))?;
        }
    }
    match outage {
        Some(fault) => Err(Error::new(
            Kind::Infra,
            "mirror",
            format!("the mirror {} failed: {fault}", mirror.place()),
        )
        .hint("what was moved stays; the same command goes on from there")),
        None if failed.is_empty() => Ok(0),
        None => Ok(Kind::Integrity.exit_code()),
    }
}
