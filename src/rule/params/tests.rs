use super::*;
use crate::rule::define;
use crate::source::Doc;
use proptest::prelude::*;

fn param(definition: &str) -> Param {
    let (doc, _) = Doc::parse("r.toml", &format!("p = {definition}\n"));
    let mut diags = Vec::new();
    let param = define::read(&doc.table().entries()[0], &mut diags);
    assert_eq!(diags, []);
    param.unwrap()
}

fn value(text: &str) -> Value {
    toml_value(text).unwrap()
}

#[test]
fn values_become_canonical() {
    for (definition, written, expected) in [
        ("{ type = 'int' }", "3.0", Value::Int(3)),
        ("{ type = 'int', min = 1, max = 1 }", "1", Value::Int(1)),
        ("{ type = 'float' }", "3", Value::Float(3.0)),
        ("{ type = 'float' }", "-0.0", Value::Float(0.0)),
        ("{ type = 'bool' }", "true", Value::Bool(true)),
        (
            "{ type = 'str', pattern = 'a|b' }",
            "'b'",
            Value::Str("b".into()),
        ),
        (
            "{ type = 'enum', of = ['x'] }",
            "'x'",
            Value::Str("x".into()),
        ),
        ("{ type = 'duration' }", "'1h30m'", Value::Float(5400.0)),
        ("{ type = 'duration' }", "90", Value::Float(90.0)),
        (
            "{ type = 'list', of = 'int', min = 0 }",
            "[1.0, 2]",
            Value::List(vec![Value::Int(1), Value::Int(2)]),
        ),
        (
            "{ type = 'list', of = 'duration' }",
            "['1m', 2]",
            Value::List(vec![Value::Float(60.0), Value::Float(2.0)]),
        ),
        ("{ type = 'table' }", "{}", Value::Map([].into())),
    ] {
        let param = param(definition);
        let canonical = check("p", &param, &value(written), None).unwrap();
        assert_eq!(canonical, expected, "{definition} {written}");
        assert_eq!(check("p", &param, &canonical, None).unwrap(), expected);
    }
    // One zero: the sign of nothing is nothing.
    let zero = check("p", &param("{ type = 'float' }"), &Value::Float(-0.0), None).unwrap();
    assert_eq!(
        serde_json::to_string(&zero).unwrap().trim_end_matches(".0"),
        "0"
    );
}

