//! What the proxy saw of each request. A request that entered leaves exactly one record, however
//! it ended; records are kept in a bounded ring, what was pushed out is counted, and stamps are
//! milliseconds of the proxy's own monotonic clock.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::error::{Error, Result};

/// One request. A stamp is null when the request did not come that far.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Record {
    /// Order of completion, from 1.
    pub(super) seq: u64,
    /// The client's `X-Request-Id`, else one made here.
    pub(super) id: String,
    /// The client's `X-Doe-Session`.
    pub(super) client: Option<String>,
    /// Path that was asked.
    pub(super) endpoint: String,
    /// The whole request was read.
    pub(super) received_ms: f64,
    /// Before the prefill request was sent, connecting included.
    pub(super) prefill_sent_ms: Option<f64>,
    /// The prefill server's whole answer was read.
    pub(super) prefill_done_ms: Option<f64>,
    /// Before the decode request was sent, connecting included.
    pub(super) decode_sent_ms: Option<f64>,
    /// The first bytes of the decode server's body were read.
    pub(super) decode_first_byte_ms: Option<f64>,
    /// These bytes were handed to the client's connection.
    pub(super) first_byte_relayed_ms: Option<f64>,
    /// The decode server's body was over.
    pub(super) decode_done_ms: Option<f64>,
    /// The request was over for the proxy.
    pub(super) done_ms: f64,
    /// `ok`, or the name of what went wrong.
    pub(super) status: String,
    /// Status that the client got.
    pub(super) http_status: Option<u16>,
    /// Whether decode had to prefill again, as the prefill server sent no transfer parameters.
    pub(super) recomputed: bool,
}

/// Which records are wanted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Filter {
    /// Records of this session only.
    pub(super) client: Option<String>,
    /// Records with a greater `seq` only.
    pub(super) since: u64,
    /// Records received at or after this time.
    pub(super) after_ms: Option<f64>,
    /// Records received before this time.
    pub(super) before_ms: Option<f64>,
}

impl Filter {
    /// Parses a URL query; an unknown key is an error, as a filter that is not understood would
    /// hand out other people's records.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || {
                let parsed = value.parse::<f64>().ok().filter(|n| n.is_finite());
                parsed.ok_or_else(|| format!("`{key}` is `{value}`, expected a number"))
            };
            match key {
                "client" => filter.client = Some(value.to_owned()),
                "since" => filter.since = number()?.max(0.0) as u64,
                "after_ms" => filter.after_ms = Some(number()?),
                "before_ms" => filter.before_ms = Some(number()?),
                _ => {
                    return Err(format!(
                        "`{key}` is no filter, expected client, since, after_ms or before_ms"
                    ));
                }
            }
        }
        Ok(filter)
    }

    fn takes(&self, record: &Record) -> bool {
        record.seq > self.since
            && (self.client.is_none() || self.client == record.client)
            && self.after_ms.is_none_or(|t| record.received_ms >= t)
            && self.before_ms.is_none_or(|t| record.received_ms < t)
    }
}

/// The answer of `/stats`, schema `proxy-v1`.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    schema: &'static str,
    instrument: Instrument,
    now_ms: f64,
    dropped: u64,
    log_errors: u64,
    requests: Vec<Record>,
}

#[derive(Debug, Serialize)]
struct Instrument {
    name: &'static str,
    version: u32,
}

/// All records of a proxy, its clock, and its log.
pub(super) struct Records {
    start: Instant,
    capacity: usize,
    ring: Mutex<Ring>,
    log: Option<Log>,
}

#[derive(Default)]
struct Ring {
    seq: u64,
    dropped: u64,
    records: VecDeque<Record>,
}

impl Records {
    /// Empty records; with a path each completed record is also appended to that file as one
    /// line of JSON.
    pub(super) fn new(capacity: usize, log: Option<&Path>) -> Result<Self> {
        Ok(Self {
            start: Instant::now(),
            capacity: capacity.max(1),
            ring: Mutex::default(),
            log: log.map(Log::open).transpose()?,
        })
    }

    /// Milliseconds since the proxy started.
    pub(super) fn now(&self) -> f64 {
        (self.start.elapsed().as_nanos() / 100) as f64 / 1e4
    }

    /// Takes a completed record in.
    pub(super) fn push(&self, mut record: Record) {
        let mut ring = self.ring();
        ring.seq += 1;
        record.seq = ring.seq;
        if let Some(log) = &self.log {
            log.write(&record);
        }
        if ring.records.len() >= self.capacity {
            ring.records.pop_front();
            ring.dropped += 1;
        }
        ring.records.push_back(record);
    }

    /// The records that a filter takes, oldest first.
    pub(super) fn stats(&self, filter: &Filter) -> Stats {
        let ring = self.ring();
        let wanted = ring.records.iter().filter(|r| filter.takes(r));
        Stats {
            schema: "proxy-v1",
            instrument: Instrument {
                name: "doe-proxy",
                version: super::VERSION,
            },
            now_ms: self.now(),
            dropped: ring.dropped,
            log_errors: self.log.as_ref().map_or(0, Log::errors),
            requests: wanted.cloned().collect(),
        }
    }

