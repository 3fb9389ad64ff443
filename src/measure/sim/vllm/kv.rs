//! The KV transfer configuration and the path it takes. A configuration that reads is one that
//! vLLM would start with, with NIXL or its ExampleConnector: known connector, role, backends and
//! keys.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::measure::sim::profile::{Link, SimProfile};

/// Environment variables, handed in so that servers in one process can differ.
pub type Vars = BTreeMap<String, String>;

/// Which part of a pair a server plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Producer,
    Consumer,
    Both,
}

/// What becomes of a request whose KV cache does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoadFailure {
    /// It fails.
    Fail,
    /// The prompt is computed again.
    Recompute,
}

/// `--kv-transfer-config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KvConfig {
    pub(super) role: Role,
    pub(super) on_failure: LoadFailure,
    /// NIXL's backends; empty is NIXL's default, UCX.
    pub(super) backends: Vec<String>,
    pub(super) cross_layers_blocks: bool,
    /// The folder of the ExampleConnector; none is NIXL.
    pub(super) storage: Option<String>,
}

const KEYS: [&str; 13] = [
    "kv_connector",
    "engine_id",
    "kv_buffer_device",
    "kv_buffer_size",
    "kv_role",
    "kv_rank",
    "kv_parallel_size",
    "kv_ip",
    "kv_port",
    "kv_connector_extra_config",
    "kv_connector_module_path",
    "kv_load_failure_policy",
    "enable_permute_local_kv",
];

const BACKENDS: [&str; 8] = [
    "UCX",
    "UCX_MO",
    "LIBFABRIC",
    "GDS",
    "GDS_MT",
    "POSIX",
    "Mooncake",
    "OBJ",
];

impl KvConfig {
    /// Reads the JSON object.
    ///
    /// # Errors
    /// In vLLM's words, what is wrong with it.
    pub(super) fn read(config: &Value) -> Result<Self, String> {
        let fields = config.as_object().ok_or("Input should be an object")?;
        if let Some(key) = fields.keys().find(|k| !KEYS.contains(&k.as_str())) {
            return Err(format!(
                "1 validation error for KVTransferConfig\n{key}\n  Unexpected keyword argument"
            ));
        }
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        let extra = config.get("kv_connector_extra_config");
        let storage = match text("kv_connector") {
            Some("NixlConnector") => None,
            Some("ExampleConnector") => {
                let path = extra.and_then(|e| e.get("shared_storage_path"));
                Some(path.and_then(Value::as_str).unwrap_or("/tmp").to_owned())
            }
            Some(other) => return Err(format!("Unsupported connector type: {other}")),
            None => return Err("kv_connector is not set".into()),
        };
        let role = match text("kv_role") {
            Some("kv_producer") => Role::Producer,
            Some("kv_consumer") => Role::Consumer,
            Some("kv_both") => Role::Both,
            Some(other) => {
                return Err(format!(
                    "Unsupported kv_role: {other}. Supported roles are 'kv_producer', \
                     'kv_consumer', 'kv_both'"
                ));
            }
            None => return Err("Please specify kv_role when kv_connector is set".into()),
        };
        match text("kv_buffer_device") {
            None | Some("cpu" | "cuda") => {}
            Some(other) => return Err(format!("Unsupported kv_buffer_device: {other}")),
        }
        let on_failure = match text("kv_load_failure_policy") {
            None | Some("fail") => LoadFailure::Fail,
            Some("recompute") => LoadFailure::Recompute,
            Some(other) => {
                return Err(format!(
                    "kv_load_failure_policy: Input should be 'recompute' or 'fail', got '{other}'"
                ));
            }
        };
        let backends = match extra.and_then(|e| e.get("backends")) {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => serde_json::from_value::<Vec<String>>(list.clone())
                .map_err(|_| "backends: Input should be a list of strings".to_owned())?,
        };
        if let Some(other) = backends.iter().find(|b| !BACKENDS.contains(&b.as_str())) {
            return Err(format!("nixlNotFoundError: no plugin for backend {other}"));
        }
        // The connector compares the text with "true", whatever its case.
        let cross = extra.and_then(|e| e.get("enable_cross_layers_blocks"));
        let cross_layers_blocks = match cross {
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            Some(Value::Bool(on)) => *on,
            _ => false,
        };
        Ok(Self {
            role,
            on_failure,
            backends,
            cross_layers_blocks,
            storage,
        })
    }
}

/// What carries the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// RDMA over EFA: NIXL's LIBFABRIC backend, or UCX over SRD.
    Efa,
    /// UCX over TCP.
    Tcp,
}

