//! Whether the parts of a rule fit together. A rule that passes has no name, reference, expression
//! or template that could turn out wrong later for a reason that can be known now.

pub(super) mod shape;

use std::collections::{BTreeMap, BTreeSet};

use super::draft::{Ref, Target};
use super::expr::Expr;
use super::jinja::name_hint;
use super::lex::is_keyword;
use super::model::{Affects, ProbeDef, ReadyDef, Rule, RuleKind, ServiceDef, StepDef};
use super::names::Names;
use super::order;
use super::params;
use super::script;
use super::settings;
use super::template::{Mode, Template};
use crate::error::{Diagnostic, Site};
use crate::source::Text;

/// Names that templates have for themselves.
const RESERVED: &[&str] = &[
    "self", "service", "step", "out", "work", "inputs", "session", "loop", "range",
];

/// Checks a whole rule and finds the instruments that it calls.
pub(super) fn rule(
    rule: &mut Rule,
    refs: &[Ref],
    name_sites: &[Text],
    instruments: &[&str],
    diags: &mut Vec<Diagnostic>,
) {
    let mut check = Check {
        rule,
        diags: Vec::new(),
        used: BTreeSet::new(),
    };
    check.kind();
    check.names(name_sites);
    for reference in refs {
        check.reference(reference);
    }
    check.expressions();
    for service in &rule.services {
        check.service(service);
    }
    for step in &rule.steps {
        check.step(step);
    }
    check.valid();
    check.outputs();
    check.diags.extend(settings::cycles(rule));
    check.diags.extend(order::gangs(rule));
    if let Err(diagnostic) = order::services(rule) {
        check.diags.push(*diagnostic);
    }
    check.unused();
    let unread = check.unread();
    let mut found = check.diags;
    let mut called = BTreeSet::new();
    let runs = (rule.services.iter().map(|s| &s.run)).chain(rule.steps.iter().map(|s| &s.run));
    for run in runs {
        called.extend(script::instruments(run, instruments, &mut found));
    }
    rule.instruments = called.into_iter().collect();
    rule.unread = unread;
    for diagnostic in found {
        // One wrong text may be seen from several sides: the rule's `env` from every step.
        if !diags.contains(&diagnostic) {
            diags.push(diagnostic);
        }
    }
}

/// Whether a finding may only follow from parts of the rule that could not be read.
pub(super) fn may_follow(diagnostic: &Diagnostic) -> bool {
    const CODES: &[&str] = &[
        "undefined-variable",
        "unknown-name",
        "missing-part",
        "unused-parameter",
        "unused-role",
        "unused-variable",
    ];
    CODES.contains(&diagnostic.code)
}

struct Check<'a> {
    rule: &'a Rule,
    diags: Vec<Diagnostic>,
    /// Parameters and variables that something mentions.
    used: BTreeSet<String>,
}

