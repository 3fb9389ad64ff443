//! The wrapper by itself, as hosts without `doe` run it, under every POSIX shell that is
//! installed here: started with `setsid`, asked with `status`, ended with `end`.

// Its helpers stand in the suite of the executors.
mod conformance;
mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use conformance::{carriers, runs, token};
use doe::exec::folder::{self, Claim, Job, Record};
use doe::exec::{Exit, Script, Token};
use rig::told::Case;

/// One execution under one shell.
struct Execution {
    shell: &'static [&'static str],
    dir: tempfile::TempDir,
    token: Token,
}

const SHELLS: [&[&str]; 5] = [
    &["/bin/sh"],
    &["dash"],
    &["bash", "--posix"],
    &["busybox", "sh"],
    &["mksh"],
];

/// Runs a test under a shell, where it is installed; `/bin/sh` must be.
fn under(shell: &'static [&'static str], test: impl Fn(&'static [&'static str])) {
    let told = Case::own(&format!("wrapper under {}", shell.join(" ")));
    let works = Command::new(shell[0])
        .args(&shell[1..])
        .args(["-c", "exit 5"])
        .output();
    if works.is_ok_and(|output| output.status.code() == Some(5)) {
        test(shell);
    } else {
        assert_ne!(shell, SHELLS[0], "there is no shell at all");
        let note = format!("SKIPPED: `{}` is not installed\n", shell[0]);
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        told.into_iter()
            .for_each(|told| told.skip("not installed here"));
    }
}

/// Runs a test under every shell there is, one after the other.
fn under_each_shell(test: impl Fn(&'static [&'static str])) {
    SHELLS.into_iter().for_each(|shell| under(shell, &test));
}

/// The same at one time, where a test mostly waits for time to pass.
fn under_all_shells(test: impl Fn(&'static [&'static str]) + Sync) {
    // What passes is told by the name of the thread.
    let name = std::thread::current().name().unwrap().to_owned();
    std::thread::scope(|scope| {
        for shell in SHELLS {
            let (test, thread) = (&test, std::thread::Builder::new().name(name.clone()));
            let spawned = thread.spawn_scoped(scope, move || under(shell, test));
            spawned.unwrap();
        }
    });
}

/// Waits for a condition, for a bounded time.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never came about: {what}");
}

