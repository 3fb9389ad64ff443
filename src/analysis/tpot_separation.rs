//! How much of the time between tokens is computing and how much is waiting for the batch? The
//! gaps between tokens are split into two Gaussians: the lower mean is computing, the distance to
//! the upper one is waiting. Where the information criterion prefers one component there is no
//! waiting to see, and the answer says so instead of splitting noise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::analysis::input::{Input, bad_input, check_times};
use crate::analysis::mixture::{Variance, choose};
use crate::analysis::sample::{mean, median};
use crate::analysis::summary::Summary;
use crate::error::Result;

/// Schema of the answer.
pub const SCHEMA: &str = "tpot-separation-v1";
/// Below this many gaps a pattern is not separated.
pub const LEAST_GAPS: usize = 10;
/// The `transport` of a pattern whose KV cache never crosses the network.
pub const UNIFIED: &str = "unified";

/// The gaps between tokens of one pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Label of the pattern.
    pub label: String,
    /// `unified`, or what carries the KV cache: `efa`, `tcp`, ...
    pub transport: String,
    /// Prompt length in tokens.
    pub prompt_tokens: u64,
    /// Simultaneous requests.
    pub concurrency: u64,
    /// Inter-token latencies of all successful requests, pooled, ms.
    pub itl_ms: Vec<f64>,
    /// Time per output token of each request that has one, ms.
    pub tpot_ms: Vec<f64>,
    /// Requests that failed.
    pub failed: usize,
}

/// What was found in one pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    /// Label of the pattern.
    pub label: String,
    /// `unified`, or what carries the KV cache.
    pub transport: String,
    /// Prompt length in tokens.
    pub prompt_tokens: u64,
    /// Simultaneous requests.
    pub concurrency: u64,
    /// Inter-token latencies used.
    pub n: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Gaps under a hundredth of the median: tokens that came in one piece. Many of them make a
    /// lower component that is no computing time.
    pub coalesced: usize,
    /// Median of the requests' times per output token, ms.
    pub tpot_median_ms: Option<f64>,
    /// 1 or 2 by BIC; 0 when there are fewer than ten gaps.
    pub components: u8,
    /// BIC of one component less BIC of two: positive favours two.
    pub bic_gain: Option<f64>,
    /// Whether the two components share a variance; absent for one.
    pub variance: Option<Variance>,
    /// Ashman's D; below 2 the two components overlap and their split is weak. Absent for one.
    pub ashman_d: Option<f64>,
    /// Share of the gaps in the upper component; absent for one.
    pub waiting_share: Option<f64>,
    /// Mean of the lower component (of all gaps when there is one), ms.
    pub gpu_compute_time_ms: Option<f64>,
    /// Upper mean less lower mean (0 when there is one component), ms.
    pub batch_wait_time_ms: Option<f64>,
    /// compute / (compute + wait); 1 when there is one component.
    pub gpu_compute_ratio: Option<f64>,
    /// What to know about the numbers, in words; empty when there is nothing to say.
    pub note: String,
}

/// Means over the patterns of one concurrency and transport, each pattern counted once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Simultaneous requests.
    pub concurrency: u64,
    /// `unified`, or what carries the KV cache.
    pub transport: String,
    /// Patterns with an answer.
    pub patterns: usize,
    /// How many of them have two components.
    pub separated: usize,
    /// Mean computing time, ms.
    pub gpu_compute_time_ms: f64,
    /// Mean waiting time, ms.
    pub batch_wait_time_ms: f64,
    /// Mean share of computing.
    pub gpu_compute_ratio: f64,
}

/// Two patterns of one cell, alike but for the transport.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Prompt length in tokens.
    pub prompt_tokens: u64,
    /// Simultaneous requests.
    pub concurrency: u64,
    /// What carries the KV cache in the second pattern.
    pub transport: String,
    /// The unified pattern.
    pub unified: String,
    /// The pattern with a transport.
    pub disaggregated: String,
    /// Median TPOT of the unified pattern, ms.
    pub unified_tpot_median_ms: f64,
    /// Median TPOT of the other, ms.
    pub disaggregated_tpot_median_ms: f64,
    /// The other less the unified, ms.
    pub difference_ms: f64,
}

/// The differences of all pairs of one transport.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What carries the KV cache.
    pub transport: String,
    /// Summary of the differences over the cells, ms. Its interval of the mean takes cells as
    /// independent.
    pub difference_ms: Summary,
}

