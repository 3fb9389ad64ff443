//! Whole workspaces through the loader: the shipped campaigns, and one golden file for every
//! finding that a plan can earn. A golden file is a list of files and what is said of them; with
//! `DOE_UPDATE_GOLDEN=1` the second part is written anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use doe::error::{Diagnostic, Error, Severity};
use doe::plan::model::Workspace;
use doe::plan::workspace::LoadOptions;
use proptest::prelude::*;

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
        sim_profile: None,
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
    for hint in found.advice() {
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

/// A workspace with the rules of the golden files and these files.
fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let lab = std::fs::read_to_string(golden_dir().join("lab.toml")).unwrap();
    let given = [("doe.toml", ""), ("rules/lab.toml", lab.as_str())];
    for (name, body) in given.iter().chain(files) {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }
    root
}

fn run(sections: &[(String, String)]) -> String {
    let mut sets = Vec::new();
    let mut files = Vec::new();
    for (name, body) in sections {
        match name.as_str() {
            "expected" => {}
            "set" => sets.extend(body.lines().filter(|line| !line.is_empty()).map(|line| {
                let (key, value) = line.split_once('=').unwrap();
                (key.to_owned(), value.to_owned())
            })),
            name => files.push((name, body.trim_end_matches('\n'))),
        }
    }
    let root = workspace(&files);
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

#[test]
fn the_predecessors_plan_is_imported_and_loads() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doe.toml"), "").unwrap();
    std::os::unix::fs::symlink(here.join("rules"), root.path().join("rules")).unwrap();
    let args = doe::cli::import::Args {
        file: here.join("tests/data/predecessor-phase2.json"),
        out: Some("old".into()),
        force: false,
    };
    let mut told = Vec::new();
    let report =
        doe::cli::import::run(&args, false, root.path(), &options(Vec::new()), &mut told).unwrap();
    let plan = std::fs::read_to_string(root.path().join("plans/old.toml")).unwrap();
    let told = String::from_utf8(told).unwrap();
    // The first line names the folder of this test.
    let told = told.split_once('\n').unwrap().1;
    let loaded = Workspace::load(root.path(), &options(Vec::new()));
    let found = format!("{plan}\n=== told\n{told}\n=== loaded\n{}", outcome(loaded));
    let golden = golden_dir().join("../import-phase2.txt");
    if std::env::var_os("DOE_UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        found == expected,
        "the import differs from {golden:?}:\n{found}"
    );

    let by_layer: Vec<_> = report.by_layer.iter().map(|l| l.patterns).collect();
    assert_eq!((report.patterns, by_layer), (92, vec![8, 9, 14, 14, 3, 44]));
    let long = |item: &&doe::plan::import::Infeasible| {
        item.kind == doe::plan::import::Obstacle::Infeasible
    };
    let long: Vec<_> = report
        .infeasible
        .iter()
        .filter(long)
        .map(|i| i.id.as_str())
        .collect();
    assert_eq!(
        long,
        [
            "p2-efa-64k-c1",
            "p2-efa-64k-c4",
            "p2-efa-128k-c1",
            "p2-tcp-64k-c1",
            "p2-tcp-64k-c4",
            "p2-tcp-128k-c1"
        ]
    );
    let low_level = report
        .infeasible
        .iter()
        .filter(|item| item.id.starts_with("p2-ll-"));
    assert_eq!(low_level.count(), 44);
    for key in [
        "temperature",
        "streaming",
        "enable_prefix_caching",
        "nixl_backend",
        "requires_yarn",
    ] {
        assert!(
            report.dead_settings.iter().any(|dead| dead.key == key),
            "{key}"
        );
    }
}

/// A campaign of one layer, as a plan and as nested loops.
#[derive(Debug, Clone)]
struct Campaign {
    sizes: Vec<i64>,
    threads: Vec<i64>,
    limits: [Option<i64>; 3],
    overrides: Vec<(Condition, i64)>,
    keep: Option<Vec<Pick>>,
    drop: Vec<Pick>,
    set_threads: Option<i64>,
}

