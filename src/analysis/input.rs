//! What an analysis reads: for every pattern its label, its resolved settings and the documents
//! that it left behind. A document is believed only when it names its schema; unknown fields are
//! passed over, known ones must have their type; failed requests are set apart and counted.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};

/// The results of one pattern as an analysis sees them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Label of the pattern, for example `//phase2:p2-efa-4k-c1`.
    pub label: String,
    /// Resolved settings of the pattern.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Output documents by the name the rule gave them: `result` (load-v1), `proxy` (proxy-v1).
    #[serde(default)]
    pub outputs: BTreeMap<String, Value>,
}

/// One request of a `load-v1` document. All times in milliseconds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Request {
    /// Number of the request in the order of the campaign.
    pub index: Option<u64>,
    /// Round of simultaneous requests, from 0.
    pub round: Option<u64>,
    /// Stream within the round, from 0.
    pub stream: Option<u64>,
    /// Time to first token.
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first; absent for single-token outputs.
    pub tpot_ms: Option<f64>,
    /// Inter-token latencies, in order.
    pub itl_ms: Option<Vec<f64>>,
    /// Why the request failed, absent when it did not.
    pub error: Option<Value>,
}

/// A parsed `load-v1` document: what is needed of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The requests that succeeded, in iteration order.
    pub requests: Vec<Request>,
    /// Number of requests that failed and were left out.
    pub failed: usize,
    /// Settings as the load generator recorded them.
    pub settings: Map<String, Value>,
}

#[derive(Deserialize)]
struct LoadDocument {
    requests: Vec<Request>,
    #[serde(default)]
    settings: Map<String, Value>,
}

/// An error about the inputs of an analysis: nothing was concluded.
pub(crate) fn bad_input(message: impl Into<String>) -> Error {
    Error::new(Kind::NodeFailed, "bad-analysis-input", message)
}

impl Input {
    /// The output of schema `schema`: the one named `usual`, or the only one that says it is.
    fn document<T: DeserializeOwned>(&self, usual: &str, schema: &str) -> Result<T> {
        let says = |value: &Value| value.get("schema").and_then(Value::as_str) == Some(schema);
        let found = self
            .outputs
            .get(usual)
            .filter(|value| says(value))
            .or_else(|| self.outputs.values().find(|value| says(value)));
        let Some(value) = found else {
            let have: Vec<String> = self
                .outputs
                .iter()
                .map(|(name, value)| {
                    let schema = value.get("schema").and_then(Value::as_str);
                    format!("`{name}` ({})", schema.unwrap_or("no schema"))
                })
                .collect();
            let have = if have.is_empty() {
                "it has no outputs".to_owned()
            } else {
                format!("it has {}", have.join(", "))
            };
            return Err(
                bad_input(format!("{} has no `{schema}` output: {have}", self.label)).hint(
                    format!(
                        "name only patterns whose rule declares an output with schema `{schema}`"
                    ),
                ),
            );
        };
        T::deserialize(value).map_err(|e| {
            bad_input(format!(
                "{}: its `{schema}` output is malformed",
                self.label
            ))
            .cause(e)
        })
    }

    /// The load generator's document, successful requests in iteration order: by round and stream
    /// where those are given, else by index, else as written.
    ///
    /// Errors: no such output, a malformed one, or one without a successful request.
    pub fn load(&self) -> Result<Load> {
        let document: LoadDocument = self.document("result", "load-v1")?;
        let all = document.requests.len();
        let mut requests: Vec<Request> = document
            .requests
            .into_iter()
            .filter(|request| request.error.is_none())
            .collect();
        if requests.is_empty() {
            return Err(bad_input(format!(
                "{}: none of its {all} requests succeeded",
                self.label
            ))
            .hint("look at the errors recorded in its result and run it again"));
        }
        requests.sort_by_key(|r| (r.round, r.stream, r.index));
        Ok(Load {
            failed: all - requests.len(),
            requests,
            settings: document.settings,
        })
    }

    /// The proxy's document.
    ///
    /// Errors: no such output or a malformed one.
    pub(crate) fn proxy<T: DeserializeOwned>(&self) -> Result<T> {
        self.document("proxy", "proxy-v1")
    }

    /// Whether the settings or any output say that nothing here was really measured.
    pub fn simulated(&self) -> bool {
        let says = |value: Option<&Value>| value.and_then(Value::as_bool) == Some(true);
        says(self.settings.get("simulated"))
            || self.outputs.values().any(|out| {
                says(out.get("simulated"))
                    || says(out.get("settings").and_then(|s| s.get("simulated")))
            })
    }

