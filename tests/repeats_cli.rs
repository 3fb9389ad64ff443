//! Replicates through the real binary, on the shipped rules and the shipped simulation.

mod support;

use support::Workspace;

const PLAN: &str = r#"
[plan]
title = "as often as it takes"
rules = ["network"]
order = "random"
seed = 11

[[layer]]
id = "L1-TCP"
rule = "network.iperf3"
settings = { duration = "10s", streams = [1, 4] }
[[layer.pattern]]
id = "tcp"
stop_when = { metric = "tcp_bandwidth_gbps", relative_half_width = 0.01, min = 3, max = 30 }
[[layer.pattern]]
id = "tcp-twice"
settings = { duration = "5s" }
repeat = 2
"#;

fn workspace() -> Workspace {
    let workspace = Workspace::shipped("0.0005");
    std::fs::remove_file(workspace.path().join("plans/phase2.toml")).unwrap();
    workspace.write("plans/r.toml", PLAN);
    workspace
}

#[test]
fn a_simulated_measurement_is_repeated_until_it_is_known_well_enough() {
    let workspace = workspace();
    let planned = workspace.doe(&["plan", "//r:all", "--json"]).ok().json();
    let count = |key: &str| planned[key].as_array().unwrap().len();
    // Three are sure, whether the others are needed shows when these have run.
    assert_eq!((count("run"), count("may_run")), (5, 27), "{planned}");

    let built = workspace.doe(&["build", "//r:all", "--json"]).ok();
    let summary = built.summary();
    let (ok, skipped) = (
        summary["ok"].as_u64().unwrap(),
        summary["skipped"].as_u64().unwrap(),
    );
    assert_eq!(ok + skipped, 32, "{summary}");
    assert!(ok >= 5 && skipped >= 1, "{summary}");
    let ordered = built.events().into_iter().find(|e| e["event"] == "ordered");
    assert_eq!(ordered.unwrap()["seed"], 11);

    // The mean is as well known as was asked for.
    let over = ["results", "//r:all", "--over-replicates"];
    let rows = workspace
        .doe(&[&over[..], &["--json"]].concat())
        .ok()
        .json();
    assert_eq!(rows[0]["label"], "//r:tcp");
    assert_eq!(rows[0]["replicates"].as_u64(), Some(ok - 2));
    assert_eq!(rows[0]["simulated"], true);
    let metric = &rows[0]["metrics"]["tcp_bandwidth_gbps"];
    let share = metric["half_width_95"].as_f64().unwrap() / metric["mean"].as_f64().unwrap();
    assert!(share > 0.0 && share <= 0.01, "{metric}");
    assert_eq!(rows[1]["replicates"], 2);
    let table = workspace.doe(&over).ok().stdout;
    assert!(
        table.contains(" ± ") && table.contains("2, simulated"),
        "{table}"
    );
    let csv = workspace
        .doe(&[&over[..], &["--format", "csv"]].concat())
        .ok()
        .stdout;
    assert_eq!(csv.lines().count(), 3, "{csv}");

    // Every reader agrees that nothing is left to do.
    let last = "//r:tcp@30";
    assert_eq!(workspace.doe(&["plan", "//r:all", "--up-to-date"]).code, 0);
    assert_eq!(workspace.doe(&["check", "//r:all", "--up-to-date"]).code, 0);
    let plan = workspace.doe(&["plan", "//r:all", "--json"]).ok().json();
    assert_eq!(plan["enough"].as_array().unwrap().len() as u64, skipped);
    let status = workspace.doe(&["status", last]).ok().stdout;
    assert!(status.contains("not needed"), "{status}");
    let explained = workspace.doe(&["explain", last, "--json"]).ok().json();
    assert_eq!(explained["decision"], "enough");
    let again = workspace
        .doe(&["build", "//r:all", "--json"])
        .ok()
        .summary();
    assert_eq!(again["reused"].as_u64(), Some(ok), "{again}");
    assert_eq!(again["skipped"].as_u64(), Some(skipped), "{again}");
    assert_eq!(again["ok"], 0);

    // But what is asked for again runs again, and a plan says so.
    let asked = ["build", last, "--rerun", "--dry-run", "--json"];
    let asked = workspace.doe(&asked).ok().json();
    assert!(
        support::labels(&asked["run"]).contains(&last.to_owned()),
        "{asked}"
    );

    // A name means all replicates, a number one of them.
    let list = |target: &str| {
        let listed = workspace
            .doe(&["list", target, "--format", "label"])
            .ok()
            .stdout;
        listed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(list("//r:tcp-twice"), ["//r:tcp-twice", "//r:tcp-twice@2"]);
    assert_eq!(list("//r:tcp-twice@2"), ["//r:tcp-twice@2"]);
    assert_eq!(list("//r:tcp-twice@1"), ["//r:tcp-twice"]);
    let unknown = workspace.doe(&["build", "//r:tcp-twice@3"]).exits(2);
    assert!(
        unknown.stderr.contains("//r:tcp-twice@2"),
        "{}",
        unknown.stderr
    );
    let rerun = ["build", "//r:tcp-twice@2", "--rerun", "--json"];
    assert_eq!(workspace.doe(&rerun).ok().summary()["ok"], 1);
    workspace.assert_nothing_runs();
}
