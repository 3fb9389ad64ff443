//! The table of `nixlbench` (NVIDIA NIXL). Read by its header, since the columns differ between
//! releases and between runs of two and of more workers. "B/W (GB/Sec)" is 10^9 bytes/s per
//! worker; "Avg Lat." is the time of one block, so latency x bandwidth is the block size. The
//! target side prints no table: a result is the initiator's.

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::text::{Input, Line, Span};

/// Header, name of the field, kind of number.
const COLUMNS: &[(&str, &str, Column)] = &[
    ("Block Size (B)", "block_size_bytes", Column::Whole),
    ("Batch Size", "batch_size", Column::Whole),
    ("B/W (GB/Sec)", "bandwidth_gbytes_per_s", Column::Real),
    ("B/W (MiB/Sec)", "bandwidth_mib_per_s", Column::Real),
    ("B/W (GiB/Sec)", "bandwidth_gib_per_s", Column::Real),
    (
        "Aggregate B/W (GB/Sec)",
        "aggregate_bandwidth_gbytes_per_s",
        Column::Real,
    ),
    (
        "Network Util (%)",
        "network_utilisation_percent",
        Column::Real,
    ),
    ("Avg Lat. (us)", "latency_us", Column::Real),
    ("P50 Lat. (us)", "latency_p50_us", Column::Real),
    ("P95 Lat. (us)", "latency_p95_us", Column::Real),
    ("P99 Lat. (us)", "latency_p99_us", Column::Real),
    ("Avg Prep (us)", "prepare_avg_us", Column::Real),
    ("P99 Prep (us)", "prepare_p99_us", Column::Real),
    ("Avg Post (us)", "post_avg_us", Column::Real),
    ("P99 Post (us)", "post_p99_us", Column::Real),
    ("Avg Tx (us)", "transfer_avg_us", Column::Real),
    ("P99 Tx (us)", "transfer_p99_us", Column::Real),
];

#[derive(Clone, Copy, PartialEq)]
enum Column {
    Whole,
    Real,
}

/// A read table: its rows and the configuration printed above it.
pub(super) struct Table {
    pub rows: Vec<Map<String, Value>>,
    pub config: Map<String, Value>,
}

/// Reads the initiator's output.
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    let table = table(input, &input.lines)?;
    let mut answer = Map::new();
    answer.insert("schema".into(), json!(input.schema()));
    answer.insert("tool".into(), json!(input.tool));
    summarise(&table, &mut answer);
    answer.insert("config".into(), Value::Object(table.config));
    answer.insert("rows".into(), json!(table.rows));
    Ok(Value::Object(answer))
}

/// The headline numbers: those of the largest transfer (the last of the sweep), and the most
/// bandwidth of all rows.
pub(super) fn summarise(table: &Table, answer: &mut Map<String, Value>) {
    let most = table
        .rows
        .iter()
        .filter_map(|r| r["bandwidth_gbps"].as_f64())
        .fold(0.0, f64::max);
    answer.insert("bandwidth_gbps".into(), json!(most));
    let Some(largest) = table
        .rows
        .iter()
        .max_by_key(|r| r["transfer_bytes"].as_u64())
    else {
        return;
    };
    for name in [
        "transfer_bytes",
        "transfer_time_ms",
        "latency_us",
        "latency_p50_us",
        "latency_p95_us",
        "latency_p99_us",
        "transfer_p99_us",
    ] {
        if let Some(value) = largest.get(name) {
            answer.insert(name.into(), value.clone());
        }
    }
}

/// Finds and reads the one table in these lines.
pub(super) fn table(input: &Input<'_>, lines: &[Line<'_>]) -> Result<Table> {
    let mut columns: Option<Vec<(&str, Column)>> = None;
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let mut config = Map::new();
    let mut last_words = "";
    for line in lines.iter().copied().filter(|l| !l.is_blank()) {
        let text = line.text.trim();
        if text.starts_with("Block Size (B)") {
            if columns.replace(header(input, line)?).is_some() {
                return Err(input
                    .fault(line.number, "one table", line.text)
                    .hint("give the output of one run at a time"));
            }
        } else if text.bytes().all(|b| b == b'-' || b == b'*' || b == b'=') {
            // A ruler.
        } else if let (Some(columns), true) =
            (&columns, text.starts_with(|c: char| c.is_ascii_digit()))
        {
            rows.push(row(input, line, columns)?);
        } else if let Some((name, value)) = option(text) {
            config.insert(name.into(), json!(value));
        } else if is_failure(text) {
            return Err(input.fault(line.number, "a run without errors", text));
        } else {
            last_words = text;
        }
    }
    if columns.is_none() {
        let error = input.missing("the table header `Block Size (B) ...`");
        return Err(match last_words {
            "" => error,
            words => error.hint(format!("the last line that was printed is `{words}`")),
        });
    }
    if rows.is_empty() {
        return Err(input
            .missing("a row of the table")
            .hint("the target side prints no rows: read the initiator's output"));
    }
    Ok(Table { rows, config })
}

