//! NIXL's `kvbench`: `plan` prints a banner and a nixlbench command, `profile` runs nixlbench and
//! prints its table. One text may hold both, plan first. The size of the moved KV cache is
//! blocks x block size; where plan and profile are both there, they must agree on it.

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::nixlbench;
use super::text::{Input, Line};

/// Reads a plan, a profile, or a plan followed by a profile.
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    let command = input
        .lines
        .iter()
        .position(|l| l.text.starts_with("nixlbench"));
    let (plan, rest) = match command {
        Some(at) => {
            let end = command_end(&input.lines, at);
            (Some(plan(input, at, end)?), &input.lines[end..])
        }
        None => (None, input.lines.as_slice()),
    };
    let mut answer = Map::new();
    answer.insert("schema".into(), json!(input.schema()));
    answer.insert("tool".into(), json!(input.tool));
    let has_table = rest.iter().any(|l| !l.is_blank());
    let kind = if has_table { "profile" } else { "plan" };
    answer.insert("kind".into(), json!(kind));
    let planned = plan
        .as_ref()
        .map(|p| (p["kv_cache_size_bytes"].clone(), p["line"].clone()));
    if let Some(mut plan) = plan {
        plan.remove("line");
        answer.extend(plan);
    }
    if has_table {
        let table = nixlbench::table(input, rest)?;
        let first = rest.first().map_or(1, |l| l.number);
        if table.rows.len() != 1 {
            return Err(input.fault(
                first,
                "one row: one block size and one batch size",
                &format!("{} rows", table.rows.len()),
            ));
        }
        nixlbench::summarise(&table, &mut answer);
        let moved = answer["transfer_bytes"].clone();
        if let Some((size, line)) = planned
            && size != moved
        {
            let line = line.as_u64().and_then(|l| usize::try_from(l).ok());
            return Err(input
                .fault(
                    line.unwrap_or(first),
                    &format!("a plan of {moved} bytes, as the profile moved"),
                    &size.to_string(),
                )
                .hint("plan and profile must be given the same arguments"));
        }
        answer.insert("kv_cache_size_bytes".into(), moved);
        answer.insert("config".into(), Value::Object(table.config));
        answer.insert("rows".into(), json!(table.rows));
    }
    Ok(Value::Object(answer))
}

/// The line after the last that the command's backslashes reach.
fn command_end(lines: &[Line<'_>], start: usize) -> usize {
    let mut at = start;
    while at < lines.len() && lines[at].text.trim_end().ends_with('\\') {
        at += 1;
    }
    (at + 1).min(lines.len())
}

fn plan(input: &Input<'_>, start: usize, end: usize) -> Result<Map<String, Value>> {
    let mut plan = Map::new();
    for line in input.lines[..start].iter().copied() {
        let text = line.text.trim();
        if text.is_empty() || text.bytes().all(|b| b == b'=') {
            continue;
        }
        let Some((key, value)) = text.split_once(": ") else {
            return Err(input.fault(line.number, "a line `KEY: VALUE` of the plan", line.text));
        };
        let name = match key {
            "Model Config" => {
                plan.insert("model_config".into(), json!(value));
                continue;
            }
            "ISL" => "isl_tokens",
            "Page Size" => "page_size_tokens",
            "Requests" => "request_count",
            "TP" => "tp_size",
            "PP" => "pp_size",
            _ => return Err(input.fault(line.number, "a known line of the plan", line.text)),
        };
        let word = value.strip_suffix(" tokens").unwrap_or(value);
        plan.insert(name.into(), json!(input.whole(line, key, word)?));
    }
    if !plan.contains_key("isl_tokens") {
        let line = input.lines[start];
        return Err(input.fault(line.number, "`ISL: N tokens` above the command", line.text));
    }
    let mut command = Map::new();
    for line in input.lines[start..end].iter().copied() {
        let text = line.text.trim().trim_end_matches('\\').trim();
        if text == "nixlbench" || text.is_empty() {
            continue;
        }
        match text.strip_prefix("--").and_then(|t| t.split_once(' ')) {
            Some((name, value)) => command.insert(name.into(), json!(value.trim())),
            None => return Err(input.fault(line.number, "`--NAME VALUE`", line.text)),
        };
    }
    let number = |name: &str, default: u64| -> Result<u64> {
        match command.get(name).and_then(Value::as_str) {
            None => Ok(default),
            Some(word) => input.whole(input.lines[start], name, word),
        }
    };
    // The plan leaves out what equals nixlbench's default: 64 MiB blocks, batches of one.
    let block = number("max_block_size", 64 << 20)?;
    let batch = number("max_batch_size", 1)?;
    let Some(size) = block.checked_mul(batch).filter(|s| *s > 0) else {
        let line = input.lines[start];
        return Err(input.fault(
            line.number,
            "a block and a batch size above zero",
            line.text,
        ));
    };
    plan.insert("kv_cache_size_bytes".into(), json!(size));
    plan.insert("block_size_bytes".into(), json!(block));
    plan.insert("batch_size".into(), json!(batch));
    plan.insert("command".into(), Value::Object(command));
    plan.insert("line".into(), json!(input.lines[start].number));
    Ok(plan)
}