    /// A count among the settings of the pattern, or else among those of its load document.
    pub(crate) fn count(&self, load: &Load, key: &str) -> Result<u64> {
        let value = self.settings.get(key).or_else(|| load.settings.get(key));
        let Some(value) = value else {
            return Err(bad_input(format!("{} has no setting `{key}`", self.label))
                .hint(format!("the analysis groups patterns by `{key}`")));
        };
        // Settings are numbers of the plan, which knows 4.0 and 4 as the same.
        let whole = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|v| *v >= 0.0 && v.fract() == 0.0)
                .map(|v| v as u64)
        });
        whole.ok_or_else(|| {
            bad_input(format!(
                "{}: setting `{key}` is {value}, expected a whole number",
                self.label
            ))
        })
    }

    /// A text among the settings of the pattern.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.settings.get(key).and_then(Value::as_str)
    }
}

/// Refuses times below zero: they are a defect of a clock, not a measurement.
pub(crate) fn check_times(what: &str, x: &[f64]) -> Result<()> {
    crate::analysis::sample::check(what, x)?;
    match x.iter().find(|v| **v < 0.0) {
        None => Ok(()),
        Some(bad) => Err(bad_input(format!(
            "{what}: a duration is {bad} ms, expected none below zero"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn input(result: Value) -> Input {
        Input {
            label: "//p:a".into(),
            settings: Map::new(),
            outputs: [("result".to_owned(), result)].into(),
        }
    }

    #[test]
    fn requests_come_in_iteration_order_and_failures_are_counted() {
        let load = input(json!({"schema": "load-v1", "unknown": 1, "requests": [
            {"index": 2, "round": 1, "stream": 0, "ttft_ms": 3.0, "error": null},
            {"index": 1, "round": 0, "stream": 1, "ttft_ms": 2.0},
            {"index": 0, "round": 0, "stream": 0, "ttft_ms": 1.0, "itl_ms": null},
            {"index": 3, "round": 1, "stream": 1, "error": {"kind": "timeout", "message": "x"}},
        ]}))
        .load()
        .unwrap();
        let order: Vec<_> = load.requests.iter().map(|r| r.ttft_ms).collect();
        assert_eq!(order, [Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!(load.failed, 1);
    }

    #[test]
    fn missing_malformed_and_empty_results_are_errors_that_name_the_pattern() {
        let none = Input {
            outputs: BTreeMap::new(),
            ..input(json!(null))
        };
        let cases = [
            (none, "no outputs"),
            (input(json!({"schema": "iperf-v1"})), "iperf-v1"),
            (input(json!({"schema": "load-v1"})), "malformed"),
            (
                input(json!({"schema": "load-v1", "requests": [{"ttft_ms": "fast"}]})),
                "malformed",
            ),
            (
                input(json!({"schema": "load-v1", "requests": []})),
                "none of its 0",
            ),
            (
                input(json!({"schema": "load-v1", "requests": [{"error": {"kind": "x"}}]})),
                "none of its 1",
            ),
        ];
        for (input, expected) in cases {
            let error = input.load().unwrap_err();
            assert_eq!(error.kind, Kind::NodeFailed);
            assert!(error.to_string().contains("//p:a"), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_document_is_found_by_its_schema_under_any_name() {
        let mut input = input(json!({"schema": "other"}));
        let document = json!({"schema": "load-v1", "requests": [{"ttft_ms": 1.0}]});
        input.outputs.insert("load".into(), document);
        assert_eq!(input.load().unwrap().requests.len(), 1);
    }

    #[test]
    fn settings_of_the_pattern_come_first_and_must_be_whole() {
        let mut input = input(json!({"schema": "load-v1", "requests": [{"ttft_ms": 1.0}],
            "settings": {"concurrency": 4, "prompt_tokens": 1024}}));
        input.settings.insert("concurrency".into(), json!(16.0));
        let load = input.load().unwrap();
        assert_eq!(input.count(&load, "concurrency").unwrap(), 16);
        assert_eq!(input.count(&load, "prompt_tokens").unwrap(), 1024);
        assert!(input.count(&load, "tp_size").is_err());
        input.settings.insert("concurrency".into(), json!("many"));
        assert!(input.count(&load, "concurrency").is_err());
    }

    #[test]
    fn simulated_results_say_so_wherever_they_say_it() {
        assert!(!input(json!({"schema": "load-v1"})).simulated());
        assert!(input(json!({"simulated": true})).simulated());
        assert!(input(json!({"settings": {"simulated": true}})).simulated());
        let mut marked = input(json!({}));
        marked.settings.insert("simulated".into(), json!(true));
        assert!(marked.simulated());
    }
}
