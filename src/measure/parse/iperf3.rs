//! `iperf3 -J` over TCP, client or server side. What counts is what the receiver got
//! (`received_gbps`); a run that carries an `error`, moved nothing, or whose totals contradict
//! themselves is no result.

use serde_json::{Value, json};

use crate::error::{Error, Result};

use super::text::{Input, Line};

/// Reads one JSON document.
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    // Blank lines stand for those that were taken out, so that line numbers stay right.
    let mut text = String::new();
    let mut at = 1;
    for line in &input.lines {
        while at < line.number {
            text.push('\n');
            at += 1;
        }
        text.push_str(line.text);
        text.push('\n');
        at += 1;
    }
    let document: Value = serde_json::from_str(&text).map_err(|e| not_json(input, &e))?;
    let at = Doc {
        input,
        root: &document,
    };
    if let Some(message) = document.get("error") {
        let message = message.as_str().unwrap_or("an error that is not a text");
        return Err(input.fault(at.line_of("error"), "a finished test", message));
    }
    let protocol = at.text("/start/test_start/protocol")?;
    if protocol != "TCP" {
        return Err(at.wrong("/start/test_start/protocol", "TCP", protocol));
    }
    if at.get("/start/test_start/bidir").and_then(Value::as_u64) == Some(1) {
        return Err(at
            .wrong("/start/test_start/bidir", "a test in one direction", "1")
            .hint("run `iperf3` once without and once with `-R`"));
    }
    let streams = at.number("/start/test_start/num_streams")?;
    let ended = at.array("/end/streams")?.len();
    #[allow(clippy::cast_precision_loss)] // a handful of streams
    if (ended as f64 - streams).abs() > 0.0 || ended == 0 {
        return Err(at.wrong(
            "/end/streams",
            &format!("{streams} streams"),
            &ended.to_string(),
        ));
    }
    // The client tells the totals of both ends; a server does not know what was sent.
    let client = at.get("/start/connecting_to").is_some();
    let received = at.total("/end/sum_received")?;
    let sent = if client {
        Some(at.total("/end/sum_sent")?)
    } else {
        None
    };
    let intervals = at.array("/intervals")?;
    if intervals.is_empty() {
        return Err(at.wrong("/intervals", "at least one interval", "none"));
    }
    let mut interval_gbps = Vec::with_capacity(intervals.len());
    for i in 0..intervals.len() {
        interval_gbps.push(at.number(&format!("/intervals/{i}/sum/bits_per_second"))? / 1e9);
    }
    let mut answer = json!({
        "schema": input.schema(),
        "tool": input.tool,
        "tool_version": at.text("/start/version")?,
        "role": if client { "client" } else { "server" },
        "protocol": protocol,
        "streams": ended,
        "reverse": at.get("/start/test_start/reverse").and_then(Value::as_u64) == Some(1),
        "bandwidth_gbps": received.gbps,
        "received_gbps": received.gbps,
        "received_bytes": received.bytes,
        "duration_s": received.seconds,
        "interval_gbps": interval_gbps,
    });
    if let Some(sent) = sent {
        answer["sent_gbps"] = json!(sent.gbps);
        answer["sent_bytes"] = json!(sent.bytes);
    }
    for (name, pointer) in [
        // Only the sending end on Linux knows its retransmissions.
        ("retransmits", "/end/sum_sent/retransmits"),
        (
            "cpu_host_percent",
            "/end/cpu_utilization_percent/host_total",
        ),
        (
            "cpu_remote_percent",
            "/end/cpu_utilization_percent/remote_total",
        ),
    ] {
        if at.get(pointer).is_some() {
            answer[name] = match at.get(pointer).and_then(Value::as_u64) {
                Some(whole) => json!(whole),
                None => json!(at.number(pointer)?),
            };
        }
    }
    if let Some(algorithm) = at.get("/end/sender_tcp_congestion") {
        answer["tcp_congestion"] = algorithm.clone();
    }
    Ok(answer)
}

