//! The comparisons that the old plan has in prose, as comparisons that are checked. Cells that
//! lost their partner are reported, and so is everything beside the transport in which the paired
//! patterns differ.

use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Value;
use serde_json::{Map, Value as Json};

use super::draft::{Draft, DraftLayer};
use super::report::Report;
use super::{objects, text};
use crate::rule::model::Affects;

/// One comparison to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DraftCompare {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) between: Vec<String>,
    pub(super) only_on: Vec<String>,
}

/// Settings that pair two serving patterns.
pub(super) const BY: [&str; 2] = ["prompt_tokens", "concurrency"];

/// The comparisons that can be checked; the others are reported.
pub(super) fn compares(
    plan: &Map<String, Json>,
    layers: &[DraftLayer],
    report: &mut Report,
) -> Vec<DraftCompare> {
    let analysis = plan.get("analysis_plan").and_then(Json::as_object);
    let listed = analysis.and_then(|a| a.get("cross_experiment_comparisons"));
    let mut compares: Vec<DraftCompare> = Vec::new();
    for old in objects(listed) {
        let Some(id) = text(old, "comparison_id") else {
            continue;
        };
        let between: Vec<String> = (old.get("layers").and_then(Json::as_array))
            .into_iter()
            .flatten()
            .filter_map(|layer| Some(layer.as_str()?.to_owned()))
            .collect();
        let sides: Vec<&DraftLayer> = between
            .iter()
            .filter_map(|id| layers.iter().find(|layer| layer.id == *id))
            .collect();
        let served = |layer: &&DraftLayer| {
            !layer.patterns.is_empty() && layer.patterns.iter().all(|p| cell(p).is_some())
        };
        if sides.len() < 2 || sides.len() < between.len() || !sides.iter().all(served) {
            report.warn(format!(
                "{id} is not imported: it compares {}, whose patterns have no settings to pair them by",
                between.join(", ")
            ));
            continue;
        }
        if let Some(same) = compares.iter().find(|known| known.between == between) {
            report.warn(format!(
                "{id} is not imported: it compares the same layers as {}",
                same.id
            ));
            continue;
        }
        let only_on = differences(id, &sides, report);
        unpaired(id, &sides, report);
        compares.push(DraftCompare {
            id: id.to_owned(),
            title: text(old, "name").unwrap_or(id).to_owned(),
            between,
            only_on,
        });
    }
    compares
}

type Cell = (i64, i64);

fn cell(draft: &Draft) -> Option<Cell> {
    Some((draft.int(BY[0])?, draft.int(BY[1])?))
}

/// The patterns of a layer by cell; of several the first, which is the plain one.
fn cells(layer: &DraftLayer) -> BTreeMap<Cell, &Draft> {
    let mut cells = BTreeMap::new();
    for pattern in &layer.patterns {
        if let Some(cell) = cell(pattern) {
            cells.entry(cell).or_insert(pattern);
        }
    }
    cells
}

fn unpaired(id: &str, sides: &[&DraftLayer], report: &mut Report) {
    let cells: Vec<_> = sides.iter().map(|side| cells(side)).collect();
    let all: BTreeSet<Cell> = cells.iter().flat_map(|side| side.keys().copied()).collect();
    for (at, (side, has)) in sides.iter().zip(&cells).enumerate() {
        let alone = |cell: &&Cell| {
            has.contains_key(*cell)
                && !cells
                    .iter()
                    .enumerate()
                    .any(|(other, c)| other != at && c.contains_key(*cell))
        };
        let alone: Vec<_> = (all.iter().filter(alone))
            .map(|(tokens, concurrency)| format!("{tokens} tokens at concurrency {concurrency}"))
            .collect();
        if !alone.is_empty() {
            report.warn(format!(
                "{id}: cells of {} without a partner: {}",
                side.id,
                alone.join(", ")
            ));
        }
    }
}

/// Shared settings in which paired patterns differ, `transport` first.
fn differences(id: &str, sides: &[&DraftLayer], report: &mut Report) -> Vec<String> {
    let cells: Vec<_> = sides.iter().map(|side| cells(side)).collect();
    let mut differing: BTreeMap<&str, (&Draft, &Draft)> = BTreeMap::new();
    for (at, left) in cells.iter().enumerate() {
        for right in &cells[at + 1..] {
            for (cell, a) in left {
                let Some(b) = right.get(cell) else { continue };
                for (name, param) in &a.rule.params {
                    let shared = b.rule.params.contains_key(name);
                    let matters = param.affects == Affects::Result && !BY.contains(&name.as_str());
                    if shared && matters && value(a, name) != value(b, name) {
                        differing.entry(name).or_insert((a, b));
                    }
                }
            }
        }
    }
    for (name, (a, b)) in &differing {
        if *name != "transport" {
            let show = |draft| value(draft, name).map_or("nothing".to_owned(), super::emit::value);
            report.warn(format!(
                "{id}: `{}` and `{}` differ in {name} too: {} and {}",
                a.id,
                b.id,
                show(a),
                show(b)
            ));
        }
    }
    let mut only_on: Vec<String> = differing.into_keys().map(str::to_owned).collect();
    only_on.sort_by_key(|name| name != "transport");
    only_on
}

fn value<'d>(draft: &'d Draft, name: &str) -> Option<&'d Value> {
    let default = || draft.rule.params.get(name)?.default.as_ref();
    draft.settings.get(name).or_else(default)
}

/// Patterns that do the same under different names.
pub(super) fn duplicates(layers: &[DraftLayer], report: &mut Report) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for pattern in layers.iter().flat_map(|layer| &layer.patterns) {
        let settings: Vec<_> = (pattern.settings.iter())
            .map(|(name, value)| format!("{name} = {}", super::emit::value(value)))
            .collect();
        let needs = pattern.needs.join(",");
        let what = format!("{} {} {needs}", pattern.rule_id(), settings.join(", "));
        if let Some(first) = seen.get(&what) {
            report.warn(format!(
                "`{}` does the same as `{first}` and will run once",
                pattern.id
            ));
        } else {
            seen.insert(what, &pattern.id);
        }
    }
}
