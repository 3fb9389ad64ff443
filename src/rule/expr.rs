//! The one expression language: selections, requirements, conditions, derived variables. An
//! [`Expr`] that exists parses and uses only filters and tests that there are; evaluating it is a
//! pure function of the scope, and any name that the scope lacks is an error before anything runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use doe_cache::Value;
use minijinja::value::ValueKind;

use super::jinja::{self, Compiled, FUNCTIONS, Mode};
use super::lex::{self, Mentions, TokenKind};
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
struct Code {
    compiled: minijinja::Expression<'static, 'static>,
    vars: BTreeSet<String>,
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

static COMPILED: Compiled<String, Code> = Compiled::new();

impl Expr {
    /// Compiles an expression.
    ///
    /// # Errors
    /// `bad-expression`: it cannot be read, or uses a filter or test that does not exist.
    pub fn compile(text: &Text) -> Result<Self, Diagnostic> {
        jinja::check_length(text, "this expression")?;
        if text.text.trim().is_empty() {
            return Err(
                Diagnostic::error("bad-expression", "an expression is missing here")
                    .at(text.site.clone(), "")
                    .hint("write a condition such as `prompt_tokens > 1024`"),
            );
        }
        let code = COMPILED.get(text.text.clone(), || code(text))?;
        Ok(Self {
            text: text.clone(),
            code,
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

    /// `undefined-variable` for every mentioned variable that is not among the known ones.
    pub fn check_vars<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Vec<Diagnostic> {
        let unknown = |name: &&String| !known.clone().any(|k| k == name.as_str());
        (self.code.vars.iter().filter(unknown))
            .map(|name| jinja::undefined(&self.text, &self.code.mentions, name, known.clone()))
            .collect()
    }

    /// The value.
    ///
    /// # Errors
    /// `undefined-variable`, `wrong-type` for a comparison of different kinds of things, or
    /// `expression-failed`.
    pub fn eval(&self, scope: &Scope) -> Result<Value, Diagnostic> {
        if let Some(name) = self.code.vars.iter().find(|name| !scope.has(name)) {
            return Err(jinja::undefined(
                &self.text,
                &self.code.mentions,
                name,
                scope.names(),
            ));
        }
        for comparison in &self.code.comparisons {
            self.check_kinds(comparison, scope)?;
        }
        let value = jinja::guarded(|| {
            let value = self.code.compiled.eval(scope.context())?;
            Ok(from_jinja(&value))
        })
        .map_err(|error| jinja::finding(&self.text, "expression", &error))?;
        value.map_err(|why| {
            Diagnostic::error(
                "expression-failed",
                format!("this expression has no usable value: {why}"),
            )
            .at(self.text.site.clone(), "")
        })
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// As for [`Expr::eval`], and `not-a-boolean` when it is neither true nor false.
    pub fn eval_bool(&self, scope: &Scope) -> Result<bool, Diagnostic> {
        match self.eval(scope)? {
            Value::Bool(holds) => Ok(holds),
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

    fn check_kinds(&self, comparison: &Comparison, scope: &Scope) -> Result<(), Diagnostic> {
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
            Side::Path(path) => format!("`{}`, which is {}", path.join("."), kind_name(kind)),
            Side::Literal(kind) => kind_name(*kind).to_owned(),
        };
        let mut diagnostic = Diagnostic::error(
            "wrong-type",
            format!(
                "this compares {} with {}",
                name(&comparison.left, left),
                name(&comparison.right, right)
            ),
        )
        .at(self.text.locate(comparison.range.clone()), "");
        if left == ValueKind::String && right == ValueKind::Number
            || left == ValueKind::Number && right == ValueKind::String
        {
            diagnostic = diagnostic.hint("texts stand in quotes, numbers do not");
        }
        Err(diagnostic)
    }
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
mod tests {
    use super::*;
    use crate::source::Doc;
    use proptest::prelude::*;

    /// The expression as the value of `e` in a file, with a place.
    fn text(expression: &str) -> Text {
        let (doc, diags) = Doc::parse("t.toml", &format!("e = {expression:?}\n"));
        assert_eq!(diags, []);
        doc.table().req_str("e", &mut Vec::new()).unwrap()
    }

    fn scope() -> Scope {
        let mut scope: Scope = [
            ("prompt_tokens", Value::Int(1024)),
            ("ratio", Value::Float(1.5)),
            ("whole", Value::Float(2.0)),
            ("transport", Value::Str("efa".into())),
            ("on", Value::Bool(true)),
            ("list", Value::List(vec![Value::Int(1), Value::Int(2)])),
            ("absent", Value::Null),
        ]
        .into_iter()
        .collect();
        scope.set_json(
            "result",
            &serde_json::json!({"counts": {"failed": 0, "ok": 5}, "big": 18446744073709551615u64}),
        );
        scope
    }

    fn eval(expression: &str) -> Result<Value, Diagnostic> {
        Expr::compile(&text(expression))?.eval(&scope())
    }

    #[test]
    fn values() {
        for (expression, expected) in [
            ("1 + 1", Value::Int(2)),
            ("prompt_tokens * 2", Value::Int(2048)),
            ("60 / 2", Value::Float(30.0)),
            ("whole // 1", Value::Int(2)),
            ("prompt_tokens == 1024.0", Value::Bool(true)),
            ("ratio < 2", Value::Bool(true)),
            ("whole == 2", Value::Bool(true)),
            ("transport == 'efa' and on", Value::Bool(true)),
            ("transport in ['efa', 'tcp']", Value::Bool(true)),
            ("'counts' in result", Value::Bool(true)),
            ("'nope' in result", Value::Bool(false)),
            ("result.counts.ok > result.counts.failed", Value::Bool(true)),
            ("absent == none", Value::Bool(true)),
            ("absent is none", Value::Bool(true)),
            ("131072 | size", Value::Str("128k".into())),
            ("1000 | size", Value::Str("1000".into())),
            ("0 | size", Value::Str("0".into())),
            ("2 ** 30 | int", Value::Int(1 << 30)),
            ("(2 ** 30) | size", Value::Str("1g".into())),
            ("(whole * 1024) | size", Value::Str("2k".into())),
            (
                "{'a': [1, 2.5, none]} | json",
                Value::Str(r#"{"a":[1,2.5,null]}"#.into()),
            ),
            (
                "range(3) | list",
                Value::List((0..3).map(Value::Int).collect()),
            ),
            ("list", Value::List(vec![Value::Int(1), Value::Int(2)])),
            ("7 if on else 8", Value::Int(7)),
        ] {
            assert_eq!(eval(expression).unwrap(), expected, "{expression}");
        }
    }

    #[test]
    fn failures_say_where_and_what() {
        // expression, code, column range in the file (1-based), a part of the message, the hint
        for (expression, code, part, message, hint) in [
            (
                "prompt_tokns > 1",
                "undefined-variable",
                "prompt_tokns",
                "`prompt_tokns` is not defined",
                "did you mean `prompt_tokens`?",
            ),
            (
                "1 + x.y.z + 2",
                "undefined-variable",
                "x",
                "`x` is not defined",
                "defined here",
            ),
            (
                "result.counts.faild == 0",
                "undefined-variable",
                "result.counts.faild",
                "`faild` is not in `result.counts`",
                "did you mean `failed`?",
            ),
            (
                "result.count > 0",
                "undefined-variable",
                "result.count",
                "`count` is not in `result`",
                "did you mean `counts`?",
            ),
            (
                "now()",
                "undefined-variable",
                "now",
                "`now` is not defined",
                "",
            ),
            (
                "transport > 3",
                "wrong-type",
                "transport > 3",
                "`transport`, which is a string, with a number",
                "quotes",
            ),
            (
                "on and prompt_tokens == '1024'",
                "wrong-type",
                "prompt_tokens == '1024'",
                "`prompt_tokens`, which is a number, with a string",
                "quotes",
            ),
            (
                "absent < 3",
                "wrong-type",
                "absent < 3",
                "`absent`, which is none",
                "",
            ),
            ("1 +", "bad-expression", "1 +", "cannot be read", ""),
            (
                "prompt_tokens | sise",
                "bad-expression",
                "sise",
                "no filter `sise`",
                "did you mean `size`?",
            ),
            (
                "on is stringg",
                "bad-expression",
                "stringg",
                "no test `stringg`",
                "did you mean `string`?",
            ),
            (
                "transport + 1",
                "expression-failed",
                "transport + 1",
                "unsupported types",
                "",
            ),
            (
                "1 / 0",
                "expression-failed",
                "1 / 0",
                "not a finite number",
                "",
            ),
            (
                "3 if not on",
                "expression-failed",
                "3 if not on",
                "without `else`",
                "",
            ),
            ("", "bad-expression", "", "missing", "condition"),
            (
                "range(10000) | list | map('string') | join | length > 0 and (range(99999) | sum) > range(99999) | sum",
                "x",
                "",
                "",
                "",
            ),
        ] {
            if code == "x" {
                assert!(eval(expression).is_ok());
                continue;
            }
            let diagnostic = eval(expression).expect_err(expression);
            assert_eq!(diagnostic.code, code, "{expression}: {diagnostic:?}");
            assert!(
                diagnostic.message.contains(message),
                "{expression}: {}",
                diagnostic.message
            );
            assert!(
                diagnostic.hints.join("; ").contains(hint),
                "{expression}: {:?}",
                diagnostic.hints
            );
            let site = &diagnostic.sites[0].0;
            let at = &site.file.text[site.range.clone()];
            assert!(at.contains(part), "{expression}: {at}");
        }
    }

    #[test]
    fn conditions_are_booleans() {
        let expr = Expr::compile(&text("prompt_tokens")).unwrap();
        let diagnostic = expr.eval_bool(&scope()).unwrap_err();
        assert_eq!(diagnostic.code, "not-a-boolean");
        assert!(diagnostic.message.ends_with("this one is 1024"));
        assert!(
            Expr::compile(&text("on"))
                .unwrap()
                .eval_bool(&scope())
                .unwrap()
        );
    }

    #[test]
    fn endless_work_runs_out() {
        let loops = "range(99999) | map('abs') | ".repeat(1) + "list | length";
        assert!(eval(&loops).is_ok());
        let deep = "(".repeat(100_000);
        assert_eq!(eval(&deep).unwrap_err().code, "bad-expression");
        let long = "1 + ".repeat(100_000) + "1";
        assert_eq!(eval(&long).unwrap_err().code, "too-long");
    }

    #[test]
    fn the_listed_words_exist_and_no_others() {
        let env = jinja::environment(Mode::Plain);
        for filter in jinja::FILTERS {
            let source = format!("x | {filter}");
            let error = env
                .compile_expression(&source)
                .unwrap()
                .eval(minijinja::context!(x => 1));
            if let Err(error) = error {
                assert_ne!(
                    error.kind(),
                    minijinja::ErrorKind::UnknownFilter,
                    "{filter}"
                );
            }
        }
        for test in jinja::TESTS {
            let source = format!("x is {test}");
            let error = env
                .compile_expression(&source)
                .unwrap()
                .eval(minijinja::context!(x => 1));
            if let Err(error) = error {
                assert_ne!(error.kind(), minijinja::ErrorKind::UnknownTest, "{test}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(source in "\\PC{0,40}") {
            let _ = eval_raw(&source);
        }

        #[test]
        fn any_code_is_read_or_refused(source in proptest::collection::vec(proptest::sample::select(vec![
            "prompt_tokens", "result", ".counts", ".x", "list", " + ", " ** ", " // ", " % ", "[", "]", "(", ")", "{", "}",
            ":", ",", " | ", "size", "json", "round", "join", " in ", " not ", " is ", " if ", " else ", "1", "-1", "9223372036854775807",
            "'a'", "1e308", "==", "<", "[::", "range", "sort", "~", "none",
        ]), 0..14)) {
            let _ = eval_raw(&source.concat());
        }

        #[test]
        fn whole_floats_are_whole(value in -1_000_000i64..1_000_000) {
            let mut scope = Scope::new();
            scope.set("a", &Value::Float(value as f64));
            scope.set("b", &Value::Int(value));
            let same = Expr::compile(&text("a == b and (a | string) == (b | string)")).unwrap();
            prop_assert!(same.eval_bool(&scope).unwrap());
        }
    }

    fn eval_raw(source: &str) -> Result<Value, Diagnostic> {
        let mut text = text("x");
        text.text = source.to_owned();
        let result = Expr::compile(&text).and_then(|expr| expr.eval(&scope()));
        if let Err(diagnostic) = &result {
            for (site, _) in &diagnostic.sites {
                assert!(site.file.text.get(site.range.clone()).is_some());
            }
        }
        result
    }
}
