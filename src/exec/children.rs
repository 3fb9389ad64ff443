//! Collects the exit status of our own child processes, so that none stays a zombie and whoever
//! waits learns of an end at once. One task serves all of them and no descriptor is held per
//! child: a thousand scripts at a time need no raised limits.

use std::collections::HashMap;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::error::{Error, Kind, Result};

/// A signal may be taken by a runtime that is gone: look anyway after this time.
const LOOK_ANYWAY: Duration = Duration::from_millis(250);

/// Becomes `Some` when the child has ended.
pub type Ended = watch::Receiver<Option<ExitStatus>>;

/// Our living children.
#[derive(Debug, Clone, Default)]
pub struct Children {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    living: HashMap<u32, (Child, watch::Sender<Option<ExitStatus>>)>,
    has_task: bool,
}

impl Children {
    /// Takes charge of a child. Must be called inside a tokio runtime.
    pub fn adopt(&self, child: Child) -> Result<Ended> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|e| {
            Error::new(
                Kind::Bug,
                "no-runtime",
                "processes were started outside a runtime",
            )
            .cause(e)
        })?;
        let (sender, receiver) = watch::channel(None);
        let mut state = self.shared.lock();
        state.living.insert(child.id(), (child, sender));
        if !state.has_task {
            state.has_task = true;
            let guard = TaskGuard(self.shared.clone());
            runtime.spawn(async move { guard.0.serve().await });
        }
        drop(state);
        self.shared.news.notify_one();
        Ok(receiver)
    }
}

/// Frees the task's place however it ends: with its runtime too.
struct TaskGuard(Arc<Shared>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.lock().has_task = false;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is one insertion or removal: a panic cannot tear it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self) {
        // Where the signal cannot be had, the regular look does the work.
        let mut signals = signal(SignalKind::child()).ok();
        while self.collect() {
            let signalled = async {
                match &mut signals {
                    Some(signals) => drop(signals.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = signalled => {}
                () = self.news.notified() => {}
                () = tokio::time::sleep(LOOK_ANYWAY) => {}
            }
        }
    }

    /// Collects who has ended. False, and the task's place is free, when none is left.
    fn collect(&self) -> bool {
        let mut state = self.lock();
        state
            .living
            .retain(|_, (child, sender)| match child.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    sender.send_replace(Some(status));
                    false
                }
                // Someone else collected it: dropping the sender says that it is gone.
                Err(_) => false,
            });
        state.has_task = !state.living.is_empty();
        state.has_task
    }
}

/// Waits until a child has ended; `None` when its status was lost.
pub async fn ended(mut child: Ended) -> Option<ExitStatus> {
    match child.wait_for(Option::is_some).await {
        Ok(status) => *status,
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sh(script: &str) -> Child {
        Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap()
    }

    #[tokio::test]
    async fn each_waiter_gets_the_status_of_its_own_child() {
        let children = Children::default();
        let waiting: Vec<_> = (0..40)
            .map(|code| (code, children.adopt(sh(&format!("exit {code}"))).unwrap()))
            .collect();
        for (code, child) in waiting {
            assert_eq!(ended(child).await.unwrap().code(), Some(code));
        }
        // The task ended with the last child; the next one gets a new task.
        let again = children.adopt(sh("exit 7")).unwrap();
        assert_eq!(ended(again).await.unwrap().code(), Some(7));
    }

    #[test]
    fn a_new_runtime_takes_over_from_one_that_is_gone() {
        let children = Children::default();
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
        };
        let first = runtime();
        let long = first.block_on(async { children.adopt(sh("exec sleep 600")).unwrap() });
        drop(first);
        assert!(long.borrow().is_none());
        let status =
            runtime().block_on(async { ended(children.adopt(sh("exit 3")).unwrap()).await });
        assert_eq!(status.unwrap().code(), Some(3));
        for (child, _) in children.shared.lock().living.values_mut() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn outside_a_runtime_it_is_an_error() {
        let mut child = sh("exit 0");
        let error = Children::default().adopt(sh("exit 0")).unwrap_err();
        assert_eq!(error.code, "no-runtime");
        child.wait().unwrap();
    }
}
