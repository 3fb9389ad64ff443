//! `/metrics` in Prometheus' text format under vLLM's names. Sums only grow, and what the engine
//! did not do is not counted: tokens that came over the network are never `local_compute`.

use std::fmt::Write;

use super::engine::Counters;

/// The whole page.
pub(super) fn text(counters: &Counters, model: &str, capacity: u64) -> String {
    let c = counters;
    let model = model.replace(['"', '\\', '\n'], "_");
    let mut page = String::from("# simulated\n");
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, f64)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(
                page,
                "vllm:{name}{{engine=\"0\",model_name=\"{model}\"{labels}}} {value:?}"
            );
        }
    };
    let prompt = c.computed_tokens + c.cached_tokens + c.fetched_tokens;
    family(
        "num_requests_running",
        "gauge",
        "Number of requests in model execution batches.",
        &[("", c.running as f64)],
    );
    family(
        "num_requests_waiting",
        "gauge",
        "Number of requests waiting to be processed.",
        &[("", c.waiting as f64)],
    );
    family(
        "kv_cache_usage_perc",
        "gauge",
        "KV-cache usage. 1 means 100 percent usage.",
        &[("", c.used_tokens as f64 / capacity.max(1) as f64)],
    );
    family(
        "prompt_tokens_total",
        "counter",
        "Number of prefill tokens processed.",
        &[("", prompt as f64)],
    );
    family(
        "prompt_tokens_by_source_total",
        "counter",
        "Number of prompt tokens by source.",
        &[
            (",source=\"local_compute\"", c.computed_tokens as f64),
            (",source=\"local_cache_hit\"", c.cached_tokens as f64),
            (",source=\"external_kv_transfer\"", c.fetched_tokens as f64),
        ],
    );
    family(
        "generation_tokens_total",
        "counter",
        "Number of generation tokens processed.",
        &[("", c.output_tokens as f64)],
    );
    family(
        "request_success_total",
        "counter",
        "Count of successfully processed requests.",
        &[("", c.finished as f64)],
    );
    family(
        "request_aborted_total",
        "counter",
        "Count of aborted requests.",
        &[("", c.aborted as f64)],
    );
    family(
        "prefix_cache_queries_total",
        "counter",
        "Prefix cache queries, in tokens.",
        &[("", c.queried_tokens as f64)],
    );
    family(
        "prefix_cache_hits_total",
        "counter",
        "Prefix cache hits, in tokens.",
        &[("", c.cached_tokens as f64)],
    );
    family(
        "nixl_num_transfers_total",
        "counter",
        "KV transfers.",
        &[("", c.fetches as f64)],
    );
    family(
        "nixl_bytes_transferred_total",
        "counter",
        "KV bytes transferred.",
        &[("", c.fetched_bytes)],
    );
    family(
        "iterations_total",
        "counter",
        "Engine steps.",
        &[("", c.steps as f64)],
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_are_the_sum_of_their_sources() {
        let counters = Counters {
            computed_tokens: 17,
            fetched_tokens: 384,
            cached_tokens: 16,
            ..Counters::default()
        };
        let page = text(&counters, "m\"x", 100);
        assert!(page.contains("vllm:prompt_tokens_total{engine=\"0\",model_name=\"m_x\"} 417.0"));
        assert!(page.contains("source=\"external_kv_transfer\"} 384.0"));
        assert!(page.contains("source=\"local_compute\"} 17.0"));
    }
}
