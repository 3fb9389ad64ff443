//! The new plan as text. What all patterns agree in is written once, at the highest place that
//! changes nobody else; patterns that are cells of a grid become a matrix.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use doe_cache::Value;

use super::draft::{Draft, DraftLayer};
use super::pairs::{BY, DraftCompare};
use crate::source::format_duration;

/// Settings that follow from the prompt length, so that a matrix has them by override.
const BY_LENGTH: [&str; 2] = ["max_model_len", "rope_scaling"];

/// A value as TOML writes it inline.
pub(super) fn value(value: &Value) -> String {
    match value {
        Value::Null => "\"\"".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        Value::Str(text) => string(text),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(self::value).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(items) => table(items.iter().map(|(key, value)| (key.as_str(), value))),
    }
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn key(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !text.is_empty() && text.chars().all(bare) {
        text.to_owned()
    } else {
        string(text)
    }
}

fn table<'a>(items: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let items: Vec<_> = items
        .map(|(k, v)| format!("{} = {}", key(k), value(v)))
        .collect();
    if items.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", items.join(", "))
    }
}

fn strings<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<_> = items.iter().map(|item| string(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

/// The whole plan. `comments` stand at its head.
pub(super) fn plan(
    title: &str,
    comments: &[String],
    layers: &[DraftLayer],
    compares: &[DraftCompare],
) -> String {
    let mut out = String::new();
    for comment in comments {
        // A comment is one line whatever it is made of.
        line(
            &mut out,
            &format!("# {}", comment.replace(['\n', '\r'], " ")),
        );
    }
    let patterns = || layers.iter().flat_map(|layer| &layer.patterns);
    let files: BTreeSet<&str> = patterns()
        .filter_map(|p| Some(p.rule_id().rsplit_once('.')?.0))
        .collect();
    line(&mut out, "\n[plan]");
    line(&mut out, &format!("title = {}", string(title)));
    line(
        &mut out,
        &format!(
            "rules = {}",
            strings(&files.into_iter().collect::<Vec<_>>())
        ),
    );
    line(
        &mut out,
        &format!("expect_patterns = {}", patterns().count()),
    );
    let everywhere = agreed(&patterns().collect::<Vec<_>>(), &BTreeMap::new());
    if !everywhere.is_empty() {
        line(&mut out, "\n[settings]");
        for (name, of) in &everywhere {
            line(&mut out, &format!("{} = {}", key(name), value(of)));
        }
    }
    for layer in layers {
        self::layer(&mut out, layer, &everywhere);
    }
    for compare in compares {
        line(&mut out, "\n[[compare]]");
        line(&mut out, &format!("id = {}", string(&compare.id)));
        line(&mut out, &format!("title = {}", string(&compare.title)));
        line(
            &mut out,
            &format!("between = {}", strings(&compare.between)),
        );
        line(&mut out, &format!("by = {}", strings(&BY)));
        if !compare.only_on.is_empty() {
            line(
                &mut out,
                &format!("only_on = {}", strings(&compare.only_on)),
            );
        }
    }
    out
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

type Settings = BTreeMap<String, Value>;

/// Settings that every pattern whose rule has them sets to the same value, without those that are
/// above already and without what a single pattern says of itself.
fn agreed(patterns: &[&Draft], above: &Settings) -> Settings {
    let mut agreed = Settings::new();
    let names: BTreeSet<&String> = patterns.iter().flat_map(|p| p.settings.keys()).collect();
    for name in names {
        if above.contains_key(name) || BY.contains(&name.as_str()) {
            continue;
        }
        let having = || patterns.iter().filter(|p| p.rule.params.contains_key(name));
        let mut values = having().map(|pattern| pattern.settings.get(name));
        let first = values.next().flatten();
        if let Some(first) = first
            && having().count() > 1
            && values.all(|value| value == Some(first))
        {
            agreed.insert(name.clone(), first.clone());
        }
    }
    agreed
}

fn layer(out: &mut String, layer: &DraftLayer, above: &Settings) {
    let patterns: Vec<&Draft> = layer.patterns.iter().collect();
    line(out, "\n[[layer]]");
    line(out, &format!("id = {}", string(&layer.id)));
    line(out, &format!("title = {}", string(&layer.title)));
    let first = patterns.first();
    let rule = first
        .filter(|first| patterns.iter().all(|p| p.rule.id == first.rule.id))
        .map(|first| first.rule_id());
    if let Some(rule) = rule {
        line(out, &format!("rule = {}", string(rule)));
    }
    if layer.adhoc {
        line(out, "adhoc = true");
    }
    if !layer.tags.is_empty() {
        line(out, &format!("tags = {}", strings(&layer.tags)));
    }
    if let Some(seconds) = layer.estimate_s {
        line(
            out,
            &format!("estimate = {}", string(&format_duration(seconds))),
        );
    }
    let mut common = agreed(&patterns, above);
    for name in BY_LENGTH {
        // Left to the overrides, which a single place for all lengths reads better with.
        if grids(&patterns).iter().any(|grid| grid.cells.len() > 1) {
            common.remove(name);
        }
    }
    if !common.is_empty() {
        let settings = table(common.iter().map(|(k, v)| (k.as_str(), v)));
        line(out, &format!("settings = {settings}"));
    }
    let written = |name: &str| above.contains_key(name) || common.contains_key(name);
    for grid in grids(&patterns) {
        if grid.cells.len() == 1 {
            pattern(out, grid.cells[0], rule.is_some(), &written);
        } else {
            matrix(out, &grid, rule.is_some(), &written);
        }
    }
}

fn pattern(out: &mut String, draft: &Draft, has_rule: bool, written: &dyn Fn(&str) -> bool) {
    line(out, "\n[[layer.pattern]]");
    line(out, &format!("id = {}", string(&draft.id)));
    if !has_rule {
        line(out, &format!("rule = {}", string(draft.rule_id())));
    }
    if !draft.needs.is_empty() {
        line(out, &format!("needs = {}", strings(&draft.needs)));
    }
    let own = || draft.settings.iter().filter(|(name, _)| !written(name));
    if own().next().is_some() {
        let settings = table(own().map(|(k, v)| (k.as_str(), v)));
        line(out, &format!("settings = {settings}"));
    }
    if !draft.expect.is_empty() {
        let expect: Vec<_> = (draft.expect.iter())
            .map(|(metric, text)| format!("{} = {}", key(metric), string(text)))
            .collect();
        line(out, &format!("expect = {{ {} }}", expect.join(", ")));
    }
}

/// Patterns that differ in prompt length and concurrency only (and in what follows from the
/// length), with ids that say so.
struct Grid<'d> {
    stem: String,
    cells: Vec<&'d Draft>,
}

/// Groups patterns into grids, in the order of the first member; what fits no grid is alone.
fn grids<'d>(patterns: &[&'d Draft]) -> Vec<Grid<'d>> {
    let mut grids: Vec<Grid<'d>> = Vec::new();
    for draft in patterns {
        let stem = stem(draft);
        let known = stem.as_ref().and_then(|stem| {
            let same = |grid: &&mut Grid<'_>| {
                grid.stem == *stem && grid.cells.first().is_some_and(|cell| alike(cell, draft))
            };
            grids.iter_mut().find(same)
        });
        match known {
            Some(grid) => grid.cells.push(draft),
            None => grids.push(Grid {
                stem: stem.unwrap_or_default(),
                cells: vec![draft],
            }),
        }
    }
    grids
}

