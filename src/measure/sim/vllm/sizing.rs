//! What a server will be, decided before it serves: context and cache, from the command line, the
//! model and the GPUs. A plan that is made fits the memory; one that does not is refused in
//! vLLM's words.

use super::VERSION;
use super::api::Faults;
use super::args::{MaxLen, Options, Refused};
use super::kv::Vars;
use super::model::{self, GpuSheet, Layout, Model};
use crate::measure::sim::profile::SimProfile;

const GIB: f64 = (1u64 << 30) as f64;

/// What was decided before anything runs.
pub(super) struct Plan {
    pub(super) model: Model,
    pub(super) sheet: GpuSheet,
    pub(super) layout: Layout,
    pub(super) max_len: u64,
    pub(super) capacity: u64,
    pub(super) batched: u64,
    pub(super) seqs: usize,
}

impl Plan {
    /// Checks everything that can be checked before a model is loaded.
    pub(super) fn make(
        options: &Options,
        vars: &Vars,
        profile: &SimProfile,
        faults: Faults,
    ) -> Result<Self, Refused> {
        let described = profile.models.get(&options.model).map(model::described);
        let model = described.or_else(|| model::model(&options.model));
        let model = model.ok_or_else(|| no_model(&options.model, profile))?;
        let sheet = model::gpu(&profile.gpu).ok_or_else(|| {
            fatal(
                "RuntimeError",
                &format!(
                    "no figures are known for GPU {} (the profile can give `gpu.tflops` and \
                     `gpu.memory_gbytes_per_s`)",
                    profile.gpu.name
                ),
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
        let layout = layout(options, gpus, profile);
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

    /// What decides whether two servers can exchange caches: vLLM's version, the model and the
    /// layout of its cache; tensor parallelism and block size are not part of it.
    pub(super) fn compatibility(&self, options: &Options, cross_layers_blocks: bool) -> String {
        let factors = format!(
            "{VERSION}\0{}\0{}\0{}\0{cross_layers_blocks}",
            options.model, options.dtype, options.kv_cache_dtype
        );
        blake3::hash(factors.as_bytes()).to_hex().to_string()
    }
}

fn layout(options: &Options, gpus: u32, profile: &SimProfile) -> Layout {
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
        overhead_s: profile.step_overhead_ms * 1e-3,
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

/// A failed start, in the form that log scanners look for.
pub(super) fn fatal(kind: &str, message: &str) -> Refused {
    Refused {
        text: format!(
            "Traceback (most recent call last):\n  File \"vllm/entrypoints/cli/main.py\", line 73, \
             in main\n    args.dispatch_function(args)\n{kind}: {message}"
        ),
        status: 1,
    }
}

fn no_model(name: &str, profile: &SimProfile) -> Refused {
    let mut known: Vec<&str> = model::known_models().collect();
    known.extend(profile.models.keys().map(String::as_str));
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