impl Execution {
    fn new(shell: &'static [&'static str], text: &str, timeout: Option<Duration>) -> Self {
        let grace = Duration::from_secs(1);
        Self::within(tempfile::tempdir().unwrap(), shell, text, timeout, grace)
    }

    fn within(
        dir: tempfile::TempDir,
        shell: &'static [&'static str],
        text: &str,
        timeout: Option<Duration>,
        grace: Duration,
    ) -> Self {
        let token = token();
        let script = Script {
            name: "step".into(),
            text: text.into(),
            env: BTreeMap::from([("GIVEN".into(), "it's $(x)\n".into())]),
            work: dir.path().join("work folder"),
            timeout,
            log_cap_bytes: 64 * 1024,
            attached: false,
            ask: Default::default(),
        };
        let job = Job {
            token: &token,
            script: &script,
            grace,
            adopts: false,
        };
        for (name, content) in folder::files(&job).unwrap() {
            fs::write(dir.path().join(name), content).unwrap();
        }
        fs::write(dir.path().join("wrapper.sh"), folder::WRAPPER).unwrap();
        Self { shell, dir, token }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    /// `SHELL wrapper.sh ARGUMENTS` behind the words of `before`.
    fn command(&self, before: &[&str], arguments: &[&str]) -> Command {
        let words: Vec<&str> = before.iter().chain(self.shell).copied().collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(self.path("wrapper.sh"))
            .arg(arguments[0])
            .arg(self.dir.path())
            .args(&arguments[1..])
            .env_remove("DOE_TOKEN")
            .stdin(Stdio::null());
        command
    }

    fn start(&self) -> Child {
        self.command(&["setsid"], &["run"]).spawn().unwrap()
    }

    fn run(&self) -> Exit {
        assert!(
            self.start().wait().unwrap().success(),
            "{}",
            self.read("wrapper.log")
        );
        self.record()
    }

    fn record(&self) -> Exit {
        match Record::read(self.dir.path()).unwrap() {
            Record::Whole(exit) => exit,
            other => panic!("{:?}: {other:?}: {}", self.shell, self.read("wrapper.log")),
        }
    }

    fn status(&self) -> String {
        let output = self.command(&[], &["status"]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    }

    fn end(&self, grace_ms: &str) {
        let status = self.command(&[], &["end", grace_ms]).status().unwrap();
        assert!(
            status.success(),
            "{:?}: {}",
            self.shell,
            self.read("wrapper.log")
        );
        assert_eq!(carriers(&self.token.0), [0; 0], "{:?}", self.shell);
    }

    /// Who made the claim; its file is there a moment before its line is.
    fn leader(&self) -> Claim {
        let claim = || Claim::read(self.dir.path()).unwrap();
        eventually("the claim is written", || claim().is_some());
        claim().unwrap()
    }

    fn number_in(&self, name: &str) -> u32 {
        eventually(name, || self.read(name).ends_with('\n'));
        self.read(name).trim().parse().unwrap()
    }
}

/// More than a busy host needs to let somebody end who heeds TERM.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tree that heeds no TERM, with a daemon that left the session.
const STUBBORN: &str = "cd \"${0%/*}\"; trap '' TERM
    sh -c 'trap \"\" TERM; echo $$ >child; while :; do sleep 1001; done' &
    setsid sh -c 'trap \"\" TERM; echo $$ >daemon; while :; do sleep 1002; done' &
    while :; do sleep 1003; done\n";

#[test]
fn from_absent_to_running_to_exited() {
    under_each_shell(|shell| {
        let text =
            "cd \"${0%/*}\"; echo \"$GIVEN\"; while [ ! -e go ]; do sleep 0.02; done; exit 3";
        let execution = Execution::new(shell, text, None);
        assert_eq!(execution.status(), "absent\n");
        let mut child = execution.start();
        eventually("it runs", || execution.status().starts_with("running "));
        let leader = execution.leader().leader;
        assert_eq!(
            execution.status(),
            format!("running {} {}\n", leader.pid, leader.start_ticks)
        );
        assert_eq!(leader.pid, child.id());
        fs::write(execution.path("go"), b"").unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(execution.record().code, Some(3));
        let status = execution.status();
        let (first, record) = status.split_once('\n').unwrap();
        let age_cs = first.strip_prefix("exited ").unwrap();
        assert!(age_cs.parse::<u32>().is_ok(), "{first}");
        assert_eq!(Record::parse(record), Record::Whole(execution.record()));
        assert_eq!(execution.read("stdout"), "it's $(x)\n\n");
        assert_eq!(execution.read("wrapper.log"), "");
        // Everything in the folder is private.
        for entry in fs::read_dir(execution.dir.path()).unwrap().flatten() {
            use std::os::unix::fs::PermissionsExt;
            let name = entry.file_name().into_string().unwrap();
            if !["job", "env", "script", "wrapper.sh", "go"].contains(&name.as_str()) {
                let mode = entry.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o077, 0, "{name}");
            }
        }
    });
}

#[test]
fn codes_and_signals() {
    under_each_shell(|shell| {
        for (text, code, signal) in [
            ("true", Some(0), None),
            ("exit 255", Some(255), None),
            ("exit 128", Some(128), None),
            ("kill -9 $$", None, Some(9)),
            ("kill -15 $$", None, Some(15)),
            ("kill -2 $$", None, Some(2)),
            ("kill -10 $$", None, Some(10)),
            // A signal to the whole group reaches neither the wrapper nor its helpers.
            (
                "echo before; trap 'exit 4' TERM; kill 0; sleep 5",
                Some(4),
                None,
            ),
        ] {
            let execution = Execution::new(shell, text, Some(Duration::from_secs(100)));
            let exit = execution.run();
            assert_eq!(
                (exit.code, exit.signal),
                (code, signal),
                "{shell:?}: {text}"
            );
            if text.starts_with("echo") {
                assert_eq!(execution.read("stdout"), "before\n");
            }
        }
    });
}