/// The answer of the analysis, schema `tpot-separation-v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TpotSeparation {
    /// `tpot-separation-v1`.
    pub schema: String,
    /// Whether any input was simulated.
    pub simulated: bool,
    /// Mean computing time over the patterns, each counted once, ms.
    pub gpu_compute_time_ms: f64,
    /// Mean waiting time over the patterns, ms.
    pub batch_wait_time_ms: f64,
    /// Mean share of computing over the patterns.
    pub gpu_compute_ratio: f64,
    /// Patterns with two components.
    pub separated: usize,
    /// Patterns with an answer.
    pub judged: usize,
    /// Patterns with too few gaps.
    pub insufficient: usize,
    /// By concurrency and transport, ascending.
    pub by_concurrency: Vec<Group>,
    /// Unified against every transport, cell by cell.
    pub pairs: Vec<Pair>,
    /// The differences by transport.
    pub tpot_difference: Vec<Difference>,
    /// Patterns without a partner in their cell, or without a TPOT.
    pub unpaired: Vec<String>,
    /// Every pattern, in the order given.
    pub patterns: Vec<Pattern>,
}

/// Reads the gaps out of the inputs.
///
/// Errors: see [`Input::load`]; a missing `concurrency` or `prompt_tokens`; no gap at all.
pub fn series(inputs: &[Input]) -> Result<Vec<Series>> {
    inputs
        .iter()
        .map(|input| {
            let load = input.load()?;
            let gaps = load.requests.iter().filter_map(|r| r.itl_ms.as_deref());
            Ok(Series {
                label: input.label.clone(),
                transport: transport(input),
                prompt_tokens: input.count(&load, "prompt_tokens")?,
                concurrency: input.count(&load, "concurrency")?,
                itl_ms: gaps.flatten().copied().collect(),
                tpot_ms: load.requests.iter().filter_map(|r| r.tpot_ms).collect(),
                failed: load.failed,
            })
        })
        .collect()
}

/// The transport of a pattern: `unified` when its mode says so or when it has none. `srd` is the
/// protocol under EFA and counts as `efa`.
fn transport(input: &Input) -> String {
    if input
        .text("mode")
        .is_some_and(|mode| mode.eq_ignore_ascii_case(UNIFIED))
    {
        return UNIFIED.to_owned();
    }
    let named = input
        .text("transport")
        .unwrap_or_default()
        .to_ascii_lowercase();
    match named.as_str() {
        "" | "none" => UNIFIED.to_owned(),
        "srd" => "efa".to_owned(),
        _ => named,
    }
}

