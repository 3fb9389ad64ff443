//! What the commands of the store say, word for word: one transcript over one small store, held
//! against `tests/golden/cache.txt`. What changes from run to run (times, sizes, digests, names of
//! runs) is replaced by what it stands for. `UPDATE_GOLDEN=1` writes the file anew.

mod support;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use support::{Ran, Workspace};

const RULES: &str = r#"[probe]
doc = "Prints a number."
param.tokens = { type = "int", min = 1, unit = "tokens", doc = "how many" }
roles = { client = {} }
[[probe.step]]
name = "measure"
role = "client"
timeout = "2m"
run = """
if [ {{ tokens }} = 13 ]; then echo 'out of luck' >&2; exit 3; fi
printf '{"schema": "probe-v1", "tokens": %s}' {{ tokens }} > {{ out.result }}
"""
[probe.output]
result = { path = "result.json", schema = "probe-v1" }
[probe.metric]
tokens_seen = { from = "result", at = "/tokens", unit = "tokens" }

[count]
kind = "analysis"
doc = "Counts its inputs."
[[count.step]]
name = "count"
timeout = "2m"
run = """
printf '{"schema": "count-v1", "inputs": %s}' "$(grep -c '"label"' {{ inputs }})" > {{ out.result }}
"""
[count.output]
result = { path = "count.json", schema = "count-v1" }
[count.metric]
inputs = { from = "result", at = "/inputs", unit = "1" }
"#;

const WORKSPACE: &str = r#"[workspace]
platform = "here"
[platform.here]
executor = "local"
roles = { "*" = "h" }
facts = { gpu = "none" }
[platform.here.host.h]
address = "127.0.0.1"
"#;

const PLAN: &str = r#"[plan]
title = "A lab"
rules = ["lab"]

[[layer]]
id = "L0"
rule = "lab.probe"
pattern = "p-{{ tokens }}"
[layer.matrix]
tokens = [1, 2, 13]

[[layer]]
id = "L1"
rule = "lab.count"
needs = ["p-1", "p-2"]
[[layer.pattern]]
id = "sum"
"#;

/// Replaces what differs between two runs of the same commands.
struct Masks {
    /// By digest, whole or short, its name.
    digests: HashMap<String, String>,
    rules: Vec<(regex::Regex, &'static str)>,
    root: String,
}

impl Masks {
    fn new(root: &Path) -> Self {
        let rules = [
            (r"\d{8}T\d{6}-\d{3}-[0-9a-f]+", "RUN"),
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?", "TIME"),
            (r"\d+(\.\d+)? (KiB|MiB|GiB|B)\b", "SIZE"),
            // Facts of the machine, and how long each phase took.
            (
                r#"(?m)^ *"(host\.|collecting|running|services|staging).*\n"#,
                "",
            ),
            (r#"_ms":( ?)[^,}\n]+"#, "_ms\":${1}MS"),
            (
                r": [0-9.]+ s in programs, [0-9.]+ s in the kernel",
                ": S s in programs, S s in the kernel",
            ),
            (r"records \d+ bytes", "records SIZE"),
            (r"(?m)TIME on \S+ by .*$", "TIME on HOST by WHOM"),
            (r"\b\d+(\.\d+)? ?(ms|µs|s)\b", "DURATION"),
            (r"under a second", "DURATION"),
            (r"[ ]{2,}", "  "),
            (r"[─━-]{3,}", "---"),
        ];
        Self {
            digests: HashMap::new(),
            rules: rules
                .map(|(pattern, to)| (regex::Regex::new(pattern).unwrap(), to))
                .into(),
            root: root.display().to_string(),
        }
    }

    fn apply(&mut self, text: &str) -> String {
        let mut text = text.replace(&self.root, "ROOT");
        for (pattern, to) in &self.rules {
            text = pattern.replace_all(&text, *to).into_owned();
        }
        let digest = regex::Regex::new(r"\b[0-9a-f]{8,64}\b").unwrap();
        let named = digest.replace_all(&text, |found: &regex::Captures<'_>| {
            let word = &found[0];
            let plain = word.bytes().all(|b| b.is_ascii_digit());
            if plain && word.len() < 12 {
                return word.to_owned();
            }
            // A short form begins the whole one.
            let known = self
                .digests
                .iter()
                .find(|(known, _)| known.starts_with(word) || word.starts_with(known.as_str()));
            if let Some((_, name)) = known {
                return name.clone();
            }
            let name = format!("<{}>", self.digests.len() + 1);
            self.digests.insert(word.to_owned(), name.clone());
            name
        });
        named.lines().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{}", line.trim_end());
            all
        })
    }
}

