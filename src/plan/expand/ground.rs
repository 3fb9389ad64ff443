//! A cell's settings before its matrix and the overrides: default, plan, layer, pattern, command
//! line, in this order, each held against its type. Beside every place stands what may still
//! change it.

use std::collections::HashMap;
use std::sync::Arc;

use doe_cache::Value;

use super::CommandLine;
use super::base::Base;
use super::memo::Row;
use super::unit::Unit;
use crate::error::{Diagnostic, Site};
use crate::plan::model::{Setting, Source};
use crate::plan::schema::{FactorDecl, SettingDecl};

/// A factor with the levels that passed their check.
pub(super) struct Factor<'d> {
    /// As written.
    pub(super) decl: &'d FactorDecl,
    /// The parameter's place.
    pub(super) slot: usize,
    /// The levels in file order.
    pub(super) levels: Vec<Arc<Setting>>,
}

/// A cell's settings before its matrix and the overrides.
pub(super) struct Ground<'d> {
    /// The values.
    pub(super) row: Row,
    /// Places that no override changes: factors and the command line.
    pub(super) fixed: Vec<bool>,
    /// Places that the layer's overrides do not change: those, and the pattern's own settings.
    pub(super) locked: Vec<bool>,
    /// Places whose value was refused: that they are empty has been told.
    pub(super) told: Vec<bool>,
    /// The matrix in file order, without factors that `--set` decides.
    pub(super) factors: Vec<Factor<'d>>,
    /// Whether levels are missing because of findings.
    pub(super) incomplete: bool,
}

impl<'d> Unit<'d> {
    /// Puts together what all cells have.
    pub(super) fn ground(
        &self,
        row: Row,
        base: &mut Base<'_>,
        sets: &mut CommandLine,
        diags: &mut Vec<Diagnostic>,
    ) -> Ground<'d> {
        let count = row.names().len();
        let mut ground = Ground {
            row,
            fixed: vec![false; count],
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
        for (name, setting) in base.command_line(sets, diags) {
            if let Some(slot) = ground.row.slot(&name) {
                ground.told[slot] = setting.is_none();
                ground.fixed[slot] = true;
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
            if ground.fixed[slot] {
                continue;
            }
            self.warn_hidden(decl, diags);
            ground.fixed[slot] = true;
            ground.factor(decl, slot, base, diags);
        }
        for (locked, fixed) in ground.locked.iter_mut().zip(&ground.fixed) {
            *locked |= fixed;
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
            diags.push(hidden_setting(setting, factor));
        }
    }
}

impl Unit<'_> {
    /// Overrides of a factor: they can never have an effect on this matrix.
    pub(super) fn hidden_overrides(&self, factors: &[Factor<'_>]) -> Vec<Diagnostic> {
        let settings = (self.common().overrides.iter()).flat_map(|decl| &decl.settings);
        let hidden = settings.filter_map(|setting| {
            let same = |f: &&Factor<'_>| f.decl.key.text == setting.key.text;
            Some((setting, factors.iter().find(same)?))
        });
        hidden
            .map(|(setting, factor)| hidden_setting(setting, factor.decl))
            .collect()
    }
}

fn hidden_setting(setting: &SettingDecl, factor: &FactorDecl) -> Diagnostic {
    Diagnostic::warning(
        "hidden-setting",
        format!(
            "this `{}` has no effect: the matrix gives every pattern its own",
            setting.key.text
        ),
    )
    .at(setting.key.site.clone(), "")
    .at(factor.key.site.clone(), "its levels are here")
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
        let mut seen: HashMap<Value, &Site> = HashMap::new();
        for level in &decl.levels {
            let setting =
                base.setting(&decl.key, &level.value, &level.site, Source::Pattern, diags);
            let Some(setting) = setting else {
                self.incomplete = true;
                continue;
            };
            if let Some(first) = seen.insert(setting.value.clone(), &level.site) {
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
