//! What happens to local scripts when `doe` or its reaper is killed, or the disk is full. The
//! role of `doe` is played by this test program, started again with a variable that says so.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use doe::exec::local::{LocalExecutor, LocalOptions};
use doe::exec::{Executor, Handle, Script, Status, Stream, Token};

use crate::conformance::{Rig, bounded, carriers, eventually, number_in, runs, token};
use crate::rig::told::Case;
use crate::{hosts, options};

const PREFIX: &str = "DOE_TEST_PREFIX";
const ROOT: &str = "DOE_TEST_ROOT";
const MODE: &str = "DOE_TEST_MODE";

fn script(root: &Path, text: &str) -> Script {
    Script {
        name: "service-test".into(),
        text: text.into(),
        env: Default::default(),
        work: root.join("work"),
        timeout: None,
        log_cap_bytes: 1 << 20,
        attached: false,
        ask: Default::default(),
    }
}

/// Starts this program again as one that holds scripts.
fn holder(mode: &str, root: &Path, prefix: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "local_death::holding_process", "--nocapture"])
        .env(MODE, mode)
        .env(ROOT, root)
        .env(PREFIX, prefix)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill_9(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The life of a `doe` that is going to be killed; does nothing unless it was started for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holding_process() {
    let Ok(mode) = std::env::var(MODE) else {
        return;
    };
    let root = std::path::PathBuf::from(std::env::var_os(ROOT).unwrap());
    let prefix = std::env::var(PREFIX).unwrap();
    let keep = LocalOptions {
        keep_on_death: mode == "keep",
        ..options()
    };
    let executor = LocalExecutor::new(root.join("exec"), keep).unwrap();
    let [host, _] = hosts();
    let start = async |name: &str, text: &str| {
        let token = Token(format!("{prefix}-{name}"));
        executor
            .start(&host, &script(&root, text), &token)
            .await
            .unwrap()
    };
    match mode.as_str() {
        "hold" | "keep" => {
            let text = "echo begun; until [ -e go ]; do sleep 0.05; done; echo over; exit 4";
            let plain = start("plain", text).await;
            let work = root.join("work");
            start("stubborn", "trap '' TERM; sh -c 'trap \"\" TERM; sleep 1001' & setsid sh -c 'trap \"\" TERM; echo $$ >daemon; while :; do sleep 1002; done' & while :; do sleep 1003; done").await;
            number_in(&work.join("daemon")).await;
            let done = start("done", "exit 0").await;
            executor.wait(&done).await.unwrap();
            let handles = serde_json::to_vec(&[plain, done]).unwrap();
            fs::write(root.join("handles.tmp"), handles).unwrap();
            fs::rename(root.join("handles.tmp"), root.join("handles")).unwrap();
        }
        // Starts as fast as it can, so that a kill falls anywhere.
        "storm" => {
            let start = &start;
            futures_util::future::join_all((0..4).map(|lane| async move {
                for at in 0.. {
                    start(
                        &format!("{lane}-{at}"),
                        "trap '' TERM; setsid sleep 1001 & sleep 1002",
                    )
                    .await;
                }
            }))
            .await;
        }
        other => panic!("{other}"),
    }
    std::thread::sleep(Duration::from_secs(600));
}

async fn handles(root: &Path) -> Vec<Handle> {
    let path = root.join("handles");
    eventually("the scripts are started", || path.exists()).await;
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn nothing_outlives_a_killed_doe() {
    let _told = Case::own("local");
    let dir = tempfile::tempdir().unwrap();
    let prefix = token().0;
    let mut doe = holder("hold", dir.path(), &prefix);
    let handles = handles(dir.path()).await;
    let daemon = number_in(&dir.path().join("work/daemon")).await;
    assert!(carriers(&prefix).len() >= 4);
    kill_9(&mut doe);
    eventually("every process with our tokens is gone", || {
        carriers(&prefix).is_empty()
    })
    .await;
    assert!(!runs(daemon));

    // A later doe sees that it was ended and did not end; what had ended before keeps its word.
    let executor = LocalExecutor::new(dir.path().join("exec"), options()).unwrap();
    let status = executor.poll(&handles[0]).await.unwrap();
    assert!(
        matches!(&status, Status::Lost { why } if why.contains("doe")),
        "{status:?}"
    );
    let status = executor.poll(&handles[1]).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.success()));
    assert_eq!(executor.sweep().await.unwrap(), []);
    let log = || fs::read_to_string(dir.path().join("exec/reaper.log")).unwrap();
    eventually("the reaper is content", || {
        log().contains("nothing is left")
    })
    .await;
    let log = log();
    assert!(log.contains(&format!("{prefix}-plain")), "{log}");
    assert!(!log.contains(&format!("{prefix}-done")), "{log}");
}

