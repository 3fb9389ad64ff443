//! From what was captured of a request to its times and tokens. A sample without an error is a
//! complete answer: status 200, at least one piece of content, ended by the server and not by
//! the network, and no error event in between.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::client::{Capture, Nanos};
use super::sse::Parser;
use crate::measure::http::Failure;

/// Where a request stood in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Place {
    /// Order of sending, from 0; warm-up requests are counted on their own.
    pub(super) index: u32,
    /// Which round, or in a closed loop which turn of this stream.
    pub(super) round: u32,
    /// Which of the concurrent streams.
    pub(super) stream: u32,
}

/// Where the number of output tokens comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TokensFrom {
    /// The server's `usage.completion_tokens`.
    Usage,
    /// The number of pieces with content, as the server sent no usage.
    Chunks,
}

/// One request as it is stored. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Sample {
    #[serde(flatten)]
    pub(super) place: Place,
    /// From the start of the measured window (of the warm-up for warm-up requests) to the send.
    pub(super) start_ms: f64,
    /// Opening the connection; before the send and in no other time.
    pub(super) connect_ms: f64,
    /// Send to first content.
    pub(super) ttft_ms: Option<f64>,
    /// (E2E - TTFT) / (output tokens - 1); null for outputs of one token.
    pub(super) tpot_ms: Option<f64>,
    /// Send to last content.
    pub(super) e2e_ms: Option<f64>,
    /// Gaps between pieces of content; left out of warm-up samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) itl_ms: Option<Vec<f64>>,
    /// `usage.prompt_tokens`.
    pub(super) prompt_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    pub(super) tokens_from: Option<TokensFrom>,
    /// The server's `finish_reason`.
    pub(super) finish_reason: Option<String>,
    pub(super) error: Option<Failure>,
    /// When the request was sent, on the run's clock.
    #[serde(skip)]
    pub(super) sent: Nanos,
    /// When the answer was over, on the run's clock.
    #[serde(skip)]
    pub(super) ended: Nanos,
}

impl Sample {
    pub(super) fn ok(&self) -> bool {
        self.error.is_none()
    }

    /// Fills in where in the window the request was sent.
    pub(super) fn starts_in(&mut self, window_start: Nanos) {
        self.start_ms = ms(window_start, self.sent);
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
    #[serde(default)]
    object: Option<Cow<'a, str>>,
    #[serde(default)]
    message: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(default)]
    finish_reason: Option<String>,
}

/// Reasoning models stream their reasoning under one of two names before `content`; both are
/// output tokens that the user waits for.
#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Clone, Copy)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

impl Choice<'_> {
    fn has_content(&self) -> bool {
        let filled = |t: &Option<Cow<'_, str>>| t.as_ref().is_some_and(|t| !t.is_empty());
        filled(&self.text)
            || self.delta.as_ref().is_some_and(|d| {
                filled(&d.content) || filled(&d.reasoning_content) || filled(&d.reasoning)
            })
    }
}

/// What the events of one answer say.
#[derive(Default)]
struct Answer {
    contents: Vec<Nanos>,
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
    finish_reason: Option<String>,
    done: bool,
    failure: Option<Failure>,
}

impl Answer {
    fn take(&mut self, at: Nanos, data: &[u8]) {
        if data.trim_ascii() == b"[DONE]" {
            self.done = true;
            return;
        }
        let event: Event<'_> = match serde_json::from_slice(data) {
            Ok(event) => event,
            Err(cause) => {
                let text = crate::measure::http::excerpt(data);
                return self.fail(
                    "bad_event",
                    format!("not a completion event ({cause}): {text}"),
                );
            }
        };
        if let Some(error) = event.error.filter(|e| !e.is_null()) {
            let message = match error.get("message").and_then(|m| m.as_str()) {
                Some(message) => message.to_owned(),
                None => error.to_string(),
            };
            let code = error.get("code").map(|c| format!(" (code {c})"));
            return self.fail("server_error", message + &code.unwrap_or_default());
        }
        if event.object.as_deref() == Some("error") {
            let message = event.message.unwrap_or_default();
            return self.fail("server_error", message.into_owned());
        }
        if let Some(usage) = event.usage {
            self.prompt_tokens = usage.prompt_tokens.or(self.prompt_tokens);
            self.output_tokens = usage.completion_tokens.or(self.output_tokens);
        }
        for choice in event.choices.unwrap_or_default() {
            if choice.has_content() {
                self.contents.push(at);
            }
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        }
    }

    fn fail(&mut self, kind: &str, message: String) {
        let message = message.chars().take(200).collect::<String>();
        self.failure.get_or_insert(Failure::new(kind, message));
    }

    fn verdict(&mut self) -> Option<Failure> {
        if let Some(failure) = self.failure.take() {
            return Some(failure);
        }
        if self.contents.is_empty() {
            let why = "the server answered 200 without any content";
            return Some(Failure::new("empty", why));
        }
        if !self.done && self.finish_reason.is_none() {
            let why = "the stream ended without a finish reason and without [DONE]";
            return Some(Failure::new("truncated", why));
        }
        None
    }
}

/// Milliseconds between two stamps, to a tenth of a microsecond.
fn ms(from: Nanos, to: Nanos) -> f64 {
    let tenths_us = (to.saturating_sub(from) + 50) / 100;
    tenths_us as f64 / 10_000.0
}

/// Understands one capture. `start_ms` stays 0 until the start of the window is known.
pub(super) fn decode(place: Place, capture: &Capture, keep_itl: bool) -> Sample {
    let mut answer = Answer::default();
    let mut parser = Parser::default();
    for (at, bytes) in &capture.pieces {
        parser.feed(bytes, |data| answer.take(*at, data));
    }
    let last = capture.pieces.last().map_or(capture.sent, |(at, _)| *at);
    parser.finish(|data| answer.take(last, data));

    // What the network says comes before what the half answer says, but an error event that the
    // server sent before it hung up is the better explanation.
    let error = match &capture.failure {
        Some(failure) => Some(answer.failure.take().unwrap_or_else(|| failure.clone())),
        None => answer.verdict(),
    };
    let first = answer.contents.first().copied();
    let end = answer.contents.last().copied();
    let (output_tokens, tokens_from) = match (answer.output_tokens, answer.contents.len()) {
        (Some(n), _) => (Some(n), Some(TokensFrom::Usage)),
        (None, 0) => (None, None),
        (None, n) => (Some(n as u64), Some(TokensFrom::Chunks)),
    };
    let e2e_ms = end.filter(|_| error.is_none()).map(|t| ms(capture.sent, t));
    let tpot_ms = match (first, end, output_tokens) {
        (Some(first), Some(end), Some(n)) if n > 1 && error.is_none() => {
            Some(ms(first, end) / (n - 1) as f64)
        }
        _ => None,
    };
    let gaps = answer.contents.windows(2).map(|w| ms(w[0], w[1]));
    Sample {
        place,
        start_ms: 0.0,
        connect_ms: ms(0, capture.connect),
        ttft_ms: first.map(|t| ms(capture.sent, t)),
        tpot_ms,
        e2e_ms,
        itl_ms: keep_itl.then(|| gaps.collect()),
        prompt_tokens: answer.prompt_tokens,
        output_tokens,
        tokens_from,
        finish_reason: answer.finish_reason,
        error,
        sent: capture.sent,
        ended: capture.ended,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
