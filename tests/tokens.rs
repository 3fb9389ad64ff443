//! Tokens and links: what cannot be had is found by `check`, with its place; what can is taken
//! together with hosts, by real processes that would notice if it were not.

mod support;

use support::Workspace;

/// Four hosts; `resources` is what the platform has more, `plan` is what the plan says.
fn lab(resources: &str, plan: &str) -> Workspace {
    let workspace = Workspace::empty();
    let mut doe = format!(
        "[workspace]\nplatform = \"lab\"\n[platform.lab]\nroles = {{ a = \"h1\", b = \"h2\", c = \"h3\", d = \"h4\" }}\n{resources}\n"
    );
    for at in 1..=4 {
        doe += &format!("[platform.lab.host.h{at}]\naddress = \"127.0.0.{at}\"\n");
    }
    workspace.write("doe.toml", &doe);
    let mut rules = String::new();
    for (rule, roles) in [("ab", ["a", "b"]), ("cd", ["c", "d"]), ("c", ["c", "c"])] {
        let [first, second] = roles;
        let roles = match first == second {
            true => format!("{first} = {{}}"),
            false => format!("{first} = {{}}, {second} = {{}}"),
        };
        rules += &RULE
            .replace("NAME", rule)
            .replace("ROLES", &roles)
            .replace("FIRST", first)
            .replace("SECOND", second)
            .replace("SCRATCH", workspace.path().to_str().unwrap());
    }
    rules += "[sum]\nkind = \"analysis\"\n[[sum.step]]\nname = \"s\"\ntimeout = \"1m\"\n\
              run = \"cp {{ inputs }} {{ out.r }}\"\n[sum.output]\nr = { path = \"r\" }\n";
    workspace.write("rules/t.toml", &rules);
    let plan = format!("[plan]\ntitle = \"t\"\nrules = [\"t\"]\n{plan}");
    workspace.write("plans/t.toml", &plan);
    workspace
}

/// Says when it begins and ends. With `meet` it waits until somebody else is there, too.
const RULE: &str = r#"
[NAME]
param.n = { type = "int", default = 1, doc = "which" }
param.meet = { type = "bool", default = false, doc = "whether it waits for another one" }
roles = { ROLES }
[[NAME.step]]
name = "one"
role = "FIRST"
timeout = "1m"
run = """
echo {{ n }}; echo begin >> SCRATCH/said
{% if meet %}while test $(grep -c begin SCRATCH/said) -lt 2; do sleep 0.02; done{% else %}sleep 0.1{% endif %}
"""
[[NAME.step]]
name = "two"
role = "SECOND"
timeout = "1m"
run = "echo end >> SCRATCH/said; echo '{}' > {{ out.result }}"
[NAME.output]
result = { path = "r.json" }
"#;

/// A layer of one rule.
fn layer(id: &str, rule: &str, more: &str) -> String {
    format!(
        "[[layer]]\nid = \"{id}\"\nrule = \"t.{rule}\"\npattern = \"{id}{{{{ n }}}}\"\n{more}\n"
    )
}

/// What was said by patterns of which no two may be side by side.
fn apart(workspace: &Workspace, patterns: usize) {
    let said = workspace.read("said");
    let words: Vec<&str> = said.lines().collect();
    assert_eq!(words, ["begin", "end"].repeat(patterns), "two at once");
}

fn build(workspace: &Workspace) -> serde_json::Value {
    let all = ["build", "//t:all", "--json"];
    workspace.doe(&all).ok().summary()
}

#[test]
fn a_measurement_that_crosses_a_link_has_it_for_itself() {
    let spine = "[platform.lab.link.spine]\nhosts = [\"h[1-4]\"]";
    let plan =
        layer("ab", "ab", "settings = { n = 1 }") + &layer("cd", "cd", "settings = { n = 1 }");
    let workspace = lab(spine, &plan);
    let planned = workspace.doe(&["plan", "//t:all", "--json"]).ok().json();
    assert_eq!(
        planned["uses"],
        serde_json::json!({"//t:ab1": {"spine": 1}, "//t:cd1": {"spine": 1}})
    );
    assert_eq!(build(&workspace)["ok"], 2);
    apart(&workspace, 2);
    // It is in no key: without the link the results stand, and with another one too.
    let text = workspace.read("doe.toml");
    workspace.write("doe.toml", &text.replace(spine, ""));
    assert_eq!(build(&workspace)["reused"], 2);
}