#[test]
fn values_that_do_not_fit_are_told() {
    let said: Vec<_> = [
        (
            "{ type = 'int', min = 1, unit = 'tokens', doc = 'length of a prompt' }",
            "0",
        ),
        ("{ type = 'int', max = 5 }", "6"),
        ("{ type = 'int', min = 1, max = 5 }", "6"),
        ("{ type = 'int' }", "1.5"),
        ("{ type = 'int' }", "'15'"),
        ("{ type = 'float', max = 1 }", "1.25"),
        ("{ type = 'bool' }", "'true'"),
        ("{ type = 'bool' }", "1"),
        ("{ type = 'str' }", "1"),
        ("{ type = 'str', pattern = 'a|b' }", "'ab'"),
        ("{ type = 'str' }", "\"a\\u0000\""),
        ("{ type = 'enum', of = ['efa', 'tcp'] }", "'TCP'"),
        ("{ type = 'enum', of = ['efa', 'tcp'] }", "'udp'"),
        ("{ type = 'enum', of = ['efa', 'tcp'] }", "3"),
        ("{ type = 'duration' }", "'90'"),
        ("{ type = 'duration' }", "-1"),
        ("{ type = 'duration' }", "true"),
        ("{ type = 'list', of = 'int' }", "3"),
        ("{ type = 'list', of = 'int' }", "[1, 'a']"),
        ("{ type = 'table' }", "[]"),
    ]
    .map(|(definition, written)| {
        let diagnostic = check("p", &param(definition), &value(written), None).unwrap_err();
        format!(
            "{}: {} ({})",
            diagnostic.code,
            diagnostic.message,
            diagnostic.hints.join("; ")
        )
    })
    .into();
    insta::assert_snapshot!(said.join("\n"), @r#"
    out-of-bounds: `p` must be at least 1 tokens; found 0 (`p`: length of a prompt)
    out-of-bounds: `p` must be at most 5; found 6 ()
    out-of-bounds: `p` must be from 1 to 5; found 6 ()
    wrong-type: `p` must be an integer; found 1.5 (write a whole number, such as 8)
    wrong-type: `p` must be an integer; found the string "15" (write 15 without quotes)
    out-of-bounds: `p` must be at most 1; found 1.25 ()
    wrong-type: `p` must be true or false; found the string "true" (write true without quotes)
    wrong-type: `p` must be true or false; found 1 (write true or false, without quotes)
    wrong-type: `p` must be a string; found 1 (put it in quotes)
    pattern-mismatch: `p` must match `a|b`; found "ab" ()
    wrong-type: `p` holds a NUL character, which no program can be given ()
    not-one-of: `p` must be one of efa, tcp; found `TCP` (did you mean `tcp`?)
    not-one-of: `p` must be one of efa, tcp; found `udp` ()
    not-one-of: `p` must be one of efa, tcp; found 3 ()
    bad-duration: `p` must be a duration; found `90` (write a duration such as "90s", "15m" or "1h30m", or a number of seconds)
    out-of-bounds: `p` must be a duration of 0 or more; found -1 seconds ()
    wrong-type: `p` must be a duration; found true (write a duration such as "90s", "15m" or "1h30m", or a number of seconds)
    wrong-type: `p` must be a list; found 3 (write a list, such as [1, 2])
    wrong-type: `p[1]` must be an integer; found the string "a" (write a whole number, such as 8)
    wrong-type: `p` must be a table; found a list of 0 (write a table, such as { name = "value" })
    "#);
}

#[test]
fn a_value_in_a_file_is_told_with_both_places() {
    let param = param("{ type = 'enum', of = ['efa', 'tcp'] }");
    let (doc, _) = Doc::parse("plan.toml", "transport = 'TCP'\n");
    let item = &doc.table().entries()[0].item;
    let value = item.to_value("", &mut Vec::new()).unwrap();
    let diagnostic = check("transport", &param, &value, Some(&item.site)).unwrap_err();
    assert_eq!(
        diagnostic.message,
        "`transport` must be one of efa, tcp; found `TCP`"
    );
    assert_eq!(diagnostic.hints, ["did you mean `tcp`?"]);
    let places: Vec<_> = diagnostic
        .sites
        .iter()
        .map(|(site, _)| site.short())
        .collect();
    assert_eq!(places, ["plan.toml:1:13", "r.toml:1:1"]);
}

#[test]
fn the_command_line_writes_values_without_toml_quotes() {
    for (definition, text, expected) in [
        ("{ type = 'int' }", "3", Value::Int(3)),
        ("{ type = 'str' }", "3", Value::Str("3".into())),
        ("{ type = 'str' }", "a = 'b'", Value::Str("a = 'b'".into())),
        (
            "{ type = 'enum', of = ['efa'] }",
            "efa",
            Value::Str("efa".into()),
        ),
        ("{ type = 'duration' }", "15m", Value::Float(900.0)),
        ("{ type = 'duration' }", "15", Value::Float(15.0)),
        (
            "{ type = 'list', of = 'str' }",
            "['a', 'b']",
            Value::List(vec![Value::Str("a".into()), Value::Str("b".into())]),
        ),
        (
            "{ type = 'table' }",
            "{ a = 1 }",
            Value::Map([("a".to_owned(), Value::Int(1))].into()),
        ),
    ] {
        assert_eq!(
            from_text("p", &param(definition), text).unwrap(),
            expected,
            "{text}"
        );
    }
    assert!(from_text("p", &param("{ type = 'int' }"), "1\nq = 2").is_err());
    assert!(from_text("p", &param("{ type = 'int' }"), "x").is_err());
}

#[test]
fn only_what_is_always_one_word_is_never_quoted() {
    for (definition, expected) in [
        ("{ type = 'int' }", true),
        ("{ type = 'duration' }", true),
        ("{ type = 'str' }", false),
        ("{ type = 'str', pattern = '[A-Za-z0-9._-]+' }", true),
        ("{ type = 'str', pattern = '[A-Za-z0-9._-]*' }", false),
        ("{ type = 'str', pattern = '[+--]+' }", false),
        ("{ type = 'str', pattern = '[^a]+' }", false),
        ("{ type = 'str', pattern = '[ -~]+' }", false),
        ("{ type = 'str', pattern = '[%-z]+' }", false),
        ("{ type = 'str', pattern = '[a]+|[b]+' }", false),
        ("{ type = 'enum', of = ['a', 'b-c'] }", true),
        ("{ type = 'enum', of = ['a', 'b c'] }", false),
        ("{ type = 'enum', of = ['a', ''] }", false),
        ("{ type = 'table' }", false),
    ] {
        assert_eq!(
            never_quoted(&param(definition).ty),
            expected,
            "{definition}"
        );
    }
}

proptest! {
    /// What is said to need no quotes gets none.
    #[test]
    fn classes_keep_their_word(class in "[A-Za-z0-9._+,%@=:/-]{1,6}", text in "[ -~]{1,8}") {
        let ty = ParamType::Str { pattern: Some(format!("[{class}]+")) };
        if never_quoted(&ty) && let Ok(Value::Str(text)) = check_type("p", &ty, None, &Value::Str(text)) {
            prop_assert!(shell::is_plain(&text), "[{class}]+ lets {text:?} through");
        }
    }

    #[test]
    fn any_text_from_the_command_line_is_taken_or_refused(text in "\\PC{0,30}") {
        for definition in ["{ type = 'int' }", "{ type = 'table' }", "{ type = 'list', of = 'duration' }", "{ type = 'duration' }"] {
            let _ = from_text("p", &param(definition), &text);
        }
    }
}
