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

/// The shipped campaign, with the instances as a platform that pretends to be what `sim` pretends.
fn workspace(cloud: &Cloud) -> Workspace {
    let workspace = Workspace::shipped("0.001");
    let facts = campaign::facts();
    let hosts = &cloud.hosts;
    let (one, two) = (hosts.name(1), hosts.name(2));
    let mut platform = format!(
        "[platform.sim]\nsim = {{ time_scale = 0.001 }}\n\
         [platform.cloud]\nexecutor = \"ssm\"\nsimulated = true\ndynamic_ports = true\n\
         ssm = {{ region = \"us-east-1\", endpoint = \"{}\", s3_endpoint = \"{}\", bucket = \"s3://{}/hosts\", profile = \"lab\", credentials = \"{}\", tag = \"doe\", patience = \"60s\" }}\n\
         sim = {{ time_scale = 0.001 }}\n\
         roles = {{ \"*\" = \"{one}\", prefill = \"{one}\", client = \"{one}\", decode = \"{two}\", server = \"{two}\", peer = \"{two}\" }}\n\
         [platform.cloud.facts]\n{facts}\n",
        cloud.endpoint.url(),
        cloud.s3_endpoint,
        s3::BUCKET,
        cloud.credentials().display(),
    );
    // One by its id, one by its tag.
    for (number, id) in [
        (1, format!("instance = \"{}\"\n", instance(1))),
        (2, String::new()),
    ] {
        platform.push_str(&format!(
            "[platform.cloud.host.{}]\naddress = \"{}\"\ngpus = 4\n{id}",
            hosts.name(number),
            hosts.address(number)
        ));
    }
    workspace.write("doe.toml", &platform);
    workspace
}

#[test]
fn the_campaign_has_the_same_keys_and_survives_its_client() {
    if rig::skipped() {
        return;
    }
    // The instances see nothing of this machine's home, nor of the workspace.
    let home = std::env::var("HOME").unwrap();
    let cloud = Cloud::up(Some(Path::new(&home)));
    let workspace = workspace(&cloud);
    let targets = campaign::targets(&["//phase2:L0-Baseline", "//phase2:p2-efa-4k-c1"]);
    campaign::survives_its_client(&workspace, "cloud", &targets, LONG);

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
