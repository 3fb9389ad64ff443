//! Errors of the front door; the readers themselves are tested in `tests/tools.rs`.

use super::*;

#[test]
fn an_unknown_tool_names_the_nearest() {
    let error = parse("iperf", "x", &Context::default()).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.hints.iter().any(|h| h.contains("`iperf3`")));
}

#[test]
fn nothing_and_only_remarks_are_no_output() {
    for tool in NAMES {
        for text in ["", "\n \n", "[doe-sim] x: simulated\n"] {
            let error = parse(tool, text, &Context::default()).unwrap_err();
            assert_eq!(error.kind, Kind::NodeFailed, "{tool}");
            assert!(error.message.contains("line 1"), "{error}");
            assert!(
                error.hints.iter().any(|h| h.contains("exit status")),
                "{tool}"
            );
        }
    }
}

#[test]
fn the_mark_of_a_simulated_tool_is_taken_out_and_told() {
    let text = "[doe-sim] fi_info: simulated\nprovider: efa\n    fabric: efa\n    domain: d-rdm\n    version: 1\n    type: FI_EP_RDM\n    protocol: FI_PROTO_EFA\n";
    let answer = parse("fi_info", text, &Context::default()).unwrap();
    assert_eq!(answer["simulated"], true);
    // Line numbers are those of the whole text.
    let error = parse(
        "fi_info",
        &text.replace("fabric:", "fabrik:"),
        &Context::default(),
    );
    assert!(error.unwrap_err().message.contains("line 3"));
}

#[test]
fn an_error_names_the_file_and_tells_what_to_do() {
    let context = Context {
        source: "run/pp.txt".into(),
        ..Context::default()
    };
    let text = "[error] util/pingpong.c:408 : failed to connect: Connection refused\n";
    let error = parse("fi_pingpong", text, &context).unwrap_err();
    assert!(
        error.message.starts_with("`run/pp.txt`, line 1: expected"),
        "{error}"
    );
    assert!(error.hints.iter().any(|h| h.contains("not listening")));
}