#[tokio::test]
async fn a_kill_at_any_moment_of_a_start_leaves_nothing() {
    let _told = Case::own("local");
    for round in 0..8u64 {
        let dir = tempfile::tempdir().unwrap();
        let prefix = token().0;
        let mut doe = holder("storm", dir.path(), &prefix);
        eventually("the first script runs", || !carriers(&prefix).is_empty()).await;
        tokio::time::sleep(Duration::from_millis(round * 17)).await;
        kill_9(&mut doe);
        // The pipe of the reaper closes when doe is gone; from then on nothing new can appear,
        // and twice in a row nothing is seen.
        eventually("every process with our tokens is gone", || {
            carriers(&prefix).is_empty() && carriers(&prefix).is_empty()
        })
        .await;
        eventually("the reaper has settled", || {
            fs::read_to_string(dir.path().join("exec/reaper.log"))
                .is_ok_and(|l| l.contains("nothing is left"))
        })
        .await;
        assert!(carriers(&prefix).is_empty(), "round {round}");
    }
}

#[tokio::test]
async fn kept_scripts_are_attached_to_again() {
    let _told = Case::own("local");
    let dir = tempfile::tempdir().unwrap();
    let prefix = token().0;
    let mut doe = holder("keep", dir.path(), &prefix);
    let handles = handles(dir.path()).await;
    kill_9(&mut doe);

    let executor = LocalExecutor::new(dir.path().join("exec"), options()).unwrap();
    let left = executor.sweep().await.unwrap();
    let names: Vec<_> = left
        .iter()
        .map(|h| h.token.0.trim_start_matches(&prefix))
        .collect();
    assert_eq!(names, ["-plain", "-stubborn"]);
    assert_eq!(left[0], handles[0]);
    assert!(left.iter().all(|h| h.host == "h1"));
    // The same token does not start again what still runs.
    let again = script(dir.path(), "echo never");
    let same = executor
        .start(&hosts()[0], &again, &left[0].token)
        .await
        .unwrap();
    assert_eq!(same, left[0]);
    fs::write(dir.path().join("work/go"), b"").unwrap();
    let status = bounded(executor.wait(&left[0])).await.unwrap();
    assert!(
        matches!(&status, Status::Exited(exit) if exit.code == Some(4)),
        "{status:?}"
    );
    assert_eq!(
        executor.log(&left[0], Stream::Stdout, 0).await.unwrap(),
        b"begun\nover\n"
    );
    bounded(executor.cancel(&left[1], Duration::from_millis(100)))
        .await
        .unwrap();
    assert_eq!(carriers(&prefix), [0; 0]);
    assert_eq!(executor.sweep().await.unwrap(), []);
}

/// The reaper of the executor with this root, found by who its parent is and what it was given.
fn reaper_of(root: &Path, parent: u32) -> Option<u32> {
    let wanted = [
        b"__reaper\0".as_slice(),
        root.as_os_str().as_encoded_bytes(),
        b"\x000\0",
    ]
    .concat();
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let ours = stat.rsplit_once(") ")?.1.split(' ').nth(1)? == parent.to_string();
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        (ours && arguments.ends_with(&wanted)).then_some(pid)
    })
}

