//! `nvidia-smi`: the listing (`-L`), queries (`--query-gpu=... --format=csv`), the report (`-q`),
//! `dmon` and, next door, `topo -m`; which it is shows in the text. Memory is in MiB. Of the
//! GPUs of a host the summary takes the least memory, the most heat and the deepest sleep, so an
//! expectation on it holds for all of them.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

use super::nvidia_topo;
use super::text::{Input, Line};

/// Reads any of the forms.
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    let Some(first) = input.lines.iter().copied().find(|l| !l.is_blank()) else {
        return Err(input.missing("the output of nvidia-smi"));
    };
    let text = first.text.trim();
    if FAILURES.iter().any(|f| text.starts_with(f)) {
        return Err(input.fault(first.number, "an answer of nvidia-smi", text));
    }
    let (kind, mut fields) = if nvidia_topo::is_header(first) {
        ("topo", nvidia_topo::read(input)?)
    } else if text.starts_with("GPU 0:") {
        ("list", list(input)?)
    } else if text.starts_with("# gpu") || text.starts_with("#Date") || text.starts_with("#Time") {
        ("dmon", dmon(input)?)
    } else if text.starts_with("====") && text.contains("NVSMI LOG") {
        ("report", report(input)?)
    } else if text.starts_with("<?xml") {
        return Err(input
            .fault(first.number, "text or CSV", text)
            .hint("the XML form is not read: use `-q`, or `--query-gpu=... --format=csv`"));
    } else if text.contains(',') || !input.context.columns.is_empty() {
        ("query", query(input, first)?)
    } else {
        return Err(input
            .fault(first.number, "the output of nvidia-smi", text)
            .hint("`-L`, `-q`, `topo -m`, `dmon` and `--query-gpu=... --format=csv` are read"));
    };
    let mut answer = Map::new();
    answer.insert("schema".into(), json!(input.schema()));
    answer.insert("tool".into(), json!(input.tool));
    answer.insert("kind".into(), json!(kind));
    answer.append(&mut fields);
    Ok(Value::Object(answer))
}

/// How nvidia-smi says that it has no answer; it does so on standard output.
const FAILURES: &[&str] = &[
    "NVIDIA-SMI has failed",
    "NVIDIA-SMI couldn't",
    "No devices were found",
    "Failed to initialize NVML",
    "Unable to determine",
    "Invalid combination",
    "Field \"",
];

/// Unit in the CSV header or value, and the ending it gives a name.
const UNITS: &[(&str, &str)] = &[
    ("MiB", "_mib"),
    ("MHz", "_mhz"),
    ("W", "_w"),
    ("%", "_percent"),
];

fn field_name(column: &str) -> String {
    let clean: String = column
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    match clean.as_str() {
        "temperature_gpu" => "temperature_celsius".into(),
        "gpu_name" => "name".into(),
        "gpu_uuid" => "uuid".into(),
        "gpu_serial" => "serial".into(),
        _ => clean,
    }
}

/// Units of the fields that print bare with `nounits`.
fn bare_ending(name: &str) -> &'static str {
    if name.starts_with("memory_") {
        "_mib"
    } else if name.starts_with("utilization_") || name == "fan_speed" {
        "_percent"
    } else if name.starts_with("clocks_") && !name.contains("reasons") {
        "_mhz"
    } else if name.starts_with("power_") {
        "_w"
    } else {
        ""
    }
}

fn query(input: &Input<'_>, first: Line<'_>) -> Result<Map<String, Value>> {
    let cells = |line: Line<'_>| -> Vec<String> {
        line.text.split(',').map(|c| c.trim().to_owned()).collect()
    };
    let head = cells(first);
    let is_title = |cell: &str| {
        let name = cell.split(" [").next().unwrap_or_default();
        !name.is_empty()
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b))
    };
    let titled = head.iter().all(|cell| is_title(cell));
    let given = &input.context.columns;
    let columns: Vec<String> = if titled {
        head.iter()
            .map(|c| c.split(" [").next().unwrap_or_default().to_owned())
            .collect()
    } else if given.is_empty() {
        return Err(input
            .fault(first.number, "a line of column names", first.text)
            .hint("query with `--format=csv` (the header names the columns), or name them with `--columns`"));
    } else {
        given.clone()
    };
    if titled && !given.is_empty() && *given != columns {
        return Err(input.fault(
            first.number,
            &format!("columns {}", given.join(",")),
            first.text,
        ));
    }
    let mut gpus = Vec::new();
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        if titled && line.number == first.number {
            continue;
        }
        let cells = cells(line);
        if cells.len() != columns.len() {
            return Err(input.fault(
                line.number,
                &format!("{} columns", columns.len()),
                line.text,
            ));
        }
        let mut gpu = Map::new();
        for (column, cell) in columns.iter().zip(&cells) {
            let (name, value) = cell_value(input, line, column, cell)?;
            gpu.insert(name, value);
        }
        gpus.push(gpu);
    }
    if gpus.is_empty() {
        return Err(input.missing("a row for a GPU"));
    }
    if let Some(count) = gpus[0].get("count").and_then(Value::as_u64)
        && count != gpus.len() as u64
    {
        return Err(input.missing(&format!("rows for {count} GPUs")));
    }
    Ok(summary(gpus))
}

