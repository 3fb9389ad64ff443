//! The keys. A spec key says what was asked for without rendering anything; an action key says
//! what would be executed. Both come from manifests, every struct that feeds them is taken apart
//! exhaustively, and each field is put down as result, scheduling or cosmetic: a field that is
//! new does not compile until somebody has decided.

use std::collections::BTreeMap;

use doe_cache::{Class, Digest, KeyEncoder, Manifest, Value};

use super::rule_key::{RuleJudge, RuleKey, line_of};
use super::uses;
use crate::error::Result;
use crate::label::Label;
use crate::plan::model::{Pattern, Platform, Setting, Source};
use crate::rule::action::{
    Action, Demand, OutputAction, Probe, Ready, Released, ServiceAction, StepAction,
};
use crate::rule::digest;
use crate::rule::model::{Affects, Rule};

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
///
/// # Errors
/// The rule calls an instrument that there is not.
pub fn spec_manifest(pattern: &Pattern, platform: &Platform, needs: &Needs) -> Result<Manifest> {
    let rule = RuleKey::new(&pattern.rule, platform)?;
    Ok(spec_manifest_of(&rule, pattern, platform, needs))
}

/// As [`spec_manifest`], with what the rule's nodes have in common.
pub(super) fn spec_manifest_of(
    rule: &RuleKey,
    pattern: &Pattern,
    platform: &Platform,
    needs: &Needs,
) -> Manifest {
    let mut manifest = Manifest::new("doe.spec", KEY_SCHEMA);
    manifest.entries = rule.entries.clone();
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
    // The inputs' labels are read by analyses and appear in what they write.
    for (label, need) in needs {
        let Need { output, settings } = need;
        manifest.set(format!("need.{label}.output"), *output, Class::Result);
        manifest.set(format!("need.{label}.settings"), *settings, Class::Result);
    }
    manifest
}

/// Whether an entry of a spec is one of the action too. The rule's definition and the settings are
/// there as what they render to, and who waits for whom is no part of what is executed.
fn is_of_action(path: &str) -> bool {
    path != "rule.definition" && !path.starts_with("setting.") && !path.starts_with("uses.")
}

/// What would be executed: the rendered action (with symbolic addresses) and what surrounds it,
/// which is that of its spec.
pub fn action_manifest(pattern: &Pattern, action: &Action, spec: &Manifest) -> Manifest {
    let rule: &Rule = &pattern.rule;
    let mut manifest = Manifest::new("doe.action", KEY_SCHEMA);
    let shared = spec.entries.iter().filter(|(path, _)| is_of_action(path));
    manifest.entries = shared
        .map(|(path, it)| (path.clone(), it.clone()))
        .collect();
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
        let at = ["output.", name].concat();
        manifest.set([&at, ".path"].concat(), path.as_str(), Class::Result);
        optional(&mut manifest, &[&at, ".schema"], schema.as_deref());
        optional(&mut manifest, &[&at, ".role"], role.as_deref());
    }
    for (name, demand) in roles {
        let Demand { gpus, exclusive } = demand;
        manifest.set(format!("role.{name}.gpus"), i64::from(*gpus), Class::Result);
        // Sharing a host with other work changes what is measured.
        manifest.set(format!("role.{name}.exclusive"), *exclusive, Class::Result);
    }
    manifest
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
    RuleJudge::new(&pattern.rule).digest(pattern)
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
        manifest.set_from(["setting.", name].concat(), value.clone(), class, origin);
    }
}

/// A failure that is the result is another result than the one of running to the end, or of the
/// same end by another name: none may stand for another. What metrics should be is in no key.
fn expected(manifest: &mut Manifest, pattern: &Pattern) {
    // What is measured once more is not what was measured before.
    if pattern.replicate > 1 {
        manifest.set("replicate", i64::from(pattern.replicate), Class::Result);
    }
    let Some(class) = pattern.expect_class.as_deref() else {
        return;
    };
    manifest.set("expect.class", class, Class::Result);
    let failures = digest::failures(&pattern.rule);
    manifest.set("expect.failures", failures, Class::Result);
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
    manifest.set([at, ".role"].concat(), role.as_str(), Class::Result);
    rendered(manifest, at, script, env, origin);
    manifest.set([at, ".after"].concat(), list(after), Class::Result);
    manifest.set([at, ".gpus"].concat(), i64::from(*gpus), Class::Result);
    manifest.set(
        [at, ".stop_grace_s"].concat(),
        number(*stop_grace_s),
        Class::Scheduling,
    );
    // Whether a host is free for it and after it: nothing is measured where it is not.
    if let Some(Released { script, within_s }) = released {
        let at = &*[at, ".released"].concat();
        manifest.set([at, ".script"].concat(), script.as_str(), Class::Scheduling);
        manifest.set(
            [at, ".within_s"].concat(),
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
    let at = &*["step.", name].concat();
    manifest.set([at, ".order"].concat(), order as i64, Class::Result);
    optional(manifest, &[at, ".role"], role.as_deref());
    rendered(manifest, at, script, env, origin);
    manifest.set(
        [at, ".timeout_s"].concat(),
        number(*timeout_s),
        Class::Scheduling,
    );
    optional(manifest, &[at, ".gang"], gang.as_deref());
    manifest.set([at, ".after"].concat(), list(after), Class::Result);
    if let Some(ready) = ready {
        ready_entries(manifest, at, ready);
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
    manifest.set([at, ".ready"].concat(), probe, Class::Result);
    manifest.set(
        [at, ".ready_within_s"].concat(),
        number(*within_s),
        Class::Scheduling,
    );
    manifest.set(
        [at, ".fail_on_log"].concat(),
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
    set([at, ".script"].concat(), script);
    for (name, value) in env {
        set([at, ".env.", name].concat(), value);
    }
}

fn optional(manifest: &mut Manifest, path: &[&str], value: Option<&str>) {
    if let Some(value) = value {
        manifest.set(path.concat(), value, Class::Result);
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
