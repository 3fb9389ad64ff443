//! What the old file says about itself, held against what it contains: numbers of patterns,
//! shares, minutes, sizes. Numbers kept by hand drift; here each is worked out again.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::report::Report;
use super::{int, number, objects, text};

type Object = Map<String, Value>;

static COUNTS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b(\d+)[ -]patterns?\b").ok());
static REDUCTION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)from (\d+) to (\d+) patterns? \(([\d.]+) ?% reduction\)").ok()
});

/// Reports every claim that does not hold. `patterns` counts the file's patterns.
pub(super) fn report(plan: &Object, patterns: usize, report: &mut Report) {
    for key in ["name", "description"] {
        let Some(prose) = text(plan, key) else {
            continue;
        };
        counts(key, prose, patterns, report);
    }
    order(plan, report);
    durations(plan, report);
    sizes(plan, report);
    drift(plan, report);
    repeated(plan, report);
}

/// Patterns that ran the same commands under different names.
fn repeated(plan: &Object, report: &mut Report) {
    let patterns = objects(plan.get("layers"))
        .filter(|layer| text(layer, "id").is_some_and(|id| id.starts_with("L0-Baseline")))
        .flat_map(|layer| objects(layer.get("patterns")));
    let same: Vec<_> = patterns
        .filter(|pattern| text(pattern, "tool").is_some_and(|tool| tool.starts_with("nvidia-smi")))
        .filter_map(|pattern| text(pattern, "id"))
        .collect();
    if same.len() > 1 {
        report.warn(format!(
            "{} ran the same commands; here each measures what it is named after",
            same.join(", ")
        ));
    }
}

fn counts(key: &str, prose: &str, patterns: usize, report: &mut Report) {
    let counts = COUNTS.as_ref();
    let claimed: BTreeSet<usize> = (counts.iter().flat_map(|r| r.captures_iter(prose)))
        .filter_map(|found| found[1].parse().ok())
        .filter(|count| *count != patterns)
        .collect();
    for count in claimed {
        report.warn(format!(
            "`{key}` speaks of {count} patterns; the file has {patterns}"
        ));
    }
    let Some(found) = REDUCTION.as_ref().and_then(|r| r.captures(prose)) else {
        return;
    };
    let part = |at: usize| found[at].parse::<f64>().ok();
    if let (Some(from), Some(to), Some(claimed)) = (part(1), part(2), part(3)) {
        let share = 100.0 * (from - to) / from;
        if from > 0.0 && (share - claimed).abs() >= 0.05 {
            report.warn(format!(
                "`{key}` calls {from} to {to} patterns a reduction by {claimed} %; it is {share:.2} %"
            ));
        }
    }
}

/// `execution_order` against the layers.
fn order(plan: &Object, report: &mut Report) {
    let Some(steps) = plan.get("execution_order") else {
        return;
    };
    let mut listed: BTreeSet<&str> = BTreeSet::new();
    for step in objects(Some(steps)) {
        let ids: Vec<_> = strings(step.get("patterns")).collect();
        let number = int(step, "step").unwrap_or_default();
        if let Some(claimed) = int(step, "pattern_count")
            && i64::try_from(ids.len()) != Ok(claimed)
        {
            report.warn(format!(
                "step {number} of `execution_order` says {claimed} patterns and lists {}",
                ids.len()
            ));
        }
        listed.extend(ids);
    }
    let globs = listed.iter().filter(|id| id.contains('*')).count();
    let all: BTreeSet<&str> = objects(plan.get("layers"))
        .flat_map(|layer| objects(layer.get("patterns")))
        .filter_map(|pattern| text(pattern, "id"))
        .collect();
    let unknown = listed
        .iter()
        .filter(|id| !id.contains('*') && !all.contains(*id));
    for id in unknown {
        report.warn(format!(
            "`execution_order` lists `{id}`, which no layer has"
        ));
    }
    let left = all.difference(&listed).count();
    if globs == 0 && left > 0 {
        report.warn(format!(
            "`execution_order` lists {} of {} patterns",
            all.len() - left,
            all.len()
        ));
    }
}

