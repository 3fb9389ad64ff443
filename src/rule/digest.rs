//! What of a rule decides its results. Every struct is taken apart to the last field, so a new
//! field does not compile until somebody has said on which side of the key it stands: *result*
//! (in), *judge* (reads results, reruns nothing), *scheduling* or *cosmetic* (out).

use std::collections::BTreeMap;

use doe_cache::Value;

use super::model::{
    FailureDef, MetricDef, OutputDef, ProbeDef, ReadyDef, Role, Rule, RuleKind, SampleDef,
    ServiceDef, StepDef,
};
use super::settings;
use crate::source::Text;

/// Everything of a rule that can change what is measured. Two rules with the same description and
/// the same settings render to the same actions.
pub fn describe(rule: &Rule) -> Value {
    let Rule {
        id: _, // cosmetic: a name
        kind,
        doc: _, // cosmetic
        version,
        params: _, // their values are in the settings; bounds and defaults only choose them
        require: _, // refuses settings, changes nothing
        lets,
        env,
        roles,
        services,
        steps,
        outputs,
        metrics: _,         // judge
        samples: _,         // judge
        valid: _,           // judge
        compare_only_on: _, // refuses comparisons, changes nothing
        failures: _,        // name failures, which are reused only where one is expected
        retry: _,           // says how often, never what
        instruments,
        unread: _, // follows from the texts; only told
        site: _,   // cosmetic
    } = rule;
    let kind = match kind {
        RuleKind::Measure => "measure",
        RuleKind::Analysis => "analysis",
    };
    map([
        ("kind", text(kind)),
        ("version", Value::Int(*version)),
        ("lets", texts(lets)),
        ("env", texts(env)),
        ("roles", named(roles, role)),
        ("services", list(services, service)),
        ("steps", list(steps, step)),
        ("outputs", named(outputs, output)),
        ("instruments", list(instruments, |name| text(name))),
    ])
}

/// How results are read and judged: metrics, samples, validity with the variables that it mentions.
/// A change judges stored results anew and runs nothing.
pub fn judge_describe(rule: &Rule) -> Value {
    let Rule {
        metrics,
        samples,
        valid,
        lets,
        ..
    } = rule;
    let mut all = BTreeMap::from([
        ("metrics".to_owned(), named(metrics, metric)),
        ("samples".to_owned(), named(samples, sample)),
        ("valid".to_owned(), list(valid, |that| text(&that.text))),
    ]);
    if !lets.is_empty() {
        let mentioned = settings::judging(rule);
        let mut lets = lets.clone();
        lets.retain(|name, _| mentioned.contains(name));
        if !lets.is_empty() {
            all.insert("lets".to_owned(), texts(&lets));
        }
    }
    Value::Map(all)
}

/// How failures are named. Where one is the result, another name is another result.
pub fn failures(rule: &Rule) -> Value {
    list(&rule.failures, |failure| {
        let FailureDef {
            class,
            log,
            exit_code,
            infrastructure: _, // whether it is tried again
        } = failure;
        map([
            ("class", text(class)),
            ("log", optional(log.as_ref().map(|log| &log.text))),
            (
                "exit_code",
                exit_code.map_or(Value::Null, |code| Value::Int(code.into())),
            ),
        ])
    })
}

fn role(role: &Role) -> Value {
    let Role {
        gpus,
        exclusive,
        site: _,
    } = role;
    map([
        ("gpus", optional(gpus.as_ref().map(|gpus| &gpus.text))),
        // Sharing a host with other work changes what is measured.
        ("exclusive", Value::from(*exclusive)),
    ])
}

fn service(service: &ServiceDef) -> Value {
    let ServiceDef {
        name,
        role,
        run,
        env,
        ports,
        after,
        ready: ready_def,
        stop_grace_s: _, // scheduling
        health: _,       // scheduling
        released: _,     // says whether it may be started, never what it does
        site: _,
    } = service;
    map([
        ("name", text(name)),
        ("role", text(role)),
        ("run", text(&run.text)),
        ("env", texts(env)),
        ("ports", port_names(ports)),
        ("after", list(after, |name| text(name))),
        ("ready", ready(ready_def)),
    ])
}

fn step(step: &StepDef) -> Value {
    let StepDef {
        name,
        role,
        run,
        env,
        timeout: _, // scheduling
        gang,
        after,
        ready: ready_def,
        ports,
        site: _,
    } = step;
    map([
        ("name", text(name)),
        ("role", optional(role.as_ref())),
        ("run", text(&run.text)),
        ("env", texts(env)),
        ("gang", optional(gang.as_ref())),
        ("after", list(after, |name| text(name))),
        ("ready", ready_def.as_ref().map_or(Value::Null, ready)),
        ("ports", port_names(ports)),
    ])
}

/// The sign decides when a measurement begins; how long one waits for it does not.
fn ready(ready: &ReadyDef) -> Value {
    let ReadyDef {
        probe,
        within_s: _,    // scheduling
        fail_on_log: _, // names failures sooner
    } = ready;
    let (kind, sign) = match probe {
        ProbeDef::Http(url) => ("http", Some(&url.text)),
        ProbeDef::Tcp(address) => ("tcp", Some(&address.text)),
        ProbeDef::Listen(port) => ("listen", Some(&port.text)),
        ProbeDef::File(path) => ("file", Some(&path.text)),
        ProbeDef::Log(pattern) => ("log", Some(&pattern.text)),
        ProbeDef::Alive => ("alive", None),
    };
    map([(kind, optional(sign))])
}

fn output(output: &OutputDef) -> Value {
    let OutputDef {
        path,
        role,
        schema,
        site: _,
    } = output;
    map([
        ("path", text(path)),
        ("role", optional(role.as_ref())),
        ("schema", optional(schema.as_ref())),
    ])
}

fn metric(metric: &MetricDef) -> Value {
    let MetricDef {
        from,
        at,
        unit,
        lower_is_better,
        optional,
        site: _,
    } = metric;
    map([
        ("from", text(from)),
        ("at", text(at)),
        ("unit", text(unit)),
        (
            "lower_is_better",
            lower_is_better.map_or(Value::Null, Value::Bool),
        ),
        ("optional", Value::Bool(*optional)),
    ])
}

fn sample(sample: &SampleDef) -> Value {
    let SampleDef {
        from,
        at,
        unit,
        site: _,
    } = sample;
    map([("from", text(from)), ("at", text(at)), ("unit", text(unit))])
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.map(|(name, value)| (name.to_owned(), value)).into())
}

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

fn optional(text: Option<&String>) -> Value {
    text.map_or(Value::Null, |text| Value::Str(text.clone()))
}

fn texts(texts: &BTreeMap<String, Text>) -> Value {
    named(texts, |value| text(&value.text))
}

/// The names of ports are in scripts; the numbers are places, which are no part of a key.
fn port_names(ports: &BTreeMap<String, u16>) -> Value {
    let names: Vec<_> = ports.keys().collect();
    list(&names, |name| text(name))
}

fn list<T>(items: &[T], describe: impl Fn(&T) -> Value) -> Value {
    Value::List(items.iter().map(describe).collect())
}

fn named<T>(items: &BTreeMap<String, T>, describe: impl Fn(&T) -> Value) -> Value {
    let pairs = items
        .iter()
        .map(|(name, item)| (name.clone(), describe(item)));
    Value::Map(pairs.collect())
}
