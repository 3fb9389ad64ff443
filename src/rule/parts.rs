//! Readers of what a rule runs, one function a section of the file. Each takes what can be
//! understood and adds a finding for what cannot; whether the parts fit together is `check`'s
//! question.

use std::collections::BTreeMap;

use super::clear;
use super::draft::{Draft, Ref, Target};
use super::model::{Health, ProbeDef, ReadyDef, ReleasedDef, Require, Role, ServiceDef, StepDef};
use super::params::regex;
use crate::error::Diagnostic;
use crate::source::{Item, ItemValue, Table, Text, parse_duration};

/// Seconds a process may take to become ready when the file does not say.
const READY_WITHIN_S: f64 = 60.0;
/// Seconds between the polite and the hard end of a service when the file does not say.
const STOP_GRACE_S: f64 = 10.0;
/// Seconds that a host may take to be free of a service when the file does not say.
const RELEASED_WITHIN_S: f64 = 30.0;

/// Refuses names that templates could not mention.
pub(super) fn check_identifier(name: &Text, what: &str, diags: &mut Vec<Diagnostic>) -> bool {
    let text = name.text.as_str();
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let fits = text.starts_with(first)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.len() <= 100;
    if !fits {
        diags.push(
            Diagnostic::error("bad-name", format!("`{text}` cannot be the name of {what}"))
                .at(name.site.clone(), "")
                .hint("names are letters, digits and `_`, and start with a letter"),
        );
    }
    fits
}

/// Refuses names of services and steps that could not be file names.
fn check_name(name: &Text, what: &str, diags: &mut Vec<Diagnostic>) {
    if !crate::label::is_valid_name(&name.text) {
        diags.push(
            Diagnostic::error(
                "bad-name",
                format!("`{}` cannot be the name of {what}", name.text),
            )
            .at(name.site.clone(), "")
            .hint("names are letters, digits and `._+=,-`, and start with a letter or digit"),
        );
    }
}

/// A table of texts: `let` or `env`.
pub(super) fn texts(
    table: Table<'_>,
    what: &str,
    diags: &mut Vec<Diagnostic>,
) -> BTreeMap<String, Text> {
    let mut texts = BTreeMap::new();
    for entry in table.entries() {
        let name = &entry.key;
        if !check_identifier(name, what, diags) {
            continue;
        }
        let text = match &entry.item.value {
            // `let.n = 3`, `env.DEBUG = 1`: what is meant is plain.
            ItemValue::Int(value) => Some(Text {
                text: value.to_string(),
                site: entry.item.site.clone(),
            }),
            ItemValue::Bool(value) if what == "a variable" => Some(Text {
                text: value.to_string(),
                site: entry.item.site.clone(),
            }),
            _ => entry.item.as_text(&format!("`{}`", name.text), diags),
        };
        if let Some(text) = text {
            if what != "a variable" {
                diags.extend(clear::check(&name.text, &text.text, &text.site));
            }
            texts.insert(name.text.clone(), text);
        }
    }
    texts
}

