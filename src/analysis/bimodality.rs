//! Does the time to first token have one mode or two? A pattern is called bimodal only when the
//! dip test, corrected for the number of patterns, rejects one mode and the information criterion
//! prefers two Gaussians. Too few values are "insufficient", never "unimodal", and nothing but
//! insufficient patterns is an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::analysis::changepoint::changepoints;
use crate::analysis::dip::{DipNull, dip};
use crate::analysis::input::{Input, bad_input, check_times};
use crate::analysis::mixture::{Variance, choose};
use crate::analysis::padjust::benjamini_hochberg;
use crate::analysis::sample::mean;
use crate::analysis::ties::{count_ties, decimal_tick, jitter};
use crate::analysis::warmup::mser5;
use crate::error::Result;

/// Schema of the answer.
pub const SCHEMA: &str = "bimodality-v1";
/// Below this many values there is no verdict.
pub const LEAST_VALUES: usize = 4;
/// Below this many values a verdict is flagged as resting on a small sample.
pub const FEW_VALUES: usize = 10;
/// Shortest stretch of rounds that counts as a level of its own.
const LEAST_SEGMENT: usize = 2;

/// How the analysis decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// False discovery rate of the dip test over all patterns.
    pub alpha: f64,
    /// Simulated samples behind each p-value; the smallest possible one is 1/(replicates+1).
    pub replicates: usize,
    /// Seed of the simulation and of the jitter.
    pub seed: u64,
    /// Tick of the clock in ms when it is known. Otherwise samples with ties are looked at for a
    /// decimal grid of at most 1 ms.
    pub tick_ms: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            // 1/10000 times 128 patterns still is below 0.05: a lone case can be found.
            replicates: 9999,
            seed: 0xD1_9DE5,
            tick_ms: None,
        }
    }
}

/// The time to first token of one request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Round of simultaneous requests it belongs to; absent when each request stands alone.
    pub round: Option<u64>,
    /// Time to first token in ms.
    pub ttft_ms: f64,
}

/// The samples of one pattern, in iteration order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Label of the pattern.
    pub label: String,
    /// Its samples in the order they were measured.
    pub samples: Vec<Sample>,
    /// Requests that failed and have no sample.
    pub failed: usize,
}

/// The verdict on one pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// One mode explains the sample.
    Unimodal,
    /// Two modes, by both tests.
    Bimodal,
    /// Fewer than four values.
    Insufficient,
}

/// One component of the two-component mixture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Share of the samples, 0..=1.
    pub weight: f64,
    /// Mean in ms.
    pub mean_ms: f64,
    /// Standard deviation in ms.
    pub sd_ms: f64,
}

/// A change of level along the iterations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Number of rounds (of requests, where each stands alone) before the change.
    pub at: usize,
    /// Mean of the level that ends, ms.
    pub before_ms: f64,
    /// Mean of the level that begins, ms.
    pub after_ms: f64,
}

/// What was found in one pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    /// Label of the pattern.
    pub label: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Samples used.
    pub n: usize,
    /// Requests that failed and have no sample.
    pub failed: usize,
    /// Fewer than ten samples: believe the verdict accordingly.
    pub small_sample: bool,
    /// Samples equal to another one.
    pub ties: usize,
    /// Clock tick that was undone by jitter before the tests, ms; absent when there was none.
    pub tick_ms: Option<f64>,
    /// Hartigan's dip.
    pub dip: Option<f64>,
    /// Its Monte Carlo p-value.
    pub dip_p: Option<f64>,
    /// The p-value after Benjamini and Hochberg over all judged patterns: the one that decides.
    pub dip_p_adjusted: Option<f64>,
    /// BIC of one Gaussian less BIC of two: positive favours two.
    pub bic_gain: Option<f64>,
    /// Whether the two components share a variance.
    pub variance: Option<Variance>,
    /// The two components by ascending mean; empty when no two-component fit exists.
    pub components: Vec<Phase>,
    /// Ashman's D of the two components; above 2 they are cleanly separated.
    pub ashman_d: Option<f64>,
    /// Rounds behind the series of round means on which changes and warm-up are sought.
    pub rounds: usize,
    /// Changes of level along the rounds: phases in time.
    pub changepoints: Vec<Change>,
    /// Rounds that MSER-5 would drop as warm-up; absent below ten rounds.
    pub warmup_rounds: Option<usize>,
    /// Whether a steady state was reached after them.
    pub steady: Option<bool>,
}

