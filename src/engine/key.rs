//! The keys. A spec key says what was asked for without rendering anything; an action key says
//! what would be executed. Both come from manifests, every struct that feeds them is taken apart
//! exhaustively, and each field is put down as result, scheduling or cosmetic: a field that is
//! new does not compile until somebody has decided.

use std::collections::BTreeMap;

use doe_cache::{Class, Digest, KeyEncoder, Manifest, Value};

use super::{facts, instruments, monitor, platform_key, uses};
use crate::error::{Error, Kind, Result, Site};
use crate::label::Label;
use crate::plan::model::{Pattern, Platform, Setting, Source};
use crate::rule::action::{
    Action, Demand, OutputAction, Probe, Ready, Released, ServiceAction, StepAction,
};
use crate::rule::model::{Affects, Rule, RuleKind};

/// Raised when the same entries come to mean something else; every key changes then.
pub(super) const KEY_SCHEMA: u32 = 1;

/// What a node gets to see of one that it needs: all of it is in its `inputs.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The digest of all outputs.
    pub output: Digest,
    /// The digest of [`shown_settings`].
    pub settings: Digest,
}

impl Need {
    /// What dependents see of `pattern` once it has these outputs.
    pub fn of(pattern: &Pattern, output: Digest) -> Self {
        Self {
            output,
            settings: shown_digest(pattern),
        }
    }
}

/// The digest of [`shown_settings`].
pub(super) fn shown_digest(pattern: &Pattern) -> Digest {
    let mut encoder = KeyEncoder::new("doe.need.settings", KEY_SCHEMA);
    for (name, setting) in shown(pattern) {
        encoder.entry(name, &setting.value);
    }
    encoder.finish()
}

/// What a node needs, by label.
pub type Needs = BTreeMap<Label, Need>;

/// The settings that dependents get to see: those that affect results. A dependent that could
/// read the others would have to run again for a timeout.
pub fn shown_settings(pattern: &Pattern) -> BTreeMap<String, Value> {
    shown(pattern)
        .map(|(name, setting)| (name.to_string(), setting.value.clone()))
        .collect()
}

fn shown(pattern: &Pattern) -> impl Iterator<Item = (&str, &Setting)> {
    let settings = pattern.settings.iter();
    settings.filter(|(name, _)| class_of(&pattern.rule, name) == Class::Result)
}

fn class_of(rule: &Rule, setting: &str) -> Class {
    match rule.params.get(setting).map(|param| param.affects) {
        Some(Affects::Result) | None => Class::Result,
        Some(Affects::Scheduling) => Class::Scheduling,
        Some(Affects::Cosmetic) => Class::Cosmetic,
    }
}

/// What is asked for: rule, settings, platform facts, inputs. Nothing is rendered.
pub fn spec_manifest(pattern: &Pattern, platform: &Platform, needs: &Needs) -> Result<Manifest> {
    let mut manifest = Manifest::new("doe.spec", KEY_SCHEMA);
    manifest.set_from(
        "rule.definition",
        definition_digest(&pattern.rule),
        Class::Result,
        line_of(&pattern.rule.site),
    );
    settings(&mut manifest, pattern);
    expected(&mut manifest, pattern);
    // Who waits for whom; what is measured by whoever holds them is the same.
    for (name, count) in uses::taken(pattern, platform).0 {
        let at = format!("uses.{name}");
        match pattern.uses.get(&name) {
            Some(said) => {
                let origin = line_of(&said.site);
                manifest.set_from(at, i64::from(count), Class::Scheduling, origin)
            }
            None => manifest.set(at, i64::from(count), Class::Scheduling),
        };
    }
    surroundings(&mut manifest, &pattern.rule, platform, needs)?;
    Ok(manifest)
}

/// What would be executed: the rendered action (with symbolic addresses) and its surroundings.
pub fn action_manifest(
    pattern: &Pattern,
    action: &Action,
    platform: &Platform,
    needs: &Needs,
) -> Result<Manifest> {
    let rule: &Rule = &pattern.rule;
    let mut manifest = Manifest::new("doe.action", KEY_SCHEMA);
    let Action {
        services,
        steps,
        outputs,
        roles,
    } = action;
    for service in services {
        let def = rule.services.iter().find(|def| def.name == service.name);
        let origin = def.map(|def| line_of(&def.site));
        let at = format!("service.{}", service.name);
        service_entries(&mut manifest, &at, service, origin);
    }
    for (at, step) in steps.iter().enumerate() {
        let def = rule.steps.iter().find(|def| def.name == step.name);
        step_entries(&mut manifest, at, step, def.map(|def| line_of(&def.site)));
    }
    for output in outputs {
        let OutputAction {
            name,
            path,
            role,
            schema,
        } = output;
        let at = format!("output.{name}");
        manifest.set(format!("{at}.path"), path.as_str(), Class::Result);
        optional(&mut manifest, format!("{at}.schema"), schema.as_deref());
        optional(&mut manifest, format!("{at}.role"), role.as_deref());
    }
    for (name, demand) in roles {
        let Demand { gpus, exclusive } = demand;
        manifest.set(format!("role.{name}.gpus"), i64::from(*gpus), Class::Result);
        // Sharing a host with other work changes what is measured.
        manifest.set(format!("role.{name}.exclusive"), *exclusive, Class::Result);
    }
    expected(&mut manifest, pattern);
    surroundings(&mut manifest, rule, platform, needs)?;
    Ok(manifest)
}

