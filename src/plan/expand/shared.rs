//! What all cells of one matrix have in common beside settings: title, expectations, tags. A
//! layer's expectation holds for those of its patterns whose rule measures the metric; a
//! pattern's own replaces it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::base::name_hints;
use super::condition::tell_once;
use super::estimate::Estimate;
use super::ground::Factor;
use super::memo::Row;
use super::unit::Unit;
use crate::error::Diagnostic;
use crate::label::{Label, is_valid_name};
use crate::plan::model::{Expectation, Pattern, Repeats};
use crate::plan::schema::{Common, ExpectDecl};
use crate::plan::uses::{self, Uses};
use crate::plan::values::Settings;
use crate::rule::classes;
use crate::rule::model::{Rule, RuleKind};
use crate::rule::retry::{RetryDef, RetryPolicy};

/// The common part of the patterns of one matrix.
pub(super) struct Shared<'u> {
    unit: &'u Unit<'u>,
    title: Option<Arc<str>>,
    factors: Arc<[Arc<str>]>,
    expect: Arc<[Expectation]>,
    expect_class: Option<Arc<str>>,
    retry: Arc<RetryPolicy>,
    uses: Arc<Uses>,
    /// Replicates of each pattern.
    replicates: u32,
    repeats: Arc<Repeats>,
    tags: Arc<BTreeSet<String>>,
    adhoc: bool,
    estimate: Option<Estimate>,
    none: Arc<[Label]>,
}

