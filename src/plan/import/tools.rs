//! Patterns of tools and analyses: which rule measures the same, with which settings, and why the
//! old commands could not have worked.

use std::sync::Arc;

use doe_cache::Value;
use serde_json::{Map, Value as Json};

use super::draft::{Draft, Rules};
use super::report::Report;
use super::{int, text};
use crate::plan::expect;
use crate::rule::model::{Rule, RuleId};

type Object = Map<String, Json>;

/// Tool names of the old plans and the rules that do their work.
const TOOLS: [(&str, &str); 14] = [
    ("fi_info", "network.fi_info"),
    ("fi_rdm_bw", "network.fi_rdm_bw"),
    ("fi_rdm_pingpong", "network.fi_rdm_pingpong"),
    ("fi_pingpong", "network.fi_pingpong"),
    ("iperf3", "network.iperf3"),
    ("nccl-tests", "network.nccl"),
    ("nvidia-smi", "network.nvidia_smi"),
    ("nvidia-smi dmon", "network.nvidia_smi_dmon"),
    ("nvidia-smi topo -m", "network.nvidia_smi_topo"),
    ("nixlbench", "network.nixlbench"),
    ("kvbench", "network.kvbench"),
    ("ucx_perftest", "network.ucx_perftest"),
    ("unified", "serving.unified"),
    ("disaggregated", "serving.disaggregated"),
];

/// What the ids of analyses end with, and their rules.
const ANALYSES: [(&str, &str); 3] = [
    ("tpot-separation", "analysis.tpot_separation"),
    ("bimodality-detection", "analysis.bimodality"),
    ("proxy-overhead", "analysis.proxy_overhead"),
];

/// Metrics that have another name here and mean the same.
const METRICS: [(&str, &str); 2] = [
    ("efa_latency_us", "latency_us"),
    ("gpu_memory_total_mb", "gpu_memory_total_mib"),
];

/// What a pattern is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A tool before everything else.
    Baseline,
    /// A low-level tool.
    LowLevel,
    /// Looks at results.
    Analysis,
    /// Serves a model.
    Serving,
}

/// What a pattern is, by the order in which the old generator asked.
pub(super) fn kind(layer_id: &str, layer: &Object, pattern: &Object) -> Kind {
    if matches!(text(pattern, "type"), Some("analysis" | "measurement")) {
        Kind::Analysis
    } else if text(pattern, "tool")
        .or_else(|| text(layer, "tool"))
        .is_none()
    {
        Kind::Serving
    } else if layer_id.starts_with("L0-Baseline") {
        Kind::Baseline
    } else {
        Kind::LowLevel
    }
}

/// The rule for a pattern, or the name that none was found for.
pub(super) fn rule<'r>(
    rules: &'r Rules,
    kind: Kind,
    layer: &Object,
    pattern: &Object,
) -> Result<&'r Arc<Rule>, String> {
    let id = text(pattern, "id").unwrap_or_default();
    let name = match kind {
        Kind::Analysis => id,
        Kind::Serving => text(pattern, "mode").unwrap_or("unified"),
        _ => text(pattern, "tool")
            .or_else(|| text(layer, "tool"))
            .unwrap_or_default(),
    };
    let found = match kind {
        Kind::Analysis => ANALYSES.iter().find(|(end, _)| name.ends_with(end)),
        _ => TOOLS.iter().find(|(tool, _)| *tool == name),
    };
    let Some((_, target)) = found else {
        return Err(format!("there is no rule for `{name}`"));
    };
    let rule = rules.get(&RuleId((*target).to_owned()));
    rule.ok_or_else(|| format!("this workspace has no rule `{target}`"))
}

