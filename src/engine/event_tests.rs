//! Events as lines.

use super::*;

fn line(body: Body) -> String {
    serde_json::to_string(&Event::new(1_700_000_000_000, body)).unwrap()
}

#[test]
fn the_summary_has_the_documented_fields_and_no_others() {
    let mut summary = Summary {
        service_starts: 12,
        wall_s: 3.5,
        ..Summary::default()
    };
    for outcome in [Outcome::Ok, Outcome::Ok, Outcome::Reused, Outcome::Blocked] {
        summary.count(outcome);
    }
    assert!(!summary.is_good());
    assert_eq!(
        line(Body::Summary(summary)),
        "{\"event\":\"summary\",\"ok\":2,\"reused\":1,\"failed\":0,\"invalid\":0,\"blocked\":1,\
         \"service_starts\":12,\"wall_s\":3.5,\"cancelled\":0,\"time_saved_s\":0.0,\"remote_hits\":0,\
         \"followups\":0,\"followups_failed\":0}"
    );
}

#[test]
fn events_carry_version_and_time_and_read_back() {
    let label: Label = "//phase2:p2-efa-4k-c1".parse().unwrap();
    let bodies = [
        Body::NodeState {
            label: label.to_string(),
            state: NodeState::Staging,
            hosts: vec!["node1".into()],
            estimate_s: None,
            why: None,
        },
        Body::NodeFinished(NodeFinished {
            reason: Some("it broke".into()),
            criterion: Some(CriterionWord::Missed),
            ..NodeFinished::new(&label, Outcome::Failed)
        }),
        Body::Service {
            name: "decode".into(),
            key: "0123456789ab".into(),
            host: "node2".into(),
            state: ServiceState::Ready,
            starts: 1,
            reason: None,
        },
        Body::Summary(Summary::default()),
    ];
    for body in bodies {
        let text = line(body.clone());
        let event: Event = serde_json::from_str(&text).unwrap();
        assert_eq!(event.body, body, "{text}");
        let summary = matches!(body, Body::Summary(_));
        assert_eq!(
            text.contains("\"v\":1,\"at_unix_ms\":1700000000000"),
            !summary
        );
    }
    assert!(
        line(Body::Warning {
            code: "c".into(),
            message: "m".into(),
            label: None
        })
        .starts_with("{\"event\":\"warning\",\"code\":\"c\",")
    );
}

#[test]
fn unknown_fields_are_ignored() {
    let text =
        r#"{"event":"node-state","label":"//a:b","state":"running","new":1,"v":1,"at_unix_ms":5}"#;
    let event: Event = serde_json::from_str(text).unwrap();
    assert_eq!(event.at_unix_ms, Some(5));
}
