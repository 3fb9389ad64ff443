//! What the old system did with every key that its plans have. A key that is in no table here was
//! read by nothing, and so was every key listed as dead; keys listed as prose are for people.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::report::Report;

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It changed what was run, or the import reads it.
    Live,
    /// For people only.
    Prose,
    /// No effect, and why.
    Dead(&'static str),
}

use Fate::{Dead, Live, Prose};

const VERSION: &str = "never compared with the machine; a platform's facts say what is there";
const MLFLOW: &str = "no program reads it";
const DERIVED: &str = "derived from the pattern's `transport`";

type Table = &'static [(&'static str, Fate)];

const TOP: Table = &[
    ("phase", Prose),
    ("name", Live),
    ("description", Live),
    ("created", Prose),
    ("mlflow_config", Live),
    ("infrastructure", Live),
    ("common_settings", Live),
    ("prompt_lengths", Live),
    ("concurrency_levels", Prose),
    ("kv_cache_reference", Live),
    ("layers", Live),
    (
        "execution_order",
        Dead("the runner walks `layers` in file order and never reads it"),
    ),
    ("analysis_plan", Live),
    ("task_definition_paths", Dead("no program reads it")),
    (
        "generate_tasks_script",
        Dead("no program reads it; no such file exists"),
    ),
    ("estimated_duration", Prose),
    ("validation_targets", Dead("prose that nothing evaluates")),
];

const MLFLOW_CONFIG: Table = &[
    (
        "experiment_name",
        Dead("never read; runs of one layer went to another phase's experiment"),
    ),
    ("timestamp_suffix", Prose),
    ("run_name_prefix", Dead(MLFLOW)),
    ("params", Dead(MLFLOW)),
    ("metrics", Dead(MLFLOW)),
];

const INFRASTRUCTURE: Table = &[
    ("instance_type", Dead(VERSION)),
    ("node_count", Dead("always two nodes")),
    ("model", Live),
    ("model_size", Dead("no program reads it")),
    ("vllm_version", Dead(VERSION)),
    ("nixl_version", Dead(VERSION)),
    ("gpu_type", Live),
    ("gpu_count_per_node", Dead(VERSION)),
    ("tp_size", Live),
    ("efa_bandwidth_gbps", Dead("no program reads it")),
    ("region", Dead("no program reads it")),
    ("placement_group", Dead("no program reads it")),
    (
        "venv_path",
        Dead("where programs lie is the platform's matter"),
    ),
    (
        "nixl_path",
        Dead("where programs lie is the platform's matter"),
    ),
    (
        "etcd_version",
        Dead("the rule starts the service that it needs"),
    ),
    (
        "etcd_port",
        Dead("the rule starts the service that it needs"),
    ),
];

const COMMON_SETTINGS: Table = &[
    ("max_tokens", Live),
    ("warmup_iterations", Live),
    ("measurement_iterations", Live),
    ("gpu_memory_utilization", Live),
    ("max_num_batched_tokens", Live),
    (
        "measurement_type",
        Dead("online was the only variant that could run"),
    ),
    (
        "temperature",
        Dead("the client always sent 0.7, which the import keeps"),
    ),
    ("streaming", Dead("answers were always streamed")),
    (
        "enable_chunked_prefill",
        Dead("the flag was always passed, which the import keeps"),
    ),
    (
        "enable_prefix_caching",
        Dead(
            "the templates look for `prefix_cache`: every server ran with prefix caching off, \
             which the import keeps, since on it would hide the transfer that is measured",
        ),
    ),
    ("prefix_cache", Live),
    (
        "enforce_eager",
        Dead("the flag was always passed, which the import keeps"),
    ),
];

const LAYER: Table = &[
    ("id", Live),
    ("name", Live),
    ("priority", Live),
    ("description", Prose),
    ("estimated_time_minutes", Live),
    ("vllm_config", Live),
    ("depends_on", Live),
    ("mlflow_config", Live),
    ("adhoc", Live),
    ("tool", Live),
    ("prerequisite", Prose),
    ("patterns", Live),
];

const VLLM_CONFIG: Table = &[
    ("mode", Dead("the pattern's `mode` decides")),
    ("proxy_required", Dead("the pattern's `mode` decides")),
    (
        "max_model_len",
        Dead("the generator drops it and goes by the prompt length"),
    ),
    (
        "max_model_len_standard",
        Dead("the generator goes by the prompt length"),
    ),
    (
        "max_model_len_longctx",
        Dead("the generator goes by the prompt length"),
    ),
    ("port", Dead("8100 is written in the template")),
    (
        "kv_connector",
        Dead("NixlConnector is written in the template"),
    ),
    (
        "kv_buffer_device",
        Dead("cpu is written in the template, which the import keeps"),
    ),
    ("kv_buffer_size", Live),
    ("kv_parallel_size", Dead("2 is written in the template")),
    ("nixl_backend", Dead(DERIVED)),
    ("ucx_tls", Dead(DERIVED)),
    ("ucx_net_devices", Dead(DERIVED)),
    ("prefill_port", Dead("the port is written in the template")),
    ("decode_port", Dead("the port is written in the template")),
    ("proxy_port", Dead("the port is written in the template")),
];

