//! The campaign over a real connection: two hosts with a network, an sshd and files of their own,
//! simulated tools on their paths, the client killed in the middle. What comes out has the keys
//! that it has on this machine. `DOE_TEST_LONG=1` runs the whole of it.

#[path = "rig/campaign.rs"]
mod campaign;
mod rig;
mod support;

use std::path::Path;
use std::time::Duration;

use rig::Hosts;
use support::{Workspace, wait_for};

const LONG: Duration = Duration::from_secs(400);

/// The shipped campaign, with the hosts as a platform that pretends to be what `sim` pretends.
fn workspace(hosts: &Hosts, root: &str) -> Workspace {
    let workspace = Workspace::shipped("0.001");
    let facts = campaign::facts();
    let (one, two) = (hosts.name(1), hosts.name(2));
    let platform = format!(
        "[platform.sim]\nsim = {{ time_scale = 0.001 }}\n\
         [platform.pair]\nexecutor = \"ssh\"\nsimulated = true\ndynamic_ports = true\n\
         ssh = {{ config = \"{}\", root = \"{root}\", patience = \"60s\" }}\nsim = {{ time_scale = 0.001 }}\n\
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

#[test]
fn the_campaign_has_the_same_keys_and_survives_its_client() {
    let Some(mut told) = rig::told("ssh", "phase2") else {
        return;
    };
    // The hosts see nothing of this machine's home, nor of the workspace.
    let home = std::env::var("HOME").unwrap();
    let hosts = Hosts::up(2, Some(Path::new(&home)));
    let workspace = workspace(&hosts, "~/.doe-host/%w");
    let targets = campaign::targets(&[
        "//phase2:L0-Baseline",
        "//phase2:p2-unified-4k-c1",
        "//phase2:p2-efa-4k-c1",
        "//phase2:p2-tcp-4k-c1",
    ]);
    told.size(&campaign::survives_its_client(
        &workspace, "pair", &targets, LONG,
    ));
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
    wait_until_quiet(&hosts);
}

#[test]
fn folders_on_hosts_are_private_and_no_key_of_ssh_is_kept() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let root = hosts.dir().join("roots");
    let workspace = workspace(&hosts, root.join("%w").to_str().unwrap());
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
    let mut seen = 0;
    for entry in std::fs::read_dir(&root).unwrap().flatten() {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o77, 0);
        seen += 1;
    }
    assert!(seen > 0);
}

const RULE: &str = r#"
[served]
param.n = { type = "int", default = 1, doc = "of the steps" }
roles = { first = {}, second = {} }
[[served.service]]
name = "server"
role = "second"
ports = { http = 8000 }
stop_grace = "1s"
ready = { file = "{{ work }}/up", within = "1m" }
run = """
echo {{ self.port.http }} >> SCRATCH/server
touch {{ work }}/up
while sleep 0.05; do :; done
"""
[[served.step]]
name = "one"
role = "first"
timeout = "10m"
run = "echo {{ n }} >> SCRATCH/one; echo first of {{ n }}; echo kept > {{ work }}/from-one"
[[served.step]]
name = "two"
role = "first"
timeout = "10m"
run = """
echo {{ n }} {{ service.server.port.http }} >> SCRATCH/two
echo second of {{ n }}
while ! test -e SCRATCH/go; do sleep 0.02; done
"""
[[served.step]]
name = "three"
role = "first"
timeout = "10m"
run = """
echo {{ n }} >> SCRATCH/three
cat {{ work }}/from-one
echo '{"schema": "t-v1", "got": '{{ n }}'}' > {{ out.result }}
"""
[served.output]
result = { path = "r.json", schema = "t-v1" }
[served.metric]
got = { from = "result", at = "/got", unit = "" }
"#;

