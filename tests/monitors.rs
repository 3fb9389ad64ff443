//! Monitors, as real processes beside real nodes: up before the steps, gone after them however the
//! node ends, their samples cut to the measurement and stored, and never a reason for a failure.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{Workspace, monitors_spoke, wait_for};

const LONG: Duration = Duration::from_secs(60);

const RULES: &str = r#"
[one]
param.n = { type = "int", default = 1, doc = "a number" }
roles = { first = {}, second = {} }
[[one.step]]
name = "warm"
role = "first"
timeout = "1m"
run = "true"
[[one.step]]
name = "go"
role = "first"
timeout = "1m"
run = """
echo {{ n }} >> SCRATCH/ran
SPOKE
test ! -e SCRATCH/then || . SCRATCH/then
SPOKE
echo '{}' > {{ out.result }}
"""
[one.output]
result = { path = "r.json" }

[sum]
kind = "analysis"
[[sum.step]]
name = "sum"
timeout = "1m"
run = "cat {{ inputs }}; cp {{ inputs }} {{ out.result }}"
[sum.output]
result = { path = "s.json" }
"#;

/// Prints a line a few times a second on every host.
const TICK: &str = "[[platform.lab.monitor]]\nname = \"tick\"\nrun = \"\"\"\necho '# count'\nn=0\nwhile :; do\n  n=$((n+1)); echo tick $n; sleep 0.02\ndone\"\"\"\n";

fn lab(monitors: &str) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let runs = workspace.path().join(".doe/exec/runs");
    let spoke = monitors_spoke(runs.to_str().unwrap(), "tick");
    let rules = RULES.replace("SPOKE", &spoke);
    workspace.write(
        "rules/t.toml",
        &rules.replace("SCRATCH", scratch.to_str().unwrap()),
    );
    workspace.write(
        "plans/p.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"A\"\nrule = \"t.one\"\npattern = \"a\"\n\
         [[layer]]\nid = \"S\"\nrule = \"t.sum\"\npattern = \"s\"\nneeds = [\"A\"]\n",
    );
    platform(&workspace, monitors);
    workspace
}

fn platform(workspace: &Workspace, monitors: &str) {
    let scratch = workspace.path().join("scratch");
    let head = "[workspace]\nplatform = \"lab\"\n[platform.lab]\nroles = { \"*\" = \"h1\", second = \"h2\" }\n\
                [platform.lab.host.h1]\naddress = \"127.0.0.1\"\n[platform.lab.host.h2]\naddress = \"127.0.0.2\"\n";
    let text = format!(
        "{head}{}",
        monitors.replace("SCRATCH", scratch.to_str().unwrap())
    );
    workspace.write("doe.toml", &text);
}

fn ran(workspace: &Workspace) -> usize {
    let text = std::fs::read_to_string(workspace.path().join("scratch/ran"));
    text.unwrap_or_default().lines().count()
}

fn record(workspace: &Workspace, label: &str) -> Value {
    let rows = workspace.doe(&["cache", "ls", "--json"]).ok().json();
    let rows = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["label"] == label);
    let latest = rows
        .max_by_key(|row| row["ended_unix_ms"].as_u64())
        .unwrap();
    let id = latest["record"].as_str().unwrap().to_owned();
    workspace.doe(&["cache", "show", &id, "--json"]).ok().json()
}

fn samples(workspace: &Workspace) -> Value {
    workspace
        .doe(&["logs", "//p:a", "--log", "monitor-tick.json"])
        .ok()
        .json()
}

fn warned(events: &[Value]) -> Vec<&str> {
    let of = events
        .iter()
        .filter(|e| e["event"] == "warning" && e["code"] == "monitor");
    of.map(|e| e["message"].as_str().unwrap()).collect()
}

