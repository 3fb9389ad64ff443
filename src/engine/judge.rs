//! From outputs to verdicts, purely: metrics, texts and samples are read from the documents,
//! validity says whether they may be used, the criterion whether they are as expected, and a
//! failure gets its class. No verdict is derived from another, and a document that cannot be read
//! or lacks what the rule names is invalid, never a zero.

use std::collections::BTreeMap;

use doe_cache::{
    Better, Check, Criterion, CriterionStatus, Metric, Validity, ValidityStatus, Value,
};
use regex::Regex;
use serde_json::Value as Json;

use super::event::CriterionWord;
use crate::error::{Error, Kind};
use crate::exec::trouble::{self, Trouble};
use crate::plan::model::{Condition, Expectation};
use crate::rule::classes::is_infrastructure;
use crate::rule::expr::Expr;
use crate::rule::model::{MetricDef, Rule, SampleDef, Text};
use crate::rule::scope::Scope;
use crate::rule::settings::add_variables;

/// An output as it was found.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// A JSON document.
    Json(Json),
    /// Anything else, which the rule reads no numbers from.
    Raw,
    /// It should be JSON and is not, or lacks the schema that the rule names.
    Unreadable(String),
}

impl Document {
    /// Reads an output. `schema` is the value that its `schema` field must have; `is_json` says
    /// that the rule reads numbers or conditions from it.
    pub fn read(bytes: &[u8], schema: Option<&str>, is_json: bool) -> Self {
        if schema.is_none() && !is_json {
            return Document::Raw;
        }
        let json: Json = match serde_json::from_slice(bytes) {
            Ok(json) => json,
            Err(_) if bytes.iter().all(u8::is_ascii_whitespace) => {
                return Document::Unreadable("it is empty".into());
            }
            Err(cause) => return Document::Unreadable(format!("it is not JSON: {cause}")),
        };
        let Some(schema) = schema else {
            return Document::Json(json);
        };
        match json.get("schema") {
            Some(Json::String(found)) if found == schema => Document::Json(json),
            Some(found) => {
                Document::Unreadable(format!("its `schema` is {found}, expected \"{schema}\""))
            }
            None => {
                Document::Unreadable(format!("it has no `schema` field, expected \"{schema}\""))
            }
        }
    }
}

/// What the documents say.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Whether the numbers may be used.
    pub validity: Validity,
    /// Numbers by name.
    pub metrics: BTreeMap<String, Metric>,
    /// Texts by name.
    pub texts: BTreeMap<String, String>,
    /// Series by name, in document order.
    pub samples: BTreeMap<String, Vec<f64>>,
}

/// Reads and judges the outputs of a node. `documents` are the rule's outputs by name.
pub fn judge(
    rule: &Rule,
    settings: &BTreeMap<String, Value>,
    documents: &BTreeMap<String, Document>,
) -> Judgement {
    let mut failed = Vec::new();
    for (name, document) in documents {
        if let Document::Unreadable(why) = document {
            failed.push(format!("output `{name}` cannot be read: {why}"));
        }
    }
    let mut metrics = BTreeMap::new();
    let mut texts = BTreeMap::new();
    for (name, def) in &rule.metrics {
        match read_metric(def, documents) {
            Ok(Some(Json::Number(number))) => {
                if let Some(value) = number.as_f64().filter(|value| value.is_finite()) {
                    let better = def.lower_is_better.map(|lower| match lower {
                        true => Better::Lower,
                        false => Better::Higher,
                    });
                    let unit = def.unit.clone();
                    metrics.insert(
                        name.clone(),
                        Metric {
                            value,
                            unit,
                            better,
                        },
                    );
                }
            }
            Ok(Some(Json::String(text))) => {
                texts.insert(name.clone(), text.clone());
            }
            Ok(Some(Json::Bool(holds))) => {
                texts.insert(name.clone(), holds.to_string());
            }
            Ok(Some(other)) => failed.push(format!(
                "metric `{name}` is a {} at {} in `{}`, expected a number or a text",
                kind(other),
                def.at,
                def.from
            )),
            Ok(None) => {}
            Err(why) => failed.push(format!("metric `{name}` {why}")),
        }
    }
    let mut samples = BTreeMap::new();
    for (name, def) in &rule.samples {
        match read_sample(def, documents) {
            Ok(Some(series)) => {
                samples.insert(name.clone(), series);
            }
            Ok(None) => {}
            Err(why) => failed.push(format!("samples `{name}` {why}")),
        }
    }
    // Conditions on what could not be read would only repeat what was said above.
    if failed.is_empty() {
        let mut scope = scope_of(rule, settings, documents, &metrics, &texts);
        for condition in &rule.valid {
            // An optional metric that is absent makes no condition on it hold or fail.
            let holds = Expr::compile(condition).and_then(|expr| {
                let told = expr.vars().iter().all(|name| !absent(rule, &scope, name));
                if !told {
                    return Ok(true);
                }
                add_variables(rule, &mut scope, expr.vars().iter().map(String::as_str))?;
                expr.eval_bool(&scope)
            });
            match holds {
                Ok(true) => {}
                Ok(false) => failed.push(condition.text.clone()),
                Err(finding) => failed.push(format!("{}: {}", condition.text, finding.message)),
            }
        }
    }
    let status = match failed.is_empty() {
        true => ValidityStatus::Valid,
        false => ValidityStatus::Invalid,
    };
    Judgement {
        validity: Validity { status, failed },
        metrics,
        texts,
        samples,
    }
}

