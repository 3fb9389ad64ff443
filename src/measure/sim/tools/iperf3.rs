//! `iperf3` over TCP, in the format of iperf3 3.12. A server serves one client at a time and
//! tells others that it is busy; with `-1` it ends after one connection, whoever that was.
//! `P` streams together reach the link's bandwidth but for 5 %/P of it.

use std::io::{self, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::Sim;
use super::getopt::{self, Line, Opt, Takes};
use super::iperf3_json::{self as document, Ends, Run, Setup};
use super::wire::{self, Refusal};

const OPTIONS: &[Opt] = &[
    ('p', "port", Takes::Value),
    ('f', "format", Takes::Value),
    ('i', "interval", Takes::Value),
    ('B', "bind", Takes::Value),
    ('V', "verbose", Takes::Nothing),
    ('J', "json", Takes::Nothing),
    ('d', "debug", Takes::Maybe),
    ('v', "version", Takes::Nothing),
    ('h', "help", Takes::Nothing),
    ('s', "server", Takes::Nothing),
    ('D', "daemon", Takes::Nothing),
    ('1', "one-off", Takes::Nothing),
    ('c', "client", Takes::Value),
    ('t', "time", Takes::Value),
    ('P', "parallel", Takes::Value),
    ('R', "reverse", Takes::Nothing),
    ('l', "length", Takes::Value),
    ('w', "window", Takes::Value),
    ('M', "set-mss", Takes::Value),
    ('N', "no-delay", Takes::Nothing),
    ('4', "version4", Takes::Nothing),
    ('C', "congestion", Takes::Value),
    ('Z', "zerocopy", Takes::Nothing),
    ('O', "omit", Takes::Value),
    ('T', "title", Takes::Value),
    ('\0', "connect-timeout", Takes::Value),
    ('\0', "forceflush", Takes::Nothing),
    ('\0', "idle-timeout", Takes::Value),
    ('\0', "get-server-output", Takes::Nothing),
];

/// Options that a server refuses, and a client.
const CLIENT_ONLY: &[&str] = &[
    "t",
    "P",
    "R",
    "l",
    "w",
    "M",
    "N",
    "C",
    "Z",
    "O",
    "T",
    "connect-timeout",
];
const SERVER_ONLY: &[&str] = &["D", "1", "idle-timeout"];

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let line = match getopt::parse(sim.tool, sim.args, OPTIONS) {
        Ok(line) => line,
        Err(message) => {
            writeln!(sim.err, "{message}")?;
            usage(sim.err)?;
            return Ok(1);
        }
    };
    if line.has("v") {
        writeln!(sim.out, "iperf 3.12 (doe-sim)")?;
        return Ok(0);
    }
    if line.has("h") {
        usage(sim.out)?;
        return Ok(0);
    }
    let server = line.has("s");
    let wrong = |names: &[&str]| names.iter().any(|n| line.has(n));
    let mistake = if server && line.has("c") {
        Some("cannot be both server and client")
    } else if server && wrong(CLIENT_ONLY) {
        Some("some option you are trying to set is client only")
    } else if !server && !line.has("c") {
        Some("must either be a client (-c) or server (-s)")
    } else if !server && wrong(SERVER_ONLY) {
        Some("some option you are trying to set is server only")
    } else {
        None
    };
    let setup = match mistake.map_or_else(|| setup(&line), |m| Err(m.into())) {
        Ok(setup) => setup,
        Err(message) => {
            writeln!(sim.err, "iperf3: parameter error - {message}\n")?;
            usage(sim.err)?;
            return Ok(1);
        }
    };
    let json = line.has("J");
    match line.value("c") {
        Some(host) => client(sim, setup, host, json),
        None => serve(sim, setup.port, line.has("1"), json),
    }
}

fn setup(line: &Line) -> Result<Setup, String> {
    let number = |name: &str, default: u64, most: u64, message: &str| match line.value(name) {
        None => Ok(default),
        // The real tool reads with atoi: what is no number is zero.
        Some(text) => match text.parse::<u64>() {
            Ok(n) if n <= most => Ok(n),
            _ => Err(message.to_owned()),
        },
    };
    let port = number("p", 5201, 65535, "bad port number (valid range is 1-65535)")?;
    let streams = number(
        "P",
        1,
        128,
        "number of parallel streams too large (maximum = 128)",
    )?;
    let duration_s = number(
        "t",
        10,
        86400,
        "test duration too long (maximum = 86400 seconds)",
    )?;
    if port == 0 {
        return Err("bad port number (valid range is 1-65535)".into());
    }
    if duration_s == 0 || streams == 0 {
        return Err("test duration and number of streams must be above zero".into());
    }
    Ok(Setup {
        port: u16::try_from(port).unwrap_or(5201),
        streams,
        duration_s,
        reverse: line.has("R"),
    })
}

fn client(sim: &mut Sim<'_>, setup: Setup, host: &str, json: bool) -> io::Result<u8> {
    let greeting = json!({
        "tool": sim.tool,
        "streams": setup.streams,
        "duration_s": setup.duration_s,
        "reverse": setup.reverse,
    });
    let connected = if sim.fails() {
        Err(Refusal::Connect(io::Error::from_raw_os_error(111)))
    } else {
        wire::connect(host, setup.port, &greeting)
    };
    let mut peer = match connected {
        Ok(peer) => peer,
        Err(refusal) => {
            let message = match refusal {
                Refusal::Connect(e) => format!("unable to connect to server: {}", wire::reason(&e)),
                Refusal::Resolve => "unable to connect to server: Name or service not known".into(),
                Refusal::Stranger => "control socket has closed unexpectedly".to_owned(),
            };
            return fail(sim, json, &message, 1);
        }
    };
    // The server's word on whether the test may start.
    match peer.result() {
        Ok(word) if word["busy"] == true => {
            return fail(
                sim,
                json,
                "the server is busy running a test. try again later",
                1,
            );
        }
        Ok(_) => {}
        Err(_) => return fail(sim, json, "control socket has closed unexpectedly", 1),
    }
    let ends = Ends {
        local: peer.local,
        remote: peer.remote,
        target: Some(host.to_owned()),
    };
    let run = Run::new(&setup, sim.profile, &mut sim.noise());
    if !json {
        writeln!(sim.out, "Connecting to host {host}, port {}", setup.port)?;
    }
    #[allow(clippy::cast_precision_loss)] // at most a day
    sim.wait(setup.duration_s as f64)?;
    let _ = peer.send(&run.to_wire());
    print(sim, json, &setup, &ends, &run)?;
    Ok(0)
}

