//! Disks that really have no room, or really fail to sync: whatever writes there, the store, its
//! index, announcements, events, steps, is refused by the kernel. A build there fails and says why,
//! what it had called done stays done, and when there is room the next build is right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::power::{Disk, call, ended};
use crate::script::Random;
use crate::support::Ran;
use crate::timeline::Timeline;
use crate::{setting, side_by_side, stored};

/// A small memory file system, mounted until it is dropped.
struct Room {
    mount: PathBuf,
}

impl Room {
    fn make(mount: &Path, kib: i64) -> Self {
        std::fs::create_dir_all(mount).unwrap();
        let size = format!("size={kib}k");
        let to = mount.to_str().unwrap();
        call("mount", &["-t", "tmpfs", "-o", &size, "chaos", to]);
        Self {
            mount: mount.to_owned(),
        }
    }

    fn grow(&self) {
        let to = self.mount.to_str().unwrap();
        call("mount", &["-o", "remount,size=256m", to]);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// Seeds of a test, or the one that is asked for; none where nothing can be mounted.
fn seeds(of: &str, count: u64) -> Vec<u64> {
    if !Disk::may_mount() {
        eprintln!("SKIPPED: {of}: nothing can be mounted here");
        return Vec::new();
    }
    match setting("DOE_CHAOS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=setting("DOE_CHAOS_TIMELINES").map_or(count, |all| all / 5)).collect(),
    }
}

fn replayed(name: &str, seeds: &[u64], work: impl Fn(u64) + Sync) {
    side_by_side(seeds, 4, |seed| {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(*seed)));
        if let Err(why) = ran {
            eprintln!("replay: DOE_CHAOS_SEED={seed} cargo test --locked --test chaos {name}");
            std::panic::resume_unwind(why);
        }
    });
}

impl Timeline {
    /// A build where writing may be refused: labels that it called done.
    fn refused_build(&mut self, refused: &AtomicUsize) -> BTreeSet<String> {
        let args = ["build", "//chaos:all", "--json"];
        let ran = Ran::of(&args, self.workspace.command(&args).output().unwrap());
        self.tell(format!("a build exits {}", ran.code));
        let said = format!("exit {}\n{}\n{}", ran.code, ran.stdout, ran.stderr);
        if ran.code != self.code() {
            refused.fetch_add(1, Ordering::Relaxed);
            assert!([1, 4, 7].contains(&ran.code), "{said}");
            // Also of a file system that the kernel has given up.
            let words = [
                "No space left",
                "disk is full",
                "I/O error",
                "output error",
                "ead-only",
            ];
            assert!(words.iter().any(|words| said.contains(words)), "{said}");
        }
        &ended(&ran.stdout, "ok") | &ended(&ran.stdout, "reused")
    }

    /// There is room: what was called done stands, and a build does the rest.
    fn recovered(&mut self, called: &BTreeSet<String>) {
        self.hold();
        let copy = self.copy();
        copy.doe(&["cache", "verify"]).ok();
        let standing = crate::world::reused(&copy).into_keys();
        let standing = standing.map(|name| format!("//chaos:{name}")).collect();
        let lost: Vec<_> = called.difference(&standing).collect();
        assert!(lost.is_empty(), "called done and lost: {lost:?}");
        // What failed for want of room and was not told by then is told now.
        let ran = self.workspace.doe(&["build", "//chaos:all"]);
        if ran.code != self.code() {
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(
                ran.code == 1 && said.contains("killed run"),
                "exit {} and not {}: {said}",
                ran.code,
                self.code()
            );
        }
        self.hold();
        self.build();
        self.hold();
        assert_eq!(
            crate::world::records(&self.workspace),
            stored::records(&self.workspace)
        );
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let name = "a_full_disk_loses_nothing";
    let (seeds, refused) = (seeds(name, 4), AtomicUsize::new(0));
    replayed(name, &seeds, |seed| {
        let mut random = Random::of(seed, 0);
        let kib = random.range(300..1500);
        let filler_kib = random.range(0..400);
        let edits: Vec<_> = (0..6).map(|_| random.edit()).collect();
        let mut timeline = Timeline::new(false);
        let room = Room::make(&timeline.workspace.path().join(".doe"), kib);
        let mut called = BTreeSet::new();
        // Twice: the second meets what the first has left.
        for _ in 0..2 {
            called = timeline.refused_build(&refused);
        }
        room.grow();
        timeline.recovered(&called);
        // Now a store that is full of what was done gets too small for what is to come.
        for edit in edits {
            timeline.edit(edit);
        }
        let filler = room.mount.join("filler");
        let free = rustix::fs::statvfs(&room.mount).unwrap();
        let free = free.f_bavail * free.f_frsize;
        let bytes = free.saturating_sub(filler_kib as u64 * 1024);
        std::fs::write(&filler, vec![1; bytes as usize]).unwrap();
        let called = timeline.refused_build(&refused);
        std::fs::remove_file(&filler).unwrap();
        timeline.recovered(&called);
        timeline.workspace.assert_nothing_runs();
        drop(room);
    });
    let refused = refused.into_inner();
    assert!(
        seeds.len() < 4 || refused >= seeds.len() / 2,
        "{refused} were refused"
    );
}

/// A file system in a file for which there is no room: the kernel takes writes and fails later,
/// when they are to be synced.
#[test]
fn a_disk_that_fails_to_sync_loses_nothing() {
    let name = "a_disk_that_fails_to_sync_loses_nothing";
    let (seeds, refused) = (seeds(name, 4), AtomicUsize::new(0));
    replayed(name, &seeds, |seed| {
        let mut random = Random::of(seed, 0);
        let short_kib = random.range(100..1500);
        let mut timeline = Timeline::new(false);
        let under = timeline.dir.path().join("under");
        let room = Room::make(&under, 256 << 10);
        let image = under.join("disk.img");
        Disk::format(&image, 48 << 20);
        let used = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image).unwrap()) / 2;
        let size = format!("remount,size={}k", used as i64 + short_kib);
        call("mount", &["-o", &size, under.to_str().unwrap()]);
        let store = timeline.workspace.path().join(".doe");
        let disk = Disk::mount(&image, &store);
        let called = timeline.refused_build(&refused);
        timeline.workspace.assert_nothing_runs();
        // It comes back with what had reached it.
        room.grow();
        disk.take_out();
        Disk::check(&image);
        let disk = Disk::mount(&image, &store);
        timeline.recovered(&called);
        timeline.workspace.assert_nothing_runs();
        drop((disk, room));
    });
    let refused = refused.into_inner();
    assert!(seeds.len() < 4 || refused > 0, "no build was refused");
}