/// The key of a service: what it runs, where, and the keys of the services it stands on.
/// Two nodes whose services have one key share one process.
pub fn service_key(
    service: &ServiceAction,
    hosts: &BTreeMap<String, String>,
    after: &BTreeMap<String, Digest>,
    platform: &Platform,
) -> Digest {
    let mut manifest = Manifest::new("doe.service", KEY_SCHEMA);
    service_entries(&mut manifest, "service", service, None);
    for (role, host) in hosts {
        let mentioned = *role == service.role
            || service.script.contains(&format!("@{role}."))
            || service
                .env
                .values()
                .any(|v| v.contains(&format!("@{role}.")));
        if mentioned {
            manifest.set(format!("host.{role}"), host.as_str(), Class::Result);
        }
    }
    for (name, key) in after {
        manifest.set(format!("after.{name}"), *key, Class::Result);
    }
    for (name, value) in &platform.env {
        manifest.set(
            format!("platform.env.{name}"),
            value.as_str(),
            Class::Result,
        );
    }
    manifest.key()
}

/// The digest of what turns outputs into numbers: metrics, series, validity, and the settings that
/// validity looks at, whatever else these affect. It is beside the keys, so that a new metric is
/// read from stored outputs and nothing runs again.
pub fn judge_digest(pattern: &Pattern) -> Digest {
    let rule: &Rule = &pattern.rule;
    let mut manifest = Manifest::new("doe.judge", KEY_SCHEMA);
    manifest.set(
        "judge",
        crate::rule::digest::judge_describe(rule),
        Class::Result,
    );
    for name in crate::rule::settings::judging(rule) {
        if let Some(setting) = pattern.settings.get(&name) {
            let value = setting.value.clone();
            manifest.set(format!("setting.{name}"), value, Class::Result);
        }
    }
    manifest.key()
}

/// The digest of a rule's definition, comments and documentation apart.
fn definition_digest(rule: &Rule) -> Digest {
    let mut manifest = Manifest::new("doe.rule", KEY_SCHEMA);
    manifest.set("rule", crate::rule::digest::describe(rule), Class::Result);
    manifest.key()
}

fn settings(manifest: &mut Manifest, pattern: &Pattern) {
    for (name, setting) in &pattern.settings {
        let class = class_of(&pattern.rule, name);
        let Setting {
            value,
            source,
            site,
        } = setting;
        let origin = match (source, site) {
            (Source::CommandLine, _) | (_, None) => "--set".to_string(),
            (_, Some(site)) => line_of(site),
        };
        manifest.set_from(format!("setting.{name}"), value.clone(), class, origin);
    }
}

/// A failure that is the result is another result than the one of running to the end: neither may
/// stand for the other. What metrics should be is in no key.
fn expected(manifest: &mut Manifest, pattern: &Pattern) {
    // What is measured once more is not what was measured before.
    if pattern.replicate > 1 {
        manifest.set("replicate", i64::from(pattern.replicate), Class::Result);
    }
    optional(
        manifest,
        "expect.class".to_owned(),
        pattern.expect_class.as_deref(),
    );
}

/// `plans/phase2.toml:12`.
fn line_of(site: &Site) -> String {
    let (line, _) = site.file.line_column(site.range.start);
    format!("{}:{line}", site.file.name)
}

/// What surrounds an execution: rule version, instruments, platform, inputs.
fn surroundings(
    manifest: &mut Manifest,
    rule: &Rule,
    platform: &Platform,
    needs: &Needs,
) -> Result<()> {
    manifest.set_from(
        "rule.version",
        rule.version,
        Class::Result,
        line_of(&rule.site),
    );
    for name in &rule.instruments {
        let version = instruments::version(name).ok_or_else(|| {
            Error::new(
                Kind::Bug,
                "unknown-instrument",
                format!("`doe {name}` has no version"),
            )
        })?;
        manifest.set_from(
            format!("instrument.{}", name.replace(' ', ".")),
            i64::from(version),
            Class::Result,
            concat!("doe ", env!("CARGO_PKG_VERSION")),
        );
    }
    // The inputs' labels are read by analyses and appear in what they write.
    for (label, need) in needs {
        let Need { output, settings } = need;
        manifest.set(format!("need.{label}.output"), *output, Class::Result);
        manifest.set(format!("need.{label}.settings"), *settings, Class::Result);
    }
    // Given to every script, those of analyses included.
    for (variable, value) in &platform.env {
        manifest.set(
            format!("platform.env.{variable}"),
            value.as_str(),
            Class::Result,
        );
    }
    if rule.kind == RuleKind::Measure {
        platform_key::entries(manifest, rule, platform);
        facts::key::entries(manifest, rule, platform);
        monitor::entries(manifest, rule, platform);
    }
    Ok(())
}

