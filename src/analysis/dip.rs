//! Hartigan's dip test of unimodality. The dip is half the smallest possible largest distance
//! between the empirical distribution function and any unimodal one, so it does not move under
//! shifts, scalings or reorderings of the sample and is never below 1/(2n); its p-value is a count
//! of seeded uniform samples, so it is never zero and never depends on a table.
//!
//! The algorithm is the one published as J. A. Hartigan and P. M. Hartigan (1985), "The Dip Test of
//! Unimodality", Annals of Statistics 13, 70-84, and P. M. Hartigan (1985), Applied Statistics 34,
//! AS 217, with the start value 1/n that Maechler's corrections brought. Equal values are merged
//! into one jump first, which makes every slope finite.

use rayon::prelude::*;

use crate::analysis::sample::{bad_argument, check, rng, sorted, uniform};
use crate::error::Result;

/// Beyond this size the null law of sqrt(n)·dip is taken as that of this size: it still grows, by
/// less than one percent.
const LARGEST_SIMULATED: usize = 5000;

/// The dip of a sample and where its mode lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dip {
    /// The dip, in [1/(2n), 1/4].
    pub dip: f64,
    /// Left end of the modal interval of the best unimodal fit, in the unit of the values.
    pub modal_low: f64,
    /// Right end of the modal interval.
    pub modal_high: f64,
}

/// The dip of a sample. O(n log n) for the sort, about O(n) after it.
///
/// Errors: an empty or non-finite sample.
pub fn dip(x: &[f64]) -> Result<Dip> {
    check("dip", x)?;
    Ok(dip_sorted(&sorted(x)))
}

/// The dip of a sorted, checked, non-empty sample.
pub fn dip_sorted(x: &[f64]) -> Dip {
    Steps::new(x).dip()
}

/// The empirical distribution function: value `v[k]`, with `under[k]` samples below it and
/// `upto[k]` samples at or below it. All in counts, so n times the probabilities.
struct Steps {
    v: Vec<f64>,
    under: Vec<f64>,
    upto: Vec<f64>,
}

impl Steps {
    fn new(x: &[f64]) -> Self {
        let mut steps = Steps {
            v: Vec::with_capacity(x.len()),
            under: Vec::with_capacity(x.len()),
            upto: Vec::with_capacity(x.len()),
        };
        for (i, &value) in x.iter().enumerate() {
            if steps.v.last() == Some(&value) {
                let last = steps.v.len() - 1;
                steps.upto[last] = (i + 1) as f64;
            } else {
                steps.v.push(value);
                steps.under.push(i as f64);
                steps.upto.push((i + 1) as f64);
            }
        }
        steps
    }

    fn dip(&self) -> Dip {
        let minorant = Chains::toward_left(&self.v, &self.under);
        let majorant = Chains::toward_right(&self.v, &self.upto);
        let (mut low, mut high) = (0, self.v.len() - 1);
        // In counts and for the whole distance: the dip is `widest / (2n)`.
        let mut widest = 1.0_f64;
        let (mut gcm, mut lcm) = (Vec::new(), Vec::new());
        while low < high {
            minorant.minorant_over(low, high, &mut gcm);
            majorant.majorant_over(low, high, &mut lcm);
            let (gap, new_low, new_high) = self.widest_gap(&gcm, &lcm);
            if gap <= widest {
                break;
            }
            // The best fit follows the minorant up to the new interval and the majorant after it:
            // what it must miss there is a lower bound of the dip.
            widest = widest
                .max(self.miss_below(&gcm, new_low))
                .max(self.miss_above(&lcm, new_high));
            if (new_low, new_high) == (low, high) {
                break;
            }
            (low, high) = (new_low, new_high);
        }
        let n = self.upto[self.v.len() - 1];
        Dip {
            dip: widest / (2.0 * n),
            modal_low: self.v[low],
            modal_high: self.v[high],
        }
    }

    /// The largest distance between majorant and minorant over the vertices of both, and the
    /// vertices of minorant and majorant that enclose the place: the next candidate interval.
    fn widest_gap(&self, gcm: &[usize], lcm: &[usize]) -> (f64, usize, usize) {
        let mut best = (f64::NEG_INFINITY, 0, 0);
        let mut l = 0;
        for &g in gcm {
            while lcm[l] < g {
                l += 1;
            }
            // The majorant vertex at or after g closes the interval.
            let above = self.on_chain(&self.upto, lcm, l, g);
            let gap = above - self.under[g];
            if gap > best.0 {
                best = (gap, g, lcm[l]);
            }
        }
        let mut g = 0;
        for &l in lcm {
            while g + 1 < gcm.len() && gcm[g + 1] <= l {
                g += 1;
            }
            let below = self.on_chain(&self.under, gcm, (g + 1).min(gcm.len() - 1), l);
            let gap = self.upto[l] - below;
            if gap > best.0 {
                best = (gap, gcm[g], l);
            }
        }
        best
    }

    /// Height at `v[k]` of the chain's segment that ends at vertex number `end`.
    fn on_chain(&self, heights: &[f64], chain: &[usize], end: usize, k: usize) -> f64 {
        let right = chain[end];
        if end == 0 || right == k {
            return heights[right];
        }
        self.on_line(heights, chain[end - 1], right, k)
    }

