use super::errors::GOOD;
use super::*;

/// The good rule with a service that has this in `released`.
fn with(released: &str) -> String {
    let line = format!("role = \"server\"\nreleased = {released}\n");
    lines(&load(&GOOD.replacen("role = \"server\"\n", &line, 1)).1)
}

#[test]
fn what_is_wrong_with_it_is_told_with_its_place() {
    let mut said = String::new();
    for released in [
        r#"{ run = "test {{ size }} -gt 0 -a -d {{ work }}", within = "90s" }"#,
        r#"{ within = "1m" }"#,
        r#"{ run = "" }"#,
        r#"{ run = "true", wihtin = "1m" }"#,
        r#"{ run = "true", within = "1" }"#,
        r#"{ run = "test {{ sice }} -gt 0" }"#,
        r#"{ run = "test -e {{ out.result }}" }"#,
        r#"{ run = "echo '{{ mode }}'" }"#,
        r#""nothing""#,
    ] {
        said += &format!("{released}\n");
        for line in with(released).lines() {
            said += &format!("  {line}\n");
        }
    }
    insta::assert_snapshot!(said, @r#"
    { run = "test {{ size }} -gt 0 -a -d {{ work }}", within = "90s" }
    { within = "1m" }
      t.toml:13:12 [{ within = "1m" }] missing-key: `released` needs `run`
          add `run`, as in `run = """doe measure ..."""`
    { run = "" }
      t.toml:13:20 [""] missing-part: `run` is empty
          write the script, or take the step or service away
    { run = "true", wihtin = "1m" }
      t.toml:13:28 [wihtin] unknown-key: `wihtin` is not a key in `released`
          did you mean `within`?
          keys in `released`: run, within
    { run = "true", within = "1" }
      t.toml:13:37 ["1"] bad-duration: `within` must be a duration, found `1`
          add a unit, as in "1s", or take the quotes away
          write a duration such as "90s", "15m" or "1h30m", or a number of seconds
    { run = "test {{ sice }} -gt 0" }
      t.toml:13:29 [sice] undefined-variable: `sice` is not defined
          did you mean `size`?
    { run = "test -e {{ out.result }}" }
      t.toml:13:32 [out] undefined-variable: `out` is not defined
          a service outlives a node and serves several, so it knows none
    { run = "echo '{{ mode }}'" }
      t.toml:13:27 [{{ mode }}] quoted-value: a value stands inside quotes
          values quote themselves; take the quotes away
    "nothing"
      t.toml:13:12 ["nothing"] wrong-type: `released` must be a table, found a string
          write `released = { name = "value" }`, for example
    "#);
}

#[test]
fn what_only_it_mentions_changes_no_result() {
    let mentions = "role = \"server\"\nreleased = { run = \"test {{ idle_mib }} -gt 0\" }\n";
    for (affects, told) in [("result", 1), ("scheduling", 0)] {
        let param = format!(
            "[r]\nparam.idle_mib = {{ type = \"int\", default = 3, affects = \"{affects}\" }}\n"
        );
        let text = GOOD
            .replacen("role = \"server\"\n", mentions, 1)
            .replacen("[r]\n", &param, 1);
        let found = lines(&load(&text).1);
        assert_eq!(found.matches("unused-parameter").count(), told, "{found}");
    }
}
