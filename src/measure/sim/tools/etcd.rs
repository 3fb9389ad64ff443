//! A stand-in for `etcd`: enough of its HTTP to be probed (`/health`, `/version`), and the
//! meeting point of simulated `nixlbench` workers. It knows nothing of keys and values.
//!
//! Workers speak lines on the same port: `DOE-SIM JOIN group role` (role `initiator`, `target`
//! or `any`). The first of a group waits; the second makes both get `RANK n` (the initiator, or
//! whoever came first, is 0); when rank 0 says `DONE`, rank 1 is told.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Sim;
use super::wire;

/// First word of a worker's line.
pub(super) const JOIN: &str = "DOE-SIM JOIN";
/// How long one worker may run before its partner is let go.
const LONGEST_RUN: Duration = Duration::from_secs(3600);

/// Flags that take a value and change nothing here.
const IGNORED: &[&str] = &[
    "name",
    "data-dir",
    "wal-dir",
    "advertise-client-urls",
    "listen-peer-urls",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "log-level",
    "logger",
    "log-outputs",
    "listen-metrics-urls",
    "auto-compaction-retention",
    "auto-compaction-mode",
    "max-request-bytes",
    "quota-backend-bytes",
    "snapshot-count",
    "heartbeat-interval",
    "election-timeout",
    "enable-v2",
    "unsafe-no-fsync",
];

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    let mut urls = "http://localhost:2379".to_owned();
    let mut words = sim.args.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or(word.strip_prefix('-')) else {
            writeln!(sim.err, "'{word}' is not a valid flag")?;
            return Ok(1);
        };
        let (name, attached) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name == "version" {
            writeln!(sim.out, "etcd Version: 3.5.0\nGit SHA: doe-sim")?;
            return Ok(0);
        }
        if name != "listen-client-urls" && !IGNORED.contains(&name) {
            writeln!(
                sim.err,
                "flag provided but not defined: -{name}\nUsage:\n\n  etcd [flags]\n    Start an etcd server."
            )?;
            return Ok(2);
        }
        let Some(value) = attached.or_else(|| words.next().cloned()) else {
            writeln!(sim.err, "flag needs an argument: -{name}")?;
            return Ok(2);
        };
        if name == "listen-client-urls" {
            urls = value;
        }
    }
    let (host, port) = match endpoint(&urls) {
        Some(found) => found,
        None => {
            writeln!(
                sim.err,
                "error verifying flags, URL address does not have the form \"host:port\": {urls}. See 'etcd --help'."
            )?;
            return Ok(1);
        }
    };
    let listener = match bind(&host, port) {
        Ok(listener) if !sim.fails() => listener,
        other => {
            let reason = match other {
                Err(e) => wire::reason(&e).to_lowercase(),
                Ok(_) => "address already in use".to_owned(),
            };
            writeln!(
                sim.err,
                "{{\"level\":\"fatal\",\"msg\":\"discovery failed\",\"error\":\"listen tcp {host}:{port}: bind: {reason}\"}}"
            )?;
            return Ok(1);
        }
    };
    writeln!(
        sim.err,
        "{{\"level\":\"info\",\"msg\":\"serving client traffic insecurely; this is strongly discouraged!\",\"address\":\"{host}:{port}\"}}"
    )?;
    sim.err.flush()?;
    serve(&listener, &AtomicBool::new(false));
    Ok(0)
}

fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    TcpListener::bind(addresses.as_slice())
}

/// Host and port of the first URL of a list.
pub(super) fn endpoint(urls: &str) -> Option<(String, u16)> {
    let first = urls.split(',').next()?;
    let rest = first
        .strip_prefix("http://")
        .or_else(|| first.strip_prefix("https://"))
        .unwrap_or(first);
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty()).then_some((host.to_owned(), port.parse().ok()?))
}

/// A worker that waits for its partner.
struct Waiting {
    reader: BufReader<TcpStream>,
    role: String,
}

type Groups = Arc<Mutex<HashMap<String, Waiting>>>;

/// Serves until `stop` is set.
pub(super) fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let groups: Groups = Groups::default();
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                let groups = Arc::clone(&groups);
                // A lost client is its own matter.
                std::thread::spawn(move || answer(stream, &groups).ok());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(stream: TcpStream, groups: &Groups) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    io::Read::take(&mut reader, 4096).read_line(&mut line)?;
    if let Some(rest) = line.strip_prefix(JOIN) {
        let mut words = rest.split_whitespace();
        let group = words.next().unwrap_or("default").to_owned();
        let role = words.next().unwrap_or("any").to_owned();
        return join(Waiting { reader, role }, group, groups);
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (status, body) = match (method, path) {
        ("GET", "/health") => ("200 OK", r#"{"health":"true"}"#),
        ("GET", "/version") => ("200 OK", r#"{"etcdserver":"3.5.0","etcdcluster":"3.5.0"}"#),
        _ => ("404 Not Found", "404 page not found\n"),
    };
    let stream = reader.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()?;
    // Let the client read to the end before the socket goes: drain what it still sends.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = io::copy(&mut io::Read::take(&mut reader, 1 << 16), &mut io::sink());
    Ok(())
}

fn join(me: Waiting, group: String, groups: &Groups) -> io::Result<()> {
    let partner = {
        let Ok(mut waiting) = groups.lock() else {
            return Ok(());
        };
        match waiting.remove(&group) {
            Some(other) if alive(&other) => other,
            _ => {
                waiting.insert(group, me);
                return Ok(());
            }
        }
    };
    // Who came first is rank 0, unless the roles say otherwise.
    let swap = me.role == "initiator" && partner.role != "initiator"
        || partner.role == "target" && me.role != "target";
    let (mut zero, mut one) = if swap { (me, partner) } else { (partner, me) };
    for (worker, rank) in [(&mut zero, 0), (&mut one, 1)] {
        writeln!(worker.reader.get_mut(), "RANK {rank}")?;
    }
    zero.reader.get_ref().set_read_timeout(Some(LONGEST_RUN))?;
    let mut word = String::new();
    let read = io::Read::take(&mut zero.reader, 64).read_line(&mut word);
    let word = match read {
        Ok(_) if word.trim() == "DONE" => "DONE",
        _ => "LOST",
    };
    writeln!(one.reader.get_mut(), "{word}")
}

/// Whether a waiting worker is still there: its socket has neither ended nor failed.
fn alive(waiting: &Waiting) -> bool {
    let stream = waiting.reader.get_ref();
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    let mut byte = [0];
    let alive = matches!(stream.peek(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_ok() && alive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_from_urls() {
        assert_eq!(
            endpoint("http://127.0.0.1:2379"),
            Some(("127.0.0.1".into(), 2379))
        );
        assert_eq!(endpoint("http://a:1/,http://b:2"), Some(("a".into(), 1)));
        for bad in ["", "http://a", "http://:1", "a:x"] {
            assert_eq!(endpoint(bad), None, "{bad}");
        }
    }
}
