//! The campaign as jobs of Slurm: a real controller, two nodes with a network of their own,
//! simulated tools on their paths, the client killed in the middle. What comes out has the keys
//! that it has on this machine. `DOE_TEST_LONG=1` runs the whole of it.

#[path = "rig/campaign.rs"]
mod campaign;
mod rig;
#[path = "rig/slurm.rs"]
mod slurm;
mod support;

use std::time::Duration;

use slurm::Slurm;
use support::{Workspace, wait_for};

const LONG: Duration = Duration::from_secs(500);

/// The platform of a cluster: what it shares is below the folder of its rig.
fn platform(slurm: &Slurm, more: &str) -> String {
    let hosts = &slurm.hosts;
    let (one, two) = (hosts.name(1), hosts.name(2));
    format!(
        "[platform.pair]\nexecutor = \"slurm\"\ndynamic_ports = true\n\
         slurm = {{ config = \"{}\", root = \"{}/shared/%w\", partition = \"debug\", patience = \"60s\" }}\n\
         roles = {{ \"*\" = \"{one}\", prefill = \"{one}\", client = \"{one}\", first = \"{one}\", decode = \"{two}\", server = \"{two}\", peer = \"{two}\" }}\n\
         {more}\
         [platform.pair.host.\"{}[1-2]\"]\naddress = \"{}[1-2]\"\ngpus = 4\n",
        slurm.config().display(),
        hosts.dir().display(),
        hosts.prefix,
        hosts.address(0).trim_end_matches('0'),
    )
}

/// Nothing but the rig's daemons is left on the nodes, nothing of ours in the queue.
fn wait_until_quiet(slurm: &Slurm) {
    for number in 1..=slurm.hosts.count {
        wait_for("the nodes to be quiet", LONG, || {
            let others = slurm.hosts.processes(number).into_iter().filter(|pid| {
                let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                let command = command.unwrap_or_default();
                !command.starts_with("sshd") && !command.starts_with("slurmd\0")
            });
            (others.count() == 0).then_some(())
        });
    }
    wait_for("the queue to be empty", LONG, || {
        slurm.ask("squeue", &["-h"]).is_empty().then_some(())
    });
}

#[test]
fn the_campaign_has_the_same_keys_and_survives_its_client() {
    if rig::skipped() {
        return;
    }
    let slurm = Slurm::up(2);
    let workspace = Workspace::shipped("0.001");
    let facts = campaign::facts();
    let more = format!(
        "simulated = true\nsim = {{ time_scale = 0.001 }}\n[platform.pair.facts]\n{facts}\n"
    );
    let sim = "[platform.sim]\nsim = { time_scale = 0.001 }\n";
    workspace.write("doe.toml", &format!("{sim}{}", platform(&slurm, &more)));
    let targets = campaign::targets(&["//phase2:L0-Baseline", "//phase2:p2-efa-4k-c1"]);
    campaign::survives_its_client(&workspace, "pair", &targets, LONG);
    wait_until_quiet(&slurm);

    // No plan value and no name of ours is in what Slurm keeps of the jobs but their tokens' mark.
    let told = slurm.ask("squeue", &["-h", "-r", "-t", "all", "-o", "%j %k"]);
    assert!(!told.is_empty());
    for line in told.lines() {
        let (name, comment) = line.split_once(' ').unwrap();
        assert!(name.starts_with("doe:") && comment == name, "{line}");
    }
}

const RULE: &str = r#"
[t]
param.n = { type = "int", default = 1, doc = "of the steps" }
roles = { first = {}, server = {} }
[[t.service]]
name = "server"
role = "server"
ports = { http = 8000 }
stop_grace = "1s"
ready = { file = "{{ work }}/up", within = "1m" }
run = """
echo {{ self.port.http }} >> SCRATCH/server
touch {{ work }}/up
while sleep 0.05; do :; done
"""
[[t.step]]
name = "one"
role = "first"
timeout = "10m"
run = """
echo {{ n }} >> SCRATCH/one
while ! test -e SCRATCH/go; do sleep 0.05; done
"""
[[t.step]]
name = "two"
role = "first"
timeout = "10m"
run = """
echo {{ n }} >> SCRATCH/two
echo '{"schema": "t-v1", "got": '{{ n }}'}' > {{ out.result }}
"""
[t.output]
result = { path = "r.json", schema = "t-v1" }
[t.metric]
got = { from = "result", at = "/got", unit = "" }
"#;

/// A pattern with a server on the other node, whose first step waits for a file.
fn waiting(slurm: &Slurm) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rule = RULE.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rule);
    let head = "[workspace]\nplatform = \"pair\"\n";
    workspace.write("doe.toml", &format!("{head}{}", platform(slurm, "")));
    workspace.write(
        "plans/t.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"l\"\nrule = \"t.t\"\npattern = \"p\"\nestimate = \"1s\"\nsettings = { n = 1 }\n",
    );
    workspace
}

fn lines(workspace: &Workspace, file: &str) -> usize {
    let text = std::fs::read_to_string(workspace.path().join("scratch").join(file));
    text.unwrap_or_default().lines().count()
}

fn killed(workspace: &Workspace) {
    let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for("the first step", LONG, || {
        (lines(workspace, "one") > 0).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_a_killed_doe_left_goes_on_and_runs_once_or_is_ended() {
    if rig::skipped() {
        return;
    }
    let slurm = Slurm::up(2);
    let workspace = waiting(&slurm);
    killed(&workspace);
    let left = workspace.doe(&["jobs", "--json"]).ok().json();
    let left = left.as_array().unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|job| job["handle"]["executor"] == "slurm"));
    // A controller that is away meanwhile changes nothing.
    slurm.stop_controller();
    workspace.write("scratch/go", "");
    slurm.start_controller();
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    let told = ran.events();
    let told = told.iter().filter(|event| event["code"] == "re-attached");
    assert_eq!(told.count(), 2, "the step and its server");
    for file in ["server", "one", "two"] {
        assert_eq!(lines(&workspace, file), 1, "{file}");
    }
    wait_until_quiet(&slurm);

    std::fs::remove_file(workspace.path().join("scratch/one")).unwrap();
    std::fs::remove_file(workspace.path().join("scratch/go")).unwrap();
    workspace.replace("plans/t.toml", "n = 1", "n = 2", 1);
    killed(&workspace);
    let ended = workspace.doe(&["cancel", "--all", "--json"]).ok().json();
    assert_eq!(ended["ended"].as_array().unwrap().len(), 2, "{ended}");
    wait_until_quiet(&slurm);
}
