//! What a user gets wrong: each mistake is found by `doe check` without a cluster, with its place,
//! a caret, the reason and what to do; exit 3. The whole text of each is a golden file.

mod support;

use support::{Workspace, repository};

/// `rules/lab.toml` of the test workspaces: small, and uses every part.
const RULES: &str = r#"[probe]
doc = "Prints a number."
param.tokens = { type = "int", min = 1, max = 131072, unit = "tokens", doc = "how many" }
param.limit = { type = "int", min = 1, default = 40960, unit = "tokens", doc = "longest" }
param.transport = { type = "enum", of = ["efa", "tcp"], default = "efa", doc = "what carries it" }
require = [{ that = "tokens <= limit", why = "the prompt must fit the context" }]
roles = { client = {} }
env.TRANSPORT = "{{ transport }}"
[[probe.step]]
name = "measure"
role = "client"
timeout = "1m"
run = "printf '{\"schema\": \"probe-v1\", \"tokens\": %s}' {{ tokens }} > {{ out.result }}"
[probe.output]
result = { path = "result.json", schema = "probe-v1" }
[probe.metric]
tokens_seen = { from = "result", at = "/tokens", unit = "tokens" }
"#;

const PLAN: &str = r#"[plan]
title = "A lab"
rules = ["lab"]

[settings]
limit = 40960

[[layer]]
id = "L0-Short"
rule = "lab.probe"
pattern = "short-{{ tokens }}"
[layer.matrix]
tokens = [1024, 4096]

[[layer]]
id = "L1-Long"
rule = "lab.probe"
gate = ["L0-Short"]
[[layer.pattern]]
id = "long"
settings = { tokens = 32768, transport = "tcp" }
"#;

/// A mistake: name, file, text that stands there, what is written instead, the code it must have.
const MISTAKES: &[(&str, &str, &str, &str, &str)] = &[
    (
        "requirement",
        "plans/lab.toml",
        "tokens = 32768",
        "tokens = 131072",
        "requirement",
    ),
    (
        "unknown-key",
        "plans/lab.toml",
        "pattern = \"short",
        "patern = \"short",
        "unknown-key",
    ),
    (
        "unused-setting",
        "plans/lab.toml",
        "limit = 40960\n",
        "limit = 40960\nbatch = 4\n",
        "unused-setting",
    ),
    (
        "unknown-setting",
        "plans/lab.toml",
        "transport = \"tcp\"",
        "transprot = \"tcp\"",
        "unknown-setting",
    ),
    (
        "undefined-variable",
        "plans/lab.toml",
        "{{ tokens }}",
        "{{ token }}",
        "undefined-variable",
    ),
    (
        "undefined-in-rule",
        "rules/lab.toml",
        "{{ tokens }}",
        "{{ tokns }}",
        "undefined-variable",
    ),
    (
        "cycle",
        "plans/lab.toml",
        "rule = \"lab.probe\"\npattern",
        "rule = \"lab.probe\"\nneeds = [\"long\"]\npattern",
        "cycle",
    ),
    (
        "duplicate-id",
        "plans/lab.toml",
        "id = \"long\"",
        "id = \"short-1024\"",
        "duplicate-id",
    ),
    (
        "missing-rule",
        "plans/lab.toml",
        "rule = \"lab.probe\"\ngate",
        "rule = \"lab.prob\"\ngate",
        "missing-rule",
    ),
    (
        "missing-rule-file",
        "plans/lab.toml",
        "rules = [\"lab\"]",
        "rules = [\"lba\"]",
        "missing-rule-file",
    ),
    (
        "wrong-type",
        "plans/lab.toml",
        "tokens = 32768",
        "tokens = \"many\"",
        "wrong-type",
    ),
    (
        "out-of-bounds",
        "plans/lab.toml",
        "tokens = 32768",
        "tokens = 0",
        "out-of-bounds",
    ),
    (
        "not-one-of",
        "plans/lab.toml",
        "transport = \"tcp\"",
        "transport = \"TCP\"",
        "not-one-of",
    ),
    (
        "unresolved-gate",
        "plans/lab.toml",
        "gate = [\"L0-Short\"]",
        "gate = [\"L0-Shrot\"]",
        "unresolved-gate",
    ),
    (
        "bad-expectation",
        "plans/lab.toml",
        "id = \"long\"\n",
        "id = \"long\"\nexpect = { tokens_seen = \"30-40\" }\n",
        "bad-expectation",
    ),
    (
        "expect-patterns",
        "plans/lab.toml",
        "title = \"A lab\"\n",
        "title = \"A lab\"\nexpect_patterns = 50\n",
        "pattern-count",
    ),
    (
        "syntax",
        "plans/lab.toml",
        "[settings]",
        "[settings",
        "syntax",
    ),
];

