//! Where the level of a series changes: the segmentation with the smallest sum of squared
//! deviations plus a penalty per change. The answer is the exact optimum, the same as that of the
//! quadratic dynamic programme; pruning only saves time.

use crate::analysis::sample::{bad_argument, check, median, sum};
use crate::error::Result;

/// 1 / Φ⁻¹(3/4): turns a median absolute deviation into a standard deviation of a normal law.
const MAD_TO_SD: f64 = 1.482_602_218_505_602;
/// sqrt(π/2): turns a mean absolute deviation into a standard deviation of a normal law.
const MEAN_AD_TO_SD: f64 = 1.253_314_137_315_500_1;

/// An optimal segmentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Segmentation {
    /// Indices b such that a new segment starts at `x[b]`, ascending; empty for one level.
    pub breaks: Vec<usize>,
    /// Sum of squared deviations from the segment means plus the penalty times the breaks.
    pub cost: f64,
    /// The penalty per break, in squared units of the values.
    pub penalty: f64,
}

/// Standard deviation of the noise around a level that may change: 1.4826 times the median absolute
/// difference of successive values, divided by sqrt(2). A change of level moves one difference
/// only, so it does not inflate the noise as it does an overall standard deviation.
///
/// When at least half of the differences are zero (a coarse clock) the mean absolute difference
/// stands in; zero means that all values are equal.
///
/// Errors: fewer than two values, or a non-finite one.
pub fn noise_sd(x: &[f64]) -> Result<f64> {
    check("noise of a series", x)?;
    if x.len() < 2 {
        return Err(bad_argument(
            "the noise of a series needs at least two values, got one",
        ));
    }
    let moves: Vec<f64> = x.windows(2).map(|w| (w[1] - w[0]).abs()).collect();
    let typical = median(&moves);
    let sd = if typical > 0.0 {
        MAD_TO_SD * typical
    } else {
        MEAN_AD_TO_SD * sum(moves.iter().copied()) / moves.len() as f64
    };
    Ok(sd / 2.0_f64.sqrt())
}

/// The penalty 2 σ² ln n with σ from [`noise_sd`] (the criterion of Yao 1988 for a change in mean).
pub fn penalty(x: &[f64]) -> Result<f64> {
    let sd = noise_sd(x)?;
    Ok(2.0 * sd * sd * (x.len() as f64).ln())
}

/// The optimal segmentation at the default penalty. A series too short for two segments, or of
/// equal values, has one level.
pub fn changepoints(x: &[f64], least_segment: usize) -> Result<Segmentation> {
    check("change points", x)?;
    if x.len() < 2 {
        return pelt(x, f64::INFINITY, least_segment);
    }
    let penalty = penalty(x)?;
    // No noise is a flat series: any number of cuts would be as good, so none is made.
    pelt(
        x,
        if penalty > 0.0 {
            penalty
        } else {
            f64::INFINITY
        },
        least_segment,
    )
}

/// PELT of Killick, Fearnhead and Eckley (2012), J. Am. Stat. Assoc. 107, 1590-1598, with the L2
/// cost, segments of at least `least_segment` values and a positive `penalty` per break (infinity
/// for none at all).
///
/// Errors: empty or non-finite series, a penalty not above zero, a segment length of zero.
pub fn pelt(x: &[f64], penalty: f64, least_segment: usize) -> Result<Segmentation> {
    check("change points", x)?;
    if penalty.is_nan() || penalty <= 0.0 {
        return Err(bad_argument(format!(
            "the penalty per change point is {penalty}, expected a positive number"
        )));
    }
    if least_segment == 0 {
        return Err(bad_argument("a segment needs at least one value, got 0"));
    }
    let n = x.len();
    let costs = Costs::new(x);
    if penalty.is_infinite() || n < 2 * least_segment {
        return Ok(Segmentation {
            breaks: Vec::new(),
            cost: costs.between(0, n),
            penalty,
        });
    }
    // best[t]: least cost of x[..t], each segment charged one penalty; the first is given back at
    // the start. last[t]: where its last segment begins.
    let mut best = vec![f64::INFINITY; n + 1];
    best[0] = -penalty;
    let mut last = vec![0; n + 1];
    let mut starts: Vec<Start> = Vec::new();
    for t in least_segment..=n {
        let newest = t - least_segment;
        if best[newest].is_finite() {
            starts.push(Start {
                at: newest,
                until: usize::MAX,
            });
        }
        for start in &starts {
            let total = best[start.at] + costs.between(start.at, t) + penalty;
            if total < best[t] {
                best[t] = total;
                last[t] = start.at;
            }
        }
        // A start that is already beaten at t stays beaten by a segment that begins at t, but such
        // a segment can end only at t + least_segment: until then the start must be kept.
        for start in &mut starts {
            if best[start.at] + costs.between(start.at, t) > best[t] {
                start.until = start.until.min(t + least_segment);
            }
        }
        starts.retain(|start| start.until > t + 1);
    }
    let mut breaks = Vec::new();
    let mut at = last[n];
    while at > 0 {
        breaks.push(at);
        at = last[at];
    }
    breaks.reverse();
    Ok(Segmentation {
        cost: best[n],
        breaks,
        penalty,
    })
}

