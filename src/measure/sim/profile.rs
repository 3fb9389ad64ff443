//! The host that the simulated tools pretend to run on, read from one JSON file. A profile that
//! loads is complete and sane: every number is finite and in range, every missing field has the
//! documented default (one g6e.12xlarge: four L40S, EFA), and an unknown field is an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Version of the simulation's models. Whoever changes a formula or a constant in the simulated
/// tools adds one, so that stored results of the older model are not reused.
pub const MODEL_VERSION: u32 = 1;

/// Environment variable that names the profile file.
pub const PROFILE_VAR: &str = "DOE_SIM_PROFILE";

/// One simulated host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimProfile {
    /// Version of this file's format; always 1.
    pub schema: u32,
    /// Factor on every simulated duration: 0.01 makes a second last 10 ms. Results keep the
    /// scaled times, they are never scaled back.
    pub time_scale: f64,
    /// Seeds all noise.
    pub seed: u64,
    /// What the instance metadata would say, for example `g6e.12xlarge`.
    pub instance_type: String,
    /// The GPUs.
    pub gpu: Gpu,
    /// What the RDMA path delivers, as an application sees it.
    pub efa: Link,
    /// What TCP delivers, as an application sees it.
    pub tcp: Link,
    /// What a folder that all hosts see delivers.
    pub storage: Link,
    /// How long a model server takes to load its weights, in unscaled seconds.
    pub startup_s: f64,
    /// What a server does beside computing in every step (scheduling, messages between its
    /// processes), in unscaled milliseconds. Accelerators hide it; a CPU does not.
    pub step_overhead_ms: f64,
    /// What a server does for a request before its engine sees it (HTTP, tokens, messages between
    /// its processes), in unscaled milliseconds.
    pub request_overhead_ms: f64,
    /// Models beyond those that are known by name.
    pub models: BTreeMap<String, Shape>,
    /// Faults to inject, each named by the tool that obeys it (`vllm:oom`).
    pub fail: Vec<String>,
}

/// Shape of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Number of parameters.
    pub params: f64,
    /// Layers.
    pub layers: u64,
    /// Width.
    pub hidden: u64,
    /// Attention heads.
    pub heads: u64,
    /// Heads of keys and values.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// `max_position_embeddings`.
    pub max_len: u64,
}

/// The GPUs of a host; all are alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Product name as `nvidia-smi` prints it.
    pub name: String,
    /// How many.
    pub count: u32,
    /// Memory of one, in MiB.
    pub memory_mib: u64,
    /// Driver version.
    pub driver: String,
    /// CUDA version.
    pub cuda: String,
    /// Temperature in degrees Celsius.
    pub temperature_c: f64,
    /// Dense rate in Tflop/s, for what is in no data sheet; 0 takes the sheet's.
    #[serde(skip_serializing_if = "is_zero")]
    pub tflops: f64,
    /// Memory bandwidth in 10^9 bytes/s, for what is in no data sheet; 0 takes the sheet's.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_gbytes_per_s: f64,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// One way over the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Effective bandwidth in Gbit/s (10^9 bits).
    pub bandwidth_gbps: f64,
    /// One-way latency in microseconds.
    pub latency_us: f64,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            name: "NVIDIA L40S".into(),
            count: 4,
            memory_mib: 46_068,
            driver: "570.133.20".into(),
            cuda: "12.8".into(),
            temperature_c: 38.0,
            tflops: 0.0,
            memory_gbytes_per_s: 0.0,
        }
    }
}

impl Default for SimProfile {
    fn default() -> Self {
        Self {
            schema: 1,
            time_scale: 0.01,
            seed: 0,
            instance_type: "g6e.12xlarge".into(),
            gpu: Gpu::default(),
            efa: Link {
                bandwidth_gbps: 35.0,
                latency_us: 16.0,
            },
            tcp: Link {
                bandwidth_gbps: 10.0,
                latency_us: 45.0,
            },
            storage: Link {
                bandwidth_gbps: 16.0,
                latency_us: 200.0,
            },
            startup_s: 60.0,
            step_overhead_ms: 0.0,
            request_overhead_ms: 0.0,
            models: BTreeMap::new(),
            fail: Vec::new(),
        }
    }
}

