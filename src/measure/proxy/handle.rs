//! What the proxy answers. A completion request goes to prefill for one token, the transfer
//! parameters of that answer go with it to decode, and decode's bytes go to the client; every
//! way this can fail has a name, which is the error's type and the record's status.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::backend::{content_type, is_delimited};
use super::record::{Filter, Record, Trace};
use super::relay::Relay;
use super::{App, Handover};
use crate::measure::http::{Failure, excerpt};

/// Prompts of 128K tokens are under a megabyte; this leaves room for chats.
const REQUEST_BYTES: usize = 64 << 20;

const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(complete))
        .route("/v1/models", get(models))
        .route("/tokenize", post(tokenize))
        .route("/health", get(health))
        .route("/stats", get(stats))
        .route("/stats/reset", post(reset))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .with_state(app)
}

/// A failure with the status that the client gets.
struct Refusal {
    status: StatusCode,
    name: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, name: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            name,
            message: message.into(),
        }
    }

    /// A server behind the proxy that did not do its part.
    fn upstream(failure: &Failure, names: [&'static str; 3], who: &str) -> Self {
        let (status, name) = match failure.kind.as_str() {
            "connect" => (StatusCode::BAD_GATEWAY, names[0]),
            "timeout" => (StatusCode::GATEWAY_TIMEOUT, names[1]),
            _ => (StatusCode::BAD_GATEWAY, names[2]),
        };
        Self::new(status, name, format!("{who}: {}", failure.message))
    }

    fn answer(&self) -> Response<Body> {
        let body = json!({ "error": {
            "type": self.name, "code": self.status.as_u16(), "message": self.message,
        }});
        json_answer(self.status, &body)
    }
}

const PREFILL_FAILURES: [&str; 3] = ["prefill_unreachable", "prefill_timeout", "prefill_failed"];
const DECODE_FAILURES: [&str; 3] = ["decode_unreachable", "decode_timeout", "decode_failed"];

fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    raw_answer(
        status,
        Some("application/json"),
        Body::from(body.to_string()),
    )
}

fn raw_answer(status: StatusCode, kind: Option<&str>, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Some(Ok(kind)) = kind.map(str::parse) {
        response.headers_mut().insert("content-type", kind);
    }
    response
}

async fn complete(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let header = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let id = header("x-request-id").unwrap_or_else(|| {
        let n = app.made.fetch_add(1, Ordering::Relaxed);
        format!("doe-proxy-{}-{n}", std::process::id())
    });
    let mut trace = Trace::begin(
        &app.records,
        Record {
            id: id.clone(),
            client: header("x-doe-session"),
            endpoint: uri.path().to_owned(),
            ..Record::default()
        },
    );
    let authorization = header("authorization");
    let mut pass = vec![("x-request-id", id.as_str())];
    if let Some(authorization) = &authorization {
        pass.push(("authorization", authorization));
    }
    match through(&app, uri.path(), &pass, &body, &mut trace).await {
        Ok(Through::Refused(answer)) => answer,
        Ok(Through::Streaming(response, lease)) => {
            let status = response.status();
            let kind = content_type(&response);
            let delimited = is_delimited(&response);
            trace.note(|r| r.http_status = Some(status.as_u16()));
            let body = response.into_body();
            let relay = Relay::new(body, trace, lease, app.idle_timeout, delimited);
            raw_answer(status, kind.as_deref(), Body::new(relay))
        }
        Err(refusal) => {
            trace.note(|r| r.http_status = Some(refusal.status.as_u16()));
            trace.finish(refusal.name);
            refusal.answer()
        }
    }
}

enum Through {
    /// Prefill refused the request itself (too long, unknown model): its own answer.
    Refused(Response<Body>),
    /// Decode answers.
    Streaming(
        hyper::Response<hyper::body::Incoming>,
        super::backend::Lease,
    ),
}

async fn through(
    app: &App,
    path: &str,
    headers: &[(&str, &str)],
    body: &Bytes,
    trace: &mut Trace,
) -> Result<Through, Refusal> {
    let bad = |why: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", why);
    let request: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|e| bad(format!("the body is not a JSON object: {e}")))?;

    trace.stamp(|r| &mut r.prefill_sent_ms);
    let ask = Bytes::from(Value::Object(for_prefill(&request, app.handover)).to_string());
    let answer = app
        .prefill
        .whole(path, headers, ask, app.prefill_timeout)
        .await;
    trace.stamp(|r| &mut r.prefill_done_ms);
    let who = format!("prefill server {}", app.prefill.authority());
    let (status, kind, answer) =
        answer.map_err(|f| Refusal::upstream(&f, PREFILL_FAILURES, &who))?;
    if status.is_client_error() {
        trace.note(|r| r.http_status = Some(status.as_u16()));
        trace.finish("prefill_refused");
        let answer = raw_answer(status, kind.as_deref(), Body::from(answer));
        return Ok(Through::Refused(answer));
    }
    if status != StatusCode::OK {
        let failure = Failure::status(status, &answer);
        return Err(Refusal::upstream(&failure, PREFILL_FAILURES, &who));
    }
    let params = match transfer_params(&answer) {
        _ if app.handover == Handover::Storage => None,
        Some(params) => Some(params),
        None if app.allow_recompute => {
            trace.note(|r| r.recomputed = true);
            None
        }
        None => {
            return Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "kv_transfer_params_missing",
                format!(
                    "{who} answered without kv_transfer_params, so decode would do the prefill \
                     again and something else would be measured: {}",
                    excerpt(&answer)
                ),
            ));
        }
    };

    trace.stamp(|r| &mut r.decode_sent_ms);
    let mut ask = request;
    if let Some(params) = params {
        ask.insert("kv_transfer_params".into(), params);
    }
    let ask = Bytes::from(Value::Object(ask).to_string());
    let send = app.decode.send(Method::POST, path, headers, ask);
    let outcome = tokio::time::timeout(app.decode_timeout, send).await;
    let outcome = outcome.unwrap_or_else(|_| Err(Failure::timeout(app.decode_timeout)));
    let who = format!("decode server {}", app.decode.authority());
    let (response, lease) = outcome.map_err(|f| Refusal::upstream(&f, DECODE_FAILURES, &who))?;
    Ok(Through::Streaming(response, lease))
}

