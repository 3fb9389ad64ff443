//! The main job, end to end through the real binary: the campaign of 50 patterns on the simulated
//! platform, and what an edit reruns. One campaign serves all the edits, as it takes a while.

mod support;
#[path = "rig/told.rs"]
mod told;

use std::collections::BTreeSet;

use support::Workspace;

/// Ten times faster than shipped: what is tested is what runs, not how long it takes.
const TIME_SCALE: &str = "0.001";

fn summary_of(workspace: &Workspace, target: &str, code: i32) -> serde_json::Value {
    let ran = workspace.doe(&["build", target, "--json"]).exits(code);
    let announced: BTreeSet<String> = ran
        .events()
        .iter()
        .filter(|e| e["event"] == "node-state")
        .map(|e| e["label"].as_str().unwrap().to_string())
        .collect();
    let mut ended = Vec::new();
    for event in ran
        .events()
        .iter()
        .filter(|e| e["event"] == "node-finished")
    {
        ended.push(event["label"].as_str().unwrap().to_string());
    }
    let once: BTreeSet<String> = ended.iter().cloned().collect();
    assert_eq!(once.len(), ended.len(), "a node ended twice");
    assert!(
        announced.is_subset(&once),
        "a node was announced and never ended"
    );
    ran.summary()
}

fn assert_counts(summary: &serde_json::Value, counts: &[(&str, u64)]) {
    for (name, count) in counts {
        assert_eq!(summary[*name], *count, "{name} in {summary}");
    }
}

fn without(labels: &[String], part: &str) -> usize {
    labels.iter().filter(|l| !l.contains(part)).count()
}

#[test]
fn the_campaign_and_its_edits() {
    let mut told = told::Case::of("local", "phase2");
    let workspace = Workspace::shipped(TIME_SCALE);
    let all = "//phase2:all";

    // Everything runs once, each service as often as it has distinct keys: a unified server and
    // three processes of each split, for the standard and for the long context, and iperf3.
    let summary = summary_of(&workspace, all, 0);
    let fresh = [
        ("ok", 42),
        ("reused", 0),
        ("failed", 0),
        ("invalid", 0),
        ("blocked", 0),
    ];
    assert_counts(&summary, &fresh);
    assert_counts(&summary, &[("service_starts", 2 + 2 * 3 + 2 * 3 + 1)]);
    workspace.assert_nothing_runs();

    // Again: nothing.
    let summary = summary_of(&workspace, all, 0);
    assert_counts(
        &summary,
        &[("ok", 0), ("reused", 42), ("service_starts", 0)],
    );
    workspace.doe(&["check", all, "--up-to-date"]).ok();

    // What is simulated says so, in every record and table.
    let results = workspace.doe(&["results", all, "--json"]).ok().json();
    for row in results.as_array().unwrap() {
        assert_eq!(row["simulated"], true, "{row}");
        assert_eq!(row["state"], "current");
        assert_eq!(row["validity"], "valid");
    }
    let table = workspace.doe(&["results", "//phase2:L4"]).ok().stdout;
    assert!(table.contains("current, simulated"), "{table}");
    assert!(table.contains("gpu_compute_ratio"), "{table}");

    edits(&workspace, all);
    views(&workspace);
    told.size("42 patterns");
}

