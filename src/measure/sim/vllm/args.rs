//! The command line of `vllm serve`, read as vLLM 0.16 reads it: every flag it has is known with
//! its arity, every other one is refused with argparse's own words and status 2, and what parses
//! is in range.

use serde_json::Value;

use super::kv::KvConfig;

/// How many words a flag takes.
#[derive(Clone, Copy, PartialEq)]
enum Arity {
    /// One.
    One,
    /// One or more, up to the next flag.
    Many,
    /// None.
    None,
    /// None, and there is a `--no-` form.
    Switch,
}
use Arity::{Many, None as Bare, One, Switch};

/// The flags of `vllm serve` 0.16. What a flag means for the simulation is decided in `set`;
/// those it does not look at change nothing that is simulated.
#[rustfmt::skip]
const FLAGS: &[(&str, Arity)] = &[
    // Frontend
    ("host", One), ("port", One), ("uds", One), ("uvicorn-log-level", One), ("disable-uvicorn-access-log", Switch),
    ("allow-credentials", Switch), ("allowed-origins", One), ("allowed-methods", One), ("allowed-headers", One), ("api-key", Many),
    ("lora-modules", Many), ("chat-template", One), ("chat-template-content-format", One), ("trust-request-chat-template", Switch),
    ("response-role", One), ("ssl-keyfile", One), ("ssl-certfile", One), ("ssl-ca-certs", One), ("enable-ssl-refresh", Switch),
    ("ssl-cert-reqs", One), ("root-path", One), ("middleware", One), ("return-tokens-as-token-ids", Switch),
    ("disable-frontend-multiprocessing", Switch), ("enable-request-id-headers", Switch), ("enable-auto-tool-choice", Switch),
    ("exclude-tools-when-tool-choice-none", Switch), ("tool-call-parser", One), ("tool-parser-plugin", One), ("tool-server", One),
    ("log-config-file", One), ("max-log-len", One), ("disable-fastapi-docs", Switch), ("enable-prompt-tokens-details", Switch),
    ("enable-server-load-tracking", Switch), ("enable-force-include-usage", Switch), ("enable-tokenizer-info-endpoint", Switch),
    ("enable-log-outputs", Switch), ("enable-log-deltas", Switch), ("h11-max-incomplete-event-size", One), ("h11-max-header-count", One),
    ("log-error-stack", Switch), ("headless", Bare), ("api-server-count", One), ("config", One), ("grpc", Bare), ("default-chat-template-kwargs", One),
    // Model
    ("model", One), ("runner", One), ("convert", One), ("task", One), ("tokenizer", One), ("tokenizer-mode", One),
    ("trust-remote-code", Switch), ("dtype", One), ("seed", One), ("hf-config-path", One), ("allowed-local-media-path", One),
    ("allowed-media-domains", One), ("revision", One), ("code-revision", One), ("rope-scaling", One), ("rope-theta", One),
    ("tokenizer-revision", One), ("max-model-len", One), ("quantization", One), ("enforce-eager", Switch), ("max-logprobs", One),
    ("logprobs-mode", One), ("disable-sliding-window", Switch), ("disable-cascade-attn", Switch), ("skip-tokenizer-init", Switch),
    ("enable-prompt-embeds", Switch), ("served-model-name", Many), ("config-format", One), ("hf-token", One), ("hf-overrides", One),
    ("pooler-config", One), ("logits-processor-pattern", One), ("generation-config", One), ("override-generation-config", One),
    ("enable-sleep-mode", Switch), ("model-impl", One), ("override-attention-dtype", One), ("logits-processors", One), ("io-processor-plugin", One),
    // Loading
    ("load-format", One), ("download-dir", One), ("safetensors-load-strategy", One), ("model-loader-extra-config", One),
    ("ignore-patterns", Many), ("use-tqdm-on-load", Switch), ("pt-load-map-location", One),
    // Attention and reasoning
    ("attention-backend", One), ("attention-config", One), ("reasoning-parser", One), ("reasoning-parser-plugin", One), ("structured-outputs-config", One),
    // Parallelism
    ("distributed-executor-backend", One), ("pipeline-parallel-size", One), ("master-addr", One), ("master-port", One), ("nnodes", One),
    ("node-rank", One), ("tensor-parallel-size", One), ("decode-context-parallel-size", One), ("prefill-context-parallel-size", One),
    ("data-parallel-size", One), ("data-parallel-rank", One), ("data-parallel-start-rank", One), ("data-parallel-size-local", One),
    ("data-parallel-address", One), ("data-parallel-rpc-port", One), ("data-parallel-backend", One), ("data-parallel-hybrid-lb", Switch),
    ("data-parallel-external-lb", Switch), ("enable-expert-parallel", Switch), ("all2all-backend", One), ("enable-dbo", Switch),
    ("enable-eplb", Switch), ("eplb-config", One), ("max-parallel-loading-workers", One), ("ray-workers-use-nsight", Switch),
    ("disable-custom-all-reduce", Switch), ("worker-cls", One), ("worker-extension-cls", One), ("disable-nccl-for-dp-synchronization", Switch),
    // Cache
    ("block-size", One), ("gpu-memory-utilization", One), ("kv-cache-memory-bytes", One), ("swap-space", One), ("kv-cache-dtype", One),
    ("num-gpu-blocks-override", One), ("enable-prefix-caching", Switch), ("prefix-caching-hash-algo", One), ("cpu-offload-gb", One),
    ("calculate-kv-scales", Switch), ("kv-sharing-fast-prefill", Switch), ("kv-offloading-size", One), ("kv-offloading-backend", One),
    ("mamba-cache-dtype", One), ("mamba-ssm-cache-dtype", One), ("mamba-block-size", One),
    // Multi-modal and LoRA
    ("limit-mm-per-prompt", One), ("mm-processor-kwargs", One), ("mm-processor-cache-gb", One), ("mm-encoder-tp-mode", One),
    ("enable-lora", Switch), ("max-loras", One), ("max-lora-rank", One), ("lora-dtype", One), ("max-cpu-loras", One), ("fully-sharded-loras", Switch),
    // Observability
    ("show-hidden-metrics-for-version", One), ("otlp-traces-endpoint", One), ("collect-detailed-traces", Many), ("kv-cache-metrics", Switch),
    ("disable-log-stats", Bare), ("aggregate-engine-logging", Switch), ("enable-log-requests", Switch), ("disable-log-requests", Switch),
    ("enable-mfu-metrics", Switch), ("enable-layerwise-nvtx-tracing", Switch), ("shutdown-timeout", One),
    // Scheduler
    ("max-num-batched-tokens", One), ("max-num-seqs", One), ("max-num-partial-prefills", One), ("max-long-partial-prefills", One),
    ("long-prefill-token-threshold", One), ("scheduling-policy", One), ("enable-chunked-prefill", Switch), ("disable-chunked-mm-input", Switch),
    ("scheduler-cls", One), ("disable-hybrid-kv-cache-manager", Switch), ("async-scheduling", Switch), ("stream-interval", One),
    // Whole configurations
    ("speculative-config", One), ("kv-transfer-config", One), ("kv-events-config", One), ("ec-transfer-config", One),
    ("compilation-config", One), ("additional-config", One), ("optimization-level", One), ("cudagraph-capture-sizes", Many),
    ("max-cudagraph-capture-size", One), ("profiler-config", One),
];

