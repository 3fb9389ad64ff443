//! `docs/conformance.md` says what each executor is tested for. It is made from the lists that the
//! test programs run, so it cannot say more than is run. `DOE_WRITE_DOCS=1` writes it anew.

use std::collections::BTreeSet;
use std::path::Path;

const EXECUTORS: [(&str, &str); 4] = [
    ("local", "tests/exec_conformance.rs"),
    ("ssh", "tests/exec_ssh.rs"),
    ("slurm", "tests/exec_slurm.rs"),
    ("ssm", "tests/exec_ssm.rs"),
];

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names in every `conformance!(@one RIG; NAMES);` of a text, in order.
fn listed(text: &str) -> Vec<String> {
    let lists = text.split("conformance!(@one ").skip(1).filter_map(|rest| {
        let (_, names) = rest.split_once(';')?;
        names.split_once(");").map(|(names, _)| names.to_owned())
    });
    lists
        .flat_map(|names| {
            names
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|name| !name.contains('$'))
        .collect()
}

/// The tests that a program adds of its own.
fn own(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with("#[tokio::test") || line == "#[test]" {
            let name = lines
                .next()
                .unwrap_or_default()
                .trim_start_matches("async ");
            let name = name
                .trim_start_matches("fn ")
                .split('(')
                .next()
                .unwrap_or_default();
            if !["peer_process", ""].contains(&name) {
                found.push(name.replace('_', " "));
            }
        }
    }
    found
}

/// The functions that a part of the suite offers, as the table names them.
fn functions(text: &str) -> impl Iterator<Item = String> + '_ {
    let rest = text.split("pub async fn ").skip(1);
    rest.filter_map(|rest| Some(rest.split_once('(')?.0.replace('_', " ")))
}

#[test]
fn the_table_says_what_is_run() {
    let all = listed(&read("tests/conformance/mod.rs"));
    assert!(all.len() > 25, "{all:?}");
    let runs: Vec<BTreeSet<String>> = EXECUTORS
        .iter()
        .map(|(_, file)| {
            let text = read(file);
            let some = listed(&text);
            if some.is_empty() {
                assert!(text.contains("conformance!("), "{file} runs nothing");
                return all.iter().cloned().collect();
            }
            some.into_iter().collect()
        })
        .collect();
    let mut table = String::from(
        "# What each executor passes\n\nMade from the lists of the test programs by `DOE_WRITE_DOCS=1 cargo test --test conformance_table`.\n\n| | ",
    );
    table.push_str(&EXECUTORS.map(|(name, _)| name).join(" | "));
    table.push_str(" |\n|---|---|---|---|---|\n");
    // What needs a host of its own stands in each program as a test with the suite's name.
    let with_own: Vec<(&str, Vec<String>)> = EXECUTORS
        .iter()
        .map(|(name, file)| (*name, own(&read(file))))
        .collect();
    let suite = read("tests/conformance/hosts.rs");
    let alone: Vec<String> = functions(&suite)
        .filter(|name| with_own.iter().any(|(_, tests)| tests.contains(name)))
        .collect();
    for name in &all {
        let marks: Vec<&str> = runs
            .iter()
            .map(|run| if run.contains(name) { "yes" } else { "-" })
            .collect();
        let plain = name.rsplit("::").next().unwrap().replace('_', " ");
        table.push_str(&format!("| {plain} | {} |\n", marks.join(" | ")));
    }
    for name in &alone {
        let marks = with_own
            .iter()
            .map(|(_, tests)| if tests.contains(name) { "yes" } else { "-" });
        let marks: Vec<&str> = marks.collect();
        table.push_str(&format!("| {name} | {} |\n", marks.join(" | ")));
    }
    table.push_str("\nBeside the suite:\n");
    for (name, mut tests) in with_own {
        tests.retain(|test| !alone.contains(test));
        if !tests.is_empty() {
            table.push_str(&format!("\n- {name}: {}\n", tests.join("; ")));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    if std::env::var_os("DOE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, table,
        "docs/conformance.md is not what is run: write it anew with DOE_WRITE_DOCS=1"
    );
}