#[test]
fn a_timeout_ends_the_tree() {
    under_all_shells(|shell| {
        let execution = Execution::new(shell, STUBBORN, Some(Duration::from_secs(8)));
        let mut child = execution.start();
        let pids = [execution.number_in("child"), execution.number_in("daemon")];
        assert!(pids.iter().all(|pid| runs(*pid)));
        assert!(child.wait().unwrap().success());
        let exit = execution.record();
        assert!(
            exit.timed_out && exit.signal == Some(9),
            "{shell:?}: {exit:?}"
        );
        assert_eq!(carriers(&execution.token.0), [0; 0]);
        assert!(!pids.iter().any(|pid| runs(*pid)));
    });
}

/// An execution that survives its last sign of life for this long.
fn leased(shell: &'static [&'static str], survive_cs: u32) -> Execution {
    let execution = Execution::new(shell, STUBBORN, None);
    let lease = folder::quote(&execution.path("the lease").display().to_string());
    let job = execution.read("job") + &format!("lease={lease}\nsurvive_cs={survive_cs}\n");
    fs::write(execution.path("job"), job).unwrap();
    execution
}

/// Hundredths of a second since boot.
fn uptime_cs() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ')
        .next()
        .unwrap()
        .replace('.', "")
        .parse()
        .unwrap()
}

#[test]
fn what_gets_no_sign_of_life_ends_itself() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    under_all_shells(|shell| {
        let execution = leased(shell, 500);
        let lease = execution.path(&format!("the lease.{}", boot.trim()));
        let mut child = execution.start();
        let daemon = execution.number_in("daemon");
        let begun = uptime_cs();
        while uptime_cs() < begun + 800 {
            fs::write(&lease, format!("{:<19}\n", uptime_cs())).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            assert!(execution.status().starts_with("running "), "{shell:?}");
        }
        // What is no sign: one from the future, half a one, and nothing.
        for text in ["99999999999999999\n", "12x\n", "\n", ""] {
            fs::write(&lease, text).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(child.wait().unwrap().success());
        assert!(!runs(daemon));
        assert_eq!(carriers(&execution.token.0), [0; 0], "{shell:?}");
        let status = execution.status();
        assert!(status.starts_with("lost nobody attended to it"), "{status}");
        assert!(!execution.record().timed_out);
    });
}

#[test]
fn what_was_stopped_in_the_middle_has_no_outcome() {
    let stop = |child: &Child, signal: &str| {
        let group = format!("-{}", child.id());
        let mut kill = Command::new("kill");
        assert!(
            kill.args([signal, "--", &group])
                .status()
                .unwrap()
                .success()
        );
    };
    under_all_shells(|shell| {
        let slow = "cd \"${0%/*}\"; echo >up; until [ -e go ]; do sleep 0.02; done";
        // It goes on for a while, ends just as it goes on, or was stopped for no time to speak of.
        let lost = "lost its host slept or all of it was stopped";
        for (stopped_ms, ends, gap, words) in [
            (6500, false, "gap_cs=500\n", lost),
            (6500, true, "gap_cs=500\n", lost),
            (200, true, "", "exited "),
        ] {
            let execution = Execution::new(shell, slow, Some(Duration::from_secs(100)));
            let job = execution.read("job") + gap;
            fs::write(execution.path("job"), job).unwrap();
            let mut child = execution.start();
            eventually("it runs", || execution.path("up").exists());
            // Its watcher wakes up again and again.
            std::thread::sleep(Duration::from_millis(2500));
            assert!(execution.status().starts_with("running "), "{shell:?}");
            stop(&child, "-STOP");
            std::thread::sleep(Duration::from_millis(stopped_ms));
            if ends {
                fs::write(execution.path("go"), b"").unwrap();
            }
            stop(&child, "-CONT");
            assert!(child.wait().unwrap().success());
            assert_eq!(carriers(&execution.token.0), [0; 0], "{shell:?}");
            let status = execution.status();
            assert!(status.starts_with(words), "{shell:?}, {ends}: {status}");
            assert!(!execution.record().timed_out);
        }
    });
}

