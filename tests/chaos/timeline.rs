//! One timeline: the steps of a script, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::hold::Done;
use crate::power::Disk;
use crate::script::{OTHERS, STEPS, Script, Step, What};
use crate::support::Workspace;
use crate::world::{self, Edit, State};

pub const PAUSE: &str = "0.03";
/// Exit codes that a build may have when it is disturbed: node failed, infrastructure, lock held,
/// integrity, interrupted; -1 when it was killed. Never a usage error and never a bug.
pub(super) const DISTURBED: [i32; 7] = [0, 1, 4, 5, 7, 130, -1];

/// How many builds had a step or a service killed.
pub static KILLED: AtomicUsize = AtomicUsize::new(0);

pub struct Timeline {
    pub(super) workspace: Workspace,
    /// A file outside the workspace, which no disturbance reaches.
    pub(super) ledger: PathBuf,
    pub(super) state: State,
    /// Ledger lines of results known to be stored.
    pub(super) done: BTreeMap<String, Done>,
    /// Records known to be stored.
    pub(super) records: BTreeSet<String>,
    told: Vec<String>,
    pub(super) disk: Option<Disk>,
    pub(super) dir: tempfile::TempDir,
}

/// Runs a script, or only its first steps; panics when something does not hold.
pub fn run(script: &Script, steps: usize) {
    let mut timeline = Timeline::new(script.on_disk);
    let mut at = 0;
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for step in script.steps.iter().take(steps) {
            at += 1;
            timeline.step(step);
        }
        if steps >= STEPS {
            at += 1;
            timeline.settle(script);
        }
    }));
    if let Err(why) = ran {
        let seed = script.seed;
        eprintln!("timeline {seed}:\n  {}", timeline.told.join("\n  "));
        let (only, place) = match at > STEPS {
            false => (
                format!("DOE_CHAOS_STEPS={at} "),
                format!("step {at}: {:?}", script.steps[at - 1].what),
            ),
            true => (String::new(), "after the last step".to_string()),
        };
        eprintln!(
            "replay: DOE_CHAOS_SEED={seed} {only}cargo test --locked --test chaos timelines # {place}"
        );
        std::panic::resume_unwind(why);
    }
}

impl Timeline {
    /// A workspace with the campaign in it, on a file system of its own if that is asked for and
    /// can be had.
    pub fn new(on_disk: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = on_disk.then(|| Disk::make(dir.path())).flatten();
        let under = disk.as_ref().map_or(dir.path(), Disk::path);
        let timeline = Self {
            workspace: Workspace::at(&under.join("w")),
            ledger: dir.path().join("ledger"),
            state: State::new(),
            done: BTreeMap::new(),
            records: BTreeSet::new(),
            told: Vec::new(),
            disk,
            dir,
        };
        timeline.write();
        timeline
    }

    pub(super) fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    pub(super) fn write(&self) {
        self.state.write(&self.workspace, &self.ledger, PAUSE);
    }

    fn step(&mut self, step: &Step) {
        self.tell(format!("{:?}", step.what));
        match &step.what {
            What::Edit(edit) => self.edit(*edit),
            What::Build => self.build(),
            What::KillDoe { after_ms } => self.killed_build(*after_ms),
            What::KillStep { after_ms } => self.kill_in_build(*after_ms, &is_step),
            What::KillService { after_ms, whole } => {
                let whole = *whole;
                self.kill_in_build(*after_ms, &|words| is_service(words, whole));
            }
            What::FaultyBuild { fault } => {
                let child = self.start(&[(doe_cache::fault::FAULT_VAR, fault)]);
                self.end(child);
            }
            What::TwoAtOnce { lag_ms, other } => self.two_at_once(*lag_ms, other),
            What::Collect => self.collect(),
            What::Clock { days } => self.clock_jumps(*days),
            What::Damage { kind, file, bit } => self.damage(kind, *file, *bit),
            What::Cut {
                kind,
                file,
                percent,
            } => self.cut(kind, *file, *percent),
            What::Rebuild(rebuild) => self.rebuild(rebuild),
            What::Carry { export, import } => self.carry(export, import),
            What::Care { care, fault } => self.care(care, fault),
            What::PowerCut { after_ms } => self.power_cut(*after_ms),
        }
        self.hold();
        if let Some(edit) = step.then {
            self.tell(format!("then {edit:?}"));
            self.edit(edit);
        }
    }

    pub(super) fn edit(&mut self, edit: Edit) {
        self.state.edit(edit);
        self.write();
    }

    /// What a build of everything ends with.
    pub(super) fn code(&self) -> i32 {
        i32::from(!self.state.is_good())
    }

    /// Names of the nodes that come to a number.
    pub(super) fn good(&self) -> BTreeSet<String> {
        let expected = self.state.expected().into_iter();
        let good = expected.filter(|(_, node)| node.value.is_some());
        good.map(|(name, _)| name).collect()
    }

