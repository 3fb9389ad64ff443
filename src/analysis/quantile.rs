//! Quantiles by the nine definitions of Hyndman and Fan, and distribution-free confidence
//! intervals for them. Every definition is a monotone function of the probability that stays
//! within the range of the sample; type 7 is the default because the tools whose numbers are
//! compared (numpy, R, vLLM's and most load generators) use it.

use statrs::distribution::{Binomial, DiscreteCDF};

use crate::analysis::sample::{bad_argument, check, sorted};
use crate::error::Result;

/// One of the nine sample quantiles of Hyndman and Fan (1996), "Sample Quantiles in Statistical
/// Packages", The American Statistician 50(4), 361-365.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Inverse of the empirical distribution function (GuideLLM's percentiles).
    Type1,
    /// As type 1, averaged at the jumps.
    Type2,
    /// Nearest even order statistic (SAS).
    Type3,
    /// Linear interpolation of the empirical distribution function.
    Type4,
    /// Piecewise linear, knots midway through the steps (Hazen).
    Type5,
    /// Expected position p(n+1) (Weibull, Minitab, SPSS).
    Type6,
    /// Mode position p(n-1)+1 (Gumbel; numpy, R, Excel's inclusive percentile).
    #[default]
    Type7,
    /// Approximately median-unbiased whatever the distribution.
    Type8,
    /// Approximately unbiased for the expected normal order statistic (Blom).
    Type9,
}

impl Method {
    /// All nine, in order.
    pub const ALL: [Method; 9] = [
        Method::Type1,
        Method::Type2,
        Method::Type3,
        Method::Type4,
        Method::Type5,
        Method::Type6,
        Method::Type7,
        Method::Type8,
        Method::Type9,
    ];
}

/// The quantile of a sample at probability `p` (0..=1) by `method`.
///
/// Errors: an empty or non-finite sample, a probability outside 0..=1.
pub fn quantile(x: &[f64], p: f64, method: Method) -> Result<f64> {
    check("quantile", x)?;
    check_probability("p", p, true)?;
    Ok(quantile_sorted(&sorted(x), p, method))
}

/// The quantile of a sorted, checked, non-empty sample; `p` in 0..=1. The fast form for callers
/// that need several quantiles of one sample.
pub fn quantile_sorted(x: &[f64], p: f64, method: Method) -> f64 {
    let n = x.len() as f64;
    // An order statistic by its rank from 1; ranks outside the sample are its ends.
    let at = |rank: f64| x[(rank.max(1.0).min(n)) as usize - 1];
    // Probabilities such as 0.9 are not exact in binary, so n*p may miss an integer by rounding
    // alone; R's tolerance of a few units in the last place is used.
    let fuzz = 4.0 * f64::EPSILON;
    let (a, b) = match method {
        Method::Type1 | Method::Type2 | Method::Type3 => {
            let position = n * p - if method == Method::Type3 { 0.5 } else { 0.0 };
            let j = (position + fuzz).floor();
            let above = position - j > fuzz;
            let take_upper = match method {
                Method::Type1 => f64::from(u8::from(above)),
                Method::Type2 => {
                    if above {
                        1.0
                    } else {
                        0.5
                    }
                }
                _ => f64::from(u8::from(above || j.rem_euclid(2.0) == 1.0)),
            };
            return between(at(j), at(j + 1.0), take_upper);
        }
        Method::Type4 => (0.0, 1.0),
        Method::Type5 => (0.5, 0.5),
        Method::Type6 => (0.0, 0.0),
        Method::Type7 => (1.0, 1.0),
        Method::Type8 => (1.0 / 3.0, 1.0 / 3.0),
        Method::Type9 => (3.0 / 8.0, 3.0 / 8.0),
    };
    let position = a + p * (n + 1.0 - a - b);
    let j = (position + fuzz).floor();
    let gap = position - j;
    let gap = if gap.abs() < fuzz { 0.0 } else { gap };
    between(at(j), at(j + 1.0), gap)
}

/// Interpolation that returns the ends exactly and never leaves the interval.
fn between(low: f64, high: f64, share: f64) -> f64 {
    if share == 0.0 || low == high {
        low
    } else if share == 1.0 {
        high
    } else {
        (low + share * (high - low)).clamp(low, high)
    }
}

/// Ranks of a distribution-free confidence interval for a quantile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantileRanks {
    /// Rank from 1 of the order statistic below; `None` when the sample is too small to have one.
    pub lower: Option<usize>,
    /// Rank from 1 of the order statistic above; `None` when the sample is too small to have one
    /// (a p99 of 100 values has no upper limit).
    pub upper: Option<usize>,
    /// Probability that the interval holds the true quantile of a continuous distribution, a
    /// missing limit read as infinity.
    pub coverage: f64,
}

