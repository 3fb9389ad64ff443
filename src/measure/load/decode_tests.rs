//! Streams as real servers send them, with the times and verdicts they must give.

use super::*;
use bytes::Bytes;

const PLACE: Place = Place {
    index: 0,
    round: 0,
    stream: 0,
};

/// Sends at 1 ms; each piece arrives at the given millisecond.
fn sample(pieces: &[(u64, &str)], failure: Option<Failure>) -> Sample {
    let capture = Capture {
        connect: 250_000,
        sent: 1_000_000,
        pieces: pieces
            .iter()
            .map(|(at, text)| (at * 1_000_000, Bytes::copy_from_slice(text.as_bytes())))
            .collect(),
        ended: 100_000_000,
        failure,
    };
    let mut sample = decode(PLACE, &capture, true);
    sample.starts_in(500_000);
    sample
}

#[test]
fn vllm_completions_finish_on_the_last_token_then_usage_then_done() {
    let s = sample(
        &[
            (
                11,
                "data: {\"choices\":[{\"text\":\" a\",\"finish_reason\":null}]}\n\n",
            ),
            (
                14,
                "data: {\"choices\":[{\"text\":\" b\",\"finish_reason\":null}]}\n\n",
            ),
            (
                19,
                "data: {\"choices\":[{\"text\":\" c\",\"finish_reason\":\"length\"}]}\n\n",
            ),
            (
                40,
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n",
            ),
        ],
        None,
    );
    assert_eq!(s.error, None);
    assert_eq!(s.ttft_ms, Some(10.0));
    assert_eq!(
        s.e2e_ms,
        Some(18.0),
        "the usage chunk at 40 ms is not part of E2E"
    );
    assert_eq!(s.itl_ms, Some(vec![3.0, 5.0]));
    assert_eq!(s.tpot_ms, Some(4.0));
    assert_eq!((s.prompt_tokens, s.output_tokens), (Some(7), Some(3)));
    assert_eq!(s.tokens_from, Some(TokensFrom::Usage));
    assert_eq!((s.start_ms, s.connect_ms), (0.5, 0.25));
}

#[test]
fn llama_cpp_sends_usage_in_an_empty_finish_chunk() {
    let s = sample(
        &[
            (
                5,
                "data: {\"choices\":[{\"text\":\" geb\",\"finish_reason\":null}]}\n\n",
            ),
            (
                9,
                "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}],\"usage\":{\"completion_tokens\":1,\"prompt_tokens\":15},\"timings\":{\"prompt_n\":15}}\n\ndata: [DONE]\n\n",
            ),
        ],
        None,
    );
    assert_eq!((s.ttft_ms, s.e2e_ms), (Some(4.0), Some(4.0)));
    assert_eq!(s.tpot_ms, None, "one token has no time per further token");
    assert_eq!(s.itl_ms, Some(vec![]));
}

#[test]
fn chat_roles_and_null_content_are_not_the_first_token() {
    let s = sample(
        &[
            (
                2,
                "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n",
            ),
            (
                3,
                "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
            ),
            (
                6,
                "data: {\"choices\":[{\"delta\":{\"content\":\" fis\"}}]}\n\n",
            ),
            (
                8,
                "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
            ),
        ],
        None,
    );
    assert_eq!(
        s.error, None,
        "a finish reason is enough, [DONE] may be missing"
    );
    assert_eq!(s.ttft_ms, Some(5.0));
    assert_eq!(s.output_tokens, Some(1));
    assert_eq!(s.tokens_from, Some(TokensFrom::Chunks));
}

#[test]
fn events_of_one_piece_share_its_stamp_and_events_across_pieces_take_the_last() {
    let s = sample(
        &[
            (
                4,
                "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\ndata: {\"choi",
            ),
            (
                7,
                "ces\":[{\"text\":\"c\",\"finish_reason\":\"length\"}]}\n\n",
            ),
        ],
        None,
    );
    assert_eq!(s.itl_ms, Some(vec![0.0, 3.0]));
    assert_eq!(s.output_tokens, Some(3));
}

#[test]
fn an_error_event_under_status_200_is_a_failure_by_name() {
    for (text, part) in [
        (
            "data: {\"error\": {\"message\":\"EngineCore died\",\"code\": 500}}\n\ndata: [DONE]\n\n",
            "EngineCore died (code 500)",
        ),
        (
            "data: {\"object\":\"error\",\"message\":\"old form\",\"code\":500}\n\n",
            "old form",
        ),
        ("data: {\"error\":\"plain\"}\n\n", "plain"),
    ] {
        let s = sample(&[(3, text)], None);
        let error = s.error.unwrap();
        assert_eq!(error.kind, "server_error");
        assert!(error.message.contains(part), "{error:?}");
        assert_eq!((s.e2e_ms, s.tpot_ms), (None, None));
    }
    let after_tokens = sample(
        &[(
            3,
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n",
        )],
        None,
    );
    assert_eq!(after_tokens.error.unwrap().kind, "server_error");
    assert_eq!(after_tokens.ttft_ms, Some(2.0), "what was seen is kept");
}

#[test]
fn answers_that_are_not_whole_are_failures_by_name() {
    let kind = |pieces: &[(u64, &str)]| sample(pieces, None).error.unwrap().kind;
    assert_eq!(kind(&[]), "empty");
    assert_eq!(kind(&[(2, "data: [DONE]\n\n")]), "empty");
    assert_eq!(
        kind(&[(2, "data: {\"choices\":[{\"text\":\"a\"}]}\n\n")]),
        "truncated"
    );
    assert_eq!(kind(&[(2, "data: {not json}\n\n")]), "bad_event");
    assert_eq!(kind(&[(2, "<html>hello</html>")]), "empty");
}

#[test]
fn a_failure_of_the_network_wins_unless_the_server_explained_itself() {
    let closed = || Some(Failure::new("connection_closed", "x"));
    let whole = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\n";
    assert_eq!(
        sample(&[(2, whole)], closed()).error.unwrap().kind,
        "connection_closed"
    );
    let told = "data: {\"error\":{\"message\":\"oom\"}}\n\n";
    assert_eq!(
        sample(&[(2, told)], closed()).error.unwrap().kind,
        "server_error"
    );
}
