//! The campaign as jobs of Slurm: a real controller, two nodes with a network of their own,
//! simulated tools on their paths, the client killed in the middle. What comes out has the keys
//! that it has on this machine. `DOE_TEST_LONG=1` runs the whole of it.

#[path = "rig/campaign.rs"]
mod campaign;
mod rig;
#[path = "rig/slurm.rs"]
mod slurm;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use slurm::Slurm;
use support::{Ran, Workspace, wait_for};

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
    let Some(mut told) = rig::told("slurm", "phase2") else {
        return;
    };
    let slurm = Slurm::up(2);
    let workspace = Workspace::shipped("0.001");
    let facts = campaign::facts();
    let more = format!(
        "simulated = true\nsim = {{ time_scale = 0.001 }}\n[platform.pair.facts]\n{facts}\n"
    );
    let sim = "[platform.sim]\nsim = { time_scale = 0.001 }\n";
    workspace.write("doe.toml", &format!("{sim}{}", platform(&slurm, &more)));
    let targets = campaign::targets(&["//phase2:L0-Baseline", "//phase2:p2-efa-4k-c1"]);
    told.size(&campaign::survives_its_client(
        &workspace, "pair", &targets, LONG,
    ));
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
    let Some(_told) = rig::own("slurm") else {
        return;
    };
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

#[test]
fn what_a_killed_doe_left_ends_itself_when_no_build_comes() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let slurm = Slurm::up(2);
    let workspace = waiting(&slurm);
    let head = "[workspace]\nsurvive = \"10s\"\n";
    workspace.replace("doe.toml", "[workspace]\n", head, 1);
    workspace.replace("doe.toml", "patience = \"60s\"", "patience = \"10s\"", 1);
    killed(&workspace);
    // Nobody comes: nothing but time passes.
    wait_until_quiet(&slurm);
    workspace.write("scratch/go", "");
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    for (file, times) in [("server", 2), ("one", 2), ("two", 1)] {
        assert_eq!(lines(&workspace, file), times, "{file}");
    }
    wait_until_quiet(&slurm);
}

/// A cluster of two nodes to measure on and two for drivers, and its workspace.
fn detached(driver: &str) -> (Slurm, Workspace) {
    let slurm = Slurm::up(4);
    let workspace = waiting(&slurm);
    let driver = format!("patience = \"60s\", driver = {{ partition = \"drivers\"{driver} }}");
    workspace.replace("doe.toml", "patience = \"60s\"", &driver, 1);
    (slurm, workspace)
}

/// The drivers that `doe jobs` shows, and how many other jobs.
fn drivers(workspace: &Workspace) -> (Vec<serde_json::Value>, usize) {
    let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
    let jobs = jobs.as_array().unwrap().clone();
    let (drivers, others): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| job["kind"] == "driver");
    for other in &others {
        assert!(other["doe_pid"].is_u64(), "somebody drives: {other}");
    }
    (drivers, others.len())
}

/// Waits until a driver later than this one runs the build: its job and its node.
fn driver_after(workspace: &Workspace, last: &str) -> (String, String) {
    wait_for("the next driver", LONG, || {
        std::thread::sleep(Duration::from_millis(300));
        let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
        let jobs = jobs.as_array().unwrap();
        let job = jobs
            .iter()
            .find(|job| job["kind"] == "driver" && job["state"] == "RUNNING")?;
        let text = |key: &str| job[key].as_str().unwrap().to_owned();
        let steps = jobs.iter().filter(|job| job["doe_pid"].is_u64());
        (text("job") != last && steps.count() == 2).then(|| (text("job"), text("host")))
    })
}

