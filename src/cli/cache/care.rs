//! Looking after the store: check it, collect what nobody wants, pin, refuse, make the index
//! again.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use doe_cache::{Damage, Digest, GcLimits, Store, VerifyOptions, WriterLock};
use serde_json::json;

use super::look::when;
use super::planned::Planned;
use super::{Place, bytes, named, short};
use crate::cli::args::Waiting;
use crate::cli::out::{self, Out};
use crate::engine::intent;
use crate::error::{Error, Kind, Result};

/// How much to check.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache verify
  doe cache verify --sample 5     a twentieth of all records and blobs, others each time

What is damaged is put into quarantine and never reused. While a build holds the workspace damage
is only told, and the index is not held against the files. Exit code 7 when anything is damaged.")]
pub struct Verify {
    /// Only read this share of records and blobs, in percent
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub sample: Option<f64>,
    /// Choose the sample by this number instead of by the time
    #[arg(long, value_name = "NUMBER", requires = "sample")]
    pub seed: Option<u64>,
    /// Only tell; move nothing to quarantine
    #[arg(long)]
    pub dry_run: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err("a number above 0 and up to 100 was expected".to_owned()),
    }
}

/// What to collect.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache gc                                  what no record refers to; only says so
  doe cache gc --older-than 90d --delete
  doe cache gc --max-size 20GiB --delete

Never removed: pinned records with all they were made from, what the plans would reuse on any
platform, and what stands for a label or happened last under it. It takes the workspace's lock, so
it never meets a build.")]
pub struct Gc {
    /// Also records that were recorded and last used longer ago, and what ended runs left
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
    /// Also the oldest records, until records and blobs have at most this size (500MB, 20GiB)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
    /// Remove it, instead of only saying what would go
    #[arg(long)]
    pub delete: bool,
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `20GiB`, `500 MB`, `1000000`.
fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: f64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        unit => {
            return Err(format!(
                "`{unit}` is no unit of size; MB, GB, MiB and GiB are"
            ));
        }
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok((number * factor) as u64),
        _ => Err("a size was expected, for example 20GiB".to_owned()),
    }
}

/// What to refuse.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache quarantine 3f2a91 --reason 'the fan of node 2 was off'
  doe cache quarantine --undo 3f2a91...   the whole digest, as `doe cache ls --quarantined` has it

