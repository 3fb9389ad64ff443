//! From one matrix (or one explicit pattern, whose matrix has one cell) to its patterns. Settings
//! come together in the order default, plan, layer, override, pattern and cell, command line;
//! every template and expression is compiled once and evaluated once per combination of the
//! settings that it mentions. Every cell that is selected and has an id becomes a pattern, even
//! one that breaks a demand: what refers to it must not be refused a second time.

use std::collections::HashMap;
use std::sync::Arc;

use doe_cache::Value;

use super::Context;
use super::base::Base;
use super::cells::Cells;
use super::condition::tell_once;
use super::ground::Factor;
use super::id::IdTemplate;
use super::links::{LinkTemplates, Links, UnitLinks};
use super::memo::Row;
use super::missing::Missing;
use super::overrides::Overrides;
use super::picks::Select;
use super::require::Requirements;
use super::shared::Shared;
use crate::error::{Diagnostic, Site};
use crate::label::Label;
use crate::plan::model::{Pattern, Setting, Source};
use crate::plan::schema::{Common, LayerDecl, PatternDecl, PlanDecl};
use crate::plan::values::{self, Place};
use crate::rule::model::Rule;
use crate::source::Text;

/// What an id looks like, for hints.
pub(super) const ID_RULE: &str =
    "ids are letters, digits and `._+=,-`, start with a letter or digit, and are not `all`";

/// Most cells that one matrix may have.
const MAX_CELLS: usize = 1_000_000;

/// One matrix of a layer.
pub(super) struct Unit<'d> {
    /// The plan it is in.
    pub(super) plan: &'d PlanDecl,
    /// The layer's label.
    pub(super) label: Label,
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
#[derive(Default)]
pub(super) struct Made {
    /// In the order of the cells.
    pub(super) patterns: Vec<Pattern>,
    /// One for each pattern; empty when no reference of the unit is a template.
    pub(super) links: Vec<Links>,
    /// References that are the same for all.
    pub(super) unit: UnitLinks,
    /// Whether cells are missing because of findings.
    pub(super) incomplete: bool,
}

impl<'d> Unit<'d> {
    /// What the layer or the explicit pattern says of its own cells.
    pub(super) fn common(&self) -> &'d Common {
        self.own.map_or(&self.decl.common, |own| &own.common)
    }

    /// Where the id is written.
    pub(super) fn site(&self) -> &'d Site {
        &self.id.site
    }

    /// Makes the patterns. `held` takes a mark for every override of the layer that held.
    pub(super) fn expand(
        &self,
        context: &mut Context<'_>,
        held: &mut [bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Made {
        let row = Row::new(context.names(&self.rule));
        let mut base = Base::new(&self.rule, &mut context.pool);
        let mut ground = self.ground(row, &mut base, &mut context.sets, diags);
        let mut made = Made {
            incomplete: ground.incomplete,
            ..Made::default()
        };
        let row = &mut ground.row;
        let mut select = Select::compile(self.common(), &base, row, diags);
        let mut overrides =
            Overrides::compile(self, &mut base, row, &ground.locked, &ground.fixed, diags);
        diags.extend(self.hidden_overrides(&ground.factors));
        let mut shared = Shared::new(
            self,
            &ground.factors,
            context.none.clone(),
            context.retry,
            row,
            diags,
        );
        let mut require = Requirements::compile(&self.rule, row, &ground.fixed, diags);
        let mut links = LinkTemplates::compile(self, row, diags);
        let id = IdTemplate::compile(self.id, row);
        let id = id.map_err(|found| diags.extend(found));
        let sizes: Vec<_> = ground.factors.iter().map(|f| f.levels.len()).collect();
        let (Ok(mut id), true) = (id, self.few_enough(&sizes, diags)) else {
            made.incomplete = true;
            return made;
        };
        let mut missing = Missing::new(row, &ground.factors, &ground.told);
        let mut frames: HashMap<Vec<usize>, values::Common> = HashMap::new();
        let mut cells = Cells::new(sizes);
        while let Some(cell) = cells.advance() {
            let own: Box<[Arc<Setting>]> = (ground.factors.iter().zip(cell))
                .map(|(factor, level)| factor.levels[*level].clone())
                .collect();
            for (factor, setting) in ground.factors.iter().zip(&own) {
                row.set(factor.slot, Some(setting.clone()));
            }
            if !select.takes(row, diags) {
                continue;
            }
            let holding = overrides.holding(row, held, diags);
            let before = overrides.apply(&holding, row);
            match self.label(&mut id, row) {
                // A setting that the id mentions has no value.
                Ok(None) => {
                    missing.look(row, &self.label);
                    made.incomplete = true;
                }
                Ok(Some(label)) => {
                    missing.look(row, &label);
                    require.check(row, &label, diags);
                    let frame = frames
                        .entry(holding)
                        .or_insert_with(|| frame(row, &ground.factors));
                    let first = shared.pattern(label, frame.with(own), row, diags);
                    let at = made.patterns.len();
                    made.links.extend(links.render(row, diags));
                    made.patterns.push(first);
                    for replicate in shared.further() {
                        let first = made.patterns[at].clone();
                        made.links.extend(links.render(row, diags));
                        made.patterns.push(Pattern {
                            label: first.label.replicate(replicate),
                            replicate,
                            ..first
                        });
                    }
                }
                Err(found) => {
                    tell_once(diags, found);
                    made.incomplete = true;
                }
            }
            for (slot, setting) in before.into_iter().rev() {
                row.set(slot, setting);
            }
        }
        diags.extend(require.findings());
        if !self.decl.broken {
            diags.extend(missing.findings(&self.rule, row, self.site()));
        }
        if !made.incomplete {
            diags.extend(select.unmatched());
            diags.extend(overrides.unheld());
        }
        made.unit = links.unit(unmentioned(&id, &ground.factors));
        made
    }

    fn label(&self, id: &mut IdTemplate, row: &Row) -> Result<Option<Label>, Diagnostic> {
        if !id.is_ready(row) {
            return Ok(None);
        }
        let name = id.render(row)?;
        match self.label.sibling(&name) {
            Ok(label) if name != "all" => Ok(Some(label)),
            _ => Err(
                Diagnostic::error("bad-id", format!("`{name}` cannot be an id"))
                    .at(self.id.site.clone(), "")
                    .hint(ID_RULE),
            ),
        }
    }

    fn few_enough(&self, sizes: &[usize], diags: &mut Vec<Diagnostic>) -> bool {
        let few = Cells::count(sizes).is_some_and(|count| count <= MAX_CELLS);
        if !few {
            diags.push(
                Diagnostic::error(
                    "too-many-cells",
                    format!("this matrix has more than {MAX_CELLS} cells"),
                )
                .at(self.site().clone(), "")
                .hint("split it into several layers, or list the cells that are meant"),
            );
        }
        few
    }
}

/// Factors that the id template leaves out, for the finding of two equal ids.
fn unmentioned(id: &IdTemplate, factors: &[Factor<'_>]) -> Vec<String> {
    let mentioned = id.slots();
    let left_out = (factors.iter())
        .filter(|factor| factor.levels.len() > 1 && !mentioned.contains(&factor.slot));
    left_out
        .map(|factor| factor.decl.key.text.clone())
        .collect()
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
