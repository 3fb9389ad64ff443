//! NIXL's `nixlbench` between two workers that meet at the simulated `etcd`. Checks its
//! configuration as the real one does (a transfer must fit the buffer of a thread), prints the
//! real configuration block and table. `LIBFABRIC` goes over EFA, `UCX` over what `UCX_TLS` says.
//!
//! `--message_size`, `--iterations`, `--role` and the schemes `one_to_one` and `many_to_one` are
//! no part of the released tool; they are understood, and a remark says so.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::Sim;
use super::etcd;
use super::link::{Noise, one_way_us, ucx_link};
use super::nixlbench_flags::{FOREIGN, Flags, Plan, Stop, parse, plan, translate};
use crate::measure::sim::profile::Link;

/// Blocks above this are run with fewer iterations.
const LARGE_BLOCK: u64 = 1 << 20;

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let mut flags = match parse(sim.args) {
        Ok(flags) => flags,
        Err(message) => {
            writeln!(sim.err, "ERROR: {message}")?;
            return Ok(1);
        }
    };
    let foreign: Vec<&str> = FOREIGN
        .iter()
        .copied()
        .filter(|f| !flags[f].is_empty())
        .collect();
    if !foreign.is_empty() {
        sim.remark(&format!(
            "the released nixlbench has no --{}; it takes --start_block_size, --max_block_size and --num_iter, and the first worker at etcd is the initiator",
            foreign.join(", --")
        ))?;
    }
    if let Err(message) = translate(&mut flags) {
        writeln!(sim.err, "{message}")?;
        return Ok(1);
    }
    let plan = match plan(sim, &mut flags) {
        Ok(plan) => plan,
        Err(Stop::Message(message)) => {
            writeln!(sim.err, "{message}")?;
            return Ok(1);
        }
        Err(Stop::Write(error)) => return Err(error),
    };
    if sim.fails() {
        writeln!(
            sim.err,
            "Failed to create NIXL backend {}",
            flags["backend"]
        )?;
        return Ok(1);
    }
    execute(sim, &flags, &plan)
}

fn execute(sim: &mut Sim<'_>, flags: &Flags, plan: &Plan) -> io::Result<u8> {
    let endpoints = &flags["etcd_endpoints"];
    writeln!(sim.out, "Connecting to ETCD at {endpoints}")?;
    sim.out.flush()?;
    let role = match flags["role"].as_str() {
        "" => "any",
        role => role,
    };
    let (mut etcd, rank) = match register(endpoints, &flags["benchmark_group"], role) {
        Ok(found) => found,
        Err(Register::Connect(reason)) => {
            writeln!(
                sim.err,
                "Failed to acquire lock: failed to connect to all addresses; last error: UNKNOWN: {reason}"
            )?;
            return Ok(1);
        }
        Err(Register::Alone) => {
            writeln!(
                sim.err,
                "Error in barrier wait xferbench/{}/barrier/start/0/ rank 0 completed 1/2 ranks)",
                flags["benchmark_group"]
            )?;
            return Ok(1);
        }
    };
    let kind = if rank == 0 { "initiator" } else { "target" };
    writeln!(
        sim.out,
        "ETCD Runtime: Registered as rank {rank} item {} of 2",
        rank + 1
    )?;
    writeln!(
        sim.out,
        "Init nixl worker, dev all rank {rank}, type {kind}, hostname doe-sim"
    )?;
    writeln!(
        sim.out,
        "Waiting for all processes to start... (expecting 2 total: 1 initiators and 1 targets)\nAll processes are ready to proceed"
    )?;
    if rank == 1 {
        sim.out.flush()?;
        return match etcd.line(Duration::from_secs(3600)).as_deref() {
            Ok("DONE") => Ok(0),
            _ => {
                writeln!(
                    sim.err,
                    "Error in barrier wait xferbench/{}/barrier/end/0/ rank 1 completed 1/2 ranks)",
                    flags["benchmark_group"]
                )?;
                Ok(1)
            }
        };
    }
    print_config(sim, flags)?;
    let link = if flags["backend"] == "LIBFABRIC" {
        sim.profile.efa.clone()
    } else {
        ucx_link(sim.profile, (sim.env)("UCX_TLS").as_deref()).clone()
    };
    print_table(sim, plan, &link)?;
    etcd.say("DONE")?;
    Ok(0)
}

