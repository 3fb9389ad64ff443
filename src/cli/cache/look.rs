//! What is in the store: lists, single records, counts.

use std::collections::BTreeMap;

use clap::Args;
use doe_cache::{Digest, Filter, Stats, Store};
use serde_json::json;

use super::planned::Planned;
use crate::cli::out::{self, Out};
use crate::error::{Error, Kind, Result, nearest};

/// Lines of a list that nobody set a length for.
const MOST: usize = 100;

/// Which records.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache ls --plan phase2 --most 20
  doe cache ls --run latest
  doe cache ls --pinned
  doe cache ls --quarantined")]
pub struct Ls {
    /// Only records of this label
    #[arg(long)]
    pub label: Option<String>,
    /// Only records of this plan
    #[arg(long)]
    pub plan: Option<String>,
    /// Only records of this run: its id, the begin of it, latest or latest-N
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Only pinned records, with the reason
    #[arg(long, conflicts_with_all = ["label", "plan", "run", "quarantined"])]
    pub pinned: bool,
    /// Only what was put aside, with the reason
    #[arg(long, conflicts_with_all = ["label", "plan", "run"])]
    pub quarantined: bool,
    /// At most so many; 100 unless printed as JSON
    #[arg(long)]
    pub most: Option<usize>,
}

/// Which object.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe cache show //phase2:p2-efa-4k-c1\n  doe cache show 3f2a91"
)]
pub struct Show {
    /// A label, the beginning of a digest, or the whole digest of a blob
    #[arg(value_name = "KEY")]
    pub key: String,
}

/// Lists.
pub fn list(store: &Store, args: &Ls, out: &mut Out) -> Result<()> {
    if args.pinned {
        return pinned(store, out);
    }
    if args.quarantined {
        return quarantined(store, out);
    }
    let run_id = args.run.as_deref().map(|run| run_named(store, run));
    let filter = Filter {
        label: args.label.clone(),
        plan: args.plan.clone(),
        run_id: run_id.transpose()?,
        limit: match out.json {
            true => args.most,
            // One more tells whether there are more.
            false => Some(args.most.unwrap_or(MOST).saturating_add(1)),
        },
        ..Filter::default()
    };
    let mut found = store.list(&filter)?;
    if found.is_empty() {
        unknown(store, args, out)?;
    }
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
    if found.is_empty() {
        return out.line("nothing is stored that fits");
    }
    let most = args.most.unwrap_or(MOST);
    let are_more = found.len() > most;
    found.truncate(most);
    let mut table = out::table([
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
            crate::cli::plan::people(summary.duration_ms as f64 / 1000.0),
            if summary.simulated {
                "simulated"
            } else {
                "measured"
            }
            .to_string(),
        ]);
    }
    out.line(table)?;
    if are_more {
        out.note(format!(
            "note: these are the newest {most}; --most shows more"
        ));
    }
    Ok(())
}

fn run_named(store: &Store, name: &str) -> Result<String> {
    // One of elsewhere, whose results were imported, is known by its records alone.
    let exactly = Filter {
        run_id: Some(name.to_owned()),
        limit: Some(1),
        ..Filter::default()
    };
    if !store.list(&exactly)?.is_empty() {
        return Ok(name.to_owned());
    }
    let runs = store.runs(usize::MAX)?.into_iter();
    let mut names: Vec<String> = runs.map(|run| run.info.run_id).collect();
    // They begin with the time.
    names.sort_unstable();
    crate::cli::log::among(&names, name).map(str::to_owned)
}

/// Says so where nothing fits because the store has no such label or plan.
fn unknown(store: &Store, args: &Ls, out: &mut Out) -> Result<()> {
    let mut tell = |what: &str, word: &str, known: &[String]| {
        if known.iter().all(|name| name != word) {
            let near = nearest(word, known.iter().map(String::as_str));
            let near = near.map(|near| format!("; did you mean `{near}`?"));
            let near = near.unwrap_or_default();
            out.note(format!("note: no record is of {what} `{word}`{near}"));
        }
    };
    if let Some(label) = &args.label {
        let known: Vec<String> = store.bulk()?.labels().map(str::to_owned).collect();
        tell("label", label, &known);
    }
    if let Some(plan) = &args.plan {
        let known: Vec<String> = store.stats()?.by_plan.into_keys().collect();
        tell("plan", plan, &known);
    }
    Ok(())
}