#[derive(Debug, Clone)]
struct Condition {
    of_size: bool,
    greater: bool,
    than: i64,
}

#[derive(Debug, Clone)]
enum Pick {
    Where(Condition),
    Cell(Option<i64>, Vec<i64>),
}

impl Condition {
    fn text(&self) -> String {
        let name = if self.of_size { "size" } else { "threads" };
        let sign = if self.greater { ">" } else { "==" };
        format!("{name} {sign} {}", self.than)
    }

    fn holds(&self, size: i64, threads: i64) -> bool {
        let value = if self.of_size { size } else { threads };
        if self.greater {
            value > self.than
        } else {
            value == self.than
        }
    }
}

impl Pick {
    fn text(&self) -> String {
        match self {
            Pick::Where(condition) => format!("{:?}", condition.text()),
            Pick::Cell(None, threads) => format!("{{ threads = {threads:?} }}"),
            Pick::Cell(Some(size), threads) => {
                format!("{{ threads = {threads:?}, size = {size} }}")
            }
        }
    }

    fn matches(&self, size: i64, threads: i64) -> bool {
        match self {
            Pick::Where(condition) => condition.holds(size, threads),
            Pick::Cell(of, among) => of.is_none_or(|of| of == size) && among.contains(&threads),
        }
    }
}

impl Campaign {
    fn plan(&self) -> String {
        let picks = |picks: &[Pick]| {
            let picks: Vec<_> = picks.iter().map(Pick::text).collect();
            format!("[{}]", picks.join(", "))
        };
        let [of_plan, of_layer, _] = self.limits;
        let mut out = "[plan]\nrules = [\"lab\"]\n".to_owned();
        if let Some(limit) = of_plan {
            let _ = writeln!(out, "[settings]\nlimit = {limit}");
        }
        out.push_str("[[layer]]\nid = \"L\"\nrule = \"lab.measure\"\npattern = \"{{ size }}-{{ threads }}\"\n");
        if let Some(limit) = of_layer {
            let _ = writeln!(out, "settings = {{ limit = {limit} }}");
        }
        let _ = writeln!(
            out,
            "[layer.matrix]\nsize = {:?}\nthreads = {:?}",
            self.sizes, self.threads
        );
        let _ = writeln!(out, "[layer.select]\ndrop = {}", picks(&self.drop));
        if let Some(keep) = &self.keep {
            let _ = writeln!(out, "keep = {}", picks(keep));
        }
        for (condition, limit) in &self.overrides {
            let _ = writeln!(
                out,
                "[[layer.override]]\nwhen = {:?}\nsettings = {{ limit = {limit} }}",
                condition.text()
            );
        }
        out
    }

    fn sets(&self) -> Vec<(String, String)> {
        let limit = self.limits[2].map(|limit| ("limit".to_owned(), limit.to_string()));
        let threads = self
            .set_threads
            .map(|t| ("threads".to_owned(), t.to_string()));
        limit.into_iter().chain(threads).collect()
    }

    /// Id and limit of every pattern, by nested loops.
    fn oracle(&self) -> Vec<(String, i64)> {
        let mut found = Vec::new();
        let threads = match self.set_threads {
            Some(threads) => vec![threads],
            None => self.threads.clone(),
        };
        for &size in &self.sizes {
            for &threads in &threads {
                let any = |picks: &[Pick]| picks.iter().any(|pick| pick.matches(size, threads));
                if any(&self.drop) || self.keep.as_ref().is_some_and(|keep| !any(keep)) {
                    continue;
                }
                let mut limit = 65536;
                for of in [self.limits[0], self.limits[1]] {
                    limit = of.unwrap_or(limit);
                }
                for (condition, of) in &self.overrides {
                    if condition.holds(size, threads) {
                        limit = *of;
                    }
                }
                limit = self.limits[2].unwrap_or(limit);
                found.push((format!("{size}-{threads}"), limit));
            }
        }
        found
    }
}

