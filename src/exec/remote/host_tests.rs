//! The host program beside a start that is broken off, taken back or given twice: whatever comes of
//! it, nothing that may hold secrets stays in the folder of the execution.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::greet::BOOTSTRAP;
use super::{PROGRAM, payload};
use crate::exec::files::sha256_of;
use crate::exec::folder::{self, Job, WRAPPER, write_private};
use crate::exec::secrets::NAMES_VARIABLE;
use crate::exec::{Script, Token};

const SECRET: &str = "hf_0123456789";

struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_private(&dir.path().join("host.sh"), PROGRAM.as_bytes()).unwrap();
        write_private(&dir.path().join("wrapper.sh"), WRAPPER.as_bytes()).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The folder of the execution.
    fn dir(&self) -> PathBuf {
        self.path("root/runs/t")
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Child {
        let mut program = Command::new("/bin/sh");
        program.arg(self.path("host.sh")).args(["n", "-", command]);
        program.arg(self.path("root")).args(arguments);
        program.stdin(Stdio::piped()).stdout(Stdio::piped());
        program.stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Begins to give a start with a secret; the last bytes of it are to come.
    fn half(&self, text: &str) -> (Child, ChildStdin, Vec<u8>) {
        let env = [(NAMES_VARIABLE, "HF_TOKEN"), ("HF_TOKEN", SECRET)];
        let script = Script {
            name: "step-go".into(),
            text: text.into(),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            work: self.path("work"),
            timeout: None,
            log_cap_bytes: 4096,
            attached: false,
            ask: Default::default(),
        };
        let job = Job {
            token: &Token("t".into()),
            script: &script,
            grace: Duration::from_secs(1),
            adopts: false,
        };
        let mut bytes = payload(&folder::files(&job).unwrap());
        let size = bytes.len().to_string();
        let wrapper = self.path("wrapper.sh");
        let mut child = self.run("start", &["t", wrapper.to_str().unwrap(), &size]);
        let rest = bytes.split_off(bytes.len() - 3);
        let mut input = child.stdin.take().unwrap();
        input.write_all(&bytes).unwrap();
        input.flush().unwrap();
        (child, input, rest)
    }

    fn start(&self, text: &str) -> Output {
        let (child, mut input, rest) = self.half(text);
        input.write_all(&rest).unwrap();
        drop(input);
        child.wait_with_output().unwrap()
    }

    fn revoke(&self) -> Output {
        let wrapper = self.path("wrapper.sh");
        let arguments = ["t", wrapper.to_str().unwrap(), "100"];
        self.run("revoke", &arguments).wait_with_output().unwrap()
    }

    fn secrets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir()).into_iter().flatten();
        let paths = entries.flatten().map(|entry| entry.path());
        let holds = |path: &PathBuf| {
            std::fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(SECRET))
        };
        paths.filter(|path| path.is_file() && holds(path)).collect()
    }
}