/// Separates every series and pairs them by cell.
///
/// Errors: no series, an empty, non-finite or negative one, or none with enough gaps.
pub fn analyse(series: &[Series], simulated: bool) -> Result<TpotSeparation> {
    if series.is_empty() {
        return Err(bad_input("tpot-separation: no patterns were given"));
    }
    let patterns: Vec<Pattern> = series.iter().map(separate).collect::<Result<_>>()?;
    let Some(overall) = average(patterns.iter()) else {
        return Err(bad_input(format!(
            "tpot-separation: none of the {} patterns has the {LEAST_GAPS} gaps between tokens \
             that it needs",
            series.len()
        ))
        .hint("ask for more output tokens or more iterations"));
    };
    let mut cells: BTreeMap<(u64, &str), Vec<&Pattern>> = BTreeMap::new();
    for pattern in &patterns {
        cells
            .entry((pattern.concurrency, &pattern.transport))
            .or_default()
            .push(pattern);
    }
    let by_concurrency = cells
        .into_iter()
        .filter_map(|((concurrency, transport), members)| {
            let group = average(members.into_iter())?;
            Some(Group {
                concurrency,
                transport: transport.to_owned(),
                ..group
            })
        })
        .collect();
    let (pairs, unpaired) = pair(&patterns);
    let mut differences: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for pair in &pairs {
        let of_transport = differences.entry(&pair.transport).or_default();
        of_transport.push(pair.difference_ms);
    }
    let tpot_difference = differences
        .into_iter()
        .map(|(transport, values)| {
            Ok(Difference {
                transport: transport.to_owned(),
                difference_ms: Summary::named("TPOT differences", &values)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(TpotSeparation {
        schema: SCHEMA.to_owned(),
        simulated,
        gpu_compute_time_ms: overall.gpu_compute_time_ms,
        batch_wait_time_ms: overall.batch_wait_time_ms,
        gpu_compute_ratio: overall.gpu_compute_ratio,
        separated: overall.separated,
        judged: overall.patterns,
        insufficient: patterns.len() - overall.patterns,
        by_concurrency,
        pairs,
        tpot_difference,
        unpaired,
        patterns,
    })
}

fn separate(series: &Series) -> Result<Pattern> {
    let what = |quantity: &str| format!("{quantity} of {}", series.label);
    check_times(&what("inter-token latencies"), &series.itl_ms)?;
    let tpot_median_ms = if series.tpot_ms.is_empty() {
        None
    } else {
        check_times(&what("TPOT"), &series.tpot_ms)?;
        Some(median(&series.tpot_ms))
    };
    let typical = median(&series.itl_ms);
    let mut pattern = Pattern {
        label: series.label.clone(),
        transport: series.transport.clone(),
        prompt_tokens: series.prompt_tokens,
        concurrency: series.concurrency,
        n: series.itl_ms.len(),
        failed: series.failed,
        coalesced: series
            .itl_ms
            .iter()
            .filter(|v| **v < typical / 100.0)
            .count(),
        tpot_median_ms,
        components: 0,
        bic_gain: None,
        variance: None,
        ashman_d: None,
        waiting_share: None,
        gpu_compute_time_ms: None,
        batch_wait_time_ms: None,
        gpu_compute_ratio: None,
        note: String::new(),
    };
    if pattern.n < LEAST_GAPS {
        pattern.note = format!("{} gaps, {LEAST_GAPS} are needed", pattern.n);
        return Ok(pattern);
    }
    let choice = choose(&series.itl_ms)?;
    pattern.bic_gain = Some(choice.bic_gain);
    let prefers_two = choice.prefers_two();
    match choice.two.filter(|_| prefers_two) {
        Some((variance, fit)) => {
            // A mean below zero can only be the tail of a component that is mostly noise.
            let low = fit.components[0].mean.max(0.0);
            let high = fit.components[1].mean;
            pattern.components = 2;
            pattern.ashman_d = fit.ashman_d();
            pattern.variance = Some(variance);
            pattern.waiting_share = Some(fit.components[1].weight);
            pattern.gpu_compute_time_ms = Some(low);
            pattern.batch_wait_time_ms = Some(high - low);
            pattern.gpu_compute_ratio = Some(low / high);
            if pattern.ashman_d.is_some_and(|d| d <= 2.0) {
                pattern.note = "the two components overlap: the split is weak".into();
            }
        }
        None => {
            pattern.components = 1;
            pattern.gpu_compute_time_ms = Some(mean(&series.itl_ms));
            pattern.batch_wait_time_ms = Some(0.0);
            pattern.gpu_compute_ratio = Some(1.0);
            pattern.note = "one component explains the gaps: no waiting to see".into();
        }
    }
    if pattern.coalesced * 20 > pattern.n {
        pattern.note = format!(
            "{} of {} gaps are near zero: tokens came in one piece, the lower component may be \
             that",
            pattern.coalesced, pattern.n
        );
    }
    Ok(pattern)
}

/// Means over the patterns with an answer; `None` when there is none.
fn average<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> Option<Group> {
    let (mut compute, mut wait, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    let mut separated = 0;
    for pattern in patterns {
        compute.extend(pattern.gpu_compute_time_ms);
        wait.extend(pattern.batch_wait_time_ms);
        ratio.extend(pattern.gpu_compute_ratio);
        separated += usize::from(pattern.components == 2);
    }
    (!compute.is_empty()).then(|| Group {
        concurrency: 0,
        transport: String::new(),
        patterns: compute.len(),
        separated,
        gpu_compute_time_ms: mean(&compute),
        batch_wait_time_ms: mean(&wait),
        gpu_compute_ratio: mean(&ratio),
    })
}

/// Every pattern with a transport against every unified one of its cell, and who is left over.
fn pair(patterns: &[Pattern]) -> (Vec<Pair>, Vec<String>) {
    let mut pairs = Vec::new();
    for unified in patterns.iter().filter(|p| p.transport == UNIFIED) {
        for other in patterns.iter().filter(|p| p.transport != UNIFIED) {
            let same = (unified.prompt_tokens, unified.concurrency)
                == (other.prompt_tokens, other.concurrency);
            let (Some(a), Some(b)) = (unified.tpot_median_ms, other.tpot_median_ms) else {
                continue;
            };
            if same {
                pairs.push(Pair {
                    prompt_tokens: unified.prompt_tokens,
                    concurrency: unified.concurrency,
                    transport: other.transport.clone(),
                    unified: unified.label.clone(),
                    disaggregated: other.label.clone(),
                    unified_tpot_median_ms: a,
                    disaggregated_tpot_median_ms: b,
                    difference_ms: b - a,
                });
            }
        }
    }
    pairs.sort_by(|a, b| {
        let key = |p: &Pair| (p.prompt_tokens, p.concurrency);
        key(a)
            .cmp(&key(b))
            .then_with(|| a.transport.cmp(&b.transport))
            .then_with(|| a.disaggregated.cmp(&b.disaggregated))
            .then_with(|| a.unified.cmp(&b.unified))
    });
    let paired = |label: &str| {
        pairs
            .iter()
            .any(|p: &Pair| p.unified == label || p.disaggregated == label)
    };
    let unpaired = patterns
        .iter()
        .map(|p| p.label.clone())
        .filter(|label| !paired(label))
        .collect();
    (pairs, unpaired)
}

#[cfg(test)]
mod tests;