/// It is none of the tree that is ended, and yet who says how that went.
#[test]
fn a_leader_that_its_script_stopped_says_that_its_time_is_over() {
    under_all_shells(|shell| {
        let stops = "kill -STOP $PPID; echo done";
        let execution = Execution::new(shell, stops, Some(Duration::from_secs(2)));
        let mut child = execution.start();
        eventually("its end is written down", || {
            matches!(Record::read(execution.dir.path()), Ok(Record::Whole(_)))
        });
        assert!(child.wait().unwrap().success());
        assert!(execution.record().timed_out, "{shell:?}");
        assert_eq!(carriers(&execution.token.0), [0; 0], "{shell:?}");
    });
}

#[test]
fn a_leader_that_is_killed_leaves_nothing_for_ever() {
    under_all_shells(|shell| {
        let execution = leased(shell, 500);
        let mut child = execution.start();
        execution.number_in("daemon");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(execution.status().starts_with("lost process "));
        eventually("everything is gone", || {
            carriers(&execution.token.0).is_empty()
        });
        assert!(execution.status().starts_with("lost process "));
    });
}

#[test]
fn what_is_being_thought_about_is_said_to_run_when_it_does() {
    under_each_shell(|shell| {
        let execution = leased(shell, 100_000);
        let mut child = execution.start();
        execution.number_in("daemon");
        let mark = |what: &str| fs::write(execution.path(".late"), what).unwrap();
        mark("2");
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| execution.status());
            std::thread::sleep(Duration::from_millis(200));
            assert!(!asked.is_finished());
            mark("0");
            assert!(asked.join().unwrap().starts_with("running "));
            mark("3");
            assert!(execution.status().starts_with("lost nobody attended"));
            mark("0");
        });
        execution.end("0");
        child.wait().unwrap();
    });
}

#[test]
fn end_leaves_nothing_and_a_record() {
    under_each_shell(|shell| {
        let execution = Execution::new(shell, STUBBORN, None);
        let mut child = execution.start();
        let pids = [execution.number_in("child"), execution.number_in("daemon")];
        execution.end("100");
        assert!(!pids.iter().any(|pid| runs(*pid)));
        child.wait().unwrap();
        assert_eq!(execution.record().signal, Some(9));
        execution.end("100");

        let text =
            "trap 'sleep 0.1; echo tidied; exit 6' TERM; echo ready; while :; do sleep 0.02; done";
        let execution = Execution::new(shell, text, None);
        let mut child = execution.start();
        eventually("it is ready", || execution.read("stdout") == "ready\n");
        execution.end("60000");
        child.wait().unwrap();
        assert_eq!(execution.record().code, Some(6));
        assert_eq!(execution.read("stdout"), "ready\ntidied\n");
    });
}

#[test]
fn end_at_any_moment_of_the_start() {
    under_each_shell(|shell| {
        for round in 0..8 {
            let execution = Execution::new(shell, "sleep 1001", None);
            let mut child = execution.start();
            eventually("it is claimed", || {
                Claim::read(execution.dir.path()).unwrap().is_some()
            });
            std::thread::sleep(Duration::from_millis(round));
            execution.end("60000");
            child.wait().unwrap();
            assert_eq!(
                execution.record().signal,
                Some(15),
                "{shell:?}, round {round}"
            );
        }
    });
}

