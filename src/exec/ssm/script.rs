//! The script that SSM runs on a host: it takes a command and what it reads out of itself or out
//! of the bucket, and puts what came of it into the bucket. Everything that is not ours travels
//! as base64, so that neither a shell nor the service's `{{parameters}}` finds anything in it.
//! Links are signed for one object and some minutes, and are nobody's argument; a credential is
//! never in it.

use std::time::Duration;

use super::verdict::{NO_ANSWER, NO_FOLDER, NO_INPUT};

/// Longest script. The service takes documents up to 64 KB, with their frame and every line end
/// as two bytes.
pub(super) const MOST_BYTES: usize = 48 * 1024;
/// Longest input that travels in the script; longer ones go through the bucket.
pub(super) const MOST_INLINE_BYTES: usize = 16 * 1024;

const CARRIER: &str = include_str!("carrier.sh");

/// A request that somebody without credentials may make.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub url: String,
    /// Headers that belong to it.
    pub headers: Vec<(String, String)>,
}

/// What a command reads.
#[derive(Debug)]
pub(super) enum Feed<'a> {
    Nothing,
    Inline(&'a [u8]),
    Fetched(Signed),
}

/// The script for a command, which is run again for this time as long as it says no; `None` when
/// it is too long for the service.
pub(super) fn text(
    command: &str,
    feed: &Feed<'_>,
    again: Duration,
    answer: &Signed,
) -> Option<String> {
    let mut text = CARRIER.to_owned();
    let mut unpack = |name: &str, bytes: &[u8]| {
        text.push_str(&format!(
            "base64 -d >\"$box/{name}\" <<'doe' || exit {NO_FOLDER}\n"
        ));
        for line in base64(bytes).as_bytes().chunks(76) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("doe\n");
    };
    unpack("run", command.as_bytes());
    match feed {
        Feed::Nothing => unpack("in", b""),
        Feed::Inline(bytes) => unpack("in", bytes),
        Feed::Fetched(from) => {
            text.push_str(&format!(
                "{}carry \"$box/in\" || exit {NO_INPUT}\n",
                link(from)
            ));
        }
    }
    text.push_str(&format!(
        "answer {}\n{}carry /dev/null -T \"$box/answer\" || exit {NO_ANSWER}\nexit 0\n",
        again.as_secs(),
        link(answer)
    ));
    (text.len() + text.matches(['\n', '"', '\\']).count() <= MOST_BYTES).then_some(text)
}

/// Lines that write down a link, as `curl` reads it.
fn link(signed: &Signed) -> String {
    let quoted = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"");
    let mut lines = format!("url = \"{}\"\n", quoted(&signed.url));
    for (name, value) in &signed.headers {
        let header = quoted(&format!("{name}: {value}"));
        lines.push_str(&format!("header = \"{header}\"\n"));
    }
    format!("cat >\"$box/link\" <<'doe' || exit {NO_FOLDER}\n{lines}doe\n")
}

/// Takes an answer apart into what was printed as errors and as output.
pub(super) fn unpack(answer: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = answer.iter().position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let length: usize = head.strip_prefix("doe-answer ")?.parse().ok()?;
    answer[end + 1..].split_at_checked(length)
}

/// Bytes as base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for block in bytes.chunks(3) {
        let mut bits = 0_usize;
        for at in 0..3 {
            bits = bits << 8 | usize::from(block.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * at) & 63];
            text.push(if at <= block.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn signed(url: &str) -> Signed {
        Signed {
            url: url.into(),
            headers: vec![("x-a".into(), "it's".into())],
        }
    }

    #[test]
    fn base64_is_the_usual_one() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn what_is_not_ours_is_not_to_be_read_in_it() {
        let hostile = "echo {{ssm:secret}} '$(touch x)'\nEOF\ndoe\n";
        let text = text(
            hostile,
            &Feed::Inline(hostile.as_bytes()),
            Duration::ZERO,
            &signed("http://h/?a&b"),
        )
        .unwrap();
        assert!(!text.contains("{{") && !text.contains("touch"), "{text}");
        // Nothing of a link is a word of a command.
        let link = "<<'doe' || exit 73\nurl = \"http://h/?a&b\"\nheader = \"x-a: it's\"\ndoe\n";
        assert!(text.contains(link), "{text}");
        assert_eq!(text.matches("http").count(), 1, "{text}");
    }

    /// Runs a script on this machine, in a folder of its own, where `curl` keeps what it sends.
    fn run_here(dir: &Path, shell: &str, script: &str) -> std::process::Child {
        let curl = dir.join("curl");
        let text = "#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\ncat \"$1\" >\"$SENT\"\n";
        std::fs::write(&curl, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&curl, mode).unwrap();
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new(shell);
        command.args(["-c", script]).env("PATH", path);
        command.env("TMPDIR", dir).env("SENT", dir.join("sent"));
        command.spawn().unwrap()
    }

    fn files_with(dir: &Path, word: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(files_with(&path, word));
            } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(word)) {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn what_a_command_reads_has_no_name_while_it_runs_and_is_read_whole_each_time() {
        for shell in ["dash", "bash"] {
            let dir = tempfile::tempdir().unwrap();
            let (go, turns) = (dir.path().join("go"), dir.path().join("turns"));
            // The second time is the last one.
            let command = format!(
                "read -r all && [ \"$all\" = hf_''0123456789 ] || exit 64\n\
                 echo turn >>'{turns}'\nwhile ! [ -e '{go}' ]; do sleep 0.02; done\n\
                 [ $(wc -l <'{turns}') -ge 2 ]\n",
                turns = turns.display(),
                go = go.display(),
            );
            let feed = Feed::Inline(b"hf_0123456789\n");
            let text = text(
                &command,
                &feed,
                Duration::from_secs(60),
                &signed("http://h/"),
            );
            // The words of this process are not a file.
            let mut child = run_here(dir.path(), shell, &text.unwrap());
            while !turns.exists() {
                assert_eq!(child.try_wait().unwrap(), None, "{shell}");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(
                files_with(dir.path(), "hf_0"),
                Vec::<PathBuf>::new(),
                "{shell}"
            );
            std::fs::write(&go, "").unwrap();
            assert!(child.wait().unwrap().success(), "{shell}");
            let count = std::fs::read_to_string(&turns).unwrap().lines().count();
            assert_eq!(count, 2, "{shell}");
            let sent = std::fs::read_to_string(dir.path().join("sent")).unwrap();
            assert_eq!(sent, "doe-answer 0\n", "{shell}");
            // Nor is anything left.
            let left = std::fs::read_dir(dir.path()).unwrap().flatten();
            let boxes = left.filter(|entry| entry.path().is_dir()).count();
            assert_eq!(boxes, 0, "{shell}");
        }
    }

    #[test]
    fn scripts_that_the_service_would_refuse_are_not_made() {
        let input = vec![b'x'; MOST_INLINE_BYTES];
        let fits = |input: &[u8]| {
            let feed = Feed::Inline(input);
            text("true", &feed, Duration::ZERO, &signed("http://h/")).is_some()
        };
        assert!(fits(&input));
        assert!(!fits(&[b'x'; MOST_BYTES]));
    }

    #[test]
    fn answers_come_apart() {
        let (err, out) = unpack(b"doe-answer 3\nerrdoe-answer 1\n").unwrap();
        assert_eq!((err, out), (&b"err"[..], &b"doe-answer 1\n"[..]));
        for torn in [&b""[..], b"doe-answer", b"doe-answer 4\nerr", b"<xml>\n"] {
            assert_eq!(unpack(torn), None);
        }
    }
}
