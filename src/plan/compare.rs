//! `[[compare]]` held against what it compares. A comparison that passes pairs at least two
//! patterns, and no two of a group differ in anything but what it names: every shared parameter
//! that can change a result is equal.

use std::collections::{HashMap, HashSet};

use super::expand::{Expanded, name_hints};
use super::model::{Compare, CompareGroup, Pattern, Plan, Setting};
use super::resolve::{Found, Index};
use super::schema::CompareDecl;
use crate::error::{Diagnostic, Site};
use crate::label::{Label, is_valid_name};
use crate::rule::model::Affects;
use crate::rule::params::value_text;
use crate::source::Text;

/// Cells or labels that one finding spells out before it only counts.
const NAMED: usize = 6;

/// Checks the comparisons of a plan.
pub(super) fn compares(
    index: &Index<'_>,
    plan: &Expanded,
    diags: &mut Vec<Diagnostic>,
) -> Vec<Compare> {
    let mut seen: HashMap<&str, &Site> = HashMap::new();
    let mut compares = Vec::new();
    for decl in &plan.decl.compares {
        let name = decl.id.text.as_str();
        if !is_valid_name(name) || name == "all" {
            diags.push(
                Diagnostic::error(
                    "bad-id",
                    format!("`{name}` cannot be the id of a comparison"),
                )
                .at(decl.id.site.clone(), "")
                .hint("ids are letters, digits and `._+=,-`, and start with a letter or digit"),
            );
        }
        let taken = index.taken(&plan.plan.package, name);
        if let Some(first) = taken.or(seen.insert(name, &decl.id.site)) {
            diags.push(
                Diagnostic::error("duplicate-id", format!("`{name}` is defined twice"))
                    .at(decl.id.site.clone(), "")
                    .at(first.clone(), "first defined here"),
            );
        }
        compares.extend(compare(index, &plan.plan.package, decl, diags));
    }
    compares
}

struct Side<'a> {
    label: Label,
    patterns: Vec<&'a Pattern>,
}

fn compare(
    index: &Index<'_>,
    package: &str,
    decl: &CompareDecl,
    diags: &mut Vec<Diagnostic>,
) -> Option<Compare> {
    let before = diags.len();
    let mut sides = Vec::new();
    let mut between = Vec::new();
    for text in &decl.between {
        match index.find(package, &text.text, "unresolved-layer", true) {
            Ok(Found::Layer(plan, layer)) => {
                let label = layer_label(plan, layer)?;
                if between.contains(&label) {
                    diags.push(
                        Diagnostic::error(
                            "duplicate-id",
                            format!("`{}` is compared with itself", text.text),
                        )
                        .at(text.site.clone(), "")
                        .hint("name another layer, or take it away"),
                    );
                    continue;
                }
                sides.push(Side {
                    label: label.clone(),
                    // Of several replicates the first is compared.
                    patterns: (index.members(plan, layer, false))
                        .filter(|pattern| pattern.replicate == 1)
                        .collect(),
                });
                between.push(label);
            }
            Ok(Found::Pattern(_)) => diags.push(
                Diagnostic::error(
                    "unresolved-layer",
                    format!("`{}` is a pattern; layers are compared", text.text),
                )
                .at(text.site.clone(), "")
                .hint("name the layer it is in; `by` says which patterns make a pair"),
            ),
            Ok(Found::Unknowable) => return None,
            Err(found) => diags.push(found.at(text.site.clone(), "")),
        }
    }
    if diags.len() > before {
        return None;
    }
    if sides.len() < 2 || decl.by.is_empty() {
        let (key, example) = if sides.len() < 2 {
            (
                "between` at least two layers",
                "between = [\"L1-Unified\", \"L2-EFA\"]",
            )
        } else {
            ("by` at least one setting", "by = [\"prompt_tokens\"]")
        };
        diags.push(
            Diagnostic::error(
                "missing-key",
                format!("comparison `{}` needs in `{key}", decl.id.text),
            )
            .at(decl.site.clone(), "")
            .hint(format!("as in `{example}`")),
        );
        return None;
    }
    check_names(decl, &sides, diags);
    if diags.len() > before {
        return None;
    }
    let whole = sides
        .iter()
        .all(|side| !index.incomplete(side.label.package()));
    let before = diags.len();
    let groups = groups(decl, &sides, diags);
    if !whole {
        // A partner may be missing only because of what has been told already.
        let followed: Vec<_> = diags
            .drain(before..)
            .filter(|found| found.code != "unpaired")
            .collect();
        diags.extend(followed);
    }
    Some(Compare {
        id: decl.id.text.clone(),
        title: decl
            .title
            .as_ref()
            .map_or_else(|| decl.id.text.clone(), |title| title.text.clone()),
        between,
        by: decl.by.iter().map(|text| text.text.clone()).collect(),
        only_on: decl.only_on.iter().map(|text| text.text.clone()).collect(),
        groups,
        site: decl.site.clone(),
    })
}

