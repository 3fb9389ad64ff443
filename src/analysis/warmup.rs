//! How much of the beginning of a series is warm-up. At most half of a series is ever given up,
//! and a minimum on that bound is reported as "not steady" instead of as an answer.

use crate::analysis::sample::{bad_argument, check, mean, sum_squares};
use crate::error::Result;

/// The truncation that MSER chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Truncation {
    /// Values to leave out at the beginning.
    pub drop: usize,
    /// False when the best truncation is on the bound of half the series: no steady state was
    /// reached.
    pub steady: bool,
    /// The statistic for each number of dropped batches, 0..=batches/2.
    pub statistic: Vec<f64>,
    /// Mean of the batches kept.
    pub mean: f64,
}

/// MSER with batches of 5, the usual choice: see [`mser`].
pub fn mser5(x: &[f64]) -> Result<Truncation> {
    mser(x, 5)
}

/// Marginal standard error rule: over batch means Z of `batch` values, the d of 0..=m/2 that
/// minimises sum over i > d of (Z_i - mean)² / (m-d)² (White 1997, "An Effective Truncation
/// Heuristic for Bias Reduction in Simulation Output", Simulation 69, 323-334; White, Cobb and
/// Spratt 2000 for the batches). An incomplete last batch is left out.
///
/// Errors: empty or non-finite, a batch of zero, or fewer than two batches.
pub fn mser(x: &[f64], batch: usize) -> Result<Truncation> {
    check("warm-up", x)?;
    if batch == 0 {
        return Err(bad_argument("a batch needs at least one value, got 0"));
    }
    let z: Vec<f64> = x.chunks_exact(batch).map(mean).collect();
    let m = z.len();
    if m < 2 {
        return Err(bad_argument(format!(
            "the warm-up rule needs at least two batches of {batch}, got {} values",
            x.len()
        )));
    }
    let statistic: Vec<f64> = (0..=m / 2)
        .map(|d| {
            let kept = &z[d..];
            sum_squares(kept, mean(kept)) / (kept.len() as f64).powi(2)
        })
        .collect();
    // The first of equal minima: nothing is dropped without need.
    let mut best = 0;
    for (d, value) in statistic.iter().enumerate() {
        if *value < statistic[best] {
            best = d;
        }
    }
    Ok(Truncation {
        drop: best * batch,
        steady: best < m / 2,
        mean: mean(&z[best..]),
        statistic,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_ramp_never_becomes_steady() {
        let ramp: Vec<f64> = (0..100).map(f64::from).collect();
        let cut = mser5(&ramp).unwrap();
        assert!(!cut.steady);
        assert_eq!(cut.drop, 50);
    }

    #[test]
    fn a_flat_series_loses_nothing() {
        let cut = mser5(&[3.0; 30]).unwrap();
        assert_eq!((cut.drop, cut.steady, cut.mean), (0, true, 3.0));
    }

    #[test]
    fn a_cold_start_is_cut_where_it_ends() {
        let x: Vec<f64> = (0..60)
            .map(|i| {
                if i < 10 {
                    50.0
                } else {
                    10.0 + f64::from(i % 2)
                }
            })
            .collect();
        assert_eq!(mser5(&x).unwrap().drop, 10);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(mser5(&[]).is_err());
        assert!(mser5(&[1.0; 9]).is_err());
        assert!(mser(&[1.0; 9], 0).is_err());
        assert!(mser5(&[f64::NAN; 10]).is_err());
    }

    proptest! {
        #[test]
        fn shift_and_scale_leave_the_cut(
            x in prop::collection::vec(0..1000_u16, 10..80), shift in -1000..1000_i32, scale in 1..64_u8,
        ) {
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let y: Vec<f64> = x.iter().map(|v| v * f64::from(scale) + f64::from(shift)).collect();
            let (a, b) = (mser5(&x).unwrap(), mser5(&y).unwrap());
            // Only where two cuts are equal up to rounding may the choice differ.
            let (i, j) = (a.drop / 5, b.drop / 5);
            let apart = (a.statistic[i] - a.statistic[j]).abs();
            prop_assert!(apart <= 1e-9 * a.statistic[i].abs().max(1e-9));
            prop_assert!(a.drop <= x.len() / 2);
        }
    }
}
