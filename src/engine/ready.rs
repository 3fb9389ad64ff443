//! Waiting until a process is ready: by a sign, never by a sleep. The wait ends as soon as the
//! answer is known: the sign is seen, a log line says that it won't come, the process is gone,
//! the time is up, or everything is cancelled.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use regex::Regex;

use super::context::{Context, tail};
use crate::error::{Error, Kind, Result};
use crate::exec::{Executor, Exit, Handle, HostSpec, Sign, Status, Stream};
use crate::rule::action::{Probe, Ready};

/// How long a slow executor may look for a sign before the process itself is looked at again.
const FIRST_STAY: Duration = Duration::from_secs(2);
const LAST_STAY: Duration = Duration::from_secs(10);
/// Lines of a log that an error shows.
pub(super) const TAIL_LINES: usize = 20;

/// Why a process did not become ready.
#[derive(Debug, Clone)]
pub(super) enum Unready {
    /// It ended before.
    Ended(Status),
    /// This log line says that it won't.
    Line(String),
    /// The time is up.
    Late(f64),
    /// Everything is cancelled.
    Cancelled,
    /// It could not be watched.
    Error(Error),
}

impl std::fmt::Display for Unready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unready::Ended(status) => write!(f, "{} before it was ready", describe(status)),
            Unready::Line(line) => write!(f, "failed to start: {line}"),
            Unready::Late(within_s) => {
                write!(f, "was not ready within {}", human_s(*within_s))
            }
            Unready::Cancelled => f.write_str("was cancelled"),
            Unready::Error(error) => write!(f, "could not be watched: {error}"),
        }
    }
}

/// How a process ended, as a part of a sentence that begins with its name.
pub(super) fn describe(status: &Status) -> String {
    match status {
        Status::Running => "is running".into(),
        Status::Lost { why } => format!("was lost ({why})"),
        Status::Exited(Exit {
            timed_out: true, ..
        }) => "ran out of time".into(),
        Status::Exited(Exit {
            signal: Some(signal),
            ..
        }) => format!("was ended by signal {signal}"),
        Status::Exited(Exit {
            code: Some(code), ..
        }) => format!("ended with exit code {code}"),
        Status::Exited(_) => "ended without an exit code".into(),
    }
}

/// Seconds for people: `15m`, `2.5s`.
pub(super) fn human_s(seconds: f64) -> String {
    let Ok(duration) = Duration::try_from_secs_f64(seconds) else {
        return format!("{seconds} s");
    };
    let rounded = if seconds < 10.0 {
        Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX))
    } else {
        Duration::from_secs(duration.as_secs_f64().round() as u64)
    };
    humantime::format_duration(rounded).to_string()
}

/// Reads a process's logs as they grow.
pub(super) struct LogReader {
    streams: [(Stream, u64, Vec<u8>); 2],
}

impl LogReader {
    /// From the begin of both logs.
    pub(super) fn new() -> Self {
        Self {
            streams: [
                (Stream::Stdout, 0, Vec::new()),
                (Stream::Stderr, 0, Vec::new()),
            ],
        }
    }

    /// Whole lines that came since the last call; `rest` takes the unfinished last ones too.
    pub(super) async fn lines(
        &mut self,
        executor: &dyn Executor,
        handle: &Handle,
        rest: bool,
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for (stream, offset, partial) in &mut self.streams {
            let new = executor.log(handle, *stream, *offset).await?;
            *offset += new.len() as u64;
            partial.extend_from_slice(&new);
            let whole = match partial.iter().rposition(|b| *b == b'\n') {
                _ if rest => partial.len(),
                Some(at) => at + 1,
                // A line without an end is looked at in pieces rather than kept for ever.
                None if partial.len() > 1 << 20 => partial.len(),
                None => 0,
            };
            let done: Vec<u8> = partial.drain(..whole).collect();
            let text = String::from_utf8_lossy(&done);
            lines.extend(text.lines().map(str::to_owned));
        }
        Ok(lines)
    }
}

