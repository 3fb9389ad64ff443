//! `doe cache`: look into the store, look after it, and carry results elsewhere. Reading needs no
//! lock and no plan that is sound; what changes the store holds the writer's lock, so it never
//! meets a build.

mod bundle;
mod care;
mod look;
mod pins;
mod planned;
mod tell;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use doe_cache::{Digest, Record, Store};

use self::planned::Planned;
use super::args::{Global, Waiting};
use super::out::Out;
use super::session;
use crate::error::{Error, Kind, Result, nearest};
use crate::plan::parts::state_dir;

pub use look::when;

/// Look into the store, look after it, carry results elsewhere
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache ls --label //phase2:p2-efa-4k-c1
  doe cache why //phase2:p2-efa-4k-c1        what made this result, with what inputs
  doe cache diff 3f2a91 77b0c2               two records, field by field
  doe cache verify                           is everything that is stored what it should be?
  doe cache gc --older-than 90d              what would go; --delete removes it
  doe cache export //phase2:all -o p2.tar.gz
  doe cache import p2.tar.gz                 hits, without running anything

A KEY is a label, or the beginning (4 digits or more) of a record's digest, a spec key or an
action key. Exit codes: 0 ok, 2 no such thing, 5 lock held, 7 something stored is damaged.")]
pub struct CacheArgs {
    /// What to do.
    #[command(subcommand)]
    pub question: Question,
}

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// List records, the newest first
    Ls(look::Ls),
    /// Show one record whole, or the content of a blob
    Show(look::Show),
    /// Compare two records field by field: inputs, what was executed, outcome
    Diff(tell::Diff),
    /// Tell where a result comes from: inputs, execution, and those of what it needs
    Why(tell::Why),
    /// Count records, blobs and bytes
    Stats,
    /// Read what is stored and check every byte of it
    Verify(care::Verify),
    /// Remove what nobody wants any more; says what it would do unless told to delete
    Gc(care::Gc),
    /// Keep a record, and all it was made from, whatever a collection is asked
    Pin(pins::Pin),
    /// Take a pin away
    Unpin(pins::Unpin),
    /// Refuse a record: it is put aside and never reused; --undo takes it back
    Quarantine(care::Quarantine),
    /// Make the index again from the stored files
    Rebuild(care::Rebuild),
    /// Write records with everything they need to one file
    Export(bundle::Export),
    /// Take in what `doe cache export` wrote; everything is checked first
    Import(bundle::Import),
    /// Send every result that may be reused to the mirror
    Push,
    /// Take every result that the mirror has
    Pull(Pull),
}

/// How much.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe cache pull\n  doe cache pull --blobs --wait=15m   when a build may still be running"
)]
pub struct Pull {
    /// Their outputs and logs too, instead of when they are first read
    #[arg(long)]
    pub blobs: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Runs the command.
pub fn run(global: &Global, args: &CacheArgs, out: &mut Out) -> Result<u8> {
    let (root, options) = session::place(global)?;
    let place = Place(state_dir(&root, &options)?);
    let planned = Planned::new(global);
    match &args.question {
        Question::Ls(ls) => look::list(&place.reading()?, ls, out)?,
        Question::Show(show) => {
            look::display(&place.reading_with_mirror(&planned)?, &planned, show, out)?;
        }
        Question::Diff(diff) => tell::diff(&place.reading()?, &planned, diff, out)?,
        Question::Why(why) => tell::why(&place.reading()?, &planned, why, out)?,
        Question::Stats => look::stats(&place.reading()?, out)?,
        Question::Verify(verify) => return care::verify(&place, verify, out),
        Question::Gc(gc) => care::gc(&place, &planned, gc, out)?,
        Question::Pin(pin) => pins::pin(&place, &planned, pin, out)?,
        Question::Unpin(unpin) => pins::unpin(&place, &planned, unpin, out)?,
        Question::Quarantine(it) => care::quarantine(&place, &planned, it, out)?,
        Question::Rebuild(rebuild) => return care::rebuild(&place, rebuild, out),
        Question::Export(export) => bundle::export(&place.reading()?, &planned, export, out)?,
        Question::Import(import) => bundle::import(&place, import, out)?,
        Question::Push => {
            return super::mirror::push(global, &session::workspace(global)?, out);
        }
        Question::Pull(pull) => {
            return super::mirror::pull(global, &session::workspace(global)?, pull, out);
        }
    }
    Ok(0)
}

/// Where the store is.
struct Place(PathBuf);

impl Place {
    /// The store for reading; an empty one when nothing ran yet.
    fn reading(&self) -> Result<Store> {
        Ok(Store::open_read_only(&self.0)?)
    }

    /// The same; blobs that are only in the mirror are fetched when they are read.
    fn reading_with_mirror(&self, planned: &Planned<'_>) -> Result<Store> {
        let store = self.reading()?;
        if store.has_imported()
            && let Some(mirror) = planned.mirror()?
        {
            store.attach(mirror);
        }
        Ok(store)
    }

    /// The store for writing, and the right to write it.
    fn writing(&self, wait: &Waiting, out: &mut Out) -> Result<(Store, doe_cache::WriterLock)> {
        let lock = session::lock(&self.0, wait, out)?;
        let store = Store::open(&self.0)?;
        store.recover(&lock)?;
        Ok((store, lock))
    }
}

/// The record that a word names: a label's, or the one that a beginning of a digest leads to.
fn named(store: &Store, planned: &Planned<'_>, word: &str) -> Result<(Digest, Record)> {
    let digest = if word.starts_with("//") {
        of_label(store, planned, word)?
    } else {
        store.resolve(&word.to_lowercase()).map_err(|error| {
            let hexadecimal = word.chars().all(|c| c.is_ascii_hexdigit());
            let made = Error::from(error);
            match hexadecimal {
                true => made,
                false => made.hint("a label begins with `//`, for example `//phase2:p2-efa-4k-c1`"),
            }
        })?
    };
    Ok((digest, store.record(&digest)?))
}

/// What a build would take for a label; or else what stands for it, or what happened last under it.
fn of_label(store: &Store, planned: &Planned<'_>, label: &str) -> Result<Digest> {
    planned.check_platform()?;
    let snapshot = store.bulk()?;
    // Who has nothing under a label is not made to wait for the plans.
    if snapshot.latest(label).is_some()
        && let Some(Some(record)) = planned.record(store, label)
    {
        return Ok(record);
    }
    if let Some(found) = snapshot.current(label).or_else(|| snapshot.latest(label)) {
        return Ok(found.record);
    }
    let mut error = Error::new(
        Kind::Usage,
        "store-not-found",
        format!("nothing is stored under `{label}`"),
    );
    if let Some(near) = nearest(label, snapshot.labels()) {
        error = error.hint(format!("did you mean `{near}`?"));
    }
    Err(error.hint("`doe cache ls` lists what is stored"))
}

/// The beginning of a digest that people see.
fn short(digest: &Digest) -> String {
    digest.short().to_string()
}

/// A number of bytes for people.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