#[test]
fn a_killed_leader_is_lost_and_its_tree_can_be_ended() {
    under_each_shell(|shell| {
        let execution = Execution::new(shell, STUBBORN, Some(Duration::from_secs(600)));
        let mut child = execution.start();
        let pids = [execution.number_in("child"), execution.number_in("daemon")];
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            execution.status().starts_with("lost process "),
            "{}",
            execution.status()
        );
        assert!(pids.iter().all(|pid| runs(*pid)));
        execution.end("100");
        assert!(!pids.iter().any(|pid| runs(*pid)));
        assert!(execution.status().starts_with("lost process "));
    });
}

#[test]
fn the_second_start_changes_nothing() {
    under_each_shell(|shell| {
        let text = "cd \"${0%/*}\"; echo once >>count; while [ ! -e go ]; do sleep 0.02; done";
        let execution = Execution::new(shell, text, None);
        let mut starts: Vec<Child> = (0..6).map(|_| execution.start()).collect();
        eventually("five of them are gone", || {
            starts
                .iter_mut()
                .filter_map(|c| c.try_wait().unwrap())
                .count()
                == 5
        });
        let leader = execution.leader().leader.pid;
        fs::write(execution.path("go"), b"").unwrap();
        for mut start in starts {
            assert!(
                start.wait().unwrap().success(),
                "{}",
                execution.read("wrapper.log")
            );
        }
        assert_eq!(execution.leader().leader.pid, leader);
        assert_eq!(execution.read("count"), "once\n");
        assert_eq!(execution.record().code, Some(0));
        assert!(execution.start().wait().unwrap().success());
        assert_eq!(execution.read("count"), "once\n");
    });
}

#[test]
fn a_long_log_keeps_both_ends() {
    under_each_shell(|shell| {
        let execution = Execution::new(
            shell,
            "echo START; seq 1 1000000; echo END >&1; exit 9",
            None,
        );
        assert_eq!(execution.run().code, Some(9));
        let log = execution.read("stdout");
        assert!(
            log.len() <= 64 * 1024 && log.len() > 56 * 1024,
            "{shell:?}: {}",
            log.len()
        );
        assert!(log.starts_with("START\n1\n2\n") && log.ends_with("999999\n1000000\nEND\n"));
        assert_eq!(log.matches(" bytes or a few more were cut here").count(), 1);
        assert_eq!(execution.read("stderr"), "");
        let left: Vec<_> = fs::read_dir(execution.dir.path())
            .unwrap()
            .flatten()
            .map(|e| e.file_name().into_string().unwrap())
            .filter(|n| n.contains("cut") || n.contains("tail") || n == ".out" || n == ".err")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

/// A folder that is a file system of its own, with room for few files.
struct FewFiles(PathBuf);

impl FewFiles {
    fn mount() -> Option<(tempfile::TempDir, Self)> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                "size=4m,nr_inodes=64,mode=700",
                "tmpfs",
            ])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        let path = dir.path().to_owned();
        mounted
            .is_ok_and(|status| status.success())
            .then_some((dir, Self(path)))
    }

    /// Makes files until so many more fit.
    fn leave(&self, free: usize) {
        let filler = |number: usize| self.0.join(format!("filler{number}"));
        let count = (0..).find(|number| fs::write(filler(*number), b"").is_err());
        for number in (0..count.unwrap()).rev().take(free) {
            fs::remove_file(filler(number)).unwrap();
        }
    }
}

