//! The load generator for servers that speak OpenAI's streaming API. Times are monotonic, taken
//! when bytes are read from the socket and before anything is parsed; prompts come from a seed;
//! every request that was attempted is accounted for, and no successes is an error.

mod client;
mod decode;
mod drive;
mod output;
mod prompt;
mod sources;
mod sse;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::{Serialize, Serializer};

use crate::error::{Error, Kind, Result};
use crate::measure::http::{Endpoint, Limits};
pub use output::{PROMPT_TOLERANCE, Report, write_json};

/// Version of the instrument. Whoever changes what is sent or how a number comes about adds one.
pub const VERSION: u32 = 1;

/// Which API is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

impl Api {
    /// The path of the API.
    pub fn path(self) -> &'static str {
        match self {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
        }
    }
}

/// When a stream sends its next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loop {
    /// All streams send together, when all answers of the round before are in.
    Rounds,
    /// Each stream on its own, as soon as its answer is in.
    Closed,
}

/// How the length of a prompt is counted before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenize {
    /// The server's tokenizer; else what `usage` says of short probes; else words.
    Auto,
    /// A word is taken for a token.
    Words,
    /// The server's tokenizer or nothing.
    Server,
}

/// A server whose counters are read around the measured requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// How the result calls it.
    pub name: String,
    /// Base URL.
    pub url: String,
}

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Base URL. An address, so it is no part of the result.
    #[serde(skip)]
    pub url: String,
    /// Which API is asked.
    #[serde(rename = "endpoint")]
    pub api: Api,
    /// The model's name as the server knows it.
    pub model: String,
    /// Wanted prompt length in the server's tokens.
    pub prompt_tokens: u32,
    /// Most output tokens.
    pub max_tokens: u32,
    /// Rounds before the measured ones, with the same length and concurrency.
    pub warmup_iterations: u32,
    /// Measured rounds; each has `concurrency` requests.
    pub iterations: u32,
    /// Concurrent streams.
    pub concurrency: u32,
    /// Seeds the prompts.
    pub seed: u64,
    /// Sampling temperature.
    pub temperature: f64,
    /// Whether the server is told to go on to `max_tokens`.
    pub ignore_eos: bool,
    /// When a stream sends again.
    #[serde(rename = "loop")]
    pub pacing: Loop,
    /// Pause between rounds.
    #[serde(rename = "pause_ms", serialize_with = "as_ms")]
    pub pause: Duration,
    /// Most time for one request, connecting included.
    #[serde(rename = "request_timeout_s", serialize_with = "as_s")]
    pub request_timeout: Duration,
    /// How prompts are counted.
    pub tokenize: Tokenize,
    /// Sent as `X-Doe-Session`, so that a proxy can tell whose requests it saw. Names a run, so
    /// it is no part of the result.
    #[serde(skip)]
    pub session: Option<String>,
    /// Servers that are asked where they had their prompts' KV cache from. Addresses, so they
    /// are no part of the result.
    #[serde(skip)]
    pub watched: Vec<Watched>,
}

fn as_ms<S: Serializer>(d: &Duration, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_f64(d.as_secs_f64() * 1e3)
}

fn as_s<S: Serializer>(d: &Duration, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_f64(d.as_secs_f64())
}

impl Settings {
    fn warmup_requests(&self) -> u32 {
        self.warmup_iterations * self.concurrency
    }

    fn measured_requests(&self) -> u32 {
        self.iterations * self.concurrency
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(Kind::Usage, "bad-load", what));
        for (name, value) in [
            ("--iterations", self.iterations),
            ("--concurrency", self.concurrency),
            ("--prompt-tokens", self.prompt_tokens),
            ("--max-tokens", self.max_tokens),
        ] {
            if value == 0 {
                return bad(format!("{name} is 0, expected at least 1"));
            }
        }
        let rounds = self.iterations.max(self.warmup_iterations);
        if rounds
            .checked_mul(self.concurrency)
            .is_none_or(|n| n > 10_000_000)
        {
            return bad("iterations times concurrency is above ten million".into());
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad(format!(
                "--temperature is {}, expected 0 or more",
                self.temperature
            ));
        }
        if self.request_timeout.is_zero() {
            return bad("--request-timeout is 0".into());
        }
        Ok(())
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Whether this is the warm-up.
    pub warmup: bool,
    /// Requests answered or failed.
    pub done: u32,
    /// Requests failed.
    pub failed: u32,
    /// Requests of this phase.
    pub total: u32,
}

/// Measures. The report is there even when every request failed; ask it for its verdict.
///
/// # Errors
/// Usage for settings that make no sense, infra when the client itself cannot work or when the
/// settings demand the server's tokenizer and it does not answer.
pub fn run(settings: &Settings, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    settings.check()?;
    let endpoint = Arc::new(Endpoint::parse(&settings.url)?);
    let watch = sources::Watch::new(&settings.watched)?;
    allow_sockets(settings.concurrency);
    let settings = Arc::new(settings.clone());
    runtime()?.block_on(async {
        let lengths = prompt::lengths(&settings, &endpoint).await?;
        let counting = lengths.counting;
        let run = drive::run(&settings, &endpoint, &watch, lengths, progress).await;
        Ok(Report::new(&settings, counting, run))
    })
}

/// Fetches what a proxy saw of one session.
///
/// # Errors
/// Usage for a bad URL, infra when the proxy does not answer with `proxy-v1`.
pub fn proxy_stats(url: &str, session: &str) -> Result<serde_json::Value> {
    let endpoint = Endpoint::parse(url.trim_end_matches("/stats"))?;
    let limits = Limits {
        time: Duration::from_secs(60),
        bytes: 256 << 20,
    };
    let path = format!("/stats?client={session}");
    let answer = runtime()?
        .block_on(endpoint.exchange(Method::GET, &path, &[], Bytes::new(), limits))
        .map_err(|f| no_stats(f.message))?;
    let (status, body) = answer;
    if status != hyper::StatusCode::OK {
        return Err(no_stats(format!("it answered HTTP {}", status.as_u16())));
    }
    let stats: serde_json::Value =
        serde_json::from_slice(&body).map_err(|e| no_stats(e.to_string()))?;
    if stats.get("schema").and_then(|s| s.as_str()) != Some("proxy-v1") {
        return Err(no_stats("its answer is not of schema proxy-v1".into()));
    }
    Ok(stats)
}

fn no_stats(cause: String) -> Error {
    Error::new(
        Kind::Infra,
        "no-proxy-stats",
        "could not fetch the proxy's records",
    )
    .cause(cause)
    .hint("`--proxy-stats` takes the base URL of a running `doe proxy`")
}

/// One thread does all the network: what it reads it stamps at once, and no lock or other thread
/// comes between. A second thread makes the bodies.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(|e| Error::new(Kind::Infra, "io", "could not start the client").cause(e))
}

/// Raises the soft limit on open files when the streams would not fit; a refusal shows later as
/// `connect` failures with the system's own words.
fn allow_sockets(streams: u32) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let need = u64::from(streams) + 64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < need) {
        limit.current = Some(limit.maximum.map_or(need, |most| most.min(need)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
