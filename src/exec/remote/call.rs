//! One command on one host: how it is put, how its answer is known to be whole, and how long it
//! is tried again. An answer is whole only between its two marks, so neither a login shell's
//! greeting nor a connection that ends in the middle passes for one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::clock::{Clocks, Said, now_ms};
use crate::error::{Error, Kind, Result};
use crate::exec::folder::quote;

/// What a command reads.
#[derive(Debug, Clone)]
pub enum Input {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of this machine.
    File(PathBuf),
}

/// What came back from a host, whole or not.
#[derive(Debug, Default)]
pub struct Raw {
    /// Standard output, unless it went into a file.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

/// A command that got no whole answer.
#[derive(Debug)]
pub struct Broken {
    /// What was seen.
    pub why: String,
    /// Whether trying again is of no use: a wrong key, an unknown host.
    pub hopeless: bool,
}

/// How command lines get to hosts.
pub trait Line: Send + Sync {
    /// Runs a command line for a POSIX shell on a host; the request says what it is for, what it
    /// reads and where its output goes.
    fn run<'a>(
        &'a self,
        host: &'a str,
        command: &'a str,
        request: &'a Request<'a>,
    ) -> BoxFuture<'a, std::result::Result<Raw, Broken>>;

    /// The last call to the host got no whole answer: look after the connection before the next.
    fn doubt<'a>(&'a self, host: &'a str) -> BoxFuture<'a, ()>;
}

/// One command of `host.sh`.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Its name.
    pub command: &'static str,
    /// Its arguments after the root.
    pub arguments: Vec<&'a str>,
    /// What it reads.
    pub input: Input,
    /// File that the raw output goes into.
    pub into: Option<&'a Path>,
    /// How long what it begins may take, where that is known.
    pub limit: Option<Duration>,
    /// Where commands are slow on their way: for so long it is given again on the host as long as
    /// it says no. Connections that are quick take no notice.
    pub again: Option<Duration>,
    /// Whether what it reads holds secrets: then nobody may keep that on the way.
    pub private: bool,
}

impl<'a> Request<'a> {
    /// A command that reads nothing.
    pub fn new(command: &'static str, arguments: Vec<&'a str>) -> Self {
        Self {
            command,
            arguments,
            input: Input::None,
            into: None,
            limit: None,
            again: None,
            private: false,
        }
    }

    /// With an input.
    pub fn reading(mut self, input: Input) -> Self {
        self.input = input;
        self
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Exit code of the command.
    pub code: i32,
    /// What it printed, unless it went into a file.
    pub payload: Vec<u8>,
    /// Where the payload is in the file, when it went into one.
    pub span: Option<(u64, u64)>,
    /// What it complained of.
    pub stderr: String,
    /// When it was asked and when it had answered.
    pub said: Said,
}

impl Answer {
    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// Gives commands to hosts, again and again while a host cannot be reached.
pub struct Caller {
    line: Arc<dyn Line>,
    root: String,
    program: String,
    patience: Duration,
    /// Hosts that were given up once: they get one try until they answer again.
    given_up: Mutex<HashSet<String>>,
    /// The name that commands are a sign of life of; none for who only looks.
    lease: OnceLock<String>,
    /// When the last command that was answered had been given to a host.
    signed: Mutex<HashMap<String, Instant>>,
    /// The hosts' clocks.
    pub clocks: Clocks,
}

impl Caller {
    /// A caller for the host program at `program` with its files under `root`, both on the hosts.
    pub fn new(line: Arc<dyn Line>, root: String, program: String, patience: Duration) -> Self {
        Self {
            line,
            root,
            program,
            patience,
            given_up: Mutex::default(),
            lease: OnceLock::new(),
            signed: Mutex::default(),
            clocks: Clocks::default(),
        }
    }

    /// How long a host that does not answer is waited for.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// From now on every command is a sign of life under this name.
    pub fn sign_as(&self, name: &str) {
        let _ = self.lease.set(name.to_owned());
    }

