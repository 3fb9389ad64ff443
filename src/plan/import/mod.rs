//! Plans of the predecessor, one JSON file each, read for what they really did. The plan that
//! comes out says what ran, in settings that every rule here reads; everything that the old system
//! read past, could never have run, or says of itself without it being so is reported. Nothing is
//! mended silently and nothing is left out silently.

mod claims;
mod draft;
mod emit;
mod fates;
pub mod json;
mod pairs;
pub mod report;
mod serving;
mod tools;

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::Value as Setting;
use serde_json::{Map, Value};

use crate::error::{Diagnostic, Error, Kind, Result, Site, SourceFile};
use crate::label::is_valid_name;
use crate::rule::model::{Rule, RuleId};

use draft::{Draft, DraftLayer};
pub use report::{DeadSetting, Infeasible, LayerCount, Obstacle, Report};
use serving::Serving;
use tools::Kind as PatternKind;

/// A plan in the new format, with what is to be known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The text of the plan.
    pub plan: String,
    /// What was found.
    pub report: Report,
}

/// Reads an old plan. `name` is how messages call the file; `rules` are those that the new plan
/// will be measured by.
///
/// # Errors
/// The text is not JSON, or not a plan: a plan has `layers`, a list of objects with `patterns`.
pub fn import(name: &str, text: &str, rules: &BTreeMap<RuleId, Arc<Rule>>) -> Result<Imported> {
    let (document, oddities) = json::read(text).map_err(|wrong| {
        let file = Arc::new(SourceFile::new(name, text));
        // A text that ends too early is wrong at its last character, not on the line after it.
        let at = wrong.offset.min(text.trim_end().len());
        let site = Site {
            file,
            range: at..at,
        };
        let found = Diagnostic::error("not-json", format!("expected {} here", wrong.expected));
        Error::from_diagnostics(vec![found.at(site, "")])
    })?;
    let Some(plan) = document
        .as_object()
        .filter(|plan| plan.contains_key("layers"))
    else {
        return Err(Error::new(
            Kind::Plan,
            "not-a-plan",
            format!("`{name}` is JSON but not a plan: it has no `layers`"),
        )
        .hint("plans of the predecessor lie in its folder `experiment-plans`"));
    };
    if !plan.get("layers").is_some_and(Value::is_array) {
        return Err(Error::new(
            Kind::Plan,
            "not-a-plan",
            format!("`{name}` is JSON but not a plan: its `layers` are no list"),
        )
        .hint("`layers` is a list of objects, each with `id` and `patterns`"));
    }
    let mut report = Report::default();
    for odd in oddities {
        report.warn(format!("{name}:{}: {}", odd.line, odd.what));
    }
    fates::report(plan, &mut report);
    let all = objects(plan.get("layers")).map(|layer| objects(layer.get("patterns")).count());
    claims::report(plan, all.sum(), &mut report);
    let layers = layers(plan, rules, &mut report);
    pairs::duplicates(&layers, &mut report);
    let compares = pairs::compares(plan, &layers, &mut report);
    report.patterns = layers.iter().map(|layer| layer.patterns.len()).sum();
    report.by_layer = (layers.iter())
        .map(|layer| LayerCount {
            layer: layer.id.clone(),
            patterns: layer.patterns.len(),
        })
        .collect();
    if report.patterns == 0 {
        let error = Error::new(
            Kind::Plan,
            "not-a-plan",
            format!("nothing of `{name}` could be imported"),
        );
        let error = report.warnings.into_iter().fold(error, Error::cause);
        return Err(error.hint("`layers` is a list of objects, each with `id` and `patterns`"));
    }
    let title = self::text(plan, "name").unwrap_or(name);
    let comments = [
        format!("Imported from {name}. Settings are those that the old system ran with,"),
        "which are not always those that its file names; the import's report lists them."
            .to_owned(),
    ];
    let plan = emit::plan(title, &comments, &layers, &compares);
    Ok(Imported { plan, report })
}

fn layers(
    plan: &Map<String, Value>,
    rules: &BTreeMap<RuleId, Arc<Rule>>,
    report: &mut Report,
) -> Vec<DraftLayer> {
    let nothing = Map::new();
    let part = |key: &str| plan.get(key).and_then(Value::as_object).unwrap_or(&nothing);
    let long = part("prompt_lengths")
        .get("long_context")
        .and_then(Value::as_object);
    let serving = Serving {
        infrastructure: part("infrastructure"),
        common: part("common_settings"),
        rope_scaling: long.and_then(|long| long.get("rope_scaling")?.as_object()),
    };
    let mut seen = std::collections::HashSet::new();
    let mut layers = Vec::new();
    for old in objects(plan.get("layers")) {
        let Some(id) = text(old, "id").filter(|id| is_valid_name(id)) else {
            report.warn("a layer without a usable id was left out");
            continue;
        };
        let count = objects(old.get("patterns")).count();
        let minutes = number(old, "estimated_time_minutes").filter(|m| *m > 0.0);
        let mut layer = DraftLayer {
            id: id.to_owned(),
            title: text(old, "name").unwrap_or(id).to_owned(),
            adhoc: old.get("adhoc") == Some(&Value::Bool(true)),
            tags: text(old, "priority")
                .filter(|tag| is_valid_name(tag))
                .map(str::to_owned)
                .into_iter()
                .collect(),
            estimate_s: minutes.map(|minutes| (minutes * 60.0 / count.max(1) as f64).round()),
            patterns: Vec::new(),
        };
        for pattern in objects(old.get("patterns")) {
            let Some(id) = text(pattern, "id") else {
                report.warn(format!(
                    "{}: an entry without an id is a comment and was left out",
                    layer.id
                ));
                continue;
            };
            if !is_valid_name(id) || !seen.insert(id.to_owned()) {
                report.warn(format!(
                    "`{id}` was left out: the id is not usable, or taken"
                ));
                continue;
            }
            layer
                .patterns
                .extend(draft(&serving, old, pattern, rules, report));
        }
        if layer.patterns.is_empty() {
            report.warn(format!(
                "layer `{id}` was left out: nothing of it could be imported"
            ));
        } else {
            layers.push(layer);
        }
    }
    layers
}

