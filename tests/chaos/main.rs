//! Chaos that replays. A timeline is a script of seven steps, drawn from a seed before anything is
//! done: edits and builds; `kill -9` of `doe`, of steps and of services at random moments, of `doe`
//! at every named write point, where a write may also fail or be torn; a build and another command
//! at once; jumping clocks; collections; damaged, cut and refused files; lost indices; bundles; the
//! power cut of a file system of its own. All go through the real binary. After each step nothing
//! that was done is lost or was done twice, the index says what the files say, and what stands is
//! what a clean build gives, by an oracle of the campaign; in the end also by a clean build. Beside
//! the timelines every write point is struck on purpose (`points`), and real disks fill up and fail
//! to sync (`room`).
//!
//! What is done is the same in every replay. What a kill after so many milliseconds meets is up to
//! the machine.
//!
//! `DOE_CHAOS_SEED=N` replays one timeline, `DOE_CHAOS_STEPS=K` only its first steps;
//! `DOE_CHAOS_TIMELINES=1000` is the long run. A timeline that fails prints the line to do so.
//! Cutting the power and filling disks takes root and mounts; where there are none it is said that
//! they were skipped.

#![expect(
    clippy::print_stderr,
    reason = "a failing timeline tells how to replay it"
)]

#[path = "../support/mod.rs"]
mod support;

mod care;
mod hold;
mod points;
mod power;
mod room;
mod script;
mod stored;
mod timeline;
mod world;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[test]
fn timelines() {
    let (first, count) = match setting("DOE_CHAOS_SEED") {
        Some(seed) => (seed, 1),
        None => (1, setting("DOE_CHAOS_TIMELINES").unwrap_or(50)),
    };
    let steps = setting("DOE_CHAOS_STEPS").map_or(usize::MAX, |steps| steps as usize);
    let seeds: Vec<u64> = (first..first + count).collect();
    // Timelines mostly wait for sleeping steps: more of them than cores go side by side.
    let (done, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    side_by_side(&seeds, 4, |seed| {
        // One that fails has said how to replay it; the others go on.
        let run = AssertUnwindSafe(|| timeline::run(&script::Script::of(*seed), steps));
        if catch_unwind(run).is_err() {
            failed.lock().unwrap().push(*seed);
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if count > 50 && done.is_multiple_of(50) {
            let failed = failed.lock().unwrap().len();
            let line = format!("{done} of {count} timelines, {failed} failed\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "seeds {failed:?}");
    let killed = timeline::KILLED.load(Ordering::Relaxed);
    assert!(
        count < 50 || killed >= 10,
        "only {killed} steps and services were killed"
    );
}

/// Does something with each of a list, several at a time.
fn side_by_side<T: Sync>(all: &[T], lanes: usize, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..lanes.min(all.len()) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}