/// Minutes and counts of `estimated_duration` against the layers and the steps.
fn durations(plan: &Object, report: &mut Report) {
    let layers: f64 = objects(plan.get("layers"))
        .filter_map(|layer| number(layer, "estimated_time_minutes"))
        .sum();
    let steps: f64 = objects(plan.get("execution_order"))
        .filter_map(|step| number(step, "estimated_minutes"))
        .sum();
    let Some(estimated) = plan.get("estimated_duration").and_then(Value::as_object) else {
        return;
    };
    let parts: Vec<(&String, &Object)> = (estimated.get("breakdown").and_then(Value::as_object))
        .into_iter()
        .flatten()
        .filter_map(|(name, part)| Some((name, part.as_object()?)))
        .collect();
    let minutes: f64 = parts
        .iter()
        .filter_map(|(_, part)| number(part, "minutes"))
        .sum();
    let count: i64 = parts
        .iter()
        .filter_map(|(_, part)| int(part, "patterns"))
        .sum();
    let total = number(estimated, "total_minutes");
    let mut sums: Vec<String> = Vec::new();
    for (what, sum) in [
        ("`total_minutes`", total.unwrap_or_default()),
        ("its breakdown", minutes),
        ("the steps of `execution_order`", steps),
        ("the layers", layers),
    ] {
        if sum > 0.0 {
            sums.push(format!("{what} {sum}"));
        }
    }
    let values: BTreeSet<String> = sums
        .iter()
        .filter_map(|s| Some(s.rsplit_once(' ')?.1.to_owned()))
        .collect();
    if values.len() > 1 {
        report.warn(format!("minutes disagree: {}", sums.join(", ")));
    }
    for (name, part) in &parts {
        let (Some(claimed), Some(prefix)) = (int(part, "patterns"), name.get(..2)) else {
            continue;
        };
        // Only parts that stand for a whole layer can be held against it.
        let same = parts
            .iter()
            .filter(|(other, _)| other.starts_with(prefix))
            .count();
        let layer = objects(plan.get("layers"))
            .find(|layer| text(layer, "id").is_some_and(|id| id.starts_with(prefix)));
        let actual = layer.map(|layer| objects(layer.get("patterns")).count());
        if let (1, Some(actual)) = (same, actual)
            && i64::try_from(actual) != Ok(claimed)
        {
            report.warn(format!(
                "`estimated_duration` counts {claimed} patterns for {name}; the layer has {actual}"
            ));
        }
    }
    if count > 0 {
        report.warn(format!("`estimated_duration` adds up {count} patterns"));
    }
}

/// `kv_cache_reference` worked out again.
fn sizes(plan: &Object, report: &mut Report) {
    let Some(reference) = plan.get("kv_cache_reference").and_then(Value::as_object) else {
        return;
    };
    let per_token = int(reference, "bytes_per_token").unwrap_or(262_144);
    let sizes = reference.get("sizes").and_then(Value::as_object);
    for (label, size) in sizes.into_iter().flatten() {
        let Some(size) = size.as_object() else {
            continue;
        };
        let (Some(tokens), Some(bytes)) = (int(size, "tokens"), int(size, "total_bytes")) else {
            continue;
        };
        if tokens.checked_mul(per_token) != Some(bytes) {
            report.warn(format!(
                "KV cache of {label}: {tokens} tokens of {per_token} bytes are not {bytes} bytes"
            ));
        }
        let Some(human) = text(size, "total_human") else {
            continue;
        };
        let claimed = human
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<f64>().ok());
        let (size, unit) = match human.ends_with("MB") {
            true => (1u64 << 20, "MiB"),
            false => (1u64 << 30, "GiB"),
        };
        let actual = bytes as f64 / size as f64;
        if claimed.is_some_and(|claimed| (claimed - actual).abs() > 0.05) {
            report.warn(format!(
                "KV cache of {label}: {bytes} bytes are {actual} {unit}, not `{human}`"
            ));
        }
    }
}

/// Keys whose name and reader drifted apart.
fn drift(plan: &Object, report: &mut Report) {
    let common = plan.get("common_settings").and_then(Value::as_object);
    if common
        .is_some_and(|c| c.contains_key("enable_prefix_caching") && !c.contains_key("prefix_cache"))
    {
        report.warn(
            "`enable_prefix_caching` was renamed from `prefix_cache`, and the reader was not: prefix caching was off in every run, and every result says so; `false` is written",
        );
    }
    if common
        .and_then(|c| number(c, "temperature"))
        .is_some_and(|t| t != 0.7)
    {
        report.warn("every request was sent with temperature 0.7, which is written; lower it if that is what was meant");
    }
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let items = value.and_then(Value::as_array);
    items.into_iter().flatten().filter_map(Value::as_str)
}