fn cell_value(
    input: &Input<'_>,
    line: Line<'_>,
    column: &str,
    cell: &str,
) -> Result<(String, Value)> {
    let name = field_name(column);
    let absent = matches!(
        cell,
        "[N/A]" | "N/A" | "[Not Supported]" | "[Unknown Error]" | "[GPU requires reset]"
    );
    if absent {
        return Ok((name, Value::Null));
    }
    if cell.is_empty() {
        return Err(input.fault(line.number, &format!("a value for `{column}`"), line.text));
    }
    if let Some((number, unit)) = cell.rsplit_once(' ')
        && let Some((_, ending)) = UNITS.iter().find(|(u, _)| *u == unit)
    {
        return Ok((
            format!("{name}{ending}"),
            amount(input, line, column, number)?,
        ));
    }
    let ending = bare_ending(&name);
    let numeric =
        !ending.is_empty() || matches!(name.as_str(), "temperature_celsius" | "index" | "count");
    if numeric {
        return Ok((
            format!("{name}{ending}"),
            amount(input, line, column, cell)?,
        ));
    }
    if name == "pstate" {
        return Ok((name, json!(pstate(input, line, cell)?)));
    }
    Ok((name, json!(cell)))
}

fn amount(input: &Input<'_>, line: Line<'_>, what: &str, word: &str) -> Result<Value> {
    if word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty() {
        return Ok(json!(input.whole(line, what, word)?));
    }
    Ok(json!(input.number(line, what, word)?))
}

fn pstate<'a>(input: &Input<'_>, line: Line<'_>, word: &'a str) -> Result<&'a str> {
    let level = word.strip_prefix('P').and_then(|n| n.parse::<u8>().ok());
    match level {
        Some(0..=15) if word.len() <= 3 => Ok(word),
        _ => Err(input.fault(line.number, "a performance state P0 to P15", word)),
    }
}

/// What holds for every GPU of the host.
fn summary(gpus: Vec<Map<String, Value>>) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("gpu_count".into(), json!(gpus.len()));
    let same = |key: &str| {
        let first = gpus[0].get(key)?;
        (!first.is_null() && gpus.iter().all(|g| g.get(key) == Some(first))).then(|| first.clone())
    };
    for key in ["name", "driver_version", "cuda_version"] {
        if let Some(value) = same(key) {
            out.insert(key.into(), value);
        }
    }
    let numbers = |key: &str| -> Option<Vec<f64>> {
        gpus.iter()
            .map(|g| g.get(key).and_then(Value::as_f64))
            .collect()
    };
    let whole = |value: f64| {
        #[allow(clippy::cast_possible_truncation)] // checked to be whole, sizes in MiB are small
        if value.fract() == 0.0 {
            json!(value as i64)
        } else {
            json!(value)
        }
    };
    if let Some(all) = numbers("memory_total_mib") {
        let least = all.into_iter().fold(f64::INFINITY, f64::min);
        out.insert("memory_total_mib".into(), whole(least));
    }
    for key in ["memory_used_mib", "temperature_celsius"] {
        if let Some(all) = numbers(key) {
            let most = all.into_iter().fold(f64::NEG_INFINITY, f64::max);
            out.insert(key.into(), whole(most));
        }
    }
    let states: Option<Vec<(u8, &str)>> = gpus
        .iter()
        .map(|g| {
            let text = g.get("pstate")?.as_str()?;
            Some((text.strip_prefix('P')?.parse().ok()?, text))
        })
        .collect();
    if let Some((_, deepest)) = states.and_then(|s| s.into_iter().max()) {
        out.insert("pstate".into(), json!(deepest));
    }
    out.insert("gpus".into(), json!(gpus));
    out
}

fn list(input: &Input<'_>) -> Result<Map<String, Value>> {
    let mut gpus = Vec::new();
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        let expected = format!("`GPU {}: NAME (UUID: GPU-...)`", gpus.len());
        let parts = line
            .text
            .trim()
            .strip_prefix(&format!("GPU {}: ", gpus.len()))
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|rest| rest.split_once(" (UUID: "));
        let Some((name, uuid)) = parts.filter(|(n, u)| !n.is_empty() && u.starts_with("GPU-"))
        else {
            return Err(input.fault(line.number, &expected, line.text));
        };
        let mut gpu = Map::new();
        gpu.insert("index".into(), json!(gpus.len()));
        gpu.insert("name".into(), json!(name));
        gpu.insert("uuid".into(), json!(uuid));
        gpus.push(gpu);
    }
    Ok(summary(gpus))
}