#[test]
fn who_says_that_a_link_may_be_shared_shares_it() {
    let spine = "[platform.lab.link.spine]\nhosts = [\"h[1-4]\"]\ncapacity = 2";
    // Each waits for the other.
    let more = "settings = { n = 1, meet = true }\nuses = { spine = 1 }";
    let workspace = lab(spine, &(layer("ab", "ab", more) + &layer("cd", "cd", more)));
    assert_eq!(build(&workspace)["ok"], 2);
    // Nobody says how much: then it is all of it.
    let alone = "settings = { n = 1 }\nuses = [\"spine\"]";
    let shared = "settings = { n = 1 }\nuses = { spine = 1 }";
    let workspace = lab(
        spine,
        &(layer("ab", "ab", alone) + &layer("cd", "cd", shared)),
    );
    assert_eq!(build(&workspace)["ok"], 2);
    apart(&workspace, 2);
}

#[test]
fn a_token_is_held_while_a_pattern_runs_and_the_inner_word_counts() {
    let tokens = "tokens = { license = 2 }";
    let head = "uses = { license = 2 }\n";
    let many = "[layer.matrix]\nn = [1, 2, 3]";
    let plan = format!("{head}{}{}", layer("c", "c", many), layer("ab", "ab", many));
    let workspace = lab(tokens, &plan);
    assert_eq!(build(&workspace)["ok"], 6);
    apart(&workspace, 6);
    // One each: then they meet.
    let meet = "settings = { n = 1, meet = true }\nuses = { license = 1 }";
    let plan = format!("{head}{}{}", layer("c", "c", meet), layer("ab", "ab", meet));
    let workspace = lab(tokens, &plan);
    assert_eq!(build(&workspace)["ok"], 2);
    let planned = workspace.doe(&["plan", "//t:all", "--json"]).ok().json();
    assert_eq!(
        planned["uses"],
        serde_json::Value::Null,
        "nothing is to run"
    );
    let explained = workspace.doe(&["explain", "//t:c1", "--json"]).ok().json();
    assert_eq!(explained["uses"], serde_json::json!({"license": 1}));
    let told = workspace.doe(&["explain", "//t:c1"]).ok().stdout;
    assert!(
        told.contains("  takes 1 of `license` while it runs (in no key)"),
        "{told}"
    );
    // The manifest tells it, with the line that says it, and no key does.
    workspace.replace("plans/t.toml", "license = 1", "license = 2", 2);
    assert_eq!(build(&workspace)["reused"], 2);
}

/// What a user gets wrong: resources of the platform, what the plan says of a pattern.
const MISTAKES: &[(&str, &str)] = &[
    ("tokens = { license = 2 }", "uses = { licence = 1 }"),
    ("", "uses = [\"license\"]"),
    ("tokens = { license = 2 }", "uses = { license = 3 }"),
    (
        "[platform.lab.link.spine]\nhosts = [\"h3\", \"h4\"]",
        "uses = [\"spine\"]",
    ),
    ("tokens = { license = 0 }", ""),
    ("tokens = { license = 2 }", "uses = { license = true }"),
    ("[platform.lab.link.spine]\nhosts = [\"h1\", \"h9\"]", ""),
    ("[platform.lab.link.spine]\nhosts = [\"h1\"]", ""),
    (
        "tokens = { spine = 1 }\n[platform.lab.link.spine]\nhosts = [\"h1\", \"h2\"]\ncapacty = 2",
        "",
    ),
];

#[test]
fn what_cannot_be_had_is_told_with_its_place_before_anything_runs() {
    let mut said = String::new();
    for (resources, uses) in MISTAKES {
        let more = format!("settings = {{ n = 1 }}\n{uses}");
        let workspace = lab(resources, &layer("ab", "ab", &more));
        said += &workspace.doe(&["check", "//..."]).exits(3).stdout;
        said += "----\n";
        workspace.doe(&["build", "//t:all"]).exits(3);
        assert!(!workspace.path().join("said").exists(), "nothing ran");
    }
    let more = "needs = [\"ab\"]\nuses = [\"license\"]\n[[layer.pattern]]\nid = \"sum\"\n";
    let sum = format!("[[layer]]\nid = \"sums\"\nrule = \"t.sum\"\n{more}");
    let sum = sum.replace(
        "uses = [\"license\"]\n[[layer.pattern]]\n",
        "[[layer.pattern]]\nuses = [\"license\"]\n",
    );
    let plan = layer("ab", "ab", "settings = { n = 1 }") + &sum;
    said += &lab("tokens = { license = 2 }", &plan)
        .doe(&["check", "//..."])
        .exits(3)
        .stdout;
    let golden = support::repository().join("tests/golden/errors/tokens.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &said).unwrap();
    }
    let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(said, wanted, "UPDATE_GOLDEN=1 writes it");
}
