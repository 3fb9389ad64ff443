//! Attempts that hosts spoil: a link that is cut, instances that are gone, a service that was asked
//! too often. What is tried again ends first what the attempt before may have left.

#[cfg(feature = "aws")]
mod aws_endpoint;
#[cfg(feature = "aws")]
#[path = "rig/cloud.rs"]
mod cloud;
mod rig;
#[cfg(feature = "aws")]
mod s3;
mod support;

use std::time::Duration;

use rig::Hosts;
use support::{Ran, Workspace, wait_for};

const LONG: Duration = Duration::from_secs(300);

const RULE: &str = r#"
[go]
roles = { first = {} }
[[go.step]]
name = "go"
role = "first"
timeout = "10m"
run = """
echo go >> SCRATCH/begun
n=$(wc -l < SCRATCH/begun)
echo said by $n
while ! test -e SCRATCH/go; do sleep 0.05; done
echo $n >> SCRATCH/over
echo '{}' > {{ out.result }}
"""
[go.output]
result = { path = "r.json" }
"#;

fn workspace(platform: &str) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rule = RULE.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rule);
    workspace.write("doe.toml", platform);
    workspace.write(
        "plans/t.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\nretry = { times = 10, base = \"2s\", factor = 1 }\n[[layer]]\nid = \"l\"\nrule = \"t.go\"\npattern = \"p\"\nestimate = \"1s\"\n",
    );
    workspace
}

/// A workspace on the one host.
fn on_one(hosts: &Hosts) -> Workspace {
    workspace(&format!(
        "[workspace]\nplatform = \"one\"\n[platform.one]\nexecutor = \"ssh\"\n\
         ssh = {{ config = \"{}\", root = \"{}\", patience = \"3s\" }}\nroles = {{ \"*\" = \"{}\" }}\n\
         [platform.one.host.{}]\naddress = \"{}\"\nssh = \"{}\"\n",
        hosts.config().display(),
        hosts.dir().join("root-%w").display(),
        hosts.name(1),
        hosts.name(1),
        hosts.address(1),
        hosts.name(1),
    ))
}

fn lines(workspace: &Workspace, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace.path().join("scratch").join(file));
    let text = text.unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The classes of attempts that were put off, as the build that was spawned has told them.
fn put_off(workspace: &Workspace) -> Vec<String> {
    let told = workspace.read("stdout.txt");
    let events = told.lines().filter_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["event"] == "retrying").then(|| event["class"].as_str().unwrap().to_owned())
    });
    events.collect()
}

fn wait_put_off(workspace: &Workspace, times: usize) {
    wait_for("an attempt that is put off", LONG, || {
        (put_off(workspace).len() >= times).then_some(())
    });
}

fn wait_begun(workspace: &Workspace, times: usize) {
    wait_for("an attempt that begins", LONG, || {
        (lines(workspace, "begun").len() >= times).then_some(())
    });
}

/// What is the same wherever it was spoiled: the last attempt's result stands, and nothing of the
/// ones before came to its end beside it.
fn assert_one_result(workspace: &Workspace, attempts: usize) {
    let ran = Ran::of_files(workspace);
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.stdout);
    let begun = lines(workspace, "begun").len();
    assert_eq!(lines(workspace, "over"), [begun.to_string()], "two at once");
    let attempt = attempts.to_string();
    let logs = workspace
        .doe(&["logs", "//t:p", "--attempt", &attempt])
        .ok();
    assert!(
        logs.stdout.contains(&format!("said by {begun}")),
        "{}",
        logs.stdout
    );
}

#[test]
fn a_host_that_cannot_be_reached_spoils_an_attempt_and_what_it_left_is_ended_first() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(1, None);
    let workspace = on_one(&hosts);
    let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_begun(&workspace, 1);
    hosts.link(1, false);
    wait_put_off(&workspace, 1);
    hosts.link(1, true);
    wait_begun(&workspace, 2);
    workspace.write("scratch/go", "");
    let status = child.wait().unwrap();
    assert!(status.success(), "{}", workspace.read("stdout.txt"));
    let told = put_off(&workspace);
    assert!(told.iter().all(|class| class == "unreachable"), "{told:?}");
    assert_one_result(&workspace, told.len() + 1);
}