fn dmon(input: &Input<'_>) -> Result<Map<String, Value>> {
    let mut names: Option<Vec<&str>> = None;
    let mut units: Option<Vec<&str>> = None;
    let mut samples: Vec<Map<String, Value>> = Vec::new();
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        let words = line.words();
        if line.text.starts_with('#') {
            let words = words[1..].to_vec();
            // The header comes again every twenty rows.
            match words.first() {
                Some(&"gpu") if names.as_ref().is_none_or(|n| *n == words) => names = Some(words),
                Some(&"Idx") if units.as_ref().is_none_or(|u| *u == words) => units = Some(words),
                _ => return Err(input.fault(line.number, "`# gpu ...` or `# Idx ...`", line.text)),
            }
            continue;
        }
        let (Some(names), Some(units)) = (&names, &units) else {
            return Err(input.fault(line.number, "the two header lines first", line.text));
        };
        if words.len() != names.len() || words.len() != units.len() {
            return Err(input.fault(line.number, &format!("{} columns", names.len()), line.text));
        }
        let mut sample = Map::new();
        for ((name, unit), word) in names.iter().zip(units).zip(&words) {
            let ending = match *unit {
                "W" => "_w",
                "C" => "_celsius",
                "%" => "_percent",
                "MHz" => "_mhz",
                "MB" => "_mib",
                "MB/s" => "_mb_per_s",
                _ => "",
            };
            let value = match *word {
                "-" => Value::Null,
                word => amount(input, line, name, word)?,
            };
            sample.insert(format!("{name}{ending}"), value);
        }
        samples.push(sample);
    }
    if samples.is_empty() {
        return Err(input.missing("a sample"));
    }
    let indices: std::collections::BTreeSet<u64> =
        samples.iter().filter_map(|s| s["gpu"].as_u64()).collect();
    let most = |key: &str| {
        samples
            .iter()
            .filter_map(|s| s.get(key).and_then(Value::as_i64))
            .max()
    };
    let mut out = Map::new();
    out.insert("gpu_count".into(), json!(indices.len()));
    out.insert("sample_count".into(), json!(samples.len()));
    for (key, name) in [
        ("gtemp_celsius", "temperature_celsius"),
        ("pwr_w", "power_max_w"),
        ("sm_percent", "sm_max_percent"),
        ("fb_mib", "memory_used_mib"),
    ] {
        if let Some(value) = most(key) {
            out.insert(name.into(), json!(value));
        }
    }
    out.insert("samples".into(), json!(samples));
    Ok(out)
}

fn report(input: &Input<'_>) -> Result<Map<String, Value>> {
    let mut top: Map<String, Value> = Map::new();
    let mut gpus: Vec<Map<String, Value>> = Vec::new();
    let mut section = String::new();
    let mut attached: Option<(Line<'_>, u64)> = None;
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        let text = line.text.trim();
        if line.text.starts_with("GPU ") {
            gpus.push(Map::new());
            section.clear();
            continue;
        }
        let Some((key, value)) = text.split_once(" : ") else {
            text.clone_into(&mut section);
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        match (gpus.last_mut(), section.as_str(), key) {
            (None, _, "Driver Version") => {
                top.insert("driver_version".into(), json!(value));
            }
            (None, _, "CUDA Version") => {
                top.insert("cuda_version".into(), json!(value));
            }
            (None, _, "Attached GPUs") => {
                attached = Some((line, input.whole(line, key, value)?));
            }
            (Some(gpu), _, "Product Name") => {
                gpu.insert("name".into(), json!(value));
            }
            (Some(gpu), _, "GPU UUID") => {
                gpu.insert("uuid".into(), json!(value));
            }
            (Some(gpu), _, "Performance State") => {
                gpu.insert("pstate".into(), json!(pstate(input, line, value)?));
            }
            (Some(gpu), "FB Memory Usage", "Total" | "Used") => {
                let name = format!("memory_{}_mib", key.to_ascii_lowercase());
                gpu.insert(name, unit(input, line, value, " MiB")?);
            }
            (Some(gpu), "Temperature", "GPU Current Temp") => {
                gpu.insert(
                    "temperature_celsius".into(),
                    unit(input, line, value, " C")?,
                );
            }
            _ => {}
        }
    }
    let Some((line, attached)) = attached else {
        return Err(input.missing("`Attached GPUs`"));
    };
    if attached != gpus.len() as u64 || gpus.is_empty() {
        return Err(input.fault(
            line.number,
            &format!("{attached} GPUs, at least one"),
            &format!("{} GPUs", gpus.len()),
        ));
    }
    for gpu in &gpus {
        for key in ["name", "memory_total_mib", "temperature_celsius", "pstate"] {
            if !gpu.contains_key(key) {
                return Err(incomplete(input, key));
            }
        }
    }
    let mut out = summary(gpus);
    for key in ["driver_version", "cuda_version"] {
        match top.remove(key) {
            Some(value) => out.insert(key.into(), value),
            None => return Err(incomplete(input, key)),
        };
    }
    Ok(out)
}

fn incomplete(input: &Input<'_>, key: &str) -> Error {
    input.missing(&format!("`{key}` for the host and each of its GPUs"))
}

fn unit(input: &Input<'_>, line: Line<'_>, value: &str, unit: &str) -> Result<Value> {
    match value.strip_suffix(unit) {
        Some(number) => amount(input, line, "the value", number),
        None => Err(input.fault(line.number, &format!("a value in{unit}"), value)),
    }
}
