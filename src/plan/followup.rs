//! `[[followup]]`: conditions that bring ad-hoc patterns into a run. Its patterns exist and its
//! condition can be read; the names in it are those of results, which are not known here.

use super::expand::Expanded;
use super::model::Followup;
use super::resolve::{Found, Index};
use crate::error::Diagnostic;
use crate::rule::Expr;

/// Checks the follow-ups of a plan.
pub(super) fn followups(
    index: &Index<'_>,
    plan: &Expanded,
    diags: &mut Vec<Diagnostic>,
) -> Vec<Followup> {
    let mut followups = Vec::new();
    for decl in &plan.decl.followups {
        if let Err(found) = Expr::compile(&decl.when) {
            diags.push(found);
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
            if let Some(pattern) = found.iter().find(|pattern| !pattern.adhoc) {
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
