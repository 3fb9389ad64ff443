//! The tables of libfabric's tools: `fi_pingpong` (util) and fabtests' `fi_rdm_bw`, `fi_rma_bw`,
//! `fi_rdm_pingpong`, `fi_rma_pingpong`. "MB/sec" is 10^6 bytes/s (bytes per microsecond);
//! sizes print with binary suffixes, rounded down (`1.4k` is 1433.6..1536 bytes). In a pingpong
//! one iteration is two transfers, so "usec/xfer" is the one-way latency.

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::text::{Input, Line, Span};

const BANDWIDTH: &[&str] = &[
    "bytes",
    "iters",
    "total",
    "time",
    "MB/sec",
    "usec/xfer",
    "Mxfers/sec",
];
const PINGPONG: &[&str] = &[
    "bytes",
    "#sent",
    "#ack",
    "total",
    "time",
    "MB/sec",
    "usec/xfer",
    "Mxfers/sec",
];

struct Row {
    /// Exact when the suffix lost nothing or the context says it.
    size_bytes: Option<u64>,
    size_text: String,
    iterations_floor: u64,
    time_s: f64,
    mb_per_s: f64,
    usec_per_transfer: f64,
}

/// Reads a bandwidth table.
pub(super) fn read_bandwidth(input: &Input<'_>) -> Result<Value> {
    let rows = rows(input, &[BANDWIDTH])?;
    let Some(bandwidth_gbps) = max_gbps(&rows) else {
        return Err(input.missing("a row with a bandwidth above zero"));
    };
    Ok(json!({
        "schema": input.schema(),
        "tool": input.tool,
        "bandwidth_gbps": bandwidth_gbps,
        "rows": rows.iter().map(|r| row(r, "usec_per_transfer")).collect::<Vec<_>>(),
    }))
}

/// Reads a pingpong table. fabtests prints the columns of the bandwidth table there, util's
/// `fi_pingpong` has `#sent` and `#ack`.
pub(super) fn read_pingpong(input: &Input<'_>) -> Result<Value> {
    let rows = rows(input, &[PINGPONG, BANDWIDTH])?;
    let by_size: Map<String, Value> = rows
        .iter()
        .map(|r| {
            let key = r
                .size_bytes
                .map_or_else(|| r.size_text.clone(), |s| s.to_string());
            (key, json!(r.usec_per_transfer))
        })
        .collect();
    // A message of no bytes measures the first contact, not the wire.
    let smallest = rows
        .iter()
        .find(|r| r.size_bytes != Some(0))
        .or(rows.first());
    let mut answer = json!({
        "schema": input.schema(),
        "tool": input.tool,
        "latency_us": smallest.map(|r| r.usec_per_transfer),
        "latency_us_by_size_bytes": by_size,
    });
    // Tiny messages alone print "0.00": that is no bandwidth, so there is no such field.
    if let Some(gbps) = max_gbps(&rows) {
        answer["bandwidth_gbps"] = json!(gbps);
    }
    answer["rows"] = rows.iter().map(|r| row(r, "latency_us")).collect();
    Ok(answer)
}

fn max_gbps(rows: &[Row]) -> Option<f64> {
    let most = rows.iter().map(|r| gbps(r.mb_per_s)).fold(0.0, f64::max);
    (most > 0.0).then_some(most)
}

/// MB/s of 10^6 bytes to Gbit/s of 10^9 bits.
fn gbps(mb_per_s: f64) -> f64 {
    mb_per_s / 125.0
}

fn row(row: &Row, time_name: &str) -> Value {
    let mut map = Map::new();
    if let Some(size) = row.size_bytes {
        map.insert("size_bytes".into(), json!(size));
    }
    map.insert("size_text".into(), json!(row.size_text));
    map.insert("iterations_floor".into(), json!(row.iterations_floor));
    map.insert("time_s".into(), json!(row.time_s));
    map.insert("bandwidth_mb_per_s".into(), json!(row.mb_per_s));
    map.insert("bandwidth_gbps".into(), json!(gbps(row.mb_per_s)));
    map.insert(time_name.into(), json!(row.usec_per_transfer));
    Value::Object(map)
}

fn rows(input: &Input<'_>, headers: &[&[&str]]) -> Result<Vec<Row>> {
    let header_text = headers
        .iter()
        .map(|h| format!("`{}`", h.join(" ")))
        .collect::<Vec<_>>()
        .join(" or ");
    let mut header: Option<&[&str]> = None;
    let mut rows: Vec<Row> = Vec::new();
    for line in input.lines.iter().copied() {
        let words = line.words();
        if words.is_empty() || is_chatter(line) {
            continue;
        }
        match header {
            None => match headers.iter().find(|h| **h == words.as_slice()) {
                Some(found) => header = Some(found),
                None => {
                    return Err(input.fault(
                        line.number,
                        &format!("the table header {header_text}"),
                        line.text,
                    ));
                }
            },
            Some(header) => {
                let read = read_row(input, line, &words, header)?;
                if rows.iter().any(|r| r.size_text == read.size_text) {
                    return Err(input
                        .fault(line.number, "each size once", line.text)
                        .hint("give the output of one run at a time"));
                }
                rows.push(read);
            }
        }
    }
    if header.is_none() {
        return Err(input.missing(&format!("the table header {header_text}")));
    }
    if rows.is_empty() {
        return Err(input.missing("a row of the table"));
    }
    if let (Some(size), [only]) = (input.context.size_bytes, rows.as_mut_slice()) {
        only.size_bytes = Some(size);
    }
    Ok(rows)
}

