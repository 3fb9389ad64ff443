//! Strict readers of what the measuring tools really print. A reader answers with every number
//! it was asked for, units in the names, or with an error that says the line, what was expected
//! and what to do; never with a zero for something that was not there, and never with a panic.
//!
//! Units: `*_gbps` is always Gbit/s (10^9 bits), `*_gbytes_per_s` is 10^9 bytes/s. What a tool
//! calls "MB/s" differs: libfabric's tools mean 10^6 bytes, `ucx_perftest` means 2^20 bytes.
//! Columns that follow from each other (size, time, bandwidth) are held against each other
//! within the rounding of the digits that were printed, so a damaged digit is found.

mod fabtests;
mod fi_info;
mod iperf3;
mod kvbench;
mod nccl;
mod nixlbench;
mod nvidia;
mod nvidia_topo;
mod text;
mod ucx;

use serde_json::Value;

use crate::error::{Error, Kind, Result, nearest};
use text::Input;

/// Version of the readers. Whoever changes what a reader answers for the same text adds one, so
/// that stored results of the older reader are not reused.
pub const VERSION: u32 = 1;

/// The tools whose output can be read.
pub const NAMES: &[&str] = &[
    "fi_info",
    "fi_pingpong",
    "fi_rdm_bw",
    "fi_rdm_pingpong",
    "fi_rma_bw",
    "fi_rma_pingpong",
    "iperf3",
    "kvbench",
    "nccl-tests",
    "nixlbench",
    "nvidia-smi",
    "ucx_perftest",
];

/// What the reader cannot find in the text itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// Name of the text in errors, usually the file's path. Empty: `the output of TOOL`.
    pub source: String,
    /// The message size that was asked for, in bytes. `ucx_perftest` clients do not print it and
    /// libfabric's tools round it; given here, it is checked against the rest of the row.
    pub size_bytes: Option<u64>,
    /// Names of the columns of `nvidia-smi --query-gpu=... --format=csv,noheader`, as they stood
    /// in the query.
    pub columns: Vec<String>,
}

/// Reads what `tool` printed.
///
/// The answer is an object with `schema` (`TOOL-v1`), `tool`, and the tool's fields as
/// `docs/tools.md` lists them; `"simulated": true` is added when the text says so.
///
/// # Errors
/// `Usage` when no reader has that name; `NodeFailed` (code `tool-output`) when the text is not
/// a complete, consistent result of the tool.
pub fn parse(tool: &str, text: &str, context: &Context) -> Result<Value> {
    let reader = match tool {
        "fi_info" => fi_info::read,
        "fi_rdm_bw" | "fi_rma_bw" => fabtests::read_bandwidth,
        "fi_pingpong" | "fi_rdm_pingpong" | "fi_rma_pingpong" => fabtests::read_pingpong,
        "iperf3" => iperf3::read,
        "kvbench" => kvbench::read,
        "nccl-tests" => nccl::read,
        "nixlbench" => nixlbench::read,
        "nvidia-smi" => nvidia::read,
        "ucx_perftest" => ucx::read,
        _ => return Err(unknown(tool)),
    };
    let input = Input::new(tool, text, context);
    input.refuse_empty()?;
    let mut answer = reader(&input)?;
    if let (true, Some(map)) = (input.simulated, answer.as_object_mut()) {
        map.insert("simulated".into(), Value::Bool(true));
    }
    Ok(answer)
}

fn unknown(tool: &str) -> Error {
    let error = Error::new(
        Kind::Usage,
        "unknown-tool",
        format!("there is no reader for the output of `{tool}`"),
    );
    let names = format!("the readers are {}", NAMES.join(", "));
    match nearest(tool, NAMES.iter().copied()) {
        Some(name) => error.hint(format!("did you mean `{name}`?")).hint(names),
        None => error.hint(names),
    }
}

#[cfg(test)]
mod tests;