/// Short forms.
const SHORT: &[(&str, &str)] = &[
    ("-tp", "tensor-parallel-size"),
    ("-pp", "pipeline-parallel-size"),
    ("-dp", "data-parallel-size"),
    ("-dcp", "decode-context-parallel-size"),
    ("-q", "quantization"),
    ("-asc", "api-server-count"),
    ("-cc", "compilation-config"),
    ("-O", "optimization-level"),
    ("-n", "nnodes"),
    ("-r", "node-rank"),
];

/// A command line that vLLM would refuse: what it prints and the status it leaves with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it prints.
    pub text: String,
    /// Its exit status.
    pub status: u8,
}

impl Refused {
    /// argparse's form: usage and one line, status 2.
    pub(super) fn usage(message: impl std::fmt::Display) -> Self {
        Self {
            text: format!(
                "usage: vllm serve [model_tag] [options]\nvllm serve: error: {message}\n"
            ),
            status: 2,
        }
    }
}

/// The longest context that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaxLen {
    /// What the model's configuration says.
    Derived,
    /// As much as the memory holds.
    Auto,
    /// This.
    Tokens(u64),
}

/// What the simulation looks at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Options {
    pub(super) model: String,
    pub(super) served: Vec<String>,
    pub(super) host: Option<String>,
    pub(super) port: u16,
    pub(super) api_keys: Vec<String>,
    pub(super) tensor_parallel: u32,
    pub(super) pipeline_parallel: u32,
    pub(super) max_len: MaxLen,
    pub(super) gpu_memory_utilization: f64,
    pub(super) max_batched_tokens: Option<u64>,
    pub(super) max_seqs: Option<u64>,
    pub(super) chunked_prefill: bool,
    pub(super) enforce_eager: bool,
    pub(super) prefix_caching: bool,
    pub(super) block_size: u64,
    pub(super) dtype: String,
    pub(super) kv_cache_dtype: String,
    pub(super) quantization: Option<String>,
    pub(super) kv_transfer: Option<KvConfig>,
    /// `--rope-scaling`, or what `--hf-overrides` has under that or its newer name.
    pub(super) rope: Option<Value>,
    /// Flags that are deprecated, each with what the log says about it.
    pub(super) deprecated: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: "Qwen/Qwen3-0.6B".into(), // vLLM's own default
            served: Vec::new(),
            host: None,
            port: 8000,
            api_keys: Vec::new(),
            tensor_parallel: 1,
            pipeline_parallel: 1,
            max_len: MaxLen::Derived,
            gpu_memory_utilization: 0.9,
            max_batched_tokens: None,
            max_seqs: None,
            chunked_prefill: true,
            enforce_eager: false,
            prefix_caching: true,
            block_size: 16,
            dtype: "auto".into(),
            kv_cache_dtype: "auto".into(),
            quantization: None,
            kv_transfer: None,
            rope: None,
            deprecated: Vec::new(),
        }
    }
}