fn not_json(input: &Input<'_>, error: &serde_json::Error) -> Error {
    let line = error.line().max(1);
    let found = input
        .lines
        .iter()
        .find(|l| l.number == line)
        .map_or("the end of the text", |l| l.text);
    input
        .fault(line, "one JSON document of `iperf3 -J`", found)
        .cause(error)
        .hint("run `iperf3` with `-J`, keep its standard error apart, and give one run at a time")
}

struct Total {
    gbps: f64,
    bytes: u64,
    seconds: f64,
}

/// Access by JSON pointer with errors that name pointer and line.
struct Doc<'a> {
    input: &'a Input<'a>,
    root: &'a Value,
}

impl<'a> Doc<'a> {
    fn get(&self, pointer: &str) -> Option<&'a Value> {
        self.root.pointer(pointer)
    }

    /// The line of the last key of a pointer: the first that names it after the lines that name
    /// the keys before it.
    fn line_of(&self, pointer: &str) -> usize {
        let mut lines = self.input.lines.iter();
        let mut found = 1;
        for key in pointer.split('/').filter(|k| !k.is_empty()) {
            let quoted = format!("\"{key}\"");
            match lines
                .by_ref()
                .find(|l: &&Line<'_>| l.text.contains(&quoted))
            {
                Some(line) => found = line.number,
                None => break,
            }
        }
        found
    }

    fn wrong(&self, pointer: &str, expected: &str, found: &str) -> Error {
        self.input.fault(
            self.line_of(pointer),
            &format!("`{pointer}` to be {expected}"),
            found,
        )
    }

    fn need(&self, pointer: &str, what: &str) -> Result<&'a Value> {
        self.get(pointer).ok_or_else(|| {
            self.wrong(pointer, what, "nothing")
                .hint("the document is incomplete: the test did not finish")
        })
    }

    fn text(&self, pointer: &str) -> Result<&'a str> {
        let value = self.need(pointer, "a text")?;
        value
            .as_str()
            .ok_or_else(|| self.wrong(pointer, "a text", &value.to_string()))
    }

    fn array(&self, pointer: &str) -> Result<&'a Vec<Value>> {
        let value = self.need(pointer, "a list")?;
        value
            .as_array()
            .ok_or_else(|| self.wrong(pointer, "a list", &value.to_string()))
    }

    fn number(&self, pointer: &str) -> Result<f64> {
        let value = self.need(pointer, "a number")?;
        match value.as_f64() {
            Some(number) if number.is_finite() && number >= 0.0 => Ok(number),
            _ => Err(self.wrong(pointer, "a number that is not negative", &value.to_string())),
        }
    }

    fn total(&self, pointer: &str) -> Result<Total> {
        let bits_per_second = self.number(&format!("{pointer}/bits_per_second"))?;
        let seconds = self.number(&format!("{pointer}/seconds"))?;
        let bytes_at = format!("{pointer}/bytes");
        let value = self.need(&bytes_at, "a number")?;
        let bytes = match value.as_u64() {
            Some(bytes) if bytes > 0 => bytes,
            _ => {
                return Err(self
                    .wrong(&bytes_at, "a number above zero", &value.to_string())
                    .hint("no data crossed the network"));
            }
        };
        #[allow(clippy::cast_precision_loss)] // far below 2^53 bytes
        let computed = bytes as f64 * 8.0 / seconds;
        // The tool measures the two ends' times apart; they differ by a round trip or two.
        if !computed.is_finite() || (computed - bits_per_second).abs() > 0.02 * bits_per_second {
            return Err(self
                .wrong(
                    &format!("{pointer}/bits_per_second"),
                    &format!("near {computed:.0}"),
                    &bits_per_second.to_string(),
                )
                .hint("bytes, seconds and rate contradict each other: the text was damaged"));
        }
        Ok(Total {
            gbps: bits_per_second / 1e9,
            bytes,
            seconds,
        })
    }
}
