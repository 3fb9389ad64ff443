//! How an execution failed: in one sentence for people, and by a cause that rules name classes for.

use super::judge::Cause;
use super::services::ServiceFailure;

/// How a node's execution failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// One sentence.
    pub reason: String,
    /// What to look up the class by.
    pub cause: Cause,
    /// Exit code of the step that decided.
    pub exit_code: Option<i32>,
    /// Name and last lines of the log that tells most.
    pub tail: Option<(String, Vec<String>)>,
    /// Whether somebody asked for it.
    pub cancelled: bool,
}

impl Failure {
    /// A service in use is gone, or could not be had.
    pub(super) fn of_service(failure: &ServiceFailure) -> Self {
        let streams = failure.logs.iter().rev();
        let mut tails = streams.map(|(name, log)| {
            (
                name.clone(),
                super::context::tail(log, super::ready::TAIL_LINES),
            )
        });
        Self {
            reason: failure.reason.clone(),
            cause: failure.cause,
            exit_code: None,
            tail: tails.find(|(_, lines)| !lines.is_empty()),
            cancelled: failure.cancelled,
        }
    }

    /// Everything was cancelled.
    pub(super) fn cancelled() -> Self {
        Self {
            reason: "cancelled".into(),
            cause: Cause::Signal(15),
            exit_code: None,
            tail: None,
            cancelled: true,
        }
    }

    pub(super) fn plain(reason: String, cause: Cause) -> Self {
        Self {
            reason,
            cause,
            exit_code: None,
            tail: None,
            cancelled: false,
        }
    }
}