/// Two patterns that share a server on the other host; their steps wait for a file.
fn served(hosts: &Hosts) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rule = RULE.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rule);
    let root = hosts.dir().join("root-%w");
    workspace.write(
        "doe.toml",
        &format!(
            "[workspace]\nplatform = \"pair\"\n\
             [platform.pair]\nexecutor = \"ssh\"\ndynamic_ports = true\n\
             ssh = {{ config = \"{}\", root = \"{}\", patience = \"60s\" }}\n\
             roles = {{ \"*\" = \"{}\", second = \"{}\" }}\n\
             [platform.pair.host.\"{}[1-2]\"]\naddress = \"{}[1-2]\"\nssh = \"{}[1-2]\"\n\
             [platform.here]\nroles = {{ \"*\" = \"h\" }}\ndynamic_ports = true\n\
             [platform.here.host.h]\naddress = \"127.0.0.1\"\n",
            hosts.config().display(),
            root.display(),
            hosts.name(1),
            hosts.name(2),
            hosts.prefix,
            hosts.address(0).trim_end_matches('0'),
            hosts.prefix,
        ),
    );
    let mut plan = "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n".to_string();
    for n in [1, 2] {
        plan.push_str(&format!(
            "[[layer]]\nid = \"l{n}\"\nrule = \"t.served\"\npattern = \"p-{n}\"\nestimate = \"1s\"\nsettings = {{ n = {n} }}\n"
        ));
    }
    workspace.write("plans/t.toml", &plan);
    workspace
}

fn lines(workspace: &Workspace, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace.path().join("scratch").join(file));
    let text = text.unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A build that is killed when the second step has begun.
