//! How long a pattern is expected to take: seconds, zero or more, the same for all cells or worked
//! out from their settings.

use doe_cache::Value;

use super::condition::{Computed, tell_once};
use super::memo::Row;
use crate::error::Diagnostic;
use crate::plan::schema::EstimateDecl;

/// Time per pattern.
pub(super) enum Estimate {
    /// The same for all cells.
    Seconds(f64),
    /// From the settings.
    Computed(Computed),
}

impl Estimate {
    /// Compiles what the plan says; `None` after a finding.
    pub(super) fn compile(
        decl: &EstimateDecl,
        row: &Row,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Self> {
        match decl {
            EstimateDecl::Seconds(seconds) => Some(Estimate::Seconds(*seconds)),
            EstimateDecl::Expression(text) => match Computed::over_settings(text, row) {
                Ok(computed) => Some(Estimate::Computed(computed)),
                Err(found) => {
                    found.into_iter().for_each(|found| tell_once(diags, found));
                    None
                }
            },
        }
    }

    /// Seconds for one cell; `None` after a finding, which is told once.
    pub(super) fn seconds(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> Option<f64> {
        let computed = match self {
            Estimate::Seconds(seconds) => return Some(*seconds),
            Estimate::Computed(computed) if !computed.is_ready(row) => return None,
            Estimate::Computed(computed) => computed,
        };
        let site = computed.expr().text().site.clone();
        let seconds = match computed.value(row) {
            Ok(Value::Int(seconds)) => *seconds as f64,
            Ok(Value::Float(seconds)) => *seconds,
            Ok(_) => -1.0,
            Err(found) => {
                tell_once(diags, found.clone());
                return None;
            }
        };
        if seconds >= 0.0 && seconds.is_finite() {
            return Some(seconds);
        }
        let found = Diagnostic::error(
            "bad-estimate",
            "an estimate must be a number of seconds, 0 or more",
        )
        .at(site, "")
        .hint("write a duration such as \"5m\", or an expression in seconds over the settings");
        tell_once(diags, found);
        None
    }
}
