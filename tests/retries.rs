//! Every class of failure by a process that really fails so, what of it is tried again and what is
//! not, and what is told and kept of every attempt.

mod lab;

use doe::engine::event::{Body, Event, Outcome, Retrying};
use doe::engine::retry::{delay_ms, seed};
use doe::rule::retry::RetryPolicy;
use doe_cache::{CriterionStatus, ExecutionStatus, Record};
use lab::rules::{label, pattern, rule, served};
use lab::{Build, Built, Lab};

/// Quick pauses, so that a test of many attempts is one.
const QUICK: &str = "retry = { base = \"40ms\", cap = \"80ms\" }";

/// Ends the wrapper, which would leave the exit record, and itself: nothing is left to be read.
const VANISH: &str = "kill -KILL $PPID; kill -KILL $$";

fn retried(events: &[Event]) -> Vec<&Retrying> {
    let told = events.iter().filter_map(|event| match &event.body {
        Body::Retrying(retrying) => Some(retrying),
        _ => None,
    });
    told.collect()
}

fn retried_of<'b>(built: &'b Built, id: &str) -> Vec<&'b Retrying> {
    let all = retried(&built.events).into_iter();
    all.filter(|r| r.label == label(id)).collect()
}

/// The records of a label's last attempts, the last one first.
fn chain(lab: &Lab, id: &str) -> Vec<Record> {
    let mut records = vec![lab.record(&label(id))];
    while let Some(previous) = records.last().unwrap().previous_attempt {
        records.push(lab.store.record(&previous).unwrap());
    }
    records
}

/// A rule that counts its attempts in `SCRATCH/NAME` and does this in each.
fn counted(name: &str, script: &str) -> String {
    rule(
        name,
        &format!("echo go >> SCRATCH/{name}; echo said by $(wc -l < SCRATCH/{name}) >&2; {script}"),
    )
}

