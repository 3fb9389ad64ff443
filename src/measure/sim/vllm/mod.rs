//! A simulated `vllm serve`. It takes vLLM 0.16's command line, refuses what vLLM would refuse
//! before it serves (flags, contexts that do not fit, memory), and then serves with the times of
//! a model of the hardware in the profile. It says `simulated` before anything else.

mod answer;
mod api;
mod args;
mod driver;
mod engine;
mod kv;
mod link;
mod log;
mod metrics;
mod model;
mod request;
mod side;
mod sizing;
mod startup;
mod storage;
mod text;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use args::Refused;
pub use kv::Vars;
pub use log::Log;
pub use startup::start;

use super::profile::SimProfile;
use crate::error::Result;
use crate::measure::server::{self, Running};
use api::Api;

/// The version that is simulated.
pub(super) const VERSION: &str = "0.16.0";

/// How long a server answers after the death of its engine.
const DEAD_FOR: Duration = Duration::from_secs(1);

/// A running simulated server; it stops when dropped.
pub struct Server {
    running: Running,
    api: Arc<Api>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.running.address()
    }

    /// Blocks until SIGTERM or SIGINT (status 0), or until an injected fault ends the process
    /// (status 1) or the engine. A server whose engine is dead answers 500 a moment longer, then
    /// shuts down by itself and leaves with status 0, as vLLM 0.32 was seen to do.
    fn serve(self) -> Result<u8> {
        let api = Arc::clone(&self.api);
        let (tell, crash) = std::sync::mpsc::channel();
        let teller = tell.clone();
        std::thread::spawn(move || {
            // Whoever hears first ends the process; the other may find nobody listening.
            let _ = teller.send(server::wait_for_signal().map(|()| 0));
        });
        std::thread::spawn(move || {
            while !api.driver.crashed() {
                if api.is_dead() {
                    std::thread::sleep(DEAD_FOR);
                    let _ = tell.send(Ok(0));
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = tell.send(Ok(1));
        });
        let outcome = crash.recv().unwrap_or(Ok(1));
        if let Ok(0) = outcome {
            self.api.log.raw("INFO:     Shutting down");
            drop(self.running);
            self.api.log.raw("INFO:     Application shutdown complete.");
        }
        outcome
    }
}

/// `vllm ARGS`: runs until it is told to stop, and gives the exit status.
///
/// # Errors
/// Infra, when signals cannot be waited for.
pub fn main(args: &[String], vars: &Vars, profile: &SimProfile, log: &Log) -> Result<u8> {
    match args.first().map(String::as_str) {
        Some("serve") => match startup::start(&args[1..], vars, profile, log) {
            Ok(server) => server.serve(),
            Err(refused) => {
                log.raw(refused.text.trim_end());
                Ok(refused.status)
            }
        },
        Some("--version" | "-v") => {
            log.raw(VERSION);
            Ok(0)
        }
        Some("--help" | "-h") | None => {
            log.raw("usage: vllm [-h] [-v] {serve} ...\n\nsimulated vLLM; only `vllm serve MODEL` is simulated");
            Ok(0)
        }
        Some(other) => {
            log.raw(&format!(
                "usage: vllm [-h] [-v] {{chat,complete,serve,bench,collect-env,run-batch}} ...\n\
                 vllm: error: argument subparser: invalid choice: '{other}' (only serve is simulated)"
            ));
            Ok(2)
        }
    }
}
