//! The campaign over Systems Manager: two instances with a network and files of their own,
//! simulated tools on their paths, the client killed in the middle. What comes out has the keys
//! that it has on this machine. `DOE_TEST_LONG=1` runs the whole of it.
#![cfg(feature = "aws")]

mod aws_endpoint;
#[path = "rig/campaign.rs"]
mod campaign;
#[path = "rig/cloud.rs"]
mod cloud;
mod rig;
mod s3;
mod support;

use std::path::Path;
use std::time::Duration;

use cloud::{Cloud, instance};
use support::{Workspace, wait_for};

const LONG: Duration = Duration::from_secs(500);

/// A measurement with a step on the first instance, and one that goes on until both monitors have
/// said more.
const RULES: &str = r#"
[one]
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
had1=$(wc -l < SCRATCH/first || echo 0)
had2=$(wc -l < SCRATCH/second || echo 0)
while test $(wc -l < SCRATCH/first || echo 0) -lt $((had1 + 40)); do sleep 0.05; done
while test $(wc -l < SCRATCH/second || echo 0) -lt $((had2 + 40)); do sleep 0.05; done
echo '{}' > {{ out.result }}
"""
[one.output]
result = { path = "r.json" }
"#;

/// The keys of the platform's table that tell where the instances are.
fn reach(cloud: &Cloud) -> String {
    format!(
        "ssm = {{ region = \"us-east-1\", endpoint = \"{}\", s3_endpoint = \"{}\", bucket = \"s3://{}/hosts\", profile = \"lab\", credentials = \"{}\", tag = \"doe\", patience = \"60s\" }}\n",
        cloud.endpoint.url(),
        cloud.s3_endpoint,
        s3::BUCKET,
        cloud.credentials().display(),
    )
}

/// The instances as hosts of the platform: one by its id, one by its tag.
fn instances(cloud: &Cloud) -> String {
    let by_id = format!("instance = \"{}\"\n", instance(1));
    let host = |number, named: &str| {
        let (name, address) = (cloud.hosts.name(number), cloud.hosts.address(number));
        format!("[platform.cloud.host.{name}]\naddress = \"{address}\"\ngpus = 4\n{named}")
    };
    host(1, &by_id) + &host(2, "")
}

/// The shipped campaign, with the instances as a platform that pretends to be what `sim` pretends.
fn workspace(cloud: &Cloud) -> Workspace {
    let workspace = Workspace::shipped("0.001");
    let facts = campaign::facts();
    let hosts = &cloud.hosts;
    let (one, two) = (hosts.name(1), hosts.name(2));
    let platform = format!(
        "[platform.sim]\nsim = {{ time_scale = 0.001 }}\n\
         [platform.cloud]\nexecutor = \"ssm\"\nsimulated = true\ndynamic_ports = true\n{}\
         sim = {{ time_scale = 0.001 }}\n\
         roles = {{ \"*\" = \"{one}\", prefill = \"{one}\", client = \"{one}\", decode = \"{two}\", server = \"{two}\", peer = \"{two}\" }}\n\
         [platform.cloud.facts]\n{facts}\n{}",
        reach(cloud),
        instances(cloud),
    );
    workspace.write("doe.toml", &platform);
    workspace
}

#[test]
fn the_campaign_has_the_same_keys_and_survives_its_client() {
    let Some(mut told) = rig::told("ssm", "phase2") else {
        return;
    };
    // The instances see nothing of this machine's home, nor of the workspace.
    let home = std::env::var("HOME").unwrap();
    let cloud = Cloud::up(Some(Path::new(&home)));
    let workspace = workspace(&cloud);
    let targets = campaign::targets(&["//phase2:L0-Baseline", "//phase2:p2-efa-4k-c1"]);
    told.size(&campaign::survives_its_client(
        &workspace, "cloud", &targets, LONG,
    ));

    // What the instances are is asked in the same way.
    workspace.write(
        "rules/probe.toml",
        "[net]\nkind = \"probe\"\nfact.address = { run = \"ip -4 -o addr show dev eth0 | awk '{ print $4 }'\" }\n",
    );
    let named = "[platform.cloud]\nprobe = \"probe.net\"\n";
    workspace.replace("doe.toml", "[platform.cloud]\n", named, 1);
    let asked = ["probe", "--platform", "cloud", "--json"];
    let probed = workspace.doe(&asked).ok().json();
    for number in [1, 2] {
        let facts = &probed["hosts"][cloud.hosts.name(number)]["facts"];
        let address = format!("{}/24", cloud.hosts.address(number));
        assert_eq!(facts["address"], address, "{probed}");
        assert_eq!(facts["simulated"], true);
    }

    // Nothing that was submitted is open, no secret got into the state or to the service.
    let open = std::fs::read_dir(workspace.path().join(".doe/ssm/intents")).unwrap();
    let open: Vec<_> = open.map(|e| e.unwrap().file_name()).collect();
    assert!(open.is_empty(), "{open:?}");
    let grep = std::process::Command::new("grep")
        .args(["-rlF", &format!("secret_access_key = {}", cloud.s3.secret)])
        .arg(workspace.path())
        .output()
        .unwrap();
    assert!(grep.stdout.is_empty());
    for command in cloud.endpoint.commands() {
        assert!(!command.parameters.to_string().contains(&cloud.s3.secret));
    }

    // Nothing is left running on the instances but the rig's sshd.
    for number in [1, 2] {
        wait_for("the instances to be quiet", LONG, || {
            let others = cloud.hosts.processes(number).into_iter().filter(|pid| {
                let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                !command.unwrap_or_default().starts_with("sshd")
            });
            (others.count() == 0).then_some(())
        });
    }
}

#[test]
fn monitors_run_beside_a_node_and_their_samples_are_of_the_measurement() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let home = std::env::var("HOME").unwrap();
    let cloud = Cloud::up(Some(Path::new(&home)));
    // The way to an instance takes as long as it does with the real service.
    let delay = Duration::from_millis(700);
    cloud.endpoint.faults(|faults| faults.delay = delay);
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let scratch = scratch.to_str().unwrap();
    workspace.write("rules/t.toml", &RULES.replace("SCRATCH", scratch));
    workspace.write(
        "plans/p.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"A\"\nrule = \"t.one\"\npattern = \"a\"\n",
    );
    let (one, two) = (cloud.hosts.name(1), cloud.hosts.name(2));
    let mut platform = format!(
        "[workspace]\nplatform = \"cloud\"\n[platform.cloud]\nexecutor = \"ssm\"\n{}\
         roles = {{ \"*\" = \"{one}\", second = \"{two}\" }}\n{}",
        reach(&cloud),
        instances(&cloud),
    );
    for (name, role) in [("first", "first"), ("second", "second")] {
        platform.push_str(&format!(
            "[[platform.cloud.monitor]]\nname = \"{name}\"\nroles = [\"{role}\"]\nrun = \"\"\"\n\
             echo '# count'\nn=0\nwhile :; do n=$((n+1)); echo tick $n; echo >> {scratch}/{name}; sleep 0.05; done\"\"\"\n"
        ));
    }
    workspace.write("doe.toml", &platform);
    let built = workspace.doe(&["build", "//p:all", "--json"]).ok();
    assert_eq!(built.summary()["ok"], 1);
    let warned = built
        .events()
        .into_iter()
        .filter(|e| e["event"] == "warning");
    assert_eq!(warned.collect::<Vec<_>>(), Vec::<serde_json::Value>::new());
    for (name, host) in [("first", &one), ("second", &two)] {
        let log = format!("monitor-{name}.json");
        let asked = ["logs", "//p:a", "--log", &log];
        let document = workspace.doe(&asked).ok().json();
        let at = |what: &str| document["window"][what].as_u64().unwrap();
        let (from, to) = (at("from_unix_ms"), at("to_unix_ms"));
        let said = &document["hosts"][host];
        assert_eq!(said["header"], serde_json::json!(["# count"]), "{said}");
        let samples = said["samples"].as_array().unwrap();
        // The step waited for forty; lines that are on their way at its end are outside, and who
        // stamps them may be held back.
        assert!(samples.len() >= 5, "{name}: {said}");
        for sample in samples {
            let unix_ms = sample[0].as_u64().unwrap();
            assert!(from <= unix_ms && unix_ms <= to, "{sample}");
        }
        // It was up before the first step began and was ended after the last.
        assert!(said["outside"].as_u64().unwrap() >= 2, "{said}");
    }
    // They are gone, and nothing of them is left on the instances.
    for number in [1, 2] {
        let left = cloud.hosts.processes(number).into_iter().filter(|pid| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.unwrap_or_default().contains("tick")
        });
        assert_eq!(left.count(), 0);
    }
}
