//! The numbers of one simulated iperf3 test and their two forms: the JSON document of `-J` and
//! the table for people. Bytes, seconds and rates agree in every place, as in the real output.

use std::io::{self, Write};
use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use crate::measure::sim::SimProfile;

use super::link::Noise;

/// What was asked for.
pub(super) struct Setup {
    pub port: u16,
    pub streams: u64,
    pub duration_s: u64,
    pub reverse: bool,
}

/// The connection, seen from the printing side.
pub(super) struct Ends {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The name that a client was given; `None` on a server.
    pub target: Option<String>,
}

/// What was measured: bytes and retransmissions of each stream in each second.
pub(super) struct Run {
    seconds: Vec<Vec<(u64, u64)>>,
    /// How much longer the receiver's clock ran, in seconds.
    tail_s: f64,
}

impl Run {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    // byte counts of a second are far below 2^53 and not negative
    pub(super) fn new(setup: &Setup, profile: &SimProfile, noise: &mut Noise) -> Self {
        let streams = setup.streams as f64;
        let rate = profile.tcp.bandwidth_gbps * 1e9 / 8.0 * (1.0 - 0.05 / streams) / streams;
        let seconds = (0..setup.duration_s)
            .map(|_| {
                (0..setup.streams)
                    .map(|_| {
                        let bytes = noise.on(rate).max(1.0) as u64;
                        (bytes, (noise.uniform() * 3.0) as u64)
                    })
                    .collect()
            })
            .collect();
        Self {
            seconds,
            tail_s: profile.tcp.latency_us * 1e-6,
        }
    }

    /// For the other side.
    pub(super) fn to_wire(&self) -> Value {
        json!({ "seconds": self.seconds, "tail_s": self.tail_s })
    }

    pub(super) fn from_wire(message: &Value) -> Option<Self> {
        let seconds: Vec<Vec<(u64, u64)>> =
            serde_json::from_value(message["seconds"].clone()).ok()?;
        let streams = seconds.first()?.len();
        let sound = streams > 0 && seconds.iter().all(|s| s.len() == streams);
        Some(Self {
            seconds,
            tail_s: message["tail_s"].as_f64()?,
        })
        .filter(|_| sound)
    }

    fn streams(&self) -> usize {
        self.seconds.first().map_or(0, Vec::len)
    }

    #[allow(clippy::cast_precision_loss)] // at most a day
    fn duration(&self) -> f64 {
        self.seconds.len() as f64
    }

    /// Bytes and retransmissions of one stream, or of all.
    fn total(&self, stream: Option<usize>) -> (u64, u64) {
        self.seconds
            .iter()
            .flat_map(|s| s.iter().enumerate())
            .filter(|(i, _)| stream.is_none_or(|s| s == *i))
            .fold((0, 0), |(b, r), (_, (bytes, retransmits))| {
                (b + bytes, r + retransmits)
            })
    }
}

fn sum(second: &[(u64, u64)]) -> (u64, u64) {
    second
        .iter()
        .fold((0, 0), |(b, r), (bytes, again)| (b + bytes, r + again))
}

#[allow(clippy::cast_precision_loss)] // far below 2^53 bytes
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8.0 / seconds
}

fn head() -> Map<String, Value> {
    let mut start = Map::new();
    start.insert("version".into(), json!("iperf 3.12"));
    start.insert("system_info".into(), json!("Linux doe-sim x86_64"));
    start
}

/// The document of a test that did not happen.
pub(super) fn failure(message: &str) -> Value {
    let mut start = Map::new();
    start.insert("connected".into(), json!([]));
    start.extend(head());
    json!({ "start": start, "intervals": [], "end": {}, "error": message })
}

/// A stretch of time of one stream or of all: the fields that all parts of the document share.
fn stretch(from: f64, to: f64, bytes: u64) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("start".into(), json!(from));
    map.insert("end".into(), json!(to));
    map.insert("seconds".into(), json!(to - from));
    map.insert("bytes".into(), json!(bytes));
    map.insert("bits_per_second".into(), json!(rate(bytes, to - from)));
    map
}

/// The document of a finished test.
pub(super) fn success(setup: &Setup, ends: &Ends, run: &Run) -> Value {
    let client = ends.target.is_some();
    // Who sends knows the retransmissions, and only a client hears of both ends.
    let sends = client != setup.reverse;
    let socket = |i: usize| 5 + 2 * i;
    let mut intervals = Vec::new();
    let mut from = 0.0;
    for second in &run.seconds {
        let to = from + 1.0;
        let streams: Vec<Value> = second
            .iter()
            .enumerate()
            .map(|(i, (bytes, again))| {
                let mut map = Map::new();
                map.insert("socket".into(), json!(socket(i)));
                map.append(&mut stretch(from, to, *bytes));
                finish(&mut map, sends, *again);
                Value::Object(map)
            })
            .collect();
        let (bytes, again) = sum(second);
        let mut all = stretch(from, to, bytes);
        finish(&mut all, sends, again);
        intervals.push(json!({ "streams": streams, "sum": all }));
        from = to;
    }
    let (duration, long) = (run.duration(), run.duration() + run.tail_s);
    let end = |stream: Option<usize>, sent: bool| {
        let (mut bytes, again) = run.total(stream);
        if sent && !client && !sends {
            bytes = 0;
        }
        let mut map = Map::new();
        if let Some(i) = stream {
            map.insert("socket".into(), json!(socket(i)));
        }
        map.append(&mut stretch(0.0, if sent { duration } else { long }, bytes));
        if sent && (sends || client) {
            map.insert("retransmits".into(), json!(again));
        }
        map.insert("sender".into(), json!(sends));
        Value::Object(map)
    };
    let ended: Vec<Value> = (0..run.streams())
        .map(|i| json!({ "sender": end(Some(i), true), "receiver": end(Some(i), false) }))
        .collect();
    json!({
        "start": start(setup, ends, run),
        "intervals": intervals,
        "end": {
            "streams": ended,
            "sum_sent": end(None, true),
            "sum_received": end(None, false),
            "cpu_utilization_percent": {
                "host_total": 24.5, "host_user": 0.5, "host_system": 24.0,
                "remote_total": 31.0, "remote_user": 1.0, "remote_system": 30.0,
            },
            "sender_tcp_congestion": "cubic",
            "receiver_tcp_congestion": "cubic",
        },
    })
}

