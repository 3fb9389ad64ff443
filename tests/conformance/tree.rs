//! Trees of processes: limits, cancelling, what is left behind, and what is lost.

use std::fs;
use std::time::Duration;

use doe::exec::{Handle, Status, Stream};

use super::{Rig, bounded, carriers, eventually, number_in, runs};

/// A script with children of every kind, none of which heeds TERM: a child, a grandchild, a
/// daemon in a session of its own, and one that cleaned its environment. Their numbers are left
/// in files.
fn stubborn(rig: &Rig) -> String {
    let dir = rig.scratch.path().display();
    format!(
        "trap '' TERM
        cd '{dir}'
        sleep 1001 & echo $! >child
        (sh -c 'trap \"\" TERM; sleep 1002 & echo $! >grandchild; wait') &
        setsid sh -c 'trap \"\" TERM; echo $$ >daemon; while :; do sleep 1003; done' &
        env -i /bin/sh -c 'trap \"\" TERM; echo $$ >bare; while :; do /bin/sleep 1004; done' &
        echo started
        while :; do sleep 1005; done\n"
    )
}

async fn members(rig: &Rig) -> Vec<u32> {
    let mut pids = Vec::new();
    for name in ["child", "grandchild", "daemon", "bare"] {
        pids.push(number_in(&rig.path(name)).await);
    }
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    pids
}

fn assert_gone(handle: &Handle, pids: &[u32]) {
    assert_eq!(
        carriers(&handle.token.0),
        [0; 0],
        "processes carry the token"
    );
    for pid in pids {
        assert!(!runs(*pid), "{pid} still runs");
    }
    assert!(!runs(handle.pid));
}

pub async fn timeout(rig: &Rig) {
    let mut script = rig.script(&stubborn(rig));
    // Long enough for the members to be seen; the test itself waits for no time.
    script.timeout = Some(Duration::from_secs(6));
    let handle = rig.start(&script).await;
    let pids = members(rig).await;
    let exit = rig.ended(&handle).await;
    assert!(
        exit.timed_out && exit.signal == Some(9) && !exit.success(),
        "{exit:?}"
    );
    assert_gone(&handle, &pids);
    assert_eq!(rig.log(&handle, Stream::Stdout).await, b"started\n");
}

pub async fn timeout_of_a_polite_script(rig: &Rig) {
    let mut script = rig.script("trap 'echo bye; exit 0' TERM; while :; do sleep 0.02; done");
    script.timeout = Some(Duration::from_secs(6));
    let ran = rig.run(&script).await;
    // It ended well, but not in time.
    assert!(
        ran.exit.timed_out && ran.exit.code == Some(0) && !ran.exit.success(),
        "{:?}",
        ran.exit
    );
    assert_eq!(ran.stdout, b"bye\n");
    let mut script = rig.script("sleep 0.01");
    script.timeout = Some(Duration::from_secs(3600));
    assert!(rig.run(&script).await.exit.success());
}

pub async fn leftovers_are_ended(rig: &Rig) {
    // Background processes hold the logs open; neither that nor TERM keeps them.
    let dir = rig.scratch.path().display();
    let text = format!(
        "cd '{dir}'
        sh -c 'trap \"\" TERM; echo $$ >child; while :; do sleep 1001; done' &
        setsid sh -c 'echo $$ >daemon; sleep 1002; :' &
        while [ ! -s child ] || [ ! -s daemon ]; do sleep 0.02; done
        echo done; exit 6"
    );
    let ran = rig.run(&rig.script(&text)).await;
    assert_eq!(
        (ran.exit.code, ran.stdout.as_slice()),
        (Some(6), b"done\n".as_slice())
    );
    let pids = [
        number_in(&rig.path("child")).await,
        number_in(&rig.path("daemon")).await,
    ];
    assert_gone(&ran.handle, &pids);
}

pub async fn cancel_ends_everything(rig: &Rig) {
    let handle = rig.start(&rig.script(&stubborn(rig))).await;
    let pids = members(rig).await;
    bounded(rig.executor.cancel(&handle, Duration::from_millis(200)))
        .await
        .unwrap();
    assert_gone(&handle, &pids);
    // The wrapper had the time to write down how it ended.
    let exit = rig.ended(&handle).await;
    assert_eq!(
        (exit.code, exit.signal, exit.timed_out),
        (None, Some(9), false)
    );
    assert_eq!(rig.log(&handle, Stream::Stdout).await, b"started\n");
}