/// A connection to the simulated etcd.
struct Etcd(BufReader<TcpStream>);

impl Etcd {
    fn say(&mut self, line: &str) -> io::Result<()> {
        // The partner's end is not this worker's failure.
        let _ = writeln!(self.0.get_mut(), "{line}");
        Ok(())
    }

    fn line(&mut self, within: Duration) -> io::Result<String> {
        self.0.get_ref().set_read_timeout(Some(within))?;
        let mut line = String::new();
        io::Read::take(&mut self.0, 256).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

enum Register {
    Connect(String),
    Alone,
}

/// Meets the other worker; answers with the connection and this worker's rank.
fn register(endpoints: &str, group: &str, role: &str) -> Result<(Etcd, u64), Register> {
    let refused = |reason: &str| Register::Connect(format!("{endpoints}: {reason}"));
    let (host, port) = etcd::endpoint(endpoints).ok_or_else(|| refused("not host:port"))?;
    let addresses = (host.as_str(), port)
        .to_socket_addrs()
        .map_err(|_| refused("Name or service not known"))?;
    let mut last = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => return meet(stream, group, role),
            Err(error) => last = super::wire::reason(&error),
        }
    }
    Err(refused(&last))
}

fn meet(stream: TcpStream, group: &str, role: &str) -> Result<(Etcd, u64), Register> {
    let group: String = group
        .chars()
        .map(|c| if c.is_whitespace() { '_' } else { c })
        .collect();
    let mut etcd = Etcd(BufReader::new(stream));
    let join = format!("{} {group} {role}\n", etcd::JOIN);
    if let Err(error) = etcd.0.get_mut().write_all(join.as_bytes()) {
        return Err(Register::Connect(super::wire::reason(&error)));
    }
    // The real barrier gives up after a minute.
    let answer = etcd.line(Duration::from_secs(60));
    match answer.as_deref().map(|a| a.strip_prefix("RANK ")) {
        Ok(Some("0")) => Ok((etcd, 0)),
        Ok(Some("1")) => Ok((etcd, 1)),
        Ok(_) => Err(Register::Connect(
            "the server is not the simulated etcd".into(),
        )),
        Err(_) => Err(Register::Alone),
    }
}

fn print_config(sim: &mut Sim<'_>, flags: &Flags) -> io::Result<()> {
    let stars = "*".repeat(160);
    writeln!(sim.out, "{stars}\nNIXLBench Configuration\n{stars}")?;
    for (title, name) in [
        ("Runtime (--runtime_type=[etcd])", "runtime_type"),
        ("ETCD Endpoint", "etcd_endpoints"),
        ("Worker type (--worker_type=[nixl,nvshmem])", "worker_type"),
        (
            "Backend (--backend=[UCX,GDS,GDS_MT,POSIX,Mooncake,HF3FS,OBJ,LIBFABRIC])",
            "backend",
        ),
        ("Enable pt (--enable_pt=[0,1])", "enable_pt"),
        (
            "Progress threads (--progress_threads=N)",
            "progress_threads",
        ),
        ("Device list (--device_list=dev1,dev2,...)", "device_list"),
        ("Enable VMM (--enable_vmm=[0,1])", "enable_vmm"),
        (
            "Initiator seg type (--initiator_seg_type=[DRAM,VRAM])",
            "initiator_seg_type",
        ),
        (
            "Target seg type (--target_seg_type=[DRAM,VRAM])",
            "target_seg_type",
        ),
        (
            "Scheme (--scheme=[pairwise,manytoone,onetomany,tp])",
            "scheme",
        ),
        ("Mode (--mode=[SG,MG])", "mode"),
        ("Op type (--op_type=[READ,WRITE])", "op_type"),
        (
            "Check consistency (--check_consistency=[0,1])",
            "check_consistency",
        ),
        (
            "Total buffer size (--total_buffer_size=N)",
            "total_buffer_size",
        ),
        (
            "Num initiator dev (--num_initiator_dev=N)",
            "num_initiator_dev",
        ),
        ("Num target dev (--num_target_dev=N)", "num_target_dev"),
        (
            "Start block size (--start_block_size=N)",
            "start_block_size",
        ),
        ("Max block size (--max_block_size=N)", "max_block_size"),
        (
            "Start batch size (--start_batch_size=N)",
            "start_batch_size",
        ),
        ("Max batch size (--max_batch_size=N)", "max_batch_size"),
        ("Num iter (--num_iter=N)", "num_iter"),
        ("Warmup iter (--warmup_iter=N)", "warmup_iter"),
        (
            "Large block iter factor (--large_blk_iter_ftr=N)",
            "large_blk_iter_ftr",
        ),
        ("Num threads (--num_threads=N)", "num_threads"),
    ] {
        writeln!(sim.out, "{title:<60}: {}", flags[name])?;
    }
    writeln!(sim.out, "{}\n", "-".repeat(160))
}

