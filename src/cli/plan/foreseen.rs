//! The part of a plan that follow-ups have in it: what they would run, may run and reuse. It stands
//! by itself, since no pattern of it was planned.

use std::borrow::Cow;

use doe_cache::Store;
use serde_json::json;

use super::super::out::Out;
use super::{list, needed, people, waiting};
use crate::engine::decide::{Decider, Decision};
use crate::engine::followup::Choice;
use crate::engine::followup::foresee::{Fate, foresee};
use crate::error::Result;
use crate::graph::NodeId;

/// See the module.
#[derive(Default)]
pub struct Foreseen {
    items: Vec<Item>,
    left_out: Vec<(String, usize)>,
}

struct Item {
    label: String,
    /// `run`, `may_run`, `reuse`.
    decision: &'static str,
    reason: String,
    followup: String,
    cause: Option<String>,
}

impl Foreseen {
    /// What the follow-ups would do after a plan.
    pub fn of(
        decider: &Decider<'_>,
        store: &Store,
        choice: &Choice,
        plan: &[(NodeId, Decision)],
    ) -> Result<Self> {
        let outlook = foresee(decider, store, choice, plan)?;
        let graph = decider.graph();
        let items = outlook.nodes.into_iter().map(|foreseen| {
            let (decision, reason, cause) = match foreseen.fate {
                Fate::Open(condition, budget_s) => {
                    let within = budget_s.map(|s| format!(", within {}", people(s)));
                    let within = within.unwrap_or_default();
                    ("may_run", format!("if `{condition}`{within}"), None)
                }
                Fate::Decided(cause, decision) => {
                    let cause = cause.to_string();
                    match decision {
                        Decision::Reuse { record, .. } => {
                            let reason = format!("up to date (record {}): {cause}", record.short());
                            ("reuse", reason, Some(cause))
                        }
                        Decision::Refused { why, .. } => ("refused", why, Some(cause)),
                        Decision::Blocked { because } => {
                            ("blocked", needed(decider, &because), Some(cause))
                        }
                        Decision::Enough { why } => ("enough", why, Some(cause)),
                        Decision::Run { .. } => ("run", cause.clone(), Some(cause)),
                        Decision::MayRun { because } => {
                            let first = graph.label(because[0]).to_string();
                            ("may_run", waiting(&first, because.len()), Some(cause))
                        }
                    }
                }
            };
            Item {
                label: graph.label(foreseen.node).to_string(),
                decision,
                reason,
                followup: foreseen.followup,
                cause,
            }
        });
        Ok(Self {
            items: items.collect(),
            left_out: outlook.left_out,
        })
    }

    /// Whether anything of it would run.
    pub fn runs(&self) -> bool {
        self.items.iter().any(|item| item.decision == "run")
    }

    /// For machines.
    pub fn as_json(&self) -> Vec<serde_json::Value> {
        let items = self.items.iter().map(|item| {
            json!({
                "label": item.label, "decision": item.decision, "reason": item.reason,
                "followup": item.followup, "cause": item.cause, "exploratory": true,
            })
        });
        items.collect()
    }

    /// For people: one list for each decision.
    pub fn print(&self, out: &mut Out) -> Result<()> {
        for (decision, title, color) in [
            ("run", "run by follow-ups, exploratory", "33"),
            ("may_run", "may run by follow-ups, exploratory", "36"),
            ("reuse", "reuse by follow-ups, exploratory", "32"),
        ] {
            let of = self.items.iter().filter(|item| item.decision == decision);
            let lines: Vec<(Cow<'_, str>, String)> = of
                .map(|item| {
                    let name = item.followup.split('#').next_back().unwrap_or_default();
                    (Cow::from(&item.label), format!("{name}: {}", item.reason))
                })
                .collect();
            list(out, title, color, &lines)?;
        }
        Ok(())
    }

    /// What budgets leave out.
    pub fn last_words(&self, out: &mut Out) -> Result<()> {
        for (followup, left) in &self.left_out {
            out.line(format!("{followup}: its budget leaves out {left} patterns"))?;
        }
        Ok(())
    }
}
