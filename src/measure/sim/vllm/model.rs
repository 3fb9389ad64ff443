//! What a model on given GPUs costs: memory and time from published shapes and data sheets and a
//! few fitted constants. Pure: the same model, GPUs and options give the same numbers, and only
//! models and GPUs whose figures are known get any.

use crate::measure::sim::profile::{Gpu, Shape};

/// Shape of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Model {
    /// Part of the repository's name, lower case, that tells the model.
    name: &'static str,
    params: f64,
    layers: u64,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    /// `max_position_embeddings` of the instruction-tuned model.
    pub(super) max_len: u64,
}

#[rustfmt::skip]
const MODELS: &[Model] = &[
    m("qwen2.5-0.5b", 0.494e9, 24, 896, 14, 2, 64, 32768),
    m("qwen2.5-1.5b", 1.544e9, 28, 1536, 12, 2, 128, 32768),
    m("qwen2.5-3b", 3.086e9, 36, 2048, 16, 2, 128, 32768),
    m("qwen2.5-7b", 7.616e9, 28, 3584, 28, 4, 128, 32768),
    m("qwen2.5-14b", 14.77e9, 48, 5120, 40, 8, 128, 32768),
    m("qwen2.5-32b", 32.76e9, 64, 5120, 40, 8, 128, 32768),
    m("qwen2.5-72b", 72.71e9, 80, 8192, 64, 8, 128, 32768),
    m("qwen3-0.6b", 0.596e9, 28, 1024, 16, 8, 128, 40960),
    m("qwen3-4b", 4.02e9, 36, 2560, 32, 8, 128, 40960),
    m("qwen3-8b", 8.19e9, 36, 4096, 32, 8, 128, 40960),
    m("qwen3-14b", 14.77e9, 40, 5120, 40, 8, 128, 40960),
    m("qwen3-32b", 32.76e9, 64, 5120, 64, 8, 128, 40960),
    m("llama-3.1-8b", 8.03e9, 32, 4096, 32, 8, 128, 131_072),
    m("llama-3.1-70b", 70.55e9, 80, 8192, 64, 8, 128, 131_072),
    m("llama-3.3-70b", 70.55e9, 80, 8192, 64, 8, 128, 131_072),
    m("llama-3.2-1b", 1.236e9, 16, 2048, 32, 8, 64, 131_072),
    m("llama-3.2-3b", 3.213e9, 28, 3072, 24, 8, 128, 131_072),
    m("mistral-7b", 7.248e9, 32, 4096, 32, 8, 128, 32768),
    m("opt-125m", 0.125e9, 12, 768, 12, 12, 64, 2048),
];

#[expect(clippy::too_many_arguments, reason = "a row of a table")]
const fn m(
    name: &'static str,
    params: f64,
    layers: u64,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    max_len: u64,
) -> Model {
    Model {
        name,
        params,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        max_len,
    }
}

/// What a GPU's data sheet says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct GpuSheet {
    name: &'static str,
    /// Memory bandwidth in bytes/s.
    memory_rate: f64,
    /// Dense bf16 rate in flop/s.
    flops: f64,
    /// All-reduce bus bandwidth between the GPUs of one host, bytes/s: NVLink or PCIe.
    reduce_rate: f64,
}

#[rustfmt::skip]
const GPUS: &[GpuSheet] = &[
    GpuSheet { name: "l40s", memory_rate: 864e9, flops: 362e12, reduce_rate: 13e9 },
    GpuSheet { name: "l4", memory_rate: 300e9, flops: 121e12, reduce_rate: 9e9 },
    GpuSheet { name: "a10g", memory_rate: 600e9, flops: 70e12, reduce_rate: 10e9 },
    GpuSheet { name: "a100", memory_rate: 2039e9, flops: 312e12, reduce_rate: 230e9 },
    GpuSheet { name: "h100", memory_rate: 3350e9, flops: 989e12, reduce_rate: 360e9 },
    GpuSheet { name: "h200", memory_rate: 4800e9, flops: 989e12, reduce_rate: 360e9 },
    GpuSheet { name: "b200", memory_rate: 8000e9, flops: 2250e12, reduce_rate: 700e9 },
    GpuSheet { name: "t4", memory_rate: 320e9, flops: 65e12, reduce_rate: 6e9 },
];