A refusal is of the execution: records that were read anew out of the same outputs are refused
with it, and --undo of any of them takes all of them back. What stood for the label before takes
their place; without that the pattern runs again.")]
pub struct Quarantine {
    /// A label or the beginning of a digest; the whole digest with --undo
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Why
    #[arg(long, default_value = "refused by hand")]
    pub reason: String,
    /// Take it back
    #[arg(long, conflicts_with = "reason")]
    pub undo: bool,
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// How to rebuild.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  doe cache rebuild\n\nEvery answer is afterwards what it was before, byte for byte. Exit code 7 when stored files are\ndamaged; they are put into quarantine."
)]
pub struct Rebuild {
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Checks what is stored.
pub fn verify(place: &Place, args: &Verify, out: &mut Out) -> Result<u8> {
    let wait = Waiting { wait: None };
    let (store, held) = match args.dry_run {
        true => {
            // Nobody must write while the index is held against the files.
            let lock = quiet(place, args, out)?;
            (Store::open_to_verify(&place.0, None)?, lock)
        }
        false => match writing(place, &wait, out) {
            Ok((store, lock)) => (store, Some(lock)),
            // A build goes on: look, and touch nothing.
            Err(error) if error.kind == Kind::Lock => {
                out.note(format!("note: {error}; damage is only told"));
                (Store::open_to_verify(&place.0, None)?, None)
            }
            // Whoever can only read can still be told.
            Err(error) if error.kind == Kind::Infra => {
                return Err(error.hint("`--dry-run` only looks"));
            }
            Err(error) => return Err(error),
        },
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let chance = now.map_or(0, |now| now.as_nanos() as u64);
    let options = VerifyOptions {
        share: args.sample.unwrap_or(1.0),
        seed: args.seed.unwrap_or(chance),
        index: args.sample.is_none() && held.is_some(),
    };
    let report = store.verify(&options)?;
    let damaged = !report.damage.is_empty();
    let code = if damaged {
        Kind::Integrity.exit_code()
    } else {
        0
    };
    out::leave_with(code);
    if out.json {
        out.json(&json!({
            "ok": !damaged, "records": report.records, "blobs": report.blobs,
            "bytes": report.bytes, "others": report.others, "index": report.index,
            "damage": report.damage.iter().map(found).collect::<Vec<_>>(),
        }))?;
    } else {
        for damage in &report.damage {
            out.line(told(damage))?;
        }
        let index = if report.index {
            ", and the index against them"
        } else {
            ""
        };
        out.line(format!(
            "checked {} records, {} blobs ({}) and {} other files{index}: {}",
            report.records,
            report.blobs,
            bytes(report.bytes),
            report.others,
            match report.damage.len() {
                0 if report.records + report.blobs == 0 && args.sample.is_some() => {
                    "the sample drew nothing; ask for a larger share".to_owned()
                }
                0 => "all is well".to_owned(),
                1 => "1 is damaged".to_owned(),
                count => format!("{count} are damaged"),
            }
        ))?;
    }
    Ok(code)
}

/// As [`Place::writing`], and for reading where the index is damaged.
fn writing(place: &Place, wait: &Waiting, out: &mut Out) -> Result<(Store, WriterLock)> {
    let lock = crate::cli::session::lock(&place.0, wait, out)?;
    let store = Store::open_to_verify(&place.0, Some(&lock))?;
    Ok((store, lock))
}

/// The lock, for a look at what stands still; none, and a word why, where that cannot be had.
fn quiet(place: &Place, args: &Verify, out: &mut Out) -> Result<Option<WriterLock>> {
    if args.sample.is_some() || !place.0.exists() {
        return Ok(None);
    }
    let wait = Waiting { wait: None };
    let why = match crate::cli::session::hold(&place.0, &wait, out) {
        Ok(lock) if !doe_cache::Layout::new(&place.0).unsettled().exists() => {
            return Ok(Some(lock));
        }
        Ok(_) => "a write was cut short, and no writer has looked since".to_owned(),
        Err(error) => error.to_string(),
    };
    out.note(format!(
        "note: {why}; the index is not held against the files"
    ));
    Ok(None)
}

fn found(damage: &Damage) -> serde_json::Value {
    json!({
        "kind": damage.kind, "name": damage.name, "detail": damage.detail,
        "quarantined": damage.quarantined,
    })
}

fn told(damage: &Damage) -> String {
    let place = damage.quarantined.as_ref();
    let place = place.map(|path| format!(" (now {})", path.display()));
    format!(
        "{} {}: {}{}",
        damage.kind,
        damage.name,
        damage.detail,
        place.unwrap_or_default()
    )
}

/// What the plans would reuse. Where nobody can say, no record is removed for its age or the room it
/// takes, and none is listed as one that would be: one letter too many in a plan must not cost what took hours to measure.
fn called_for(
    planned: &Planned<'_>,
    store: &Store,
    args: &Gc,
    out: &mut Out,
) -> Result<BTreeSet<Digest>> {
    let takes_records = args.older_than.is_some() || args.max_size.is_some();
    match planned.on_any_platform(store) {
        Err(error) if takes_records => Err(error.hint(
            "nothing was removed, as it is not known what the plans would reuse; mend them first",
        )),
        Err(error) => {
            out.note(format!(
                "warning: what the plans would reuse is not known and not kept for that: {error}"
            ));
            Ok(BTreeSet::new())
        }
        known => known,
    }
}

/// Collects.
pub fn gc(place: &Place, planned: &Planned<'_>, args: &Gc, out: &mut Out) -> Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let before = args
        .older_than
        .map(|age| now.saturating_sub(age).as_millis());
    let mut limits = GcLimits {
        before_unix_ms: before.map(|ms| u64::try_from(ms).unwrap_or(0)),
        max_bytes: args.max_size,
        ..GcLimits::default()
    };
    let plan = if args.delete {
        let (store, lock) = place.writing(&args.waiting, out)?;
        limits.keep = called_for(planned, &store, args, out)?;
        let plan = store.gc_plan(&limits, &intent::in_use(&store)?)?;
        store.gc_sweep(&lock, &plan)?;
        plan
    } else {
        let store = place.reading()?;
        limits.keep = called_for(planned, &store, args, out)?;
        store.gc_plan(&limits, &intent::in_use(&store)?)?
    };
    if out.json {
        return out.json(&json!({
            "deleted": args.delete,
            "records": plan.records.iter().map(|doomed| json!({
                "record": doomed.record, "label": doomed.label,
                "recorded_unix_ms": doomed.recorded_unix_ms, "size_bytes": doomed.size_bytes,
            })).collect::<Vec<_>>(),
            "blobs": plan.blobs.len(), "links": plan.links.len(), "run_files": plan.runs.len(),
            "freed_bytes": plan.freed_bytes, "kept_records": plan.kept_records,
            "kept_pinned": plan.kept_pinned, "kept_bytes": plan.kept_bytes,
        }));
    }
    if !plan.records.is_empty() {
        let mut table = out::table(["record", "label", "recorded", "size"]);
        for doomed in &plan.records {
            table.add_row([
                short(&doomed.record),
                doomed.label.clone(),
                when(doomed.recorded_unix_ms),
                bytes(doomed.size_bytes),
            ]);
        }
        out.line(table)?;
    }
    out.line(format!(
        "{} {} records, {} blobs, {} files of links, {} leftovers of runs: {}",
        if args.delete {
            "removed"
        } else {
            "would remove"
        },
        plan.records.len(),
        plan.blobs.len(),
        plan.links.len(),
        plan.runs.len(),
        bytes(plan.freed_bytes)
    ))?;
    out.line(format!(
        "kept {} records ({} pinned or needed by pinned ones): {}",
        plan.kept_records,
        plan.kept_pinned,
        bytes(plan.kept_bytes)
    ))?;
    if let Some(most) = args.max_size.filter(|most| plan.kept_bytes > *most) {
        out.line(format!(
            "that is more than {}: what is left is pinned, stands for a label or would be reused",
            bytes(most)
        ))?;
    }
    match args.delete || plan.freed_bytes == 0 {
        true => Ok(()),
        false => out.line("nothing was removed: add --delete"),
    }
}

/// Refuses, or takes back.
pub fn quarantine(
    place: &Place,
    planned: &Planned<'_>,
    args: &Quarantine,
    out: &mut Out,
) -> Result<()> {
    let (store, _lock) = place.writing(&args.waiting, out)?;
    if args.undo {
        let digest = args
            .key
            .trim_end_matches(".json")
            .parse()
            .map_err(|error| {
                Error::from(error).hint("`doe cache ls --quarantined` has the whole digest")
            })?;
        let all = store.restore(&digest)?;
        let label = store.record(&digest)?.label;
        return tell_execution(out, "restored", &digest, &label, &all);
    }
    let (digest, label) = match named(&store, planned, &args.key) {
        Ok((digest, record)) => (digest, record.label),
        // Refused by a command that died before it had refused the rest.
        Err(error) => half_refused(&store, &args.key)?.ok_or(error)?,
    };
    let all = store.quarantine(&digest, &args.reason)?;
    tell_execution(out, "quarantined", &digest, &label, &all)?;
    if out.json {
        return Ok(());
    }
    let next = match planned.record(&store, &label) {
        Some(next) => next,
        None => {
            let snapshot = store.bulk()?;
            snapshot.current(&label).map(|next| next.record)
        }
    };
    match next {
        Some(next) => out.line(format!("record {} stands for {label} now", short(&next))),
        None => out.line(format!("{label} has no result any more: it runs again")),
    }
}

/// A refused record of whose execution others are in the store, by its whole digest; with the label
/// of the latest of those.
fn half_refused(store: &Store, key: &str) -> Result<Option<(Digest, String)>> {
    let Ok(digest) = key.to_lowercase().parse::<Digest>() else {
        return Ok(None);
    };
    match store.execution(&digest)?.last() {
        Some(latest) if store.is_refused(&digest)? => {
            Ok(Some((digest, store.record(latest)?.label)))
        }
        _ => Ok(None),
    }
}

/// Says what was done to the records of an execution, of which one was named.
fn tell_execution(
    out: &mut Out,
    what: &str,
    named: &Digest,
    label: &str,
    all: &[Digest],
) -> Result<()> {
    if out.json {
        return out.json(&json!({
            what: [{"record": named, "label": label}], "execution": all,
        }));
    }
    out.line(format!("{what} {} {label}", short(named)))?;
    match all.len() {
        0 | 1 => Ok(()),
        count => out.line(format!("{what} {count} records of this execution in all")),
    }
}

/// Makes the index again.
pub fn rebuild(place: &Place, args: &Rebuild, out: &mut Out) -> Result<u8> {
    let lock = crate::cli::session::lock(&place.0, &args.waiting, out)?;
    let (store, report) = Store::rebuild(&place.0)?;
    store.sweep_tmp(&lock)?;
    let damaged = !report.quarantined.is_empty();
    if out.json {
        let list = |list: &[(std::path::PathBuf, String)]| -> Vec<_> {
            let list = list
                .iter()
                .map(|(path, why)| json!({"path": path, "why": why}));
            list.collect()
        };
        out.json(&json!({
            "records": report.indexed, "links": report.links, "runs": report.runs,
            "incomplete": report.incomplete, "quarantined": list(&report.quarantined),
            "skipped": list(&report.skipped),
        }))?;
    } else {
        out.line(format!(
            "{} records, {} links, {} runs",
            report.indexed, report.links, report.runs
        ))?;
        for digest in &report.incomplete {
            out.line(format!(
                "record {} lacks an output: it is not reused",
                digest.short()
            ))?;
        }
        for (path, why) in &report.quarantined {
            out.line(format!("put aside: {}: {why}", path.display()))?;
        }
        for (path, why) in &report.skipped {
            out.line(format!("left alone: {}: {why}", path.display()))?;
        }
    }
    Ok(if damaged {
        Kind::Integrity.exit_code()
    } else {
        0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_strictly() {
        for (text, bytes) in [
            ("0", 0),
            ("500MB", 500_000_000),
            ("1.5 GiB", 3 << 29),
            ("7k", 7168),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1", "5 parsecs", "NaN"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(percent("5%"), Ok(0.05));
        assert!(percent("0").is_err() && percent("101").is_err());
    }
}
