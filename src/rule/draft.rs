//! A rule as one table of a file says it, before what it extends is put under it. A draft holds
//! what could be understood; `sound` says whether that was everything.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{
    FailureDef, MetricDef, OutputDef, Param, Require, Role, Rule, RuleId, RuleKind, SampleDef,
    ServiceDef, StepDef,
};
use super::retry::RetryDef;
use super::{define, params, parts, results};
use crate::error::{Diagnostic, Severity, Site};
use crate::source::{Entry, Spanned, Text};

/// What a reference must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A role.
    Role,
    /// A service.
    Service,
    /// Another step of the same gang.
    Member(Option<String>),
    /// An output that is a document with a schema.
    Document,
    /// A parameter.
    Param,
}

/// A name that must exist once the rule is whole.
#[derive(Debug, Clone)]
pub(super) struct Ref {
    pub target: Target,
    pub name: Text,
}

impl Ref {
    pub(super) fn new(target: Target, name: Text) -> Self {
        Self { target, name }
    }
}

/// A rule's table, read.
#[derive(Debug)]
pub(super) struct Draft {
    pub id: RuleId,
    pub site: Site,
    pub kind: Option<Spanned<RuleKind>>,
    pub extends: Option<Text>,
    doc: Option<String>,
    version: Option<i64>,
    params: BTreeMap<String, Param>,
    require: Vec<Require>,
    lets: BTreeMap<String, Text>,
    env: BTreeMap<String, Text>,
    roles: BTreeMap<String, Role>,
    services: Option<Vec<ServiceDef>>,
    steps: Option<Vec<StepDef>>,
    outputs: BTreeMap<String, OutputDef>,
    metrics: BTreeMap<String, MetricDef>,
    samples: BTreeMap<String, SampleDef>,
    valid: Vec<Text>,
    compare_only_on: Option<Vec<String>>,
    failures: Vec<FailureDef>,
    retry: RetryDef,
    /// Names that must exist.
    pub refs: Vec<Ref>,
    /// Where services and steps are named.
    pub name_sites: Vec<Text>,
    /// Whether everything was understood.
    pub sound: bool,
}

impl Draft {
    pub(super) fn name_site(&mut self, name: &Text) {
        self.name_sites.push(name.clone());
    }

    /// Reads one top-level table of a rule file.
    pub(super) fn read(stem: &str, entry: &Entry, diags: &mut Vec<Diagnostic>) -> Option<Self> {
        let before = diags.len();
        let name = &entry.key.text;
        if !crate::label::is_valid_name(name) || name.contains('.') {
            diags.push(
                Diagnostic::error("bad-name", format!("`{name}` cannot be the name of a rule"))
                    .at(entry.key.site.clone(), "")
                    .hint("names are letters, digits and `_+=,-`"),
            );
        }
        let what = format!("rule `{stem}.{name}`");
        let mut table = entry.item.as_table(&what, diags)?.named(what);
        let mut draft = Self {
            id: RuleId(format!("{stem}.{name}")),
            site: entry.key.site.clone(),
            kind: None,
            extends: table.opt_str("extends", diags),
            doc: table.opt_str("doc", diags).map(|text| text.text),
            version: table.opt_int("version", diags).map(|s| s.value),
            params: BTreeMap::new(),
            require: parts::require(&mut table, diags),
            lets: BTreeMap::new(),
            env: BTreeMap::new(),
            roles: BTreeMap::new(),
            services: None,
            steps: None,
            outputs: BTreeMap::new(),
            metrics: BTreeMap::new(),
            samples: BTreeMap::new(),
            valid: Vec::new(),
            compare_only_on: None,
            failures: results::failures(&mut table, diags),
            retry: RetryDef::read(&mut table, diags),
            refs: Vec::new(),
            name_sites: Vec::new(),
            sound: false,
        };
        draft.kind = table.opt_str("kind", diags).and_then(|text| {
            let kind = match text.text.as_str() {
                "measure" => RuleKind::Measure,
                "analysis" => RuleKind::Analysis,
                other => {
                    let allowed = ["measure", "analysis", "probe"];
                    diags.push(params::not_one_of("`kind`", other, &allowed, &text.site));
                    return None;
                }
            };
            Some(Spanned {
                value: kind,
                site: text.site,
            })
        });
        if let Some(params) = table.opt_table("param", diags) {
            for entry in params.entries() {
                let named = parts::check_identifier(&entry.key, "a parameter", diags);
                if let Some(param) = define::read(entry, diags).filter(|_| named) {
                    draft.params.insert(entry.key.text.clone(), param);
                }
            }
        }
        if let Some(lets) = table.opt_table("let", diags) {
            draft.lets = parts::texts(lets, "a variable", diags);
        }
        if let Some(env) = table.opt_table("env", diags) {
            draft.env = parts::texts(env, "an environment variable", diags);
        }
        if let Some(roles) = table.opt_table("roles", diags) {
            draft.roles = parts::roles(roles, diags);
        }
        if table.has("service") {
            let services = table.tables("service", diags).into_iter();
            let services = services.filter_map(|t| parts::service(t, &mut draft, diags));
            draft.services = Some(services.collect());
        }
        table.item("service");
        if table.has("step") {
            let steps = table.tables("step", diags).into_iter();
            let steps = steps.filter_map(|t| parts::step(t, &mut draft, diags));
            draft.steps = Some(steps.collect());
        }
        table.item("step");
        if let Some(outputs) = table.opt_table("output", diags) {
            draft.outputs = results::outputs(outputs, &mut draft, diags);
        }
        if let Some(metrics) = table.opt_table("metric", diags) {
            draft.metrics = results::metrics(metrics, &mut draft, diags);
        }
        if let Some(samples) = table.opt_table("sample", diags) {
            draft.samples = results::samples(samples, &mut draft, diags);
        }
        if let Some(valid) = table.opt_table("valid", diags) {
            let mut valid = valid.named("`valid`");
            draft.valid = valid.str_list("that", diags);
            valid.remaining(diags, "in `valid`");
        }
        if table.has("compare_only_on") {
            let names = table.str_list("compare_only_on", diags);
            let refs = names
                .iter()
                .map(|name| Ref::new(Target::Param, name.clone()));
            draft.refs.extend(refs);
            draft.compare_only_on = Some(names.into_iter().map(|text| text.text).collect());
        }
        table.item("compare_only_on");
        table.remaining(diags, "in a rule");
        draft.sound = !(diags[before..].iter()).any(|d| d.severity == Severity::Error);
        Some(draft)
    }