/// Ranks of the order-statistic interval for the `p` quantile of `n` independent values.
///
/// P(X_(l) <= q_p < X_(u)) = sum over i in l..u of C(n,i) p^i (1-p)^(n-i), with l the alpha/2 and
/// u-1 the 1-alpha/2 quantile of Binomial(n, p) (David and Nagaraja 2003, "Order Statistics", 7.1).
/// `p` and `confidence` lie strictly between 0 and 1.
pub fn quantile_ranks(n: usize, p: f64, confidence: f64) -> Result<QuantileRanks> {
    check_probability("p", p, false)?;
    check_probability("confidence", confidence, false)?;
    if n == 0 {
        return Err(bad_argument(
            "a quantile interval needs at least one value, got none",
        ));
    }
    let law =
        Binomial::new(p, n as u64).map_err(|e| bad_argument(format!("binomial({n}, {p}): {e}")))?;
    let alpha = 1.0 - confidence;
    let lower = smallest_reaching(&law, n as u64, alpha / 2.0);
    let upper = smallest_reaching(&law, n as u64, 1.0 - alpha / 2.0) + 1;
    let below = |k: u64| if k == 0 { 0.0 } else { law.cdf(k - 1) };
    Ok(QuantileRanks {
        lower: (lower >= 1).then_some(lower as usize),
        upper: (upper <= n as u64).then_some(upper as usize),
        coverage: below(upper) - below(lower),
    })
}

/// Smallest k with cdf(k) >= q, by bisection over 0..=n.
fn smallest_reaching(law: &Binomial, n: u64, q: f64) -> u64 {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if law.cdf(middle) >= q {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// A distribution-free confidence interval for the `p` quantile of a sample: lower and upper
/// limit, `None` where the sample is too small to have one.
pub fn quantile_ci(x: &[f64], p: f64, confidence: f64) -> Result<(Option<f64>, Option<f64>)> {
    check("quantile interval", x)?;
    let ranks = quantile_ranks(x.len(), p, confidence)?;
    let x = sorted(x);
    Ok((
        ranks.lower.map(|rank| x[rank - 1]),
        ranks.upper.map(|rank| x[rank - 1]),
    ))
}

fn check_probability(name: &str, p: f64, closed: bool) -> Result<()> {
    let ok = if closed {
        (0.0..=1.0).contains(&p)
    } else {
        p > 0.0 && p < 1.0
    };
    if ok {
        return Ok(());
    }
    let range = if closed {
        "in 0..=1"
    } else {
        "between 0 and 1"
    };
    Err(bad_argument(format!(
        "{name} is {p}, expected a probability {range}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonsense_is_refused() {
        assert!(quantile(&[], 0.5, Method::Type7).is_err());
        assert!(quantile(&[f64::NAN], 0.5, Method::Type7).is_err());
        assert!(quantile(&[1.0], 1.1, Method::Type7).is_err());
        assert!(quantile(&[1.0], f64::NAN, Method::Type7).is_err());
        assert!(quantile_ranks(0, 0.5, 0.95).is_err());
        assert!(quantile_ranks(10, 0.0, 0.95).is_err());
        assert!(quantile_ranks(10, 0.5, 1.0).is_err());
    }

    #[test]
    fn p99_of_a_hundred_values_has_no_upper_limit() {
        let x: Vec<f64> = (1..=100).map(f64::from).collect();
        let (low, high) = quantile_ci(&x, 0.99, 0.95).unwrap();
        assert!(low.is_some() && high.is_none());
    }

    /// The promised coverage against the definition, summed term by term.
    #[test]
    fn coverage_is_the_binomial_sum() {
        for (n, p) in [(30_usize, 0.5), (17, 0.9), (150, 0.99)] {
            let ranks = quantile_ranks(n, p, 0.9).unwrap();
            let (l, u) = (ranks.lower.unwrap_or(0), ranks.upper.unwrap_or(n + 1));
            let mut term = (1.0 - p).powi(n as i32);
            let mut total = 0.0;
            for i in 0..=n {
                if i >= l && i < u {
                    total += term;
                }
                term *= (n - i) as f64 / (i + 1) as f64 * p / (1.0 - p);
            }
            assert!((ranks.coverage - total).abs() < 1e-10, "n {n} p {p}");
            assert!(ranks.coverage >= 0.9 - 1e-12);
        }
    }

    proptest! {
        #[test]
        fn quantiles_rise_with_p_and_stay_in_range(
            x in prop::collection::vec(-1e3..1e3_f64, 1..40),
            p in 0.0..=1.0_f64, q in 0.0..=1.0_f64,
        ) {
            let y = sorted(&x);
            let (p, q) = (p.min(q), p.max(q));
            for method in Method::ALL {
                let (a, b) = (quantile_sorted(&y, p, method), quantile_sorted(&y, q, method));
                prop_assert!(a <= b, "{method:?}: q({p}) = {a} > q({q}) = {b}");
                prop_assert!(y[0] <= a && b <= y[y.len() - 1]);
            }
        }

        #[test]
        fn symmetric_types_mirror(x in prop::collection::vec(-1e3..1e3_f64, 1..40), p in 0.01..0.99_f64) {
            let mirrored: Vec<f64> = x.iter().map(|v| -v).collect();
            for method in [Method::Type5, Method::Type6, Method::Type7, Method::Type8, Method::Type9] {
                let a = quantile(&x, p, method).unwrap();
                let b = -quantile(&mirrored, 1.0 - p, method).unwrap();
                prop_assert!((a - b).abs() < 1e-6, "{method:?}: {a} {b}");
            }
        }
    }
}
