//! `doe` is killed between attempts and in the middle of a further one: the next build goes on
//! counting, every attempt has one record under one number, and nothing is lost. Real binary, real
//! processes; scripts wait for files, so nothing depends on the machine's pace.

mod support;

use std::process::Child;
use std::time::Duration;

use support::{Ran, Workspace, wait_for};

const LONG: Duration = Duration::from_secs(180);

/// Begun for the `lost`th time or sooner it ends as what the infrastructure spoiled; later it waits
/// for a file.
const RULE: &str = r#"
[flaky]
failure = [{ class = "preempted", exit_code = 75 }]
param.lost = { type = "int", default = 1, doc = "attempts that are spoiled" }
roles = { first = {} }
[[flaky.step]]
name = "go"
role = "first"
timeout = "10m"
run = """
echo go >> SCRATCH/begun
n=$(wc -l < SCRATCH/begun)
echo said by $n
if [ $n -le {{ lost }} ]; then exit 75; fi
while ! test -e SCRATCH/go; do sleep 0.02; done
echo '{"schema": "t-v1", "got": 1}' > {{ out.result }}
"""
[flaky.output]
result = { path = "r.json", schema = "t-v1" }
[flaky.metric]
got = { from = "result", at = "/got", unit = "" }
"#;

const LABEL: &str = "//t:p-1";

/// A workspace with one pattern that is tried `1 + times` times, `base` apart.
fn flaky(times: u32, base: &str) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let rule = RULE.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("rules/t.toml", &rule);
    workspace.write(
        "doe.toml",
        &format!("[workspace]\nplatform = \"lab\"\nretry = {{ times = {times}, base = \"{base}\", cap = \"{base}\" }}\n[platform.lab]\nroles = {{ \"*\" = \"h1\" }}\n[platform.lab.host.h1]\naddress = \"127.0.0.1\"\n"),
    );
    plan(&workspace, 1);
    workspace
}

fn plan(workspace: &Workspace, lost: u32) {
    workspace.write(
        "plans/t.toml",
        &format!("[plan]\ntitle = \"t\"\nrules = [\"t\"]\n[[layer]]\nid = \"l\"\nrule = \"t.flaky\"\npattern = \"p-1\"\nestimate = \"1s\"\nsettings = {{ lost = {lost} }}\n"),
    );
}

fn begun(workspace: &Workspace) -> usize {
    let text = std::fs::read_to_string(workspace.path().join("scratch/begun"));
    text.unwrap_or_default().lines().count()
}

fn spawn(workspace: &Workspace) -> Child {
    workspace.spawn(&["build", "//t:all", "--json"]).0
}