pub async fn cancel_is_polite_first(rig: &Rig) {
    let text = "trap 'echo stopping; sleep 0.2; echo stopped; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let handle = rig.start(&rig.script(text)).await;
    bounded(async {
        while rig.log(&handle, Stream::Stdout).await != b"ready\n" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    bounded(rig.executor.cancel(&handle, Duration::from_secs(60)))
        .await
        .unwrap();
    assert_gone(&handle, &[]);
    assert_eq!(rig.ended(&handle).await.code, Some(5));
    assert_eq!(
        rig.log(&handle, Stream::Stdout).await,
        b"ready\nstopping\nstopped\n"
    );
}

pub async fn cancel_twice_and_late(rig: &Rig) {
    let handle = rig.start(&rig.script("sleep 1001")).await;
    let cancel = || rig.executor.cancel(&handle, Duration::from_secs(60));
    let (one, two) = bounded(async { tokio::join!(cancel(), cancel()) }).await;
    one.unwrap();
    two.unwrap();
    bounded(cancel()).await.unwrap();
    let exit = rig.ended(&handle).await;
    assert_eq!(exit.signal, Some(15));
    // Cancelling what ended by itself changes nothing of its outcome.
    let ran = rig.run(&rig.script("exit 3")).await;
    bounded(rig.executor.cancel(&ran.handle, Duration::ZERO))
        .await
        .unwrap();
    assert_eq!(rig.ended(&ran.handle).await, ran.exit);
}

pub async fn own_group_does_not_hurt_the_logs(rig: &Rig) {
    // A common idiom: a script signals its whole process group.
    let text = "trap 'trap \"\" TERM; kill 0; echo cleaned; exit 0' EXIT; echo working; sleep 1001 & exit 0";
    let ran = rig.run(&rig.script(text)).await;
    assert_eq!(
        (ran.exit.code, ran.stdout.as_slice()),
        (Some(0), b"working\ncleaned\n".as_slice())
    );
}

pub async fn a_stopped_tree_is_ended(rig: &Rig) {
    let handle = rig
        .start(&rig.script("echo $$ >pid; kill -STOP $$; sleep 1001"))
        .await;
    let pid = number_in(&rig.path("work/pid")).await;
    let stopped =
        || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") T "));
    eventually("the script has stopped itself", stopped).await;
    bounded(rig.executor.cancel(&handle, Duration::from_secs(60)))
        .await
        .unwrap();
    assert_gone(&handle, &[pid]);
    assert_eq!(rig.ended(&handle).await.signal, Some(15));
}

pub async fn lost_leader(rig: &Rig) {
    let handle = rig.start(&rig.script(&stubborn(rig))).await;
    let pids = members(rig).await;
    assert_eq!(rig.executor.poll(&handle).await.unwrap(), Status::Running);
    let killed = std::process::Command::new("/bin/sh")
        .args(["-c", &format!("kill -9 {}", handle.pid)])
        .status();
    assert!(killed.unwrap().success());
    let status = bounded(rig.executor.wait(&handle)).await.unwrap();
    assert!(
        matches!(&status, Status::Lost { why } if why.contains("no exit record")),
        "{status:?}"
    );
    bounded(rig.executor.cancel(&handle, Duration::from_millis(200)))
        .await
        .unwrap();
    // The one with the clean environment descends from nobody we know any more, unless it was
    // seen as a member before: it is not hunted by name.
    assert_eq!(carriers(&handle.token.0), [0; 0]);
    let bare = pids[3];
    if runs(bare) {
        let end = format!("kill -9 {bare}");
        std::process::Command::new("/bin/sh")
            .args(["-c", &end])
            .status()
            .unwrap();
    }
    for pid in &pids[..3] {
        assert!(!runs(*pid), "{pid} still runs");
    }
}

pub async fn torn_record(rig: &Rig) {
    let ran = rig.run(&rig.script("exit 0")).await;
    let path = ran.handle.dir.join("exit");
    let record = fs::read(&path).unwrap();
    assert_eq!(
        rig.executor.poll(&ran.handle).await.unwrap(),
        Status::Exited(ran.exit)
    );
    let text = String::from_utf8(record.clone()).unwrap();
    let whole = text.find("end\n").unwrap() + 4;
    for cut in [0, 1, 10, whole / 2, whole - 4, whole - 1] {
        fs::write(&path, &record[..cut]).unwrap();
        let status = rig.executor.poll(&ran.handle).await.unwrap();
        assert!(
            matches!(status, Status::Lost { .. }),
            "cut at {cut}: {status:?}"
        );
    }
    fs::remove_file(&path).unwrap();
    for status in [
        rig.executor.poll(&ran.handle).await.unwrap(),
        bounded(rig.executor.wait(&ran.handle)).await.unwrap(),
    ] {
        assert!(
            matches!(&status, Status::Lost { why } if why.contains("no exit record")),
            "{status:?}"
        );
    }
    rig.executor.discard(&ran.handle).await.unwrap();
    assert!(!ran.handle.dir.exists());
    let status = rig.executor.poll(&ran.handle).await.unwrap();
    assert!(matches!(status, Status::Lost { .. }), "{status:?}");
}

pub async fn what_runs_keeps_its_folder(rig: &Rig) {
    if rig.attached {
        // It has none.
        return;
    }
    let handle = rig.start(&rig.script("sleep 1002")).await;
    let error = bounded(rig.executor.discard(&handle)).await.unwrap_err();
    assert!(handle.dir.join("pid").exists(), "{error}");
    assert_eq!(
        rig.executor.poll(&handle).await.unwrap(),
        Status::Running,
        "{error}"
    );
    bounded(rig.executor.cancel(&handle, Duration::ZERO))
        .await
        .unwrap();
    rig.executor.discard(&handle).await.unwrap();
    assert!(!handle.dir.exists());
}
