//! `[[followup]]`: conditions that bring ad-hoc patterns into a run. Its patterns exist and its
//! condition mentions nothing but what a result has: settings, metrics, and `expected.METRIC` of
//! metrics that some pattern of the plan has an expectation of.

use std::collections::HashSet;

use super::expand::Expanded;
use super::model::{Followup, Pattern, Plan};
use super::resolve::{Found, Index};
use crate::error::Diagnostic;
use crate::rule::{Expr, Names};

/// Checks the follow-ups of a plan.
pub(super) fn followups(
    index: &Index<'_>,
    plan: &Expanded,
    diags: &mut Vec<Diagnostic>,
) -> Vec<Followup> {
    let mut followups = Vec::new();
    let names = result_names(&plan.plan);
    for decl in &plan.decl.followups {
        match Expr::compile(&decl.when) {
            // What is missing from a plan with findings may have been named here.
            Ok(_) if plan.incomplete => {}
            Ok(expr) => diags.extend(expr.check_names(&names)),
            Err(found) => diags.push(found),
        }
        let mut patterns = Vec::new();
        for text in &decl.patterns {
            let found = match index.find(&plan.plan.package, &text.text, "unresolved-pattern", true)
            {
                Ok(Found::Layer(plan, layer)) => index.members(plan, layer, true).collect(),
                Ok(Found::Pattern(pattern)) => vec![pattern],
                Ok(Found::Unknowable) => Vec::new(),
                Err(found) => {
                    diags.push(found.at(text.site.clone(), ""));
                    continue;
                }
            };
            let runs_anyway =
                |pattern: &&&Pattern| !pattern.adhoc && !index.incomplete(pattern.label.package());
            if let Some(pattern) = found.iter().find(runs_anyway) {
                diags.push(
                    Diagnostic::warning(
                        "not-adhoc",
                        format!(
                            "`{}` is not ad-hoc, so it runs whether this holds or not",
                            pattern.label
                        ),
                    )
                    .at(text.site.clone(), "")
                    .at(pattern.site.clone(), "defined here")
                    .hint("write `adhoc = true` in its layer or in the pattern"),
                );
            }
            patterns.extend(found.into_iter().map(|pattern| pattern.label.clone()));
        }
        if decl.patterns.is_empty() {
            diags.push(
                Diagnostic::error("empty-list", "a follow-up needs at least one of `patterns`")
                    .at(decl.site.clone(), ""),
            );
        }
        patterns.sort_unstable();
        patterns.dedup();
        followups.push(Followup {
            patterns,
            when: decl.when.text.clone(),
            budget_s: decl.budget_s,
            site: decl.site.clone(),
        });
    }
    followups
}

/// What a finished pattern of a plan can be asked for.
fn result_names(plan: &Plan) -> Names {
    let mut names = Names::new();
    let mut expected = Names::new();
    let mut seen = HashSet::new();
    for pattern in &plan.patterns {
        if seen.insert(&pattern.rule.id) {
            for name in pattern
                .rule
                .params
                .keys()
                .chain(pattern.rule.metrics.keys())
            {
                names.value(name);
            }
        }
        for expectation in pattern.expect.iter() {
            expected.value(&expectation.metric);
        }
    }
    names.group("expected", expected);
    names
}