impl Check<'_> {
    fn push(&mut self, code: &'static str, message: String, site: &Site, hint: &str) {
        let mut diagnostic = Diagnostic::error(code, message).at(site.clone(), "");
        if !hint.is_empty() {
            diagnostic = diagnostic.hint(hint);
        }
        self.diags.push(diagnostic);
    }

    /// Names that would hide each other.
    fn names(&mut self, name_sites: &[Text]) {
        let rule = self.rule;
        let mut taken: BTreeMap<&str, (&str, &Site)> = BTreeMap::new();
        let named = (rule.params.iter().map(|(n, p)| (n, "parameter", &p.site)))
            .chain(rule.lets.iter().map(|(n, t)| (n, "variable", &t.site)))
            .chain(rule.roles.iter().map(|(n, r)| (n, "role", &r.site)));
        for (name, what, site) in named {
            if RESERVED.contains(&name.as_str()) || is_keyword(name) {
                let message =
                    format!("`{name}` cannot be the name of a {what}: it has a meaning already");
                let hint = format!("reserved: {}", RESERVED.join(", "));
                self.push("reserved-name", message, site, &hint);
                continue;
            }
            match taken.get(name.as_str()) {
                Some((other, first)) => self.diags.push(
                    Diagnostic::error(
                        "duplicate-name",
                        format!("the {what} `{name}` has the name of a {other}"),
                    )
                    .at(site.clone(), "")
                    .at((*first).clone(), format!("the {other}"))
                    .hint("templates call both by name, so each needs its own"),
                ),
                None => {
                    taken.insert(name, (what, site));
                }
            }
        }
        let mut parts: BTreeMap<&str, &Text> = BTreeMap::new();
        for name in name_sites {
            if let Some(first) = parts.insert(&name.text, name) {
                self.diags.push(
                    Diagnostic::error(
                        "duplicate-name",
                        format!("two services or steps are called `{}`", name.text),
                    )
                    .at(name.site.clone(), "")
                    .at(first.site.clone(), "first here"),
                );
            }
        }
        // Own steps beside inherited services, or the other way round.
        for step in &rule.steps {
            if let Some(service) = rule.services.iter().find(|s| s.name == step.name)
                && !parts.contains_key(step.name.as_str())
            {
                let message = format!("a service and a step are both called `{}`", step.name);
                self.diags.push(
                    Diagnostic::error("duplicate-name", message)
                        .at(step.site.clone(), "")
                        .at(service.site.clone(), "the service"),
                );
            }
        }
    }

    fn reference(&mut self, reference: &Ref) {
        let rule = self.rule;
        let (what, known): (_, BTreeSet<&str>) = match &reference.target {
            Target::Role => ("role", rule.roles.keys().map(String::as_str).collect()),
            Target::Service => (
                "service",
                rule.services.iter().map(|s| s.name.as_str()).collect(),
            ),
            Target::Param => (
                "parameter",
                rule.params.keys().map(String::as_str).collect(),
            ),
            Target::Document => ("output", rule.outputs.keys().map(String::as_str).collect()),
            Target::Member(gang) => (
                "step of this gang",
                (rule.steps.iter())
                    .filter(|step| gang.is_some() && step.gang == *gang)
                    .map(|step| step.name.as_str())
                    .collect(),
            ),
        };
        let name = reference.name.text.as_str();
        if !known.contains(name) {
            let diagnostic =
                Diagnostic::error("unknown-name", format!("there is no {what} `{name}`"))
                    .at(reference.name.site.clone(), "");
            self.diags.push(if reference.target == Target::Member(None) {
                diagnostic.hint("`after` orders the steps of one gang; steps without a `gang` run in file order")
            } else {
                name_hint(diagnostic, name, &known)
            });
            return;
        }
        if reference.target == Target::Document
            && rule
                .outputs
                .get(name)
                .is_some_and(|output| output.schema.is_none())
        {
            let message = format!("the output `{name}` has no `schema`, so it is not read as JSON");
            let hint = "metrics and samples come from outputs with a schema";
            self.push("unknown-name", message, &reference.name.site, hint);
        }
    }

    fn settings_names(&self) -> Names {
        (self.rule.params.keys().chain(self.rule.lets.keys())).collect()
    }

    fn expr(&mut self, text: &Text, names: &Names) {
        match Expr::compile(text) {
            Ok(expr) => {
                self.used.extend(expr.vars().iter().cloned());
                self.diags.extend(expr.check_names(names));
            }
            Err(diagnostic) => self.diags.push(diagnostic),
        }
    }

    fn template(&mut self, text: &Text, mode: Mode, names: &Names, service: bool) {
        match Template::compile(text, mode) {
            Ok(template) => {
                self.used.extend(template.vars().iter().cloned());
                for mut diagnostic in template.check_names(names) {
                    let of_node = ["`out`", "`session`", "`step`", "`inputs`"];
                    if service
                        && of_node
                            .iter()
                            .any(|name| diagnostic.message.starts_with(name))
                    {
                        diagnostic.hints = vec![
                            "a service outlives a node and serves several, so it knows none".into(),
                        ];
                    }
                    self.diags.push(diagnostic);
                }
                if mode == Mode::Shell {
                    let plain = |name: &str| {
                        (self.rule.params.get(name)).is_some_and(|p| params::never_quoted(&p.ty))
                    };
                    self.diags.extend(script::lint(text, plain));
                }
            }
            Err(diagnostic) => self.diags.push(diagnostic),
        }
    }

    fn expressions(&mut self) {
        let rule = self.rule;
        let names = self.settings_names();
        for text in rule.lets.values() {
            self.expr(text, &names);
        }
        for require in &rule.require {
            self.expr(&require.that, &names);
        }
        for role in rule.roles.values() {
            if let Some(gpus) = &role.gpus {
                self.expr(gpus, &names);
            }
        }
        for step in &rule.steps {
            let before = self.diags.len();
            self.expr(&step.timeout, &names);
            for diagnostic in &mut self.diags[before..] {
                let hint = "`timeout` is a duration such as \"30m\", or an expression in seconds";
                diagnostic.hints.push(hint.to_owned());
            }
        }
    }

    /// What every script may mention; `ports` are those of `self`.
    fn script_names(&self, ports: &BTreeMap<String, u16>, on_host: bool) -> Names {
        let place = |ports: Option<&BTreeMap<String, u16>>| {
            let mut place = Names::new();
            place.value("ip").value("host");
            if let Some(ports) = ports {
                place.group("port", ports.keys().collect());
            }
            place
        };
        let mut names = self.settings_names();
        for role in self.rule.roles.keys() {
            names.group(role, place(None));
        }
        let mut services = Names::new();
        for service in &self.rule.services {
            services.group(&service.name, place(Some(&service.ports)));
        }
        names.group("service", services);
        if on_host {
            names.group("self", place(Some(ports)));
        }
        names.value("work");
        names
    }

    fn ready(&mut self, ready: &ReadyDef, names: &Names, service: bool) {
        match &ready.probe {
            ProbeDef::Http(text)
            | ProbeDef::Tcp(text)
            | ProbeDef::Listen(text)
            | ProbeDef::File(text) => {
                self.template(text, Mode::Plain, names, service);
            }
            ProbeDef::Log(_) | ProbeDef::Alive => {}
        }
    }

    fn script(&mut self, run: &Text, env: &BTreeMap<String, Text>, names: &Names, service: bool) {
        if run.text.trim().is_empty() {
            let hint = "write the script, or take the step or service away";
            self.push("missing-part", "`run` is empty".into(), &run.site, hint);
        }
        self.template(run, Mode::Shell, names, service);
        let rule = self.rule;
        let inherited = rule.env.iter().filter(|(name, _)| !env.contains_key(*name));
        for (_, text) in env.iter().chain(inherited) {
            self.template(text, Mode::Plain, names, service);
        }
    }

    fn service(&mut self, service: &ServiceDef) {
        let names = self.script_names(&service.ports, true);
        self.script(&service.run, &service.env, &names, true);
        self.ready(&service.ready, &names, true);
        if let Some(released) = &service.released {
            // What it mentions changes no result, so a parameter that is for results is read by
            // something else or by nothing.
            let used = self.used.clone();
            self.script(&released.run, &BTreeMap::new(), &names, true);
            let params = &self.rule.params;
            let result = |name: &str| {
                (params.get(name)).is_some_and(|param| param.affects == Affects::Result)
            };
            self.used
                .retain(|name| used.contains(name) || !result(name));
        }
    }

    fn step(&mut self, step: &StepDef) {
        let analysis = self.rule.kind == RuleKind::Analysis;
        let mut names = self.script_names(&step.ports, !analysis);
        let mut steps = Names::new();
        for step in &self.rule.steps {
            let mut place = Names::new();
            place.value("ip").value("host");
            place.group("port", step.ports.keys().collect());
            steps.group(&step.name, place);
        }
        names.group("step", steps);
        names.group("out", self.rule.outputs.keys().collect());
        names.value("session");
        if analysis {
            names.value("inputs");
        }
        self.script(&step.run, &step.env, &names, false);
        if let Some(ready) = &step.ready {
            self.ready(ready, &names, false);
        }
    }

    /// `valid` sees outputs, metrics and settings in one room, so their names must differ.
    fn valid(&mut self) {
        let rule = self.rule;
        let mut names = self.settings_names();
        let documents = rule
            .outputs
            .iter()
            .filter(|(_, output)| output.schema.is_some());
        let seen = (documents.map(|(name, output)| (name, "output", &output.site)))
            .chain(rule.metrics.iter().map(|(n, m)| (n, "metric", &m.site)));
        for (name, what, site) in seen {
            if names.has(name) {
                let message = format!("the {what} `{name}` has a name that is taken in `valid`");
                let hint =
                    "parameters, variables, outputs and metrics are all called by name there";
                self.push("duplicate-name", message, site, hint);
            }
            names.value(name);
        }
        for text in &rule.valid {
            self.expr(text, &names);
        }
    }
}