/// Whether the rule reads numbers or conditions from an output, so that it must be JSON.
pub fn is_read(rule: &Rule, output: &str) -> bool {
    let metrics = rule.metrics.values().map(|def| &def.from);
    let samples = rule.samples.values().map(|def| &def.from);
    let named = metrics.chain(samples).any(|from| from == output);
    named
        || rule.valid.iter().any(|condition| {
            Expr::compile(condition).is_ok_and(|expr| expr.vars().contains(output))
        })
}

/// Holds metrics and texts against what a plan expects of them.
pub fn criterion(
    expect: &[Expectation],
    metrics: &BTreeMap<String, Metric>,
    texts: &BTreeMap<String, String>,
) -> Criterion {
    let checks: Vec<Check> = expect
        .iter()
        .map(|expectation| {
            let number = metrics.get(&expectation.metric).map(|metric| metric.value);
            let text = texts.get(&expectation.metric);
            let got = number
                .map(number_value)
                .or_else(|| text.map(|text| Value::Str(text.clone())));
            let met = match (&expectation.condition, number, text) {
                (Condition::OneOf(words), _, Some(text)) => words.iter().any(|word| word == text),
                (Condition::OneOf(_), _, None) => false,
                (condition, Some(number), _) => holds(condition, number),
                (_, None, _) => false,
            };
            Check {
                metric: expectation.metric.clone(),
                expected: Value::Str(expectation.text.clone()),
                got,
                met,
            }
        })
        .collect();
    let status = match checks.as_slice() {
        [] => CriterionStatus::None,
        checks if checks.iter().all(|check| check.met) => CriterionStatus::Met,
        _ => CriterionStatus::Missed,
    };
    Criterion { status, checks }
}

/// The criterion of a judgement: unknown when the numbers may not be used.
pub fn criterion_of(expect: &[Expectation], judged: &Judgement) -> Criterion {
    let mut criterion = criterion(expect, &judged.metrics, &judged.texts);
    if judged.validity.status != ValidityStatus::Valid && !expect.is_empty() {
        criterion.status = CriterionStatus::Unknown;
    }
    criterion
}

/// The word for events, when there is one.
pub fn criterion_word(status: CriterionStatus) -> Option<CriterionWord> {
    match status {
        CriterionStatus::Met => Some(CriterionWord::Met),
        CriterionStatus::Missed => Some(CriterionWord::Missed),
        CriterionStatus::None | CriterionStatus::Unknown => None,
    }
}

/// The missed expectations in words: `tcp_bandwidth_gbps is 4.1, expected 9..12`.
pub fn missed(criterion: &Criterion) -> Vec<String> {
    let missed = criterion.checks.iter().filter(|check| !check.met);
    missed
        .map(|check| {
            let expected = match &check.expected {
                Value::Str(text) => text.clone(),
                other => other.to_string(),
            };
            match &check.got {
                Some(Value::Str(got)) => {
                    format!("{} is `{got}`, expected {expected}", check.metric)
                }
                Some(got) => format!("{} is {got}, expected {expected}", check.metric),
                None => format!("{} is missing, expected {expected}", check.metric),
            }
        })
        .collect()
}

