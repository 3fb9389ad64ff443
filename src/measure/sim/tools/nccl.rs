//! nccl-tests: `all_reduce_perf`, `all_gather_perf`, `reduce_scatter_perf` on the GPUs of one
//! host, in the format of nccl-tests 2.13. The bus bandwidth of large messages is the EFA link's;
//! like the real tool it answers a bad option with its usage and **status 0**.

use std::io;

use super::Sim;
use super::getopt::{self, Line, Opt, Takes};

/// Time of the smallest collective, in microseconds.
const FLOOR_US: f64 = 20.0;

const OPTIONS: &[Opt] = &[
    ('t', "nthreads", Takes::Value),
    ('g', "ngpus", Takes::Value),
    ('b', "minbytes", Takes::Value),
    ('e', "maxbytes", Takes::Value),
    ('i', "stepbytes", Takes::Value),
    ('f', "stepfactor", Takes::Value),
    ('n', "iters", Takes::Value),
    ('m', "agg_iters", Takes::Value),
    ('w', "warmup_iters", Takes::Value),
    ('p', "parallel_init", Takes::Value),
    ('c', "check", Takes::Value),
    ('o', "op", Takes::Value),
    ('d', "datatype", Takes::Value),
    ('r', "root", Takes::Value),
    ('z', "blocking", Takes::Value),
    ('y', "stream_null", Takes::Value),
    ('T', "timeout", Takes::Value),
    ('G', "cudagraph", Takes::Value),
    ('C', "report_cputime", Takes::Value),
    ('a', "average", Takes::Value),
    ('R', "local_register", Takes::Value),
    ('h', "help", Takes::Nothing),
];

struct Plan {
    min: u64,
    max: u64,
    step: u64,
    factor: u64,
    threads: u64,
    gpus: u64,
    iterations: u64,
    warmup: u64,
    check: u64,
}

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let plan = match getopt::parse(sim.tool, sim.args, OPTIONS) {
        Err(message) => {
            writeln!(sim.err, "{message}")?;
            return usage(sim);
        }
        Ok(line) if line.has("h") => return usage(sim),
        Ok(line) => match plan(&line) {
            Ok(plan) => plan,
            Err(message) => {
                writeln!(sim.err, "{message}")?;
                return Ok(255);
            }
        },
    };
    if plan.min > plan.max {
        writeln!(
            sim.err,
            "invalid sizes for 'minbytes' and 'maxbytes': {} > {}",
            plan.min, plan.max
        )?;
        return Ok(255);
    }
    let ranks = plan.threads * plan.gpus;
    if sim.fails() || ranks > u64::from(sim.profile.gpu.count) {
        let why = if sim.fails() {
            "system error"
        } else {
            "invalid device ordinal"
        };
        writeln!(
            sim.out,
            "doe-sim: Test CUDA failure common.cu:957 '{why}'\n .. doe-sim pid {}: Test failure common.cu:891",
            std::process::id()
        )?;
        return Ok(2);
    }
    table(sim, &plan, ranks)
}

fn plan(line: &Line) -> Result<Plan, String> {
    let number = |name: &str, long: &str, default: u64| match line.value(name) {
        None => Ok(default),
        Some(text) => getopt::size(text).ok_or(format!("invalid size specified for '{long}'")),
    };
    let plan = Plan {
        min: number("b", "minbytes", 32 << 20)?,
        max: number("e", "maxbytes", 32 << 20)?,
        step: number("i", "stepbytes", 1 << 20)?,
        factor: number("f", "stepfactor", 1)?,
        threads: number("t", "nthreads", 1)?,
        gpus: number("g", "ngpus", 1)?,
        iterations: number("n", "iters", 20)?,
        warmup: number("w", "warmup_iters", 5)?,
        check: number("c", "check", 1)?,
    };
    let ends = plan.factor > 1 || plan.step > 0;
    if !ends || plan.threads == 0 || plan.gpus == 0 || plan.min == 0 {
        return Err("invalid size specified".into());
    }
    Ok(plan)
}