impl Drop for FewFiles {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// Says that a test was passed over for want of the right to mount.
fn cannot_mount() {
    let why = "no right to mount a small file system here";
    let note = format!("SKIPPED: {why}\n");
    std::io::stderr().write_all(note.as_bytes()).unwrap();
    for shell in SHELLS {
        let told = Case::own(&format!("wrapper under {}", shell.join(" ")));
        told.into_iter().for_each(|told| told.skip(why));
    }
}

#[test]
fn where_no_file_can_be_made_what_ran_has_its_record() {
    if FewFiles::mount().is_none() {
        return cannot_mount();
    }
    under_each_shell(|shell| {
        let (mut ran, mut without_times, mut whole) = (0, 0, 0);
        for free in 0..14 {
            let outside = tempfile::tempdir().unwrap();
            let mark = outside.path().join("ran");
            let (dir, disk) = FewFiles::mount().unwrap();
            let text = format!("echo >'{}'; exit 3", mark.display());
            let limit = Some(Duration::from_secs(100));
            let execution = Execution::within(dir, shell, &text, limit, PATIENCE);
            fs::create_dir(execution.path("work folder")).unwrap();
            disk.leave(free);
            execution.start().wait().unwrap();
            if mark.exists() {
                let exit = execution.record();
                assert_eq!(exit.code, Some(3), "{shell:?}: room for {free} files");
                ran += 1;
                without_times += usize::from(exit.cpu.is_none());
                whole += usize::from(exit.cpu.is_some());
            } else {
                assert_eq!(Record::read(execution.dir.path()).unwrap(), Record::Missing);
            }
        }
        assert!(ran < 14 && without_times > 0 && whole > 0, "{shell:?}");
    });
}

#[test]
fn where_no_file_can_be_made_what_runs_is_ended_all_the_same() {
    if FewFiles::mount().is_none() {
        return cannot_mount();
    }
    under_all_shells(|shell| {
        for limit in [Some(Duration::from_secs(8)), None] {
            let outside = tempfile::tempdir().unwrap();
            let mark = outside.path().join("ran");
            let (dir, disk) = FewFiles::mount().unwrap();
            let text = format!("echo >'{}'; sleep 1001", mark.display());
            let execution = Execution::within(dir, shell, &text, limit, PATIENCE);
            let mut child = execution.start();
            eventually("it runs", || mark.exists());
            disk.leave(0);
            match limit {
                Some(_) => assert!(child.wait().unwrap().success()),
                None => {
                    execution.end(&PATIENCE.as_millis().to_string());
                    child.wait().unwrap();
                }
            }
            let exit = execution.record();
            assert_eq!((exit.timed_out, exit.signal), (limit.is_some(), Some(15)));
        }
    });
}

#[test]
fn the_environment_is_made_clean_where_it_is_not() {
    under_each_shell(|shell| {
        let execution = Execution::new(shell, "env", None);
        let status = execution
            .command(&["setsid"], &["run"])
            .env("STRAY", "1")
            .env("LD_PRELOAD_NOT", "x")
            .env("IFS", "x")
            .status();
        assert!(status.unwrap().success());
        let log = execution.read("stdout");
        assert!(log.contains(&format!("DOE_TOKEN={}\n", execution.token.0)));
        assert!(log.contains("LANG=C.UTF-8\n") && log.contains("GIVEN=it's $(x)\n"));
        assert!(
            !log.contains("STRAY") && !log.contains("LD_PRELOAD") && !log.contains("LC_ALL"),
            "{log}"
        );
    });
}

#[test]
fn who_escapes_does_not_keep_the_end_from_being_written() {
    under_each_shell(|shell| {
        // Neither its session nor its environment nor its parents tell where it came from.
        let text = "cd \"${0%/*}\"
            env -i setsid /bin/sh -c 'echo $$ >escaped; exec /bin/sleep 1001' &
            while [ ! -s escaped ]; do sleep 0.02; done; echo done; exit 2";
        let execution = Execution::new(shell, text, None);
        let exit = execution.run();
        let escaped = execution.number_in("escaped");
        let still_there = runs(escaped);
        Command::new("/bin/sh")
            .args(["-c", &format!("kill -9 {escaped}")])
            .status()
            .unwrap();
        assert!(still_there, "the test lost its subject");
        assert_eq!(exit.code, Some(2));
        let log = execution.read("stdout");
        assert!(
            log.starts_with("done\n\n[doe: cut here: a process that got away"),
            "{log}"
        );
    });
}

#[test]
fn a_script_can_be_interrupted_even_where_its_starter_cannot() {
    let can_reset = Command::new("env")
        .args(["--default-signal=INT", "true"])
        .output();
    if !can_reset.is_ok_and(|output| output.status.success()) {
        use std::io::Write;
        std::io::stderr()
            .write_all(b"SKIPPED: env knows no --default-signal here\n")
            .unwrap();
        return;
    }
    under_each_shell(|shell| {
        let text = "sh -c 'kill -INT $$; echo not interrupted' || echo \"code $?\"";
        let execution = Execution::new(shell, text, None);
        let deaf = [
            "/bin/sh",
            "-c",
            "trap '' INT QUIT; exec setsid \"$@\"",
            "sh",
        ];
        assert!(
            execution
                .command(&deaf, &["run"])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(execution.read("stdout"), "code 130\n", "{shell:?}");
    });
}

#[test]
fn what_cannot_run_says_why() {
    under_each_shell(|shell| {
        // Not the leader of a session.
        let execution = Execution::new(shell, "true", None);
        let status = execution.command(&[], &["run"]).status().unwrap();
        assert_eq!(status.code(), Some(64));
        assert!(execution.read("wrapper.log").contains("setsid"));
        assert_eq!(execution.status(), "absent\n");
        // A file stands where the working folder should be.
        fs::write(execution.path("work folder"), b"").unwrap();
        let status = execution.start().wait().unwrap();
        assert_eq!(status.code(), Some(73));
        assert!(execution.read("wrapper.log").contains("working folder"));
        assert_eq!(execution.status(), "absent\n");
        // Nothing was started: there is nothing to end.
        execution.end("0");
        let usage = execution.command(&[], &["dance"]).output().unwrap();
        assert_eq!(usage.status.code(), Some(64));
    });
}

#[test]
fn facts_are_read_alike() {
    let mut seen = Vec::new();
    for shell in SHELLS {
        let execution = Execution::new(shell, "true", None);
        let Ok(output) = execution.command(&[], &["facts"]).output() else {
            continue;
        };
        let facts = folder::parse_facts(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(facts["boot_id"], doe::exec::procfs::boot_id());
        seen.push(facts);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}

#[test]
fn a_listener_is_seen_without_connecting() {
    under_each_shell(|shell| {
        let execution = Execution::new(shell, "true", None);
        let ask = |port: u16| {
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).arg(execution.path("wrapper.sh"));
            command
                .args(["listens", &port.to_string()])
                .status()
                .unwrap()
                .code()
        };
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let socket = std::net::TcpListener::bind(address).unwrap();
            let port = socket.local_addr().unwrap().port();
            assert_eq!(ask(port), Some(0), "{shell:?} {address}");
            drop(socket);
            assert_eq!(ask(port), Some(1), "{shell:?} {address}");
        }
    });
}

/// What is shipped to hosts is plain POSIX: what checks shell scripts finds nothing in the wrapper, and
/// in the others nothing but what is meant so.
#[test]
fn shellcheck_is_content() {
    let told = Case::own("scripts");
    if Command::new("shellcheck")
        .arg("--version")
        .output()
        .is_err()
    {
        let note = b"SKIPPED: shellcheck is not installed\n";
        std::io::stderr().write_all(note).unwrap();
        told.into_iter()
            .for_each(|told| told.skip("not installed here"));
        return;
    }
    let mut checked = 0;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "sh") {
                continue;
            }
            let mut check = Command::new("shellcheck");
            check.arg("--shell=sh").arg(&path);
            if !path.ends_with("wrapper.sh") {
                // `A && B || C` where B cannot fail or C is right then too; `$` that is another
                // shell's, or in a message; what a trap calls.
                check.arg("--exclude=SC2015,SC2016,SC2317,SC2329");
            }
            let output = check.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{}: {said}", path.display());
            checked += 1;
        }
    }
    assert!(checked >= 5, "{checked}");
}
