//! Serving patterns: what the old generator made of them, and the settings that do the same.
//! Where file and run disagree, the settings are those of the run, except that the context is made
//! long enough for prompts that could never be served.

use doe_cache::Value;
use serde_json::{Map, Value as Json};

use super::draft::Draft;
use super::report::{Obstacle, Report};
use super::{convert, int, number, text};

type Object = Map<String, Json>;

/// Contexts that a server could be lowered to when memory did not suffice.
const STEPS: [i64; 9] = [
    4096, 8192, 16384, 20480, 32768, 40960, 49152, 65536, 131_072,
];

/// Positions beyond which the model needs rope scaling, unless the file names another number.
const NATIVE_POSITIONS: i64 = 32768;

/// What all serving patterns of a file have in common.
pub(super) struct Serving<'a> {
    pub(super) infrastructure: &'a Object,
    pub(super) common: &'a Object,
    pub(super) rope_scaling: Option<&'a Object>,
}

/// The context length of the old server for one prompt length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Context {
    wanted: i64,
    cap: Option<i64>,
    used: i64,
}

impl Serving<'_> {
    /// `max_model_len` as the generator worked it out: by prompt length in steps, then lowered to
    /// what the table of memory limits allows.
    fn context(&self, prompt_tokens: i64, given: Option<i64>) -> Context {
        let wanted = given.unwrap_or(match prompt_tokens {
            100_000.. => 131_072,
            50_000.. => 65_536,
            20_000.. => 34_816,
            10_000.. => 20_480,
            _ => 16_384,
        });
        let model = text(self.infrastructure, "model").unwrap_or_default();
        let gpu = text(self.infrastructure, "gpu_type").unwrap_or_default();
        let tp_size = int(self.infrastructure, "tp_size").unwrap_or(1);
        let share = number(self.common, "gpu_memory_utilization").unwrap_or(0.9);
        // The table is looked up by the exact share; any other has no limit.
        let cap = match (model.contains("32B"), gpu, tp_size) {
            (true, "NVIDIA L40S 48GB", 4) if share == 0.9 => Some(48_848),
            (true, "NVIDIA A10G", 4) if share == 0.9 => Some(20_480),
            _ => None,
        };
        let used = match cap {
            Some(cap) if wanted > cap => {
                let below = STEPS.iter().rev().find(|step| **step <= cap);
                below.copied().unwrap_or(cap)
            }
            _ => wanted,
        };
        Context { wanted, cap, used }
    }

    /// Settings of a serving pattern.
    pub(super) fn fill(
        &self,
        draft: &mut Draft,
        layer: &Object,
        pattern: &Object,
        report: &mut Report,
    ) {
        for (key, of, object) in [
            ("model", "model", self.infrastructure),
            ("tp_size", "tp_size", self.infrastructure),
            ("max_tokens", "max_tokens", self.common),
            ("warmup_iterations", "warmup_iterations", self.common),
            (
                "measurement_iterations",
                "measurement_iterations",
                self.common,
            ),
            (
                "gpu_memory_utilization",
                "gpu_memory_utilization",
                self.common,
            ),
            (
                "max_num_batched_tokens",
                "max_num_batched_tokens",
                self.common,
            ),
            ("prompt_tokens", "prompt_tokens", pattern),
            ("concurrency", "concurrency", pattern),
            (
                "enable_cross_layers_blocks",
                "enable_cross_layers_blocks",
                pattern,
            ),
        ] {
            if let Some(value) = object.get(of).and_then(convert) {
                draft.set(key, value);
            }
        }
        draft.set("temperature", Value::Float(0.7));
        for (key, value) in [
            (
                "enable_prefix_caching",
                self.common.get("prefix_cache") == Some(&Json::Bool(true)),
            ),
            ("enable_chunked_prefill", true),
            ("enforce_eager", true),
        ] {
            draft.set(key, value);
        }
        self.transport(draft, layer, pattern, report);
        self.length(draft, pattern, report);
    }

    fn transport(&self, draft: &mut Draft, layer: &Object, pattern: &Object, report: &mut Report) {
        let backend = text(pattern, "backend").or_else(|| text(pattern, "transport"));
        let (transport, library) = match backend.unwrap_or("efa") {
            "srd" => ("efa", "UCX"),
            "efa" => ("efa", "LIBFABRIC"),
            "tcp" => ("tcp", "UCX"),
            other => {
                report.warn(format!(
                    "{}: there is no transport `{other}`; `efa` is written",
                    draft.id
                ));
                ("efa", "UCX")
            }
        };
        draft.set("transport", transport);
        draft.set("nixl_backend", library);
        draft.set("kv_buffer_device", "cpu");
        let config = layer.get("vllm_config").and_then(Json::as_object);
        let size = config.and_then(|config| int(config, "kv_buffer_size"));
        let model = text(self.infrastructure, "model").unwrap_or_default();
        let large = model.contains("32B") || model.contains("70B");
        let size = size.unwrap_or(if large { 5_000_000_000 } else { 1_000_000_000 });
        draft.set("kv_buffer_size", size);
    }

    /// The context: as it was where the prompt fits, else just long enough.
    fn length(&self, draft: &mut Draft, pattern: &Object, report: &mut Report) {
        let Some(prompt) = int(pattern, "prompt_tokens") else {
            report.warn(format!("{}: `prompt_tokens` is missing", draft.id));
            return;
        };
        let output = int(self.common, "max_tokens").unwrap_or(128);
        let context = self.context(prompt, int(pattern, "max_model_len"));
        let needed = prompt.saturating_add(output);
        if needed <= context.used {
            draft.set("max_model_len", context.used);
        } else {
            let lowered = match context.cap {
                Some(cap) if context.used < context.wanted => format!(
                    "the generator lowered max_model_len from {} to {} because {cap} tokens fit the \
                     GPUs' memory by its table",
                    context.wanted, context.used
                ),
                _ => format!("the generator set max_model_len to {}", context.used),
            };
            report.infeasible(
                &draft.id,
                Obstacle::Infeasible,
                format!("{prompt} prompt and {output} output tokens do not fit: {lowered}"),
            );
            let long_enough = needed.saturating_add(127) / 128 * 128;
            draft.set("max_model_len", long_enough);
            report.warn(format!(
                "{}: max_model_len = {long_enough} is written in place of {}, so that it can run",
                draft.id, context.used
            ));
        }
        let scaling = self
            .rope_scaling
            .filter(|_| prompt > self.native_positions());
        if let Some(scaling) = scaling {
            let converted = scaling.iter().filter_map(|(key, value)| {
                let key = if key == "type" { "rope_type" } else { key };
                Some((key.to_owned(), convert(value)?))
            });
            draft.set("rope_scaling", Value::Map(converted.collect()));
        }
    }

    fn native_positions(&self) -> i64 {
        let of_scaling = self.rope_scaling;
        let positions = of_scaling.and_then(|s| int(s, "original_max_position_embeddings"));
        positions.unwrap_or(NATIVE_POSITIONS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_context_is_what_the_generator_made_of_it() {
        let infrastructure = json!({"model": "Qwen/Qwen2.5-32B-Instruct", "gpu_type": "NVIDIA L40S 48GB", "tp_size": 4});
        let common = json!({"gpu_memory_utilization": 0.9});
        let serving = |common: &Json| {
            let (infrastructure, common) = (infrastructure.clone(), common.clone());
            move |prompt| {
                Serving {
                    infrastructure: infrastructure.as_object().unwrap(),
                    common: common.as_object().unwrap(),
                    rope_scaling: None,
                }
                .context(prompt, None)
                .used
            }
        };
        let used = serving(&common);
        assert_eq!(
            [1024, 4096, 12288, 32768, 65536, 102_400, 131_072].map(used),
            [16384, 16384, 20480, 34816, 40960, 40960, 40960]
        );
        // Any other share of the memory misses the table, and the limit with it.
        let used = serving(&json!({"gpu_memory_utilization": 0.92}));
        assert_eq!([65536, 131_072].map(used), [65536, 131_072]);
    }
}
