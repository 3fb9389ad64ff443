//! From one matrix (or one explicit pattern, whose matrix has one cell) to its patterns. Settings
//! come together in the order default, plan, layer, override, pattern and cell, command line;
//! every template and expression is compiled once and evaluated once per combination of the
//! settings that it mentions. Every cell that is selected and has an id becomes a pattern, even
//! one that breaks a demand: what refers to it must not be refused a second time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use doe_cache::Value;

use super::base::{Base, name_hints};
use super::cells::Cells;
use super::condition::{Computed, tell_once};
use super::id::IdTemplate;
use super::memo::Row;
use super::overrides::Overrides;
use super::picks::{Picks, fingerprint};
use super::require::Requirements;
use super::{Context, Links, UnitLinks};
use crate::error::{Diagnostic, Site};
use crate::label::Label;
use crate::plan::model::{Expectation, Pattern, Setting, Source};
use crate::plan::schema::{
    Common, EstimateDecl, FactorDecl, LayerDecl, PatternDecl, PlanDecl, SettingDecl,
};
use crate::plan::values::{self, Place};
use crate::rule::model::Rule;
use crate::source::Text;

/// Most cells that one matrix may have.
const MAX_CELLS: usize = 1_000_000;

/// One matrix of a layer.
pub(super) struct Unit<'d> {
    /// The plan it is in.
    pub(super) plan: &'d PlanDecl,
    /// Its package.
    pub(super) package: &'d str,
    /// Index of the layer.
    pub(super) layer: usize,
    /// The layer.
    pub(super) decl: &'d LayerDecl,
    /// The explicit pattern; `None` for the layer's own matrix.
    pub(super) own: Option<&'d PatternDecl>,
    /// How it is measured.
    pub(super) rule: Arc<Rule>,
    /// The id template.
    pub(super) id: &'d Text,
}

/// What a unit became.
pub(super) struct Made {
    pub(super) patterns: Vec<Pattern>,
    /// One for each pattern; empty when no reference of the unit is a template.
    pub(super) links: Vec<Links>,
    pub(super) unit: UnitLinks,
    /// Whether cells are missing because of findings.
    pub(super) incomplete: bool,
}

struct Factor<'d> {
    decl: &'d FactorDecl,
    slot: usize,
    levels: Vec<Arc<Setting>>,
}

/// A cell's settings before its matrix and the overrides.
struct Ground<'d> {
    row: Row,
    /// Places that no override changes.
    locked: Vec<bool>,
    /// Places whose value was refused: that they are empty has been told.
    told: Vec<bool>,
    factors: Vec<Factor<'d>>,
    incomplete: bool,
}