impl Default for LogReader {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits until a process is ready.
pub(super) async fn wait_ready(
    context: &Context,
    executor: &dyn Executor,
    host: &HostSpec,
    handle: &Handle,
    ready: &Ready,
) -> Result<(), Unready> {
    let limit = Duration::try_from_secs_f64(ready.within_s).unwrap_or(Duration::MAX);
    let watch = watch(executor, host, handle, ready);
    tokio::select! {
        answer = watch => answer,
        () = tokio::time::sleep(limit) => Err(Unready::Late(ready.within_s)),
        () = context.aborted() => Err(Unready::Cancelled),
    }
}

async fn watch(
    executor: &dyn Executor,
    host: &HostSpec,
    handle: &Handle,
    ready: &Ready,
) -> Result<(), Unready> {
    let fatal = ready
        .fail_on_log
        .iter()
        .map(|pattern| regex(pattern))
        .collect::<Result<Vec<_>>>()
        .map_err(Unready::Error)?;
    let sign = sign_of(&ready.probe).map_err(Unready::Error)?;
    let wanted = match &ready.probe {
        Probe::Log(pattern) => Some(regex(pattern).map_err(Unready::Error)?),
        _ => None,
    };
    let mut reader = LogReader::new();
    let mut seen_alive: Option<Instant> = None;
    let mut pause = Duration::from_millis(10);
    let mut stay = FIRST_STAY;
    loop {
        // The state is read before the log: what a process wrote before it ended is seen.
        let status = executor.poll(handle).await.map_err(Unready::Error)?;
        let ended = status != Status::Running;
        let mut found = false;
        if !fatal.is_empty() || wanted.is_some() {
            let lines = reader.lines(executor, handle, ended).await;
            for line in lines.map_err(Unready::Error)? {
                if fatal.iter().any(|regex| regex.is_match(&line)) {
                    return Err(Unready::Line(line));
                }
                found |= wanted.as_ref().is_some_and(|regex| regex.is_match(&line));
            }
        }
        if ended {
            return Err(Unready::Ended(status));
        }
        if let Some(sign) = &sign {
            let seen = executor.await_sign(host, sign, stay).await;
            found = seen.map_err(Unready::Error)?;
            stay = (stay * 2).min(LAST_STAY);
        }
        if ready.probe == Probe::Alive {
            // Twice, apart: many a process dies of its arguments at once.
            let first = *seen_alive.get_or_insert_with(Instant::now);
            found = first.elapsed() >= Duration::from_millis(100);
        }
        if found {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
}

fn sign_of(probe: &Probe) -> Result<Option<Sign>> {
    Ok(match probe {
        Probe::Http(url) => Some(Sign::Http(url.clone())),
        Probe::Tcp(address) => Some(Sign::Tcp(address.clone())),
        Probe::Listen(port) => {
            let port = port.trim().parse().map_err(|_| {
                Error::new(
                    Kind::Plan,
                    "bad-probe",
                    format!("`listen` expects a port number, not `{port}`"),
                )
            })?;
            Some(Sign::Listen(port))
        }
        Probe::File(path) => Some(Sign::File(PathBuf::from(path))),
        Probe::Log(_) | Probe::Alive => None,
    })
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|cause| {
        Error::new(
            Kind::Plan,
            "bad-pattern",
            format!("`{pattern}` is no regular expression"),
        )
        .cause(cause)
    })
}

/// Both logs of a process: name (`stdout`, `stderr`) and content from an offset on. A log that
/// cannot be read is left out: what is told of a failure must not fail itself.
pub(super) async fn logs(
    executor: &dyn Executor,
    handle: &Handle,
    from: [u64; 2],
) -> Vec<(&'static str, Vec<u8>)> {
    let mut found = Vec::new();
    for ((name, stream), offset) in [("stdout", Stream::Stdout), ("stderr", Stream::Stderr)]
        .into_iter()
        .zip(from)
    {
        if let Ok(content) = executor.log(handle, stream, offset).await {
            found.push((name, content));
        }
    }
    found
}

/// The end of the log that says most: of stderr, or of stdout when that is silent.
pub(super) fn telling_tail(
    logs: &[(&'static str, Vec<u8>)],
) -> Option<(&'static str, Vec<String>)> {
    let tails = logs
        .iter()
        .rev()
        .map(|(name, log)| (*name, tail(log, TAIL_LINES)));
    tails.into_iter().find(|(_, lines)| !lines.is_empty())
}
