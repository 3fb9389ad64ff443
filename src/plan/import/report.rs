//! What an import found: how much there is, what could never have run, and what the old system
//! read past. Every entry names the place it is about.

use serde::{Serialize, Serializer};
use serde_json::Value;

/// The account of one import.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Patterns in the plan that was written.
    pub patterns: usize,
    /// The same by layer, in file order; as JSON an object.
    #[serde(serialize_with = "as_object")]
    pub by_layer: Vec<LayerCount>,
    /// Patterns that the old system could never have run successfully.
    pub infeasible: Vec<Infeasible>,
    /// Settings that had no effect.
    pub dead_settings: Vec<DeadSetting>,
    /// Everything else that a reader of the plan should know.
    pub warnings: Vec<String>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCount {
    /// Its id.
    pub layer: String,
    /// Its patterns.
    pub patterns: usize,
}

/// A pattern that could never have run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Infeasible {
    /// Its id.
    pub id: String,
    /// What kept it from running.
    pub kind: Obstacle,
    /// Why.
    pub reason: String,
}

/// What kept a pattern from ever running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// The cell itself: its tokens do not fit the context that the old system gave the server.
    Infeasible,
    /// The commands that the old system made for it.
    BrokenCommand,
}

/// A setting without effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeadSetting {
    /// Its key.
    pub key: String,
    /// Where it stands: `common_settings`, `layers[L2-EFA].vllm_config`.
    #[serde(rename = "where")]
    pub place: String,
    /// What the file says; null when it says different things in many patterns.
    pub value: Value,
    /// Why it had none.
    pub reason: String,
}

fn as_object<S: Serializer>(layers: &[LayerCount], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(layers.iter().map(|layer| (&layer.layer, layer.patterns)))
}

impl Report {
    /// Adds a setting without effect.
    pub(super) fn dead(&mut self, key: &str, place: &str, value: &Value, reason: &str) {
        self.dead_settings.push(DeadSetting {
            key: key.to_owned(),
            place: place.to_owned(),
            value: value.clone(),
            reason: reason.to_owned(),
        });
    }

    /// Adds a pattern that could never have run.
    pub(super) fn infeasible(&mut self, id: &str, kind: Obstacle, reason: impl Into<String>) {
        self.infeasible.push(Infeasible {
            id: id.to_owned(),
            kind,
            reason: reason.into(),
        });
    }

    /// Adds a warning.
    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }
}