fn layer_label(plan: &Plan, layer: usize) -> Option<Label> {
    plan.layers.get(layer).map(|layer| layer.label.clone())
}

/// `by` must be a parameter of every pattern, `only_on` of some.
fn check_names(decl: &CompareDecl, sides: &[Side<'_>], diags: &mut Vec<Diagnostic>) {
    let mut rules: Vec<_> = (sides.iter().flat_map(|side| &side.patterns))
        .map(|pattern| &pattern.rule)
        .collect();
    rules.sort_by(|a, b| a.id.cmp(&b.id));
    rules.dedup_by(|a, b| a.id == b.id);
    let all = || (rules.iter().flat_map(|rule| rule.params.keys())).map(String::as_str);
    let refuse = |text: &Text, message: String| {
        Diagnostic::error("unknown-setting", message).at(text.site.clone(), "")
    };
    for text in &decl.by {
        if let Some(rule) = rules
            .iter()
            .find(|rule| !rule.params.contains_key(&text.text))
        {
            let found = refuse(
                text,
                format!(
                    "`{}` is not a parameter of `{}`, so it cannot pair",
                    text.text, rule.id
                ),
            );
            let common = all().filter(|name| rules.iter().all(|r| r.params.contains_key(*name)));
            diags.push(name_hints(
                found,
                &text.text,
                common,
                "parameters of all of them",
            ));
        }
    }
    for text in &decl.only_on {
        if !rules.is_empty()
            && !rules
                .iter()
                .any(|rule| rule.params.contains_key(&text.text))
        {
            let found = refuse(
                text,
                format!(
                    "`{}` is not a parameter of any of the compared rules",
                    text.text
                ),
            );
            diags.push(name_hints(found, &text.text, all(), "parameters"));
        }
    }
}

/// Patterns by their values of `by`, one list for every side.
struct Cells<'a> {
    order: Vec<Vec<String>>,
    members: HashMap<Vec<String>, Vec<Vec<&'a Pattern>>>,
}

fn cells<'a>(decl: &CompareDecl, sides: &[Side<'a>]) -> Cells<'a> {
    let mut cells = Cells {
        order: Vec::new(),
        members: HashMap::new(),
    };
    for (at, side) in sides.iter().enumerate() {
        for pattern in &side.patterns {
            let text = |name: &Text| {
                let value = pattern.settings.value(&name.text);
                let ty = pattern.rule.params.get(&name.text).map(|param| &param.ty);
                ty.zip(value)
                    .map_or_else(String::new, |(ty, v)| value_text(ty, v))
            };
            let key: Vec<_> = decl.by.iter().map(text).collect();
            let members = cells.members.entry(key.clone()).or_insert_with(|| {
                cells.order.push(key);
                vec![Vec::new(); sides.len()]
            });
            members[at].push(pattern);
        }
    }
    cells
}

