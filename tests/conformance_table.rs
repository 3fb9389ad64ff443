//! `docs/conformance.md` says what each executor has shown. Its cells are what the tests of a whole
//! run have said of themselves when they ended (`tests/rig/told.rs`); `DOE_WRITE_DOCS=1` writes it
//! from them. Which cases an executor has is read from the sources, so that the page can be held
//! against the suite wherever nothing was run yet.

#[path = "rig/told.rs"]
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const EXECUTORS: [&str; 5] = ["local", "attached", "ssh", "slurm", "ssm"];

/// What stands in no list of the suite: a case, and who has it.
const NAMED: [(&str, &[&str]); 9] = [
    ("service and steps", &["local", "ssh", "slurm", "ssm"]),
    (
        "two roles with addresses of each other",
        &["local", "ssh", "slurm", "ssm"],
    ),
    (
        "killed client and re-attach",
        &["local", "ssh", "slurm", "ssm"],
    ),
    (
        "hostile values of a plan",
        &["local", "ssh", "slurm", "ssm"],
    ),
    ("killed host", &["ssh", "slurm", "ssm"]),
    ("clock skew", &["ssh", "slurm", "ssm"]),
    ("phase2", &["local", "ssh", "slurm", "ssm"]),
    ("eight hosts at once", &["ssh"]),
    ("a static doe is shipped", &["ssh"]),
];

/// The programs of the tests that stand beside the suite.
const BESIDE: [&str; 11] = [
    "conformance/local_death.rs",
    "exec_conformance.rs",
    "exec_ssh.rs",
    "exec_slurm.rs",
    "exec_ssm.rs",
    "cluster_ssh.rs",
    "cluster_slurm.rs",
    "cluster_ssm.rs",
    "retries_hosts.rs",
    "ssm_account.rs",
    "exec_wrapper.rs",
];

const SHELLS: [&str; 5] = ["/bin/sh", "dash", "bash --posix", "busybox sh", "mksh"];

const HEAD: &str = "# What each executor passes

Made by `DOE_WRITE_DOCS=1 cargo test --test conformance_table` from what the tests of a whole `./test.sh` have said of themselves; `./test.sh` prints the table of its own run, with what was
skipped and why. `attached` is the local executor for scripts that live and die with `doe`; `-`: there is no such test.
";

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The cases of every `conformance!(@one EXECUTOR, RIG; NAMES);` of a text, in order.
fn listed(text: &str) -> Vec<String> {
    let lists = text.split("conformance!(@one ").skip(1).filter_map(|rest| {
        let (_, names) = rest.split_once(';')?;
        let (names, _) = names.split_once(");")?;
        (!names.contains('$')).then(|| names.to_owned())
    });
    let names = lists.flat_map(|names| {
        let names = names.split_whitespace();
        names.map(plain).collect::<Vec<_>>()
    });
    names.collect()
}

fn plain(name: &str) -> String {
    name.rsplit("::").next().unwrap().replace('_', " ")
}

/// Who has which case, in the order of the table.
fn cases() -> Vec<(String, BTreeSet<&'static str>)> {
    let all = listed(&read("tests/conformance/mod.rs"));
    assert!(all.len() > 30, "{all:?}");
    let mut of: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for program in ["conformance", "attached", "ssh", "slurm", "ssm"] {
        let text = read(&format!("tests/exec_{program}.rs"));
        for executor in EXECUTORS {
            let invoked = text.split("conformance!(").skip(1);
            let whole = format!("\"{executor}\",");
            if invoked
                .clone()
                .any(|rest| rest.trim_start().starts_with(&whole))
            {
                of.insert(executor, all.iter().cloned().collect());
            }
            let part = format!("@one {whole}");
            if invoked.clone().any(|rest| rest.starts_with(&part)) {
                of.insert(executor, listed(&text).into_iter().collect());
            }
        }
    }
    assert_eq!(of.len(), EXECUTORS.len(), "{:?}", of.keys());
    let named = NAMED.map(|(case, who)| (case.to_owned(), who.iter().copied().collect()));
    let listed = all.iter().map(|case| {
        let who = EXECUTORS
            .into_iter()
            .filter(|executor| of[executor].contains(case));
        (case.clone(), who.collect())
    });
    named.into_iter().chain(listed).collect()
}

/// The tests that stand beside the suite, by executor: those that begin by saying so.
fn beside() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for program in BESIDE {
        let mut name = String::new();
        for line in read(&format!("tests/{program}")).lines() {
            let rest = line.strip_prefix("async ").unwrap_or(line);
            if let Some(rest) = rest.strip_prefix("fn ") {
                name = rest.split('(').next().unwrap().replace('_', " ");
            }
            let said = ["rig::own(\"", "Case::own(\""];
            let mut said = said
                .iter()
                .filter_map(|call| Some(line.split_once(call)?.1));
            if let Some(rest) = said.next() {
                let executor = rest.split('"').next().unwrap().to_owned();
                found.entry(executor).or_default().push(name.clone());
            }
        }
    }
    found
}

