//! From written references to labels. A name means a layer, a layer's alias or a pattern of the
//! same plan; `//package:name` one of another. A layer stands for its patterns, ad-hoc ones left
//! out unless the layer is ad-hoc itself. Every list that comes out is sorted and without
//! duplicates, and no pattern refers to itself; longer cycles are the graph's matter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::expand::{Expanded, Links, name_hints};
use super::model::{Layer, Pattern, Plan};
use crate::error::{Diagnostic, Site};
use crate::label::Label;
use crate::source::Text;

/// Names that one finding spells out before it only counts.
const NAMED: usize = 4;

/// Findings that look for the nearest of all names; the search is as long as the plan is large.
const NEAREST_SOUGHT: usize = 20;

/// All names of all plans.
pub(super) struct Index<'a> {
    packages: BTreeMap<&'a str, Package<'a>>,
    /// Packages whose file could not be read as a plan.
    broken: &'a BTreeSet<String>,
}

struct Package<'a> {
    plan: &'a Plan,
    names: HashMap<&'a str, Named>,
    /// Patterns of each layer.
    members: Vec<Vec<usize>>,
    incomplete: bool,
}

#[derive(Debug, Clone, Copy)]
enum Named {
    Layer(usize),
    Pattern(usize),
}

/// What a name means.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    /// A layer, with the plan it is in and its number there.
    Layer(&'a Plan, usize),
    /// A pattern.
    Pattern(&'a Pattern),
    /// Perhaps something that a finding told already kept from being there.
    Unknowable,
}

impl<'a> Index<'a> {
    /// Indexes plans. Of two equal names the first counts; that there are two has been told.
    pub(super) fn new(plans: &'a [Expanded], broken: &'a BTreeSet<String>) -> Self {
        let package = |expanded: &'a Expanded| {
            let plan = &expanded.plan;
            let mut names = HashMap::with_capacity(plan.patterns.len() + 2 * plan.layers.len());
            let mut members = vec![Vec::new(); plan.layers.len()];
            for (at, layer) in plan.layers.iter().enumerate() {
                names.entry(layer.label.name()).or_insert(Named::Layer(at));
            }
            for (at, pattern) in plan.patterns.iter().enumerate() {
                let name = pattern.label.name();
                names.entry(name).or_insert(Named::Pattern(at));
                members[pattern.layer].push(at);
            }
            for (at, layer) in plan.layers.iter().enumerate() {
                if let Some(alias) = &layer.alias {
                    names.entry(alias).or_insert(Named::Layer(at));
                }
            }
            let package = Package {
                plan,
                names,
                members,
                incomplete: expanded.incomplete,
            };
            (plan.package.as_str(), package)
        };
        Self {
            packages: plans.iter().map(package).collect(),
            broken,
        }
    }

    /// What `text` means in a plan.
    ///
    /// # Errors
    /// The finding, without its place: `code` with the nearest name.
    pub(super) fn find(
        &self,
        package: &str,
        text: &str,
        code: &'static str,
        with_nearest: bool,
    ) -> Result<Found<'a>, Diagnostic> {
        let label: Label;
        let (package, name) = if text.starts_with("//") {
            label = text.parse().map_err(|error: crate::error::Error| {
                let found = Diagnostic::error(code, error.message);
                error.hints.into_iter().fold(found, Diagnostic::hint)
            })?;
            (label.package(), label.name())
        } else {
            (package, text)
        };
        let Some(there) = self.packages.get(package) else {
            if self.broken.contains(package) {
                return Ok(Found::Unknowable);
            }
            let found = Diagnostic::error(code, format!("there is no plan `//{package}`"));
            let names = self.packages.keys().copied();
            return Err(name_hints(found, package, names, "plans"));
        };
        // The first of several replicates has the plain name.
        let name = name.strip_suffix("@1").unwrap_or(name);
        match there.names.get(name) {
            Some(Named::Layer(at)) => Ok(Found::Layer(there.plan, *at)),
            Some(Named::Pattern(at)) => Ok(Found::Pattern(&there.plan.patterns[*at])),
            None if there.incomplete => Ok(Found::Unknowable),
            None => {
                let meant = there.plan.layers_called(name);
                if meant.len() > 1 {
                    let found = Diagnostic::error(
                        code,
                        format!("`{name}` could be any of layers {}", meant.join(", ")),
                    );
                    return Err(found.hint(format!("write one of them: \"{}\"", meant[0])));
                }
                let found = Diagnostic::error(
                    code,
                    format!("`{name}` is no layer or pattern of `//{package}`"),
                );
                if !with_nearest {
                    return Err(found);
                }
                let names = there.names.keys().copied();
                Err(name_hints(found, name, names, "names"))
            }
        }
    }

    /// Whether findings that are told already keep some of a plan from being known, so that what
    /// seems to be missing or wrong in it may only follow from them.
    pub(super) fn incomplete(&self, package: &str) -> bool {
        (self.packages.get(package)).is_none_or(|package| package.incomplete)
    }

    /// The patterns of a layer; ad-hoc ones only on demand or when the layer is ad-hoc itself.
    pub(super) fn members(
        &self,
        plan: &'a Plan,
        layer: usize,
        adhoc: bool,
    ) -> impl Iterator<Item = &'a Pattern> {
        let members = self.packages.get(plan.package.as_str());
        let members = members.and_then(|package| package.members.get(layer));
        let all = adhoc || plan.layers.get(layer).is_some_and(|layer| layer.adhoc);
        members
            .into_iter()
            .flatten()
            .map(|at| &plan.patterns[*at])
            .filter(move |pattern| all || !pattern.adhoc)
    }

    /// What a pattern's name means: all of its replicates, unless it names one of them.
    pub(super) fn replicates(
        &self,
        pattern: &'a Pattern,
        name: &str,
    ) -> impl Iterator<Item = &'a Pattern> + use<'a> {
        let there = self.packages.get(pattern.label.package());
        let at = there.and_then(|there| match there.names.get(pattern.label.name()) {
            Some(Named::Pattern(at)) => there.plan.patterns.get(*at..),
            _ => None,
        });
        let one = name.contains('@');
        let base = pattern.label.base_name();
        let all = at.unwrap_or(std::slice::from_ref(pattern)).iter();
        all.take_while(move |other| other.label.base_name() == base)
            .take(if one { 1 } else { usize::MAX })
    }

    /// Whether an id is taken in a package.
    pub(super) fn taken(&self, package: &str, name: &str) -> Option<&'a Site> {
        let there = self.packages.get(package)?;
        match there.names.get(name)? {
            Named::Layer(at) => there.plan.layers.get(*at).map(|layer: &Layer| &layer.site),
            Named::Pattern(at) => there.plan.patterns.get(*at).map(|pattern| &pattern.site),
        }
    }
}

