//! The house keeps its order: data flows down, rooms stay small, only `cli` prints, and nothing
//! unfinished is left lying about. Read from the sources as text, so it needs no tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// From the roof down: a room may use only rooms that stand after it.
const ROOMS: &[&str] = &[
    "cli", "report", "engine", "exec", "measure", "analysis", "query", "graph", "plan", "rule",
    "source", "label", "error",
];

/// Longest file that is still one thing.
const MOST_LINES: usize = 500;

fn sources(root: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(root)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 3, "no sources under {root}");
    found.sort();
    found
}

fn room(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path.strip_prefix(&src).unwrap();
    let first = inside.components().next().unwrap().as_os_str();
    first.to_string_lossy().trim_end_matches(".rs").to_string()
}

/// The part of a file before its tests.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy();
    name == "tests"
        || name.ends_with("_tests")
        || path.components().any(|c| c.as_os_str() == "tests")
}

/// Rooms that a text mentions by `crate::room`.
fn mentioned(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let one = |word: &str| -> String {
            word.trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        match rest.strip_prefix('{') {
            // `use crate::{a::b, c};`
            Some(list) => {
                let mut depth = 1;
                let mut word = String::new();
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if (c == ',' && depth == 1) || depth == 0 {
                        found.push(one(&word));
                        word.clear();
                    } else {
                        word.push(c);
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            None => found.push(one(rest)),
        }
    }
    found
}

#[test]
fn arrows_run_down_the_house() {
    let height: BTreeMap<&str, usize> = ROOMS.iter().enumerate().map(|(h, r)| (*r, h)).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let from = room(&path);
        if ["lib", "main"].contains(&from.as_str()) {
            continue;
        }
        let Some(own) = height.get(from.as_str()) else {
            panic!("{from} is a room that ROOMS does not list");
        };
        for used in mentioned(&text) {
            if let Some(other) = height.get(used.as_str())
                && other < own
            {
                wrong.push(format!("{}: {from} uses {used}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that run upward:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn petgraph_stays_in_its_room() {
    for (path, text) in sources("src") {
        assert!(
            room(&path) == "graph" || !text.contains("petgraph::"),
            "{}",
            path.display()
        );
    }
}

/// Durability is a property of the connection: whoever opened the index elsewhere would have other
/// settings, and other answers to a crash.
#[test]
fn sqlite_is_opened_in_one_place() {
    let mut found = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("cache/src")) {
        if is_test_file(&path) {
            continue;
        }
        for (number, line) in product(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.contains("Connection::open") || code.contains("sqlite3_open") {
                found.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    let [one] = &found[..] else {
        panic!("SQLite is opened in several places:\n{}", found.join("\n"));
    };
    assert!(one.contains("cache/src/index.rs:"), "{one}");
}

#[test]
fn the_store_knows_no_plan() {
    for (path, text) in sources("cache/src") {
        assert!(
            !text.contains("toml::") && !text.contains("doe::"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn rooms_are_small_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("cache/src")) {
        let lines = text.lines().count();
        if lines > MOST_LINES {
            wrong.push(format!("{} has {lines} lines", path.display()));
        }
        if !text.starts_with("//!") && !is_test_file(&path) {
            wrong.push(format!("{} does not begin with what it is", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_cli_prints() {
    let prints = [
        "println!(",
        "eprintln!(",
        "print!(",
        "io::stdout()",
        "io::stderr()",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        if room(&path) == "cli" || is_test_file(&path) {
            continue;
        }
        // Programs of their own: a simulated tool speaks on the tool's behalf, and the reaper says
        // "ready" through a pipe to the `doe` that started it.
        if path.ends_with("src/measure/sim/mod.rs") || path.ends_with("src/exec/reaper.rs") {
            continue;
        }
        for (number, line) in product(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if prints.iter().any(|p| code.contains(p)) {
                wrong.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "printed outside of cli:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn nothing_is_left_unfinished() {
    // Written apart, so that this file does not find itself.
    let marks = ["TO", "FIX", "XX"].map(|m| {
        format!(
            "{m}{}",
            match m {
                "TO" => "DO",
                "FIX" => "ME",
                _ => "X",
            }
        )
    });
    for (path, text) in sources("src").into_iter().chain(sources("cache/src")) {
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{}: {mark}", path.display());
        }
    }
}

#[test]
fn the_detectors_detect() {
    assert_eq!(
        mentioned("use crate::{engine::decide, error::Error};"),
        ["engine", "error"]
    );
    assert_eq!(mentioned("let x = crate::cli::main();"), ["cli"]);
    assert_eq!(mentioned("use crate::{a::{b, c}, d};"), ["a", "d"]);
}