/// Parses the words after `vllm serve`.
pub(super) fn parse(words: &[String]) -> Result<Options, Refused> {
    let mut options = Options::default();
    let mut unknown = Vec::new();
    let mut positional = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some((name, attached)) = split(word) else {
            if word.starts_with('-') && word.len() > 1 {
                unknown.push(word.clone());
            } else {
                positional.push(word.clone());
            }
            continue;
        };
        let known = |name: &str| FLAGS.iter().find(|(flag, _)| *flag == name);
        let negated = name.strip_prefix("no-").and_then(known);
        let (flag, arity, on) = match (known(&name), negated) {
            (Some((flag, arity)), _) => (*flag, *arity, true),
            (None, Some((flag, Switch))) => (*flag, Switch, false),
            _ => {
                unknown.push(word.clone());
                continue;
            }
        };
        let values: Vec<String> = match arity {
            Bare | Switch => match attached {
                Some(value) => {
                    let message = format!("argument --{name}: ignored explicit argument '{value}'");
                    return Err(Refused::usage(message));
                }
                None => vec![],
            },
            One | Many => {
                let mut values: Vec<String> = attached.into_iter().collect();
                while values.is_empty() || (arity == Many && words.peek().is_some()) {
                    match words.next_if(|w| !is_flag(w)) {
                        Some(value) => values.push(value.clone()),
                        None => break,
                    }
                }
                if values.is_empty() {
                    let many = if arity == Many { "at least one" } else { "one" };
                    let message = format!("argument --{name}: expected {many} argument");
                    return Err(Refused::usage(message));
                }
                values
            }
        };
        set(&mut options, flag, &values, on)?;
    }
    let mut positional = positional.into_iter();
    if let Some(model) = positional.next() {
        options.model = model;
    }
    unknown.extend(positional);
    if !unknown.is_empty() {
        let message = format!("unrecognized arguments: {}", unknown.join(" "));
        return Err(Refused::usage(message));
    }
    if options.served.is_empty() {
        options.served = vec![options.model.clone()];
    }
    Ok(options)
}

/// Whether a word is a flag and not a value; negative numbers are values.
fn is_flag(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-') && word.parse::<f64>().is_err()
}

