//! The server's HTTP interface. Every request that is taken in becomes exactly one job of the
//! engine, which is answered, failed or aborted; a consumer's job reaches the engine only after
//! the producer granted its blocks, or by the configured failure policy.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::answer::{Live, Stream, Voice, collect};
use super::driver::{Driver, Signal};
use super::engine::{Fetch, Job};
use super::kv::{LoadFailure, Role};
use super::log::Log;
use super::metrics;
use super::request::{ApiError, Ask, Form, Terms, json_answer, read_tokenize};
use super::side::{self, Held, Identity, SideChannel, TransferParams};
use super::storage::Storage;
use super::text::Speech;

/// What vLLM says when its engine process is gone.
pub(super) const ENGINE_DEAD: &str =
    "EngineCore encountered an issue. See stack trace (above) for the root cause.";

/// How a server takes part in KV transfers.
pub(super) struct Transfers {
    pub(super) role: Role,
    pub(super) on_failure: LoadFailure,
    pub(super) identity: Identity,
    pub(super) engine_id: String,
    pub(super) tensor_parallel: u32,
    pub(super) bytes_per_token: f64,
    /// Descriptors of one block.
    pub(super) regions: u64,
    pub(super) latency_s: f64,
    pub(super) side: SideChannel,
    /// The address that peers are told.
    pub(super) host: String,
    /// Engines that were met before.
    pub(super) met: Mutex<HashSet<String>>,
}

/// The first contact with an engine exchanges metadata and registers its memory.
const FIRST_HANDSHAKE_S: f64 = 0.25;
/// Making one descriptor and posting it.
const DESCRIPTOR_S: f64 = 0.15e-6;

/// Faults that can be injected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) out_of_memory: bool,
    pub(super) hangs: bool,
    pub(super) engine_dead: bool,
    pub(super) no_transfer_params: bool,
    pub(super) dies_after_tokens: Option<u64>,
}

/// All that the handlers share.
pub(super) struct Api {
    pub(super) driver: Arc<Driver>,
    pub(super) transfers: Option<Transfers>,
    pub(super) storage: Option<Storage>,
    pub(super) model: String,
    pub(super) served: Vec<String>,
    pub(super) api_keys: Vec<String>,
    pub(super) max_len: u64,
    pub(super) capacity: u64,
    pub(super) block: u64,
    pub(super) prefix_caching: bool,
    pub(super) time_scale: f64,
    pub(super) request_overhead_s: f64,
    pub(super) faults: Faults,
    pub(super) log: Log,
    pub(super) dead: AtomicBool,
    pub(super) jobs: AtomicU64,
    pub(super) started: u64,
}

/// A request of 128K tokens is under a megabyte.
const REQUEST_BYTES: usize = 64 << 20;

pub(super) fn router(api: Arc<Api>) -> Router {
    let completions = |State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes| async move {
        complete(api, Form::Completion, &headers, &body).await
    };
    let chat = |State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes| async move {
        complete(api, Form::Chat, &headers, &body).await
    };
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/tokenize", post(tokenize))
        .route("/health", get(health))
        .route("/metrics", get(metrics_text))
        .route("/version", get(version))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .with_state(api)
}

impl Api {
    fn terms(&self) -> Terms<'_> {
        Terms {
            served: &self.served,
            max_len: self.max_len,
        }
    }

    pub(super) fn abort(&self, job: u64) {
        self.driver.abort(job);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire) || self.driver.crashed()
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let given = headers.get("authorization").and_then(|h| h.to_str().ok());
        let given = given.and_then(|h| h.strip_prefix("Bearer "));
        match self.api_keys.iter().any(|key| Some(key.as_str()) == given) {
            false if !self.api_keys.is_empty() => Err(ApiError::unauthorized()),
            _ => Ok(()),
        }
    }

    async fn virtual_sleep(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds * self.time_scale)).await;
    }
}

