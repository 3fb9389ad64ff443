//! From command line and profile to a server that serves, or to the refusal that vLLM would give.
//! Every check comes before the first request, in vLLM's order and words: arguments, the model's
//! context, GPUs, memory, addresses.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::api::{self, Api, Faults, Transfers};
use super::args::{self, MaxLen, Options, Refused};
use super::driver::Driver;
use super::engine::{Engine, Limits};
use super::kv::{Role, Transport, Vars};
use super::link::FluidLink;
use super::log::Log;
use super::model::{self, Cost, GpuSheet, Layout, Model};
use super::side::{self, Identity, SideChannel};
use super::{Server, VERSION};
use crate::measure::server;
use crate::measure::sim::profile::{MODEL_VERSION, SimProfile};

const GIB: f64 = (1u64 << 30) as f64;

/// Starts a server from the words after `vllm serve`; returns when it answers.
///
/// # Errors
/// What vLLM would print and the status it would leave with.
pub fn start(
    words: &[String],
    vars: &Vars,
    profile: &SimProfile,
    log: &Log,
) -> Result<Server, Refused> {
    log.raw(&format!(
        "simulated vLLM {VERSION} (model {MODEL_VERSION}) on {} x {}, time scale {}",
        profile.gpu.count, profile.gpu.name, profile.time_scale
    ));
    let options = args::parse(words)?;
    let faults = faults(profile)?;
    log.info(
        "api_server.py:1272",
        &format!("vLLM API server version {VERSION}"),
    );
    log.info(
        "utils.py:253",
        &format!("non-default args: {}", words.join(" ")),
    );
    for message in &options.deprecated {
        log.warning("argparse_utils.py:82", message);
    }
    let plan = Plan::make(&options, vars, profile, faults)?;
    log.info(
        "model.py:1561",
        &format!("Using max model len {}", plan.max_len),
    );
    let host = options.host.as_deref().unwrap_or("0.0.0.0");
    listening(side::can_listen(host, options.port), host, options.port)?;
    log.info(
        "gpu_model_runner.py:3562",
        &format!("Starting to load model {}...", options.model),
    );
    let startup = Duration::from_secs_f64(profile.startup_s * profile.time_scale);
    std::thread::sleep(startup);
    if faults.hangs {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    log.info(
        "kv_cache_utils.py:1307",
        &format!("GPU KV cache size: {} tokens", with_commas(plan.capacity)),
    );
    let api = Arc::new(plan.serve(&options, vars, profile, faults, log)?);
    log.info(
        "api_server.py:1014",
        &format!(
            "Starting vLLM API server 0 on http://{host}:{}",
            options.port
        ),
    );
    let listener = listening(TcpListener::bind((host, options.port)), host, options.port)?;
    let pid = std::process::id();
    log.raw(&format!("INFO:     Started server process [{pid}]"));
    log.raw("INFO:     Waiting for application startup.");
    let running = server::start(listener, api::router(Arc::clone(&api)), "vllm")
        .map_err(|e| fatal("RuntimeError", &e.to_string()))?;
    log.raw("INFO:     Application startup complete.");
    log.raw(&format!(
        "INFO:     Uvicorn running on http://{} (Press CTRL+C to quit)",
        running.address()
    ));
    Ok(Server { running, api })
}

/// What was decided before anything runs.
struct Plan {
    model: Model,
    sheet: GpuSheet,
    layout: Layout,
    max_len: u64,
    capacity: u64,
    batched: u64,
    seqs: usize,
}

impl Plan {
    fn make(
        options: &Options,
        vars: &Vars,
        profile: &SimProfile,
        faults: Faults,
    ) -> Result<Self, Refused> {
        let model = model::model(&options.model).ok_or_else(|| no_model(&options.model))?;
        let sheet = model::gpu(&profile.gpu.name).ok_or_else(|| {
            fatal(
                "RuntimeError",
                &format!("no figures are known for GPU {}", profile.gpu.name),
            )
        })?;
        let gpus = options.tensor_parallel * options.pipeline_parallel;
        if gpus > profile.gpu.count {
            return Err(fatal(
                "ValueError",
                &format!(
                    "World size ({gpus}) is larger than the number of available GPUs ({}) in this \
                     node. If this is intentional and you are using: ray, set \
                     '--distributed-executor-backend ray'.",
                    profile.gpu.count
                ),
            ));
        }
        if !model
            .heads()
            .is_multiple_of(u64::from(options.tensor_parallel))
        {
            return Err(fatal(
                "ValueError",
                &format!(
                    "Total number of attention heads ({}) must be divisible by tensor parallel \
                     size ({}).",
                    model.heads(),
                    options.tensor_parallel
                ),
            ));
        }
        let layout = layout(options, gpus);
        let derived = derived_len(&model, options);
        let asked = match options.max_len {
            MaxLen::Tokens(n) => Some(n),
            MaxLen::Derived => Some(derived),
            MaxLen::Auto => None,
        };
        let allow_long = vars
            .get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")
            .is_some_and(|v| v == "1");
        if let Some(asked) = asked.filter(|n| *n > derived && !allow_long) {
            return Err(fatal(
                "ValueError",
                &format!(
                    "User-specified max_model_len ({asked}) is greater than the derived \
                     max_model_len (max_position_embeddings={derived} or model_max_length=None in \
                     model's config.json). To allow overriding this maximum, set the env var \
                     VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
                ),
            ));
        }
        let batched = options.max_batched_tokens.unwrap_or(2048);
        let shortest = asked.unwrap_or(derived);
        if !options.chunked_prefill && batched < shortest {
            return Err(fatal(
                "ValueError",
                &format!(
                    "max_num_batched_tokens ({batched}) is smaller than max_model_len ({shortest}). \
                     This effectively limits the maximum sequence length to max_num_batched_tokens \
                     and makes vLLM reject longer sequences. Please increase max_num_batched_tokens \
                     or decrease max_model_len."
                ),
            ));
        }
        let memory_bytes = profile.gpu.memory_mib as f64 * 1024.0 * 1024.0;
        let memory = model.kv_memory(
            &layout,
            memory_bytes,
            options.gpu_memory_utilization,
            batched,
        );
        let per_gpu = model.weights(&layout) / f64::from(gpus);
        if faults.out_of_memory || per_gpu > memory_bytes * 0.97 {
            return Err(out_of_memory(memory_bytes));
        }
        let (max_len, capacity) = fit(&model, &layout, options, memory, asked, derived)?;
        Ok(Self {
            model,
            sheet,
            layout,
            max_len,
            capacity,
            batched,
            seqs: options.max_seqs.unwrap_or(256) as usize,
        })
    }

    fn serve(
        &self,
        options: &Options,
        vars: &Vars,
        profile: &SimProfile,
        faults: Faults,
        log: &Log,
    ) -> Result<Api, Refused> {
        let config = options.kv_transfer.as_ref();
        let transport = config.and_then(|c| Transport::choose(c, vars));
        // Without a transport nothing is ever fetched, so any link will do.
        let path = transport.unwrap_or(Transport::Tcp);
        let link = path.link(profile);
        let efficiency: fn(usize) -> f64 = match path {
            Transport::Efa => |n| Transport::Efa.efficiency(n),
            Transport::Tcp => |n| Transport::Tcp.efficiency(n),
        };
        let limits = Limits {
            batched_tokens: self.batched,
            seqs: self.seqs,
            chunked: options.chunked_prefill,
            block: options.block_size,
            capacity: self.capacity,
        };
        let cost = Cost::of(&self.model, &self.sheet, &self.layout);
        let fluid = FluidLink::new(link.bandwidth_gbps * 1e9 / 8.0, efficiency);
        // A port is part of the seed, so that the two servers of a pair do not jitter in step.
        let seed = profile.seed ^ (u64::from(options.port) << 32);
        let engine = Engine::new(limits, cost, fluid, seed);
        let driver = Driver::start(engine, profile.time_scale, faults.dies_after_tokens)
            .map_err(|e| fatal("RuntimeError", &e.to_string()))?;
        let driver = Arc::new(driver);
        let transfers = match config {
            None => None,
            Some(config) => {
                let transport = transport.ok_or_else(|| {
                    fatal(
                        "nixl._bindings.nixlBackendError",
                        "NIXL_ERR_BACKEND: no usable transports/devices (UCX_TLS leaves none that \
                         reaches another host)",
                    )
                })?;
                let identity = Identity {
                    compatibility_hash: self.compatibility(options, config.cross_layers_blocks),
                    transport: transport.name().to_owned(),
                };
                let engine_id = format!("sim-{:08x}-{:x}", std::process::id(), options.port);
                let engine_id = format!("{engine_id}-{:x}", api::unix_seconds());
                let host = vars.get("VLLM_NIXL_SIDE_CHANNEL_HOST");
                let host = host.map_or("localhost", String::as_str);
                let side = match config.role {
                    Role::Consumer => None,
                    Role::Producer | Role::Both => {
                        Some(side_channel(host, vars, &engine_id, &identity, &driver)?)
                    }
                };
                let message = format!(
                    "Initializing NIXL worker {engine_id} over {}",
                    transport.name()
                );
                log.info("nixl_connector.py:880", &message);
                Some(Transfers {
                    role: config.role,
                    on_failure: config.on_failure,
                    identity,
                    engine_id,
                    tensor_parallel: options.tensor_parallel,
                    bytes_per_token: self.model.kv_bytes_per_token(&self.layout),
                    // K and V of each layer apart, or all layers of a block in one piece.
                    regions: match config.cross_layers_blocks {
                        true => 1,
                        false => 2 * self.model.layers(),
                    },
                    latency_s: link.latency_us * 1e-6,
                    side,
                    host: host.to_owned(),
                    met: Mutex::new(HashSet::new()),
                })
            }
        };
        Ok(Api {
            driver,
            transfers,
            model: options.model.clone(),
            served: options.served.clone(),
            api_keys: options.api_keys.clone(),
            max_len: self.max_len,
            capacity: self.capacity,
            block: options.block_size,
            prefix_caching: options.prefix_caching,
            time_scale: profile.time_scale,
            faults,
            log: log.clone(),
            dead: AtomicBool::new(false),
            jobs: AtomicU64::new(0),
            started: api::unix_seconds(),
        })
    }

    /// What decides whether two servers can exchange caches: vLLM's version, the model and the
    /// layout of its cache; tensor parallelism and block size are not part of it.
    fn compatibility(&self, options: &Options, cross_layers_blocks: bool) -> String {
        let factors = format!(
            "{VERSION}\0{}\0{}\0{}\0{cross_layers_blocks}",
            options.model, options.dtype, options.kv_cache_dtype
        );
        blake3::hash(factors.as_bytes()).to_hex().to_string()
    }
}

fn side_channel(
    host: &str,
    vars: &Vars,
    engine_id: &str,
    identity: &Identity,
    driver: &Arc<Driver>,
) -> Result<SideChannel, Refused> {
    let number = |name: &str, default: u64| match vars.get(name) {
        None => Ok(default),
        Some(text) => text.parse::<u64>().map_err(|_| {
            let message = format!("invalid literal for int() with base 10: '{text}' ({name})");
            fatal("ValueError", &message)
        }),
    };
    let port = number("VLLM_NIXL_SIDE_CHANNEL_PORT", 5600)?;
    let port = u16::try_from(port)
        .map_err(|_| fatal("ValueError", &format!("port {port} is out of range")))?;
    let abort_after = Duration::from_secs(number("VLLM_NIXL_ABORT_REQUEST_TIMEOUT", 480)?);
    let release = {
        let driver = Arc::clone(driver);
        Arc::new(move |job| driver.release(job))
    };
    let listening = SideChannel::start(
        host,
        port,
        engine_id.to_owned(),
        identity.clone(),
        abort_after,
        release,
    );
    listening.map_err(|e| {
        fatal(
            "zmq.error.ZMQError",
            &format!("{e} (addr='tcp://{host}:{port}')"),
        )
    })
}

fn layout(options: &Options, gpus: u32) -> Layout {
    let full = match options.dtype.as_str() {
        "float" | "float32" => 4.0,
        _ => 2.0,
    };
    let weight_bytes = match options.quantization.as_deref() {
        Some("fp8") => 1.0,
        Some(_) => 0.55, // four bits and their scales
        None => full,
    };
    Layout {
        tensor_parallel: gpus,
        weight_bytes,
        kv_bytes: match options.kv_cache_dtype.as_str() {
            "auto" | "bfloat16" => full,
            _ => 1.0,
        },
        eager: options.enforce_eager,
    }
}

/// The model's own context, stretched by YaRN where that is configured.
fn derived_len(model: &Model, options: &Options) -> u64 {
    let Some(rope) = &options.rope else {
        return model.max_len;
    };
    let kind = rope.get("rope_type").or_else(|| rope.get("type"));
    let factor = rope.get("factor").and_then(serde_json::Value::as_f64);
    let original = rope
        .get("original_max_position_embeddings")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(model.max_len);
    match (kind.and_then(|k| k.as_str()), factor) {
        (Some("yarn" | "dynamic" | "linear"), Some(factor)) if factor >= 1.0 => {
            (original as f64 * factor) as u64
        }
        _ => model.max_len,
    }
}

/// Context and cache in tokens, or vLLM's words when the context does not fit the cache.
fn fit(
    model: &Model,
    layout: &Layout,
    options: &Options,
    memory: f64,
    asked: Option<u64>,
    derived: u64,
) -> Result<(u64, u64), Refused> {
    if memory <= 0.0 {
        return Err(fatal(
            "ValueError",
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` \
             when initializing the engine.",
        ));
    }
    let per_token = model.kv_bytes_per_token(layout);
    let block = options.block_size;
    let capacity = (memory / per_token) as u64 / block * block;
    let max_len = asked.unwrap_or_else(|| derived.min(capacity));
    if max_len.next_multiple_of(block) > capacity {
        // Both figures are those of one GPU, as vLLM gives them.
        let gpus = f64::from(layout.tensor_parallel);
        return Err(fatal(
            "ValueError",
            &format!(
                "To serve at least one request with the models's max seq len ({max_len}), ({:.2} \
                 GiB KV cache is needed, which is larger than the available KV cache memory \
                 ({:.2} GiB). Based on the available memory, the estimated maximum model length is \
                 {capacity}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` \
                 when initializing the engine.",
                max_len as f64 * per_token / gpus / GIB,
                memory / gpus / GIB,
            ),
        ));
    }
    Ok((max_len, capacity))
}