    /// How long a host may not have heard of us.
    pub fn silence(&self, host: &str) -> Duration {
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        signed.get(host).map_or(Duration::MAX, Instant::elapsed)
    }

    /// Gives a host nothing but a sign of life; whether it came is seen by [`Self::silence`].
    pub async fn sign(&self, host: &str) {
        if self
            .once(host, &Request::new("sign", vec![]))
            .await
            .is_err()
        {
            self.line.doubt(host).await;
        }
    }

    /// The folder on the hosts.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Runs a command that leaves the same whether it is done once or several times.
    ///
    /// # Errors
    /// `Infra`, when the host did not answer for as long as we have patience.
    pub async fn call(&self, host: &str, request: &Request<'_>) -> Result<Answer> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let broken = match self.once(host, request).await {
                Ok(answer) => {
                    self.hosts_given_up().remove(host);
                    return Ok(answer);
                }
                Err(broken) => broken,
            };
            let known_dead = self.hosts_given_up().contains(host);
            if broken.hopeless || known_dead || begun.elapsed() + pause > self.patience {
                self.hosts_given_up().insert(host.to_owned());
                return Err(unreachable(host, &broken, begun.elapsed()));
            }
            self.line.doubt(host).await;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(3));
        }
    }

    async fn once(&self, host: &str, request: &Request<'_>) -> std::result::Result<Answer, Broken> {
        let nonce = nonce();
        let lease = self.lease.get().map_or("-", String::as_str);
        let mut command = format!(
            "exec /bin/sh {} {nonce} {lease} {}",
            quote(&self.program),
            request.command
        );
        for argument in std::iter::once(&self.root.as_str()).chain(&request.arguments) {
            command.push(' ');
            command.push_str(&quote(argument));
        }
        let (given, from_ms) = (Instant::now(), now_ms());
        let raw = self.line.run(host, &command, request).await?;
        let said = Said {
            from_ms,
            to_ms: now_ms(),
        };
        let cut = |stderr: &str| Broken {
            why: match stderr.trim() {
                "" => "the connection ended before the answer was whole".to_owned(),
                said => said.to_owned(),
            },
            hopeless: false,
        };
        let answer = match request.into {
            None => {
                let (from, to, code) =
                    frame(&raw.stdout, &nonce).ok_or_else(|| cut(&raw.stderr))?;
                Ok(Answer {
                    code,
                    payload: raw.stdout[from..to].to_vec(),
                    span: None,
                    stderr: raw.stderr,
                    said,
                })
            }
            Some(path) => {
                let found = frame_of_file(path, &nonce).map_err(|e| Broken {
                    why: format!("could not read `{}`: {e}", path.display()),
                    hopeless: true,
                })?;
                let (from, to, code) = found.ok_or_else(|| cut(&raw.stderr))?;
                Ok(Answer {
                    code,
                    payload: Vec::new(),
                    span: Some((from, to)),
                    stderr: raw.stderr,
                    said,
                })
            }
        };
        if answer.is_ok() {
            let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
            signed.insert(host.to_owned(), given);
        }
        answer
    }

    fn hosts_given_up(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn unreachable(host: &str, broken: &Broken, after: Duration) -> Error {
    let said = broken.why.trim();
    let error = Error::new(
        Kind::Infra,
        "host-unreachable",
        format!("the host `{host}` did not answer for {} s", after.as_secs()),
    )
    .cause(said);
    if said.contains("Host key verification failed") {
        error.hint("its key is not known here: log in once by hand and compare it, or name a `known_hosts` file in the platform's `ssh` table")
    } else if said.contains("Permission denied") {
        error.hint("nobody is asked for a password: a key must open the door; try `ssh -o BatchMode=yes HOST true`")
    } else if ["AccessDenied", "(Access Denied)"]
        .iter()
        .any(|word| said.contains(word))
    {
        error.hint("docs/executors.md has the rights that are needed; whatever ran there goes on")
    } else {
        error.hint("whatever ran there goes on; run again when the host can be reached")
    }
}

/// An error of a command that was answered.
pub fn refused(host: &str, what: &str, answer: &Answer) -> Error {
    let said = answer.stderr.trim();
    let said = if said.is_empty() {
        "it left no word"
    } else {
        said
    };
    Error::new(
        Kind::Infra,
        "host-refused",
        format!("could not {what} on host `{host}` (code {})", answer.code),
    )
    .cause(said)
}

/// A word that no other answer holds.
pub fn nonce() -> String {
    use std::hash::{BuildHasher, Hasher};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{random:016x}{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Where the payload lies in an output, and the exit code; `None` when it is not whole.
fn frame(output: &[u8], nonce: &str) -> Option<(usize, usize, i32)> {
    let begin = format!("doe-begin {nonce}\n");
    let from = find(output, begin.as_bytes())? + begin.len();
    let (length, code) = tail_of(&output[from..], nonce)?;
    Some((from, output.len() - length, code))
}

/// Length of the closing mark that the output ends with, and the code in it.
fn tail_of(output: &[u8], nonce: &str) -> Option<(usize, i32)> {
    let end = format!("\ndoe-end {nonce} ");
    let last = &output[output.len().saturating_sub(end.len() + 16)..];
    let at = find(last, end.as_bytes())?;
    let code = std::str::from_utf8(&last[at + end.len()..]).ok()?;
    let code = code.strip_suffix('\n')?.parse().ok()?;
    Some((last.len() - at, code))
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

/// The same of an output in a file. A greeting longer than 64 KiB is not looked through.
fn frame_of_file(path: &Path, nonce: &str) -> std::io::Result<Option<(u64, u64, i32)>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    file.by_ref().take(64 * 1024).read_to_end(&mut head)?;
    let begin = format!("doe-begin {nonce}\n");
    let Some(at) = find(&head, begin.as_bytes()) else {
        return Ok(None);
    };
    let from = (at + begin.len()) as u64;
    file.seek(SeekFrom::Start(length.saturating_sub(256).max(from)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail_of(&tail, nonce).map(|(mark, code)| (from, length - mark as u64, code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_is_one() {
        let whole = b"Welcome!\ndoe-begin n1\npay\nload\ndoe-end n1 0\n";
        let (from, to, code) = frame(whole, "n1").unwrap();
        assert_eq!((&whole[from..to], code), (b"pay\nload".as_slice(), 0));
        for cut in 0..whole.len() {
            assert_eq!(frame(&whole[..cut], "n1"), None, "cut at {cut}");
        }
        assert_eq!(frame(whole, "n2"), None);
        assert_eq!(
            frame(b"doe-begin n\n\ndoe-end n 255\n", "n"),
            Some((12, 12, 255))
        );
        // What a log says of other answers is a part of the payload.
        let inside = b"doe-begin a\nx\ndoe-end b 0\n\ndoe-end a 7\n";
        assert_eq!(frame(inside, "a").map(|f| f.2), Some(7));
    }

    #[test]
    fn an_answer_in_a_file_is_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut text = b"motd\ndoe-begin n\n".to_vec();
        let from = text.len() as u64;
        text.extend(vec![b'x'; 300_000]);
        let to = text.len() as u64;
        text.extend(b"\ndoe-end n 3\n");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(frame_of_file(&path, "n").unwrap(), Some((from, to, 3)));
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert_eq!(frame_of_file(&path, "n").unwrap(), None);
        std::fs::write(&path, b"doe-begin n\n\ndoe-end n 0\n").unwrap();
        assert_eq!(frame_of_file(&path, "n").unwrap(), Some((12, 12, 0)));
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(nonce(), nonce());
    }
}
