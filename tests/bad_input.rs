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
        let hints = found["hints"].as_array().unwrap();
        assert!(!hints.is_empty(), "{name} has no hint: {found}");

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

/// More mistakes, told by their code and a part of the hint: file, text, what is written instead.
const ADVISED: &[(&str, &str, &str, &str, &str)] = &[
    (
        "plans/lab.toml",
        "L1-Long",
        "L0-Short",
        "duplicate-id",
        "give one of them another id",
    ),
    (
        "plans/lab.toml",
        "[1024, 4096]",
        "[1024, 1024]",
        "duplicate-level",
        "each level once",
    ),
    (
        "plans/lab.toml",
        "id = \"long\"",
        "id = \"long\"\nadhoc = \"yes\"",
        "wrong-type",
        "write `adhoc = true`, without quotes",
    ),
    (
        "plans/lab.toml",
        "title = \"A lab\"",
        "title = 3",
        "wrong-type",
        "write `title = \"3\"`",
    ),
    (
        "plans/lab.toml",
        "title = \"A lab\"",
        "expect_patterns = \"3\"",
        "wrong-type",
        "write `expect_patterns = 3`, without quotes",
    ),
    (
        "plans/lab.toml",
        "id = \"L1-Long\"",
        "id = 3",
        "wrong-type",
        "write `id = \"3\"`",
    ),
    (
        "plans/lab.toml",
        "{ tokens = 32768, transport = \"tcp\" }",
        "4",
        "wrong-type",
        "write `settings = { concurrency = 16 }`",
    ),
    (
        "plans/lab.toml",
        "id = \"long\"",
        "id = \"long\"\ntags = [1]",
        "wrong-type",
        "write `\"1\"`",
    ),
    (
        "plans/lab.toml",
        "tokens = 32768",
        "tokens = nan",
        "wrong-type",
        "such as 0.7",
    ),
    (
        "plans/lab.toml",
        "tokens = 32768",
        "tokens = 99999999999999999999",
        "wrong-type",
        "smaller number",
    ),
    (
        "plans/lab.toml",
        "id = \"long\"",
        "id = \"long\"\n[[layer.pattern.override]]\nwhen = 3\n[layer.pattern.x]",
        "wrong-type",
        "write `when = \"3\"`",
    ),
    (
        "plans/lab.toml",
        "gate = [\"L0-Short\"]",
        "needs = [\"Q9-Absent\"]",
        "unresolved-need",
        "names: ",
    ),
    (
        "plans/lab.toml",
        "[layer.matrix]",
        "estimate = \"tokens //\"\n[layer.matrix]",
        "bad-expression",
        "prompt_tokens > 1024",
    ),
    (
        "plans/lab.toml",
        "[layer.matrix]",
        "estimate = \"60 / (tokens - 1024)\"\n[layer.matrix]",
        "expression-failed",
        "guard it",
    ),
    (
        "plans/lab.toml",
        "[settings]",
        "[[compare]]\nid = \"C\"\nbetween = [\"L0\", \"L1\"]\n[settings]",
        "missing-key",
        "`by = [\"prompt_tokens\", \"concurrency\"]`",
    ),
    (
        "plans/lab.toml",
        "[settings]",
        "[[compare]]\nid = \"C\"\nbetween = [\"L0\", \"Q7\"]\nby = [\"tokens\"]\n[settings]",
        "unresolved-layer",
        "names: ",
    ),
    (
        "plans/lab.toml",
        "[settings]",
        "[[compare]]\nid = \"L0-Short\"\nbetween = [\"L0\", \"L1\"]\nby = [\"limit\"]\n[settings]",
        "duplicate-id",
        "give one of them another id",
    ),
    (
        "rules/lab.toml",
        "timeout = \"1m\"\n",
        "",
        "missing-key",
        "`timeout = \"30m\"`",
    ),
    (
        "rules/lab.toml",
        "timeout = \"1m\"",
        "timeout = \"1m\"\nports = { http = \"8100\" }",
        "wrong-type",
        "write `8100`, without quotes",
    ),
    (
        "rules/lab.toml",
        "timeout = \"1m\"",
        "timeout = \"1m\"\nports = { http = 81000 }",
        "out-of-bounds",
        "8100",
    ),
    (
        "rules/lab.toml",
        "roles = { client = {} }",
        "roles = [\"client\"]",
        "wrong-type",
        "write `roles = { client = {} }`",
    ),
    (
        "rules/lab.toml",
        "doc = \"Prints a number.\"",
        "doc = 3",
        "wrong-type",
        "write `doc = \"3\"`",
    ),
    (
        "rules/lab.toml",
        "timeout = \"1m\"",
        "timeout = \"1m\"\nenv = { A = [1, 2] }",
        "wrong-type",
        "write `A = \"...\"`",
    ),
    (
        "rules/lab.toml",
        "doc = \"Prints a number.\"",
        "extends = \"probe\"",
        "extends-cycle",
        "rule of its own",
    ),
    (
        "rules/lab.toml",
        "doc = \"Prints a number.\"",
        "let = { a = \"b + 1\", b = \"a + 1\" }",
        "let-cycle",
        "in terms of parameters",
    ),
    (
        "rules/lab.toml",
        "[probe.output]",
        "[[probe.step]]\nname = \"measure\"\nrole = \"client\"\ntimeout = \"1m\"\nrun = \"true\"\n[probe.output]",
        "duplicate-name",
        "another name",
    ),
    (
        "rules/lab.toml",
        "timeout = \"1m\"",
        "timeout = \"1m\"\ngang = \"g\"\nafter = [\"measure\"]\nready = { alive = true }",
        "after-cycle",
        "start first",
    ),
    (
        "rules/lab.toml",
        "timeout = \"1m\"",
        "timeout = \"tokens +\"",
        "bad-expression",
        "`timeout` is a duration",
    ),
];

