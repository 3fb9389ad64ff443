//! The gate in a run: who is decided to run asks here, and whoever ends is noted.

use super::{Answer, Asks};
use crate::engine::drive::Drive;
use crate::engine::event::Outcome;
use crate::engine::forecast::{cost, expected_s};
use crate::engine::schedule::TaskId;
use crate::error::Result;

impl Drive<'_, '_, '_> {
    /// A task is to run as soon as no limit and no canary keeps it.
    pub(in crate::engine) fn ask(&mut self, task: TaskId) {
        match self.gate.is_open() {
            true => self.scheduler.admit(task),
            false => {
                self.gate.ask(task, self.asks(task));
                self.scheduler.park(task);
            }
        }
    }

    /// A task that was put off asks once more: it is parked.
    pub(in crate::engine) fn ask_again(&mut self, task: TaskId) {
        match self.gate.is_open() {
            true => self.scheduler.admit(task),
            false => self.gate.ask(task, self.asks(task)),
        }
    }

    /// A task goes on that a killed run had begun: nothing keeps it, and it counts.
    pub(in crate::engine) fn go_on(&mut self, task: TaskId) {
        if !self.gate.is_open() {
            self.gate.pass(task, self.asks(task));
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

    fn asks(&self, task: TaskId) -> Asks {
        let planned = &self.tasks[task.index()];
        let pattern = self.decider.graph().pattern(planned.node);
        let per_hour = cost(self.decider.platform(), pattern, 3600.0);
        let mut services: Vec<_> = planned.services.iter().map(|(_, id)| *id).collect();
        services.sort_unstable();
        Asks {
            seconds: expected_s(self.decider, planned.node),
            per_hour: per_hour.unwrap_or(0.0),
            services,
        }
    }
}
