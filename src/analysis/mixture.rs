//! One Gaussian or two: maximum likelihood by expectation maximisation, and the Bayesian
//! information criterion to choose. The likelihood never falls from one step to the next, the
//! answer moves with the sample under shifts and scalings, starts are deterministic, and a floor
//! under the variances keeps a component from collapsing onto tied values.

use serde::{Deserialize, Serialize};

use crate::analysis::sample::{Accumulator, bad_sample, check, mean, sorted, sum, sum_squares};
use crate::error::Result;

/// Smallest standard deviation of a component, as a share of that of the whole sample.
const SD_FLOOR: f64 = 1e-3;
/// A component with fewer effective values than this is an outlier, not a mode.
const LEAST_MEMBERS: f64 = 2.0;
/// Accelerated steps after which the search gives up and says so.
const MOST_STEPS: usize = 2000;
/// Plain steps that each start gets before the best goes on.
const TRIAL_STEPS: usize = 30;

/// One Gaussian component.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Share of the values, 0..=1.
    pub weight: f64,
    /// Mean, in the unit of the values.
    pub mean: f64,
    /// Standard deviation, in the unit of the values.
    pub sd: f64,
}

/// Whether the two components share their variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variance {
    /// One variance for both (4 parameters; mclust's model "E").
    Equal,
    /// Each its own (5 parameters; mclust's model "V").
    Free,
}

/// A fitted mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The components, by ascending mean.
    pub components: Vec<Component>,
    /// Natural logarithm of the likelihood.
    pub log_likelihood: f64,
    /// Free parameters.
    pub parameters: usize,
    /// -2 ln L + parameters · ln n: lower is better (mclust prints the negative).
    pub bic: f64,
    /// False when the search stopped at its step limit before it stood still.
    pub converged: bool,
}

impl Fit {
    fn new(
        components: Vec<Component>,
        ll: f64,
        parameters: usize,
        n: usize,
        converged: bool,
    ) -> Self {
        Self {
            components,
            log_likelihood: ll,
            parameters,
            bic: -2.0 * ll + parameters as f64 * (n as f64).ln(),
            converged,
        }
    }

    /// Ashman's D = sqrt(2) |m1 - m2| / sqrt(s1² + s2²) of the two components; above 2 they are
    /// cleanly separated (Ashman, Bird and Zepf 1994, Astronomical Journal 108, 2348). `None` for
    /// one component.
    pub fn ashman_d(&self) -> Option<f64> {
        match self.components.as_slice() {
            [a, b] => Some(2.0_f64.sqrt() * (b.mean - a.mean) / a.sd.hypot(b.sd)),
            _ => None,
        }
    }
}

/// The single Gaussian of maximum likelihood (variance with divisor n).
///
/// Errors: empty, non-finite, or all values equal (its likelihood has no bound).
pub fn fit_one(x: &[f64]) -> Result<Fit> {
    let standard = Standard::of(x)?;
    let n = x.len() as f64;
    let ll = -0.5 * n * ((2.0 * std::f64::consts::PI).ln() + 1.0) - n * standard.sd.ln();
    let only = Component {
        weight: 1.0,
        mean: standard.mean,
        sd: standard.sd,
    };
    Ok(Fit::new(vec![only], ll, 2, x.len(), true))
}

/// The two-component mixture of maximum likelihood. `None` when no start leads to two components
/// of at least two effective values each.
///
/// Starts: splits of the sorted sample at the 10, 25, 50, 75 and 90 % points, at its widest gap,
/// and at the best two-means cut. Each takes some plain steps, the best goes on with the squared
/// extrapolation of Varadhan and Roland (2008), Scand. J. Statist. 35, 335-353, which falls back
/// to the plain step wherever it would lose likelihood.
///
/// Errors: empty, non-finite, or all values equal.
pub fn fit_two(x: &[f64], variance: Variance) -> Result<Option<Fit>> {
    let standard = Standard::of(x)?;
    let z = standard.values;
    let em = Em { z: &z, variance };
    let mut best: Option<(f64, State)> = None;
    for cut in cuts(&z) {
        let mut state = em.split(cut);
        for _ in 0..TRIAL_STEPS {
            state = em.step(&state).1;
        }
        let ll = em.step(&state).0;
        if state.members(z.len()) >= LEAST_MEMBERS && best.as_ref().is_none_or(|(b, _)| ll > *b) {
            best = Some((ll, state));
        }
    }
    let Some((_, start)) = best else {
        return Ok(None);
    };
    let (state, ll, converged) = em.climb(start);
    if state.members(z.len()) < LEAST_MEMBERS {
        return Ok(None);
    }
    let component = |weight: f64, at: usize| Component {
        weight,
        mean: standard.mean + standard.sd * state.mean[at],
        sd: standard.sd * state.var[at].sqrt(),
    };
    let mut components = vec![component(state.weight, 0), component(1.0 - state.weight, 1)];
    components.sort_by(|a, b| a.mean.total_cmp(&b.mean));
    let parameters = match variance {
        Variance::Equal => 4,
        Variance::Free => 5,
    };
    let ll = ll - z.len() as f64 * standard.sd.ln();
    Ok(Some(Fit::new(
        components,
        ll,
        parameters,
        z.len(),
        converged,
    )))
}

