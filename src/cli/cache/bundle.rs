//! Results carried from one store to another, in one file.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use doe_cache::{Digest, STREAM, Store};
use serde_json::json;

use super::planned::Planned;
use super::{Place, bytes, named, short};
use crate::cli::args::Waiting;
use crate::cli::out::Out;
use crate::error::{Error, Kind, Result};

/// What to export.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache export //phase2:all -o phase2.tar.gz --comment 'figures 3 to 5'
  doe cache export //... -o all.tar.gz --history
  doe cache export 3f2a91 -o one.tar.gz
  doe cache export //phase2:all -o - | ssh lab 'cd bench && doe cache import -'

What a result was made from comes along, so that the whole chain is a hit elsewhere.")]
pub struct Export {
    /// Labels, //plan:all, //plan/..., //..., or beginnings of digests
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
    /// The file to write; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What it is for; kept with the results wherever they go
    #[arg(long, default_value = "")]
    pub comment: String,
    /// Every record of the labels, failures included, not only what stands for them
    #[arg(long)]
    pub history: bool,
}

/// What to import.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe cache import phase2.tar.gz\n  doe cache why //phase2:p2-efa-4k-c1   says where it came from"
)]
pub struct Import {
    /// A file that `doe cache export` wrote; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Writes a bundle.
pub fn export(store: &Store, planned: &Planned<'_>, args: &Export, out: &mut Out) -> Result<()> {
    let mut chosen: BTreeSet<Digest> = BTreeSet::new();
    for key in &args.keys {
        let found = select(store, planned, key, args.history)?;
        if found.is_empty() {
            return Err(Error::new(
                Kind::Usage,
                "store-not-found",
                format!("nothing is stored under `{key}`"),
            )
            .hint("`doe cache ls` lists what is stored"));
        }
        chosen.extend(found);
    }
    // With everything that they were made from.
    let mut next: Vec<Digest> = chosen.iter().copied().collect();
    while let Some(digest) = next.pop() {
        let record = store.record(&digest)?;
        let mut sources: Vec<Digest> = record.rejudged_from.into_iter().collect();
        for (label, output) in record.needs() {
            sources.extend(store.by_output(&output, &label)?);
        }
        for source in sources {
            let stored = store.layout().record(&source).exists();
            if stored && chosen.insert(source) {
                next.push(source);
            }
        }
    }
    let to_stdout = args.output.as_os_str() == STREAM;
    if to_stdout && out.terminal {
        let what = "a bundle is nothing to look at on a terminal";
        return Err(Error::new(Kind::Usage, "bad-path", what)
            .hint("send it on (`| ssh ...`), or name a file: -o FILE"));
    }
    if args.output.file_name().is_none() {
        let file = args.output.display();
        let what = format!("`{file}` names no file");
        return Err(Error::new(Kind::Usage, "bad-path", what));
    }
    if lacking(store, &chosen)? == chosen.len() {
        let what = "an output or a log is missing of every result that is asked for";
        return Err(Error::new(Kind::Usage, "store-not-found", what)
            .hint("`doe cache pull --blobs` fetches what the mirror has"));
    }
    let chosen: Vec<Digest> = chosen.into_iter().collect();
    let version = env!("CARGO_PKG_VERSION");
    let exported = store.export(&chosen, &args.output, &args.comment, version)?;
    for why in &exported.left_out {
        out.note(format!("warning: left out: {why}"));
    }
    let file = args.output.display().to_string();
    if out.json && !to_stdout {
        return out.json(&json!({
            "file": file, "records": exported.records, "blobs": exported.blobs,
            "content_bytes": exported.content_bytes, "bundle_bytes": exported.bundle_bytes,
            "left_out": exported.left_out,
        }));
    }
    let told = format!(
        "{file}: {} records, {} blobs, {} ({} before compression)",
        exported.records,
        exported.blobs,
        bytes(exported.bundle_bytes),
        bytes(exported.content_bytes)
    );
    match to_stdout {
        // There the bundle went.
        true => out.note(told),
        false => out.line(told)?,
    }
    Ok(())
}

/// How many records lack an output or a log here; it may be in the mirror.
fn lacking(store: &Store, records: &BTreeSet<Digest>) -> Result<usize> {
    let mut lacking = 0;
    for record in records {
        let record = store.record(record)?;
        let outputs = record.outputs.values().map(|output| output.digest);
        let mut blobs = outputs.chain(record.logs.iter().map(|log| log.digest));
        lacking += usize::from(!blobs.all(|blob| store.cas().contains(&blob)));
    }
    Ok(lacking)
}

fn select(store: &Store, planned: &Planned<'_>, key: &str, history: bool) -> Result<Vec<Digest>> {
    if !key.starts_with("//") {
        return Ok(vec![named(store, planned, key)?.0]);
    }
    let snapshot = store.bulk()?;
    let package = |suffix: &str| key.strip_suffix(suffix);
    let wanted = |label: &str| {
        if key == "//..." {
            true
        } else if let Some(package) = package("/...") {
            label.starts_with(&format!("{package}:")) || label.starts_with(&format!("{package}/"))
        } else if let Some(package) = package(":all") {
            label.starts_with(&format!("{package}:"))
        } else {
            label == key
        }
    };
    if history {
        let all = store.list(&doe_cache::Filter::default())?;
        let wanted = all.into_iter().filter(|summary| wanted(&summary.label));
        return Ok(wanted.map(|summary| summary.record).collect());
    }
    let labels = snapshot.labels().filter(|label| wanted(label));
    planned.check_platform()?;
    let planned_for = planned.records(store);
    let found: Vec<Digest> = labels
        .filter_map(|label| {
            let current = || Some(snapshot.current(label)?.record);
            planned_for.get(label).copied().or_else(current)
        })
        .collect();
    match found.is_empty() && !key.ends_with("...") && !key.ends_with(":all") {
        // With the nearest name, when there is one.
        true => Ok(vec![super::of_label(store, planned, key)?]),
        false => Ok(found),
    }
}

/// Takes a bundle in.
pub fn import(place: &Place, args: &Import, out: &mut Out) -> Result<()> {
    let from_stdin = args.file.as_os_str() == STREAM;
    if from_stdin && std::io::stdin().is_terminal() {
        let what = "a bundle is nothing to type";
        return Err(Error::new(Kind::Usage, "bad-path", what)
            .hint("send one here (`doe cache export ... -o - |`), or name a file"));
    }
    if !from_stdin && !args.file.is_file() {
        let text = format!("there is no file `{}`", args.file.display());
        return Err(Error::new(Kind::Usage, "no-file", text)
            .hint("`doe cache export LABEL -o FILE` writes one"));
    }
    let (store, _lock) = place.writing(&args.waiting, out)?;
    let imported = store.import_bundle(&args.file)?;
    let (new, known) = (imported.import.records.len(), imported.known);
    if out.json {
        return out.json(&json!({
            "records": new, "known": known, "blobs": imported.blobs,
            "refused": imported.refused, "origin": imported.import.origin,
        }));
    }
    let origin = &imported.import.origin;
    out.line(format!(
        "exported {} on {} by {}{}{}",
        super::when(origin.exported_unix_ms),
        origin.host,
        origin.by,
        if origin.comment.is_empty() { "" } else { ": " },
        origin.comment
    ))?;
    out.line(format!(
        "{new} records and {} blobs are new here, {known} records were known",
        imported.blobs
    ))?;
    for record in &imported.refused {
        out.line(format!(
            "{} stays out: it was put into quarantine here",
            short(record)
        ))?;
    }
    Ok(())
}
