//! `nvidia-smi topo -m`. What a host is judged by is how far its GPUs are from their NICs: each
//! GPU uses its nearest NIC, and `gpu_nic_topology` is the farthest of those relations, so it
//! holds for every GPU. The matrix must be square and symmetric.

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::text::{Input, Line};

/// From near to far; `NV#` (NVLink) is nearest.
const RELATIONS: &[&str] = &["PIX", "PXB", "PHB", "NODE", "SYS"];

fn is_relation(word: &str) -> bool {
    word == "X"
        || RELATIONS.contains(&word)
        || word
            .strip_prefix("NV")
            .is_some_and(|n| !n.is_empty() && n.len() <= 2 && n.bytes().all(|b| b.is_ascii_digit()))
}

fn distance(relation: &str) -> usize {
    RELATIONS
        .iter()
        .position(|r| *r == relation)
        .map_or(0, |at| at + 1)
}

/// Without the escape sequences that underline the header even in a file.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            out.push(c);
        }
    }
    out
}

fn is_device(word: &str) -> bool {
    ["GPU", "NIC"].iter().any(|kind| {
        word.strip_prefix(kind)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Whether a line is the matrix's header.
pub(super) fn is_header(line: Line<'_>) -> bool {
    let text = plain(line.text);
    text.starts_with([' ', '\t']) && text.split_whitespace().next() == Some("GPU0")
}

/// Reads matrix and NIC legend.
pub(super) fn read(input: &Input<'_>) -> Result<Map<String, Value>> {
    let mut lines = input.lines.iter().copied().filter(|l| !l.is_blank());
    let Some(head) = lines.next() else {
        return Err(input.missing("the header of the matrix"));
    };
    let header = plain(head.text);
    let devices: Vec<String> = header
        .split_whitespace()
        .take_while(|w| is_device(w))
        .map(str::to_owned)
        .collect();
    let mut matrix: Vec<Vec<String>> = Vec::new();
    let mut nic_names = Map::new();
    let mut in_nic_legend = false;
    for line in lines {
        let words = line.words();
        if matrix.len() < devices.len() {
            let expected = format!("the row of {}", devices[matrix.len()]);
            if words.first() != Some(&devices[matrix.len()].as_str()) {
                return Err(input.fault(line.number, &expected, line.text));
            }
            let row: Vec<String> = words
                .iter()
                .skip(1)
                .take(devices.len())
                .map(|w| (*w).to_owned())
                .collect();
            let complete = row.len() == devices.len() && row.iter().all(|r| is_relation(r));
            let diagonal = row.get(matrix.len()).map(String::as_str) == Some("X")
                && row.iter().filter(|r| *r == "X").count() == 1;
            if !complete || !diagonal {
                return Err(input.fault(
                    line.number,
                    &format!("{} relations such as `X`, `PHB`, `NV18`", devices.len()),
                    line.text,
                ));
            }
            if let Some(other) = (0..matrix.len()).find(|o| matrix[*o][matrix.len()] != row[*o]) {
                return Err(input.fault(
                    line.number,
                    &format!("`{}` to {}", matrix[other][matrix.len()], devices[other]),
                    &row[other],
                ));
            }
            matrix.push(row);
        } else if line.text.trim() == "NIC Legend:" {
            in_nic_legend = true;
        } else if in_nic_legend {
            match line.text.trim().split_once(": ") {
                Some((nic, name)) if is_device(nic) => {
                    nic_names.insert(nic.into(), json!(name));
                }
                _ => return Err(input.fault(line.number, "`NIC0: NAME`", line.text)),
            }
        }
    }
    if matrix.len() < devices.len() {
        return Err(input.missing(&format!("the row of {}", devices[matrix.len()])));
    }
    Ok(answer(&devices, &matrix, nic_names))
}

fn answer(
    devices: &[String],
    matrix: &[Vec<String>],
    nic_names: Map<String, Value>,
) -> Map<String, Value> {
    let of = |kind: &str| -> Vec<usize> {
        (0..devices.len())
            .filter(|i| devices[*i].starts_with(kind))
            .collect()
    };
    let (gpus, nics) = (of("GPU"), of("NIC"));
    let mut nearest = Map::new();
    let mut farthest: Option<&str> = None;
    for gpu in &gpus {
        let near = nics
            .iter()
            .map(|nic| matrix[*gpu][*nic].as_str())
            .min_by_key(|r| distance(r));
        if let Some(near) = near {
            nearest.insert(devices[*gpu].clone(), json!(near));
            if farthest.is_none_or(|f| distance(f) < distance(near)) {
                farthest = Some(near);
            }
        }
    }
    let mut farthest_gpu: Option<&str> = None;
    for a in &gpus {
        for b in gpus.iter().filter(|b| *b > a) {
            let relation = matrix[*a][*b].as_str();
            if farthest_gpu.is_none_or(|f| distance(f) < distance(relation)) {
                farthest_gpu = Some(relation);
            }
        }
    }
    let mut out = Map::new();
    out.insert("gpu_count".into(), json!(gpus.len()));
    out.insert("nic_count".into(), json!(nics.len()));
    // A host without NICs in the matrix has no such relation, so there is no such field.
    if let Some(relation) = farthest {
        out.insert("gpu_nic_topology".into(), json!(relation));
        out.insert("gpu_nic_nearest".into(), Value::Object(nearest));
    }
    if let Some(relation) = farthest_gpu {
        out.insert("gpu_gpu_topology".into(), json!(relation));
    }
    out.insert("nic_names".into(), Value::Object(nic_names));
    let relations: Map<String, Value> = devices
        .iter()
        .zip(matrix)
        .map(|(device, row)| {
            let row: Map<String, Value> = devices
                .iter()
                .zip(row)
                .filter(|(other, _)| *other != device)
                .map(|(other, relation)| (other.clone(), json!(relation)))
                .collect();
            (device.clone(), Value::Object(row))
        })
        .collect();
    out.insert("relations".into(), Value::Object(relations));
    out
}