/// Takes `--flag=value` or a short form apart; vLLM reads `_` in a flag's name as `-`.
fn split(word: &str) -> Option<(String, Option<String>)> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        return Some((name.replace('_', "-"), value));
    }
    let (short, value) = match word.split_once('=') {
        Some((short, value)) => (short, Some(value.to_owned())),
        None => (word, None),
    };
    if let Some((_, long)) = SHORT.iter().find(|(s, _)| *s == short) {
        return Some(((*long).to_owned(), value));
    }
    let level = word.strip_prefix("-O").filter(|l| l.parse::<u8>().is_ok());
    level.map(|level| ("optimization-level".to_owned(), Some(level.to_owned())))
}

fn set(options: &mut Options, flag: &str, values: &[String], on: bool) -> Result<(), Refused> {
    let value = values.first().map_or("", String::as_str);
    let invalid = |kind: &str| {
        Refused::usage(format!(
            "argument --{flag}: invalid {kind} value: '{value}'"
        ))
    };
    let count = || {
        value
            .parse::<u32>()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| invalid("int"))
    };
    let length = || human_int(value).ok_or_else(|| invalid("human_readable_int"));
    let choice = |of: &[&str]| {
        if of.contains(&value) {
            return Ok(value.to_owned());
        }
        let of = of.iter().map(|c| format!("'{c}'")).collect::<Vec<_>>();
        Err(Refused::usage(format!(
            "argument --{flag}: invalid choice: '{value}' (choose from {})",
            of.join(", ")
        )))
    };
    let json = || {
        serde_json::from_str::<Value>(value)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| {
                Refused::usage(format!(
                    "argument --{flag}: Value {value} cannot be converted to <function loads>."
                ))
            })
    };
    match flag {
        "model" => options.model = value.to_owned(),
        "served-model-name" => options.served = values.to_vec(),
        "host" => options.host = Some(value.to_owned()),
        "port" => options.port = value.parse().map_err(|_| invalid("int"))?,
        "api-key" => options.api_keys = values.to_vec(),
        "tensor-parallel-size" => options.tensor_parallel = count()?,
        "pipeline-parallel-size" => options.pipeline_parallel = count()?,
        "max-model-len" => {
            options.max_len = match value {
                "auto" | "-1" => MaxLen::Auto,
                _ => MaxLen::Tokens(length()?),
            }
        }
        "gpu-memory-utilization" => {
            let part = value.parse::<f64>().map_err(|_| invalid("float"))?;
            if !(part > 0.0 && part <= 1.0) {
                return Err(Refused::usage(format!(
                    "argument --{flag}: GPU memory utilization must be in (0, 1], got {value}"
                )));
            }
            options.gpu_memory_utilization = part;
        }
        "max-num-batched-tokens" => options.max_batched_tokens = Some(length()?),
        "max-num-seqs" => options.max_seqs = Some(u64::from(count()?)),
        "block-size" => options.block_size = u64::from(count()?),
        "enable-chunked-prefill" => options.chunked_prefill = on,
        "enforce-eager" => options.enforce_eager = on,
        "enable-prefix-caching" => options.prefix_caching = on,
        "disable-log-requests" => options.deprecated.push("'--disable-log-requests' is deprecated and replaced with '--enable-log-requests'. This will be removed in a future release."),
        "dtype" => {
            options.dtype = choice(&["auto", "bfloat16", "float", "float16", "float32", "half"])?;
        }
        "kv-cache-dtype" => {
            options.kv_cache_dtype =
                choice(&["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"])?;
        }
        "quantization" => {
            let known = ["fp8", "awq", "awq_marlin", "gptq", "gptq_marlin", "bitsandbytes"];
            options.quantization = Some(choice(&known)?);
        }
        "rope-scaling" => options.rope = Some(json()?),
        "hf-overrides" => {
            let overrides = json()?;
            let rope = ["rope_parameters", "rope_scaling"].into_iter().find_map(|key| overrides.get(key));
            options.rope = rope.cloned().or(options.rope.take());
        }
        "kv-transfer-config" => {
            let config = json()?;
            let config = KvConfig::read(&config)
                .map_err(|why| Refused::usage(format!("argument --{flag}: {why}")))?;
            options.kv_transfer = Some(config);
        }
        "speculative-config" | "kv-events-config" | "compilation-config" | "additional-config" => {
            json()?;
        }
        _ => {}
    }
    Ok(())
}

