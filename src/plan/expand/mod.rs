//! From a plan file to its patterns. Every layer and every pattern is looked at whatever is wrong
//! with the others, so that one run tells everything; what is told once is not told again by what
//! depends on it. References between patterns are left as they are written: other plans may not
//! have been expanded yet.

mod base;
mod cells;
mod checks;
mod condition;
mod estimate;
mod ground;
mod id;
mod links;
mod memo;
mod missing;
mod overrides;
mod picks;
mod require;
mod shared;
mod unit;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::model::{Layer, Plan};
use super::schema::{LayerDecl, PlanDecl};
use super::{alias, repeat};
use crate::error::{Diagnostic, Site};
use crate::label::Label;
use crate::rule::model::{Rule, RuleId};
use crate::rule::retry::RetryDef;
use crate::source::Text;

use condition::tell_once;

pub(super) use base::{CommandLine, Pool, name_hints};
pub(super) use checks::{count, without_inputs};
pub(super) use links::{Links, UnitLinks};
use unit::{ID_RULE, Unit};

/// What all plans are expanded with.
pub(super) struct Context<'a> {
    /// Every rule that loaded.
    pub(super) rules: &'a BTreeMap<RuleId, Arc<Rule>>,
    /// Rule files that did not load whole, or are not there: what is missing from them has been
    /// told.
    pub(super) broken_files: BTreeSet<String>,
    /// `--set`.
    pub(super) sets: CommandLine,
    /// Settings made so far.
    pub(super) pool: Pool,
    /// What the workspace says of further attempts.
    pub(super) retry: RetryDef,
    names: HashMap<RuleId, Arc<[Arc<str>]>>,
    none: Arc<[Label]>,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        rules: &'a BTreeMap<RuleId, Arc<Rule>>,
        broken_files: BTreeSet<String>,
        sets: CommandLine,
    ) -> Self {
        Self {
            rules,
            broken_files,
            sets,
            pool: Pool::default(),
            retry: RetryDef::default(),
            names: HashMap::new(),
            none: Arc::new([]),
        }
    }

    fn names(&mut self, rule: &Rule) -> Arc<[Arc<str>]> {
        let names = self.names.entry(rule.id.clone());
        let make = || {
            rule.params
                .keys()
                .map(|name| name.as_str().into())
                .collect()
        };
        names.or_insert_with(make).clone()
    }
}

/// A plan with its patterns, before references are followed.
pub(super) struct Expanded {
    /// As written.
    pub(super) decl: PlanDecl,
    /// Patterns without needs and gates, no follow-ups, no comparisons.
    pub(super) plan: Plan,
    /// References by matrix.
    pub(super) units: Vec<UnitLinks>,
    /// For every pattern its matrix, and its rendered references where there are any.
    pub(super) links: Vec<(usize, Option<Links>)>,
    /// Whether patterns are missing because of findings, so that a name that is not found may be
    /// one of them.
    pub(super) incomplete: bool,
}

/// Expands a plan.
pub(super) fn expand(
    package: &str,
    decl: PlanDecl,
    context: &mut Context<'_>,
    diags: &mut Vec<Diagnostic>,
) -> Expanded {
    let mut out = Expanded {
        plan: Plan {
            package: package.to_owned(),
            title: decl
                .title
                .as_ref()
                .map_or_else(|| package.to_owned(), |title| title.text.clone()),
            layers: Vec::new(),
            patterns: Vec::new(),
            followups: Vec::new(),
            compares: Vec::new(),
            requires: decl.requires.clone(),
        },
        units: Vec::new(),
        links: Vec::new(),
        incomplete: false,
        decl,
    };
    // Taken apart for the time of the expansion, since units borrow the declarations.
    let decl = std::mem::take(&mut out.decl);
    let mut in_use: Vec<Arc<Rule>> = Vec::new();
    for layer in &decl.layers {
        let before = diags.len();
        let label = match Label::new(package, &layer.id.text) {
            Ok(label) if layer.id.text != "all" => label,
            _ => {
                let found = Diagnostic::error(
                    "bad-id",
                    format!("`{}` cannot be the id of a layer", layer.id.text),
                );
                diags.push(found.at(layer.id.site.clone(), "").hint(ID_RULE));
                out.incomplete = true;
                continue;
            }
        };
        expand_layer(&label, &decl, layer, context, &mut out, &mut in_use, diags);
        // A value in `[settings]` and a demand in a rule file are not the layer's.
        let of_plan = |site: &Site| {
            let settings = decl.settings.iter();
            site.file != layer.site.file || settings.clone().any(|s| s.site == *site)
        };
        for found in &mut diags[before..] {
            if found.sites.first().is_some_and(|(site, _)| !of_plan(site)) {
                found.label.get_or_insert_with(|| label.to_string());
            }
        }
        let title = layer.common.title.as_ref();
        out.plan.layers.push(Layer {
            alias: None,
            title: title.map_or_else(|| layer.id.text.clone(), |title| title.text.clone()),
            adhoc: layer.common.adhoc.unwrap_or(false),
            site: layer.id.site.clone(),
            label,
        });
    }
    repeat::spread(&mut out, diags);
    alias::assign(&mut out.plan.layers);
    if !out.incomplete {
        checks::unused_settings(&decl.settings, &in_use, diags);
        checks::unused_rules(&decl.rules, &in_use, &context.broken_files, diags);
    }
    out.decl = decl;
    checks::duplicates(&out, diags);
    out
}