#[test]
fn no_finding_is_without_advice() {
    for (file, old, new, code, hint) in ADVISED {
        let workspace = lab();
        workspace.replace(file, old, new, 1);
        let json = workspace.doe(&["check", "//...", "--json"]).exits(3).json();
        let errors = json["errors"].as_array().unwrap();
        let found = errors.iter().find(|e| e["code"] == *code);
        let found = found.unwrap_or_else(|| panic!("{new}: no `{code}` in {json}"));
        assert_eq!(found["file"], *file, "{new}: {found}");
        let hints = found["hints"].to_string().replace("\\\"", "\"");
        assert!(hints.contains(hint), "{new}: {found}");
        for any in errors {
            assert_ne!(any["hints"], serde_json::json!([]), "{new}: {any}");
            assert!(any["line"].is_u64(), "{new}: {any}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_a_plan_is_pointed_at() {
    let workspace = lab();
    workspace.write("plans/a b.toml", "[plan]\ntitle = \"x\"\n");
    let ran = workspace.doe(&["check", "//..."]).exits(3);
    let place = ran.stdout.contains("--> plans/a b.toml:1:1") && ran.stdout.contains('^');
    assert!(
        place && ran.stdout.contains("help: names of plans"),
        "{}",
        ran.stdout
    );
}

#[test]
fn one_mistake_is_told_once() {
    for (file, old, new, count) in [
        ("rules/lab.toml", "doc = \"Prints", "dok = \"Prints", (1, 0)),
        ("rules/lab.toml", "{{ tokens }}", "{{ tokns }}", (1, 0)),
        ("plans/lab.toml", "[settings]", "[settings", (1, 0)),
        (
            "plans/lab.toml",
            "id = \"long\"",
            "id = \"long\"\nadhoc = \"yes\"",
            (1, 0),
        ),
    ] {
        let workspace = lab();
        let more = "[[followup]]\npatterns = [\"long\"]\nwhen = \"tokens_seen > 5\"\n[[compare]]\n\
                    id = \"C\"\nbetween = [\"L0\", \"L1\"]\nby = [\"tokens\"]\nonly_on = [\"transport\"]\n[settings]";
        workspace.replace("plans/lab.toml", "[settings]", more, 1);
        workspace.replace("plans/lab.toml", "[1024, 4096]", "[1024, 32768]", 1);
        workspace.replace(file, old, new, 1);
        let json = workspace.doe(&["check", "//...", "--json"]).exits(3).json();
        let len = |of: &str| json[of].as_array().unwrap().len();
        assert_eq!((len("errors"), len("warnings")), count, "{new}: {json}");
    }
}

/// What `check` says of a workspace that was changed: code, place and hints of every finding.
fn findings(workspace: &Workspace, exit: i32) -> Vec<(String, String, String)> {
    let json = workspace
        .doe(&["check", "//...", "--json"])
        .exits(exit)
        .json();
    let all = ["errors", "warnings"].map(|of| json[of].as_array().unwrap().clone());
    (all.concat().iter())
        .map(|d| {
            let text = |key: &str| d[key].as_str().unwrap_or_default().to_owned();
            let place = format!("{}:{}:{}", text("file"), d["line"], d["column"]);
            (
                text("code"),
                place,
                format!("{} {}", d["message"], d["hints"]),
            )
        })
        .collect()
}

#[test]
fn the_simulated_hosts_are_checked_where_they_are_written() {
    for (sim, place, part) in [
        (
            "sim = { time_scal = 3 }",
            "doe.toml:2:9",
            "did you mean `time_scale`?",
        ),
        (
            "sim = { time_scale = \"fast\" }",
            "doe.toml:2:22",
            "invalid type",
        ),
        ("sim = { time_scale = 0 }", "doe.toml:2:22", "above 0"),
        ("sim = { time_scale = -1 }", "doe.toml:2:22", "above 0"),
        (
            "sim = { gpu = { cout = 3 } }",
            "doe.toml:2:17",
            "did you mean `count`?",
        ),
        (
            "sim = { efa = { bandwidth_gbps = 3 } }",
            "doe.toml:2:15",
            "latency_us",
        ),
    ] {
        let workspace = lab();
        workspace.write("doe.toml", &format!("[platform.sim]\n{sim}\n"));
        let found = findings(&workspace, 3);
        assert_eq!(found.len(), 1, "{sim}: {found:?}");
        assert_eq!(
            (found[0].0.as_str(), found[0].1.as_str()),
            ("sim-profile", place),
            "{sim}"
        );
        assert!(found[0].2.contains(part), "{sim}: {found:?}");
        workspace.doe(&["build", "//..."]).exits(3);
    }
    let workspace = lab();
    let sound = "[platform.sim]\nsim = { time_scale = 0.5, gpu = { count = 2 } }\n";
    workspace.write("doe.toml", sound);
    assert_eq!(findings(&workspace, 0), []);
}

#[test]
fn a_follow_up_asks_for_what_a_result_has() {
    for (when, hint) in [
        ("tokens_sen > 5", "did you mean `tokens_seen`?"),
        (
            "tokens_seen > expectd.tokens_seen",
            "did you mean `expected`?",
        ),
        (
            "tokens_seen > expected.tokens_sen",
            "did you mean `tokens_seen`?",
        ),
        ("tokens_seen > expected.tokens_seen and limit > 5", ""),
    ] {
        let workspace = lab();
        let id = "id = \"long\"";
        let more = format!("{id}\nadhoc = true\nexpect = {{ tokens_seen = \"> 5\" }}");
        workspace.replace("plans/lab.toml", id, &more, 1);
        let followup =
            format!("[[followup]]\npatterns = [\"long\"]\nwhen = \"{when}\"\n[settings]");
        workspace.replace("plans/lab.toml", "[settings]", &followup, 1);
        if hint.is_empty() {
            assert_eq!(findings(&workspace, 0), []);
        } else {
            let found = findings(&workspace, 3);
            assert_eq!(
                (found.len(), found[0].0.as_str()),
                (1, "undefined-variable"),
                "{when}"
            );
            assert!(found[0].2.contains(hint), "{when}: {found:?}");
        }
    }
}

#[test]
fn a_setting_that_nothing_reads_is_told() {
    let param = "param.never_read = { type = \"int\", default = 1 }\nparam.limit";
    // Alone, and in a family of rules: what the others may read is told when none does.
    for family in ["", "[other]\nextends = \"probe\"\n"] {
        let workspace = lab();
        workspace.replace("rules/lab.toml", "param.limit", param, 1);
        workspace.replace(
            "rules/lab.toml",
            "[probe]\n",
            &format!("{family}[probe]\n"),
            1,
        );
        workspace.replace(
            "plans/lab.toml",
            "limit = 40960",
            "limit = 40960\nnever_read = 2",
            1,
        );
        let found = findings(&workspace, 0);
        let codes: Vec<_> = found.iter().map(|found| found.0.as_str()).collect();
        assert_eq!(
            codes,
            ["unused-parameter", "unused-setting"],
            "{family}: {found:?}"
        );
        assert_eq!(found[1].1, "plans/lab.toml:7:1");
    }
    let workspace = lab();
    workspace.replace("rules/lab.toml", "param.limit", param, 1);
    let reader = "[other]\nextends = \"probe\"\nenv.N = \"{{ never_read }}\"\n[probe]\n";
    workspace.replace("rules/lab.toml", "[probe]\n", reader, 1);
    assert_eq!(findings(&workspace, 0), []);
}

#[test]
fn what_is_no_plan_is_told_and_never_waited_for() {
    let workspace = lab();
    let pipe = workspace.path().join("plans/pipe.toml");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success(), "mkfifo is part of coreutils");
    workspace.write("plans/empty.toml", "");
    let found = findings(&workspace, 3);
    let found: Vec<_> = found.iter().map(|f| (f.0.as_str(), f.1.as_str())).collect();
    assert_eq!(
        found,
        [
            ("not-regular", "plans/pipe.toml:1:1"),
            ("empty-plan", "plans/empty.toml:1:1")
        ]
    );
    let bare = Workspace::empty();
    let found = findings(&bare, 0);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "no-plans");
}

#[test]
fn a_cluster_that_cannot_be_is_told_key_by_key() {
    let workspace = lab();
    let table =
        "slurm = { partition = \"gpu big\", cpus = 0, root = \"shared\", gres = \"gpu:8\" }\n";
    let head = "[platform.cluster]\nexecutor = \"slurm\"\n";
    workspace.write(
        "doe.toml",
        &format!(
            "{head}{table}ssh = {{ port = 22 }}\n[platform.cluster.host.\"gpu[1-2]\"]\ngpus = 8\n"
        ),
    );
    let text = workspace.doe(&["check", "//..."]).exits(3).stdout;
    let golden = repository().join("tests/golden/errors/slurm-table.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(text, wanted, "UPDATE_GOLDEN=1 writes it");
}

#[test]
fn small_slips_are_found_where_they_are() {
    let workspace = lab();
    workspace.write("doe.toml", "[platform.sim]\nexecutor = \"locl\"\n");
    let found = findings(&workspace, 3);
    assert_eq!(
        (found[0].0.as_str(), found[0].1.as_str()),
        ("unknown-executor", "doe.toml:2:12")
    );
    let workspace = lab();
    let ports = "timeout = \"1m\"\nports = { a = 8100, b = 8100 }";
    workspace.replace("rules/lab.toml", "timeout = \"1m\"", ports, 1);
    let found = findings(&workspace, 3);
    assert_eq!(
        (found.len(), found[0].0.as_str()),
        (1, "duplicate-port"),
        "{found:?}"
    );
    let workspace = lab();
    let rules = "[sum]\nkind = \"analysis\"\noutput.result = { path = \"r.json\" }\n[[sum.step]]\nname = \"s\"\ntimeout = \"1m\"\n\
                 run = \"cp {{ inputs }} {{ out.result }}\"\n[probe]\n";
    workspace.replace("rules/lab.toml", "[probe]\n", rules, 1);
    let layer = "[[layer]]\nid = \"L2-Sum\"\nrule = \"lab.sum\"\npattern = \"sum\"\n\n[[layer]]\nid = \"L1-Long\"";
    workspace.replace("plans/lab.toml", "[[layer]]\nid = \"L1-Long\"", layer, 1);
    let found = findings(&workspace, 0);
    assert_eq!(
        (found.len(), found[0].0.as_str()),
        (1, "no-inputs"),
        "{found:?}"
    );
}

#[test]
fn a_short_name_of_several_layers_is_ambiguous() {
    let workspace = lab();
    workspace.replace("plans/lab.toml", "L1-Long", "L0-Long", 1);
    for (label, hint) in [
        ("//lab:L0", "write `//lab:L0-Short` or `//lab:L0-Long`"),
        ("//lab:l0", "write `//lab:L0-Short` or `//lab:L0-Long`"),
        (
            "//lab:L02",
            "did you mean `//lab:L0-Short` or `//lab:L0-Long`?",
        ),
        ("//lab:L0-long", "did you mean `//lab:L0-Long`?"),
        ("//lab:SHORT-1024", "did you mean `//lab:short-1024`?"),
        ("//lab:ALL", "did you mean `//lab:all`?"),
        ("//lab:al", "did you mean `//lab:all`?"),
    ] {
        let told = workspace.doe(&["list", label]).exits(2).stderr;
        assert!(told.contains(hint), "{label}: {told}");
    }
    workspace.replace(
        "plans/lab.toml",
        "gate = [\"L0-Short\"]",
        "gate = [\"L0\"]",
        1,
    );
    let found = findings(&workspace, 3);
    assert!(
        found[0]
            .2
            .contains("could be any of layers L0-Short, L0-Long"),
        "{found:?}"
    );
}

#[test]
fn machines_are_told_errors_first_with_their_severity() {
    let workspace = lab();
    workspace.replace(
        "plans/lab.toml",
        "rules = [\"lab\"]",
        "rules = [\"lab\", \"lab\"]",
        1,
    );
    workspace.replace("plans/lab.toml", "tokens = 32768", "tokens = 0", 1);
    let told = workspace.doe(&["plan", "//...", "--json"]).exits(3).stdout;
    let event: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let severities: Vec<_> = event["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["severity"])
        .collect();
    assert_eq!(severities, ["error", "warning"], "{event}");
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
    // What cannot go on without its client, and what would count anew in every job, is told before
    // anybody is asked: there is no such cluster.
    let hosts = |executor: &str| {
        let more = "slurm = { config = \"/nowhere/slurm.conf\", root = \"/nowhere/%w\" }";
        let more = if executor == "slurm" { more } else { "" };
        format!(
            "[platform.{executor}]\nexecutor = \"{executor}\"\nroles = {{ \"*\" = \"h\" }}\ncost_per_hour = \"1 USD\"\n{more}\n\
             [platform.{executor}.host.h]\naddress = \"127.0.0.1\"\n"
        )
    };
    let head = workspace.read("doe.toml");
    let platforms = format!("{head}\n{}{}", hosts("local"), hosts("slurm"));
    workspace.write("doe.toml", &platforms);
    for (args, refused) in [
        (&["--platform", "sim"][..], "its executor is `local`"),
        (&["--platform", "local"], "its executor is `local`"),
        (
            &["--platform", "slurm", "--rerun"],
            "`--rerun` does not go with `--detach`",
        ),
        (
            &["--platform", "slurm", "--max-hours", "1"],
            "`--max-hours` does not go with `--detach`",
        ),
        (
            &["--platform", "slurm", "--max-cost=1"],
            "`--max-cost` does not go with `--detach`",
        ),
    ] {
        let build = [&["build", "//lab:all", "--detach", "--json"], args].concat();
        let ran = workspace.doe(&build).exits(2);
        assert_eq!(ran.json()["code"], "no-detach", "{args:?}: {}", ran.stdout);
        assert!(ran.stderr.contains(refused), "{args:?}: {}", ran.stderr);
    }
    workspace.write("doe.toml", &head);
    assert!(
        !workspace.path().join(".doe/runs").exists(),
        "nothing was begun"
    );
    let nowhere = std::process::Command::new(env!("CARGO_BIN_EXE_doe"))
        .args(["check", "//..."])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("doe init"));
}

#[test]
fn a_port_that_two_servers_of_a_node_want_is_found_before_anything_starts() {
    let workspace = lab();
    let server = |name: &str| {
        format!(
            "[[probe.service]]\nname = \"{name}\"\nrole = \"{name}\"\nports = {{ http = 8100 }}\n\
             run = \"exec sleep 60\"\n\
             ready = {{ tcp = \"{{{{ self.ip }}}}:8100\", within = \"5s\" }}\n"
        )
    };
    let rules = workspace.read("rules/lab.toml");
    let roles = "roles = { client = {}, a = {}, b = {} }";
    let rules = rules.replace("roles = { client = {} }", roles);
    workspace.write(
        "rules/lab.toml",
        &format!("{rules}{}{}", server("a"), server("b")),
    );
    let hosts = |b: &str| {
        format!(
            "[workspace]\nplatform = \"here\"\n[platform.here]\nexecutor = \"local\"\n\
             roles = {{ client = \"x\", a = \"x\", b = \"{b}\" }}\n\
             [platform.here.host.x]\naddress = \"127.0.0.1\"\n\
             [platform.here.host.y]\naddress = \"127.0.0.1\"\n"
        )
    };
    workspace.write("doe.toml", &hosts("x"));
    let found = findings(&workspace, 3);
    let codes: Vec<_> = found.iter().map(|(code, ..)| code.as_str()).collect();
    assert_eq!(codes, ["port-twice"; 2], "{found:?}");
    assert!(found[0].2.contains("wanted by `a` and `b`"), "{found:?}");
    workspace.doe(&["build", "//lab:long"]).exits(3);
    workspace.write("doe.toml", &hosts("y"));
    assert_eq!(findings(&workspace, 0), []);
}

#[test]
fn what_keeps_everything_from_loading_is_told_whatever_is_asked_for() {
    let workspace = lab();
    workspace.write(
        "plans/other.toml",
        "[plan]\ntitle = \"other\"\nrules = [\"lab\"]\n",
    );
    workspace.replace(
        "rules/lab.toml",
        "timeout = \"1m\"",
        "timeout = \"1 m o\"",
        1,
    );
    let told = workspace.doe(&["check", "//other:all"]).exits(3).stdout;
    assert!(told.contains("rules/lab.toml"), "{told}");
}
