//! libfabric's `fi_pingpong` (util) and fabtests' `fi_rdm_bw`, `fi_rma_bw`, `fi_rdm_pingpong`,
//! `fi_rma_pingpong`. One server serves one client and ends, also when whoever connected was
//! none: a port probe ends it, as it ends the real one (seen with libfabric 1.17).

use std::io;

use serde_json::{Value, json};

use crate::measure::sim::profile::Link;

use super::Sim;
use super::getopt::{self, Line, Opt, Takes};
use super::link::{one_way_us, streamed_us};
use super::wire::{self, Refusal};

/// Messages that a bandwidth test keeps in flight.
const WINDOW: u32 = 64;

const UTIL_OPTIONS: &[Opt] = &[
    ('B', "", Takes::Value),
    ('P', "", Takes::Value),
    ('d', "", Takes::Value),
    ('p', "", Takes::Value),
    ('e', "", Takes::Value),
    ('I', "", Takes::Value),
    ('S', "", Takes::Value),
    ('c', "", Takes::Nothing),
    ('m', "", Takes::Value),
    ('h', "", Takes::Nothing),
    ('v', "", Takes::Nothing),
    ('6', "", Takes::Nothing),
];

const FABTESTS_OPTIONS: &[Opt] = &[
    ('B', "", Takes::Value),
    ('P', "", Takes::Value),
    ('s', "", Takes::Value),
    ('a', "", Takes::Value),
    ('b', "", Takes::Maybe),
    ('E', "", Takes::Maybe),
    ('C', "", Takes::Value),
    ('F', "", Takes::Value),
    ('f', "", Takes::Value),
    ('d', "", Takes::Value),
    ('p', "", Takes::Value),
    ('e', "", Takes::Value),
    ('i', "", Takes::Value),
    ('D', "", Takes::Value),
    ('K', "", Takes::Nothing),
    ('I', "", Takes::Value),
    ('Q', "", Takes::Nothing),
    ('S', "", Takes::Value),
    ('m', "", Takes::Nothing),
    ('c', "", Takes::Value),
    ('t', "", Takes::Value),
    ('w', "", Takes::Value),
    ('l', "", Takes::Nothing),
    ('v', "", Takes::Nothing),
    ('k', "", Takes::Nothing),
    ('j', "", Takes::Value),
    ('W', "", Takes::Value),
    ('U', "", Takes::Nothing),
    ('o', "", Takes::Value),
    ('h', "", Takes::Nothing),
    ('\0', "pin-core", Takes::Value),
    ('\0', "timeout", Takes::Value),
    ('\0', "data-progress", Takes::Value),
    ('\0', "use-fi-more", Takes::Nothing),
];

/// What is measured.
struct Plan {
    util: bool,
    bandwidth: bool,
    sizes: Vec<u64>,
    iterations: Option<u64>,
    server: Option<String>,
    port: u16,
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Row {
    size: u64,
    iterations: u64,
    elapsed_us: u64,
}

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let util = sim.tool == "fi_pingpong";
    let options = if util { UTIL_OPTIONS } else { FABTESTS_OPTIONS };
    let line = match getopt::parse(sim.tool, sim.args, options) {
        Ok(line) if !line.has("h") => line,
        Ok(_) => return usage(sim, util),
        Err(message) => {
            writeln!(sim.err, "{message}")?;
            return usage(sim, util);
        }
    };
    let plan = match plan(sim.tool, &line) {
        Ok(plan) => plan,
        Err(message) => {
            writeln!(sim.err, "{message}")?;
            return usage(sim, util);
        }
    };
    if sim.fails() {
        let message = if util {
            "[error] util/pingpong.c:1414 : fi_getinfo: No data available"
        } else {
            "fi_getinfo(): common/shared.c:1285, ret=-61 (No data available)"
        };
        writeln!(sim.err, "{message}")?;
        return Ok(61);
    }
    let provider = line
        .value("p")
        .map(str::to_owned)
        .or_else(|| (sim.env)("FI_PROVIDER"));
    let link = match provider.as_deref() {
        Some(p) if p.starts_with("efa") => sim.profile.efa.clone(),
        _ => sim.profile.tcp.clone(),
    };
    match &plan.server {
        None => serve(sim, &plan),
        Some(host) => client(sim, &plan, host, &link),
    }
}

