//! `[[followup]]`: conditions that bring ad-hoc patterns into a run. Its patterns exist and its
//! condition mentions nothing but what a result has: settings, metrics, and `expected.METRIC` and
//! `off.METRIC` of metrics that some pattern of the plan has an expectation of; over the pairs of
//! a comparison, what pairs them and the settings and metrics of each side by its layer's name.

use std::collections::HashSet;

use super::expand::{Expanded, name_hints};
use super::model::{Compare, Condition, Followup, Over, Pattern, Plan};
use super::resolve::{Found, Index};
use super::schema::FollowupDecl;
use crate::error::{Diagnostic, Site};
use crate::label::{Label, is_valid_name};
use crate::rule::{Expr, Names};

/// Name of whether a result comes from simulated tools.
pub const SIMULATED: &str = "simulated";
/// Name of the group of expected values.
pub const EXPECTED: &str = "expected";
/// Name of the group of relative distances from what is expected.
pub const OFF: &str = "off";

/// Checks the follow-ups of a plan.
pub(super) fn followups(
    index: &Index<'_>,
    plan: &Expanded,
    compares: &[Compare],
    diags: &mut Vec<Diagnostic>,
) -> Vec<Followup> {
    let mut followups = Vec::new();
    let mut ids: Vec<(String, &Site)> = Vec::new();
    for (at, decl) in plan.decl.followups.iter().enumerate() {
        let id = id(decl, at, &ids, diags);
        ids.push((id.clone(), &decl.site));
        let over = over(index, plan, compares, decl, diags);
        let when = match Expr::compile(&decl.when) {
            Ok(expr) => {
                // What is missing from a plan with findings may have been named here.
                if let (false, Some((_, names))) = (plan.incomplete, &over) {
                    diags.extend(expr.check_names(names));
                }
                Some(expr)
            }
            Err(found) => {
                diags.push(found);
                None
            }
        };
        let patterns = patterns(index, plan, decl, diags);
        if let (Some(when), Some((over, _))) = (when, over) {
            followups.push(Followup {
                id,
                patterns,
                when,
                over,
                budget_s: decl.budget_s,
                site: decl.site.clone(),
            });
        }
    }
    followups
}

/// Its own name, or its place.
fn id(
    decl: &FollowupDecl,
    at: usize,
    taken: &[(String, &Site)],
    diags: &mut Vec<Diagnostic>,
) -> String {
    let Some(own) = &decl.id else {
        return format!("followup-{}", at + 1);
    };
    if !is_valid_name(&own.text) {
        diags.push(
            Diagnostic::error(
                "bad-id",
                format!("`{}` cannot be the id of a follow-up", own.text),
            )
            .at(own.site.clone(), "")
            .hint("ids are letters, digits and `._+=,-`, and start with a letter or digit"),
        );
    }
    if let Some((_, first)) = taken.iter().find(|(id, _)| *id == own.text) {
        diags.push(
            Diagnostic::error("duplicate-id", format!("`{}` is defined twice", own.text))
                .at(own.site.clone(), "")
                .at((*first).clone(), "first defined here"),
        );
    }
    own.text.clone()
}

/// What its condition is held against, and the names that it may use.
fn over(
    index: &Index<'_>,
    plan: &Expanded,
    compares: &[Compare],
    decl: &FollowupDecl,
    diags: &mut Vec<Diagnostic>,
) -> Option<(Over, Names)> {
    let Some(across) = &decl.across else {
        return Some((Over::Each, result_names(&plan.plan)));
    };
    let Some(compare) = compares.iter().find(|compare| compare.id == across.text) else {
        let told = (plan.decl.compares.iter()).any(|other| other.id.text == across.text);
        if !told {
            let found = Diagnostic::error(
                "unresolved-compare",
                format!("there is no comparison `{}` in this plan", across.text),
            )
            .at(across.site.clone(), "");
            let names = plan
                .decl
                .compares
                .iter()
                .map(|other| other.id.text.as_str());
            diags.push(name_hints(found, &across.text, names, "comparisons"));
        }
        return None;
    };
    let mut names = Names::new();
    names.value(SIMULATED);
    for name in &compare.by {
        names.value(name);
    }
    let mut sides: Vec<(String, Label)> = Vec::new();
    for layer in &compare.between {
        let package = &plan.plan.package;
        let found = index.find(package, &layer.to_string(), "unresolved-layer", false);
        let Ok(Found::Layer(of, at)) = found else {
            return None;
        };
        let name = side_name(package, of, at, &sides);
        names.group(&name, own_names(index.members(of, at, false)));
        sides.push((name, layer.clone()));
    }
    let compare = compare.id.clone();
    Some((Over::Pairs { compare, sides }, names))
}

