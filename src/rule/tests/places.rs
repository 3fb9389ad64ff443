//! Places that no text names are left out of what a text is rendered with, and nobody can tell.

use super::{lines, load, pairs};
use crate::rule::action::{Binding, RealBinding};
use crate::rule::model::RuleId;
use crate::rule::render::render;
use doe_cache::Value;

const RULE: &str = r#"[go]
param.question = { type = "str", doc = "w" }
roles = { here = {}, far = {} }
[[go.step]]
name = "say"
role = "here"
timeout = "1m"
run = "echo {{ question }} > {{ out.text }}"
[[go.step]]
name = "pull"
role = "far"
timeout = "1m"
run = "true"
[go.output]
text = { path = "text" }
"#;

#[test]
fn what_is_missing_is_told_with_all_names_that_there_are() {
    let (rules, found) = load(RULE);
    assert_eq!(lines(&found), "");
    let rule = &rules[&RuleId("t.go".into())];
    let error = render(rule, pairs(&[]), &Binding::Symbolic).unwrap_err();
    let found = &error.diagnostics[0];
    assert_eq!(found.message, "`question` is not defined");
    let listed = "defined here: far, here, out, self, service, session, step, work";
    assert_eq!(found.hints, [listed]);
}

#[test]
fn a_role_that_is_not_bound_is_told_though_no_text_names_it() {
    let (rules, _) = load(RULE);
    let rule = &rules[&RuleId("t.go".into())];
    let binding = Binding::Real(RealBinding::default());
    let error = render(rule, pairs(&[("question", Value::from("a"))]), &binding).unwrap_err();
    let found = &error.diagnostics[0];
    assert_eq!(found.message, "no host is bound to the role `far`");
}