/// A candidate for the beginning of the last segment, of use for ends below `until`.
struct Start {
    at: usize,
    until: usize,
}

/// Sums of squared deviations of any stretch in constant time. The series is centred first, so
/// that the difference of the prefix sums keeps its digits.
struct Costs {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Costs {
    fn new(x: &[f64]) -> Self {
        let centre = median(x);
        let (mut first, mut second) = (vec![0.0; x.len() + 1], vec![0.0; x.len() + 1]);
        for (i, v) in x.iter().enumerate() {
            let v = v - centre;
            first[i + 1] = first[i] + v;
            second[i + 1] = second[i] + v * v;
        }
        Self { first, second }
    }

    fn between(&self, from: usize, to: usize) -> f64 {
        let s = self.first[to] - self.first[from];
        (self.second[to] - self.second[from] - s * s / (to - from) as f64).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Optimal partitioning by the plain quadratic programme, costs from the definition.
    fn by_dynamic_programming(x: &[f64], penalty: f64, least: usize) -> (f64, Vec<usize>) {
        let n = x.len();
        let cost = |a: usize, b: usize| {
            let m = x[a..b].iter().sum::<f64>() / (b - a) as f64;
            x[a..b].iter().map(|v| (v - m) * (v - m)).sum::<f64>()
        };
        let mut best: Vec<Option<(f64, Vec<usize>)>> = vec![None; n + 1];
        for t in least..=n {
            let mut choice = (cost(0, t), Vec::new());
            for (s, before) in best.iter().enumerate().take(t + 1 - least) {
                if let Some((before, breaks)) = before {
                    let total = before + cost(s, t) + penalty;
                    if total < choice.0 {
                        let mut breaks = breaks.clone();
                        breaks.push(s);
                        choice = (total, breaks);
                    }
                }
            }
            best[t] = Some(choice);
        }
        best[n].clone().unwrap()
    }

    /// Annual flow of the Nile at Aswan 1871-1970 (Cobb 1978, Biometrika 65, 243-251): the level
    /// drops after 1898.
    #[test]
    fn the_nile_drops_after_1898() {
        let nile = [
            1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020,
            960, 1180, 799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840,
            874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120,
            1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759, 781, 865, 845,
            944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890,
            744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919,
            718, 714, 740,
        ]
        .map(f64::from);
        assert_eq!(nile.len(), 100);
        assert_eq!(changepoints(&nile, 2).unwrap().breaks, [28]);
    }

    #[test]
    fn flat_and_short_series_have_one_level() {
        assert!(changepoints(&[5.0; 40], 2).unwrap().breaks.is_empty());
        assert!(changepoints(&[1.0], 2).unwrap().breaks.is_empty());
        assert!(changepoints(&[1.0, 9.0, 1.0], 2).unwrap().breaks.is_empty());
    }

    #[test]
    fn a_step_without_noise_is_found() {
        let x = [[10.0; 17].as_slice(), &[7.0; 13]].concat();
        assert_eq!(changepoints(&x, 2).unwrap().breaks, [17]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(changepoints(&[], 2).is_err());
        assert!(changepoints(&[f64::INFINITY], 2).is_err());
        assert!(pelt(&[1.0, 2.0], 0.0, 1).is_err());
        assert!(pelt(&[1.0, 2.0], f64::NAN, 1).is_err());
        assert!(pelt(&[1.0, 2.0], 1.0, 0).is_err());
    }

    proptest! {
        #[test]
        fn pruning_changes_nothing(
            levels in prop::collection::vec((0.0..20.0_f64, 1..12_usize), 1..6),
            noise in prop::collection::vec(-1.0..1.0_f64, 72),
            penalty in 0.05..20.0_f64, least in 1..6_usize,
        ) {
            let mut x: Vec<f64> = levels.iter().flat_map(|(v, n)| vec![*v; *n]).collect();
            x.iter_mut().zip(&noise).for_each(|(v, e)| *v += e);
            prop_assume!(x.len() >= least);
            let fast = pelt(&x, penalty, least).unwrap();
            let (cost, breaks) = by_dynamic_programming(&x, penalty, least);
            prop_assert!((fast.cost - cost).abs() < 1e-8, "{} {cost}", fast.cost);
            prop_assert_eq!(fast.breaks, breaks);
        }

        #[test]
        fn shift_and_scale_leave_the_breaks(
            x in prop::collection::vec(0.0..20.0_f64, 8..40), shift in -1e3..1e3_f64, scale in 0.5..20.0_f64,
        ) {
            let y: Vec<f64> = x.iter().map(|v| v * scale + shift).collect();
            prop_assert_eq!(changepoints(&x, 2).unwrap().breaks, changepoints(&y, 2).unwrap().breaks);
        }
    }
}
