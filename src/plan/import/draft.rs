//! A plan on its way from the old format to the new one: layers of patterns, each with its rule
//! and the settings it needs. A setting is put only where the rule has such a parameter.

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::Value;

use crate::rule::model::{Rule, RuleId};

/// Rules by id.
pub(super) type Rules = BTreeMap<RuleId, Arc<Rule>>;

/// One layer.
#[derive(Debug, Clone, Default)]
pub(super) struct DraftLayer {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) adhoc: bool,
    pub(super) tags: Vec<String>,
    /// Seconds per pattern.
    pub(super) estimate_s: Option<f64>,
    pub(super) patterns: Vec<Draft>,
}

/// One pattern.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) id: String,
    pub(super) rule: Arc<Rule>,
    pub(super) settings: BTreeMap<String, Value>,
    pub(super) needs: Vec<String>,
    /// Metric and expectation.
    pub(super) expect: Vec<(String, String)>,
}

impl Draft {
    pub(super) fn new(id: &str, rule: &Arc<Rule>) -> Self {
        Self {
            id: id.to_owned(),
            rule: rule.clone(),
            settings: BTreeMap::new(),
            needs: Vec::new(),
            expect: Vec::new(),
        }
    }

    /// Sets a parameter; false when the rule has none of this name.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) -> bool {
        let known = self.rule.params.contains_key(name);
        if known {
            self.settings.insert(name.to_owned(), value.into());
        }
        known
    }

    /// A whole number among the settings.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.settings.get(name) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// The rule's file and table.
    pub(super) fn rule_id(&self) -> &str {
        &self.rule.id.0
    }
}