    /// Forgets all records and says how many there were. `seq` goes on.
    pub(super) fn reset(&self) -> usize {
        let mut ring = self.ring();
        ring.dropped = 0;
        std::mem::take(&mut ring.records).len()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing that holds this lock can leave the ring half changed.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is appended to by a thread of its own: a slow disk must not delay a request.
struct Log {
    lines: Option<std::sync::mpsc::Sender<Vec<u8>>>,
    writer: Option<std::thread::JoinHandle<()>>,
    errors: Arc<AtomicU64>,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.create(true).append(true).open(path);
        let mut file = file.map_err(|e| Error::io("open the log", path, &e))?;
        let (lines, queue) = std::sync::mpsc::channel::<Vec<u8>>();
        let errors = Arc::new(AtomicU64::new(0));
        let failed = Arc::clone(&errors);
        let writer = std::thread::spawn(move || {
            for line in queue {
                if file.write_all(&line).is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self {
            lines: Some(lines),
            writer: Some(writer),
            errors,
        })
    }

    fn write(&self, record: &Record) {
        let line = serde_json::to_vec(record).map(|mut line| {
            line.push(b'\n');
            line
        });
        let sent = match (line, &self.lines) {
            (Ok(line), Some(lines)) => lines.send(line).is_ok(),
            _ => false,
        };
        if !sent {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines = None; // ends the writer's queue
        if let Some(writer) = self.writer.take() {
            let _ = writer.join(); // it cannot panic, and there is no one left to tell
        }
    }
}

/// A request on its way. Leaves its record when it is finished, or when it is dropped because
/// the client went away.
pub(super) struct Trace {
    records: Arc<Records>,
    record: Option<Record>,
}

impl Trace {
    pub(super) fn begin(records: &Arc<Records>, record: Record) -> Self {
        let received_ms = records.now();
        Self {
            records: Arc::clone(records),
            record: Some(Record {
                received_ms,
                ..record
            }),
        }
    }

    /// Stamps one moment.
    pub(super) fn stamp(&mut self, field: fn(&mut Record) -> &mut Option<f64>) {
        let now = self.records.now();
        if let Some(record) = &mut self.record {
            field(record).get_or_insert(now);
        }
    }

    /// Changes the record.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// The request is over. Only the first call counts.
    pub(super) fn finish(&mut self, status: &str) {
        if let Some(mut record) = self.record.take() {
            record.done_ms = self.records.now();
            record.status = status.to_owned();
            self.records.push(record);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.finish("client_closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: &str, received_ms: f64) -> Record {
        Record {
            client: Some(client.into()),
            received_ms,
            ..Record::default()
        }
    }

    #[test]
    fn the_ring_is_bounded_and_counts_what_it_lost() {
        let records = Records::new(3, None).unwrap();
        for i in 0..5 {
            records.push(record("a", f64::from(i)));
        }
        let stats = records.stats(&Filter::default());
        assert_eq!(stats.dropped, 2);
        assert_eq!(
            stats.requests.iter().map(|r| r.seq).collect::<Vec<_>>(),
            [3, 4, 5]
        );
        assert_eq!(records.reset(), 3);
        records.push(record("a", 9.0));
        assert_eq!(records.stats(&Filter::default()).requests[0].seq, 6);
    }

    #[test]
    fn each_session_gets_its_own_records_only() {
        let records = Records::new(100, None).unwrap();
        for i in 0..6 {
            records.push(record(if i % 2 == 0 { "a" } else { "b" }, f64::from(i)));
        }
        let received = |query: &str| {
            let stats = records.stats(&Filter::parse(query).unwrap());
            stats
                .requests
                .iter()
                .map(|r| r.received_ms)
                .collect::<Vec<_>>()
        };
        assert_eq!(received("client=a"), [0.0, 2.0, 4.0]);
        assert_eq!(received("client=b&since=4"), [5.0]);
        assert_eq!(received("after_ms=1&before_ms=3"), [1.0, 2.0]);
        assert_eq!(received("client=c"), Vec::<f64>::new());
        assert!(Filter::parse("clinet=a").unwrap_err().contains("clinet"));
        assert!(Filter::parse("since=x").unwrap_err().contains("since"));
    }

    #[test]
    fn a_request_leaves_one_record_however_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let records = Arc::new(Records::new(10, Some(&path)).unwrap());
        let mut done = Trace::begin(&records, record("a", 0.0));
        done.stamp(|r| &mut r.prefill_sent_ms);
        done.finish("ok");
        done.finish("again");
        drop(done);
        drop(Trace::begin(&records, record("a", 0.0)));
        let stats = records.stats(&Filter::default());
        let ends: Vec<_> = stats.requests.iter().map(|r| r.status.as_str()).collect();
        assert_eq!(ends, ["ok", "client_closed"]);
        drop(records); // joins the writer
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["status"], "ok");
        assert!(lines[0]["prefill_sent_ms"].is_f64());
    }
}