#[test]
fn samples_of_the_measurement_are_stored_and_enter_no_key() {
    let workspace = lab(TICK);
    let built = workspace.doe(&["build", "//p:all", "--json"]).ok();
    assert_eq!(built.summary()["ok"], 2);
    assert_eq!(warned(&built.events()), Vec::<&str>::new());
    let document = samples(&workspace);
    assert_eq!(document["schema"], "doe-monitor-v1");
    assert_eq!(document["simulated"], false);
    let (from, to) = (
        &document["window"]["from_unix_ms"],
        &document["window"]["to_unix_ms"],
    );
    let (from, to) = (from.as_u64().unwrap(), to.as_u64().unwrap());
    for host in ["h1", "h2"] {
        let host = &document["hosts"][host];
        assert_eq!(host["header"], serde_json::json!(["# count"]));
        // The first was seen before the steps began.
        assert!(host["outside"].as_u64().unwrap() >= 1, "{host}");
        let samples = host["samples"].as_array().unwrap();
        assert!(samples.len() >= 2, "{host}");
        for sample in samples {
            let at = sample[0].as_u64().unwrap();
            assert!(from <= at && at <= to, "{sample}");
            assert!(sample[1].as_str().unwrap().starts_with("tick "));
        }
    }
    let record = record(&workspace, "//p:a");
    let told = record["provenance"]["facts"]["monitor.tick.h1"]
        .as_str()
        .unwrap();
    assert!(told.ends_with(" samples"), "{told}");
    assert_eq!(
        record["spec_manifest"]["entries"]["monitor.tick.run"]["class"],
        "scheduling"
    );
    workspace.assert_nothing_runs();

    // With another monitor, or none, the result is the same one.
    platform(&workspace, &TICK.replace("0.02", "0.03"));
    assert_eq!(
        workspace
            .doe(&["build", "//p:all", "--json"])
            .ok()
            .summary()["reused"],
        2
    );
    platform(&workspace, "");
    assert_eq!(
        workspace
            .doe(&["build", "//p:all", "--json"])
            .ok()
            .summary()["reused"],
        2
    );
    // Unless it is said to matter.
    platform(&workspace, &format!("{TICK}in_key = true\n"));
    assert_eq!(
        workspace.doe(&["build", "//p:a", "--json"]).ok().summary()["ok"],
        1
    );
    // Beside another rule it does not run.
    platform(
        &workspace,
        &format!("{TICK}in_key = true\nrules = [\"t.sum\"]\n"),
    );
    assert_eq!(
        workspace.doe(&["build", "//p:a", "--json"]).ok().summary()["reused"],
        1
    );
}

#[test]
fn one_that_would_watch_nothing_is_refused() {
    for (more, message) in [
        (
            "rules = [\"t.two\"]",
            "error[missing-rule]: there is no rule `t.two` to watch",
        ),
        ("rules = [\"u.*\"]", "there is no rule `u.*` to watch"),
        (
            "roles = [\"frist\"]",
            "no rule that `tick` watches has a role `frist`",
        ),
        (
            "during = \"measure\"",
            "no rule that `tick` watches has a step `measure`",
        ),
    ] {
        let workspace = lab(&format!("{TICK}{more}\n"));
        let told = workspace.doe(&["check", "//..."]).exits(3).stdout;
        assert!(told.contains(message), "{told}");
    }
}

#[test]
fn analyses_read_what_is_declared_an_output() {
    let workspace = lab(&format!(
        "{TICK}output = true\nroles = [\"second\"]\nduring = \"go\"\n"
    ));
    workspace.doe(&["build", "//p:all"]).ok();
    let shown = record(&workspace, "//p:a");
    assert_eq!(shown["outputs"]["monitor.tick"]["schema"], "doe-monitor-v1");
    let inputs = workspace
        .doe(&["logs", "//p:s", "--log", "step-sum.stdout"])
        .ok()
        .json();
    let path = inputs[0]["outputs"]["monitor.tick"].as_str().unwrap();
    let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let hosts: Vec<&String> = document["hosts"].as_object().unwrap().keys().collect();
    assert_eq!(hosts, ["h2"]);
    assert!(document["hosts"]["h2"]["samples"].as_array().unwrap().len() >= 2);
}

#[test]
fn a_monitor_that_fails_is_told_and_fails_nothing() {
    let broken = "[[platform.lab.monitor]]\nname = \"none\"\nroles = [\"first\"]\nrun = \"no-such-tool --watch\"\n";
    let workspace = lab(&format!("{TICK}{broken}"));
    let built = workspace.doe(&["build", "//p:a", "--json"]).ok();
    assert_eq!(built.summary()["ok"], 1);
    let events = built.events();
    let said = warned(&events);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with(
            "monitor `none` on host `h1` ended with exit code 127 before the measurement did: "
        ),
        "{said:?}"
    );
    assert!(said[0].contains("no-such-tool"), "{said:?}");
    let record = record(&workspace, "//p:a");
    assert_eq!(record["reusable"], true);
    let told = record["provenance"]["facts"]["monitor.none.h1"]
        .as_str()
        .unwrap();
    assert!(told.contains("exit code 127"), "{told}");
    let again = workspace.doe(&["build", "//p:a", "--json"]).ok();
    assert_eq!(again.summary()["reused"], 1);
}