/// `require = [{ that = …, why = … }]`.
pub(super) fn require(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Vec<Require> {
    let mut all = Vec::new();
    for entry in table.tables("require", diags) {
        let mut entry = entry.named("a requirement");
        let that = entry.req_str("that", diags);
        let why = entry.req_str("why", diags);
        entry.remaining(diags, "in a requirement");
        if let (Some(that), Some(why)) = (that, why) {
            all.push(Require {
                that,
                why: why.text,
            });
        }
    }
    all
}

/// `roles = { NAME = { gpus = …, exclusive = … } }`.
pub(super) fn roles(table: Table<'_>, diags: &mut Vec<Diagnostic>) -> BTreeMap<String, Role> {
    let mut roles = BTreeMap::new();
    for entry in table.entries() {
        if !check_identifier(&entry.key, "a role", diags) {
            continue;
        }
        let what = format!("role `{}`", entry.key.text);
        let Some(role) = entry.item.as_table(&what, diags) else {
            continue;
        };
        let mut role = role.named(what);
        let gpus = role
            .item("gpus")
            .and_then(|item| number_or_expr(item, "`gpus`", diags));
        let exclusive = role.opt_bool("exclusive", diags).is_none_or(|s| s.value);
        role.remaining(diags, "of a role");
        roles.insert(
            entry.key.text.clone(),
            Role {
                gpus,
                exclusive,
                site: entry.key.site.clone(),
            },
        );
    }
    roles
}

/// A whole number or a text (an expression or template), as text.
fn number_or_expr(item: &Item, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Text> {
    match item.value {
        ItemValue::Int(value) if value >= 0 => Some(Text {
            text: value.to_string(),
            site: item.site.clone(),
        }),
        ItemValue::Str(_) => item.as_text(what, diags),
        _ => {
            diags.push(item.wrong_type(what, "a whole number from 0 or an expression"));
            None
        }
    }
}

/// A duration, or an expression in seconds, as the text of an expression.
fn seconds_or_expr(item: &Item, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Text> {
    match &item.value {
        ItemValue::Str(text) if parse_duration(text).is_none() => item.as_text(what, diags),
        _ => item.as_duration(what, diags).map(|seconds| Text {
            text: seconds.value.to_string(),
            site: seconds.site,
        }),
    }
}

/// Preferred port numbers by name.
fn ports(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> BTreeMap<String, u16> {
    let mut ports = BTreeMap::new();
    let Some(table) = table.opt_table("ports", diags) else {
        return ports;
    };
    let mut taken = BTreeMap::new();
    for entry in table.entries() {
        if !check_identifier(&entry.key, "a port", diags) {
            continue;
        }
        let what = format!("port `{}`", entry.key.text);
        let Some(number) = entry.item.as_int(&what, diags) else {
            continue;
        };
        match u16::try_from(number.value) {
            Ok(port) if port > 0 => {
                if let Some((first, site)) =
                    taken.insert(port, (&entry.key.text, number.site.clone()))
                {
                    let message = format!("{what} has the number of port `{first}`: {port}");
                    diags.push(
                        Diagnostic::error("duplicate-port", message)
                            .at(number.site, "")
                            .at(site, "first here"),
                    );
                }
                ports.insert(entry.key.text.clone(), port);
            }
            _ => diags.push(
                Diagnostic::error(
                    "out-of-bounds",
                    format!("{what} must be from 1 to 65535; found {}", number.value),
                )
                .at(number.site, "")
                .hint("write the usual number of the port, such as 8100"),
            ),
        }
    }
    ports
}

fn regexes(texts: Vec<Text>, diags: &mut Vec<Diagnostic>) -> Vec<Text> {
    for text in &texts {
        check_regex(text, diags);
    }
    texts
}

pub(super) fn check_regex(text: &Text, diags: &mut Vec<Diagnostic>) {
    if let Err(diagnostic) = regex(&text.text) {
        diags.push(diagnostic.at(text.site.clone(), ""));
    }
}

/// `ready = { http = …, within = …, fail_on_log = […] }`.
fn ready(table: Table<'_>, diags: &mut Vec<Diagnostic>) -> Option<ReadyDef> {
    const SIGNS: &[&str] = &["http", "tcp", "listen", "file", "log", "alive"];
    let mut table = table.named("`ready`");
    let site = table.site().clone();
    let mut probes = Vec::new();
    probes.extend(table.opt_str("http", diags).map(ProbeDef::Http));
    probes.extend(table.opt_str("tcp", diags).map(ProbeDef::Tcp));
    if let Some(item) = table.item("listen") {
        probes.extend(number_or_expr(item, "`listen`", diags).map(ProbeDef::Listen));
    }
    probes.extend(table.opt_str("file", diags).map(ProbeDef::File));
    if let Some(log) = table.opt_str("log", diags) {
        check_regex(&log, diags);
        probes.push(ProbeDef::Log(log));
    }
    if let Some(alive) = table.opt_bool("alive", diags) {
        if alive.value {
            probes.push(ProbeDef::Alive);
        } else {
            let message = "`alive` is a sign of readiness and can only be true";
            diags.push(
                Diagnostic::error("wrong-type", message)
                    .at(alive.site, "")
                    .hint(
                        "write `alive = true`, or another sign such as `tcp`, or take `ready` away",
                    ),
            );
            return None;
        }
    }
    let within_s = table
        .opt_duration("within", diags)
        .map_or(READY_WITHIN_S, |s| s.value);
    let fail_on_log = regexes(table.str_list("fail_on_log", diags), diags);
    table.remaining(diags, "in `ready`");
    if probes.len() == 1 {
        return probes.pop().map(|probe| ReadyDef {
            probe,
            within_s,
            fail_on_log,
        });
    }
    // A sign of the wrong type has its finding already.
    let written = SIGNS.iter().filter(|sign| table.has(sign)).count();
    if written != 1 {
        diags.push(
            Diagnostic::error(
                "missing-key",
                format!(
                    "`ready` needs exactly one of {}; found {written}",
                    SIGNS.join(", ")
                ),
            )
            .at(site, "")
            .hint("as in `ready = { tcp = \"{{ self.ip }}:{{ self.port.http }}\" }`"),
        );
    }
    None
}

/// `health` of a service.
fn health_of(mut table: Table<'_>, diags: &mut Vec<Diagnostic>) -> Health {
    let every_s = table.opt_duration("every", diags).map(|s| s.value);
    let misses = table.opt_int("misses", diags);
    table.remaining(diags, "in `health`");
    let misses = misses.and_then(|misses| match u32::try_from(misses.value) {
        Ok(number) => Some(number),
        Err(_) => {
            let text = format!("`misses` cannot be {}", misses.value);
            let found = Diagnostic::error("out-of-range", text).at(misses.site, "");
            diags.push(found.hint("0 means that nobody looks; 3 is the default"));
            None
        }
    });
    Health {
        every_s,
        misses: misses.unwrap_or(Health::default().misses),
    }
}

/// `released = { run = …, within = … }`.
fn released(table: Table<'_>, diags: &mut Vec<Diagnostic>) -> Option<ReleasedDef> {
    let mut table = table.named("`released`");
    let run = table.req_str("run", diags);
    let within_s = table
        .opt_duration("within", diags)
        .map_or(RELEASED_WITHIN_S, |s| s.value);
    table.remaining(diags, "in `released`");
    Some(ReleasedDef {
        run: run?,
        within_s,
    })
}

/// `[[RULE.service]]`.
pub(super) fn service(
    table: Table<'_>,
    draft: &mut Draft,
    diags: &mut Vec<Diagnostic>,
) -> Option<ServiceDef> {
    let mut table = table.named("a service");
    let name = table.req_str("name", diags);
    if let Some(name) = &name {
        check_name(name, "a service", diags);
        table = table.named(format!("service `{}`", name.text));
    }
    let role = table.req_str("role", diags);
    let run = table.req_str("run", diags);
    let env = (table.opt_table("env", diags)).map_or_else(BTreeMap::new, |env| {
        texts(env, "an environment variable", diags)
    });
    let ports = ports(&mut table, diags);
    let after = table.str_list("after", diags);
    let ready = match table.req("ready", diags) {
        Some(item) => item
            .as_table("`ready`", diags)
            .and_then(|t| ready(t, diags)),
        None => None,
    };
    let stop_grace_s = table
        .opt_duration("stop_grace", diags)
        .map_or(STOP_GRACE_S, |s| s.value);
    let health = table.opt_table("health", diags);
    let health = health.map_or_else(Health::default, |table| health_of(table, diags));
    let released = (table.opt_table("released", diags)).and_then(|table| released(table, diags));
    table.remaining(diags, "in a service");
    draft
        .refs
        .extend(role.clone().map(|role| Ref::new(Target::Role, role)));
    draft.refs.extend(
        after
            .iter()
            .map(|after| Ref::new(Target::Service, after.clone())),
    );
    let name = name?;
    draft.name_site(&name);
    Some(ServiceDef {
        name: name.text,
        role: role?.text,
        run: run?,
        env,
        ports,
        after: after.into_iter().map(|text| text.text).collect(),
        ready: ready?,
        stop_grace_s,
        health,
        released,
        site: table.site().clone(),
    })
}

/// `[[RULE.step]]`.
pub(super) fn step(
    table: Table<'_>,
    draft: &mut Draft,
    diags: &mut Vec<Diagnostic>,
) -> Option<StepDef> {
    let mut table = table.named("a step");
    let name = table.req_str("name", diags);
    if let Some(name) = &name {
        check_name(name, "a step", diags);
        table = table.named(format!("step `{}`", name.text));
    }
    let role = table.opt_str("role", diags);
    let run = table.req_str("run", diags);
    let env = (table.opt_table("env", diags)).map_or_else(BTreeMap::new, |env| {
        texts(env, "an environment variable", diags)
    });
    let timeout =
        (table.req("timeout", diags)).and_then(|item| seconds_or_expr(item, "`timeout`", diags));
    let gang = table.opt_str("gang", diags);
    let after = table.str_list("after", diags);
    let ready = (table.opt_table("ready", diags)).and_then(|table| ready(table, diags));
    let ports = ports(&mut table, diags);
    table.remaining(diags, "in a step");
    draft
        .refs
        .extend(role.clone().map(|role| Ref::new(Target::Role, role)));
    for text in &after {
        let target = Target::Member(gang.as_ref().map(|gang| gang.text.clone()));
        draft.refs.push(Ref::new(target, text.clone()));
    }
    let name = name?;
    draft.name_site(&name);
    Some(StepDef {
        name: name.text,
        role: role.map(|text| text.text),
        run: run?,
        env,
        timeout: timeout?,
        gang: gang.map(|text| text.text),
        after: after.into_iter().map(|text| text.text).collect(),
        ready,
        ports,
        site: table.site().clone(),
    })
}
