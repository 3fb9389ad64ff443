//! What every executor has to show with the shipped campaign: its client killed in the middle, what
//! was done is kept, and what comes out is what comes out on this machine: in a store of its own,
//! with the same keys, and with the same results as far as no clock has a part in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use doe_cache::{Record, RecordKind, Store};
use serde_json::{Value, json};

use crate::support::{self, Workspace, wait_for};

/// Names of the campaign's targets; `DOE_TEST_LONG=1` makes it the whole of it.
pub fn targets(short: &[&'static str]) -> Vec<&'static str> {
    match std::env::var_os("DOE_TEST_LONG") {
        Some(_) => vec!["//phase2:all"],
        None => short.to_vec(),
    }
}

/// The facts that `sim` pretends, as lines of a table.
pub fn facts() -> String {
    let sim = std::fs::read_to_string(support::repository().join("src/plan/sim.toml")).unwrap();
    let facts = sim.split("[facts]").nth(1).unwrap();
    facts.split("[host").next().unwrap().to_owned()
}

/// Builds the targets on a platform, kills that in the middle, builds them again, and holds what came
/// out against what comes out of `sim`. How many patterns it were.
pub fn survives_its_client(
    workspace: &Workspace,
    platform: &str,
    targets: &[&str],
    within: Duration,
) -> String {
    let build = [&["build"][..], targets].concat();
    let there = [&build[..], &["--platform", platform, "--json"]].concat();
    let (mut child, out) = workspace.spawn(&there);
    wait_for("a node that is measured", within, || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        let running = text.contains("\"state\":\"running\"");
        let finished = text.contains("node-finished");
        (running && finished).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let summary = workspace.doe(&there).ok().summary();
    let total = summary["ok"].as_u64().unwrap() + summary["reused"].as_u64().unwrap();
    assert_eq!(summary["failed"], 0, "{summary}");
    assert!(
        summary["reused"].as_u64().unwrap() >= 1,
        "what was done is kept: {summary}"
    );

    // What a store that has never seen a host comes to.
    let alone = Workspace::shipped("0.001");
    alone.write("doe.toml", &workspace.read("doe.toml"));
    let here = [&build[..], &["--platform", "sim", "--json"]].concat();
    let ran = alone.doe(&here).ok().summary();
    assert_eq!(
        (ran["ok"].as_u64(), &ran["reused"]),
        (Some(total), &0.into())
    );
    let (there, here) = (
        results(workspace, platform, targets),
        results(&alone, "sim", targets),
    );
    assert_eq!(
        there.keys().collect::<Vec<_>>(),
        here.keys().collect::<Vec<_>>()
    );
    assert_eq!(there.len() as u64, total);
    for (label, result) in &there {
        assert_eq!(result, &here[label], "{label}");
    }

    // The same keys: on this machine there is nothing left to do.
    let sim = [&build[..], &["--platform", "sim", "--json"]].concat();
    let again = workspace.doe(&sim).ok().summary();
    assert_eq!(
        (again["ok"].as_u64(), again["reused"].as_u64()),
        (Some(0), Some(total)),
        "{again}"
    );
    format!("{total} of 42 patterns")
}

/// What a platform has of the targets, by label, without what depends on the time that something took.
fn results(workspace: &Workspace, platform: &str, targets: &[&str]) -> BTreeMap<String, Value> {
    let asked = [&["results"], targets, &["--platform", platform, "--json"]].concat();
    let rows = workspace.doe(&asked).ok().json();
    let store = Store::open(workspace.path().join(".doe")).unwrap();
    let known = store.bulk().unwrap();
    let rows = rows.as_array().unwrap().iter().map(|row| {
        let label = row["label"].as_str().unwrap();
        let record = store.record(&known.current(label).unwrap().record).unwrap();
        (label.to_owned(), timeless(workspace, &store, &record, row))
    });
    rows.collect()
}

/// The metrics that a rule does not always give.
fn optional(workspace: &Workspace, rule: &str) -> BTreeSet<String> {
    let (file, name) = rule.split_once('.').unwrap();
    let text = workspace.read(&format!("rules/{file}.toml"));
    let rules: toml::Table = text.parse().unwrap();
    let metrics = rules[name].get("metric").and_then(|it| it.as_table());
    let optional = metrics
        .into_iter()
        .flatten()
        .filter(|(_, metric)| metric.get("optional").and_then(toml::Value::as_bool) == Some(true));
    optional.map(|(name, _)| name.clone()).collect()
}

fn timeless(workspace: &Workspace, store: &Store, record: &Record, row: &Value) -> Value {
    // An analysis says some numbers only when the times were so (two modes have two means).
    let optional = optional(workspace, &record.rule);
    let always = |name: &str| record.kind == RecordKind::Measure || !optional.contains(name);
    let units = record
        .metrics
        .iter()
        .filter(|(name, _)| always(name))
        .map(|(name, metric)| (name, json!([metric.unit, metric.better])));
    let counts = record
        .samples
        .iter()
        .map(|(name, series)| (name, series.len()));
    let mut logs: Vec<_> = record.logs.iter().map(|log| &log.name).collect();
    logs.sort();
    let mut said = json!({
        "rule": record.rule, "layer": record.layer, "tags": record.tags, "kind": record.kind,
        "judge": record.judge, "simulated": row["simulated"], "state": row["state"],
        "settings": row["settings"], "validity": row["validity"], "class": row["class"],
        "metrics": units.collect::<BTreeMap<_, _>>(),
        "samples": counts.collect::<BTreeMap<_, _>>(),
        "texts": record.texts.keys().collect::<Vec<_>>(),
        "logs": logs,
        "services": record.services.len(),
    });
    // What was read of other results is made of their times.
    if record.kind == RecordKind::Measure {
        said["spec"] = json!(record.spec_key);
        said["action"] = json!(record.action_key);
        said["texts"] = json!(record.texts);
        said["criterion"] = row["criterion"]["status"].clone();
        let outputs = record.outputs.iter().map(|(name, output)| {
            let schema = output.schema.as_deref();
            let bytes = store.blob(&output.digest).unwrap();
            let content = match schema {
                Some("load-v1") => load(&serde_json::from_slice(&bytes).unwrap()),
                // As many lines as it had to wait.
                None | Some("proxy-v1") => Value::Null,
                Some(_) => without_numbers(&serde_json::from_slice(&bytes).unwrap()),
            };
            (name, json!([schema, content]))
        });
        said["outputs"] = json!(outputs.collect::<BTreeMap<_, _>>());
    }
    said
}

/// What a load generator has counted.
fn load(result: &Value) -> Value {
    let whole = [
        "instrument",
        "settings",
        "calibration",
        "counts",
        "tokens",
        "errors",
        "warmup_errors",
        "prompt_tokens_off",
        "prompt_tokens_unknown",
    ];
    let whole = whole.map(|key| {
        assert!(!result[key].is_null(), "{key}");
        (key, &result[key])
    });
    let requests = result["requests"].as_array().unwrap().iter();
    let mut requests: Vec<_> = requests
        .map(|request| {
            let keys = [
                "index",
                "round",
                "prompt_tokens",
                "output_tokens",
                "finish_reason",
                "error",
            ];
            keys.map(|key| request[key].to_string())
        })
        .collect();
    requests.sort();
    assert!(!requests.is_empty());
    json!([BTreeMap::from(whole), requests])
}

/// A document with every number taken for another.
fn without_numbers(document: &Value) -> Value {
    match document {
        Value::Number(_) => "a number".into(),
        Value::Array(list) => list.iter().map(without_numbers).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), without_numbers(value)))
            .collect(),
        other => other.clone(),
    }
}
