//! The table of nccl-tests (`all_reduce_perf` and its siblings). Bandwidths print in GB/s of
//! 10^9 bytes; the bus bandwidth is what compares with a link (times 8: Gbit/s). A run counts
//! only when it reached its summary, found no wrong values, and its average is the mean of its
//! rows, so neither a lost row nor a changed one goes unnoticed.

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::text::{Input, Line, Span};

/// Reads one table with its summary.
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    let mut header: Option<Vec<&str>> = None;
    let mut rows = Vec::new();
    let mut busbw = Vec::new();
    let (mut ranks, mut out_of_bounds, mut average) = (0u64, None, None);
    let mut collective = None;
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        let text = line.text.trim();
        if let Some(comment) = text.strip_prefix('#') {
            let comment = comment.trim();
            let words: Vec<&str> = comment.split_whitespace().collect();
            if words.first() == Some(&"size") && words.contains(&"busbw") {
                if header.replace(words).is_some() {
                    return Err(input
                        .fault(line.number, "one table", line.text)
                        .hint("give the output of one run at a time"));
                }
            } else if comment.starts_with("Rank ") {
                ranks += 1;
            } else if let Some(rest) = comment.strip_prefix("Out of bounds values :") {
                out_of_bounds = Some((line, rest.trim()));
            } else if let Some(rest) = comment.strip_prefix("Avg bus bandwidth    :") {
                average = Some((line, rest.trim()));
            } else if let Some(rest) = comment.strip_prefix("Collective test concluded:") {
                collective = Some(rest.trim());
            }
        } else if text.starts_with(|c: char| c.is_ascii_digit()) {
            let Some(header) = &header else {
                return Err(input.fault(line.number, "the table's header first", line.text));
            };
            rows.push(row(input, line, header, &mut busbw)?);
        } else if text.contains("Test NCCL failure")
            || text.contains("Test CUDA failure")
            || text.starts_with("USAGE:")
            || text.starts_with("invalid option")
        {
            return Err(input.fault(line.number, "a test that ran", text));
        }
        // NCCL, mpirun and ssh say much between the lines; the check of the average makes sure
        // that none of it was a row.
    }
    if rows.is_empty() {
        return Err(input.missing("a row of the table"));
    }
    let Some((line, bounds)) = out_of_bounds else {
        return Err(input.missing("`# Out of bounds values : 0 OK`"));
    };
    if bounds != "0 OK" {
        return Err(input
            .fault(line.number, "`0 OK` out of bounds values", bounds)
            .hint("the collective computed wrong values: its bandwidth means nothing"));
    }
    let Some((line, printed)) = average else {
        return Err(input.missing("`# Avg bus bandwidth    : NUMBER`"));
    };
    // NCCL_TESTS_MIN_BW adds its verdict; the verdict is the campaign's to make.
    let word = printed.split_whitespace().next().unwrap_or_default();
    let average = input.span(line, "the average bus bandwidth", word)?;
    check_average(input, line, average, &busbw)?;
    let mut by_size = Map::new();
    let mut most = 0.0f64;
    for row in &rows {
        let best = row["busbw_gbps"].as_f64().unwrap_or_default();
        most = most.max(best);
        by_size.insert(row["size_bytes"].to_string(), json!(best));
    }
    let mut answer = json!({
        "schema": input.schema(),
        "tool": input.tool,
        "busbw_avg_gbytes_per_s": average.value,
        "busbw_avg_gbps": average.value * 8.0,
        "busbw_max_gbps": most,
        "busbw_gbps_by_size_bytes": by_size,
        "rows": rows,
    });
    if ranks > 0 {
        answer["ranks"] = json!(ranks);
    }
    if let Some(collective) = collective {
        answer["collective"] = json!(collective);
    }
    Ok(answer)
}

fn row(input: &Input<'_>, line: Line<'_>, header: &[&str], all: &mut Vec<Span>) -> Result<Value> {
    let words = line.words();
    if words.len() != header.len() {
        return Err(input.fault(
            line.number,
            &format!("{} columns: {}", header.len(), header.join(" ")),
            line.text,
        ));
    }
    let size_bytes = input.whole(line, "the size", words[0])?;
    let mut row = Map::new();
    row.insert("size_bytes".into(), json!(size_bytes));
    let mut best = 0.0f64;
    let mut halves = Vec::new();
    let mut half: Option<Half> = None;
    for (name, word) in header.iter().zip(&words).skip(1) {
        match *name {
            "count" => {
                row.insert("count".into(), json!(input.whole(line, "the count", word)?));
            }
            "root" => {
                let Ok(root) = word.parse::<i32>() else {
                    return Err(input.fault(line.number, "the root as a whole number", word));
                };
                row.insert("root".into(), json!(root));
            }
            "type" | "redop" => {
                row.insert((*name).into(), json!(word));
            }
            "time" => {
                let time = input.span(line, "the time", word)?;
                if time.value <= 0.0 {
                    return Err(input.fault(line.number, "a time above zero", word));
                }
                half = Some(Half {
                    time,
                    algbw: None,
                    busbw: None,
                });
            }
            "algbw" | "busbw" => {
                let span = input.span(line, name, word)?;
                match (&mut half, *name) {
                    (Some(half), "algbw") => half.algbw = Some(span),
                    (Some(half), _) => half.busbw = Some(span),
                    (None, _) => return Err(bad_header(input, line)),
                }
            }
            "#wrong" | "error" => {
                if *word != "N/A" && input.number(line, "the number of wrong values", word)? != 0.0
                {
                    return Err(input.fault(line.number, "no wrong values", word).hint(
                        "the collective computed wrong values: its bandwidth means nothing",
                    ));
                }
                let Some(done) = half.take() else {
                    return Err(bad_header(input, line));
                };
                halves.push(done);
            }
            _ => return Err(bad_header(input, line)),
        }
    }
    if halves.is_empty() || halves.len() > 2 || half.is_some() {
        return Err(bad_header(input, line));
    }
    for (half, name) in halves.iter().zip(["out_of_place", "in_place"]) {
        let (Some(algbw), Some(busbw)) = (half.algbw, half.busbw) else {
            return Err(bad_header(input, line));
        };
        #[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
        let size = Span::exact(size_bytes as f64);
        // GB/s x microseconds x 1000 = bytes
        input.agree(
            line,
            "algbw x time",
            size,
            algbw.times(half.time).scaled(1e3),
        )?;
        best = best.max(busbw.value * 8.0);
        all.push(busbw);
        row.insert(
            name.into(),
            json!({
                "time_us": half.time.value,
                "algbw_gbytes_per_s": algbw.value,
                "busbw_gbytes_per_s": busbw.value,
                "busbw_gbps": busbw.value * 8.0,
            }),
        );
    }
    row.insert("busbw_gbps".into(), json!(best));
    Ok(Value::Object(row))
}

struct Half {
    time: Span,
    algbw: Option<Span>,
    busbw: Option<Span>,
}

fn bad_header(input: &Input<'_>, line: Line<'_>) -> crate::error::Error {
    input.fault(
        line.number,
        "columns `size count type [redop] [root] time algbw busbw #wrong [time algbw busbw #wrong]`",
        line.text,
    )
}

/// The tool averages over rows and both halves before it rounds.
fn check_average(input: &Input<'_>, line: Line<'_>, average: Span, busbw: &[Span]) -> Result<()> {
    let mean = Span::mean(busbw).unwrap_or(average);
    input
        .agree(line, "the mean of the rows", mean, average)
        .map_err(|e| e.hint("a row of the table is missing or was changed"))
}