fn soon(what: &str, done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn exists(path: &Path) -> bool {
    path.exists()
}

#[test]
fn a_start_that_was_taken_back_on_its_way_leaves_nothing_to_read() {
    let host = Host::new();
    let (child, mut input, rest) = host.half("true");
    soon("it is on its way", || !host.secrets().is_empty());
    assert!(host.revoke().status.success());
    // What it has open it goes on to write.
    let _ = input.write_all(&rest);
    drop(input);
    child.wait_with_output().unwrap();
    assert_eq!(host.secrets(), Vec::<PathBuf>::new());
    assert!(!exists(&host.path("work")));
}

#[test]
fn what_a_start_left_that_was_broken_off_is_removed() {
    let host = Host::new();
    let (child, input, _) = host.half("true");
    soon("it is on its way", || !host.secrets().is_empty());
    drop(input);
    let told = child.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(why.contains("arrived in part"), "{why}");
    assert_eq!(host.secrets(), Vec::<PathBuf>::new());
    // Killed it could not do that: who takes it back does.
    let (mut child, input, _) = host.half("true");
    soon("it is on its way", || !host.secrets().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    drop(input);
    assert!(host.revoke().status.success());
    soon("nothing writes any more", || host.secrets().is_empty());
}

#[test]
fn a_second_start_points_to_the_first_and_leaves_nothing_to_read() {
    let host = Host::new();
    let (second, mut input, rest) = host.half("true");
    let text = format!(
        "while ! test -e '{}'; do sleep 0.02; done",
        host.path("go").display()
    );
    let first = String::from_utf8_lossy(&host.start(&text).stdout).into_owned();
    input.write_all(&rest).unwrap();
    drop(input);
    let second = second.wait_with_output().unwrap();
    assert!(second.status.success(), "{second:?}");
    assert_eq!(String::from_utf8_lossy(&second.stdout), first);
    std::fs::write(host.path("go"), "").unwrap();
    soon("it ends", || host.dir().join("exit").exists());
    assert_eq!(host.secrets(), Vec::<PathBuf>::new());
}

/// Its file is there before its line is, for longer than a moment where the host is busy.
#[test]
fn what_has_just_begun_is_waited_for_and_ended_when_it_is_taken_back() {
    let host = Host::new();
    let begun = host.start("while :; do sleep 0.02; done");
    assert!(begun.status.success(), "{begun:?}");
    let (claim, later) = (host.dir().join("pid"), host.dir().join("later"));
    std::fs::rename(&claim, &later).unwrap();
    std::fs::write(&claim, "").unwrap();
    std::thread::scope(|scope| {
        let revoked = scope.spawn(|| host.revoke());
        std::thread::sleep(Duration::from_secs(2));
        std::fs::rename(&later, &claim).unwrap();
        let told = revoked.join().unwrap();
        assert!(told.status.success(), "{told:?}");
        assert_eq!(told.stdout, begun.stdout);
    });
    assert!(host.dir().join("exit").exists(), "it was ended");
}

/// As long as what was sent, and something else: it is no script of anybody.
#[test]
fn a_start_that_was_damaged_on_its_way_begins_nothing() {
    let host = Host::new();
    let ran = host.path("ran");
    let (child, mut input, rest) = host.half(&format!("touch '{}' # end", ran.display()));
    let damaged: Vec<u8> = rest.iter().map(|byte| byte ^ 1).collect();
    input.write_all(&damaged).unwrap();
    drop(input);
    let told = child.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(why.contains("is not what was sent"), "{why}");
    assert_eq!(told.status.code(), Some(65));
    assert_eq!(host.secrets(), Vec::<PathBuf>::new());
    assert!(!exists(&ran) && !exists(&host.dir().join("pid")));
    // Sent once more it begins.
    let again = host.start(&format!("touch '{}'", ran.display()));
    assert!(again.status.success(), "{again:?}");
    soon("it ends", || host.dir().join("exit").exists());
    assert!(exists(&ran));
}

#[test]
fn a_folder_of_somebody_else_is_no_root() {
    if !rustix::process::geteuid().is_root() {
        let note = b"SKIPPED: nobody but root can give a folder away\n";
        std::io::stderr().write_all(note).unwrap();
        return;
    }
    let host = Host::new();
    let root = host.path("foreign");
    std::fs::create_dir(&root).unwrap();
    let greet = || {
        let mut shell = Command::new("/bin/sh");
        let words = ["host.sh", &sha256_of(PROGRAM.as_bytes()), "n"];
        shell.args(["-c", BOOTSTRAP, "doe"]).arg(&root).args(words);
        let mut child = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Whoever refuses does not read it.
        let _ = child.stdin.take().unwrap().write_all(PROGRAM.as_bytes());
        child.wait_with_output().unwrap()
    };
    let ours = greet();
    assert!(String::from_utf8_lossy(&ours.stdout).contains("doe-root n "));
    std::os::unix::fs::chown(&root, Some(12_345), None).unwrap();
    let theirs = greet();
    assert_eq!(theirs.status.code(), Some(73));
    assert!(String::from_utf8_lossy(&theirs.stderr).contains("belongs to somebody else"));
    assert!(!String::from_utf8_lossy(&theirs.stdout).contains("doe-root"));
    let why = folder::make_own(&root).unwrap_err();
    assert_eq!(why.code, "foreign-folder");
}
