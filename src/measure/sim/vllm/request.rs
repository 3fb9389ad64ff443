//! Requests as vLLM checks them. What passes fits the model's context and can be answered; what
//! does not is refused with vLLM's status, type and words.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use super::side::TransferParams;
use super::text::Prompt;

/// An error answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    kind: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl ApiError {
    pub(super) fn bad(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self {
            status: 400,
            kind: "BadRequestError",
            message: message.into(),
            param,
        }
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self {
            status: 500,
            kind: "InternalServerError",
            message: message.into(),
            param: None,
        }
    }

    pub(super) fn unauthorized() -> Self {
        Self {
            status: 401,
            kind: "Unauthorized",
            message: "Unauthorized".into(),
            param: None,
        }
    }

    fn no_model(model: &str) -> Self {
        Self {
            status: 404,
            kind: "NotFoundError",
            message: format!("The model `{model}` does not exist."),
            param: Some("model"),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.status,
        }})
    }

    pub(super) fn answer(&self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        json_answer(status, &self.json())
    }
}

pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

/// Which API was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Completion,
    Chat,
}

/// What requests are checked against.
pub(super) struct Terms<'a> {
    pub(super) served: &'a [String],
    pub(super) max_len: u64,
}

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub(super) form: Form,
    pub(super) model: String,
    pub(super) prompt: Prompt,
    pub(super) prompt_tokens: u64,
    pub(super) max_tokens: u64,
    pub(super) min_tokens: u64,
    pub(super) ignore_eos: bool,
    pub(super) sampled: bool,
    pub(super) seed: Option<u64>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) transfer: Option<TransferParams>,
}

/// Tokens that the chat template adds: three a turn to open and two to close it, and three to
/// open the answer.
const TURN_TOKENS: u64 = 5;
const ANSWER_TOKENS: u64 = 3;

impl Ask {
    /// Reads a request.
    pub(super) fn read(form: Form, body: &[u8], terms: &Terms<'_>) -> Result<Self, ApiError> {
        let (body, model) = envelope(body, terms)?;
        let (prompt, prompt_tokens) = prompt_of(form, &body)?;
        let number = |key: &'static str| match body.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| {
                let message = format!("{key}: Input should be a valid integer, got {value}");
                ApiError::bad(message, Some(key))
            }),
        };
        let asked = match number("max_completion_tokens")? {
            Some(n) if form == Form::Chat => Some(n),
            _ => number("max_tokens")?,
        };
        let room = terms.max_len.saturating_sub(prompt_tokens);
        if room == 0 {
            return Err(ApiError::bad(
                format!(
                    "This model's maximum context length is {} tokens. However, your request has \
                     {prompt_tokens} input tokens. Please reduce the length of the input messages.",
                    terms.max_len
                ),
                Some("input_tokens"),
            ));
        }
        let max_tokens = match (asked, form) {
            (Some(n), _) => n,
            (None, Form::Completion) => 16.min(room),
            (None, Form::Chat) => room,
        };
        if max_tokens == 0 {
            let message = "max_tokens must be at least 1, got 0.";
            return Err(ApiError::bad(message, Some("max_tokens")));
        }
        if max_tokens > room {
            return Err(ApiError::bad(
                format!(
                    "'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This \
                     model's maximum context length is {len} tokens and your request has \
                     {prompt_tokens} input tokens ({max_tokens} > {len} - {prompt_tokens}).",
                    len = terms.max_len
                ),
                Some("max_tokens"),
            ));
        }
        if number("n")?.is_some_and(|n| n != 1) {
            return Err(ApiError::bad("n other than 1 is not simulated", Some("n")));
        }
        let min_tokens = number("min_tokens")?.unwrap_or(0);
        if min_tokens > max_tokens {
            let message = format!(
                "min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
            );
            return Err(ApiError::bad(message, Some("min_tokens")));
        }
        let temperature = match body.get("temperature") {
            None | Some(Value::Null) => 1.0,
            Some(value) => value.as_f64().filter(|t| *t >= 0.0).ok_or_else(|| {
                let message = format!("temperature must be non-negative, got {value}.");
                ApiError::bad(message, Some("temperature"))
            })?,
        };
        let is_on = |key: &str| body.get(key).and_then(Value::as_bool).unwrap_or(false);
        let usage = body.pointer("/stream_options/include_usage");
        let transfer = match body.get("kv_transfer_params") {
            None | Some(Value::Null) => None,
            Some(params) => Some(serde_json::from_value(params.clone()).map_err(|e| {
                ApiError::bad(
                    format!("kv_transfer_params: {e}"),
                    Some("kv_transfer_params"),
                )
            })?),
        };
        Ok(Self {
            form,
            model,
            prompt,
            prompt_tokens,
            max_tokens,
            min_tokens,
            ignore_eos: is_on("ignore_eos"),
            sampled: temperature > 0.0,
            seed: number("seed")?,
            stream: is_on("stream"),
            include_usage: usage.and_then(Value::as_bool).unwrap_or(false),
            transfer,
        })
    }
}

/// Reads a `/tokenize` request: the prompt or the messages, and the tokens of it.
pub(super) fn read_tokenize(body: &[u8], terms: &Terms<'_>) -> Result<(Prompt, u64), ApiError> {
    let (body, _) = envelope(body, terms)?;
    let form = match body.get("messages") {
        Some(_) => Form::Chat,
        None => Form::Completion,
    };
    prompt_of(form, &body)
}