#[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
fn table(sim: &mut Sim<'_>, plan: &Plan, ranks: u64) -> io::Result<u8> {
    let (step, how) = if plan.factor > 1 {
        (plan.factor, "factor")
    } else {
        (plan.step, "bytes")
    };
    writeln!(
        sim.out,
        "# nThread {} nGpus {} minBytes {} maxBytes {} step: {step}({how}) warmup iters: {} iters: {} agg iters: 1 validation: {} graph: 0\n#\n# Using devices",
        plan.threads, plan.gpus, plan.min, plan.max, plan.warmup, plan.iterations, plan.check
    )?;
    let pid = std::process::id();
    for rank in 0..ranks {
        writeln!(
            sim.out,
            "#  Rank {rank:2} Group  0 Pid {pid:6} on    doe-sim device {rank:2} [0x{:02x}] {}",
            super::nvidia::bus(rank),
            sim.profile.gpu.name
        )?;
    }
    writeln!(
        sim.out,
        "#\n#                                                              out-of-place                       in-place          \n#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong\n#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)       "
    )?;
    let n = ranks as f64;
    // Bytes on the bus per byte of the message: doc/PERFORMANCE.md of nccl-tests.
    let (factor, redop) = match sim.tool {
        "all_reduce_perf" => (2.0 * (n - 1.0) / n, "sum"),
        "all_gather_perf" => ((n - 1.0) / n, "none"),
        _ => ((n - 1.0) / n, "sum"),
    };
    let bus_bytes_per_us = sim.profile.efa.bandwidth_gbps * 1e3 / 8.0;
    let mut noise = sim.noise();
    let (mut sum, mut halves) = (0.0, 0.0);
    let mut size = plan.min;
    loop {
        // Whole elements on every rank.
        let count = if sim.tool == "all_reduce_perf" {
            size / 4
        } else {
            size / 4 / ranks
        };
        write!(
            sim.out,
            "{size:12}  {count:12}  {:>8}  {redop:>6}  {:>6}",
            "float", -1
        )?;
        let mut took = 0.0;
        for _ in 0..2 {
            let model = FLOOR_US + size as f64 * factor / bus_bytes_per_us;
            let time = noise.on(model);
            let algbw = size as f64 / time / 1e3;
            let busbw = algbw * factor;
            let wrong = if plan.check > 0 { "0" } else { "N/A" };
            write!(
                sim.out,
                "  {:>7}  {:>6}  {:>6}  {wrong:>5}",
                number(time, 7),
                number(algbw, 6),
                number(busbw, 6)
            )?;
            sum += busbw;
            halves += 1.0;
            took += time * (plan.iterations + plan.warmup) as f64 / 1e6;
        }
        writeln!(sim.out)?;
        sim.wait(took)?;
        size = match plan.factor {
            0 | 1 => size.saturating_add(plan.step),
            factor => size.saturating_mul(factor),
        };
        if size > plan.max || size == u64::MAX {
            break;
        }
    }
    writeln!(
        sim.out,
        "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : {} \n#\n# Collective test concluded: {}\n#\n",
        significant(sum / halves),
        sim.tool
    )?;
    Ok(0)
}

/// A number in at most `width` characters, with as many decimals (at most two) as fit.
fn number(value: f64, width: i32) -> String {
    let mut digits = 0;
    let mut bound = 1.0;
    while value >= bound {
        bound *= 10.0;
        digits += 1;
    }
    if digits < width - 2 {
        format!("{value:.2}")
    } else if digits < width - 1 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Six significant digits, as `printf("%g")` gives for numbers of this range.
fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    #[allow(clippy::cast_possible_truncation)] // bandwidths have few digits
    let decimals = (5 - value.abs().log10().floor() as i32).clamp(0, 12);
    #[allow(clippy::cast_sign_loss)] // clamped above
    let text = format!("{value:.*}", decimals as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn usage(sim: &mut Sim<'_>) -> io::Result<u8> {
    writeln!(
        sim.out,
        "USAGE: {} \n\t[-t,--nthreads <num threads>] \n\t[-g,--ngpus <gpus per thread>] \n\t\
         [-b,--minbytes <min size in bytes>] \n\t[-e,--maxbytes <max size in bytes>] \n\t\
         [-i,--stepbytes <increment size>] \n\t[-f,--stepfactor <increment factor>] \n\t\
         [-n,--iters <iteration count>] \n\t[-w,--warmup_iters <warmup iteration count>] \n\t\
         [-c,--check <check iteration count>] \n\t[-h,--help]",
        sim.tool
    )?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_widths_of_nccl_tests() {
        for (value, width, text) in [
            (36.04, 7, "36.04"),
            (5882.09, 7, "5882.09"),
            (27154.3, 7, "27154.3"),
            (108_861.4, 7, "108861"),
            (205.19, 6, "205.19"),
            (0.001, 6, "0.00"),
        ] {
            assert_eq!(number(value, width), text);
        }
        assert_eq!(significant(19.161_74), "19.1617");
        assert_eq!(significant(403.638_2), "403.638");
        assert_eq!(significant(0.05), "0.05");
        assert_eq!(significant(1.5), "1.5");
    }
}
