//! `doe proxy`: stands between clients and a prefill/decode pair until it is told to stop. Its
//! first line says where it listens, and by then it does.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::error::Result;
use crate::measure::proxy::{self, Config, Handover};

/// Route requests through a prefill server to a decode server.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Base URL of the server that prefills
    #[arg(long, value_name = "URL")]
    prefill: String,
    /// Base URL of the server that decodes
    #[arg(long, value_name = "URL")]
    decode: String,
    /// Append each completed request's record to this file (JSON lines)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How decode comes to the KV cache: params: the prefill server's answer says where it is;
    /// storage: both servers look into the same folder
    #[arg(long, value_enum, default_value_t = HandoverArg::Params)]
    handover: HandoverArg,
    /// Let decode do the prefill again when the prefill server sends no transfer parameters
    #[arg(long)]
    allow_recompute: bool,
    /// Keep connections to the servers open between requests
    #[arg(long)]
    keep_alive: bool,
    /// Most time for the whole prefill
    #[arg(long, value_name = "DUR", default_value = "10min", value_parser = super::measure::duration)]
    prefill_timeout: Duration,
    /// Most time from the decode request to the head of its answer
    #[arg(long, value_name = "DUR", default_value = "10min", value_parser = super::measure::duration)]
    decode_timeout: Duration,
    /// Most time between two pieces of the decode server's answer
    #[arg(long, value_name = "DUR", default_value = "5min", value_parser = super::measure::duration)]
    idle_timeout: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HandoverArg {
    Params,
    Storage,
}

/// Runs `doe proxy` until SIGTERM or SIGINT.
///
/// # Errors
/// Usage for a bad URL, infra when the address is taken or the log cannot be opened.
pub fn run(args: ProxyArgs) -> Result<()> {
    let (prefill, decode) = (args.prefill.clone(), args.decode.clone());
    let running = proxy::start(Config {
        listen: args.listen,
        prefill: args.prefill,
        decode: args.decode,
        log: args.log,
        handover: match args.handover {
            HandoverArg::Params => Handover::Params,
            HandoverArg::Storage => Handover::Storage,
        },
        allow_recompute: args.allow_recompute,
        keep_alive: args.keep_alive,
        prefill_timeout: args.prefill_timeout,
        decode_timeout: args.decode_timeout,
        idle_timeout: args.idle_timeout,
    })?;
    // A closed stdout is no reason to stop serving.
    let _ = writeln!(
        std::io::stdout().lock(),
        "listening on http://{}, prefill {prefill}, decode {decode}",
        running.address()
    );
    running.until_signal()
}
