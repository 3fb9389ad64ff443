//! Secrets: the scripts get them and nothing keeps them. What is looked through is everything that
//! a build leaves and shows, the command line of every process, and all that a service is sent,
//! for the value itself and for its base64.

#[cfg(feature = "aws")]
mod aws_endpoint;
#[cfg(feature = "aws")]
#[path = "rig/cloud.rs"]
mod cloud;
mod rig;
#[cfg(feature = "aws")]
mod s3;
#[path = "rig/slurm.rs"]
mod slurm;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Ran, Workspace, wait_for};

const LONG: Duration = Duration::from_secs(300);
/// What is larger is the program that was shipped, under its digest.
const MOST_BYTES: u64 = 8 << 20;
const OLD: &str = "hf_kQ7vLr93xZpTw'2mBd\\8sYcNe";
const NEW: &str = "hf_w0t4te&Jd6fGh1kAz5uRo9iPq";

const RULES: &str = r#"
[one]
param.n = { type = "int", default = 1, doc = "which" }
roles = { first = {} }
[[one.service]]
name = "server"
role = "first"
stop_grace = "1s"
ready = { file = "{{ work }}/up", within = "2m" }
run = """
echo "serving with $HF_TOKEN"
printf %s "$HF_TOKEN" > SCRATCH/server
touch {{ work }}/up
while sleep 0.1; do :; done
"""
[[one.step]]
name = "go"
role = "first"
timeout = "10m"
run = """
echo "fetching with $HF_TOKEN, $HF_TOKEN" >&2
echo "and other words"
printf %s "$HF_TOKEN" > SCRATCH/step
while ! test -e SCRATCH/go; do sleep 0.05; done
printf %s "$HF_TOKEN"
echo '{"schema": "t-v1", "got": '{{ n }}'}' > {{ out.result }}
"""
[one.output]
result = { path = "r.json", schema = "t-v1" }
[one.metric]
got = { from = "result", at = "/got", unit = "" }

[sum]
kind = "analysis"
[[sum.step]]
name = "sum"
timeout = "1m"
run = "echo ${HF_TOKEN-nothing}; cp {{ inputs }} {{ out.result }}"
[sum.output]
result = { path = "s.json" }
"#;

fn lab(platform: &str) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rules = RULES.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rules);
    workspace.write(
        "plans/p.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"A\"\nrule = \"t.one\"\npattern = \"a\"\n\
         [[layer]]\nid = \"S\"\nrule = \"t.sum\"\npattern = \"s\"\nneeds = [\"A\"]\n",
    );
    let text = format!(
        "[workspace]\nplatform = \"lab\"\n[platform.lab]\nsecrets = [\"HF_TOKEN\"]\n{platform}"
    );
    workspace.write("doe.toml", &text);
    workspace
}

const HERE: &str = "roles = { \"*\" = \"h\" }\n[platform.lab.host.h]\naddress = \"127.0.0.1\"\n";

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for block in bytes.chunks_exact(3) {
        let bits = usize::from(block[0]) << 16 | usize::from(block[1]) << 8 | usize::from(block[2]);
        text.extend((0..4).map(|at| char::from(LETTERS[bits >> (18 - 6 * at) & 63])));
    }
    text
}

/// What a text may not hold: the value, and what its base64 holds whatever stands before it.
fn traces(value: &str) -> Vec<Vec<u8>> {
    let plain = value.as_bytes();
    let mut all = vec![plain.to_vec()];
    all.extend((0..3).map(|skip| base64(&plain[skip..]).into_bytes()));
    // As it is quoted for a shell, and as it stands in JSON.
    all.push(value.replace('\'', r"'\''").into_bytes());
    all.push(value.replace('\\', r"\\").into_bytes());
    all
}

fn holds(text: &[u8], value: &str) -> bool {
    let found = |trace: &Vec<u8>| text.windows(trace.len()).any(|window| window == &trace[..]);
    traces(value).iter().any(found)
}

