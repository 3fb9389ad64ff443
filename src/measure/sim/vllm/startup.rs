//! From command line and profile to a server that serves, or to the refusal that vLLM would give.
//! Every check comes before the first request, in vLLM's order and words: arguments, the model's
//! context, GPUs, memory, addresses.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::api::{self, Api, Faults, Transfers};
use super::args::{self, Options, Refused};
use super::driver::Driver;
use super::engine::{Engine, Limits};
use super::kv::{Transport, Vars};
use super::link::FluidLink;
use super::log::Log;
use super::model::Cost;
use super::side::{self, Identity, SideChannel};
use super::sizing::{Plan, fatal};
use super::storage::Storage;
use super::{Server, VERSION};
use crate::measure::server;
use crate::measure::sim::profile::{MODEL_VERSION, SimProfile};

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
    let api = Arc::new(assemble(&plan, &options, vars, profile, faults, log)?);
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

/// Starts all that stands behind the HTTP interface.
fn assemble(
    plan: &Plan,
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
        batched_tokens: plan.batched,
        seqs: plan.seqs,
        chunked: options.chunked_prefill,
        block: options.block_size,
        capacity: plan.capacity,
    };
    let cost = Cost::of(&plan.model, &plan.sheet, &plan.layout);
    let fluid = FluidLink::new(link.bandwidth_gbps * 1e9 / 8.0, efficiency);
    // A port is part of the seed, so that the two servers of a pair do not jitter in step.
    let seed = profile.seed ^ (u64::from(options.port) << 32);
    let engine = Engine::new(limits, cost, fluid, seed);
    let driver = Driver::start(engine, profile.time_scale, faults.dies_after_tokens)
        .map_err(|e| fatal("RuntimeError", &e.to_string()))?;
    let driver = Arc::new(driver);
    let storage = config.and_then(|c| c.storage.as_deref()).map(|path| {
        let per_token = plan.model.kv_bytes_per_token(&plan.layout);
        log.info(
            "example_connector.py:103",
            &format!("Shared storage path is {path}"),
        );
        let layers = plan.model.layers();
        Storage::new(
            path,
            options.block_size,
            per_token,
            layers,
            &profile.storage,
        )
    });
    let transfers = match config.filter(|_| storage.is_none()) {
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
                compatibility_hash: plan.compatibility(options, config.cross_layers_blocks),
                transport: transport.name().to_owned(),
            };
            let engine_id = format!("sim-{:08x}-{:x}", std::process::id(), options.port);
            let engine_id = format!("{engine_id}-{:x}", api::unix_seconds());
            let host = vars.get("VLLM_NIXL_SIDE_CHANNEL_HOST");
            let host = host.map_or("localhost", String::as_str);
            // Every role listens, as vLLM's connector does: two servers of one host need two ports.
            let side = side_channel(host, vars, &engine_id, &identity, &driver)?;
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
                bytes_per_token: plan.model.kv_bytes_per_token(&plan.layout),
                // K and V of each layer apart, or all layers of a block in one piece.
                regions: match config.cross_layers_blocks {
                    true => 1,
                    false => 2 * plan.model.layers(),
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
        storage,
        model: options.model.clone(),
        served: options.served.clone(),
        api_keys: options.api_keys.clone(),
        max_len: plan.max_len,
        capacity: plan.capacity,
        block: options.block_size,
        prefix_caching: options.prefix_caching,
        time_scale: profile.time_scale,
        request_overhead_s: profile.request_overhead_ms * 1e-3,
        faults,
        log: log.clone(),
        dead: AtomicBool::new(false),
        jobs: AtomicU64::new(0),
        started: api::unix_seconds(),
    })
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
