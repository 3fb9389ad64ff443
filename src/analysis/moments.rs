//! Shape of a sample from its bias-corrected moments. The bimodality coefficient is a hint and
//! never a verdict: it rises for any skewed sample, and latencies are always skewed.

use crate::analysis::sample::{bad_argument, check, mean, sum};
use crate::error::Result;

/// Skewness, excess kurtosis and the bimodality coefficient of one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Adjusted Fisher-Pearson skewness G1.
    pub skewness: f64,
    /// Adjusted excess kurtosis G2 (0 for a normal law).
    pub excess_kurtosis: f64,
    /// (G1² + 1) / (G2 + 3 (n-1)² / ((n-2)(n-3))); 5/9 for a uniform law.
    pub bimodality: f64,
}

/// Shape of a sample by the SAS formulas (Pfister et al. 2013, Frontiers in Psychology 4, 700).
///
/// Errors: empty or non-finite, fewer than four values, or all values equal.
pub fn shape(x: &[f64]) -> Result<Shape> {
    check("shape", x)?;
    if x.len() < 4 {
        return Err(bad_argument(format!(
            "skewness and kurtosis need at least 4 values, got {}",
            x.len()
        )));
    }
    let n = x.len() as f64;
    let m = mean(x);
    let moment = |k: i32| sum(x.iter().map(|v| (v - m).powi(k))) / n;
    let m2 = moment(2);
    if m2 <= 0.0 {
        return Err(bad_argument(
            "skewness and kurtosis need spread, all values are equal",
        ));
    }
    let g1 = moment(3) / m2.powf(1.5);
    let g2 = moment(4) / (m2 * m2) - 3.0;
    let skewness = (n * (n - 1.0)).sqrt() / (n - 2.0) * g1;
    let excess_kurtosis = (n - 1.0) / ((n - 2.0) * (n - 3.0)) * ((n + 1.0) * g2 + 6.0);
    let correction = 3.0 * (n - 1.0) * (n - 1.0) / ((n - 2.0) * (n - 3.0));
    Ok(Shape {
        skewness,
        excess_kurtosis,
        bimodality: (skewness * skewness + 1.0) / (excess_kurtosis + correction),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonsense_is_refused() {
        assert!(shape(&[1.0, 2.0, 3.0]).is_err());
        assert!(shape(&[2.0; 9]).is_err());
        assert!(shape(&[1.0, 2.0, 3.0, f64::NAN]).is_err());
    }

    proptest! {
        #[test]
        fn mirroring_flips_the_skewness_only(x in prop::collection::vec(0.0..50.0_f64, 4..40)) {
            let mirrored: Vec<f64> = x.iter().map(|v| -v).collect();
            let (a, b) = (shape(&x).unwrap(), shape(&mirrored).unwrap());
            prop_assert!((a.skewness + b.skewness).abs() < 1e-9);
            prop_assert!((a.bimodality - b.bimodality).abs() < 1e-9);
        }
    }
}
