//! Replicates, drawn orders and stopping when a mean is known well enough, in whole runs.

mod lab;

use std::collections::BTreeSet;

use doe::engine::event::{Body, Outcome};
use doe::engine::order;
use doe_cache::{Class, CriterionStatus, Value};
use lab::rules::{LOOK, label, pattern, rule};
use lab::{Build, Built, Lab};

const COUNT: &str = "echo {{ n }}${DOE_REPLICATE:+@$DOE_REPLICATE} >> SCRATCH/order";

fn replicates(built: &Built, id: &str) -> Vec<(String, Outcome)> {
    let mut found: Vec<_> = built
        .outcomes()
        .into_iter()
        .filter(|(l, _)| l.split('@').next() == Some(&label(id)))
        .map(|(l, o)| (l.to_owned(), o))
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn replicates_are_nodes_of_their_own_and_leave_the_first_where_it_was() {
    let lab = Lab::new(&rule("a", COUNT), &pattern("one", "a", ""));
    lab.build().await;
    let before = lab.record("//t:p-one");

    // Two more: only these run.
    let repeated = pattern("one", "a", "repeat = 3");
    lab.plan(&repeated);
    let built = lab.build().await;
    let expected = [
        ("//t:p-one".to_owned(), Outcome::Reused),
        ("//t:p-one@2".to_owned(), Outcome::Ok),
        ("//t:p-one@3".to_owned(), Outcome::Ok),
    ];
    assert_eq!(replicates(&built, "one"), expected);
    assert_eq!(lab.lines("order"), ["1", "1@2", "1@3"]);
    let third = lab.record("//t:p-one@3");
    assert_eq!(
        third.spec_manifest.entries["replicate"].value,
        Value::Int(3)
    );
    assert_ne!(third.spec_key, before.spec_key);
    assert_ne!(third.action_key, before.action_key);
    assert_eq!(
        lab.record("//t:p-one").spec_key,
        before.spec_key,
        "the first keeps its key"
    );
    assert_eq!(lab.build().await.ended.summary.reused, 3);

    // What reads the pattern reads all of its replicates, or the one that it names.
    lab.rules(&(rule("a", COUNT) + LOOK));
    let plan = repeated
        + &pattern("every", "look", "needs = [\"p-one\"]")
        + &pattern("second", "look", "needs = [\"p-one@2\"]")
        + &pattern("first", "look", "needs = [\"p-one@1\"]");
    lab.plan(&plan);
    assert!(lab.build().await.ended.summary.is_good());
    let read = |id: &str| {
        let record = lab.record(&label(id));
        let bytes = lab.store.blob(&record.outputs["result"].digest).unwrap();
        let inputs: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let labels = inputs.as_array().unwrap().iter();
        labels
            .map(|input| input["label"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(read("every"), ["//t:p-one", "//t:p-one@2", "//t:p-one@3"]);
    assert_eq!(read("second"), ["//t:p-one@2"]);
    assert_eq!(read("first"), ["//t:p-one"]);
}

/// Patterns `p-0` to `p-N` in one order.
fn many(count: i64, more: &str) -> String {
    let plan =
        (0..count).map(|n| pattern(&n.to_string(), "a", &format!("settings = {{ n = {n} }}")));
    // The keys of `[plan]` come first.
    format!("{more}\n{}", plan.collect::<String>())
}

fn seeds(built: &Built) -> Vec<(u64, usize)> {
    let told = built.events.iter().filter_map(|event| match &event.body {
        Body::Ordered { plan, seed, nodes } if plan == "t" => Some((*seed, *nodes)),
        _ => None,
    });
    told.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drawn_order_is_told_kept_beside_results_and_comes_again_from_its_seed() {
    let file: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    let lab = Lab::new(&rule("a", COUNT), &many(12, "order = \"random\""));
    let built = lab.build().await;
    let drawn = lab.lines("order");
    let sorted: BTreeSet<_> = drawn.iter().collect();
    assert_eq!(sorted.len(), 12);
    assert_ne!(drawn, file, "one chance in twelve factorial");
    let [(seed, 12)] = seeds(&built)[..] else {
        panic!("{:?}", seeds(&built));
    };
    for (place, n) in drawn.iter().enumerate() {
        let entries = lab.record(&label(n)).spec_manifest.entries;
        let entry = &entries[order::SEED];
        assert_eq!(
            (&entry.value, entry.class),
            (&Value::Int(seed as i64), Class::Cosmetic)
        );
        assert_eq!(entries[order::PLACE].value, Value::Int(place as i64 + 1));
    }
    // In no key: in file order everything is at hand.
    lab.plan(&many(12, ""));
    let again = lab.build().await;
    assert_eq!(again.ended.summary.reused, 12);
    assert!(seeds(&again).is_empty());

    // The same seed gives the same order, another one another.
    let ordered = |seed: u64| async move {
        let plan = many(12, &format!("order = \"random\"\nseed = {seed}"));
        let lab = Lab::new(&rule("a", COUNT), &plan);
        let built = lab.build().await;
        assert_eq!(seeds(&built), [(seed, 12)]);
        lab.lines("order")
    };
    let (one, same, other) = (ordered(7).await, ordered(7).await, ordered(8).await);
    assert_eq!(one, same);
    assert_ne!(one, other);

    // A part of the campaign stands in the order of the whole.
    let plan = many(12, "order = \"random\"\nseed = 7");
    let lab = Lab::new(&rule("a", COUNT), &plan);
    let some = ["//t:p-1", "//t:p-4", "//t:p-9", "//t:p-11"];
    lab.build_with(Build {
        targets: &some,
        ..Build::default()
    })
    .await;
    let part: Vec<_> = one
        .into_iter()
        .filter(|n| ["1", "4", "9", "11"].contains(&&**n))
        .collect();
    assert_eq!(lab.lines("order"), part);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drawn_order_costs_no_start_of_a_service() {
    let plan: String = (0..4)
        .flat_map(|n| [1, 2].map(|size| lab::rules::cell(size, n, "")))
        .collect();
    let lab = Lab::new(
        &lab::rules::served("", ""),
        &format!("order = \"random\"\nseed = 3\n{plan}"),
    );
    let built = lab.build().await;
    assert_eq!(
        built.ended.summary.service_starts, 2,
        "one for each configuration"
    );
    let order = lab.lines("order");
    let words: Vec<_> = order
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let sizes: Vec<_> = words.iter().map(|word| &word[..1]).collect();
    assert!(
        sizes == ["1", "1", "1", "1", "2", "2", "2", "2"]
            || sizes == ["2", "2", "2", "2", "1", "1", "1", "1"],
        "{words:?}"
    );
    let of = |size: &str| -> Vec<&str> {
        words
            .iter()
            .filter(|w| w.starts_with(size))
            .map(|w| &w[2..])
            .collect()
    };
    let file = ["0", "1", "2", "3"];
    assert!(of("1") != file || of("2") != file, "{words:?}");
}

/// A measurement of `10 + spread * noise`, where the noise of replicate k is the k-th of these.
fn noisy(spread: f64) -> String {
    let noise = [0.0, 1.0, -1.0, 0.5, -0.5, 0.2, -0.2, 0.1];
    let values: Vec<String> = noise
        .iter()
        .map(|x| (10.0 + spread * x).to_string())
        .collect();
    rule(
        "a",
        &format!(
            "k=${{DOE_REPLICATE:-1}}; echo $k >> SCRATCH/order; set -- {}; shift $((k - 1)); echo '{{\"schema\": \"t-v1\", \"got\": '$1'}}' > {{{{ out.result }}}}; exit 0",
            values.join(" ")
        ),
    )
}

const STOP: &str = "stop_when = { metric = \"got\", relative_half_width = 0.2, min = 3, max = 8 }";

#[tokio::test(flavor = "multi_thread")]
async fn replicates_stop_when_the_mean_is_known_well_enough() {
    let after = pattern("after", "a", "needs = [\"one\"]");
    let plan = pattern("one", "a", STOP) + &after;
    let lab = Lab::new(&noisy(1.0), &plan);
    let built = lab.build().await;
    // After three: mean 10, half width 2.48, too wide. After four (10, 11, 9, 10.5): mean 10.125,
    // standard deviation 0.854, t(3) = 3.182: half width 1.359, 13 %.
    let outcomes: Vec<Outcome> = replicates(&built, "one")
        .into_iter()
        .map(|(_, o)| o)
        .collect();
    let (ok, skipped) = (Outcome::Ok, Outcome::Skipped);
    assert_eq!(
        outcomes,
        [ok, ok, ok, ok, skipped, skipped, skipped, skipped]
    );
    assert_eq!(
        built.reason("//t:p-one@5"),
        "got is 10.12 within 13.42 % at 95 % confidence after 4 replicates"
    );
    assert_eq!(
        lab.lines("order"),
        ["1", "2", "3", "4", "1"],
        "and the dependent"
    );
    assert_eq!(built.ended.summary.skipped, 4);
    assert!(built.ended.summary.is_good());
    let after_of = lab.record("//t:p-after").spec_manifest;
    let read = after_of
        .entries
        .keys()
        .filter(|path| path.ends_with(".output"));
    assert_eq!(read.count(), 4, "what was not needed is not read");

    // Nothing is to be done again, and nothing is noted.
    let again = lab.build().await;
    assert_eq!(
        (again.ended.summary.reused, again.ended.summary.skipped),
        (5, 4)
    );
    assert!(!again.ended.begun);
    // A stricter rule goes on where the last one stopped.
    lab.plan(&(pattern("one", "a", &STOP.replace("0.2", "0.1")) + &after));
    let built = lab.build().await;
    let run: Vec<_> = replicates(&built, "one")
        .into_iter()
        .filter(|(_, o)| *o == ok)
        .collect();
    assert_eq!(run.len(), 1, "{run:?}");
    assert_eq!(
        built.node("//t:p-after").outcome,
        ok,
        "it has another input now"
    );

    // What is never known well enough ends at the most.
    let lab = Lab::new(&noisy(9.0), &pattern("one", "a", STOP));
    assert_eq!(lab.build().await.ended.summary.ok, 8);
    // What has no spread ends at the least.
    let lab = Lab::new(&noisy(0.0), &pattern("one", "a", STOP));
    let summary = lab.build().await.ended.summary;
    assert_eq!((summary.ok, summary.skipped), (3, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replicate_that_fails_is_one_value_less() {
    // The second fails: three values are there after the fourth.
    let rules = noisy(0.0).replace("echo $k >>", "test $k -ne 2 || exit 1; echo $k >>");
    let lab = Lab::new(&rules, &pattern("one", "a", STOP));
    let summary = lab.build().await.ended.summary;
    assert_eq!((summary.ok, summary.failed, summary.skipped), (3, 1, 4));
    assert_eq!(lab.lines("order"), ["1", "3", "4"]);
}

/// A reference that gives 10, 10.2, 13 and so on, whatever is measured between.
fn drifting() -> String {
    let values = "10 10.2 13 10.1 9 10";
    rule("a", "echo {{ n }} >> SCRATCH/order")
        + &rule(
            "ref",
            &format!(
                "echo ref >> SCRATCH/order; k=${{DOE_REPLICATE:-1}}; set -- {values}; shift $((k - 1)); echo '{{\"schema\": \"t-v1\", \"got\": '$1'}}' > {{{{ out.result }}}}; exit 0"
            ),
        )
}

const REFERENCE: &str = "reference = { metric = \"got\", every = 3, within = 0.05 }";

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_is_measured_between_the_others_and_drift_is_a_missed_expectation() {
    let plan = many(6, "") + &pattern("ref", "ref", REFERENCE);
    let lab = Lab::new(&drifting(), &plan);
    let built = lab.build().await;
    assert_eq!(built.ended.summary.ok, 9);
    assert_eq!(
        lab.lines("order"),
        ["ref", "0", "1", "2", "ref", "3", "4", "5", "ref"]
    );
    let (second, third) = (built.node("//t:p-ref@2"), built.node("//t:p-ref@3"));
    assert_eq!(second.missed, Vec::<String>::new());
    assert_eq!(
        third.missed,
        ["got is 13, expected within 5 % of 10 (//t:p-ref)"]
    );
    let record = lab.record("//t:p-ref@3");
    assert_eq!(record.verdicts.criterion.status, CriterionStatus::Missed);
    assert!(record.usable(), "a drift is a result");
    // It is told again whenever the result is at hand.
    let again = lab.build().await;
    assert_eq!(again.ended.summary.reused, 9);
    assert_eq!(again.node("//t:p-ref@3").missed, third.missed);

    // Two more patterns ask for one more reference, spread over what runs.
    lab.plan(&(many(8, "") + &pattern("ref", "ref", REFERENCE)));
    let built = lab.build().await;
    assert_eq!((built.ended.summary.ok, built.ended.summary.reused), (3, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_stands_in_the_way_of_no_order() {
    // The first patterns need the last ones, one needs the reference and one is needed by it.
    let one = |n: i64, more: &str| {
        pattern(
            &n.to_string(),
            "a",
            &format!("settings = {{ n = {n} }}\n{more}"),
        )
    };
    let plan = "order = \"random\"\n".to_owned()
        + &one(0, "needs = [\"p-7\"]")
        + &one(1, "gate = [\"p-6\"]")
        + &(2..6).map(|n| one(n, "")).collect::<String>()
        + &one(6, "needs = [\"p-5\"]")
        + &one(7, "")
        + &one(8, "needs = [\"p-ref\"]")
        + &one(9, "")
        + &pattern("ref", "ref", &format!("{REFERENCE}\ngate = [\"p-9\"]"));
    for seed in 0..6 {
        let plan = plan.replacen('\n', &format!("\nseed = {seed}\n"), 1);
        let lab = Lab::new(&drifting(), &plan);
        let built = lab.build().await;
        // Ten patterns between five references; the gate of p-9 holds for each of them.
        assert_eq!(
            built.ended.summary.ok,
            15,
            "seed {seed}: {:?}",
            built.outcomes()
        );
    }
}

/// What the first replicate gave under other settings says nothing about drift.
#[tokio::test(flavor = "multi_thread")]
async fn a_reference_is_not_held_against_what_stands_for_other_settings() {
    let script = "if test ${DOE_REPLICATE:-1} = 1 && test -e SCRATCH/fail; then exit 1; fi";
    let rules = rule("a", "true") + &rule("ref", script);
    let plan = |n: i64| {
        let more = format!("{REFERENCE}\nsettings = {{ n = {n} }}");
        many(6, "") + &pattern("ref", "ref", &more)
    };
    let lab = Lab::new(&rules, &plan(100));
    assert_eq!(lab.build().await.ended.summary.ok, 9);
    std::fs::write(lab.scratch().join("fail"), "").unwrap();
    lab.plan(&plan(500));
    let built = lab.build().await;
    assert_eq!(built.node("//t:p-ref").outcome, Outcome::Failed);
    for further in ["//t:p-ref@2", "//t:p-ref@3"] {
        let node = built.node(further);
        assert_eq!(node.outcome, Outcome::Ok);
        assert_eq!(node.missed, Vec::<String>::new(), "{further}");
    }
}

/// The records of before are judged anew one after the other, each by those before it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_judged_anew_is_held_against_what_is_judged_anew() {
    let plan = many(6, "") + &pattern("ref", "ref", REFERENCE);
    let lab = Lab::new(&drifting(), &plan);
    let missed = lab.build().await.node("//t:p-ref@3").missed.clone();
    assert_eq!(missed.len(), 1);
    lab.rules(&drifting().replace("unit = \"\"", "unit = \"s\""));
    let built = lab.build().await;
    assert_eq!(built.ended.summary.reused, 9);
    assert_eq!(built.node("//t:p-ref@3").missed, missed);
    let criterion = lab.record("//t:p-ref@3").verdicts.criterion;
    assert_eq!(criterion.status, CriterionStatus::Missed);
    let criterion = lab.record("//t:p-ref@2").verdicts.criterion;
    assert_eq!(criterion.status, CriterionStatus::Met);
}

/// What is judged anew is at hand before it is written, for who asks the same and for who counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_judged_anew_runs_nothing_again() {
    let same = pattern("same", "a", "settings = { n = 1 }\nneeds = [\"one\"]")
        + &pattern("too", "a", "settings = { n = 1 }\nneeds = [\"one\"]");
    let lab = Lab::new(&noisy(1.0), &(pattern("one", "a", STOP) + &same));
    let before = lab.build().await.ended.summary;
    assert_eq!((before.ok + before.reused, before.skipped), (6, 4));
    let ran = lab.lines("order");
    lab.rules(&noisy(1.0).replace("unit = \"\"", "unit = \"s\""));
    let built = lab
        .build_with(Build {
            looks: true,
            ..Build::default()
        })
        .await;
    assert!(!built.ended.begun, "all of it is at hand");
    let after = built.ended.summary;
    assert_eq!((after.reused, after.skipped), (6, 4));
    assert_eq!(lab.lines("order"), ran);
}
