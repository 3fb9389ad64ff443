//! Reads shell text, with holes where values go, and knows at each place what the shell is inside
//! of: commands, quotes, a comment, a here-document. It only serves lints and the search for calls
//! of `doe`; what a script means is the shell's business.

use std::ops::Range;

/// A word that calls `doe`, with the words after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// The word `doe`.
    pub doe: Range<usize>,
    /// Up to two words that follow, as far as they are written out.
    pub words: Vec<(String, Range<usize>)>,
    /// Whether a value cuts the words short.
    pub cut: bool,
    /// Whether the word stands where a command does, rather than among its arguments.
    pub command: bool,
}

/// Words after which a command may still come.
const PREFIXES: &[&str] = &[
    "exec", "env", "time", "nohup", "nice", "setsid", "command", "then", "do", "else", "elif",
    "if", "while", "until", "!",
];

/// What the shell is inside of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Commands; when nested, entered by `$(` and left by `)`.
    Commands,
    /// `$((…))`.
    Arithmetic,
    /// `${…}`.
    Braces,
    /// `'…'`.
    Single,
    /// `"…"`.
    Double,
    /// `# …`.
    Comment,
}

/// A here-document that is being read.
#[derive(Debug)]
struct Here {
    delimiter: String,
    /// `<<-`: tabs before the delimiter do not count.
    tabs: bool,
    line: String,
}

/// The reader; see the module.
pub(super) struct Reader<'a> {
    source: &'a str,
    stack: Vec<Inside>,
    /// The character before; a value counts as a letter.
    last: char,
    escaped: bool,
    /// Here-documents that start after this line.
    awaited: Vec<Here>,
    here: Option<Here>,
    calls: Vec<Call>,
    /// The word that is being read, while it is plain, and where it started.
    word: Option<(String, usize)>,
    /// Whether the next word is a command's name.
    command: bool,
    /// Whether the call that was found last takes more words.
    open_call: bool,
}

impl<'a> Reader<'a> {
    /// A reader at the start of a script.
    pub(super) fn new(source: &'a str) -> Self {
        Self {
            source,
            stack: vec![Inside::Commands],
            last: '\n',
            escaped: false,
            awaited: Vec::new(),
            here: None,
            calls: Vec::new(),
            word: Some((String::new(), 0)),
            command: true,
            open_call: false,
        }
    }

    fn inside(&self) -> Inside {
        self.stack.last().copied().unwrap_or(Inside::Commands)
    }

    /// Whether it is inside of a here-document.
    pub(super) fn in_here_document(&self) -> bool {
        self.here.is_some()
    }

    /// Why a value cannot stand here, and what to do.
    pub(super) fn obstacle(&self) -> Option<(&'static str, &'static str)> {
        if self.here.is_some() {
            return Some((
                "in a here-document, where its quotes would be part of the text",
                "add `| raw` (after `| json`, where that fits)",
            ));
        }
        // `"${x:-value}"` is inside the quotes around it.
        let around = (self.stack.iter().rev()).find(|inside| **inside != Inside::Braces);
        match around {
            Some(Inside::Single | Inside::Double) => Some((
                "inside quotes",
                "values quote themselves; take the quotes away",
            )),
            Some(Inside::Comment) => Some((
                "in a comment, which a line break in it would end",
                "take it out of the comment",
            )),
            _ if self.escaped => Some((
                "after a backslash, which would undo its quotes",
                "take the backslash away",
            )),
            _ if self.last == '$' => Some((
                "after a `$`, which would change what its quotes mean",
                "take the `$` away, or add `| raw` to build a name",
            )),
            _ => None,
        }
    }

    /// Reads a value: some characters of a word.
    pub(super) fn value(&mut self) {
        self.escaped = false;
        self.last = 'v';
        if let Some(here) = &mut self.here {
            here.line.push('\u{fffd}');
            return;
        }
        if self.open_call
            && let Some(call) = self.calls.last_mut()
        {
            call.cut = true;
        }
        self.open_call = false;
        self.word = None;
    }

    /// The calls that were found.
    pub(super) fn finish(mut self) -> Vec<Call> {
        self.end_word(self.source.len());
        self.calls
    }

    /// Reads a stretch of the source.
    pub(super) fn read(&mut self, range: Range<usize>) {
        let text = &self.source[range.clone()];
        let mut skip_to = 0;
        for (at, character) in text.char_indices() {
            if at < skip_to {
                continue;
            }
            let place = range.start + at;
            if self.here.is_some() {
                self.read_here(character, place);
            } else {
                skip_to = at + self.step(character, &text[at..], place);
            }
        }
    }