/// vLLM's lengths: `32k` is 32000, `32K` is 32768, `25.6k` is 25600.
fn human_int(text: &str) -> Option<u64> {
    let split = text.len() - text.chars().next_back().map_or(0, char::len_utf8);
    let (digits, unit) = text.split_at(split);
    let decimal = |factor: f64| {
        let n = digits.parse::<f64>().ok().filter(|n| *n > 0.0)? * factor;
        (n <= 1e15).then_some(n as u64)
    };
    let binary = |factor: u64| digits.parse::<u64>().ok()?.checked_mul(factor);
    let n = match unit {
        "k" => decimal(1e3)?,
        "m" => decimal(1e6)?,
        "g" => decimal(1e9)?,
        "K" => binary(1 << 10)?,
        "M" => binary(1 << 20)?,
        "G" => binary(1 << 30)?,
        _ => text.parse().ok()?,
    };
    (n > 0).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_as_campaigns_write_it() {
        let o = parse(&words(
            "Qwen/Qwen2.5-32B-Instruct --port=8100 --trust-remote-code --disable-log-requests \
             --tensor-parallel-size 4 --gpu_memory_utilization 0.9 --max-num-batched-tokens 4096 \
             --max-model-len 32K --enable-chunked-prefill --enforce-eager \
             --no-enable-prefix-caching --served-model-name a b --host 0.0.0.0",
        ))
        .unwrap();
        assert_eq!(o.model, "Qwen/Qwen2.5-32B-Instruct");
        assert_eq!((o.port, o.tensor_parallel), (8100, 4));
        assert_eq!(o.max_len, MaxLen::Tokens(32768));
        assert_eq!(o.max_batched_tokens, Some(4096));
        assert!(o.enforce_eager && o.chunked_prefill && !o.prefix_caching);
        assert_eq!(o.served, ["a", "b"]);
        assert_eq!(o.deprecated.len(), 1);
    }

    #[test]
    fn what_vllm_refuses_is_refused_in_its_words() {
        for (line, part) in [
            ("m --bogus 3", "unrecognized arguments: --bogus 3"),
            (
                "m --max-model-lem=3",
                "unrecognized arguments: --max-model-lem=3",
            ),
            ("m --port", "argument --port: expected one argument"),
            ("m --port x", "argument --port: invalid int value: 'x'"),
            ("m --enforce-eager=1", "ignored explicit argument '1'"),
            ("m --dtype int3", "invalid choice: 'int3'"),
            ("m --kv-transfer-config {", "cannot be converted"),
            ("m --gpu-memory-utilization 1.5", "(0, 1]"),
            ("m --no-port 1", "unrecognized arguments: --no-port"),
        ] {
            let refused = parse(&words(line)).unwrap_err();
            assert_eq!(refused.status, 2, "{line}");
            assert!(refused.text.contains(part), "{line}: {}", refused.text);
        }
    }

    #[test]
    fn lengths_for_people() {
        assert_eq!(human_int("32k"), Some(32_000));
        assert_eq!(human_int("32K"), Some(32_768));
        assert_eq!(human_int("25.6k"), Some(25_600));
        assert_eq!(human_int("131072"), Some(131_072));
        for bad in ["", "k", "-3", "1.5K", "x", "0", "3é"] {
            assert_eq!(human_int(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_flag_is_listed_twice() {
        let mut names: Vec<_> = FLAGS.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.windows(2).for_each(|w| assert_ne!(w[0], w[1]));
    }

    #[test]
    fn yarn_comes_by_either_name() {
        for line in [
            r#"m --rope-scaling {"rope_type":"yarn","factor":4}"#,
            r#"m --hf-overrides {"rope_parameters":{"rope_type":"yarn","factor":4}}"#,
            r#"m --hf-overrides={"rope_scaling":{"rope_type":"yarn","factor":4}}"#,
        ] {
            assert_eq!(
                parse(&words(line)).unwrap().rope.unwrap()["factor"],
                4,
                "{line}"
            );
        }
    }
}