/// What a case has said of itself, as a cell.
fn cell(executor: &str, case: &str) -> String {
    match told::line(executor, case).as_deref() {
        None => "not run".into(),
        Some("passed") => "yes".into(),
        Some("failed") => "FAILED".into(),
        Some(line) => match line.split_once(' ') {
            Some(("passed", size)) => size.to_owned(),
            _ => line.to_owned(),
        },
    }
}

/// The page, as the last run has it.
fn page() -> String {
    let mut page = format!("{HEAD}\n| | {} |\n|---", EXECUTORS.join(" | "));
    page.push_str(&"|---".repeat(EXECUTORS.len()));
    page.push_str("|\n");
    for (case, who) in cases() {
        let cells = EXECUTORS.map(|executor| match who.contains(executor) {
            true => cell(executor, &case),
            false => "-".into(),
        });
        page.push_str(&format!("| {case} | {} |\n", cells.join(" | ")));
    }
    page.push_str("\nBeside the suite:\n");
    for (executor, tests) in beside() {
        let tests = tests
            .iter()
            .map(|test| match cell(&executor, test).as_str() {
                "yes" => test.clone(),
                other => format!("{test} ({other})"),
            });
        let tests: Vec<_> = tests.collect();
        page.push_str(&format!("\n- {executor}: {}\n", tests.join("; ")));
    }
    page.push_str("\nThe wrapper by itself:\n\n| shell | tests |\n|---|---|\n");
    for shell in SHELLS {
        page.push_str(&format!("| {shell} | {} |\n", under(shell)));
    }
    page
}

/// What the wrapper's tests under a shell came to.
fn under(shell: &str) -> String {
    let executor = format!("wrapper under {shell}");
    let lines = std::fs::read_dir(told::folder_of(&executor))
        .into_iter()
        .flatten()
        .flatten();
    let lines = lines.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let lines: Vec<String> = lines.collect();
    match lines.iter().find(|line| *line != "passed") {
        _ if lines.is_empty() => "not run".into(),
        None => format!("{} passed", lines.len()),
        Some(line) if line == "failed" => "FAILED".into(),
        Some(line) => line.clone(),
    }
}

/// The cells of the rows of a page's tables, by their first one.
fn rows(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let rows = page.lines().filter_map(|line| {
        let line = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let mut cells = line.split(" | ");
        Some((cells.next()?, cells.collect()))
    });
    rows.collect()
}

/// Whether it says that something has not said anything. Names of tests have these words too.
fn is_silent(line: &str) -> bool {
    line.contains("| not run") || line.contains("(not run)")
}

#[test]
fn the_page_names_every_case_and_claims_none_that_is_not_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    if std::env::var_os("DOE_WRITE_DOCS").is_some() {
        let page = page();
        let bad: Vec<&str> = (page.lines().skip(5))
            .filter(|line| is_silent(line) || line.contains("FAILED"))
            .collect();
        assert!(
            told::is_whole() && bad.is_empty(),
            "not a whole run: ./test.sh first\n{}",
            bad.join("\n")
        );
        std::fs::write(&path, page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let hint = "docs/conformance.md is not what is run: after ./test.sh write it anew with DOE_WRITE_DOCS=1";
    assert!(found.starts_with(HEAD), "{hint}");
    let rows = rows(&found);
    let cases = cases();
    // The head of each table, and the shells.
    assert_eq!(rows.len(), cases.len() + 2 + SHELLS.len(), "{hint}");
    for (case, who) in &cases {
        let cells = rows
            .get(case.as_str())
            .unwrap_or_else(|| panic!("`{case}`: {hint}"));
        for (executor, cell) in EXECUTORS.iter().zip(cells) {
            assert_eq!(
                *cell != "-",
                who.contains(executor),
                "`{case}` of {executor}: {hint}"
            );
            assert!(
                !["", "not run", "FAILED"].contains(cell),
                "`{case}`: {hint}"
            );
        }
    }
    for (executor, tests) in beside() {
        let begin = format!("- {executor}: ");
        let mut lines = found.lines().filter_map(|line| line.strip_prefix(&begin));
        // Behind a name may stand how much it was, or why it was passed over.
        let name = |test: &str| test.split(" (").next().unwrap_or_default().to_owned();
        let named = lines.next().unwrap_or_default().split("; ").map(name);
        assert_eq!(named.collect::<Vec<_>>(), tests, "{hint}");
    }
    let wrapper = read("tests/exec_wrapper.rs");
    for shell in SHELLS {
        assert!(rows.contains_key(shell), "{shell}: {hint}");
        assert!(wrapper.contains(&format!("\"{}\"", shell.split(' ').next().unwrap())));
    }
}

/// Prints the table of what was run last. After a whole run (`DOE_WHOLE_RUN=1`) every case must have
/// said something.
#[test]
#[allow(clippy::print_stdout)] // the harness keeps it to itself unless it is asked
fn what_was_run() {
    let page = page();
    println!("{page}");
    if std::env::var_os("DOE_WHOLE_RUN").is_some() {
        let silent: Vec<&str> = page.lines().filter(|line| is_silent(line)).collect();
        assert!(
            silent.is_empty(),
            "no test has told of:\n{}",
            silent.join("\n")
        );
    }
}