fn killed(workspace: &Workspace) {
    let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for("the second step", LONG, || {
        (!lines(workspace, "two").is_empty()).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

fn jobs(workspace: &Workspace) -> Vec<serde_json::Value> {
    let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
    jobs.as_array().unwrap().clone()
}

fn warnings(ran: &support::Ran, code: &str) -> Vec<String> {
    let events = ran.events();
    let of = events
        .iter()
        .filter(|e| e["event"] == "warning" && e["code"] == code);
    of.map(|e| e["message"].as_str().unwrap().to_string())
        .collect()
}

/// Nothing but sshd is left on the hosts.
fn wait_until_quiet(hosts: &Hosts) {
    for number in 1..=hosts.count {
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
fn what_a_killed_doe_left_on_hosts_goes_on_and_runs_once() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    killed(&workspace);
    let left = jobs(&workspace);
    let seen: Vec<_> = left
        .iter()
        .map(|job| (job["name"].as_str().unwrap(), job["host"].as_str().unwrap()))
        .collect();
    let (one, two) = (hosts.name(1), hosts.name(2));
    assert_eq!(seen, [("server", two.as_str()), ("two", one.as_str())]);
    assert!(left.iter().all(|job| job["handle"]["executor"] == "ssh"));
    assert!(left.iter().all(|job| job.get("doe_pid").is_none()));

    // On another platform it is left alone, and said.
    let said = workspace.doe(&["cancel", "--all", "--platform", "here"]);
    assert!(said.ok().stdout.contains("--platform pair"));

    // A second build is killed too, while it waits.
    let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    let all_are = |pid: u32| {
        let all = jobs(&workspace);
        (all.len() == 2 && all.iter().all(|job| job["doe_pid"] == pid)).then_some(())
    };
    wait_for("the second doe", LONG, || all_are(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, out) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for("the third doe", LONG, || all_are(child.id()));
    let handles = |jobs: Vec<serde_json::Value>| -> Vec<_> {
        jobs.into_iter().map(|job| job["handle"].clone()).collect()
    };
    assert_eq!(handles(jobs(&workspace)), handles(left));
    let log = workspace.path().join("steps.txt");
    let mut follower = workspace
        .command(&["attach", "//t:p-1"])
        .stdout(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    wait_for("the step's log", LONG, || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("second of 1").then_some(())
    });
    workspace.write("scratch/go", "");
    let status = child.wait().unwrap();
    assert!(
        status.success(),
        "{}",
        std::fs::read_to_string(out).unwrap()
    );
    assert!(follower.wait().unwrap().success());
    let ended = support::Ran::of_files(&workspace);
    assert_eq!(ended.summary()["ok"], 2, "{}", ended.summary());
    assert_eq!(warnings(&ended, "re-attached").len(), 2);
    assert_eq!(lines(&workspace, "server").len(), 1, "one server for both");
    assert_eq!(lines(&workspace, "one"), ["1", "2"]);
    assert_eq!(lines(&workspace, "three"), ["1", "2"]);
    let port = &lines(&workspace, "server")[0];
    assert_eq!(
        lines(&workspace, "two"),
        [format!("1 {port}"), format!("2 {port}")]
    );
    let logs = workspace.doe(&["logs", "//t:p-1"]).ok().stdout;
    for part in ["first of 1", "second of 1", "kept"] {
        assert!(logs.contains(part), "{part} is not in\n{logs}");
    }
    assert_eq!(jobs(&workspace), Vec::<serde_json::Value>::new());
    wait_until_quiet(&hosts);
}

#[test]
fn what_nobody_wants_any_more_is_ended_on_its_host() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    killed(&workspace);
    assert_eq!(jobs(&workspace).len(), 2);
    let ended = workspace.doe(&["cancel", "--all", "--json"]).ok().json();
    assert_eq!(ended["ended"].as_array().unwrap().len(), 2, "{ended}");
    assert_eq!(jobs(&workspace), Vec::<serde_json::Value>::new());
    wait_until_quiet(&hosts);

    // A step dies with its wrapper while nobody looks: it runs anew, with a server of its own kind.
    std::fs::remove_file(workspace.path().join("scratch/two")).unwrap();
    killed(&workspace);
    hosts.kill(1);
    hosts.revive(1);
    workspace.write("scratch/go", "");
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 2, "{}", ran.summary());
    let said = warnings(&ran, "leftovers");
    assert!(said.iter().any(|said| said.contains("//t:p-1")), "{said:?}");
    wait_until_quiet(&hosts);
}

/// Names another `doe` to ship.
fn ships(workspace: &Workspace, doe: &Path) {
    let doe = format!("ssh = {{ doe = \"{}\", ", doe.display());
    workspace.replace("doe.toml", "ssh = { ", &doe, 1);
}

/// A `doe` that looks as a dynamic program looks to a host without its loader.
fn broken_doe(hosts: &Hosts) -> std::path::PathBuf {
    let broken = hosts.dir().join("another-doe");
    std::fs::write(&broken, "#!/lib/ld-of-another-machine.so\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&broken, mode).unwrap();
    broken
}

#[test]
fn a_doe_that_does_not_run_on_hosts_is_said_at_once() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    ships(&workspace, &broken_doe(&hosts));
    // On the first host a step calls it; on the second there is only the server.
    let call =
        "cat {{ work }}/from-one\ndoe parse iperf3 {{ work }}/from-one --out {{ work }}/never";
    workspace.replace("rules/t.toml", "cat {{ work }}/from-one", call, 1);
    let refused = workspace.doe(&["build", "//t:all"]).exits(4).stderr;
    let who = format!("on `{}`, and rule `t.served` calls it", hosts.name(1));
    for told in ["does not run on a host", ".ci/static-doe", &who] {
        assert!(refused.contains(told), "{told}: {refused}");
    }
    assert!(
        !refused.contains(&format!("`{}`", hosts.name(2))),
        "{refused}"
    );
    assert!(lines(&workspace, "server").is_empty());
    wait_until_quiet(&hosts);
}

#[test]
fn a_host_that_doe_does_not_run_on_does_all_that_does_not_call_it() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    ships(&workspace, &broken_doe(&hosts));
    workspace.write("scratch/go", "");
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 2, "{}", ran.summary());
    // It was not even sent there.
    let shipped = std::fs::read(hosts.dir().join("another-doe")).unwrap();
    let name = doe_cache::Digest::of(&shipped).hex();
    for root in std::fs::read_dir(hosts.dir()).unwrap().flatten() {
        assert!(!root.path().join("blobs").join(&name).exists(), "{name}");
    }
    // A monitor is stamped by it.
    let head = workspace.read("doe.toml");
    let monitor = "[[platform.pair.monitor]]\nname = \"load\"\nroles = [\"second\"]\nrun = \"cat /proc/loadavg\"\n";
    workspace.write("doe.toml", &format!("{head}{monitor}"));
    workspace.replace("plans/t.toml", "n = 2 }", "n = 3 }", 1);
    let refused = workspace.doe(&["build", "//t:all"]).exits(4).stderr;
    let who = format!("on `{}`, and monitor `load` calls it", hosts.name(2));
    assert!(refused.contains(&who), "{refused}");
    wait_until_quiet(&hosts);
}

/// A step on each of eight hosts, which ends when all eight have begun.
fn wide(hosts: &Hosts) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let scratch = scratch.to_str().unwrap();
    let roles: Vec<String> = (1..=8).map(|number| format!("r{number} = {{}}")).collect();
    let mut rule = format!(
        "[wide]\nparam.n = {{ type = \"int\", doc = \"which\" }}\nroles = {{ {} }}\n",
        roles.join(", ")
    );
    for number in 1..=8 {
        rule.push_str(&format!(
            "[[wide.step]]\nname = \"s{number}\"\nrole = \"r{number}\"\ngang = \"all\"\ntimeout = \"5m\"\nrun = \"\"\"\n\
             mkdir -p {scratch}/{{{{ n }}}}\necho {{{{ self.host }}}} {{{{ self.ip }}}} > {scratch}/{{{{ n }}}}/{number}\n\
             while test $(ls {scratch}/{{{{ n }}}} | wc -l) -lt 8; do sleep 0.05; done\n"
        ));
        let left = if number == 1 {
            "echo done > {{ out.result }}\n"
        } else {
            ""
        };
        rule.push_str(&format!("{left}\"\"\"\n"));
    }
    rule.push_str("[wide.output]\nresult = { path = \"r.txt\" }\n");
    workspace.write("rules/t.toml", &rule);
    let roles: Vec<String> = (1..=8)
        .map(|number| format!("r{number} = \"{}\"", hosts.name(number)))
        .collect();
    workspace.write(
        "doe.toml",
        &format!(
            "[workspace]\nplatform = \"many\"\n[platform.many]\nexecutor = \"ssh\"\n\
             ssh = {{ config = \"{}\", root = \"{}/root-%w\", patience = \"120s\" }}\nroles = {{ {} }}\n\
             [platform.many.host.\"{prefix}[1-8]\"]\naddress = \"{net}.[1-8]\"\nssh = \"{prefix}[1-8]\"\n",
            hosts.config().display(),
            hosts.dir().display(),
            roles.join(", "),
            prefix = hosts.prefix,
            net = hosts.net,
        ),
    );
    let mut plan = "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n".to_owned();
    for n in [1, 2, 3] {
        plan.push_str(&format!(
            "[[layer]]\nid = \"l{n}\"\nrule = \"t.wide\"\npattern = \"p-{n}\"\nestimate = \"1s\"\nsettings = {{ n = {n} }}\n"
        ));
    }
    workspace.write("plans/t.toml", &plan);
    workspace
}

