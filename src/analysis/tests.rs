//! The analyses by name, from documents to documents.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn input(label: &str, settings: Value, outputs: Value) -> Input {
    serde_json::from_value(json!({"label": label, "settings": settings, "outputs": outputs}))
        .unwrap()
}

/// A load document: 30 rounds, slow before round 17 when `step`.
fn load(step: bool, simulated: bool) -> Value {
    let requests: Vec<Value> = (0..30)
        .map(|i| {
            let wobble = f64::from(i * 37 % 30) / 10.0;
            let ttft = if step && i < 17 { 420.0 } else { 310.0 } + wobble;
            let itl: Vec<f64> = (0..20)
                .map(|k| 20.0 + f64::from((i + k) * 7 % 10) / 20.0)
                .collect();
            json!({"index": i, "round": i, "stream": 0, "start_ms": 1000 * i, "ttft_ms": ttft,
                "tpot_ms": 20.2, "e2e_ms": 900.0, "itl_ms": itl, "prompt_tokens": 4096,
                "output_tokens": 21, "error": null})
        })
        .collect();
    json!({"schema": "load-v1", "simulated": simulated,
        "settings": {"concurrency": 1, "prompt_tokens": 4096}, "requests": requests})
}

fn proxy() -> Value {
    json!({"schema": "proxy-v1", "requests": [
        {"id": "a", "received_ms": 0.0, "prefill_sent_ms": 1.0, "prefill_done_ms": 50.0,
         "decode_sent_ms": 51.5, "decode_first_byte_ms": 90.0, "first_byte_relayed_ms": 90.5,
         "done_ms": 200.0, "status": "ok"},
        {"id": "b", "received_ms": 0.0, "status": "prefill_failed"},
    ]})
}

#[test]
fn every_name_runs_and_carries_its_schema() {
    let inputs = [input(
        "//p:a",
        json!({"transport": "efa"}),
        json!({"result": load(true, false), "proxy": proxy()}),
    )];
    for name in NAMES {
        let answer = run(name, &inputs).unwrap();
        assert_eq!(answer["schema"], format!("{name}-v1"));
        assert_eq!(answer["simulated"], false);
        assert_eq!(answer["patterns"][0]["label"], "//p:a");
        assert_eq!(
            answer,
            run(name, &inputs).unwrap(),
            "{name} is not a function of its input"
        );
    }
}

#[test]
fn the_metrics_are_where_rules_point_at() {
    let inputs = [
        input(
            "//p:a",
            json!({"transport": "srd"}),
            json!({"result": load(true, true), "proxy": proxy()}),
        ),
        input("//p:u", json!({}), json!({"result": load(false, false)})),
    ];
    let answer = run("bimodality", &inputs).unwrap();
    assert_eq!(answer["simulated"], true);
    assert_eq!(answer.pointer("/ttft_bimodal_count"), Some(&json!(1)));
    let slow = answer
        .pointer("/ttft_phase_a_mean_ms")
        .unwrap()
        .as_f64()
        .unwrap();
    assert!((slow - 421.45).abs() < 2.0);
    let answer = run("tpot-separation", &inputs).unwrap();
    for at in [
        "/gpu_compute_time_ms",
        "/batch_wait_time_ms",
        "/gpu_compute_ratio",
    ] {
        assert!(answer.pointer(at).unwrap().is_f64(), "{at}");
    }
    assert_eq!(answer.pointer("/pairs/0/transport"), Some(&json!("efa")));
    assert_eq!(answer.pointer("/pairs/0/difference_ms"), Some(&json!(0.0)));
    let answer = run("proxy-overhead", &inputs[..1]).unwrap();
    assert_eq!(
        answer.pointer("/proxy_overhead_total_ms/p50"),
        Some(&json!(3.0))
    );
    assert_eq!(answer.pointer("/counts/failed"), Some(&json!(1)));
}

#[test]
fn answers_round_trip_through_their_types() {
    let inputs = [input(
        "//p:a",
        json!({}),
        json!({"result": load(true, false), "proxy": proxy()}),
    )];
    let back: bimodality::Bimodality =
        serde_json::from_value(run("bimodality", &inputs).unwrap()).unwrap();
    assert_eq!(
        serde_json::to_value(&back).unwrap(),
        run("bimodality", &inputs).unwrap()
    );
    let back: tpot_separation::TpotSeparation =
        serde_json::from_value(run("tpot-separation", &inputs).unwrap()).unwrap();
    assert_eq!(back.judged, 1);
    let back: proxy_overhead::ProxyOverhead =
        serde_json::from_value(run("proxy-overhead", &inputs).unwrap()).unwrap();
    assert_eq!(back.counts.valid, 1);
}

#[test]
fn a_missing_input_is_an_error_and_never_a_verdict() {
    let whole = input(
        "//p:a",
        json!({}),
        json!({"result": load(true, false), "proxy": proxy()}),
    );
    let bare = input("//p:b", json!({}), json!({}));
    for name in NAMES {
        let error = run(name, &[whole.clone(), bare.clone()]).unwrap_err();
        assert!(error.message.contains("//p:b"), "{name}: {error}");
        assert_eq!(error.kind, Kind::NodeFailed);
        assert!(run(name, &[]).is_err());
        assert!(
            run(name, &[whole.clone(), whole.clone()])
                .unwrap_err()
                .message
                .contains("twice")
        );
    }
    let no_ttft = json!({"schema": "load-v1", "requests": [{"ttft_ms": null}]});
    let error = run(
        "bimodality",
        &[input("//p:c", json!({}), json!({"result": no_ttft}))],
    );
    assert!(error.unwrap_err().message.contains("ttft_ms"));
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    let error = run("bimodalty", &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Plan);
    assert!(error.hints[0].contains("`bimodality`"));
    assert!(run("zzz", &[]).unwrap_err().hints[0].contains("proxy-overhead"));
}

proptest! {
    /// Whatever JSON comes in, an answer or an error comes out.
    #[test]
    fn no_document_makes_it_panic(
        ttft in prop::collection::vec(prop::option::of(-1.0..1e4_f64), 0..12),
        gaps in prop::collection::vec(prop::option::of(0.0..1e3_f64), 0..12),
        stamps in prop::collection::vec(prop::option::of(0.0..1e3_f64), 6),
    ) {
        let requests: Vec<Value> = ttft.iter().map(|t| json!({"ttft_ms": t, "itl_ms": gaps})).collect();
        let proxied = json!({"received_ms": stamps[0], "prefill_sent_ms": stamps[1],
            "prefill_done_ms": stamps[2], "decode_sent_ms": stamps[3],
            "decode_first_byte_ms": stamps[4], "first_byte_relayed_ms": stamps[5]});
        let one = input("//p:a", json!({"concurrency": 1, "prompt_tokens": 1}), json!({
            "result": {"schema": "load-v1", "requests": requests},
            "proxy": {"schema": "proxy-v1", "requests": [proxied]},
        }));
        for name in ["tpot-separation", "proxy-overhead"] {
            let _ = run(name, std::slice::from_ref(&one));
        }
        if let Ok(series) = bimodality::series(std::slice::from_ref(&one)) {
            let options = bimodality::Options { replicates: 19, ..Default::default() };
            let _ = bimodality::analyse(&series, false, &options);
        }
    }
}
