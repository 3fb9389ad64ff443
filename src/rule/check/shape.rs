//! Which parts a rule has: what its kind asks for, outputs that do not overwrite each other, and
//! what nothing uses.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use crate::error::{Diagnostic, Site};
use crate::rule::model::{Affects, Param, Rule, RuleKind};

impl Check<'_> {
    pub(super) fn kind(&mut self) {
        let rule = self.rule;
        let id = &rule.id;
        match rule.kind {
            RuleKind::Measure => {
                let parts = [
                    (
                        rule.steps.is_empty(),
                        "step",
                        format!("[[{}.step]]", table(rule)),
                    ),
                    (
                        rule.outputs.is_empty(),
                        "output",
                        format!("[{}.output]", table(rule)),
                    ),
                ];
                for (missing, what, how) in parts {
                    if missing {
                        let message = format!("rule `{id}` needs at least one {what}");
                        self.push("missing-part", message, &rule.site, &format!("add {how}"));
                    }
                }
                for step in &rule.steps {
                    if step.role.is_none() {
                        let message = format!("step `{}` needs `role`", step.name);
                        let hint = "it says on whose host the step runs";
                        self.push("missing-key", message, &step.site, hint);
                    }
                }
            }
            RuleKind::Analysis => {
                let hint = "an analysis runs beside doe, never on a host";
                if let Some((name, role)) = rule.roles.first_key_value() {
                    let message = format!("the analysis `{id}` cannot have the role `{name}`");
                    self.push("not-for-analysis", message, &role.site, hint);
                }
                if let Some(service) = rule.services.first() {
                    let message = format!(
                        "the analysis `{id}` cannot have the service `{}`",
                        service.name
                    );
                    self.push("not-for-analysis", message, &service.site, hint);
                }
                for step in &rule.steps {
                    let part = [
                        (step.role.is_some(), "role"),
                        (!step.ports.is_empty(), "ports"),
                        (step.gang.is_some(), "gang"),
                        (step.ready.is_some(), "ready"),
                    ];
                    for (there, key) in part {
                        if there {
                            let message =
                                format!("step `{}` of an analysis cannot have `{key}`", step.name);
                            self.push("not-for-analysis", message, &step.site, hint);
                        }
                    }
                }
                if rule.steps.is_empty() || rule.outputs.is_empty() {
                    let message = format!("rule `{id}` needs at least one step and one output");
                    let hint = format!("add [[{0}.step]] and [{0}.output]", table(rule));
                    self.push("missing-part", message, &rule.site, &hint);
                }
            }
        }
    }

    pub(super) fn outputs(&mut self) {
        let rule = self.rule;
        let mut paths: BTreeMap<&str, &Site> = BTreeMap::new();
        let mut outputs: Vec<_> = rule.outputs.iter().collect();
        outputs.sort_by_key(|(_, output)| output.site.range.start);
        for (name, output) in outputs {
            if let Some(first) = paths.insert(&output.path, &output.site) {
                self.diags.push(
                    Diagnostic::error(
                        "duplicate-name",
                        format!(
                            "the output `{name}` has the path of another: `{}`",
                            output.path
                        ),
                    )
                    .at(output.site.clone(), "")
                    .at(first.clone(), "the other"),
                );
            }
            let Some(role) = &output.role else { continue };
            let runs = rule
                .steps
                .iter()
                .any(|step| step.role.as_ref() == Some(role));
            if rule.roles.contains_key(role) && !runs {
                let message =
                    format!("no step runs as `{role}`, which is to leave `{name}` behind");
                self.push("unknown-name", message, &output.site, "");
            }
        }
    }

    /// Parameters of the result that nothing mentions.
    pub(super) fn unread(&self) -> BTreeSet<String> {
        let params = self.rule.params.iter();
        params
            .filter(|(name, param)| param.affects == Affects::Result && !self.used.contains(*name))
            .map(|(name, _)| name.clone())
            .collect()
    }

    pub(super) fn unused(&mut self) {
        let rule = self.rule;
        for (name, role) in &rule.roles {
            let runs = (rule.services.iter().any(|s| &s.role == name))
                || rule.steps.iter().any(|s| s.role.as_ref() == Some(name));
            if !runs && !self.used.contains(name) {
                self.diags.push(
                    Diagnostic::warning(
                        "unused-role",
                        format!("nothing runs as `{name}` and nothing mentions it"),
                    )
                    .at(role.site.clone(), ""),
                );
            }
        }
        for name in self.unread() {
            if let Some(param) = rule.params.get(&name) {
                self.diags.push(unused_parameter(&name, param));
            }
        }
        for (name, text) in &rule.lets {
            if !self.used.contains(name) {
                self.diags.push(
                    Diagnostic::warning(
                        "unused-variable",
                        format!("nothing in the rule mentions the variable `{name}`"),
                    )
                    .at(text.site.clone(), ""),
                );
            }
        }
    }
}

/// A parameter whose value changes nothing but the key.
pub(in crate::rule) fn unused_parameter(name: &str, param: &Param) -> Diagnostic {
    Diagnostic::warning(
        "unused-parameter",
        format!("nothing in the rule mentions the parameter `{name}`"),
    )
    .at(param.site.clone(), "")
    .hint("a change of it would run patterns again for nothing; say `affects = \"cosmetic\"` if it only names things")
}

fn table(rule: &Rule) -> &str {
    rule.id
        .0
        .split_once('.')
        .map_or(rule.id.0.as_str(), |(_, table)| table)
}