fn edits(workspace: &Workspace, all: &str) {
    let plan = workspace.read("plans/phase2.toml");
    let serving = workspace.read("rules/serving.toml");
    let analysis = workspace.read("rules/analysis.toml");
    let restore = || {
        workspace.write("plans/phase2.toml", &plan);
        workspace.write("rules/serving.toml", &serving);
        workspace.write("rules/analysis.toml", &analysis);
    };
    let runs = || workspace.planned(all, "run");
    let may = || workspace.planned(all, "may_run");

    // Comments, titles, documentation: nothing.
    workspace.write("plans/phase2.toml", &format!("# a comment\n{plan}"));
    workspace.replace(
        "plans/phase2.toml",
        "title = \"What the numbers say\"",
        "title = \"Verdicts\"",
        1,
    );
    workspace.write("rules/serving.toml", &format!("# a comment\n\n{serving}"));
    workspace.replace(
        "rules/serving.toml",
        "doc = \"length of every prompt\"",
        "doc = \"prompt length\"",
        1,
    );
    assert_eq!((runs().len(), may().len()), (0, 0));
    restore();

    // max_tokens: the 36 serving patterns, and what depends on them.
    workspace.replace(
        "plans/phase2.toml",
        "max_tokens = 128",
        "max_tokens = 64",
        1,
    );
    assert_eq!(runs().len(), 36);
    assert_eq!(without(&runs(), "p2-unified") - 24, 0);
    assert_eq!(may().len(), 3);
    let line = workspace
        .read("plans/phase2.toml")
        .lines()
        .position(|l| l.starts_with("max_tokens"))
        .unwrap()
        + 1;
    let explained = workspace
        .doe(&["explain", "//phase2:p2-efa-4k-c1"])
        .ok()
        .stdout;
    for part in [
        "setting.max_tokens",
        "128",
        "64",
        &format!("plans/phase2.toml:{line}"),
        "--max-tokens 64",
    ] {
        assert!(explained.contains(part), "{part} in\n{explained}");
    }
    let chain = workspace
        .doe(&["explain", "//phase2:p2-analysis-bimodality-detection"])
        .ok()
        .stdout;
    assert!(chain.contains("setting.max_tokens 128 -> 64"), "{chain}");
    restore();

    // The buffer of L3: its 12, and what depends on them.
    let l3 = "transport = \"tcp\", max_model_len = 32896, kv_buffer_size = 5_000_000_000";
    workspace.replace("plans/phase2.toml", l3, &l3.replace("5_000", "2_000"), 1);
    assert_eq!(runs().len(), 12);
    assert_eq!(without(&runs(), "p2-tcp"), 0);
    assert_eq!(may().len(), 2);
    restore();

    // One pattern's prompt: it, and what depends on it.
    let one = "[[layer]]\nid = \"L4-Analysis\"";
    let other = format!(
        "[[layer.override]]\nwhen = \"prompt_tokens == 4096 and concurrency == 4\"\nsettings = {{ prompt_seed = 7 }}\n\n{one}"
    );
    workspace.replace("plans/phase2.toml", one, &other, 1);
    assert_eq!(runs(), ["//phase2:p2-tcp-4k-c4"]);
    assert_eq!(may().len(), 2);
    restore();

    // The analyses' version: three.
    workspace.replace(
        "rules/analysis.toml",
        "kind = \"analysis\"",
        "kind = \"analysis\"\nversion = 2",
        3,
    );
    assert_eq!(runs().len(), 3);
    assert_eq!(without(&runs(), "p2-analysis"), 0);
    assert_eq!(may().len(), 0);
    // And the build does what the plan said.
    let summary = summary_of(workspace, all, 0);
    assert_counts(
        &summary,
        &[("ok", 3), ("reused", 39), ("service_starts", 0)],
    );
    restore();

    // A definition of a metric is no reason to run: numbers are read anew from stored outputs.
    let metric = "e2e_median_ms = { from = \"result\", at = \"/e2e_ms/p50\"";
    workspace.replace(
        "rules/serving.toml",
        metric,
        &metric.replace("p50", "p99"),
        1,
    );
    assert_eq!(runs().len(), 0);
    let summary = summary_of(workspace, all, 0);
    assert_counts(
        &summary,
        &[("ok", 0), ("reused", 42), ("service_starts", 0)],
    );
    let row = workspace
        .doe(&["results", "//phase2:p2-unified-4k-c1", "--json"])
        .ok()
        .json();
    let metrics = &row[0]["metrics"];
    let value = |name: &str| metrics[name]["value"].as_f64().unwrap();
    assert!(value("e2e_median_ms") >= value("ttft_p99_ms"), "{metrics}");
    restore();
}

/// The documented views answer.
fn views(workspace: &Workspace) {
    let index = rusqlite::Connection::open_with_flags(
        workspace.path().join(".doe/index.sqlite"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )
    .unwrap();
    let count = |sql: &str| -> i64 { index.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(
        count("SELECT count(*) FROM results WHERE label LIKE '//phase2:%'"),
        42
    );
    assert!(count("SELECT count(*) FROM metrics") > 36 * 8);
    assert!(count("SELECT count(*) FROM samples") > 36 * 30);
    assert!(count("SELECT count(*) FROM runs") >= 2);
}

#[test]
fn phase1_is_sound_and_has_its_patterns() {
    let workspace = Workspace::shipped(TIME_SCALE);
    workspace.doe(&["check", "//..."]).ok();
    let list = |target: &str| {
        let out = workspace
            .doe(&["list", target, "--format", "label"])
            .ok()
            .stdout;
        out.lines().count()
    };
    for (target, patterns) in [
        ("//phase1/...", 128),
        ("//phase1:L0", 8),
        ("//phase1:L1-Unified", 25),
        ("//phase1:L2", 24),
        ("//phase1:L3", 24),
        ("//phase1:L4", 3),
        ("//phase1:L5", 44),
        ("//phase2/...", 50),
        ("//phase2:all", 42),
        ("//phase2:L0", 3),
        ("//phase2:L1", 12),
        ("//phase2:L2", 12),
        ("//phase2:L3", 12),
        ("//phase2:L4", 3),
        ("//phase2:L5", 8),
    ] {
        assert_eq!(list(target), patterns, "{target}");
    }
    assert_eq!(list("//..."), 178);
    let minus = workspace.doe(&[
        "list",
        "//phase2/...",
        "-//phase2:L5-LowLevel",
        "--format",
        "label",
    ]);
    assert_eq!(minus.ok().stdout.lines().count(), 42);
}

#[test]
fn ad_hoc_patterns_run_when_asked_for() {
    let workspace = Workspace::shipped(TIME_SCALE);
    let summary = summary_of(&workspace, "//phase2:L5-LowLevel", 0);
    assert_counts(&summary, &[("ok", 8 + 3), ("failed", 0), ("invalid", 0)]);
    workspace.assert_nothing_runs();
}