    /// Reads one character, or more as the returned number of bytes says.
    fn step(&mut self, character: char, rest: &str, at: usize) -> usize {
        let one = character.len_utf8();
        let before = self.last;
        self.last = character;
        if self.escaped {
            self.escaped = false;
            // A backslash at a line's end joins two lines; any other makes a word that is not plain.
            self.word = (character == '\n').then(|| (String::new(), at + one));
            return one;
        }
        match (self.inside(), character) {
            (Inside::Single, '\'') | (Inside::Double, '"') | (Inside::Braces, '}') => {
                self.stack.pop();
            }
            (Inside::Comment, '\n') => {
                self.stack.pop();
                self.end_line(at);
            }
            (Inside::Single | Inside::Comment, _) => {}
            (_, '\\') => {
                self.end_word(at);
                self.escaped = true;
            }
            (_, '$') if rest.starts_with("$((") => return self.enter(Inside::Arithmetic, 3, at),
            (_, '$') if rest.starts_with("$(") => return self.enter(Inside::Commands, 2, at),
            (_, '$') if rest.starts_with("${") => return self.enter(Inside::Braces, 2, at),
            (Inside::Arithmetic, ')') if rest.starts_with("))") => {
                self.stack.pop();
                return 2;
            }
            (Inside::Double, _) | (Inside::Arithmetic, _) => {}
            (_, '"') => return self.enter(Inside::Double, 1, at),
            (_, '\'') => return self.enter(Inside::Single, 1, at),
            (Inside::Braces, _) => {}
            (Inside::Commands, '#') if before.is_whitespace() || ";&|(".contains(before) => {
                self.stack.push(Inside::Comment);
            }
            (Inside::Commands, ')') if self.stack.len() > 1 => {
                self.end_command(at);
                self.stack.pop();
                self.word = None;
            }
            (Inside::Commands, '<') if rest.starts_with("<<<") => {
                self.end_word(at);
                return 3;
            }
            (Inside::Commands, '<') if rest.starts_with("<<") => {
                self.end_word(at);
                return self.here_start(rest);
            }
            (Inside::Commands, '\n') => self.end_line(at),
            (Inside::Commands, ';' | '&' | '|' | '(' | ')' | '`' | '{' | '}') => {
                self.end_command(at);
            }
            (Inside::Commands, c) if c.is_whitespace() || c == '<' || c == '>' => {
                self.end_word(at);
                self.word = Some((String::new(), at + one));
            }
            (Inside::Commands, c) => {
                if let Some((word, _)) = &mut self.word {
                    word.push(c);
                }
            }
        }
        one
    }

    fn enter(&mut self, inside: Inside, bytes: usize, at: usize) -> usize {
        self.stack.push(inside);
        self.open_call = false;
        self.last = ' ';
        if inside == Inside::Commands {
            self.command = true;
            self.word = Some((String::new(), at + bytes));
        } else {
            // A word with quotes in it is no plain word, and no name of a command.
            self.command = false;
            self.word = None;
        }
        bytes
    }

    /// Ends a word: `doe`, or one that follows it.
    fn end_word(&mut self, at: usize) {
        let Some((word, start)) = self.word.take() else {
            return;
        };
        if word.is_empty() {
            return;
        }
        let command = self.command;
        self.command &= PREFIXES.contains(&word.as_str()) || word.contains('=');
        if self.open_call
            && let Some(call) = self.calls.last_mut()
        {
            call.words.push((word, start..at));
            self.open_call = call.words.len() < 2;
        } else if word == "doe" {
            self.open_call = true;
            self.calls.push(Call {
                doe: start..at,
                words: Vec::new(),
                cut: false,
                command,
            });
        }
    }

    fn end_command(&mut self, at: usize) {
        self.end_word(at);
        self.open_call = false;
        self.command = true;
        self.word = Some((String::new(), at + 1));
    }

    fn end_line(&mut self, at: usize) {
        self.end_command(at);
        if !self.awaited.is_empty() {
            self.here = Some(self.awaited.remove(0));
        }
    }

