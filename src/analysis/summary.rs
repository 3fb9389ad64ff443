//! The one-line account of a sample that every result carries. All numbers are finite; what the
//! sample is too small to tell is absent, never zero.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::analysis::quantile::{Method, quantile_sorted};
use crate::analysis::sample::{bad_argument, check, mean, sorted, sum_squares};
use crate::error::Result;

/// Location, spread and quantiles of one sample, all but `n` in the unit of the values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation with divisor n-1; absent for one value. (vLLM's and aiperf's own
    /// reports divide by n.)
    pub stdev: Option<f64>,
    /// Smallest value.
    pub min: f64,
    /// Median (type 7, as all quantiles here).
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
    /// Lower end of the 95 % t interval of the mean; absent for one value. It takes the values as
    /// independent: repeated requests on one host seldom are.
    pub mean_ci95_low: Option<f64>,
    /// Upper end of the 95 % t interval of the mean; absent for one value.
    pub mean_ci95_high: Option<f64>,
}

impl Summary {
    /// Summarises a sample. Errors: empty or non-finite.
    pub fn of(x: &[f64]) -> Result<Self> {
        Self::named("summary", x)
    }

    /// Summarises a sample that an error message would call `what`.
    pub fn named(what: &str, x: &[f64]) -> Result<Self> {
        check(what, x)?;
        let y = sorted(x);
        let n = y.len();
        let mean = mean(&y);
        let at = |p| quantile_sorted(&y, p, Method::Type7);
        let stdev = stdev_about(&y, mean);
        let half = match stdev {
            Some(s) => Some(t_quantile(0.975, (n - 1) as f64)? * s / (n as f64).sqrt()),
            None => None,
        };
        Ok(Self {
            n,
            mean,
            stdev,
            min: y[0],
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: y[n - 1],
            mean_ci95_low: half.map(|h| mean - h),
            mean_ci95_high: half.map(|h| mean + h),
        })
    }
}

/// Sample standard deviation (divisor n-1); `None` below two values. Errors: empty or non-finite.
pub fn stdev(x: &[f64]) -> Result<Option<f64>> {
    check("standard deviation", x)?;
    Ok(stdev_about(x, mean(x)))
}

fn stdev_about(x: &[f64], mean: f64) -> Option<f64> {
    (x.len() > 1).then(|| (sum_squares(x, mean) / (x.len() - 1) as f64).sqrt())
}

/// Two-sided t interval of the mean at `confidence`: low and high. Errors: fewer than two values,
/// a non-finite value, a confidence outside (0, 1).
pub fn mean_ci(x: &[f64], confidence: f64) -> Result<(f64, f64)> {
    check("interval of the mean", x)?;
    let m = mean(x);
    let Some(s) = stdev_about(x, m) else {
        return Err(bad_argument(
            "an interval of the mean needs at least two values, got one",
        ));
    };
    let half =
        t_quantile(0.5 + confidence / 2.0, (x.len() - 1) as f64)? * s / (x.len() as f64).sqrt();
    Ok((m - half, m + half))
}

/// Quantile of Student's t. Errors: `p` outside (0, 1) or `df` not positive.
pub fn t_quantile(p: f64, df: f64) -> Result<f64> {
    if !(p > 0.0 && p < 1.0) {
        return Err(bad_argument(format!(
            "t quantile at {p}, expected a probability between 0 and 1"
        )));
    }
    // The incomplete beta function of the t law loses digits for shapes in the tens of thousands;
    // the expansion of Cornish and Fisher about the normal law is exact there to 1e-12.
    if df > 2e4 {
        let z = normal_quantile(p)?;
        let g1 = (z.powi(3) + z) / 4.0;
        let g2 = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
        return Ok(z + g1 / df + g2 / (df * df));
    }
    let law = StudentsT::new(0.0, 1.0, df)
        .map_err(|e| bad_argument(format!("t distribution with {df} degrees of freedom: {e}")))?;
    Ok(law.inverse_cdf(p))
}

/// Quantile of the standard normal law. Errors: `p` outside (0, 1).
pub fn normal_quantile(p: f64) -> Result<f64> {
    if !(p > 0.0 && p < 1.0) {
        return Err(bad_argument(format!(
            "normal quantile at {p}, expected a probability between 0 and 1"
        )));
    }
    Ok(Normal::standard().inverse_cdf(p))
}

/// Distribution function of the standard normal law.
pub fn normal_cdf(x: f64) -> f64 {
    Normal::standard().cdf(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Student's t(0.975, 29)/sqrt(30) = 0.37341: the half width for 30 repeats (tables of the t
    /// distribution: 2.04523).
    #[test]
    fn thirty_repeats_give_the_published_half_width() {
        assert!((t_quantile(0.975, 29.0).unwrap() - 2.045_229_642).abs() < 1e-8);
        let x: Vec<f64> = (0..30).map(f64::from).collect();
        let s = stdev(&x).unwrap().unwrap();
        let (low, high) = mean_ci(&x, 0.95).unwrap();
        assert!(((high - low) / 2.0 / s - 0.373_41).abs() < 5e-6);
    }

    #[test]
    fn the_t_quantile_is_smooth_where_the_method_changes() {
        for p in [0.001, 0.025, 0.6, 0.975, 0.9999] {
            let below = t_quantile(p, 2e4).unwrap();
            let above = t_quantile(p, 2e4 + 1.0).unwrap();
            assert!((below - above).abs() < 1e-7 * below.abs().max(1.0), "p {p}");
        }
        assert!((t_quantile(0.975, 1e9).unwrap() - 1.959_963_984_540_054).abs() < 1e-8);
    }

    #[test]
    fn one_value_has_no_spread_and_none_is_an_error() {
        let one = Summary::of(&[5.0]).unwrap();
        assert_eq!((one.stdev, one.mean_ci95_low), (None, None));
        assert_eq!((one.mean, one.p50, one.p99), (5.0, 5.0, 5.0));
        assert!(Summary::of(&[]).is_err());
        assert!(Summary::of(&[1.0, f64::NAN]).is_err());
        assert!(mean_ci(&[1.0], 0.95).is_err());
    }

    #[test]
    fn it_round_trips_through_json() {
        let summary = Summary::of(&[1.0, 2.5, 9.0]).unwrap();
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
    }

    proptest! {
        #[test]
        fn shifting_and_scaling_carry_over(
            x in prop::collection::vec(0.0..1e3_f64, 2..60), shift in -1e6..1e6_f64, scale in 0.1..10.0_f64,
        ) {
            let a = Summary::of(&x).unwrap();
            let y: Vec<f64> = x.iter().map(|v| v * scale + shift).collect();
            let b = Summary::of(&y).unwrap();
            let near = |p: f64, q: f64| (p - q).abs() < 1e-7;
            prop_assert!(near(b.mean, a.mean * scale + shift));
            prop_assert!(near(b.stdev.unwrap(), a.stdev.unwrap() * scale));
            prop_assert!(near(b.p95, a.p95 * scale + shift));
        }

        #[test]
        fn order_does_not_matter(mut x in prop::collection::vec(-1e3..1e3_f64, 1..60), seed: u64) {
            let a = Summary::of(&x).unwrap();
            crate::analysis::sample::shuffle(&mut crate::analysis::sample::rng(seed, 0), &mut x);
            prop_assert_eq!(Summary::of(&x).unwrap(), a);
        }
    }
}