/// The model that a repository or folder name tells.
pub(super) fn model(repository: &str) -> Option<Model> {
    let name = repository.rsplit('/').next().unwrap_or(repository);
    let name = name.to_ascii_lowercase().replace("meta-llama", "llama");
    let fits = |m: &&Model| {
        name.strip_prefix(m.name)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    MODELS.iter().find(fits).copied()
}

/// A model that the profile describes, by the repository's whole name.
pub(super) fn described(shape: &Shape) -> Model {
    Model {
        name: "",
        params: shape.params,
        layers: shape.layers,
        hidden: shape.hidden,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        max_len: shape.max_len,
    }
}

/// The names that `model` knows.
pub(super) fn known_models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|m| m.name)
}

/// The data sheet of a GPU by its product name, where the profile does not give its rates.
pub(super) fn gpu(gpu: &Gpu) -> Option<GpuSheet> {
    let product = gpu.name.to_ascii_lowercase();
    let mut words = product.split(|c: char| !c.is_ascii_alphanumeric());
    let sheet = words.find_map(|word| GPUS.iter().find(|g| g.name == word).copied());
    let given = |given: f64, sheet: Option<f64>| (given > 0.0).then_some(given).or(sheet);
    Some(GpuSheet {
        name: sheet.map_or("", |s| s.name),
        memory_rate: given(gpu.memory_gbytes_per_s * 1e9, sheet.map(|s| s.memory_rate))?,
        flops: given(gpu.tflops * 1e12, sheet.map(|s| s.flops))?,
        // Only matters between several.
        reduce_rate: sheet.map_or(10e9, |s| s.reduce_rate),
    })
}

/// How a model is laid out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layout {
    pub(super) tensor_parallel: u32,
    pub(super) weight_bytes: f64,
    pub(super) kv_bytes: f64,
    pub(super) eager: bool,
    /// What the server does beside computing in every step, in seconds.
    pub(super) overhead_s: f64,
}

impl Model {
    /// KV cache of one token over all GPUs: 2 (K and V) x layers x KV heads x head size x bytes.
    pub(super) fn kv_bytes_per_token(&self, layout: &Layout) -> f64 {
        (2 * self.layers * self.kv_heads * self.head_dim) as f64 * layout.kv_bytes
    }

    /// Bytes of all weights.
    pub(super) fn weights(&self, layout: &Layout) -> f64 {
        self.params * layout.weight_bytes
    }

    /// Attention heads; tensor parallelism must divide them.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Layers, each with its own KV regions.
    pub(super) fn layers(&self) -> u64 {
        self.layers
    }

    /// Memory left for the KV cache over all GPUs, in bytes; negative when the weights alone do
    /// not fit. The rest is CUDA context and NCCL (1.2 GiB a GPU) and activations, which grow
    /// with the largest batch.
    pub(super) fn kv_memory(
        &self,
        layout: &Layout,
        gpu_memory_bytes: f64,
        utilization: f64,
        batched_tokens: u64,
    ) -> f64 {
        const GIB: f64 = (1u64 << 30) as f64;
        let gpus = f64::from(layout.tensor_parallel);
        let activations = batched_tokens as f64 * self.hidden as f64 * 2.0 * 16.0;
        gpus * (gpu_memory_bytes * utilization - 1.2 * GIB - activations) - self.weights(layout)
    }
}

