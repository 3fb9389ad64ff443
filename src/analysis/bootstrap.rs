//! Confidence intervals by resampling: percentile, basic, and bias-corrected and accelerated
//! (BCa). The answer is a function of the sample, the statistic and the seed alone; samples small
//! enough are enumerated completely and need no seed.

use rayon::prelude::*;

use crate::analysis::quantile::{Method, quantile_sorted};
use crate::analysis::sample::{bad_argument, below, check, mean, rng, sum};
use crate::analysis::summary::{normal_cdf, normal_quantile};
use crate::error::Result;

/// Most resamples that are enumerated when a sample has n^n of them (n <= 6).
const MOST_ENUMERATED: u64 = 50_000;

/// How resamples are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// All n^n equally likely resamples; refused above six values.
    Exhaustive,
    /// `count` random ones, resample i from stream i of `seed`.
    Random {
        /// Number of resamples.
        count: usize,
        /// Seed of the generator.
        seed: u64,
    },
}

/// What the bootstrap says about a statistic.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// The statistic of the sample itself.
    pub estimate: f64,
    /// Number of resamples.
    pub resamples: usize,
    /// Standard error: standard deviation of the bootstrap law, divisor resamples-1.
    pub standard_error: f64,
    /// Mean of the bootstrap law less the estimate.
    pub bias: f64,
    /// Bias correction z0; resamples equal to the estimate count half.
    pub z0: f64,
    /// Acceleration from the jackknife.
    pub acceleration: f64,
    /// Probabilities at which the BCa interval reads the bootstrap law.
    pub levels: (f64, f64),
    /// Bias-corrected and accelerated interval.
    pub bca: (f64, f64),
    /// Percentile interval.
    pub percentile: (f64, f64),
    /// Basic (reverse percentile) interval.
    pub basic: (f64, f64),
}

/// Bootstrap intervals of a statistic at `confidence` (Efron 1987, "Better Bootstrap Confidence
/// Intervals", J. Am. Stat. Assoc. 82, 171-185). Quantiles of the bootstrap law are of type 7.
/// A statistic that is one of few values (a p99 of few runs) has a lattice-like law: prefer
/// [`crate::analysis::quantile::quantile_ci`] there.
///
/// Errors: empty, non-finite or single-valued sample, a confidence outside (0, 1), no resamples,
/// too many for enumeration, or a statistic that is not finite on some resample.
pub fn bootstrap(
    x: &[f64],
    statistic: impl Fn(&[f64]) -> f64 + Sync,
    confidence: f64,
    resampling: Resampling,
) -> Result<Bootstrap> {
    check("bootstrap", x)?;
    let n = x.len();
    if n < 2 {
        return Err(bad_argument(
            "a bootstrap needs at least two values, got one",
        ));
    }
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(bad_argument(format!(
            "confidence is {confidence}, expected a number between 0 and 1"
        )));
    }
    let estimate = statistic(x);
    let mut law = match resampling {
        Resampling::Exhaustive => enumerate(x, &statistic)?,
        Resampling::Random { count: 0, .. } => {
            return Err(bad_argument("a bootstrap needs at least one resample"));
        }
        Resampling::Random { count, seed } => draw(x, &statistic, count, seed),
    };
    let jackknife = leave_one_out(x, &statistic);
    check("bootstrap: the statistic of a resample", &law)?;
    check("bootstrap: the statistic without one value", &jackknife)?;
    check("bootstrap: the statistic of the sample", &[estimate])?;
    law.sort_unstable_by(f64::total_cmp);
    let count = law.len() as f64;
    let centre = mean(&law);
    let (less, at_most) = (
        law.partition_point(|v| *v < estimate) as f64,
        law.partition_point(|v| *v <= estimate) as f64,
    );
    // Kept off 0 and 1 by half a resample: all of them on one side is no infinite bias.
    let share = ((less + at_most) / 2.0 / count).clamp(0.5 / count, 1.0 - 0.5 / count);
    let z0 = normal_quantile(share)?;
    let acceleration = acceleration(&jackknife);
    let alpha = (1.0 - confidence) / 2.0;
    let level = |p: f64| -> Result<f64> {
        let z = z0 + normal_quantile(p)?;
        Ok(normal_cdf(z0 + z / (1.0 - acceleration * z)))
    };
    let levels = (level(alpha)?, level(1.0 - alpha)?);
    let at = |p: f64| quantile_sorted(&law, p, Method::Type7);
    let percentile = (at(alpha), at(1.0 - alpha));
    Ok(Bootstrap {
        estimate,
        resamples: law.len(),
        standard_error: (sum(law.iter().map(|v| (v - centre).powi(2))) / (count - 1.0).max(1.0))
            .sqrt(),
        bias: centre - estimate,
        z0,
        acceleration,
        levels,
        bca: (at(levels.0), at(levels.1)),
        percentile,
        basic: (2.0 * estimate - percentile.1, 2.0 * estimate - percentile.0),
    })
}

