//! Records: their name follows from their content, and reading is patient with the future.

use super::*;
use crate::manifest::Class;
use crate::verdict::{
    Check, Criterion, CriterionStatus, Execution, ExecutionStatus, Validity, ValidityStatus,
};

/// A complete good record of `label`, told apart by `seed`: settings, time and numbers follow
/// from it. Its one output is the blob with the text `output SEED`, its log `log SEED`.
pub(crate) fn sample(label: &str, seed: u32) -> Record {
    let blob = |text: String| (Digest::of(&text), text.len() as u64);
    let (output, output_size) = blob(format!("output {seed}"));
    let (log, log_size) = blob(format!("log {seed}"));
    let mut spec_manifest = Manifest::new("doe.spec", 1);
    spec_manifest.set_from("setting.seed", seed, Class::Result, "plans/t.toml:3");
    let mut action_manifest = Manifest::new("doe.action", 1);
    action_manifest.set(
        "step.measure.script",
        format!("run {seed}\n"),
        Class::Result,
    );
    let nothing = Digest::of(b"");
    let mut record = Record {
        schema: RECORD_SCHEMA,
        kind: RecordKind::Measure,
        label: label.to_owned(),
        plan: "t".to_owned(),
        layer: "L1".to_owned(),
        rule: "serving.unified".to_owned(),
        run_id: "r1".to_owned(),
        attempt: 1,
        attempts: None,
        previous_attempt: None,
        spec_key: nothing,
        action_key: nothing,
        judge: Digest::of(b"judge"),
        rejudged_from: None,
        spec_manifest,
        action_manifest,
        provenance: Provenance {
            simulated: true,
            platform: "sim".to_owned(),
            executor: "local".to_owned(),
            doe_version: "0.1.0".to_owned(),
            hosts: BTreeMap::from([("client".to_owned(), "h0".to_owned())]),
            facts: BTreeMap::from([("gpu".to_owned(), Value::from("none"))]),
        },
        verdicts: Verdicts {
            execution: Execution {
                status: ExecutionStatus::Ok,
                class: None,
                reason: None,
                exit_code: Some(0),
            },
            validity: Validity {
                status: ValidityStatus::Valid,
                failed: Vec::new(),
            },
            criterion: Criterion {
                status: CriterionStatus::Met,
                checks: vec![Check {
                    metric: "ttft_median_ms".to_owned(),
                    expected: Value::from("<= 250"),
                    got: Some(Value::Float(0.5 + f64::from(seed))),
                    met: true,
                }],
            },
        },
        reusable: true,
        not_reusable_because: None,
        settings: BTreeMap::from([("seed".to_owned(), Value::from(seed))]),
        tags: vec!["quick".to_owned()],
        exploratory: false,
        outputs: BTreeMap::from([(
            "result".to_owned(),
            Output {
                digest: output,
                size_bytes: output_size,
                schema: Some("load-v1".to_owned()),
            },
        )]),
        output_digest: nothing,
        metrics: BTreeMap::from([(
            "ttft_median_ms".to_owned(),
            Metric {
                value: 0.5 + f64::from(seed),
                unit: "ms".to_owned(),
                better: Some(Better::Lower),
            },
        )]),
        texts: BTreeMap::from([("topology".to_owned(), "PHB".to_owned())]),
        samples: BTreeMap::from([("ttft_ms".to_owned(), vec![0.1, 0.2 + f64::from(seed)])]),
        logs: vec![Log {
            name: "step-measure.stdout".to_owned(),
            digest: log,
            size_bytes: log_size,
        }],
        cpu: BTreeMap::new(),
        services: vec![ServiceUse {
            name: "server".to_owned(),
            key: Digest::of(b"server"),
            started_for_this: true,
        }],
        timings: Timings {
            started_unix_ms: 1_000,
            ended_unix_ms: 1_250,
            phases: BTreeMap::from([("running".to_owned(), 200)]),
        },
        recorded_unix_ms: 2_000 + u64::from(seed),
    };
    record.seal();
    record
}

#[test]
fn golden_record() {
    let text = String::from_utf8(sample("//t:p", 1).to_bytes().unwrap()).unwrap();
    crate::testing::golden("record-v1.json", &text);
}

