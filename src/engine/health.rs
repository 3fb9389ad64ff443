//! Whether a service that lives still does its work: while nodes use it, its sign of readiness is
//! looked for again, as far as that is an answer of its own (HTTP, TCP). So many looks in a row
//! without an answer are its death. Nobody looks while nobody uses it, a slow answer is one, and a
//! host that cannot be asked says nothing about the service.

use std::time::Duration;

use tokio::sync::watch;

use super::context::Context;
use super::drive::Drive;
use super::event::ServiceState;
use super::judge::Cause;
use super::schedule::ServiceId;
use super::services::Instance;
use crate::error::Result;
use crate::exec::Sign;
use crate::rule::action::{Probe, Ready};
use crate::rule::model::Health;

/// What is looked for, and who uses the service.
#[derive(Debug)]
pub(super) struct Watched {
    sign: Option<Sign>,
    health: Health,
    users: watch::Sender<usize>,
}

impl Watched {
    /// Nothing is looked for.
    pub(super) fn not() -> Self {
        Self {
            sign: None,
            health: Health::default(),
            users: watch::channel(0).0,
        }
    }

    /// What says that a service with this sign of readiness does its work.
    pub(super) fn by(ready: &Ready, health: Health) -> Self {
        let sign = match &ready.probe {
            Probe::Http(url) => Some(Sign::Answers(url.clone())),
            Probe::Tcp(address) => Some(Sign::Tcp(address.clone())),
            // Seen without the service, or only once.
            Probe::Listen(_) | Probe::File(_) | Probe::Log(_) | Probe::Alive => None,
        };
        Self {
            sign: sign.filter(|_| health.misses > 0),
            health,
            ..Self::not()
        }
    }

    /// A node uses it until what comes back is dropped.
    pub(super) fn used(&self) -> InUse {
        self.users.send_modify(|users| *users += 1);
        InUse(self.users.clone())
    }

    fn is_used(&self) -> bool {
        *self.users.borrow() > 0
    }
}

/// A node that uses a service.
pub(super) struct InUse(watch::Sender<usize>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.send_modify(|users| *users -= 1);
    }
}

/// Resolves when the service has not answered for too long, with what was seen.
pub(super) async fn fell_silent(context: &Context, instance: &Instance) -> String {
    let watched = &instance.watched;
    let Some(sign) = &watched.sign else {
        return std::future::pending().await;
    };
    let executor = &*context.executor;
    let every = watched.health.every_s.map_or_else(
        || executor.look_every(),
        |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
    );
    let mut users = watched.users.subscribe();
    let mut misses = 0;
    loop {
        // The sender is the instance's own.
        let _ = users.wait_for(|users| *users > 0).await;
        tokio::time::sleep(every).await;
        let seen = match watched.is_used() {
            true => executor.look(&instance.def.host, sign).await,
            false => Ok(true),
        };
        match seen {
            Ok(false) if watched.is_used() => misses += 1,
            Ok(_) => misses = 0,
            // The watch over its process says what is wrong with the host.
            Err(_) => {}
        }
        if misses >= watched.health.misses {
            let what = match sign {
                Sign::Answers(url) => url.as_str(),
                Sign::Tcp(address) => address.as_str(),
                Sign::Http(_) | Sign::Listen(_) | Sign::File(_) => "its sign",
            };
            let times = match misses {
                1 => "once".to_owned(),
                more => format!("{more} times in a row"),
            };
            return format!("it lives and {what} did not answer, {times}");
        }
    }
}

impl Drive<'_, '_, '_> {
    /// A service lives and does not answer. Nobody gets it any more, and as soon as those who have
    /// it are gone it is stopped.
    pub(super) fn service_fell_silent(&mut self, service: ServiceId, start: u32) -> Result<()> {
        let patience = self.patience(service);
        let live = &mut self.services[service.index()];
        let Some(reason) = live.silence(start, patience) else {
            return Ok(());
        };
        self.service_event(service, ServiceState::Failed, Some(reason.clone()));
        let holders = self.scheduler.taint(service);
        self.fail_those_that_wait(holders, reason, Cause::ServiceLost);
        self.end_users_of_broken(service)
    }
}
