//! Where servers had their prompts' KV cache from, by vLLM's own counter
//! (`vllm:prompt_tokens_by_source_total`): computed, found in the prefix cache, or come from
//! another server. It is read right before the first measured request and after the last answer,
//! and only differences of settled readings are told: never a log line, never a zero for a
//! counter that is not there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};

use super::Watched;
use crate::error::Result;
use crate::measure::http::{Endpoint, Failure, Limits};

/// Tokens by source.
pub(super) type Sources = BTreeMap<String, u64>;

const COUNTER: &str = "vllm:prompt_tokens_by_source_total";

const LIMITS: Limits = Limits {
    time: Duration::from_secs(30),
    bytes: 64 << 20,
};

/// A server counts an answer at about the time that it sends it.
const SETTLES_WITHIN: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// The servers whose counters are read.
pub(super) struct Watch(Vec<(String, Endpoint)>);

impl Watch {
    pub(super) fn new(watched: &[Watched]) -> Result<Self> {
        let endpoint = |w: &Watched| Ok((w.name.clone(), Endpoint::parse(&w.url)?));
        Ok(Self(watched.iter().map(endpoint).collect::<Result<_>>()?))
    }

    /// What each server has counted so far.
    pub(super) async fn read(&self) -> std::result::Result<BTreeMap<String, Sources>, Failure> {
        let mut all = BTreeMap::new();
        for (name, endpoint) in &self.0 {
            let named =
                |f: Failure| Failure::new(f.kind, format!("server `{name}`: {}", f.message));
            all.insert(name.clone(), settled(endpoint).await.map_err(named)?);
        }
        Ok(all)
    }
}

/// What was counted between two readings.
pub(super) fn between(
    before: &BTreeMap<String, Sources>,
    after: &BTreeMap<String, Sources>,
) -> std::result::Result<BTreeMap<String, Sources>, Failure> {
    let mut all = BTreeMap::new();
    for (name, after) in after {
        let mut sources = Sources::new();
        for (source, count) in after {
            let earlier = before.get(name).and_then(|b| b.get(source)).unwrap_or(&0);
            let Some(more) = count.checked_sub(*earlier) else {
                let why = format!("server `{name}`: {COUNTER} of `{source}` went down");
                return Err(Failure::new("counter_reset", why));
            };
            sources.insert(source.clone(), more);
        }
        all.insert(name.clone(), sources);
    }
    Ok(all)
}

async fn settled(endpoint: &Endpoint) -> std::result::Result<Sources, Failure> {
    let mut last = once(endpoint).await?;
    for _ in 0..SETTLES_WITHIN {
        tokio::time::sleep(PAUSE).await;
        let now = once(endpoint).await?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    let why = format!("{COUNTER} does not come to rest: somebody else uses the server");
    Err(Failure::new("counter_moves", why))
}

async fn once(endpoint: &Endpoint) -> std::result::Result<Sources, Failure> {
    let exchange = endpoint.exchange(Method::GET, "/metrics", &[], Bytes::new(), LIMITS);
    let (status, body) = exchange.await?;
    if status != StatusCode::OK {
        return Err(Failure::status(status, &body));
    }
    parse(&String::from_utf8_lossy(&body))
        .ok_or_else(|| Failure::new("no_counter", format!("its /metrics has no {COUNTER}")))
}

/// The counter on a page in Prometheus' text format, engines of one server added up.
fn parse(page: &str) -> Option<Sources> {
    let mut sources = Sources::new();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(COUNTER) else {
            continue;
        };
        let (labels, value) = rest.strip_prefix('{')?.rsplit_once('}')?;
        let (_, source) = labels.split_once("source=\"")?;
        let (source, _) = source.split_once('"')?;
        let value = value.split_whitespace().next()?.parse::<f64>().ok()?;
        *sources.entry(source.to_owned()).or_insert(0) += value as u64;
    }
    (!sources.is_empty()).then_some(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vLLM 0.32.0 on a CPU printed it, the consumer of a pair, prompts of 400 tokens.
    const PAGE: &str = r#"# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"} 4010.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_cache_hit"} 0.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="external_kv_transfer"} 3840.0
# TYPE vllm:prompt_tokens_by_source_created gauge
vllm:prompt_tokens_by_source_created{engine="0",model_name="tiny",source="local_compute"} 1.7952842185625112e+09
"#;

    fn sources(pairs: &[(&str, u64)]) -> Sources {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
    }

    #[test]
    fn the_page_of_a_real_server_is_read() {
        let want = [
            ("local_compute", 4010),
            ("local_cache_hit", 0),
            ("external_kv_transfer", 3840),
        ];
        assert_eq!(parse(PAGE), Some(sources(&want)));
        let two = format!("{PAGE}{}", PAGE.replace("engine=\"0\"", "engine=\"1\""));
        assert_eq!(parse(&two).unwrap()["external_kv_transfer"], 7680);
    }

    #[test]
    fn what_is_not_there_is_not_zero() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("vllm:prompt_tokens_total{} 3.0\n"), None);
        assert_eq!(parse(&PAGE.replace("4010.0", "many")), None);
    }

    #[test]
    fn differences_are_told_and_a_restarted_server_is_not() {
        let of = |n| BTreeMap::from([("decode".to_owned(), sources(&[("local_compute", n)]))]);
        let more = between(&of(3), &of(10)).unwrap();
        assert_eq!(more["decode"]["local_compute"], 7);
        assert_eq!(between(&of(10), &of(3)).unwrap_err().kind, "counter_reset");
    }
}
