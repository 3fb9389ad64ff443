use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::error::{Site, SourceFile};
use crate::rule::load::{RuleFile, load_texts};
use crate::rule::model::RuleId;

/// A rule read as users write it, with what judging looks at.
fn rule(text: &str) -> Arc<Rule> {
    let text = format!(
        r#"
[r]
param.n = {{ type = "int", default = 3, doc = "how many" }}
roles = {{ host = {{}} }}
failure = [
  {{ class = "busy", exit_code = 75, log = "try again" }},
  {{ class = "oom", log = "out of KV blocks" }},
  {{ class = "usage", exit_code = 2 }},
  {{ class = "infrastructure", log = "Network is unreachable" }},
]
[[r.step]]
name = "go"
role = "host"
timeout = "1m"
run = "echo {{{{ n }}}} > {{{{ out.result }}}}"
[r.output]
result = {{ path = "r.json", schema = "t-v1" }}
{text}"#
    );
    let files = [RuleFile {
        name: "rules/t.toml",
        stem: "t",
        text: &text,
    }];
    let (rules, findings) = load_texts(&files, &[]);
    let rule = rules.get(&RuleId("t.r".into())).cloned();
    rule.unwrap_or_else(|| panic!("{findings:#?}"))
}

fn settings() -> BTreeMap<String, Value> {
    BTreeMap::from([("n".to_owned(), Value::Int(3))])
}

fn judged(rule: &Rule, document: &Json) -> Judgement {
    let bytes = serde_json::to_vec(document).unwrap();
    let document = Document::read(&bytes, Some("t-v1"), true);
    judge(
        rule,
        &settings(),
        &BTreeMap::from([("result".to_owned(), document)]),
    )
}

const METRICS: &str = r#"
[r.metric]
p50_ms = { from = "result", at = "/ttft_ms/p50", unit = "ms", better = "lower" }
topology = { from = "result", at = "/topology", unit = "" }
extra = { from = "result", at = "/extra", unit = "", optional = true }
[r.sample]
ttft_ms = { from = "result", at = "/requests/*/ttft_ms", unit = "ms" }
itl_ms = { from = "result", at = "/requests/*/itl_ms/*", unit = "ms" }
[r.valid]
that = ["result.failed == 0", "p50_ms > 0", "result.requests | length == n", "extra < 5"]
"#;

fn good() -> Json {
    json!({
        "schema": "t-v1", "failed": 0, "topology": "PHB", "ttft_ms": { "p50": 12.5 },
        "requests": [
            { "ttft_ms": 12, "itl_ms": [1.5, 2] },
            { "ttft_ms": null, "itl_ms": [] },
            { "ttft_ms": 13.25, "itl_ms": [3] },
        ],
    })
}

#[test]
fn numbers_texts_and_series_are_read_in_document_order() {
    let judged = judged(&rule(METRICS), &good());
    assert_eq!(judged.validity.failed, Vec::<String>::new());
    assert_eq!(judged.validity.status, ValidityStatus::Valid);
    let metric = &judged.metrics["p50_ms"];
    assert_eq!(
        (metric.value, metric.unit.as_str(), metric.better),
        (12.5, "ms", Some(Better::Lower))
    );
    assert_eq!(judged.texts["topology"], "PHB");
    assert!(!judged.metrics.contains_key("extra"));
    assert_eq!(judged.samples["ttft_ms"], [12.0, 13.25]);
    assert_eq!(judged.samples["itl_ms"], [1.5, 2.0, 3.0]);
}

