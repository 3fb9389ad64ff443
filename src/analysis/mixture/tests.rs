//! The mixture against known samples and the promises of expectation maximisation.

use super::*;
use crate::analysis::sample::{rng, uniform};
use crate::analysis::summary::normal_quantile;
use proptest::prelude::*;

fn normals(n: usize, mean: f64, sd: f64, seed: u64) -> Vec<f64> {
    let mut rng = rng(seed, 0);
    (0..n)
        .map(|_| mean + sd * normal_quantile(uniform(&mut rng).max(1e-15)).unwrap())
        .collect()
}

#[test]
fn two_far_clusters_are_found() {
    let x = [normals(300, 20.0, 1.0, 1), normals(100, 40.0, 3.0, 2)].concat();
    let choice = choose(&x).unwrap();
    assert!(choice.prefers_two());
    let (variance, fit) = choice.two.unwrap();
    assert_eq!(variance, Variance::Free);
    let [a, b] = fit.components[..] else { panic!() };
    assert!((a.mean - 20.0).abs() < 0.3 && (b.mean - 40.0).abs() < 1.0);
    assert!((a.weight - 0.75).abs() < 0.02 && (a.sd - 1.0).abs() < 0.2);
    assert!(fit.ashman_d().unwrap() > 5.0 && fit.converged);
}

#[test]
fn one_cluster_stays_one() {
    let gains: Vec<f64> = (0..20)
        .map(|seed| choose(&normals(200, 5.0, 2.0, seed)).unwrap().bic_gain)
        .collect();
    // The criterion is consistent, not infallible: at 200 values it errs in a few percent.
    assert!(gains.iter().filter(|g| **g > 0.0).count() <= 2, "{gains:?}");
    assert!(mean(&gains) < -4.0, "{gains:?}");
}

#[test]
fn degenerate_samples_have_an_answer() {
    let flat = choose(&[3.0; 10]).unwrap();
    assert!(!flat.prefers_two() && flat.one.is_none());
    assert!(fit_one(&[3.0; 10]).is_err());
    assert!(choose(&[]).is_err());
    assert!(choose(&[1.0, f64::NAN]).is_err());
    assert!(choose(&[1.0]).is_ok());
    assert!(choose(&[1.0, 2.0]).is_ok());
    // Two atoms: the floor keeps the likelihood finite and the components are right.
    let (_, fit) = choose(&[1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
        .unwrap()
        .two
        .unwrap();
    assert!((fit.components[0].mean - 1.0).abs() < 1e-9);
    assert!((fit.components[1].mean - 9.0).abs() < 1e-9);
    assert!(fit.log_likelihood.is_finite());
}

#[test]
fn a_single_outlier_is_not_a_mode() {
    let mut x = normals(60, 10.0, 1.0, 3);
    x.push(1000.0);
    if let Some((_, fit)) = choose(&x).unwrap().two {
        assert!(
            fit.components
                .iter()
                .all(|c| c.weight * 61.0 >= LEAST_MEMBERS)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_step_never_loses_likelihood(
        x in prop::collection::vec(0.0..100.0_f64, 4..60), cut in 0.05..0.95_f64, equal: bool,
    ) {
        let Ok(standard) = Standard::of(&x) else { return Ok(()) };
        let variance = if equal { Variance::Equal } else { Variance::Free };
        let em = Em { z: &standard.values, variance };
        let cut = ((cut * x.len() as f64) as usize).clamp(1, x.len() - 1);
        let mut state = em.split(cut);
        let mut before = f64::NEG_INFINITY;
        for _ in 0..60 {
            let (ll, next) = em.step(&state);
            prop_assert!(ll >= before - 1e-9 * ll.abs().max(1.0), "{before} -> {ll}");
            before = ll;
            state = next;
        }
        let (_, climbed, _) = em.climb(state);
        prop_assert!(climbed >= before - 1e-9 * before.abs().max(1.0));
    }

    #[test]
    fn two_components_are_at_least_as_likely_as_one(x in prop::collection::vec(0.0..100.0_f64, 8..60)) {
        let one = fit_one(&x).unwrap();
        // Equal components are a two-component mixture, so its maximum cannot be lower; the
        // search may end on a local one but not below its own start's neighbourhood.
        if let Some(two) = fit_two(&x, Variance::Free).unwrap() {
            prop_assert!(two.log_likelihood >= one.log_likelihood - 1e-6);
            prop_assert!((two.components[0].weight + two.components[1].weight - 1.0).abs() < 1e-12);
        }
    }

    /// Doubling is exact in floating point: nothing may differ but the scale.
    #[test]
    fn it_scales_with_the_sample(x in prop::collection::vec(0.0..100.0_f64, 8..40), doublings in -6..7_i32) {
        let y: Vec<f64> = x.iter().map(|v| v * 2_f64.powi(doublings)).collect();
        let (a, b) = (choose(&x).unwrap(), choose(&y).unwrap());
        prop_assert!((a.bic_gain - b.bic_gain).abs() < 1e-6, "{} {}", a.bic_gain, b.bic_gain);
    }

    /// Of two plain groups: where several maxima are nearly as likely, the last bits of a shifted
    /// sample may lead to another one.
    #[test]
    fn it_moves_with_the_sample(
        low in prop::collection::vec(0.0..10.0_f64, 6..20), high in prop::collection::vec(90.0..100.0_f64, 6..20),
        shift in -1e4..1e4_f64, scale in 0.01..100.0_f64,
    ) {
        let x = [low, high].concat();
        let y: Vec<f64> = x.iter().map(|v| v * scale + shift).collect();
        let (a, b) = (choose(&x).unwrap(), choose(&y).unwrap());
        prop_assert!((a.bic_gain - b.bic_gain).abs() < 1e-3, "{} {}", a.bic_gain, b.bic_gain);
    }
}
