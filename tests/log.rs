//! `doe log` reads what runs told: random campaigns with failures, follow-ups, reruns and kills.
//! Whatever happens, every announced node of a run that is over has exactly one end.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use doe::report::account::{ABORTED, Account};
use doe::report::read_events;
use serde_json::Value;
use support::Workspace;

const DOE: &str = "
[workspace]
platform = \"here\"
survive = \"0s\"
[platform.here]
executor = \"local\"
cost_per_hour = \"36 EUR\"
roles = { \"*\" = \"h\" }
[platform.here.host.h]
address = \"127.0.0.1\"
";

const RULES: &str = "
[echo]
doc = \"Writes a number, or fails.\"
param.i = { type = \"int\", doc = \"which\" }
param.fails = { type = \"bool\", default = false, doc = \"whether it does\" }
param.slow = { type = \"bool\", default = false, doc = \"whether it waits to be killed\" }
roles = { here = { exclusive = false } }
[[echo.step]]
name = \"echo\"
role = \"here\"
timeout = \"1m\"
run = \"\"\"
{% if slow %}touch @DIR@/slow; sleep 60{% endif %}
{% if fails %}exit 3{% endif %}
echo '{\\\"schema\\\": \\\"t-v1\\\", \\\"got\\\": '{{ i }}'}' > {{ out.result }}
\"\"\"
[echo.output]
result = { path = \"r.json\", schema = \"t-v1\" }
[echo.metric]
got = { from = \"result\", at = \"/got\", unit = \"\" }
";

/// A small generator, so that a failing case is one number.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A campaign of `count` patterns, each perhaps needing or gated on earlier ones.
fn plan(rng: &mut Rng, count: u64) -> String {
    let mut text = "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n".to_owned();
    for at in 0..count {
        text.push_str(&format!("[[layer]]\nid = \"L{at}\"\nrule = \"r.echo\"\n"));
        if at > 0 && rng.below(2) == 0 {
            let key = ["needs", "gate"][rng.below(2) as usize];
            text.push_str(&format!("{key} = [\"n-{}\"]\n", rng.below(at)));
        }
        let fails = rng.below(5) == 0;
        text.push_str(&format!(
            "[[layer.pattern]]\nid = \"n-{at}\"\nestimate = \"1s\"\nsettings = {{ i = {at}, fails = {fails} }}\n"
        ));
        if rng.below(3) == 0 {
            text.push_str("expect = { got = \"> 3\" }\n");
        }
    }
    text.push_str(
        "[[layer]]\nid = \"Low\"\nadhoc = true\nrule = \"r.echo\"\n[[layer.pattern]]\nid = \"low\"\nsettings = { i = 77 }\n\
         [[followup]]\npatterns = [\"Low\"]\nwhen = \"got == 2\"\n",
    );
    text
}

fn workspace() -> Workspace {
    let workspace = Workspace::empty();
    workspace.write("doe.toml", DOE);
    let dir = workspace.path().to_str().unwrap().to_owned();
    workspace.write("rules/r.toml", &RULES.replace("@DIR@", &dir));
    workspace
}

fn account(workspace: &Workspace, run_dir: &Value) -> Account {
    let path = std::path::Path::new(run_dir.as_str().unwrap()).join("events.jsonl");
    let path = match path.is_absolute() {
        true => path,
        false => workspace.path().join(path),
    };
    Account::of(&read_events(&path).unwrap())
}

fn labels(list: &Value) -> BTreeSet<String> {
    support::labels(list).into_iter().collect()
}

#[test]
fn every_announced_node_has_one_end_and_readers_agree() {
    for seed in 0..6 {
        let rng = &mut Rng(seed);
        let workspace = workspace();
        let count = 3 + rng.below(6);
        workspace.write("plans/p.toml", &plan(rng, count));
        for round in 0..2 {
            let args: &[&str] = match (round, rng.below(3)) {
                (0, 0) => &["build", "//p:all", "--json", "--fail-fast"],
                (1, _) => &["build", "//p:all", "--json", "--rerun"],
                _ => &["build", "//p:all", "--json"],
            };
            let ran = workspace.doe(args);
            let events = ran.events();
            let account = account(&workspace, &events[0]["run_dir"]);
            assert_eq!(
                account.broken,
                Vec::<String>::new(),
                "seed {seed}: {}",
                ran.stdout
            );
            assert!(account.summary.is_some(), "seed {seed}");

            // The readers say what the events said.
            let ended = |keep: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
                let ends = events.iter().filter(|e| e["event"] == "node-finished");
                let kept = ends.filter(|e| keep(e["outcome"].as_str().unwrap()));
                kept.map(|e| e["label"].as_str().unwrap().to_owned())
                    .collect()
            };
            let told = workspace.doe(&["log", "what-ran", "--json"]).ok().json();
            let executed = |o: &str| ["ok", "failed", "invalid"].contains(&o);
            assert_eq!(labels(&told), ended(&executed), "seed {seed}");
            let told = workspace.doe(&["log", "what-failed", "--json"]).ok().json();
            let bad = |o: &str| !["ok", "reused"].contains(&o);
            assert_eq!(labels(&told), ended(&bad), "seed {seed}");
            let shown = workspace.doe(&["log", "show", "--json"]).ok();
            assert_eq!(shown.stdout, ran.stdout, "seed {seed}");
            let replayed = workspace.doe(&["log", "replay"]).ok().stdout;
            assert_eq!(replayed, workspace.doe(&["log", "show"]).ok().stdout);
            let trace = workspace.doe(&["log", "trace"]).ok().json();
            let spans = trace["traceEvents"].as_array().unwrap();
            let traced = |label: &str| spans.iter().any(|span| span["name"] == label);
            let missing: Vec<_> = ended(&executed)
                .into_iter()
                .filter(|l| !traced(l))
                .collect();
            assert_eq!(missing, Vec::<String>::new(), "seed {seed}");
        }
        // Run again: other records, the same ends.
        let diff = workspace
            .doe(&["log", "diff", "latest-1", "--json"])
            .ok()
            .json();
        for difference in diff["differences"].as_array().unwrap() {
            assert_ne!(difference["old"], difference["new"], "{difference}");
        }
        assert_eq!(
            diff["new"]["run_id"],
            workspace.doe(&["log", "show", "--json"]).ok().events()[0]["run_id"]
        );
    }
}

#[test]
fn a_run_that_was_killed_has_aborted_nodes() {
    let workspace = workspace();
    workspace.write(
        "plans/p.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n[[layer]]\nid = \"L\"\nrule = \"r.echo\"\n\
         [[layer.pattern]]\nid = \"n-0\"\nsettings = { i = 0 }\n\
         [[layer.pattern]]\nid = \"n-1\"\nneeds = [\"n-0\"]\nsettings = { i = 1, slow = true }\n\
         [[layer.pattern]]\nid = \"n-2\"\nneeds = [\"n-1\"]\nsettings = { i = 2 }\n",
    );
    let (mut child, _) = workspace.spawn(&["build", "//p:all", "--json"]);
    let slow = workspace.path().join("slow");
    support::wait_for("the slow step", std::time::Duration::from_secs(120), || {
        slow.exists().then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let failed = workspace.doe(&["log", "what-failed", "--json"]).ok().json();
    let outcomes: BTreeMap<String, String> = failed
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let text = |key: &str| node[key].as_str().unwrap().to_owned();
            (text("label"), text("outcome"))
        })
        .collect();
    let aborted = ["//p:n-1", "//p:n-2"].map(|label| (label.to_owned(), ABORTED.to_owned()));
    assert_eq!(outcomes, BTreeMap::from(aborted));
    let ran = workspace.doe(&["log", "what-ran"]).ok().stdout;
    assert!(
        ran.contains("//p:n-0") && ran.contains("//p:n-1") && !ran.contains("//p:n-2"),
        "{ran}"
    );
    let shown = workspace.doe(&["log", "show"]).ok().stdout;
    assert!(shown.contains("its doe was killed"), "{shown}");
    workspace.assert_nothing_runs();
}

#[test]
fn runs_are_named_by_their_begin_and_what_is_not_there_is_told() {
    let workspace = workspace();
    let none = workspace.doe(&["log", "show"]).exits(2).stderr;
    assert!(none.contains("there is no run `latest`"), "{none}");
    workspace.write("plans/p.toml", &plan(&mut Rng(1), 3));
    workspace.doe(&["build", "//p:all", "--json"]);
    let id = workspace.doe(&["log", "show", "--json"]).ok().events()[0]["run_id"].clone();
    let id = id.as_str().unwrap().to_owned();
    for name in [&id[..], &id[..12], "latest", "latest-0"] {
        workspace.doe(&["log", "what-ran", name]).ok();
    }
    let wrong = workspace.doe(&["log", "show", "nonsense"]).exits(2).stderr;
    assert!(
        wrong.contains("there is no run `nonsense`") && wrong.contains(&id),
        "{wrong}"
    );

    // An event that a later doe added is passed over; one of another version is not.
    let events = workspace
        .path()
        .join(".doe/runs")
        .join(&id)
        .join("events.jsonl");
    let text = std::fs::read_to_string(&events).unwrap();
    let later = |v: u32| format!("{{\"event\":\"news\",\"v\":{v},\"at_unix_ms\":1}}\n{text}");
    std::fs::write(&events, later(1)).unwrap();
    workspace.doe(&["log", "show"]).ok();
    std::fs::write(&events, later(2)).unwrap();
    workspace.doe(&["log", "show"]).exits(7);
}

#[test]
fn a_plan_says_what_it_costs_and_who_is_waited_for() {
    let workspace = workspace();
    workspace.write(
        "plans/p.toml",
        "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n[[layer]]\nid = \"L\"\nrule = \"r.echo\"\n\
         [[layer.pattern]]\nid = \"n-0\"\nestimate = \"10m\"\nsettings = { i = 0 }\n\
         [[layer.pattern]]\nid = \"n-1\"\nestimate = \"30m\"\nneeds = [\"n-0\"]\nsettings = { i = 1 }\n\
         [[layer.pattern]]\nid = \"n-2\"\nestimate = \"15m\"\nneeds = [\"n-0\"]\nsettings = { i = 2 }\n\
         [[layer.pattern]]\nid = \"n-3\"\nsettings = { i = 3 }\n",
    );
    let args = ["plan", "//p:all", "--critical-path", "--json"];
    let plan = workspace.doe(&args).ok().json();
    assert_eq!(plan["estimate"]["run_s"], 600.0);
    assert_eq!(plan["estimate"]["may_run_s"], 2700.0);
    assert_eq!(plan["estimate"]["unknown"], 1);
    let cost = &plan["estimate"]["cost"];
    assert_eq!(
        (&cost["run"], &cost["may_run"]),
        (&6.0.into(), &27.0.into())
    );
    assert_eq!(
        (&cost["currency"], &cost["simulated"]),
        (&"EUR".into(), &false.into())
    );
    let path = &plan["critical_path"];
    assert_eq!(
        (&path["length_s"], &path["unknown"]),
        (&2400.0.into(), &1.into())
    );
    let steps: Vec<(&str, f64)> = path["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            (
                step["label"].as_str().unwrap(),
                step["gain_s"].as_f64().unwrap(),
            )
        })
        .collect();
    // Without n-1 the chain over n-2 is the longest: only the difference is gained.
    assert_eq!(steps, [("//p:n-0", 600.0), ("//p:n-1", 900.0)]);
    let text = workspace.doe(&args[..3]).ok().stdout;
    for part in [
        "6.00 EUR and perhaps 27.00 more",
        "not counting 1",
        "critical path: at least 40 min 0 s",
        "saves at most",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    // The limit counts in the same way.
    let ran = workspace
        .doe(&["build", "//p:all", "--max-cost", "7", "--json"])
        .exits(1);
    let summary = ran.summary();
    assert_eq!(
        (&summary["ok"], &summary["cancelled"]),
        (&2.into(), &2.into()),
        "{}",
        ran.stdout
    );
    workspace.write("doe.toml", &DOE.replace("cost_per_hour = \"36 EUR\"", ""));
    workspace
        .doe(&["build", "//p:all", "--max-cost", "7"])
        .exits(2);
    workspace.write("doe.toml", &DOE.replace("36 EUR", "thirty"));
    let told = workspace.doe(&["check"]).exits(3).stdout;
    assert!(
        told.contains("bad-price") && told.contains("10.49 USD"),
        "{told}"
    );
}

/// Nothing of the run can be noted any more, so it fails itself: the account is whole all the same.
#[test]
fn a_run_that_fails_itself_gives_an_account_of_everything() {
    let workspace = workspace();
    let rules = workspace.read("rules/r.toml");
    let wreck = RULES
        .replace("[echo", "[wreck")
        .replace(
            "{% if fails %}exit 3{% endif %}",
            "for n in @DIR@/.doe/runs/*/notes; do rm $n; mkdir $n; touch $n/x; done",
        )
        .replace("@DIR@", workspace.path().to_str().unwrap());
    workspace.write("rules/r.toml", &format!("{rules}{wreck}"));
    let layer = |id: &str, rule: &str, i: u32, more: &str| {
        format!(
            "[[layer]]\nid = \"L{id}\"\nrule = \"r.{rule}\"\n{more}\n[[layer.pattern]]\nid = \"{id}\"\nsettings = {{ i = {i} }}\n"
        )
    };
    let plan = "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n".to_owned()
        + &layer("first", "echo", 1, "")
        + &layer("wreck", "wreck", 2, "needs = [\"first\"]")
        + &layer("needs", "echo", 3, "needs = [\"first\", \"wreck\"]")
        + &layer("last", "echo", 4, "gate = [\"needs\"]");
    workspace.write("plans/p.toml", &plan);
    let ran = workspace.doe(&["build", "//p:all", "--json"]);
    assert!(![0, 1].contains(&ran.code), "{}\n{}", ran.code, ran.stderr);
    let events = ran.events();
    let account = account(&workspace, &events[0]["run_dir"]);
    assert_eq!(account.broken, Vec::<String>::new());
    assert_eq!(account.nodes.len(), 4);
    // Behind it only what the command itself says of the error.
    let summary = events.iter().find(|e| e["event"] == "summary").unwrap();
    assert!(account.summary.is_some());
    assert_eq!(
        (&summary["ok"], &summary["failed"], &summary["blocked"]),
        (&1.into(), &1.into(), &2.into()),
        "{summary}"
    );
    workspace.assert_nothing_runs();
}

#[test]
fn what_was_cancelled_while_it_ran_has_run() {
    let workspace = workspace();
    let pattern = |i: u32, slow: bool| {
        format!(
            "[[layer]]\nid = \"L{i}\"\nrule = \"r.echo\"\n[[layer.pattern]]\nid = \"n-{i}\"\nsettings = {{ i = {i}, slow = {slow} }}\n"
        )
    };
    let plan = "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n".to_owned() + &pattern(1, true);
    workspace.write("plans/p.toml", &plan);
    let (mut child, _) = workspace.spawn(&["build", "//p:all", "--json"]);
    let begun = || workspace.path().join("slow").exists().then_some(());
    support::wait_for("its step", std::time::Duration::from_secs(60), begun);
    workspace.doe(&["cancel", "//p:n-1"]).ok();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let told = workspace.doe(&["log", "what-ran", "--json"]).ok().json();
    assert_eq!(labels(&told), BTreeSet::from(["//p:n-1".to_owned()]));
    workspace.assert_nothing_runs();
}
