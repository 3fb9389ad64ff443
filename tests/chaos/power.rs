//! Power loss: the image of a mounted file system, copied while a build runs, holds what had
//! reached the disk and nothing else. Whatever the build had called done by then is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::wait_for;
use crate::world::State;

/// A file system in a file, mounted until it is dropped.
struct Disk {
    mount: PathBuf,
}

impl Disk {
    fn mount(image: &Path, mount: &Path) -> Self {
        std::fs::create_dir_all(mount).unwrap();
        call(
            "mount",
            &[
                "-o",
                "loop",
                image.to_str().unwrap(),
                mount.to_str().unwrap(),
            ],
        );
        Self {
            mount: mount.to_owned(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to go may still hold it.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn call(program: &str, args: &[&str]) {
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
fn ended(events: &str, outcome: &str) -> BTreeSet<String> {
    let events = events.lines();
    let events = events.filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let such = events.filter(|e| e["event"] == "node-finished" && e["outcome"] == outcome);
    such.map(|e| e["label"].as_str().unwrap().to_string())
        .collect()
}

#[test]
fn what_was_called_done_survives_a_power_cut() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts a file system: run it as root, or leave it out with `--skip power`"
    );
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    call("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let disk = Disk::mount(&image, &dir.path().join("disk"));
    let workspace = crate::support::Workspace::at(&disk.mount.join("w"));
    State::new().write(&workspace, "0.2");
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
        wait_for("more nodes to be done", Duration::from_secs(60), || {
            (called_ok(&out).len() >= 2 * cut).then_some(())
        });
        let done = called_ok(&out);
        let copy = dir.path().join(format!("cut{cut}.img"));
        std::fs::copy(&image, &copy).unwrap();
        let after = Disk::mount(&copy, &dir.path().join(format!("cut{cut}")));
        let survivor = after.mount.join("w");
        // The path of the workspace is no input, but the ledger's is a setting: it stays.
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
