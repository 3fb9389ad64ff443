//! The one expression language: selections, requirements, conditions, derived variables. An
//! [`Expr`] that exists parses and uses only filters and tests that there are; evaluating it is a
//! pure function of the scope, and any name that the scope lacks is an error before anything runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use doe_cache::Value;
use minijinja::value::ValueKind;

use super::jinja::{self, Compiled, FUNCTIONS, Mode};
use super::lex::{self, Mentions, TokenKind};
use super::names::Names;
use super::scope::{Scope, from_jinja};
use crate::error::Diagnostic;
use crate::source::Text;

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Expr {
    text: Text,
    code: Arc<Code>,
}

#[derive(Debug)]
pub(super) struct Code {
    compiled: minijinja::Expression<'static, 'static>,
    /// The variables that it mentions.
    pub(super) vars: BTreeSet<String>,
    mentions: Mentions,
    comparisons: Vec<Comparison>,
}

/// A plain comparison whose sides' kinds must agree: `transport == 'efa'`.
#[derive(Debug)]
struct Comparison {
    left: Side,
    right: Side,
    ordered: bool,
    range: std::ops::Range<usize>,
}

#[derive(Debug)]
enum Side {
    Path(Vec<String>),
    Literal(ValueKind),
}

static COMPILED: Compiled<Code> = Compiled::new();

impl Expr {
    /// Compiles an expression.
    ///
    /// # Errors
    /// `bad-expression`: it cannot be read, or uses a filter or test that does not exist.
    pub fn compile(text: &Text) -> Result<Self, Diagnostic> {
        Ok(Self {
            code: compiled(text)?,
            text: text.clone(),
        })
    }

    /// The text.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The variables that it mentions, sorted.
    pub fn vars(&self) -> &BTreeSet<String> {
        &self.code.vars
    }

    /// The dotted names that it mentions, in order, each once: `expected.ttft_median_ms`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = Vec::new();
        for path in &self.code.mentions.paths {
            let text = path.names.join(".");
            if self.code.vars.contains(&path.names[0]) && !paths.contains(&text) {
                paths.push(text);
            }
        }
        paths
    }

    /// `undefined-variable` for every mentioned variable that is not among the known ones.
    pub fn check_vars<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Vec<Diagnostic> {
        let unknown = |name: &&String| !known.clone().any(|k| k == name.as_str());
        (self.code.vars.iter().filter(unknown))
            .map(|name| jinja::undefined(&self.text, &self.code.mentions, name, known.clone()))
            .collect()
    }

    /// As [`Expr::check_vars`], attributes included.
    pub fn check_names(&self, names: &Names) -> Vec<Diagnostic> {
        names.check(&self.text, &self.code.vars, &self.code.mentions)
    }

    /// The value.
    ///
    /// # Errors
    /// `undefined-variable`, `wrong-type` for a comparison of different kinds of things, or
    /// `expression-failed`.
    pub fn eval(&self, scope: &Scope) -> Result<Value, Diagnostic> {
        self.code.eval(&self.text, scope)
    }

    /// Whether it holds. A list or table holds when something is in it.
    ///
    /// # Errors
    /// As for [`Expr::eval`], and `not-a-boolean` when it is neither true nor false.
    pub fn eval_bool(&self, scope: &Scope) -> Result<bool, Diagnostic> {
        match self.eval(scope)? {
            Value::Bool(holds) => Ok(holds),
            Value::List(items) => Ok(!items.is_empty()),
            Value::Map(items) => Ok(!items.is_empty()),
            value => Err(Diagnostic::error(
                "not-a-boolean",
                format!(
                    "a condition must be true or false; this one is {}",
                    describe(&value)
                ),
            )
            .at(self.text.site.clone(), "")
            .hint("compare it with something: `==`, `<`, `in`, ...")),
        }
    }
}

/// [`Expr::compile`] and [`Expr::eval`] in one, without an expression that is kept.
pub(super) fn eval(text: &Text, scope: &Scope) -> Result<Value, Diagnostic> {
    compiled(text)?.eval(text, scope)
}

/// What a text compiles to.
pub(super) fn compiled(text: &Text) -> Result<Arc<Code>, Diagnostic> {
    jinja::check_length(text, "this expression")?;
    if text.text.trim().is_empty() {
        return Err(
            Diagnostic::error("bad-expression", "an expression is missing here")
                .at(text.site.clone(), "")
                .hint("write a condition such as `prompt_tokens > 1024`"),
        );
    }
    COMPILED.get(&text.text, || code(text))
}

impl Code {
    /// As [`Expr::eval`]; `text` is what the code was made of.
    pub(super) fn eval(&self, text: &Text, scope: &Scope) -> Result<Value, Diagnostic> {
        if let Some(name) = self.vars.iter().find(|name| !scope.has(name)) {
            let known = scope.names();
            return Err(jinja::undefined(text, &self.mentions, name, known));
        }
        for comparison in &self.comparisons {
            check_kinds(text, comparison, scope)?;
        }
        let value = jinja::guarded(|| {
            let value = self.compiled.eval(scope.context())?;
            Ok(from_jinja(&value))
        })
        .map_err(|error| jinja::finding(text, "expression", &error))?;
        value.map_err(|why| {
            Diagnostic::error(
                "expression-failed",
                format!("this expression has no usable value: {why}"),
            )
            .at(text.site.clone(), "")
        })
    }
}