/// Files below a folder that hold the value, whatever they are.
fn files_with(folder: &Path, value: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), value));
        } else if kind.is_file() && entry.metadata().unwrap().len() < MOST_BYTES {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            if holds(&text, value) {
                found.push(entry.path());
            }
        }
    }
    found
}

fn command_lines_with(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let text = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if holds(&text, value) {
            found.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
    found
}

/// Does something while the arguments of all processes are looked at, over and over.
fn nobodys_argument<T>(value: &str, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut found = Vec::new();
            while !over.load(Ordering::Relaxed) {
                found.extend(command_lines_with(value));
                std::thread::sleep(Duration::from_millis(10));
            }
            found
        });
        let done = catch_unwind(AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        assert_eq!(looking.join().unwrap(), Vec::<String>::new());
        done.unwrap_or_else(|why| resume_unwind(why))
    })
}

fn doe(workspace: &Workspace, args: &[&str], value: Option<&str>) -> Ran {
    let mut command = workspace.command(args);
    match value {
        Some(value) => command.env("HF_TOKEN", value),
        None => command.env_remove("HF_TOKEN"),
    };
    let ran = Ran::of(args, command.output().unwrap());
    for told in [&ran.stdout, &ran.stderr] {
        let shown = [OLD, NEW].iter().any(|value| holds(told.as_bytes(), value));
        assert!(!shown, "{args:?} tells it:\n{told}");
    }
    ran
}

/// Builds with a secret; while the step runs `hosts` are the folders of what runs.
fn build(workspace: &Workspace, hosts: &[PathBuf]) -> Ran {
    nobodys_argument(OLD, || build_looked_at(workspace, hosts))
}

fn build_looked_at(workspace: &Workspace, hosts: &[PathBuf]) -> Ran {
    let mut command = workspace.command(&["build", "//p:all", "--json"]);
    let out = |name: &str| std::fs::File::create(workspace.path().join(name)).unwrap();
    let mut child = command
        .env("HF_TOKEN", OLD)
        .stdout(out("stdout.txt"))
        .stderr(out("stderr.txt"))
        .spawn()
        .unwrap();
    let seen = |name: &str| {
        let text = std::fs::read_to_string(workspace.path().join("scratch").join(name));
        text.is_ok_and(|text| text == OLD).then_some(())
    };
    wait_for("the service to see it", LONG, || seen("server"));
    wait_for("the step to see it", LONG, || seen("step"));
    // What scripts print is theirs until it is taken over; nothing else has it, while they run.
    let state = workspace.path().join(".doe");
    for folder in hosts.iter().chain([&state]) {
        let mut with = files_with(folder, OLD);
        with.retain(|path| !path.ends_with("stdout") && !path.ends_with("stderr"));
        assert_eq!(with, Vec::<PathBuf>::new());
    }
    doe(workspace, &["jobs"], Some(OLD)).ok();
    workspace.write("scratch/go", "");
    let ended = child.wait().unwrap();
    let mut ran = Ran::of_files(workspace);
    ran.code = ended.code().unwrap_or(-1);
    let ran = ran.ok();
    assert_eq!(ran.summary()["ok"], 2);
    for told in [&ran.stdout, &ran.stderr] {
        assert!(!holds(told.as_bytes(), OLD), "{told}");
    }
    // Nothing is left of it anywhere, logs and the folders on hosts included.
    for folder in hosts.iter().chain([&state]) {
        assert_eq!(files_with(folder, OLD), Vec::<PathBuf>::new());
    }
    ran
}

