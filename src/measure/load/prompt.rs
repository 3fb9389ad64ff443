//! Prompts of a wanted length. A prompt is a pure function of seed, purpose and index, all
//! prompts of a run differ from their first words on (so that a prefix cache finds nothing), and
//! text is made only when it is sent: a plan holds word counts, not prompts.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Api, Settings, Tokenize};
use crate::error::{Error, Kind, Result};
use crate::measure::http::{Endpoint, Failure, Limits};
use crate::measure::words::WORDS;

/// What a prompt is for; each purpose draws from its own random streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Finding out how many words make the wanted number of tokens.
    Probe,
    /// Before the measured window.
    Warmup,
    /// Counted.
    Measured,
}

/// The prompt of this seed, purpose and index: `words` words. A longer one extends a shorter one.
pub(super) fn text(seed: u64, purpose: Purpose, index: u32, words: u32) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose as u64) << 32 | u64::from(index));
    let mut text = String::with_capacity(words as usize * 7);
    let mut left = words;
    while left > 0 {
        let mut draw = rng.next_u32();
        for _ in 0..left.min(4) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(WORDS[(draw & 0xff) as usize]);
            draw >>= 8;
            left -= 1;
        }
    }
    text
}

/// The body of the completion request for a prompt.
pub(super) fn body(settings: &Settings, prompt: &str) -> Bytes {
    let mut body = asking(settings, prompt, settings.max_tokens);
    body["temperature"] = settings.temperature.into();
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    if settings.ignore_eos {
        body["ignore_eos"] = true.into();
    }
    Bytes::from(body.to_string())
}

fn asking(settings: &Settings, prompt: &str, max_tokens: u32) -> Value {
    match settings.api {
        Api::Completions => {
            json!({ "model": settings.model, "prompt": prompt, "max_tokens": max_tokens })
        }
        Api::Chat => json!({
            "model": settings.model,
            "messages": [{ "role": "user", "content": prompt }],
            "max_tokens": max_tokens,
        }),
    }
}

/// How the lengths of the prompts were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Counting {
    /// The server's tokenizer counted every prompt.
    Tokenizer,
    /// The `usage` of a few short probe requests gave the tokens of a word.
    Usage,
    /// Words were taken for tokens.
    Words,
}

/// How many words each prompt has, and how that was found.
#[derive(Debug, Clone)]
pub(super) struct Lengths {
    pub(super) counting: Counting,
    pub(super) warmup: Vec<u32>,
    pub(super) measured: Vec<u32>,
}

/// Finds the number of words of every prompt of the run.
///
/// # Errors
/// Infra, when the settings demand the server's tokenizer and it does not answer.
pub(super) async fn lengths(settings: &Settings, endpoint: &Endpoint) -> Result<Lengths> {
    let by_words = |words: u32, counting| Lengths {
        counting,
        warmup: vec![words; settings.warmup_requests() as usize],
        measured: vec![words; settings.measured_requests() as usize],
    };
    if settings.tokenize == Tokenize::Words {
        return Ok(by_words(settings.prompt_tokens, Counting::Words));
    }
    let mut counter = Counter {
        settings,
        endpoint,
        dialect: Dialect::Vllm,
        unseen: 0,
    };
    match counter.tune().await {
        Ok(()) => {}
        Err(failure) if settings.tokenize == Tokenize::Server => {
            return Err(Error::new(
                Kind::Infra,
                "no-tokenizer",
                format!("the server did not tokenize a prompt: {}", failure.message),
            )
            .hint("servers without `/tokenize` need `--tokenize auto` or `--tokenize words`"));
        }
        Err(_) => {
            return Ok(match counter.words_by_usage().await {
                Some(words) => by_words(words, Counting::Usage),
                None => by_words(settings.prompt_tokens, Counting::Words),
            });
        }
    }
    let mut lengths = by_words(settings.prompt_tokens, Counting::Tokenizer);
    let mut guess = settings.prompt_tokens;
    let mut exact = 0;
    for (purpose, list) in [
        (Purpose::Warmup, &mut lengths.warmup),
        (Purpose::Measured, &mut lengths.measured),
    ] {
        for (index, words) in (0u32..).zip(list.iter_mut()) {
            *words = guess;
            if exact >= ENOUGH_EXACT {
                continue;
            }
            // A prompt that cannot be counted keeps the last good guess: if the server is gone,
            // the request itself will say so.
            if let Ok(found) = counter.fit(purpose, index, guess).await {
                exact = if found == guess { exact + 1 } else { 0 };
                *words = found;
                guess = found;
            }
        }
    }
    Ok(lengths)
}

/// When so many prompts in a row needed the same number of words, the server's tokens are as
/// regular as words and the rest is not asked for: `usage` tells of each request anyway, and a
/// prompt that is off is flagged in the result.
const ENOUGH_EXACT: u32 = 16;

/// How a server wants to be asked for tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// The request as it would be sent; the answer counts the chat template too.
    Vllm,
    /// llama.cpp: a text in `content`; the chat template is not counted.
    Llama,
}

struct Counter<'a> {
    settings: &'a Settings,
    endpoint: &'a Endpoint,
    dialect: Dialect,
    /// Tokens of every prompt that the tokenizer does not count.
    unseen: u64,
}

/// Words of the prompt that the tokenizer is tried on.
const PROBE_WORDS: u32 = 64;

