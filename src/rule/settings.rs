//! Settings with the variables that a rule derives from them. Variables are worked out in the
//! order of their dependence and only when something mentions them, so one that makes no sense for
//! a setting harms nobody who does not ask.

use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Value;

use super::expr::{self, Expr};
use super::model::{Rule, Text};
use super::scope::Scope;
use crate::error::Diagnostic;

/// Adds to a scope that has the settings those of the rule's variables that `wanted` mentions or
/// needs.
///
/// # Errors
/// A variable cannot be worked out.
pub fn add_variables<'a>(
    rule: &Rule,
    scope: &mut Scope,
    wanted: impl IntoIterator<Item = &'a str>,
) -> Result<(), Diagnostic> {
    let mut open = Vec::new();
    for name in wanted {
        derive(rule, name, scope, &mut open)?;
    }
    Ok(())
}

/// The parameters and variables that the conditions on results look at, also by way of variables.
pub fn judging(rule: &Rule) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Text> = rule.valid.iter().collect();
    while let Some(text) = open.pop() {
        // A rule that loads has no expression that cannot be read.
        let Ok(expr) = Expr::compile(text) else {
            continue;
        };
        for name in expr.vars() {
            let variable = rule.lets.get(name);
            if (variable.is_some() || rule.params.contains_key(name)) && found.insert(name.clone())
            {
                open.extend(variable);
            }
        }
    }
    found
}

fn derive(
    rule: &Rule,
    name: &str,
    scope: &mut Scope,
    open: &mut Vec<String>,
) -> Result<(), Diagnostic> {
    let Some(text) = rule.lets.get(name).filter(|_| !scope.has(name)) else {
        return Ok(());
    };
    if open.iter().any(|earlier| earlier == name) {
        return Err(cycle(rule, name, open));
    }
    let code = expr::compiled(text)?;
    open.push(name.to_owned());
    for var in &code.vars {
        derive(rule, var, scope, open)?;
    }
    open.pop();
    let value = code.eval(text, scope)?;
    scope.set(name, &value);
    Ok(())
}

fn cycle(rule: &Rule, name: &str, open: &[String]) -> Diagnostic {
    let from = open.iter().position(|n| n == name).unwrap_or(0);
    let mut names: Vec<_> = open[from..].iter().map(String::as_str).collect();
    names.push(name);
    let diagnostic = Diagnostic::error(
        "let-cycle",
        format!("a variable cannot need itself: {}", names.join(" → ")),
    );
    match rule.lets.get(name) {
        Some(text) => diagnostic.at(text.site.clone(), ""),
        None => diagnostic,
    }
}

/// Every variable that needs itself.
pub(super) fn cycles(rule: &Rule) -> Vec<Diagnostic> {
    fn walk(
        rule: &Rule,
        name: &str,
        open: &mut Vec<String>,
        done: &mut BTreeSet<String>,
        found: &mut Vec<Diagnostic>,
    ) {
        let Some(text) = rule.lets.get(name) else {
            return;
        };
        if open.iter().any(|earlier| earlier == name) {
            found.push(cycle(rule, name, open));
            return;
        }
        if !done.insert(name.to_owned()) {
            return;
        }
        if let Ok(expr) = Expr::compile(text) {
            open.push(name.to_owned());
            for var in expr.vars() {
                walk(rule, var, open, done, found);
            }
            open.pop();
        }
    }
    let mut found = Vec::new();
    let mut done = BTreeSet::new();
    // A variable that hides a parameter has its finding already.
    for name in rule
        .lets
        .keys()
        .filter(|name| !rule.params.contains_key(*name))
    {
        walk(rule, name, &mut Vec::new(), &mut done, &mut found);
    }
    found
}

/// The rule's requirements that the settings do not meet, each with why it exists and the values
/// that it looks at.
pub fn unmet(rule: &Rule, settings: &BTreeMap<String, Value>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut scope: Scope = settings.iter().collect();
    for require in &rule.require {
        match holds(rule, &mut scope, require) {
            Ok(None) => {}
            Ok(Some(diagnostic)) | Err(diagnostic) => found.push(diagnostic),
        }
    }
    found
}

fn holds(
    rule: &Rule,
    scope: &mut Scope,
    require: &super::model::Require,
) -> Result<Option<Diagnostic>, Diagnostic> {
    let expr = Expr::compile(&require.that)?;
    for name in expr.vars() {
        derive(rule, name, scope, &mut Vec::new())?;
    }
    if expr.eval_bool(scope)? {
        return Ok(None);
    }
    let values: Vec<_> = (expr.vars().iter())
        .filter_map(|name| Some(format!("{name} = {}", scope.show(name)?)))
        .collect();
    let mut diagnostic = Diagnostic::error(
        "requirement-broken",
        format!(
            "{}: `{}` does not hold",
            require.why,
            require.that.text.trim()
        ),
    )
    .at(require.that.site.clone(), "the rule requires this");
    if !values.is_empty() {
        diagnostic = diagnostic.hint(format!("here {}", values.join(", ")));
    }
    Ok(Some(diagnostic))
}
