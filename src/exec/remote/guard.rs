//! Nothing on a host outlives `doe` for ever: each execution on a host ends itself when nobody has
//! given a sign of life for as long as it may survive. Every command is such a sign, and where
//! there is none to be given for a while, the sign alone. Who takes over what an earlier `doe` left
//! signs first and looks then.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::AbortHandle;

use super::RemoteExecutor;
use super::call::{Caller, Request};
use crate::error::Result;
use crate::exec::HostSpec;
use crate::exec::folder::quote;

/// Longest that a host hears nothing of us.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// What executions are told, and who signs.
pub(super) struct Guard {
    /// Lines for the settings of an execution.
    settings: String,
    signing: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signing.abort();
    }
}

impl Guard {
    pub(super) fn settings(&self) -> &str {
        &self.settings
    }
}

impl RemoteExecutor {
    /// From now on this executor attends to what runs on these hosts under a name, as long as it
    /// lives; afterwards that goes on for `survive`, unless another one takes up the name. Never
    /// for less than a host is waited for that does not answer: what is waited for is attended to.
    ///
    /// # Errors
    /// `Infra`, when a host cannot be reached or nothing can be written there.
    pub async fn guard(&self, hosts: &[HostSpec], name: &str, survive: Duration) -> Result<()> {
        let survive = survive.max(self.caller.patience());
        self.caller.sign_as(name);
        let signs = hosts.iter().map(|host| async {
            let request = Request::new("sign", vec![]);
            self.done(host, "say that somebody attends to it", &request)
                .await
        });
        futures_util::future::try_join_all(signs).await?;
        let lease = format!("{}/leases/{name}", self.caller.root());
        let survive_cs = (survive.as_millis() / 10).min(u128::from(u32::MAX));
        let names = hosts.iter().map(|host| host.name.clone()).collect();
        let pause = (survive / 5).clamp(Duration::from_millis(100), LONGEST_SILENCE);
        let task = tokio::spawn(sign_on(self.caller.clone(), names, pause));
        let guard = Guard {
            settings: format!("lease={}\nsurvive_cs={survive_cs}\n", quote(&lease)),
            signing: task.abort_handle(),
        };
        // A second call changes nothing; its signing ends with its value.
        let _ = self.guard.set(guard);
        Ok(())
    }
}

/// Signs wherever nothing else was said for a while. A host that does not answer is asked again.
async fn sign_on(caller: Arc<Caller>, hosts: Vec<String>, pause: Duration) {
    loop {
        tokio::time::sleep(pause / 4).await;
        let silent = hosts.iter().filter(|host| caller.silence(host) >= pause);
        join_all(silent.map(|host| caller.sign(host))).await;
    }
}
