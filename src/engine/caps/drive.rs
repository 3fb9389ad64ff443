//! The gate in a run: who is decided to run asks here, and whoever ends is noted.

use std::collections::HashMap;

use doe_cache::Record;

use super::{Answer, Asks};
use crate::engine::drive::Drive;
use crate::engine::event::Outcome;
use crate::engine::forecast::{cost, expected_s};
use crate::engine::schedule::TaskId;
use crate::error::Result;
use crate::graph::NodeId;

/// The phase of a node in which its services come up.
const SERVICES: &str = "services";

/// Seconds by rule and name of the service.
pub(in crate::engine) type StartTimes = HashMap<(String, String), f64>;

impl Drive<'_, '_, '_> {
    /// A task is to run as soon as no limit and no canary keeps it.
    pub(in crate::engine) fn ask(&mut self, task: TaskId) {
        match self.gate.is_open() {
            true => self.scheduler.admit(task),
            false => {
                let asks = self.asks(task);
                self.gate.ask(task, asks);
                self.scheduler.park(task);
            }
        }
    }

    /// A task that was put off asks once more: it is parked.
    pub(in crate::engine) fn ask_again(&mut self, task: TaskId) {
        match self.gate.is_open() {
            true => self.scheduler.admit(task),
            false => {
                let asks = self.asks(task);
                self.gate.ask(task, asks);
            }
        }
    }

    /// A task goes on that a killed run had begun: nothing keeps it, and it counts.
    pub(in crate::engine) fn go_on(&mut self, task: TaskId) {
        if !self.gate.is_open() {
            let asks = self.asks(task);
            self.gate.pass(task, asks);
        }
        self.scheduler.admit(task);
    }

    /// A task that was to go on cannot: it has to ask like any other.
    pub(in crate::engine) fn hold_up(&mut self, task: TaskId) {
        self.gate.put_off(task, 0.0);
        self.scheduler.put_off(task);
    }

    /// Lets in who may begin, and ends who never will. Whether anything came of it.
    pub(in crate::engine) fn pass_gate(&mut self) -> Result<bool> {
        if self.gate.is_open() || self.scheduler.is_draining() {
            return Ok(false);
        }
        let answers = self.gate.answers();
        let moved = !answers.is_empty();
        for answer in answers {
            match answer {
                Answer::Begin(task) => self.scheduler.admit(task),
                Answer::Refuse(task, why) => {
                    self.end_idle(task, Outcome::Cancelled, &why)?;
                }
                Answer::Block(task, canary) => {
                    let canary = self.tasks[canary.index()].node;
                    let label = self.decider.graph().label(canary);
                    let why = format!("{label}, the canary of its services, did not succeed");
                    self.end_idle(task, Outcome::Blocked, &why)?;
                }
            }
        }
        Ok(moved)
    }

    /// A task has ended.
    pub(in crate::engine) fn note_end(&mut self, task: TaskId) {
        if self.gate.is_open() {
            return;
        }
        let node = self.tasks[task.index()].node;
        if let Some(ended) = &self.finals[node.index()] {
            let ran = ended.outcome != Outcome::Reused;
            let ms = ended.duration_ms.filter(|_| ran).unwrap_or(0);
            self.gate
                .ended(task, ms as f64 / 1000.0, ended.outcome.is_good());
        }
    }

    fn asks(&mut self, task: TaskId) -> Asks {
        let times = match self.start_times.take() {
            Some(times) => times,
            None => self.read_start_times(),
        };
        let asks = self.asks_with(task, &times);
        self.start_times = Some(times);
        asks
    }

    fn asks_with(&self, task: TaskId, times: &StartTimes) -> Asks {
        let planned = &self.tasks[task.index()];
        let pattern = self.decider.graph().pattern(planned.node);
        let per_hour = cost(self.decider.platform(), pattern, 3600.0);
        let mut services: Vec<_> = planned.services.iter().map(|(_, id)| *id).collect();
        services.sort_unstable();
        let mut seconds = expected_s(self.decider, planned.node);
        let mut starts = Vec::new();
        // What the plan expects is of the whole; what is remembered is in parts.
        if let Some(record) = self.remembered(planned.node) {
            let up_ms = record.timings.phases.get(SERVICES).copied().unwrap_or(0);
            seconds = Some(record.duration_ms().saturating_sub(up_ms) as f64 / 1000.0);
            for (name, id) in &planned.services {
                if self.services[id.index()].instance().is_some() {
                    continue;
                }
                match times.get(&(pattern.rule.id.to_string(), name.clone())) {
                    Some(start_s) => starts.push((*id, *start_s)),
                    None => seconds = None,
                }
            }
        }
        Asks {
            seconds,
            starts,
            per_hour: per_hour.unwrap_or(0.0),
            services,
        }
    }

    fn remembered(&self, node: NodeId) -> Option<Record> {
        let label = self.decider.graph().label(node).to_string();
        let current = self.decider.snapshot().current(&label)?;
        let alike = current.simulated == self.decider.platform().simulated;
        self.decider.record(&current.record).filter(|_| alike)
    }

    /// How long services took to come up when they last did, whoever's result stands by now.
    fn read_start_times(&self) -> StartTimes {
        let mut times = StartTimes::new();
        let graph = self.decider.graph();
        let served = |node: &NodeId| !graph.pattern(*node).rule.services.is_empty();
        let nodes = graph.nodes().filter(served);
        for record in nodes.filter_map(|node| self.remembered(node)) {
            let up_ms = record.timings.phases.get(SERVICES).copied().unwrap_or(0);
            for used in record.services.iter().filter(|used| used.started_for_this) {
                let of = (record.rule.clone(), used.name.clone());
                let known = times.entry(of).or_insert(0.0);
                *known = known.max(up_ms as f64 / 1000.0);
            }
        }
        times
    }
}
