//! NIXL's `kvbench`: `kvcache` and `plan` tell what a model's KV cache comes to, `profile` runs
//! nixlbench with it. Nothing is assumed about the model: a key that is missing from its file is
//! an error, where a default would measure another model.
//!
//! Bytes per token = 2 (K and V) x layers x KV heads x head dimension x bytes per value.

use std::collections::BTreeMap;
use std::io;

use super::Sim;
use super::nixlbench;
use super::nixlbench_flags;

/// Options of nixlbench that are passed on.
const PASSED: &[&str] = &[
    "backend",
    "worker_type",
    "initiator_seg_type",
    "target_seg_type",
    "scheme",
    "mode",
    "op_type",
    "check_consistency",
    "total_buffer_size",
    "num_iter",
    "warmup_iter",
    "num_threads",
    "num_initiator_dev",
    "num_target_dev",
    "enable_pt",
    "progress_threads",
    "device_list",
    "runtime_type",
    "etcd_endpoints",
    "benchmark_group",
    "large_blk_iter_ftr",
    "recreate_xfer",
    "enable_vmm",
    "filepath",
];
const OWN: &[&str] = &[
    "model",
    "model_config",
    "model_configs",
    "pp",
    "tp",
    "isl",
    "osl",
    "num_requests",
    "page_size",
    "access_pattern",
    "format",
    "source",
    "destination",
];
const SWITCHES: &[&str] = &[
    "check_consistency",
    "enable_pt",
    "recreate_xfer",
    "enable_vmm",
];

type Options = BTreeMap<String, String>;

/// What is to be moved.
struct Cache {
    model: String,
    config: String,
    isl: u64,
    page: u64,
    requests: u64,
    tp: u64,
    pp: u64,
    access: String,
    block: u64,
    batch: u64,
}

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let Some(command) = sim.args.first().map(String::as_str) else {
        help(sim)?;
        return Ok(0);
    };
    match command {
        "--help" => {
            help(sim)?;
            return Ok(0);
        }
        "plan" | "profile" | "kvcache" => {}
        other => {
            let what = if other.starts_with('-') {
                format!("No such option: {other}")
            } else {
                format!("No such command '{other}'.")
            };
            return usage(sim, "", &what);
        }
    }
    let options = match options(&sim.args[1..]) {
        Ok(options) => options,
        Err(what) => return usage(sim, command, &what),
    };
    if !options.contains_key("model") || !options.contains_key("model_config") {
        // The real tool prints this and ends with status 0.
        writeln!(sim.out, "Error: --model and --model_config are required")?;
        return Ok(0);
    }
    let cache = match cache(&options) {
        Ok(cache) => cache,
        Err(what) => {
            writeln!(sim.err, "Traceback (most recent call last):\n{what}")?;
            return Ok(1);
        }
    };
    match command {
        "kvcache" => kvcache(sim, &cache),
        "plan" => plan(sim, &cache, &options),
        _ => profile(sim, &cache, &options),
    }
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else {
            return Err(format!("Got unexpected extra argument ({word})"));
        };
        let (name, attached) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let key = name.replace('-', "_");
        if !OWN.contains(&key.as_str()) && !PASSED.contains(&key.as_str()) {
            return Err(format!("No such option: --{name}"));
        }
        let value = if SWITCHES.contains(&key.as_str()) {
            "1".to_owned()
        } else {
            attached
                .or_else(|| words.next().cloned())
                .ok_or(format!("Option '--{name}' requires an argument."))?
        };
        options.insert(key, value);
    }
    Ok(options)
}

/// Scalars of a YAML file of sections and keys: `section.key` and `key`.
fn yaml(path: &str) -> Result<Options, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("FileNotFoundError: [Errno 2] {e}: '{path}'"))?;
    let mut map = Options::new();
    let mut section = String::new();
    for line in text.lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let nested = line.starts_with([' ', '\t']);
        let (key, value) = (key.trim(), value.trim().trim_matches(['"', '\'']));
        if key.starts_with('#') {
            continue;
        }
        if value.is_empty() && !nested {
            key.clone_into(&mut section);
        } else if nested && !section.is_empty() {
            map.insert(format!("{section}.{key}"), value.into());
        } else {
            map.insert(key.into(), value.into());
        }
    }
    Ok(map)
}

