//! Required parameters that nothing sets: one finding for each, however many cells lack it.

use std::fmt::Display;

use super::ground::Factor;
use super::memo::Row;
use crate::error::{Diagnostic, Site};
use crate::rule::model::Rule;

/// What the cells of one matrix lack.
pub(super) struct Missing {
    open: Vec<Open>,
}

/// A place that had no value before the matrix and the overrides.
struct Open {
    slot: usize,
    first: Option<String>,
    count: usize,
}

impl Missing {
    /// Notes which places to look at; those whose value was refused have been told.
    pub(super) fn new(row: &Row, factors: &[Factor<'_>], told: &[bool]) -> Self {
        let is_factor = |slot| factors.iter().any(|factor| factor.slot == slot);
        let is_told = |slot| told.get(slot).copied().unwrap_or(false);
        let open = (0..row.names().len())
            .filter(|slot| row.get(*slot).is_none() && !is_factor(*slot) && !is_told(*slot));
        Self {
            open: open
                .map(|slot| Open {
                    slot,
                    first: None,
                    count: 0,
                })
                .collect(),
        }
    }

    /// Looks at one cell.
    pub(super) fn look(&mut self, row: &Row, label: &dyn Display) {
        for open in &mut self.open {
            if row.get(open.slot).is_none() {
                open.count += 1;
                open.first.get_or_insert_with(|| label.to_string());
            }
        }
    }

    /// The findings, in order of the parameters' names.
    pub(super) fn findings(self, rule: &Rule, row: &Row, site: &Site) -> Vec<Diagnostic> {
        let finding = |open: Open| {
            let name = row.names().get(open.slot)?;
            let param = rule.params.get(&**name)?;
            let many = match open.count {
                1 => String::new(),
                count => format!(" in {count} patterns"),
            };
            let found = Diagnostic::error(
                "missing-setting",
                format!(
                    "`{name}` has no value{many}, and rule `{}` needs one",
                    rule.id
                ),
            )
            .at(site.clone(), "")
            .at(param.site.clone(), "the parameter is defined here")
            .label(open.first?)
            .hint(format!(
                "set `{name}` in `[settings]`, in the layer's or in the pattern's settings"
            ));
            Some(match param.doc.as_str() {
                "" => found,
                doc => found.hint(format!("`{name}`: {doc}")),
            })
        };
        self.open.into_iter().filter_map(finding).collect()
    }
}