impl SimProfile {
    /// Reads the profile that `DOE_SIM_PROFILE` names; without the variable, the default.
    ///
    /// # Errors
    /// Usage, when the file cannot be read, does not parse, or holds a value out of range.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(PROFILE_VAR) {
            None => Ok(Self::default()),
            Some(path) => Self::load(std::path::Path::new(&path)),
        }
    }

    /// Reads a profile file.
    ///
    /// # Errors
    /// As [`SimProfile::from_env`].
    pub fn load(path: &std::path::Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io("read the simulation profile", path, &e))?;
        Self::parse(&text).map_err(|e| {
            e.hint(format!(
                "the profile is `{}`, named by {PROFILE_VAR}",
                path.display()
            ))
        })
    }

    /// Parses the text of a profile.
    ///
    /// # Errors
    /// Usage, naming the field and what was expected.
    pub fn parse(text: &str) -> Result<Self> {
        let profile: Self =
            serde_json::from_str(text).map_err(|e| bad("is not a simulation profile").cause(e))?;
        profile.check()?;
        Ok(profile)
    }

    /// Whether the fault of this name is injected.
    pub fn fails(&self, fault: &str) -> bool {
        self.fail.iter().any(|f| f == fault)
    }

    fn check(&self) -> Result<()> {
        if self.schema != 1 {
            return Err(bad(format!("has schema {}, expected 1", self.schema)));
        }
        let positive = [
            ("time_scale", self.time_scale, 100.0),
            ("efa.bandwidth_gbps", self.efa.bandwidth_gbps, 1e5),
            ("tcp.bandwidth_gbps", self.tcp.bandwidth_gbps, 1e5),
            ("storage.bandwidth_gbps", self.storage.bandwidth_gbps, 1e5),
        ];
        for (name, value, most) in positive {
            if !(value.is_finite() && value > 0.0 && value <= most) {
                return Err(bad(format!(
                    "has {name} = {value}, expected a number above 0 and at most {most}"
                )));
            }
        }
        let not_negative = [
            ("efa.latency_us", self.efa.latency_us),
            ("tcp.latency_us", self.tcp.latency_us),
            ("storage.latency_us", self.storage.latency_us),
            ("startup_s", self.startup_s),
            ("step_overhead_ms", self.step_overhead_ms),
            ("request_overhead_ms", self.request_overhead_ms),
            ("gpu.tflops", self.gpu.tflops),
            ("gpu.memory_gbytes_per_s", self.gpu.memory_gbytes_per_s),
        ];
        for (name, value) in not_negative {
            if !(value.is_finite() && (0.0..=1e7).contains(&value)) {
                return Err(bad(format!(
                    "has {name} = {value}, expected a number from 0 to 10^7"
                )));
            }
        }
        for (name, shape) in &self.models {
            shape.check(name)?;
        }
        if !self.gpu.temperature_c.is_finite() {
            return Err(bad("has a gpu.temperature_c that is not a number"));
        }
        Ok(())
    }
}

impl Shape {
    fn check(&self, name: &str) -> Result<()> {
        let counts = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_len", self.max_len),
        ];
        for (field, value) in counts {
            if !(1..=1 << 30).contains(&value) {
                return Err(bad(format!(
                    "has models.{name}.{field} = {value}, expected a number from 1 to 2^30"
                )));
            }
        }
        if !(self.params.is_finite() && self.params >= 1.0) {
            return Err(bad(format!(
                "has models.{name}.params = {}, expected a number of at least 1",
                self.params
            )));
        }
        Ok(())
    }
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Usage,
        "sim-profile",
        format!("the simulation profile {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_take_the_documented_defaults_and_a_profile_round_trips() {
        let profile = SimProfile::parse(r#"{"time_scale":0.5,"gpu":{"count":8}}"#).unwrap();
        assert_eq!(profile.time_scale, 0.5);
        assert_eq!(profile.gpu.count, 8);
        assert_eq!(profile.gpu.name, "NVIDIA L40S");
        let text = serde_json::to_string(&profile).unwrap();
        assert_eq!(SimProfile::parse(&text).unwrap(), profile);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, part) in [
            (r#"{"time_scal":1}"#, "time_scal"),
            (r#"{"time_scale":0}"#, "time_scale"),
            (r#"{"schema":2}"#, "schema 2"),
            (r#"{"startup_s":-1}"#, "startup_s"),
            (
                r#"{"tcp":{"bandwidth_gbps":-1,"latency_us":1}}"#,
                "tcp.bandwidth_gbps",
            ),
            (
                r#"{"models":{"m":{"params":1,"layers":0,"hidden":1,"heads":1,"kv_heads":1,"head_dim":1,"max_len":1}}}"#,
                "models.m.layers = 0",
            ),
            ("{", "not a simulation profile"),
        ] {
            let error = SimProfile::parse(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}
