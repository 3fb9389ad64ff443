//! What `doe` tells its reaper, and what is understood of it.

use super::*;

fn lines(messages: &[Message]) -> Vec<u8> {
    messages
        .iter()
        .flat_map(|m| [serde_json::to_vec(m).unwrap(), b"\n".to_vec()].concat())
        .collect()
}

fn watch(token: &str) -> Message {
    Message::Watch {
        token: Token(token.into()),
        dir: PathBuf::from("/a b\n\"c\""),
    }
}

#[test]
fn what_was_told_and_not_taken_back_is_watched() {
    let text = lines(&[
        watch("a"),
        watch("b"),
        Message::Leader {
            token: Token("b".into()),
            pid: 7,
            start_ticks: 8,
        },
        watch("b"), // told twice: the leader stays
        watch("c"),
        Message::Forget {
            token: Token("a".into()),
        },
        Message::Forget {
            token: Token("unknown".into()),
        },
    ]);
    let (watched, farewell) = listen(text.as_slice());
    assert_eq!(farewell, Farewell::None);
    assert_eq!(watched.keys().collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(
        watched["b"].leader,
        Some(ProcessId {
            pid: 7,
            start_ticks: 8
        })
    );
    assert_eq!(watched["b"].dir, PathBuf::from("/a b\n\"c\""));
}

#[test]
fn a_torn_last_line_is_passed_over() {
    let text = lines(&[watch("a"), watch("b")]);
    for cut in 0..text.len() {
        let (watched, farewell) = listen(&text[..cut]);
        assert!(farewell == Farewell::None && watched.len() <= 2);
    }
    assert_eq!(listen(text.as_slice()).0.len(), 2);
}

#[test]
fn after_the_farewell_nothing_is_read() {
    let (_, farewell) = listen(lines(&[watch("a"), Message::Bye, watch("b")]).as_slice());
    assert_eq!(farewell, Farewell::Bye);
}
