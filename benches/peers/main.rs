//! `doe` beside ninja and make (and samurai and n2 where `SAMU` and `N2` name their binaries) on
//! the same graph in the same run: nothing to do, one node edited, memory, ten thousand trivial
//! actions from scratch; and the check of the shipped plans. Prints medians, and for each bar one
//! line `bar NAME VALUE goal <= GOAL`.
//!
//! Run: `cargo bench --bench peers -- [SIZE...]` (1000 10000 100000 when none is named; `scratch`
//! among them adds the build from scratch at 10,000). `DOE` names another `doe` to measure,
//! `ROUNDS` the number of rounds.

#![allow(clippy::print_stdout)]

mod clock;
mod dag;
mod fill;

use std::path::Path;

use clock::{Tool, median};
use dag::Dag;

/// At most this share of the fastest peer with nothing to do, by number of tasks.
const NULL_BARS: [(usize, f64); 3] = [(1_000, 1.0), (10_000, 0.5), (100_000, 0.2)];
const EDIT_BAR: (usize, f64) = (100_000, 0.5);
const MEMORY_BAR_MIB: (usize, f64) = (100_000, 300.0);
const SCRATCH_BAR: (usize, f64) = (10_000, 1.5);
const SCRATCH_ROUNDS: usize = 3;
const CHECK_BAR_MS: f64 = 50.0;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let scratch = words.iter().any(|word| word == "scratch");
    let mut sizes: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = NULL_BARS.map(|(size, _)| size).to_vec();
    }
    let rounds = std::env::var("ROUNDS").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(7);
    let doe = std::env::var("DOE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_doe").to_owned());
    let peers = peers();
    // Removed when all is measured: where many files were removed within the last minutes ext4 makes
    // new ones slowly.
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
    check(&doe, rounds);
    if scratch && let Err(error) = from_scratch(&doe, &peers, folder.path()) {
        panic!("from scratch: {error}");
    }
    for size in sizes {
        if let Err(error) = measure(&doe, &peers, size, rounds, folder.path()) {
            panic!("at {size} tasks: {error}");
        }
    }
}

/// Name and program of every peer at hand.
fn peers() -> Vec<(&'static str, String)> {
    let found = |name: &'static str, variable: &str, fallback: Option<&str>| {
        let program = std::env::var(variable).ok();
        let program = program.or_else(|| {
            let there = std::env::var_os("PATH")?;
            let mut folders = std::env::split_paths(&there);
            folders.find_map(|folder| {
                let path = folder.join(fallback?);
                path.is_file().then(|| path.display().to_string())
            })
        });
        match &program {
            None => println!("peer {name}: not at hand (`{variable}` can name it)"),
            Some(program) => println!("peer {name}: {program}"),
        }
        program.map(|program| (name, program))
    };
    let peers: Vec<_> = [
        found("ninja", "NINJA", Some("ninja")),
        found("make", "MAKE", Some("make")),
        found("samurai", "SAMU", None),
        found("n2", "N2", None),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(
        !peers.is_empty(),
        "without a peer there is nothing to hold against"
    );
    peers
}

fn tool<'a>(name: &'a str, program: &'a str, words: &[&str], dir: &'a Path) -> Tool<'a> {
    Tool {
        name,
        program,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        dir,
    }
}

fn peer<'a>(name: &'a str, program: &'a str, dir: &'a Path) -> Tool<'a> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = format!("-j{cores}");
    match name {
        "make" => tool(name, program, &["-s", &jobs, "all"], dir),
        "ninja" => tool(name, program, &["--quiet", &jobs], dir),
        _ => tool(name, program, &[&jobs], dir),
    }
}

fn bar(name: &str, value: f64, goal: f64) {
    println!("bar {name} {value:.3} goal <= {goal}");
}