/// How often the sshd of a host has said so.
fn said(hosts: &Hosts, number: u32, words: &str) -> usize {
    let log = hosts.dir().join(format!("sshd-{number}.log"));
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn eight_hosts_are_connected_to_at_once_and_once_each() {
    let Some(mut told) = rig::told("ssh", "eight hosts at once") else {
        return;
    };
    let hosts = Hosts::up(8, None);
    let workspace = wide(&hosts);
    let accepted = |number| said(&hosts, number, "Accepted publickey");
    let ssh = std::fs::read_to_string(hosts.dir().join("sshd-1.pid")).unwrap();
    let first = |signal: &str| {
        rig::run(std::process::Command::new("kill").args([signal, ssh.trim()]));
    };
    let counts = || [1, 2, 3, 4, 5, 6, 7, 8].map(accepted);
    // The first one does not answer before all others have: nobody waits for it. A host that is
    // looked for the first time has ten seconds, and on a busy machine that may be too little.
    let mut tries = 0..6;
    let before = loop {
        tries.next().expect("the hosts were never connected to");
        let before = counts();
        first("-STOP");
        let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
        let others = || {
            counts()[1..]
                .iter()
                .zip(&before[1..])
                .all(|(now, then)| now > then)
        };
        while !others() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let all = others() && counts()[0] == before[0];
        first("-CONT");
        if child.wait().unwrap().success() && all {
            break before;
        }
    };
    let ran = support::Ran::of_files(&workspace);
    assert_eq!(ran.summary()["ok"], 3, "{}", ran.summary());
    for n in 1..=3 {
        for number in 1..=8 {
            let told = workspace.read(&format!("scratch/{n}/{number}"));
            let there = format!("{} {}\n", hosts.name(number), hosts.address(number));
            assert_eq!(told, there);
        }
    }
    // Many commands, one connection.
    let mut commands = 0;
    for number in 1..=8 {
        let connections = accepted(number) - before[number as usize - 1];
        assert_eq!(connections, 1, "host {number}");
        commands += said(&hosts, number, "Starting session: command");
    }
    assert!(commands >= 8 * 3 * 3, "{commands}");
    told.size(&format!("8 connections, {commands} commands"));
    wait_until_quiet(&hosts);
}

/// The program that `.ci/static-doe` builds, where it was built.
fn static_doe() -> Option<std::path::PathBuf> {
    let target = format!("target/{}-unknown-linux-musl", std::env::consts::ARCH);
    let built = ["release", "debug"].map(|folder| {
        let path = support::repository().join(&target).join(folder);
        path.join("doe")
    });
    built.into_iter().find(|path| path.is_file())
}

#[test]
fn a_static_doe_is_shipped_and_measures_alike() {
    let Some(told) = rig::told("ssh", "a static doe is shipped") else {
        return;
    };
    let Some(doe) = static_doe() else {
        let note = b"SKIPPED: there is no static doe: `.ci/static-doe` builds one\n";
        std::io::Write::write_all(&mut std::io::stderr(), note).unwrap();
        told.skip("no static doe: .ci/static-doe builds one");
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = workspace(&hosts, hosts.dir().join("roots/%w").to_str().unwrap());
    ships(&workspace, &doe);
    let target = "//phase2:p2-efa-4k-c1";
    let build = |platform: &str| {
        let ran = workspace.doe(&["build", target, "--platform", platform, "--json"]);
        ran.ok().summary()
    };
    let there = build("pair");
    assert_eq!(there["failed"], 0, "{there}");
    let shipped = std::fs::read(&doe).unwrap();
    let name = doe_cache::Digest::of(&shipped).to_string();
    let name = name.rsplit(':').next().unwrap();
    let roots = std::fs::read_dir(hosts.dir().join("roots")).unwrap();
    let mut blobs = roots.flatten().map(|root| root.path().join("blobs"));
    assert!(blobs.any(|blobs| blobs.join(name).is_file()), "{name}");
    // It is in no key: here there is nothing left to do.
    assert_eq!(build("sim")["ok"], 0);
}

#[test]
fn a_build_with_nothing_to_do_connects_to_nobody() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    workspace.write("scratch/go", "");
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 2, "{}", ran.summary());
    // Whoever connects now fails.
    hosts.link(1, false);
    hosts.link(2, false);
    let done = |arguments: &[&str]| {
        let summary = workspace.doe(arguments).ok().summary();
        assert_eq!((&summary["ok"], &summary["reused"]), (&0.into(), &2.into()));
    };
    done(&["build", "//t:all", "--json", "--no-recall"]);
    // The first time that something is asked, and after an edit that is in no key.
    done(&["build", "//t:p-1", "//t:p-2", "--json"]);
    let plan = workspace.read("plans/t.toml");
    workspace.write("plans/t.toml", &format!("# a remark\n{plan}"));
    done(&["build", "//t:all", "--json"]);
    // What is to run is said to need its hosts.
    workspace.replace(
        "plans/t.toml",
        "settings = { n = 2 }",
        "settings = { n = 3 }",
        1,
    );
    let refused = workspace.doe(&["build", "//t:all"]).exits(4).stderr;
    assert!(refused.contains("did not answer"), "{refused}");
    hosts.link(1, true);
    hosts.link(2, true);
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    wait_until_quiet(&hosts);
}

