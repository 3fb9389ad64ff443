//! The door and the floor of every statistic: a slice that passed [`check`] is not empty and holds
//! only finite values, sums are compensated, orders are total, and every random number comes from
//! an explicit seed by an algorithm that does not change with a library.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Kind, Result};

/// Refuses an empty sample and any NaN or infinity, naming the first bad position.
///
/// `what` names the sample in the message ("TTFT of //phase2:p2-efa-4k-c1").
pub fn check(what: &str, x: &[f64]) -> Result<()> {
    if x.is_empty() {
        return Err(bad_sample(format!("{what}: the sample is empty"))
            .hint("a statistic needs at least one value: look at why the measurement kept none"));
    }
    match x.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(bad_sample(format!(
            "{what}: value {at} (from 0) is {}, expected a finite number",
            x[at]
        ))),
    }
}

/// An error about the values themselves.
pub(crate) fn bad_sample(message: impl Into<String>) -> Error {
    Error::new(Kind::NodeFailed, "bad-sample", message)
}

/// An error about an argument of a statistic (a probability outside 0..1, a batch of zero).
pub(crate) fn bad_argument(message: impl Into<String>) -> Error {
    Error::new(Kind::Usage, "bad-argument", message)
}

/// A sorted copy, by the total order of IEEE 754.
pub fn sorted(x: &[f64]) -> Vec<f64> {
    let mut y = x.to_vec();
    y.sort_unstable_by(f64::total_cmp);
    y
}

/// Sum with Neumaier's compensation: the error does not grow with the number of terms.
pub fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut total = 0.0_f64;
    let mut lost = 0.0_f64;
    for v in values {
        let next = total + v;
        lost += if total.abs() >= v.abs() {
            (total - next) + v
        } else {
            (v - next) + total
        };
        total = next;
    }
    total + lost
}

/// A running sum with Kahan's compensation: weaker than [`sum`] when a term outgrows the total,
/// free of branches for hot loops over terms of like size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accumulator {
    total: f64,
    lost: f64,
}

impl Accumulator {
    /// Adds one term.
    pub fn add(&mut self, v: f64) {
        let y = v - self.lost;
        let t = self.total + y;
        self.lost = (t - self.total) - y;
        self.total = t;
    }

    /// The sum so far.
    pub fn total(&self) -> f64 {
        self.total
    }
}

/// Arithmetic mean of a non-empty sample.
///
/// Two passes: the mean of the residuals corrects the rounding of the first division.
pub fn mean(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let first = sum(x.iter().copied()) / n;
    first + sum(x.iter().map(|v| v - first)) / n
}

/// Sum of squared deviations from `mean`, with the correction of Chan, Golub and LeVeque (1983)
/// for a mean that is itself rounded.
pub fn sum_squares(x: &[f64], mean: f64) -> f64 {
    let squares = sum(x.iter().map(|v| (v - mean) * (v - mean)));
    let drift = sum(x.iter().map(|v| v - mean));
    (squares - drift * drift / x.len() as f64).max(0.0)
}

/// Median of a sorted, non-empty sample.
pub fn median_sorted(x: &[f64]) -> f64 {
    let n = x.len();
    if n % 2 == 1 {
        x[n / 2]
    } else {
        // Halves first: the sum of two large values may overflow.
        x[n / 2 - 1] / 2.0 + x[n / 2] / 2.0
    }
}

/// Median of a non-empty sample.
pub fn median(x: &[f64]) -> f64 {
    median_sorted(&sorted(x))
}

/// The generator of every random step: stream `stream` of the seed. Streams of one seed are
/// independent, so work that is split over threads gives the same numbers on any number of them.
pub fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// A uniform number in [0, 1) with 53 random bits.
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
    (rng.next_u64() >> 11) as f64 * SCALE
}

/// A uniform index below `n` (not 0), without modulo bias (Lemire's multiplication).
pub fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    let n = n as u64;
    let reject_under = n.wrapping_neg() % n;
    loop {
        let wide = u128::from(rng.next_u64()) * u128::from(n);
        if wide as u64 >= reject_under {
            return (wide >> 64) as usize;
        }
    }
}

/// Shuffles in place (Fisher-Yates, Durstenfeld's form).
pub fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_door_names_the_bad_value() {
        assert!(check("x", &[1.0]).is_ok());
        assert!(check("x", &[]).unwrap_err().message.contains("empty"));
        let error = check("TTFT", &[1.0, f64::NAN]).unwrap_err();
        assert!(error.message.contains("TTFT") && error.message.contains("value 1"));
        assert!(check("x", &[f64::INFINITY]).is_err());
    }

    #[test]
    fn sums_survive_cancellation() {
        assert_eq!(sum([1e100, 1.0, -1e100]), 1.0);
        assert_eq!(sum((0..1000).map(|_| 0.1)), 100.0);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| rng(seed, stream).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    /// The order of a seeded shuffle is part of the results: it may never change silently.
    #[test]
    fn a_seeded_shuffle_is_frozen() {
        let mut items: Vec<u8> = (0..10).collect();
        shuffle(&mut rng(7, 0), &mut items);
        let mut again: Vec<u8> = (0..10).collect();
        shuffle(&mut rng(7, 0), &mut again);
        assert_eq!(items, again);
        let mut all = items.clone();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<u8>>());
        assert_eq!(items, FROZEN, "the generator or the shuffle changed");
    }
    const FROZEN: [u8; 10] = [4, 6, 2, 0, 8, 3, 7, 5, 9, 1];

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        let mut rng = rng(11, 0);
        for _ in 0..6000 {
            let mut items = [0, 1, 2];
            shuffle(&mut rng, &mut items);
            *counts.entry(items).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        let chi2: f64 = counts
            .values()
            .map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0)
            .sum();
        assert!(
            chi2 < 20.5,
            "chi-square {chi2} above the 0.999 quantile, df 5"
        );
    }

    proptest! {
        #[test]
        fn uniform_and_below_stay_in_range(seed: u64, n in 1_usize..1000) {
            let mut rng = rng(seed, 0);
            let u = uniform(&mut rng);
            prop_assert!((0.0..1.0).contains(&u));
            prop_assert!(below(&mut rng, n) < n);
        }

        #[test]
        fn the_median_splits_the_sample(x in prop::collection::vec(-1e6..1e6_f64, 1..50)) {
            let m = median(&x);
            prop_assert!(x.iter().filter(|&&v| v < m).count() * 2 <= x.len());
            prop_assert!(x.iter().filter(|&&v| v > m).count() * 2 <= x.len());
        }
    }
}
