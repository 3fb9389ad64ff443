//! Many tests at once. An adjusted p-value is never below its raw one and keeps the order of the
//! raw ones, so comparing it with alpha bounds the false discovery rate over the whole family.

use crate::analysis::sample::bad_argument;
use crate::error::Result;

/// Benjamini-Hochberg adjusted p-values, in the order given: the running minimum from the largest
/// p down of m p_(i) / i (Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57, 289-300).
///
/// Errors: a p-value outside 0..=1. An empty family gives an empty answer.
pub fn benjamini_hochberg(p: &[f64]) -> Result<Vec<f64>> {
    if let Some(bad) = p.iter().find(|v| !(0.0..=1.0).contains(*v)) {
        return Err(bad_argument(format!(
            "a p-value is {bad}, expected a number in 0..=1"
        )));
    }
    let m = p.len() as f64;
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 1.0_f64;
    for (i, &at) in order.iter().enumerate().rev() {
        least = least.min(m / (i + 1) as f64 * p[at]);
        adjusted[at] = least;
    }
    Ok(adjusted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_test_is_left_alone_and_nonsense_refused() {
        assert_eq!(benjamini_hochberg(&[0.03]).unwrap(), [0.03]);
        assert!(benjamini_hochberg(&[]).unwrap().is_empty());
        assert!(benjamini_hochberg(&[f64::NAN]).is_err());
        assert!(benjamini_hochberg(&[-0.1]).is_err());
    }

    proptest! {
        /// The adjusted value decides as the step-up procedure itself does.
        #[test]
        fn it_is_the_step_up_procedure(p in prop::collection::vec(0.0..=1.0_f64, 1..30), alpha in 0.01..0.5_f64) {
            let adjusted = benjamini_hochberg(&p).unwrap();
            let mut s = p.clone();
            s.sort_by(f64::total_cmp);
            let m = p.len() as f64;
            let rejected = (1..=p.len()).rev().find(|&k| m / k as f64 * s[k - 1] <= alpha).unwrap_or(0);
            prop_assert_eq!(adjusted.iter().filter(|&&a| a <= alpha).count(), rejected);
            for (raw, adj) in p.iter().zip(&adjusted) {
                prop_assert!(adj >= raw && *adj <= 1.0);
            }
        }
    }
}
