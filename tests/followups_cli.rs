//! Follow-ups through the real binary: which targets have them, what is said before, during and
//! after, and that a build with nothing to do is told again as it was.

mod support;

use serde_json::Value;
use support::Workspace;

const RULES: &str = "
[echo]
doc = \"Writes a number.\"
param.i = { type = \"int\", doc = \"which\" }
roles = { here = { exclusive = false } }
[[echo.step]]
name = \"echo\"
role = \"here\"
timeout = \"1m\"
run = \"echo '{\\\"schema\\\": \\\"t-v1\\\", \\\"got\\\": '{{ i }}'}' > {{ out.result }}\"
[echo.output]
result = { path = \"r.json\", schema = \"t-v1\" }
[echo.metric]
got = { from = \"result\", at = \"/got\", unit = \"\" }
";

const DOE: &str = "
[workspace]
platform = \"here\"
[platform.here]
executor = \"local\"
roles = { \"*\" = \"h\" }
[platform.here.host.h]
address = \"127.0.0.1\"
";

const PLAN: &str = "
[plan]
title = \"t\"
rules = [\"r\"]
[[layer]]
id = \"L1-Planned\"
rule = \"r.echo\"
pattern = \"n-{{ i }}\"
matrix = { i = [1, 2] }
[[layer]]
id = \"L5-Low\"
adhoc = true
rule = \"r.echo\"
pattern = \"low-{{ i }}\"
matrix = { i = [7, 8] }
[[followup]]
id = \"odd\"
patterns = [\"L5\"]
when = \"got > 1\"
budget = \"1m\"
[[followup]]
id = \"never\"
patterns = [\"L5\"]
when = \"got > 100\"
";

const LOW: [&str; 2] = ["//p:low-7", "//p:low-8"];

fn workspace() -> Workspace {
    let workspace = Workspace::empty();
    workspace.write("doe.toml", DOE);
    workspace.write("rules/r.toml", RULES);
    workspace.write("plans/p.toml", PLAN);
    workspace
}

fn followups(workspace: &Workspace, targets: &[&str]) -> u64 {
    let args: Vec<&str> = [&["build", "--json"], targets].concat();
    let summary = workspace.doe(&args).ok().summary();
    summary["followups"].as_u64().unwrap()
}

/// Label, decision and follow-up of what a plan says of follow-ups.
fn foreseen(workspace: &Workspace, args: &[&str]) -> Vec<(String, String, String)> {
    let args: Vec<&str> = [&["plan", "--json"], args].concat();
    let plan = workspace.doe(&args).ok().json();
    let text = |item: &Value, key: &str| item[key].as_str().unwrap().to_owned();
    let items = plan["followups"].as_array().unwrap().iter();
    let items = items.map(|item| {
        assert_eq!(item["exploratory"], true, "{item}");
        (
            text(item, "label"),
            text(item, "decision"),
            text(item, "followup"),
        )
    });
    items.collect()
}

#[test]
fn targets_that_name_a_plan_as_a_whole_have_its_follow_ups() {
    for (targets, count) in [
        (&["//p:L1"][..], 0),
        (&["//p:n-1", "//p:n-2"], 0),
        (&["//p:all", "--no-followups"], 0),
        (&["//p:all", "-//p:L5"], 0),
        (&["//p:all", "-//p:low-7"], 1),
        (&["//p:all"], 2),
        (&["//p/...", "-//p:L5"], 0),
        // There they are targets themselves.
        (&["//..."], 0),
        (&["-//p:low-8"], 1),
    ] {
        let workspace = workspace();
        assert_eq!(followups(&workspace, targets), count, "{targets:?}");
    }
}

#[test]
fn what_is_said_before_and_after() {
    let workspace = workspace();
    let all = "//p:all";
    let of = |label: &str, decision: &str, followup: &str| {
        (
            label.to_owned(),
            decision.to_owned(),
            format!("//p#{followup}"),
        )
    };
    let open = ["odd", "never"].map(|id| LOW.map(|label| of(label, "may_run", id)));
    assert_eq!(foreseen(&workspace, &[all]), open.concat());
    assert_eq!(foreseen(&workspace, &[all, "--no-followups"]), []);
    assert_eq!(foreseen(&workspace, &["//p:L1"]), []);
    let text = workspace.doe(&["plan", all]).ok().stdout;
    assert!(
        text.contains("may run by follow-ups, exploratory (4)"),
        "{text}"
    );
    assert!(
        text.contains("odd: if `got > 1`, within 1 min 0 s"),
        "{text}"
    );
    let explained = workspace.doe(&["explain", LOW[0]]).ok().stdout;
    assert!(
        explained.contains("//p#odd brings it in if `got > 1`"),
        "{explained}"
    );

    // The planned ones are there, so the condition is decided.
    workspace.doe(&["build", all, "--no-followups"]).ok();
    assert_eq!(
        foreseen(&workspace, &[all]),
        LOW.map(|label| of(label, "run", "odd"))
    );
    workspace.doe(&["plan", all, "--up-to-date"]).exits(6);
    let dry = workspace.doe(&["build", all, "--dry-run"]).ok().stdout;
    assert!(
        dry.contains("odd: `got > 1` holds for //p:n-2: got = 2"),
        "{dry}"
    );

    let told = workspace.doe(&["build", all]).ok().stdout;
    let cause = "`got > 1` holds for //p:n-2: got = 2";
    assert!(
        told.contains(&format!(
            "follow-up //p#odd (exploratory): 2 patterns, because {cause}"
        )),
        "{told}"
    );
    assert!(told.contains("exploratory, by //p#odd"), "{told}");
    assert!(told.contains("2 nodes: 0 ok, 2 reused"), "{told}");
    assert!(told.contains("2 nodes of follow-ups"), "{told}");

    assert_eq!(
        foreseen(&workspace, &[all]),
        LOW.map(|label| of(label, "reuse", "odd"))
    );
    workspace.doe(&["plan", all, "--up-to-date"]).ok();
    let cause = format!("//p#odd: {cause}");
    for command in ["status", "results"] {
        let rows = workspace.doe(&[command, "//p:L5", "--json"]).ok().json();
        assert_eq!(rows[0]["exploratory"], true, "{rows}");
        assert_eq!(rows[0]["followup"], cause, "{rows}");
        let rows = workspace.doe(&[command, "//p:L1", "--json"]).ok().json();
        assert_eq!(rows[0]["exploratory"], false, "{rows}");
        assert_eq!(rows[0]["followup"], Value::Null, "{rows}");
        let table = workspace.doe(&[command, "//p:L5"]).ok().stdout;
        assert!(table.contains("exploratory"), "{table}");
    }
    let explained = workspace.doe(&["explain", LOW[1], "--json"]).ok().json();
    assert_eq!(explained["followup"], cause);
    let explained = workspace.doe(&["explain", LOW[1]]).ok().stdout;
    assert!(
        explained.contains(&format!("exploratory, begun by {cause}")),
        "{explained}"
    );
}

#[test]
fn nothing_to_do_is_told_again_with_what_follow_ups_said() {
    let plain = |text: &str| -> String {
        let lines = text
            .lines()
            .map(|line| match serde_json::from_str::<Value>(line) {
                Ok(mut json) => {
                    for key in ["run_id", "run_dir", "at_unix_ms", "wall_s", "command"] {
                        json.as_object_mut().unwrap().remove(key);
                    }
                    json.to_string()
                }
                Err(_) => line.split(" in ").next().unwrap_or_default().to_owned(),
            });
        lines.collect::<Vec<_>>().join("\n")
    };
    let workspace = workspace();
    // One fits into the budget, the other is left out; that is said each time.
    let tight = PLAN.replace("\"1m\"", "\"1ms\"");
    for plan in [PLAN, &tight] {
        workspace.write("plans/p.toml", plan);
        for args in [&["build", "//p:all"][..], &["build", "//p:all", "--json"]] {
            workspace.doe(args).ok();
            let slow = workspace.doe(args).ok();
            let note = workspace.path().join(".doe/recall/last-look.txt");
            let _ = std::fs::remove_file(&note);
            let quick = workspace.doe(args).ok();
            assert!(
                !note.exists(),
                "{}",
                std::fs::read_to_string(&note).unwrap()
            );
            let anew: Vec<&str> = args.iter().copied().chain(["--no-recall"]).collect();
            let anew = workspace.doe(&anew).ok();
            assert_eq!(plain(&quick.stdout), plain(&anew.stdout));
            assert_eq!(plain(&quick.stdout), plain(&slow.stdout));
            assert!(quick.stdout.contains("//p#odd"), "{}", quick.stdout);
        }
    }
    // An edit of the condition is seen.
    workspace.write("plans/p.toml", &PLAN.replace("got > 1\"", "got > 2\""));
    assert_eq!(followups(&workspace, &["//p:all"]), 0);
}