/// The answer of the analysis, schema `bimodality-v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bimodality {
    /// `bimodality-v1`.
    pub schema: String,
    /// Whether any input was simulated.
    pub simulated: bool,
    /// How it was decided.
    pub options: Options,
    /// Whether any pattern is bimodal.
    pub ttft_bimodal: bool,
    /// Number of bimodal patterns.
    pub ttft_bimodal_count: usize,
    /// Number of patterns with a verdict other than insufficient.
    pub judged: usize,
    /// Number of patterns with too few samples.
    pub insufficient: usize,
    /// The bimodal pattern with the smallest adjusted p-value (then the largest Ashman's D).
    pub strongest: Option<String>,
    /// Mean of its slow phase in ms; absent when no pattern is bimodal.
    pub ttft_phase_a_mean_ms: Option<f64>,
    /// Mean of its fast phase in ms; absent when no pattern is bimodal.
    pub ttft_phase_b_mean_ms: Option<f64>,
    /// Every pattern, in the order given.
    pub patterns: Vec<Pattern>,
}

/// Reads the samples out of the inputs. Errors: see [`Input::load`]; a request without a TTFT.
pub fn series(inputs: &[Input]) -> Result<Vec<Series>> {
    inputs
        .iter()
        .map(|input| {
            let load = input.load()?;
            let samples = load.requests.iter().map(|request| {
                let ttft_ms = request.ttft_ms.ok_or_else(|| {
                    bad_input(format!(
                        "{}: a successful request has no `ttft_ms`",
                        input.label
                    ))
                })?;
                Ok(Sample {
                    round: request.round,
                    ttft_ms,
                })
            });
            Ok(Series {
                label: input.label.clone(),
                samples: samples.collect::<Result<_>>()?,
                failed: load.failed,
            })
        })
        .collect()
}

/// Judges every series.
///
/// Errors: no series, an empty, non-finite or negative one, options out of range, or no series
/// with enough values for a verdict.
pub fn analyse(series: &[Series], simulated: bool, options: &Options) -> Result<Bimodality> {
    if series.is_empty() {
        return Err(bad_input("bimodality: no patterns were given"));
    }
    if !(options.alpha > 0.0 && options.alpha < 1.0) {
        return Err(bad_input(format!(
            "bimodality: alpha is {}, expected a number between 0 and 1",
            options.alpha
        )));
    }
    let mut laws = BTreeMap::new();
    let mut patterns = Vec::with_capacity(series.len());
    for one in series {
        patterns.push(measure(one, options, &mut laws)?);
    }
    let raw: Vec<f64> = patterns.iter().filter_map(|p| p.dip_p).collect();
    if raw.is_empty() {
        return Err(bad_input(format!(
            "bimodality: none of the {} patterns has the {LEAST_VALUES} samples a verdict needs",
            series.len()
        )));
    }
    let mut adjusted = benjamini_hochberg(&raw)?.into_iter();
    for pattern in patterns.iter_mut().filter(|p| p.dip_p.is_some()) {
        pattern.dip_p_adjusted = adjusted.next();
        let rejected = pattern.dip_p_adjusted.is_some_and(|p| p < options.alpha);
        pattern.verdict = if rejected && pattern.bic_gain.is_some_and(|gain| gain > 0.0) {
            Verdict::Bimodal
        } else {
            Verdict::Unimodal
        };
    }
    let bimodal = || patterns.iter().filter(|p| p.verdict == Verdict::Bimodal);
    let strongest = bimodal().min_by(|a, b| {
        let p = |x: &Pattern| x.dip_p_adjusted.unwrap_or(1.0);
        let d = |x: &Pattern| x.ashman_d.unwrap_or(0.0);
        p(a).total_cmp(&p(b)).then(d(b).total_cmp(&d(a)))
    });
    Ok(Bimodality {
        schema: SCHEMA.to_owned(),
        simulated,
        options: options.clone(),
        ttft_bimodal: strongest.is_some(),
        ttft_bimodal_count: bimodal().count(),
        judged: raw.len(),
        insufficient: patterns.len() - raw.len(),
        strongest: strongest.map(|p| p.label.clone()),
        ttft_phase_a_mean_ms: strongest.and_then(|p| p.components.last().map(|c| c.mean_ms)),
        ttft_phase_b_mean_ms: strongest.and_then(|p| p.components.first().map(|c| c.mean_ms)),
        patterns,
    })
}