impl<'u> Shared<'u> {
    /// Gathers it. `none` is the empty list that stands for needs and gates not yet followed.
    pub(super) fn new(
        unit: &'u Unit<'u>,
        factors: &[Factor<'_>],
        none: Arc<[Label]>,
        retry: RetryDef,
        row: &Row,
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let own = unit.own.map(|own| &own.common);
        let layer = &unit.decl.common;
        let title = own.and_then(|own| own.title.as_ref());
        let said = own.map(|own| own.repeat.clone()).unwrap_or_default();
        let nearest = if unit.own.is_some() {
            &said
        } else {
            &layer.repeat
        };
        let repeat = said.over(&layer.repeat).over(&unit.plan.repeat);
        let (replicates, repeats) = repeat.resolve(&unit.rule, nearest, diags);
        let estimate = own.and_then(|own| own.estimate.as_ref());
        Self {
            unit,
            title: title.map(|title| title.text.as_str().into()),
            factors: (factors.iter().map(|f| f.decl.key.text.as_str().into())).collect(),
            expect: expect(unit, diags),
            expect_class: expect_class(unit, diags),
            retry: Arc::new(retry_of(unit, retry).policy()),
            uses: Arc::new(uses_of(unit, diags)),
            replicates,
            repeats: Arc::new(repeats),
            tags: tags(unit, diags),
            adhoc: (own.and_then(|own| own.adhoc).or(layer.adhoc)).unwrap_or(false),
            estimate: estimate
                .or(layer.estimate.as_ref())
                .and_then(|decl| Estimate::compile(decl, row, diags)),
            none,
        }
    }

    /// Numbers of the replicates after the first.
    pub(super) fn further(&self) -> std::ops::RangeInclusive<u32> {
        2..=self.replicates
    }

    /// The pattern of one cell.
    pub(super) fn pattern(
        &mut self,
        label: Label,
        settings: Settings,
        row: &Row,
        diags: &mut Vec<Diagnostic>,
    ) -> Pattern {
        Pattern {
            label,
            replicate: 1,
            repeats: self.repeats.clone(),
            layer: self.unit.layer,
            title: self.title.clone(),
            rule: self.unit.rule.clone(),
            settings,
            factors: self.factors.clone(),
            needs: self.none.clone(),
            gate: self.none.clone(),
            expect: self.expect.clone(),
            expect_class: self.expect_class.clone(),
            retry: self.retry.clone(),
            uses: self.uses.clone(),
            tags: self.tags.clone(),
            adhoc: self.adhoc,
            estimate_s: self.estimate.as_mut().and_then(|e| e.seconds(row, diags)),
            site: self.unit.site().clone(),
        }
    }
}

/// What is said of further attempts, the innermost first: pattern, layer, plan, rule, workspace.
fn retry_of(unit: &Unit<'_>, workspace: RetryDef) -> RetryDef {
    let own = unit.own.map(|own| own.common.retry).unwrap_or_default();
    own.over(unit.decl.common.retry)
        .over(unit.plan.retry)
        .over(unit.rule.retry)
        .over(workspace)
}

/// What is taken of tokens and links, the innermost first: pattern, layer, plan. An analysis runs
/// beside `doe` and takes nothing.
fn uses_of(unit: &Unit<'_>, diags: &mut Vec<Diagnostic>) -> Uses {
    let none = Uses::new();
    let own = unit.own.map_or(&none, |own| &own.common.uses);
    if unit.rule.kind == RuleKind::Measure {
        let outer = uses::over(&unit.decl.common.uses, &unit.plan.uses);
        return uses::over(own, &outer);
    }
    let nearest = unit
        .own
        .map_or(&unit.decl.common.uses, |own| &own.common.uses);
    if let Some((name, taken)) = nearest.iter().next() {
        let text = format!("an analysis takes no `{name}`: it runs beside `doe`, on no host");
        let found = Diagnostic::error("not-for-analysis", text);
        tell_once(diags, found.at(taken.name.clone(), ""));
    }
    none
}

/// The class of the failure that is the result: the pattern's own word, else the layer's, unless
/// the pattern says what its metrics should be.
fn expect_class(unit: &Unit<'_>, diags: &mut Vec<Diagnostic>) -> Option<Arc<str>> {
    let own = unit.own.and_then(|own| own.common.expect.as_ref());
    let Some(ExpectDecl::Class(text)) = own.or(unit.decl.common.expect.as_ref()) else {
        return None;
    };
    let class = text.text.as_str();
    if classes::is_infrastructure(&unit.rule, class) {
        let found = Diagnostic::error(
            "bad-class",
            format!(
                "`{class}` is no result: the infrastructure is its cause, and it is tried again"
            ),
        );
        let hint = "a failure that is a result has its cause in what is measured, as `oom` has";
        tell_once(diags, found.at(text.site.clone(), "").hint(hint));
        return None;
    }
    let known = classes::known(&unit.rule);
    if !known.contains(class) {
        let rule = &unit.rule.id;
        let found = Diagnostic::error(
            "unknown-class",
            format!("no failure of rule `{rule}` has the class `{class}`"),
        );
        let names = known.iter().copied();
        let names = names.filter(|name| !classes::is_infrastructure(&unit.rule, name));
        let what = format!("classes that `{rule}` can end with");
        let found = name_hints(found.at(text.site.clone(), ""), class, names, &what);
        tell_once(
            diags,
            found.hint(
                "`expect` is a table of metrics, or the class of the failure that is the result",
            ),
        );
        return None;
    }
    Some(class.into())
}

/// The pattern's expectations over the layer's, in file order. A failure has no metrics.
fn expect(unit: &Unit<'_>, diags: &mut Vec<Diagnostic>) -> Arc<[Expectation]> {
    let own = unit.own.map_or(&[][..], |own| own.common.metrics());
    let fails = |common: &Common| matches!(common.expect, Some(ExpectDecl::Class(_)));
    if unit.own.is_some_and(|own| fails(&own.common)) {
        return Arc::new([]);
    }
    for expectation in own {
        if !unit.rule.metrics.contains_key(&expectation.metric) {
            diags.push(unknown_metric(expectation, &[&unit.rule]));
        }
    }
    let of_layer = unit.decl.common.metrics().iter().filter(|expectation| {
        unit.rule.metrics.contains_key(&expectation.metric)
            && own.iter().all(|own| own.metric != expectation.metric)
    });
    of_layer.chain(own).cloned().collect()
}

fn tags(unit: &Unit<'_>, diags: &mut Vec<Diagnostic>) -> Arc<BTreeSet<String>> {
    let own = unit.own.map_or(&[][..], |own| &own.common.tags);
    let all = unit
        .plan
        .tags
        .iter()
        .chain(&unit.decl.common.tags)
        .chain(own);
    let mut tags = BTreeSet::new();
    for tag in all {
        if is_valid_name(&tag.text) {
            tags.insert(tag.text.clone());
            continue;
        }
        let found = Diagnostic::error("bad-tag", format!("`{}` cannot be a tag", tag.text))
            .at(tag.site.clone(), "")
            .hint("tags are letters, digits and `._+=,-`, and start with a letter or digit");
        tell_once(diags, found);
    }
    Arc::new(tags)
}

/// `unknown-metric`: none of the rules measures this.
pub(super) fn unknown_metric(expectation: &Expectation, rules: &[&Arc<Rule>]) -> Diagnostic {
    let ids: Vec<_> = rules.iter().map(|rule| format!("`{}`", rule.id)).collect();
    let found = Diagnostic::error(
        "unknown-metric",
        format!(
            "`{}` is not a metric of {}",
            expectation.metric,
            ids.join(" or ")
        ),
    )
    .at(expectation.site.clone(), "");
    let names = rules.iter().flat_map(|rule| rule.metrics.keys());
    let what = format!("metrics of {}", ids.join(" and "));
    name_hints(found, &expectation.metric, names.map(String::as_str), &what)
}
