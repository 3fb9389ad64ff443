//! The layers of a workspace whose text has changed, expanded as they were and as they are. When
//! the two differ in nothing but the values of settings, everything else that is known of the
//! workspace (labels, edges, tags, what was checked) still holds; where there is any doubt there
//! is no answer, and the whole is to be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::expand::{self, CommandLine, Context, Expanded};
use super::model::{Pattern, Workspace};
use super::read;
use super::uses;
use super::workspace::{LoadOptions, shell};
use crate::error::{Diagnostic, Severity};
use crate::label::Label;
use crate::rule::model::{Rule, RuleId};
use crate::source::{Doc, Text};

/// A plan whose text changed.
#[derive(Debug, Clone, Copy)]
pub struct Edit<'a> {
    /// Its package.
    pub package: &'a str,
    /// Path of its file below the workspace's folder, as messages call it.
    pub shown: &'a str,
    /// The text that was loaded and found sound.
    pub old: &'a str,
    /// The text now.
    pub new: &'a str,
}

/// What came of the edits.
#[derive(Debug)]
pub struct Part {
    /// Only the changed layers' patterns, without edges.
    pub workspace: Workspace,
    /// Those of them that have other values than before.
    pub changed: BTreeSet<Label>,
}

/// Expands what the edits changed. `None` when they changed, or might have changed, anything but
/// values of settings, or when anything about them is to be told.
pub fn settings_only(root: &Path, options: &LoadOptions, edits: &[Edit<'_>]) -> Option<Part> {
    if !options.sets.is_empty() {
        return None;
    }
    let mut workspace = shell(root, options)?;
    let mut changed = BTreeSet::new();
    for edit in edits {
        let (old, new) = changed_layers(edit.old, edit.new)?;
        let (old, old_diags) = expanded(edit, &old, &workspace.rules)?;
        let (new, new_diags) = expanded(edit, &new, &workspace.rules)?;
        if !same_findings(&old_diags, &new_diags) || !same_shape(&old, &new) {
            return None;
        }
        let pairs = old.plan.patterns.iter().zip(&new.plan.patterns);
        let other = pairs.filter(|(old, new)| !same_values(old, new));
        changed.extend(other.map(|(_, new)| new.label.clone()));
        workspace.plans.insert(edit.package.to_owned(), new.plan);
    }
    Some(Part { workspace, changed })
}

fn expanded(
    edit: &Edit<'_>,
    text: &str,
    rules: &BTreeMap<RuleId, Arc<Rule>>,
) -> Option<(Expanded, Vec<Diagnostic>)> {
    let (doc, found) = Doc::parse(edit.shown, text);
    if !found.is_empty() {
        return None;
    }
    let mut diags = Vec::new();
    let decl = read::read(&doc, edit.package, &mut diags);
    let mut context = Context::new(rules, BTreeSet::new(), CommandLine::new(&[]));
    let expanded = expand::expand(edit.package, decl, &mut context, &mut diags);
    let alone = expanded.decl.compares.is_empty() && expanded.decl.followups.is_empty();
    // How often a reference is measured follows from the whole plan.
    let patterns = &expanded.plan.patterns;
    let alone = alone && patterns.iter().all(|p| p.repeats.reference.is_none());
    (alone && !expanded.incomplete).then_some((expanded, diags))
}

/// Findings that come of looking at some layers only (a rule that no other layer uses) come up
/// both times; what comes up once is news.
fn same_findings(old: &[Diagnostic], new: &[Diagnostic]) -> bool {
    let told = |diags: &[Diagnostic]| -> Vec<(&'static str, String, bool)> {
        let told = diags.iter();
        told.map(|d| (d.code, d.message.clone(), d.severity == Severity::Error))
            .collect()
    };
    told(old) == told(new)
}

fn same_shape(old: &Expanded, new: &Expanded) -> bool {
    let texts = |a: &[Text], b: &[Text]| a.iter().map(|t| &t.text).eq(b.iter().map(|t| &t.text));
    let layers = old.plan.layers.iter().zip(&new.plan.layers);
    let patterns = old.plan.patterns.iter().zip(&new.plan.patterns);
    let units = old.units.iter().zip(&new.units);
    let links = old.links.iter().zip(&new.links);
    old.plan.layers.len() == new.plan.layers.len()
        && old.plan.patterns.len() == new.plan.patterns.len()
        && old.units.len() == new.units.len()
        && old.links.len() == new.links.len()
        && layers
            .into_iter()
            .all(|(a, b)| a.label == b.label && a.alias == b.alias && a.adhoc == b.adhoc)
        && patterns.into_iter().all(|(a, b)| {
            a.label == b.label
                && a.layer == b.layer
                && Arc::ptr_eq(&a.rule, &b.rule)
                && a.factors == b.factors
                && a.tags == b.tags
                && a.adhoc == b.adhoc
                && a.repeats == b.repeats
                && uses::same(&a.uses, &b.uses)
        })
        && units.into_iter().all(|(a, b)| {
            texts(&a.needs, &b.needs)
                && texts(&a.gate, &b.gate)
                && texts(&a.templated_needs, &b.templated_needs)
                && texts(&a.templated_gate, &b.templated_gate)
        })
        && links.into_iter().all(|((a, x), (b, y))| {
            let links = |of: &Option<expand::Links>| {
                let of = of.as_ref();
                of.map(|links| (links.needs.clone(), links.gate.clone()))
            };
            a == b && links(x) == links(y)
        })
}

fn same_values(old: &Pattern, new: &Pattern) -> bool {
    let values = |of: &Pattern| of.settings.iter().count();
    values(old) == values(new)
        && old.estimate_s == new.estimate_s
        && old.expect_class == new.expect_class
        && (old.settings.iter().zip(new.settings.iter()))
            .all(|((a, x), (b, y))| a == b && x.value == y.value)
}

/// A piece of a plan's text: it begins at a header and goes on to the next.
#[derive(Debug, PartialEq)]
struct Piece<'t> {
    /// Whether it is one layer with all that belongs to it.
    is_layer: bool,
    text: &'t str,
}