fn enumerate(x: &[f64], statistic: &impl Fn(&[f64]) -> f64) -> Result<Vec<f64>> {
    let n = x.len();
    let total = (n as u64)
        .checked_pow(n as u32)
        .filter(|total| *total <= MOST_ENUMERATED)
        .ok_or_else(|| {
            bad_argument(format!(
                "{n} values have too many resamples to enumerate (at most {MOST_ENUMERATED})"
            ))
            .hint("draw random resamples with a seed instead")
        })?;
    let mut resample = vec![0.0; n];
    Ok((0..total)
        .map(|mut code| {
            for slot in &mut resample {
                *slot = x[(code % n as u64) as usize];
                code /= n as u64;
            }
            statistic(&resample)
        })
        .collect())
}

fn draw(
    x: &[f64],
    statistic: &(impl Fn(&[f64]) -> f64 + Sync),
    count: usize,
    seed: u64,
) -> Vec<f64> {
    (0..count as u64)
        .into_par_iter()
        .map_init(
            || vec![0.0; x.len()],
            |resample, stream| {
                let mut rng = rng(seed, stream);
                resample.fill_with(|| x[below(&mut rng, x.len())]);
                statistic(resample)
            },
        )
        .collect()
}

fn leave_one_out(x: &[f64], statistic: &impl Fn(&[f64]) -> f64) -> Vec<f64> {
    (0..x.len())
        .map(|skip| {
            let mut rest = x.to_vec();
            rest.remove(skip);
            statistic(&rest)
        })
        .collect()
}

/// Sum of cubes over six times the 3/2 power of the sum of squares of the jackknife deviations.
fn acceleration(jackknife: &[f64]) -> f64 {
    let centre = mean(jackknife);
    let squares = sum(jackknife.iter().map(|v| (centre - v).powi(2)));
    if squares == 0.0 {
        return 0.0;
    }
    sum(jackknife.iter().map(|v| (centre - v).powi(3))) / (6.0 * squares.powf(1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        let random = Resampling::Random { count: 10, seed: 1 };
        assert!(bootstrap(&[], mean, 0.95, random).is_err());
        assert!(bootstrap(&[1.0], mean, 0.95, random).is_err());
        assert!(bootstrap(&[1.0, 2.0], mean, 1.0, random).is_err());
        assert!(bootstrap(&[1.0, 2.0], |_| f64::NAN, 0.95, random).is_err());
        assert!(bootstrap(&[1.0; 7], mean, 0.95, Resampling::Exhaustive).is_err());
        let none = Resampling::Random { count: 0, seed: 1 };
        assert!(bootstrap(&[1.0, 2.0], mean, 0.95, none).is_err());
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        let x = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        let run = |seed| bootstrap(&x, mean, 0.9, Resampling::Random { count: 999, seed }).unwrap();
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(one.install(|| run(5)), run(5));
    }

    /// For the mean the bootstrap standard error has a closed form: sd (divisor n) / sqrt(n).
    #[test]
    fn the_standard_error_of_a_mean_is_known() {
        let x = [2.0, 4.0, 4.0, 5.0, 9.0];
        let all = bootstrap(&x, mean, 0.95, Resampling::Exhaustive).unwrap();
        let m = mean(&x);
        let exact = (x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / 25.0).sqrt()
            * (3125.0_f64 / 3124.0).sqrt();
        assert!((all.standard_error - exact).abs() < 1e-12 && all.bias.abs() < 1e-12);
        let some = bootstrap(
            &x,
            mean,
            0.95,
            Resampling::Random {
                count: 20_000,
                seed: 3,
            },
        )
        .unwrap();
        assert!((some.standard_error / exact - 1.0).abs() < 0.03);
    }
}
