//! The proxy between clients and a pair of servers of which one prefills and the other decodes.
//! A request is answered by a decode that got its KV cache from the prefill, or it fails by name:
//! decode never silently does the prefill again, unless the cache goes through storage, where a
//! proxy cannot see it. Every request leaves a record of its stamps.

mod backend;
mod handle;
mod record;
mod relay;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::measure::http::Endpoint;
use crate::measure::server::{self, Running};
use backend::Backend;
use record::Records;

/// Version of the instrument. Whoever changes what is sent on or what a stamp means adds one.
pub const VERSION: u32 = 1;

/// How many records are kept.
pub const CAPACITY: usize = 100_000;

/// How decode comes to the KV cache of a prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The prefill server's answer says where it is, and decode is told.
    Params,
    /// Both servers look into the same storage: nobody has to be told, and nothing in an answer
    /// says whether it was found. Only the decode server's counters do.
    Storage,
}

/// What to stand between.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Base URL of the server that prefills.
    pub prefill: String,
    /// Base URL of the server that decodes.
    pub decode: String,
    /// A file to which each completed record is appended as one line of JSON.
    pub log: Option<PathBuf>,
    /// How decode comes to the KV cache.
    pub handover: Handover,
    /// Let decode do the prefill again when the prefill server sends no transfer parameters.
    pub allow_recompute: bool,
    /// Keep connections to the servers open between requests.
    pub keep_alive: bool,
    /// Most time for the whole prefill.
    pub prefill_timeout: Duration,
    /// Most time from the decode request to the head of its answer.
    pub decode_timeout: Duration,
    /// Most time between two pieces of the decode server's answer.
    pub idle_timeout: Duration,
}

/// All that the handlers share.
struct App {
    prefill: Backend,
    decode: Backend,
    records: Arc<Records>,
    handover: Handover,
    allow_recompute: bool,
    prefill_timeout: Duration,
    decode_timeout: Duration,
    idle_timeout: Duration,
    /// Makes request ids for clients that send none.
    made: std::sync::atomic::AtomicU64,
}

/// Starts a proxy on threads of its own. It stops when the handle is dropped.
///
/// # Errors
/// Usage for a bad URL, infra when the address is taken or the log cannot be opened.
pub fn start(config: Config) -> Result<Running> {
    let app = App {
        prefill: Backend::new(Endpoint::parse(&config.prefill)?, config.keep_alive),
        decode: Backend::new(Endpoint::parse(&config.decode)?, config.keep_alive),
        records: Arc::new(Records::new(CAPACITY, config.log.as_deref())?),
        handover: config.handover,
        allow_recompute: config.allow_recompute,
        prefill_timeout: config.prefill_timeout,
        decode_timeout: config.decode_timeout,
        idle_timeout: config.idle_timeout,
        made: Default::default(),
    };
    let listener = TcpListener::bind(config.listen).map_err(|e| {
        let message = format!("could not listen on {}", config.listen);
        Error::new(Kind::Infra, "listen", message).cause(e)
    })?;
    server::start(listener, handle::router(Arc::new(app)), "doe-proxy")
}