fn pinned(store: &Store, out: &mut Out) -> Result<()> {
    let labels: BTreeMap<Digest, String> = store
        .list(&Filter::default())?
        .into_iter()
        .map(|summary| (summary.record, summary.label.to_string()))
        .collect();
    let mut table = out::table(["record", "label", "since", "reason"]);
    let mut list = Vec::new();
    for pin in store.pins()? {
        let label = labels.get(&pin.record).cloned().unwrap_or_default();
        table.add_row([
            super::short(&pin.record),
            label.clone(),
            when(pin.pinned_unix_ms),
            pin.reason.clone(),
        ]);
        list.push(json!({
            "record": pin.record, "label": label, "reason": pin.reason,
            "pinned_unix_ms": pin.pinned_unix_ms,
        }));
    }
    match out.json {
        true => out.json(&list),
        false => out.line(table),
    }
}

fn quarantined(store: &Store, out: &mut Out) -> Result<()> {
    let mut table = out::table(["file", "label", "since", "why"]);
    let mut list = Vec::new();
    for item in store.quarantined()? {
        let name = item.path.file_name().unwrap_or_default().to_string_lossy();
        let since = item.since_unix_ms.map(when).unwrap_or_default();
        // What is damaged may have none.
        let label = std::fs::read(&item.path).ok().and_then(|bytes| {
            let record: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            Some(record["label"].as_str()?.to_owned())
        });
        let why = item.why.as_deref().unwrap_or("");
        table.add_row([&*name, label.as_deref().unwrap_or(""), &since, why]);
        list.push(json!({
            "file": name, "label": label, "why": item.why, "since_unix_ms": item.since_unix_ms,
        }));
    }
    match out.json {
        true => out.json(&list),
        false => out.line(table),
    }
}

/// One object.
pub fn display(store: &Store, planned: &Planned<'_>, args: &Show, out: &mut Out) -> Result<()> {
    // A whole digest may be a blob's.
    let whole = args.key.parse::<Digest>().ok();
    if let Some(digest) = whole.filter(|digest| store.cas().contains(digest)) {
        return print_blob(&digest, &store.blob(&digest)?, out);
    }
    let record = match super::named(store, planned, &args.key) {
        Ok((_, record)) => record,
        // One that is only in the mirror.
        Err(error) => match whole.map(|digest| (digest, store.blob(&digest))) {
            Some((digest, Ok(bytes))) => return print_blob(&digest, &bytes, out),
            _ => return Err(error),
        },
    };
    let value = serde_json::to_value(&record)
        .map_err(|e| Error::new(Kind::Bug, "json", "the record could not be printed").cause(e))?;
    if out.json {
        out.json(&value)
    } else {
        out.line(format!("{value:#}"))
    }
}

/// The bytes as they are, or a document that holds them where they are text.
fn print_blob(digest: &Digest, bytes: &[u8], out: &mut Out) -> Result<()> {
    if out.json {
        let text = std::str::from_utf8(bytes).ok();
        return out.json(&json!({"blob": digest, "size_bytes": bytes.len(), "text": text}));
    }
    std::io::Write::write_all(out, bytes)
        .map_err(|e| Error::new(Kind::Infra, "output", "could not write the blob").cause(e))
}

/// Counts.
pub fn stats(store: &Store, out: &mut Out) -> Result<()> {
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

/// A point in time, UTC; a number that is none as it is.
pub fn when(unix_ms: u64) -> String {
    /// Where the year 10000 begins.
    const NO_DATE_FROM: u64 = 253_402_300_800_000;
    if unix_ms >= NO_DATE_FROM {
        return format!("{unix_ms} ms");
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_can_be_told() {
        assert_eq!(when(0), "1970-01-01T00:00:00Z");
        assert_eq!(when(253_402_300_799_999), "9999-12-31T23:59:59Z");
        assert_eq!(when(400_000_000_000_000), "400000000000000 ms");
        assert_eq!(when(u64::MAX), "18446744073709551615 ms");
    }
}