fn plan(tool: &str, line: &Line) -> Result<Plan, String> {
    let util = tool == "fi_pingpong";
    let number = |name: &str| match line.value(name) {
        None => Ok(None),
        Some(text) => text
            .parse::<u64>()
            .map(Some)
            .map_err(|_| format!("{tool}: -{name} needs a number, not `{text}`")),
    };
    let sizes = match line.value("S") {
        None => vec![64, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20],
        Some("all") => sweep(util),
        Some(_) => number("S")?.into_iter().collect(),
    };
    let iterations = number("I")?;
    if iterations == Some(0) {
        return Err(format!("{tool}: -I needs a number above zero"));
    }
    let server = line.operands.first().cloned();
    let port_option = if server.is_some() { "P" } else { "B" };
    // The sides find each other over TCP: util's control port, fabtests' out-of-band port.
    let (port, default) = if util {
        (line.value(port_option), 47592)
    } else if line.has("E") {
        (line.value("E"), 3000)
    } else {
        (line.value(port_option), 9228)
    };
    let port = match port {
        None => default,
        Some(text) => text
            .parse()
            .map_err(|_| format!("{tool}: `{text}` is not a port"))?,
    };
    Ok(Plan {
        util,
        bandwidth: tool.ends_with("_bw"),
        sizes,
        iterations: iterations.or(util.then_some(10)),
        server,
        port,
    })
}

/// The sizes of `-S all`: 2^n and 1.5 * 2^n.
fn sweep(util: bool) -> Vec<u64> {
    let mut sizes = Vec::new();
    if util {
        sizes.push(0);
    }
    sizes.push(1);
    for n in 1..=22u32 {
        sizes.push(1 << n);
        sizes.push((1 << n) + (1 << (n - 1)));
    }
    if !util {
        sizes.push(1 << 23);
    }
    sizes
}

/// fabtests' own count where none is given.
fn default_iterations(size: u64) -> u64 {
    match size {
        s if s >= 1 << 20 => 100,
        s if s >= 1 << 16 => 1000,
        _ => 10_000,
    }
}

fn client(sim: &mut Sim<'_>, plan: &Plan, host: &str, link: &Link) -> io::Result<u8> {
    let greeting = json!({ "tool": sim.tool });
    let mut peer = match wire::connect(host, plan.port, &greeting) {
        Ok(peer) => peer,
        Err(refusal) => return refused(sim, plan, &refusal),
    };
    let mut noise = sim.noise();
    let mut sent = Vec::new();
    for (at, size) in plan.sizes.iter().copied().enumerate() {
        let iterations = plan.iterations.unwrap_or_else(|| default_iterations(size));
        let per_transfer = if plan.bandwidth {
            streamed_us(link, size, WINDOW)
        } else {
            one_way_us(link, size)
        };
        let transfers = transfers(plan, iterations);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let elapsed_us = (noise.on(per_transfer) * transfers as f64).round().max(1.0) as u64;
        #[allow(clippy::cast_precision_loss)] // microseconds of a test are far below 2^53
        sim.wait(elapsed_us as f64 / 1e6)?;
        let row = Row {
            size,
            iterations,
            elapsed_us,
        };
        print(sim, plan, row, at == 0)?;
        sent.push(json!([size, iterations, elapsed_us]));
    }
    // The measurement is done; whether the server still listens changes nothing here.
    let _ = peer.send(&Value::Array(sent));
    Ok(0)
}

fn transfers(plan: &Plan, iterations: u64) -> u64 {
    iterations.saturating_mul(if plan.bandwidth { u64::from(WINDOW) } else { 2 })
}

fn refused(sim: &mut Sim<'_>, plan: &Plan, refusal: &Refusal) -> io::Result<u8> {
    let (reason, status) = match refusal {
        Refusal::Connect(error) => (wire::reason(error), wire::errno(error)),
        Refusal::Resolve => ("Name or service not known".to_owned(), 2),
        Refusal::Stranger => ("Connection reset by peer".to_owned(), 104),
    };
    if plan.util {
        writeln!(
            sim.err,
            "[error] util/pingpong.c:408 : failed to connect: {reason}"
        )?;
    } else {
        writeln!(
            sim.err,
            "connect(): common/shared.c:2865, ret=-{status} ({reason})"
        )?;
    }
    Ok(status)
}

fn serve(sim: &mut Sim<'_>, plan: &Plan) -> io::Result<u8> {
    let served = wire::listen(plan.port).and_then(|l| wire::accept(&l, sim.tool));
    let mut peer = match served {
        Ok(Some((peer, _))) => peer,
        Ok(None) => {
            sim.remark("the connection said nothing; the real server ends here too, so probe it without connecting")?;
            return Ok(if plan.util { super::BROKEN_PIPE } else { 107 });
        }
        Err(error) => {
            let (reason, status) = (wire::reason(&error), wire::errno(&error));
            if plan.util {
                writeln!(
                    sim.err,
                    "[error] util/pingpong.c:347 : failed to bind: {reason}"
                )?;
            } else {
                writeln!(
                    sim.err,
                    "bind(): common/shared.c:2797, ret=-{status} ({reason})"
                )?;
            }
            return Ok(status);
        }
    };
    let Some(rows) = peer.result().ok().and_then(|r| read_rows(&r)) else {
        writeln!(sim.err, "[error] the client ended before the test was done")?;
        return Ok(107);
    };
    for (at, mut row) in rows.into_iter().enumerate() {
        // The sides stop their clocks a microsecond apart.
        row.elapsed_us += 1;
        print(sim, plan, row, at == 0)?;
    }
    Ok(0)
}