fn check_kinds(text: &Text, comparison: &Comparison, scope: &Scope) -> Result<(), Diagnostic> {
    let kind = |side: &Side| match side {
        Side::Path(path) => scope.kind_of(path),
        Side::Literal(kind) => Some(*kind),
    };
    let (Some(left), Some(right)) = (kind(&comparison.left), kind(&comparison.right)) else {
        return Ok(());
    };
    // Whether something is none is a fair question; whether none is greater is not.
    let none = left == ValueKind::None || right == ValueKind::None;
    let list = |kind| matches!(kind, ValueKind::Seq | ValueKind::Iterable);
    if left == right || (none && !comparison.ordered) || (list(left) && list(right)) {
        return Ok(());
    }
    let name = |side: &Side, kind: ValueKind| match side {
        Side::Path(path) => format!("`{}` ({})", path.join("."), kind_name(kind)),
        Side::Literal(kind) => kind_name(*kind).to_owned(),
    };
    let mut diagnostic = Diagnostic::error(
        "wrong-type",
        format!(
            "{} cannot be compared with {}",
            name(&comparison.left, left),
            name(&comparison.right, right)
        ),
    )
    .at(text.locate(comparison.range.clone()), "");
    if left == ValueKind::String && right == ValueKind::Number
        || left == ValueKind::Number && right == ValueKind::String
    {
        diagnostic = diagnostic.hint("texts stand in quotes, numbers do not");
    } else {
        diagnostic = diagnostic.hint("only things of one kind can be compared");
    }
    Err(diagnostic)
}

fn code(text: &Text) -> Result<Code, Diagnostic> {
    let mentions = lex::mentions(&text.text, 0..text.text.len());
    // The text outlives every use of the code; see `Compiled`.
    let source: &'static str = Box::leak(text.text.clone().into_boxed_str());
    let compiled = jinja::guarded(|| jinja::environment(Mode::Plain).compile_expression(source))
        .map_err(|error| jinja::finding(text, "expression", &error))?;
    if let Some(diagnostic) = jinja::check_words(text, &mentions).into_iter().next() {
        return Err(diagnostic);
    }
    let vars = (compiled.undeclared_variables(false).into_iter())
        .filter(|name| !FUNCTIONS.contains(&name.as_str()))
        .collect();
    Ok(Code {
        compiled,
        vars,
        comparisons: comparisons(&text.text),
        mentions,
    })
}

/// Comparisons of a name or literal with another, where nothing binds tighter beside them.
fn comparisons(source: &str) -> Vec<Comparison> {
    let tokens = lex::tokens(source, 0..source.len());
    let text = |i: usize| tokens.get(i).map_or("", |t| &source[t.range.clone()]);
    let operator = |i: usize| matches!(text(i), "==" | "!=" | "<" | "<=" | ">" | ">=");
    let mut found = Vec::new();
    for at in 1..tokens.len() {
        if !operator(at) {
            continue;
        }
        // The left side: a literal, or names and dots back to a word that binds loosely.
        let mut first = at - 1;
        while first >= 2 && text(first - 1) == "." && tokens[first - 2].kind == TokenKind::Name {
            first -= 2;
        }
        let opens =
            first == 0 || matches!(text(first - 1), "and" | "or" | "not" | "(" | "if" | "else");
        let mut last = at + 1;
        while text(last + 1) == "." && tokens.get(last + 2).is_some() {
            last += 2;
        }
        let closes = last + 1 >= tokens.len()
            || matches!(text(last + 1), "and" | "or" | ")" | "if" | "else");
        if !opens || !closes {
            continue;
        }
        let side = |from: usize, to: usize| {
            let token = tokens.get(from)?;
            let word = text(from);
            match token.kind {
                TokenKind::Number if from == to => Some(Side::Literal(ValueKind::Number)),
                TokenKind::Str if from == to => Some(Side::Literal(ValueKind::String)),
                TokenKind::Name if from == to && matches!(word, "true" | "false") => {
                    Some(Side::Literal(ValueKind::Bool))
                }
                TokenKind::Name if !lex::is_keyword(word) => Some(Side::Path(
                    (from..=to).step_by(2).map(|i| text(i).to_owned()).collect(),
                )),
                _ => None,
            }
        };
        if let (Some(left), Some(right)) = (side(first, at - 1), side(at + 1, last)) {
            found.push(Comparison {
                left,
                right,
                ordered: !matches!(text(at), "==" | "!="),
                range: tokens[first].range.start..tokens[last].range.end,
            });
        }
    }
    found
}

fn kind_name(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::None => "none",
        ValueKind::Bool => "a boolean",
        ValueKind::Number => "a number",
        ValueKind::String => "a string",
        ValueKind::Seq | ValueKind::Iterable => "a list",
        ValueKind::Map => "a table",
        _ => "something else",
    }
}

/// A value for a message: `the string "efa"`, `1024`.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Str(value) => format!("the string {value:?}"),
        Value::List(items) => format!("a list of {}", items.len()),
        Value::Map(_) => "a table".to_owned(),
    }
}

#[cfg(test)]
mod tests;
