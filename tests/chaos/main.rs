//! Chaos that replays. Seeded timelines of edits, builds, deaths, full disks, damaged files, lost
//! indices, jumping clocks and of looking after the store go through the real binary; after each step nothing that was done is lost,
//! nothing is done twice, the index says what the records say, and an incremental build gives
//! what a clean one would. A timeline that fails prints the line that replays it.
//!
//! `DOE_CHAOS_SEED=N` replays one timeline; `DOE_CHAOS_TIMELINES=1000` is the long run.

#![expect(
    clippy::print_stderr,
    reason = "a failing timeline tells how to replay it"
)]

#[path = "../support/mod.rs"]
mod support;

mod care;
mod power;
mod timeline;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

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
    let next = AtomicU64::new(first);
    // Timelines mostly wait for sleeping steps: more of them than cores go side by side.
    std::thread::scope(|scope| {
        for _ in 0..4.min(count) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    if let Err(told) = std::panic::catch_unwind(|| timeline::run(seed)) {
                        eprintln!("replay: DOE_CHAOS_SEED={seed} cargo test --locked --test chaos timelines");
                        std::panic::resume_unwind(told);
                    }
                }
            });
        }
    });
}