#[test]
fn what_is_missing_or_broken_is_invalid_and_named() {
    let rule = rule(METRICS);
    type Mutation = (&'static str, fn(&mut Json), &'static str);
    let mutations: [Mutation; 10] = [
        (
            "metric gone",
            |d| {
                d["ttft_ms"].as_object_mut().unwrap().remove("p50");
            },
            "metric `p50_ms` is missing",
        ),
        (
            "metric null",
            |d| d["ttft_ms"]["p50"] = Json::Null,
            "metric `p50_ms` is null",
        ),
        (
            "metric a list",
            |d| d["ttft_ms"]["p50"] = json!([1]),
            "metric `p50_ms` is a list",
        ),
        (
            "no list",
            |d| d["requests"] = json!({}),
            "samples `itl_ms` cannot be read",
        ),
        (
            "text in a series",
            |d| d["requests"][0]["ttft_ms"] = json!("12"),
            "samples `ttft_ms` cannot be read",
        ),
        (
            "condition",
            |d| d["failed"] = json!(1),
            "result.failed == 0",
        ),
        (
            "condition on an optional metric",
            |d| d["extra"] = json!(6),
            "extra < 5",
        ),
        (
            "condition cannot be told",
            |d| {
                d.as_object_mut().unwrap().remove("failed");
            },
            "result.failed == 0: ",
        ),
        (
            "schema",
            |d| d["schema"] = json!("t-v2"),
            "its `schema` is \"t-v2\", expected \"t-v1\"",
        ),
        (
            "no schema",
            |d| {
                d.as_object_mut().unwrap().remove("schema");
            },
            "it has no `schema` field",
        ),
    ];
    for (name, mutate, expected) in mutations {
        let mut document = good();
        mutate(&mut document);
        let judged = judged(&rule, &document);
        assert_eq!(judged.validity.status, ValidityStatus::Invalid, "{name}");
        let text = judged.validity.failed.join("\n");
        assert!(text.contains(expected), "{name}: {text}");
    }
}

#[test]
fn documents_that_are_no_json_are_unreadable_and_raw_ones_are_left_alone() {
    let read = |bytes: &[u8]| Document::read(bytes, None, true);
    assert_eq!(read(b" \n"), Document::Unreadable("it is empty".into()));
    for bad in [&b"{"[..], b"{\"a\": NaN}", b"\xff", b"{} trailing"] {
        assert!(matches!(read(bad), Document::Unreadable(_)));
    }
    assert_eq!(Document::read(b"\xff", None, false), Document::Raw);
}

#[test]
fn an_output_is_read_when_a_metric_or_a_condition_names_it() {
    assert!(is_read(&rule(METRICS), "result"));
    assert!(is_read(
        &rule("[r.valid]\nthat = [\"result.ok\"]\n"),
        "result"
    ));
    assert!(!is_read(&rule(""), "result"));
}

fn expect(metric: &str, condition: Condition) -> Expectation {
    let file = Arc::new(SourceFile::new("p.toml", "x"));
    Expectation {
        metric: metric.into(),
        text: format!("{condition:?}"),
        condition,
        site: Site { file, range: 0..1 },
    }
}

#[test]
fn expectations_hold_at_their_bounds_and_miss_beyond() {
    let cases = [
        (
            Condition::Range {
                low: 1.0,
                high: 2.0,
            },
            vec![1.0, 2.0],
            vec![0.999, 2.001],
        ),
        (Condition::Less(2.0), vec![1.9], vec![2.0]),
        (Condition::AtMost(2.0), vec![2.0], vec![2.1]),
        (Condition::Greater(2.0), vec![2.1], vec![2.0]),
        (Condition::AtLeast(2.0), vec![2.0], vec![1.9]),
        (Condition::Equal(2.0), vec![2.0], vec![2.1]),
    ];
    for (condition, good, bad) in cases {
        for (values, status) in [(good, CriterionStatus::Met), (bad, CriterionStatus::Missed)] {
            for value in values {
                let metric = Metric {
                    value,
                    unit: String::new(),
                    better: None,
                };
                let metrics = BTreeMap::from([("m".to_owned(), metric)]);
                let got = criterion(
                    &[expect("m", condition.clone())],
                    &metrics,
                    &BTreeMap::new(),
                );
                assert_eq!(got.status, status, "{condition:?} {value}");
            }
        }
    }
}