/// `origin` is where its rule defines it, for `explain`.
fn service_entries(
    manifest: &mut Manifest,
    at: &str,
    service: &ServiceAction,
    origin: Option<String>,
) {
    let ServiceAction {
        name: _,
        role,
        script,
        env,
        ready,
        ports: _, // addresses
        after,
        gpus,
        stop_grace_s,
        health: _, // said of the rule; what it ends has no result
        released,
    } = service;
    manifest.set(format!("{at}.role"), role.as_str(), Class::Result);
    rendered(manifest, at, script, env, origin);
    manifest.set(format!("{at}.after"), list(after), Class::Result);
    manifest.set(format!("{at}.gpus"), i64::from(*gpus), Class::Result);
    manifest.set(
        format!("{at}.stop_grace_s"),
        number(*stop_grace_s),
        Class::Scheduling,
    );
    // Whether a host is free for it and after it: nothing is measured where it is not.
    if let Some(Released { script, within_s }) = released {
        let at = format!("{at}.released");
        manifest.set(format!("{at}.script"), script.as_str(), Class::Scheduling);
        manifest.set(
            format!("{at}.within_s"),
            number(*within_s),
            Class::Scheduling,
        );
    }
    ready_entries(manifest, at, ready);
}

fn step_entries(manifest: &mut Manifest, order: usize, step: &StepAction, origin: Option<String>) {
    let StepAction {
        name,
        role,
        script,
        env,
        timeout_s,
        gang,
        after,
        ready,
        ports: _, // addresses
    } = step;
    let at = format!("step.{name}");
    manifest.set(format!("{at}.order"), order as i64, Class::Result);
    optional(manifest, format!("{at}.role"), role.as_deref());
    rendered(manifest, &at, script, env, origin);
    manifest.set(
        format!("{at}.timeout_s"),
        number(*timeout_s),
        Class::Scheduling,
    );
    optional(manifest, format!("{at}.gang"), gang.as_deref());
    manifest.set(format!("{at}.after"), list(after), Class::Result);
    if let Some(ready) = ready {
        ready_entries(manifest, &at, ready);
    }
}

/// How readiness is seen decides when a measurement starts, never what a ready service does.
fn ready_entries(manifest: &mut Manifest, at: &str, ready: &Ready) {
    let Ready {
        probe,
        within_s,
        fail_on_log,
    } = ready;
    let probe = match probe {
        Probe::Http(url) => format!("http {url}"),
        Probe::Tcp(address) => format!("tcp {address}"),
        Probe::Listen(port) => format!("listen {port}"),
        Probe::File(path) => format!("file {path}"),
        Probe::Log(pattern) => format!("log {pattern}"),
        Probe::Alive => "alive".to_string(),
    };
    manifest.set(format!("{at}.ready"), probe, Class::Result);
    manifest.set(
        format!("{at}.ready_within_s"),
        number(*within_s),
        Class::Scheduling,
    );
    manifest.set(
        format!("{at}.fail_on_log"),
        list(fail_on_log),
        Class::Scheduling,
    );
}

fn rendered(
    manifest: &mut Manifest,
    at: &str,
    script: &str,
    env: &BTreeMap<String, String>,
    origin: Option<String>,
) {
    let mut set = |path: String, value: &str| {
        match &origin {
            Some(origin) => manifest.set_from(path, value, Class::Result, origin.as_str()),
            None => manifest.set(path, value, Class::Result),
        };
    };
    set(format!("{at}.script"), script);
    for (name, value) in env {
        set(format!("{at}.env.{name}"), value);
    }
}

fn optional(manifest: &mut Manifest, path: String, value: Option<&str>) {
    if let Some(value) = value {
        manifest.set(path, value, Class::Result);
    }
}

fn list(items: &[String]) -> Value {
    Value::List(
        items
            .iter()
            .map(|item| Value::from(item.as_str()))
            .collect(),
    )
}

fn number(value: f64) -> Value {
    // Limits in seconds come from checked durations and are finite.
    Value::float(value).unwrap_or(Value::Null)
}
