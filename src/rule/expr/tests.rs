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

/// A finding in one line: place, code, message, hints.
fn line(diagnostic: &Diagnostic) -> String {
    let (site, _) = &diagnostic.sites[0];
    let at = &site.file.text[site.range.clone()];
    let hints = diagnostic.hints.join("; ");
    format!(
        "{}: [{at}] {} ({hints})",
        diagnostic.code, diagnostic.message
    )
}

#[test]
fn failures_say_where_and_what() {
    let found: Vec<_> = [
        "prompt_tokns > 1",
        "1 + x.y.z + 2",
        "result.counts.faild == 0",
        "result.count > 0",
        "result['count'] > 0",
        "now()",
        "transport > 3",
        "on and prompt_tokens == '1024'",
        "'1024' == prompt_tokens or on",
        "absent < 3",
        "result.counts == 3",
        "1 +",
        "1 2",
        "a b",
        "{{ on }}",
        "prompt_tokens | sise",
        "on is stringg",
        "transport + 1",
        "1 / 0",
        "9223372036854775807 * 9223372036854775807 * 9",
        "3 if not on",
        "transport.nope()",
        "list | join(1, 2, 3)",
        " ",
    ]
    .into_iter()
    .map(|expression| line(&eval(expression).expect_err(expression)))
    .collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    undefined-variable: [prompt_tokns] `prompt_tokns` is not defined (did you mean `prompt_tokens`?)
    undefined-variable: [x] `x` is not defined (defined here: absent, list, on, prompt_tokens, ratio, result, transport, whole)
    undefined-variable: [faild] `faild` is not in `result.counts` (did you mean `failed`?)
    undefined-variable: [count] `count` is not in `result` (did you mean `counts`?)
    undefined-variable: ["result['count'] > 0"] `result['count']` is undefined ()
    undefined-variable: [now] `now` is not defined (defined here: absent, list, on, prompt_tokens, ratio, result, transport, whole)
    wrong-type: [transport > 3] `transport` (a string) cannot be compared with a number (texts stand in quotes, numbers do not)
    wrong-type: [prompt_tokens == '1024'] `prompt_tokens` (a number) cannot be compared with a string (texts stand in quotes, numbers do not)
    wrong-type: ['1024' == prompt_tokens] a string cannot be compared with `prompt_tokens` (a number) (texts stand in quotes, numbers do not)
    wrong-type: [absent < 3] `absent` (none) cannot be compared with a number (only things of one kind can be compared)
    wrong-type: [result.counts == 3] `result.counts` (a table) cannot be compared with a number (only things of one kind can be compared)
    bad-expression: [+] this expression cannot be read: unexpected end of input, expected expression ()
    bad-expression: [2] this expression cannot be read: unexpected input after expression ()
    bad-expression: [b] this expression cannot be read: unexpected input after expression ()
    bad-expression: [}] this expression cannot be read: unexpected `}`, expected `:` (an expression stands without `{{` and `}}`)
    bad-expression: [sise] there is no filter `sise` (did you mean `size`?)
    bad-expression: [stringg] there is no test `stringg` (did you mean `string`?)
    expression-failed: [transport + 1] this expression failed: tried to use + operator on unsupported types string and number ()
    expression-failed: [1 / 0] this expression failed: unable to calculate 1 / 0 ()
    expression-failed: [9223372036854775807 * 9223372036854775807 * 9] this expression failed: unable to calculate 85070591730234615847396907784232501249 * 9 ()
    expression-failed: ["3 if not on"] this expression has no usable value: it has no value (an `if` without `else`?) ()
    expression-failed: [.nope()] this expression failed: unknown method: string has no method named nope ()
    expression-failed: [join(1, 2, 3)] this expression failed: value is not a string ()
    bad-expression: [" "] an expression is missing here (write a condition such as `prompt_tokens > 1024`)
    "#);
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
    let loops = "range(99999) | map('abs') | list | length";
    assert!(eval(loops).is_ok());
    let deep = "(".repeat(100_000);
    assert_eq!(eval(&deep).unwrap_err().code, "bad-expression");
    let long = "1 + ".repeat(100_000) + "1";
    assert_eq!(eval(&long).unwrap_err().code, "too-long");
}

#[test]
fn loops_in_templates_run_out_too() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    let template = crate::rule::Template::compile(&text(source), Mode::Shell).unwrap();
    let diagnostic = template.render(&scope()).unwrap_err();
    assert_eq!(diagnostic.code, "expression-failed");
    assert!(
        diagnostic.message.contains("too long"),
        "{}",
        diagnostic.message
    );
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

/// Outputs and metrics may have names that templates use as words of their own.
#[test]
fn an_expression_is_worked_out_anew_for_every_scope() {
    for expression in [
        "raw.failed == 0",
        "raw['failed'] == 0",
        "raw.seen[0:1] == [0]",
    ] {
        let held = |failed: i64| {
            let mut scope = Scope::new();
            scope.set_json(
                "raw",
                &serde_json::json!({"failed": failed, "seen": [failed, 9]}),
            );
            Expr::compile(&text(expression)).unwrap().eval_bool(&scope)
        };
        assert_eq!(
            [held(0), held(7), held(0)],
            [Ok(true), Ok(false), Ok(true)],
            "{expression}"
        );
    }
}
