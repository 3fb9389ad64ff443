//! `[[layer.override]]`: settings for the cells where a condition holds. The conditions see the
//! cell as it is before any override; where several hold, later ones win; what the pattern itself
//! or the command line sets is never overridden.

use std::sync::Arc;

use super::base::Base;
use super::condition::Computed;
use super::memo::Row;
use crate::error::Diagnostic;
use crate::plan::model::{Setting, Source};
use crate::plan::schema::OverrideDecl;

/// The overrides of a layer as they concern the cells of one matrix.
#[derive(Debug)]
pub(super) struct Overrides {
    items: Vec<Override>,
}

#[derive(Debug)]
struct Override {
    /// Its number in the layer.
    number: usize,
    condition: Computed,
    settings: Vec<(usize, Arc<Setting>)>,
}

impl Overrides {
    /// Compiles the overrides of a layer against one rule. Those whose condition is not about
    /// this rule's parameters do not concern it; `locked` are the places that nothing overrides.
    pub(super) fn compile(
        overrides: &[OverrideDecl],
        base: &mut Base<'_>,
        row: &Row,
        locked: &[bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut items = Vec::new();
        for (number, decl) in overrides.iter().enumerate() {
            let mut settings = Vec::new();
            for setting in &decl.settings {
                let Some(slot) = row.slot(&setting.key.text) else {
                    continue;
                };
                let (key, value, site) = (&setting.key, &setting.value, &setting.site);
                let made = base.setting(key, value, site, Source::Override, diags);
                if let Some(made) = made
                    && !locked.get(slot).copied().unwrap_or(false)
                {
                    settings.push((slot, made));
                }
            }
            // A name that no rule of the layer has is told where the layer is looked at whole.
            if let Ok(condition) = Computed::over_settings(&decl.when, row) {
                items.push(Override {
                    number,
                    condition,
                    settings,
                });
            }
        }
        Self { items }
    }

    /// Which of them hold for a cell and set something there, as numbers for
    /// [`Overrides::settings`]. `held` takes a mark for every override of the layer that holds.
    pub(super) fn holding(
        &mut self,
        row: &Row,
        held: &mut [bool],
        diags: &mut Vec<Diagnostic>,
    ) -> Vec<usize> {
        let mut holding = Vec::new();
        for (at, item) in self.items.iter_mut().enumerate() {
            if item.condition.is_ready(row) && item.condition.holds(row, diags) == Some(true) {
                if let Some(held) = held.get_mut(item.number) {
                    *held = true;
                }
                if !item.settings.is_empty() {
                    holding.push(at);
                }
            }
        }
        holding
    }

    /// What these set, later ones last.
    pub(super) fn settings(
        &self,
        holding: &[usize],
    ) -> impl Iterator<Item = &(usize, Arc<Setting>)> {
        let items = holding.iter().filter_map(|at| self.items.get(*at));
        items.flat_map(|item| &item.settings)
    }
}
