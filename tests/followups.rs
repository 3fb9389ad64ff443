//! Follow-ups in whole runs: what calls for them, what they bring in, what it costs, and what is
//! told and kept of it.

mod lab;

use doe::engine::event::{Body, Event, Outcome};
use doe_cache::Class;
use lab::rules::{LOOK, label, pattern, rule};
use lab::{Build, Built, Lab};

/// Patterns `p-one` (got 1) and `p-two` (got 2), and two ad-hoc ones behind `p-one`.
fn plan(followup: &str) -> String {
    let adhoc = "adhoc = true\nestimate = \"10s\"\nsettings";
    pattern(
        "one",
        "a",
        "settings = { n = 1 }\nexpect = { got = \"4..8\" }",
    ) + &pattern("two", "a", "settings = { n = 2 }")
        + &pattern("low", "a", &format!("{adhoc} = {{ n = 11 }}")).replacen(
            "estimate = \"1s\"\n",
            "",
            1,
        )
        + &pattern("high", "a", &format!("{adhoc} = {{ n = 12 }}")).replacen(
            "estimate = \"1s\"\n",
            "",
            1,
        )
        + followup
}

fn followup(when: &str, more: &str) -> String {
    format!(
        "[[followup]]\nid = \"odd\"\npatterns = [\"low\", \"high\"]\nwhen = \"{when}\"\n{more}\n"
    )
}

fn lab(followup: &str) -> Lab {
    Lab::new(&rule("a", "echo {{ n }} >> SCRATCH/order"), &plan(followup))
}

async fn build(lab: &Lab) -> Built {
    lab.build_with(Build {
        followups: true,
        ..Build::default()
    })
    .await
}

/// The follow-ups that were told: name, results, patterns.
fn told(events: &[Event]) -> Vec<(&str, Vec<&str>, usize)> {
    let told = events.iter().filter_map(|event| match &event.body {
        Body::Followup {
            followup,
            results,
            patterns,
            exploratory: true,
            ..
        } => Some((
            followup.as_str(),
            results.iter().map(String::as_str).collect(),
            patterns.len(),
        )),
        _ => None,
    });
    told.collect()
}

fn warnings<'e>(built: &'e Built, of: &str) -> Vec<&'e str> {
    let warnings = built.events.iter().filter_map(|event| match &event.body {
        Body::Warning { code, message, .. } if code == of => Some(message.as_str()),
        _ => None,
    });
    warnings.collect()
}

