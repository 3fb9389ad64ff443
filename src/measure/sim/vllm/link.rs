//! A network link that transfers share. Fluid model: all running transfers get equal parts of
//! what the link delivers at that many transfers; bytes are neither lost nor made, so the times
//! depend only on when transfers begin and how large they are.

/// A transfer is over when what is left of it would flow in less than this many seconds. Finer
/// steps are lost in the rounding of the present time, and it would never end: after an hour of
/// virtual time the clock's last digit is worth more than a thousandth of a byte.
const EPSILON_S: f64 = 1e-9;

/// A link in virtual time (seconds).
#[derive(Debug)]
pub(super) struct FluidLink {
    bytes_per_s: f64,
    /// What is left of the bandwidth at a number of transfers.
    efficiency: fn(usize) -> f64,
    transfers: Vec<Transfer>,
    now: f64,
}

#[derive(Debug)]
struct Transfer {
    id: u64,
    /// When its first byte flows.
    starts: f64,
    left: f64,
}

impl FluidLink {
    pub(super) fn new(bytes_per_s: f64, efficiency: fn(usize) -> f64) -> Self {
        Self {
            bytes_per_s,
            efficiency,
            transfers: Vec::new(),
            now: 0.0,
        }
    }

    /// Begins a transfer whose bytes flow from `starts` on. Time must have been advanced to the
    /// present before.
    pub(super) fn begin(&mut self, id: u64, starts: f64, bytes: f64) {
        self.transfers.push(Transfer {
            id,
            starts: starts.max(self.now),
            left: bytes.max(1.0),
        });
    }

    /// Ends a transfer before it is over.
    pub(super) fn cancel(&mut self, id: u64) {
        self.transfers.retain(|t| t.id != id);
    }

    /// When something will happen next, if nothing begins before.
    pub(super) fn next(&self) -> Option<f64> {
        let rate = self.rate();
        let times = self.transfers.iter().map(|t| match t.starts <= self.now {
            true => self.now + t.left / rate,
            false => t.starts,
        });
        times.min_by(f64::total_cmp)
    }

    /// Moves time to `next()` or to `to`, whichever is earlier, and gives what is then over.
    pub(super) fn advance(&mut self, to: f64) -> Vec<u64> {
        let to = self.next().map_or(to, |next| next.min(to)).max(self.now);
        let rate = self.rate();
        let carried = rate * (to - self.now);
        for t in &mut self.transfers {
            if t.starts <= self.now {
                t.left -= carried;
            }
        }
        self.now = to;
        let is_over = |t: &Transfer| t.starts <= to && t.left <= rate * EPSILON_S;
        let over = self.transfers.iter().filter(|t| is_over(t));
        let over: Vec<u64> = over.map(|t| t.id).collect();
        self.transfers.retain(|t| !is_over(t));
        over
    }

    /// Bytes per second of one transfer.
    fn rate(&self) -> f64 {
        let running = self.transfers.iter().filter(|t| t.starts <= self.now);
        let running = running.count();
        self.bytes_per_s * (self.efficiency)(running) / running.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(link: &mut FluidLink) -> Vec<(u64, f64)> {
        let mut done = Vec::new();
        while let Some(next) = link.next() {
            let over = link.advance(next);
            done.extend(over.into_iter().map(|id| (id, link.now)));
        }
        done
    }

    #[test]
    fn one_transfer_takes_its_bytes_over_the_bandwidth() {
        let mut link = FluidLink::new(100.0, |_| 1.0);
        link.begin(1, 0.5, 200.0);
        let done = drain(&mut link);
        assert_eq!(done.len(), 1);
        assert!((done[0].1 - 2.5).abs() < 1e-4);
    }

    #[test]
    fn two_share_and_the_survivor_speeds_up() {
        // 100 B and 300 B at 100 B/s: shared until 2 s, then 200 B alone until 4 s.
        let mut link = FluidLink::new(100.0, |_| 1.0);
        link.begin(1, 0.0, 100.0);
        link.begin(2, 0.0, 300.0);
        let done = drain(&mut link);
        assert_eq!((done[0].0, done[1].0), (1, 2));
        assert!((done[0].1 - 2.0).abs() < 1e-4 && (done[1].1 - 4.0).abs() < 1e-4);
    }

    #[test]
    fn a_transfer_ends_however_late_it_is() {
        // Hours in, where the clock's last digit is worth many bytes, at every phase of rounding.
        for late in 0..2000 {
            let begins = 4000.0 + f64::from(late) * 7.123_456_7;
            let mut link = FluidLink::new(4.375e9, |n| 1.0 / (1.0 + 0.1 * n as f64));
            for id in 0..4 {
                link.begin(id, begins + id as f64 * 1e-5, 3.221_225_472e9 + id as f64);
            }
            let mut steps = 0;
            while let Some(next) = link.next() {
                link.advance(next);
                steps += 1;
                assert!(steps < 50, "it does not end");
            }
        }
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_made(sizes in prop::collection::vec(1.0..1e6f64, 1..12)) {
            // All at once, no loss: the last is over when all bytes have flowed, whatever the order.
            let mut link = FluidLink::new(1e3, |_| 1.0);
            for (id, bytes) in (0..).zip(&sizes) {
                link.begin(id, 0.0, *bytes);
            }
            let done = drain(&mut link);
            prop_assert_eq!(done.len(), sizes.len());
            let last = done.last().unwrap().1;
            let want = sizes.iter().sum::<f64>() / 1e3;
            prop_assert!((last / want - 1.0).abs() < 1e-6);
            prop_assert!(done.windows(2).all(|w| w[0].1 <= w[1].1));
        }
    }
}