#[allow(clippy::cast_precision_loss)] // sizes and counts are far below 2^53
fn print_table(sim: &mut Sim<'_>, plan: &Plan, link: &Link) -> io::Result<()> {
    write!(sim.out, "{:<20}", "Block Size (B)")?;
    for title in [
        "Batch Size",
        "B/W (GB/Sec)",
        "Avg Lat. (us)",
        "Avg Prep (us)",
        "P99 Prep (us)",
        "Avg Post (us)",
        "P99 Post (us)",
        "Avg Tx (us)",
        "P99 Tx (us)",
    ] {
        write!(sim.out, "{title:<15}")?;
    }
    writeln!(sim.out, "\n{}", "-".repeat(160))?;
    let mut noise = sim.noise();
    let mut block = plan.blocks.0;
    while block <= plan.blocks.1 {
        let mut batch = plan.batches.0;
        while batch <= plan.batches.1 {
            let row = Row::new(plan, link, block, batch, &mut noise);
            let iterations = if block > LARGE_BLOCK {
                (plan.iterations / plan.factor).max(1)
            } else {
                plan.iterations
            };
            sim.wait(row.latency_us * (iterations * batch) as f64 / 1e6)?;
            write!(sim.out, "{block:<20}{batch:<15}{:<15.6}", row.gbytes_per_s)?;
            for us in [
                row.latency_us,
                row.prepare_us,
                row.prepare_us,
                row.post_us,
                row.post_us * 1.2,
                row.transfer_us,
                row.transfer_p99_us,
            ] {
                write!(sim.out, "{us:<15.1}")?;
            }
            writeln!(sim.out)?;
            batch = batch.saturating_mul(2);
        }
        block = block.saturating_mul(2);
    }
    Ok(())
}

struct Row {
    gbytes_per_s: f64,
    latency_us: f64,
    prepare_us: f64,
    post_us: f64,
    transfer_us: f64,
    transfer_p99_us: f64,
}

impl Row {
    #[allow(clippy::cast_precision_loss)] // sizes and counts are far below 2^53
    fn new(plan: &Plan, link: &Link, block: u64, batch: u64, noise: &mut Noise) -> Self {
        // Threads and batches hide the latency behind each other, not the wire.
        let wire_us = one_way_us(link, block) - link.latency_us;
        let overlap = (plan.threads.saturating_mul(batch)).max(1) as f64;
        let latency_us = noise.on(wire_us + link.latency_us / overlap);
        let transfer_us = latency_us * batch as f64;
        Self {
            gbytes_per_s: block as f64 / latency_us / 1e3,
            latency_us,
            prepare_us: (20.0 + 100.0 * noise.uniform()).round(),
            post_us: 1.0 + noise.uniform(),
            transfer_us,
            transfer_p99_us: transfer_us * (1.01 + 0.02 * noise.uniform()),
        }
    }
}