#[test]
fn a_detached_build_goes_on_without_its_client_and_outlives_its_drivers() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let (slurm, workspace) = detached(", count = 4, time = \"1h\"");
    // Drivers are on machines with other names than the client's.
    let nothing = tempfile::tempdir().unwrap();
    for at in [3, 4] {
        slurm.kill_daemon(at);
        slurm.start_daemon_elsewhere(at, nothing.path());
    }
    slurm.wait_until_up();
    let told = workspace.doe(&["build", "//t:all", "--detach", "--json"]);
    let told = told.ok().json();
    assert_eq!(told["drivers"], 4, "{told}");
    let (first, _) = driver_after(&workspace, "");
    assert_eq!(told["job"], first.as_str());
    let (seen, others) = drivers(&workspace);
    assert_eq!((seen.len(), others), (4, 2), "{seen:?}");
    let waits = |job: &&serde_json::Value| job["state"] == "PENDING (Dependency)";
    assert_eq!(seen.iter().filter(waits).count(), 3, "{seen:?}");
    let again = workspace.doe(&["build", "//t:all", "--detach"]).exits(5);
    assert!(
        again.stderr.contains(&format!("job {first} on")),
        "{}",
        again.stderr
    );
    let (mut attached, followed) = workspace.spawn(&["attach", "--json"]);
    let is_followed = |drivers: usize| {
        wait_for("who follows to see it", LONG, || {
            let told = std::fs::read_to_string(&followed).unwrap_or_default();
            (told.matches("\"run-started\"").count() == drivers).then_some(())
        });
    };
    is_followed(1);

    // Killed, told to go as at the end of its time, its node lost.
    slurm.ask("scancel", &["--full", "--signal=KILL", &first]);
    let (second, _) = driver_after(&workspace, &first);
    is_followed(2);
    slurm.ask("scancel", &[&second]);
    let (third, node) = driver_after(&workspace, &second);
    is_followed(3);
    let at = (1..=4).find(|at| slurm.hosts.name(*at) == node).unwrap();
    slurm.hosts.kill(at);
    driver_after(&workspace, &third);
    is_followed(4);
    for file in ["server", "one"] {
        assert_eq!(lines(&workspace, file), 1, "{file}");
    }
    workspace.write("scratch/go", "");
    assert!(attached.wait().unwrap().success(), "the build went well");
    for file in ["server", "one", "two"] {
        assert_eq!(lines(&workspace, file), 1, "{file}");
    }
    wait_until_quiet(&slurm);
    assert_eq!(drivers(&workspace), (Vec::new(), 0));
    let again = workspace
        .doe(&["build", "//t:all", "--json"])
        .ok()
        .summary();
    assert_eq!(
        (again["ok"].as_u64(), again["reused"].as_u64()),
        (Some(0), Some(1))
    );

    // One that ends well leaves nobody to take over.
    let told = workspace.doe(&["build", "//t:all", "--detach", "--json"]);
    let log = told.ok().json()["log"].as_str().unwrap().to_owned();
    wait_until_quiet(&slurm);
    let chain = std::path::Path::new(&log).parent().unwrap();
    let over = std::fs::read_to_string(chain.join("over")).unwrap();
    assert_eq!(over, "1 0\n");
    assert!(!chain.join("begun-2").exists());
    assert!(
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("\"reused\":1")
    );
}

