//! How fast the service is asked. All requests share one pace: who is told to slow down slows all
//! down, and the pace comes back bit by bit with every request that is served.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two requests when nobody complains.
const USUAL: Duration = Duration::from_millis(10);
/// After the first complaint; doubled with every further one.
const SLOW: Duration = Duration::from_millis(200);
/// No slower than this.
const SLOWEST: Duration = Duration::from_secs(5);

/// The pace of one account's requests.
#[derive(Debug)]
pub(super) struct Pacer(Mutex<State>);

#[derive(Debug)]
struct State {
    gap: Duration,
    next: Instant,
}

impl Pacer {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            gap: USUAL,
            next: Instant::now(),
        }))
    }

    /// Waits for one's turn.
    pub(super) async fn turn(&self) {
        let wait = {
            let mut state = self.lock();
            let now = Instant::now();
            let at = state.next.max(now);
            state.next = at + state.gap;
            at - now
        };
        tokio::time::sleep(wait).await;
    }

    /// The service was asked too often.
    pub(super) fn slower(&self) {
        let mut state = self.lock();
        state.gap = (state.gap * 2).clamp(SLOW, SLOWEST);
        state.next = state.next.max(Instant::now() + state.gap);
    }

    /// The service has answered.
    pub(super) fn served(&self) {
        let mut state = self.lock();
        state.gap = (state.gap * 4 / 5).max(USUAL);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is whole in itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pauses that grow.
#[derive(Debug)]
pub(super) struct Ramp {
    next: Duration,
    last: Duration,
}

impl Ramp {
    /// From `first` to `last`, half as long again each time.
    pub(super) fn new(first: Duration, last: Duration) -> Self {
        Self { next: first, last }
    }

    /// The next pause.
    pub(super) fn step(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 3 / 2).min(self.last);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_slow_down_and_answers_speed_up() {
        let pacer = Pacer::new();
        let gap = || pacer.lock().gap;
        assert_eq!(gap(), USUAL);
        pacer.slower();
        assert_eq!(gap(), SLOW);
        (0..20).for_each(|_| pacer.slower());
        assert_eq!(gap(), SLOWEST);
        (0..100).for_each(|_| pacer.served());
        assert_eq!(gap(), USUAL);
    }

    #[tokio::test]
    async fn turns_are_apart() {
        let pacer = Pacer::new();
        pacer.slower();
        let before = pacer.lock().next;
        pacer.turn().await;
        pacer.turn().await;
        assert_eq!(pacer.lock().next, before + 2 * SLOW);
    }

    #[test]
    fn pauses_grow_to_their_end() {
        let mut ramp = Ramp::new(Duration::from_millis(20), Duration::from_millis(100));
        let all: Vec<u128> = (0..6).map(|_| ramp.step().as_millis()).collect();
        assert_eq!(all, [20, 30, 45, 67, 100, 100]);
    }
}
