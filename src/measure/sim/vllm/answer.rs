//! Answers in vLLM's shapes. A streamed answer is one event a token, the last with its finish
//! reason, then usage if it was asked for, then `[DONE]`; an answer whose job broke off ends in
//! an error event, or without an end when the whole server died.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::api::Api;
use super::driver::Signal;
use super::request::{ApiError, Ask, Form};
use super::text::Speech;

/// A job that is being answered. Dropped before its end, it is aborted.
pub(super) struct Live {
    api: Arc<Api>,
    job: u64,
    over: bool,
}

impl Live {
    pub(super) fn new(api: Arc<Api>, job: u64) -> Self {
        Self {
            api,
            job,
            over: false,
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.over {
            self.api.abort(self.job);
        }
    }
}

/// The parts that all answers of one request share.
pub(super) struct Voice {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) ask: Ask,
    pub(super) speech: Speech,
    /// Whether the model ends by itself before it has to.
    pub(super) stops: bool,
    pub(super) said: u64,
}

impl Voice {
    fn finish_reason(&self) -> &'static str {
        if self.stops { "stop" } else { "length" }
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.ask.prompt_tokens,
            "total_tokens": self.ask.prompt_tokens + self.said,
            "completion_tokens": self.said,
        })
    }

    /// An event of the stream around its choices.
    fn event(&self, choices: &Value) -> Value {
        let object = match self.ask.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion.chunk",
        };
        json!({
            "id": self.id, "object": object, "created": self.created,
            "model": self.ask.model, "choices": choices,
        })
    }

    fn role(&self) -> Value {
        self.event(&json!([{
            "index": 0, "delta": {"role": "assistant", "content": ""},
            "logprobs": null, "finish_reason": null,
        }]))
    }

    fn token(&mut self, last: bool) -> Value {
        self.said += 1;
        let text = format!(" {}", self.speech.next());
        let reason = last.then(|| self.finish_reason());
        let choice = match self.ask.form {
            Form::Completion => json!({
                "index": 0, "text": text, "logprobs": null, "finish_reason": reason,
                "stop_reason": null,
            }),
            Form::Chat => json!({
                "index": 0, "delta": {"content": text}, "logprobs": null,
                "finish_reason": reason, "stop_reason": null,
            }),
        };
        self.event(&json!([choice]))
    }

    /// The whole answer, not streamed.
    pub(super) fn whole(&mut self, tokens: u64, transfer: Option<Value>) -> Value {
        self.said = tokens;
        let words: Vec<_> = (0..tokens).map(|_| self.speech.next()).collect();
        let text = format!(" {}", words.join(" "));
        let reason = self.finish_reason();
        let (object, choice) = match self.ask.form {
            Form::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": reason,
                        "stop_reason": null, "prompt_logprobs": null }),
            ),
            Form::Chat => (
                "chat.completion",
                json!({ "index": 0, "message": {"role": "assistant", "content": text},
                        "logprobs": null, "finish_reason": reason, "stop_reason": null }),
            ),
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.ask.model,
            "choices": [choice], "usage": self.usage(), "kv_transfer_params": transfer,
        })
    }
}

/// Ends a body without its end: the connection is cut.
#[derive(Debug)]
pub(super) struct ServerDied;

impl std::fmt::Display for ServerDied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the simulated server died")
    }
}

impl std::error::Error for ServerDied {}

/// A streamed answer.
pub(super) struct Stream {
    signals: UnboundedReceiver<Signal>,
    voice: Voice,
    live: Live,
    ready: VecDeque<Bytes>,
}

impl Stream {
    pub(super) fn new(signals: UnboundedReceiver<Signal>, voice: Voice, live: Live) -> Self {
        let mut ready = VecDeque::new();
        if voice.ask.form == Form::Chat {
            ready.push_back(line(&voice.role()));
        }
        Self {
            signals,
            voice,
            live,
            ready,
        }
    }

    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Fetched => {}
            Signal::Token { last } => {
                let token = self.voice.token(last);
                self.ready.push_back(line(&token));
                if last {
                    self.end();
                }
            }
            Signal::Failed(message) => {
                let error = ApiError::internal(message);
                self.ready.push_back(line(&error.json()));
                self.ready.push_back(DONE);
                self.live.over = true;
            }
        }
    }

    fn end(&mut self) {
        if self.voice.ask.include_usage {
            let mut event = self.voice.event(&json!([]));
            event["usage"] = self.voice.usage();
            self.ready.push_back(line(&event));
        }
        self.ready.push_back(DONE);
        self.live.over = true;
    }
}

const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("data: {event}\n\n"))
}

impl Body for Stream {
    type Data = Bytes;
    type Error = ServerDied;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ServerDied>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.live.over {
                return Poll::Ready(None);
            }
            match self.signals.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(signal)) => self.take(signal),
                Poll::Ready(None) => {
                    self.live.over = true;
                    return Poll::Ready(Some(Err(ServerDied)));
                }
            }
        }
    }
}

/// Waits for all tokens of a job.
///
/// # Errors
/// The error answer, when the job failed or the server died.
pub(super) async fn collect(
    mut signals: UnboundedReceiver<Signal>,
    mut live: Live,
) -> Result<u64, ApiError> {
    let mut tokens = 0;
    while let Some(signal) = signals.recv().await {
        match signal {
            Signal::Fetched => {}
            Signal::Token { last } => {
                tokens += 1;
                if last {
                    live.over = true;
                    return Ok(tokens);
                }
            }
            Signal::Failed(message) => {
                live.over = true;
                return Err(ApiError::internal(message));
            }
        }
    }
    live.over = true;
    Err(ApiError::internal(super::api::ENGINE_DEAD))
}
