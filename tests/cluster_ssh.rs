//! The campaign over a real connection: two hosts with a network, an sshd and files of their own,
//! simulated tools on their paths, the client killed in the middle. What comes out has the keys
//! that it has on this machine. `DOE_TEST_LONG=1` runs the whole of it.

mod rig;
mod support;

use std::path::Path;
use std::time::Duration;

use rig::Hosts;
use support::{Workspace, wait_for};

const LONG: Duration = Duration::from_secs(400);

/// The shipped campaign, with the hosts as a platform that pretends to be what `sim` pretends.
fn workspace(hosts: &Hosts) -> Workspace {
    let workspace = Workspace::shipped("0.001");
    let sim = std::fs::read_to_string(support::repository().join("src/plan/sim.toml")).unwrap();
    let facts = sim
        .split("[facts]")
        .nth(1)
        .unwrap()
        .split("[host")
        .next()
        .unwrap();
    let (one, two) = (hosts.name(1), hosts.name(2));
    let platform = format!(
        "[platform.sim]\nsim = {{ time_scale = 0.001 }}\n\
         [platform.pair]\nexecutor = \"ssh\"\nsimulated = true\ndynamic_ports = true\n\
         ssh = {{ config = \"{}\", patience = \"60s\" }}\nsim = {{ time_scale = 0.001 }}\n\
         roles = {{ \"*\" = \"{one}\", prefill = \"{one}\", client = \"{one}\", decode = \"{two}\", server = \"{two}\", peer = \"{two}\" }}\n\
         [platform.pair.facts]\n{facts}\n\
         [platform.pair.host.\"{}[1-2]\"]\naddress = \"{}[1-2]\"\nssh = \"{}[1-2]\"\ngpus = 4\n",
        hosts.config().display(),
        hosts.prefix,
        hosts.address(0).trim_end_matches('0'),
        hosts.prefix,
    );
    workspace.write("doe.toml", &platform);
    workspace
}

fn targets() -> Vec<&'static str> {
    if std::env::var_os("DOE_TEST_LONG").is_some() {
        return vec!["//phase2:all"];
    }
    vec![
        "//phase2:L0-Baseline",
        "//phase2:p2-unified-4k-c1",
        "//phase2:p2-efa-4k-c1",
        "//phase2:p2-tcp-4k-c1",
    ]
}

#[test]
fn the_campaign_has_the_same_keys_and_survives_its_client() {
    // The hosts see nothing of this machine's home, nor of the workspace.
    let home = std::env::var("HOME").unwrap();
    let hosts = Hosts::up(2, Some(Path::new(&home)));
    let workspace = workspace(&hosts);
    let mut build = vec!["build"];
    build.extend(targets());
    let pair = [&build[..], &["--platform", "pair", "--json"]].concat();

    let (mut child, out) = workspace.spawn(&pair);
    wait_for("a node that is measured", LONG, || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        let running = text.contains("\"state\":\"running\"");
        let finished = text.contains("node-finished");
        (running && finished).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let summary = workspace.doe(&pair).ok().summary();
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
    let results = workspace
        .doe(&["results", "//phase2:L0-Baseline", "--json"])
        .ok()
        .json();
    assert!(
        results
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["simulated"] == true)
    );

    // Nothing is left running on the hosts but their sshd.
    for number in [1, 2] {
        wait_for("the hosts to be quiet", LONG, || {
            let others = hosts.processes(number).into_iter().filter(|pid| {
                let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                !command.unwrap_or_default().starts_with("sshd")
            });
            (others.count() == 0).then_some(())
        });
    }
}

#[test]
fn no_secret_and_no_plan_value_gets_where_it_does_not_belong() {
    let hosts = Hosts::up(2, None);
    let workspace = workspace(&hosts);
    let ran = workspace.doe(&[
        "build",
        "//phase2:p2-baseline-nvidia-smi",
        "--platform",
        "pair",
        "--json",
    ]);
    let events = ran.ok().stdout;
    let key = std::fs::read_to_string(hosts.dir().join("id")).unwrap();
    let secret = key.lines().nth(2).unwrap();
    assert!(!events.contains(secret));
    // Nothing of the workspace's state holds the key either, and the hosts' folder is private.
    let grep = std::process::Command::new("grep")
        .args(["-rlF", secret])
        .arg(workspace.path())
        .output()
        .unwrap();
    assert!(
        grep.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&grep.stdout)
    );
    let root = Path::new(&std::env::var("HOME").unwrap()).join(".doe-host");
    let mut seen = 0;
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o77, 0);
        seen += 1;
    }
    assert!(seen > 0);
}