/// Waits until the build that was spawned has told of an attempt that is put off.
fn wait_retrying(workspace: &Workspace, times: usize) {
    wait_for("an attempt that is put off", LONG, || {
        let told = workspace.read("stdout.txt");
        (told.matches("\"event\":\"retrying\"").count() >= times).then_some(())
    });
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

fn end(ran: &Ran) -> serde_json::Value {
    let mut ends = ran.events().into_iter();
    let end = ends.find(|e| e["event"] == "node-finished");
    end.unwrap()
}

fn said(workspace: &Workspace, attempt: u32) -> String {
    let attempt = attempt.to_string();
    let args = [
        "logs",
        LABEL,
        "--attempt",
        &attempt,
        "--log",
        "step-go.stdout",
    ];
    workspace.doe(&args).ok().stdout
}

/// Attempts in the index, in the order in which they were recorded.
fn attempts(workspace: &Workspace) -> Vec<(u32, String)> {
    let path = workspace.path().join(".doe/index.sqlite");
    let db = rusqlite::Connection::open(path).unwrap();
    let mut rows = db
        .prepare("SELECT attempt, execution FROM attempts ORDER BY recorded_unix_ms")
        .unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

fn all(numbers: &[(u32, &str)]) -> Vec<(u32, String)> {
    numbers
        .iter()
        .map(|(n, how)| (*n, (*how).to_owned()))
        .collect()
}

#[test]
fn killed_while_it_waits_the_next_build_goes_on_with_the_next_attempt() {
    let workspace = flaky(2, "1h");
    let child = spawn(&workspace);
    wait_retrying(&workspace, 1);
    // The record is there before anybody hears of a further attempt.
    assert_eq!(attempts(&workspace), all(&[(1, "failed")]));
    kill(child);
    go(&workspace);
    let ran = build(&workspace);
    assert_eq!(begun(&workspace), 2);
    let end = end(&ran);
    assert_eq!(
        (&end["outcome"], &end["attempt"], &end["attempts"]),
        (&"ok".into(), &2.into(), &3.into()),
        "{end}"
    );
    assert_eq!(attempts(&workspace), all(&[(1, "failed"), (2, "ok")]));
    assert_eq!(
        (said(&workspace, 1), said(&workspace, 2)),
        ("said by 1\n".into(), "said by 2\n".into())
    );
    let unknown = workspace.doe(&["logs", LABEL, "--attempt", "3"]).exits(2);
    assert!(
        unknown.stderr.contains("has no attempt 3"),
        "{}",
        unknown.stderr
    );
    let shown = workspace.doe(&["results", "//t:all"]).ok().stdout;
    assert!(shown.contains("current, attempt 2 of 3"), "{shown}");
    assert_eq!(build(&workspace).summary()["reused"], 1);
    workspace.assert_nothing_runs();
}

#[test]
fn killed_during_a_further_attempt_the_next_build_takes_that_one_over() {
    let workspace = flaky(2, "1ms");
    let child = spawn(&workspace);
    wait_for("the second attempt", LONG, || {
        (begun(&workspace) == 2).then_some(())
    });
    kill(child);
    // And once more, while the build after it waits.
    let child = spawn(&workspace);
    wait_for("its step to be taken over", LONG, || {
        let told = workspace.read("stdout.txt");
        told.contains("goes on where the killed run").then_some(())
    });
    kill(child);
    go(&workspace);
    let ran = build(&workspace);
    assert_eq!(begun(&workspace), 2, "the second attempt was begun again");
    assert_eq!(end(&ran)["attempt"], 2);
    assert_eq!(attempts(&workspace), all(&[(1, "failed"), (2, "ok")]));
    assert_eq!(said(&workspace, 2), "said by 2\n");
    assert_eq!(said(&workspace, 1), "said by 1\n");
    workspace.assert_nothing_runs();
}

#[test]
fn a_further_attempt_that_died_with_its_doe_is_begun_anew_under_its_number() {
    // Nothing outlives `doe` here: the second attempt is torn and leaves no record.
    let workspace = flaky(2, "1ms");
    workspace.replace(
        "doe.toml",
        "[workspace]\n",
        "[workspace]\nsurvive = \"0s\"\n",
        1,
    );
    let child = spawn(&workspace);
    wait_for("the second attempt", LONG, || {
        (begun(&workspace) == 2).then_some(())
    });
    kill(child);
    workspace.assert_nothing_runs();
    let child = spawn(&workspace);
    wait_for("it to be begun anew", LONG, || {
        (begun(&workspace) == 3).then_some(())
    });
    kill(child);
    workspace.assert_nothing_runs();
    go(&workspace);
    let ran = build(&workspace);
    assert_eq!(end(&ran)["attempt"], 2, "{}", end(&ran));
    assert_eq!(attempts(&workspace), all(&[(1, "failed"), (2, "ok")]));
    assert_eq!(said(&workspace, 1), "said by 1\n");
    assert_eq!(said(&workspace, 2), "said by 4\n");
    workspace.assert_nothing_runs();
}

/// Killed while the record of the first attempt comes to the disk, wherever that is: it is stored or
/// not, and its number is given once.
#[test]
fn killed_while_an_attempt_is_recorded_it_is_recorded_once() {
    for point in [
        "after-rename",
        "before-commit",
        "after-commit",
        "before-announce",
    ] {
        let mut killed = 0;
        for count in 1.. {
            let workspace = flaky(3, "1ms");
            go(&workspace);
            let mut command = workspace.command(&["build", "//t:all", "--json"]);
            let fault = format!("{point}:{count}:kill");
            let ran = command.env("DOE_FAULT", &fault).output().unwrap();
            if ran.status.success() {
                break;
            }
            assert_eq!(ran.status.code(), None, "{fault}: {ran:?}");
            killed += 1;
            build(&workspace);
            let found = attempts(&workspace);
            let numbers: Vec<u32> = found.iter().map(|(n, _)| *n).collect();
            let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
            assert_eq!(numbers, expected, "{fault}: {found:?}");
            assert_eq!(found.last().unwrap().1, "ok", "{fault}: {found:?}");
            // The second may have been torn before it left a record.
            assert!((2..=3).contains(&begun(&workspace)), "{fault}: {found:?}");
            workspace.assert_nothing_runs();
        }
        assert!(killed > 0, "{point} is never passed");
    }
}

/// Killed again and again at random moments, with attempts that are spoiled in between: in the end every
/// attempt that ended has one record, numbers run on, and none is there twice.
#[test]
fn killed_at_random_moments_no_attempt_is_recorded_twice() {
    let seed: u64 = std::env::var("DOE_CHAOS_SEED").map_or(0xdecaf, |s| s.parse().unwrap());
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let workspace = flaky(9, "60ms");
    plan(&workspace, 6);
    go(&workspace);
    let mut kills = 0;
    loop {
        let mut child = spawn(&workspace);
        // It grows, so that it comes to an end on a slow machine too: slowly, and then quickly.
        let late = u64::saturating_sub(kills, 20);
        std::thread::sleep(Duration::from_millis(
            150 + random(600 + 60 * kills + 400 * late),
        ));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(
                status.success(),
                "seed {seed}: {}",
                workspace.read("stdout.txt")
            );
            break;
        }
        kill(child);
        kills += 1;
        assert!(
            kills < 60,
            "seed {seed}: it never ends: {:?}",
            attempts(&workspace)
        );
    }
    let found = attempts(&workspace);
    let numbers: Vec<u32> = found.iter().map(|(n, _)| *n).collect();
    let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
    assert_eq!(
        numbers, expected,
        "seed {seed} after {kills} kills: {found:?}"
    );
    let good = found.iter().filter(|(_, how)| how == "ok").count();
    assert_eq!(
        (good, found.last().unwrap().1.as_str()),
        (1, "ok"),
        "seed {seed}: {found:?}"
    );
    // Some may have been torn before they left a record; none left two.
    assert!(found.len() <= begun(&workspace), "seed {seed}: {found:?}");
    for attempt in 1..=numbers.len() as u32 {
        assert!(
            said(&workspace, attempt).starts_with("said by"),
            "seed {seed}"
        );
    }
    workspace.assert_nothing_runs();
}