/// Times of one engine step, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    /// Any step: reading the weights once and launching the kernels.
    floor: f64,
    /// A step that prefills, on top.
    prefill_step: f64,
    /// A prefilled token.
    prefill_token: f64,
    /// A prefilled token times a token of its context.
    prefill_pair: f64,
    /// A decoding stream: sampling and bookkeeping.
    stream: f64,
    /// A token of a decoding stream's context: reading its KV cache.
    context_token: f64,
}

impl Cost {
    /// From data sheets. The fitted constants: 55 % of peak in matrix products, 30 % in
    /// attention, 85 % and 70 % of the memory's rate for weights and KV cache, 0.06 ms a layer to
    /// launch eagerly (0.02 with graphs), and 1.6 ms a layer for the small collectives of a
    /// prefill step over PCIe (0.1 over NVLink). With them Qwen2.5-32B on four L40S has a TTFT of
    /// 0.37 s at 1K, 3.4 s at 12K and 59 s at 128K tokens, and an ITL of 26 ms.
    pub(super) fn of(model: &Model, sheet: &GpuSheet, layout: &Layout) -> Self {
        let gpus = f64::from(layout.tensor_parallel);
        let layers = model.layers as f64;
        let nvlink = sheet.reduce_rate > 100e9;
        let flops = gpus * sheet.flops;
        let memory = gpus * sheet.memory_rate;
        // Two all-reduces a layer of one bf16 activation row; a ring moves 2 (n-1)/n of it.
        let reduced = layers * 2.0 * model.hidden as f64 * 2.0 * 2.0 * (gpus - 1.0) / gpus;
        let launch = if layout.eager { 0.06e-3 } else { 0.02e-3 };
        let collective = match (layout.tensor_parallel, nvlink) {
            (1, _) => 0.02e-3,
            (_, true) => 0.1e-3,
            (_, false) => 1.6e-3,
        };
        let attention = 4.0 * layers * (model.heads * model.head_dim) as f64;
        Self {
            floor: model.weights(layout) / (memory * 0.85) + layers * launch + layout.overhead_s,
            prefill_step: layers * collective,
            prefill_token: 2.0 * model.params / (flops * 0.55) + reduced / sheet.reduce_rate,
            prefill_pair: attention / (flops * 0.30),
            stream: 0.15e-3,
            context_token: model.kv_bytes_per_token(layout) / (memory * 0.70),
        }
    }

    /// One step: `prefill` are (tokens, context before them), `decode` the contexts of the
    /// streams that decode one token each.
    pub(super) fn step(
        &self,
        prefill: impl IntoIterator<Item = (u64, u64)>,
        decode: impl IntoIterator<Item = u64>,
    ) -> f64 {
        let mut time = self.floor;
        let mut prefills = false;
        for (tokens, before) in prefill {
            // A prompt's last token alone costs what a decoded token does.
            if tokens > 1 {
                prefills = true;
            }
            let (tokens, before) = (tokens as f64, before as f64);
            let pairs = tokens * before + tokens * tokens / 2.0;
            time += tokens * self.prefill_token + pairs * self.prefill_pair;
        }
        if prefills {
            time += self.prefill_step;
        }
        for context in decode {
            time += self.stream + context as f64 * self.context_token;
        }
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tensor_parallel: u32) -> Layout {
        Layout {
            tensor_parallel,
            weight_bytes: 2.0,
            kv_bytes: 2.0,
            eager: true,
            overhead_s: 0.0,
        }
    }

    fn sheet(name: &str) -> Option<GpuSheet> {
        gpu(&Gpu {
            name: name.into(),
            ..Gpu::default()
        })
    }

    fn ttft(cost: &Cost, prompt: u64, batch: u64) -> f64 {
        let chunks = (0..prompt).step_by(batch as usize);
        chunks
            .map(|at| cost.step([(batch.min(prompt - at), at)], []))
            .sum()
    }

