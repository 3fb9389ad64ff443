//! Server-sent events from bytes. The parser is incremental and memoryless about chunking: any
//! split of the same bytes gives the same events, and it never fails, whatever the bytes are.

/// An incremental parser of one event stream (WHATWG HTML, section 9.2.6; only `data` is kept).
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    started: bool,
}

impl Parser {
    /// Takes bytes in and hands each completed event's data to `event`.
    pub(super) fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_cr) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            match rest.iter().position(|b| matches!(b, b'\n' | b'\r')) {
                None => {
                    self.line.extend_from_slice(rest);
                    return;
                }
                Some(at) => {
                    self.line.extend_from_slice(&rest[..at]);
                    self.after_cr = rest[at] == b'\r';
                    rest = &rest[at + 1..];
                    self.end_of_line(&mut event);
                }
            }
        }
    }

    /// The stream ended. An event that was not closed by an empty line still counts: servers
    /// that end right after the last line exist, and losing their last event would lose a token.
    pub(super) fn finish(mut self, mut event: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            self.end_of_line(&mut event);
        }
        self.dispatch(&mut event);
    }

    fn end_of_line(&mut self, event: &mut impl FnMut(&[u8])) {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.started, true) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            self.dispatch(event);
        } else if let Some(value) = line.strip_prefix(b"data") {
            let value = match value {
                [] => Some(value),
                [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
                _ => None, // a field whose name only begins with `data`
            };
            if let Some(value) = value {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
        }
        line.clear();
        self.line = line; // keeps its capacity
    }

    fn dispatch(&mut self, event: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.has_data) {
            event(&self.data);
        }
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut parser = Parser::default();
        for piece in pieces {
            parser.feed(piece, |e| all.push(e.to_vec()));
        }
        parser.finish(|e| all.push(e.to_vec()));
        all
    }

    fn texts(input: &str) -> Vec<String> {
        let all = events(&[input.as_bytes()]);
        all.into_iter()
            .map(|e| String::from_utf8(e).unwrap())
            .collect()
    }

    #[test]
    fn the_forms_of_the_standard() {
        assert_eq!(texts("data: a\n\ndata:b\n\n"), ["a", "b"]);
        assert_eq!(texts("data: a\r\n\r\ndata: b\r\r"), ["a", "b"]);
        assert_eq!(texts("data: two\ndata: lines\n\n"), ["two\nlines"]);
        assert_eq!(texts(": comment\nevent: x\nid: 1\ndata: y\n\n"), ["y"]);
        assert_eq!(texts("\u{feff}data: bom\n\n"), ["bom"]);
        assert_eq!(texts("data\n\n"), [""]);
        assert_eq!(
            texts("data:  one space is kept\n\n"),
            [" one space is kept"]
        );
        assert_eq!(texts("datax: no\n\n\n\n"), Vec::<String>::new());
        assert_eq!(texts("data: unterminated"), ["unterminated"]);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            lines in prop::collection::vec("(data|event|:)?:? ?[a-z{}\u{e9}]{0,6}(\r\n|\n|\r|\n\n)?", 0..30),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let whole = lines.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(whole.len() + 1)).collect();
            at.extend([0, whole.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
            prop_assert_eq!(events(&pieces), events(&[&whole]));
        }

        #[test]
        fn whatever_is_sent_as_data_arrives(texts in prop::collection::vec("[^\r\n]{0,20}", 0..10)) {
            let stream: String = texts.iter().map(|t| format!("data: {t}\r\n\r\n")).collect();
            let got: Vec<_> = events(&[stream.as_bytes()]);
            let want: Vec<_> = texts.iter().map(|t| t.as_bytes().to_vec()).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            events(&[&bytes]);
        }
    }
}
