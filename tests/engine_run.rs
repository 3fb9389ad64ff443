//! The engine as a whole, with real processes on the local executor: order, failures, gates, reuse.

mod lab;

use doe::engine::event::{Body, NodeState, Outcome};
use doe_cache::{CriterionStatus, ExecutionStatus, NodeState as StoredState, RecordKind};
use lab::rules::{LOOK, label, pattern, rule};
use lab::{Build, Lab};

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_runs_in_order_is_recorded_and_is_reused() {
    let rules = rule("a", "echo {{ n }} >> SCRATCH/order; echo told");
    let plan = |last: i64| {
        pattern("one", "a", "settings = { n = 1 }")
            + &pattern("two", "a", "settings = { n = 2 }\nneeds = [\"one\"]")
            + &pattern(
                "three",
                "a",
                &format!("settings = {{ n = {last} }}\nneeds = [\"two\"]"),
            )
    };
    let lab = Lab::new(&rules, &plan(3));
    let built = lab.build().await;
    let expected = [
        (label("one"), Outcome::Ok),
        (label("two"), Outcome::Ok),
        (label("three"), Outcome::Ok),
    ];
    let outcomes: Vec<_> = built
        .outcomes()
        .iter()
        .map(|(l, o)| (l.to_string(), *o))
        .collect();
    assert_eq!(outcomes, expected);
    assert_eq!(lab.lines("order"), ["1", "2", "3"]);
    let record = lab.record("//t:p-two");
    assert_eq!(record.kind, RecordKind::Measure);
    assert_eq!(record.metrics["got"].value, 2.0);
    assert_eq!(lab.log(&record, "step-go.stdout"), "told\n");
    assert_eq!(record.provenance.hosts["first"], "h1");
    assert!(record.provenance.facts.contains_key("host.h1.kernel"));
    assert!(!record.provenance.simulated);
    assert!(record.timings.phases.contains_key("running"));
    assert!(record.usable());
    // The states that a node passes, in order.
    let states: Vec<NodeState> = built
        .events
        .iter()
        .filter_map(|event| match &event.body {
            Body::NodeState { label, state, .. } if label == "//t:p-two" => Some(*state),
            _ => None,
        })
        .collect();
    assert!(states.is_sorted() && states.len() == 6, "{states:?}");
    assert_eq!(lab.store.run_nodes(&built.ended.run_id).unwrap().len(), 3);

    let again = lab.build().await;
    assert_eq!(again.ended.summary.reused, 3);
    assert!(!again.ended.begun, "nothing happened, so nothing is noted");
    assert_eq!(lab.lines("order").len(), 3);

    // Only what changed runs; what it needs is at hand.
    lab.plan(&plan(4));
    let changed = lab.build().await;
    assert_eq!(
        (changed.ended.summary.ok, changed.ended.summary.reused),
        (1, 2)
    );
    assert_eq!(lab.lines("order"), ["1", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_output_of_a_rerun_leaves_dependents_alone() {
    let plan =
        pattern("one", "a", "") + &pattern("two", "a", "settings = { n = 2 }\nneeds = [\"one\"]");
    let lab = Lab::new(&rule("a", "echo {{ n }} >> SCRATCH/order"), &plan);
    lab.build().await;
    let built = lab
        .build_with(Build {
            rerun: &["//t:p-one"],
            ..Build::default()
        })
        .await;
    assert_eq!(built.node("//t:p-one").outcome, Outcome::Ok);
    assert_eq!(built.node("//t:p-two").outcome, Outcome::Reused);
    assert_eq!(lab.lines("order"), ["1", "2", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_with_their_cause_and_others_go_on() {
    let rules = rule("fails", "echo seen; echo the cause >&2; exit 3")
        + &rule("silent", "exit 0")
        + &rule(
            "wrong",
            "echo '{\"schema\": \"t-v1\"}' > {{ out.result }}; exit 0",
        )
        + &rule("garbage", "echo '{' > {{ out.result }}; exit 0")
        + &rule("fine", "true");
    let plan = ["fails", "silent", "wrong", "garbage", "fine"]
        .map(|r| pattern(r, r, ""))
        .concat()
        + &pattern("after", "fine", "settings = { n = 7 }\nneeds = [\"fails\"]")
        + &pattern(
            "behind",
            "fine",
            "settings = { n = 8 }\nneeds = [\"after\"]",
        )
        + &pattern("free", "fine", "settings = { n = 9 }\nneeds = [\"fine\"]");
    let lab = Lab::new(&rules, &plan);
    let built = lab.build().await;
    let node = built.node("//t:p-fails");
    assert_eq!(node.outcome, Outcome::Failed);
    assert_eq!(node.class.as_deref(), Some("program"));
    assert_eq!(
        built.reason("//t:p-fails"),
        "step `go` ended with exit code 3"
    );
    assert_eq!(built.tail("//t:p-fails"), "the cause");
    assert_eq!(
        built.node("//t:p-silent").class.as_deref(),
        Some("no-result")
    );
    assert_eq!(
        built.reason("//t:p-silent"),
        "output `result` was not written (r.json)"
    );
    assert_eq!(built.node("//t:p-wrong").outcome, Outcome::Invalid);
    assert!(
        built
            .reason("//t:p-wrong")
            .contains("metric `got` is missing")
    );
    assert!(built.reason("//t:p-garbage").contains("it is not JSON"));
    assert_eq!(
        built.reason("//t:p-after"),
        "needs //t:p-fails, which failed"
    );
    assert_eq!(
        built.reason("//t:p-behind"),
        "needs //t:p-after, which is blocked itself"
    );
    assert_eq!(built.node("//t:p-free").outcome, Outcome::Ok);
    let summary = &built.ended.summary;
    assert_eq!(
        (summary.ok, summary.failed, summary.invalid, summary.blocked),
        (2, 2, 2, 2)
    );

    let record = lab.record("//t:p-fails");
    assert_eq!(record.verdicts.execution.status, ExecutionStatus::Failed);
    assert_eq!(record.verdicts.execution.exit_code, Some(3));
    assert_eq!(lab.log(&record, "step-go.stdout"), "seen\n");
    assert!(!record.usable());
    // What was refused keeps its outputs, for whoever looks closer.
    assert!(lab.record("//t:p-wrong").outputs.contains_key("result"));
    let states = lab.store.latest_states().unwrap();
    let failed: Vec<_> = states
        .iter()
        .filter(|(_, s)| s.is_failure())
        .map(|(l, _)| l.as_str())
        .collect();
    let expected = ["after", "behind", "fails", "garbage", "silent", "wrong"].map(label);
    assert_eq!(failed, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_cleared_when_a_stored_result_stands_for_it_again() {
    let rules = rule("a", "test {{ n }} -lt 5");
    let plan = |n: i64| pattern("one", "a", &format!("settings = {{ n = {n} }}"));
    let lab = Lab::new(&rules, &plan(1));
    lab.build().await;
    lab.plan(&plan(9));
    assert_eq!(lab.build().await.ended.summary.failed, 1);
    assert_eq!(
        lab.store.latest_states().unwrap()["//t:p-one"],
        StoredState::Failed
    );
    lab.plan(&plan(1));
    assert_eq!(lab.build().await.ended.summary.reused, 1);
    assert_eq!(
        lab.store.latest_states().unwrap()["//t:p-one"],
        StoredState::Reused
    );
}

const GANG: &str = r#"
[gang]
param.mode = { type = "str", doc = "what happens" }
roles = { first = {}, second = {} }
[[gang.step]]
name = "server"
gang = "pair"
role = "second"
timeout = "1m"
ready = { file = "SCRATCH/up-{{ mode }}", within = "30s" }
run = """
echo server >> SCRATCH/order-{{ mode }}
touch SCRATCH/up-{{ mode }}
case {{ mode }} in
  good) while ! test -e SCRATCH/served; do sleep 0.01; done ;;
  early) rm SCRATCH/up-early; exit 0 ;;
  *) exec sleep 600 ;;
esac
"""
[[gang.step]]
name = "client"
gang = "pair"
role = "first"
after = ["server"]
timeout = "1m"
run = """
echo client >> SCRATCH/order-{{ mode }}
case {{ mode }} in bad) exit 4 ;; esac
touch SCRATCH/served
"""
[[gang.step]]
name = "last"
role = "first"
timeout = "1m"
run = "echo '{}' > {{ out.result }}; echo last >> SCRATCH/order-{{ mode }}"
[gang.output]
result = { path = "r.json" }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_gang_run_together_and_one_failure_ends_the_others() {
    let plan = ["good", "bad"]
        .map(|mode| pattern(mode, "gang", &format!("settings = {{ mode = \"{mode}\" }}")))
        .concat();
    let lab = Lab::new(GANG, &plan);
    let built = lab.build().await;
    assert_eq!(
        built.node("//t:p-good").outcome,
        Outcome::Ok,
        "{:?}",
        built.node("//t:p-good")
    );
    assert_eq!(lab.lines("order-good"), ["server", "client", "last"]);
    // The client fails while the server sleeps: the server is cancelled (nothing is left, which
    // every build here checks), the last step never begins.
    assert_eq!(
        built.reason("//t:p-bad"),
        "step `client` ended with exit code 4"
    );
    assert_eq!(lab.lines("order-bad"), ["server", "client"]);
    let record = lab.record("//t:p-good");
    assert_eq!(record.provenance.hosts["second"], "h2");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_end_what_takes_too_long() {
    let rules = rule("slow", "exec sleep 600").replace("timeout = \"1m\"", "timeout = \"200ms\"");
    let lab = Lab::new(&rules, &pattern("slow", "slow", ""));
    let built = lab.build().await;
    let node = built.node("//t:p-slow");
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Failed, Some("timeout"))
    );
    assert_eq!(
        built.reason("//t:p-slow"),
        "step `go` took longer than 200ms"
    );
    assert_eq!(
        lab.record("//t:p-slow").verdicts.execution.status,
        ExecutionStatus::Timeout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_hold_back_execution_until_expectations_are_met() {
    let rules = rule("a", "true");
    let plan = |expect: &str| {
        pattern(
            "base",
            "a",
            &format!("settings = {{ n = 10 }}\nexpect = {{ got = \"{expect}\" }}"),
        ) + &pattern("held", "a", "settings = { n = 2 }\ngate = [\"base\"]")
    };
    let lab = Lab::new(&rules, &plan("< 5"));
    let built = lab.build().await;
    assert_eq!(
        built.node("//t:p-base").outcome,
        Outcome::Ok,
        "a missed expectation is a result"
    );
    assert_eq!(built.node("//t:p-base").missed, ["got is 10, expected < 5"]);
    assert_eq!(
        built.reason("//t:p-held"),
        "is gated on //t:p-base, where got is 10, expected < 5"
    );
    assert_eq!(
        lab.record("//t:p-base").verdicts.criterion.status,
        CriterionStatus::Missed
    );
    // The stored numbers are held against what is expected now.
    lab.plan(&plan("< 50"));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-base").outcome, Outcome::Reused);
    assert_eq!(built.node("//t:p-held").outcome, Outcome::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_actions_are_executed_once() {
    // `m` appears in no script: the patterns ask for different things and would execute the same.
    let plan = [0, 1, 2]
        .map(|m| pattern(&format!("m{m}"), "a", &format!("settings = {{ m = {m} }}")))
        .concat();
    let lab = Lab::new(&rule("a", "echo go >> SCRATCH/order"), &plan);
    let built = lab.build().await;
    assert_eq!((built.ended.summary.ok, built.ended.summary.reused), (1, 2));
    assert_eq!(lab.lines("order").len(), 1);
    assert_eq!(lab.build().await.ended.summary.reused, 3);

    let lab = Lab::new(&rule("a", "echo go >> SCRATCH/order; exit 1"), &plan);
    let built = lab.build().await;
    assert_eq!(built.ended.summary.failed, 3);
    assert_eq!(lab.lines("order").len(), 1);
    assert_eq!(
        built.reason("//t:p-m2"),
        "the same as //t:p-m0: step `go` ended with exit code 1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn new_definitions_of_numbers_are_read_from_stored_outputs() {
    let rules = rule("a", "echo go >> SCRATCH/order");
    let lab = Lab::new(&rules, &pattern("one", "a", "settings = { n = 7 }"));
    lab.build().await;
    lab.rules(&(rules.clone() + "twice = { from = \"result\", at = \"/got\", unit = \"x\" }\n[a.valid]\nthat = [\"got > 5\"]\n"));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-one").outcome, Outcome::Reused);
    let record = lab.record("//t:p-one");
    assert_eq!(record.metrics["twice"].value, 7.0);
    assert!(record.rejudged_from.is_some());
    lab.rules(&(rules + "[a.valid]\nthat = [\"got > 8\"]\n"));
    for _ in 0..2 {
        let built = lab.build().await;
        assert_eq!(built.node("//t:p-one").outcome, Outcome::Invalid);
        assert_eq!(built.reason("//t:p-one"), "does not hold: got > 8");
    }
    assert_eq!(lab.lines("order").len(), 1);
}

/// Conditions on results see settings and variables: whoever sets another bound gets another verdict
/// over the same execution, whatever else the setting affects.
#[tokio::test(flavor = "multi_thread")]
async fn what_validity_looks_at_is_judged_again_when_it_changes() {
    let rules = rule("a", "echo go >> SCRATCH/order").replacen(
        "param.m = { type = \"int\", default = 0, doc = \"another\" }",
        "param.m = { type = \"int\", default = 0, doc = \"another\" }\n\
         param.least = { type = \"int\", default = 0, affects = \"scheduling\" }\n\
         let.bound = \"m + least\"",
        1,
    ) + "[a.valid]\nthat = [\"got >= bound\"]\n";
    let one = |settings: &str| pattern("one", "a", &format!("settings = {{ n = 5, {settings} }}"));
    let lab = Lab::new(&rules, &one("m = 1"));
    assert_eq!(lab.build().await.node("//t:p-one").outcome, Outcome::Ok);
    for bad in ["m = 100", "least = 100"] {
        lab.plan(&one(bad));
        for _ in 0..2 {
            let built = lab.build().await;
            assert_eq!(built.node("//t:p-one").outcome, Outcome::Invalid, "{bad}");
            assert_eq!(built.reason("//t:p-one"), "does not hold: got >= bound");
        }
    }
    lab.plan(&one("least = 2"));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-one").outcome, Outcome::Reused);
    assert_eq!(lab.record("//t:p-one").settings["least"], 2.into());
    assert_eq!(lab.lines("order").len(), 1);

    // The same action for all, whoever comes first; and each keeps its own verdict.
    for (setting, order) in [
        ("m", [1, 100, 2]),
        ("m", [100, 1, 2]),
        ("least", [100, 2, 1]),
    ] {
        let plan = order.map(|bound| {
            let settings = format!("settings = {{ n = 5, {setting} = {bound} }}");
            pattern(&format!("b{bound}"), "a", &settings)
        });
        let lab = Lab::new(&rules, &plan.concat());
        for turn in 0..3 {
            let built = lab.build().await;
            for bound in [1, 2, 100] {
                let label = format!("//t:p-b{bound}");
                let outcome = built.node(&label).outcome;
                let good = matches!(outcome, Outcome::Ok | Outcome::Reused);
                assert_eq!(good, bound < 5, "{setting} {order:?} {turn}: {bound}");
                let record = lab.record(&label);
                assert_eq!(record.settings[setting], bound.into());
                assert_eq!(record.verdicts.validity.failed.is_empty(), good);
            }
            if turn == 2 {
                let judged = built.ended.summary;
                assert_eq!((judged.ok, judged.reused, judged.invalid), (0, 2, 1));
            }
        }
        assert_eq!(lab.lines("order").len(), 1, "{setting} {order:?}");
        let labels = [1, 2].map(|bound| lab.record(&format!("//t:p-b{bound}")));
        lab.build().await;
        let later = [1, 2].map(|bound| lab.record(&format!("//t:p-b{bound}")));
        assert_eq!(labels, later, "nothing is judged once more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_analysis_reads_the_outputs_of_what_it_needs() {
    let rules = rule("a", "true") + LOOK;
    let plan = pattern("b", "a", "settings = { n = 5 }")
        + &pattern("a", "a", "settings = { n = 4 }")
        + &pattern("look", "look", "needs = [\"b\", \"a\"]");
    let lab = Lab::new(&rules, &plan);
    let built = lab.build().await;
    assert_eq!(built.ended.summary.ok, 3, "{:?}", built.node("//t:p-look"));
    let record = lab.record("//t:p-look");
    assert_eq!(record.kind, RecordKind::Analysis);
    let bytes = lab.store.blob(&record.outputs["result"].digest).unwrap();
    let inputs: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    // In the order of their labels.
    assert_eq!(inputs[0]["label"], "//t:p-a");
    assert_eq!(inputs[1]["settings"]["n"], 5);
    let path = inputs[0]["outputs"]["result"].as_str().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, "{\"schema\": \"t-v1\", \"got\": 4}\n");
}

/// An analysis sees its inputs' settings, so they are in its key even where the outputs are equal;
/// it does not see those that only say how something is run.
#[tokio::test(flavor = "multi_thread")]
async fn an_analysis_runs_again_when_the_settings_that_it_sees_change() {
    let rules = r#"
[quiet]
param.n = { type = "int" }
param.patience = { type = "int", default = 1, affects = "scheduling" }
roles = { here = { exclusive = false } }
[[quiet.step]]
name = "measure"
role = "here"
timeout = "1m"
run = ": {{ n }}; true < /dev/null; echo same > {{ out.result }}"
[quiet.output]
result = { path = "r.txt" }
"#
    .to_owned()
        + LOOK;
    let plan = |settings: &str| {
        pattern("a", "quiet", &format!("settings = {{ {settings} }}"))
            + &pattern("look", "look", "needs = [\"a\"]")
    };
    let lab = Lab::new(&rules, &plan("n = 1"));
    lab.build().await;
    let seen = |lab: &Lab| {
        let record = lab.record("//t:p-look");
        let bytes = lab.store.blob(&record.outputs["result"].digest).unwrap();
        let inputs: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        inputs[0]["settings"].clone()
    };
    assert_eq!(seen(&lab), serde_json::json!({ "n": 1 }));

    lab.plan(&plan("n = 1, patience = 2"));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-look").outcome, Outcome::Reused);

    let before = lab.record("//t:p-a").outputs["result"].digest;
    lab.plan(&plan("n = 2"));
    let built = lab.build().await;
    assert_eq!(lab.record("//t:p-a").outputs["result"].digest, before);
    assert_eq!(built.node("//t:p-look").outcome, Outcome::Ok);
    assert_eq!(seen(&lab), serde_json::json!({ "n": 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn fail_fast_begins_nothing_after_the_first_failure() {
    let rules = rule("fails", "exit 1") + &rule("fine", "true");
    let plan = pattern("first", "fails", "") + &pattern("second", "fine", "");
    let lab = Lab::new(&rules, &plan);
    let built = lab
        .build_with(Build {
            fail_fast: true,
            ..Build::default()
        })
        .await;
    assert_eq!(built.node("//t:p-first").outcome, Outcome::Failed);
    assert_eq!(built.node("//t:p-second").outcome, Outcome::Cancelled);
    assert!(!built.ended.interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn measurements_never_share_a_host_and_analyses_share_the_jobs() {
    let script = "mkdir SCRATCH/alone || exit 9; sleep 0.05; rmdir SCRATCH/alone";
    let plan = (0..6)
        .map(|n| pattern(&format!("n{n}"), "a", &format!("settings = {{ n = {n} }}")))
        .collect::<String>();
    let lab = Lab::new(&rule("a", script), &plan);
    assert_eq!(lab.build().await.ended.summary.ok, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_run_are_in_its_folder() {
    let lab = Lab::new(&rule("a", "true"), &pattern("one", "a", ""));
    let built = lab.build().await;
    let dir = lab.store.layout().runs().join(&built.ended.run_id);
    let events = doe::report::read_events(&dir.join("events.jsonl")).unwrap();
    assert_eq!(events, built.events);
    let trace = doe::report::trace::trace(&events);
    let spans = trace["traceEvents"].as_array().unwrap();
    assert!(
        spans
            .iter()
            .any(|span| span["name"] == "//t:p-one" && span["ph"] == "X")
    );
}

/// Random campaigns: every node ends in exactly one way (which every build checks), a node runs
/// only after what it needs, and what is told agrees with what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn random_campaigns_end_every_node_once_and_again_from_the_store() {
    let rules = rule(
        "a",
        "echo {{ n }} >> SCRATCH/order; test $(({{ n }} % 7)) -ne 3",
    );
    let mut seed = 0x5eed_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..6 {
        let count = 4 + random(8);
        let mut plan = String::new();
        let mut edges = Vec::new();
        for node in 0..count {
            let mut more = format!("settings = {{ n = {node} }}\n");
            for kind in ["needs", "gate"] {
                let on: Vec<u64> = (0..node).filter(|_| random(4) == 0).collect();
                let ids: Vec<String> = on.iter().map(|n| format!("\"n{n}\"")).collect();
                edges.extend(on.iter().map(|n| (*n, node)));
                more.push_str(&format!("{kind} = [{}]\n", ids.join(", ")));
            }
            plan.push_str(&pattern(&format!("n{node}"), "a", &more));
        }
        let lab = Lab::new(&rules, &plan);
        let built = lab.build().await;
        let order: Vec<u64> = lab
            .lines("order")
            .iter()
            .map(|n| n.parse().unwrap())
            .collect();
        let outcome = |n: u64| built.node(&label(&format!("n{n}"))).outcome;
        for (from, to) in edges {
            let begun = order.iter().position(|n| *n == to);
            let before = order.iter().position(|n| *n == from);
            assert!(
                begun.is_none() || before < begun,
                "{to} ran before {from}: {order:?}"
            );
            assert!(outcome(from).is_good() || outcome(to) == Outcome::Blocked);
        }
        for node in 0..count {
            let failed = node % 7 == 3 && order.contains(&node);
            assert_eq!(outcome(node) == Outcome::Failed, failed, "{node}");
            assert_eq!(order.contains(&node), outcome(node) != Outcome::Blocked);
        }
        // What went well is at hand, what failed runs again, what was blocked still is.
        let again = lab.build().await.ended.summary;
        let first = &built.ended.summary;
        assert_eq!((again.ok, again.reused), (0, first.ok));
        assert_eq!((again.failed, again.blocked), (first.failed, first.blocked));
    }
}

/// Analyses do not wait for the disk between them; whoever measures waits for all that it needs.
/// A record that could not be stored is told, and is nothing to go on with.
#[tokio::test(flavor = "multi_thread")]
async fn analyses_begin_before_what_they_read_is_durable() {
    let rules = rule("a", "echo measured >> SCRATCH/order")
        + r#"
[look]
kind = "analysis"
param.word = { type = "str" }
[[look.step]]
name = "read"
timeout = "1m"
run = "echo {{ word }} >> SCRATCH/order; cat {{ inputs }} > {{ out.result }}"
[look.output]
result = { path = "r.json" }
"#;
    let word = |word: &str| format!("settings = {{ word = \"{word}\" }}");
    let plan = pattern("one", "look", &word("one"))
        + &pattern("two", "look", &(word("two") + "\nneeds = [\"one\"]"))
        + &pattern("alone", "look", &word("alone"))
        + &pattern("costly", "a", "needs = [\"alone\"]");
    let lab = Lab::new(&rules, &plan);
    let records = lab.store.layout().root().join("records");
    let _ = std::fs::remove_dir_all(&records);
    std::fs::write(&records, "no room for records").unwrap();
    let built = lab.build().await;
    for id in ["one", "two", "alone"] {
        let node = built.node(&label(id));
        assert_eq!(node.outcome, Outcome::Failed, "{node:?}");
        assert_eq!(node.record, None);
    }
    assert_eq!(built.node(&label("costly")).outcome, Outcome::Blocked);
    let mut ran = lab.lines("order");
    ran.sort();
    assert_eq!(ran, ["alone", "one", "two"]);

    std::fs::remove_file(&records).unwrap();
    let built = lab.build().await;
    assert_eq!(built.ended.summary.ok, 4, "{:?}", built.outcomes());
    let two = lab.record(&label("two"));
    let read = lab.store.blob(&two.outputs["result"].digest).unwrap();
    let read: serde_json::Value = serde_json::from_slice(&read).unwrap();
    let path = read[0]["outputs"]["result"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "[]");
    assert_eq!(lab.build().await.ended.summary.reused, 4);
}
