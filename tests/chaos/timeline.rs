//! One timeline: steps drawn from a seed, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::support::Workspace;
use crate::world::{self, CELLS, Mode, State};

const PAUSE: &str = "0.03";
/// Steps of a timeline.
const STEPS: usize = 7;
/// Exit codes that a build may have when it is disturbed: node failed, infrastructure, lock held,
/// integrity, interrupted; -1 when it was killed. Never a usage error and never a bug.
pub(super) const DISTURBED: [i32; 7] = [0, 1, 4, 5, 7, 130, -1];

/// Draws from the seed.
pub(super) struct Random(ChaCha8Rng);

impl Random {
    pub(super) fn range(&mut self, range: std::ops::Range<i64>) -> i64 {
        let span = (range.end - range.start) as u64;
        range.start + (self.0.next_u64() % span) as i64
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64 <= probability
    }

    pub(super) fn choose<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.range(0..list.len() as i64) as usize]
    }
}

pub(super) struct Timeline {
    pub(super) workspace: Workspace,
    pub(super) state: State,
    pub(super) random: Random,
    /// Ledger lines of results known to be stored, with how often each was executed by then.
    done: BTreeMap<String, usize>,
    records: BTreeSet<String>,
    told: Vec<String>,
}

/// Runs the timeline of a seed; panics when something does not hold.
pub fn run(seed: u64) {
    let mut timeline = Timeline {
        workspace: Workspace::empty(),
        state: State::new(),
        random: Random(ChaCha8Rng::seed_from_u64(seed)),
        done: BTreeMap::new(),
        records: BTreeSet::new(),
        told: Vec::new(),
    };
    timeline.state.write(&timeline.workspace, PAUSE);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            timeline.step();
            timeline.hold();
        }
        timeline.settle();
    }));
    if let Err(why) = ran {
        eprintln!("timeline {seed}:\n  {}", timeline.told.join("\n  "));
        std::panic::resume_unwind(why);
    }
}

impl Timeline {
    pub(super) fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    fn step(&mut self) {
        match self.random.range(0..14) {
            0..2 => self.edit(),
            2 => {
                self.build();
            }
            3..6 => self.killed_build(),
            6..9 => self.faulty_build(),
            9 => self.two_builds(),
            10 => self.step_killed(),
            _ => match self.random.range(0..8) {
                0 => self.collect(),
                1 | 2 => self.damage(),
                3 => self.clock_jumps(),
                4 => self.rebuild(),
                5 => self.carry(),
                _ => self.faulty_care(),
            },
        }
        // What is disturbed is mostly a campaign that changes.
        if self.random.chance(0.5) {
            self.edit();
        }
    }

    fn edit(&mut self) {
        let cell = self.random.range(0..CELLS as i64) as usize;
        let what = match self.random.range(0..6) {
            0..3 => {
                self.state.cells[cell].0 = self.random.range(0..4);
                format!("c{cell} = {}", self.state.cells[cell].0)
            }
            3 => {
                let mode = *self
                    .random
                    .choose(&[Mode::Ok, Mode::Ok, Mode::Fail, Mode::Invalid]);
                self.state.cells[cell].1 = mode;
                format!("c{cell} is {mode:?}")
            }
            4 => {
                let at = self.random.range(0..self.state.sums.len() as i64) as usize;
                self.state.sums[at] = self.random.range(0..3);
                format!("s{at} adds {}", self.state.sums[at])
            }
            _ => {
                self.state.comment += 1;
                "a comment".to_string()
            }
        };
        self.tell(format!("edit: {what}"));
        self.state.write(&self.workspace, PAUSE);
    }

    /// An undisturbed build ends as the definitions say.
    fn build(&mut self) {
        self.tell("build");
        let ran = self.workspace.doe(&["build", "//chaos:all"]);
        let ran = ran.exits(if self.state.is_good() { 0 } else { 1 });
        drop(ran);
        let expected = self.state.expected();
        let good = expected.iter().filter(|(_, e)| e.value.is_some());
        let good: BTreeSet<String> = good.map(|(name, _)| name.clone()).collect();
        assert_eq!(
            world::reused(&self.workspace),
            good,
            "what stands after a build"
        );
    }