/// Its last words have no end of line: that it is gone is seen all the same.
#[test]
fn a_monitor_that_dies_in_the_middle_of_a_line_is_told() {
    let torn = "[[platform.lab.monitor]]\nname = \"torn\"\nroles = [\"first\"]\nrun = \"echo one; printf half; exit 7\"\n";
    let workspace = lab(&format!("{TICK}{torn}"));
    let built = workspace.doe(&["build", "//p:a", "--json"]).ok();
    let events = built.events();
    let said = warned(&events);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("monitor `torn` on host `h1` ended with exit code 7 before"),
        "{said:?}"
    );
}

#[test]
fn it_goes_with_its_node_however_that_ends() {
    let workspace = lab(TICK);
    // The node fails.
    workspace.write("scratch/then", "exit 3");
    workspace.doe(&["build", "//p:a"]).exits(1);
    assert_eq!(samples(&workspace)["hosts"]["h1"]["problem"], Value::Null);
    workspace.assert_nothing_runs();
    // It takes too long.
    workspace.write("scratch/then", "while :; do sleep 0.05; done");
    workspace.replace(
        "rules/t.toml",
        "timeout = \"1m\"\nrun = \"\"\"",
        "timeout = \"500ms\"\nrun = \"\"\"",
        1,
    );
    workspace.doe(&["build", "//p:a"]).exits(1);
    workspace.assert_nothing_runs();
    workspace.replace(
        "rules/t.toml",
        "timeout = \"500ms\"\nrun = \"\"\"",
        "timeout = \"1m\"\nrun = \"\"\"",
        1,
    );
    // Somebody cancels it.
    let before = ran(&workspace);
    let (mut child, _) = workspace.spawn(&["build", "//p:a"]);
    wait_for("the step", LONG, || {
        (ran(&workspace) > before).then_some(())
    });
    workspace.doe(&["cancel", "//p:a"]).ok();
    child.wait().unwrap();
    workspace.assert_nothing_runs();
    // Its doe is killed, and nobody is to go on with it.
    workspace.replace(
        "doe.toml",
        "[workspace]\n",
        "[workspace]\nsurvive = \"0s\"\n",
        1,
    );
    let before = ran(&workspace);
    let (mut child, _) = workspace.spawn(&["build", "//p:a"]);
    wait_for("the step", LONG, || {
        (ran(&workspace) > before).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    workspace.assert_nothing_runs();
}

#[test]
fn what_a_killed_doe_left_goes_on_with_its_monitor() {
    let workspace = lab(TICK);
    let scratch = workspace.path().join("scratch");
    workspace.write(
        "scratch/then",
        &format!(
            "while ! test -e {}/go; do sleep 0.02; done",
            scratch.display()
        ),
    );
    let (mut child, _) = workspace.spawn(&["build", "//p:a", "--json"]);
    wait_for("the step", LONG, || (ran(&workspace) > 0).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
    let kinds: Vec<_> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds.iter().filter(|kind| **kind == "monitor").count(),
        2,
        "{jobs}"
    );
    workspace.write("scratch/go", "");
    let built = workspace.doe(&["build", "//p:a", "--json"]).ok();
    assert_eq!((ran(&workspace), &built.summary()["ok"]), (1, &1.into()));
    assert_eq!(warned(&built.events()), Vec::<&str>::new());
    let document = samples(&workspace);
    assert!(document["hosts"]["h2"]["samples"].as_array().unwrap().len() >= 2);
    workspace.assert_nothing_runs();

    // Nobody wants it: its monitors end with it.
    std::fs::remove_file(scratch.join("go")).unwrap();
    let (mut child, _) = workspace.spawn(&["build", "//p:a", "--rerun"]);
    wait_for("the step", LONG, || (ran(&workspace) > 1).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    workspace.doe(&["cancel", "--all"]).ok();
    workspace.assert_nothing_runs();
}

#[test]
fn the_simulated_nvidia_smi_is_one() {
    // What it measures takes seconds, and there is a sample every 200 ms.
    let workspace = Workspace::shipped("0.2");
    let text = workspace.read("doe.toml");
    workspace.write(
        "doe.toml",
        &format!("{text}[[platform.sim.monitor]]\nname = \"gpu\"\nrun = \"nvidia-smi dmon -s pucm -d 1\"\n"),
    );
    let label = "//phase2:p2-baseline-iperf3";
    let built = workspace.doe(&["build", label, "--json"]).ok();
    assert_eq!(warned(&built.events()), Vec::<&str>::new());
    let document = workspace
        .doe(&["logs", label, "--log", "monitor-gpu.json"])
        .ok()
        .json();
    assert_eq!(document["simulated"], true);
    for host in ["node1", "node2"] {
        let host = &document["hosts"][host];
        assert!(
            host["header"][0].as_str().unwrap().starts_with("# gpu"),
            "{host}"
        );
        assert!(!host["samples"].as_array().unwrap().is_empty(), "{host}");
    }
}