#[test]
fn a_detached_build_can_be_cancelled_and_tells_what_keeps_it_from_beginning() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let (slurm, workspace) = detached("");
    let build = ["build", "//t:all", "--detach"];
    let elsewhere = workspace.doe(&[&build[..], &["--platform", "sim"]].concat());
    let elsewhere = elsewhere.exits(2).stderr;
    assert!(elsewhere.contains("its executor is `local`"), "{elsewhere}");
    assert!(slurm.ask("squeue", &["-h"]).is_empty());

    // While it runs. No answer to any submission arrives, neither at the client nor at the driver.
    workspace.write(
        "lossy/sbatch",
        "#!/bin/sh\nPATH=${PATH#*:}\nsbatch \"$@\" >/dev/null || exit\necho 'Unable to contact slurm controller' >&2\nexit 1\n",
    );
    let lossy = workspace.path().join("lossy");
    let program = lossy.join("sbatch");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", lossy.display(), std::env::var("PATH").unwrap());
    let detached = workspace.command(&build).env("PATH", path).output();
    Ran::of(&build, detached.unwrap()).ok();
    driver_after(&workspace, "");
    assert_eq!(drivers(&workspace).0.len(), 4);
    let names = slurm.ask("squeue", &["-h", "-a", "-t", "all", "-o", "%j"]);
    let mut once: Vec<_> = names.lines().collect();
    once.sort_unstable();
    once.dedup();
    assert_eq!(
        once.len(),
        names.lines().count(),
        "nothing was submitted twice: {names}"
    );
    let cancelled = workspace.doe(&["cancel", "--all"]).ok().stdout;
    assert!(cancelled.contains("cancelling everything"), "{cancelled}");
    wait_until_quiet(&slurm);
    assert_eq!(drivers(&workspace), (Vec::new(), 0));

    // While it waits.
    let nodes = [3, 4].map(|at| slurm.hosts.name(at));
    let set = |state: &str| {
        for node in &nodes {
            let node = format!("nodename={node}");
            let state = format!("state={state}");
            slurm.ask("scontrol", &["update", &node, &state, "reason=test"]);
        }
    };
    set("drain");
    let told = workspace.doe(&build).ok().stdout;
    assert!(told.contains("will drive the build: PENDING"), "{told}");
    let (waiting, _) = drivers(&workspace);
    assert_eq!(waiting.len(), 4);
    workspace.doe(&["cancel", "--all"]).ok();
    wait_until_quiet(&slurm);
    workspace.doe(&["attach"]).exits(2);
    set("resume");

    // Where the workspace is not.
    for at in [3, 4] {
        slurm.kill_daemon(at);
        slurm.start_daemon_elsewhere(at, workspace.path());
    }
    slurm.wait_until_up();
    let error = workspace.doe(&build).exits(4).stderr;
    assert!(error.contains("does not see the workspace"), "{error}");
    wait_until_quiet(&slurm);
    assert_eq!(lines(&workspace, "two"), 0);
}

/// Needs no cluster: nothing is connected to.
#[test]
fn gpus_that_two_members_of_a_gang_would_wait_for_are_found_by_check() {
    let workspace = Workspace::empty();
    let member = |name: &str| {
        format!(
            "[[t.step]]\nname = \"{name}\"\nrole = \"pair\"\ngang = \"both\"\ntimeout = \"1m\"\nrun = \"touch {{{{ out.result }}}}\"\n"
        )
    };
    let rule = format!(
        "[t]\nroles = {{ pair = {{ gpus = 2 }} }}\n{}{}[t.output]\nresult = {{ path = \"r.json\", schema = \"t-v1\" }}\n",
        member("one"),
        member("two")
    );
    workspace.write("rules/t.toml", &rule);
    workspace.write(
        "plans/t.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"l\"\nrule = \"t.t\"\npattern = \"p\"\nestimate = \"1s\"\n",
    );
    let platform = |slurm: &str| {
        format!(
            "[workspace]\nplatform = \"pair\"\n[platform.pair]\nexecutor = \"slurm\"\nroles = {{ \"*\" = \"n1\" }}\n{slurm}[platform.pair.host.n1]\ngpus = 4\n"
        )
    };
    workspace.write("doe.toml", &platform(""));
    workspace.doe(&["check", "//t:all"]).ok();
    workspace.write("doe.toml", &platform("slurm = { gres = \"gpu\" }\n"));
    let found = workspace.doe(&["check", "//t:all"]).exits(3).stdout;
    assert!(found.contains("too-many-gpus"), "{found}");
    assert!(
        found.contains("would each ask Slurm for the 2 GPUs"),
        "{found}"
    );
    workspace.replace("rules/t.toml", "gpus = 2", "gpus = 8", 1);
    let found = workspace.doe(&["check", "//t:all"]).exits(3).stdout;
    assert!(found.contains("8 GPUs are asked of host"), "{found}");
}

