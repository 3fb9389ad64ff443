//! The critical path of a plan: the longest chain of what runs or may run, by what is known of how
//! long each takes, and what each node on it would save if it took no time at all.

use serde_json::json;

use super::super::out::{Out, table};
use super::people;
use crate::engine::decide::{Decider, Decision};
use crate::engine::forecast::{critical_path, expected_s};
use crate::error::Result;
use crate::graph::NodeId;

/// See the module.
pub struct Chain {
    /// Label, expected seconds, seconds saved.
    steps: Vec<(String, Option<f64>, f64)>,
    length_s: f64,
    unknown: usize,
    simulated: bool,
}

impl Chain {
    /// The chain of a plan.
    pub fn of(decider: &Decider<'_>, plan: &[(NodeId, Decision)]) -> Self {
        let runs = plan.iter().filter(|(_, decision)| decision.may_run());
        let nodes: Vec<NodeId> = runs.map(|(node, _)| *node).collect();
        let seconds = |node| expected_s(decider, node);
        let (steps, length_s) = critical_path(decider.graph(), &nodes, &seconds);
        let label = |node| decider.graph().label(node).to_string();
        Self {
            steps: steps
                .into_iter()
                .map(|step| (label(step.node), step.seconds, step.gain_s))
                .collect(),
            length_s,
            unknown: nodes
                .iter()
                .filter(|node| seconds(**node).is_none())
                .count(),
            simulated: decider.platform().simulated,
        }
    }

    /// For machines.
    pub fn as_json(&self) -> serde_json::Value {
        let steps = self.steps.iter();
        let steps = steps.map(|(label, seconds, gain_s)| {
            json!({"label": label, "seconds": seconds, "gain_s": gain_s})
        });
        json!({
            "length_s": self.length_s, "unknown": self.unknown, "simulated": self.simulated,
            "steps": steps.collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn print(&self, out: &mut Out) -> Result<()> {
        if self.steps.is_empty() {
            return out.line("critical path: nothing runs");
        }
        let simulated = if self.simulated {
            " of simulated time"
        } else {
            ""
        };
        let unknown = match self.unknown {
            0 => String::new(),
            some => format!(", {some} whose time is not known counted as none"),
        };
        let length = people(self.length_s);
        out.line(format!(
            "critical path: at least {length}{simulated}{unknown}"
        ))?;
        let mut rows = table(["pattern", "takes", "saves at most"]);
        for (label, seconds, gain_s) in &self.steps {
            let takes = seconds.map_or("not known".to_owned(), people);
            rows.add_row([label.clone(), takes, people(*gain_s)]);
        }
        out.line(rows)
    }
}