    fn on_line(&self, heights: &[f64], a: usize, b: usize, k: usize) -> f64 {
        if k == a {
            return heights[a];
        }
        let share = (self.v[k] - self.v[a]) / (self.v[b] - self.v[a]);
        heights[a] + share * (heights[b] - heights[a])
    }

    /// Largest distance between the steps and the minorant strictly left of vertex `until`.
    fn miss_below(&self, gcm: &[usize], until: usize) -> f64 {
        let mut worst = 0.0_f64;
        for pair in gcm.windows(2).take_while(|pair| pair[1] <= until) {
            for k in pair[0]..pair[1] {
                worst = worst.max(self.upto[k] - self.on_line(&self.under, pair[0], pair[1], k));
            }
        }
        worst
    }

    /// Largest distance between the majorant and the steps strictly right of vertex `from`.
    fn miss_above(&self, lcm: &[usize], from: usize) -> f64 {
        let mut worst = 0.0_f64;
        for pair in lcm.windows(2).filter(|pair| pair[0] >= from) {
            for k in pair[0] + 1..=pair[1] {
                worst = worst.max(self.on_line(&self.upto, pair[0], pair[1], k) - self.under[k]);
            }
        }
        worst
    }
}

/// For every point, the next vertex of the hull of the points up to it (or from it on). Computed
/// once, they give the hull of any candidate interval by walking.
struct Chains {
    next: Vec<usize>,
}

impl Chains {
    /// `next[j]` is the vertex before j on the greatest convex minorant of points 0..=j.
    fn toward_left(v: &[f64], height: &[f64]) -> Self {
        let mut next = vec![0; v.len()];
        for j in 1..v.len() {
            let mut a = j - 1;
            while a > 0 {
                let b = next[a];
                // Keep a when the slope into it is below the slope out of it.
                if (height[a] - height[b]) * (v[j] - v[a]) < (height[j] - height[a]) * (v[a] - v[b])
                {
                    break;
                }
                a = b;
            }
            next[j] = a;
        }
        Chains { next }
    }

    /// `next[j]` is the vertex after j on the least concave majorant of points j... .
    fn toward_right(v: &[f64], height: &[f64]) -> Self {
        let last = v.len() - 1;
        let mut next = vec![last; v.len()];
        for j in (0..last).rev() {
            let mut a = j + 1;
            while a < last {
                let b = next[a];
                if (height[b] - height[a]) * (v[a] - v[j]) < (height[a] - height[j]) * (v[b] - v[a])
                {
                    break;
                }
                a = b;
            }
            next[j] = a;
        }
        Chains { next }
    }

    /// Vertices of the minorant over `low..=high`, ascending.
    fn minorant_over(&self, low: usize, high: usize, out: &mut Vec<usize>) {
        out.clear();
        let mut at = high;
        while at > low {
            out.push(at);
            at = self.next[at];
        }
        out.push(low);
        out.reverse();
    }

    /// Vertices of the majorant over `low..=high`, ascending.
    fn majorant_over(&self, low: usize, high: usize, out: &mut Vec<usize>) {
        out.clear();
        let mut at = low;
        while at < high {
            out.push(at);
            at = self.next[at];
        }
        out.push(high);
    }
}

/// The law of the dip for samples of one size from a uniform, the least favourable unimodal law.
#[derive(Debug, Clone)]
pub struct DipNull {
    n: usize,
    simulated_n: usize,
    dips: Vec<f64>,
}

impl DipNull {
    /// Simulates `replicates` samples of size `n`. Replicate i uses stream i of the seed, so the
    /// answer does not depend on the number of threads.
    ///
    /// Errors: `n` below 4, where the dip says nothing, or no replicates.
    pub fn simulate(n: usize, replicates: usize, seed: u64) -> Result<Self> {
        if n < 4 {
            return Err(bad_argument(format!(
                "the dip test needs at least 4 values, got {n}"
            )));
        }
        if replicates == 0 {
            return Err(bad_argument(
                "the dip test needs at least one simulated sample",
            ));
        }
        let size = n.min(LARGEST_SIMULATED);
        let mut dips: Vec<f64> = (0..replicates as u64)
            .into_par_iter()
            .map_init(
                || vec![0.0; size],
                |x, replicate| {
                    let mut rng = rng(seed, replicate);
                    x.fill_with(|| uniform(&mut rng));
                    x.sort_unstable_by(f64::total_cmp);
                    dip_sorted(x).dip
                },
            )
            .collect();
        dips.sort_unstable_by(f64::total_cmp);
        Ok(Self {
            n,
            simulated_n: size,
            dips,
        })
    }

    /// Sample size that the law is for.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Simulated dips, ascending, for the size that was simulated (the size asked for up to 5000).
    pub fn dips(&self) -> &[f64] {
        &self.dips
    }

    /// Probability of a dip at least this large under unimodality, counted as
    /// (1 + #{simulated >= dip}) / (1 + replicates) so that it is a valid p-value at any number of
    /// replicates (Davison and Hinkley 1997, 4.2.1).
    pub fn p_value(&self, dip: f64) -> f64 {
        let scale = (self.n as f64 / self.simulated_n as f64).sqrt();
        // Equal up to rounding counts as reached: dips of small samples lie on a lattice.
        let reached = dip * scale * (1.0 - 1e-12);
        let below = self.dips.partition_point(|&d| d < reached);
        (1 + self.dips.len() - below) as f64 / (1 + self.dips.len()) as f64
    }
}

#[cfg(test)]
mod tests;