/// Needs and gates of every pattern of a plan.
pub(super) type Edges = Vec<(Arc<[Label]>, Arc<[Label]>)>;

/// Follows the needs and gates of one plan.
pub(super) fn edges(index: &Index<'_>, plan: &Expanded, diags: &mut Vec<Diagnostic>) -> Edges {
    let mut needs = Follower::new(index, plan, "unresolved-need", "needs");
    let mut gates = Follower::new(index, plan, "unresolved-gate", "is gated by");
    let mut edges = Vec::with_capacity(plan.links.len());
    for (pattern, (unit, links)) in plan.plan.patterns.iter().zip(&plan.links) {
        let of = &plan.units[*unit];
        let links = |part: fn(&Links) -> &[Box<str>]| links.as_ref().map_or(&[][..], part);
        edges.push((
            needs.follow(
                pattern,
                *unit,
                &of.needs,
                &of.templated_needs,
                links(|l| &l.needs),
            ),
            gates.follow(
                pattern,
                *unit,
                &of.gate,
                &of.templated_gate,
                links(|l| &l.gate),
            ),
        ));
    }
    diags.extend(needs.findings());
    diags.extend(gates.findings());
    edges
}

/// One kind of reference of one plan.
struct Follower<'a> {
    index: &'a Index<'a>,
    package: &'a str,
    code: &'static str,
    verb: &'static str,
    constant: HashMap<usize, Arc<[Label]>>,
    rendered: HashMap<Box<str>, Arc<[Label]>>,
    told: HashMap<(usize, usize), Told>,
    order: Vec<(usize, usize)>,
    sought: usize,
}

/// Findings at one place.
struct Told {
    found: Diagnostic,
    names: Vec<String>,
    more: usize,
}

impl<'a> Follower<'a> {
    fn new(
        index: &'a Index<'a>,
        plan: &'a Expanded,
        code: &'static str,
        verb: &'static str,
    ) -> Self {
        Self {
            index,
            package: &plan.plan.package,
            code,
            verb,
            constant: HashMap::new(),
            rendered: HashMap::new(),
            told: HashMap::new(),
            order: Vec::new(),
            sought: 0,
        }
    }

