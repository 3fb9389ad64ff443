//! The local executor against the suite for all executors, and against what only it must stand:
//! its own death, the death of its reaper, and a full disk.

#[macro_use]
mod conformance;
#[path = "conformance/local_death.rs"]
mod local_death;
mod rig;

use std::time::Duration;

use conformance::Rig;
use doe::exec::HostSpec;
use doe::exec::local::{LocalExecutor, LocalOptions};

/// How the tests run the executor: as always, but with a short grace.
fn options() -> LocalOptions {
    LocalOptions {
        grace: Duration::from_secs(4),
        ..LocalOptions::new(env!("CARGO_BIN_EXE_doe"))
    }
}

fn hosts() -> [HostSpec; 2] {
    [("h1", "127.0.0.1"), ("h2", "127.0.0.2")].map(|(name, address)| HostSpec {
        name: name.into(),
        address: address.into(),
        gpus: 0,
    })
}

fn rig() -> Rig {
    let scratch = tempfile::tempdir().unwrap();
    // A root with a space and a quote in its name: nothing may depend on tame paths.
    let root = scratch.path().join("it's a root");
    Rig {
        executor: Box::new(LocalExecutor::new(root, options()).unwrap()),
        hosts: hosts(),
        netns: None,
        scratch,
        attached: false,
        keep: None,
    }
}

conformance!("local", Some(rig()));

/// The sleep of a host stops all of it; so do some who want a host for themselves.
#[tokio::test]
async fn what_was_stopped_in_the_middle_has_no_outcome() {
    let told = rig::told::Case::own("local");
    let rig = rig();
    let mut script = rig.script("until [ -e go ]; do sleep 0.1; done");
    script.timeout = Some(Duration::from_secs(300));
    let handle = rig.start(&script).await;
    let signal = |signal: &str| {
        let group = format!("-{}", handle.pid);
        let mut kill = std::process::Command::new("kill");
        assert!(
            kill.args([signal, "--", &group])
                .status()
                .unwrap()
                .success()
        );
    };
    conformance::watcher_sleeps(&handle.token).await;
    signal("-STOP");
    tokio::time::sleep(Duration::from_secs(27)).await;
    std::fs::write(rig.path("work/go"), b"").unwrap();
    signal("-CONT");
    let waited = conformance::bounded(rig.executor.wait(&handle)).await;
    let status = waited.unwrap();
    let why = "its host slept or all of it was stopped in the middle, so it was ended";
    assert_eq!(status, doe::exec::Status::Lost { why: why.into() });
    drop(told);
}

#[test]
fn peer_process() {
    conformance::process::peer_process();
}
