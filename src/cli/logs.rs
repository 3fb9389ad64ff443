//! `doe logs`: what the steps and services of a pattern's last attempt wrote.

use std::io::Write;

use clap::Args;
use doe_cache::{Record, Store};

use super::args::Global;
use super::out::Out;
use super::session;
use crate::error::{Error, Kind, Result, nearest};
use crate::label::{Label, Selector};

/// Show the logs of a pattern's last attempt
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe logs //phase2:p2-efa-4k-c1\n  doe logs //phase2:p2-efa-4k-c1 --log service-decode.stderr --tail 50
  doe logs //phase2:p2-efa-4k-c1 --attempt 1"
)]
pub struct LogsArgs {
    /// Whose logs
    #[arg(value_name = "TARGET", required = true, value_parser = super::args::selector)]
    pub targets: Vec<Selector>,
    /// Only this log, by the name that the list shows
    #[arg(long, value_name = "NAME")]
    pub log: Option<String>,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    pub tail: Option<usize>,
    /// Only the names and sizes
    #[arg(long)]
    pub list: bool,
    /// Of this attempt instead of the last one
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
}

/// Runs the command.
pub fn run(global: &Global, args: &LogsArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store_with_mirror(global, &workspace)?;
    let decider = session::decider(&graph, session::platform(global, &workspace)?, &store)?;
    let nodes = session::targets(&graph, &args.targets, &decider, &store)?;
    for node in nodes {
        let label = graph.label(node);
        let Some(last) = decider.last(label) else {
            return Err(
                Error::new(Kind::Usage, "no-record", format!("{label} has not run yet"))
                    .hint(format!("`doe build {label}` runs it")),
            );
        };
        let record = attempt(&store, label, last, args.attempt)?;
        if let Some(name) = &args.log
            && !record.logs.iter().any(|l| l.name == *name)
        {
            let names = record.logs.iter().map(|l| l.name.as_str());
            let all: Vec<_> = names.clone().collect();
            let mut error = Error::new(
                Kind::Usage,
                "no-log",
                format!("{label} has no log `{name}`"),
            );
            if let Some(near) = nearest(name, names) {
                error = error.hint(format!("did you mean `{near}`?"));
            }
            return Err(error.hint(format!("logs: {}", all.join(", "))));
        }
        if out.json {
            out.json(&serde_json::json!({
                "label": label, "run_id": record.run_id, "logs": record.logs,
                "attempt": record.attempt, "attempts": record.attempts,
            }))?;
            continue;
        }
        for log in &record.logs {
            if args.log.as_ref().is_some_and(|name| *name != log.name) {
                continue;
            }
            let which = match record.attempts {
                Some(of) => format!(" attempt {} of {of}", record.attempt),
                None => String::new(),
            };
            let title = format!("== {label}{which} {} ({} bytes)", log.name, log.size_bytes);
            if args.list {
                out.line(title)?;
                continue;
            }
            if args.log.is_none() {
                let title = out.paint("1", &title);
                out.line(title)?;
            }
            let bytes = store.blob(&log.digest)?;
            let shown = tail(&bytes, args.tail);
            out.write_all(shown).map_err(crate::cli::out::closed)?;
            if !shown.is_empty() && !shown.ends_with(b"\n") {
                out.line("")?;
            }
        }
    }
    Ok(0)
}

/// The attempt of that number, or the last one.
fn attempt(store: &Store, label: &Label, last: Record, wanted: Option<u32>) -> Result<Record> {
    let (mut record, of) = (last, wanted);
    let latest = record.attempt;
    while of.is_some_and(|of| of != record.attempt) {
        let before = record.previous_attempt;
        let before = before.map(|digest| store.record(&digest)).transpose()?;
        record = before.ok_or_else(|| {
            let of = of.unwrap_or_default();
            let text = format!("{label} has no attempt {of}");
            Error::new(Kind::Usage, "no-attempt", text)
                .hint(format!("its last one was attempt {latest}"))
        })?;
    }
    Ok(record)
}

fn tail(bytes: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return bytes };
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut at = body.len();
    for _ in 0..lines {
        match body[..at].iter().rposition(|&b| b == b'\n') {
            Some(newline) => at = newline,
            None => return bytes,
        }
    }
    &bytes[(at + 1).min(bytes.len())..]
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn the_last_lines() {
        assert_eq!(tail(b"a\nb\nc\n", Some(2)), b"b\nc\n");
        assert_eq!(tail(b"a\nb\nc", Some(1)), b"c");
        assert_eq!(tail(b"a\n", Some(5)), b"a\n");
        assert_eq!(tail(b"", Some(1)), b"");
        assert_eq!(tail(b"a\nb\n", None), b"a\nb\n");
    }
}