fn campaigns() -> impl Strategy<Value = Campaign> {
    let levels = || {
        proptest::collection::btree_set(1i64..9, 1..5)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>())
    };
    let limit = || proptest::option::of(100i64..200);
    let condition = || {
        (any::<bool>(), any::<bool>(), 0i64..9).prop_map(|(of_size, greater, than)| Condition {
            of_size,
            greater,
            than,
        })
    };
    let pick = || {
        prop_oneof![
            condition().prop_map(Pick::Where),
            (
                proptest::option::of(1i64..9),
                proptest::collection::vec(1i64..9, 1..4)
            )
                .prop_map(|(size, threads)| Pick::Cell(size, threads)),
        ]
    };
    let picks = move || proptest::collection::vec(pick(), 0..4);
    (
        levels(),
        levels(),
        [limit(), limit(), limit()],
        proptest::collection::vec((condition(), 100i64..200), 0..3),
        proptest::option::of(picks()),
        picks(),
        proptest::option::weighted(0.2, 1i64..9),
    )
        .prop_map(
            |(sizes, threads, limits, overrides, keep, drop, set_threads)| Campaign {
                sizes,
                threads,
                limits,
                overrides,
                keep,
                drop,
                set_threads,
            },
        )
}

/// A text with pieces cut out, doubled, swapped or written over.
fn damaged(text: &str, wounds: &[(u16, u8, u8)]) -> String {
    const SCRAPS: [&str; 12] = [
        "\"",
        "[",
        "]]",
        "{{",
        "}}",
        "=",
        "\n",
        " or ",
        "[[layer]]\n",
        "-1",
        "\u{e9}",
        "when = \"x\"\n",
    ];
    let mut text = text.to_owned();
    for (at, kind, length) in wounds {
        let mut start = usize::from(*at) * text.len() / (usize::from(u16::MAX) + 1);
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let mut end = (start + usize::from(*length)).min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let piece = text[start..end].to_owned();
        match kind % 3 {
            0 => text.replace_range(start..end, ""),
            1 => text.insert_str(end, &piece),
            _ => text.insert_str(start, SCRAPS[usize::from(*length) % SCRAPS.len()]),
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn expansion_is_nested_loops(campaign in campaigns()) {
        let root = workspace(&[("plans/p.toml", &campaign.plan())]);
        let loaded = Workspace::load(root.path(), &options(campaign.sets()));
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => panic!("{}\n{}", campaign.plan(), outcome(Err(error))),
        };
        let found: Vec<(String, i64)> = loaded.plans["p"].patterns.iter().map(|pattern| {
            let Some(doe_cache::Value::Int(limit)) = pattern.settings.value("limit") else {
                panic!("no limit");
            };
            (pattern.label.name().to_owned(), *limit)
        }).collect();
        prop_assert_eq!(found, campaign.oracle());
    }

    #[test]
    fn a_damaged_plan_is_told_and_never_panics(wounds in proptest::collection::vec((any::<u16>(), any::<u8>(), any::<u8>()), 1..6), which in 0usize..64) {
        let mut texts: Vec<PathBuf> = std::fs::read_dir(golden_dir()).unwrap().map(|e| e.unwrap().path()).collect();
        texts.sort();
        let text = std::fs::read_to_string(&texts[which % texts.len()]).unwrap();
        let plan = sections(&text).into_iter().find(|(name, _)| name == "plans/p.toml");
        let plan = plan.map_or_else(|| include_str!("../plans/phase2.toml").to_owned(), |(_, body)| body);
        let root = workspace(&[("plans/p.toml", &damaged(&plan, &wounds))]);
        if let Err(error) = Workspace::load(root.path(), &options(Vec::new())) {
            prop_assert!(error.diagnostics.iter().any(|d| d.severity == Severity::Error));
            for found in &error.diagnostics {
                prop_assert!(found.sites.iter().all(|(site, _)| site.file.text.get(site.range.clone()).is_some()));
            }
        }
    }
}
