//! What readers say of one run that has everything in it.

use proptest::prelude::*;

use super::plain::Plain;
use super::style::Style;
use super::summary::summary;
use super::trace::trace;
use super::view::View;
use crate::engine::event::{
    Body, CriterionWord, Event, NodeFinished, NodeState, Outcome, Retrying, ServiceState, Sink,
    Summary,
};
use crate::label::Label;

fn finished(name: &str, outcome: Outcome, ms: Option<u64>) -> NodeFinished {
    let label: Label = format!("//phase2:{name}").parse().unwrap();
    NodeFinished {
        duration_ms: ms,
        simulated: outcome.is_good(),
        ..NodeFinished::new(&label, outcome)
    }
}

fn state(name: &str, state: NodeState) -> Body {
    Body::NodeState {
        label: format!("//phase2:{name}"),
        state,
        hosts: vec!["node1".into(), "node2".into()],
        estimate_s: Some(60.0),
        why: None,
    }
}

fn service(state: ServiceState, reason: Option<&str>) -> Body {
    Body::Service {
        name: "decode".into(),
        key: "0123456789ab".into(),
        host: "node2".into(),
        state,
        starts: 1,
        reason: reason.map(str::to_owned),
    }
}

/// A run with every kind of end, one event a second.
fn events() -> Vec<Event> {
    let mut bodies = vec![
        Body::RunStarted {
            run_id: "20260101T000000-000-1".into(),
            platform: "sim".into(),
            simulated: true,
            nodes: 7,
            run_dir: "/w/.doe/runs/20260101T000000-000-1".into(),
            command: "doe build //phase2:all".into(),
        },
        Body::Planned {
            run: 4,
            may_run: 2,
            reuse: 1,
            estimate_s: Some(360.0),
        },
        Body::NodeFinished(NodeFinished {
            criterion: Some(CriterionWord::Missed),
            missed: vec!["tcp_bandwidth_gbps is 4.1, expected 9..12".into()],
            ..finished("p2-baseline-iperf3", Outcome::Reused, Some(61_000))
        }),
        state("p2-efa-1k-c1", NodeState::Acquiring),
        service(ServiceState::Starting, None),
        service(ServiceState::Ready, None),
        state("p2-efa-1k-c1", NodeState::Running),
        Body::NodeFinished(finished("p2-efa-1k-c1", Outcome::Ok, Some(45_120))),
        state("p2-efa-4k-c1", NodeState::Acquiring),
        state("p2-efa-4k-c1", NodeState::Running),
        service(
            ServiceState::Failed,
            Some("service `decode` was ended by signal 9"),
        ),
        Body::LogTail {
            label: "//phase2:p2-efa-4k-c1".into(),
            log: "service-decode.stderr".into(),
            lines: vec![
                "INFO ready".into(),
                "Traceback (most recent call last):".into(),
            ],
        },
        Body::NodeFinished(NodeFinished {
            reason: Some("service `decode` was ended by signal 9".into()),
            class: Some("service-died".into()),
            ..finished("p2-efa-4k-c1", Outcome::Failed, Some(9_000))
        }),
        Body::Warning {
            code: "interrupted".into(),
            message: "stopping: what runs may end; once more cancels it".into(),
            label: None,
        },
        Body::NodeFinished(NodeFinished {
            reason: Some("does not hold: result.counts.failed == 0".into()),
            ..finished("p2-tcp-1k-c1", Outcome::Invalid, Some(950))
        }),
    ];
    bodies.push(Body::Retrying(Retrying {
        label: "//phase2:p2-tcp-4k-c1".into(),
        attempt: 1,
        attempts: 3,
        class: "lost".into(),
        reason: "step `go` was lost (killed)".into(),
        delay_ms: 1_500,
        seed: 7,
        record: "0".repeat(64),
        duration_ms: 900,
    }));
    for name in ["p2-analysis-tpot", "p2-analysis-proxy"] {
        bodies.push(Body::NodeFinished(NodeFinished {
            reason: Some("needs //phase2:p2-efa-4k-c1, which failed".into()),
            ..finished(name, Outcome::Blocked, None)
        }));
    }
    bodies.push(Body::NodeFinished(NodeFinished {
        reason: Some("not begun: the run was interrupted".into()),
        ..finished("p2-tcp-4k-c1", Outcome::Cancelled, None)
    }));
    bodies.push(Body::Followup {
        followup: "//phase2#slow-tail".into(),
        when: "ttft_p99_ms > 90".into(),
        cause: "`ttft_p99_ms > 90` holds for //phase2:p2-efa-1k-c1: ttft_p99_ms = 93".into(),
        results: vec!["//phase2:p2-efa-1k-c1".into()],
        values: [("ttft_p99_ms".to_owned(), 93.into())].into(),
        patterns: vec!["//phase2:ll-one".into(), "//phase2:ll-two".into()],
        budget_s: Some(2700.0),
        estimate_s: None,
        exploratory: true,
    });
    for (name, outcome) in [("ll-one", Outcome::Ok), ("ll-two", Outcome::Failed)] {
        bodies.push(Body::NodeFinished(NodeFinished {
            followup: Some("//phase2#slow-tail".into()),
            exploratory: true,
            ..finished(name, outcome, Some(2_000))
        }));
    }
    bodies.push(Body::Summary(Summary {
        ok: 1,
        reused: 1,
        failed: 1,
        invalid: 1,
        blocked: 2,
        service_starts: 1,
        wall_s: 75.2,
        cancelled: 1,
        time_saved_s: 61.0,
        remote_hits: 0,
        followups: 2,
        followups_failed: 1,
        retries: 1,
        skipped: 0,
    }));
    let bodies = bodies.into_iter().enumerate();
    bodies
        .map(|(at, body)| Event::new(1_000_000 + at as u64 * 1000, body))
        .collect()
}

