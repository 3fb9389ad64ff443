//! When something ended, by our clock. A host says how long ago it was by a clock that nobody sets,
//! and we know between which two moments it said so. What its record says is left as it is while it
//! fits between them; where it does not, the host's clock is off and the record is moved as a whole.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::exec::Exit;

/// What the host's counters are rounded to.
const ROUNDING_MS: i64 = 20;

/// Between which two moments of our clock a host said something, Unix ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Not before.
    pub from_ms: i64,
    /// Not after.
    pub to_ms: i64,
}

/// How far the hosts' clocks are off, as far as it matters.
#[derive(Debug, Default)]
pub struct Clocks(Mutex<HashMap<String, Off>>);

/// How far a clock is ahead of ours.
#[derive(Debug, Clone, Copy)]
struct Off {
    /// What everything that was heard of it allows.
    least_ms: i64,
    most_ms: i64,
    /// What is taken for it.
    taken_ms: i64,
}

impl Off {
    /// What one more reading allows, with what was known before; a clock that was set is another.
    fn next(before: Option<Self>, least_ms: i64, most_ms: i64) -> Self {
        let both = before.map(|b| (b.least_ms.max(least_ms), b.most_ms.min(most_ms)));
        let (least_ms, most_ms) = both
            .filter(|(least, most)| least <= most)
            .unwrap_or((least_ms, most_ms));
        // What was found out once holds as long as it can be true.
        let usual = [Some(0), before.map(|b| b.taken_ms)];
        let mut usual = usual.into_iter().flatten();
        let taken_ms = usual.find(|ms| (least_ms..=most_ms).contains(ms));
        Self {
            least_ms,
            most_ms,
            taken_ms: taken_ms.unwrap_or_else(|| least_ms.midpoint(most_ms)),
        }
    }
}

impl Clocks {
    /// An exit by our clock. `age_ms` is how long ago it was when the host said so; unknown when
    /// the host was restarted since, and then the record is believed.
    pub fn ours(&self, host: &str, exit: Exit, age_ms: Option<i64>, said: Said) -> Exit {
        let Some(age_ms) = age_ms else { return exit };
        let from = said.from_ms - age_ms - ROUNDING_MS;
        let to = said.to_ms - age_ms + ROUNDING_MS;
        let ended = i64::try_from(exit.ended_unix_ms).unwrap_or(i64::MAX);
        let (least, most) = (ended.saturating_sub(to), ended.saturating_sub(from));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let off = Off::next(known.get(host).copied(), least, most);
        known.insert(host.to_owned(), off);
        let move_back = |unix_ms: u64| unix_ms.saturating_add_signed(off.taken_ms.saturating_neg());
        Exit {
            started_unix_ms: move_back(exit.started_unix_ms),
            ended_unix_ms: move_back(exit.ended_unix_ms),
            ..exit
        }
    }
}

/// Now, Unix ms.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(started: u64, ended: u64) -> Exit {
        Exit {
            code: Some(0),
            signal: None,
            timed_out: false,
            started_unix_ms: started,
            ended_unix_ms: ended,
            cpu: None,
        }
    }

    #[test]
    fn a_record_that_can_be_true_is_left_alone() {
        let clocks = Clocks::default();
        let said = Said {
            from_ms: 1_000_000,
            to_ms: 1_000_100,
        };
        // It ended 5 s before.
        for ended in [995_000, 995_050, 995_100] {
            let found = clocks.ours("a", exit(990_000, ended), Some(5000), said);
            assert_eq!(found, exit(990_000, ended));
        }
        let other_boot = exit(1, 2);
        assert_eq!(clocks.ours("a", other_boot.clone(), None, said), other_boot);
    }

    #[test]
    fn a_clock_that_is_off_is_put_right_and_twice_alike() {
        let clocks = Clocks::default();
        let said = Said {
            from_ms: 1_000_000,
            to_ms: 1_000_100,
        };
        for off in [-600_000_i64, 7_200_000] {
            let theirs = |ms: u64| ms.saturating_add_signed(off);
            let record = exit(theirs(990_000), theirs(995_000));
            let found = clocks.ours("a", record.clone(), Some(5000), said);
            assert_eq!(found.ended_unix_ms - found.started_unix_ms, 5000);
            assert!(found.ended_unix_ms.abs_diff(995_000) <= 100, "{found:?}");
            // Asked again much later and more vaguely.
            let later = Said {
                from_ms: 1_060_000,
                to_ms: 1_064_000,
            };
            assert_eq!(clocks.ours("a", record, Some(67_000), later), found);
        }
        // It was set right: what is read now is as it says.
        let right = exit(995_000, 996_000);
        assert_eq!(clocks.ours("a", right.clone(), Some(4000), said), right);
    }
}