async fn complete(api: Arc<Api>, form: Form, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let ask = api
        .authorize(headers)
        .and_then(|()| Ask::read(form, body, &api.terms()));
    let ask = match ask {
        Ok(ask) => ask,
        Err(error) => return error.answer(),
    };
    if api.is_dead() {
        return ApiError::internal(ENGINE_DEAD).answer();
    }
    if api.request_overhead_s > 0.0 {
        api.virtual_sleep(api.request_overhead_s).await;
    }
    let job = api.jobs.fetch_add(1, Ordering::Relaxed);
    let given = headers.get("x-request-id").and_then(|h| h.to_str().ok());
    let prefix = match form {
        Form::Completion => "cmpl",
        Form::Chat => "chatcmpl",
    };
    let id = match given {
        Some(given) => format!("{prefix}-{given}"),
        None => format!("{prefix}-{:016x}{job:016x}", api.started),
    };
    // The prompt's own answer at temperature 0; else another one each time, or the seed's.
    let sampled = match (ask.sampled, ask.seed) {
        (false, _) => 0,
        (true, Some(seed)) => seed.wrapping_add(1),
        (true, None) => job.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
    };
    let digest = ask.prompt.digest();
    let end = match ask.ignore_eos {
        true => None,
        false => Speech::natural_end(&api.model, digest, sampled, ask.min_tokens, ask.max_tokens),
    };
    let voice = Voice {
        id: id.clone(),
        created: unix_seconds(),
        speech: Speech::new(&api.model, digest, sampled),
        stops: end.is_some(),
        said: 0,
        ask,
    };
    let outputs = end.unwrap_or(voice.ask.max_tokens);
    answer(api, voice, job, outputs, &id).await
}

async fn answer(api: Arc<Api>, voice: Voice, job: u64, outputs: u64, id: &str) -> Response<Body> {
    let ask = &voice.ask;
    let role = api.transfers.as_ref().map(|t| t.role);
    let wants = |f: fn(&TransferParams) -> bool| ask.transfer.as_ref().is_some_and(f);
    let produces = role.is_some_and(|role| role != Role::Consumer)
        && wants(|p| p.do_remote_decode)
        && !api.faults.no_transfer_params;
    let consumes =
        role.is_some_and(|role| role != Role::Producer) && wants(|p| p.do_remote_prefill);
    let prompt_tokens = ask.prompt_tokens;
    let stored = match api.storage.as_ref().map(|s| s.take(&ask.prompt.ids())) {
        None => None,
        Some(Ok(stored)) => Some(stored),
        Some(Err(cause)) => {
            api.log.error("core.py:868", &format!("OSError: {cause}"));
            return ApiError::internal(ENGINE_DEAD).answer();
        }
    };
    let plain = Job {
        id: job,
        prompt: prompt_tokens,
        outputs,
        most_outputs: ask.max_tokens,
        blocks: match api.prefix_caching {
            true => ask.prompt.blocks(api.block),
            false => Vec::new(),
        },
        fetch: None,
        stored,
        // Only an answer that is not streamed can say where the blocks are.
        hold: produces && !ask.stream,
    };
    let (sender, signals) = unbounded_channel();
    let live = Live::new(Arc::clone(&api), job);
    if api.faults.engine_dead {
        kill_engine(&api, &sender);
    } else if consumes {
        // In the background, as the head of a streamed answer leaves at once.
        let params = ask.transfer.clone();
        let api = Arc::clone(&api);
        tokio::spawn(async move {
            if let (Some(transfers), Some(params)) = (&api.transfers, params) {
                consume(&api, transfers, &params, plain, sender).await;
            }
        });
    } else {
        api.driver.submit(plain, sender);
    }
    if voice.ask.stream {
        let mut response = Response::new(Body::new(Stream::new(signals, voice, live)));
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert("content-type", kind);
        return response;
    }
    let mut voice = voice;
    match collect(signals, live).await {
        Err(error) => error.answer(),
        Ok(tokens) => {
            let transfers = api.transfers.as_ref().filter(|_| produces);
            let transfer = transfers.map(|t| hold(&api, t, job, id, prompt_tokens));
            json_answer(StatusCode::OK, &voice.whole(tokens, transfer))
        }
    }
}

/// Keeps a finished prefill's blocks and tells where they are.
fn hold(api: &Api, transfers: &Transfers, job: u64, id: &str, tokens: u64) -> Value {
    let count = tokens.div_ceil(api.block);
    // Ids like an allocator's: distinct, from the pool, the same for all layers.
    let pool = (api.capacity / api.block).max(1);
    let first = job.wrapping_mul(977) % pool;
    let block_ids: Vec<u64> = (0..count).map(|i| 1 + (first + i) % pool).collect();
    transfers.side.hold(
        id,
        Held {
            job,
            block_ids: block_ids.clone(),
            tokens,
            since: Instant::now(),
        },
    );
    json!(TransferParams {
        do_remote_prefill: true,
        do_remote_decode: false,
        remote_engine_id: Some(transfers.engine_id.clone()),
        remote_block_ids: Some(block_ids),
        remote_host: Some(transfers.host.clone()),
        remote_port: Some(transfers.side.address().port()),
        remote_request_id: Some(id.to_owned()),
        tp_size: Some(transfers.tensor_parallel),
    })
}