/// The request for the prefill server: one token, not streamed, and the KV cache kept for a
/// remote decode. The six keys are what vLLM's NIXL connector expects.
fn for_prefill(request: &Map<String, Value>, handover: Handover) -> Map<String, Value> {
    let mut ask = request.clone();
    ask.shift_remove("stream_options");
    ask.shift_remove("min_tokens"); // may not exceed max_tokens
    ask.insert("stream".into(), false.into());
    ask.insert("max_tokens".into(), 1.into());
    if ask.contains_key("max_completion_tokens") {
        ask.insert("max_completion_tokens".into(), 1.into());
    }
    if handover == Handover::Storage {
        return ask;
    }
    ask.insert(
        "kv_transfer_params".into(),
        json!({
            "do_remote_decode": true,
            "do_remote_prefill": false,
            "remote_engine_id": null,
            "remote_block_ids": null,
            "remote_host": null,
            "remote_port": null,
        }),
    );
    ask
}

fn transfer_params(answer: &[u8]) -> Option<Value> {
    let mut answer: Map<String, Value> = serde_json::from_slice(answer).ok()?;
    let params = answer.remove("kv_transfer_params")?;
    params
        .as_object()
        .is_some_and(|p| !p.is_empty())
        .then_some(params)
}

/// Clients find prompt lengths with the servers' own tokenizer, through the same address.
async fn tokenize(State(app): State<Arc<App>>, uri: Uri, body: Bytes) -> Response<Body> {
    let outcome = app
        .prefill
        .whole(uri.path(), &[], body, app.prefill_timeout)
        .await;
    match outcome {
        Ok((status, kind, body)) => raw_answer(status, kind.as_deref(), Body::from(body)),
        Err(f) => Refusal::upstream(&f, PREFILL_FAILURES, "prefill server").answer(),
    }
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    match app.prefill.get("/v1/models", HEALTH_TIMEOUT).await {
        Ok((status, body)) => raw_answer(status, Some("application/json"), Body::from(body)),
        Err(f) => Refusal::upstream(&f, PREFILL_FAILURES, "prefill server").answer(),
    }
}

async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let (prefill, decode) = tokio::join!(
        app.prefill.get("/health", HEALTH_TIMEOUT),
        app.decode.get("/health", HEALTH_TIMEOUT),
    );
    let told = |outcome: &Result<(StatusCode, Bytes), Failure>| match outcome {
        Ok((StatusCode::OK, _)) => "ok".to_owned(),
        Ok((status, _)) => format!("HTTP {}", status.as_u16()),
        Err(failure) => failure.message.clone(),
    };
    let (prefill, decode) = (told(&prefill), told(&decode));
    let well = prefill == "ok" && decode == "ok";
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let word = if well { "ok" } else { "unhealthy" };
    let body = json!({ "status": word, "prefill": prefill, "decode": decode });
    json_answer(status, &body)
}

async fn stats(State(app): State<Arc<App>>, uri: Uri) -> Response<Body> {
    let filter = match Filter::parse(uri.query().unwrap_or("")) {
        Ok(filter) => filter,
        Err(why) => return Refusal::new(StatusCode::BAD_REQUEST, "bad_filter", why).answer(),
    };
    match serde_json::to_vec(&app.records.stats(&filter)) {
        Ok(body) => raw_answer(StatusCode::OK, Some("application/json"), Body::from(body)),
        Err(e) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", e.to_string()).answer(),
    }
}

async fn reset(State(app): State<Arc<App>>) -> Response<Body> {
    json_answer(StatusCode::OK, &json!({ "cleared": app.records.reset() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefill_request_is_one_token_not_streamed_and_keeps_the_cache() {
        let request = json!({
            "model": "m", "prompt": "p", "max_tokens": 128, "max_completion_tokens": 128,
            "min_tokens": 5, "stream": true, "stream_options": {"include_usage": true},
            "temperature": 0.0,
        });
        let ask = Value::Object(for_prefill(request.as_object().unwrap(), Handover::Params));
        assert_eq!(
            ask,
            json!({
                "model": "m", "prompt": "p", "max_tokens": 1, "max_completion_tokens": 1,
                "stream": false, "temperature": 0.0,
                "kv_transfer_params": {
                    "do_remote_decode": true, "do_remote_prefill": false,
                    "remote_engine_id": null, "remote_block_ids": null,
                    "remote_host": null, "remote_port": null,
                },
            })
        );
    }

    #[test]
    fn only_a_filled_object_counts_as_transfer_parameters() {
        for text in [
            "",
            "{}",
            r#"{"kv_transfer_params":null}"#,
            r#"{"kv_transfer_params":{}}"#,
        ] {
            assert_eq!(transfer_params(text.as_bytes()), None, "{text}");
        }
        assert!(transfer_params(br#"{"kv_transfer_params":{"remote_port":1}}"#).is_some());
    }
}