/// What a condition calls a layer: `L2`, else its id with `_` for what is in no name; before it the
/// plan when that is another one (`phase1_L2`), after it a number when it is taken.
fn side_name(package: &str, plan: &Plan, layer: usize, taken: &[(String, Label)]) -> String {
    let Some(layer) = plan.layers.get(layer) else {
        return String::new();
    };
    let whole = layer.alias.as_deref().unwrap_or(layer.label.name());
    let whole = match plan.package == package {
        true => whole.to_owned(),
        false => format!("{}_{whole}", plan.package),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut name: String = whole.chars().map(plain).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    if taken.iter().any(|(other, _)| *other == name) {
        name.push_str(&format!("_{}", taken.len() + 1));
    }
    name
}

fn patterns(
    index: &Index<'_>,
    plan: &Expanded,
    decl: &FollowupDecl,
    diags: &mut Vec<Diagnostic>,
) -> Vec<Label> {
    let mut patterns: Vec<Label> = Vec::new();
    for text in &decl.patterns {
        let found = match index.find(&plan.plan.package, &text.text, "unresolved-pattern", true) {
            Ok(Found::Layer(plan, layer)) => index.members(plan, layer, true).collect(),
            Ok(Found::Pattern(pattern)) => index.replicates(pattern, &text.text).collect(),
            Ok(Found::Unknowable) => Vec::new(),
            Err(found) => {
                diags.push(found.at(text.site.clone(), ""));
                continue;
            }
        };
        let runs_anyway =
            |pattern: &&&Pattern| !pattern.adhoc && !index.incomplete(pattern.label.package());
        if let Some(pattern) = found.iter().find(runs_anyway) {
            diags.push(
                Diagnostic::warning(
                    "not-adhoc",
                    format!(
                        "`{}` is not ad-hoc, so it runs whether this holds or not",
                        pattern.label
                    ),
                )
                .at(text.site.clone(), "")
                .at(pattern.site.clone(), "defined here")
                .hint("write `adhoc = true` in its layer or in the pattern"),
            );
        }
        for pattern in found {
            if !patterns.contains(&pattern.label) {
                patterns.push(pattern.label.clone());
            }
        }
    }
    if decl.patterns.is_empty() {
        diags.push(
            Diagnostic::error("empty-list", "a follow-up needs at least one of `patterns`")
                .at(decl.site.clone(), ""),
        );
    }
    patterns
}

/// What a finished pattern of a plan can be asked for.
fn result_names(plan: &Plan) -> Names {
    let mut names = own_names(plan.patterns.iter());
    let (mut expected, mut off) = (Names::new(), Names::new());
    for expectation in plan.patterns.iter().flat_map(|p| p.expect.iter()) {
        expected.value(&expectation.metric);
        if !matches!(expectation.condition, Condition::OneOf(_)) {
            off.value(&expectation.metric);
        }
    }
    names.value(SIMULATED);
    names.group(EXPECTED, expected);
    names.group(OFF, off);
    names
}

/// Settings and metrics of patterns.
fn own_names<'p>(patterns: impl Iterator<Item = &'p Pattern>) -> Names {
    let mut names = Names::new();
    let mut seen = HashSet::new();
    for pattern in patterns {
        if seen.insert(&pattern.rule.id) {
            let rule = &pattern.rule;
            for name in rule.params.keys().chain(rule.metrics.keys()) {
                names.value(name);
            }
        }
    }
    names
}
