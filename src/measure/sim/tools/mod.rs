//! The external measuring tools, simulated. Each takes the real tool's command line, refuses what
//! the real one refuses in its words and with its exit status, talks to its peer over a real TCP
//! socket, and prints the real format with the profile's numbers. The first line on standard
//! error is `[doe-sim] TOOL: simulated`, and nothing but such lines is added to what the tool says.
//!
//! Durations are the real ones times `time_scale`; the numbers printed are not scaled. Noise is
//! a function of the profile's seed and the command line, so a run can be repeated exactly.

mod ec2;
mod etcd;
mod fabtests;
mod fi_info;
mod getopt;
mod iperf3;
mod iperf3_json;
mod kvbench;
mod link;
mod nccl;
mod nixlbench;
mod nixlbench_flags;
mod nvidia;
mod nvidia_topo;
mod ucx;
mod wire;

use std::io::{self, Write};
use std::time::Duration;

use super::SimProfile;

/// The simulated tools, by the names under which they are called.
pub const NAMES: &[&str] = &[
    "all_gather_perf",
    "all_reduce_perf",
    "ec2-metadata",
    "etcd",
    "fi_info",
    "fi_pingpong",
    "fi_rdm_bw",
    "fi_rdm_pingpong",
    "fi_rma_bw",
    "fi_rma_pingpong",
    "iperf3",
    "kvbench",
    "nixlbench",
    "nvidia-smi",
    "reduce_scatter_perf",
    "ucx_perftest",
];

/// What a shell reports for a program that wrote into a closed pipe (128 + SIGPIPE).
const BROKEN_PIPE: u8 = 141;

/// Runs a simulated tool and answers with its exit status.
///
/// A name in `profile.fail` makes that tool fail as the real one does where its hardware or its
/// peer is missing. An unknown tool is answered as a shell does: status 127.
pub fn main(
    tool: &str,
    args: &[String],
    profile: &SimProfile,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let env = |name: &str| std::env::var(name).ok();
    run(tool, args, profile, &env, out, err)
}

/// As [`main`], with the environment as a function.
pub fn run(
    tool: &str,
    args: &[String],
    profile: &SimProfile,
    env: &dyn Fn(&str) -> Option<String>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let mut sim = Sim {
        tool,
        args,
        profile,
        env,
        out,
        err,
    };
    sim.start().unwrap_or(BROKEN_PIPE)
}

/// One run of one tool.
struct Sim<'a> {
    tool: &'a str,
    args: &'a [String],
    profile: &'a SimProfile,
    env: &'a dyn Fn(&str) -> Option<String>,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl Sim<'_> {
    /// Runs the tool; an error is a failed write to its output.
    fn start(&mut self) -> io::Result<u8> {
        writeln!(self.err, "[doe-sim] {}: simulated", self.tool)?;
        self.err.flush()?;
        let status = match self.tool {
            "all_gather_perf" | "all_reduce_perf" | "reduce_scatter_perf" => nccl::run(self),
            "ec2-metadata" => ec2::run(self),
            "etcd" => etcd::run(self),
            "fi_info" => fi_info::run(self),
            "fi_pingpong" | "fi_rdm_bw" | "fi_rdm_pingpong" | "fi_rma_bw" | "fi_rma_pingpong" => {
                fabtests::run(self)
            }
            "iperf3" => iperf3::run(self),
            "kvbench" => kvbench::run(self),
            "nixlbench" => nixlbench::run(self),
            "nvidia-smi" => nvidia::run(self),
            "ucx_perftest" => ucx::run(self),
            other => {
                writeln!(self.err, "[doe-sim] {other}: command not found")?;
                Ok(127)
            }
        }?;
        self.out.flush()?;
        self.err.flush()?;
        Ok(status)
    }

    /// Whether the profile makes this tool fail.
    fn fails(&self) -> bool {
        self.profile.fails(self.tool)
    }

    /// Lets the time pass that the real tool would take for `seconds`.
    fn wait(&mut self, seconds: f64) -> io::Result<()> {
        self.out.flush()?;
        let scaled = (seconds * self.profile.time_scale).clamp(0.0, 3600.0);
        std::thread::sleep(Duration::from_secs_f64(scaled));
        Ok(())
    }

    /// A noise source of this command line.
    fn noise(&self) -> link::Noise {
        let replicate = std::env::var(super::REPLICATE).ok();
        let replicate = replicate.and_then(|n| n.parse::<u64>().ok()).unwrap_or(1);
        // The first draws what it always has.
        let seed = self.profile.seed ^ (replicate.saturating_sub(1) << 32);
        link::Noise::new(seed, self.tool, self.args)
    }

    /// A line on standard error that the real tool would not write.
    fn remark(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.err, "[doe-sim] {}: {text}", self.tool)
    }
}

#[cfg(test)]
mod tests;
