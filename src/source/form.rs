//! What the right form of a value looks like: made of what was written where that is plain, else
//! an example. Hints only; nothing here decides what is accepted.

use super::tree::{Item, ItemValue};

/// How durations are written.
pub(super) const DURATION: &str =
    "write a duration such as \"90s\", \"15m\" or \"1h30m\", or a number of seconds";

/// Keys with a value as plans and rules have it.
const EXAMPLES: &[(&str, &str)] = &[
    ("address", "\"10.0.0.1\""),
    ("adhoc", "true"),
    ("after", "[\"etcd\"]"),
    ("at", "\"/ttft_ms/p50\""),
    ("between", "[\"L1-Unified\", \"L2-EFA\"]"),
    ("budget", "\"1h\""),
    ("by", "[\"prompt_tokens\", \"concurrency\"]"),
    ("class", "\"out_of_memory\""),
    ("doc", "\"What the rule measures.\""),
    ("drop", "[{ prompt_tokens = 131072 }]"),
    ("env", "{ UCX_TLS = \"tcp\" }"),
    ("expect", "{ ttft_median_ms = \"< 80\" }"),
    ("expect_patterns", "50"),
    ("facts", "{ gpu_count = 8 }"),
    ("from", "\"result\""),
    ("gate", "[\"L0-Baseline\"]"),
    ("gpus", "4"),
    ("id", "\"L1-Unified\""),
    ("keep", "[\"concurrency == 1\"]"),
    ("matrix", "{ prompt_tokens = [1024, 4096] }"),
    ("name", "\"measure\""),
    ("needs", "[\"L1-Unified\"]"),
    ("of", "[\"efa\", \"tcp\"]"),
    ("only_on", "[\"transport\"]"),
    ("path", "\"result.json\""),
    ("patterns", "[\"L5-LowLevel\"]"),
    ("ports", "{ http = 8100 }"),
    ("ready", "{ tcp = \"{{ self.ip }}:{{ self.port.http }}\" }"),
    ("retry", "{ times = 2, base = \"2s\" }"),
    ("role", "\"client\""),
    ("roles", "{ client = {} }"),
    ("rule", "\"serving.unified\""),
    ("rules", "[\"serving\"]"),
    ("run", "\"\"\"doe measure ...\"\"\""),
    ("secrets", "[\"HF_TOKEN\"]"),
    ("settings", "{ concurrency = 16 }"),
    ("tags", "[\"smoke\"]"),
    ("that", "\"prompt_tokens <= max_model_len\""),
    ("timeout", "\"30m\""),
    ("times", "2"),
    ("title", "\"A title\""),
    ("type", "\"int\""),
    ("when", "\"concurrency > 16\""),
    ("why", "\"the prompt must fit the context\""),
];

/// A value of a key for an example.
pub(super) fn of_key(key: &str) -> Option<&'static str> {
    let found = EXAMPLES.iter().find(|(known, _)| *known == key);
    found.map(|(_, example)| *example)
}

/// How `what` would be written in the type that is expected.
pub(super) fn right_form(item: &Item, what: &str, expected: &str) -> Option<String> {
    let key = what
        .strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'));
    let write = |value: &str| match key {
        Some(key) => format!("write `{key} = {value}`"),
        None => format!("write `{value}`"),
    };
    // An example of the key, unless the key has another type elsewhere.
    let example = |opening: &str, other: &str| {
        let known = key.and_then(of_key);
        let known = known.filter(|value| value.starts_with(|c| opening.contains(c)));
        format!("{}, for example", write(known.unwrap_or(other)))
    };
    let number = |text: &str| text.trim().parse::<f64>().is_ok_and(f64::is_finite);
    let raw = item.raw();
    let short = !raw.is_empty() && raw.len() <= 60 && !raw.contains('\n');
    let scalar = !matches!(item.value, ItemValue::Array(_) | ItemValue::Table(_)) && short;
    Some(match (expected, &item.value) {
        ("a string", ItemValue::Array(items)) => match items.as_slice() {
            [only] if matches!(only.value, ItemValue::Str(_)) && short => {
                format!("{}, without brackets", write(only.raw()))
            }
            _ => example("\"", "\"...\""),
        },
        ("a string", _) if scalar => format!("put it in quotes: {}", write(&format!("\"{raw}\""))),
        ("a string", _) => example("\"", "\"...\""),
        ("an integer", ItemValue::Str(text)) if text.trim().parse::<i64>().is_ok() => {
            format!("{}, without quotes", write(text.trim()))
        }
        ("an integer", _) => example("0123456789", "8"),
        ("a number", ItemValue::Str(text)) if number(text) => {
            format!("{}, without quotes", write(text.trim()))
        }
        ("a number", _) => example("0123456789", "0.7"),
        ("`true` or `false`", ItemValue::Str(text)) => {
            let meant = match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => "true",
                "false" | "no" | "off" | "0" => "false",
                _ => return Some("write `true` or `false`, without quotes".to_owned()),
            };
            format!("{}, without quotes", write(meant))
        }
        ("`true` or `false`", ItemValue::Int(0)) => write("false"),
        ("`true` or `false`", ItemValue::Int(1)) => write("true"),
        ("`true` or `false`", _) => "write `true` or `false`".to_owned(),
        ("a duration", _) => DURATION.to_owned(),
        ("a list", _) if scalar => write(&format!("[{raw}]")),
        ("a list", _) => example("[", "[1, 2]"),
        ("a table", _) => example("{", "{ name = \"value\" }"),
        ("a list of tables", ItemValue::Table(_)) => match key {
            Some(key) => format!("double the brackets of its header, as in `[[{key}]]`"),
            None => "double the brackets of its header".to_owned(),
        },
        ("a list of tables", _) => {
            let key = key.unwrap_or("name");
            format!("write each as a section of its own, as in `[[{key}]]`")
        }
        _ => return None,
    })
}
