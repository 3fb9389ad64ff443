//! Hosts that say what they are: probes are real processes, their facts enter keys, what moved is
//! the reason that is told, and what a plan claims of a host is held against it before anything runs.

mod support;

use serde_json::Value;
use support::{Ran, Workspace, wait_for};

const RULES: &str = r#"
[lab]
kind = "probe"
timeout = "20s"
fact.kernel = { run = "uname -r" }
fact.driver = { type = "version", run = "echo asked >> SCRATCH/asked; cat SCRATCH/driver" }
fact.gpu = { run = "cat SCRATCH/gpu", optional = true }
fact.gpu_count = { type = "int" }
run = "echo gpu_count=$(cat SCRATCH/count)"

[one]
param.n = { type = "int", default = 1, doc = "a number" }
roles = { first = {} }
[[one.service]]
name = "server"
role = "first"
ready = { file = "{{ work }}/up", within = "1m" }
run = "echo up >> SCRATCH/service; touch {{ work }}/up; while sleep 0.05; do :; done"
[[one.step]]
name = "go"
role = "first"
timeout = "1m"
run = """
echo {{ n }} >> SCRATCH/ran
test ! -e SCRATCH/then || sh SCRATCH/then
echo '{}' > {{ out.result }}
"""
[one.output]
result = { path = "r.json" }

[two]
param.n = { type = "int", default = 1, doc = "a number" }
roles = { second = {} }
[[two.step]]
name = "go"
role = "second"
timeout = "1m"
run = "echo {{ n }} >> SCRATCH/two; echo '{}' > {{ out.result }}"
[two.output]
result = { path = "r.json" }
"#;

/// Two hosts, a pattern on each; `platform` are more keys of the platform, `plan` more of the plan.
fn lab(platform: &str, plan: &str) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rules = RULES.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rules);
    for (name, text) in [("driver", "570.86"), ("gpu", "NVIDIA L40S"), ("count", "4")] {
        workspace.write(&format!("scratch/{name}"), text);
    }
    workspace.write(
        "doe.toml",
        &format!(
            "[workspace]\nplatform = \"lab\"\n[platform.lab]\nprobe = \"t.lab\"\n{platform}\n\
             roles = {{ \"*\" = \"h1\", second = \"h2\" }}\n\
             [platform.lab.host.h1]\naddress = \"127.0.0.1\"\n[platform.lab.host.h2]\naddress = \"127.0.0.2\"\n"
        ),
    );
    workspace.write(
        "plans/p.toml",
        &format!(
            "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n{plan}\n\
             [[layer]]\nid = \"A\"\nrule = \"t.one\"\npattern = \"a\"\n\
             [[layer]]\nid = \"B\"\nrule = \"t.two\"\npattern = \"b\"\n"
        ),
    );
    workspace
}

fn count(workspace: &Workspace, file: &str) -> usize {
    let text = std::fs::read_to_string(workspace.path().join("scratch").join(file));
    text.unwrap_or_default().lines().count()
}