#[test]
fn a_record_reads_back() {
    let record = sample("//t:p", 7);
    let bytes = record.to_bytes().unwrap();
    assert_eq!(Record::from_bytes(&bytes).unwrap(), record);
    assert_eq!(record.id().unwrap(), Digest::of(&bytes));
    let mut other = record.clone();
    other.attempt = 2;
    assert_ne!(other.id().unwrap(), record.id().unwrap());
    let summary = record.summary(record.id().unwrap());
    assert!(summary.usable() && record.usable());
    assert_eq!(summary.duration_ms, 250);
}

#[test]
fn unknown_fields_are_tolerated_and_missing_ones_filled_in() {
    let record = sample("//t:p", 7);
    let mut json: serde_json::Value = serde_json::from_slice(&record.to_bytes().unwrap()).unwrap();
    json["from_the_future"] = serde_json::json!({"x": [1]});
    json["provenance"]["altitude"] = 3.into();
    for optional in [
        "tags",
        "texts",
        "services",
        "samples",
        "rejudged_from",
        "layer",
    ] {
        json.as_object_mut().unwrap().remove(optional);
    }
    let read = Record::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap();
    assert_eq!(read.metrics, record.metrics);
    assert!(read.tags.is_empty() && read.layer.is_empty());
}

#[test]
fn a_newer_schema_and_rubbish_are_told_apart() {
    let newer = Record::from_bytes(br#"{"schema": 2, "kind": "dance"}"#).unwrap_err();
    assert_eq!(
        newer.to_string(),
        "the record has schema version 2, but this program knows versions up to 1"
    );
    for rubbish in [&b""[..], b"{", b"[]", br#"{"schema":1}"#] {
        let error = Record::from_bytes(rubbish).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn what_does_not_follow_is_refused() {
    let good = sample("//t:p", 1);
    type Spoil = fn(&mut Record);
    let cases: [(&str, Spoil); 8] = [
        ("spec key", |r| r.spec_key = Digest::of(b"x")),
        ("action key", |r| r.action_manifest.version = 9),
        ("output digest", |r| r.outputs.clear()),
        ("schema 2", |r| r.schema = 2),
        ("no label", |r| r.label.clear()),
        ("finite number", |r| {
            r.metrics.get_mut("ttft_median_ms").unwrap().value = f64::NAN;
        }),
        ("series `ttft_ms`", |r| {
            r.samples.get_mut("ttft_ms").unwrap().push(f64::INFINITY);
        }),
        ("finite number", |r| {
            r.settings.insert("x".to_owned(), Value::Float(f64::NAN));
        }),
    ];
    for (text, spoil) in cases {
        let mut record = good.clone();
        spoil(&mut record);
        let error = record.to_bytes().unwrap_err().to_string();
        assert!(
            error.contains(text) && (error.contains("//t:p") || text == "no label"),
            "{error}"
        );
    }
}

#[test]
fn the_output_digest_sees_names_and_contents_alone() {
    let record = sample("//t:p", 1);
    let change = |f: fn(&mut BTreeMap<String, Output>)| {
        let mut outputs = record.outputs.clone();
        f(&mut outputs);
        outputs_digest(&outputs) != record.output_digest
    };
    assert!(!change(|_| {}));
    assert!(!change(|o| o.get_mut("result").unwrap().schema = None));
    assert!(change(
        |o| o.get_mut("result").unwrap().digest = Digest::of(b"x")
    ));
    assert!(change(|o| {
        let output = o.remove("result").unwrap();
        o.insert("renamed".to_owned(), output);
    }));
    assert!(change(BTreeMap::clear));
}

#[test]
fn reuse_asks_for_everything() {
    let cases: [fn(&mut Record); 3] = [
        |r| r.reusable = false,
        |r| r.verdicts.execution.status = ExecutionStatus::Failed,
        |r| r.verdicts.validity.status = ValidityStatus::Unknown,
    ];
    for spoil in cases {
        let mut record = sample("//t:p", 1);
        spoil(&mut record);
        assert!(!record.usable() && !record.summary(record.output_digest).usable());
    }
    let mut missed = sample("//t:p", 1);
    missed.verdicts.criterion.status = CriterionStatus::Missed;
    assert!(missed.usable(), "a missed expectation is a result");
}