/// A step that could not be cancelled because its host did not answer: it is told, shown and ended
/// as soon as somebody can, by whichever command comes first.
#[test]
fn what_could_not_be_cancelled_is_told_and_ended_later() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(1, None);
    let workspace = on_one(&hosts);
    for later in ["cancel", "build"] {
        let _ = std::fs::remove_file(workspace.path().join("scratch/begun"));
        let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
        wait_begun(&workspace, 1);
        hosts.link(1, false);
        workspace.doe(&["cancel", "--all"]).ok();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let told = workspace.read("stdout.txt");
        assert!(told.contains("\"code\":\"step-left\""), "{told}");
        hosts.link(1, true);
        let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
        assert_eq!(jobs[0]["label"], "//t:p", "{jobs}");
        if later == "cancel" {
            let ended = workspace.doe(&["cancel", "--all", "--json"]).ok().json();
            assert_eq!(ended["ended"].as_array().unwrap().len(), 1, "{ended}");
        } else {
            let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
            wait_begun(&workspace, 2);
            workspace.write("scratch/go", "");
            assert!(child.wait().unwrap().success());
            let told = workspace.read("stdout.txt");
            assert!(told.contains("ended //t:p of the run "), "{told}");
        }
        let none = workspace.doe(&["jobs"]).ok().stdout;
        assert_eq!(none, "nothing runs\n");
        let marks = std::fs::read_dir(workspace.path().join(".doe/left")).unwrap();
        assert_eq!(marks.count(), 0, "nothing is left of any run");
    }
}

#[cfg(feature = "aws")]
#[test]
fn a_service_that_does_not_deliver_or_throttles_spoils_an_attempt() {
    use cloud::{Cloud, instance};

    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let cloud = Cloud::up(None);
    let workspace = workspace(&format!(
        "[workspace]\nplatform = \"cloud\"\n[platform.cloud]\nexecutor = \"ssm\"\n\
         ssm = {{ region = \"us-east-1\", endpoint = \"{}\", s3_endpoint = \"{}\", bucket = \"s3://{}/hosts\", profile = \"lab\", credentials = \"{}\", root = \"{}\", patience = \"4s\" }}\n\
         roles = {{ \"*\" = \"{}\" }}\n[platform.cloud.host.{}]\naddress = \"{}\"\ninstance = \"{}\"\n",
        cloud.endpoint.url(),
        cloud.s3_endpoint,
        s3::BUCKET,
        cloud.credentials().display(),
        cloud.hosts.dir().join("root-%w").display(),
        cloud.hosts.name(1),
        cloud.hosts.name(1),
        cloud.hosts.address(1),
        instance(1),
    ));
    let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_begun(&workspace, 1);
    let spoil = vec![("Failed", "Undeliverable"); 100];
    cloud.endpoint.faults(|faults| faults.spoil = spoil);
    wait_put_off(&workspace, 1);
    cloud.endpoint.faults(|faults| faults.spoil.clear());
    wait_begun(&workspace, 2);
    let before = put_off(&workspace).len();
    cloud.endpoint.faults(|faults| faults.throttle = u32::MAX);
    wait_put_off(&workspace, before + 1);
    cloud.endpoint.faults(|faults| faults.throttle = 0);
    wait_begun(&workspace, 3);
    workspace.write("scratch/go", "");
    let status = child.wait().unwrap();
    let told = put_off(&workspace);
    assert!(
        status.success(),
        "{told:?}\n{}",
        workspace.read("stdout.txt")
    );
    assert_eq!(told[0], "undeliverable", "{told:?}");
    assert!(told.contains(&"throttled".to_owned()), "{told:?}");
    assert_one_result(&workspace, told.len() + 1);
}