/// The comparison of one component with two.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The single Gaussian; `None` when all values are equal, which needs no Gaussian.
    pub one: Option<Fit>,
    /// The better of the two-component fits, by the criterion; `None` when there is none.
    pub two: Option<(Variance, Fit)>,
    /// BIC of one component less that of two: positive favours two. Zero when there is no
    /// two-component fit to compare.
    pub bic_gain: f64,
}

impl Choice {
    /// Whether the criterion prefers two components.
    pub fn prefers_two(&self) -> bool {
        self.bic_gain > 0.0
    }
}

/// Fits one component and two (equal and free variances) and compares them by BIC.
///
/// Errors: empty or non-finite. All values equal is one component without doubt.
pub fn choose(x: &[f64]) -> Result<Choice> {
    check("mixture", x)?;
    if x.iter().all(|v| *v == x[0]) {
        return Ok(Choice {
            one: None,
            two: None,
            bic_gain: 0.0,
        });
    }
    let one = fit_one(x)?;
    let mut two: Option<(Variance, Fit)> = None;
    for variance in [Variance::Equal, Variance::Free] {
        if let Some(fit) = fit_two(x, variance)?
            && two.as_ref().is_none_or(|(_, best)| fit.bic < best.bic)
        {
            two = Some((variance, fit));
        }
    }
    let bic_gain = two.as_ref().map_or(0.0, |(_, fit)| one.bic - fit.bic);
    Ok(Choice {
        one: Some(one),
        two,
        bic_gain,
    })
}

/// The sample sorted, moved to mean 0 and scaled to standard deviation 1 (divisor n), so that
/// floors and tolerances mean the same in every unit.
struct Standard {
    values: Vec<f64>,
    mean: f64,
    sd: f64,
}

impl Standard {
    fn of(x: &[f64]) -> Result<Self> {
        check("mixture", x)?;
        let y = sorted(x);
        let mean = mean(&y);
        let sd = (sum_squares(&y, mean) / y.len() as f64).sqrt();
        if y[0] == y[y.len() - 1] || sd <= 0.0 {
            return Err(bad_sample(format!(
                "mixture: all {} values are {}, a Gaussian needs spread",
                y.len(),
                y[0]
            )));
        }
        Ok(Self {
            values: y.iter().map(|v| (v - mean) / sd).collect(),
            mean,
            sd,
        })
    }
}

/// Sizes of the lower part for each start, without repeats.
fn cuts(z: &[f64]) -> Vec<usize> {
    let n = z.len();
    let mut cuts: Vec<usize> = [0.1, 0.25, 0.5, 0.75, 0.9]
        .iter()
        .map(|share| (share * n as f64).round() as usize)
        .collect();
    let widest = (1..n).max_by(|&a, &b| (z[a] - z[a - 1]).total_cmp(&(z[b] - z[b - 1])));
    cuts.extend(widest);
    // Two-means in one dimension is a cut of the sorted sample: the mean is 0, so the between
    // sum of squares of a cut is S²/k + S²/(n-k) with S the sum of the lower part.
    let mut lower = 0.0;
    let mut best = (f64::NEG_INFINITY, 1);
    for k in 1..n {
        lower += z[k - 1];
        let between = lower * lower * (1.0 / k as f64 + 1.0 / (n - k) as f64);
        if between > best.0 {
            best = (between, k);
        }
    }
    cuts.push(best.1);
    cuts.retain(|k| (1..n).contains(k));
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Parameters in standard units; `weight` is that of component 0.
#[derive(Debug, Clone, Copy)]
struct State {
    weight: f64,
    mean: [f64; 2],
    var: [f64; 2],
}

impl State {
    /// Effective number of values of the smaller component.
    fn members(&self, n: usize) -> f64 {
        self.weight.min(1.0 - self.weight) * n as f64
    }

    /// Coordinates without bounds: logit of the weight, means, logarithms of the variances.
    fn free(&self) -> [f64; 5] {
        [
            (self.weight / (1.0 - self.weight)).ln(),
            self.mean[0],
            self.mean[1],
            self.var[0].ln(),
            self.var[1].ln(),
        ]
    }

    fn from_free(theta: [f64; 5]) -> Self {
        let floor = SD_FLOOR * SD_FLOOR;
        Self {
            weight: 1.0 / (1.0 + (-theta[0]).exp()),
            mean: [theta[1], theta[2]],
            var: [theta[3].exp().max(floor), theta[4].exp().max(floor)],
        }
    }

    fn usable(&self) -> bool {
        self.weight > 0.0
            && self.weight < 1.0
            && self.mean.iter().chain(&self.var).all(|v| v.is_finite())
    }
}

struct Em<'a> {
    z: &'a [f64],
    variance: Variance,
}

