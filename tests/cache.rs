//! The store through the real binary: nothing is lost with the index, two builds meet, results
//! travel, what moved under a run is never reused, and keys depend on nothing but what they say.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::{Workspace, wait_for};

/// A probe that fails at 13, is invalid at 14 and waits for a file at 99; and an analysis.
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
if [ {{ tokens }} = 99 ]; then
  echo up > 'ROOT/up'
  while [ ! -e 'ROOT/go' ]; do sleep 0.05; done
fi
printf '{"schema": "probe-v1", "tokens": %s}' {{ tokens }} > {{ out.result }}
"""
[probe.output]
result = { path = "result.json", schema = "probe-v1" }
[probe.metric]
tokens_seen = { from = "result", at = "/tokens", unit = "tokens" }
[probe.valid]
that = ["result.tokens != 14"]

[count]
kind = "analysis"
doc = "Counts its inputs."
param.slow = { type = "bool", default = false, doc = "whether it waits for a file" }
[[count.step]]
name = "count"
timeout = "2m"
run = """
if [ {{ slow | string | lower }} = true ]; then
  echo up > 'ROOT/up'
  while [ ! -e 'ROOT/go' ]; do sleep 0.05; done
fi
printf '{"schema": "count-v1", "inputs": %s}' "$(grep -c '"label"' {{ inputs }})" > {{ out.result }}
"""
[count.output]
result = { path = "count.json", schema = "count-v1" }
[count.metric]
inputs = { from = "result", at = "/inputs", unit = "1" }
"#;

const PLAN: &str = r#"[plan]
title = "A lab"
rules = ["lab"]

[[layer]]
id = "L0"
rule = "lab.probe"
pattern = "p-{{ tokens }}"
[layer.matrix]
tokens = [TOKENS]

[[layer]]
id = "L1"
rule = "lab.count"
needs = ["p-1", "p-2"]
[[layer.pattern]]
id = "sum"
settings = { slow = SLOW }
"#;

fn lab(tokens: &str, slow: bool) -> Workspace {
    let workspace = Workspace::empty();
    let root = workspace.path().to_str().unwrap().to_owned();
    workspace.write("rules/lab.toml", &RULES.replace("ROOT", &root));
    let plan = PLAN
        .replace("TOKENS", tokens)
        .replace("SLOW", &slow.to_string());
    workspace.write("plans/lab.toml", &plan);
    workspace
}

/// Gives the probe another parameter: a line of its rule.
fn with_parameter(lab: &Workspace, line: &str) {
    let tokens = "param.tokens = {";
    lab.replace("rules/lab.toml", tokens, &format!("{line}{tokens}"), 1);
}

/// Every documented view, whole.
fn views(workspace: &Workspace) -> String {
    let path = workspace.path().join(".doe/index.sqlite");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    let mut text = String::new();
    for (view, order) in [
        ("results", "label"),
        ("metrics", "label, metric"),
        ("samples", "label, series, position"),
        ("attempts", "recorded_unix_ms, record"),
        ("runs", "started_unix_ms, run_id"),
    ] {
        let mut rows = db
            .prepare(&format!("SELECT * FROM {view} ORDER BY {order}"))
            .unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            text += view;
            for column in 0..columns {
                text += &format!(" {:?}", row.get_ref(column).unwrap());
            }
            text.push('\n');
        }
    }
    text
}

/// What people and programs see of a store.
fn answers(workspace: &Workspace) -> BTreeMap<String, String> {
    let mut answers = BTreeMap::from([("views".to_owned(), views(workspace))]);
    for command in [
        "plan //...",
        "explain //...",
        "status //...",
        "results //...",
        "list //... @failed",
        "cache ls",
        "cache ls --pinned",
        "cache ls --quarantined",
        "cache stats",
        "cache why //lab:sum",
        "cache gc --older-than 0s",
    ] {
        for json in [false, true] {
            let mut words: Vec<&str> = command.split(' ').collect();
            if json {
                words.push("--json");
            }
            let ran = workspace.doe(&words).ok();
            answers.insert(words.join(" "), ran.stdout);
        }
    }
    answers
}

fn lose_index(workspace: &Workspace) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(workspace.path().join(format!(".doe/index.sqlite{suffix}")));
    }
}

fn record_of(workspace: &Workspace, label: &str) -> String {
    let list = workspace
        .doe(&["cache", "ls", "--label", label, "--json"])
        .ok()
        .json();
    list[0]["record"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_is_lost_with_the_index() {
    let lab = lab("1, 2, 3, 13, 14", false);
    lab.doe(&["build", "//..."]).exits(1);
    lab.doe(&["build", "@failed"]).exits(1);
    // Rendered it is the same, so the old records come to stand for new keys.
    lab.replace(
        "rules/lab.toml",
        "printf '{\"schema\": \"probe-v1\"",
        "{# same #}printf '{\"schema\": \"probe-v1\"",
        1,
    );
    let again = lab.doe(&["build", "//...", "--json"]).exits(1).summary();
    assert_eq!(again["reused"], 4, "{again}");
    let index = lab.path().join(".doe/links");
    assert!(index.exists(), "links are files");
    lab.doe(&["build", "//lab:p-2", "--rerun"]).ok();
    lab.doe(&["cache", "pin", "//lab:p-1", "--reason", "figure 3"])
        .ok();
    let refused = record_of(&lab, "//lab:p-3");
    lab.doe(&[
        "cache",
        "quarantine",
        &refused[..10],
        "--reason",
        "the fan was off",
    ])
    .ok();

    let before = answers(&lab);
    assert!(before["cache ls --pinned"].contains("figure 3"));
    assert!(before["cache ls --quarantined"].contains("the fan was off"));
    assert!(
        before["plan //... --json"].contains("its result is in quarantine: the fan was off"),
        "it runs again"
    );
    lose_index(&lab);
    // A reader neither lies nor makes anything.
    let lost = lab.doe(&["status", "//..."]).exits(7);
    assert!(lost.stderr.contains("doe cache rebuild"), "{}", lost.stderr);
    let rebuilt = lab.doe(&["cache", "rebuild", "--json"]).ok().json();
    assert_eq!(rebuilt["runs"], 4, "{rebuilt}");
    let after = answers(&lab);
    for (command, before) in &before {
        assert_eq!(&after[command], before, "doe {command}");
    }
    lab.doe(&["cache", "verify"]).ok();

    // A build finds a lost index out by itself, and runs nothing again.
    lab.doe(&["cache", "quarantine", "--undo", &refused]).ok();
    lose_index(&lab);
    let built = lab
        .doe(&["build", "//lab:p-1", "//lab:p-2", "//lab:p-3", "--json"])
        .ok();
    assert_eq!(built.summary()["reused"], 3);
    lab.assert_nothing_runs();
}

/// An index that was cut to nothing is a lost one, also when whoever makes it again dies of it.
#[test]
fn an_empty_index_runs_nothing_again() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//lab:L0"]).ok();
    let before = views(&lab);
    lose_index(&lab);
    lab.write(".doe/index.sqlite", "");
    let told = lab.doe(&["plan", "//lab:L0"]).exits(7);
    assert!(told.stderr.contains("doe cache rebuild"), "{}", told.stderr);
    for dies in [&["build", "//lab:L0"][..], &["cache", "rebuild"]] {
        let mut command = lab.command(dies);
        command.env("DOE_FAULT", "before-commit:1:kill");
        assert!(!command.status().unwrap().success());
        lab.doe(&["cache", "verify"]).ok();
        assert_eq!(views(&lab), before, "{dies:?}");
        lose_index(&lab);
    }
    let built = lab.doe(&["build", "//lab:L0", "--json"]).ok().summary();
    assert_eq!(
        (&built["reused"], &built["ok"]),
        (&2.into(), &0.into()),
        "{built}"
    );
    let list = lab
        .doe(&["cache", "ls", "--quarantined", "--json"])
        .ok()
        .json();
    assert_eq!(list.as_array().unwrap().len(), 0, "{list}");
}

/// A look that moves nothing does not take a store that is being written for a damaged one.
#[test]
fn a_dry_run_of_verify_waits_for_no_build_and_suspects_none() {
    let lab = lab("1, 2, 99", false);
    let dry = || lab.doe(&["cache", "verify", "--dry-run", "--json"]);
    assert!(!lab.path().join(".doe").exists());
    dry().ok();
    assert!(!lab.path().join(".doe").exists(), "looking makes nothing");
    let (mut child, _) = lab.spawn(&["build", "//lab:L0"]);
    wait_for("the step", Duration::from_secs(60), || {
        lab.path().join("up").exists().then_some(())
    });
    let seen = dry().ok();
    assert_eq!(seen.json()["index"], false);
    assert!(
        seen.stderr.contains("not held against the files"),
        "{}",
        seen.stderr
    );
    lab.write("go", "");
    assert!(child.wait().unwrap().success());
    assert_eq!(dry().ok().json()["index"], true);
}

/// Puts another number into the stored result of `//lab:p-1`: its digest, its file, what was in it.
fn spoil(lab: &Workspace) -> (String, PathBuf, Vec<u8>) {
    let show = ["cache", "show", "//lab:p-1", "--json"];
    let shown = lab.doe(&show).ok().json();
    let blob = shown["outputs"]["result"]["digest"].as_str().unwrap();
    let below = format!(".doe/cas/{}/{}", &blob[..2], &blob[2..]);
    let path = lab.path().join(below);
    let good = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "{\"schema\": \"probe-v1\", \"tokens\": 7}").unwrap();
    (blob.to_owned(), path, good)
}

#[test]
fn damage_is_found_put_aside_and_mended_by_running_again() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let well = lab.doe(&["cache", "verify"]).ok();
    assert!(well.stdout.ends_with("all is well\n"), "{}", well.stdout);
    let (blob, path, good) = spoil(&lab);
    let seen = lab
        .doe(&["cache", "verify", "--dry-run", "--json"])
        .exits(7)
        .json();
    assert_eq!(seen["damage"][0]["name"], blob, "{seen}");
    assert!(path.exists(), "only told");
    lab.doe(&["cache", "verify"]).exits(7);
    assert!(!path.exists());
    assert_eq!(lab.planned("//...", "run"), ["//lab:p-1"]);
    assert_eq!(
        lab.doe(&["build", "//...", "--json"]).ok().summary()["ok"],
        1
    );
    assert_eq!(std::fs::read(&path).unwrap(), good);
    lab.doe(&["cache", "verify"]).ok();
    lab.doe(&["cache", "verify", "--sample", "50"]).ok();
}

#[test]
fn a_damaged_input_is_made_again_by_the_build_that_needs_it() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let (_, path, good) = spoil(&lab);
    // The sum is to run, and would read it.
    lab.replace("plans/lab.toml", "[1, 2]", "[1, 2, 3]", 1);
    lab.replace("plans/lab.toml", "\"p-2\"]", "\"p-2\", \"p-3\"]", 1);
    let built = lab.doe(&["build", "//...", "--json"]).ok();
    let (summary, mut warnings) = (built.summary(), built.events());
    warnings.retain(|event| event["event"] == "warning");
    assert_eq!(
        (&summary["ok"], &summary["reused"]),
        (&3.into(), &1.into()),
        "{summary}"
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0]["code"], "damaged", "{warnings:?}");
    assert_eq!(std::fs::read(&path).unwrap(), good);
    lab.doe(&["cache", "verify"]).ok();
    lab.assert_nothing_runs();
}

/// What turns out to stand while a build runs is read by what runs after it, too.
#[test]
fn a_damaged_input_that_comes_to_stand_in_a_build_is_made_again_by_it() {
    let lab = lab("1, 2", false);
    let top = "\n[[layer]]\nid = \"L2\"\nrule = \"lab.count\"\nneeds = [\"sum\"]\n\
               [[layer.pattern]]\nid = \"top\"\n";
    lab.write("plans/lab.toml", &(lab.read("plans/lab.toml") + top));
    lab.doe(&["build", "//..."]).ok();
    let file = |label: &str| {
        let record = record_of(&lab, label);
        let file = format!(".doe/records/{}/{record}.json", &record[..2]);
        lab.path().join(file)
    };
    let whole = |label: &str| std::fs::read(file(label)).unwrap();
    // As its input runs again, whether this one does is not known before.
    let half = whole("//lab:sum").len() / 2;
    let cut = &whole("//lab:sum")[..half];
    for (label, left) in [
        ("//lab:p-1", None),
        ("//lab:sum", Some(cut)),
        ("//lab:top", None),
    ] {
        let file = file(label);
        std::fs::remove_file(&file).unwrap();
        if let Some(left) = left {
            std::fs::write(&file, left).unwrap();
        }
    }
    let built = lab.doe(&["build", "//...", "--json"]).ok();
    let summary = built.summary();
    assert_eq!((&summary["ok"], &summary["reused"]), (&3.into(), &1.into()));
    assert!(
        built.stdout.contains("\"code\":\"damaged\""),
        "{}",
        built.stdout
    );
    lab.doe(&["cache", "verify"]).ok();
    let built = lab.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!(built["reused"], 4, "{built}");
}

/// Results of two executions that are byte for byte the same lie in one file: when that is damaged
/// neither stands for anything.
#[test]
fn damage_that_two_results_share_is_made_good_by_one_build() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let plain = "printf '{\"schema\": \"probe-v1\"";
    let other = format!("{{# same #}}{plain}");
    lab.replace("rules/lab.toml", plain, &other, 1);
    lab.doe(&["build", "//..."]).ok();
    lab.doe(&["build", "//lab:p-1", "--rerun"]).ok();
    lab.replace("rules/lab.toml", &other, plain, 1);
    // The sum is to run, and would read it.
    lab.replace("rules/lab.toml", "$(grep -c", "$(grep  -c", 1);
    let (_, path, good) = spoil(&lab);
    let built = lab.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!(
        (&built["ok"], &built["reused"]),
        (&2.into(), &1.into()),
        "{built}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), good);
    lab.doe(&["cache", "verify"]).ok();
    lab.assert_nothing_runs();
}

/// A build with nothing to do reads no result but those that it shows.
#[test]
fn a_damaged_result_that_is_shown_is_made_again() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    for cut in [true, false] {
        let record = record_of(&lab, "//lab:sum");
        let file = format!(".doe/records/{}/{record}.json", &record[..2]);
        let file = lab.path().join(file);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        if cut {
            std::fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
        }
        let built = lab.doe(&["build", "//..."]).ok();
        assert!(built.stdout.contains("1 ok, 2 reused"), "{}", built.stdout);
        assert!(built.stdout.contains(" //lab:sum"), "{}", built.stdout);
        let again = lab.doe(&["build", "//..."]).ok().stdout;
        assert!(again.contains("0 ok, 3 reused"), "{again}");
    }
    // Whoever missed the one whose file is gone has told the index.
    lab.doe(&["cache", "verify"]).ok();
}

#[test]
fn a_record_whose_file_is_gone_stands_for_nothing() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let record = record_of(&lab, "//lab:p-2");
    let file = format!(".doe/records/{}/{record}.json", &record[..2]);
    let file = lab.path().join(file);
    std::fs::remove_file(file).unwrap();
    let plan = lab.doe(&["plan", "//..."]).ok().stdout;
    assert!(plan.contains("its record is no longer"), "{plan}");
    let built = lab.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!(
        (&built["ok"], &built["reused"]),
        (&1.into(), &2.into()),
        "{built}"
    );
    lab.assert_nothing_runs();
}

#[test]
fn results_travel_with_their_provenance() {
    let from = lab("1, 2", false);
    from.doe(&["build", "//..."]).ok();
    let bundle = from.path().join("x.tar.gz");
    let file = bundle.to_str().unwrap();
    from.doe(&[
        "cache",
        "export",
        "//lab:sum",
        "-o",
        file,
        "--comment",
        "for you",
    ])
    .ok();
    let unknown = from
        .doe(&["cache", "export", "//lab:sun", "-o", file])
        .exits(2);
    assert!(
        unknown.stderr.contains("did you mean `//lab:sum`"),
        "{}",
        unknown.stderr
    );

    let to = Workspace::empty();
    // The very same rules: their text names the first workspace.
    for name in ["rules/lab.toml", "plans/lab.toml"] {
        to.write(name, &from.read(name));
    }
    let whole = std::fs::read(&bundle).unwrap();
    let torn = to.path().join("torn.tar.gz");
    std::fs::write(&torn, &whole[..whole.len() / 2]).unwrap();
    let refused = to
        .doe(&["cache", "import", torn.to_str().unwrap()])
        .exits(7);
    assert!(refused.stderr.contains("cut short"), "{}", refused.stderr);
    assert_eq!(
        to.doe(&["cache", "stats", "--json"]).ok().json()["records"],
        0
    );
    let brought = to.doe(&["cache", "import", file, "--json"]).ok().json();
    assert_eq!(
        brought["records"], 3,
        "what it was made from comes along: {brought}"
    );
    let built = to.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!((&built["ok"], &built["reused"]), (&0.into(), &3.into()));
    let why = to.doe(&["cache", "why", "//lab:sum", "--json"]).ok().json();
    assert_eq!(why["imported"]["origin"]["comment"], "for you", "{why}");
    assert_eq!(why["needs"][0]["from"]["label"], "//lab:p-1");
    let text = to.doe(&["cache", "why", "//lab:sum"]).ok().stdout;
    assert!(
        text.contains("  imported  ") && text.contains("//lab:p-2 record "),
        "{text}"
    );
    let diff = to
        .doe(&["cache", "diff", "//lab:p-1", "//lab:p-2"])
        .ok()
        .stdout;
    assert!(
        diff.contains("setting.tokens\n    - 1  (plans/lab.toml:"),
        "{diff}"
    );
    assert!(
        diff.contains("tokens_seen (tokens)\n    - 1.0\n    + 2.0\n"),
        "{diff}"
    );
    to.doe(&["cache", "verify"]).ok();
}

#[test]
fn two_builds_wait_and_readers_never_do() {
    let lab = lab("1, 2, 99", false);
    lab.doe(&["build", "//lab:p-1"]).ok();
    let (mut first, _) = lab.spawn(&["build", "//lab:p-99"]);
    wait_for("the first build", Duration::from_secs(60), || {
        lab.path().join("up").exists().then_some(())
    });
    let locked = lab.doe(&["build", "//lab:p-99", "--wait=0"]).exits(5);
    for part in ["in use by process", "build //lab:p-99", "--wait"] {
        assert!(locked.stderr.contains(part), "{part}: {}", locked.stderr);
    }
    lab.doe(&["build", "//lab:p-99", "--wait=1"]).exits(5);
    lab.doe(&["cache", "gc", "--delete"]).exits(5);
    lab.doe(&["cache", "rebuild"]).exits(5);
    // Nobody listens there, and nobody is asked.
    let mirror = "[cache]\nremote = \"s3://nowhere/x\"\nendpoint = \"http://127.0.0.1:9\"\n";
    lab.write("doe.toml", mirror);
    for wait in [&["--wait=1"][..], &[]] {
        let pull = lab.doe(&[&["cache", "pull"], wait].concat()).exits(5);
        assert!(pull.stderr.contains("--wait"), "{}", pull.stderr);
        let told = pull.stderr.contains("waiting for process");
        assert_eq!(told, !wait.is_empty(), "{}", pull.stderr);
    }
    lab.write("doe.toml", "");
    // Readers meanwhile see a whole store, every time.
    let loops: Vec<_> = (0..3)
        .map(|_| {
            let command = lab.command(&["cache", "ls", "--json"]);
            std::thread::spawn(move || read_often(command, 15))
        })
        .collect();
    let verified = lab.doe(&["cache", "verify"]).ok();
    assert!(
        verified.stderr.contains("damage is only told"),
        "{}",
        verified.stderr
    );
    lab.doe(&["cache", "gc"]).ok();
    for reader in loops {
        reader.join().unwrap();
    }
    let told = std::fs::File::create(lab.path().join("waiting.txt")).unwrap();
    let mut waiting = lab.command(&["build", "//lab:p-99", "--json"]);
    waiting.stdout(Stdio::piped()).stderr(told);
    let mut waiting = waiting.spawn().unwrap();
    let told = || lab.read("waiting.txt");
    wait_for("the word that it waits", Duration::from_secs(60), || {
        told().contains("waiting for process").then_some(())
    });
    assert!(waiting.try_wait().unwrap().is_none());
    lab.write("go", "");
    assert!(first.wait().unwrap().success());
    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success(), "{}", told());
    assert!(String::from_utf8_lossy(&waited.stdout).contains("\"reused\":1"));

    // A holder that is killed holds nothing, and what it had stored is not lost.
    for name in ["up", "go"] {
        std::fs::remove_file(lab.path().join(name)).unwrap();
    }
    let (mut killed, _) = lab.spawn(&["build", "//lab:p-99", "--rerun"]);
    wait_for("the build to be killed", Duration::from_secs(60), || {
        lab.path().join("up").exists().then_some(())
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    lab.write("go", "");
    let after = lab.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!(after["failed"], 0, "{after}");
    lab.doe(&["cache", "verify"]).ok();
    lab.assert_nothing_runs();
}

/// Readers while one commit follows another: each answer is a whole one, and commits go on between
/// the answers.
#[test]
fn readers_read_while_results_are_stored() {
    let tokens: Vec<String> = (100..140).map(|tokens| tokens.to_string()).collect();
    let lab = lab(&format!("1, 2, {}", tokens.join(", ")), false);
    // One at a time, so that there are about as many commits as nodes.
    let (mut build, _) = lab.spawn(&["build", "//lab:L0", "--jobs", "1"]);
    let over = Arc::new(AtomicBool::new(false));
    let readers = ["cache ls", "status //lab:L0", "results //lab:L0"].map(|words| {
        let words: Vec<&str> = words.split(' ').chain(["--json"]).collect();
        let (command, over) = (lab.command(&words), over.clone());
        std::thread::spawn(move || counts_until(command, &over))
    });
    let built = build.wait().unwrap();
    over.store(true, Ordering::SeqCst);
    assert!(built.success());
    for reader in readers {
        let mut seen = reader.join().unwrap();
        // What was stored once is seen ever after.
        assert!(seen.is_sorted(), "{seen:?}");
        // Between two answers that differ something was committed.
        seen.dedup();
        let under_way = seen.iter().filter(|stored| (1..42).contains(*stored));
        assert!(under_way.count() >= 1, "{seen:?}");
    }
    lab.assert_nothing_runs();
}

/// How many results each answer has, asked again and again.
fn counts_until(mut command: Command, over: &AtomicBool) -> Vec<usize> {
    let mut seen = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let answer = support::Ran::of(&["a reader"], command.output().unwrap()).ok();
        let rows = answer.json();
        let is_stored = |row: &&serde_json::Value| {
            let says = |name: &str, word: &str| row[name] == word;
            says("execution", "ok") || says("state", "up to date") || says("state", "current")
        };
        seen.push(rows.as_array().unwrap().iter().filter(is_stored).count());
    }
    seen
}

/// What goes between being listed and being read is nothing to those who only look.
#[test]
fn who_only_looks_looks_on_while_another_collects() {
    let tokens: Vec<String> = (1..=10).map(|n| n.to_string()).collect();
    let lab = lab(&tokens.join(", "), false);
    for _ in 0..3 {
        lab.doe(&["build", "//...", "--rerun"]).ok();
    }
    let all = lab.path().join("all");
    let all = all.to_str().unwrap();
    lab.doe(&["cache", "export", "//...", "--history", "-o", all])
        .ok();
    let over = AtomicBool::new(false);
    let looked = std::thread::scope(|scope| {
        let lookers = ["gc --older-than 0s", "verify --dry-run"].map(|words| {
            let (lab, over) = (&lab, &over);
            scope.spawn(move || {
                let words: Vec<&str> = ["cache"].into_iter().chain(words.split(' ')).collect();
                let mut looked = 0;
                while !over.load(Ordering::Relaxed) {
                    lab.doe(&words).ok();
                    looked += 1;
                }
                looked
            })
        });
        for _ in 0..12 {
            let gone = ["cache", "gc", "--delete", "--older-than", "0s", "--wait"];
            lab.doe(&gone).ok();
            lab.doe(&["cache", "import", all, "--wait"]).ok();
        }
        over.store(true, Ordering::Relaxed);
        lookers.map(|looker| looker.join().unwrap())
    });
    assert!(looked.iter().all(|count| *count > 5), "{looked:?}");
}

#[test]
fn builds_with_nothing_to_do_refuse_nobody() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let begun = Instant::now();
    let builds: Vec<_> = (0..6)
        .map(|at| {
            // Every other one is told to wait; the others wait for 2 s.
            let wait = (at % 2 == 0).then_some("--wait=60");
            let mut build = lab.command(&["build", "//...", "--json"]);
            build.args(wait).stdout(Stdio::piped());
            (wait, build.stderr(Stdio::piped()).spawn().unwrap())
        })
        .collect();
    for (wait, build) in builds {
        let output = build.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        // One of them may have been held back for so long that even these 2 s were over.
        let is_late = wait.is_none() && begun.elapsed() >= Duration::from_secs(2);
        let is_refused = output.status.code() == Some(5);
        assert!(
            output.status.success() || is_late && is_refused,
            "{wait:?}: {told}"
        );
    }
}

#[test]
fn who_leaves_at_the_third_interrupt_gives_no_lock_back() {
    let lab = lab("1, 99", false);
    lab.replace(
        "rules/lab.toml",
        "  echo up > ",
        "  trap '' TERM\n  echo up > ",
        2,
    );
    lab.replace("plans/lab.toml", "\"p-2\"]", "\"p-99\"]", 1);
    lab.doe(&["build", "//lab:p-1"]).ok();
    let (mut build, _) = lab.spawn(&["build", "//lab:p-99"]);
    wait_for("the step", Duration::from_secs(60), || {
        lab.path().join("up").exists().then_some(())
    });
    let pid = build.id().to_string();
    // Those that come together count as one: each waits for what the one before it brought about.
    for told in [
        "once more cancels it",
        "once more leaves without waiting",
        "",
    ] {
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        wait_for(told, Duration::from_secs(60), || {
            let said = lab.read("stdout.txt") + &lab.read("stderr.txt");
            said.contains(told).then_some(())
        });
    }
    let status = build.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let left = lab.read(".doe/lock");
    assert!(left.contains(&format!("pid {pid}\n")), "{left}");
    std::fs::write(lab.path().join("go"), "").unwrap();
    lab.doe(&["build", "//..."]).ok();
    lab.doe(&["cache", "verify"]).ok();
}

fn read_often(mut command: Command, times: usize) {
    for _ in 0..times {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("//lab:p-1"),
            "{text}"
        );
    }
}

/// Killed at any point of a commit, a build loses nothing that it told of and runs nothing twice
/// that had become durable.
#[test]
fn a_build_killed_at_any_point_leaves_a_whole_store() {
    for fault in [
        "after-tmp-write:3:kill",
        "after-fsync:1:kill",
        "before-rename:2:kill",
        "after-rename:2:kill",
        "before-commit:3:kill",
        "after-commit:4:kill",
        "before-fsync:1+:error",
        "before-tmp-write:1+:error",
        "before-commit:1:error",
    ] {
        let lab = lab("1, 2", false);
        let mut command = lab.command(&["build", "//..."]);
        let ended = command.env("DOE_FAULT", fault).output().unwrap();
        assert!(!ended.status.success(), "{fault} did not strike");
        let stored = lab.doe(&["cache", "verify", "--json"]);
        assert_eq!(
            stored.code, 0,
            "{fault}: {}{}",
            stored.stdout, stored.stderr
        );
        let built = lab.doe(&["build", "//...", "--json"]).ok().summary();
        assert_eq!(built["failed"], 0, "{fault}: {built}");
        lab.doe(&["cache", "verify"]).ok();
        lab.assert_nothing_runs();
    }
}

/// What somebody refused is not recorded once more from what its killed run left.
#[test]
fn a_refused_result_is_not_taken_from_a_killed_run() {
    let mut refused = 0;
    for count in 1.. {
        let lab = lab("1, 2", false);
        let ran = lab.path().join("ran");
        let script = format!(
            "echo go >> '{}'\nprintf '{{\"schema\": \"probe-v1\"",
            ran.display()
        );
        lab.replace(
            "rules/lab.toml",
            "printf '{\"schema\": \"probe-v1\"",
            &script,
            1,
        );
        let mut command = lab.command(&["build", "//lab:p-1"]);
        let fault = format!("before-commit:{count}:kill");
        let ended = command.env("DOE_FAULT", &fault).output().unwrap();
        if ended.status.success() {
            break;
        }
        let words = [
            "cache",
            "quarantine",
            "//lab:p-1",
            "--reason",
            "the fan was off",
        ];
        if lab.doe(&words).code != 0 {
            // It had not come to be stored.
            continue;
        }
        refused += 1;
        let built = lab.doe(&["build", "//lab:p-1", "--json"]).ok().summary();
        assert_eq!(built["ok"], 1, "{fault}: {built}");
        let ran = std::fs::read_to_string(ran).unwrap();
        assert_eq!(ran, "go\ngo\n", "{fault}");
        lab.doe(&["cache", "verify"]).ok();
        lab.assert_nothing_runs();
    }
    assert!(refused > 0, "no kill left a record");
}

/// A word that is wrong by a letter must not mean the results of another platform.
#[test]
fn a_platform_that_is_not_there_stands_for_no_other() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    for words in [
        &["show", "//lab:p-1"][..],
        &["why", "//lab:p-1"],
        &["pin", "//lab:p-1", "--reason", "a paper"],
        &["quarantine", "//lab:p-1", "--reason", "the fan was off"],
        &["export", "//...", "-o", "b.doe"],
    ] {
        let words = [&["cache"], words, &["--platform", "nope"]].concat();
        let asked = lab.doe(&words);
        assert_eq!(asked.code, 2, "{words:?}: {}{}", asked.stdout, asked.stderr);
        let told = "there is no platform `nope`";
        assert!(asked.stderr.contains(told), "{words:?}: {}", asked.stderr);
    }
    lab.doe(&["check", "//...", "--up-to-date"]).ok();
}

/// What a build refuses as it is judged now, no other command calls current, up to date or sound.
#[test]
fn what_was_refused_when_it_was_read_anew_is_refused_everywhere() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    lab.replace(
        "rules/lab.toml",
        "result.tokens != 14",
        "result.tokens != 2",
        1,
    );
    // It is not known before it was read.
    lab.doe(&["build", "//..."]).exits(1);
    lab.assert_nothing_runs();
    let states = || {
        let rows = lab.doe(&["status", "//...", "--json"]).ok().json();
        let rows = rows.as_array().unwrap().iter();
        let state = |row: &serde_json::Value| format!("{} {}", row["label"], row["state"]);
        rows.map(state)
            .collect::<Vec<_>>()
            .join(", ")
            .replace('"', "")
    };
    let found = "//lab:p-1 up to date, //lab:p-2 invalid, //lab:sum blocked";
    let lacks = "needs //lab:p-2, of which no result may be used";
    assert_eq!(states(), found);
    let why = "does not hold: result.tokens != 2";
    let explained = lab.doe(&["explain", "//lab:p-2"]).ok().stdout;
    assert!(
        explained.contains(&format!("//lab:p-2 is invalid: {why}")),
        "{explained}"
    );
    let explained = lab.doe(&["explain", "//lab:p-2", "--json"]).ok().json();
    assert_eq!(explained["decision"], "refused");
    assert_eq!(explained["reason"], why);
    let checked = lab.doe(&["check", "//lab:p-2", "--up-to-date"]);
    assert_eq!(checked.code, 6, "{}", checked.stderr);
    let words = "1 of 1 patterns have a result that is refused";
    assert!(checked.stderr.contains(words), "{}", checked.stderr);
    let planned = lab.doe(&["plan", "//...", "--up-to-date", "--json"]);
    assert_eq!(planned.code, 6);
    let planned = planned.json();
    assert_eq!(planned["refused"][0]["label"], "//lab:p-2");
    assert_eq!(planned["refused"][0]["reason"], why);
    assert_eq!(planned["run"].as_array().unwrap().len(), 0);
    // Nor may what needs it run.
    assert_eq!(planned["may_run"].as_array().unwrap().len(), 0);
    assert_eq!(planned["blocked"][0]["label"], "//lab:sum");
    assert_eq!(planned["blocked"][0]["reason"], lacks);
    let text = lab.doe(&["plan", "//..."]).ok().stdout;
    assert!(text.contains(", 1 invalid, 1 blocked;"), "{text}");
    let explained = lab.doe(&["explain", "//lab:sum"]).ok().stdout;
    assert!(
        explained.contains(&format!("is blocked: {lacks}")),
        "{explained}"
    );
    let explained = lab.doe(&["explain", "//lab:sum", "--json"]).ok().json();
    assert_eq!(explained["decision"], "blocked");
    let checked = lab.doe(&["check", "//...", "--up-to-date"]).exits(6).stderr;
    let words = "1 of 3 patterns have a result that is refused, 1 need one that is";
    assert!(checked.contains(words), "{checked}");
    let results = lab.doe(&["results", "//lab:p-2", "--json"]).ok().json();
    assert_eq!(results[0]["state"], "stale", "{results}");
    // Nothing of it is told by a build otherwise, and nothing runs.
    let built = lab.doe(&["build", "//...", "--json"]);
    assert_eq!(
        (built.code, built.summary()["invalid"].as_u64()),
        (1, Some(1))
    );
    assert_eq!(states(), found);
    // What the plans need is kept.
    lab.doe(&["cache", "gc", "--older-than", "0s", "--delete"])
        .ok();
    lab.replace(
        "rules/lab.toml",
        "result.tokens != 2",
        "result.tokens != 3",
        1,
    );
    let built = lab.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!(
        (built["ok"].as_u64(), built["reused"].as_u64()),
        (Some(0), Some(3))
    );
}

/// What is refused stays so until what is read, or what it is held against, is another.
#[test]
fn a_cosmetic_edit_ends_no_refusal() {
    let lab = lab("1, 2", false);
    let note = "param.note = { type = \"str\", affects = \"cosmetic\", default = \"\", doc = \"a word\" }\n";
    with_parameter(&lab, note);
    lab.replace(
        "plans/lab.toml",
        "[[layer]]\nid = \"L0\"",
        "[settings]\nnote = \"a\"\n\n[[layer]]\nid = \"L0\"",
        1,
    );
    lab.doe(&["build", "//..."]).ok();
    lab.replace(
        "rules/lab.toml",
        "result.tokens != 14",
        "result.tokens != 2",
        1,
    );
    lab.doe(&["build", "//..."]).exits(1);
    lab.doe(&["check", "//lab:p-2", "--up-to-date"]).exits(6);
    lab.replace("plans/lab.toml", "note = \"a\"", "note = \"b\"", 1);
    lab.doe(&["check", "//lab:p-2", "--up-to-date"]).exits(6);
    let rows = lab.doe(&["status", "//lab:p-2", "--json"]).ok().json();
    assert_eq!(rows[0]["state"], "invalid");
    lab.doe(&["build", "//..."]).exits(1);
}

/// Numbers whose definition changed are not up to date before they were read anew, and what follows
/// from them is not known.
#[test]
fn what_is_to_be_read_anew_is_not_up_to_date() {
    let lab = lab("1, 2", false);
    let more = "\n[[layer]]\nid = \"L2\"\nrule = \"lab.probe\"\n[[layer.pattern]]\nid = \"often\"\nsettings = { tokens = 7 }\n\
                stop_when = { metric = \"tokens_seen\", relative_half_width = 0.1, min = 2, max = 4 }\n";
    lab.write("plans/lab.toml", &(lab.read("plans/lab.toml") + more));
    lab.doe(&["build", "//..."]).ok();
    lab.doe(&["check", "//...", "--up-to-date"]).ok();
    lab.replace(
        "rules/lab.toml",
        "at = \"/tokens\", unit = \"tokens\"",
        "at = \"/tokens\", unit = \"1\"",
        1,
    );
    let checked = lab
        .doe(&["check", "//lab:p-1", "--up-to-date"])
        .exits(6)
        .stderr;
    let words = "1 of 1 patterns have numbers that are to be read anew";
    assert!(checked.contains(words), "{checked}");
    lab.doe(&["plan", "//lab:p-1", "--up-to-date"]).exits(6);
    let rows = lab.doe(&["status", "//lab:p-1", "--json"]).ok().json();
    assert_eq!(rows[0]["state"], "stale", "{rows}");
    let explained = lab.doe(&["explain", "//lab:p-1"]).ok().stdout;
    assert!(explained.contains("is read anew"), "{explained}");
    let results = lab.doe(&["results", "//lab:p-1", "--json"]).ok().json();
    assert_eq!(results[0]["state"], "stale", "{results}");
    let planned = lab.doe(&["plan", "//lab:L2", "--json"]).ok().json();
    assert_eq!(planned["run"].as_array().unwrap().len(), 0, "{planned}");
    assert_eq!(planned["may_run"].as_array().unwrap().len(), 2, "{planned}");
    lab.doe(&["build", "//..."]).ok();
    lab.doe(&["check", "//...", "--up-to-date"]).ok();
    let results = lab.doe(&["results", "//lab:p-1", "--json"]).ok().json();
    assert_eq!(results[0]["state"], "current", "{results}");
    assert_eq!(
        results[0]["metrics"]["tokens_seen"]["unit"], "1",
        "{results}"
    );
    let built = lab
        .doe(&["build", "//...", "--json", "--no-recall"])
        .ok()
        .stdout;
    assert!(built.contains("\"estimate_s\":0.0"), "{built}");
}

/// One result may stand for two patterns; each is shown with what is its own.
#[test]
fn a_shared_result_is_shown_with_the_settings_of_each() {
    let lab = lab("1, 2", false);
    let word = "param.word = { type = \"str\", default = \"\", doc = \"read by nobody\" }\n";
    with_parameter(&lab, word);
    lab.replace(
        "rules/lab.toml",
        "if [ {{ tokens }} = 13 ]",
        ": {{ word | length }}\nif [ {{ tokens }} = 13 ]",
        1,
    );
    let more = "[[layer.override]]\nwhen = \"tokens == 2\"\nsettings = { word = \"b\", tokens = 1 }\n[layer.matrix]";
    lab.replace("plans/lab.toml", "[layer.matrix]", more, 1);
    lab.replace(
        "plans/lab.toml",
        "[layer.matrix]",
        "[layer.settings]\nword = \"a\"\n[layer.matrix]",
        1,
    );
    lab.doe(&["build", "//lab:L0"]).ok();
    let results = lab.doe(&["results", "//lab:L0", "--json"]).ok().json();
    let words: Vec<_> = (0..2)
        .map(|at| results[at]["settings"]["word"].clone())
        .collect();
    assert_eq!(words, ["a", "b"], "{results}");
    // What somebody deleted is missing, and all others are shown.
    let record = record_of(&lab, "//lab:p-1");
    lab.doe(&["build", "//lab:sum"]).ok();
    std::fs::remove_file(
        lab.path()
            .join(format!(".doe/records/{}/{record}.json", &record[..2])),
    )
    .unwrap();
    let results = lab.doe(&["results", "//...", "--json"]).ok().json();
    let states: Vec<_> = (0..3).map(|at| results[at]["state"].clone()).collect();
    assert!(
        states.contains(&"missing".into()) && states.contains(&"current".into()),
        "{results}"
    );
}

/// A disk that refuses once is asked again, with everything that was to be written.
#[test]
fn a_disk_that_refuses_once_costs_no_result() {
    let lab = lab("1, 2, 3", false);
    for (label, point) in [
        ("//lab:p-1", "before-fsync"),
        ("//lab:p-2", "before-rename"),
        ("//lab:p-3", "before-dir-sync"),
    ] {
        let mut command = lab.command(&["build", label, "--json"]);
        command.env("DOE_FAULT", format!("{point}:1:error"));
        let built = support::Ran::of(&["build", label], command.output().unwrap()).ok();
        assert_eq!(built.summary()["ok"], 1, "{point}");
        let marked = lab.path().join(".doe/unsettled").exists();
        assert!(marked, "{point} did not strike");
        lab.doe(&["cache", "verify"]).ok();
        let again = lab.doe(&["build", label, "--json"]).ok().summary();
        assert_eq!(again["reused"], 1, "{point}: {again}");
    }
}

fn run_and_meddle(lab: &Workspace, target: &str, path: Option<&Path>, meddle: impl FnOnce()) {
    let mut command = lab.command(&["build", target]);
    if let Some(path) = path {
        let rest = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{rest}", path.display()));
    }
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the node to run", Duration::from_secs(60), || {
        lab.path().join("up").exists().then_some(())
    });
    meddle();
    lab.write("go", "");
    assert!(child.wait().unwrap().success());
}

fn kept_and_not_reused(lab: &Workspace, label: &str, why: &str, runs: &str) {
    let shown = lab.doe(&["cache", "show", label, "--json"]).ok().json();
    let because = shown["not_reusable_because"].as_str().unwrap_or_default();
    assert!(because.contains(why), "{because}");
    assert_eq!(shown["verdicts"]["execution"]["status"], "ok");
    // It was said at once, not when the next build runs it again.
    let runs_of = std::fs::read_dir(lab.path().join(".doe/runs")).unwrap();
    let events =
        runs_of.map(|run| std::fs::read_to_string(run.unwrap().path().join("events.jsonl")));
    let events = events.map(Result::unwrap_or_default).collect::<String>();
    let warned = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let mut warned = warned.filter(|event: &serde_json::Value| event["code"] == "not-reusable");
    let warned = warned.find(|event| event["label"] == label);
    let warned = warned.unwrap_or_else(|| panic!("{events}"));
    assert!(
        warned["message"].as_str().unwrap().contains(why),
        "{warned}"
    );
    let plan = lab.doe(&["explain", label]).ok().stdout;
    assert!(plan.contains(runs), "{plan}");
    let again = lab.doe(&["build", label, "--json"]).ok().summary();
    assert!(again["ok"].as_u64().unwrap() >= 1, "{again}");
    assert_eq!(lab.doe(&["build", label, "--json"]).ok().summary()["ok"], 0);
}

#[test]
fn an_input_that_changes_under_a_run_is_noticed() {
    let lab = lab("1, 2", true);
    lab.doe(&["build", "//lab:L0"]).ok();
    let shown = lab
        .doe(&["cache", "show", "//lab:p-1", "--json"])
        .ok()
        .json();
    let blob = shown["outputs"]["result"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = lab
        .path()
        .join(format!(".doe/cas/{}/{}", &blob[..2], &blob[2..]));
    run_and_meddle(&lab, "//lab:sum", None, || {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "{}").unwrap();
    });
    kept_and_not_reused(
        &lab,
        "//lab:sum",
        "output `result` of //lab:p-1, which it reads, changed while it ran",
        // The damaged output was put aside, so what wrote it runs again too.
        "//lab:p-1 runs",
    );
}

#[test]
fn a_fact_that_changes_under_a_run_is_noticed() {
    let lab = lab("1, 2, 99", false);
    let tools: PathBuf = lab.path().join("tools");
    let real = ["/usr/bin/uname", "/bin/uname"];
    let real = real.iter().find(|path| Path::new(path).exists()).unwrap();
    let shim = format!(
        "#!/bin/sh\nif [ \"$1\" = -r ]; then cat '{}'; else exec {real} \"$@\"; fi\n",
        lab.path().join("kernel").display()
    );
    lab.write("kernel", "6.1.0\n");
    lab.write("tools/uname", &shim);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(tools.join("uname"), mode).unwrap();
    run_and_meddle(&lab, "//lab:p-99", Some(&tools), || {
        lab.write("kernel", "6.2.0\n")
    });
    let why = "changed from `6.1.0` to `6.2.0` while it ran";
    kept_and_not_reused(&lab, "//lab:p-99", why, why);
}

/// Keys of everything that is shipped, from processes that have nothing in common but the text.
/// `env -i` hands its variables on in the order in which it was given them, where this process
/// would sort them.
#[test]
fn keys_depend_on_no_surroundings() {
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    let many: Vec<String> = (0..20)
        .map(|at| format!("V{}={at}", (at * 7) % 20))
        .collect();
    let mut surroundings: Vec<Vec<&str>> = vec![
        vec![&path],
        vec![
            "LC_ALL=tr_TR.UTF-8",
            "TZ=Asia/Kathmandu",
            "HOME=/nowhere",
            &path,
        ],
        vec![
            &path,
            "LANG=de_DE.UTF-8",
            "LC_NUMERIC=de_DE.UTF-8",
            "USER=somebody",
        ],
        vec![
            "TZ=America/St_Johns",
            "LC_ALL=C",
            &path,
            "RUST_BACKTRACE=1",
            "COLUMNS=40",
        ],
        vec![
            &path,
            "LC_ALL=C.UTF-8",
            "LANGUAGE=tr:de",
            "TZ=UTC",
            "A=1",
            "B=2",
        ],
    ];
    surroundings[0].extend(many.iter().map(String::as_str));
    for at in 0..surroundings.len() {
        let mut other_way_round = surroundings[at].clone();
        other_way_round.reverse();
        surroundings.push(other_way_round);
    }
    let mut seen: Option<Vec<[String; 3]>> = None;
    for (at, environment) in surroundings.iter().enumerate() {
        let checkout = Workspace::shipped("0.001");
        let moved = checkout.path().join(format!("deep/er {at}/ünï"));
        std::fs::create_dir_all(&moved).unwrap();
        for name in ["plans", "rules", "doe.toml"] {
            std::fs::rename(checkout.path().join(name), moved.join(name)).unwrap();
        }
        let run = |program: &str| {
            let mut command = Command::new("env");
            command.arg("-i").args(environment).arg(program);
            command.current_dir(&moved);
            command
        };
        // What the test is about: this order reaches the process.
        let told = run("env").output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        assert_eq!(&told.lines().collect::<Vec<_>>(), environment);
        let output = run(env!("CARGO_BIN_EXE_doe"))
            .args(["explain", "//...", "--json"])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{environment:?}: {told}");
        let text = String::from_utf8(output.stdout).unwrap();
        let keys: Vec<[String; 3]> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|node| node["decision"] == "run")
            .map(|node| {
                ["label", "spec_key", "action_key"].map(|at| node[at].as_str().unwrap().to_owned())
            })
            .collect();
        assert!(keys.len() > 40, "{}", keys.len());
        assert_eq!(
            seen.get_or_insert_with(|| keys.clone()),
            &keys,
            "{environment:?}"
        );
    }
}

/// The same label on two platforms: what was made last is not what the plans call for.
#[test]
fn commands_take_what_the_plans_call_for() {
    let lab = lab("1, 2", false);
    lab.write(
        "doe.toml",
        "[workspace]\nplatform = \"real\"\n[platform.real.host.here]\naddress = \"127.0.0.1\"\n\
         [platform.real.roles]\nclient = \"here\"\n",
    );
    let plan = lab.read("plans/lab.toml");
    let expecting = |least: u32| {
        let line = format!("expect = {{ tokens_seen = \">= {least}\" }}\n[layer.matrix]");
        lab.write("plans/lab.toml", &plan.replacen("[layer.matrix]", &line, 1));
    };
    expecting(1);
    lab.doe(&["build", "//..."]).ok();
    let real = record_of(&lab, "//lab:p-1");
    lab.doe(&["build", "//...", "--platform", "sim"]).ok();
    let told = |command: &str| {
        let words: Vec<&str> = command.split(' ').chain(["--json"]).collect();
        lab.doe(&words).ok().json()
    };
    let simulated = |document: &serde_json::Value| document["provenance"]["simulated"].clone();
    assert_eq!(simulated(&told("cache show //lab:p-1")), false);
    assert_eq!(
        simulated(&told("cache show //lab:p-1 --platform sim")),
        true
    );
    assert_eq!(told("cache why //lab:p-1")["record"], *real);
    let first = |command: &str| told(command)[0].clone();
    for (platform, is_simulated) in [("real", false), ("sim", true)] {
        let status = first(&format!("status //lab:p-1 --platform {platform}"));
        assert_eq!(status["simulated"], is_simulated, "{status}");
        assert_eq!(
            (&status["criterion"], &status["state"]),
            (&"met".into(), &"up to date".into())
        );
    }
    // What is expected is held against what is stored whenever somebody asks.
    expecting(2);
    assert_eq!(first("status //lab:p-1")["criterion"], "missed");
    assert_eq!(first("results //lab:p-1")["criterion"]["status"], "missed");
    assert_eq!(first("results //lab:p-2")["criterion"]["status"], "met");
    expecting(1);

    let bundle = lab.path().join("x.tar.gz");
    let file = bundle.to_str().unwrap();
    told(&format!("cache export //lab:all -o {file}"));
    let to = Workspace::empty();
    for name in ["doe.toml", "rules/lab.toml", "plans/lab.toml"] {
        to.write(name, &lab.read(name));
    }
    to.doe(&["cache", "import", file]).ok();
    let built = to.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!((&built["ok"], &built["reused"]), (&0.into(), &3.into()));

    // Neither platform's results go, though one of them was made before the other.
    let swept = told("cache gc --older-than 0s --delete");
    assert_eq!(swept["records"].as_array().unwrap().len(), 0, "{swept}");
    let pinned = told(&format!("cache pin {real}"))["pinned"].clone();
    assert_eq!(pinned.as_array().unwrap().len(), 1);
    // All or nothing, and also when its record was refused.
    lab.doe(&["cache", "unpin", &real, "//lab:p-2"]).exits(2);
    assert_eq!(told("cache ls --pinned").as_array().unwrap().len(), 1);
    let refused = lab.doe(&["cache", "quarantine", "//lab:p-1"]).ok().stdout;
    assert!(
        refused.contains("//lab:p-1 has no result any more"),
        "{refused}"
    );
    lab.doe(&["cache", "unpin", &real, &real]).ok();
    assert_eq!(told("cache ls --pinned").as_array().unwrap().len(), 0);
}

#[test]
fn a_bundle_goes_where_it_is_sent_or_it_is_said_why_not() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let nowhere = lab.doe(&["cache", "export", "//...", "-o", "."]).exits(2);
    assert!(
        nowhere.stderr.contains("names no file"),
        "{}",
        nowhere.stderr
    );
    let blobs = lab.path().join(".doe/cas");
    std::fs::remove_dir_all(&blobs).unwrap();
    let x = lab.path().join("x");
    let x = x.to_str().unwrap();
    let lacking = lab.doe(&["cache", "export", "//...", "-o", x]).exits(2);
    assert!(
        lacking.stderr.contains("cache pull --blobs"),
        "{}",
        lacking.stderr
    );
    assert!(!lab.path().join("x").exists());
    // A plan that is not sound keeps nobody from looking at what is stored, and a collection says what
    // it does not know.
    assert_eq!(lab.doe(&["cache", "gc"]).ok().stderr, "");
    lab.write("plans/lab.toml", "[plan]\ntitel = 1\n");
    lab.doe(&["cache", "show", "//lab:p-1"]).ok();
    lab.doe(&["cache", "why", "//lab:sum"]).ok();
    let told = lab.doe(&["cache", "gc"]).ok().stderr;
    assert!(
        told.contains("what the plans would reuse is not known"),
        "{told}"
    );
    for more in [&["--delete"][..], &[]] {
        let kept = lab.doe(&[&["cache", "gc", "--older-than", "0s"], more].concat());
        assert_eq!(kept.code, 3, "{}", kept.stderr);
        assert!(
            kept.stderr.contains("nothing was removed"),
            "{}",
            kept.stderr
        );
    }
    lab.doe(&["cache", "gc", "--delete"]).ok();
    // Nobody can take the lock here.
    std::fs::remove_file(lab.path().join(".doe/lock")).unwrap();
    std::fs::create_dir(lab.path().join(".doe/lock")).unwrap();
    let told = lab.doe(&["cache", "verify"]).exits(4).stderr;
    assert!(told.contains("`--dry-run` only looks"), "{told}");
    lab.doe(&["cache", "verify", "--dry-run"]).exits(7);
}

/// Parts of who was killed go with an export to that folder a day later, and nothing else of anybody's.
#[test]
fn parts_of_a_killed_export_go_with_the_next() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let parts = [".doe-12-0.part", ".doe-13-0.part", ".doe-2024-mine.part"];
    for part in parts {
        lab.write(part, "");
        // One may be written right now, on another machine.
        let hours = if part.contains("13") { 1 } else { 49 };
        let file = std::fs::File::options()
            .write(true)
            .open(lab.path().join(part));
        let then = std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
        file.unwrap().set_modified(then).unwrap();
    }
    let whole = lab.path().join("whole");
    let export = ["cache", "export", "//...", "-o", whole.to_str().unwrap()];
    lab.doe(&export).ok();
    let left = parts.map(|part| lab.path().join(part).exists());
    assert_eq!(left, [false, true, true]);
}

/// From one `doe` into another, with no file between.
#[test]
fn a_bundle_may_be_a_stream() {
    let (lab, other) = (lab("1, 2", false), Workspace::empty());
    lab.doe(&["build", "//..."]).ok();
    for name in ["rules/lab.toml", "plans/lab.toml"] {
        other.write(name, &lab.read(name));
    }
    let mut export = lab.command(&["cache", "export", "//...", "-o", "-", "--json"]);
    let mut export = export.stdout(Stdio::piped()).spawn().unwrap();
    let mut import = other.command(&["cache", "import", "-", "--json"]);
    let import = import
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(export.wait().unwrap().success());
    let imported = support::Ran::of(&["cache", "import", "-"], import)
        .ok()
        .json();
    assert_eq!(imported["records"], 3, "{imported}");
    assert!(!lab.path().join("-").exists());
    let built = other.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!((&built["ok"], &built["reused"]), (&0.into(), &3.into()));
    other.doe(&["cache", "import", "-"]).exits(7);
}

#[test]
fn a_list_of_nothing_says_why() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//lab:p-1"]).ok();
    lab.doe(&["build", "//lab:p-2"]).ok();
    let listed = |words: &[&str]| -> (Vec<String>, String) {
        let ran = lab.doe(&[&["cache", "ls", "--json"], words].concat()).ok();
        let list = ran.json();
        let list = list.as_array().unwrap().iter();
        let labels = list.map(|it| it["label"].as_str().unwrap().to_owned());
        (labels.collect(), ran.stderr)
    };
    assert_eq!(listed(&["--run", "latest"]).0, ["//lab:p-2"]);
    assert_eq!(listed(&["--run", "latest-1"]).0, ["//lab:p-1"]);
    let (_, told) = listed(&["--plan", "lap"]);
    assert_eq!(
        told,
        "note: no record is of plan `lap`; did you mean `lab`?\n"
    );
    let (_, told) = listed(&["--label", "//lab:p-3"]);
    assert!(told.contains("no record is of label `//lab:p-3`"), "{told}");
    let told = lab
        .doe(&["cache", "ls", "--run", "latest-9"])
        .exits(2)
        .stderr;
    assert!(told.contains("no run `latest-9`"), "{told}");
}

/// Where nothing can be written there is still everything to read. No file may grow here, which is
/// what a full disk is to a program.
#[test]
fn a_full_disk_keeps_nobody_from_reading() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    for words in [
        "cache ls",
        "cache stats",
        "status //...",
        "results //...",
        "cache why //lab:sum",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let there = lab.doe(&words).ok().stdout;
        for beside in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(lab.path().join(format!(".doe/index.sqlite{beside}")));
        }
        let script = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
        let doe = lab.command(&words);
        let mut full = Command::new("sh");
        full.args(["-c", script, "sh"]).arg(doe.get_program());
        full.args(doe.get_args()).arg("--no-recall");
        full.current_dir(lab.path());
        let full = support::Ran::of(&words, full.output().unwrap()).ok();
        assert_eq!(full.stdout, there, "{words:?}");
    }
}

/// Who reads the events of a build must not take a stream that was cut off for a whole one.
#[test]
fn events_that_cannot_be_written_are_no_success() {
    let lab = lab("1, 2", false);
    for rerun in [&["--rerun"][..], &[]] {
        let words = [&["build", "//...", "--json"], rerun].concat();
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = lab.command(&words);
        let ran = command.stdout(full.unwrap()).output().unwrap();
        let ran = support::Ran::of(&words, ran).exits(4);
        assert!(ran.stderr.contains("could not write"), "{}", ran.stderr);
    }
    // What went wrong is not covered up, neither by that nor by a reader that goes away.
    lab.replace(
        "rules/lab.toml",
        "result.tokens != 14",
        "result.tokens != 2",
        1,
    );
    for json in [&["--json"][..], &[]] {
        let words = [&["build", "//..."], json].concat();
        let full = std::fs::File::options().write(true).open("/dev/full");
        let ran = lab.command(&words).stdout(full.unwrap()).output().unwrap();
        support::Ran::of(&words, ran).exits(1);
        let mut gone = lab.command(&words);
        let mut gone = gone.stdout(Stdio::piped()).spawn().unwrap();
        drop(gone.stdout.take());
        assert_eq!(gone.wait().unwrap().code(), Some(1), "{words:?}");
    }
    lab.replace(
        "rules/lab.toml",
        "result.tokens != 2",
        "result.tokens != 14",
        1,
    );
    // All is stored.
    let built = lab.doe(&["build", "//...", "--json"]).ok().summary();
    assert_eq!(built["reused"], 3, "{built}");
}

/// A folder among the half-written files is nobody's of ours, and stops nobody.
#[test]
fn what_somebody_puts_among_the_temporary_files_stops_nobody() {
    let lab = lab("1, 2", false);
    lab.doe(&["build", "//..."]).ok();
    let folder = lab.path().join(".doe/tmp/mine");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    lab.doe(&["build", "//lab:p-1", "--rerun"]).ok();
    lab.doe(&["cache", "verify"]).ok();
    lab.doe(&["cache", "rebuild"]).ok();
    assert!(folder.is_dir());
}

#[test]
fn a_long_list_says_that_it_is_cut() {
    let tokens: Vec<String> = (100..105).map(|n| n.to_string()).collect();
    let lab = lab(&format!("1, 2, {}", tokens.join(", ")), false);
    lab.doe(&["build", "//..."]).ok();
    let cut = lab.doe(&["cache", "ls", "--most", "3"]).ok();
    assert_eq!(cut.stdout.lines().count(), 4, "{}", cut.stdout);
    assert!(cut.stderr.contains("newest 3"), "{}", cut.stderr);
    let whole = lab.doe(&["cache", "ls", "--most", "8"]).ok();
    assert_eq!((whole.stdout.lines().count(), &*whole.stderr), (9, ""));
    let all = lab.doe(&["cache", "ls", "--json"]).ok().json();
    assert_eq!(all.as_array().unwrap().len(), 8);
    let blob = &lab
        .doe(&["cache", "show", "//lab:p-1", "--json"])
        .ok()
        .json()["outputs"]["result"]["digest"];
    let blob = lab
        .doe(&["cache", "show", blob.as_str().unwrap(), "--json"])
        .ok()
        .json();
    assert_eq!(blob["size_bytes"], 35, "{blob}");
    assert!(blob["text"].as_str().unwrap().starts_with("{\"schema\""));
}

#[test]
fn why_tells_each_result_where_it_is_nearest() {
    let lab = lab("1, 2", false);
    let layers = [
        ("L2", "x", "\"p-1\""),
        ("L3", "a", "\"x\""),
        ("L4", "top", "\"a\", \"x\""),
    ]
    .map(|(layer, id, needs)| {
        format!(
            "[[layer]]\nid = \"{layer}\"\nrule = \"lab.count\"\nneeds = [{needs}]\n\
             [[layer.pattern]]\nid = \"{id}\"\n"
        )
    });
    let plan = lab.read("plans/lab.toml") + &layers.concat();
    lab.write("plans/lab.toml", &plan);
    lab.doe(&["build", "//lab:top"]).ok();
    let why = |depth: &str| {
        let told = lab.doe(&["cache", "why", "//lab:top", "--depth", depth, "--json"]);
        told.ok().json()
    };
    let needs = |told: &serde_json::Value, label: &str| {
        let needs = told["needs"].as_array().unwrap().iter();
        let mut needs = needs.filter(|need| need["label"] == label);
        needs.next().unwrap()["from"].clone()
    };
    // `p-1` is two steps away, by way of `x`, and three by way of `a`.
    let told = why("2");
    let near = needs(&told, "//lab:x");
    assert_eq!(needs(&near, "//lab:p-1")["rule"], "lab.probe", "{told}");
    assert_eq!(needs(&needs(&told, "//lab:a"), "//lab:x").get("rule"), None);
    assert_eq!(why(&usize::MAX.to_string()), why("3"));
    let told = why("1");
    assert_eq!(needs(&told, "//lab:a")["rule"], "lab.count");
    assert_eq!(
        needs(&needs(&told, "//lab:x"), "//lab:p-1").get("rule"),
        None
    );
    let told = why("0");
    assert_eq!(
        (&told["rule"], needs(&told, "//lab:a").get("rule")),
        (&"lab.count".into(), None)
    );
}
