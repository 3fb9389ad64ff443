//! `ucx_perftest`: `tag_bw` and `tag_lat` between two hosts, in the format of UCX 1.13. The
//! server learns everything from the client and prints what is tested, the client prints the
//! numbers. "MB/s" is 2^20 bytes/s.

use std::io;

use serde_json::{Value, json};

use super::Sim;
use super::getopt::{self, Line, Opt, Takes};
use super::link::{one_way_us, streamed_us, ucx_link};
use super::wire::{self, Refusal};

const OPTIONS: &[Opt] = &[
    ('t', "", Takes::Value),
    ('s', "", Takes::Value),
    ('m', "", Takes::Value),
    ('n', "", Takes::Value),
    ('w', "", Takes::Value),
    ('c', "", Takes::Value),
    ('O', "", Takes::Value),
    ('i', "", Takes::Value),
    ('p', "", Takes::Value),
    ('R', "", Takes::Value),
    ('T', "", Takes::Value),
    ('M', "", Takes::Value),
    ('D', "", Takes::Value),
    ('E', "", Takes::Value),
    ('l', "", Takes::Nothing),
    ('o', "", Takes::Nothing),
    ('B', "", Takes::Nothing),
    ('6', "", Takes::Nothing),
    ('N', "", Takes::Nothing),
    ('f', "", Takes::Nothing),
    ('v', "", Takes::Nothing),
    ('C', "", Takes::Nothing),
    ('U', "", Takes::Nothing),
    ('I', "", Takes::Nothing),
    ('e', "", Takes::Nothing),
    ('z', "", Takes::Nothing),
    ('h', "", Takes::Nothing),
];

const RULER: &str = "+--------------+--------------+------------------------------+---------------------+-----------------------+";
const COLUMNS: &str = "+--------------+--------------+----------+---------+---------+----------+----------+-----------+-----------+";
const TITLES: &str = "|    Stage     | # iterations | 50.0%ile | average | overall |  average |  overall |  average  |  overall  |";
const FRAME: &str = "+----------------------------------------------------------------------------------------------------------+";

/// What a client measures.
struct Test {
    latency: bool,
    size: u64,
    memory: (String, String),
    iterations: u64,
}

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let line = match getopt::parse(sim.tool, sim.args, OPTIONS) {
        Ok(line) if !line.has("h") => line,
        Ok(_) => {
            usage(sim)?;
            return Ok(0);
        }
        Err(message) => {
            writeln!(sim.err, "{message}")?;
            usage(sim)?;
            return Ok(129);
        }
    };
    let port = match line.value("p").map_or(Ok(13337), str::parse::<u16>) {
        Ok(port) => port,
        Err(_) => return bad_option(sim, "Invalid option argument for -p"),
    };
    match line.operands.first() {
        None => serve(sim, port),
        Some(host) => match test(&line) {
            Ok(Some(test)) => client(sim, &test, host, port),
            // Without a test the real tool connects first and then has nothing to run.
            Ok(None) => bad_option(sim, "The test type was not specified, please use -t"),
            Err(message) => bad_option(sim, &message),
        },
    }
}

fn test(line: &Line) -> Result<Option<Test>, String> {
    let latency = match line.value("t") {
        Some("tag_bw") => false,
        Some("tag_lat") => true,
        Some(_) => return Err("Invalid option argument for -t".into()),
        None => return Ok(None),
    };
    let number = |name: &str, default: u64| match line.value(name) {
        None => Ok(default),
        Some(text) => getopt::size(text)
            .filter(|n| *n > 0)
            .ok_or(format!("Invalid option argument for -{name}")),
    };
    let memory = line.value("m").unwrap_or("host");
    let (send, recv) = memory.split_once(',').unwrap_or((memory, memory));
    for kind in [send, recv] {
        if !["host", "cuda", "cuda-managed"].contains(&kind) {
            return Err(format!("unsupported memory type: \"{kind}\""));
        }
    }
    Ok(Some(Test {
        latency,
        size: number("s", 8)?,
        memory: (send.into(), recv.into()),
        iterations: number("n", 1_000_000)?,
    }))
}