fn expand_layer(
    label: &Label,
    plan: &PlanDecl,
    layer: &LayerDecl,
    context: &mut Context<'_>,
    out: &mut Expanded,
    in_use: &mut Vec<Arc<Rule>>,
    diags: &mut Vec<Diagnostic>,
) {
    let (units, whole) = units(label, plan, layer, out.plan.layers.len(), context, diags);
    out.incomplete |= !whole || layer.broken;
    let mut held = vec![false; layer.common.overrides.len()];
    for unit in &units {
        let before = diags.len();
        let mut made = unit.expand(context, &mut held, diags);
        if let (Some(own), Ok(label)) = (unit.own, label.sibling(&unit.id.text)) {
            for found in &mut diags[before..] {
                // The pattern's own file region is its, the rest is the layer's.
                let start = own.site.range.start;
                if (found.sites.first()).is_some_and(|(site, _)| site.range.start >= start) {
                    found.label.get_or_insert_with(|| label.to_string());
                }
            }
        }
        out.incomplete |= made.incomplete;
        out.units.push(made.unit);
        let number = out.units.len() - 1;
        let mut links = made.links.drain(..);
        for pattern in made.patterns {
            out.plan.patterns.push(pattern);
            out.links.push((number, links.next()));
        }
    }
    let mut rules: Vec<&Arc<Rule>> = units.iter().map(|unit| &unit.rule).collect();
    rules.sort_by(|a, b| a.id.cmp(&b.id));
    rules.dedup_by(|a, b| a.id == b.id);
    if whole && !rules.is_empty() {
        checks::layer(layer, &rules, &held, !out.incomplete, diags);
    }
    for rule in rules {
        if !in_use.iter().any(|known| known.id == rule.id) {
            in_use.push(rule.clone());
        }
    }
}

/// The matrices of a layer, and whether all of them could be made.
fn units<'d>(
    label: &Label,
    plan: &'d PlanDecl,
    layer: &'d LayerDecl,
    number: usize,
    context: &Context<'_>,
    diags: &mut Vec<Diagnostic>,
) -> (Vec<Unit<'d>>, bool) {
    let mut units = Vec::new();
    let mut whole = true;
    let common = &layer.common;
    let unit = |own, id, rule| Unit {
        plan,
        label: label.clone(),
        layer: number,
        decl: layer,
        own,
        rule,
        id,
    };
    match &layer.pattern {
        Some(id) => match &common.rule {
            Some(text) => match find_rule(text, plan, context, diags) {
                Some(rule) => units.push(unit(None, id, rule)),
                None => whole = false,
            },
            None => {
                whole = false;
                if !layer.broken {
                    let found = Diagnostic::error(
                        "missing-key",
                        format!("layer `{}` needs `rule`", layer.id.text),
                    );
                    let hint = "name the rule that measures it: `rule = \"file.table\"`";
                    diags.push(found.at(layer.site.clone(), "").hint(hint));
                }
            }
        },
        None if layer.patterns.is_empty() || !common.matrix.is_empty() => {
            whole = false;
            if !layer.broken {
                diags.push(no_ids(layer));
            }
        }
        None => {}
    }
    for own in &layer.patterns {
        let Some(text) = own.common.rule.as_ref().or(common.rule.as_ref()) else {
            whole = false;
            let found = Diagnostic::error(
                "missing-key",
                format!("pattern `{}` needs `rule`", own.id.text),
            );
            let hint =
                "name the rule that measures it, here or in its layer: `rule = \"file.table\"`";
            diags.push(found.at(own.site.clone(), "").hint(hint));
            continue;
        };
        match find_rule(text, plan, context, diags) {
            Some(rule) => units.push(unit(Some(own), &own.id, rule)),
            None => whole = false,
        }
    }
    (units, whole)
}

fn no_ids(layer: &LayerDecl) -> Diagnostic {
    let found =
        |message: String| Diagnostic::error("missing-key", message).at(layer.site.clone(), "");
    if layer.patterns.is_empty() {
        found(format!("layer `{}` has no patterns", layer.id.text)).hint(
            "give it `pattern = \"an-id-{{ factor }}\"`, the id template of its matrix, or [[layer.pattern]] entries",
        )
    } else {
        found(format!(
            "layer `{}` has explicit patterns and a matrix without ids",
            layer.id.text
        ))
        .hint("move the matrix into a [[layer.pattern]] whose `id` is the template")
    }
}

/// The rule of this name, unless there is none or the plan does not list its file.
fn find_rule(
    text: &Text,
    plan: &PlanDecl,
    context: &Context<'_>,
    diags: &mut Vec<Diagnostic>,
) -> Option<Arc<Rule>> {
    let listed =
        |file: &str| plan.rules_unknown || plan.rules.iter().any(|known| known.text == file);
    let file = text.text.rsplit_once('.').map(|(file, _)| file);
    let known = context.rules.get(&RuleId(text.text.clone()));
    if let (Some(rule), Some(file)) = (known, file) {
        if !listed(file) {
            let found = Diagnostic::error(
                "missing-rule",
                format!("rule file `{file}` is not among the `rules` of this plan"),
            );
            let hint = format!("add \"{file}\" to `rules` under `[plan]`");
            tell_once(diags, found.at(text.site.clone(), "").hint(hint));
        }
        return Some(rule.clone());
    }
    // What is missing from a file with errors of its own, or from a file that is not there, has
    // been told.
    if file.is_some_and(|file| context.broken_files.contains(file) && listed(file)) {
        return None;
    }
    let found = Diagnostic::error("missing-rule", format!("there is no rule `{}`", text.text));
    let names = context.rules.keys();
    let names = names.filter(|id| id.0.rsplit_once('.').is_some_and(|(file, _)| listed(file)));
    let found = name_hints(
        found.at(text.site.clone(), ""),
        &text.text,
        names.map(|id| id.0.as_str()),
        "rules that this plan lists",
    );
    tell_once(diags, found);
    None
}
