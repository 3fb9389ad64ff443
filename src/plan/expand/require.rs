//! What a rule demands of the settings of every pattern. A demand that fails is told once for
//! every set of places that it can be blamed on, where all levels of a factor are one place, with
//! the patterns that it concerns; the caret stands at the setting that was made most specifically
//! for the first of them, because that is the one to change.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use super::condition::{Computed, tell_once};
use super::memo::Row;
use crate::error::Diagnostic;
use crate::plan::model::Setting;
use crate::rule::model::Rule;
use crate::rule::params;

/// Labels that one finding names before it only counts.
const LABELS_NAMED: usize = 6;

/// The demands of one rule on the cells of one matrix.
#[derive(Debug)]
pub(super) struct Requirements {
    rule: Arc<Rule>,
    /// Places of factors.
    varied: Vec<bool>,
    demands: Vec<Demand>,
}

#[derive(Debug)]
struct Demand {
    condition: Computed,
    why: String,
    /// Number in `failures` by the settings that broke it.
    known: HashMap<Vec<usize>, usize>,
    /// In order of the first cell that failed.
    failures: Vec<Failure>,
}

#[derive(Debug)]
struct Failure {
    settings: Vec<(Arc<str>, Arc<Setting>)>,
    labels: Vec<String>,
    count: usize,
}

impl Requirements {
    /// Compiles the demands of a rule.
    pub(super) fn compile(
        rule: &Arc<Rule>,
        row: &Row,
        varied: &[bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut demands = Vec::new();
        for require in &rule.require {
            match Computed::over_rule(&require.that, rule, row) {
                Ok(condition) => demands.push(Demand {
                    condition,
                    why: require.why.clone(),
                    known: HashMap::new(),
                    failures: Vec::new(),
                }),
                Err(found) => found.into_iter().for_each(|found| tell_once(diags, found)),
            }
        }
        Self {
            rule: rule.clone(),
            varied: varied.to_vec(),
            demands,
        }
    }

    /// Holds one cell against every demand.
    pub(super) fn check(&mut self, row: &Row, label: &dyn Display, diags: &mut Vec<Diagnostic>) {
        for demand in &mut self.demands {
            // What has no value, or could not be worked out, has been told.
            if !demand.condition.is_ready(row) || demand.condition.holds(row, diags) != Some(false)
            {
                continue;
            }
            let slots = demand.condition.slots();
            let settings = || {
                slots
                    .iter()
                    .filter_map(|slot| Some((row.names().get(*slot)?, row.get(*slot)?)))
            };
            let place = |slot: &usize| match row.get(*slot) {
                Some(setting) if !self.varied.get(*slot).is_some_and(|varied| *varied) => {
                    Arc::as_ptr(setting) as usize
                }
                _ => 0,
            };
            let key = slots.iter().map(place).collect();
            let next = demand.failures.len();
            let at = *demand.known.entry(key).or_insert(next);
            if at == next {
                demand.failures.push(Failure {
                    settings: settings().map(|(n, s)| (n.clone(), s.clone())).collect(),
                    labels: Vec::new(),
                    count: 0,
                });
            }
            let failure = &mut demand.failures[at];
            failure.count += 1;
            if failure.labels.len() < LABELS_NAMED {
                failure.labels.push(label.to_string());
            }
        }
    }

    /// One finding for every set of places that breaks a demand.
    pub(super) fn findings(&self) -> Vec<Diagnostic> {
        self.demands
            .iter()
            .flat_map(|demand| demand.failures.iter().map(|f| self.finding(demand, f)))
            .collect()
    }

    fn finding(&self, demand: &Demand, failure: &Failure) -> Diagnostic {
        let that = demand.condition.expr().text();
        // In the order in which the expression mentions them, which is the order of its thought.
        let mut settings: Vec<_> = failure
            .settings
            .iter()
            .map(|(name, setting)| {
                let value = match self.rule.params.get(&**name) {
                    Some(param) => params::value_text(&param.ty, &setting.value),
                    None => format!("{:?}", setting.value),
                };
                (name, setting, format!("{name} = {value}"))
            })
            .collect();
        settings.sort_by_key(|(name, _, _)| that.text.find(&***name).unwrap_or(usize::MAX));
        let values: Vec<_> = settings
            .iter()
            .map(|(_, _, value)| value.as_str())
            .collect();
        let why = match demand.why.as_str() {
            "" => String::new(),
            why => format!("{why}: "),
        };
        let message = format!(
            "{why}`{}` does not hold for {}",
            that.text,
            values.join(", ")
        );
        let mut found = Diagnostic::error("requirement", message);
        // The most specific first; of equals the first mentioned.
        settings.sort_by_key(|(_, setting, _)| std::cmp::Reverse(setting.source));
        for (_, setting, value) in &settings {
            if let Some(site) = &setting.site {
                found = found.at(site.clone(), value.as_str());
            }
        }
        found = found.at(that.site.clone(), format!("required by `{}`", self.rule.id));
        let names: Vec<_> = settings
            .iter()
            .map(|(name, ..)| format!("`{name}`"))
            .collect();
        if !names.is_empty() {
            found = found.hint(format!("change {} so that it holds", names.join(" or ")));
        }
        if let Some(first) = failure.labels.first() {
            found = found.label(first);
        }
        if failure.count > 1 {
            let more = match failure.count - failure.labels.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            found = found.hint(format!(
                "{} patterns, this is the first: {}{more}",
                failure.count,
                failure.labels.join(", ")
            ));
        }
        found
    }
}
