//! What hosts do: their disks run full, their clocks are off, and they are asked for many things.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use doe::error::Kind;
use doe::exec::{Status, Stream};

use super::{Rig, bounded, digest, token};
use crate::rig::told::Outcome;

/// A small disk in the place of a folder, with what was in it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn over(folder: &Path) -> Option<Self> {
        let kept = tempfile::tempdir().unwrap();
        let copy = |from: &Path, to: &Path| {
            let done = Command::new("cp")
                .arg("-a")
                .arg(from.join("."))
                .arg(to)
                .status();
            assert!(done.unwrap().success());
        };
        copy(folder, kept.path());
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            return None;
        }
        let disk = Self(folder.to_owned());
        copy(kept.path(), folder);
        Some(disk)
    }

    /// Writes until nothing fits any more.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The disk that holds the executor's folder runs full, and has room again.
pub async fn disk_full(rig: &Rig) -> Outcome {
    let host = &rig.hosts[0];
    let first = rig.run(&rig.script("echo first")).await;
    // The folder of an execution is `ROOT/runs/TOKEN`.
    let root = first.handle.dir.parent().unwrap().parent().unwrap();
    let Some(disk) = SmallDisk::over(root) else {
        let note = b"SKIPPED: no right to mount a small file system here\n";
        std::io::stderr().write_all(note).unwrap();
        return Outcome::Skipped("no right to mount a small file system here");
    };
    let go = rig.path("go");
    let text = format!(
        "echo begun; until [ -e '{}' ]; do sleep 0.05; done; echo result >result; seq 1 300000; exit 9",
        go.display()
    );
    let running = rig.start(&rig.script(&text)).await;
    let begun = async || {
        let log = rig.executor.log(&running, Stream::Stdout, 0).await.unwrap();
        log == b"begun\n"
    };
    while !bounded(begun()).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    disk.fill();

    // Nothing begins, nothing half is left, and both are said to be no outcome of a script.
    let mut script = rig.script("touch ran");
    script.work = rig.path("never");
    let refused = bounded(rig.executor.start(host, &script, &token())).await;
    let error = refused.unwrap_err();
    assert_eq!(error.kind, Kind::Infra, "{error}");
    assert!(["not-started", "io"].contains(&error.code), "{error:?}");
    assert!(!rig.path("never/ran").exists());
    let content = vec![7; 200_000];
    let source = rig.path("source");
    fs::write(&source, &content).unwrap();
    let files = [(digest(&content), source)];
    let staged = bounded(rig.executor.stage(host, &files)).await;
    let error = staged.unwrap_err();
    assert_eq!(error.kind, Kind::Infra, "{error}");
    assert!(["host-refused", "io"].contains(&error.code), "{error:?}");
    let told = format!("{error:?}").to_lowercase();
    assert!(told.contains("space") || told.contains("write"), "{told}");

    // What runs feels nothing of it, and its end is written down.
    assert_eq!(rig.executor.poll(&running).await.unwrap(), Status::Running);
    fs::write(&go, b"").unwrap();
    let exit = rig.ended(&running).await;
    assert_eq!((exit.code, exit.timed_out), (Some(9), false));
    let log = rig.log(&running, Stream::Stdout).await;
    assert!(log.starts_with(b"begun\n"));
    let into = rig.path("into");
    let names = ["result".to_owned()];
    let work = rig.path("work");
    let got = rig.executor.collect(host, &work, &names, &into).await;
    assert_eq!(fs::read(&got.unwrap()[0]).unwrap(), b"result\n");
    // What had ended before is as it was.
    assert_eq!(rig.ended(&first.handle).await, first.exit);
    assert_eq!(rig.log(&first.handle, Stream::Stdout).await, b"first\n");

    disk.make_room();
    let staged = rig.executor.stage(host, &files).await.unwrap();
    assert_eq!(fs::read(&staged[0]).unwrap(), content);
    let again = rig.executor.start(host, &script, &token()).await.unwrap();
    assert!(rig.ended(&again).await.success());
    assert!(rig.path("never/ran").exists());
    assert_eq!(rig.ended(&running).await, exit);
    fs::remove_file(&staged[0]).unwrap();
    Outcome::Passed
}