fn view_of(events: &[Event]) -> View {
    let mut view = View::default();
    events.iter().for_each(|event| view.event(event));
    view
}

#[test]
fn plain_lines() {
    let mut out = Vec::new();
    let mut plain = Plain::new(&mut out, Style::PLAIN);
    events().iter().for_each(|event| plain.event(event));
    drop(plain);
    let text = String::from_utf8(out).unwrap();
    insta::assert_snapshot!(text, @r"
    7 nodes on sim (simulated): 4 to run, 2 that may run, 1 at hand, about 6m 00s of work
    [2/7] ok        //phase2:p2-efa-1k-c1  45.1 s
    service failed on node2: service `decode` was ended by signal 9
    [3/7] failed    //phase2:p2-efa-4k-c1  9.0 s  service `decode` was ended by signal 9 (service-died)
    warning: stopping: what runs may end; once more cancels it
    [4/7] invalid   //phase2:p2-tcp-1k-c1  950 ms  does not hold: result.counts.failed == 0
    [   ] retrying  //phase2:p2-tcp-4k-c1  attempt 1 of 3: step `go` was lost (killed) (lost), again in 1.5 s
    [5/7] blocked   //phase2:p2-analysis-tpot  needs //phase2:p2-efa-4k-c1, which failed
    [6/7] blocked   //phase2:p2-analysis-proxy  needs //phase2:p2-efa-4k-c1, which failed
    [7/7] cancelled //phase2:p2-tcp-4k-c1  not begun: the run was interrupted
    follow-up //phase2#slow-tail (exploratory): 2 patterns, because `ttft_p99_ms > 90` holds for //phase2:p2-efa-1k-c1: ttft_p99_ms = 93
    [  +] ok        //phase2:ll-one  2.0 s  exploratory, by //phase2#slow-tail
    [  +] failed    //phase2:ll-two  2.0 s  exploratory, by //phase2#slow-tail
    ");
}

#[test]
fn closing_block() {
    insta::assert_snapshot!(summary(&view_of(&events()), Style::PLAIN), @r"
    failed (service-died) //phase2:p2-efa-4k-c1: service `decode` was ended by signal 9
      end of service-decode.stderr:
      | INFO ready
      | Traceback (most recent call last):
      look closer: doe logs //phase2:p2-efa-4k-c1
    invalid //phase2:p2-tcp-1k-c1: does not hold: result.counts.failed == 0
      look closer: doe logs //phase2:p2-tcp-1k-c1
    failed //phase2:ll-two: no reason is known
      look closer: doe logs //phase2:ll-two
    cancelled //phase2:p2-tcp-4k-c1: not begun: the run was interrupted
    blocked //phase2:p2-analysis-tpot, //phase2:p2-analysis-proxy: needs //phase2:p2-efa-4k-c1, which failed
    missed //phase2:p2-baseline-iperf3: tcp_bandwidth_gbps is 4.1, expected 9..12
    follow-up //phase2#slow-tail (exploratory): `ttft_p99_ms > 90` holds for //phase2:p2-efa-1k-c1: ttft_p99_ms = 93
    7 nodes: 1 ok, 1 reused, 1 failed, 1 invalid, 2 blocked, 1 cancelled in 1m 15s, 2 nodes of follow-ups (1 without a result), 1 service start, 1 attempt was tried again, 1m 01s saved by reuse
    all results are simulated: they say nothing about hardware
    logs: doe logs LABEL; events: /w/.doe/runs/20260101T000000-000-1
    run what failed again: doe build @failed
    ");
}

#[test]
fn closing_block_of_a_run_that_went_well() {
    let mut view = View::default();
    view.event(&Event::new(
        0,
        Body::NodeFinished(finished("a", Outcome::Reused, Some(10))),
    ));
    view.nodes = 1;
    view.event(&Event::new(
        5,
        Body::Summary(Summary {
            reused: 1,
            wall_s: 0.0123,
            time_saved_s: 0.01,
            ..Summary::default()
        }),
    ));
    insta::assert_snapshot!(summary(&view, Style::PLAIN), @r"
    1 node: 0 ok, 1 reused in 12 ms
    all results are simulated: they say nothing about hardware
    ");
}

#[test]
fn colours_change_nothing_but_colours() {
    let view = view_of(&events());
    let coloured = summary(&view, Style { colour: true });
    let plain = summary(&view, Style::PLAIN);
    assert!(coloured.contains("\x1b[") && !plain.contains('\x1b'));
    let codes = regex::Regex::new("\x1b\\[[0-9;]*m").unwrap();
    assert_eq!(codes.replace_all(&coloured, ""), plain);
}

#[test]
fn only_known_lengths_make_an_estimate() {
    let all = events();
    let begun = view_of(&all[..7]);
    assert_eq!(begun.eta_s(begun.now_unix_ms), None, "nothing has ended");
    let mut later = view_of(&all[..9]);
    // 60 s of work took 8 s of the clock; one more node of 60 s is known.
    assert_eq!(later.eta_s(1_008_000), Some(8.0));
    // It has run 2 s of its 60: 62 s of work in 10 s. It never counts for more than was expected.
    let close = |at: u64, s: f64| (later.eta_s(at).unwrap() - s).abs() < 1e-9;
    assert!(
        close(1_010_000, 58.0 * 10.0 / 62.0),
        "{:?}",
        later.eta_s(1_010_000)
    );
    assert!(close(1_100_000, 0.0), "{:?}", later.eta_s(1_100_000));
    later.event(&Event::new(
        1_000_000,
        Body::Planned {
            run: 4,
            may_run: 2,
            reuse: 1,
            estimate_s: None,
        },
    ));
    assert_eq!(later.eta_s(1_008_000), None, "a length is unknown");
}

/// Spans as `(pid, tid, from, to, name)`.
fn spans(events: &[Event]) -> Vec<(u64, u64, u64, u64, String)> {
    let trace = trace(events);
    let all = trace["traceEvents"].as_array().unwrap();
    let spans = all.iter().filter(|span| span["ph"] == "X");
    spans
        .map(|span| {
            let number = |key: &str| span[key].as_u64().unwrap();
            let (from, length) = (number("ts"), number("dur"));
            let name = span["name"].as_str().unwrap().to_owned();
            (number("pid"), number("tid"), from, from + length, name)
        })
        .collect()
}

#[test]
fn the_trace_has_a_span_for_every_node_phase_and_service() {
    let all = spans(&events());
    let find = |name: &str| all.iter().filter(|span| span.4 == name).collect::<Vec<_>>();
    let node = find("//phase2:p2-efa-1k-c1")[0];
    assert_eq!((node.0, node.2, node.3), (1, 1_003_000_000, 1_007_000_000));
    assert_eq!(find("acquiring").len(), 2);
    let decode = find("decode")[0];
    assert_eq!(
        (decode.0, decode.2, decode.3),
        (2, 1_004_000_000, 1_010_000_000)
    );
    assert!(find("//phase2:p2-tcp-4k-c1").is_empty(), "it never began");
}

#[test]
fn a_cut_last_line_of_a_killed_run_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let mut text: String = events()
        .iter()
        .map(|event| serde_json::to_string(event).unwrap() + "\n")
        .collect();
    std::fs::write(&path, &text).unwrap();
    assert_eq!(super::read_events(&path).unwrap(), events());
    text.truncate(text.len() - 5);
    std::fs::write(&path, &text).unwrap();
    assert_eq!(super::read_events(&path).unwrap().len(), events().len() - 1);
    std::fs::write(&path, format!("rubbish\n{text}")).unwrap();
    let error = super::read_events(&path).unwrap_err();
    assert!(error.message.contains("line 1"), "{error}");
}

proptest! {
    #[test]
    fn spans_of_a_lane_never_overlap_but_by_nesting(moves in prop::collection::vec((0usize..5, 0usize..4), 0..60)) {
        let mut events = Vec::new();
        let mut open = [false; 5];
        for (at, (node, step)) in moves.into_iter().enumerate() {
            let name = format!("n{node}");
            let body = match step {
                0 if open[node] => {
                    open[node] = false;
                    Body::NodeFinished(finished(&name, Outcome::Ok, None))
                }
                0 | 1 => { open[node] = true; state(&name, NodeState::Acquiring) }
                2 => { open[node] = true; state(&name, NodeState::Running) }
                _ => service(if at % 2 == 0 { ServiceState::Starting } else { ServiceState::Stopped }, None),
            };
            events.push(Event::new(at as u64, body));
        }
        let all = spans(&events);
        for a in &all {
            for b in all.iter().filter(|b| (a.0, a.1) == (b.0, b.1)) {
                let apart = a.3 <= b.2 || b.3 <= a.2;
                let nested = (a.2 <= b.2 && b.3 <= a.3) || (b.2 <= a.2 && a.3 <= b.3);
                prop_assert!(apart || nested, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_view_counts_what_ended(outcomes in prop::collection::vec(0usize..6, 0..30)) {
        let kinds = [Outcome::Ok, Outcome::Reused, Outcome::Invalid, Outcome::Failed, Outcome::Cancelled, Outcome::Blocked];
        let mut view = View::default();
        for (at, outcome) in outcomes.iter().enumerate() {
            let node = finished(&format!("n{at}"), kinds[*outcome], None);
            view.event(&Event::new(0, Body::NodeFinished(node)));
        }
        prop_assert_eq!(view.ended(), outcomes.len() as u64);
        let reused = outcomes.iter().filter(|o| **o == 1).count();
        prop_assert_eq!(view.finished.len(), outcomes.len() - reused);
        prop_assert!(!summary(&view, Style::PLAIN).is_empty());
    }
}