/// The logs have masks as long as the value where it stood.
fn assert_masked(workspace: &Workspace) {
    let log = |name: &str| {
        let asked = ["logs", "//p:a", "--log", name];
        doe(workspace, &asked, None).ok().stdout
    };
    let mask = format!("{:*<1$}", "[secret HF_TOKEN]", OLD.len());
    assert_eq!(
        log("step-go.stderr"),
        format!("fetching with {mask}, {mask}\n")
    );
    assert_eq!(
        log("step-go.stdout").trim_end(),
        format!("and other words\n{mask}")
    );
    assert_eq!(
        log("service-server.stdout"),
        format!("serving with {mask}\n")
    );
    // Analyses get none.
    let asked = ["logs", "//p:s", "--log", "step-sum.stdout"];
    assert_eq!(doe(workspace, &asked, None).ok().stdout, "nothing\n");
}

#[test]
fn what_is_looked_for_would_be_found() {
    for before in ["", "x", "xy", "xyz"] {
        let text = format!("{before}{OLD} and more");
        assert!(holds(text.as_bytes(), OLD));
        assert!(holds(base64(text.as_bytes()).as_bytes(), OLD), "{before}");
    }
    assert!(!holds(b"hf_", OLD));
}

#[test]
fn scripts_see_a_secret_and_nothing_keeps_it() {
    let workspace = lab(HERE);
    build(&workspace, &[]);
    assert_masked(&workspace);
    for asked in [
        &["explain", "//p:a"][..],
        &["plan", "//p:all", "--json"],
        &["plan", "//p:all", "--rerun"],
        &["cache", "ls", "--json"],
        &["log", "show"],
        &["check"],
    ] {
        doe(&workspace, asked, Some(OLD));
    }
    // It is no part of what was measured: another one reruns nothing, and neither does none.
    for value in [Some(NEW), None] {
        let again = doe(&workspace, &["build", "//p:all", "--json"], value).ok();
        assert_eq!(again.summary()["reused"], 2, "{value:?}");
        assert_eq!(again.summary()["ok"], 0, "{value:?}");
    }
    // Nor is that there is one.
    workspace.replace("doe.toml", "secrets = [\"HF_TOKEN\"]\n", "", 1);
    let again = doe(&workspace, &["build", "//p:all", "--json"], None).ok();
    assert_eq!(again.summary()["reused"], 2);
    workspace.assert_nothing_runs();
}

