//! What other processes ask of a running build: files in its folder, one a request, each answered
//! by a file of its own. The build looks a few times a second; nobody is ever signalled by number.

use std::path::{Path, PathBuf};
use std::time::Duration;

use doe_cache::Digest;

use super::drive::Drive;
use super::event::Outcome;
use super::judge::Cause;
use super::schedule::TaskId;
use super::services::ServiceFailure;
use crate::error::{Error, Kind, Result};

/// How often a running build looks for requests.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Stands for everything.
const ALL: &str = "all";
const REASON: &str = "cancelled on request";

fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("requests")
}

/// Asks the build of this run to cancel a pattern, or everything.
///
/// # Errors
/// The request cannot be written.
pub fn ask_to_cancel(run_dir: &Path, label: Option<&str>) -> Result<PathBuf> {
    let dir = folder(run_dir);
    std::fs::create_dir_all(&dir).map_err(|e| Error::io("make", &dir, &e))?;
    let what = label.unwrap_or(ALL);
    let name = Digest::of(what).short();
    let (temporary, path) = (
        dir.join(format!(".{name}")),
        dir.join(format!("{name}.cancel")),
    );
    let answer = path.with_extension("answer");
    // An old answer is not ours.
    let _ = std::fs::remove_file(&answer);
    std::fs::write(&temporary, what)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(|e| Error::io("write", &path, &e))?;
    Ok(answer)
}

impl Drive<'_, '_, '_> {
    /// Obeys what was asked for since the last look.
    pub(super) fn look_for_requests(&mut self) -> Result<()> {
        let dir = folder(&self.context.home.run_dir);
        let Ok(entries) = std::fs::read_dir(&dir) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path
                .extension()
                .is_none_or(|extension| extension != "cancel")
            {
                continue;
            }
            let what = std::fs::read_to_string(&path).unwrap_or_default();
            let answer = match what.as_str() {
                ALL => self
                    .interrupted(self.level.max(2))
                    .map(|_| "cancelling everything")?,
                label => self.cancel(label)?,
            };
            // Who asked sees the answer or gives up; the build goes on in any case.
            let _ = std::fs::write(path.with_extension("answer"), answer);
            let _ = std::fs::remove_file(&path);
        }
        Ok(())
    }

    fn cancel(&mut self, label: &str) -> Result<&'static str> {
        let graph = self.decider.graph();
        let found = (0..self.tasks.len()).find(|at| {
            let node = self.tasks[*at].node;
            let part = !self.scheduler.is_held(TaskId(*at as u32));
            part && graph.label(node).to_string() == label
        });
        let Some(at) = found else {
            return Ok("not part of this build");
        };
        let (task, node) = (TaskId(at as u32), self.tasks[at].node);
        if self.finals[node.index()].is_some() {
            return Ok("had ended");
        }
        if self.is_running(task) {
            if let Some(cancel) = self.cancels.get(&task) {
                cancel.send_replace(true);
            }
        } else if self.jobs.contains_key(&task) && self.scheduler.is_active(task) {
            let failure = ServiceFailure {
                reason: REASON.into(),
                cause: Cause::Signal(15),
                logs: Vec::new(),
                cancelled: true,
                taints: None,
            };
            self.fail_before_run(task, &failure);
        } else {
            self.end_idle(task, Outcome::Cancelled, REASON)?;
        }
        Ok("cancelled")
    }
}

/// Waits for the answer to a request.
///
/// # Errors
/// `no-answer`: the build does not answer.
pub fn answer(path: &Path, within: Duration) -> Result<String> {
    let until = std::time::Instant::now() + within;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.is_empty() => return Ok(text),
            _ if std::time::Instant::now() >= until => {
                let text = "the running build does not answer";
                return Err(Error::new(Kind::Infra, "no-answer", text)
                    .hint("it may just be ending; `doe jobs` shows what runs"));
            }
            _ => std::thread::sleep(LOOK_EVERY / 10),
        }
    }
}