    fn start(&self, more: &[(&str, String)]) -> Child {
        let mut command = self.workspace.command(&["build", "//chaos:all"]);
        command.envs(more.iter().map(|(name, value)| (*name, value.as_str())));
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(super) fn end(&mut self, mut child: Child) -> i32 {
        let code = child.wait().unwrap().code().unwrap_or(-1);
        self.tell(format!("  exit {code}"));
        assert!(DISTURBED.contains(&code), "a disturbed build exits {code}");
        if code == 0 {
            assert!(self.state.is_good(), "exit 0 though a node must fail");
            let all = self.state.expected().len();
            assert_eq!(
                world::reused(&self.workspace).len(),
                all,
                "exit 0 and not all is stored"
            );
        }
        code
    }

    fn killed_build(&mut self) {
        let after_ms = self.random.range(0..500) as u64;
        self.tell(format!("build, kill -9 of doe after {after_ms} ms"));
        let mut child = self.start(&[]);
        std::thread::sleep(Duration::from_millis(after_ms));
        // Over already is fine.
        let _ = child.kill();
        self.end(child);
    }

    /// A point, one of its first passages, and what happens there.
    pub(super) fn fault(&mut self, passages: i64) -> String {
        let points = doe_cache::fault::Point::ALL;
        let points: Vec<&str> = points.iter().map(|p| p.as_str()).collect();
        let point = *self.random.choose(&points);
        let count = self.random.range(1..passages);
        let on = if self.random.chance(0.2) { "+" } else { "" };
        let kills = self.random.chance(0.7);
        let action = if kills { "kill" } else { "error" };
        format!("{point}:{count}{on}:{action}")
    }

    fn faulty_build(&mut self) {
        let fault = self.fault(12);
        self.tell(format!("build with DOE_FAULT={fault}"));
        let child = self.start(&[(doe_cache::fault::FAULT_VAR, fault)]);
        self.end(child);
    }

    fn two_builds(&mut self) {
        self.tell("two builds at once");
        let before = world::ledger(&self.workspace);
        let (first, second) = (self.start(&[]), self.start(&[]));
        let codes = [self.end(first), self.end(second)];
        assert!(codes.iter().any(|code| *code != 5), "both were refused");
        for (line, count) in world::ledger(&self.workspace) {
            // A build that began when the other had ended tries again what failed, and only that.
            let more = count - before.get(&line).copied().unwrap_or(0);
            let most = if line.ends_with("fail") || line.ends_with("invalid") {
                2
            } else {
                1
            };
            assert!(
                more <= most,
                "`{line}` was executed {more} times by two builds"
            );
        }
    }

    fn step_killed(&mut self) {
        self.tell("build, kill -9 of a step");
        let child = self.start(&[]);
        let needle = format!("sleep {PAUSE}").replace(' ', "\0");
        let own = self.workspace.path().to_str().unwrap().to_string();
        for _ in 0..100 {
            if kill_one(&needle, &own) {
                self.tell("  killed");
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end(child);
    }

    /// A collection never takes what stands for the campaign as it is written.
    fn collect(&mut self) {
        self.tell("gc");
        let before = world::reused(&self.workspace);
        let dry = self.workspace.doe(&["cache", "gc", "--json"]).ok();
        assert!(dry.json().is_object());
        assert_eq!(
            world::reused(&self.workspace),
            before,
            "a dry run changed something"
        );
        self.workspace.doe(&["cache", "gc", "--delete"]).ok();
        // It may be more than before: who writes takes in what a killed build left unindexed.
        let after = world::reused(&self.workspace);
        assert!(
            after.is_superset(&before),
            "gc took what is in use: {before:?}, {after:?}"
        );
        self.forget();
    }

    fn clock_jumps(&mut self) {
        let days = self.random.range(-400..400);
        self.tell(format!("build with the clock {days} days off"));
        let mut command = Command::new("faketime");
        command.arg("-f").arg(format!("{days:+}d"));
        command.arg(env!("CARGO_BIN_EXE_doe"));
        command
            .args(["build", "//chaos:all", "--workspace"])
            .arg(self.workspace.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .expect("`faketime` (Debian package faketime) is needed");
        self.end(child);
    }

    /// What is known to be done is taken anew from the store, after something took parts of it.
    pub(super) fn forget(&mut self) {
        self.done.clear();
        self.records.clear();
    }

    /// What must hold at any time.
    fn hold(&mut self) {
        let expected = self.state.expected();
        let ledger = world::ledger(&self.workspace);
        let reused = world::reused(&self.workspace);
        for (line, count) in &self.done {
            assert_eq!(
                ledger[line], *count,
                "`{line}` was stored and executed again"
            );
        }
        for (name, node) in &expected {
            let Some(line) = &node.line else {
                assert!(!reused.contains(name), "{name} stands on what does not");
                continue;
            };
            // Whether one whose needs are to run is found again shows only when they have run:
            // they may well give the numbers that they gave before.
            let is_known = node.needs.iter().all(|need| reused.contains(need));
            if is_known && self.done.contains_key(line) && node.value.is_some() {
                assert!(reused.contains(name), "`{line}` was stored and is lost");
            }
            if reused.contains(name) {
                assert!(node.value.is_some(), "{name} has no good result to reuse");
                self.done.entry(line.clone()).or_insert(ledger[line]);
            }
        }
        let values = world::values(&self.workspace);
        for name in &reused {
            assert_eq!(
                values.get(name),
                expected[name].value.as_ref(),
                "the number of {name}"
            );
        }
        let records = world::records(&self.workspace);
        let lost: Vec<_> = self.records.difference(&records).collect();
        assert!(lost.is_empty(), "records are gone: {lost:?}");
        self.records = records;
    }

    /// At the end: an undisturbed build, nothing left running, and the numbers of a clean build.
    fn settle(&mut self) {
        self.build();
        self.hold();
        self.workspace.doe(&["cache", "verify"]).ok();
        self.rebuild();
        self.workspace.assert_nothing_runs();
        let clean = Workspace::empty();
        self.state.write(&clean, "0");
        clean
            .doe(&["build", "//chaos:all"])
            .exits(if self.state.is_good() { 0 } else { 1 });
        assert_eq!(
            world::values(&self.workspace),
            world::values(&clean),
            "incremental against clean"
        );
    }
}

/// Kills one process whose command line and environment have these parts.
fn kill_one(command: &str, environment: &str) -> bool {
    let has = |text: &[u8], part: &str| text.windows(part.len()).any(|w| w == part.as_bytes());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let read = |what: &str| std::fs::read(entry.path().join(what)).unwrap_or_default();
        if has(&read("cmdline"), command) && has(&read("environ"), environment) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            return rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok();
        }
    }
    false
}