/// Everything about one series but the verdict, which needs all p-values.
fn measure(
    series: &Series,
    options: &Options,
    laws: &mut BTreeMap<usize, DipNull>,
) -> Result<Pattern> {
    let ttft: Vec<f64> = series.samples.iter().map(|s| s.ttft_ms).collect();
    check_times(&format!("TTFT of {}", series.label), &ttft)?;
    let n = ttft.len();
    let levels = round_means(&series.samples);
    let mut pattern = Pattern {
        label: series.label.clone(),
        verdict: Verdict::Insufficient,
        n,
        failed: series.failed,
        small_sample: n < FEW_VALUES,
        ties: count_ties(&ttft),
        tick_ms: None,
        dip: None,
        dip_p: None,
        dip_p_adjusted: None,
        bic_gain: None,
        variance: None,
        components: Vec::new(),
        ashman_d: None,
        rounds: levels.len(),
        changepoints: changes(&levels)?,
        warmup_rounds: None,
        steady: None,
    };
    if levels.len() >= 10 {
        let cut = mser5(&levels)?;
        pattern.warmup_rounds = Some(cut.drop);
        pattern.steady = Some(cut.steady);
    }
    if n < LEAST_VALUES {
        return Ok(pattern);
    }
    let tick = options.tick_ms.filter(|_| pattern.ties > 0);
    pattern.tick_ms = tick.or_else(|| decimal_tick(&ttft, 1.0));
    let smooth = match pattern.tick_ms {
        Some(tick) => jitter(&ttft, tick, options.seed),
        None => ttft,
    };
    let law = match laws.entry(n) {
        std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::btree_map::Entry::Vacant(entry) => {
            entry.insert(DipNull::simulate(n, options.replicates, options.seed)?)
        }
    };
    let found = dip(&smooth)?.dip;
    pattern.dip = Some(found);
    pattern.dip_p = Some(law.p_value(found));
    let choice = choose(&smooth)?;
    pattern.bic_gain = Some(choice.bic_gain);
    if let Some((variance, fit)) = choice.two {
        pattern.ashman_d = fit.ashman_d();
        pattern.variance = Some(variance);
        pattern.components = fit
            .components
            .iter()
            .map(|c| Phase {
                weight: c.weight,
                mean_ms: c.mean,
                sd_ms: c.sd,
            })
            .collect();
    }
    Ok(pattern)
}

/// Means of successive samples of one round. Requests of a round start together and queue behind
/// each other, so only rounds follow one another in time.
fn round_means(samples: &[Sample]) -> Vec<f64> {
    samples
        .chunk_by(|a, b| a.round.is_some() && a.round == b.round)
        .map(|round| mean(&round.iter().map(|s| s.ttft_ms).collect::<Vec<_>>()))
        .collect()
}

fn changes(levels: &[f64]) -> Result<Vec<Change>> {
    let breaks = changepoints(levels, LEAST_SEGMENT)?.breaks;
    let edges: Vec<usize> = std::iter::once(0)
        .chain(breaks)
        .chain([levels.len()])
        .collect();
    Ok(edges
        .windows(3)
        .map(|edge| Change {
            at: edge[1],
            before_ms: mean(&levels[edge[0]..edge[1]]),
            after_ms: mean(&levels[edge[1]..edge[2]]),
        })
        .collect())
}

#[cfg(test)]
mod tests;