fn build(workspace: &Workspace) -> (u64, u64) {
    let summary = workspace
        .doe(&["build", "//p:all", "--json"])
        .ok()
        .summary();
    let count = |name: &str| summary[name].as_u64().unwrap();
    (count("ok"), count("reused"))
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

fn warnings(ran: &Ran, code: &str) -> Vec<String> {
    let events = ran.events();
    let of = events
        .iter()
        .filter(|e| e["event"] == "warning" && e["code"] == code);
    of.map(|e| e["message"].as_str().unwrap().to_string())
        .collect()
}

#[test]
fn what_is_known_of_hosts_is_in_keys_and_what_moved_is_told() {
    let workspace = lab("facts_max_age = \"1h\"", "");
    let unknown = workspace.doe(&["plan", "//p:all"]).ok();
    assert!(
        unknown
            .stderr
            .contains("nobody has asked yet what h1, h2 is"),
        "{}",
        unknown.stderr
    );
    assert_eq!(count(&workspace, "asked"), 0, "a look asks nobody");
    assert_eq!(build(&workspace), (2, 0));
    // Before, and again when each had run.
    assert_eq!(count(&workspace, "asked"), 4);
    let record = record(&workspace, "//p:a");
    let entries = &record["spec_manifest"]["entries"];
    assert_eq!(entries["fact.first.gpu_count"]["value"], 4, "{entries}");
    assert_eq!(entries["fact.first.driver"]["value"], "570.86");
    let kernel = std::process::Command::new("uname")
        .arg("-r")
        .output()
        .unwrap();
    let kernel = String::from_utf8(kernel.stdout).unwrap();
    assert_eq!(entries["fact.first.kernel"]["value"], kernel.trim());
    assert_eq!(entries["fact.first.kernel"]["class"], "result");
    assert!(record["provenance"]["facts"]["host.h1.facts_read_unix_ms"].is_u64());
    assert_eq!(record["provenance"]["facts"]["host.h1.gpu_count"], 4);

    // Nothing to do is found out without asking, as long as the reading stands.
    for _ in 0..3 {
        assert_eq!(build(&workspace), (0, 2));
    }
    assert_eq!(count(&workspace, "asked"), 4);
    let look = std::fs::read_to_string(workspace.path().join(".doe/recall/last-look.txt"));
    let look = look.unwrap_or_default();
    assert!(!look.contains("facts"), "the answer was recalled: {look}");

    // A new driver: asked for, told, and the reason why everything runs again.
    workspace.write("scratch/driver", "580.126.09");
    let probed = workspace.doe(&["probe", "--json"]).ok().json();
    assert_eq!(probed["hosts"]["h1"]["facts"]["driver"], "580.126.09");
    assert_eq!(probed["moved"].as_array().unwrap().len(), 2);
    let said = probed["moved"][0].as_str().unwrap();
    assert!(
        said.starts_with("fact `driver` of host `h1` is `580.126.09`; it was `570.86` when"),
        "{said}"
    );
    let explained = workspace.doe(&["explain", "//p:a"]).ok().stdout;
    let lines: Vec<&str> = explained.lines().map(str::trim).collect();
    assert!(lines[0].contains("because it changed"), "{explained}");
    assert_eq!(lines[1], "fact.first.driver");
    assert!(
        lines[2].starts_with("- \"570.86\"  (host `h1`, read 2"),
        "{explained}"
    );
    assert!(
        lines[3].starts_with("+ 580.126.09  (host `h1`, read 2"),
        "{explained}"
    );
    assert_eq!(build(&workspace), (2, 0));
    assert_eq!(build(&workspace), (0, 2));

    // What the hosts were is known still: back there, nothing runs.
    workspace.write("scratch/driver", "570.86");
    workspace.doe(&["probe", "h1"]).ok();
    assert_eq!(workspace.planned("//p:all", "run"), Vec::<String>::new());
    workspace.doe(&["probe"]).ok();
    assert_eq!(build(&workspace), (0, 2));
    workspace.assert_nothing_runs();
}

#[test]
fn only_listed_facts_decide() {
    let workspace = lab("facts_in_key = [\"gpu_count\"]\nfacts_max_age = \"0s\"", "");
    assert_eq!(build(&workspace), (2, 0));
    workspace.write("scratch/driver", "580.126.09");
    let asked = count(&workspace, "asked");
    // Every build asks, since no reading stands for any time; what moved is told and decides nothing.
    let ran = workspace.doe(&["build", "//p:all", "--json"]).ok();
    assert_eq!(ran.summary()["reused"], 2);
    assert_eq!(count(&workspace, "asked"), asked + 2);
    assert_eq!(warnings(&ran, "facts").len(), 2, "{}", ran.stdout);
    // Without anybody saying so: no answer that was given before may stand for this one.
    workspace.write("scratch/count", "8");
    assert_eq!(build(&workspace), (2, 0));
    assert_eq!(build(&workspace), (0, 2));
    // A look goes by what was read, and says so.
    let status = workspace.doe(&["status", "//p:all"]).ok();
    assert!(
        status.stderr.contains("may have moved since"),
        "{}",
        status.stderr
    );
    // Without a probe there are no facts in the keys.
    workspace.replace(
        "doe.toml",
        "probe = \"t.lab\"\nfacts_in_key = [\"gpu_count\"]\nfacts_max_age = \"0s\"\n",
        "",
        1,
    );
    assert_eq!(build(&workspace), (2, 0));
    assert!(
        record(&workspace, "//p:a")["spec_manifest"]["entries"]["fact.first.gpu_count"].is_null()
    );
    assert!(!workspace.path().join(".doe/facts/lab.json").exists());
}

#[test]
fn what_a_plan_requires_is_refused_before_anything_runs() {
    let claims = "[requires]\ngpu = \"NVIDIA A10G or NVIDIA L40S\"\ngpu_count = \">= 4\"\ndriver = \">= 570.86\"\n\
                  second = { kernel = \"no such kernel\" }\n";
    let workspace = lab("", claims);
    // Nobody has asked yet, so nothing is known to be wrong.
    workspace.doe(&["check", "//..."]).ok();
    let refused = workspace.doe(&["build", "//p:all"]).exits(3);
    let said = &refused.stderr;
    assert!(
        said.contains("error[unmet-requirement]: `kernel` of host `h2` is `"),
        "{said}"
    );
    assert!(
        said.contains("the plan requires `no such kernel`"),
        "{said}"
    );
    assert!(said.contains("plans/p.toml:8"), "{said}");
    assert!(!said.contains("`h1`"), "{said}");
    assert_eq!(
        count(&workspace, "ran") + count(&workspace, "two") + count(&workspace, "service"),
        0
    );
    // What is not concerned runs.
    workspace.doe(&["build", "//p:a"]).ok();
    workspace.doe(&["check", "//..."]).exits(3);

    workspace.replace(
        "plans/p.toml",
        "second = { kernel = \"no such kernel\" }\n",
        "",
        1,
    );
    assert_eq!(build(&workspace), (1, 1));
    for (file, text, code) in [
        (
            "count",
            "2",
            "`gpu_count` of host `h1` is `2`; the plan requires `>= 4`",
        ),
        (
            "driver",
            "550.1",
            "`driver` of host `h1` is `550.1`; the plan requires `>= 570.86`",
        ),
        ("gpu", "NVIDIA T4", "`gpu` of host `h1` is `NVIDIA T4`"),
        ("gpu", "", "host `h1` has no `gpu`"),
    ] {
        let before = workspace.read(&format!("scratch/{file}"));
        workspace.write(&format!("scratch/{file}"), text);
        let ran = count(&workspace, "ran");
        let refused = workspace.doe(&["build", "//p:all", "--rerun"]).exits(3);
        assert!(refused.stderr.contains(code), "{}", refused.stderr);
        assert_eq!(count(&workspace, "ran"), ran);
        workspace.write(&format!("scratch/{file}"), &before);
    }
    // Now the host is as it should be; what was read last is not, and a look says how old that is.
    workspace.doe(&["probe"]).ok();
    workspace.doe(&["check", "//..."]).ok();

    workspace.replace("plans/p.toml", "gpu_count", "gpu_cuont", 1);
    let refused = workspace.doe(&["check", "//..."]).exits(3).stdout;
    assert!(refused.contains("error[unknown-fact]"), "{refused}");
    assert!(refused.contains("did you mean `gpu_count`?"), "{refused}");
}

#[test]
fn what_the_platform_declares_is_held_against_its_hosts() {
    let workspace = lab("facts = { gpu = \"NVIDIA A10G\" }", "");
    let refused = workspace.doe(&["build", "//p:all"]).exits(3).stderr;
    assert!(
        refused.contains("`gpu` of host `h1` is `NVIDIA L40S`; the platform says `NVIDIA A10G`"),
        "{refused}"
    );
    assert!(refused.contains("doe.toml:5"), "{refused}");
    assert_eq!(count(&workspace, "service"), 0);
    workspace.replace("doe.toml", "NVIDIA A10G", "NVIDIA L40S", 1);
    // What is claimed and not there is no better.
    std::fs::remove_file(workspace.path().join("scratch/gpu")).unwrap();
    let refused = workspace.doe(&["build", "//p:all"]).exits(3).stderr;
    assert!(
        refused.contains("host `h1` has no `gpu`; the platform says `NVIDIA L40S`"),
        "{refused}"
    );
    assert_eq!(count(&workspace, "service"), 0);
    workspace.write("scratch/gpu", "NVIDIA L40S");
    assert_eq!(build(&workspace), (2, 0));
    // It is in the keys as what the platform declares, once.
    let entries = record(&workspace, "//p:a")["spec_manifest"]["entries"].clone();
    assert_eq!(entries["platform.fact.gpu"]["value"], "NVIDIA L40S");
    assert!(entries["fact.first.gpu"].is_null());
}

#[test]
fn what_moves_while_it_runs_is_kept_and_not_reused() {
    let workspace = lab("", "");
    let scratch = workspace.path().join("scratch");
    let then = format!("echo 580.126.09 > {}/driver", scratch.display());
    workspace.write("scratch/then", &then);
    // The second pattern is on another host, which nobody has asked since.
    let ran = workspace.doe(&["build", "//p:a", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 1);
    let record = record(&workspace, "//p:a");
    assert_eq!(record["reusable"], false);
    assert_eq!(
        record["not_reusable_because"],
        "fact `driver` of host `h1` changed from `570.86` to `580.126.09` while it ran"
    );
    std::fs::remove_file(scratch.join("then")).unwrap();
    let planned = workspace.doe(&["build", "//p:a", "--json"]).ok();
    assert_eq!(planned.summary()["ok"], 1);
    assert_eq!(planned.summary()["reused"], 0);
    assert_eq!(count(&workspace, "ran"), 2);
    assert_eq!(build(&workspace), (1, 1));

    // What was planned with the old facts does not begin on that host any more.
    workspace.write(
        "plans/p.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"A\"\nrule = \"t.one\"\npattern = \"a{{ n }}\"\nmatrix = { n = [7, 8] }\n",
    );
    workspace.write("scratch/then", &then.replace("580.126.09", "590.1"));
    let ran = workspace.doe(&["build", "//p:all", "--json"]).exits(1);
    let summary = ran.summary();
    assert_eq!(
        (&summary["ok"], &summary["failed"]),
        (&1.into(), &1.into()),
        "{summary}"
    );
    let ends = ran.events();
    let failed = ends.iter().find(|e| e["outcome"] == "failed").unwrap();
    assert!(
        failed["reason"]
            .as_str()
            .unwrap()
            .contains("was `580.126.09` when this was planned and is `590.1` now"),
        "{failed}"
    );
    std::fs::remove_file(scratch.join("then")).unwrap();
    assert_eq!(build(&workspace), (2, 0));
    workspace.assert_nothing_runs();
}

/// A host that answers and cannot say any more what the keys rest on: nobody knows under what the
/// node ran.
#[test]
fn what_cannot_be_read_again_is_kept_and_not_reused() {
    let workspace = lab("", "");
    let scratch = workspace.path().join("scratch");
    workspace.write("scratch/then", &format!("rm {}/driver", scratch.display()));
    let ran = workspace.doe(&["build", "//p:a", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 1);
    let record = record(&workspace, "//p:a");
    assert_eq!(record["reusable"], false);
    let why = record["not_reusable_because"].as_str().unwrap();
    assert!(
        why.starts_with("the facts of host `h1` could not be read again: "),
        "{why}"
    );
    let told = warnings(&ran, "facts").join("\n");
    assert!(told.contains("were not read again after it"), "{told}");
    let noted = &record["provenance"]["facts"]["host.h1.facts_not_read_again"];
    assert!(noted.is_string(), "{record}");
}

#[test]
fn a_probe_that_does_not_answer_properly_is_an_error_with_host_and_line() {
    let workspace = lab("", "");
    for (file, text, message) in [
        (
            "count",
            "four",
            "probe `t.lab` on host `h1`: line 1 of its output gives `four` for fact `gpu_count`, which is not a whole number",
        ),
        (
            "count",
            "4\necho",
            "probe `t.lab` on host `h1`: line 1 of its output gives `4 echo` for fact `gpu_count`",
        ),
        (
            "driver",
            "no driver here",
            "probe `t.lab` on host `h1`: its command gives `no driver here` for fact `driver`, which is not a version",
        ),
    ] {
        let before = workspace.read(&format!("scratch/{file}"));
        workspace.write(&format!("scratch/{file}"), text);
        let refused = workspace.doe(&["build", "//p:a"]).exits(4);
        assert!(refused.stderr.contains(message), "{}", refused.stderr);
        workspace.write(&format!("scratch/{file}"), &before);
    }
    std::fs::remove_file(workspace.path().join("scratch/driver")).unwrap();
    let refused = workspace.doe(&["probe", "h2"]).exits(4).stderr;
    assert!(
        refused.contains("on host `h2`: the command of fact `driver` ended with exit code 1"),
        "{refused}"
    );
    assert!(refused.contains("No such file"), "{refused}");
    assert_eq!(count(&workspace, "service"), 0);
    workspace.replace(
        "rules/t.toml",
        "timeout = \"20s\"",
        "timeout = \"300ms\"",
        1,
    );
    workspace.replace(
        "rules/t.toml",
        "run = \"echo gpu_count",
        "run = \"sleep 60; echo gpu_count",
        1,
    );
    workspace.write("scratch/driver", "1.0");
    let refused = workspace.doe(&["probe"]).exits(4).stderr;
    assert!(refused.contains("took longer than 300ms"), "{refused}");
    workspace.assert_nothing_runs();
    let none = workspace
        .doe(&["probe", "--platform", "sim"])
        .exits(2)
        .stderr;
    assert!(none.contains("platform `sim` has no probe"), "{none}");
}

#[test]
fn the_shipped_probe_says_what_simulated_hosts_pretend_to_be() {
    let workspace = Workspace::shipped("0.001");
    let text = workspace.read("doe.toml");
    workspace.write(
        "doe.toml",
        &text.replace(
            "[platform.sim]",
            "[platform.sim]\nprobe = \"hosts.gpu\"\nfacts_in_key = [\"vllm\"]",
        ),
    );
    // What the platform declares is what its simulation pretends, but for the driver and CUDA.
    let refused = workspace.doe(&["probe"]).exits(3);
    assert!(
        refused
            .stderr
            .contains("`driver` of host `node1` is `570.133.20`; the platform says `580.126.09`"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stdout.contains("simulated: no host was asked"),
        "{}",
        refused.stdout
    );
    workspace.replace(
        "doe.toml",
        "sim = { time_scale = 0.001 }",
        "facts = { libfabric = \"1.22.0\", kernel = \"KERNEL\" }\nsim = { time_scale = 0.001, gpu = { driver = \"580.126.09\", cuda = \"13.0\" } }",
        1,
    );
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    workspace.replace("doe.toml", "KERNEL", kernel.trim(), 1);
    let probed = workspace.doe(&["probe", "--json"]).ok().json();
    assert_eq!(probed["simulated"], true);
    let facts = &probed["hosts"]["node2"]["facts"];
    assert_eq!(facts["simulated"], true);
    assert_eq!(facts["instance_type"], "g6e.12xlarge");
    assert_eq!(facts["gpu"], "NVIDIA L40S");
    assert_eq!(
        (&facts["gpu_count"], &facts["gpu_memory_mib"]),
        (&4.into(), &46068.into())
    );
    assert_eq!(
        (&facts["vllm"], &facts["cuda"]),
        (&"0.16.0".into(), &"13.0".into())
    );
    workspace
        .doe(&["build", "//phase2:p2-baseline-nvidia-smi", "--json"])
        .ok();
}

#[test]
fn what_a_doe_asked_that_was_killed_ends_at_its_limit() {
    let workspace = lab("", "");
    workspace.replace("rules/t.toml", "timeout = \"20s\"", "timeout = \"8s\"", 1);
    let x = workspace.path().join("scratch/x").display().to_string();
    let waits = format!("run = \"echo >> {x}; while :; do sleep 0.05; done; echo gpu_count");
    workspace.replace("rules/t.toml", "run = \"echo gpu_count", &waits, 1);
    let (mut child, _) = workspace.spawn(&["build", "//p:all"]);
    wait_for("the probe", std::time::Duration::from_secs(120), || {
        (count(&workspace, "x") > 0).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    workspace.assert_nothing_runs();
}

#[test]
fn who_asks_or_is_refused_touches_nothing_that_a_killed_doe_left() {
    let workspace = lab("", "");
    let wait = format!(
        "while ! test -e {}/go; do sleep 0.02; done",
        workspace.path().join("scratch").display()
    );
    workspace.write("scratch/then", &wait);
    let (mut child, _) = workspace.spawn(&["build", "//p:a"]);
    wait_for("the step", std::time::Duration::from_secs(120), || {
        (count(&workspace, "ran") > 0).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let jobs = || workspace.doe(&["jobs", "--json"]).ok().json();
    let left = jobs();
    assert_eq!(left.as_array().unwrap().len(), 2, "{left}");
    workspace.doe(&["probe"]).ok();
    let plan = workspace.read("plans/p.toml");
    workspace.write(
        "plans/p.toml",
        &format!("[requires]\ngpu_count = 5\n{plan}"),
    );
    workspace.doe(&["build", "//p:a"]).exits(3);
    assert_eq!(jobs(), left);
    workspace.write("plans/p.toml", &plan);
    workspace.write("scratch/go", "");
    assert_eq!(
        workspace.doe(&["build", "//p:a", "--json"]).ok().summary()["ok"],
        1
    );
    assert_eq!(count(&workspace, "ran"), 1, "it went on");
    workspace.assert_nothing_runs();
}