    pub(super) fn standing(&self) -> BTreeSet<String> {
        world::reused(&self.workspace).into_keys().collect()
    }

    /// An undisturbed build ends as the definitions say.
    pub(super) fn build(&mut self) {
        let ran = self.workspace.doe(&["build", "//chaos:all"]);
        drop(ran.exits(self.code()));
        assert_eq!(self.standing(), self.good(), "what stands after a build");
    }

    pub(super) fn start(&self, more: &[(&str, &String)]) -> Child {
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
            assert_eq!(self.standing(), self.good(), "exit 0 and not all is stored");
        }
        code
    }

    fn killed_build(&mut self, after_ms: u64) {
        let mut child = self.start(&[]);
        std::thread::sleep(Duration::from_millis(after_ms));
        // Over already is fine.
        let _ = child.kill();
        self.end(child);
    }

    fn two_at_once(&mut self, lag_ms: u64, other: &[&str]) {
        let before = world::ledger(&self.ledger);
        let first = self.start(&[]);
        std::thread::sleep(Duration::from_millis(lag_ms));
        if other == OTHERS[0] {
            let second = self.start(&[]);
            let codes = [self.end(first), self.end(second)];
            assert!(codes.iter().any(|code| *code != 5), "both were refused");
        } else {
            let ran = self.workspace.doe(other);
            // It came to it, or was told that somebody else is at work.
            assert!([0, 5].contains(&ran.code), "{other:?}: {}", ran.stderr);
            let code = self.end(first);
            let ends = [self.code(), 5];
            assert!(
                ends.contains(&code),
                "a build beside {other:?} exits {code}"
            );
        }
        for (line, count) in world::ledger(&self.ledger) {
            // A build that began when the other had ended tries again what failed, and only that.
            let more = count - before.get(&line).copied().unwrap_or(0);
            let again = line.ends_with("fail") || line.ends_with("invalid");
            let most = if again { 2 } else { 1 };
            assert!(
                more <= most,
                "`{line}` was executed {more} times by two builds"
            );
        }
    }

    /// A build, and a while after its begin the end of the first that is such a process.
    fn kill_in_build(&mut self, after_ms: u64, is_one: &dyn Fn(&str) -> bool) {
        let mut child = self.start(&[]);
        std::thread::sleep(Duration::from_millis(after_ms));
        while child.try_wait().unwrap().is_none() {
            let killed = self.kill(is_one);
            if killed > 0 {
                self.tell(format!("  killed {killed}"));
                KILLED.fetch_add(1, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end(child);
    }

    /// Kills the processes of this workspace whose command line is such a one; how many.
    fn kill(&self, is_one: &dyn Fn(&str) -> bool) -> usize {
        let own = self.workspace.path().to_str().unwrap();
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let read = |what: &str| {
                let bytes = std::fs::read(entry.path().join(what)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let command = read("cmdline");
            if is_one(&command) && (command.contains(own) || read("environ").contains(own)) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let signal = rustix::process::Signal::KILL;
                killed += usize::from(rustix::process::kill_process(pid, signal).is_ok());
            }
        }
        killed
    }

    /// A collection never takes what stands for the campaign as it is written, and without limits
    /// it takes no record at all.
    fn collect(&mut self) {
        let before = self.standing();
        let dry = self.workspace.doe(&["cache", "gc", "--json"]).ok().json();
        assert_eq!(dry["records"], serde_json::json!([]));
        assert_eq!(self.standing(), before, "a dry run changed something");
        self.workspace.doe(&["cache", "gc", "--delete"]).ok();
        // It may be more than before: who writes takes in what a killed build left unindexed.
        let after = self.standing();
        assert!(
            after.is_superset(&before),
            "gc took what is in use: {before:?}, {after:?}"
        );
    }

    fn clock_jumps(&mut self, days: i64) {
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

    /// At the end: an undisturbed build, nothing left running, and what a clean build gives.
    pub(super) fn settle(&mut self, script: &Script) {
        self.tell("at last");
        self.build();
        self.hold();
        self.workspace.doe(&["cache", "verify"]).ok();
        self.rebuild(&script.last);
        self.hold();
        self.workspace.assert_nothing_runs();
        let clean = Workspace::empty();
        self.state.write(&clean, &clean.path().join("ledger"), "0");
        clean.doe(&["build", "//chaos:all"]).exits(self.code());
        assert_eq!(
            world::values(&self.workspace),
            world::values(&clean),
            "incremental against clean"
        );
    }
}

/// The pause in a step.
fn is_step(words: &str) -> bool {
    words.starts_with(&format!("sleep {PAUSE}"))
}

/// The program of a service, or everything of it.
fn is_service(words: &str, whole: bool) -> bool {
    words.contains(".service-tap-") && (whole || words.contains(" -eu "))
}