    /// `<<EOF`, `<<-'EOF'`: how many bytes it takes.
    fn here_start(&mut self, rest: &str) -> usize {
        let after = &rest[2..];
        let tabs = after.starts_with('-');
        let after = after.strip_prefix('-').unwrap_or(after);
        let after = after.trim_start_matches([' ', '\t']);
        let end = after
            .find(|c: char| c.is_whitespace() || ";&|<>()".contains(c))
            .unwrap_or(after.len());
        let delimiter: String = (after[..end].chars())
            .filter(|c| !matches!(c, '\'' | '"' | '\\'))
            .collect();
        if !delimiter.is_empty() {
            self.awaited.push(Here {
                delimiter,
                tabs,
                line: String::new(),
            });
        }
        rest.len() - after.len() + end
    }

    fn read_here(&mut self, character: char, at: usize) {
        let Some(here) = &mut self.here else {
            return;
        };
        if character != '\n' {
            here.line.push(character);
            return;
        }
        let line = if here.tabs {
            here.line.trim_start_matches('\t')
        } else {
            here.line.as_str()
        };
        if line == here.delimiter {
            self.here = None;
            self.last = '\n';
            self.end_line(at);
        } else {
            here.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn calls(script: &str) -> Vec<(String, bool)> {
        let mut reader = Reader::new(script);
        reader.read(0..script.len());
        (reader.finish().into_iter())
            .map(|call| {
                let words: Vec<_> = call.words.into_iter().map(|(word, _)| word).collect();
                (words.join(" "), call.command)
            })
            .collect()
    }

    fn obstacle_after(script: &str) -> Option<&'static str> {
        let mut reader = Reader::new(script);
        reader.read(0..script.len());
        reader
            .obstacle()
            .map(|(what, _)| &what[..what.find(',').unwrap_or(what.len())])
    }

    #[test]
    fn calls_are_found_wherever_commands_stand() {
        for (script, expected) in [
            ("doe measure openai --url x", vec![("measure openai", true)]),
            ("exec doe proxy --port 1", vec![("proxy --port", true)]),
            ("a=1 doe parse iperf3 <x", vec![("parse iperf3", true)]),
            (
                "x | doe parse\\\n  iperf3; doe analyze a",
                vec![("parse iperf3", true), ("analyze a", true)],
            ),
            (
                "if ! doe measure a b; then\ndoe parse c\nfi",
                vec![("measure a", true), ("parse c", true)],
            ),
            ("x=\"$(doe parse y)\"", vec![("parse y", true)]),
            ("timeout 5 doe measure z", vec![("measure z", false)]),
            (
                "echo doe; # doe parse x\ncat 'doe parse x' \"doe y\" ${doe} a-doe doe-b",
                vec![("", false)],
            ),
            (
                "cat <<EOF\ndoe parse x\nEOF\ndoe parse y",
                vec![("parse y", true)],
            ),
            ("cat <<-'E F'\ndoe parse x\n", vec![]),
            (
                "echo $((1<<20)) $(( (2) ))\ndoe parse y",
                vec![("parse y", true)],
            ),
            ("(doe proxy)&\ndoe", vec![("proxy", true), ("", true)]),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|(w, c)| ((*w).to_owned(), *c))
                .collect();
            assert_eq!(calls(script), expected, "{script}");
        }
    }

    #[test]
    fn places_for_values_are_told_apart() {
        for (script, expected) in [
            ("echo ", None),
            ("--url http://", None),
            ("echo 'it''s' \"a\" ", None),
            ("echo 'a", Some("inside quotes")),
            ("echo \"a", Some("inside quotes")),
            ("echo \"$(cat ", None),
            ("echo \"$(cat x) ", Some("inside quotes")),
            ("echo \"${x:-", Some("inside quotes")),
            ("echo ${x:-", None),
            ("echo \"a\\\"", Some("inside quotes")),
            ("# note ", Some("in a comment")),
            ("a # note\n", None),
            ("echo a#b $# ", None),
            ("echo \\", Some("after a backslash")),
            ("echo $", Some("after a `$`")),
            ("cat <<X\n", Some("in a here-document")),
            ("cat <<X\nX\n", None),
            ("cat <<-X | y\n\t\tX\n", None),
            ("cat <<X\n'\nX\n", None),
            ("cat <<<", None),
        ] {
            assert_eq!(obstacle_after(script), expected, "{script:?}");
        }
    }

    proptest! {
        #[test]
        fn any_script_is_read(script in "[a doe$(){}<>'\"\\\\#\n\u{e9}-]{0,60}") {
            calls(&script);
            obstacle_after(&script);
        }
    }
}
