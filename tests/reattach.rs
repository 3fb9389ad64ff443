//! `doe` is killed and comes back: what it had begun goes on and its result is taken, once.
//! Real binary, real processes; scripts wait for files, so nothing depends on the machine's pace.

mod support;

use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

use support::{Ran, Workspace, wait_for};

const LONG: Duration = Duration::from_secs(180);

const RULE: &str = r#"
[served]
param.n = { type = "int", default = 1, doc = "of the steps" }
roles = { first = {} }
[[served.service]]
name = "server"
role = "first"
ports = { http = 8000 }
stop_grace = "1s"
ready = { file = "{{ work }}/up", within = "1m" }
run = """
echo {{ self.port.http }} >> SCRATCH/server
echo serving
touch {{ work }}/up
while sleep 0.05; do :; done
"""
[[served.step]]
name = "one"
role = "first"
timeout = "10m"
run = "echo {{ n }} >> SCRATCH/one; echo first of {{ n }}; echo kept > {{ work }}/from-one"
[[served.step]]
name = "two"
role = "first"
timeout = "10m"
run = """
echo {{ n }} {{ service.server.port.http }} >> SCRATCH/two
echo second of {{ n }}
while ! test -e SCRATCH/go; do sleep 0.02; done
"""
[[served.step]]
name = "three"
role = "first"
timeout = "10m"
run = """
echo {{ n }} >> SCRATCH/three
cat {{ work }}/from-one
echo '{"schema": "t-v1", "got": '{{ n }}'}' > {{ out.result }}
"""
[served.output]
result = { path = "r.json", schema = "t-v1" }
[served.metric]
got = { from = "result", at = "/got", unit = "" }
"#;

/// A workspace with patterns `//t:p-N`, one a number.
fn served(survive: &str, patterns: &[u32]) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rule = RULE.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rule);
    workspace.write(
        "doe.toml",
        &format!(
            "[workspace]\nplatform = \"lab\"\nsurvive = \"{survive}\"\n[platform.lab]\ndynamic_ports = true\nroles = {{ \"*\" = \"h1\" }}\n[platform.lab.host.h1]\naddress = \"127.0.0.1\"\n"
        ),
    );
    plan(&workspace, patterns);
    workspace
}

fn plan(workspace: &Workspace, patterns: &[u32]) {
    let mut text = "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n".to_string();
    for n in patterns {
        text.push_str(&format!(
            "[[layer]]\nid = \"l{n}\"\nrule = \"t.served\"\npattern = \"p-{n}\"\nestimate = \"1s\"\nsettings = {{ n = {n} }}\n"
        ));
    }
    workspace.write("plans/t.toml", &text);
}

fn lines(workspace: &Workspace, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace.path().join("scratch").join(file));
    let text = text.unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Starts a build and waits until a file of the scratch folder has a line.