/// Settings of a tool's pattern. A list of message sizes stays a list: one pattern for each.
pub(super) fn fill(draft: &mut Draft, pattern: &Object, report: &mut Report) {
    let id = draft.id.clone();
    if let Some(size) = int(pattern, "message_size") {
        set(draft, "message_size", size, report);
    }
    for (from, to) in [
        ("iterations", "iterations"),
        ("num_threads", "threads"),
        ("prompt_tokens", "prompt_tokens"),
    ] {
        if let Some(value) = int(pattern, from) {
            set(draft, to, value, report);
        }
    }
    for (from, to) in [
        ("test_type", "test"),
        ("memory_type", "memory"),
        ("model_config", "model_name"),
    ] {
        if let Some(value) = text(pattern, from) {
            set(draft, to, value, report);
        }
    }
    if let Some(backend) = text(pattern, "backend") {
        set(draft, "backend", backend.to_uppercase(), report);
    }
    if let Some(scheme) = text(pattern, "scheme") {
        let scheme = match scheme {
            "one_to_one" | "pairwise" => "pairwise",
            "many_to_one" => "manytoone",
            "one_to_many" => "onetomany",
            other => other,
        };
        set(draft, "scheme", scheme, report);
    }
    let segments = (
        text(pattern, "initiator_seg_type"),
        text(pattern, "target_seg_type"),
    );
    match segments {
        (Some(initiator), Some(target)) if initiator == target => {
            set(draft, "segment", initiator, report);
        }
        (None, None) => {}
        (initiator, target) => report.warn(format!(
            "{id}: memory {initiator:?} on one side and {target:?} on the other is not imported"
        )),
    }
    if let Some(model) = pattern.get("model_params").and_then(Json::as_object) {
        for (from, to) in [
            ("layers", "num_layers"),
            ("kv_heads", "num_kv_heads"),
            ("head_dim", "head_dim"),
        ] {
            if let Some(value) = int(model, from) {
                set(draft, to, value, report);
            }
        }
        if let Some(dtype) = text(model, "dtype") {
            set(draft, "dtype", dtype, report);
        }
    }
}

fn set(draft: &mut Draft, name: &str, value: impl Into<Value>, report: &mut Report) {
    if !draft.set(name, value) {
        report.warn(format!(
            "{}: rule `{}` has no `{name}`",
            draft.id,
            draft.rule_id()
        ));
    }
}

/// Expectations in the new grammar. What the rule does not measure is reported as dead.
pub(super) fn expectations(draft: &mut Draft, place: &str, pattern: &Object, report: &mut Report) {
    let expected = pattern.get("expected").and_then(Json::as_object);
    for (metric, value) in expected.into_iter().flatten() {
        let renamed = METRICS.iter().find(|(old, _)| old == metric);
        let name = renamed.map_or(metric.as_str(), |(_, new)| *new);
        if !draft.rule.metrics.contains_key(name) {
            let reason = format!(
                "nothing evaluated it, and rule `{}` has no such metric",
                draft.rule_id()
            );
            report.dead(metric, place, value, &reason);
            continue;
        }
        let text = match value {
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        match expect::parse(&text) {
            Ok(condition) => draft.expect.push((name.to_owned(), condition.to_string())),
            Err(refusal) => match refusal.write {
                Some(text) => draft.expect.push((name.to_owned(), text)),
                None => report.dead(
                    metric,
                    place,
                    value,
                    &format!("not an expectation: {}", refusal.why),
                ),
            },
        }
    }
}

/// Why the old commands of a pattern could not have given a result, if they could not.
pub(super) fn never_ran(kind: Kind, tool: &str) -> Option<&'static str> {
    match (kind, tool) {
        (Kind::Baseline, "fi_rdm_bw") => Some(
            "its commands call an InfiniBand verbs tool, which cannot create a queue pair on EFA; the failure was taken for success",
        ),
        (Kind::Baseline, "fi_rdm_pingpong") => Some(
            "its server command has a damaged redirection and never started the tool, an InfiniBand verbs one that cannot run on EFA",
        ),
        (Kind::Analysis, _) => Some(
            "its script was looked for in another folder than it is copied to, and no input was passed",
        ),
        (Kind::LowLevel, "fi_pingpong" | "fi_rdm_pingpong" | "fi_rma_pingpong") => Some(
            "the runner looks for the server's file in another folder and aborts; its template reads `message_sizes`, the pattern has `message_size`, so no size would be measured",
        ),
        (Kind::LowLevel, "nixlbench") => Some(
            "the runner looks for the server's file in another folder and aborts; the version and port of etcd and the path of NIXL are empty",
        ),
        (Kind::LowLevel, "kvbench") => Some(
            "it needs an etcd that nothing starts; its template reads `num_layers` and `num_kv_heads`, the pattern has `layers` and `kv_heads`, so another model would be profiled",
        ),
        (Kind::LowLevel, "ucx_perftest") => Some(
            "the runner looks for the server's file in another folder and aborts; the transport is empty",
        ),
        _ => None,
    }
}