fn lab() -> Workspace {
    let workspace = Workspace::empty();
    workspace.write("rules/lab.toml", RULES);
    workspace.write("plans/lab.toml", PLAN);
    workspace
}

#[test]
fn the_lab_itself_is_sound() {
    lab().doe(&["check", "//..."]).ok();
}

#[test]
fn every_mistake_is_told_with_place_reason_and_hint() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut unlike = Vec::new();
    for (name, file, old, new, code) in MISTAKES {
        let workspace = lab();
        workspace.replace(file, old, new, 1);
        let json = workspace.doe(&["check", "//...", "--json"]).exits(3).json();
        let errors = json["errors"].as_array().unwrap();
        let Some(found) = errors.iter().find(|e| e["code"] == *code) else {
            unlike.push(format!("{name}: no `{code}` in {json}"));
            continue;
        };
        assert_eq!(found["file"], *file, "{name}: {found}");
        assert!(found["line"].as_u64().unwrap() >= 1, "{name}");
        assert!(found["column"].as_u64().unwrap() >= 1, "{name}");
        assert!(!found["message"].as_str().unwrap().is_empty());
        // The parser's own message says what it expected.
        let hinted = *name == "syntax" || !found["hints"].as_array().unwrap().is_empty();
        assert!(hinted, "{name} has no hint: {found}");

        let text = workspace.doe(&["check", "//..."]).exits(3).stdout;
        assert!(text.contains('^'), "{name} has no caret:\n{text}");
        let golden = repository().join(format!("tests/golden/errors/{name}.txt"));
        if update {
            std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
            std::fs::write(&golden, &text).unwrap();
        }
        let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(
            text, wanted,
            "{name}: the golden text differs; UPDATE_GOLDEN=1 writes it"
        );
        // No half effect: nothing runs and nothing is stored from a plan that is not sound.
        workspace.doe(&["build", "//..."]).exits(3);
        assert!(
            !workspace.path().join(".doe/index.sqlite").exists(),
            "{name}"
        );
    }
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
}

#[test]
fn the_command_line_is_checked_too() {
    let workspace = lab();
    for (args, hint) in [
        (vec!["list", "//lba:all"], "//lab"),
        (vec!["list", "//lab:L0-Shrt"], "L0-Short"),
        (vec!["list", "lab:all"], "//lab:all"),
        (vec!["list", "//lab:long", "--platform", "smi"], "sim"),
        (vec!["list", "//...", "--set", "tokns=5"], "tokens"),
        (vec!["list", "#tga"], "`//`"),
    ] {
        let ran = workspace.doe(&args);
        assert!(ran.code == 2 || ran.code == 3, "{args:?}: {}", ran.stderr);
        if hint != "`//`" {
            assert!(ran.stderr.contains(hint), "{args:?}: {}", ran.stderr);
        }
    }
    let nowhere = std::process::Command::new(env!("CARGO_BIN_EXE_doe"))
        .args(["check", "//..."])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("doe init"));
}
