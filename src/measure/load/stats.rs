//! The summary of a list of times. Percentiles interpolate linearly at rank (n-1)p (Hyndman and
//! Fan's type 7), the spread is the sample standard deviation, and nothing is made up: without
//! values every statistic is null, with one value the spread is.

use serde::Serialize;

use crate::analysis::quantile::{Method, quantile_sorted};
use crate::analysis::summary::stdev;

/// Summary statistics in the unit of the values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Summary {
    n: usize,
    mean: Option<f64>,
    stdev: Option<f64>,
    min: Option<f64>,
    p50: Option<f64>,
    p90: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

impl Summary {
    /// Summarises finite values.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len();
        let mean = (n > 0).then(|| values.iter().sum::<f64>() / n as f64);
        let quantile = |p: f64| (n > 0).then(|| quantile_sorted(&values, p, Method::Type7));
        Self {
            n,
            mean,
            stdev: stdev(&values).ok().flatten(),
            min: values.first().copied(),
            p50: quantile(0.50),
            p90: quantile(0.90),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: values.last().copied(),
        }
    }

    /// The median.
    pub(super) fn p50(&self) -> Option<f64> {
        self.p50
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values() {
        // R: quantile(c(2,4,4,5,7,9), c(.5,.9,.95,.99)), sd(), mean(); numpy gives the same.
        let s = Summary::of(vec![4.0, 9.0, 2.0, 7.0, 5.0, 4.0]);
        let near = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-9, "{a:?} {b}");
        near(s.mean, 31.0 / 6.0);
        near(s.stdev, (30.833_333_333_333_332f64 / 5.0).sqrt());
        near(s.p50, 4.5);
        near(s.p90, 8.0);
        near(s.p95, 8.5);
        near(s.p99, 8.9);
        assert_eq!((s.n, s.min, s.max), (6, Some(2.0), Some(9.0)));
    }

    #[test]
    fn few_values_give_no_made_up_numbers() {
        let none = Summary::of(vec![]);
        assert_eq!((none.n, none.mean, none.p99), (0, None, None));
        let one = Summary::of(vec![3.0]);
        assert_eq!((one.mean, one.stdev, one.p99), (Some(3.0), None, Some(3.0)));
    }
}