/// The hosts' clocks are minutes and hours off, and are set while something runs; `set` puts them
/// this many seconds ahead.
pub async fn clock_skew(rig: &Rig, set: impl Fn(i64)) {
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        i64::try_from(now.unwrap().as_millis()).unwrap()
    };
    let ms = |unix_ms: u64| i64::try_from(unix_ms).unwrap();
    // `date` may know whole seconds only, and a look at a host takes its time.
    let near = 3000;
    for ahead_s in [0, 420, -420, 3 * 3600, -26 * 3600] {
        set(ahead_s);
        let facts = rig.executor.probe(&rig.hosts[0]).await.unwrap();
        let told: i64 = facts[doe::exec::CLOCK_AHEAD].parse().unwrap();
        assert!((told - ahead_s * 1000).abs() < near, "{told} of {ahead_s}");
        let before = now();
        let script = rig.script("sleep 1.5");
        let ran = rig.run(&script).await;
        let after = now();
        let (started, ended) = (ms(ran.exit.started_unix_ms), ms(ran.exit.ended_unix_ms));
        assert!(ran.exit.success());
        assert!(
            before - near <= started && ended <= after + near,
            "{ahead_s}: {started}-{ended} in {before}-{after}"
        );
        assert!((1400..after - before + near).contains(&(ended - started)));
        // Whoever asks again, and later, is told the same, or knows it more precisely.
        let again = rig.ended(&ran.handle).await;
        assert!((ms(again.ended_unix_ms) - ended).abs() < near, "{again:?}");
        let again = rig.executor.ended_unix_ms(&ran.handle).await.unwrap();
        assert!((ms(again.unwrap()) - ended).abs() < near, "{again:?}");
    }
    // It is set while a script runs: neither its duration nor its limit follows.
    for (from_s, to_s) in [(0, 7200), (7200, -7200), (-300, 0)] {
        set(from_s);
        let before = now();
        let mut script = rig.script("sleep 2; exit 4");
        script.timeout = Some(Duration::from_secs(60));
        let handle = rig.start(&script).await;
        let mut limited = rig.script("sleep 1001");
        limited.timeout = Some(Duration::from_secs(2));
        let late = rig.start(&limited).await;
        set(to_s);
        for (handle, code) in [(&handle, Some(4)), (&late, None)] {
            let exit = rig.ended(handle).await;
            let after = now();
            assert_eq!((exit.code, exit.timed_out), (code, code.is_none()));
            let (started, ended) = (ms(exit.started_unix_ms), ms(exit.ended_unix_ms));
            assert!(
                before - near <= started && ended <= after + near,
                "{from_s} to {to_s}: {started}-{ended} in {before}-{after}"
            );
            assert!((1900..after - before + near).contains(&(ended - started)));
        }
    }
    set(0);
}

/// 500 nodes in five layers, at most 50 at a time; each reads what the layer before has left. All
/// of them with `DOE_TEST_LONG=1` and where that takes seconds, else a hundred. Says how many.
pub async fn five_hundred_nodes(rig: &Rig) -> Outcome {
    use futures_util::StreamExt;
    let quick = rig.netns.is_none();
    let width = match quick || std::env::var_os("DOE_TEST_LONG").is_some() {
        true => 100,
        false => 20,
    };
    for layer in 0..5 {
        let nodes = (0..width).map(|at| async move {
            let before = rig.path(&format!("layer-{}", layer - 1));
            let text = match layer {
                0 => format!("echo {at} >number; echo out {at}"),
                _ => format!(
                    "read -r n <'{}/{at}/number'; echo $((n + 1)) >number; echo out {at}",
                    before.display()
                ),
            };
            let mut script = rig.script(&text);
            script.work = rig.path(&format!("layer-{layer}/{at}"));
            let ran = rig.run(&script).await;
            assert!(ran.exit.success(), "{layer}/{at}");
            assert_eq!(ran.stdout, format!("out {at}\n").into_bytes());
            let number = fs::read_to_string(script.work.join("number")).unwrap();
            assert_eq!(number, format!("{}\n", at + layer));
        });
        let nodes: Vec<_> = nodes.collect();
        futures_util::stream::iter(nodes)
            .buffer_unordered(50)
            .collect::<Vec<()>>()
            .await;
    }
    Outcome::Of(format!("{} nodes", 5 * width))
}