impl Transport {
    /// The path that backend and environment choose; none when they leave only paths that do
    /// not reach another host.
    pub(super) fn choose(config: &KvConfig, vars: &Vars) -> Option<Self> {
        let libfabric = config.backends.iter().any(|b| b == "LIBFABRIC")
            || (config.backends.is_empty()
                && vars.get("NIXL_BACKEND").is_some_and(|b| b == "LIBFABRIC"));
        if libfabric {
            return Some(Self::Efa);
        }
        let Some(list) = vars.get("UCX_TLS").filter(|list| !list.is_empty()) else {
            return Some(Self::Tcp); // what UCX of the wheel finds on its own on such hosts
        };
        let has = |name: &str| list.split(',').any(|t| t.trim() == name);
        match () {
            () if has("srd") || has("ib") => Some(Self::Efa),
            () if has("tcp") || has("all") => Some(Self::Tcp),
            () => None,
        }
    }

    /// The name that both sides must agree on.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Efa => "efa",
            Self::Tcp => "tcp",
        }
    }

    /// What the path delivers on this host.
    pub(super) fn link(self, profile: &SimProfile) -> &Link {
        match self {
            Self::Efa => &profile.efa,
            Self::Tcp => &profile.tcp,
        }
    }

    /// What is left of the bandwidth when `transfers` run at once. TCP loses to incast (drops at
    /// the receiver's port), SRD sprays packets over paths and hardly does.
    pub(super) fn efficiency(self, transfers: usize) -> f64 {
        let loss = match self {
            Self::Efa => 0.005,
            Self::Tcp => 0.08,
        };
        1.0 / (1.0 + loss * (transfers.max(1) - 1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vars(tls: Option<&str>, backend: Option<&str>) -> Vars {
        let pairs = [("UCX_TLS", tls), ("NIXL_BACKEND", backend)];
        let set = pairs
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
        set.collect()
    }

    #[test]
    fn the_campaigns_configuration_reads() {
        let config = json!({
            "kv_connector": "NixlConnector", "kv_role": "kv_producer", "kv_rank": 0,
            "kv_parallel_size": 2, "kv_ip": "10.0.0.1", "kv_buffer_device": "cpu",
            "kv_buffer_size": 5e9,
            "kv_connector_extra_config": {"backends": ["UCX"], "enable_cross_layers_blocks": "True"},
        });
        let read = KvConfig::read(&config).unwrap();
        assert_eq!(
            (read.role, read.cross_layers_blocks),
            (Role::Producer, true)
        );
    }

    #[test]
    fn a_shared_folder_is_told_from_nixl() {
        let storage = |extra: Value| {
            KvConfig::read(&json!({
                "kv_connector": "ExampleConnector", "kv_role": "kv_consumer",
                "kv_connector_extra_config": extra,
            }))
            .unwrap()
            .storage
        };
        let given = storage(json!({"shared_storage_path": "/kv"}));
        assert_eq!(given.as_deref(), Some("/kv"));
        assert_eq!(
            storage(json!({})).as_deref(),
            Some("/tmp"),
            "vLLM's default"
        );
    }

    #[test]
    fn what_vllm_or_nixl_refuses_is_refused() {
        for (config, part) in [
            (
                json!({"kv_connector": "FooConnector", "kv_role": "kv_both"}),
                "Unsupported connector type: FooConnector",
            ),
            (
                json!({"kv_connector": "NixlConnector"}),
                "Please specify kv_role",
            ),
            (
                json!({"kv_connector": "NixlConnector", "kv_role": "producer"}),
                "Unsupported kv_role: producer",
            ),
            (
                json!({"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_rol": 1}),
                "kv_rol\n  Unexpected keyword",
            ),
            (
                json!({"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"backends": ["TCP"]}}),
                "no plugin for backend TCP",
            ),
        ] {
            let why = KvConfig::read(&config).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn the_path_follows_backend_and_environment() {
        let config = |backends: &[&str]| {
            KvConfig::read(&json!({
                "kv_connector": "NixlConnector", "kv_role": "kv_both",
                "kv_connector_extra_config": {"backends": backends},
            }))
            .unwrap()
        };
        let choose = |backends: &[&str], tls, backend| {
            Transport::choose(&config(backends), &vars(tls, backend))
        };
        assert_eq!(choose(&["LIBFABRIC"], None, None), Some(Transport::Efa));
        assert_eq!(
            choose(&["UCX"], Some("srd,self,sm"), None),
            Some(Transport::Efa)
        );
        assert_eq!(
            choose(&["UCX"], Some("tcp,self,sm"), None),
            Some(Transport::Tcp)
        );
        assert_eq!(choose(&[], None, Some("LIBFABRIC")), Some(Transport::Efa));
        assert_eq!(choose(&["UCX"], Some("self,sm"), None), None);
    }
}
