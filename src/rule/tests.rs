//! Rule files as people write them, from text to action.

mod errors;
mod keys;
mod places;
mod quoting;
mod released;
mod shipped;

use std::collections::BTreeMap;

use doe_cache::Value;

use super::load::{RuleFile, Rules, load_texts};
use crate::error::Diagnostic;

/// Instruments that the tests' scripts may call.
const INSTRUMENTS: &[&str] = &[
    "measure openai",
    "analyze bimodality",
    "parse iperf3",
    "proxy",
];

/// The rules of one file `t.toml`.
fn load(text: &str) -> (Rules, Vec<Diagnostic>) {
    let file = RuleFile {
        name: "t.toml",
        stem: "t",
        text,
    };
    load_texts(&[file], INSTRUMENTS)
}

/// Findings as lines: `t.toml:1:2 code: message | note | hint`.
fn lines(diags: &[Diagnostic]) -> String {
    let mut lines = Vec::new();
    for diagnostic in diags {
        let mut parts = Vec::new();
        for (at, (site, note)) in diagnostic.sites.iter().enumerate() {
            assert!(site.file.text.get(site.range.clone()).is_some());
            if at > 0 {
                parts.push(format!("{note} at {}", site.short()));
            }
        }
        parts.extend(diagnostic.hints.iter().cloned());
        let place = match diagnostic.sites.first() {
            Some((site, _)) => {
                let text: String = site.file.text[site.range.clone()]
                    .chars()
                    .take(30)
                    .collect();
                format!("{} [{}]", site.short(), text.replace('\n', "⏎"))
            }
            None => "-".to_owned(),
        };
        lines.push(format!(
            "{place} {}: {}",
            diagnostic.code, diagnostic.message
        ));
        lines.extend(parts.iter().map(|part| format!("    {part}")));
    }
    lines.join("\n")
}

/// Settings from pairs.
fn pairs(pairs: &[(&str, Value)]) -> BTreeMap<String, Value> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}
