//! Expressions over the settings of a cell, evaluated once per combination of the settings they
//! depend on. A [`Computed`] that exists mentions nothing but parameters and, where a rule is
//! given, its derived variables.

use doe_cache::Value;

use super::memo::{Memo, Row};
use crate::error::Diagnostic;
use crate::rule::model::Rule;
use crate::rule::{Expr, Scope};
use crate::source::Text;

/// An expression with what it depends on.
#[derive(Debug)]
pub(super) struct Computed {
    expr: Expr,
    /// Derived variables that it needs, each after those that it is made of.
    lets: Vec<(String, Expr)>,
    memo: Memo<Result<Value, Diagnostic>>,
}

impl Computed {
    /// An expression over parameters alone.
    ///
    /// # Errors
    /// What the compiler refuses, and every name that is not a parameter.
    pub(super) fn over_settings(text: &Text, row: &Row) -> Result<Self, Vec<Diagnostic>> {
        let expr = Expr::compile(text).map_err(|found| vec![found])?;
        let unknown = expr.check_vars(row.names().iter().map(AsRef::as_ref));
        if !unknown.is_empty() {
            return Err(unknown);
        }
        Ok(Self::new(expr, Vec::new(), row))
    }

    /// An expression over parameters and the derived variables of a rule.
    ///
    /// # Errors
    /// As [`Computed::over_settings`].
    pub(super) fn over_rule(text: &Text, rule: &Rule, row: &Row) -> Result<Self, Vec<Diagnostic>> {
        let expr = Expr::compile(text).map_err(|found| vec![found])?;
        let known = || {
            let params = row.names().iter().map(AsRef::as_ref);
            params.chain(rule.lets.keys().map(String::as_str))
        };
        let unknown = expr.check_vars(known());
        if !unknown.is_empty() {
            return Err(unknown);
        }
        let mut lets = Vec::new();
        derive(&expr, rule, &mut lets, 0)?;
        Ok(Self::new(expr, lets, row))
    }

    fn new(expr: Expr, lets: Vec<(String, Expr)>, row: &Row) -> Self {
        let mut slots: Vec<usize> = lets
            .iter()
            .flat_map(|(_, expr)| expr.vars())
            .chain(expr.vars())
            .filter_map(|name| row.slot(name))
            .collect();
        slots.sort_unstable();
        slots.dedup();
        Self {
            expr,
            lets,
            memo: Memo::new(slots),
        }
    }

    /// The expression.
    pub(super) fn expr(&self) -> &Expr {
        &self.expr
    }

    /// The places of the settings that it depends on, in order of name.
    pub(super) fn slots(&self) -> &[usize] {
        self.memo.slots()
    }

    /// Whether all of these have a value.
    pub(super) fn is_ready(&self, row: &Row) -> bool {
        self.memo.is_ready(row)
    }

    /// The value for a cell.
    pub(super) fn value(&mut self, row: &Row) -> &Result<Value, Diagnostic> {
        let (expr, lets) = (&self.expr, &self.lets);
        self.memo.get(row, |row, slots| {
            let mut scope: Scope = row.scope(slots);
            for (name, expr) in lets {
                let value = expr.eval(&scope)?;
                scope.set(name, &value);
            }
            expr.eval(&scope)
        })
    }

    /// Whether it holds for a cell; `None` when that cannot be worked out, which is told once.
    pub(super) fn holds(&mut self, row: &Row, diags: &mut Vec<Diagnostic>) -> Option<bool> {
        let site = self.expr.text().site.clone();
        match self.value(row) {
            Ok(Value::Bool(holds)) => Some(*holds),
            Ok(_) => {
                let found = Diagnostic::error(
                    "not-a-boolean",
                    "a condition must be true or false; this one is neither",
                )
                .at(site, "")
                .hint("compare it with something: `==`, `<`, `in`, ...");
                tell_once(diags, found);
                None
            }
            Err(found) => {
                tell_once(diags, found.clone());
                None
            }
        }
    }
}

/// Adds a finding that is not the last one already.
pub(super) fn tell_once(diags: &mut Vec<Diagnostic>, found: Diagnostic) {
    let again = |known: &&Diagnostic| known.code == found.code && known.sites == found.sites;
    if diags.iter().rev().take(64).find(again).is_none() {
        diags.push(found);
    }
}

/// Derived variables in an order in which each comes after those that it mentions.
fn derive(
    expr: &Expr,
    rule: &Rule,
    lets: &mut Vec<(String, Expr)>,
    depth: usize,
) -> Result<(), Vec<Diagnostic>> {
    // A rule that loaded has no cycles; the bound only keeps a defect from overflowing the stack.
    if depth > rule.lets.len() {
        return Ok(());
    }
    for name in expr.vars() {
        let Some(text) = rule.lets.get(name) else {
            continue;
        };
        if lets.iter().any(|(known, _)| known == name) {
            continue;
        }
        let inner = Expr::compile(text).map_err(|found| vec![found])?;
        derive(&inner, rule, lets, depth + 1)?;
        lets.push((name.clone(), inner));
    }
    Ok(())
}
