//! Limits and canaries in whole runs. A pattern's `estimate` is what it is expected to take; that it
//! takes next to nothing does not matter, since nothing is begun that could cross a limit.

mod lab;

use doe::engine::caps::Caps;
use doe::engine::event::Outcome;
use lab::rules::{cell, label, pattern, rule, served};
use lab::{Build, Lab};

/// One pattern a second by the plan, each on the one host.
fn chain(count: i64) -> String {
    let one = |n| pattern(&format!("n{n}"), "a", &format!("settings = {{ n = {n} }}"));
    (1..=count).map(one).collect()
}

async fn build(lab: &Lab, caps: Caps) -> lab::Built {
    lab.build_with(Build {
        caps,
        ..Build::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_that_would_cross_the_hours() {
    let plan = chain(2) + &pattern("long", "a", "settings = { n = 9 }").replace("1s", "1h");
    let lab = Lab::new(&rule("a", "echo {{ n }} >> SCRATCH/order"), &plan);
    let caps = Caps {
        max_s: Some(600.0),
        ..Caps::default()
    };
    let built = build(&lab, caps).await;
    assert_eq!(built.node(&label("long")).outcome, Outcome::Cancelled);
    let reason = built.reason(&label("long"));
    assert!(
        reason.starts_with("not begun: --max-hours (10m) would be crossed: "),
        "{reason}"
    );
    assert!(reason.ends_with("it is expected to take 1h"), "{reason}");
    assert_eq!(
        (built.ended.summary.ok, built.ended.summary.cancelled),
        (2, 1)
    );
    assert!(!built.ended.summary.is_good());
    assert_eq!(lab.lines("order"), ["1", "2"]);
    // Without the limit it runs, and the others are at hand.
    let built = build(&lab, Caps::default()).await;
    assert_eq!((built.ended.summary.ok, built.ended.summary.reused), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_that_would_cross_the_cost() {
    // A host-second costs one. What depends on what was not begun is blocked.
    let plan = chain(1)
        + &pattern("dear", "a", "settings = { n = 9 }").replace("1s", "30s")
        + &pattern("after", "a", "settings = { n = 10 }\nneeds = [\"dear\"]");
    let lab = Lab::new(&rule("a", "echo {{ n }} >> SCRATCH/order"), &plan);
    let caps = Caps {
        max_cost: Some(20.0),
        ..Caps::default()
    };
    let built = build(&lab, caps).await;
    let reason = built.reason(&label("dear"));
    assert!(reason.contains("--max-cost (20.00 EUR)"), "{reason}");
    assert!(
        reason.contains("it is expected to take 30.00 EUR"),
        "{reason}"
    );
    assert_eq!(built.node(&label("after")).outcome, Outcome::Blocked);
    assert_eq!(lab.lines("order"), ["1"]);
    let none = build(
        &lab,
        Caps {
            max_cost: Some(0.0),
            ..Caps::default()
        },
    )
    .await;
    assert_eq!((none.ended.summary.ok, none.ended.summary.reused), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canary_of_a_service_goes_first() {
    let canary = Caps {
        canary: true,
        ..Caps::default()
    };
    let plan = || {
        cell(1, 1, "").replace("1s", "1m")
            + &cell(1, 2, "").replace("1s", "2s")
            + &cell(1, 3, "").replace("1s", "1m")
            + &cell(2, 1, "")
    };
    let lab = Lab::new(&served("", "true"), &plan());
    let built = build(&lab, canary).await;
    assert_eq!(built.ended.summary.ok, 4);
    let order = lab.lines("order");
    let of_one: Vec<&str> = order
        .iter()
        .filter_map(|line| line.split(' ').next().filter(|name| name.starts_with("1-")))
        .collect();
    assert_eq!(of_one, ["1-2", "1-1", "1-3"], "the cheapest first");

    // When it fails, nobody else begins on these services; other services are no concern of it.
    let fails = "test {{ size }}-{{ n }} != 1-2";
    let lab = Lab::new(&served("", fails), &plan());
    let built = build(&lab, canary).await;
    assert_eq!(built.node(&label("s1n2")).outcome, Outcome::Failed);
    for held in ["s1n1", "s1n3"] {
        assert_eq!(built.node(&label(held)).outcome, Outcome::Blocked);
        assert_eq!(
            built.reason(&label(held)),
            "//t:p-s1n2, the canary of its services, did not succeed"
        );
    }
    assert_eq!(built.node(&label("s2n1")).outcome, Outcome::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_must_come_up_first_counts() {
    let plan = cell(1, 1, "") + &cell(1, 2, "");
    let lab = Lab::new(&served("sleep 3", "true"), &plan);
    let built = build(&lab, Caps::default()).await;
    assert_eq!(built.ended.summary.ok, 2);
    // The second took next to nothing, for the service was up. Now it is not.
    let limited = |seconds: f64| Build {
        caps: Caps {
            max_s: Some(seconds),
            ..Caps::default()
        },
        rerun: &["//t:p-s1n2"],
        ..Build::default()
    };
    let built = lab.build_with(limited(2.0)).await;
    assert_eq!(built.node(&label("s1n2")).outcome, Outcome::Cancelled);
    let reason = built.reason(&label("s1n2"));
    // What was measured: three seconds, and more on a busy machine.
    let (_, told) = reason.split_once("it is expected to take ").expect(reason);
    let seconds: u32 = told.split('s').next().unwrap().parse().expect(reason);
    assert!(seconds >= 3, "{reason}");
    assert_eq!(lab.lines("starts").len(), 1);
    let built = lab.build_with(limited(600.0)).await;
    assert_eq!(built.node(&label("s1n2")).outcome, Outcome::Ok);
}

/// The canary is spoiled, and while it waits for its next attempt there is no time left for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_not_tried_again_holds_nobody() {
    // At least half of that is waited for: more than there is time for.
    let retry = "retry = { times = 2, base = \"13s\", cap = \"13s\" }";
    let plan = cell(1, 1, retry) + &cell(1, 2, "").replace("1s", "2s");
    let rules = served("", "exit 75").replacen(
        "[served]\n",
        "[served]\nfailure = [{ class = \"infrastructure\", exit_code = 75 }]\n",
        1,
    );
    let lab = Lab::new(&rules, &plan);
    let caps = Caps {
        canary: true,
        max_s: Some(6.0),
        ..Caps::default()
    };
    let built = tokio::time::timeout(std::time::Duration::from_secs(120), build(&lab, caps));
    let built = built.await.expect("the build hangs");
    let reason = built.reason(&label("s1n1"));
    assert!(
        reason.contains("not tried again: not begun: --max-hours"),
        "{reason}"
    );
    assert_eq!(built.node(&label("s1n2")).outcome, Outcome::Blocked);
}