/// `p2-efa` of `p2-efa-4k-c1`, when the rest is what the template would make.
fn stem(draft: &Draft) -> Option<String> {
    let (tokens, concurrency) = (draft.int(BY[0])?, draft.int(BY[1])?);
    let size = match tokens {
        tokens if tokens != 0 && tokens % (1 << 30) == 0 => format!("{}g", tokens >> 30),
        tokens if tokens != 0 && tokens % (1 << 20) == 0 => format!("{}m", tokens >> 20),
        tokens if tokens != 0 && tokens % (1 << 10) == 0 => format!("{}k", tokens >> 10),
        tokens => tokens.to_string(),
    };
    let stem = draft.id.strip_suffix(&format!("-{size}-c{concurrency}"))?;
    Some(stem.to_owned())
}

fn alike(a: &Draft, b: &Draft) -> bool {
    let same = |a: &Draft, b: &Draft| {
        a.settings.iter().all(|(name, value)| {
            let varies = BY.contains(&name.as_str()) || BY_LENGTH.contains(&name.as_str());
            varies || b.settings.get(name) == Some(value)
        })
    };
    a.rule.id == b.rule.id && a.needs == b.needs && a.expect == b.expect && same(a, b) && same(b, a)
}

fn matrix(out: &mut String, grid: &Grid<'_>, has_rule: bool, written: &dyn Fn(&str) -> bool) {
    let first = grid.cells[0];
    let mut of_length: BTreeMap<i64, &Draft> = BTreeMap::new();
    let mut cells: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for draft in &grid.cells {
        if let (Some(tokens), Some(concurrency)) = (draft.int(BY[0]), draft.int(BY[1])) {
            of_length.entry(tokens).or_insert(draft);
            cells.entry(tokens).or_default().insert(concurrency);
        }
    }
    let levels: BTreeSet<i64> = cells.values().flatten().copied().collect();
    // Written like an explicit pattern, so that a variant can stand beside it in the layer.
    line(out, "\n[[layer.pattern]]");
    let id = format!(
        "{}-{{{{ {} | size }}}}-c{{{{ {} }}}}",
        grid.stem, BY[0], BY[1]
    );
    line(out, &format!("id = {}", string(&id)));
    if !has_rule {
        line(out, &format!("rule = {}", string(first.rule_id())));
    }
    if !first.needs.is_empty() {
        line(out, &format!("needs = {}", strings(&first.needs)));
    }
    let shortest = of_length.values().next().copied().unwrap_or(first);
    let own = shortest
        .settings
        .iter()
        .filter(|(name, _)| !BY.contains(&name.as_str()) && !written(name));
    let own: Vec<_> = own.collect();
    if !own.is_empty() {
        let settings = table(own.iter().map(|(k, v)| (k.as_str(), *v)));
        line(out, &format!("settings = {settings}"));
    }
    line(out, "[layer.pattern.matrix]");
    let list = |items: &mut dyn Iterator<Item = i64>| {
        let items: Vec<_> = items.map(|item| item.to_string()).collect();
        format!("[{}]", items.join(", "))
    };
    line(
        out,
        &format!("{} = {}", BY[0], list(&mut cells.keys().copied())),
    );
    line(
        out,
        &format!("{} = {}", BY[1], list(&mut levels.iter().copied())),
    );
    if cells.values().any(|has| *has != levels) {
        line(out, "[layer.pattern.select]\nkeep = [");
        for (tokens, has) in &cells {
            let has = list(&mut has.iter().copied());
            line(
                out,
                &format!("  {{ {} = {tokens}, {} = {has} }},", BY[0], BY[1]),
            );
        }
        line(out, "]");
    }
    overrides(out, &of_length);
}

/// What changes with the prompt length, from each length on at which it does.
fn overrides(out: &mut String, of_length: &BTreeMap<i64, &Draft>) {
    let follows = |draft: &Draft| -> Settings {
        let settings = draft.settings.iter();
        let by_length = settings.filter(|(name, _)| BY_LENGTH.contains(&name.as_str()));
        by_length.map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let mut before: Option<Settings> = None;
    for (tokens, draft) in of_length {
        let now = follows(draft);
        let changed: Settings = match &before {
            None => Settings::new(),
            Some(before) => (now.iter())
                .filter(|(name, value)| before.get(*name) != Some(*value))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        };
        if !changed.is_empty() {
            line(out, "[[layer.pattern.override]]");
            line(out, &format!("when = \"{} >= {tokens}\"", BY[0]));
            let settings = table(changed.iter().map(|(k, v)| (k.as_str(), v)));
            line(out, &format!("settings = {settings}"));
        }
        before = Some(now);
    }
}
