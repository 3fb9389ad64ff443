//! Known mixtures get the verdict they were made with, and little data gets none.

use super::*;
use crate::analysis::sample::{rng, uniform};
use crate::analysis::summary::normal_quantile;

fn normals(n: usize, mean: f64, sd: f64, seed: u64) -> Vec<f64> {
    let mut rng = rng(seed, 0);
    (0..n)
        .map(|_| mean + sd * normal_quantile(uniform(&mut rng).max(1e-15)).unwrap())
        .collect()
}

fn series(label: &str, ttft: impl IntoIterator<Item = f64>) -> Series {
    let samples = ttft
        .into_iter()
        .enumerate()
        .map(|(i, ttft_ms)| Sample {
            round: Some(i as u64),
            ttft_ms,
        })
        .collect();
    Series {
        label: label.into(),
        samples,
        failed: 0,
    }
}

fn judge(series: &[Series]) -> Bimodality {
    let options = Options {
        replicates: 1999,
        ..Options::default()
    };
    analyse(series, false, &options).unwrap()
}

/// A step down after the 17th of 30 iterations: two modes that are two phases in time.
#[test]
fn phases_in_time_are_bimodal_and_located() {
    let step = [normals(17, 420.0, 8.0, 1), normals(13, 310.0, 8.0, 2)].concat();
    let answer = judge(&[
        series("//p:step", step),
        series("//p:flat", normals(30, 300.0, 8.0, 3)),
    ]);
    assert_eq!(answer.ttft_bimodal_count, 1);
    assert!(answer.ttft_bimodal);
    assert_eq!(answer.strongest.as_deref(), Some("//p:step"));
    let (slow, fast) = (
        answer.ttft_phase_a_mean_ms.unwrap(),
        answer.ttft_phase_b_mean_ms.unwrap(),
    );
    assert!(
        (slow - 420.0).abs() < 8.0 && (fast - 310.0).abs() < 8.0,
        "{slow} {fast}"
    );
    let found = &answer.patterns[0];
    assert_eq!(found.verdict, Verdict::Bimodal);
    assert_eq!(
        found.changepoints.iter().map(|c| c.at).collect::<Vec<_>>(),
        [17]
    );
    assert!((found.components[1].weight - 17.0 / 30.0).abs() < 0.05);
    assert!(found.ashman_d.unwrap() > 5.0);
    assert_eq!(found.steady, Some(false));
    let flat = &answer.patterns[1];
    assert_eq!(flat.verdict, Verdict::Unimodal);
    assert!(flat.dip_p_adjusted.unwrap() >= flat.dip_p.unwrap());
}

/// A long right tail has a large coefficient of variation and one mode.
#[test]
fn skewed_latencies_are_not_bimodal() {
    let skewed: Vec<Series> = (0..12)
        .map(|seed| {
            let ttft = normals(60, 0.0, 0.5, seed)
                .into_iter()
                .map(|z| 200.0 * z.exp());
            series(&format!("//p:{seed}"), ttft)
        })
        .collect();
    let answer = judge(&skewed);
    assert_eq!(answer.ttft_bimodal_count, 0);
    assert_eq!(
        (answer.ttft_phase_a_mean_ms, answer.ttft_phase_b_mean_ms),
        (None, None)
    );
    assert!(
        answer.patterns.iter().any(|p| p.bic_gain.unwrap() > 0.0),
        "the criterion alone errs"
    );
}

/// Alternating modes have no phases: rounds mix both.
#[test]
fn modes_within_rounds_are_no_change_of_level() {
    let (a, b) = (normals(30, 100.0, 3.0, 5), normals(30, 200.0, 3.0, 6));
    let samples = (0..30)
        .flat_map(|i| [(i, a[i]), (i, b[i])])
        .map(|(round, ttft_ms)| Sample {
            round: Some(round as u64),
            ttft_ms,
        })
        .collect();
    let answer = judge(&[Series {
        label: "//p:c2".into(),
        samples,
        failed: 0,
    }]);
    let found = &answer.patterns[0];
    assert_eq!(
        (found.verdict, found.n, found.rounds),
        (Verdict::Bimodal, 60, 30)
    );
    assert!(found.changepoints.is_empty());
}

#[test]
fn a_coarse_clock_does_not_make_modes() {
    let coarse = normals(100, 40.0, 2.0, 8).into_iter().map(f64::round);
    let answer = judge(&[series("//p:coarse", coarse)]);
    let found = &answer.patterns[0];
    assert_eq!(found.verdict, Verdict::Unimodal);
    assert_eq!(found.tick_ms, Some(1.0));
    assert!(found.ties > 50);
}

#[test]
fn little_data_gets_no_verdict() {
    let answer = judge(&[
        series("//p:three", [1.0, 50.0, 99.0]),
        series("//p:five", [10.0, 11.0, 12.0, 13.0, 14.0]),
        series("//p:one", [1.0]),
    ]);
    let verdicts: Vec<Verdict> = answer.patterns.iter().map(|p| p.verdict).collect();
    assert_eq!(
        verdicts,
        [
            Verdict::Insufficient,
            Verdict::Unimodal,
            Verdict::Insufficient
        ]
    );
    assert!(answer.patterns[1].small_sample);
    assert_eq!((answer.judged, answer.insufficient), (1, 2));
    assert_eq!(answer.patterns[0].dip_p, None);
}

#[test]
fn nothing_to_judge_is_an_error() {
    let run = |series: &[Series]| analyse(series, false, &Options::default());
    assert!(run(&[]).is_err());
    let error = run(&[series("//p:three", [1.0, 2.0, 3.0])]).unwrap_err();
    assert!(error.message.contains("none of the 1 patterns"), "{error}");
    assert!(
        run(&[series("//p:empty", [])])
            .unwrap_err()
            .message
            .contains("//p:empty")
    );
    assert!(run(&[series("//p:nan", [1.0, 2.0, f64::NAN, 3.0])]).is_err());
    assert!(run(&[series("//p:negative", [1.0, 2.0, -0.5, 3.0])]).is_err());
}

#[test]
fn equal_values_are_one_mode() {
    let answer = judge(&[series("//p:equal", [5.0; 20])]);
    assert_eq!(answer.patterns[0].verdict, Verdict::Unimodal);
}

#[test]
fn two_exact_values_are_two_modes() {
    let answer = judge(&[series(
        "//p:two",
        (0..40).map(|i| if i % 2 == 0 { 100.0 } else { 250.0 }),
    )]);
    assert_eq!(answer.patterns[0].verdict, Verdict::Bimodal);
    assert!((answer.ttft_phase_a_mean_ms.unwrap() - 250.0).abs() < 0.5);
}

#[test]
fn the_answer_depends_on_nothing_but_the_input() {
    let input = [
        series("//p:a", normals(40, 50.0, 5.0, 1)),
        series("//p:b", normals(25, 50.0, 5.0, 2)),
    ];
    assert_eq!(judge(&input), judge(&input));
    let mut swapped = judge(&[input[1].clone(), input[0].clone()]);
    swapped.patterns.reverse();
    assert_eq!(swapped, judge(&input));
}
