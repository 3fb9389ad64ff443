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
        grace: Duration::from_secs(4),
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
        attached: false,
    }
}

conformance!(
    "ssh",
    match rig::skipped() {
        true => None,
        false => Some(ssh_rig().await),
    }
);

#[test]
fn peer_process() {
    conformance::process::peer_process();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_skew() {
    let Some(_told) = rig::told("ssh", "clock skew") else {
        return;
    };
    // Clocks of its own: other tests look at theirs.
    let hosts = Hosts::up(2, None);
    let scratch = tempfile::tempdir().unwrap();
    let rig = Rig {
        executor: Box::new(connect(&hosts, &scratch.path().join("root")).await),
        hosts: specs(&hosts),
        netns: None,
        scratch,
        keep: None,
        attached: false,
    };
    conformance::hosts::clock_skew(&rig, |ahead_s| hosts.set_clocks(ahead_s)).await;
}

use doe::exec::{Executor, Script, Status, Stream};

fn script(text: &str, dir: &std::path::Path) -> Script {
    Script {
        name: "step-test".into(),
        text: text.into(),
        env: Default::default(),
        work: dir.join("work"),
        timeout: Some(Duration::from_secs(120)),
        log_cap_bytes: 1 << 20,
        attached: false,
        ask: Default::default(),
    }
}

/// Hosts of its own for a test that hurts them.
async fn own() -> (Hosts, tempfile::TempDir, RemoteExecutor, [HostSpec; 2]) {
    let hosts = Hosts::up(2, None);
    let dir = tempfile::tempdir().unwrap();
    let executor = connect(&hosts, &dir.path().join("root")).await;
    let specs = specs(&hosts);
    (hosts, dir, executor, specs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_loses_nothing() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let (hosts, dir, executor, specs) = own().await;
    let go = dir.path().join("go");
    let text = format!(
        "echo begun; until [ -e '{}' ]; do sleep 0.05; done; echo done; exit 7",
        go.display()
    );
    let handle = executor
        .start(&specs[0], &script(&text, dir.path()), &conformance::token())
        .await
        .unwrap();
    let (status, ()) = tokio::join!(conformance::bounded(executor.wait(&handle)), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        hosts.link(1, false);
        // It ends while nobody can see it.
        std::fs::write(&go, b"").unwrap();
        let exit = dir
            .path()
            .join("root/runs")
            .join(&handle.token.0)
            .join("exit");
        conformance::eventually("the record is written", || exit.exists()).await;
        hosts.link(1, true);
    });
    assert!(matches!(status.unwrap(), Status::Exited(exit) if exit.code == Some(7)));
    assert_eq!(
        executor.log(&handle, Stream::Stdout, 0).await.unwrap(),
        b"begun\ndone\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_is_made_again() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let (hosts, dir, executor, specs) = own().await;
    let handle = executor
        .start(
            &specs[0],
            &script("sleep 2; echo alive", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    let (status, ()) = tokio::join!(conformance::bounded(executor.wait(&handle)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Every sshd but the listener; the script is none of them.
        for pid in hosts.processes(1) {
            let command =
                std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if command.starts_with("sshd: root") {
                let _ = std::process::Command::new("kill")
                    .args(["-KILL", &pid.to_string()])
                    .status();
            }
        }
    });
    assert!(matches!(status.unwrap(), Status::Exited(exit) if exit.success()));
    assert_eq!(
        executor.log(&handle, Stream::Stdout, 0).await.unwrap(),
        b"alive\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_is_said_to_have_lost_it() {
    let Some(_told) = rig::told("ssh", "killed host") else {
        return;
    };
    let (hosts, dir, executor, specs) = own().await;
    let handle = executor
        .start(
            &specs[0],
            &script("sleep 1001", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    let other = executor
        .start(
            &specs[1],
            &script("echo other", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    hosts.kill(1);
    // The other host does not feel it.
    let status = conformance::bounded(executor.wait(&other)).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.success()));
    hosts.revive(1);
    let status = conformance::bounded(executor.wait(&handle)).await.unwrap();
    assert!(
        matches!(&status, Status::Lost { why } if why.contains("no exit record")),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_survives_the_client_and_a_sweep_finds_what_runs() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let (hosts, dir, executor, specs) = own().await;
    let done = executor
        .start(
            &specs[0],
            &script("echo x; exit 3", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    conformance::bounded(executor.wait(&done)).await.unwrap();
    let token = conformance::token();
    let long = script("echo up; sleep 1001", dir.path());
    let running = executor.start(&specs[0], &long, &token).await.unwrap();
    drop(executor);

    let again = connect(&hosts, &dir.path().join("root")).await;
    assert!(
        matches!(again.poll(&done).await.unwrap(), Status::Exited(exit) if exit.code == Some(3))
    );
    assert_eq!(again.poll(&running).await.unwrap(), Status::Running);
    assert_eq!(
        again.start(&specs[0], &long, &token).await.unwrap(),
        running
    );
    assert_eq!(
        again.sweep(&specs[0]).await.unwrap(),
        std::slice::from_ref(&running)
    );
    conformance::bounded(again.cancel(&running, Duration::from_millis(200)))
        .await
        .unwrap();
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_before_it_came_never_begins() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let (_hosts, dir, executor, specs) = own().await;
    let wanted = script("touch ran", dir.path());
    let late = conformance::token();
    let revoked = executor.revoke(&specs[0], &late, Duration::ZERO).await;
    assert_eq!(revoked.unwrap(), None);
    let error = executor.start(&specs[0], &wanted, &late).await.unwrap_err();
    assert!(error.to_string().contains("did not start"), "{error}");
    assert_eq!(executor.find(&specs[0], &late).await.unwrap(), None);
    assert!(!dir.path().join("work/ran").exists());

    // A start that is on its way: whoever comes first, nothing runs when both have come.
    for round in 0..10 {
        let token = conformance::token();
        let wanted = script("sleep 1001", dir.path());
        let (started, revoked) = tokio::join!(executor.start(&specs[0], &wanted, &token), async {
            tokio::time::sleep(Duration::from_millis(round * 5)).await;
            executor.revoke(&specs[0], &token, Duration::ZERO).await
        });
        let revoked = conformance::bounded(async { revoked }).await.unwrap();
        if let Ok(started) = &started {
            let status = conformance::bounded(executor.wait(started)).await.unwrap();
            assert_ne!(status, Status::Running);
        }
        assert!(
            started.is_err() || revoked.is_some(),
            "{started:?} {revoked:?}"
        );
        // A wrapper that came second is on its way out.
        let gone = || conformance::carriers(&token.0).is_empty();
        conformance::eventually("nothing carries the token", gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stays_away_is_an_error_and_not_an_outcome() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let (hosts, dir, _executor, specs) = own().await;
    let options = RemoteOptions {
        root: dir.path().join("root").to_str().unwrap().to_owned(),
        patience: Duration::from_secs(1),
        grace: Duration::from_secs(2),
    };
    let executor = RemoteExecutor::connect(ssh(&hosts), &options, &specs)
        .await
        .unwrap();
    let handle = executor
        .start(
            &specs[0],
            &script("sleep 1001", dir.path()),
            &conformance::token(),
        )
        .await
        .unwrap();
    // Its sshd is gone, its script is not.
    let pid = std::fs::read_to_string(hosts.dir().join("sshd-1.pid")).unwrap();
    let victims = hosts.processes(1).into_iter().filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap_or_default()
            .contains("sshd")
    });
    let victims: Vec<_> = victims
        .map(|pid| pid.to_string())
        .chain([pid.trim().to_owned()])
        .collect();
    let _ = std::process::Command::new("kill")
        .arg("-KILL")
        .args(&victims)
        .output();
    let error = conformance::bounded(executor.wait(&handle))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.kind.exit_code()),
        ("host-unreachable", 4)
    );
    let error = conformance::bounded(executor.cancel(&handle, Duration::ZERO))
        .await
        .unwrap_err();
    assert_eq!(error.code, "host-unreachable");
    hosts.revive(1);
    conformance::bounded(executor.cancel(&handle, Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(conformance::carriers(&handle.token.0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_talked_to() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let dir = tempfile::tempdir().unwrap();
    let options = RemoteOptions {
        root: dir.path().join("root").to_str().unwrap().to_owned(),
        patience: Duration::from_secs(60),
        grace: Duration::from_secs(2),
    };
    let try_with = async |known: &str| {
        let file = dir.path().join("known");
        std::fs::write(&file, known).unwrap();
        let ssh_options = SshOptions {
            config: Some(hosts.config()),
            known_hosts: Some(file),
            ..SshOptions::default()
        };
        let names = [1, 2].map(|number| (hosts.name(number), hosts.name(number)));
        let ssh = Ssh::new(&ssh_options, names).unwrap();
        RemoteExecutor::connect(ssh, &options, &specs(&hosts)).await
    };
    let right = std::fs::read_to_string(hosts.dir().join("known_hosts")).unwrap();
    assert!(try_with(&right).await.is_ok());
    let other = std::fs::read_to_string(hosts.dir().join("id.pub")).unwrap();
    let other: Vec<&str> = other.split(' ').take(2).collect();
    let wrong = format!("{} {}\n", hosts.address(1), other.join(" "));
    for known in ["", &wrong] {
        let error = try_with(known).await.err().expect("a stranger was let in");
        assert_eq!(error.code, "host-unreachable");
        assert!(
            error.hints.iter().any(|hint| hint.contains("key")),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_jump_host() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let dir = tempfile::tempdir().unwrap();
    // The second host is not reached directly: what comes from this machine is dropped there.
    let netns = hosts.netns(2);
    let drop_ours = format!("ip route add blackhole {}", hosts.address(254));
    let done = std::process::Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["sh", "-c", &drop_ours])
        .status();
    assert!(done.unwrap().success());
    let ssh_options = SshOptions {
        config: Some(hosts.config()),
        jump: Some(hosts.name(1)),
        ..SshOptions::default()
    };
    let ssh = Ssh::new(&ssh_options, [(hosts.name(2), hosts.name(2))]).unwrap();
    let options = RemoteOptions {
        root: dir.path().join("root").to_str().unwrap().to_owned(),
        patience: Duration::from_secs(60),
        grace: Duration::from_secs(2),
    };
    let far = &specs(&hosts)[1..];
    let executor = RemoteExecutor::connect(ssh, &options, far).await.unwrap();
    let text = "ip -o -4 addr show dev eth0 | tr -s ' ' | cut -d' ' -f4";
    let handle = executor
        .start(&far[0], &script(text, dir.path()), &conformance::token())
        .await
        .unwrap();
    conformance::bounded(executor.wait(&handle)).await.unwrap();
    let said = executor.log(&handle, Stream::Stdout, 0).await.unwrap();
    assert_eq!(
        String::from_utf8(said).unwrap(),
        format!("{}/24\n", hosts.address(2))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_nothing_half_is_left() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("small");
    std::fs::create_dir(&root).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&root)
        .status();
    assert!(
        mounted.unwrap().success(),
        "the test needs the right to mount"
    );
    let done = async {
        let executor = connect(&hosts, &root).await;
        let specs = specs(&hosts);
        let source = dir.path().join("big");
        let content = vec![1; 1 << 20];
        std::fs::write(&source, &content).unwrap();
        let digest = doe_cache::Digest::of(&content);
        let files = [(digest, source)];
        let error = executor.stage(&specs[0], &files).await.unwrap_err();
        assert_eq!(error.code, "host-refused", "{error}");
        let blobs: Vec<_> = std::fs::read_dir(root.join("blobs"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(
            blobs
                .iter()
                .all(|name| !name.starts_with('.') && *name != digest.to_string()),
            "{blobs:?}"
        );
        let _ = std::fs::write(root.join("filler"), vec![0; 1 << 20]);
        let error = executor
            .start(
                &specs[0],
                &script("touch /tmp/never", dir.path()),
                &conformance::token(),
            )
            .await
            .unwrap_err();
        assert_eq!(error.code, "not-started", "{error}");
    };
    let ended = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(done)).await;
    let _ = std::process::Command::new("umount").arg(&root).status();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// An executor that attends to what runs under a name, with little patience.
async fn attending(
    hosts: &Hosts,
    dir: &std::path::Path,
    name: &str,
    survive: Duration,
) -> RemoteExecutor {
    let options = RemoteOptions {
        root: dir.join("root").to_str().unwrap().to_owned(),
        patience: Duration::from_secs(1),
        grace: Duration::from_secs(1),
    };
    let specs = specs(hosts);
    let executor = RemoteExecutor::connect(ssh(hosts), &options, &specs).await;
    let executor = executor.unwrap();
    executor.guard(&specs, name, survive).await.unwrap();
    executor
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_attends_to_ends_itself() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let dir = tempfile::tempdir().unwrap();
    let survive = Duration::from_secs(8);
    let first = attending(&hosts, dir.path(), "one", survive).await;
    let specs = specs(&hosts);
    let start = async |executor: &RemoteExecutor, host: usize, text: &str, limit| {
        let mut script = script(text, dir.path());
        script.timeout = limit;
        let token = conformance::token();
        executor.start(&specs[host], &script, &token).await.unwrap()
    };
    let stubborn = "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1001; done' & while :; do sleep 1002; done";
    let limit = Some(Duration::from_secs(120));
    let left = [
        start(&first, 0, stubborn, None).await,
        start(&first, 1, "sleep 1003", limit).await,
    ];
    let short = start(&first, 0, "sleep 1; echo kept; exit 5", None).await;
    // As long as somebody attends to it, however little there is to say.
    tokio::time::sleep(2 * survive).await;
    for handle in &left {
        assert_eq!(first.poll(handle).await.unwrap(), Status::Running);
    }
    drop(first);
    // Neither who only looks nor who attends to something else keeps it alive.
    let other = attending(&hosts, dir.path(), "two", survive).await;
    let its = start(&other, 0, "sleep 1004", None).await;
    for handle in &left {
        let gone = || conformance::carriers(&handle.token.0).is_empty();
        conformance::eventually("it ended itself", gone).await;
        let status = conformance::bounded(other.wait(handle)).await.unwrap();
        let said = matches!(&status, Status::Lost { why } if why.contains("nobody attended"));
        assert!(said, "{status:?}");
        assert!(other.ended_unix_ms(handle).await.unwrap().is_some());
    }
    assert_eq!(other.poll(&its).await.unwrap(), Status::Running);
    // What had ended by itself keeps its outcome.
    let status = other.poll(&short).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.code == Some(5)));
    conformance::bounded(other.cancel(&its, Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(conformance::carriers(&its.token.0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_over_goes_on_and_a_cut_link_ends_nothing() {
    let Some(_told) = rig::own("ssh") else {
        return;
    };
    let hosts = Hosts::up(2, None);
    let dir = tempfile::tempdir().unwrap();
    let survive = Duration::from_secs(9);
    let specs = specs(&hosts);
    let token = conformance::token();
    let long = script("echo up; sleep 1001", dir.path());
    let first = attending(&hosts, dir.path(), "one", survive).await;
    let handle = first.start(&specs[0], &long, &token).await.unwrap();
    // Each comes when the one before is gone for a part of the time that it may survive; together
    // these are more than that.
    drop(first);
    for _ in 0..4 {
        tokio::time::sleep(survive * 2 / 5).await;
        let next = attending(&hosts, dir.path(), "one", survive).await;
        assert_eq!(next.poll(&handle).await.unwrap(), Status::Running);
    }
    // Nothing is said for longer than it may survive, for the host cannot be reached: it is
    // waited for that long, and so is whoever waits.
    let options = RemoteOptions {
        root: dir.path().join("root").to_str().unwrap().to_owned(),
        patience: Duration::from_secs(60),
        grace: Duration::from_secs(1),
    };
    let patient = RemoteExecutor::connect(ssh(&hosts), &options, &specs).await;
    let patient = patient.unwrap();
    patient.guard(&specs, "one", Duration::ZERO).await.unwrap();
    let later = patient
        .start(&specs[0], &long, &conformance::token())
        .await
        .unwrap();
    conformance::bounded(patient.cancel(&handle, Duration::ZERO))
        .await
        .unwrap();
    hosts.link(1, false);
    tokio::time::sleep(survive * 3 / 2).await;
    hosts.link(1, true);
    let status = conformance::bounded(patient.poll(&later)).await.unwrap();
    assert_eq!(status, Status::Running);
    conformance::bounded(patient.cancel(&later, Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(conformance::carriers(&later.token.0), [0; 0]);
}
