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
        grace: Duration::from_secs(2),
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

#[test]
fn peer_process() {
    conformance::process::peer_process();
}
