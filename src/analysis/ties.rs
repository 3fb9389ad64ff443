//! Ties that a clock makes. Jitter moves no value by more than half of the tick it was rounded to
//! and is a function of the sample and the seed alone; a sample without a tick is left as it is.

use crate::analysis::sample::{rng, sorted, uniform};

/// Number of values that equal another value that stands before them in sorted order.
pub fn count_ties(x: &[f64]) -> usize {
    sorted(x)
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .count()
}

/// The step of the decimal grid that a sample with ties lies on, at most `coarsest`: the largest
/// power of ten of which every value is a multiple. `None` when there are no ties or no grid down
/// to 1e-9: ties of a continuous clock are coincidences.
pub fn decimal_tick(x: &[f64], coarsest: f64) -> Option<f64> {
    let y = sorted(x);
    if y.windows(2).all(|pair| pair[0] != pair[1]) {
        return None;
    }
    (-9..=9)
        .rev()
        .map(|exponent| 10_f64.powi(exponent))
        .filter(|tick| *tick <= coarsest)
        .find(|tick| {
            y.iter().all(|v| {
                let steps = v / tick;
                // Beyond 1e11 steps rounding alone would make every number a multiple.
                (steps - steps.round()).abs() <= 1e-4 && steps.abs() < 1e11
            })
        })
}

/// Spreads every value uniformly over the clock tick it was rounded to: value + tick·(u - 1/2).
///
/// A clock that ticks makes ties, every tie is a jump, and jumps inflate the dip. Undoing the
/// rounding at random (with a seed) leaves a sample whose dip follows the uniform law again.
pub fn jitter(x: &[f64], tick: f64, seed: u64) -> Vec<f64> {
    // A stream that no replicate of a simulation with the same seed will reach.
    let mut rng = rng(seed, u64::MAX);
    x.iter()
        .map(|v| v + tick * (uniform(&mut rng) - 0.5))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::dip::{DipNull, dip};

    #[test]
    fn ties_are_counted() {
        assert_eq!(count_ties(&[3.0, 1.0, 3.0, 3.0, 1.0, 2.0]), 3);
        assert_eq!(count_ties(&[]), 0);
    }

    #[test]
    fn the_tick_is_found_only_where_there_is_one() {
        assert_eq!(decimal_tick(&[1.25, 1.25, 3.5], 1.0), Some(0.01));
        assert_eq!(decimal_tick(&[100.0, 100.0, 200.0], 1.0), Some(1.0));
        assert_eq!(decimal_tick(&[1.25, 3.5], 1.0), None);
        let third = 100.0 / 3.0;
        assert_eq!(decimal_tick(&[third, third, 4.0], 1.0), None);
    }

    #[test]
    fn jitter_undoes_a_coarse_clock() {
        let mut random = rng(5, 0);
        let fine: Vec<f64> = (0..400).map(|_| 20.0 * uniform(&mut random)).collect();
        let coarse: Vec<f64> = fine.iter().map(|v| v.round()).collect();
        let null = DipNull::simulate(400, 1000, 9).unwrap();
        let p = |x: &[f64]| null.p_value(dip(x).unwrap().dip);
        assert!(
            p(&coarse) < 0.01,
            "ties alone look like modes: p {}",
            p(&coarse)
        );
        assert!(p(&jitter(&coarse, 1.0, 4)) > 0.05);
        assert!(
            jitter(&coarse, 1.0, 4)
                .iter()
                .zip(&coarse)
                .all(|(a, b)| (a - b).abs() <= 0.5)
        );
    }
}