/// The pattern, or several for a list of message sizes.
fn draft(
    serving: &Serving<'_>,
    layer: &Map<String, Value>,
    pattern: &Map<String, Value>,
    rules: &BTreeMap<RuleId, Arc<Rule>>,
    report: &mut Report,
) -> Vec<Draft> {
    let id = text(pattern, "id").unwrap_or_default();
    let layer_id = text(layer, "id").unwrap_or_default();
    let kind = tools::kind(layer_id, layer, pattern);
    let tool = text(pattern, "tool")
        .or_else(|| text(layer, "tool"))
        .unwrap_or_default();
    if let Some(reason) = tools::never_ran(kind, tool) {
        report.infeasible(id, Obstacle::BrokenCommand, reason);
    }
    let rule = match tools::rule(rules, kind, layer, pattern) {
        Ok(rule) => rule,
        Err(why) => {
            report.warn(format!("`{id}` was left out: {why}"));
            return Vec::new();
        }
    };
    let mut draft = Draft::new(id, rule);
    match kind {
        PatternKind::Serving => serving.fill(&mut draft, layer, pattern, report),
        PatternKind::Analysis => draft.needs = needs(layer, pattern),
        PatternKind::Baseline | PatternKind::LowLevel => {
            tools::fill(&mut draft, pattern, report);
            if let Some(tp_size) = int(serving.infrastructure, "tp_size") {
                draft.set("tp_size", tp_size);
            }
        }
    }
    tools::expectations(
        &mut draft,
        &format!("layers[{layer_id}].patterns[{id}].expected"),
        pattern,
        report,
    );
    let sizes: Vec<i64> = (pattern.get("message_sizes").and_then(Value::as_array))
        .into_iter()
        .flatten()
        .filter_map(whole)
        .collect();
    if !sizes.is_empty() && draft.rule.params.contains_key("message_size") {
        let one = |size: i64| {
            let mut draft = draft.clone();
            draft.id = format!("{id}-{size}");
            draft.set("message_size", size);
            draft
        };
        return sizes.into_iter().map(one).collect();
    }
    let needs_size = draft
        .rule
        .params
        .get("message_size")
        .is_some_and(|p| p.default.is_none());
    if needs_size && draft.int("message_size").is_none() {
        // The baseline went over four sizes under one expectation, that of the smallest.
        draft.set("message_size", 64);
        report.warn(format!(
            "`{id}` ran 64, 1024, 65536 and 1048576 bytes in one go; the smallest, which its expectation is about, is written"
        ));
    }
    vec![draft]
}

/// What an analysis reads: the layers that its prose names, else those that its layer depends on.
fn needs(layer: &Map<String, Value>, pattern: &Map<String, Value>) -> Vec<String> {
    let strings = |value: Option<&Value>| -> Vec<String> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items
            .filter_map(|item| Some(item.as_str()?.to_owned()))
            .collect()
    };
    let depends = strings(layer.get("depends_on"));
    let prose = strings(pattern.get("inputs"));
    let named: Vec<String> = depends
        .iter()
        .filter(|layer| prose.iter().any(|text| text.starts_with(layer.as_str())))
        .cloned()
        .collect();
    if named.is_empty() { depends } else { named }
}

fn objects(value: Option<&Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let items = value.and_then(Value::as_array);
    items.into_iter().flatten().filter_map(Value::as_object)
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// A number, or a text that is one.
fn number(object: &Map<String, Value>, key: &str) -> Option<f64> {
    match object.get(key)? {
        Value::String(text) => text.trim().parse().ok().filter(|x: &f64| x.is_finite()),
        other => other.as_f64(),
    }
}

/// A whole number, or a text that is one.
fn int(object: &Map<String, Value>, key: &str) -> Option<i64> {
    whole(object.get(key)?)
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_i64(),
    }
}

/// A value as a setting; null has none.
fn convert(value: &Value) -> Option<Setting> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => Setting::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Setting::Int(whole),
            None => Setting::float(number.as_f64()?).ok()?,
        },
        Value::String(text) => Setting::Str(text.clone()),
        Value::Array(items) => Setting::List(items.iter().map(convert).collect::<Option<_>>()?),
        Value::Object(items) => {
            let items = items.iter().map(|(k, v)| Some((k.clone(), convert(v)?)));
            Setting::Map(items.collect::<Option<_>>()?)
        }
    })
}