fn build_until(workspace: &Workspace, file: &str) -> Child {
    let (child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for(file, LONG, || {
        (!lines(workspace, file).is_empty()).then_some(())
    });
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn go(workspace: &Workspace) {
    workspace.write("scratch/go", "");
}

fn build(workspace: &Workspace) -> Ran {
    workspace.doe(&["build", "//t:all", "--json"]).ok()
}

fn warnings(ran: &Ran, code: &str) -> Vec<String> {
    let events = ran.events();
    let of = events
        .iter()
        .filter(|e| e["event"] == "warning" && e["code"] == code);
    of.map(|e| e["message"].as_str().unwrap().to_string())
        .collect()
}

fn jobs(workspace: &Workspace) -> Vec<serde_json::Value> {
    let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
    jobs.as_array().unwrap().clone()
}

/// Refused for what could be mended in a minute: that must not cost what runs.
#[test]
fn what_a_killed_doe_left_outlives_builds_that_are_refused() {
    let workspace = served("10m", &[1]);
    kill(build_until(&workspace, "two"));
    let left = jobs(&workspace);
    assert_eq!(left.len(), 2);
    let still_there = |why: &str| {
        // Longer than a reaper takes for two that end when they are told to.
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(jobs(&workspace), left, "{why}");
    };
    let refused = workspace.doe(&["build", "//t:all", "--max-cost", "1"]);
    let told = refused.exits(2).stderr;
    assert!(told.contains("what it costs"), "{told}");
    still_there("no price");
    // With a mirror, which does not answer, it is known late that something is to run at all.
    if cfg!(feature = "aws") {
        let before = workspace.read("doe.toml");
        let with = before.replace(
            "[platform.lab]\n",
            "[platform.lab]\nsecrets = [\"DOE_NOBODY_SETS_THIS\"]\n",
        );
        let cache = "[cache]\nremote = \"s3://lab-doe/x\"\nendpoint = \"http://127.0.0.1:9\"\n";
        workspace.write("doe.toml", &format!("{with}{cache}"));
        let mut command = workspace.command(&["build", "//t:all"]);
        command
            .env("AWS_ACCESS_KEY_ID", "k")
            .env("AWS_SECRET_ACCESS_KEY", "s");
        let told = Ran::of(&["build"], command.output().unwrap())
            .exits(2)
            .stderr;
        assert!(told.contains("DOE_NOBODY_SETS_THIS` is not set"), "{told}");
        still_there("no secret");
        workspace.write("doe.toml", &before);
    }
    go(&workspace);
    let ended = build(&workspace);
    assert_eq!(ended.summary()["ok"], 1);
    assert_eq!(lines(&workspace, "two").len(), 1);
    workspace.assert_nothing_runs();
}

/// What a killed build had taken over works in the folder of the one before, which has ended.
#[test]
fn a_collection_leaves_the_folders_of_what_still_runs() {
    let workspace = served("10m", &[1]);
    kill(build_until(&workspace, "two"));
    let (second, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for("the second doe", LONG, || {
        let all = jobs(&workspace);
        (all.len() == 2 && all.iter().all(|job| job["doe_pid"] == second.id())).then_some(())
    });
    kill(second);
    let gone = workspace.doe(&["cache", "gc", "--older-than", "0s", "--delete", "--json"]);
    assert_eq!(gone.ok().json()["run_files"], 0);
    go(&workspace);
    let ended = build(&workspace).summary();
    assert_eq!(
        (&ended["ok"], &ended["failed"]),
        (&1.into(), &0.into()),
        "{ended}"
    );
    assert_eq!(lines(&workspace, "two").len(), 1);
    workspace.assert_nothing_runs();
    // Now nothing is in use any more.
    let gone = workspace.doe(&["cache", "gc", "--older-than", "0s", "--delete", "--json"]);
    assert_ne!(gone.ok().json()["run_files"], 0);
}

#[test]
fn steps_and_services_go_on_and_each_runs_once() {
    let workspace = served("10m", &[1, 2]);
    kill(build_until(&workspace, "two"));
    let left = jobs(&workspace);
    let names: Vec<_> = left
        .iter()
        .map(|job| job["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["server", "two"]);
    assert_eq!(left[1]["label"], "//t:p-1");
    assert!(left.iter().all(|job| job.get("doe_pid").is_none()));
    // A second build is killed too, while it waits.
    kill(build_until(&workspace, "two"));
    let (child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for("the third doe", LONG, || {
        let all = jobs(&workspace);
        (all.len() == 2 && all.iter().all(|job| job["doe_pid"] == child.id())).then_some(())
    });
    let seen: Vec<_> = jobs(&workspace);
    assert_eq!(
        seen.iter().map(|j| &j["handle"]).collect::<Vec<_>>(),
        left.iter().map(|j| &j["handle"]).collect::<Vec<_>>()
    );
    go(&workspace);
    let mut child = child;
    assert!(child.wait().unwrap().success());
    let ended = Ran::of_files(&workspace);
    let summary = ended.summary();
    assert_eq!(
        (&summary["ok"], &summary["failed"]),
        (&2.into(), &0.into()),
        "{summary}"
    );
    assert_eq!(warnings(&ended, "re-attached").len(), 2);
    assert_eq!(lines(&workspace, "server").len(), 1, "one server for both");
    assert_eq!(lines(&workspace, "one"), ["1", "2"]);
    assert_eq!(lines(&workspace, "three"), ["1", "2"]);
    let port = &lines(&workspace, "server")[0];
    assert_eq!(
        lines(&workspace, "two"),
        [format!("1 {port}"), format!("2 {port}")]
    );
    // Logs from before and after the deaths, the service's too.
    let logs = workspace.doe(&["logs", "//t:p-1"]).ok().stdout;
    for part in ["first of 1", "second of 1", "kept", "serving"] {
        assert!(logs.contains(part), "{part} is not in\n{logs}");
    }
    assert_eq!(build(&workspace).summary()["reused"], 2);
    workspace.assert_nothing_runs();
    assert_eq!(jobs(&workspace), Vec::<serde_json::Value>::new());
}

#[test]
fn what_ended_while_nobody_watched_is_recorded_and_what_nobody_wants_is_ended() {
    // The time to survive passes: the service is ended by itself, the finished result is not lost.
    let workspace = served("2s", &[1]);
    kill(build_until(&workspace, "two"));
    workspace.assert_nothing_runs();
    go(&workspace);
    let ran = build(&workspace);
    assert_eq!(ran.summary()["ok"], 1);
    assert!(
        warnings(&ran, "leftovers")[0].contains("step `two`"),
        "{:?}",
        warnings(&ran, "leftovers")
    );
    assert_eq!(lines(&workspace, "one").len(), 2, "it ran anew");

    // Finished in the meantime: here the second step is the last one.
    let workspace = served("8s", &[1]);
    let rule = workspace.read("rules/t.toml");
    let (head, tail) = rule
        .split_once("[[served.step]]\nname = \"three\"")
        .unwrap();
    let (_, tail) = tail.split_once("[served.output]").unwrap();
    let result = "echo '{\"schema\": \"t-v1\", \"got\": '{{ n }}'}' > {{ out.result }}";
    let head = head.replace("while ! test -e", &format!("{result}\nwhile ! test -e"));
    workspace.write("rules/t.toml", &format!("{head}[served.output]{tail}"));
    kill(build_until(&workspace, "two"));
    go(&workspace);
    workspace.assert_nothing_runs();
    let ran = build(&workspace);
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    assert_eq!(ran.summary()["service_starts"], 0);
    assert!(warnings(&ran, "re-attached")[0].contains("takes the result"));
    assert_eq!(lines(&workspace, "two").len(), 1);

    // Another plan: what runs is not wanted any more.
    let workspace = served("10m", &[1]);
    kill(build_until(&workspace, "two"));
    go(&workspace);
    plan(&workspace, &[7]);
    // (its step was let go above; the service and the pattern are another build's)
    let ran = build(&workspace);
    assert_eq!(ran.summary()["ok"], 1);
    assert!(
        warnings(&ran, "leftovers")
            .iter()
            .any(|w| w.contains("//t:p-1"))
    );
    assert_eq!(
        lines(&workspace, "server").len(),
        1,
        "the same service serves the other pattern"
    );
    workspace.assert_nothing_runs();
}

#[test]
fn a_dead_service_tears_the_node_and_it_runs_anew() {
    let workspace = served("10m", &[1]);
    kill(build_until(&workspace, "two"));
    let left = jobs(&workspace);
    let server = left.iter().find(|job| job["kind"] == "service").unwrap();
    let pid = i32::try_from(server["handle"]["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
    wait_for("its end", LONG, || {
        (jobs(&workspace).len() == 1).then_some(())
    });
    go(&workspace);
    let ran = build(&workspace);
    assert_eq!(ran.summary()["ok"], 1);
    assert_eq!(lines(&workspace, "server").len(), 2);
    workspace.assert_nothing_runs();
}

/// Two steps of one gang, the second after the sign of the first, each until `go` is there.
fn paired(sign: &str, first: &str) -> Workspace {
    let workspace = served("10m", &[1]);
    let scratch = workspace.path().join("scratch");
    let rule = format!(
        r#"
[served]
param.n = {{ type = "int", default = 1, doc = "of the steps" }}
roles = {{ first = {{}} }}
[[served.step]]
name = "a"
gang = "pair"
role = "first"
timeout = "10m"
ready = {{ file = "SCRATCH/{sign}", within = "9m" }}
run = "echo a >> SCRATCH/a; {first}; while ! test -e SCRATCH/go; do sleep 0.02; done"
[[served.step]]
name = "b"
gang = "pair"
after = ["a"]
role = "first"
timeout = "10m"
run = """
echo b >> SCRATCH/b
while ! test -e SCRATCH/go; do sleep 0.02; done
echo '{{}}' > {{{{ out.result }}}}
"""
[served.output]
result = {{ path = "r.json" }}
"#
    );
    workspace.write(
        "rules/t.toml",
        &rule.replace("SCRATCH", scratch.to_str().unwrap()),
    );
    workspace
}

/// The sign of the first is gone by the time that it is gone on with: a server that has served.
#[test]
fn a_gang_that_had_begun_waits_for_no_sign_again() {
    let workspace = paired("up", "touch SCRATCH/up");
    kill(build_until(&workspace, "b"));
    std::fs::remove_file(workspace.path().join("scratch/up")).unwrap();
    go(&workspace);
    assert_eq!(build(&workspace).summary()["ok"], 1);
    assert_eq!(lines(&workspace, "a"), ["a"]);
    assert_eq!(lines(&workspace, "b"), ["b"]);
    workspace.assert_nothing_runs();
}

/// The second member waits for the first to be ready, and `doe` is killed before that.
#[test]
fn a_gang_of_which_a_part_had_begun_runs_anew() {
    let workspace = paired("go", "true");
    kill(build_until(&workspace, "a"));
    go(&workspace);
    assert_eq!(build(&workspace).summary()["ok"], 1);
    // The first had ended well by then or not: what it did, it did alone.
    assert_eq!(lines(&workspace, "a"), ["a", "a"]);
    assert_eq!(lines(&workspace, "b"), ["b"]);
    workspace.assert_nothing_runs();
}

/// The service of a node that a killed build had begun is there and fails before it is ready: the
/// node fails, and nothing of its old step is left beside a further attempt.
#[test]
fn a_node_whose_service_fails_while_it_is_taken_over_leaves_no_step_behind() {
    let workspace = served("10m", &[1]);
    let scratch = workspace.path().join("scratch");
    let scratch = scratch.to_str().unwrap();
    workspace.replace(
        "rules/t.toml",
        "[served]\n",
        "[served]\nfailure = [{ class = \"infrastructure\", log = \"gone for good\" }]\n",
        1,
    );
    workspace.replace(
        "rules/t.toml",
        "while sleep 0.05; do :; done",
        &format!("while ! test -e {scratch}/end; do sleep 0.05; done\necho gone for good\nexit 1"),
        1,
    );
    workspace.replace(
        "doe.toml",
        "survive",
        "retry = { times = 2, base = \"1ms\" }\nsurvive",
        1,
    );
    kill(build_until(&workspace, "two"));
    let left = jobs(&workspace);
    let step = left.iter().find(|job| job["name"] == "two").unwrap();
    let pid = step["handle"]["pid"].as_i64().unwrap();
    // It never is ready again, and then it ends.
    for entry in std::fs::read_dir(workspace.path().join(".doe/runs")).unwrap() {
        let services = entry.unwrap().path().join("services");
        let Ok(found) = std::fs::read_dir(&services) else {
            continue;
        };
        for service in found {
            let up = service.unwrap().path().join("1/up");
            std::fs::remove_file(up).unwrap();
        }
    }
    let (mut child, _) = workspace.spawn(&["build", "//t:all", "--json"]);
    wait_for("what goes on", LONG, || {
        let told = workspace.read("stdout.txt");
        told.contains("goes on (pid").then_some(())
    });
    workspace.write("scratch/end", "");
    wait_for("a further attempt", LONG, || {
        let told = workspace.read("stdout.txt");
        told.contains("\"event\":\"retrying\"").then_some(())
    });
    let runs = workspace.processes();
    let old = format!("{pid} ");
    assert!(!runs.iter().any(|one| one.starts_with(&old)), "{runs:?}");
    std::fs::remove_file(workspace.path().join("scratch/end")).unwrap();
    go(&workspace);
    assert!(child.wait().unwrap().success());
    assert_eq!(Ran::of_files(&workspace).summary()["ok"], 1);
    workspace.assert_nothing_runs();
}

/// Its service is bound to another host now, so it cannot be gone on with: then it has to ask
/// whether there is time for it, like any other.
#[test]
fn what_cannot_be_taken_over_after_all_is_kept_by_limits() {
    let workspace = served("10m", &[1]);
    workspace.replace(
        "rules/t.toml",
        "roles = { first = {} }",
        "roles = { first = {}, far = {} }",
        1,
    );
    workspace.replace(
        "rules/t.toml",
        "name = \"server\"\nrole = \"first\"",
        "name = \"server\"\nrole = \"far\"",
        1,
    );
    let hosts = "\n[platform.lab.host.h2]\naddress = \"127.0.0.2\"\n[platform.lab.host.h3]\naddress = \"127.0.0.3\"\n";
    let text = workspace
        .read("doe.toml")
        .replace("= \"h1\" }", "= \"h1\", far = \"h2\" }");
    workspace.write("doe.toml", &(text + hosts));
    kill(build_until(&workspace, "two"));
    workspace.replace("doe.toml", "far = \"h2\"", "far = \"h3\"", 1);
    go(&workspace);
    let ran = workspace.doe(&["build", "//t:all", "--max-hours", "0", "--json"]);
    let ran = ran.exits(1);
    assert_eq!(ran.summary()["cancelled"], 1, "{}", ran.stdout);
    assert!(ran.stdout.contains("--max-hours"), "{}", ran.stdout);
    assert_eq!(lines(&workspace, "two").len(), 1, "it was begun again");
    assert_eq!(lines(&workspace, "server").len(), 1);
    workspace.assert_nothing_runs();
}

#[test]
fn running_work_is_shown_followed_and_cancelled() {
    let workspace = served("10m", &[1, 2]);
    let nothing = workspace.doe(&["attach"]).exits(2);
    assert!(
        nothing.stderr.contains("no build is running"),
        "{}",
        nothing.stderr
    );
    let mut child = build_until(&workspace, "two");
    assert!(workspace.doe(&["jobs"]).ok().stdout.contains("//t:p-1 two"));
    let follow = |args: &[&str], file: &str| {
        let out = workspace.path().join(file);
        let command = workspace
            .command(args)
            .stdout(std::fs::File::create(&out).unwrap())
            .spawn();
        (command.unwrap(), out)
    };
    let (mut build_follower, build_log) = follow(&["attach", "--json"], "attach.txt");
    let (mut step_follower, step_log) = follow(&["attach", "//t:p-1"], "steps.txt");
    wait_for("the step's log", LONG, || {
        let text = std::fs::read_to_string(&step_log).unwrap();
        text.contains("second of 1").then_some(())
    });
    // One pattern is cancelled by the build itself, the other goes on.
    let answer = workspace.doe(&["cancel", "//t:p-1", "--json"]).ok().json();
    assert_eq!(answer["answer"], "cancelled");
    let unknown = workspace.doe(&["cancel", "//t:p-9"]).exits(2);
    assert!(
        unknown.stdout.contains("not part of this build"),
        "{}",
        unknown.stdout
    );
    assert!(step_follower.wait().unwrap().success());
    go(&workspace);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let summary = Ran::of_files(&workspace).summary();
    assert_eq!(
        (&summary["ok"], &summary["cancelled"]),
        (&1.into(), &1.into()),
        "{summary}"
    );
    assert_eq!(build_follower.wait().unwrap().code(), Some(1));
    let followed = std::fs::read_to_string(build_log).unwrap();
    assert_eq!(
        followed.lines().last(),
        workspace.read("stdout.txt").lines().last()
    );
    workspace.assert_nothing_runs();

    // Everything, through the build: as with two Ctrl-C.
    std::fs::remove_file(workspace.path().join("scratch/go")).unwrap();
    std::fs::remove_file(workspace.path().join("scratch/two")).unwrap();
    let mut child = build_until(&workspace, "two");
    workspace.doe(&["cancel", "--all"]).ok();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    workspace.assert_nothing_runs();

    // Everything that a killed doe left, without one.
    std::fs::remove_file(workspace.path().join("scratch/two")).unwrap();
    kill(build_until(&workspace, "two"));
    let said = workspace.doe(&["cancel", "//t:p-7"]).exits(2);
    assert!(
        said.stderr.contains("what runs: //t:p-1"),
        "{}",
        said.stderr
    );
    let ended = workspace.doe(&["cancel", "--all", "--json"]).ok().json();
    assert_eq!(ended["ended"].as_array().unwrap().len(), 2, "{ended}");
    workspace.assert_nothing_runs();
    assert_eq!(
        workspace.doe(&["cancel", "--all"]).ok().stdout,
        "nothing runs\n"
    );
}

/// Numbers that look random and can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Nobody goes on with an analysis: it ends with the `doe` that began it, however long others may
/// live, and the next build does it again.
#[test]
fn an_analysis_ends_with_doe_and_is_done_again() {
    let workspace = served("10m", &[]);
    let scratch = workspace.path().join("scratch");
    let rule = r#"
[slow]
kind = "analysis"
doc = "Waits for a file, in a child of its own."
[[slow.step]]
name = "wait"
timeout = "10m"
run = """
echo up >> SCRATCH/up
sh -c 'trap "" TERM; while ! test -e SCRATCH/go; do sleep 0.02; done' &
wait
echo done > {{ out.text }}
"""
[slow.output]
text = { path = "text" }
"#;
    workspace.write(
        "rules/t.toml",
        &rule.replace("SCRATCH", scratch.to_str().unwrap()),
    );
    let layer = "[[layer]]\nid = \"l\"\nrule = \"t.slow\"\n[[layer.pattern]]\nid = \"a\"\n";
    let plan = format!("[plan]\ntitle = \"t\"\nrules = [\"t\"]\n{layer}");
    workspace.write("plans/t.toml", &plan);
    kill(build_until(&workspace, "up"));
    workspace.assert_nothing_runs();
    go(&workspace);
    assert_eq!(build(&workspace).ok().summary()["ok"], 1);
    assert_eq!(lines(&workspace, "up").len(), 2);
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect(name))
}

/// Kills `doe`, and nothing else, at random moments of a campaign until `kills` are spent, then
/// lets it finish. `DOE_CHAOS_KILLS` and `DOE_CHAOS_SEED` say how often and when.
fn chaos(target: &str, count: u64, kills: u64, seed: u64) {
    let replay = format!(
        "replay with: DOE_CHAOS_KILLS={kills} DOE_CHAOS_SEED={seed} cargo test --test reattach chaos"
    );
    let workspace = Workspace::shipped("0.002");
    for (old, new) in [
        ("measurement_iterations = 30", "measurement_iterations = 4"),
        ("warmup_iterations = 10", "warmup_iterations = 1"),
    ] {
        workspace.replace("plans/phase2.toml", old, new, 1);
    }
    let mut random = Random(seed);
    let longest_ms = number("DOE_CHAOS_LONGEST_MS", 4_000);
    let mut killed = 0;
    let mut took_over = 0;
    for _ in 0..kills {
        let (mut child, _) = workspace.spawn(&["build", target, "--json"]);
        let until = std::time::Instant::now() + Duration::from_millis(random.below(longest_ms));
        while std::time::Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        killed += u64::from(child.try_wait().unwrap().is_none());
        kill(child);
        took_over += workspace
            .read("stdout.txt")
            .matches("\"re-attached\"")
            .count();
    }
    let last = workspace.doe(&["build", target, "--json"]);
    assert_eq!(last.code, 0, "{replay}\n{}\n{}", last.stdout, last.stderr);
    workspace.assert_nothing_runs();
    let again = workspace.doe(&["build", target, "--json"]).ok().summary();
    assert_eq!(
        (&again["ok"], &again["reused"]),
        (&0.into(), &count.into()),
        "{replay}"
    );

    let index = rusqlite::Connection::open(workspace.path().join(".doe/index.sqlite")).unwrap();
    let rows = |sql: &str| -> Vec<(String, i64)> {
        let mut statement = index.prepare(sql).unwrap();
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    };
    let results = rows("SELECT label, count(*) FROM results GROUP BY label");
    let twice: Vec<_> = results.iter().filter(|(_, n)| *n != 1).collect();
    assert!(
        twice.is_empty(),
        "results that are there more than once: {twice:?}\n{replay}"
    );
    assert_eq!(results.len() as u64, count, "{replay}");
    // Nothing that had ended well was executed again: every run's account has each end once.
    let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for run in std::fs::read_dir(workspace.path().join(".doe/runs"))
        .unwrap()
        .flatten()
    {
        let events = std::fs::read_to_string(run.path().join("events.jsonl")).unwrap_or_default();
        for event in events
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        {
            if event["event"] == "node-finished" && event["outcome"] != "reused" {
                let label = event["label"].as_str().unwrap().to_string();
                ends.entry(label)
                    .or_default()
                    .push(match event["reason"].as_str() {
                        None => event["outcome"].to_string(),
                        Some(why) => format!("{}: {why}", event["outcome"]),
                    });
            }
        }
    }
    let bad: Vec<_> = ends
        .iter()
        .filter(|(_, ends)| **ends != ["\"ok\""])
        .collect();
    assert!(bad.is_empty(), "{bad:?}\n{replay}");
    // Every port that anybody was told is free again.
    for run in std::fs::read_dir(workspace.path().join(".doe/runs"))
        .unwrap()
        .flatten()
    {
        let text = std::fs::read_to_string(run.path().join("intents.jsonl")).unwrap_or_default();
        for intent in text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        {
            if intent["intent"] == "service" {
                let own = &intent["ports"][intent["name"].as_str().unwrap()];
                for port in own.as_object().unwrap().values() {
                    let port = u16::try_from(port.as_u64().unwrap()).unwrap();
                    let address = (intent["place"]["address"].as_str().unwrap(), port);
                    let socket = std::net::TcpListener::bind(address);
                    assert!(
                        socket.is_ok(),
                        "{address:?} is in use: {socket:?}\n{replay}"
                    );
                }
            }
        }
    }
    let mut said = std::io::stderr();
    let line = format!(
        "chaos: {target}: {killed} kills hit, {took_over} times something was taken over, seed {seed}\n"
    );
    std::io::Write::write_all(&mut said, line.as_bytes()).unwrap();
}

#[test]
fn chaos_killed_again_and_again_every_result_is_there_once() {
    let seed = number("DOE_CHAOS_SEED", 0x5eed);
    match number("DOE_CHAOS_KILLS", 0) {
        0 => chaos("//phase2:L2-EFA", 15, 5, seed),
        kills => chaos("//phase2:all", 42, kills, seed),
    }
}