fn envelope(body: &[u8], terms: &Terms<'_>) -> Result<(Value, String), ApiError> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| ApiError::bad(format!("body: JSON decode error: {e}"), None))?;
    let model = match body.get("model") {
        Some(Value::String(model)) => model.clone(),
        _ => String::new(),
    };
    if terms.served.contains(&model) {
        return Ok((body, model));
    }
    Err(ApiError::no_model(&model))
}

fn prompt_of(form: Form, body: &Value) -> Result<(Prompt, u64), ApiError> {
    let prompt = match form {
        Form::Completion => match body.get("prompt") {
            Some(Value::String(text)) => Prompt::Words(text.clone()),
            Some(Value::Array(list)) => {
                let ids: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                match (ids, list.as_slice()) {
                    (Some(ids), [_, ..]) => Prompt::Ids(ids),
                    (None, [Value::String(text)]) => Prompt::Words(text.clone()),
                    _ => {
                        let message = "prompt: a list of several prompts is not simulated";
                        return Err(ApiError::bad(message, Some("prompt")));
                    }
                }
            }
            _ => {
                let message = "Either prompt or prompt_embeds must be provided and non-empty.";
                return Err(ApiError::bad(message, Some("prompt")));
            }
        },
        Form::Chat => {
            let messages = body.get("messages").and_then(Value::as_array);
            let messages = messages
                .ok_or_else(|| ApiError::bad("messages: Field required", Some("messages")))?;
            let mut text = String::new();
            for message in messages {
                content(message, &mut text)?;
            }
            let prompt = Prompt::Words(text);
            let turns = messages.len() as u64;
            let tokens = prompt.tokens() + turns * TURN_TOKENS + ANSWER_TOKENS;
            return Ok((prompt, tokens));
        }
    };
    let tokens = prompt.tokens();
    if tokens == 0 {
        let message = "The decoder prompt cannot be empty";
        return Err(ApiError::bad(message, Some("prompt")));
    }
    Ok((prompt, tokens))
}

fn content(message: &Value, text: &mut String) -> Result<(), ApiError> {
    match message.get("content") {
        Some(Value::String(content)) => {
            text.push_str(content);
            text.push('\n');
        }
        Some(Value::Array(parts)) => {
            for part in parts {
                text.push_str(part.get("text").and_then(Value::as_str).unwrap_or(""));
                text.push('\n');
            }
        }
        None | Some(Value::Null) => {}
        Some(_) => {
            let message = "messages.content: Input should be a valid string";
            return Err(ApiError::bad(message, Some("messages")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: Form, body: Value) -> Result<Ask, ApiError> {
        let terms = Terms {
            served: &["m".to_owned()],
            max_len: 20,
        };
        Ask::read(form, body.to_string().as_bytes(), &terms)
    }

    #[test]
    fn a_request_reads_with_vllms_defaults() {
        let ask = read(Form::Completion, json!({"model": "m", "prompt": "a b c"})).unwrap();
        assert_eq!((ask.prompt_tokens, ask.max_tokens), (3, 16));
        assert!(!ask.stream && ask.sampled && !ask.include_usage);
        let ask = read(
            Form::Completion,
            json!({"model": "m", "prompt": "a b c d e f"}),
        )
        .unwrap();
        assert_eq!(ask.max_tokens, 14, "cut to what is left of the context");
        let ids = read(
            Form::Completion,
            json!({"model": "m", "prompt": [1, 2], "temperature": 0}),
        )
        .unwrap();
        assert_eq!((ids.prompt_tokens, ids.sampled), (2, false));
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "a b"}], "max_completion_tokens": 4});
        let chat = read(Form::Chat, chat).unwrap();
        assert_eq!((chat.prompt_tokens, chat.max_tokens), (10, 4));
    }

    #[test]
    fn refusals_have_vllms_status_and_words() {
        let words = |n: usize| "w ".repeat(n);
        for (body, status, part) in [
            (
                json!({"model": "x", "prompt": "a"}),
                404,
                "The model `x` does not exist.",
            ),
            (json!({"prompt": "a"}), 404, "does not exist"),
            (json!({"model": "m"}), 400, "Either prompt or prompt_embeds"),
            (json!({"model": "m", "prompt": ""}), 400, "cannot be empty"),
            (
                json!({"model": "m", "prompt": words(20)}),
                400,
                "This model's maximum context length is 20 tokens. However, your request has 20 input tokens.",
            ),
            (
                json!({"model": "m", "prompt": words(10), "max_tokens": 11}),
                400,
                "(11 > 20 - 10)",
            ),
            (
                json!({"model": "m", "prompt": "a", "max_tokens": 0}),
                400,
                "at least 1",
            ),
            (
                json!({"model": "m", "prompt": "a", "max_tokens": "x"}),
                400,
                "valid integer",
            ),
            (
                json!({"model": "m", "prompt": "a", "temperature": -1}),
                400,
                "non-negative",
            ),
            (
                json!({"model": "m", "prompt": "a", "max_tokens": 2, "min_tokens": 3}),
                400,
                "min_tokens",
            ),
            (
                json!({"model": "m", "prompt": "a", "kv_transfer_params": 3}),
                400,
                "kv_transfer_params",
            ),
        ] {
            let error = read(Form::Completion, body.clone()).unwrap_err();
            assert_eq!(error.status, status, "{body}");
            let message = error.json()["error"]["message"].to_string();
            assert!(message.contains(part), "{message}");
        }
        let error = Ask::read(
            Form::Chat,
            b"{",
            &Terms {
                served: &[],
                max_len: 1,
            },
        )
        .unwrap_err();
        assert_eq!(error.status, 400);
    }
}