fn groups(
    decl: &CompareDecl,
    sides: &[Side<'_>],
    diags: &mut Vec<Diagnostic>,
) -> Vec<CompareGroup> {
    let mut cells = cells(decl, sides);
    let mut groups = Vec::new();
    let mut unpaired = Vec::new();
    let mut unfair = Unfair::new(decl);
    for key in &cells.order {
        let Some(mut members) = cells.members.remove(key) else {
            continue;
        };
        let cell: Vec<_> = (decl.by.iter().zip(key))
            .map(|(name, value)| format!("{} = {value}", name.text))
            .collect();
        let cell = cell.join(", ");
        leave_out_variants(&mut members, &mut unfair, &mut unpaired);
        let has: Vec<_> = members.iter().map(|side| !side.is_empty()).collect();
        if has.iter().filter(|has| **has).count() >= 2 {
            let first = members.iter().flatten().next();
            groups.push(CompareGroup {
                key: (decl.by.iter())
                    .filter_map(|name| first?.settings.value(&name.text).cloned())
                    .collect(),
                members: members.iter().flatten().map(|p| p.label.clone()).collect(),
            });
        }
        let side_names = |wanted: bool| {
            let sides = sides.iter().zip(&has).filter(|(_, has)| **has == wanted);
            sides.map(|(side, _)| side.label.name()).collect::<Vec<_>>()
        };
        if has.contains(&false) {
            unpaired.push(format!(
                "{cell}: in {}, not in {}",
                side_names(true).join(", "),
                side_names(false).join(", ")
            ));
        }
    }
    diags.extend(unfair.findings());
    if groups.is_empty() {
        diags.push(
            Diagnostic::error(
                "unpaired",
                format!(
                    "`{}` compares nothing: no two patterns make a pair",
                    decl.id.text
                ),
            )
            .at(decl.site.clone(), "")
            .hint(format!(
                "a pair agrees in {}",
                decl.by
                    .iter()
                    .map(|text| text.text.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        );
    } else if !unpaired.is_empty() {
        let count = unpaired.len();
        let mut found = Diagnostic::warning(
            "unpaired",
            format!(
                "`{}` has cells without a partner: {count} of {}",
                decl.id.text,
                cells.order.len()
            ),
        )
        .at(decl.site.clone(), "");
        for cell in unpaired.into_iter().take(NAMED) {
            found = found.hint(cell);
        }
        if count > NAMED {
            found = found.hint(format!("and {} more", count - NAMED));
        }
        diags.push(found);
    }
    groups
}

/// Where a layer has several patterns for one cell (a variant beside the plain one), those that
/// have a fair partner on every other side are compared and the others are told to have none. A
/// layer none of whose patterns has one is unfair.
fn leave_out_variants(
    members: &mut [Vec<&Pattern>],
    unfair: &mut Unfair<'_>,
    unpaired: &mut Vec<String>,
) {
    let fair = |pattern: &Pattern, other: &[&Pattern], unfair: &Unfair<'_>| {
        other.is_empty()
            || other
                .iter()
                .any(|b| unfair.differences(pattern, b).next().is_none())
    };
    let whole = members.to_vec();
    for (at, side) in members.iter_mut().enumerate() {
        let others = || whole.iter().enumerate().filter(|(other, _)| *other != at);
        let kept: Vec<&Pattern> = (side.iter().copied())
            .filter(|pattern| others().all(|(_, other)| fair(pattern, other, unfair)))
            .collect();
        if kept.is_empty() {
            // Told once, from the side that comes first.
            for pattern in side.iter() {
                for (_, other) in others().filter(|(other, _)| *other > at) {
                    if !fair(pattern, other, unfair)
                        && let Some(b) = other.first()
                    {
                        unfair.tell(pattern, b);
                    }
                }
            }
        } else if kept.len() < side.len() {
            let left: Vec<_> = (side.iter())
                .filter(|pattern| !kept.iter().any(|k| k.label == pattern.label))
                .map(|pattern| format!("{}: differs from every partner", pattern.label.name()))
                .collect();
            unpaired.extend(left);
            *side = kept;
        }
    }
}

/// Differences that a comparison does not name.
struct Unfair<'a> {
    decl: &'a CompareDecl,
    named: HashSet<&'a str>,
    /// By parameter: the finding about the first pair, and all pairs.
    found: HashMap<String, (Diagnostic, Vec<String>)>,
    order: Vec<String>,
}

impl<'a> Unfair<'a> {
    fn new(decl: &'a CompareDecl) -> Self {
        let named = decl.by.iter().chain(&decl.only_on);
        Self {
            decl,
            named: named.map(|text| text.text.as_str()).collect(),
            found: HashMap::new(),
            order: Vec::new(),
        }
    }

    /// Shared parameters of a pair that differ and may not.
    fn differences<'p>(
        &self,
        a: &'p Pattern,
        b: &'p Pattern,
    ) -> impl Iterator<Item = (&'p str, &'p Setting, &'p Setting)> {
        a.settings.iter().filter_map(move |(name, left)| {
            let right = b.settings.get(name)?;
            if std::ptr::eq(left, right) || left.value == right.value || self.named.contains(name) {
                return None;
            }
            let allowed = |pattern: &Pattern| {
                let by_rule = pattern.rule.compare_only_on.iter().any(|n| n == name);
                let param = pattern.rule.params.get(name);
                by_rule || param.is_none_or(|param| param.affects != Affects::Result)
            };
            (!allowed(a) && !allowed(b)).then_some((name, left, right))
        })
    }

    fn tell(&mut self, a: &Pattern, b: &Pattern) {
        let differences: Vec<_> = self.differences(a, b).collect();
        for (name, left, right) in differences {
            let pair = format!("{} and {}", a.label.name(), b.label.name());
            if let Some((_, pairs)) = self.found.get_mut(name) {
                pairs.push(pair);
                continue;
            }
            let text = |pattern: &Pattern, setting: &Setting| {
                let param = pattern.rule.params.get(name);
                param.map_or_else(String::new, |param| value_text(&param.ty, &setting.value))
            };
            let (left_text, right_text) = (text(a, left), text(b, right));
            let mut found = Diagnostic::error(
                "unfair-comparison",
                format!(
                    "`{}` compares `{}` with `{}`, but `{name}` differs: {left_text} and {right_text}",
                    self.decl.id.text,
                    a.label.name(),
                    b.label.name()
                ),
            );
            let mut sides = [(a, left, &left_text), (b, right, &right_text)];
            // The more specific one is the one to change.
            sides.sort_by_key(|(_, setting, _)| std::cmp::Reverse(setting.source));
            for (pattern, setting, text) in sides {
                if let Some(site) = &setting.site {
                    found = found.at(
                        site.clone(),
                        format!("{text} for `{}`", pattern.label.name()),
                    );
                }
            }
            found = found
                .at(self.decl.site.clone(), "compared here")
                .label(&a.label)
                .hint(format!(
                    "make `{name}` equal, or add it to `only_on` or `by` of `{}` if it is meant to differ",
                    self.decl.id.text
                ));
            self.order.push(name.to_owned());
            self.found.insert(name.to_owned(), (found, vec![pair]));
        }
    }

    fn findings(mut self) -> Vec<Diagnostic> {
        let finding = |key: String| {
            let (found, pairs) = self.found.remove(&key)?;
            if pairs.len() == 1 {
                return Some(found);
            }
            let named = pairs
                .iter()
                .take(NAMED)
                .cloned()
                .collect::<Vec<_>>()
                .join("; ");
            let more = match pairs.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            Some(found.hint(format!(
                "{} pairs, this is the first: {named}{more}",
                pairs.len()
            )))
        };
        std::mem::take(&mut self.order)
            .into_iter()
            .filter_map(finding)
            .collect()
    }
}