/// Both texts with only their head and the layers in which they differ; all else is blank, so
/// that every place stays where it is.
fn changed_layers(old: &str, new: &str) -> Option<(String, String)> {
    let (old, new) = (pieces(old)?, pieces(new)?);
    if old.len() != new.len() {
        return None;
    }
    let differ: Vec<bool> = old.iter().zip(&new).map(|(a, b)| a != b).collect();
    let sound = |pieces: &[Piece<'_>]| {
        let mut both = pieces.iter().zip(&differ);
        both.all(|(piece, differs)| !differs || piece.is_layer)
    };
    if !sound(&old) || !sound(&new) {
        return None;
    }
    let some = |pieces: &[Piece<'_>]| {
        let mut out = String::new();
        for (piece, differs) in pieces.iter().zip(&differ) {
            if !piece.is_layer || *differs {
                out.push_str(piece.text);
                continue;
            }
            let blank = |byte| if byte == b'\n' { '\n' } else { ' ' };
            out.extend(piece.text.bytes().map(blank));
        }
        out
    };
    Some((some(&old), some(&new)))
}

/// Takes a text apart at its headers. `None` when a line could be a header and not be one, or the
/// other way round.
fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    if text.contains("\"\"\"") || text.contains("'''") {
        return None;
    }
    let mut starts = vec![(0, false)];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let shown = line.trim_start();
        if shown.starts_with('[') {
            let is_layer = starts.last().is_some_and(|(_, is_layer)| *is_layer);
            let of_layer = shown.starts_with("[layer.") || shown.starts_with("[[layer.");
            let other = ["[plan]", "[settings]", "[[compare]]", "[[followup]]"];
            if shown.starts_with("[[layer]]") {
                starts.push((at, true));
            } else if other.iter().any(|header| shown.starts_with(header)) {
                starts.push((at, false));
            } else if !(is_layer && of_layer) {
                return None;
            }
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).map(|(at, _)| *at);
    let ends: Vec<usize> = ends.chain([text.len()]).collect();
    let pieces = starts.iter().zip(ends);
    Some(
        pieces
            .map(|(&(from, is_layer), to)| Piece {
                is_layer,
                text: &text[from..to],
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[plan]\nrules = [\"r\"]\n[[layer]]\nid = \"A\"\n[layer.matrix]\ni = [1]\n\
        [[layer]] # second\nid = \"Bé\"\n";

    #[test]
    fn only_what_differs_is_left_and_nothing_moves() {
        let edited = TEXT.replace("[1]", "[1, 2]");
        let (old, new) = changed_layers(TEXT, &edited).unwrap();
        assert_eq!(old.len(), TEXT.len());
        assert_eq!(old.lines().count(), TEXT.lines().count());
        assert!(new.contains("[1, 2]") && new.contains("[plan]"));
        assert!(!new.contains("second"));
    }

    #[test]
    fn where_pieces_are_not_certain_there_is_no_answer() {
        let doubts = [
            TEXT.replace("rules = [\"r\"]", "rules = [\"r\", \"s\"]"),
            TEXT.replace("[layer.matrix]", "[ settings ]"),
            TEXT.replace("[layer.matrix]", "[settings]"),
            TEXT.replace("i = [1]", "i = [\n[1]]"),
            TEXT.replace("i = [1]", "i = '''\n[[layer]]'''"),
            TEXT.replace("i = [1]", "i = \"\"\"\n[[layer]]\"\"\""),
            format!("{TEXT}[[layer]]\nid = \"C\"\n"),
            TEXT.replace("[[layer]] # second", "# second"),
            TEXT.replace("[layer.matrix]", "[\"layer\".matrix]"),
        ];
        for doubt in doubts {
            assert!(changed_layers(TEXT, &doubt).is_none(), "{doubt}");
        }
    }
}
