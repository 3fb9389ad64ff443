//! What can only be seen of a whole layer or plan: settings that nothing uses, overrides that never
//! apply, ids that occur twice, a count that is off. Where something is missing because of other
//! findings, nothing is said that could follow from that.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Expanded;
use super::base::{CommandLine, name_hints};
use super::condition::tell_once;
use super::overrides::never_applies;
use super::shared::unknown_metric;
use crate::error::{Diagnostic, Severity};
use crate::plan::model::{Layer, Pattern, Plan};
use crate::plan::schema::{LayerDecl, SettingDecl};
use crate::rule::model::{Rule, RuleKind};
use crate::source::Text;

/// What a layer says that none of its patterns can use.
pub(super) fn layer(
    layer: &LayerDecl,
    rules: &[&Arc<Rule>],
    held: &[bool],
    complete: bool,
    diags: &mut Vec<Diagnostic>,
) {
    let has = |name: &str| rules.iter().any(|rule| rule.params.contains_key(name));
    let names = || rules.iter().flat_map(|rule| rule.params.keys());
    let ids: Vec<_> = rules.iter().map(|rule| format!("`{}`", rule.id)).collect();
    let of_overrides = layer.common.overrides.iter().flat_map(|o| &o.settings);
    for setting in layer.common.settings.iter().chain(of_overrides) {
        let name = &setting.key.text;
        if !has(name) {
            let message = match ids.as_slice() {
                [id] => format!("`{name}` is not a parameter of rule {id}"),
                ids => format!("`{name}` is not a parameter of {}", ids.join(" or ")),
            };
            let found = Diagnostic::error("unknown-setting", message);
            let what = format!("parameters of {}", ids.join(" and "));
            let at = found.at(setting.key.site.clone(), "");
            diags.push(name_hints(at, name, names().map(String::as_str), &what));
        }
    }
    for (decl, held) in layer.common.overrides.iter().zip(held) {
        let wrong = match crate::rule::Expr::compile(&decl.when) {
            Ok(expr) => expr.check_vars(names().map(String::as_str)),
            Err(found) => vec![found],
        };
        if wrong.is_empty() && !held && complete {
            diags.push(never_applies(&decl.when.site));
        }
        wrong.into_iter().for_each(|found| tell_once(diags, found));
    }
    for expectation in layer.common.metrics() {
        if !(rules.iter()).any(|rule| rule.metrics.contains_key(&expectation.metric)) {
            diags.push(unknown_metric(expectation, rules));
        }
    }
}

/// `[settings]` that no rule in use has.
pub(super) fn unused_settings(
    settings: &[SettingDecl],
    in_use: &[Arc<Rule>],
    diags: &mut Vec<Diagnostic>,
) {
    for setting in settings {
        let name = &setting.key.text;
        let mut having = (in_use.iter())
            .filter(|rule| rule.params.contains_key(name))
            .peekable();
        if having.peek().is_some() {
            if having.all(|rule| rule.unread.contains(name)) {
                let message = format!("no rule in use reads `{name}`, so it has no effect");
                diags.push(
                    Diagnostic::warning("unused-setting", message)
                        .at(setting.key.site.clone(), "")
                        .hint("a change of it would only run patterns again; take it away, or mention it in the rule"),
                );
            }
            continue;
        }
        let found = Diagnostic::error(
            "unused-setting",
            format!("`{name}` is not a parameter of any rule in use, so it would have no effect"),
        )
        .at(setting.key.site.clone(), "");
        let names = in_use.iter().flat_map(|rule| rule.params.keys());
        let found = name_hints(
            found,
            name,
            names.map(String::as_str),
            "parameters of the rules in use",
        );
        diags.push(found.hint("take it away, or use a rule that has it"));
    }
}

/// Rule files that no pattern uses.
pub(super) fn unused_rules(
    listed: &[Text],
    in_use: &[Arc<Rule>],
    broken_files: &BTreeSet<String>,
    diags: &mut Vec<Diagnostic>,
) {
    let used: HashSet<&str> = in_use
        .iter()
        .filter_map(|rule| Some(rule.id.0.rsplit_once('.')?.0))
        .collect();
    for file in listed {
        if used.contains(file.text.as_str()) || broken_files.contains(&file.text) {
            continue;
        }
        diags.push(
            Diagnostic::warning(
                "unused-rules",
                format!("no pattern uses a rule of `{}`", file.text),
            )
            .at(file.site.clone(), ""),
        );
    }
}

