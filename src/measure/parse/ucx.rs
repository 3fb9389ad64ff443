//! The table of `ucx_perftest`. "MB/s" there is 2^20 bytes/s. A bandwidth test (`tag_bw`) heads
//! its first columns `overhead (usec)`, a latency test (`tag_lat`) `latency (usec)`; latencies
//! are one way. The client does not print the message size, so it comes from the context (or
//! from a server's output in the same text) and is held against time x bandwidth.

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::text::{Input, Line, Span};

const MIB: f64 = 1024.0 * 1024.0;

/// Reads the client's table.
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    let mut kind: Option<&str> = None;
    let mut facts = Map::new();
    let mut answer: Option<(Line<'_>, Map<String, Value>)> = None;
    let mut size_bytes = input.context.size_bytes;
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        let text = line.text.trim();
        if text.contains("UCX  ERROR") || text.contains("UCX  FATAL") {
            return Err(input.fault(line.number, "a test without errors", text));
        }
        if text.starts_with('|') {
            read_header(text, &mut kind, &mut facts);
            if let (None, Some(Ok(size))) = (
                size_bytes,
                field(text, "Message size:").map(str::parse::<u64>),
            ) {
                size_bytes = Some(size);
            }
        } else if let Some(rest) = text.strip_prefix("Final:") {
            if answer.is_some() {
                return Err(input
                    .fault(line.number, "one `Final:` row", line.text)
                    .hint("give the output of one run at a time"));
            }
            let Some(kind) = kind else {
                return Err(input.fault(line.number, "the table's header first", line.text));
            };
            answer = Some((line, final_row(input, line, rest, kind, size_bytes)?));
        } else if !is_chatter(text) {
            return Err(input.fault(line.number, "the table of ucx_perftest", line.text));
        }
    }
    let Some((_, row)) = answer else {
        return Err(input
            .missing("the `Final:` row")
            .hint("the numbers are in the client's output, not in the server's"));
    };
    let mut out = Map::new();
    out.insert("schema".into(), json!(input.schema()));
    out.insert("tool".into(), json!(input.tool));
    if let Some(size) = size_bytes {
        out.insert("size_bytes".into(), json!(size));
    }
    out.extend(facts);
    out.extend(row);
    Ok(Value::Object(out))
}

fn read_header(text: &str, kind: &mut Option<&str>, facts: &mut Map<String, Value>) {
    // "typical" was the name of the percentile before UCX 1.11.
    if text.contains("overhead (usec)") {
        *kind = Some("bandwidth");
    } else if text.contains("latency (usec)") {
        *kind = Some("latency");
    }
    for (label, name) in [
        ("Test:", "test"),
        ("Send memory:", "send_memory"),
        ("Recv memory:", "recv_memory"),
    ] {
        if let Some(value) = field(text, label) {
            facts.insert(name.into(), json!(value));
        }
    }
}

fn field<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let inner = text.strip_prefix('|')?.strip_suffix('|')?.trim();
    Some(inner.strip_prefix(label)?.trim())
}

/// Frames, progress rows, warnings and what a server says.
fn is_chatter(text: &str) -> bool {
    text.starts_with('+')
        || text.starts_with("[thread ")
        || text.contains("UCX  ")
        || text.starts_with("Waiting for connection")
        || text.starts_with("Accepted connection from")
}

fn final_row(
    input: &Input<'_>,
    line: Line<'_>,
    rest: &str,
    kind: &str,
    size_bytes: Option<u64>,
) -> Result<Map<String, Value>> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    if words.len() != 8 {
        return Err(input.fault(line.number, "8 numbers after `Final:`", line.text));
    }
    let iterations = input.whole(line, "the iterations", words[0])?;
    let p50 = input.span(line, "the percentile", words[1])?;
    let average = input.span(line, "the average time", words[2])?;
    let overall = input.span(line, "the overall time", words[3])?;
    let mib_average = input.span(line, "the average bandwidth", words[4])?;
    let mib = input.span(line, "the overall bandwidth", words[5])?;
    input.whole(line, "the average message rate", words[6])?;
    let rate = input.span(line, "the overall message rate", words[7])?;
    input.whole(line, "the overall message rate", words[7])?;
    if iterations == 0 || mib.value <= 0.0 || overall.value <= 0.0 {
        return Err(input.fault(line.number, "a test that moved data", line.text));
    }
    // Messages per second and microseconds per message are the same number twice; the rate is
    // rounded to whole messages.
    input.agree(
        line,
        "time x message rate",
        Span::exact(1e6).widened(1e-4),
        overall.times(rate),
    )?;
    if let Some(size) = size_bytes {
        #[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
        let size = Span::exact(size as f64).widened(1e-4);
        input
            .agree(
                line,
                "time x bandwidth",
                size,
                overall.times(mib).scaled(MIB / 1e6),
            )
            .map_err(|e| e.hint("the size that was asked for and the one measured differ"))?;
    }
    let time = |name: &str| match kind {
        "latency" => format!("latency_{name}_us"),
        _ => format!("overhead_{name}_us"),
    };
    let mut row = Map::new();
    row.insert("kind".into(), json!(kind));
    row.insert("iterations".into(), json!(iterations));
    row.insert(time("p50"), json!(p50.value));
    row.insert(time("average"), json!(average.value));
    row.insert(time("overall"), json!(overall.value));
    if kind == "latency" {
        row.insert("latency_us".into(), json!(overall.value));
    }
    row.insert("bandwidth_gbps".into(), json!(mib.value * MIB * 8.0 / 1e9));
    row.insert("bandwidth_mib_per_s".into(), json!(mib.value));
    row.insert(
        "bandwidth_average_mib_per_s".into(),
        json!(mib_average.value),
    );
    row.insert("messages_per_s".into(), json!(rate.value));
    Ok(row)
}