/// `Backend (--backend=[UCX,...])    : UCX` gives `backend` and its value.
fn option(text: &str) -> Option<(&str, &str)> {
    let (left, value) = text.split_once(": ")?;
    let flag = left.split_once("(--")?.1;
    let name = flag.split(['=', ')']).next()?;
    (!name.is_empty()).then_some((name, value.trim()))
}

fn is_failure(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    [
        "error",
        "failed",
        "timeout waiting",
        "incorrect",
        "unsupported",
        "invalid",
    ]
    .iter()
    .any(|word| lower.contains(word))
}

fn header<'c>(input: &Input<'_>, line: Line<'_>) -> Result<Vec<(&'c str, Column)>> {
    let mut columns = Vec::new();
    for title in line
        .text
        .split("  ")
        .map(str::trim)
        .filter(|t| !t.is_empty())
    {
        // A title that fills its column is followed by one space only.
        let mut rest = title;
        while !rest.is_empty() {
            let Some((found, name, kind)) = COLUMNS.iter().find(|(t, _, _)| rest.starts_with(t))
            else {
                return Err(input
                    .fault(line.number, "a known column", rest)
                    .hint("this release of nixlbench prints other columns than the reader knows"));
            };
            columns.push((*name, *kind));
            rest = rest[found.len()..].trim_start();
        }
    }
    for needed in ["batch_size", "bandwidth_gbytes_per_s", "latency_us"] {
        if !columns.iter().any(|(name, _)| *name == needed) {
            return Err(input.fault(line.number, &format!("a column for {needed}"), line.text));
        }
    }
    Ok(columns)
}

fn row(
    input: &Input<'_>,
    line: Line<'_>,
    columns: &[(&str, Column)],
) -> Result<Map<String, Value>> {
    let words = line.words();
    if words.len() != columns.len() {
        return Err(input.fault(
            line.number,
            &format!("{} columns", columns.len()),
            line.text,
        ));
    }
    let mut row = Map::new();
    let (mut bandwidth, mut latency) = (Span::exact(0.0), Span::exact(0.0));
    for ((name, kind), word) in columns.iter().zip(&words) {
        match kind {
            Column::Whole => {
                let value = input.whole(line, name, word)?;
                row.insert((*name).into(), json!(value));
            }
            Column::Real => {
                if word.split_once('.').is_none_or(|(_, d)| d.is_empty()) {
                    return Err(input.fault(line.number, &format!("{name} with decimals"), word));
                }
                let span = input.span(line, name, word)?;
                match *name {
                    "bandwidth_gbytes_per_s" => bandwidth = span,
                    "latency_us" => latency = span,
                    _ => {}
                }
                row.insert((*name).into(), json!(span.value));
            }
        }
    }
    let block = row["block_size_bytes"].as_u64().unwrap_or_default();
    let batch = row["batch_size"].as_u64().unwrap_or_default();
    if block == 0 || batch == 0 || bandwidth.value <= 0.0 || latency.value <= 0.0 {
        return Err(input.fault(line.number, "a transfer that moved data", line.text));
    }
    #[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
    let size = Span::exact(block as f64);
    // GB/s x microseconds x 1000 = bytes
    input.agree(
        line,
        "latency x bandwidth",
        size,
        bandwidth.times(latency).scaled(1e3),
    )?;
    let transfer_bytes = block.saturating_mul(batch);
    #[allow(clippy::cast_precision_loss)] // as above
    let transfer_time_ms = transfer_bytes as f64 / (bandwidth.value * 1e6);
    row.insert("bandwidth_gbps".into(), json!(bandwidth.value * 8.0));
    row.insert("transfer_bytes".into(), json!(transfer_bytes));
    row.insert("transfer_time_ms".into(), json!(transfer_time_ms));
    Ok(row)
}