fn with_failure(rule: &str, name: &str, entry: &str) -> String {
    rule.replacen(
        &format!("[{name}]\n"),
        &format!("[{name}]\nfailure = [{{ {entry} }}]\n"),
        1,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_class_is_that_of_a_real_failure_and_only_infrastructure_is_tried_again() {
    // (name, script, entry of the rule, class, times that it is executed)
    let cases = [
        ("program", "exit 3", "", "program", 1),
        ("signal", "kill -SEGV $$", "", "program", 1),
        ("timeout", "exec sleep 600", "", "timeout", 1),
        ("noresult", "exit 0", "", "no-result", 1),
        (
            "memory",
            "ulimit -v 400000; exec python3 -c 'x = bytearray(1 << 30)'",
            "class = \"oom\", log = \"MemoryError\"",
            "oom",
            1,
        ),
        (
            "sign",
            "echo 'torch.OutOfMemoryError: CUDA out of memory' >&2; exit 1",
            "",
            "oom",
            1,
        ),
        (
            // What took too much memory is not tried again, even when it took its host along.
            "taken",
            "echo 'CUDA out of memory'; sync; kill -KILL $PPID; kill -KILL $$",
            "",
            "oom",
            1,
        ),
        ("lost", VANISH, "", "lost", 3),
        (
            "named",
            "exit 75",
            "class = \"infrastructure\", exit_code = 75",
            "infrastructure",
            3,
        ),
        (
            "spot",
            "echo 'Spot instance interruption notice' >&2; exit 1",
            "class = \"preempted\", log = \"interruption notice\"",
            "preempted",
            3,
        ),
        (
            "flap",
            "echo 'NCCL WARN: link down' >&2; exit 1",
            "class = \"link_down\", log = \"link down\", infrastructure = true",
            "link_down",
            3,
        ),
        (
            // It ran out of time, whatever its log says of the network.
            "late",
            "echo 'NCCL WARN: link down' >&2; exec sleep 600",
            "class = \"link_down\", log = \"link down\", infrastructure = true",
            "timeout",
            1,
        ),
        (
            "plain",
            "echo 'NCCL WARN: link down' >&2; exit 1",
            "class = \"link_down\", log = \"link down\"",
            "link_down",
            1,
        ),
    ];
    let (mut rules, mut plan) = (String::new(), String::new());
    for (name, script, entry, class, _) in cases {
        let mut text = counted(name, script);
        if !entry.is_empty() {
            text = with_failure(&text, name, entry);
        }
        if class == "timeout" {
            // It elapses in full; by then even a script that begins late has said its part.
            text = text.replace("timeout = \"1m\"", "timeout = \"4s\"");
        }
        rules.push_str(&text);
        plan.push_str(&pattern(name, name, QUICK));
    }
    let lab = Lab::new(&rules, &plan);
    let built = lab.build().await;
    for (name, _, _, class, times) in cases {
        let node = built.node(&label(name));
        assert_eq!(node.outcome, Outcome::Failed, "{name}: {node:?}");
        assert_eq!(node.class.as_deref(), Some(class), "{name}: {node:?}");
        assert_eq!(lab.lines(name).len(), times, "{name}");
        let told = retried_of(&built, name);
        assert_eq!(told.len(), times - 1, "{name}");
        for (at, retrying) in told.iter().enumerate() {
            assert_eq!(retrying.attempt as usize, at + 1);
            assert_eq!(retrying.attempts, 3);
            assert_eq!(retrying.class, class);
            assert!((20..=80).contains(&retrying.delay_ms), "{retrying:?}");
        }
        // Every attempt is a record of its own with its own logs.
        let records = chain(&lab, name);
        assert_eq!(records.len(), times, "{name}");
        for (at, record) in records.iter().rev().enumerate() {
            assert_eq!(record.attempt as usize, at + 1, "{name}");
            assert_eq!(record.attempts, (times > 1).then_some(3), "{name}");
            let said = format!("said by {}\n", at + 1);
            assert!(
                lab.log(record, "step-go.stderr").starts_with(&said),
                "{name}"
            );
            assert!(!record.usable());
        }
        let attempt = (times > 1).then_some(3);
        assert_eq!((node.attempt, node.attempts), (attempt, attempt), "{name}");
    }
    assert_eq!(built.ended.summary.retries, 8);
    assert_eq!(
        lab.record(&label("timeout")).verdicts.execution.status,
        ExecutionStatus::Timeout
    );
    // What ended is noted as failed, not as something that goes on.
    let states = lab.store.latest_states().unwrap();
    assert!(
        states.values().all(|s| s.is_failure() && s.is_terminal()),
        "{states:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_result_is_not_tried_again() {
    let rules = rule(
        "wrong",
        "echo go >> SCRATCH/go; echo '{\"schema\": \"t-v1\"}' > {{ out.result }}; exit 0",
    );
    let lab = Lab::new(&rules, &pattern("wrong", "wrong", QUICK));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-wrong").outcome, Outcome::Invalid);
    assert_eq!(lab.lines("go").len(), 1);
    assert!(retried(&built.events).is_empty());
}

/// Fails as lost until it was begun `times` times.
fn lost_until(name: &str, times: u32) -> String {
    counted(
        name,
        &format!("if [ $(wc -l < SCRATCH/{name}) -lt {times} ]; then {VANISH}; fi"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_attempt_that_succeeds_is_the_result_and_dependents_see_nothing_else() {
    let rules = lost_until("flaky", 3) + &rule("after", "echo after >> SCRATCH/after");
    let plan = pattern("flaky", "flaky", QUICK)
        + &pattern("after", "after", "needs = [\"flaky\"]")
        + &pattern("gated", "after", "settings = { n = 2 }\ngate = [\"flaky\"]");
    let lab = Lab::new(&rules, &plan);
    let built = lab.build().await;
    let node = built.node("//t:p-flaky");
    assert_eq!(node.outcome, Outcome::Ok, "{node:?}");
    assert_eq!((node.attempt, node.attempts), (Some(3), Some(3)));
    assert!(built.ended.summary.is_good(), "{:?}", built.ended.summary);
    assert_eq!(built.ended.summary.retries, 2);
    assert_eq!(lab.lines("flaky").len(), 3);
    assert_eq!(lab.lines("after").len(), 2);
    let records = chain(&lab, "flaky");
    let numbers: Vec<_> = records.iter().map(|r| (r.attempt, r.usable())).collect();
    assert_eq!(numbers, [(3, true), (2, false), (1, false)]);
    // The pauses can be drawn again from what was told.
    let policy = RetryPolicy {
        base_s: 0.04,
        cap_s: 0.08,
        ..RetryPolicy::default()
    };
    for retrying in retried(&built.events) {
        let run = &built.ended.run_id;
        assert_eq!(retrying.seed, seed(run, &retrying.label, retrying.attempt));
        assert_eq!(
            retrying.delay_ms,
            delay_ms(&policy, retrying.attempt, retrying.seed)
        );
    }
    // Folders of attempts are apart, and the run's account has all of them.
    let folder = lab.store.layout().runs().join(&built.ended.run_id);
    for attempt in ["1", "2", "3"] {
        assert!(
            folder
                .join("nodes/t~p-flaky~".to_owned() + attempt)
                .is_dir(),
            "{attempt}"
        );
    }
    let account = doe::report::account::Account::of(&built.events);
    assert_eq!(account.broken, Vec::<String>::new());
    assert_eq!(account.nodes["//t:p-flaky"].spoiled.len(), 2);
    assert_eq!(lab.build().await.ended.summary.reused, 3);
    // The next time it fails it is counted from the start.
    let again = lab
        .build_with(Build {
            rerun: &["//t:p-flaky"],
            ..Build::default()
        })
        .await;
    assert_eq!(again.node("//t:p-flaky").attempt, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_next_attempt_holds_no_host() {
    // The second pattern needs the same host. It writes the file that the first one waits for:
    // were the host held during the pause, its second attempt would fail too.
    let rules = rule("first", &format!("test -e SCRATCH/ran || {{ {VANISH}; }}"))
        + &rule("second", "touch SCRATCH/ran");
    let plan = pattern(
        "first",
        "first",
        "retry = { times = 1, base = \"2s\", factor = 1 }",
    ) + &pattern("second", "second", "");
    let lab = Lab::new(&rules, &plan);
    let built = lab.build().await;
    let order: Vec<_> = built
        .outcomes()
        .into_iter()
        .map(|(l, o)| (l.to_owned(), o))
        .collect();
    assert_eq!(
        order,
        [
            (label("second"), Outcome::Ok),
            (label("first"), Outcome::Ok)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_innermost_word_on_attempts_counts() {
    let plain = counted("plain", VANISH);
    let own = counted("own", VANISH).replacen(
        "[own]\n",
        "[own]\nretry = { times = 3, base = \"1ms\" }\n",
        1,
    );
    let plan = pattern("never", "plain", "retry = 0")
        + &pattern("rule", "own", "settings = { n = 2 }")
        + &pattern("pattern", "own", "settings = { n = 3 }\nretry = 1");
    let lab = Lab::new(&(plain + &own), &plan);
    let built = lab.build().await;
    let told = |id: &str| retried_of(&built, id).len();
    assert_eq!((told("never"), told("rule"), told("pattern")), (0, 3, 1));
    // `base` is the rule's where the pattern says only `times`.
    assert!(retried_of(&built, "pattern")[0].delay_ms <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_vanishes_is_started_anew_for_the_next_attempt() {
    // The first time the server and its wrapper are ended without a trace.
    let gone = "wrapper=$(ps -o ppid= -p $(cat SCRATCH/pid-{{ size }}))
test -e SCRATCH/gone || { touch SCRATCH/gone; kill -KILL $wrapper $(cat SCRATCH/pid-{{ size }}); exec sleep 600; }";
    let lab = Lab::new(&served("", gone), &lab::rules::cell(1, 1, QUICK));
    let built = lab.build().await;
    let told = retried_of(&built, "s1n1");
    assert_eq!(told.len(), 1, "{:?}", built.node("//t:p-s1n1"));
    assert_eq!(told[0].class, "service-lost", "{told:?}");
    assert!(
        told[0].reason.starts_with("service `server` was lost"),
        "{told:?}"
    );
    assert_eq!(built.node("//t:p-s1n1").outcome, Outcome::Ok);
    assert_eq!(lab.lines("starts").len(), 2);
    let records = chain(&lab, "s1n1");
    assert_eq!(lab.log(&records[1], "service-server.stdout"), "serving 1\n");

    // One that vanishes every time is given up after as many starts as its node has attempts.
    let always = "wrapper=$(ps -o ppid= -p $$); kill -KILL $wrapper $$";
    let lab = Lab::new(&served(always, ""), &lab::rules::cell(1, 1, QUICK));
    let built = lab.build().await;
    let node = built.node("//t:p-s1n1");
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Failed, Some("service-lost"))
    );
    assert_eq!(lab.lines("starts").len(), 3);
    assert_eq!(chain(&lab, "s1n1").len(), 3);
    // One that dies of itself is not tried again for the node.
    let dies = served("exit 4", "");
    let lab = Lab::new(&dies, &lab::rules::cell(1, 1, QUICK));
    let built = lab.build().await;
    assert_eq!(
        built.node("//t:p-s1n1").class.as_deref(),
        Some("service-died")
    );
    assert_eq!(lab.lines("starts").len(), 1);
}

/// What is tried again asks the limits anew: it is still the canary of its services, and what it
/// took counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_tried_again_is_still_the_canary() {
    let step = "test -e SCRATCH/once || { touch SCRATCH/once; exit 75; }";
    let rules = with_failure(
        &served("", step),
        "served",
        "class = \"preempted\", exit_code = 75",
    );
    let plan = lab::rules::cell(1, 1, QUICK) + &lab::rules::cell(1, 2, QUICK);
    let lab = Lab::new(&rules, &plan);
    let caps = doe::engine::caps::Caps {
        canary: true,
        max_s: Some(3600.0),
        ..Default::default()
    };
    let built = lab
        .build_with(Build {
            caps,
            ..Build::default()
        })
        .await;
    assert_eq!(built.ended.summary.ok, 2, "{:?}", built.outcomes());
    let ran: Vec<_> = lab.lines("order");
    let ran: Vec<_> = ran.iter().map(|line| &line[..3]).collect();
    assert_eq!(ran, ["1-1", "1-1", "1-2"]);
    // The service stays up while its node waits.
    assert_eq!(lab.lines("starts").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_wait_for_a_further_attempt() {
    let rules = counted("flaky", VANISH);
    let plan = pattern(
        "flaky",
        "flaky",
        "retry = { base = \"10m\", cap = \"10m\" }",
    );
    let lab = Lab::new(&rules, &plan);
    let built = lab
        .build_with(Build {
            watch: Some(Box::new(|event, interrupts| {
                if matches!(event.body, Body::Retrying(_)) {
                    interrupts.send_replace(1);
                }
            })),
            ..Build::default()
        })
        .await;
    assert!(built.ended.interrupted);
    let node = built.node("//t:p-flaky");
    assert_eq!(node.outcome, Outcome::Failed);
    let reason = built.reason("//t:p-flaky");
    assert!(
        reason.ends_with("not tried again: not begun: the run was interrupted"),
        "{reason}"
    );
    assert_eq!(
        node.record.as_deref(),
        Some(&*lab.record(&label("flaky")).id().unwrap().to_string())
    );
    let states = lab.store.latest_states().unwrap();
    assert!(states["//t:p-flaky"].is_terminal());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_is_expected_is_the_result_and_its_absence_is_invalid() {
    let oom = "test {{ n }} -lt 5 || { echo CUDA out of memory >&2; exit 1; }; test {{ n }} -ne 4 || exit 2";
    let rules = rule("a", &format!("echo {{{{ n }}}} >> SCRATCH/order; {oom}"));
    let plan = |n: i64, more: &str| {
        pattern("big", "a", &format!("settings = {{ n = {n} }}\n{more}"))
            + &pattern("after", "a", "settings = { n = 1 }\ngate = [\"big\"]")
    };
    let lab = Lab::new(&rules, &plan(9, "expect = \"oom\""));
    let built = lab.build().await;
    let node = built.node("//t:p-big");
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Ok, Some("oom")),
        "{node:?}"
    );
    assert_eq!(
        built.node("//t:p-after").outcome,
        Outcome::Ok,
        "its gate is open"
    );
    let record = lab.record("//t:p-big");
    assert!(record.usable() && record.outputs.is_empty());
    assert_eq!(record.verdicts.execution.class.as_deref(), Some("oom"));
    assert_eq!(record.verdicts.criterion.status, CriterionStatus::Met);
    assert!(built.tail("//t:p-big").is_empty());
    // It is at hand like any result, also when the numbers are defined anew.
    let again = lab.build().await;
    assert_eq!(again.ended.summary.reused, 2);
    assert_eq!(again.node("//t:p-big").class.as_deref(), Some("oom"));
    lab.rules(&(rules.clone() + "twice = { from = \"result\", at = \"/got\", unit = \"x\" }\n"));
    assert_eq!(lab.build().await.ended.summary.reused, 2);
    lab.rules(&rules);

    // Without the expectation it is a failure, and no stored result stands for it.
    lab.plan(&plan(9, ""));
    let built = lab.build().await;
    let node = built.node("//t:p-big");
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Failed, Some("oom"))
    );
    // One that runs to its end is refused, and a failure of another class is what it is.
    lab.plan(&plan(2, "expect = \"oom\""));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-big").outcome, Outcome::Invalid);
    assert_eq!(
        built.reason("//t:p-big"),
        "does not hold: it was to fail with class `oom`, and ran to its end"
    );
    // The gate keeps nothing that is at hand.
    assert_eq!(built.node("//t:p-after").outcome, Outcome::Reused);
    lab.plan(&plan(4, "expect = \"oom\""));
    let built = lab.build().await;
    let node = built.node("//t:p-big");
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Failed, Some("program"))
    );
}

/// A client may end well although its server died at the end: what its logs say names it.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_result_is_called_by_what_its_logs_say() {
    let mut rules = String::new();
    for (name, said) in [
        ("dead", "EngineDeadError: see above"),
        ("odd", "all is well"),
    ] {
        let text = rule(name, &format!("echo '{said}' >&2"));
        let entry = "class = \"engine_dead\", log = \"EngineDeadError\"";
        rules.push_str(&with_failure(&text, name, entry));
        rules.push_str(&format!("[{name}.valid]\nthat = [\"result.got == 2\"]\n"));
    }
    let plan = pattern("dead", "dead", "") + &pattern("odd", "odd", "");
    let lab = Lab::new(&rules, &plan);
    let built = lab.build().await;
    for (name, class) in [("dead", Some("engine_dead")), ("odd", None)] {
        let node = built.node(&label(name));
        assert_eq!(node.outcome, Outcome::Invalid, "{node:?}");
        assert_eq!(node.class.as_deref(), class, "{node:?}");
        let record = lab.record(&label(name));
        assert_eq!(record.verdicts.execution.status, ExecutionStatus::Ok);
        assert_eq!(record.verdicts.execution.class.as_deref(), class);
    }
}