fn ran(lab: &Lab) -> Vec<String> {
    let mut lines = lab.lines("order");
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_holds_brings_its_patterns_in_once() {
    let lab = lab(&followup("got > 1", "budget = \"1m\""));
    let built = build(&lab).await;
    assert_eq!(ran(&lab), ["1", "11", "12", "2"]);
    assert_eq!(told(&built.events), [("//t#odd", vec!["//t:p-two"], 2)]);
    let summary = &built.ended.summary;
    assert_eq!(
        (summary.ok, summary.followups, summary.followups_failed),
        (2, 2, 0)
    );
    let low = built.node(&label("low"));
    assert_eq!((low.outcome, low.exploratory), (Outcome::Ok, true));
    assert_eq!(low.followup.as_deref(), Some("//t#odd"));
    assert!(!built.node(&label("two")).exploratory);
    // It is told before anything of it begins, and after what called for it.
    let at = |wanted: &dyn Fn(&Body) -> bool| {
        built
            .events
            .iter()
            .position(|event| wanted(&event.body))
            .unwrap()
    };
    let cause = at(&|body| matches!(body, Body::NodeFinished(node) if node.label == label("two")));
    let held = at(&|body| matches!(body, Body::Followup { .. }));
    let begun =
        at(&|body| matches!(body, Body::NodeState { label: of, .. } if *of == label("low")));
    assert!(cause < held && held < begun, "{cause} {held} {begun}");

    // The record says so, and its key is that of a run by hand.
    let record = lab.record(&label("low"));
    assert!(record.exploratory);
    let entry = &record.spec_manifest.entries["followup"];
    assert_eq!(entry.class, Class::Cosmetic);
    let why = "//t#odd: `got > 1` holds for //t:p-two: got = 2";
    assert_eq!(entry.value.as_str(), Some(why));
    let by_hand = lab.build().await;
    assert_eq!(
        (
            by_hand.ended.summary.reused,
            by_hand.ended.summary.followups
        ),
        (4, 0)
    );

    // Again: it still holds, and what it calls for is at hand. Nothing runs, nothing is noted.
    let again = build(&lab).await;
    assert_eq!(told(&again.events), told(&built.events));
    assert_eq!(
        (again.ended.summary.reused, again.ended.summary.followups),
        (2, 2)
    );
    assert_eq!(again.node(&label("high")).outcome, Outcome::Reused);
    assert!(!again.ended.begun);
    assert_eq!(ran(&lab).len(), 4);

    // Whoever does not ask for follow-ups gets none.
    let without = lab
        .build_with(Build {
            targets: &["//t:p-one", "//t:p-two"],
            ..Build::default()
        })
        .await;
    assert_eq!(
        (
            without.ended.summary.reused,
            without.ended.summary.followups
        ),
        (2, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_does_not_hold_or_cannot_brings_nothing() {
    for when in [
        "got > 2",
        "got > 1 and m == 1",
        "expected.got > 100",
        "off.got > 0.8",
    ] {
        let lab = lab(&followup(when, ""));
        let built = build(&lab).await;
        assert_eq!(told(&built.events), [], "{when}");
        assert_eq!(ran(&lab), ["1", "2"], "{when}");
        assert_eq!(built.ended.summary.followups, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_at_hand_call_for_what_has_not_run() {
    let lab = lab("");
    build(&lab).await;
    lab.plan(&plan(&followup("got == 2", "")));
    let built = build(&lab).await;
    assert_eq!(
        (built.ended.summary.reused, built.ended.summary.followups),
        (2, 2)
    );
    assert_eq!(ran(&lab), ["1", "11", "12", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn far_off_its_expectation() {
    // 1 where 4..8 is expected is 75 % off; the ad-hoc ones are gated on just that.
    let lab = lab(&followup("off.got >= 0.3 and expected.got == 4", ""));
    lab.plan(
        &plan(&followup("off.got >= 0.3 and expected.got == 4", ""))
            .replace("adhoc = true", "adhoc = true\ngate = [\"one\"]"),
    );
    let built = build(&lab).await;
    assert_eq!(told(&built.events), [("//t#odd", vec!["//t:p-one"], 2)]);
    assert_eq!(built.node(&label("low")).outcome, Outcome::Ok);
    assert_eq!(built.ended.summary.followups_failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_of_a_comparison() {
    let layers = "
[[layer]]
id = \"L1-Left\"
rule = \"t.a\"
pattern = \"left-{{ m }}\"
settings = { n = 10 }
[layer.matrix]
m = [1, 2]
[[layer]]
id = \"L2-Right\"
rule = \"t.a\"
pattern = \"right-{{ m }}\"
settings = { n = 10 }
[layer.matrix]
m = [1, 2]
[[layer.override]]
when = \"m == 2\"
settings = { n = 25 }
[[layer]]
id = \"L5-Low\"
adhoc = true
rule = \"t.a\"
pattern = \"low\"
settings = { n = 11 }
[layer.matrix]
m = [7]
[[compare]]
id = \"CMP\"
between = [\"L1\", \"L2\"]
by = [\"m\"]
only_on = [\"n\"]
[[followup]]
patterns = [\"L5\"]
across = \"CMP\"
when = \"m >= 1 and (L1.got - L2.got) | abs >= DISTANCE\"
";
    let lab = Lab::new(
        &rule("a", "echo {{ n }} >> SCRATCH/order"),
        &layers.replace("DISTANCE", "16"),
    );
    let built = build(&lab).await;
    assert_eq!(told(&built.events), []);
    lab.plan(&layers.replace("DISTANCE", "15"));
    let built = build(&lab).await;
    let pair = vec!["//t:left-2", "//t:right-2"];
    assert_eq!(told(&built.events), [("//t#followup-1", pair, 1)]);
    let record = lab.record("//t:low");
    let why = record.spec_manifest.entries["followup"]
        .value
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.ends_with("L1.got = 10, L2.got = 25, m = 2"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_kept_and_what_it_leaves_out_is_said() {
    // Ten seconds each by the plan: one fits.
    let lab = lab(&followup("got == 2", "budget = \"18s\""));
    // The first took no time at all, so that the second fits after it.
    let built = build(&lab).await;
    assert_eq!(ran(&lab), ["1", "11", "12", "2"]);
    assert_eq!(warnings(&built, "followup-budget"), Vec::<&str>::new());
    let index = |of: &str| {
        let is = |event: &&Event| matches!(&event.body, Body::NodeFinished(node) if node.label == label(of));
        built.events.iter().position(|event| is(&event)).unwrap()
    };
    let second = built.events.iter().position(
        |event| matches!(&event.body, Body::NodeState { label: of, .. } if *of == label("high")),
    );
    assert!(
        index("low") < second.unwrap(),
        "the second began before the first had ended"
    );

    let lab = self::lab(&followup("got == 2", "budget = \"9s\""));
    for _ in 0..2 {
        let built = build(&lab).await;
        assert_eq!(ran(&lab), ["1", "2"]);
        assert_eq!(built.ended.summary.followups, 0);
        assert_eq!(
            warnings(&built, "followup-budget"),
            ["follow-up //t#odd: its budget of 9s leaves out 2 patterns"]
        );
    }
    // Without knowing how long they take: one at a time, as long as the budget is not spent.
    let unknown =
        plan(&followup("got == 2", "budget = \"9s\"")).replace("estimate = \"10s\"\n", "");
    lab.plan(&unknown);
    let built = build(&lab).await;
    assert_eq!(built.ended.summary.followups, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_up_that_fails_fails_the_run_and_is_counted_apart() {
    let rules = rule("a", "test {{ n }} -ne 12");
    let lab = Lab::new(&rules, &plan(&followup("got == 2", "")));
    let built = build(&lab).await;
    let summary = &built.ended.summary;
    assert_eq!((summary.ok, summary.failed), (2, 0));
    assert_eq!((summary.followups, summary.followups_failed), (2, 1));
    assert!(!summary.is_good());
    // It is tried again, the other is at hand.
    let again = build(&lab).await;
    assert_eq!(again.node(&label("low")).outcome, Outcome::Reused);
    assert_eq!(again.node(&label("high")).outcome, Outcome::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_follow_ups_share_what_they_call_for() {
    let second = "[[followup]]\nid = \"other\"\npatterns = [\"high\"]\nwhen = \"got == 2\"\n";
    let lab = lab(&(followup("got == 1", "") + second));
    let built = build(&lab).await;
    let names: Vec<&str> = told(&built.events).iter().map(|told| told.0).collect();
    assert_eq!(names, ["//t#odd", "//t#other"]);
    assert_eq!(built.ended.summary.followups, 2);
    assert_eq!(ran(&lab), ["1", "11", "12", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_begins_no_follow_up() {
    let lab = lab(&followup("got >= 1", ""));
    let built = lab
        .build_with(Build {
            followups: true,
            jobs: Some(1),
            watch: Some(Box::new(|event, interrupts| {
                if matches!(&event.body, Body::NodeState { state, .. } if *state == doe::engine::event::NodeState::Running)
                {
                    interrupts.send_replace(1);
                }
            })),
            ..Build::default()
        })
        .await;
    assert!(built.ended.interrupted);
    assert_eq!(built.ended.summary.followups, 0);
    assert_eq!(warnings(&built, "followup-budget"), Vec::<&str>::new());
    // The next build makes up for it.
    assert_eq!(build(&lab).await.ended.summary.followups, 2);
}

/// What a spoiled attempt took is spent.
#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_counts_in_a_budget() {
    let script = "if test {{ n }} = 11 && ! test -e SCRATCH/once; then touch SCRATCH/once; sleep 6; exit 75; fi";
    let rules = rule("a", script).replacen(
        "[a]\n",
        "[a]\nfailure = [{ class = \"infrastructure\", exit_code = 75 }]\n",
        1,
    );
    let retry = "retry = { times = 1, base = \"1ms\" }\n".to_owned();
    let plan = retry + &plan(&followup("got == 2", "budget = \"15s\""));
    let built = build(&Lab::new(&rules, &plan)).await;
    assert_eq!(built.ended.summary.retries, 1);
    assert_eq!(built.ended.summary.followups, 1);
    assert_eq!(
        warnings(&built, "followup-budget"),
        ["follow-up //t#odd: its budget of 15s leaves out 1 pattern"]
    );
}

/// One that was spoiled and is cancelled in its pause has counted by then.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_spoiled_attempt_counts_once_in_a_budget() {
    let rules = rule("a", "if test {{ n }} = 11; then sleep 8; exit 75; fi").replacen(
        "[a]\n",
        "[a]\nfailure = [{ class = \"infrastructure\", exit_code = 75 }]\n",
        1,
    );
    let retry = "retry = { times = 1, base = \"10m\" }\n".to_owned();
    let lab = Lab::new(
        &rules,
        &(retry + &plan(&followup("got == 2", "budget = \"25s\""))),
    );
    let runs = lab.store.layout().runs();
    let built = lab
        .build_with(Build {
            followups: true,
            watch: Some(Box::new(move |event, _| {
                if matches!(&event.body, Body::Retrying(_)) {
                    let run = std::fs::read_dir(&runs).unwrap().flatten().next().unwrap();
                    let low = label("low");
                    doe::engine::request::ask_to_cancel(&run.path(), Some(&low)).unwrap();
                }
            })),
            ..Build::default()
        })
        .await;
    let low = built.node(&label("low"));
    assert_eq!(low.outcome, Outcome::Failed);
    assert!(low.reason.as_ref().unwrap().contains("not tried again"));
    // Twice eight seconds and its own ten would be too much.
    assert_eq!(built.node(&label("high")).outcome, Outcome::Ok);
}

/// A result that is damaged is none, also that of a pattern that a follow-up brought in.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_result_of_a_follow_up_is_made_again() {
    let plan = plan(&followup("got == 2", "")).replace(
        "settings = { n = 11 }",
        "settings = { n = 11 }\nexpect = { got = \"11\" }",
    );
    let lab = Lab::new(&rule("a", "echo {{ n }} >> SCRATCH/order"), &plan);
    build(&lab).await;
    let digest = lab.record(&label("low")).id().unwrap();
    let path = lab.store.layout().record(&digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "{}").unwrap();
    let built = build(&lab).await;
    assert_eq!(built.node(&label("low")).outcome, Outcome::Ok);
    assert_eq!(built.node(&label("high")).outcome, Outcome::Reused);
    assert_eq!(warnings(&built, "damaged").len(), 1);
    assert_eq!(ran(&lab), ["1", "11", "11", "12", "2"]);
}

/// Analyses that are brought in go on from each other before these are durable.
#[tokio::test(flavor = "multi_thread")]
async fn analyses_of_analyses_are_brought_in() {
    let rules = rule("a", "true") + LOOK;
    let plan = pattern("two", "a", "settings = { n = 2 }")
        + &pattern("near", "look", "adhoc = true\nneeds = [\"two\"]")
        + &pattern("far", "look", "adhoc = true\nneeds = [\"near\", \"two\"]")
        + "[[followup]]\nid = \"odd\"\npatterns = [\"near\", \"far\"]\nwhen = \"got > 1\"\n\
           budget = \"1m\"\n";
    let lab = Lab::new(&rules, &plan);
    let built = build(&lab).await;
    assert_eq!(told(&built.events), [("//t#odd", vec!["//t:p-two"], 2)]);
    for id in ["two", "near", "far"] {
        assert_eq!(built.node(&label(id)).outcome, Outcome::Ok, "{id}");
    }
}
