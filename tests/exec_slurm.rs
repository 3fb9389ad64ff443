//! The Slurm executor against the suite for all executors, on a real controller with a `slurmd` in
//! every namespace, and against what only a scheduler can do to it.

#[macro_use]
mod conformance;
mod rig;
#[path = "rig/slurm.rs"]
mod slurm;

use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use conformance::Rig;
use doe::exec::slurm::{SlurmExecutor, SlurmOptions};
use doe::exec::HostSpec;
use slurm::Slurm;

/// One cluster for the tests that run at a time; it goes with the last of these.
fn shared() -> Arc<Slurm> {
    static SLURM: LazyLock<Mutex<Weak<Slurm>>> = LazyLock::new(Mutex::default);
    let mut slurm = SLURM.lock().unwrap_or_else(|e| e.into_inner());
    slurm.upgrade().unwrap_or_else(|| {
        let up = Arc::new(Slurm::up(2));
        *slurm = Arc::downgrade(&up);
        up
    })
}

fn specs(slurm: &Slurm) -> [HostSpec; 2] {
    [1, 2].map(|number| HostSpec {
        name: slurm.hosts.name(number),
        address: slurm.hosts.address(number),
        gpus: 0,
    })
}

async fn connect(slurm: &Slurm, root: &std::path::Path) -> SlurmExecutor {
    SlurmExecutor::new(SlurmOptions {
        root: root.to_owned(),
        config: Some(slurm.config()),
        common: Vec::new(),
        patience: Duration::from_secs(60),
        queue: Duration::from_secs(60),
        grace: Duration::from_secs(2),
    })
    .await
    .unwrap()
}

async fn slurm_rig() -> Rig {
    let slurm = shared();
    let scratch = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &scratch.path().join("it's a root")).await;
    Rig {
        executor: Box::new(executor),
        hosts: specs(&slurm),
        netns: Some([slurm.hosts.netns(1), slurm.hosts.netns(2)]),
        scratch,
        keep: Some(Box::new(slurm)),
        attached: false,
    }
}

conformance!(match rig::skipped() {
    true => return,
    false => slurm_rig().await,
});

#[test]
fn peer_process() {
    conformance::process::peer_process();
}

