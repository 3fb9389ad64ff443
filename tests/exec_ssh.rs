//! The ssh executor against the suite for all executors, on hosts with a network and an sshd of
//! their own, and against what only a connection can do to it: cut links, killed hosts, wrong keys.

#[macro_use]
mod conformance;
mod rig;

use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use conformance::Rig;
use doe::exec::HostSpec;
use doe::exec::remote::ssh::{Ssh, SshOptions};
use doe::exec::remote::{RemoteExecutor, RemoteOptions};
use rig::Hosts;

/// Two hosts for the tests that run at a time; they go with the last of these.
fn shared_hosts() -> Arc<Hosts> {
    static HOSTS: LazyLock<Mutex<Weak<Hosts>>> = LazyLock::new(Mutex::default);
    let mut hosts = HOSTS.lock().unwrap_or_else(|e| e.into_inner());
    hosts.upgrade().unwrap_or_else(|| {
        let up = Arc::new(Hosts::up(2, None));
        *hosts = Arc::downgrade(&up);
        up
    })
}

fn specs(hosts: &Hosts) -> [HostSpec; 2] {
    [1, 2].map(|number| HostSpec {
        name: hosts.name(number),
        address: hosts.address(number),
        gpus: 0,
    })
}

fn ssh(hosts: &Hosts) -> Ssh {
    let options = SshOptions {
        config: Some(hosts.config()),
        ..SshOptions::default()
    };
    let names = [1, 2].map(|number| (hosts.name(number), hosts.name(number)));
    Ssh::new(&options, names).unwrap()
}

async fn connect(hosts: &Hosts, root: &std::path::Path) -> RemoteExecutor {
    let options = RemoteOptions {
        root: root.to_str().unwrap().to_owned(),
        patience: Duration::from_secs(60),
        grace: Duration::from_secs(2),
    };
    RemoteExecutor::connect(ssh(hosts), &options, &specs(hosts))
        .await
        .unwrap()
}

async fn ssh_rig() -> Rig {
    let hosts = shared_hosts();
    let scratch = tempfile::tempdir().unwrap();
    // A root with a space and a quote in its name: nothing may depend on tame paths.
    let executor = connect(&hosts, &scratch.path().join("it's a root")).await;
    Rig {
        executor: Box::new(executor),
        hosts: specs(&hosts),
        netns: Some([hosts.netns(1), hosts.netns(2)]),
        scratch,
        keep: Some(Box::new(hosts)),
    }
}

conformance!(ssh_rig().await);

#[test]
fn peer_process() {
    conformance::process::peer_process();
}
