//! Which cells of a matrix are kept and which are dropped. A cell stays when no `drop` matches it
//! and, where there is a `keep`, at least one of its entries does; an entry that matches no cell
//! is told, because it is a slip more often than not.

use std::collections::{HashMap, HashSet};

use doe_cache::Value;

use super::base::Base;
use super::condition::Computed;
use super::memo::Row;
use crate::error::{Diagnostic, Site};
use crate::plan::schema::{CellPick, Common, Pick};

/// `keep` and `drop` of one matrix.
pub(super) struct Select {
    keep: Option<Picks>,
    drop: Picks,
}

impl Select {
    /// Compiles them; entries that make no sense are findings and left out.
    pub(super) fn compile(
        common: &Common,
        base: &Base<'_>,
        row: &Row,
        diags: &mut Vec<Diagnostic>,
    ) -> Self {
        let keep = common.keep.as_ref();
        Self {
            keep: keep.map(|picks| Picks::compile(picks, base, row, diags)),
            drop: Picks::compile(&common.drop, base, row, diags),
        }
    }

    /// Whether a cell stays. Every entry is asked, so that each is known to be of use.
    pub(super) fn takes(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> bool {
        let keep = self.keep.as_mut();
        let kept = keep.is_none_or(|keep| keep.matches(row, diags));
        let dropped = self.drop.matches(row, diags);
        kept && !dropped
    }

    /// Warnings about entries that matched nothing.
    pub(super) fn unmatched(&self) -> Vec<Diagnostic> {
        let mut found = self.drop.unmatched("drop");
        found.extend(self.keep.iter().flat_map(|keep| keep.unmatched("keep")));
        found
    }
}

/// A compiled list.
#[derive(Debug, Default)]
struct Picks {
    conditions: Vec<(Computed, bool)>,
    groups: Vec<Group>,
    matched: Vec<(Site, bool)>,
}

/// Cells that name the same settings. Those that agree in the first one stand together, so that a
/// long list of cells is not walked for every cell of the matrix.
#[derive(Debug)]
struct Group {
    slots: Vec<usize>,
    by_first: HashMap<Value, Vec<Wanted>>,
}

#[derive(Debug)]
struct Wanted {
    rest: Vec<HashSet<Value>>,
    number: usize,
}

impl Picks {
    fn compile(picks: &[Pick], base: &Base<'_>, row: &Row, diags: &mut Vec<Diagnostic>) -> Self {
        let mut compiled = Self::default();
        for pick in picks {
            match pick {
                Pick::Where(text) => match Computed::over_settings(text, row) {
                    Ok(condition) => compiled.conditions.push((condition, false)),
                    Err(found) => diags.extend(found),
                },
                Pick::Cell(cell) => compiled.cell(cell, base, row, diags),
            }
        }
        compiled
    }

    fn cell(&mut self, cell: &CellPick, base: &Base<'_>, row: &Row, diags: &mut Vec<Diagnostic>) {
        let mut wanted = Vec::new();
        for factor in &cell.wanted {
            let Some(slot) = row.slot(&factor.key.text) else {
                diags.push(base.unknown(&factor.key));
                return;
            };
            let values: Vec<_> = factor
                .levels
                .iter()
                .map(|level| base.checked(&factor.key, &level.value, &level.site, diags))
                .collect();
            let Some(values) = values.into_iter().collect::<Option<Vec<_>>>() else {
                return;
            };
            wanted.push((slot, values.into_iter().collect::<HashSet<_>>()));
        }
        wanted.sort_by_key(|(slot, _)| *slot);
        let (slots, mut values): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let rest = values.split_off(1);
        let at = match self.groups.iter().position(|group| group.slots == slots) {
            Some(at) => at,
            None => {
                self.groups.push(Group {
                    slots,
                    by_first: HashMap::new(),
                });
                self.groups.len() - 1
            }
        };
        let number = self.matched.len();
        self.matched.push((cell.site.clone(), false));
        for first in values.into_iter().flatten() {
            let wanted = Wanted {
                rest: rest.clone(),
                number,
            };
            self.groups[at]
                .by_first
                .entry(first)
                .or_default()
                .push(wanted);
        }
    }

    fn matches(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> bool {
        let mut any = false;
        for (condition, matched) in &mut self.conditions {
            if condition.is_ready(row) {
                let holds = condition.holds(row, diags);
                // One that cannot be worked out has been told; that it matches nothing follows.
                *matched |= holds != Some(false);
                any |= holds == Some(true);
            }
        }
        for group in &self.groups {
            let value = |at: usize| {
                let setting = row.get(*group.slots.get(at)?)?;
                Some(&setting.value)
            };
            let Some(candidates) = value(0).and_then(|first| group.by_first.get(first)) else {
                continue;
            };
            let rest: Vec<_> = (1..group.slots.len()).map(value).collect();
            for wanted in candidates {
                let fits = wanted
                    .rest
                    .iter()
                    .zip(&rest)
                    .all(|(values, value)| value.is_some_and(|v| values.contains(v)));
                if fits {
                    self.matched[wanted.number].1 = true;
                    any = true;
                }
            }
        }
        any
    }

    fn unmatched(&self, word: &str) -> Vec<Diagnostic> {
        let conditions = self
            .conditions
            .iter()
            .map(|(condition, matched)| (&condition.expr().text().site, *matched));
        let cells = self.matched.iter().map(|(site, matched)| (site, *matched));
        conditions
            .chain(cells)
            .filter(|(_, matched)| !matched)
            .map(|(site, _)| {
                Diagnostic::warning(
                    "matches-nothing",
                    format!("this `{word}` matches no cell of the matrix"),
                )
                .at(site.clone(), "")
                .hint("compare it with the levels of the matrix, or take it away")
            })
            .collect()
    }
}