    /// The whole rule: what the draft says over what it extends.
    pub(super) fn into_rule(self, base: Option<&Rule>) -> Rule {
        fn over<T: Clone>(
            base: Option<&BTreeMap<String, T>>,
            own: BTreeMap<String, T>,
        ) -> BTreeMap<String, T> {
            let mut all = base.cloned().unwrap_or_default();
            all.extend(own);
            all
        }
        let mut require = base.map(|b| b.require.clone()).unwrap_or_default();
        for own in self.require {
            require.retain(|inherited| inherited.that.text != own.that.text);
            require.push(own);
        }
        let mut valid = base.map(|b| b.valid.clone()).unwrap_or_default();
        for own in self.valid {
            valid.retain(|inherited| inherited.text != own.text);
            valid.push(own);
        }
        // The first class that fits names a failure, so a rule's own come before inherited ones.
        let mut failures = self.failures;
        failures.extend(base.map(|b| b.failures.clone()).unwrap_or_default());
        Rule {
            id: self.id,
            kind: (self.kind.map(|kind| kind.value))
                .or(base.map(|b| b.kind))
                .unwrap_or(RuleKind::Measure),
            doc: self.doc.or(base.map(|b| b.doc.clone())).unwrap_or_default(),
            version: self.version.or(base.map(|b| b.version)).unwrap_or(1),
            params: over(base.map(|b| &b.params), self.params),
            require,
            lets: over(base.map(|b| &b.lets), self.lets),
            env: over(base.map(|b| &b.env), self.env),
            roles: over(base.map(|b| &b.roles), self.roles),
            services: (self.services.or(base.map(|b| b.services.clone()))).unwrap_or_default(),
            steps: (self.steps.or(base.map(|b| b.steps.clone()))).unwrap_or_default(),
            outputs: over(base.map(|b| &b.outputs), self.outputs),
            metrics: over(base.map(|b| &b.metrics), self.metrics),
            samples: over(base.map(|b| &b.samples), self.samples),
            valid,
            compare_only_on: (self.compare_only_on)
                .or(base.map(|b| b.compare_only_on.clone()))
                .unwrap_or_default(),
            failures,
            retry: self.retry.over(base.map(|b| b.retry).unwrap_or_default()),
            instruments: Vec::new(),
            unread: BTreeSet::new(),
            site: self.site,
        }
    }
}