    fn follow(
        &mut self,
        pattern: &Pattern,
        unit: usize,
        constant: &[Text],
        templates: &[Text],
        rendered: &[Box<str>],
    ) -> Arc<[Label]> {
        let mut labels = match self.constant.get(&unit) {
            Some(known) => known.clone(),
            None => {
                let mut all = Vec::new();
                for text in constant {
                    all.extend(self.labels(text, text.text.trim(), pattern).iter().cloned());
                }
                let all = sorted(all);
                self.constant.insert(unit, all.clone());
                all
            }
        };
        if rendered.iter().any(|name| !name.is_empty()) {
            let mut all = labels.to_vec();
            for (text, name) in templates
                .iter()
                .zip(rendered)
                .filter(|(_, n)| !n.is_empty())
            {
                let known = match self.rendered.get(name) {
                    Some(known) => known.clone(),
                    None => {
                        let found = self.labels(text, name, pattern);
                        self.rendered.insert(name.clone(), found.clone());
                        found
                    }
                };
                all.extend(known.iter().cloned());
            }
            labels = sorted(all);
        }
        if labels.binary_search(&pattern.label).is_ok() {
            self.itself(pattern, constant.iter().chain(templates));
        }
        labels
    }

    fn labels(&mut self, text: &Text, name: &str, pattern: &Pattern) -> Arc<[Label]> {
        let nearest = self.sought < NEAREST_SOUGHT;
        match self.index.find(self.package, name, self.code, nearest) {
            Ok(Found::Pattern(found)) => {
                let labels = self.index.replicates(found, name);
                labels.map(|pattern| pattern.label.clone()).collect()
            }
            Ok(Found::Layer(plan, layer)) => {
                let labels: Arc<[Label]> = (self.index.members(plan, layer, false))
                    .map(|pattern| pattern.label.clone())
                    .collect();
                if labels.is_empty() && !self.index.incomplete(&plan.package) {
                    let found = Diagnostic::warning(
                        "empty-layer",
                        format!(
                            "`{name}` has no patterns outside ad-hoc ones, so nothing comes of this"
                        ),
                    );
                    self.tell(found, text, name, pattern);
                }
                labels
            }
            Ok(Found::Unknowable) => Arc::new([]),
            Err(found) => {
                self.sought += 1;
                self.tell(found, text, name, pattern);
                Arc::new([])
            }
        }
    }

    fn tell(&mut self, found: Diagnostic, text: &Text, name: &str, pattern: &Pattern) {
        let place = place(&text.site);
        let told = self.told.entry(place).or_insert_with(|| {
            self.order.push(place);
            Told {
                found: found.at(text.site.clone(), "").label(&pattern.label),
                names: Vec::new(),
                more: 0,
            }
        });
        if told.names.len() < NAMED {
            told.names.push(name.to_owned());
        } else {
            told.more += 1;
        }
    }

    fn itself<'t>(&mut self, pattern: &Pattern, texts: impl Iterator<Item = &'t Text>) {
        let Some(text) = texts.into_iter().next() else {
            return;
        };
        let place = (usize::MAX, place(&text.site).1);
        let (verb, label) = (self.verb, &pattern.label);
        if !self.told.contains_key(&place) {
            self.order.push(place);
            let found = Diagnostic::error("self-need", format!("`{label}` {verb} itself"))
                .at(text.site.clone(), "")
                .at(pattern.site.clone(), "this pattern")
                .hint("name other layers or patterns; a layer's name means all of its patterns")
                .label(label);
            let names = Vec::new();
            self.told.insert(
                place,
                Told {
                    found,
                    names,
                    more: 0,
                },
            );
        }
    }

    fn findings(mut self) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        for place in &self.order {
            let Some(told) = self.told.remove(place) else {
                continue;
            };
            findings.push(match told.names.len() {
                0 | 1 => told.found,
                _ => {
                    let more = match told.more {
                        0 => String::new(),
                        more => format!(" and {more} more"),
                    };
                    told.found
                        .hint(format!("not found: {}{more}", told.names.join(", ")))
                }
            });
        }
        findings
    }
}

fn place(site: &Site) -> (usize, usize) {
    (Arc::as_ptr(&site.file) as usize, site.range.start)
}

fn sorted(mut labels: Vec<Label>) -> Arc<[Label]> {
    labels.sort_unstable();
    labels.dedup();
    labels.into()
}
