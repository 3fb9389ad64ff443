//! What goes wrong while it runs: a server that dies, Ctrl-C, kill -9. Nothing is lost, nothing is
//! reported that did not happen, and nothing is left running.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::{Workspace, wait_for};

const LONG: Duration = Duration::from_secs(500);

/// Pids of this workspace's processes whose command line has a part.
fn pids(workspace: &Workspace, part: &str) -> Vec<i32> {
    let found = workspace.processes();
    let matching = found.iter().filter(|p| p.contains(part));
    matching
        .map(|p| p.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // Gone already is fine.
    let _ = rustix::process::kill_process(pid, signal);
}

fn events(path: &std::path::Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn wait_running(out: &std::path::Path, label: &str) {
    wait_for(&format!("{label} to run"), LONG, || {
        events(out)
            .iter()
            .any(|e| e["event"] == "node-state" && e["state"] == "running" && e["label"] == label)
            .then_some(())
    });
}

/// A campaign of a few patterns on the simulated platform, slow enough to be hit.
fn small(time_scale: &str) -> Workspace {
    let workspace = Workspace::shipped(time_scale);
    workspace.replace(
        "plans/phase2.toml",
        "measurement_iterations = 30",
        "measurement_iterations = 12",
        1,
    );
    workspace.replace(
        "plans/phase2.toml",
        "warmup_iterations = 10",
        "warmup_iterations = 2",
        1,
    );
    workspace
}

#[test]
fn a_server_that_dies_fails_its_node_and_nothing_else() {
    let workspace = small("0.002");
    // It goes on for longer than others, so that it is hit; so does what it is compared with.
    let next = "[[layer.override]]\nwhen = \"prompt_tokens > 32768\"";
    let longer = "[[layer.override]]\nwhen = \"prompt_tokens == 12288 and concurrency == 16\"\nsettings = { measurement_iterations = 30 }\n";
    let longer = format!("{longer}{next}");
    workspace.replace("plans/phase2.toml", next, &longer, 3);
    let (mut child, out) = workspace.spawn(&["build", "//phase2:all", "--json"]);
    let victim = "//phase2:p2-tcp-12k-c16";
    wait_running(&out, victim);
    let servers = wait_for("the decode server", LONG, || {
        let found = pids(&workspace, "kv_consumer");
        (!found.is_empty()).then_some(found)
    });
    for pid in servers {
        signal(pid, rustix::process::Signal::KILL);
    }
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let events = events(&out);
    let ended = |outcome: &str| -> BTreeSet<String> {
        let of = events
            .iter()
            .filter(|e| e["event"] == "node-finished" && e["outcome"] == outcome);
        of.map(|e| e["label"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(ended("failed"), BTreeSet::from([victim.to_string()]));
    let blocked = ended("blocked");
    let reading = [
        "//phase2:p2-analysis-bimodality-detection",
        "//phase2:p2-analysis-proxy-overhead",
    ];
    assert_eq!(blocked, reading.map(String::from).into());
    let tails: Vec<_> = events
        .iter()
        .filter(|e| e["event"] == "log-tail" && e["label"] == victim)
        .collect();
    assert!(!tails.is_empty(), "no log tail");
    let summary = events.last().unwrap();
    for (name, count) in [("ok", 39), ("failed", 1), ("blocked", 2), ("invalid", 0)] {
        assert_eq!(summary[name], count, "{name} in {summary}");
    }
    workspace.assert_nothing_runs();

    // What failed and what was blocked, and nothing else, runs again.
    let failed = workspace
        .doe(&["list", "@failed", "--format", "label"])
        .ok()
        .stdout;
    let failed: BTreeSet<String> = failed.lines().map(String::from).collect();
    let mut wanted = blocked;
    wanted.insert(victim.to_string());
    assert_eq!(failed, wanted);
    let summary = workspace
        .doe(&["build", "@failed", "--json"])
        .ok()
        .summary();
    assert_eq!(summary["ok"], 3, "{summary}");
    assert_eq!(summary["failed"], 0, "{summary}");
    let summary = workspace
        .doe(&["build", "//phase2:all", "--json"])
        .ok()
        .summary();
    assert_eq!(
        (&summary["ok"], &summary["reused"]),
        (&0.into(), &42.into()),
        "{summary}"
    );
    workspace.assert_nothing_runs();
}

#[test]
fn one_interrupt_lets_what_runs_finish_and_two_cancel_it() {
    let workspace = small("0.01");
    let (mut child, out) = workspace.spawn(&["build", "//phase2:L1-Unified", "--json"]);
    wait_running(&out, "//phase2:p2-unified-4k-c1");
    let pid = i32::try_from(child.id()).unwrap();
    signal(pid, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let finished = |outcome: &str| -> usize {
        let all = events(&out);
        all.iter()
            .filter(|e| e["event"] == "node-finished" && e["outcome"] == outcome)
            .count()
    };
    assert!(finished("ok") >= 4, "what ran was not let finish");
    assert!(
        finished("cancelled") >= 1,
        "what had not begun was not said to be cancelled"
    );
    assert_eq!(finished("failed"), 0);
    workspace.assert_nothing_runs();

    // It goes on until it is cancelled.
    workspace.replace(
        "plans/phase2.toml",
        "measurement_iterations = 12",
        "measurement_iterations = 500",
        1,
    );
    let (mut child, out) = workspace.spawn(&["build", "//phase2:p2-unified-128k-c1", "--json"]);
    wait_running(&out, "//phase2:p2-unified-128k-c1");
    let pid = i32::try_from(child.id()).unwrap();
    signal(pid, rustix::process::Signal::INT);
    // Two that come together count as one.
    wait_for("the word of the first interrupt", LONG, || {
        let mut told = events(&out).into_iter();
        told.any(|e| e["code"] == "interrupted").then_some(())
    });
    signal(pid, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    workspace.assert_nothing_runs();
}

#[test]
fn a_killed_doe_leaves_nothing_running_and_loses_nothing() {
    let workspace = small("0.01");
    // Nothing may outlive it here; what may is tested in `reattach.rs`.
    let head = workspace.read("doe.toml");
    workspace.write(
        "doe.toml",
        &format!("[workspace]\nsurvive = \"0s\"\n{head}"),
    );
    let (mut child, out) = workspace.spawn(&["build", "//phase2:L2-EFA", "--json"]);
    wait_running(&out, "//phase2:p2-efa-4k-c1");
    let done: Vec<String> = events(&out)
        .iter()
        .filter(|e| e["event"] == "node-finished" && e["outcome"] == "ok")
        .map(|e| e["label"].as_str().unwrap().to_string())
        .collect();
    assert!(done.len() >= 4, "{done:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    workspace.assert_nothing_runs();

    // What was announced is durable: the next run takes it, all of it.
    let reused = workspace.planned("//phase2:L2-EFA", "reuse");
    for label in &done {
        assert!(reused.contains(label), "{label} was announced and is lost");
    }
}

#[test]
fn two_builds_at_once_do_not_run_anything_twice() {
    let workspace = small("0.01");
    let (mut first, out) = workspace.spawn(&["build", "//phase2:L1-Unified", "--json"]);
    wait_running(&out, "//phase2:p2-unified-1k-c1");
    let second = workspace.doe(&["build", "//phase2:L1-Unified", "--json", "--wait=0"]);
    assert_eq!(second.code, 5, "{}", second.stderr);
    assert!(
        second.stderr.contains(&first.id().to_string()),
        "{}",
        second.stderr
    );
    // Readers are never in the way.
    workspace.doe(&["status", "//phase2:all"]).ok();
    first.kill().unwrap();
    first.wait().unwrap();
    workspace.doe(&["cancel", "--all"]).ok();
    workspace.assert_nothing_runs();
}
