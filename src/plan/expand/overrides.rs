//! `[[layer.override]]` and `[[layer.pattern.override]]`: settings for the cells where a condition
//! holds. The conditions see the cell as it is before any override; where several hold, later ones
//! win, and a pattern's own win over its layer's. A layer never overrides what a pattern sets
//! itself, and nothing overrides a factor or the command line.

use std::sync::Arc;

use super::base::Base;
use super::condition::{Computed, tell_once};
use super::memo::Row;
use super::unit::Unit;
use crate::error::{Diagnostic, Site};
use crate::plan::model::{Setting, Source};
use crate::plan::schema::OverrideDecl;

/// The overrides as they concern the cells of one matrix.
pub(super) struct Overrides<'d> {
    items: Vec<Override<'d>>,
}

struct Override<'d> {
    /// Its number in the layer; `None` for one of the pattern.
    of_layer: Option<usize>,
    condition: Computed,
    settings: Vec<(usize, Arc<Setting>)>,
    held: bool,
    site: &'d Site,
}

impl<'d> Overrides<'d> {
    /// Compiles the overrides of a layer and of a pattern against one rule. Those of the layer
    /// whose condition is not about this rule's parameters do not concern it. `locked` are the
    /// places that no override of the layer changes, `fixed` those that none changes.
    pub(super) fn compile(
        unit: &Unit<'d>,
        base: &mut Base<'_>,
        row: &Row,
        locked: &[bool],
        fixed: &[bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut items = Vec::new();
        for (number, decl) in unit.decl.common.overrides.iter().enumerate() {
            // A name that no rule of the layer has is told where the layer is looked at whole.
            if let Ok(condition) = Computed::over_settings(&decl.when, row) {
                items.push(Override {
                    of_layer: Some(number),
                    condition,
                    settings: settings(decl, base, row, locked, Source::Override, diags),
                    held: false,
                    site: &decl.when.site,
                });
            }
        }
        let own = unit.own.map_or(&[][..], |own| &own.common.overrides);
        for decl in own {
            for setting in &decl.settings {
                if row.slot(&setting.key.text).is_none() {
                    diags.push(base.unknown(&setting.key));
                }
            }
            match Computed::over_settings(&decl.when, row) {
                Ok(condition) => items.push(Override {
                    of_layer: None,
                    condition,
                    settings: settings(decl, base, row, fixed, Source::Pattern, diags),
                    held: false,
                    site: &decl.when.site,
                }),
                Err(found) => found.into_iter().for_each(|found| tell_once(diags, found)),
            }
        }
        Self { items }
    }

    /// Which of them hold for a cell and set something there. `held` takes a mark for every
    /// override of the layer that holds.
    pub(super) fn holding(
        &mut self,
        row: &Row,
        held: &mut [bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Vec<usize> {
        let mut holding = Vec::new();
        for (at, item) in self.items.iter_mut().enumerate() {
            if !item.condition.is_ready(row) {
                continue;
            }
            let holds = item.condition.holds(row, diags);
            if holds == Some(false) {
                continue;
            }
            // One that cannot be worked out has been told; that it never applies follows.
            item.held = true;
            if let Some(held) = item.of_layer.and_then(|number| held.get_mut(number)) {
                *held = true;
            }
            if holds == Some(true) && !item.settings.is_empty() {
                holding.push(at);
            }
        }
        holding
    }

    /// Sets what these set, later ones last, and returns what was there, to be put back in reverse
    /// order.
    pub(super) fn apply(
        &self,
        holding: &[usize],
        row: &mut Row,
    ) -> Vec<(usize, Option<Arc<Setting>>)> {
        let items = holding.iter().filter_map(|at| self.items.get(*at));
        items
            .flat_map(|item| &item.settings)
            .map(|(slot, setting)| (*slot, row.set(*slot, Some(setting.clone()))))
            .collect()
    }

    /// Warnings about overrides of the pattern that held for no cell.
    pub(super) fn unheld(&self) -> impl Iterator<Item = Diagnostic> {
        let own = self.items.iter().filter(|item| item.of_layer.is_none());
        own.filter(|item| !item.held)
            .map(|item| never_applies(item.site))
    }
}

/// `matches-nothing` for an override.
pub(super) fn never_applies(site: &Site) -> Diagnostic {
    Diagnostic::warning("matches-nothing", "this override never applies")
        .at(site.clone(), "")
        .hint("its condition holds for no cell")
}

fn settings(
    decl: &OverrideDecl,
    base: &mut Base<'_>,
    row: &Row,
    locked: &[bool],
    source: Source,
    diags: &mut Vec<Diagnostic>,
) -> Vec<(usize, Arc<Setting>)> {
    let mut settings = Vec::new();
    for setting in &decl.settings {
        let Some(slot) = row.slot(&setting.key.text) else {
            continue;
        };
        let made = base.setting(&setting.key, &setting.value, &setting.site, source, diags);
        if let Some(made) = made
            && !locked.get(slot).copied().unwrap_or(false)
        {
            settings.push((slot, made));
        }
    }
    settings
}