fn serve(sim: &mut Sim<'_>, port: u16, one_off: bool, json: bool) -> io::Result<u8> {
    let listener = match wire::listen(port) {
        Ok(_) if sim.fails() => Err(io::Error::from_raw_os_error(98)),
        other => other,
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(e) => {
            let message = format!(
                "error - unable to start listener for connections: {}",
                wire::reason(&e)
            );
            let status = fail(sim, json, &message, 1)?;
            if !json {
                writeln!(sim.err, "iperf3: exiting")?;
            }
            return Ok(status);
        }
    };
    for test in 1.. {
        if !json {
            let rule = "-".repeat(59);
            writeln!(
                sim.out,
                "{rule}\nServer listening on {port} (test #{test})\n{rule}"
            )?;
            sim.out.flush()?;
        }
        match wire::accept(&listener, sim.tool) {
            Ok(Some((peer, greeting))) => one_test(sim, &listener, peer, &greeting, port, json)?,
            _ => {
                // Seen with 3.12: a bare connection is one test that failed, and `-1` ends with
                // status 0 after it.
                fail(
                    sim,
                    json,
                    "error - unable to receive parameters from client: ",
                    0,
                )?;
                sim.remark("a connection that said nothing counts as a test: do not probe a server that runs with -1")?;
            }
        }
        sim.out.flush()?;
        sim.err.flush()?;
        if one_off {
            break;
        }
    }
    Ok(0)
}

fn one_test(
    sim: &mut Sim<'_>,
    listener: &TcpListener,
    mut peer: wire::Peer,
    greeting: &Value,
    port: u16,
    json: bool,
) -> io::Result<()> {
    let number = |key: &str| greeting[key].as_u64().filter(|n| *n > 0);
    let (Some(streams), Some(duration_s)) = (number("streams"), number("duration_s")) else {
        fail(
            sim,
            json,
            "error - unable to receive parameters from client: ",
            0,
        )?;
        return Ok(());
    };
    let setup = Setup {
        port,
        streams,
        duration_s,
        reverse: greeting["reverse"] == true,
    };
    let ends = Ends {
        local: peer.local,
        remote: peer.remote,
        target: None,
    };
    let ended = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| turn_away(listener, sim_tool(greeting), &ended));
        let result = peer
            .send(&json!({ "busy": false }))
            .and_then(|()| peer.result());
        ended.store(true, Ordering::Release);
        result
    });
    match result.ok().and_then(|r| Run::from_wire(&r)) {
        Some(run) => print(sim, json, &setup, &ends, &run),
        None => {
            fail(
                sim,
                json,
                "the client has unexpectedly closed the connection",
                0,
            )?;
            Ok(())
        }
    }
}

fn sim_tool(greeting: &Value) -> Value {
    greeting["tool"].clone()
}

/// Tells whoever connects during a test that the server is busy.
fn turn_away(listener: &TcpListener, tool: Value, ended: &AtomicBool) {
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !ended.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
                let mut reader = BufReader::new(stream);
                let mut greeting = String::new();
                let read =
                    io::BufRead::read_line(&mut io::Read::take(&mut reader, 4096), &mut greeting);
                if read.is_ok_and(|n| n > 0) {
                    let answer =
                        format!("{}\n{}\n", json!({ "tool": tool }), json!({ "busy": true }));
                    let _ = reader.get_mut().write_all(answer.as_bytes());
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    let _ = listener.set_nonblocking(false);
}

/// What both sides do with an error: JSON carries it, text goes to standard error.
fn fail(sim: &mut Sim<'_>, json: bool, message: &str, status: u8) -> io::Result<u8> {
    if json {
        document::write_pretty(sim.out, &document::failure(message))?;
    } else {
        let message = message.strip_prefix("error - ").unwrap_or(message);
        writeln!(sim.err, "iperf3: error - {message}")?;
    }
    Ok(status)
}

fn print(sim: &mut Sim<'_>, json: bool, setup: &Setup, ends: &Ends, run: &Run) -> io::Result<()> {
    if json {
        document::write_pretty(sim.out, &document::success(setup, ends, run))
    } else {
        document::write_text(sim.out, setup, ends, run)
    }
}

fn usage(to: &mut dyn Write) -> io::Result<()> {
    writeln!(
        to,
        "Usage: iperf3 [-s|-c host] [options]\n       iperf3 [-h|--help] [-v|--version]\n\n\
         Server or Client (simulated):\n  -p, --port      #         server port to listen on/connect to\n  \
         -J, --json                output in JSON format\n\
         Server specific:\n  -s, --server              run in server mode\n  \
         -1, --one-off             handle one client connection then exit\n\
         Client specific:\n  -c, --client <host>       run in client mode, connecting to <host>\n  \
         -t, --time      #         time in seconds to transmit for (default 10 secs)\n  \
         -P, --parallel  #         number of parallel client streams to run\n  \
         -R, --reverse             run in reverse mode (server sends, client receives)"
    )
}
