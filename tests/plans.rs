//! Whole workspaces through the loader: the shipped campaigns, and one golden file for every
//! finding that a plan can earn. A golden file is a list of files and what is said of them; with
//! `DOE_UPDATE_GOLDEN=1` the second part is written anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use doe::error::{Diagnostic, Error, Severity};
use doe::plan::model::Workspace;
use doe::plan::workspace::LoadOptions;

const INSTRUMENTS: [&str; 15] = [
    "analyze bimodality",
    "analyze proxy-overhead",
    "analyze tpot-separation",
    "measure openai",
    "parse fi_info",
    "parse fi_pingpong",
    "parse fi_rdm_bw",
    "parse fi_rdm_pingpong",
    "parse iperf3",
    "parse kvbench",
    "parse nccl-tests",
    "parse nixlbench",
    "parse nvidia-smi",
    "parse ucx_perftest",
    "proxy",
];

fn options(sets: Vec<(String, String)>) -> LoadOptions {
    LoadOptions {
        sets,
        known_instruments: INSTRUMENTS.map(str::to_owned).to_vec(),
        known_executors: vec!["local".to_owned()],
    }
}

/// A finding with everything that a user would see of it.
fn told(found: &Diagnostic) -> String {
    let severity = match found.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut out = format!("{severity}[{}]: {}\n", found.code, found.message);
    for (site, note) in &found.sites {
        let text = &site.file.text[site.range.clone()];
        let text = text.lines().next().unwrap_or_default();
        let _ = writeln!(out, "  at {} `{text}` {note}", site.short());
    }
    if let Some(label) = &found.label {
        let _ = writeln!(out, "  in {label}");
    }
    for hint in &found.hints {
        let _ = writeln!(out, "  hint: {hint}");
    }
    out.replace(" \n", "\n")
}

fn outcome(loaded: Result<Workspace, Error>) -> String {
    let (mut out, findings) = match loaded {
        Ok(workspace) => {
            let mut out = String::new();
            for plan in workspace.plans.values() {
                let _ = writeln!(out, "//{}: {} patterns", plan.package, plan.patterns.len());
            }
            (out, workspace.warnings)
        }
        Err(error) => (format!("{}: {error}\n", error.code), error.diagnostics),
    };
    for found in &findings {
        let _ = write!(out, "\n{}", told(found));
    }
    out
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan")
}

/// The files of a golden file by name, and what is expected.
fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("=== ") {
            sections.push((name.trim().to_owned(), String::new()));
        } else if let Some((_, body)) = sections.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    sections
}

fn run(sections: &[(String, String)]) -> String {
    let root = tempfile::tempdir().unwrap();
    let mut sets = Vec::new();
    let write = |name: &str, body: &str| {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    };
    write("doe.toml", "");
    write(
        "rules/lab.toml",
        &std::fs::read_to_string(golden_dir().join("lab.toml")).unwrap(),
    );
    for (name, body) in sections {
        match name.as_str() {
            "expected" => {}
            "set" => sets.extend(body.lines().filter(|line| !line.is_empty()).map(|line| {
                let (key, value) = line.split_once('=').unwrap();
                (key.to_owned(), value.to_owned())
            })),
            name => write(name, body.trim_end_matches('\n')),
        }
    }
    outcome(Workspace::load(root.path(), &options(sets)))
}

#[test]
fn every_finding_is_as_written_down() {
    let update = std::env::var_os("DOE_UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let mut seen = 0;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(golden_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    paths.sort();
    for path in paths {
        seen += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let sections = sections(&text);
        let found = run(&sections);
        let expected = sections.iter().find(|(name, _)| name == "expected");
        let expected = expected.map_or("", |(_, body)| body.as_str());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if update {
            let given = text.split("=== expected\n").next().unwrap_or(&text);
            let given = given.trim_end();
            std::fs::write(&path, format!("{given}\n\n=== expected\n{found}")).unwrap();
        } else if expected != found {
            wrong.push(format!(
                "{name}\n--- expected\n{expected}--- found\n{found}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 30, "golden files are missing: {seen}");
}

#[test]
fn the_shipped_campaigns_load() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doe.toml"), "").unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["plans", "rules"] {
        std::os::unix::fs::symlink(here.join(folder), root.path().join(folder)).unwrap();
    }
    let loaded = Workspace::load(root.path(), &options(Vec::new()));
    let workspace = match loaded {
        Ok(workspace) => workspace,
        Err(error) => panic!("{}", outcome(Err(error))),
    };
    let count = |package: &str| workspace.plans[package].patterns.len();
    assert_eq!((count("phase1"), count("phase2")), (128, 50));
    let phase2 = &workspace.plans["phase2"];
    let analysis = phase2
        .patterns
        .iter()
        .find(|pattern| pattern.label.name() == "p2-analysis-tpot-separation")
        .unwrap();
    assert_eq!(analysis.needs.len(), 24);
    let long = phase2
        .patterns
        .iter()
        .find(|pattern| pattern.label.name() == "p2-efa-128k-c1")
        .unwrap();
    assert_eq!(
        long.settings.value("max_model_len"),
        Some(&doe_cache::Value::Int(131_200))
    );
    assert_eq!(long.gate.len(), 3);
    assert_eq!(phase2.layers[2].alias.as_deref(), Some("L2"));
}
