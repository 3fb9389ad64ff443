//! The Slurm executor against the suite for all executors, on a real controller with a `slurmd` in
//! every namespace, and against what only a scheduler can do to it.

#[macro_use]
mod conformance;
mod rig;

use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use conformance::Rig;
use doe::exec::slurm::{Common, SlurmExecutor, SlurmOptions};
use doe::exec::{Executor, HostSpec, Script, Status, Stream};
use rig::slurm::Slurm;

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
        common: Common::default(),
        patience: Duration::from_secs(60),
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
    }
}

// All but those that need a process number in the handle, which a job that waits has not.
conformance!(@one slurm_rig().await; facts staging collecting ports);
conformance!(@one slurm_rig().await; process::codes process::signals process::strictness process::times
    process::output_below_the_cap process::binary_output process::followed_log process::hostile_values
    process::clean_environment process::script_with_heredoc process::one_start_per_token
    process::big_output process::concurrent_starts_of_one_token
    process::two_hosts process::many_at_once);
conformance!(@one slurm_rig().await; tree::timeout tree::timeout_of_a_polite_script tree::leftovers_are_ended
    tree::cancel_ends_everything tree::cancel_is_polite_first tree::cancel_twice_and_late
    tree::own_group_does_not_hurt_the_logs tree::torn_record tree::a_stopped_tree_is_ended);

#[test]
fn peer_process() {
    conformance::process::peer_process();
}

fn script(text: &str, dir: &std::path::Path) -> Script {
    Script {
        name: "step-test".into(),
        text: text.into(),
        env: Default::default(),
        work: dir.join("work"),
        timeout: Some(Duration::from_secs(300)),
        log_cap_bytes: 1 << 20,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_cancelled_and_never_begins() {
    if rig::skipped() {
        return;
    }
    let slurm = Slurm::up(1);
    let dir = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &dir.path().join("root")).await;
    let host = HostSpec {
        name: slurm.hosts.name(1),
        address: slurm.hosts.address(1),
        gpus: 0,
    };
    slurm.ask(
        "scontrol",
        &[
            "update",
            &format!("nodename={}", host.name),
            "state=drain",
            "reason=test",
        ],
    );
    let handle = executor
        .start(
            &host,
            &script("touch ran", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    assert_eq!(executor.poll(&handle).await.unwrap(), Status::Running);
    conformance::bounded(executor.cancel(&handle, Duration::from_secs(2)))
        .await
        .unwrap();
    slurm.ask(
        "scontrol",
        &["update", &format!("nodename={}", host.name), "state=resume"],
    );
    let status = conformance::bounded(executor.wait(&handle)).await.unwrap();
    assert!(
        matches!(&status, Status::Lost { why } if why.contains("CANCELLED")),
        "{status:?}"
    );
    assert!(!dir.path().join("work/ran").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_forgets_is_not_believed() {
    if rig::skipped() {
        return;
    }
    let slurm = Slurm::up(1);
    let dir = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &dir.path().join("root")).await;
    let host = HostSpec {
        name: slurm.hosts.name(1),
        address: slurm.hosts.address(1),
        gpus: 0,
    };
    let go = dir.path().join("go");
    let text = format!(
        "echo run >>count; until [ -e '{}' ]; do sleep 0.1; done; exit 5",
        go.display()
    );
    let token = conformance::token();
    let wanted = script(&text, dir.path());
    let handle = executor.start(&host, &wanted, &token).await.unwrap();
    conformance::eventually("it runs", || dir.path().join("work/count").exists()).await;
    // At once after the acknowledgement: the job is not on the controller's disk yet.
    slurm.kill_controller();
    assert_eq!(executor.poll(&handle).await.unwrap(), Status::Running);
    slurm.start_controller();
    // The next one may get the number of the forgotten.
    let other = executor
        .start(
            &host,
            &script("echo other", dir.path()),
            &conformance::token(),
        )
        .await;
    assert_eq!(executor.poll(&handle).await.unwrap(), Status::Running);
    assert_eq!(
        executor.start(&host, &wanted, &token).await.unwrap(),
        handle
    );
    std::fs::write(&go, b"").unwrap();
    let status = conformance::bounded(executor.wait(&handle)).await.unwrap();
    assert!(
        matches!(status, Status::Exited(exit) if exit.code == Some(5)),
        "it ran to its end"
    );
    let other = other.unwrap();
    let status = conformance::bounded(executor.wait(&other)).await.unwrap();
    assert!(
        matches!(&status, Status::Exited(exit) if exit.success()),
        "{status:?}"
    );
    assert_eq!(
        executor.log(&other, Stream::Stdout, 0).await.unwrap(),
        b"other\n"
    );
    assert_eq!(
        std::fs::read_to_string(dir.path().join("work/count")).unwrap(),
        "run\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_is_lost_with_its_reason() {
    if rig::skipped() {
        return;
    }
    let slurm = Slurm::up(1);
    let dir = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &dir.path().join("root")).await;
    let host = HostSpec {
        name: slurm.hosts.name(1),
        address: slurm.hosts.address(1),
        gpus: 0,
    };
    let handle = executor
        .start(
            &host,
            &script("echo up >up; sleep 1001", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    conformance::eventually("it runs", || dir.path().join("work/up").exists()).await;
    slurm.hosts.kill(1);
    let status = conformance::bounded(executor.wait(&handle)).await.unwrap();
    assert!(
        matches!(&status, Status::Lost { why } if why.contains("NODE_FAIL")),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_cut_of_the_link_loses_nothing() {
    if rig::skipped() {
        return;
    }
    let slurm = Slurm::up(1);
    let dir = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &dir.path().join("root")).await;
    let host = HostSpec {
        name: slurm.hosts.name(1),
        address: slurm.hosts.address(1),
        gpus: 0,
    };
    let handle = executor
        .start(
            &host,
            &script("echo up >up; sleep 4; exit 3", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    conformance::eventually("it runs", || dir.path().join("work/up").exists()).await;
    slurm.hosts.link(1, false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    slurm.hosts.link(1, true);
    let status = conformance::bounded(executor.wait(&handle)).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.code == Some(3)));
}

/// `DOE_TEST_LONG=1`: 2,000 short scripts go through arrays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_go_through_arrays() {
    if rig::skipped() {
        return;
    }
    let count = if std::env::var_os("DOE_TEST_LONG").is_some() {
        2000
    } else {
        100
    };
    let slurm = Slurm::up(2);
    let dir = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &dir.path().join("root")).await;
    let specs = specs(&slurm);
    let runs = (0..count).map(|at| {
        let (executor, host) = (&executor, &specs[at % 2]);
        let script = script(&format!("exit {}", at % 100), dir.path());
        async move {
            let handle = executor.start(host, &script, &conformance::token()).await.unwrap();
            let status = tokio::time::timeout(Duration::from_secs(560), executor.wait(&handle)).await;
            assert!(matches!(status.unwrap().unwrap(), Status::Exited(exit) if exit.code == Some((at % 100) as i32)));
        }
    });
    futures_util::future::join_all(runs).await;
    let arrays = std::fs::read_dir(dir.path().join("root/arrays"))
        .unwrap()
        .count();
    assert!(
        arrays <= count / 10,
        "{arrays} submissions for {count} scripts"
    );
}