fn finish(map: &mut Map<String, Value>, sends: bool, again: u64) {
    if sends {
        map.insert("retransmits".into(), json!(again));
    }
    map.insert("omitted".into(), json!(false));
    map.insert("sender".into(), json!(sends));
}

fn start(setup: &Setup, ends: &Ends, run: &Run) -> Value {
    let connected: Vec<Value> = (0..run.streams())
        .map(|i| {
            json!({
                "socket": 5 + 2 * i,
                "local_host": ends.local.ip().to_string(),
                "local_port": ends.local.port(),
                "remote_host": ends.remote.ip().to_string(),
                "remote_port": ends.remote.port(),
            })
        })
        .collect();
    let mut start = Map::new();
    start.insert("connected".into(), json!(connected));
    start.extend(head());
    match &ends.target {
        Some(host) => start.insert(
            "connecting_to".into(),
            json!({ "host": host, "port": setup.port }),
        ),
        None => start.insert(
            "accepted_connection".into(),
            json!({ "host": ends.remote.ip().to_string(), "port": ends.remote.port() }),
        ),
    };
    start.insert(
        "test_start".into(),
        json!({
            "protocol": "TCP",
            "num_streams": setup.streams,
            "blksize": 131_072,
            "omit": 0,
            "duration": setup.duration_s,
            "bytes": 0,
            "blocks": 0,
            "reverse": u8::from(setup.reverse),
            "tos": 0,
            "target_bitrate": 0,
        }),
    );
    Value::Object(start)
}

/// Writes a document as iperf3 does: indented, with a newline at the end.
pub(super) fn write_pretty(out: &mut dyn Write, document: &Value) -> io::Result<()> {
    let mut text = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, indent);
    serde::Serialize::serialize(document, &mut writer)?;
    text.push(b'\n');
    out.write_all(&text)?;
    out.flush()
}

/// Writes the table for people, in Gbits/sec.
pub(super) fn write_text(
    out: &mut dyn Write,
    setup: &Setup,
    ends: &Ends,
    run: &Run,
) -> io::Result<()> {
    if ends.target.is_none() {
        writeln!(
            out,
            "Accepted connection from {}, port {}",
            ends.remote.ip(),
            ends.remote.port()
        )?;
    }
    for i in 0..run.streams() {
        writeln!(
            out,
            "[{:3}] local {} port {} connected to {} port {}",
            5 + 2 * i,
            ends.local.ip(),
            ends.local.port(),
            ends.remote.ip(),
            ends.remote.port()
        )?;
    }
    writeln!(
        out,
        "[ ID] Interval           Transfer     Bitrate         Retr"
    )?;
    let mut line = |id: &str, from: f64, to: f64, bytes: u64, end: &str| {
        #[allow(clippy::cast_precision_loss)] // far below 2^53 bytes
        let gib = bytes as f64 / f64::from(1 << 30);
        writeln!(
            out,
            "[{id:>3}] {from:6.2}-{to:<6.2} sec  {gib:4.2} GBytes  {:4.2} Gbits/sec  {end}",
            rate(bytes, to - from) / 1e9
        )
    };
    let mut from = 0.0;
    for second in &run.seconds {
        for (i, (bytes, again)) in second.iter().enumerate() {
            line(
                &(5 + 2 * i).to_string(),
                from,
                from + 1.0,
                *bytes,
                &again.to_string(),
            )?;
        }
        if setup.streams > 1 {
            let (bytes, again) = sum(second);
            line("SUM", from, from + 1.0, bytes, &again.to_string())?;
        }
        from += 1.0;
    }
    let id = |i: Option<usize>| i.map_or("SUM".to_owned(), |i| (5 + 2 * i).to_string());
    let sums = (0..run.streams())
        .map(Some)
        .chain((setup.streams > 1).then_some(None));
    for stream in sums {
        let (bytes, again) = run.total(stream);
        line(
            &id(stream),
            0.0,
            run.duration(),
            bytes,
            &format!("{again}             sender"),
        )?;
        line(
            &id(stream),
            0.0,
            run.duration() + run.tail_s,
            bytes,
            "                  receiver",
        )?;
    }
    if ends.target.is_some() {
        writeln!(out, "\niperf Done.")?;
    }
    Ok(())
}