impl<'d> Unit<'d> {
    fn common(&self) -> &'d Common {
        self.own.map_or(&self.decl.common, |own| &own.common)
    }

    fn site(&self) -> &'d Site {
        &self.id.site
    }

    /// Makes the patterns. `held` takes a mark for every override of the layer that held.
    pub(super) fn expand(
        &self,
        context: &mut Context<'_>,
        held: &mut [bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Made {
        let names = context.names(&self.rule);
        let mut base = Base::new(&self.rule, &mut context.pool);
        let mut ground = self.ground(Row::new(names), &mut base, &mut context.sets, diags);
        let mut made = Made {
            patterns: Vec::new(),
            links: Vec::new(),
            unit: UnitLinks::default(),
            incomplete: ground.incomplete,
        };
        let common = self.common();
        let row = &mut ground.row;
        let mut keep = (common.keep.as_ref()).map(|k| Picks::compile(k, &base, row, diags));
        let mut drop = Picks::compile(&common.drop, &base, row, diags);
        let overrides = &self.decl.overrides;
        let mut overrides = Overrides::compile(overrides, &mut base, row, &ground.locked, diags);
        let mut require = Requirements::compile(&self.rule, row, diags);
        let mut estimate = self.estimate(row, diags);
        let mut needs = references(&self.decl.common.needs, self.own, |c| &c.needs, row, diags);
        let mut gates = references(&self.decl.common.gate, self.own, |c| &c.gate, row, diags);
        let expect = self.expect(diags);
        let tags = self.tags(diags);
        let mut id = match IdTemplate::compile(self.id, row) {
            Ok(id) => id,
            Err(found) => {
                diags.extend(found);
                made.incomplete = true;
                return made;
            }
        };
        let sizes: Vec<_> = ground.factors.iter().map(|f| f.levels.len()).collect();
        if Cells::count(&sizes).is_none_or(|count| count > MAX_CELLS) {
            diags.push(
                Diagnostic::error(
                    "too-many-cells",
                    format!("this matrix has more than {MAX_CELLS} cells"),
                )
                .at(self.site().clone(), "")
                .hint("split it into several layers, or list the cells that are meant"),
            );
            made.incomplete = true;
            return made;
        }
        let title = self.own.and_then(|own| own.common.title.as_ref());
        let title: Option<Arc<str>> = title.map(|title| title.text.as_str().into());
        let factors: Arc<[Arc<str>]> = (ground.factors.iter())
            .map(|f| f.decl.key.text.as_str().into())
            .collect();
        let adhoc = (self.own.and_then(|own| own.common.adhoc))
            .or(self.decl.common.adhoc)
            .unwrap_or(false);
        let open: Vec<usize> = (0..row.names().len())
            .filter(|slot| row.get(*slot).is_none())
            .filter(|slot| ground.factors.iter().all(|f| f.slot != *slot))
            .collect();
        let mut missing: HashMap<usize, (String, usize)> = HashMap::new();
        let mut frames: HashMap<Vec<usize>, values::Common> = HashMap::new();
        let mut cells = Cells::new(sizes);
        while let Some(cell) = cells.advance() {
            let own: Box<[Arc<Setting>]> = (ground.factors.iter().zip(cell))
                .map(|(factor, level)| factor.levels[*level].clone())
                .collect();
            for (factor, setting) in ground.factors.iter().zip(&own) {
                row.set(factor.slot, Some(setting.clone()));
            }
            let kept = keep.as_mut().is_none_or(|keep| keep.matches(row, diags));
            if drop.matches(row, diags) || !kept {
                continue;
            }
            let holding = overrides.holding(row, held, diags);
            let before: Vec<_> = (overrides.settings(&holding))
                .map(|(slot, setting)| (*slot, row.set(*slot, Some(setting.clone()))))
                .collect();
            let label = match self.label(&mut id, row) {
                Ok(label) => Some(label),
                Err(found) => {
                    tell_once(diags, found);
                    made.incomplete = true;
                    None
                }
            };
            if let Some(label) = label {
                for slot in &open {
                    if row.get(*slot).is_none() && !ground.told[*slot] {
                        let entry = missing.entry(*slot);
                        entry.or_insert_with(|| (label.to_string(), 0)).1 += 1;
                    }
                }
                require.check(row, &label, diags);
                let frame = frames
                    .entry(holding)
                    .or_insert_with_key(|_| frame(row, &ground.factors));
                let links = Links {
                    needs: rendered(&mut needs.1, row, diags),
                    gate: rendered(&mut gates.1, row, diags),
                };
                if !(needs.1.is_empty() && gates.1.is_empty()) {
                    made.links.push(links);
                }
                made.patterns.push(Pattern {
                    label,
                    layer: self.layer,
                    title: title.clone(),
                    rule: self.rule.clone(),
                    settings: frame.with(own),
                    factors: factors.clone(),
                    needs: context.none.clone(),
                    gate: context.none.clone(),
                    expect: expect.clone(),
                    tags: tags.clone(),
                    adhoc,
                    estimate_s: estimate.as_mut().and_then(|e| e.seconds(row, diags)),
                    site: self.site().clone(),
                });
            }
            for (slot, setting) in before.into_iter().rev() {
                row.set(slot, setting);
            }
        }
        diags.extend(require.findings());
        diags.extend(self.missing(missing, row));
        if !made.incomplete {
            diags.extend(keep.iter().flat_map(|keep| keep.unmatched("keep")));
            diags.extend(drop.unmatched("drop"));
        }
        made.unit = UnitLinks {
            unmentioned: self.unmentioned(&id, &ground),
            needs: needs.0,
            gate: gates.0,
            templated_needs: needs.1.into_iter().map(|(text, _)| text).collect(),
            templated_gate: gates.1.into_iter().map(|(text, _)| text).collect(),
        };
        made
    }

    fn ground(
        &self,
        row: Row,
        base: &mut Base<'_>,
        sets: &mut super::CommandLine,
        diags: &mut Vec<Diagnostic>,
    ) -> Ground<'d> {
        let count = row.names().len();
        let mut ground = Ground {
            row,
            locked: vec![false; count],
            told: vec![false; count],
            factors: Vec::new(),
            incomplete: self.decl.broken,
        };
        for (slot, name) in ground.row.names().clone().iter().enumerate() {
            ground.row.set(slot, base.default(name));
        }
        ground.put(&self.plan.settings, Source::Plan, base, diags);
        ground.put(&self.decl.common.settings, Source::Layer, base, diags);
        if let Some(own) = self.own {
            for setting in &own.common.settings {
                match ground.row.slot(&setting.key.text) {
                    Some(slot) => ground.locked[slot] = true,
                    None => diags.push(base.unknown(&setting.key)),
                }
            }
            ground.put(&own.common.settings, Source::Pattern, base, diags);
        }
        let mut set_from_outside = vec![false; count];
        for (name, setting) in base.command_line(sets, diags) {
            if let Some(slot) = ground.row.slot(&name) {
                ground.told[slot] = setting.is_none();
                ground.locked[slot] = true;
                set_from_outside[slot] = true;
                ground.row.set(slot, setting);
            }
        }
        for decl in &self.common().matrix {
            let Some(slot) = ground.row.slot(&decl.key.text) else {
                diags.push(base.unknown(&decl.key));
                ground.incomplete = true;
                continue;
            };
            // `--set` on a factor leaves the one level that it names.
            if set_from_outside[slot] {
                continue;
            }
            self.warn_hidden(decl, diags);
            ground.locked[slot] = true;
            ground.factor(decl, slot, base, diags);
        }
        ground
    }

    /// A setting beside a factor of the same name: an error in the pattern itself, a warning where
    /// the layer's other patterns cannot use it either.
    fn warn_hidden(&self, factor: &FactorDecl, diags: &mut Vec<Diagnostic>) {
        let beside = |settings: &'d [SettingDecl]| {
            let same = |s: &&SettingDecl| s.key.text == factor.key.text;
            settings.iter().find(same)
        };
        let name = &factor.key.text;
        if let Some(setting) = self.own.and_then(|own| beside(&own.common.settings)) {
            diags.push(
                Diagnostic::error(
                    "duplicate-setting",
                    format!("`{name}` is both a setting and a factor of this pattern"),
                )
                .at(setting.key.site.clone(), "")
                .at(factor.key.site.clone(), "its levels are here")
                .hint("take one of them away"),
            );
        } else if self.own.is_none()
            && let Some(setting) = beside(&self.decl.common.settings)
        {
            diags.push(
                Diagnostic::warning(
                    "hidden-setting",
                    format!("this `{name}` has no effect: the matrix gives every pattern its own"),
                )
                .at(setting.key.site.clone(), "")
                .at(factor.key.site.clone(), "its levels are here"),
            );
        }
    }

    fn label(&self, id: &mut IdTemplate, row: &Row) -> Result<Label, Diagnostic> {
        let name = id.render(row)?;
        let refused = match Label::new(self.package, &name) {
            Ok(label) if name != "all" => return Ok(label),
            Ok(_) => "`all` stands for everything in a plan".to_owned(),
            Err(error) => error.message,
        };
        Err(
            Diagnostic::error("bad-id", format!("`{name}` cannot be an id: {refused}"))
                .at(self.id.site.clone(), "")
                .hint("ids are letters, digits and `._+=,-`, and start with a letter or digit"),
        )
    }

    fn estimate(&self, row: &Row, diags: &mut Vec<Diagnostic>) -> Option<Estimate> {
        let own = self.own.and_then(|own| own.common.estimate.as_ref());
        match own.or(self.decl.common.estimate.as_ref())? {
            EstimateDecl::Seconds(seconds) => Some(Estimate::Seconds(*seconds)),
            EstimateDecl::Expression(text) => match Computed::over_settings(text, row) {
                Ok(computed) => Some(Estimate::Computed(computed)),
                Err(found) => {
                    found.into_iter().for_each(|found| tell_once(diags, found));
                    None
                }
            },
        }
    }

    /// The pattern's expectations over the layer's, in file order.
    fn expect(&self, diags: &mut Vec<Diagnostic>) -> Arc<[Expectation]> {
        let own = self.own.map_or(&[][..], |own| &own.common.expect);
        for expectation in own {
            if !self.rule.metrics.contains_key(&expectation.metric) {
                diags.push(unknown_metric(expectation, &[&self.rule]));
            }
        }
        let of_layer = self.decl.common.expect.iter().filter(|expectation| {
            self.rule.metrics.contains_key(&expectation.metric)
                && own.iter().all(|own| own.metric != expectation.metric)
        });
        of_layer.chain(own).cloned().collect()
    }

    fn tags(&self, diags: &mut Vec<Diagnostic>) -> Arc<BTreeSet<String>> {
        let own = self.own.map_or(&[][..], |own| &own.common.tags);
        let all = self
            .plan
            .tags
            .iter()
            .chain(&self.decl.common.tags)
            .chain(own);
        let mut tags = BTreeSet::new();
        for tag in all {
            if crate::label::is_valid_name(&tag.text) {
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

    /// One finding for every required parameter that nothing sets.
    fn missing(
        &self,
        missing: HashMap<usize, (String, usize)>,
        row: &Row,
    ) -> impl Iterator<Item = Diagnostic> {
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort_by_key(|(slot, _)| *slot);
        missing.into_iter().filter_map(|(slot, (label, count))| {
            let name = row.names().get(slot)?;
            let param = self.rule.params.get(&**name)?;
            let many = match count {
                1 => String::new(),
                count => format!(" ({count} patterns)"),
            };
            let found = Diagnostic::error(
                "missing-setting",
                format!(
                    "`{name}` has no value{many}, and rule `{}` needs one",
                    self.rule.id
                ),
            )
            .at(self.site().clone(), "")
            .at(param.site.clone(), "the parameter is defined here")
            .label(label)
            .hint(format!(
                "set `{name}` in `[settings]`, in the layer's or in the pattern's settings"
            ));
            Some(match param.doc.as_str() {
                "" => found,
                doc => found.hint(format!("`{name}`: {doc}")),
            })
        })
    }

    /// Factors that the id template leaves out, for the finding of two equal ids.
    fn unmentioned(&self, id: &IdTemplate, ground: &Ground<'_>) -> Vec<String> {
        let mentioned = id.slots();
        let factors = ground.factors.iter();
        let left_out = factors.filter(|f| f.levels.len() > 1 && !mentioned.contains(&f.slot));
        left_out.map(|f| f.decl.key.text.clone()).collect()
    }
}

impl<'d> Ground<'d> {
    /// Sets those that are parameters of the rule.
    fn put(
        &mut self,
        settings: &[SettingDecl],
        source: Source,
        base: &mut Base<'_>,
        diags: &mut Vec<Diagnostic>,
    ) {
        for decl in settings {
            let Some(slot) = self.row.slot(&decl.key.text) else {
                continue;
            };
            let setting = base.setting(&decl.key, &decl.value, &decl.site, source, diags);
            self.told[slot] = setting.is_none();
            self.row.set(slot, setting);
        }
    }

    fn factor(
        &mut self,
        decl: &'d FactorDecl,
        slot: usize,
        base: &mut Base<'_>,
        diags: &mut Vec<Diagnostic>,
    ) {
        let mut levels = Vec::with_capacity(decl.levels.len());
        let mut seen: HashMap<String, &Site> = HashMap::new();
        for level in &decl.levels {
            let setting =
                base.setting(&decl.key, &level.value, &level.site, Source::Pattern, diags);
            let Some(setting) = setting else {
                self.incomplete = true;
                continue;
            };
            if let Some(first) = seen.insert(fingerprint(&setting.value), &level.site) {
                diags.push(
                    Diagnostic::error(
                        "duplicate-level",
                        format!("`{}` has this level twice", decl.key.text),
                    )
                    .at(level.site.clone(), "")
                    .at(first.clone(), "first here"),
                );
                continue;
            }
            levels.push(setting);
        }
        self.factors.push(Factor { decl, slot, levels });
    }
}

/// Time per pattern.
enum Estimate {
    Seconds(f64),
    Computed(Computed),
}

impl Estimate {
    fn seconds(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> Option<f64> {
        let computed = match self {
            Estimate::Seconds(seconds) => return Some(*seconds),
            Estimate::Computed(computed) if !computed.is_ready(row) => return None,
            Estimate::Computed(computed) => computed,
        };
        let site = computed.expr().text().site.clone();
        let seconds = match computed.value(row) {
            Ok(Value::Int(seconds)) => *seconds as f64,
            Ok(Value::Float(seconds)) => *seconds,
            Ok(_) => -1.0,
            Err(found) => {
                tell_once(diags, found.clone());
                return None;
            }
        };
        if seconds >= 0.0 && seconds.is_finite() {
            return Some(seconds);
        }
        let found = Diagnostic::error(
            "bad-estimate",
            "an estimate must be a number of seconds, 0 or more",
        )
        .at(site, "")
        .hint("write a duration such as \"5m\", or an expression in seconds over the settings");
        tell_once(diags, found);
        None
    }
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

type Templated = Vec<(Text, IdTemplate)>;

/// References of the layer and the pattern: those that are the same for all cells, and templates.
fn references(
    layer: &[Text],
    own: Option<&PatternDecl>,
    part: impl Fn(&Common) -> &Vec<Text>,
    row: &Row,
    diags: &mut Vec<Diagnostic>,
) -> (Vec<Text>, Templated) {
    let own = own.map_or(&[][..], |own| part(&own.common).as_slice());
    let (mut constant, mut templated) = (Vec::new(), Vec::new());
    for text in layer.iter().chain(own) {
        match IdTemplate::compile(text, row) {
            Ok(template) if template.is_constant() => constant.push(text.clone()),
            Ok(template) => templated.push((text.clone(), template)),
            Err(found) => found.into_iter().for_each(|found| tell_once(diags, found)),
        }
    }
    (constant, templated)
}

fn rendered(templated: &mut Templated, row: &Row, diags: &mut Vec<Diagnostic>) -> Box<[Box<str>]> {
    let mut render = |(_, template): &mut (Text, IdTemplate)| match template.render(row) {
        Ok(name) => name.trim().into(),
        Err(found) => {
            tell_once(diags, found);
            Box::default()
        }
    };
    templated.iter_mut().map(&mut render).collect()
}

fn frame(row: &Row, factors: &[Factor<'_>]) -> values::Common {
    let places = (0..row.names().len()).map(|slot| {
        match factors.iter().position(|factor| factor.slot == slot) {
            Some(at) => Place::Own(at),
            None => Place::Shared(row.get(slot).cloned().unwrap_or_else(nothing)),
        }
    });
    values::Common::new(row.names().clone(), places.collect())
}

/// Stands where a value was refused or is missing; the plan is refused as a whole.
fn nothing() -> Arc<Setting> {
    Arc::new(Setting {
        value: Value::Null,
        source: Source::Default,
        site: None,
    })
}
