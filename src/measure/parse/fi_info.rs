//! `fi_info`: one block per endpoint type of each device. A device shows once per endpoint type
//! (`rdmap49s0-rdm`, `rdmap49s0-dgrm`), so devices are counted by name without that ending.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::error::Result;

use super::text::Input;

const KEYS: &[&str] = &["fabric", "domain", "version", "type", "protocol"];

/// Reads the short listing (no `-v`, no `-l`).
pub(super) fn read(input: &Input<'_>) -> Result<Value> {
    let mut providers: Vec<Map<String, Value>> = Vec::new();
    for line in input.lines.iter().copied().filter(|l| !l.is_blank()) {
        if line.text.starts_with("libfabric:") {
            continue;
        }
        let (key, value) = match line.text.trim().split_once(": ") {
            Some((key, value)) if !value.trim().is_empty() => (key, value.trim()),
            _ => {
                return Err(input.fault(
                    line.number,
                    "`provider: NAME` or `key: value`",
                    line.text,
                ));
            }
        };
        let indented = line.text.starts_with(' ') || line.text.starts_with('\t');
        if key == "provider" && !indented {
            complete(input, providers.last(), line.number)?;
            let mut block = Map::new();
            block.insert("provider".into(), json!(value));
            providers.push(block);
        } else if indented && KEYS.contains(&key) {
            match providers.last_mut() {
                Some(block) if !block.contains_key(key) => {
                    block.insert(key.into(), json!(value));
                }
                _ => {
                    return Err(input.fault(line.number, "`provider: NAME` first", line.text));
                }
            }
        } else {
            let expected = format!("one of provider, {}", KEYS.join(", "));
            return Err(input
                .fault(line.number, &expected, line.text)
                .hint("run `fi_info` without `-v` and `-l`"));
        }
    }
    complete(input, providers.last(), input.count)?;
    let devices: BTreeSet<String> = providers
        .iter()
        .filter(|p| p["provider"] == "efa")
        .filter_map(|p| p["domain"].as_str())
        .map(|d| {
            d.strip_suffix("-rdm")
                .or_else(|| d.strip_suffix("-dgrm"))
                .unwrap_or(d)
                .to_owned()
        })
        .collect();
    let endpoint_types: BTreeSet<&str> = providers
        .iter()
        .filter_map(|p| p["type"].as_str())
        .collect();
    Ok(json!({
        "schema": input.schema(),
        "tool": input.tool,
        "provider_count": providers.len(),
        "efa_device_count": devices.len(),
        "efa_devices": devices,
        "endpoint_types": endpoint_types,
        "providers": providers,
    }))
}

fn complete(input: &Input<'_>, block: Option<&Map<String, Value>>, line: usize) -> Result<()> {
    if let Some(block) = block
        && let Some(key) = KEYS.iter().find(|k| !block.contains_key(**k))
    {
        return Err(input
            .fault(
                line,
                &format!("`{key}` of the provider above"),
                "the end of its block",
            )
            .hint("the listing is incomplete"));
    }
    Ok(())
}
