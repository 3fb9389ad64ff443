//! The result file, schema `load-v1`. Every statistic is over successful measured requests only;
//! every attempted request stands in the file with its error if it had one, and a file is either
//! complete or absent.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::decode::Sample;
use super::drive::Run;
use super::prompt::Counting;
use super::sources::Sources;
use super::stats::Summary;
use super::{Settings, VERSION};
use crate::error::{Error, Kind, Result};
use crate::measure::http::Failure;

/// How far from the wanted prompt length a request may be before it is counted as off.
pub const PROMPT_TOLERANCE: f64 = 0.02;

/// The whole result.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: &'static str,
    instrument: Instrument,
    settings: Settings,
    calibration: Calibration,
    counts: Counts,
    prompt_tokens_off: usize,
    prompt_tokens_unknown: usize,
    ttft_ms: Summary,
    tpot_ms: Summary,
    itl_ms: Summary,
    e2e_ms: Summary,
    connect_ms: Summary,
    throughput: Throughput,
    tokens: Tokens,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_sources: Option<BTreeMap<String, Sources>>,
    #[serde(skip)]
    sources_failure: Option<Failure>,
    errors: BTreeMap<String, usize>,
    warmup_errors: BTreeMap<String, usize>,
    requests: Vec<Sample>,
    warmup: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Instrument {
    name: &'static str,
    version: u32,
}

#[derive(Debug, Serialize)]
struct Calibration {
    method: Counting,
}

#[derive(Debug, Serialize)]
struct Counts {
    attempted: usize,
    ok: usize,
    failed: usize,
}

#[derive(Debug, Serialize)]
struct Throughput {
    output_tokens_per_s: Option<f64>,
    requests_per_s: Option<f64>,
    window_s: f64,
}

#[derive(Debug, Serialize)]
struct Tokens {
    prompt_total: u64,
    output_total: u64,
}

impl Report {
    pub(super) fn new(settings: &Settings, method: Counting, run: Run) -> Self {
        let Run {
            warmup,
            measured,
            sources,
        } = run;
        let (prompt_sources, sources_failure) = match sources {
            Ok(sources) => ((!sources.is_empty()).then_some(sources), None),
            Err(failure) => (None, Some(failure)),
        };
        let requests = measured.samples;
        let good: Vec<&Sample> = requests.iter().filter(|s| s.ok()).collect();
        let times = |of: fn(&Sample) -> Option<f64>| {
            Summary::of(good.iter().filter_map(|s| of(s)).collect())
        };
        let gaps = good.iter().filter_map(|s| s.itl_ms.as_ref()).flatten();
        let want = f64::from(settings.prompt_tokens);
        let is_off = |n: u64| (n as f64 - want).abs() > PROMPT_TOLERANCE * want;
        let lengths = good.iter().map(|s| s.prompt_tokens);
        let output_total: u64 = good.iter().filter_map(|s| s.output_tokens).sum();
        let window_s = measured.end.saturating_sub(measured.start) as f64 / 1e9;
        let per_s = |n: f64| (window_s > 0.0).then(|| n / window_s);
        Self {
            schema: "load-v1",
            instrument: Instrument {
                name: "doe-openai",
                version: VERSION,
            },
            settings: settings.clone(),
            calibration: Calibration { method },
            counts: Counts {
                attempted: requests.len(),
                ok: good.len(),
                failed: requests.len() - good.len(),
            },
            prompt_tokens_off: lengths.clone().flatten().filter(|n| is_off(*n)).count(),
            prompt_tokens_unknown: lengths.filter(Option::is_none).count(),
            ttft_ms: times(|s| s.ttft_ms),
            tpot_ms: times(|s| s.tpot_ms),
            itl_ms: Summary::of(gaps.copied().collect()),
            e2e_ms: times(|s| s.e2e_ms),
            connect_ms: times(|s| Some(s.connect_ms)),
            throughput: Throughput {
                output_tokens_per_s: per_s(output_total as f64),
                requests_per_s: per_s(good.len() as f64),
                window_s,
            },
            tokens: Tokens {
                prompt_total: good.iter().filter_map(|s| s.prompt_tokens).sum(),
                output_total,
            },
            prompt_sources,
            sources_failure,
            errors: errors(&requests),
            warmup_errors: errors(&warmup.samples),
            requests,
            warmup: warmup.samples,
        }
    }

    /// Requests that were attempted and that succeeded, warm-up not counted.
    pub fn counts(&self) -> (usize, usize) {
        (self.counts.attempted, self.counts.ok)
    }

    /// One line for people: successes, median times, throughput.
    pub fn line(&self) -> String {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.2}"));
        let (ttft, itl, e2e) = (&self.ttft_ms, &self.itl_ms, &self.e2e_ms);
        format!(
            "{}/{} ok, TTFT p50 {} ms, ITL p50 {} ms, E2E p50 {} ms, {} output tokens/s",
            self.counts.ok,
            self.counts.attempted,
            show(ttft.p50()),
            show(itl.p50()),
            show(e2e.p50()),
            show(self.throughput.output_tokens_per_s),
        )
    }

    /// Whether there is anything to report: one success is enough, none is a failed measurement,
    /// and so are counters that were asked for and could not be read.
    ///
    /// # Errors
    /// Node failed, with the errors counted and the first one told; infra without the counters.
    pub fn verdict(&self) -> Result<()> {
        if self.counts.ok > 0 {
            return match &self.sources_failure {
                None => Ok(()),
                Some(failure) => Err(Error::new(
                    Kind::Infra,
                    "no-prompt-sources",
                    "could not read where the prompts' KV cache came from",
                )
                .cause(format!("{}: {}", failure.kind, failure.message))
                .hint("`--prompt-sources` takes NAME=URL of a vLLM server with /metrics")),
            };
        }
        let kinds = self.errors.iter().map(|(kind, n)| format!("{kind} x {n}"));
        let first = self.requests.iter().find_map(|s| s.error.as_ref());
        Err(Error::new(
            Kind::NodeFailed,
            "no-successful-request",
            format!(
                "none of {} requests succeeded: {}",
                self.counts.attempted,
                kinds.collect::<Vec<_>>().join(", ")
            ),
        )
        .cause(first.map_or("", |f| &f.message))
        .hint("the result file holds every request with its error"))
    }

    /// Writes the result to a file, whole or not at all.
    ///
    /// # Errors
    /// Infra, when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}

fn errors(samples: &[Sample]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for failure in samples.iter().filter_map(|s| s.error.as_ref()) {
        *counts.entry(failure.kind.clone()).or_insert(0) += 1;
    }
    counts
}

/// Writes a value as one line of JSON, whole or not at all.
///
/// # Errors
/// Infra, when the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("write", path, &e);
    let mut line = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    doe_cache::replace(path, &line).map_err(failed)
}