/// The faults of the profile that are this tool's.
fn faults(profile: &SimProfile) -> Result<Faults, Refused> {
    let mut faults = Faults::default();
    for name in profile.fail.iter().filter_map(|f| f.strip_prefix("vllm:")) {
        match name.split_once('=').unwrap_or((name, "")) {
            ("oom", "") => faults.out_of_memory = true,
            ("hang", "") => faults.hangs = true,
            ("engine-dead", "") => faults.engine_dead = true,
            ("no-kv-params", "") => faults.no_transfer_params = true,
            ("die-after-tokens", n) if n.parse::<u64>().is_ok() => {
                faults.dies_after_tokens = n.parse().ok();
            }
            _ => {
                return Err(Refused {
                    text: format!(
                        "simulation: `vllm:{name}` is no fault; expected vllm:oom, vllm:hang, \
                         vllm:engine-dead, vllm:no-kv-params or vllm:die-after-tokens=N"
                    ),
                    status: 2,
                });
            }
        }
    }
    Ok(faults)
}

/// A failed start, in the form that log scanners look for.
fn fatal(kind: &str, message: &str) -> Refused {
    Refused {
        text: format!(
            "Traceback (most recent call last):\n  File \"vllm/entrypoints/cli/main.py\", line 73, \
             in main\n    args.dispatch_function(args)\n{kind}: {message}"
        ),
        status: 1,
    }
}

fn no_model(name: &str) -> Refused {
    let known: Vec<_> = model::known_models().collect();
    fatal(
        "OSError",
        &format!(
            "{name} is not a local folder and is not a valid model identifier (the simulation \
             knows {})",
            known.join(", ")
        ),
    )
}

fn out_of_memory(memory_bytes: f64) -> Refused {
    let total = memory_bytes / GIB;
    fatal(
        "torch.OutOfMemoryError",
        &format!(
            "CUDA out of memory. Tried to allocate 270.00 MiB. GPU 0 has a total capacity of \
             {total:.2} GiB of which 112.06 MiB is free."
        ),
    )
}

fn listening<T>(outcome: std::io::Result<T>, host: &str, port: u16) -> Result<T, Refused> {
    outcome.map_err(|e| {
        let number = e.raw_os_error().unwrap_or(0);
        fatal(
            "OSError",
            &format!("[Errno {number}] {e}: address ('{host}', {port})"),
        )
    })
}

fn with_commas(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