impl Counter<'_> {
    /// Finds out how the server's tokenizer is asked, and what it leaves out.
    async fn tune(&mut self) -> Result<(), Failure> {
        let probe = text(self.settings.seed, Purpose::Probe, 0, PROBE_WORDS);
        let Err(failure) = self.tokenize(&probe).await else {
            return Ok(());
        };
        self.dialect = Dialect::Llama;
        let seen = self.tokenize(&probe).await.map_err(|_| failure)?;
        if self.settings.api == Api::Chat {
            let all = self.usage(0, PROBE_WORDS).await?;
            self.unseen = all.saturating_sub(seen);
        }
        Ok(())
    }

    /// The number of words that brings this prompt nearest to the wanted tokens.
    async fn fit(&self, purpose: Purpose, index: u32, guess: u32) -> Result<u32, Failure> {
        let target = i64::from(self.settings.prompt_tokens);
        let mut words = guess.max(1);
        let mut best = (i64::MAX, words);
        for _ in 0..8 {
            let prompt = text(self.settings.seed, purpose, index, words);
            let tokens = self.tokenize(&prompt).await? as i64;
            let off = target - tokens;
            if off.abs() < best.0 {
                best = (off.abs(), words);
            }
            if off == 0 {
                break;
            }
            let per_word = (tokens as f64 / f64::from(words)).max(0.1);
            let step = (off as f64 / per_word).round() as i64;
            let step = if step == 0 { off.signum() } else { step };
            let next = (i64::from(words) + step).clamp(1, i64::from(u32::MAX)) as u32;
            if next == words {
                break;
            }
            words = next;
        }
        Ok(best.1)
    }

    /// Tokens of a prompt as the server counts them, special tokens and chat template included.
    async fn tokenize(&self, prompt: &str) -> Result<u64, Failure> {
        let ask = match self.dialect {
            Dialect::Vllm => {
                let mut ask = asking(self.settings, prompt, 1);
                if let Some(fields) = ask.as_object_mut() {
                    fields.shift_remove("max_tokens");
                }
                ask
            }
            Dialect::Llama => json!({ "content": prompt, "add_special": true }),
        };
        let answer = self.post("/tokenize", &ask).await?;
        let count = match self.dialect {
            Dialect::Vllm => answer.get("count").and_then(Value::as_u64),
            Dialect::Llama => answer
                .get("tokens")
                .and_then(Value::as_array)
                .map(|tokens| tokens.len() as u64),
        };
        match count {
            Some(count) if count > 0 => Ok(count + self.unseen),
            _ => Err(Failure::new("no_tokenizer", "/tokenize gave no count")),
        }
    }

    /// Words for the wanted tokens, by what `usage` says of prompts of two lengths: a straight
    /// line through both takes the fixed tokens (a template, a start token) into account.
    async fn words_by_usage(&self) -> Option<u32> {
        const SHORT: u32 = 32;
        const LONG: u32 = 160;
        let short = self.usage(0, SHORT).await.ok()?;
        let long = self.usage(1, LONG).await.ok()?;
        let slope = (long as f64 - short as f64) / f64::from(LONG - SHORT);
        if slope < 0.1 {
            return None;
        }
        let fixed = short as f64 - slope * f64::from(SHORT);
        let words = (f64::from(self.settings.prompt_tokens) - fixed) / slope;
        Some(words.round().max(1.0) as u32)
    }

    async fn usage(&self, index: u32, words: u32) -> Result<u64, Failure> {
        let prompt = text(self.settings.seed, Purpose::Probe, index, words);
        let path = self.settings.api.path();
        let answer = self.post(path, &asking(self.settings, &prompt, 1)).await?;
        let tokens = answer
            .pointer("/usage/prompt_tokens")
            .and_then(Value::as_u64);
        tokens.ok_or_else(|| Failure::new("no_usage", "the answer has no usage.prompt_tokens"))
    }

    async fn post(&self, path: &str, ask: &Value) -> Result<Value, Failure> {
        let limits = Limits {
            time: self.settings.request_timeout.min(Duration::from_secs(60)),
            bytes: 64 << 20,
        };
        let body = Bytes::from(ask.to_string());
        let (status, answer) = self
            .endpoint
            .exchange(Method::POST, path, &[], body, limits)
            .await?;
        if !status.is_success() {
            return Err(Failure::status(status, &answer));
        }
        serde_json::from_slice(&answer)
            .map_err(|e| Failure::new("bad_answer", format!("{path} did not answer JSON: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_prompt_for_ever() {
        // Golden: prompts are part of what a stored result was measured with.
        assert_eq!(
            text(0, Purpose::Measured, 0, 6),
            "field situation view relationship activity subject"
        );
    }

    #[test]
    fn prompts_have_their_words_and_differ_from_the_start() {
        let mut heads = std::collections::HashSet::new();
        for purpose in [Purpose::Probe, Purpose::Warmup, Purpose::Measured] {
            for index in 0..200 {
                let prompt = text(7, purpose, index, 1001);
                assert_eq!(prompt.split(' ').count(), 1001);
                let head: Vec<_> = prompt.split(' ').take(8).map(str::to_owned).collect();
                assert!(heads.insert(head), "two prompts share their first 8 words");
            }
        }
        let longer = text(7, Purpose::Warmup, 3, 12);
        assert!(longer.starts_with(&text(7, Purpose::Warmup, 3, 11)));
        assert_ne!(text(8, Purpose::Warmup, 3, 12), longer);
    }

    #[test]
    fn the_words_are_distinct_lower_case_ascii() {
        let set: std::collections::HashSet<_> = WORDS.iter().collect();
        assert_eq!(set.len(), 256);
        assert!(
            WORDS
                .iter()
                .all(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
        );
    }
}