struct Transcript<'w> {
    lab: &'w Workspace,
    masks: Masks,
    text: String,
}

impl Transcript<'_> {
    fn run(&mut self, words: &[&str]) -> String {
        // Files are named as people name them: in the folder where they are.
        let mut command = self.lab.command(words);
        let output = command.current_dir(self.lab.path()).output().unwrap();
        let ran = Ran::of(words, output);
        let line = self.masks.apply(&format!("$ doe {}", words.join(" ")));
        self.text += &line;
        self.text += &self.masks.apply(&ran.stdout);
        for line in self.masks.apply(&ran.stderr).lines() {
            let _ = writeln!(self.text, "! {line}");
        }
        if ran.code != 0 {
            let _ = writeln!(self.text, "(exit {})", ran.code);
        }
        self.text.push('\n');
        ran.stdout
    }
}

#[test]
fn every_command_says_what_it_said() {
    let lab = Workspace::empty();
    lab.write("doe.toml", WORKSPACE);
    lab.write("rules/lab.toml", RULES);
    lab.write("plans/lab.toml", PLAN);
    lab.doe(&["build", "//...", "--jobs", "1"]).exits(1);
    let record = |label: &str| {
        let list = lab.doe(&["cache", "ls", "--label", label, "--json"]).ok();
        list.json()[0]["record"].as_str().unwrap().to_owned()
    };
    let (one, two) = (record("//lab:p-1"), record("//lab:p-2"));
    let mut t = Transcript {
        lab: &lab,
        masks: Masks::new(lab.path()),
        text: String::new(),
    };
    t.run(&["cache", "ls"]);
    t.run(&["cache", "ls", "--label", "//lab:p-1", "--json"]);
    t.run(&["cache", "ls", "--label", "//lab:p-9"]);
    t.run(&["cache", "show", "//lab:p-1"]);
    t.run(&["cache", "why", "//lab:p-13"]);
    t.run(&["cache", "show", "abc"]);
    t.run(&["cache", "show", "ffffffffffff"]);
    // Twelve digits, which nobody takes for a number.
    t.run(&["cache", "diff", &one[..12], &two[..12]]);
    t.run(&["cache", "why", "//lab:sum"]);
    t.run(&["cache", "why", "//lab:sun"]);
    t.run(&["cache", "stats"]);
    t.run(&["cache", "verify"]);
    t.run(&["cache", "pin", "//lab:p-1", "--reason", "figure 3"]);
    t.run(&["cache", "pin", "//lab:p-1"]);
    t.run(&["cache", "gc"]);
    t.run(&["cache", "gc", "--older-than", "0s"]);
    t.run(&["cache", "gc", "--older-than", "soon"]);
    t.run(&["cache", "unpin", "//lab:p-1"]);
    t.run(&["cache", "unpin", "//lab:p-1"]);
    t.run(&["cache", "quarantine", &two, "--reason", "the fan was off"]);
    t.run(&["cache", "ls", "--quarantined"]);
    t.run(&["plan", "//..."]);
    t.run(&["cache", "quarantine", "--undo", &two]);
    t.run(&["cache", "rebuild"]);
    t.run(&["cache", "export", "//lab:sum", "-o", "sum.tar.gz"]);
    t.run(&["cache", "import", "sum.tar.gz"]);
    t.run(&["cache", "import", "nothing.tar.gz"]);
    t.run(&["cache", "push"]);
    t.run(&["cache", "pull"]);
    let shown: serde_json::Value = serde_json::from_str(
        &lab.doe(&["cache", "show", "//lab:p-1", "--json"])
            .ok()
            .stdout,
    )
    .unwrap();
    let blob = shown["outputs"]["result"]["digest"].as_str().unwrap();
    t.run(&["cache", "show", blob]);
    let path = lab
        .path()
        .join(format!(".doe/cas/{}/{}", &blob[..2], &blob[2..]));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "something else").unwrap();
    t.run(&["cache", "verify"]);
    t.run(&["cache", "show", blob]);
    t.run(&["cache", "gc", "--older-than", "0s", "--delete"]);
    t.run(&["cache", "stats"]);

    let path = support::repository().join("tests/golden/cache.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &t.text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    for (at, (is, was)) in t.text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(is, was, "line {} (UPDATE_GOLDEN=1 writes it)", at + 1);
    }
    assert_eq!(t.text.lines().count(), golden.lines().count());
}