fn cache(options: &Options) -> Result<Cache, String> {
    let model = yaml(&options["model"])?;
    let config = yaml(&options["model_config"])?;
    let key_error = |key: &str| format!("KeyError: '{key}'");
    let whole = |text: &str, key: &str| {
        text.parse::<u64>().ok().filter(|n| *n > 0).ok_or(format!(
            "ValueError: {key} must be a whole number above zero: '{text}'"
        ))
    };
    let of_model = |key: &str| {
        model
            .get(key)
            .ok_or_else(|| key_error(key))
            .and_then(|text| whole(text, key))
    };
    let of_run = |option: &str, key: &str| {
        let text = options
            .get(option)
            .or_else(|| config.get(key))
            .ok_or_else(|| key_error(key))?;
        whole(text, key)
    };
    let layers = of_model("num_layers")?;
    let head_dim = of_model("query_head_dimension").or_else(|_| of_model("head_dim"))?;
    let kv_heads = match of_model("num_kv_heads") {
        Ok(heads) => heads,
        Err(_) => of_model("num_query_heads_with_mha")? / of_model("gqa_num_queries_in_group")?,
    };
    let dtype = config
        .get("strategy.kvcache_quant_mode")
        .or_else(|| model.get("dtype"))
        .ok_or_else(|| key_error("kvcache_quant_mode"))?;
    let width = match dtype.to_ascii_lowercase().as_str() {
        "fp8" | "int8" | "fp8_e4m3" | "fp8_e5m2" => 1,
        "bf16" | "bfloat16" | "fp16" | "float16" | "half" => 2,
        "fp32" | "float32" => 4,
        other => return Err(format!("ValueError: unknown precision '{other}'")),
    };
    let name = model
        .get("model")
        .or_else(|| model.get("model_name"))
        .ok_or_else(|| key_error("model"))?;
    let (tp, pp) = (
        of_run("tp", "strategy.tp_size")?,
        of_run("pp", "strategy.pp_size")?,
    );
    let isl = of_run("isl", "runtime.isl")?;
    let page = of_run("page_size", "system.page_size")?;
    let requests = of_run("num_requests", "runtime.num_requests")?;
    let access = options
        .get("access_pattern")
        .or_else(|| config.get("system.access_pattern"))
        .ok_or_else(|| key_error("access_pattern"))?
        .clone();
    let product = |factors: &[u64]| {
        factors
            .iter()
            .try_fold(1u64, |p, f| p.checked_mul(*f))
            .filter(|p| *p > 0)
            .ok_or("ValueError: Invalid KV Size: 0".to_owned())
    };
    let per_token = product(&[2, layers, kv_heads, head_dim, width])?;
    // One I/O moves a page of one GPU's share: all its layers (block) or one (layer).
    let share = match access.as_str() {
        "block" => per_token / tp / pp,
        "layer" => per_token / layers / tp,
        other => return Err(format!("ValueError: unknown access pattern '{other}'")),
    };
    let block = product(&[share, page])?;
    let total = product(&[per_token, isl, requests])?;
    Ok(Cache {
        model: name.clone(),
        config: options["model_config"].clone(),
        isl,
        page,
        requests,
        tp,
        pp,
        access,
        block,
        batch: total.div_ceil(block),
    })
}

fn kvcache(sim: &mut Sim<'_>, cache: &Cache) -> io::Result<u8> {
    #[allow(clippy::cast_precision_loss)] // printed with two decimals
    let mib = cache.block as f64 / f64::from(1 << 20);
    writeln!(
        sim.out,
        "Model          ISL    Num Requests    Batch Size  IO Size      TP    PP    Page Size  Access\n\
         -----------  -----  --------------  ------------  ---------  ----  ----  -----------  --------\n\
         {:<11}  {:>5}  {:>14}  {:>12}  {:<9}  {:>4}  {:>4}  {:>11}  {}",
        cache.model,
        cache.isl,
        cache.requests,
        cache.batch,
        format!("{mib:.2} MB"),
        cache.tp,
        cache.pp,
        cache.page,
        cache.access
    )?;
    Ok(0)
}

/// The nixlbench command of a cache, without what equals nixlbench's defaults.
fn command(cache: &Cache, options: &Options) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = PASSED
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), options.get(*name)?.clone())))
        .collect();
    for (name, value) in [
        ("max_batch_size", cache.batch),
        ("max_block_size", cache.block),
        ("start_batch_size", cache.batch),
        ("start_block_size", cache.block),
    ] {
        all.push((name.into(), value.to_string()));
    }
    all.sort();
    all.retain(|(name, value)| !nixlbench_flags::is_default(name, value));
    all
}

fn plan(sim: &mut Sim<'_>, cache: &Cache, options: &Options) -> io::Result<u8> {
    match options.get("format").map(String::as_str) {
        None | Some("text") => {}
        Some(other) => {
            sim.remark(&format!("--format {other} is not simulated, only text"))?;
            return Ok(1);
        }
    }
    let rule = "=".repeat(80);
    writeln!(
        sim.out,
        "{rule}\nModel Config: {}\nISL: {} tokens\nPage Size: {}\nRequests: {}\nTP: {}\nPP: {}\n{rule}",
        cache.config, cache.isl, cache.page, cache.requests, cache.tp, cache.pp
    )?;
    let mut text = "nixlbench".to_owned();
    for (name, value) in command(cache, options) {
        text.push_str(&format!(" \\\n    --{name} {value}"));
    }
    writeln!(sim.out, "{text}\n")?;
    Ok(0)
}

fn profile(sim: &mut Sim<'_>, cache: &Cache, options: &Options) -> io::Result<u8> {
    let args: Vec<String> = command(cache, options)
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect();
    if sim.fails() {
        writeln!(
            sim.err,
            "FileNotFoundError: [Errno 2] No such file or directory: 'nixlbench'"
        )?;
        return Ok(1);
    }
    let status = nixlbench::run(&mut Sim {
        tool: "nixlbench",
        args: &args,
        profile: sim.profile,
        env: sim.env,
        out: &mut *sim.out,
        err: &mut *sim.err,
    })?;
    // The real tool runs nixlbench and does not look at its exit status.
    if status != 0 {
        sim.remark(&format!(
            "nixlbench ended with status {status}; like the real kvbench this one says 0"
        ))?;
    }
    Ok(0)
}

fn help(sim: &mut Sim<'_>) -> io::Result<()> {
    writeln!(
        sim.out,
        "Usage: kvbench [OPTIONS] COMMAND [ARGS]...\n\n  KVBench - NIXL Performance Testing CLI (simulated)\n\n\
         Commands:\n  kvcache  Display kvcache information\n  plan     Display the recommended configuration for nixlbench\n  profile  Run nixlbench"
    )
}

fn usage(sim: &mut Sim<'_>, command: &str, what: &str) -> io::Result<u8> {
    let name = format!("kvbench {command}");
    let name = name.trim();
    writeln!(
        sim.err,
        "Usage: {name} [OPTIONS]\nTry '{name} --help' for help.\n\nError: {what}"
    )?;
    Ok(2)
}