/// Analyses that would look at results and are given none.
pub(in crate::plan) fn without_inputs(plan: &Plan, diags: &mut Vec<Diagnostic>) {
    for pattern in &plan.patterns {
        let looks = pattern.rule.kind == RuleKind::Analysis && pattern.rule.mentions_inputs();
        if looks && pattern.needs.is_empty() {
            let message = "this analysis has no results to look at";
            let found = Diagnostic::warning("no-inputs", message)
                .at(pattern.site.clone(), "")
                .label(&pattern.label);
            tell_once(diags, found);
        }
    }
}

/// Ids that occur twice: patterns, layers, aliases.
pub(super) fn duplicates(out: &Expanded, diags: &mut Vec<Diagnostic>) {
    let package = &out.plan.package;
    let mut layers: HashMap<&str, (&Layer, bool)> = HashMap::new();
    for layer in &out.plan.layers {
        if let Some((first, _)) = layers.insert(layer.label.name(), (layer, false)) {
            diags.push(
                Diagnostic::error(
                    "duplicate-id",
                    format!("there are two layers `{}`", layer.label.name()),
                )
                .at(layer.site.clone(), "")
                .at(first.site.clone(), "first defined here")
                .label(&layer.label),
            );
        }
    }
    for layer in &out.plan.layers {
        if let Some(alias) = &layer.alias {
            layers.entry(alias).or_insert((layer, true));
        }
    }
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(out.plan.patterns.len());
    // One finding for every pair of places, however many ids they share.
    let mut told: HashMap<(usize, usize), usize> = HashMap::new();
    for (at, pattern) in out.plan.patterns.iter().enumerate() {
        let name = pattern.label.name();
        if let Some((layer, is_alias)) = layers.get(name) {
            let what = if *is_alias {
                format!(
                    "`{name}` is the id of a pattern and short for layer `{}`",
                    layer.label.name()
                )
            } else {
                format!("`{name}` is the id of a pattern and of a layer")
            };
            diags.push(
                Diagnostic::error("duplicate-id", what)
                    .at(pattern.site.clone(), "the pattern")
                    .at(layer.site.clone(), "the layer")
                    .hint("give one of them another id")
                    .label(format!("//{package}:{name}")),
            );
        }
        let Some(first) = seen.insert(name, at) else {
            continue;
        };
        let (unit, first_unit) = (out.links[at].0, out.links[first].0);
        let known = told.entry((first_unit, unit)).or_insert(diags.len());
        if *known < diags.len() {
            continue;
        }
        let mut found =
            Diagnostic::error("duplicate-id", format!("there are two patterns `{name}`"))
                .at(pattern.site.clone(), "")
                .label(&pattern.label);
        if unit == first_unit {
            found.message = format!("several cells of one matrix have the id `{name}`");
            let left_out = &out.units[unit].unmentioned;
            if !left_out.is_empty() {
                let names: Vec<_> = left_out.iter().map(|f| format!("{{{{ {f} }}}}")).collect();
                found = found.hint(format!("add {} to the id template", names.join(" and ")));
            }
        } else {
            let first = out.plan.patterns[first].site.clone();
            found = found
                .at(first, "first defined here")
                .hint("give one of them another id");
        }
        diags.push(found);
    }
}

/// `expect_patterns` against what there is.
pub(in crate::plan) fn count(expanded: &Expanded, sets: &CommandLine, diags: &mut Vec<Diagnostic>) {
    let Some(expected) = &expanded.decl.expect_patterns else {
        return;
    };
    // Replicates are no patterns of their own.
    let first = |pattern: &&Pattern| pattern.replicate == 1;
    let found = expanded.plan.patterns.iter().filter(first).count();
    let errors = diags.iter().any(|d| d.severity == Severity::Error);
    if expanded.incomplete && errors || usize::try_from(expected.value) == Ok(found) {
        return;
    }
    // `--set` on a factor leaves one of its levels, which is not what the count is about.
    if sets.collapses(&expanded.decl) {
        return;
    }
    let mut by_layer = vec![0usize; expanded.plan.layers.len()];
    for pattern in expanded.plan.patterns.iter().filter(first) {
        by_layer[pattern.layer] += 1;
    }
    let parts: Vec<_> = (expanded.plan.layers.iter().zip(&by_layer))
        .map(|(layer, count)| format!("{} {count}", layer.label.name()))
        .collect();
    diags.push(
        Diagnostic::error(
            "pattern-count",
            format!(
                "the plan has {found} patterns where {} are expected",
                expected.value
            ),
        )
        .at(expected.site.clone(), "")
        .hint(format!("by layer: {}", parts.join(", ")))
        .hint(format!(
            "write `expect_patterns = {found}` if that is what is meant"
        )),
    );
}
