//! What every executor has to show with the shipped campaign: its client killed in the middle, what
//! was done is kept, and what comes out has the keys that it has on this machine.

use std::time::Duration;

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

/// Builds the targets on a platform, kills that in the middle, builds them again, and holds the
/// keys against those of `sim`.
pub fn survives_its_client(
    workspace: &Workspace,
    platform: &str,
    targets: &[&str],
    within: Duration,
) {
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

    // The same keys: on this machine there is nothing left to do.
    let sim = [&build[..], &["--platform", "sim", "--json"]].concat();
    let again = workspace.doe(&sim).ok().summary();
    assert_eq!(
        (again["ok"].as_u64(), again["reused"].as_u64()),
        (Some(0), Some(total)),
        "{again}"
    );
}
