//! How often a pattern is measured and in which order: a number of replicates, or as many as it
//! takes until a mean is known well enough, in file order or drawn. Each key is told by the
//! innermost place that says it; what is told here is whole and within its bounds.

use super::expand::{Expanded, name_hints};
use super::model::{Pattern, Reference, Repeats, StopRule};
use crate::error::{Diagnostic, Site};
use crate::rule::model::{Rule, RuleKind};
use crate::rule::params::not_one_of;
use crate::source::{Spanned, Table, Text};

/// Most replicates of one pattern.
const MOST: i64 = 100;

/// What one place says of it.
#[derive(Debug, Clone, Default)]
pub(super) struct RepeatDecl {
    count: Option<Spanned<u32>>,
    random: Option<bool>,
    seed: Option<u64>,
    stop: Option<StopDecl>,
    reference: Option<ReferenceDecl>,
}

/// `reference`.
#[derive(Debug, Clone)]
struct ReferenceDecl {
    every: u32,
    metric: Text,
    within: f64,
    site: Site,
}

/// `stop_when`.
#[derive(Debug, Clone)]
struct StopDecl {
    metric: Text,
    relative_half_width: f64,
    confidence: f64,
    min: u32,
    max: u32,
}

impl RepeatDecl {
    /// `repeat`, `order`, `seed`, `stop_when`.
    pub(super) fn read(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Self {
        let count = whole(table, "repeat", 1..=MOST, diags);
        let stop = match table.opt_table("stop_when", diags) {
            Some(table) => stop(table.named("`stop_when`"), diags),
            None => None,
        };
        let reference = match table.opt_table("reference", diags) {
            Some(table) => reference(table.named("`reference`"), diags),
            None => None,
        };
        let times = count.as_ref().map(|count| &count.site);
        let times = times.or(stop.as_ref().map(|stop| &stop.metric.site));
        if let (Some(site), Some(_)) = (times, &reference) {
            let text = "how often a reference is measured follows from `every`";
            let found = Diagnostic::error("bad-repeat", text).at(site.clone(), "");
            diags.push(found.hint("take `repeat` or `stop_when` away here"));
        }
        if let (Some(count), Some(_)) = (&count, &stop) {
            let text = "`repeat` and `stop_when` both say how often it is measured";
            let found = Diagnostic::error("bad-repeat", text).at(count.site.clone(), "");
            diags.push(found.hint("take `repeat` away: `min` and `max` of `stop_when` bound it"));
        }
        let order = table.opt_str("order", diags);
        let random = order.and_then(|text| match text.text.as_str() {
            "file" => Some(false),
            "random" => Some(true),
            other => {
                let allowed = ["file", "random"];
                diags.push(not_one_of("`order`", other, &allowed, &text.site));
                None
            }
        });
        let seed = whole(table, "seed", 0..=i64::from(u32::MAX), diags);
        Self {
            count,
            random,
            seed: seed.map(|seed| u64::from(seed.value)),
            stop,
            reference,
        }
    }

    /// Takes a reference back that is said of many patterns at once.
    pub(super) fn of_many(&mut self, diags: &mut Vec<Diagnostic>) {
        if let Some(reference) = self.reference.take() {
            let text = "`reference` is said of one pattern";
            let found = Diagnostic::error("bad-repeat", text).at(reference.site, "");
            diags.push(found.hint("move it into the [[layer.pattern]] that is the reference"));
        }
    }

    /// What this place says over what another one does. How often is one matter, whichever way it
    /// is said.
    pub(super) fn over(&self, below: &Self) -> Self {
        let own = self.count.is_some() || self.stop.is_some();
        let times = if own { self } else { below };
        Self {
            count: times.count.clone(),
            stop: times.stop.clone(),
            reference: self.reference.clone().or(below.reference.clone()),
            random: self.random.or(below.random),
            seed: self.seed.or(below.seed),
        }
    }

    /// The number of replicates there may be, and what is said of them. `own` is what the place
    /// nearest to the pattern says, which is meant for it.
    pub(super) fn resolve(
        &self,
        rule: &Rule,
        own: &Self,
        diags: &mut Vec<Diagnostic>,
    ) -> (u32, Repeats) {
        let mut repeats = Repeats {
            random: self.random.unwrap_or(false),
            seed: self.seed,
            stop: None,
            reference: None,
        };
        if rule.kind == RuleKind::Analysis {
            let site = own.count.as_ref().map(|count| &count.site);
            let site = site.or(own.stop.as_ref().map(|stop| &stop.metric.site));
            if let Some(site) = site.or(own.reference.as_ref().map(|it| &it.site)) {
                let text = "an analysis gives the same result every time";
                let found = Diagnostic::error("bad-repeat", text).at(site.clone(), "");
                diags.push(found.hint("repeat the patterns that it needs"));
            }
            return (1, repeats);
        }
        if let Some(reference) = &own.reference {
            has_metric(rule, &reference.metric, diags);
            repeats.reference = Some(Reference {
                every: reference.every,
                metric: reference.metric.text.clone(),
                within: reference.within,
                site: reference.site.clone(),
            });
            // The others follow when it is known between how many.
            return (1, repeats);
        }
        let Some(stop) = &self.stop else {
            return (self.count.as_ref().map_or(1, |count| count.value), repeats);
        };
        let metric = &stop.metric;
        has_metric(rule, metric, diags);
        repeats.stop = Some(StopRule {
            metric: metric.text.clone(),
            relative_half_width: stop.relative_half_width,
            confidence: stop.confidence,
            min: stop.min,
            max: stop.max,
        });
        (stop.max, repeats)
    }
}

/// The replicates of a plan's reference, between patterns as they are now: behind it, with its
/// links.
pub(super) fn spread(out: &mut Expanded, diags: &mut Vec<Diagnostic>) {
    let patterns = &out.plan.patterns;
    let of = |pattern: &Pattern| pattern.repeats.reference.clone();
    let mut found = patterns.iter().enumerate();
    let mut found = found.by_ref().filter_map(|(at, p)| Some((at, of(p)?)));
    let Some((at, reference)) = found.next() else {
        return;
    };
    if let Some((second, other)) = found.next() {
        let (first, second) = (&patterns[at].label, &patterns[second].label);
        let text = format!("`{first}` and `{second}` cannot both be the reference of a plan");
        let told = Diagnostic::error("bad-repeat", text).at(other.site, "");
        let told = told.at(reference.site, "the first one");
        diags.push(told.hint("keep one of them; a matrix with several cells is no reference"));
        return;
    }
    let others = patterns.iter().filter(|pattern| {
        let measured = pattern.rule.kind == RuleKind::Measure && !pattern.adhoc;
        measured && of(pattern).is_none()
    });
    let others = others.count();
    let count = 1 + others.div_ceil(reference.every as usize);
    if count > MOST as usize {
        let text = format!("`every` would measure the reference {count} times; at most {MOST} are");
        diags.push(Diagnostic::error("bad-repeat", text).at(reference.site, ""));
        return;
    }
    let first = patterns[at].clone();
    let links = out.links[at].clone();
    let further = (2..=count as u32).map(|replicate| Pattern {
        label: first.label.replicate(replicate),
        replicate,
        ..first.clone()
    });
    let further: Vec<Pattern> = further.collect();
    let repeated = std::iter::repeat_n(links, further.len());
    out.links.splice(at + 1..at + 1, repeated);
    out.plan.patterns.splice(at + 1..at + 1, further);
}

fn has_metric(rule: &Rule, metric: &Text, diags: &mut Vec<Diagnostic>) {
    if rule.metrics.contains_key(&metric.text) {
        return;
    }
    let text = format!("`{}` is not a metric of `{}`", metric.text, rule.id);
    let found = Diagnostic::error("unknown-metric", text).at(metric.site.clone(), "");
    let names = rule.metrics.keys().map(String::as_str);
    let what = format!("metrics of `{}`", rule.id);
    diags.push(name_hints(found, &metric.text, names, &what));
}

fn reference(mut table: Table<'_>, diags: &mut Vec<Diagnostic>) -> Option<ReferenceDecl> {
    let site = table.site().clone();
    let metric = table.req_str("metric", diags);
    let within = table.req("within", diags);
    let within = within.and_then(|item| item.as_float("`within`", diags));
    let most = table.req("every", diags).is_some();
    let every = whole(&mut table, "every", 1..=10_000, diags);
    table.remaining(diags, "of `reference`");
    let within = within?;
    if !(within.value > 0.0 && within.value < 1.0) {
        let text = format!("`within` must lie between 0 and 1; found {}", within.value);
        diags.push(Diagnostic::error("out-of-bounds", text).at(within.site, ""));
        return None;
    }
    most.then_some(ReferenceDecl {
        every: every?.value,
        metric: metric?,
        within: within.value,
        site,
    })
}

fn stop(mut table: Table<'_>, diags: &mut Vec<Diagnostic>) -> Option<StopDecl> {
    let metric = table.req_str("metric", diags);
    let width = table.req("relative_half_width", diags);
    let width = width.and_then(|item| item.as_float("`relative_half_width`", diags));
    let confidence = table.opt_float("confidence", diags);
    let min = whole(&mut table, "min", 2..=MOST, diags).map_or(3, |min| min.value);
    let most = table.req("max", diags).is_some();
    let max = whole(&mut table, "max", i64::from(min)..=MOST, diags);
    table.remaining(diags, "of `stop_when`");
    let mut sound = most;
    let mut between = |number: &Option<Spanned<f64>>, name: &str| {
        let Some(number) = number else { return };
        if !(number.value > 0.0 && number.value < 1.0) {
            let text = format!("`{name}` must lie between 0 and 1; found {}", number.value);
            diags.push(Diagnostic::error("out-of-bounds", text).at(number.site.clone(), ""));
            sound = false;
        }
    };
    between(&width, "relative_half_width");
    between(&confidence, "confidence");
    sound.then_some(())?;
    Some(StopDecl {
        metric: metric?,
        relative_half_width: width?.value,
        confidence: confidence.map_or(0.95, |confidence| confidence.value),
        min,
        max: max?.value,
    })
}

fn whole(
    table: &mut Table<'_>,
    key: &'static str,
    bounds: std::ops::RangeInclusive<i64>,
    diags: &mut Vec<Diagnostic>,
) -> Option<Spanned<u32>> {
    let found = table.opt_int(key, diags)?;
    let value = u32::try_from(found.value).ok();
    match value.filter(|_| bounds.contains(&found.value)) {
        Some(value) => Some(Spanned {
            value,
            site: found.site,
        }),
        None => {
            let (low, high) = (bounds.start(), bounds.end());
            let text = format!(
                "`{key}` must be from {low} to {high}; found {}",
                found.value
            );
            diags.push(Diagnostic::error("out-of-bounds", text).at(found.site, ""));
            None
        }
    }
}