/// What was measured is measured side by side: each tool once a round.
fn side_by_side(tools: &[Tool<'_>], rounds: usize) -> Vec<f64> {
    let mut times = vec![Vec::new(); tools.len()];
    for _ in 0..rounds {
        for (tool, times) in tools.iter().zip(&mut times) {
            times.push(tool.time_ms());
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

fn measure(
    doe: &str,
    peers: &[(&'static str, String)],
    size: usize,
    rounds: usize,
    folder: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = folder.join(size.to_string());
    let dag = Dag::new(size);
    let ours = root.join("doe");
    dag.write_workspace(&ours, "a")?;
    fill::fill(&ours)?;
    let dirs: Vec<_> = peers.iter().map(|(name, _)| root.join(name)).collect();
    let mut tools = vec![tool("doe", doe, &["build", "//..."], &ours)];
    for ((name, program), dir) in peers.iter().zip(&dirs) {
        match *name {
            "make" => dag.write_make(dir)?,
            _ => dag.write_ninja(dir)?,
        }
        tools.push(peer(name, program, dir));
    }
    // Once from scratch, and once more: some tools settle their state then.
    for tool in &tools {
        let first = tool.time_ms();
        let second = tool.time_ms();
        println!(
            "{size}: {} first {first:.1} ms, settles {second:.1} ms",
            tool.name
        );
    }
    let medians = side_by_side(&tools, rounds);
    for (tool, ms) in tools.iter().zip(&medians) {
        println!("{size}: {} nothing to do {ms:.2} ms", tool.name);
    }
    let fastest = medians[1..].iter().copied().fold(f64::INFINITY, f64::min);
    if let Some((_, goal)) = NULL_BARS.iter().find(|(at, _)| *at == size) {
        bar(&format!("null_build_{size}"), medians[0] / fastest, *goal);
    }

    let plan = tool("doe plan", doe, &["plan", "//..."], &ours);
    println!("{size}: doe plan nothing to do {:.2} ms", {
        let mut times: Vec<f64> = (0..rounds).map(|_| plan.time_ms()).collect();
        median(&mut times)
    });
    let mut times = Vec::new();
    let mut base = Vec::new();
    for round in 0..rounds {
        dag.write_plan(&ours, &format!("edited{round}"))?;
        times.push(plan.time_ms());
        base.push(
            tools[1..]
                .iter()
                .map(Tool::time_ms)
                .fold(f64::INFINITY, f64::min),
        );
    }
    let (edited, base) = (median(&mut times), median(&mut base));
    println!("{size}: doe plan one node edited {edited:.2} ms, fastest peer's null {base:.2} ms");
    if size == EDIT_BAR.0 {
        bar(&format!("edit_planned_{size}"), edited / base, EDIT_BAR.1);
    }

    // Everything new to every cache but the store; nothing to do; and without any short cut.
    let anew = tool("doe plan", doe, &["plan", "//...", "--no-recall"], &ours);
    dag.write_plan(&ours, "b")?;
    let planned = plan.peak_mib();
    dag.write_plan(&ours, "a")?;
    let built = tools[0].peak_mib();
    let anew = anew.peak_mib();
    println!(
        "{size}: memory: plan after an edit {planned:.0} MiB, nothing to do {built:.0} MiB, all worked out anew {anew:.0} MiB"
    );
    if size == MEMORY_BAR_MIB.0 {
        let most = planned.max(built).max(anew);
        bar(&format!("memory_mib_{size}"), most, MEMORY_BAR_MIB.1);
    }
    Ok(())
}

/// Every action executed and recorded durably, against the fastest peer that keeps no records.
fn from_scratch(
    doe: &str,
    peers: &[(&'static str, String)],
    folder: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let (size, goal) = SCRATCH_BAR;
    let dag = Dag::new(size);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); peers.len() + 1];
    // In turns, so that a machine that slows down does so for all of them.
    for round in 0..SCRATCH_ROUNDS {
        for (at, (name, program)) in peers.iter().enumerate() {
            let dir = folder.join(format!("{name}-{round}"));
            match *name {
                "make" => dag.write_make(&dir)?,
                _ => dag.write_ninja(&dir)?,
            }
            times[at].push(peer(name, program, &dir).time_ms());
        }
        let dir = folder.join(format!("doe-{round}"));
        dag.write_workspace(&dir, "a")?;
        // By itself it has one more under way than there are cores, which is best for it, where
        // ninja is the slower for it.
        times[peers.len()].push(tool("doe", doe, &["build", "//..."], &dir).time_ms());
    }
    let mut medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
    let names = peers.iter().map(|(name, _)| *name).chain(["doe"]);
    for (name, ms) in names.zip(&medians) {
        println!("{size}: {name} from scratch {ms:.0} ms");
    }
    let doe_ms = medians.pop().unwrap_or(f64::NAN);
    let fastest = medians.into_iter().fold(f64::INFINITY, f64::min);
    bar(&format!("from_scratch_{size}"), doe_ms / fastest, goal);
    Ok(())
}

fn check(doe: &str, rounds: usize) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = tool("doe check", doe, &["check", "//..."], repository);
    let mut times: Vec<f64> = (0..rounds).map(|_| check.time_ms()).collect();
    bar("check_shipped_plans_ms", median(&mut times), CHECK_BAR_MS);
}