fn read_rows(message: &Value) -> Option<Vec<Row>> {
    message
        .as_array()?
        .iter()
        .map(|row| {
            Some(Row {
                size: row.get(0)?.as_u64()?,
                iterations: row.get(1)?.as_u64().filter(|n| *n > 0)?,
                elapsed_us: row.get(2)?.as_u64().filter(|n| *n > 0 && *n < 1 << 53)?,
            })
        })
        .collect()
}

fn print(sim: &mut Sim<'_>, plan: &Plan, row: Row, header: bool) -> io::Result<()> {
    if header && plan.util {
        writeln!(
            sim.out,
            "{:<8}{:<8}{:<9}{:<8}{:>8} {:>10}{:>13}{:>13}",
            "bytes", "#sent", "#ack", "total", "time", "MB/sec", "usec/xfer", "Mxfers/sec"
        )?;
    } else if header {
        writeln!(
            sim.out,
            "{:<8}{:<8}{:<8}{:>8} {:>10}{:>13}{:>13}",
            "bytes", "iters", "total", "time", "MB/sec", "usec/xfer", "Mxfers/sec"
        )?;
    }
    let count = count_text(row.iterations);
    write!(sim.out, "{:<8}{count:<8}", size_text(row.size))?;
    if plan.util {
        write!(sim.out, "={count:<8}")?;
    }
    let transfers = transfers(plan, row.iterations);
    let bytes = transfers.saturating_mul(row.size);
    #[allow(clippy::cast_precision_loss)] // printed with few digits
    let (bytes_f, elapsed, transfers) = (bytes as f64, row.elapsed_us as f64, transfers as f64);
    let usec = elapsed / transfers;
    writeln!(
        sim.out,
        "{:<8}{:>8.2}s{:>10.2}{usec:>11.2}{:>11.2}",
        size_text(bytes),
        elapsed / 1e6,
        bytes_f / elapsed,
        1.0 / usec
    )
}

/// A size as libfabric prints it.
fn size_text(size: u64) -> String {
    let (base, suffix) = match size {
        s if s >= 1 << 30 => (1 << 30, "g"),
        s if s >= 1 << 20 => (1 << 20, "m"),
        s if s >= 1 << 10 => (1 << 10, "k"),
        _ => (1, ""),
    };
    let tenths = if size / base < 10 {
        (size % base) * 10 / base
    } else {
        0
    };
    match tenths {
        0 => format!("{}{suffix}", size / base),
        _ => format!("{}.{tenths}{suffix}", size / base),
    }
}

/// A count as libfabric prints it.
fn count_text(count: u64) -> String {
    match count {
        n if n >= 1_000_000_000 => format!("{}b", n / 1_000_000_000),
        n if n >= 1_000_000 => format!("{}m", n / 1_000_000),
        n if n >= 1_000 => format!("{}k", n / 1_000),
        n => n.to_string(),
    }
}

fn usage(sim: &mut Sim<'_>, util: bool) -> io::Result<u8> {
    let tool = sim.tool;
    write!(
        sim.err,
        "Usage:\n  {tool} [OPTIONS]\t\tstart server\n  {tool} [OPTIONS] <host>\tconnect to server\n\n\
         Options (simulated):\n -p <provider>        specific provider name eg sockets, verbs\n \
         -I <number>          number of iterations\n -S <size>            specific transfer size or 'all'\n"
    )?;
    if util {
        writeln!(
            sim.err,
            " -B <src_port>        source control port number (server: 47592, client: auto)\n \
             -P <dst_port>        destination control port number (client: 47592)\n \
             -e <ep_type>         endpoint type: msg|rdm|dgram (dgram)"
        )?;
    } else {
        writeln!(
            sim.err,
            " -B <src_port>        non default source port number\n \
             -P <dst_port>        non default destination port number\n \
             -E[=<oob_port>]      enable out-of-band address exchange (port 3000)"
        )?;
    }
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taken from `fi_pingpong -S all` of libfabric 1.17.
    #[test]
    fn sizes_and_counts_print_as_libfabric_prints_them() {
        for (size, text) in [
            (0, "0"),
            (768, "768"),
            (1024, "1k"),
            (1536, "1.5k"),
            (1200, "1.1k"),
            (24 << 10, "24k"),
            (12_800, "12k"),
            (1 << 20, "1m"),
            (1_258_291_200, "1.1g"),
            (100 << 20, "100m"),
        ] {
            assert_eq!(size_text(size), text);
        }
        for (count, text) in [(10, "10"), (999, "999"), (1000, "1k"), (1_500_000, "1m")] {
            assert_eq!(count_text(count), text);
        }
        assert_eq!(sweep(true).len(), 46);
        assert_eq!(sweep(true).last(), Some(&(6 << 20)));
        assert_eq!(sweep(false).last(), Some(&(8 << 20)));
    }
}