#[test]
fn without_its_value_nothing_begins() {
    let workspace = lab(HERE);
    let mut command = workspace.command(&["build", "//p:all"]);
    command.env_remove("HF_TOKEN").env("HF_TOKENS", OLD);
    let ran = Ran::of(&["build"], command.output().unwrap()).exits(2);
    for told in [
        "`HF_TOKEN` is not set",
        "did you mean `HF_TOKENS`",
        "file =",
    ] {
        assert!(ran.stderr.contains(told), "{told}: {}", ran.stderr);
    }
    assert!(!holds(ran.stderr.as_bytes(), OLD));
    assert!(!workspace.path().join("scratch/server").exists());

    // From a file, without the line feed at its end.
    let from_file = "secrets = { HF_TOKEN = { file = \"token\" } }\n";
    workspace.replace("doe.toml", "secrets = [\"HF_TOKEN\"]\n", from_file, 1);
    let ran = doe(&workspace, &["build", "//p:all"], None).exits(2);
    assert!(ran.stderr.contains("cannot be read"), "{}", ran.stderr);
    for (value, why) in [("\r\n", "is empty"), ("hf_\0secret", "holds a NUL byte")] {
        workspace.write("token", value);
        let ran = doe(&workspace, &["build", "//p:all"], None).exits(2);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
    workspace.write("token", &format!("{OLD}\n"));
    workspace.write("scratch/go", "");
    doe(&workspace, &["build", "//p:all"], None).ok();
    assert_eq!(workspace.read("scratch/step"), OLD);
    let state = workspace.path().join(".doe");
    assert_eq!(files_with(&state, OLD), Vec::<PathBuf>::new());

    // What is in clear is told, without being told once more.
    let clear = format!("env = {{ HF_TOKEN = '{NEW}' }}\n");
    workspace.replace("doe.toml", from_file, &clear, 1);
    let checked = doe(&workspace, &["check"], None).ok();
    let told = checked.stdout + &checked.stderr;
    assert!(
        told.contains("clear-secret") && told.contains("secrets = ["),
        "{told}"
    );
}

#[test]
fn what_a_follow_up_is_known_to_bring_in_asks_for_the_value_too() {
    let workspace = lab(HERE);
    let followup = "[[layer]]\nid = \"L\"\nrule = \"t.one\"\npattern = \"more\"\nadhoc = true\nsettings = { n = 2 }\n\
                    [[followup]]\nid = \"up\"\npatterns = [\"L\"]\nwhen = \"got > 0\"\n";
    let plan = workspace.read("plans/p.toml") + followup;
    workspace.write("plans/p.toml", &plan);
    workspace.write("scratch/go", "");
    let first = ["build", "//p:all", "--no-followups", "--json"];
    let first = doe(&workspace, &first, Some(OLD)).ok();
    assert_eq!(first.summary()["ok"], 2);
    std::fs::remove_file(workspace.path().join("scratch/server")).unwrap();
    let ran = doe(&workspace, &["build", "//p:all"], None).exits(2);
    assert!(
        ran.stderr.contains("`HF_TOKEN` is not set"),
        "{}",
        ran.stderr
    );
    assert!(!workspace.path().join("scratch/server").exists());
    let ran = doe(&workspace, &["build", "//p:all", "--json"], Some(OLD)).ok();
    assert_eq!(ran.summary()["followups"], 1);
    // Nothing of it runs any more.
    let ran = doe(&workspace, &["build", "//p:all", "--json"], None).ok();
    assert_eq!(ran.summary()["reused"], 2);
}

/// Services that do not become ready, and that die under their users.
#[test]
fn what_a_service_printed_that_failed_is_masked_and_not_kept() {
    for (end, ready) in [
        ("exit 3", "never"),
        (
            "while ! test -e SCRATCH/step; do sleep 0.05; done; exit 3",
            "up",
        ),
    ] {
        let workspace = lab(HERE);
        let scratch = workspace.path().join("scratch");
        let end = end.replace("SCRATCH", scratch.to_str().unwrap());
        workspace.replace("rules/t.toml", "while sleep 0.1; do :; done", &end, 1);
        workspace.replace(
            "rules/t.toml",
            "{{ work }}/up\", within",
            &format!("{{{{ work }}}}/{ready}\", within"),
            1,
        );
        let ran = doe(&workspace, &["build", "//p:a", "--json"], Some(OLD));
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let log = ["logs", "//p:a", "--log", "service-server.stdout"];
        let log = doe(&workspace, &log, None).ok().stdout;
        assert!(log.contains("[secret HF_TOKEN]"), "{log}");
        let state = workspace.path().join(".doe");
        assert_eq!(files_with(&state, OLD), Vec::<PathBuf>::new(), "{ready}");
        workspace.assert_nothing_runs();
    }
}

/// What a killed build began and the next one does not want.
#[test]
fn what_a_killed_build_left_is_not_kept_as_it_was_printed() {
    let workspace = lab(HERE);
    let mut command = workspace.command(&["build", "//p:all"]);
    let command = command.env("HF_TOKEN", OLD);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the step to see it", LONG, || {
        let text = std::fs::read_to_string(workspace.path().join("scratch/step"));
        text.is_ok_and(|text| text == OLD).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    doe(&workspace, &["cancel", "--all"], None).ok();
    let state = workspace.path().join(".doe");
    assert_eq!(files_with(&state, OLD), Vec::<PathBuf>::new());
    workspace.assert_nothing_runs();
}

#[test]
fn over_ssh_it_is_in_no_argument_and_in_no_folder_that_stays() {
    if rig::skipped() {
        return;
    }
    let hosts = rig::Hosts::up(2, None);
    let root = hosts.dir().join("roots");
    let workspace = lab(&format!(
        "executor = \"ssh\"\nssh = {{ config = \"{}\", root = \"{}\", patience = \"60s\" }}\n\
         roles = {{ \"*\" = \"{}\" }}\n[platform.lab.host.\"{}[1-2]\"]\naddress = \"{}[1-2]\"\nssh = \"{}[1-2]\"\n",
        hosts.config().display(),
        root.join("%w").display(),
        hosts.name(1),
        hosts.prefix,
        hosts.address(0).trim_end_matches('0'),
        hosts.prefix,
    ));
    build(&workspace, &[root]);
    assert_masked(&workspace);
}

#[test]
fn over_slurm_it_is_in_no_job_and_in_no_folder_that_stays() {
    if rig::skipped() {
        return;
    }
    let slurm = slurm::Slurm::up(2);
    let shared = slurm.hosts.dir().join("shared");
    let workspace = lab(&format!(
        "executor = \"slurm\"\nroles = {{ \"*\" = \"{}\" }}\n\
         slurm = {{ config = \"{}\", root = \"{}\", partition = \"debug\", patience = \"60s\" }}\n\
         [platform.lab.host.\"{}[1-2]\"]\naddress = \"{}[1-2]\"\n",
        slurm.hosts.name(1),
        slurm.config().display(),
        shared.join("%w").display(),
        slurm.hosts.prefix,
        slurm.hosts.address(0).trim_end_matches('0'),
    ));
    build(&workspace, &[shared]);
    assert_masked(&workspace);
    let jobs = slurm.ask("scontrol", &["show", "job", "-d"]);
    assert!(!jobs.is_empty() && !holds(jobs.as_bytes(), OLD), "{jobs}");
}

#[cfg(feature = "aws")]
#[test]
fn over_ssm_the_service_never_has_it() {
    if rig::skipped() {
        return;
    }
    let cloud = cloud::Cloud::up(None);
    let root = cloud.hosts.dir().join("roots");
    let (one, two) = (cloud.hosts.name(1), cloud.hosts.name(2));
    let workspace = lab(&format!(
        "executor = \"ssm\"\nroles = {{ \"*\" = \"{one}\" }}\n\
         ssm = {{ region = \"us-east-1\", endpoint = \"{}\", s3_endpoint = \"{}\", bucket = \"s3://{}/hosts\", profile = \"lab\", credentials = \"{}\", tag = \"doe\", root = \"{}\", patience = \"60s\" }}\n\
         [platform.lab.host.{one}]\naddress = \"{}\"\n[platform.lab.host.{two}]\naddress = \"{}\"\n",
        cloud.endpoint.url(),
        cloud.s3_endpoint,
        s3::BUCKET,
        cloud.credentials().display(),
        root.join("%w").display(),
        cloud.hosts.address(1),
        cloud.hosts.address(2),
    ));
    build(&workspace, &[root]);
    assert_masked(&workspace);
    // Nothing of it is left on its way: neither in the bucket nor where the hosts unpack commands.
    let answers = cloud.s3.file("hosts/answers");
    let entries = std::fs::read_dir(&answers).into_iter().flatten().flatten();
    let inputs = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".in"));
    assert_eq!(inputs.count(), 0);
    assert_eq!(files_with(&answers, OLD), Vec::<PathBuf>::new());
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        // As `mktemp -d` names them.
        if entry.file_name().to_string_lossy().starts_with("tmp.") {
            assert_eq!(files_with(&entry.path(), OLD), Vec::<PathBuf>::new());
        }
    }
    let commands = cloud.endpoint.commands();
    assert!(
        commands
            .iter()
            .any(|command| command.comment.starts_with("doe:"))
    );
    for command in commands {
        // Base64 stands there in lines.
        let sent = command.commands.join("\n").replace('\n', "");
        assert!(!holds(sent.as_bytes(), OLD), "{}", command.comment);
        let sent = command.parameters.to_string();
        assert!(!holds(sent.as_bytes(), OLD), "{}", command.comment);
    }
}