/// What ended a node that did not end well, beside what its rule knows about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A step ended with this exit code.
    Exit(i32),
    /// A step was ended by this signal.
    Signal(i32),
    /// A step went wrong without having ended by itself.
    Program,
    /// A limit ended a step.
    Timeout,
    /// A process vanished without leaving its exit record.
    Lost,
    /// A host could not be asked, or the service that carries commands did not do its part.
    Host(Trouble),
    /// A service could not be started or died.
    Service,
    /// A service vanished without leaving its exit record.
    ServiceLost,
    /// Its host is not free: something is left there that does not belong to it.
    NotReleased,
    /// A declared output is missing.
    NoResult,
}

impl Cause {
    /// The cause that an executor's error is, when it is trouble with a host.
    pub fn of(error: &Error) -> Option<Self> {
        trouble::of(error).map(Cause::Host)
    }

    /// The cause that an error is which kept a node from being carried through.
    pub fn of_work(error: &Error) -> Self {
        let otherwise = match error.kind {
            Kind::Infra if error.code == super::unended::NOT_RELEASED => Cause::NotReleased,
            Kind::Infra => Cause::Lost,
            _ => Cause::Program,
        };
        Self::of(error).unwrap_or(otherwise)
    }
}

/// The class of a failure: the first entry of the rule that matches, in file order, else what the
/// cause itself says. A rule's entry with both a pattern and an exit code needs both. What ran out
/// of time did so whatever its log says of the network: it is never tried again.
pub fn classify(rule: &Rule, cause: Cause, logs: &[&str]) -> String {
    if cause == Cause::NotReleased {
        // Nothing of the rule has run.
        return "not-released".to_owned();
    }
    for entry in &rule.failures {
        let unsaid = entry.log.is_none() && entry.exit_code.is_none();
        let late = cause == Cause::Timeout && is_infrastructure(rule, &entry.class);
        if unsaid || late {
            continue;
        }
        let code = entry
            .exit_code
            .is_none_or(|code| cause == Cause::Exit(code));
        let log = entry.log.as_ref().is_none_or(|log| is_in(log, logs));
        if code && log {
            return entry.class.clone();
        }
    }
    let out_of_memory = [
        "CUDA out of memory",
        "OutOfMemoryError",
        "oom-kill",
        "Out of memory: Killed",
        "is OUT_OF_MEMORY for Slurm",
    ];
    let said = |words: &str| logs.iter().any(|log| log.contains(words));
    let seen = out_of_memory.iter().any(|sign| said(sign));
    match cause {
        Cause::Timeout => "timeout",
        // Before anything that is tried again: what took too much memory does so every time.
        _ if seen => "oom",
        Cause::Lost if said("is PREEMPTED for Slurm") => "preempted",
        Cause::Lost => "lost",
        Cause::Host(Trouble::Unreachable) => "unreachable",
        Cause::Host(Trouble::Undeliverable) => "undeliverable",
        Cause::Host(Trouble::Throttled) => "throttled",
        Cause::ServiceLost => "service-lost",
        Cause::Service => "service-died",
        Cause::NotReleased => "not-released",
        Cause::NoResult => "no-result",
        Cause::Exit(_) | Cause::Signal(_) | Cause::Program => "program",
    }
    .to_owned()
}

/// What the logs of a result that is not valid speak of: the class of the first entry of the rule
/// whose pattern is in them. Servers that die may answer to the end, and their clients end well.
pub fn class_in_logs(rule: &Rule, logs: &[&str]) -> Option<String> {
    let entries = rule.failures.iter();
    let mut of_logs = entries.filter(|entry| entry.exit_code.is_none());
    let found = of_logs.find(|entry| entry.log.as_ref().is_some_and(|log| is_in(log, logs)));
    found.map(|entry| entry.class.clone())
}

fn is_in(pattern: &Text, logs: &[&str]) -> bool {
    Regex::new(&pattern.text).is_ok_and(|regex| logs.iter().any(|log| regex.is_match(log)))
}

fn holds(condition: &Condition, x: f64) -> bool {
    match condition {
        Condition::Range { low, high } => (*low..=*high).contains(&x),
        Condition::Less(bound) => x < *bound,
        Condition::AtMost(bound) => x <= *bound,
        Condition::Greater(bound) => x > *bound,
        Condition::AtLeast(bound) => x >= *bound,
        Condition::Equal(value) => x == *value,
        Condition::OneOf(_) => false,
    }
}

