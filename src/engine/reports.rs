//! What comes from beside the loop of a run. Whatever it is of, the last report of a piece of work
//! says so, and there is exactly one.

use tokio::sync::watch;

use super::early::Early;
use super::event::NodeState;
use super::record::NodeEnd;
use super::schedule::{ServiceId, TaskId};
use super::services::{Instance, ServiceFailure};
use crate::exec::Status;

/// What comes from beside the loop.
pub(super) enum Report {
    /// A task moved on.
    State(TaskId, NodeState),
    /// A task has made all that it makes, and that is about to be durable.
    Made(TaskId, Box<Early>),
    /// A task ended. Last.
    Done(TaskId, Box<NodeEnd>),
    /// A service is ready. Last of its start.
    ServiceUp(ServiceId, Box<Instance>, watch::Sender<Option<Status>>),
    /// A service could not be started. Last of its start.
    ServiceFailed(ServiceId, Box<ServiceFailure>),
    /// This start of a service lives and does not answer any more.
    ServiceSilent(ServiceId, u32),
    /// The process of this start of a service ended. Last of the watch over it.
    ServiceEnded(ServiceId, u32),
    /// A service was stopped, or what it left when it died; why its host is not free. Last.
    ServiceStopped(ServiceId, Option<String>),
}

impl Report {
    /// Whether a piece of work ends with it.
    pub(super) fn is_last(&self) -> bool {
        !matches!(
            self,
            Report::State(..) | Report::Made(..) | Report::ServiceSilent(..)
        )
    }
}
