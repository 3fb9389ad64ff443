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
use crate::plan::model::{Expectation, Pattern};
use crate::plan::values::Settings;
use crate::rule::model::Rule;

/// The common part of the patterns of one matrix.
pub(super) struct Shared<'u> {
    unit: &'u Unit<'u>,
    title: Option<Arc<str>>,
    factors: Arc<[Arc<str>]>,
    expect: Arc<[Expectation]>,
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
        row: &Row,
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let own = unit.own.map(|own| &own.common);
        let layer = &unit.decl.common;
        let title = own.and_then(|own| own.title.as_ref());
        let estimate = own.and_then(|own| own.estimate.as_ref());
        Self {
            unit,
            title: title.map(|title| title.text.as_str().into()),
            factors: (factors.iter().map(|f| f.decl.key.text.as_str().into())).collect(),
            expect: expect(unit, diags),
            tags: tags(unit, diags),
            adhoc: (own.and_then(|own| own.adhoc).or(layer.adhoc)).unwrap_or(false),
            estimate: estimate
                .or(layer.estimate.as_ref())
                .and_then(|decl| Estimate::compile(decl, row, diags)),
            none,
        }
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
            layer: self.unit.layer,
            title: self.title.clone(),
            rule: self.unit.rule.clone(),
            settings,
            factors: self.factors.clone(),
            needs: self.none.clone(),
            gate: self.none.clone(),
            expect: self.expect.clone(),
            tags: self.tags.clone(),
            adhoc: self.adhoc,
            estimate_s: self.estimate.as_mut().and_then(|e| e.seconds(row, diags)),
            site: self.unit.site().clone(),
        }
    }
}

/// The pattern's expectations over the layer's, in file order.
fn expect(unit: &Unit<'_>, diags: &mut Vec<Diagnostic>) -> Arc<[Expectation]> {
    let own = unit.own.map_or(&[][..], |own| &own.common.expect);
    for expectation in own {
        if !unit.rule.metrics.contains_key(&expectation.metric) {
            diags.push(unknown_metric(expectation, &[&unit.rule]));
        }
    }
    let of_layer = unit.decl.common.expect.iter().filter(|expectation| {
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