#[tokio::test]
async fn a_killed_reaper_is_replaced_and_knows_everything() {
    let _told = Case::own("local");
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let prefix = token().0;
    let mut doe = holder("hold", &root, &prefix);
    handles(&root).await;
    let find = || reaper_of(&root.join("exec"), doe.id());
    // Its number is written down when it was told everything, and not before.
    let knows = |reaper: u32| {
        let text = fs::read_to_string(root.join("exec/guardian"));
        text.is_ok_and(|number| number.trim() == reaper.to_string())
    };
    for _ in 0..3 {
        let first = find().unwrap();
        let killed = Command::new("/bin/sh")
            .args(["-c", &format!("kill -9 {first}")])
            .status();
        assert!(killed.unwrap().success());
        eventually("a new reaper knows everything", || {
            find().is_some_and(|pid| pid != first && knows(pid))
        })
        .await;
    }
    assert!(
        carriers(&prefix).len() >= 4,
        "a dead reaper takes nobody with it"
    );
    let reaper = find().unwrap();
    kill_9(&mut doe);
    eventually("every process with our tokens is gone", || {
        carriers(&prefix).is_empty()
    })
    .await;
    eventually("the reaper is gone", || !runs(reaper)).await;
}

#[tokio::test]
async fn a_dropped_executor_ends_what_it_started_and_an_idle_one_lets_its_reaper_go() {
    let _told = Case::own("local");
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let executor = LocalExecutor::new(root.join("exec"), options()).unwrap();
    let running = token();
    let long = script(&root, "sleep 1001");
    executor.start(&hosts()[0], &long, &running).await.unwrap();
    let reaper = reaper_of(&root.join("exec"), std::process::id()).unwrap();
    drop(executor);
    eventually("the script is gone", || carriers(&running.0).is_empty()).await;
    eventually("the reaper is gone", || !runs(reaper)).await;

    let log = fs::read_to_string(root.join("exec/reaper.log")).unwrap();
    let executor = LocalExecutor::new(root.join("exec"), options()).unwrap();
    let handle = executor
        .start(&hosts()[0], &script(&root, "exit 0"), &token())
        .await
        .unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    let reaper = reaper_of(&root.join("exec"), std::process::id()).unwrap();
    drop(executor);
    eventually("the reaper is gone", || !runs(reaper)).await;
    let after = fs::read_to_string(root.join("exec/reaper.log")).unwrap();
    assert_eq!(after, log, "it had nothing to do");
}

/// A small file system, where we may make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_the_end_is_still_written_down() {
    let told = Case::own("local");
    let Some(disk) = SmallDisk::mount() else {
        let note = b"SKIPPED: no right to mount a small file system here\n";
        std::io::stderr().write_all(note).unwrap();
        let why = "no right to mount a small file system here";
        told.into_iter().for_each(|told| told.skip(why));
        return;
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let rig = Rig {
        netns: None,
        keep: None,
        executor: Box::new(LocalExecutor::new(disk.0.path().join("exec"), options()).unwrap()),
        hosts: hosts(),
        scratch: elsewhere,
        attached: false,
    };
    // The script fills the disk and goes on: neither its logs nor its end may stop it.
    let fill = disk.0.path().join("fill");
    let text = format!(
        "echo begun
        while [ ! -s \"${{0%/*}}/stdout\" ]; do sleep 0.02; done
        cat /dev/zero >'{0}' || echo full >&2; seq 1 300000; exit 9",
        fill.display()
    );
    let handle = rig.start(&rig.script(&text)).await;
    let exit = rig.ended(&handle).await;
    assert_eq!(exit.code, Some(9));
    assert!(
        rig.log(&handle, Stream::Stdout)
            .await
            .starts_with(b"begun\n")
    );
    // Nothing new can be started, and that is an error and not an outcome.
    let refused = rig
        .executor
        .start(&rig.hosts[0], &rig.script("true"), &token())
        .await;
    assert!(refused.is_err(), "{refused:?}");
    fs::remove_file(fill).unwrap();
    assert!(rig.run(&rig.script("true")).await.exit.success());
}