/// What libfabric and wrapper scripts say beside the table.
fn is_chatter(line: Line<'_>) -> bool {
    line.text.starts_with("libfabric:") || line.text.starts_with("Starting ")
}

fn read_row(input: &Input<'_>, line: Line<'_>, words: &[&str], header: &[&str]) -> Result<Row> {
    if words.len() != header.len() {
        return Err(input.fault(
            line.number,
            &format!("a row of {} columns", header.len()),
            line.text,
        ));
    }
    let (size_text, iterations_text) = (words[0], words[1]);
    if header.len() == PINGPONG.len() && words[2] != format!("={iterations_text}") {
        return Err(input
            .fault(
                line.number,
                &format!("`={iterations_text}`: every message acknowledged"),
                words[2],
            )
            .hint(
                "messages were lost, so the times mean nothing: use a reliable endpoint (`-e rdm`)",
            ));
    }
    let tail = &words[words.len() - 5..];
    let (size, exact) = match size(size_text) {
        Some(found) => found,
        None => {
            return Err(input.fault(
                line.number,
                "a message size such as `64`, `1.5k` or `1m`",
                size_text,
            ));
        }
    };
    let size = match input.context.size_bytes {
        #[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
        Some(asked) if !size.meets(Span::exact(asked as f64)) => {
            return Err(input
                .fault(line.number, &format!("the size {asked}"), size_text)
                .hint("the size that was asked for and the one measured differ"));
        }
        #[allow(clippy::cast_precision_loss)] // as above
        Some(asked) => Span::exact(asked as f64),
        None => size,
    };
    let Some(iterations) = count(iterations_text).filter(|n| *n > 0) else {
        return Err(input.fault(
            line.number,
            "a number of iterations such as `100` or `1k`",
            iterations_text,
        ));
    };
    if self::size(tail[0]).is_none() {
        return Err(input.fault(line.number, "the total size", tail[0]));
    }
    let Some(time) = tail[1].strip_suffix('s') else {
        return Err(input.fault(line.number, "a time in seconds such as `0.11s`", tail[1]));
    };
    for (word, what) in [
        (time, "the time"),
        (tail[2], "MB/sec"),
        (tail[3], "usec/xfer"),
        (tail[4], "Mxfers/sec"),
    ] {
        if word.split_once('.').is_none_or(|(_, d)| d.len() != 2) {
            return Err(input.fault(line.number, &format!("{what} with two decimals"), word));
        }
    }
    let time = input.span(line, "the time", time)?;
    let mb_per_s = input.span(line, "MB/sec", tail[2])?;
    let usec = input.span(line, "usec/xfer", tail[3])?;
    input.span(line, "Mxfers/sec", tail[4])?;
    if usec.value <= 0.0 {
        return Err(input.fault(line.number, "a time per transfer above zero", tail[3]));
    }
    // bytes/usec * usec/transfer = bytes/transfer
    let measured = mb_per_s.times(usec);
    input.agree(line, "MB/sec x usec/xfer", size, measured)?;
    let exact = exact && measured.meets(Span::exact(size.value));
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation)] // exact and not negative
    let size_bytes = exact.then_some(size.value as u64);
    Ok(Row {
        size_bytes,
        size_text: size_text.into(),
        iterations_floor: iterations,
        time_s: time.value,
        mb_per_s: mb_per_s.value,
        usec_per_transfer: usec.value,
    })
}

/// A size as libfabric prints it, and whether it may be exact: below 1024 as it is, from there
/// with a binary suffix, with one decimal below ten units, rounded down. The sizes that the
/// tools sweep (2^n and 1.5 * 2^n) lose nothing.
pub(super) fn size(text: &str) -> Option<(Span, bool)> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1024.0),
        b'm' => (&text[..text.len() - 1], 1024.0 * 1024.0),
        b'g' => (&text[..text.len() - 1], 1024.0 * 1024.0 * 1024.0),
        _ => (text, 1.0),
    };
    let (whole, tenths) = match digits.split_once('.') {
        Some((whole, tenth)) if tenth.len() == 1 && unit > 1.0 => (whole, tenth),
        Some(_) => return None,
        None => (digits, ""),
    };
    let all_digits =
        |t: &str| !t.is_empty() && t.len() <= 6 && t.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !(tenths.is_empty() || all_digits(tenths)) {
        return None;
    }
    let value: f64 = digits.parse().ok()?;
    if unit == 1.0 {
        return Some((Span::exact(value), true));
    }
    let step = if value < 10.0 { 0.1 * unit } else { unit };
    Some((Span::floored(value * unit, step), is_sweep(value * 2.0)))
}

/// Whether a whole number is 2^n or 3 * 2^n.
fn is_sweep(units: f64) -> bool {
    if units < 1.0 || units.fract() != 0.0 {
        return false;
    }
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation)] // at most six digits
    let units = units as u64;
    units.is_power_of_two() || (units.is_multiple_of(3) && (units / 3).is_power_of_two())
}

/// An iteration count as libfabric prints it (`1k` is 1000 or more).
fn count(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1_000),
        b'm' => (&text[..text.len() - 1], 1_000_000),
        b'b' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