const PATTERN: Table = &[
    ("id", Live),
    ("tool", Live),
    ("type", Live),
    ("description", Prose),
    (
        "node",
        Dead("tools of one node ran on the first one, whatever it says"),
    ),
    ("role", Dead("no program reads it")),
    ("expected", Live),
    ("mode", Live),
    ("transport", Live),
    ("backend", Live),
    ("prompt_tokens", Live),
    ("prompt_label", Prose),
    ("concurrency", Live),
    ("max_model_len", Live),
    ("metrics", Prose),
    (
        "requires_yarn",
        Dead("no server was ever given rope scaling"),
    ),
    ("enable_cross_layers_blocks", Live),
    ("inputs", Live),
    ("method", Prose),
    ("output_metrics", Prose),
    ("adhoc", Live),
    (
        "pattern_id",
        Dead("it took the place of the id in file names, so two phases overwrote each other"),
    ),
    ("provider", Dead("efa is written in the template")),
    ("message_size", Live),
    ("message_sizes", Live),
    ("message_size_human", Prose),
    ("iterations", Live),
    ("initiator_seg_type", Live),
    ("target_seg_type", Live),
    ("kv_cache_equivalent_tokens", Prose),
    ("num_threads", Live),
    ("scheme", Live),
    ("model_config", Live),
    ("model_params", Live),
    ("action", Prose),
    ("test_type", Live),
    ("memory_type", Live),
    ("mlflow_config", Dead(MLFLOW)),
];

/// Reports the dead keys of the whole file.
pub(super) fn report(plan: &Map<String, Value>, report: &mut Report) {
    object(plan, "top level", TOP, report);
    let part = |key: &str| plan.get(key).and_then(Value::as_object);
    for (key, table) in [
        ("mlflow_config", MLFLOW_CONFIG),
        ("infrastructure", INFRASTRUCTURE),
        ("common_settings", COMMON_SETTINGS),
    ] {
        if let Some(part) = part(key) {
            object(part, key, table, report);
        }
    }
    for layer in super::objects(plan.get("layers")) {
        let id = super::text(layer, "id").unwrap_or("?");
        let place = format!("layers[{id}]");
        object(layer, &place, LAYER, report);
        for (key, table) in [
            ("vllm_config", VLLM_CONFIG),
            ("mlflow_config", MLFLOW_CONFIG),
        ] {
            if let Some(part) = layer.get(key).and_then(Value::as_object) {
                object(part, &format!("{place}.{key}"), table, report);
            }
        }
        patterns(layer, &place, report);
    }
}

fn object(object: &Map<String, Value>, place: &str, table: Table, report: &mut Report) {
    for (key, value) in object {
        if let Some(reason) = dead(key, table) {
            report.dead(key, place, value, reason);
        }
    }
}

/// One entry for a key that many patterns of a layer have.
fn patterns(layer: &Map<String, Value>, place: &str, report: &mut Report) {
    let mut found: BTreeMap<&str, (&'static str, Vec<&Value>)> = BTreeMap::new();
    for pattern in super::objects(layer.get("patterns")) {
        for (key, value) in pattern {
            if let Some(reason) = dead(key, PATTERN) {
                found
                    .entry(key)
                    .or_insert((reason, Vec::new()))
                    .1
                    .push(value);
            }
        }
    }
    for (key, (reason, values)) in found {
        let same = values.windows(2).all(|pair| pair[0] == pair[1]);
        let value = if same { values[0] } else { &Value::Null };
        let place = format!("{place}.patterns ({} of them)", values.len());
        report.dead(key, &place, value, reason);
    }
}

/// Why a key had no effect, unless it had one or is for people.
fn dead(key: &str, table: Table) -> Option<&'static str> {
    // Keys with an underscore are annotations.
    if key.starts_with('_') {
        return None;
    }
    match table
        .iter()
        .find(|(name, _)| *name == key)
        .map(|(_, fate)| fate)
    {
        Some(Live | Prose) => None,
        Some(Dead(reason)) => Some(reason),
        None => Some("no program reads a key of this name"),
    }
}