    #[test]
    fn kv_sizes_are_the_published_ones() {
        let kv = |name| model(name).unwrap().kv_bytes_per_token(&layout(4));
        assert_eq!(kv("Qwen/Qwen2.5-32B-Instruct"), 262_144.0);
        assert_eq!(kv("Qwen/Qwen2.5-7B-Instruct"), 57_344.0);
        assert_eq!(kv("meta-llama/Llama-3.1-8B"), 131_072.0);
    }

    #[test]
    fn times_are_those_of_the_machine_that_is_simulated() {
        // Four L40S, Qwen2.5-32B, chunks of 4096: what such a machine is reported to do.
        let cost = Cost::of(
            &model("qwen2.5-32b").unwrap(),
            &sheet("NVIDIA L40S").unwrap(),
            &layout(4),
        );
        for (tokens, want) in [(1024, 0.4), (12_288, 3.3), (131_072, 60.0)] {
            let got = ttft(&cost, tokens, 4096);
            assert!(
                (got / want - 1.0).abs() < 0.10,
                "{tokens}: {got} s, want {want}"
            );
        }
        let itl = cost.step([], [1024]);
        assert!((0.025..0.030).contains(&itl), "{itl}");
    }

    #[test]
    fn memory_leaves_room_for_the_long_contexts_of_the_campaign_and_not_for_more() {
        let model = model("Qwen2.5-32B-Instruct").unwrap();
        let memory = |tp| model.kv_memory(&layout(tp), 46_068.0 * 1048576.0, 0.9, 4096);
        let tokens = memory(4) / model.kv_bytes_per_token(&layout(4));
        assert!((131_200.0..500_000.0).contains(&tokens), "{tokens}");
        assert!(memory(1) < 0.0, "65 GB of weights do not fit one GPU");
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(
            model("Qwen/Qwen2.5-7B-Instruct").unwrap().name,
            "qwen2.5-7b"
        );
        assert_eq!(model("/models/Qwen2.5-72B").unwrap().name, "qwen2.5-72b");
        assert!(model("Qwen/Qwen2.5-7B5").is_none());
        assert!(model("gpt-5").is_none());
        assert_eq!(sheet("NVIDIA L4").unwrap().name, "l4");
        assert_eq!(sheet("NVIDIA L40S").unwrap().name, "l40s");
        assert_eq!(sheet("NVIDIA H100 80GB HBM3").unwrap().name, "h100");
        assert!(sheet("Voodoo2").is_none());
    }

    #[test]
    fn what_is_in_no_data_sheet_is_what_the_profile_says() {
        let given = Gpu {
            name: "two cores".into(),
            tflops: 0.05,
            memory_gbytes_per_s: 20.0,
            ..Gpu::default()
        };
        let sheet = gpu(&given).unwrap();
        assert_eq!((sheet.flops, sheet.memory_rate), (0.05e12, 20e9));
        let half = Gpu {
            tflops: 0.0,
            ..given
        };
        assert!(gpu(&half).is_none(), "one rate of two is not enough");

        let tiny = model("qwen2.5-0.5b").unwrap();
        let slow = Layout {
            overhead_s: 2e-3,
            ..layout(1)
        };
        let (plain, slow) = (
            Cost::of(&tiny, &sheet, &layout(1)),
            Cost::of(&tiny, &sheet, &slow),
        );
        let more = slow.step([], [10]) - plain.step([], [10]);
        assert!((more - 2e-3).abs() < 1e-9, "{more}");
    }

    #[test]
    fn more_work_never_takes_less_time() {
        let cost = Cost::of(
            &model("qwen2.5-7b").unwrap(),
            &sheet("A10G").unwrap(),
            &layout(1),
        );
        assert!(cost.step([(2, 0)], []) > cost.step([(1, 0)], []));
        assert!(cost.step([(512, 512)], []) > cost.step([(512, 0)], []));
        assert!(cost.step([], [10, 10]) > cost.step([], [10]));
        assert!(cost.step([], [1000]) > cost.step([], [10]));
    }
}
