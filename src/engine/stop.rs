//! How a run comes to its end before its work is done: nothing new begins, what runs is cancelled,
//! or the user leaves. Every node still ends in exactly one way, and nothing is left behind but
//! what the user chose not to wait for.

use tokio::sync::mpsc;

use super::drive::Drive;
use super::event::Outcome;
use super::live::Report;
use super::resolve::Final;
use super::schedule::{ServiceId, TaskId};
use crate::error::{Error, Result};

impl Drive<'_, '_, '_> {
    pub(super) fn stop_submitting(&mut self, reason: &str) -> Result<()> {
        self.scheduler.stop_submitting();
        for task in self.scheduler.idle_tasks() {
            // A follower ends with its leader when that still runs.
            let follows = self
                .followers
                .values()
                .flatten()
                .any(|(other, _)| *other == task);
            // Nor is the record lost of what a killed run had finished.
            if !follows && !self.is_running(task) {
                self.end_idle(task, Outcome::Cancelled, reason)?;
            }
        }
        Ok(())
    }

    /// The user asked to stop, for this time in all. True: leave at once.
    pub(super) fn interrupted(&mut self, level: u8) -> Result<bool> {
        self.level = level;
        if level >= 3 {
            self.leave()?;
            return Ok(true);
        }
        if !self.scheduler.is_draining() {
            self.stop_submitting("not begun: the run was interrupted")?;
        }
        match level {
            1 => self.journal.warn(
                "interrupted",
                "stopping: what runs may end; once more cancels it".into(),
                None,
            ),
            _ => {
                self.abort.send_replace(true);
                let message = "cancelling everything; once more leaves without waiting";
                self.journal.warn("interrupted", message.into(), None);
            }
        }
        Ok(false)
    }

    /// Ends the account of every task without waiting for anything.
    fn leave(&mut self) -> Result<()> {
        self.abort.send_replace(true);
        for at in 0..self.tasks.len() {
            let reason = "left behind: the user did not wait for its end";
            let task = TaskId(at as u32);
            if self.scheduler.is_held(task) {
                continue;
            }
            self.end_idle(task, Outcome::Cancelled, reason)?;
        }
        Ok(())
    }

    /// After an error of the run itself: everything is cancelled, nothing is left behind.
    pub(super) async fn clear_up(&mut self, inbox: &mut mpsc::UnboundedReceiver<Report>) {
        self.abort.send_replace(true);
        self.scheduler.stop_submitting();
        for at in 0..self.services.len() {
            if self.services[at].instance().is_some() {
                self.stop_service(ServiceId(at as u32));
            }
        }
        while self.outstanding > 0 {
            match inbox.recv().await {
                Some(Report::ServiceUp(service, instance, sender)) => {
                    self.outstanding -= 1;
                    self.service_came_up(service, instance, sender);
                    self.stop_service(service);
                }
                Some(Report::Done(task, end)) => {
                    self.outstanding -= 1;
                    // What is noted of it is noted; the error that ended the run is told.
                    let _ = self.done(task, *end);
                }
                Some(report) if report.is_last() => self.outstanding -= 1,
                Some(_) => {}
                None => break,
            }
        }
        // The error that ended the run is told.
        let _ = self.tell_unended();
    }

    /// After an error of the run itself: tells the end of everything that was announced and has
    /// none.
    pub(super) fn give_account(&mut self, error: &Error) {
        let why = format!("the run itself failed: {error}");
        for at in 0..self.tasks.len() {
            let (task, node) = (TaskId(at as u32), self.tasks[at].node);
            let is_part = |drive: &Self| {
                !drive.scheduler.is_held(task) && drive.finals[node.index()].is_none()
            };
            if is_part(self) {
                // What may be gone on with is not over: that is told, and noted nowhere.
                let noted =
                    self.has_taken_over && self.end_idle(task, Outcome::Cancelled, &why).is_ok();
                // Nor what cannot even be noted.
                if !noted && is_part(self) {
                    let ended = Final::without_result(Outcome::Cancelled, &why);
                    self.journal
                        .finished(self.decider.graph().label(node), &ended);
                    self.finals[node.index()] = Some(ended);
                }
            }
        }
        self.journal.flush();
    }
}