const GANG: &str = r#"
[g]
roles = { first = {}, server = {} }
[[g.step]]
name = "before"
role = "first"
timeout = "10m"
run = """
echo run >> SCRATCH/before
while ! test -e SCRATCH/busy; do sleep 0.05; done
"""
[[g.step]]
name = "decode"
gang = "pair"
role = "server"
timeout = "10m"
run = """
echo run >> SCRATCH/decode
while ! test -e SCRATCH/go; do sleep 0.05; done
"""
[[g.step]]
name = "prefill"
gang = "pair"
role = "first"
timeout = "10m"
ready = { file = "{{ work }}/up", within = "12s" }
run = """
echo run >> SCRATCH/prefill
while ! test -e SCRATCH/decode; do sleep 0.05; done
touch {{ work }}/up
while ! test -e SCRATCH/go; do sleep 0.05; done
"""
[[g.step]]
name = "client"
gang = "pair"
role = "first"
after = ["prefill"]
timeout = "10m"
run = """
echo run >> SCRATCH/client
while ! test -e SCRATCH/go; do sleep 0.05; done
echo '{}' > {{ out.result }}
"""
[g.output]
result = { path = "r.json" }
"#;

#[test]
fn a_gang_on_two_nodes_is_one_job_and_survives_its_client() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let slurm = Slurm::up(2);
    let workspace = waiting(&slurm);
    let scratch = workspace.path().join("scratch");
    let rule = GANG.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rule);
    workspace.replace("plans/t.toml", "t.t", "t.g", 1);
    workspace.replace("plans/t.toml", "settings = { n = 1 }\n", "", 1);
    let build = ["build", "//t:all", "--json"];
    let (mut child, _) = workspace.spawn(&build);
    wait_for("the step before", LONG, || {
        (lines(&workspace, "before") > 0).then_some(())
    });
    // Somebody has one of the nodes for longer than a start waits for it, and than a member that has
    // begun may take to get ready.
    let node = format!("--nodelist={}", slurm.hosts.name(2));
    let busy = ["--exclusive", &node, "--output=/dev/null", "--chdir=/"];
    slurm.ask("sbatch", &[&busy[..], &["--wrap=sleep 30"]].concat());
    wait_for("the node to be busy", LONG, || {
        let there = slurm.ask("squeue", &["-h", "-t", "R", "-w", &slurm.hosts.name(2)]);
        (!there.is_empty()).then_some(())
    });
    workspace.write("scratch/busy", "");
    wait_for("the whole gang", LONG, || {
        (lines(&workspace, "client") > 0).then_some(())
    });
    let jobs = slurm.ask("squeue", &["-h", "-r", "-S", "i", "-o", "%i %N %k"]);
    let jobs: Vec<Vec<&str>> = jobs.lines().map(|line| line.split(' ').collect()).collect();
    let [decode, prefill, client] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    let number = decode[0].strip_suffix("+0").unwrap();
    assert_eq!(prefill[0], format!("{number}+1"), "{jobs:?}");
    assert_eq!(decode[2], prefill[2], "{jobs:?}");
    let nodes = [decode[1], prefill[1], client[1]];
    assert_eq!(nodes, [2, 1, 1].map(|at| slurm.hosts.name(at)));
    assert!(
        client[2] != decode[2] && !client[0].contains('+'),
        "{jobs:?}"
    );

    child.kill().unwrap();
    child.wait().unwrap();
    let left = workspace.doe(&["jobs", "--json"]).ok().json();
    assert_eq!(left.as_array().unwrap().len(), 3, "{left}");
    workspace.write("scratch/go", "");
    let ran = workspace.doe(&build).ok();
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    let told = ran.events();
    let told = told.iter().filter(|event| event["code"] == "re-attached");
    assert_eq!(told.count(), 1, "one pattern");
    for file in ["before", "decode", "prefill", "client"] {
        assert_eq!(lines(&workspace, file), 1, "{file}");
    }
    wait_until_quiet(&slurm);

    // One that fails ends all, and their job goes with them.
    std::fs::remove_file(scratch.join("go")).unwrap();
    std::fs::remove_file(scratch.join("client")).unwrap();
    workspace.replace("rules/t.toml", "touch {{ work }}/up\n", "exit 9\n", 1);
    let ran = workspace.doe(&build).exits(1);
    assert!(ran.stdout.contains("exit code 9"), "{}", ran.stdout);
    assert_eq!(lines(&workspace, "client"), 0);
    wait_until_quiet(&slurm);
}