#[test]
fn texts_are_held_against_words_and_what_is_missing_is_missed() {
    let texts = BTreeMap::from([("topology".to_owned(), "PHB".to_owned())]);
    let words = Condition::OneOf(vec!["PHB".into(), "NODE".into()]);
    let none = BTreeMap::new();
    let met = |expectation| criterion(&[expectation], &none, &texts);
    assert_eq!(
        met(expect("topology", words.clone())).status,
        CriterionStatus::Met
    );
    assert_eq!(met(expect("other", words)).status, CriterionStatus::Missed);
    let number = met(expect("topology", Condition::Less(1.0)));
    assert_eq!(missed(&number), ["topology is `PHB`, expected Less(1.0)"]);
    assert_eq!(criterion(&[], &none, &texts).status, CriterionStatus::None);
}

#[test]
fn an_invalid_result_meets_nothing() {
    let mut document = good();
    document["failed"] = json!(1);
    let judged = judged(&rule(METRICS), &document);
    let got = criterion_of(&[expect("p50_ms", Condition::Less(100.0))], &judged);
    assert_eq!(got.status, CriterionStatus::Unknown);
}

#[test]
fn failures_get_the_first_class_that_matches() {
    let rule = rule("");
    for (cause, log, class) in [
        (Cause::Exit(75), "please try again", "busy"),
        (Cause::Exit(75), "", "program"),
        (Cause::Exit(1), "error: out of KV blocks", "oom"),
        (Cause::Exit(2), "", "usage"),
        (
            Cause::Exit(1),
            "torch.OutOfMemoryError: CUDA out of memory",
            "oom",
        ),
        (Cause::Service, "CUDA out of memory", "oom"),
        (Cause::Service, "", "service-died"),
        (Cause::Timeout, "CUDA out of memory", "timeout"),
        (Cause::Exit(1), "Network is unreachable", "infrastructure"),
        (Cause::Timeout, "Network is unreachable", "timeout"),
        (Cause::Lost, "", "lost"),
        (Cause::Lost, "CUDA out of memory", "oom"),
        (
            Cause::Lost,
            "step `x` was lost (job is OUT_OF_MEMORY for Slurm)",
            "oom",
        ),
        (
            Cause::Lost,
            "step `x` was lost (job is PREEMPTED for Slurm)",
            "preempted",
        ),
        (Cause::Lost, "job is NODE_FAIL for Slurm", "lost"),
        (Cause::Exit(1), "job is PREEMPTED for Slurm", "program"),
        (Cause::Host(Trouble::Unreachable), "", "unreachable"),
        (Cause::Host(Trouble::Undeliverable), "", "undeliverable"),
        (Cause::Host(Trouble::Throttled), "", "throttled"),
        (Cause::ServiceLost, "", "service-lost"),
        (Cause::NotReleased, "CUDA out of memory", "not-released"),
        (Cause::NoResult, "", "no-result"),
        (Cause::Signal(9), "", "program"),
    ] {
        assert_eq!(classify(&rule, cause, &[log]), class, "{cause:?} {log}");
    }
}

proptest! {
    #[test]
    fn judging_any_json_never_panics_and_never_calls_rubbish_valid(text in "\\PC{0,60}", number: f64) {
        let rule = rule(METRICS);
        let mut document = good();
        document["ttft_ms"]["p50"] = json!(number);
        let judged = judged(&rule, &document);
        let sound = number.is_finite() && number > 0.0;
        prop_assert_eq!(judged.validity.status == ValidityStatus::Valid, sound);
        let _ = Document::read(text.as_bytes(), Some("t-v1"), true);
    }
}

#[test]
fn what_the_infrastructure_did_is_not_blamed_on_the_program() {
    let of = |kind, code| Cause::of_work(&Error::new(kind, code, "x"));
    let unreachable = Cause::Host(Trouble::Unreachable);
    assert_eq!(of(Kind::Infra, "host-unreachable"), unreachable);
    for code in ["io", "probe-failed", "not-started", "facts-moved"] {
        assert_eq!(of(Kind::Infra, code), Cause::Lost, "{code}");
    }
    assert_eq!(of(Kind::Plan, "bad-template"), Cause::Program);
}