fn client(sim: &mut Sim<'_>, test: &Test, host: &str, port: u16) -> io::Result<u8> {
    let greeting = json!({
        "tool": sim.tool,
        "latency": test.latency,
        "size": test.size,
        "send": test.memory.0,
        "recv": test.memory.1,
    });
    let connected = if sim.fails() {
        Err(Refusal::Connect(io::ErrorKind::TimedOut.into()))
    } else {
        wire::connect(host, port, &greeting)
    };
    let mut peer = match connected {
        Ok(peer) => peer,
        Err(refusal) => {
            let reason = match refusal {
                Refusal::Connect(error) => format!("connect() failed: {}", wire::reason(&error)),
                Refusal::Resolve => format!("host {host} not found"),
                Refusal::Stranger => "recv() failed: Connection reset by peer".to_owned(),
            };
            return error(sim, "perftest.c:405", &format!("client failed. {reason}"));
        }
    };
    let link = ucx_link(sim.profile, (sim.env)("UCX_TLS").as_deref());
    let model = if test.latency {
        one_way_us(link, test.size)
    } else {
        streamed_us(link, test.size, 32)
    };
    let mut noise = sim.noise();
    let overall = noise.on(model);
    // Of a bandwidth test the percentile is the time to post one send, not to complete it.
    let percentile = if test.latency {
        overall * (1.0 - 0.01 * noise.uniform())
    } else {
        0.2 + 0.2 * noise.uniform()
    };
    #[allow(clippy::cast_precision_loss)] // counts of a test are far below 2^53
    let (iterations, size) = (test.iterations as f64, test.size as f64);
    sim.wait(overall * iterations * if test.latency { 2.0 } else { 1.0 } / 1e6)?;
    let rate = 1e6 / overall;
    let mib_per_s = size * rate / (1024.0 * 1024.0);
    let what = if test.latency {
        "       latency (usec)        "
    } else {
        "      overhead (usec)        "
    };
    writeln!(
        sim.out,
        "{RULER}\n|              |              | {what}|   bandwidth (MB/s)  |  message rate (msg/s) |\n{COLUMNS}\n{TITLES}\n{COLUMNS}"
    )?;
    writeln!(
        sim.out,
        "Final:          {:>12} {percentile:>10.3} {overall:>9.3} {overall:>9.3} {mib_per_s:>10.2} {mib_per_s:>10.2} {rate:>11.0} {rate:>11.0}",
        test.iterations
    )?;
    let _ = peer.send(&Value::Null);
    Ok(0)
}

fn serve(sim: &mut Sim<'_>, port: u16) -> io::Result<u8> {
    let listener = match wire::listen(port) {
        Ok(listener) if !sim.fails() => listener,
        Ok(_) => {
            return error(
                sim,
                "perftest.c:405",
                "server failed. accept() failed: Connection timed out",
            );
        }
        Err(e) => {
            let reason = wire::reason(&e);
            return error(
                sim,
                "perftest.c:405",
                &format!("server failed. bind() failed: {reason}"),
            );
        }
    };
    writeln!(sim.out, "Waiting for connection...")?;
    sim.out.flush()?;
    let (mut peer, greeting) = match wire::accept(&listener, sim.tool) {
        Ok(Some(accepted)) => accepted,
        _ => {
            sim.remark("the connection said nothing; the real server does not survive that either, so probe it without connecting")?;
            return error(
                sim,
                "perftest.c:171",
                "recv() failed: remote connection lost",
            );
        }
    };
    let name = if greeting["latency"] == true {
        "tag match latency"
    } else {
        "tag match bandwidth"
    };
    let text = |key: &str| greeting[key].as_str().unwrap_or("host").to_owned();
    writeln!(sim.out, "Accepted connection from {}\n{FRAME}", peer.remote)?;
    for (label, value) in [
        ("API:", "protocol layer".to_owned()),
        ("Test:", name.to_owned()),
        ("Data layout:", "(automatic)".to_owned()),
        ("Send memory:", text("send")),
        ("Recv memory:", text("recv")),
        ("Message size:", greeting["size"].to_string()),
    ] {
        writeln!(sim.out, "| {label:<13} {value:<91}|")?;
    }
    writeln!(sim.out, "{FRAME}")?;
    sim.out.flush()?;
    match peer.result() {
        Ok(_) => Ok(0),
        Err(_) => error(
            sim,
            "perftest.c:171",
            "recv() failed: remote connection lost",
        ),
    }
}

fn error(sim: &mut Sim<'_>, place: &str, message: &str) -> io::Result<u8> {
    log(sim, place, message)?;
    Ok(255)
}

fn bad_option(sim: &mut Sim<'_>, message: &str) -> io::Result<u8> {
    log(sim, "perftest_params.c:281", message)?;
    usage(sim)?;
    Ok(129)
}

/// UCX logs to standard output.
fn log(sim: &mut Sim<'_>, place: &str, message: &str) -> io::Result<()> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    writeln!(
        sim.out,
        "[{}.{:06}] [doe-sim:{} :0] {place:>21}  UCX  ERROR {message}",
        now.as_secs(),
        now.subsec_micros(),
        std::process::id()
    )
}

fn usage(sim: &mut Sim<'_>) -> io::Result<()> {
    writeln!(
        sim.out,
        "  Usage: ucx_perftest [ server-hostname ] [ options ]\n\n  Common options (simulated):\n     \
         -t <test>      test to run: tag_lat, tag_bw\n     \
         -s <size>      message size (8)\n     \
         -m <send mem type>[,<recv mem type>]  host, cuda, cuda-managed (host)\n     \
         -n <iters>     number of iterations to run (1000000)\n     \
         -p <port>      TCP port to use for data exchange (13337)\n     \
         -h             show this help message"
    )
}
