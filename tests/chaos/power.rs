//! Power loss: the image of a mounted file system, copied while a build runs, holds what had
//! reached the disk and nothing else. Whatever the build had called done by then is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::stored;
use crate::support::{Workspace, wait_for};
use crate::timeline::Timeline;
use crate::world::{self, State};

/// A file system in a file, mounted until it is dropped.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Whether this process may mount anything.
    pub fn may_mount() -> bool {
        geteuid().is_root()
    }

    /// A new file system in a folder; `None`, and a word about it, where that cannot be.
    pub fn make(dir: &Path) -> Option<Self> {
        if !Self::may_mount() {
            eprintln!("SKIPPED: nothing can be mounted here, so no power is cut in timelines");
            return None;
        }
        let image = dir.join("disk.img");
        Self::format(&image, 32 << 20);
        Some(Self::mount(&image, &dir.join("disk")))
    }

    /// Makes a file system in a new file of this length.
    pub fn format(image: &Path, bytes: u64) {
        let file = std::fs::File::create(image).unwrap();
        file.set_len(bytes).unwrap();
        call("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    }

    pub fn mount(image: &Path, mount: &Path) -> Self {
        std::fs::create_dir_all(mount).unwrap();
        call(
            "mount",
            &[
                "-o",
                // Nothing goes to the disk by itself in the time that a test takes.
                "loop,commit=300",
                image.to_str().unwrap(),
                mount.to_str().unwrap(),
            ],
        );
        Self {
            image: image.to_owned(),
            mount: mount.to_owned(),
        }
    }

    /// It is taken out, by somebody who waits until it is written.
    pub fn take_out(self) {
        call("umount", &[self.mount.to_str().unwrap()]);
        std::mem::forget(self);
    }

    /// What a disk that failed needs before it is used again: what the kernel could not write of
    /// the file system itself is put right, as whoever keeps the machine would.
    pub fn check(image: &Path) {
        let mut check = Command::new("e2fsck");
        let status = check.arg("-fy").arg(image).output().unwrap().status;
        // 1: errors were corrected.
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to go may still hold it.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

impl Timeline {
    /// The power goes during a build. It goes in a copy of the disk, and there everything is asked
    /// and a build goes on; here the build ends undisturbed.
    pub(super) fn power_cut(&mut self, after_ms: u64) {
        let Some(image) = self.disk.as_ref().map(|disk| disk.image.clone()) else {
            self.tell("  skipped: nothing can be mounted here");
            return;
        };
        let out = self.dir.path().join("events");
        let mut command = self.workspace.command(&["build", "//chaos:all", "--json"]);
        command.stdout(std::fs::File::create(&out).unwrap());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        let called = |outcome: &str| ended(&std::fs::read_to_string(&out).unwrap(), outcome);
        let called: BTreeSet<String> = &called("ok") | &called("reused");
        let copy = self.dir.path().join("cut.img");
        at_one_moment(&child, &image, &copy);
        self.end(child);
        let after = Disk::mount(&copy, &self.dir.path().join("cut"));
        let survivor = Workspace::at(&after.path().join("w"));
        self.state
            .write(&survivor, &self.ledger, crate::timeline::PAUSE);
        survivor.doe(&["cache", "verify"]).ok();
        let there = stored::records(&survivor);
        let lost: Vec<_> = self.records.difference(&there).collect();
        assert!(lost.is_empty(), "the power took records: {lost:?}");
        let standing = |workspace| -> BTreeSet<String> {
            let reused = world::reused(workspace).into_keys();
            reused.map(|name| format!("//chaos:{name}")).collect()
        };
        let stand = standing(&survivor);
        let lost: Vec<_> = called.difference(&stand).collect();
        assert!(lost.is_empty(), "called done, not there: {lost:?}");
        let ledger = std::fs::read(&self.ledger).unwrap_or_default();
        let before = world::ledger(&self.ledger);
        drop(survivor.doe(&["build", "//chaos:all"]).exits(self.code()));
        let expected = self.state.expected();
        for label in &stand {
            let line = expected[label.trim_start_matches("//chaos:")].line.as_ref();
            let line = line.unwrap();
            let now = world::ledger(&self.ledger)[line];
            assert_eq!(now, before[line], "`{line}` was stored and executed again");
        }
        let good = expected
            .iter()
            .filter_map(|(name, node)| Some((name.clone(), node.value?)));
        assert_eq!(world::values(&survivor), good.collect(), "after the cut");
        survivor.doe(&["cache", "verify"]).ok();
        // That was another world.
        std::fs::write(&self.ledger, ledger).unwrap();
        drop(after);
        std::fs::remove_file(copy).unwrap();
    }
}

/// Copies a disk as it is at one moment, while a build writes to it. A sync that is under way goes on
/// in a process that is stopped, so what changes while it is copied is copied again.
fn at_one_moment(doe: &Child, image: &Path, copy: &Path) {
    let pid = Pid::from_child(doe);
    let _ = kill_process(pid, Signal::STOP);
    wait_for("a moment without a write", Duration::from_secs(120), || {
        let bytes = std::fs::read(image).unwrap();
        let is_still = bytes == std::fs::read(image).unwrap();
        is_still.then(|| std::fs::write(copy, bytes).unwrap())
    });
    let _ = kill_process(pid, Signal::CONT);
}

/// Calls a program that must succeed.
pub fn call(program: &str, args: &[&str]) {
    let ran = Command::new(program).args(args).output();
    let ran = ran.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        ran.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

fn doe(workspace: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doe"));
    command
        .args(args)
        .arg("--workspace")
        .arg(workspace)
        .stdin(Stdio::null());
    let ran = command.output().unwrap();
    (
        ran.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&ran.stdout).into_owned(),
    )
}

/// Labels that a build has called ok so far.
fn called_ok(out: &Path) -> BTreeSet<String> {
    ended(&std::fs::read_to_string(out).unwrap_or_default(), "ok")
}

/// Labels that ended so, by the events of a build.
pub fn ended(events: &str, outcome: &str) -> BTreeSet<String> {
    let events = events.lines();
    let events = events.filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let such = events.filter(|e| e["event"] == "node-finished" && e["outcome"] == outcome);
    such.map(|e| e["label"].as_str().unwrap().to_string())
        .collect()
}

#[test]
fn what_was_called_done_survives_a_power_cut() {
    assert!(
        Disk::may_mount(),
        "this test mounts a file system: run it as root, or leave it out with `--skip power`"
    );
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    Disk::format(&image, 64 << 20);
    let disk = Disk::mount(&image, &dir.path().join("disk"));
    let workspace = Workspace::at(&disk.mount.join("w"));
    State::new().write(&workspace, &dir.path().join("ledger"), "0.2");
    // What a person wrote had time to reach the disk; what is tested is what `doe` writes.
    call("sync", &[]);
    // The build's own words go to another disk, which keeps its power.
    let out = dir.path().join("events");
    let mut child = workspace
        .command(&["build", "//chaos:all", "--json"])
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for cut in 1..=4 {
        wait_for("more nodes to be done", Duration::from_secs(120), || {
            (called_ok(&out).len() >= 2 * cut).then_some(())
        });
        let done = called_ok(&out);
        let copy = dir.path().join(format!("cut{cut}.img"));
        at_one_moment(&child, &image, &copy);
        let after = Disk::mount(&copy, &dir.path().join(format!("cut{cut}")));
        let survivor = after.mount.join("w");
        // The path of the workspace is no input.
        let (code, said) = doe(&survivor, &["cache", "verify"]);
        assert_eq!(code, 0, "torn files count as stored: {said}");
        let (code, events) = doe(&survivor, &["build", "//chaos:all", "--json"]);
        assert_eq!(code, 0, "the campaign goes on");
        let reused = ended(&events, "reused");
        assert!(
            done.is_subset(&reused),
            "called done, not there: {:?}",
            done.difference(&reused)
        );
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
