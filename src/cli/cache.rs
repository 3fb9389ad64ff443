//! `doe cache`: a look into the store.

use clap::{Args, Subcommand};
use doe_cache::{Digest, Filter, Stats, Store};
use serde_json::json;

use super::args::Global;
use super::out::Out;
use super::session;
use crate::error::{Error, Kind, Result};

/// Look into the store
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe cache stats\n  doe cache ls --label //phase2:p2-efa-4k-c1\n  doe cache show 3f2a91"
)]
pub struct CacheArgs {
    /// What to look at.
    #[command(subcommand)]
    pub question: Question,
}

/// A question to the store.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// List records, the newest first
    Ls(Ls),
    /// Show one record whole, or the content of a blob
    Show(Show),
    /// Count records, blobs and bytes
    Stats,
    /// Send every result that may be reused to the mirror
    Push,
    /// Take every result that the mirror has
    Pull(Pull),
}

/// How much.
#[derive(Debug, Args)]
pub struct Pull {
    /// Their outputs and logs too, instead of when they are first read
    #[arg(long)]
    pub blobs: bool,
}

/// Which records.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only records of this label
    #[arg(long)]
    pub label: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    pub most: usize,
}

/// Which object.
#[derive(Debug, Args)]
pub struct Show {
    /// A digest, or the beginning of one (6 characters or more)
    pub digest: String,
}

/// Runs the command.
pub fn run(global: &Global, args: &CacheArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    match &args.question {
        Question::Ls(ls) => list(&session::store(&workspace)?, ls, out)?,
        Question::Show(show) => {
            let store = session::store_with_mirror(global, &workspace)?;
            display(&store, &show.digest, out)?;
        }
        Question::Stats => stats(&session::store(&workspace)?, out)?,
        Question::Push => return super::mirror::push(global, &workspace, out),
        Question::Pull(pull) => return super::mirror::pull(global, &workspace, pull.blobs, out),
    }
    Ok(0)
}

fn list(store: &Store, args: &Ls, out: &mut Out) -> Result<()> {
    let filter = Filter {
        label: args.label.clone(),
        limit: Some(args.most),
        ..Filter::default()
    };
    let found = store.list(&filter)?;
    if out.json {
        let list: Vec<_> = found
            .iter()
            .map(|s| json!({
                "record": s.record, "label": &*s.label, "execution": s.execution, "validity": s.validity,
                "criterion": s.criterion, "reusable": s.usable(), "simulated": s.simulated,
                "ended_unix_ms": s.ended_unix_ms, "duration_ms": s.duration_ms,
                "spec_key": s.spec_key, "action_key": s.action_key,
            }))
            .collect();
        return out.json(&list);
    }
    let mut table = super::out::table([
        "record",
        "label",
        "execution",
        "validity",
        "criterion",
        "ended",
        "took",
        "provenance",
    ]);
    for summary in found {
        table.add_row([
            summary.record.short(),
            summary.label.to_string(),
            summary.execution.to_string(),
            summary.validity.to_string(),
            summary.criterion.to_string(),
            when(summary.ended_unix_ms),
            super::plan::people(summary.duration_ms as f64 / 1000.0),
            if summary.simulated {
                "simulated"
            } else {
                "measured"
            }
            .to_string(),
        ]);
    }
    out.line(table)
}

fn display(store: &Store, text: &str, out: &mut Out) -> Result<()> {
    // A whole digest may be a blob's; the beginning of one is looked up among records.
    let digest = match text.parse::<Digest>() {
        Ok(digest) => digest,
        Err(_) => store.resolve(&text.to_lowercase())?,
    };
    match store.record(&digest) {
        Ok(record) => {
            let value = serde_json::to_value(&record).map_err(|e| {
                Error::new(Kind::Bug, "json", "the record could not be printed").cause(e)
            })?;
            if out.json {
                out.json(&value)
            } else {
                out.line(format!("{value:#}"))
            }
        }
        Err(doe_cache::Error::NotFound { .. }) => {
            let bytes = store.blob(&digest)?;
            std::io::Write::write_all(out, &bytes)
                .map_err(|e| Error::new(Kind::Infra, "output", "could not write the blob").cause(e))
        }
        Err(error) => Err(error.into()),
    }
}

fn stats(store: &Store, out: &mut Out) -> Result<()> {
    let stats = store.stats()?;
    let imported = store.count_imported()?;
    let Stats {
        records,
        usable,
        record_bytes,
        blobs,
        blob_bytes,
        labels,
        spec_keys,
        runs,
        by_plan,
        by_status,
    } = stats;
    if out.json {
        return out.json(&json!({
            "records": records, "usable": usable, "record_bytes": record_bytes, "blobs": blobs,
            "blob_bytes": blob_bytes, "labels": labels, "spec_keys": spec_keys, "runs": runs,
            "by_plan": by_plan, "by_status": by_status, "imported": imported,
        }));
    }
    out.line(format!(
        "{records} records ({usable} reusable) of {labels} labels, {runs} runs"
    ))?;
    if imported > 0 {
        out.line(format!("{imported} records came from a mirror"))?;
    }
    out.line(format!(
        "{blobs} blobs, {blob_bytes} bytes; records {record_bytes} bytes"
    ))?;
    for (title, counts) in [("plan", &by_plan), ("status", &by_status)] {
        for (name, count) in counts {
            out.line(format!("  {title} {name}: {count}"))?;
        }
    }
    Ok(())
}

/// A point in time, UTC.
pub fn when(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(time).to_string()
}
