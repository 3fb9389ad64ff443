//! Records that no collection removes. A list of words is taken as a whole or not at all.

use std::collections::BTreeMap;

use clap::Args;
use doe_cache::Digest;
use serde_json::json;

use super::planned::Planned;
use super::{Place, named, short};
use crate::cli::args::Waiting;
use crate::cli::out::Out;
use crate::error::{Error, Kind, Result};

/// What to keep.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe cache pin //phase2:p2-efa-4k-c1 --reason 'figure 3'\n  doe cache ls --pinned"
)]
pub struct Pin {
    /// Labels or beginnings of digests
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
    /// What for
    #[arg(long, default_value = "")]
    pub reason: String,
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// What to keep no longer.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  doe cache unpin //phase2:p2-efa-4k-c1")]
pub struct Unpin {
    /// Labels or beginnings of digests
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Pins.
pub fn pin(place: &Place, planned: &Planned<'_>, args: &Pin, out: &mut Out) -> Result<()> {
    let (store, _lock) = place.writing(&args.waiting, out)?;
    // All or nothing: a word that names nothing pins nothing.
    let found: Vec<_> = args
        .keys
        .iter()
        .map(|key| named(&store, planned, key))
        .collect::<Result<_>>()?;
    let mut list = Vec::new();
    for (digest, record) in found {
        store.pin(&digest, &args.reason)?;
        list.push((digest, record.label));
    }
    tell_all(out, "pinned", &list)
}

/// Unpins.
pub fn unpin(place: &Place, planned: &Planned<'_>, args: &Unpin, out: &mut Out) -> Result<()> {
    let (store, _lock) = place.writing(&args.waiting, out)?;
    // All or nothing: a word that names no pin takes none away.
    let mut found = BTreeMap::new();
    for key in &args.keys {
        let (digest, label) = match named(&store, planned, key) {
            Ok((digest, record)) => (digest, record.label),
            // Its record was refused or is damaged; the pin is there.
            Err(error) => match store.resolve_pin(&key.to_lowercase()) {
                Ok(digest) => (digest, String::new()),
                Err(_) => return Err(error),
            },
        };
        if !store.layout().pin(&digest).exists() {
            return Err(Error::new(
                Kind::Usage,
                "not-pinned",
                format!("record `{}` is not pinned", short(&digest)),
            )
            .hint("`doe cache ls --pinned` lists what is"));
        }
        found.insert(digest, label);
    }
    let digests: Vec<Digest> = found.keys().copied().collect();
    store.unpin_all(&digests)?;
    let list: Vec<_> = found.into_iter().collect();
    tell_all(out, "unpinned", &list)
}

/// Says of which records something was done.
pub(super) fn tell_all(out: &mut Out, what: &str, list: &[(Digest, String)]) -> Result<()> {
    if out.json {
        let list = list
            .iter()
            .map(|(d, label)| json!({"record": d, "label": label}));
        return out.json(&json!({ what: list.collect::<Vec<_>>() }));
    }
    let mut list = list.iter();
    list.try_for_each(|(digest, label)| out.line(format!("{what} {} {label}", short(digest))))
}
