//! How long a node is expected to take: as long as it took when it last ran on the same kind of
//! platform, else what the plan says, else nobody knows. A plan speaks of real hardware, so it
//! says nothing about a simulation, nor a simulated run about a real one.

use super::decide::Decider;
use crate::graph::NodeId;

/// Seconds, when anybody knows.
pub fn expected_s(decider: &Decider<'_>, node: NodeId) -> Option<f64> {
    let pattern = decider.graph().pattern(node);
    let simulated = decider.platform().simulated;
    let history = decider.snapshot().current(&pattern.label.to_string());
    let history = history.filter(|summary| summary.simulated == simulated);
    let history = history.map(|summary| summary.duration_ms as f64 / 1000.0);
    history.or(pattern.estimate_s.filter(|_| !simulated))
}
