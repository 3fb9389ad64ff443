//! The dip against its definition, and the test against its level.

use super::*;
use crate::analysis::sample::shuffle;
use proptest::prelude::*;

/// The dip by its definition, with no hull and no shortcut: the smallest d for which some
/// mode at a sample point admits a distribution function, convex before and concave after it,
/// that stays within d of the empirical one. For a given d and mode the band leaves a smallest
/// height before the mode and a largest one after it, found over all pairs of points.
fn by_definition(x: &[f64]) -> f64 {
    let x = sorted(x);
    let n = x.len() as f64;
    let mut v = x.clone();
    v.dedup();
    let under: Vec<f64> = v
        .iter()
        .map(|a| x.iter().filter(|b| *b < a).count() as f64 / n)
        .collect();
    let upto: Vec<f64> = v
        .iter()
        .map(|a| x.iter().filter(|b| *b <= a).count() as f64 / n)
        .collect();
    let mirror_v: Vec<f64> = v.iter().rev().map(|a| -a).collect();
    let mirror_under: Vec<f64> = upto.iter().rev().map(|p| 1.0 - p).collect();
    let mirror_upto: Vec<f64> = under.iter().rev().map(|p| 1.0 - p).collect();
    let fits = |d: f64| {
        (0..v.len()).any(|m| {
            let before = least_height(&v, &under, &upto, m, d);
            let after = least_height(&mirror_v, &mirror_under, &mirror_upto, v.len() - 1 - m, d);
            matches!((before, after), (Some(a), Some(b)) if a <= 1.0 - b + 1e-13)
        })
    };
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if fits(middle) {
            high = middle
        } else {
            low = middle
        }
    }
    high
}

/// Least height at the left of point m of a convex increasing function that stays in the band.
fn least_height(v: &[f64], under: &[f64], upto: &[f64], m: usize, d: f64) -> Option<f64> {
    let ceiling = |k: usize| under[k] + d;
    let floor = |k: usize| (upto[k] - d).max(0.0);
    let mut least = (under[m] - d).max(0.0);
    for j in 0..m {
        if floor(j) > ceiling(j) + 1e-13 {
            return None;
        }
        least = least.max(floor(j));
        for i in 0..j {
            // A line from the ceiling at i through the floor at j bounds what follows.
            let slope = (floor(j) - ceiling(i)) / (v[j] - v[i]);
            for k in j + 1..m {
                if floor(j) + slope * (v[k] - v[j]) > ceiling(k) + 1e-13 {
                    return None;
                }
            }
            least = least.max(floor(j) + slope * (v[m] - v[j]));
        }
        for k in j + 1..m {
            if floor(j) > ceiling(k) + 1e-13 {
                return None;
            }
        }
    }
    (least <= under[m] + d + 1e-13).then_some(least)
}

fn floor_of(x: &[f64]) -> f64 {
    1.0 / (2.0 * x.len() as f64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_is_the_dip_of_the_definition(x in prop::collection::vec(0.0..1.0_f64, 1..14)) {
        let fast = dip(&x).unwrap().dip;
        let slow = by_definition(&x).max(floor_of(&x));
        prop_assert!((fast - slow).abs() < 1e-9, "fast {fast} slow {slow}");
    }

    #[test]
    fn it_is_the_dip_of_the_definition_with_ties(x in prop::collection::vec(0..8_u8, 1..16)) {
        let x: Vec<f64> = x.into_iter().map(f64::from).collect();
        let fast = dip(&x).unwrap().dip;
        let slow = by_definition(&x).max(floor_of(&x));
        prop_assert!((fast - slow).abs() < 1e-9, "fast {fast} slow {slow}");
    }

    #[test]
    fn two_clusters_too(
        a in prop::collection::vec(0.0..1.0_f64, 2..8), b in prop::collection::vec(3.0..4.0_f64, 2..8),
    ) {
        let x = [a, b].concat();
        let (fast, slow) = (dip(&x).unwrap().dip, by_definition(&x));
        prop_assert!((fast - slow).abs() < 1e-9, "fast {fast} slow {slow}");
    }

    #[test]
    fn affine_maps_and_permutations_leave_it(
        mut x in prop::collection::vec(0..1000_u16, 1..80), shift in -100..100_i32, scale in 1..7_u8, seed: u64,
    ) {
        // Integers keep the map exact, so the answer must be exact too.
        let value = |v: &u16| f64::from(*v) * f64::from(scale) + f64::from(shift);
        let plain: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let before = dip(&plain).unwrap().dip;
        shuffle(&mut rng(seed, 0), &mut x);
        let moved: Vec<f64> = x.iter().map(value).collect();
        prop_assert!((dip(&moved).unwrap().dip - before).abs() < 1e-12);
        let mirrored: Vec<f64> = moved.iter().map(|v| -v).collect();
        prop_assert!((dip(&mirrored).unwrap().dip - before).abs() < 1e-12);
    }

    #[test]
    fn it_stays_in_its_range(x in prop::collection::vec(-1e9..1e9_f64, 1..200)) {
        let d = dip(&x).unwrap();
        prop_assert!(d.dip >= floor_of(&x) && (d.dip <= 0.25 || x.len() < 3));
        prop_assert!(d.modal_low <= d.modal_high);
    }
}

#[test]
fn the_p_value_does_not_depend_on_threads_and_is_never_zero() {
    let on = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| DipNull::simulate(20, 500, 3).unwrap())
    };
    let (one, three) = (on(1), on(3));
    assert_eq!(one.dips(), three.dips());
    assert_eq!(one.p_value(0.25), 1.0 / 501.0);
    assert_eq!(one.p_value(0.0), 1.0);
}

/// P-values of uniform samples are uniform: the test keeps its level.
#[test]
fn the_level_is_kept() {
    let null = DipNull::simulate(30, 2000, 1).unwrap();
    let fresh = DipNull::simulate(30, 2000, 2).unwrap();
    let rejected = fresh
        .dips()
        .iter()
        .filter(|d| null.p_value(**d) <= 0.05)
        .count();
    // Binomial(2000, 0.05) plus the error of the simulated quantile: mean 100, sd 14.
    assert!(
        (55..=145).contains(&rejected),
        "{rejected} of 2000 rejected at 0.05"
    );
}

#[test]
fn too_few_values_are_refused() {
    assert!(DipNull::simulate(3, 100, 1).is_err());
    assert!(DipNull::simulate(10, 0, 1).is_err());
    assert!(dip(&[]).is_err());
    assert!(dip(&[f64::NAN, 1.0]).is_err());
}
