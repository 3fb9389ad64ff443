//! Gaps made of known computing and waiting times are taken apart again.

use serde_json::json;

use super::*;
use crate::analysis::sample::{rng, uniform};
use crate::analysis::summary::normal_quantile;

fn normals(n: usize, mean: f64, sd: f64, seed: u64) -> Vec<f64> {
    let mut rng = rng(seed, 0);
    (0..n)
        .map(|_| mean + sd * normal_quantile(uniform(&mut rng).max(1e-15)).unwrap())
        .collect()
}

fn series(label: &str, transport: &str, cell: (u64, u64), itl_ms: Vec<f64>, tpot: f64) -> Series {
    Series {
        label: label.into(),
        transport: transport.into(),
        prompt_tokens: cell.0,
        concurrency: cell.1,
        itl_ms,
        tpot_ms: vec![tpot - 1.0, tpot, tpot + 5.0],
        failed: 0,
    }
}

#[test]
fn computing_and_waiting_are_taken_apart() {
    let gaps = [normals(2000, 20.0, 0.5, 1), normals(900, 29.0, 1.0, 2)].concat();
    let answer = analyse(
        &[series("//p:c16", "unified", (4096, 16), gaps, 23.0)],
        false,
    )
    .unwrap();
    let found = &answer.patterns[0];
    assert_eq!(found.components, 2);
    assert!((found.gpu_compute_time_ms.unwrap() - 20.0).abs() < 0.1);
    assert!((found.batch_wait_time_ms.unwrap() - 9.0).abs() < 0.2);
    assert!((found.gpu_compute_ratio.unwrap() - 20.0 / 29.0).abs() < 0.01);
    assert!((found.waiting_share.unwrap() - 900.0 / 2900.0).abs() < 0.01);
    assert!(found.note.is_empty());
    assert_eq!((answer.judged, answer.separated), (1, 1));
    assert_eq!(answer.gpu_compute_ratio, found.gpu_compute_ratio.unwrap());
}

#[test]
fn one_component_has_no_waiting_and_says_so() {
    let gaps = normals(1000, 20.0, 0.5, 3);
    let centre = mean(&gaps);
    let answer = analyse(&[series("//p:c1", "unified", (4096, 1), gaps, 20.0)], true).unwrap();
    let found = &answer.patterns[0];
    assert_eq!(found.components, 1);
    assert_eq!(found.gpu_compute_time_ms, Some(centre));
    assert_eq!(found.batch_wait_time_ms, Some(0.0));
    assert_eq!(found.gpu_compute_ratio, Some(1.0));
    assert!(found.note.contains("one component") && answer.simulated);
}

#[test]
fn overlap_and_coalesced_tokens_are_pointed_out() {
    let pieces: Vec<f64> = [vec![0.01; 300], normals(700, 40.0, 1.0, 4)].concat();
    let answer = analyse(&[series("//p:x", "efa", (1024, 4), pieces, 30.0)], false).unwrap();
    assert_eq!(answer.patterns[0].coalesced, 300);
    assert!(answer.patterns[0].note.contains("near zero"));
    let wide = [normals(900, 20.0, 2.0, 5), normals(400, 22.0, 6.0, 6)].concat();
    let answer = analyse(&[series("//p:y", "efa", (1024, 4), wide, 30.0)], false).unwrap();
    assert!(
        answer.patterns[0].note.contains("overlap"),
        "{:?}",
        answer.patterns[0]
    );
}

#[test]
fn cells_are_paired_and_grouped() {
    let gaps = |seed| normals(200, 20.0, 0.5, seed);
    let answer = analyse(
        &[
            series("//p:u-4k-c1", "unified", (4096, 1), gaps(1), 20.0),
            series("//p:e-4k-c1", "efa", (4096, 1), gaps(2), 21.0),
            series("//p:e-4k-c1-cross", "efa", (4096, 1), gaps(3), 19.5),
            series("//p:t-4k-c1", "tcp", (4096, 1), gaps(4), 30.0),
            series("//p:u-4k-c4", "unified", (4096, 4), gaps(5), 25.0),
            series("//p:e-12k-c1", "efa", (12288, 1), gaps(6), 28.0),
        ],
        false,
    )
    .unwrap();
    let pairs: Vec<_> = answer
        .pairs
        .iter()
        .map(|p| {
            (
                p.disaggregated.as_str(),
                p.transport.as_str(),
                p.difference_ms,
            )
        })
        .collect();
    assert_eq!(
        pairs,
        [
            ("//p:e-4k-c1", "efa", 1.0),
            ("//p:e-4k-c1-cross", "efa", -0.5),
            ("//p:t-4k-c1", "tcp", 10.0),
        ]
    );
    assert_eq!(answer.unpaired, ["//p:u-4k-c4", "//p:e-12k-c1"]);
    let efa = &answer.tpot_difference[0];
    assert_eq!(
        (
            efa.transport.as_str(),
            efa.difference_ms.n,
            efa.difference_ms.mean
        ),
        ("efa", 2, 0.25)
    );
    let groups: Vec<_> = answer
        .by_concurrency
        .iter()
        .map(|g| (g.concurrency, g.transport.as_str(), g.patterns))
        .collect();
    assert_eq!(
        groups,
        [
            (1, "efa", 3),
            (1, "tcp", 1),
            (1, "unified", 1),
            (4, "unified", 1)
        ]
    );
}

#[test]
fn nothing_to_separate_is_an_error() {
    assert!(analyse(&[], false).is_err());
    let empty = analyse(&[series("//p:none", "efa", (1, 1), vec![], 1.0)], false).unwrap_err();
    assert!(empty.message.contains("//p:none"));
    let few = analyse(
        &[series("//p:few", "efa", (1, 1), vec![1.0; 9], 1.0)],
        false,
    )
    .unwrap_err();
    assert!(few.message.contains("none of the 1 patterns"));
    assert!(
        analyse(
            &[series("//p:bad", "efa", (1, 1), vec![-1.0; 20], 1.0)],
            false
        )
        .is_err()
    );
}

#[test]
fn transports_are_read_from_the_settings() {
    let of = |settings: serde_json::Value| {
        transport(&Input {
            label: "//p:a".into(),
            settings: settings.as_object().cloned().unwrap(),
            outputs: BTreeMap::new(),
        })
    };
    assert_eq!(of(json!({})), "unified");
    assert_eq!(of(json!({"transport": "none"})), "unified");
    assert_eq!(
        of(json!({"mode": "Unified", "transport": "tcp"})),
        "unified"
    );
    assert_eq!(
        of(json!({"mode": "disaggregated", "transport": "srd"})),
        "efa"
    );
    assert_eq!(of(json!({"transport": "TCP"})), "tcp");
}