fn number_value(x: f64) -> Value {
    // Whole numbers print as such.
    if x.fract() == 0.0 && x.abs() < 9e15 {
        Value::Int(x as i64)
    } else {
        Value::Float(x)
    }
}

fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "truth value",
        Json::Number(_) => "number",
        Json::String(_) => "text",
        Json::Array(_) => "list",
        Json::Object(_) => "table",
    }
}

/// The value of a metric; `None` when it may be and is absent, or its document is unreadable,
/// which was said already.
fn read_metric<'d>(
    def: &MetricDef,
    documents: &'d BTreeMap<String, Document>,
) -> Result<Option<&'d Json>, String> {
    let absent = |why: String| match def.optional {
        true => Ok(None),
        false => Err(why),
    };
    match documents.get(&def.from) {
        None => absent(format!("has no output `{}` to be read from", def.from)),
        Some(Document::Unreadable(_)) => Ok(None),
        Some(Document::Raw) => Err(format!("cannot be read from `{}`: it is no JSON", def.from)),
        Some(Document::Json(json)) => match json.pointer(&def.at) {
            Some(Json::Null) => absent(format!("is null at {} in `{}`", def.at, def.from)),
            Some(value) => Ok(Some(value)),
            None => absent(format!(
                "is missing: there is no {} in `{}`",
                def.at, def.from
            )),
        },
    }
}

/// A series: the pointer's `*` runs over lists. Items that are null or lack the field are left
/// out (a failed request has no TTFT); a list that is not there, or an item that is no number,
/// is an error.
fn read_sample(
    def: &SampleDef,
    documents: &BTreeMap<String, Document>,
) -> Result<Option<Vec<f64>>, String> {
    let json = match documents.get(&def.from) {
        Some(Document::Json(json)) => json,
        Some(Document::Unreadable(_)) => return Ok(None),
        Some(Document::Raw) | None => {
            return Err(format!(
                "have no JSON output `{}` to be read from",
                def.from
            ));
        }
    };
    let mut series = Vec::new();
    let mut parts: Vec<&str> = def.at.split("/*").collect();
    let last = parts.pop().unwrap_or_default();
    gather(json, &parts, last, &mut series)
        .map_err(|why| format!("cannot be read at {} in `{}`: {why}", def.at, def.from))?;
    Ok(Some(series))
}

fn gather(json: &Json, lists: &[&str], last: &str, series: &mut Vec<f64>) -> Result<(), String> {
    if let Some((first, rest)) = lists.split_first() {
        return match json.pointer(first) {
            Some(Json::Array(items)) => items
                .iter()
                .try_for_each(|item| gather(item, rest, last, series)),
            Some(Json::Null) => Ok(()),
            Some(other) => Err(format!("`{first}` is a {}, expected a list", kind(other))),
            None => Err(format!("there is no `{first}`")),
        };
    }
    match json.pointer(last) {
        None | Some(Json::Null) => Ok(()),
        Some(Json::Number(number)) => match number.as_f64().filter(|x| x.is_finite()) {
            Some(x) => {
                series.push(x);
                Ok(())
            }
            None => Err(format!("{number} is no finite number")),
        },
        Some(other) => Err(format!("an item is a {}, expected a number", kind(other))),
    }
}

fn scope_of(
    rule: &Rule,
    settings: &BTreeMap<String, Value>,
    documents: &BTreeMap<String, Document>,
    metrics: &BTreeMap<String, Metric>,
    texts: &BTreeMap<String, String>,
) -> Scope {
    let mut scope: Scope = settings.iter().collect();
    for name in rule.metrics.keys() {
        match (metrics.get(name), texts.get(name)) {
            (Some(metric), _) => scope.set(name, &number_value(metric.value)),
            (None, Some(text)) => scope.set(name, &Value::Str(text.clone())),
            (None, None) => {}
        }
    }
    for (name, document) in documents {
        if let Document::Json(json) = document {
            scope.set_json(name, json);
        }
    }
    scope
}

fn absent(rule: &Rule, scope: &Scope, name: &str) -> bool {
    let optional = rule.metrics.get(name).is_some_and(|def| def.optional);
    optional && !scope.has(name)
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