/// Fetches a prompt's cache from its producer, then decodes.
async fn consume(
    api: &Api,
    transfers: &Transfers,
    params: &TransferParams,
    plain: Job,
    signals: UnboundedSender<Signal>,
) {
    let granted = match side::claim(params, &transfers.identity).await {
        Ok(granted) if granted.tokens == plain.prompt => granted,
        Ok(granted) => {
            let why = format!(
                "{} tokens are held, the prompt has {}",
                granted.tokens, plain.prompt
            );
            return load_failed(api, transfers, plain, signals, &why);
        }
        Err(why) => return load_failed(api, transfers, plain, signals, &why),
    };
    let engine = params.remote_engine_id.clone().unwrap_or_default();
    let is_new = {
        let mut met = transfers.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.insert(engine)
    };
    if is_new {
        api.virtual_sleep(FIRST_HANDSHAKE_S).await;
    }
    let blocks = plain.prompt.div_ceil(api.block);
    let descriptors = (blocks * transfers.regions) as f64;
    let job = Job {
        fetch: Some(Fetch {
            bytes: plain.prompt as f64 * transfers.bytes_per_token,
            setup: descriptors * DESCRIPTOR_S + 2.0 * transfers.latency_s,
        }),
        blocks: Vec::new(),
        ..plain
    };
    let (inner, mut heard) = unbounded_channel();
    api.driver.submit(job, inner);
    let mut granted = Some(granted);
    while let Some(signal) = heard.recv().await {
        if signal == Signal::Fetched
            && let Some(granted) = granted.take()
        {
            tokio::spawn(granted.done());
        }
        if signals.send(signal).is_err() {
            return; // the reader is gone, and its end aborts the job
        }
    }
}

fn load_failed(
    api: &Api,
    transfers: &Transfers,
    plain: Job,
    signals: UnboundedSender<Signal>,
    why: &str,
) {
    api.log.error("nixl_connector.py:1820", why);
    match transfers.on_failure {
        LoadFailure::Recompute => {
            let message = "Recovered from KV load failure: 1 request(s) rescheduled";
            api.log.warning("scheduler.py:1985", message);
            api.driver.submit(plain, signals);
        }
        LoadFailure::Fail => {
            let _ = signals.send(Signal::Failed("Internal server error".into())); // reader may be gone
        }
    }
}

/// The injected fault in which `/health` was fine and the first request ends the engine.
fn kill_engine(api: &Api, reader: &UnboundedSender<Signal>) {
    if !api.dead.swap(true, Ordering::AcqRel) {
        api.log
            .error("core.py:868", "EngineCore encountered a fatal error.");
        api.log.raw("Traceback (most recent call last):\n  File \"vllm/v1/engine/core.py\", line 859, in run_engine_core\nRuntimeError: simulated fault vllm:engine-dead");
    }
    let _ = reader.send(Signal::Failed(ENGINE_DEAD.into())); // it was made a moment ago
}

async fn health(State(api): State<Arc<Api>>) -> StatusCode {
    match api.is_dead() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    }
}

async fn models(State(api): State<Arc<Api>>) -> Response<Body> {
    let cards = api.served.iter().map(|name| {
        json!({
            "id": name, "object": "model", "created": api.started, "owned_by": "vllm",
            "root": api.model, "parent": null, "max_model_len": api.max_len,
        })
    });
    let list = json!({ "object": "list", "data": cards.collect::<Vec<_>>() });
    json_answer(StatusCode::OK, &list)
}

async fn version() -> Response<Body> {
    let body = json!({ "version": super::VERSION, "simulated": true });
    json_answer(StatusCode::OK, &body)
}

async fn tokenize(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let read = api
        .authorize(&headers)
        .and_then(|()| read_tokenize(&body, &api.terms()));
    match read {
        Err(error) => error.answer(),
        Ok((prompt, count)) => json_answer(
            StatusCode::OK,
            &json!({
                "count": count, "max_model_len": api.max_len, "tokens": prompt.ids(),
                "token_strs": null,
            }),
        ),
    }
}

async fn metrics_text(State(api): State<Arc<Api>>) -> Response<Body> {
    let text = metrics::text(&api.driver.counters(), &api.served[0], api.capacity);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert("content-type", kind);
    response
}

pub(super) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}