#[test]
fn what_nobody_comes_back_for_ends_on_its_host() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    let head = workspace.read("doe.toml");
    let head = head.replace(
        "platform = \"pair\"",
        "platform = \"pair\"\nsurvive = \"2s\"",
    );
    workspace.write("doe.toml", &head.replace("\"60s\"", "\"10s\""));
    killed(&workspace);
    assert_eq!(jobs(&workspace).len(), 2);
    // Nobody connects to a host any more.
    wait_until_quiet(&hosts);
    std::fs::remove_file(workspace.path().join("scratch/two")).unwrap();
    workspace.write("scratch/go", "");
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 2, "{}", ran.summary());
    assert_eq!(warnings(&ran, "re-attached"), Vec::<String>::new());
    let said = warnings(&ran, "leftovers");
    let why = "nobody attended to it";
    assert!(said.iter().any(|said| said.contains(why)), "{said:?}");
    wait_until_quiet(&hosts);
}

#[test]
fn hosts_say_what_they_are_before_anything_runs_on_them() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let workspace = served(&hosts);
    let scratch = workspace.path().join("scratch");
    workspace.write("scratch/go", "");
    workspace.write("scratch/driver", "570.86");
    let rules = workspace.read("rules/t.toml");
    let probe = "[host]\nkind = \"probe\"\nfact.kernel = { run = \"uname -r\" }\n\
         fact.address = { run = \"ip -4 -o addr show dev eth0 | awk '{ print $4 }'\" }\n\
         fact.driver = { type = \"version\", run = \"cat SCRATCH/driver\" }\n";
    let probe = probe.replace("SCRATCH", scratch.to_str().unwrap());
    // What is measured takes until both monitors have said something.
    let runs = hosts.dir().join("root-*/runs");
    let spoke = support::monitors_spoke(runs.to_str().unwrap(), "load");
    let one = "run = \"echo {{ n }} >> SCRATCH/one; echo first of {{ n }}; echo kept > {{ work }}/from-one\"";
    let one = one.replace("SCRATCH", scratch.to_str().unwrap());
    assert!(rules.contains(&one), "{rules}");
    let waits = one.replace("run = \"", "run = \"\"\"\n");
    let waits = waits.trim_end_matches('"').to_owned() + &spoke + "\"\"\"";
    let rules = rules.replace(&one, &waits);
    workspace.write("rules/t.toml", &format!("{rules}{probe}"));
    workspace.replace(
        "doe.toml",
        "executor = \"ssh\"\n",
        "executor = \"ssh\"\nprobe = \"t.host\"\nfacts_in_key = [\"kernel\", \"driver\"]\n",
        1,
    );
    let plan = workspace.read("plans/t.toml");
    let monitor = "[[platform.pair.monitor]]\nname = \"load\"\nrun = \"while :; do cat /proc/loadavg; sleep 0.05; done\"\n";
    let head = workspace.read("doe.toml");
    workspace.write("doe.toml", &format!("{head}{monitor}"));
    let wanted = format!("second = {{ address = \"{}/24\" }}", hosts.address(1));
    workspace.write("plans/t.toml", &format!("[requires]\n{wanted}\n{plan}"));
    let refused = workspace.doe(&["build", "//t:all"]).exits(3).stderr;
    let (is, name) = (hosts.address(2), hosts.name(2));
    assert!(
        refused.contains(&format!("`address` of host `{name}` is `{is}/24`")),
        "{refused}"
    );
    assert!(lines(&workspace, "server").is_empty() && lines(&workspace, "one").is_empty());
    wait_until_quiet(&hosts);

    workspace.replace("plans/t.toml", &wanted, "driver = \">= 570\"", 1);
    let ran = workspace.doe(&["build", "//t:all", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 2, "{}", ran.summary());
    let log = ["logs", "//t:p-1", "--log", "monitor-load.json"];
    let seen = workspace.doe(&log).ok().json();
    for number in [1, 2] {
        let host = &seen["hosts"][hosts.name(number)];
        assert_eq!(host["problem"], serde_json::Value::Null, "{host}");
        assert!(!host["samples"].as_array().unwrap().is_empty(), "{host}");
    }
    workspace.write("scratch/driver", "580.1");
    let probed = workspace.doe(&["probe", "--json"]).ok().json();
    for number in [1, 2] {
        let facts = &probed["hosts"][hosts.name(number)]["facts"];
        assert_eq!(facts["address"], format!("{}/24", hosts.address(number)));
        assert_eq!(facts["driver"], "580.1");
    }
    let explained = workspace.doe(&["explain", "//t:p-1"]).ok().stdout;
    let told = format!("+ \"580.1\"  (host `{name}`, read ");
    assert!(
        explained.contains("fact.second.driver") && explained.contains(&told),
        "{explained}"
    );
    // Nothing of the probes is left on the hosts.
    wait_until_quiet(&hosts);
    for root in std::fs::read_dir(hosts.dir()).unwrap().flatten() {
        let runs = root.path().join("runs");
        if let Ok(runs) = std::fs::read_dir(runs) {
            let names = runs
                .flatten()
                .map(|entry| entry.file_name().into_string().unwrap());
            let probes: Vec<_> = names.filter(|name| name.contains("probe")).collect();
            assert_eq!(probes, Vec::<String>::new());
        }
    }
}
