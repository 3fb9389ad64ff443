//! Keeps a mirror that does not answer from costing time. After a few failures in a row nothing is
//! asked for a while; then one request is let through, and only its success opens the way again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row after which nothing is asked.
pub const FAILURES: u32 = 3;

/// How long nothing is asked then.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    Probing,
}

/// See the module. Shared between threads; the caller brings the time.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    failures: u32,
    cool_down: Duration,
}

impl Breaker {
    /// A breaker that opens after so many failures for so long.
    pub fn new(failures: u32, cool_down: Duration) -> Self {
        Self {
            state: Mutex::new(State::Closed { failures: 0 }),
            failures: failures.max(1),
            cool_down,
        }
    }

    /// Whether a request may be made. Who gets a yes must report how it went.
    pub fn admit(&self, now: Instant) -> bool {
        let mut state = self.state();
        match *state {
            State::Closed { .. } => true,
            State::Probing => false,
            State::Open { until } if now < until => false,
            State::Open { .. } => {
                *state = State::Probing;
                true
            }
        }
    }

    /// The server answered.
    pub fn succeeded(&self) {
        *self.state() = State::Closed { failures: 0 };
    }

    /// It did not. Says whether this failure opened the breaker.
    pub fn failed(&self, now: Instant) -> bool {
        let mut state = self.state();
        let open = State::Open {
            until: now + self.cool_down,
        };
        match *state {
            State::Closed { failures } if failures + 1 < self.failures => {
                *state = State::Closed {
                    failures: failures + 1,
                };
                false
            }
            State::Closed { .. } | State::Probing => {
                *state = open;
                true
            }
            // One of several that were under way when it opened.
            State::Open { .. } => false,
        }
    }

    /// Whether requests are held back at this moment.
    pub fn is_open(&self, now: Instant) -> bool {
        match *self.state() {
            State::Closed { .. } => false,
            State::Probing => true,
            State::Open { until } => now < until,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each method leaves a valid state at every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new(FAILURES, COOL_DOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COOL: Duration = Duration::from_secs(30);

    #[test]
    fn three_failures_in_a_row_close_the_way_and_one_probe_opens_it() {
        let breaker = Breaker::new(3, COOL);
        let start = Instant::now();
        assert!(!breaker.failed(start) && !breaker.failed(start));
        breaker.succeeded();
        assert!(!breaker.failed(start) && !breaker.failed(start));
        assert!(breaker.admit(start), "two in a row are not three");
        assert!(breaker.failed(start), "the third opens");
        assert!(!breaker.failed(start), "only one failure opens it");
        assert!(!breaker.admit(start + COOL - Duration::from_millis(1)));
        let later = start + COOL;
        assert!(breaker.admit(later), "a probe");
        assert!(!breaker.admit(later), "one only");
        assert!(breaker.failed(later), "the probe failed: closed again");
        assert!(!breaker.admit(later + COOL / 2));
        assert!(breaker.admit(later + COOL));
        breaker.succeeded();
        assert!(breaker.admit(later + COOL) && breaker.admit(later + COOL));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Ask { good: bool },
        Wait(u64),
    }

    proptest! {
        /// Asked one after the other, a server that is down is asked at most `failures` times at
        /// first and then once in a cool-down; one that is up is asked every time.
        #[test]
        fn a_dead_server_is_asked_rarely(
            steps in prop::collection::vec(
                prop_oneof![
                    any::<bool>().prop_map(|good| Step::Ask { good }),
                    (0..40_u64).prop_map(Step::Wait),
                ],
                1..200,
            ),
        ) {
            let breaker = Breaker::new(3, COOL);
            let start = Instant::now();
            let mut now = start;
            let mut row = 0;
            let mut opened: Option<Instant> = None;
            for step in steps {
                let good = match step {
                    Step::Wait(s) => { now += Duration::from_secs(s); continue; }
                    Step::Ask { good } => good,
                };
                let expected = opened.is_none_or(|at| now >= at + COOL);
                prop_assert_eq!(breaker.admit(now), expected);
                if !expected { continue; }
                if good {
                    breaker.succeeded();
                    (row, opened) = (0, None);
                } else {
                    row += 1;
                    let opens = opened.is_some() || row >= 3;
                    prop_assert_eq!(breaker.failed(now), opens);
                    if opens { opened = Some(now); }
                }
            }
        }
    }
}