impl Em<'_> {
    /// The state in which the lowest `cut` values are one component and the rest the other.
    fn split(&self, cut: usize) -> State {
        let (low, high) = self.z.split_at(cut);
        let (a, b) = (mean(low), mean(high));
        let floor = SD_FLOOR * SD_FLOOR;
        let (sa, sb) = (sum_squares(low, a), sum_squares(high, b));
        let pooled = ((sa + sb) / self.z.len() as f64).max(floor);
        // A part without spread of its own starts from the pooled one, not from the floor, where
        // it could not move.
        let own = |squares: f64, n: usize| match self.variance {
            Variance::Free if squares > 0.0 => (squares / n as f64).max(floor),
            _ => pooled,
        };
        State {
            weight: cut as f64 / self.z.len() as f64,
            mean: [a, b],
            var: [own(sa, low.len()), own(sb, high.len())],
        }
    }

    /// One step of expectation maximisation: the log-likelihood of the state given and the next
    /// state. The densities meet as exp(-|difference|), which neither over- nor underflows.
    fn step(&self, state: &State) -> (f64, State) {
        let constant =
            |weight: f64, var: f64| weight.ln() - 0.5 * (2.0 * std::f64::consts::PI * var).ln();
        let c = [
            constant(state.weight, state.var[0]),
            constant(1.0 - state.weight, state.var[1]),
        ];
        let half = [0.5 / state.var[0], 0.5 / state.var[1]];
        let mut ll = Accumulator::default();
        // Moments of component 0 about its own mean and of all values about component 1's, so
        // that neither suffers cancellation.
        let mut count = [Accumulator::default(), Accumulator::default()];
        let mut first = [Accumulator::default(), Accumulator::default()];
        let mut second = [Accumulator::default(), Accumulator::default()];
        for &z in self.z {
            let d = [z - state.mean[0], z - state.mean[1]];
            let log = [c[0] - half[0] * d[0] * d[0], c[1] - half[1] * d[1] * d[1]];
            let gap = log[1] - log[0];
            let small = (-gap.abs()).exp();
            ll.add(log[0].max(log[1]) + small.ln_1p());
            let (minor, major) = (small / (1.0 + small), 1.0 / (1.0 + small));
            let share = if gap > 0.0 {
                [minor, major]
            } else {
                [major, minor]
            };
            for k in 0..2 {
                count[k].add(share[k]);
                first[k].add(share[k] * d[k]);
                second[k].add(share[k] * d[k] * d[k]);
            }
        }
        let n = self.z.len() as f64;
        let floor = SD_FLOOR * SD_FLOOR;
        let mut next = *state;
        let mut spread = [0.0; 2];
        for k in 0..2 {
            let members = count[k].total().max(f64::MIN_POSITIVE);
            let shift = first[k].total() / members;
            next.mean[k] = state.mean[k] + shift;
            spread[k] = (second[k].total() - members * shift * shift).max(0.0);
            next.var[k] = (spread[k] / members).max(floor);
        }
        if self.variance == Variance::Equal {
            next.var = [((spread[0] + spread[1]) / n).max(floor); 2];
        }
        // Kept off 0 and 1 by far less than one value, so that the logit stays finite.
        next.weight = (count[0].total() / n).clamp(1e-12, 1.0 - 1e-12);
        (ll.total(), next)
    }

    /// Climbs to where a step no longer moves anything: state, its log-likelihood, and whether it
    /// came to rest.
    fn climb(&self, mut state: State) -> (State, f64, bool) {
        let (mut ll, mut one) = self.step(&state);
        for _ in 0..MOST_STEPS {
            let (ll_one, two) = self.step(&one);
            let (a, b, c) = (state.free(), one.free(), two.free());
            let r: [f64; 5] = std::array::from_fn(|i| b[i] - a[i]);
            let v: [f64; 5] = std::array::from_fn(|i| c[i] - 2.0 * b[i] + a[i]);
            if norm(&r) < 1e-11 {
                return (one, ll_one, true);
            }
            // The steepest of Varadhan and Roland's step lengths; -1 is two plain steps.
            let alpha = (-norm(&r) / norm(&v).max(f64::MIN_POSITIVE)).min(-1.0);
            let leap = State::from_free(std::array::from_fn(|i| {
                a[i] - 2.0 * alpha * r[i] + alpha * alpha * v[i]
            }));
            let (ll_two, three) = self.step(&two);
            let landed = leap.usable().then(|| self.step(&leap));
            (state, ll, one) = match landed {
                Some((ll_leap, next)) if ll_leap > ll_two && next.usable() => (leap, ll_leap, next),
                _ => (two, ll_two, three),
            };
        }
        (state, ll, false)
    }
}

fn norm(x: &[f64; 5]) -> f64 {
    sum(x.iter().map(|v| v * v)).sqrt()
}

#[cfg(test)]
mod tests;
