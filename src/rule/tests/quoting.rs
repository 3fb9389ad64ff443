use super::*;
use crate::rule::shell::quote;
use crate::rule::{Mode, Scope, Template};
use crate::source::{Doc, Text};
use proptest::prelude::*;
use std::process::Command;

fn text(source: &str) -> Text {
    let (doc, _) = Doc::parse("t.toml", "t = ''");
    let mut text = doc.table().req_str("t", &mut Vec::new()).unwrap();
    text.text = source.to_owned();
    text
}

/// What `sh` makes of the arguments of `printf '%s\0'`.
fn words(arguments: &str) -> Vec<String> {
    let script = format!("for w in {arguments}\ndo printf '%s\\0' \"$w\"; done");
    let out = Command::new("sh").args(["-euc", &script]).output().unwrap();
    assert!(out.status.success(), "{script}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn shell(template: &str, scope: &Scope) -> String {
    let template = Template::compile(&text(template), Mode::Shell).unwrap();
    template.render(scope).unwrap()
}

#[test]
fn plain_words_stay_as_they_are() {
    for word in [
        "a",
        "Qwen/Qwen2.5-32B",
        "http://127.0.0.1:80/x",
        "k=v",
        "@a.b@",
        "1.5e-3",
        "a+b,c%",
    ] {
        assert_eq!(quote(word), word);
    }
    for (word, quoted) in [
        ("", "''"),
        ("a b", "'a b'"),
        ("it's", r"'it'\''s'"),
        ("~", "'~'"),
        ("*", "'*'"),
        ("#", "'#'"),
        ("é", "'é'"),
    ] {
        assert_eq!(quote(word), quoted);
    }
}

#[test]
fn values_print_in_one_way_only() {
    let mut scope = Scope::new();
    scope.set("whole", &Value::Float(2.0));
    scope.set("real", &Value::Float(0.1));
    scope.set("tiny", &Value::Float(1e-7));
    scope.set("yes", &Value::Bool(true));
    scope.set("text", &Value::Str("a b".into()));
    scope.set(
        "list",
        &Value::List(vec![
            Value::Str("x y".into()),
            Value::Int(3),
            Value::Str(String::new()),
        ]),
    );
    scope.set("empty", &Value::List(vec![]));
    scope.set(
        "table",
        &Value::Map([("k".to_owned(), Value::Str("it's".into()))].into()),
    );
    for (template, expected) in [
        (
            "{{ whole }} {{ real }} {{ tiny }} {{ yes }}",
            "2 0.1 0.0000001 true",
        ),
        ("{{ 60 / 2 }}", "30"),
        ("--x={{ text }}", "--x='a b'"),
        ("{{ text | raw }}", "a b"),
        ("{{ (text ~ 'c') | raw }} {{ text ~ 'c' }}", "a bc 'a bc'"),
        ("{{ list }}", "'x y' 3 ''"),
        ("[{{ empty }}]", "[]"),
        ("{{ list | join(',') }}", "'x y,3,'"),
        ("{{ table | json }}", r#"'{"k":"it'\''s"}'"#),
        (
            "{{ {'a': whole, 'b': [real, yes]} | json }}",
            r#"'{"a":2,"b":[0.1,true]}'"#,
        ),
        ("{% for x in list %}<{{ x }}>{% endfor %}", "<'x y'><3><''>"),
        ("{% set y %}-{{ text }}-{% endset %}{{ y }}", "-'a b'-"),
        ("{{ 'a' if not yes }}", ""),
        ("a\n", "a\n"),
    ] {
        assert_eq!(shell(template, &scope), expected, "{template}");
    }
    let said: Vec<_> = [
        "{{ table }}",
        "{{ none }}",
        "{{ 1e308 * 10 }}",
        "{{ nope }}",
        "{{ table.x }}",
        "{% if %}",
        "{{ text | upperr }}",
    ]
    .map(|template| {
        let result = Template::compile(&text(template), Mode::Shell).and_then(|t| t.render(&scope));
        let diagnostic = result.expect_err(template);
        format!(
            "{}: {} ({})",
            diagnostic.code,
            diagnostic.message,
            diagnostic.hints.join("; ")
        )
    })
    .into();
    insta::assert_snapshot!(said.join("\n"), @r#"
    expression-failed: this template failed: a table has no one way to be printed (add `| json`)
    expression-failed: this template failed: none has no one way to be printed (test it with `is none` first)
    expression-failed: this template failed: inf is not a finite number ()
    undefined-variable: `nope` is not defined (defined here: empty, list, real, table, text, tiny, whole, yes)
    undefined-variable: `x` is not in `table` ()
    bad-expression: this template cannot be read: unexpected end of block ()
    bad-expression: there is no filter `upperr` (did you mean `upper`?)
    "#);
    let plain = Template::compile(&text("{{ list }}"), Mode::Plain).unwrap();
    assert!(plain.render(&scope).is_err());
    let plain = Template::compile(&text("{{ text }} {{ whole }}"), Mode::Plain).unwrap();
    assert_eq!(plain.render(&scope).unwrap(), "a b 2");
}

#[test]
fn a_nul_is_refused() {
    let mut scope = Scope::new();
    scope.set("x", &Value::Str("a\0b".into()));
    let template = Template::compile(&text("{{ x }}"), Mode::Shell).unwrap();
    assert_eq!(
        template.render(&scope).unwrap_err().code,
        "expression-failed"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_shell_reads_back_every_word(word in "[^\\x00]{0,20}") {
        prop_assert_eq!(words(&quote(&word)), vec![word]);
    }

    #[test]
    fn the_shell_reads_back_every_rendered_value(
        a in "[^\\x00]{0,12}",
        list in prop::collection::vec("[ -~\\n]{0,8}", 1..4),
    ) {
        let mut scope = Scope::new();
        scope.set("a", &Value::Str(a.clone()));
        scope.set("list", &Value::List(list.iter().cloned().map(Value::Str).collect()));
        let mut expected = vec![format!("--a={a}!")];
        expected.extend(list);
        prop_assert_eq!(words(&shell("--a={{ a }}! {{ list }}", &scope)), expected);
    }

    #[test]
    fn any_template_is_read_or_refused(source in "[a{}%|\"'. \\n#-]{0,40}") {
        let scope: Scope = [("a", Value::Int(1))].into_iter().collect();
        for mode in [Mode::Plain, Mode::Shell] {
            let _ = Template::compile(&text(&source), mode).and_then(|t| t.render(&scope));
        }
    }
}
