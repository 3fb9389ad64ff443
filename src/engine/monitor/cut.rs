//! From what a monitor printed to samples: each line with its time by the clock of `doe`, those of
//! the measurement kept, the others counted. What has no time that can be read is counted too,
//! never placed by guess.

use serde_json::json;

use super::ENDED;
use crate::plan::model::{Monitor, SampleTime};

/// Of the document.
pub const SCHEMA: &str = "doe-monitor-v1";

/// Shares of a measurement that may be without samples at its begin and end.
const LEAST_COVERED: f64 = 0.95;

/// How the remark begins that stands where a log was cut.
const CUT: &str = "[doe: ";

/// When a measurement was, Unix ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What a monitor said on one host.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples {
    /// Lines that say what the columns are.
    pub(super) header: Vec<String>,
    /// Time and line.
    pub(super) samples: Vec<(u64, String)>,
    /// Samples before and after the measurement.
    pub(super) outside: usize,
    /// Lines without a time.
    pub(super) unreadable: usize,
    /// The share of the measurement between its first and its last sample.
    pub(super) covered: f64,
    /// Whether something is missing in between: its log was cut.
    pub(super) cut: bool,
    /// What is wrong with it.
    pub(super) problem: Option<String>,
}

/// Cuts stamped lines to the measurement. `ahead_ms` is how far the host's clock is ahead.
pub(super) fn cut(time: &SampleTime, window: Window, ahead_ms: i64, text: &str) -> Samples {
    let mut found = Samples::default();
    let mut reader = Reader {
        time,
        column: None,
        header_open: true,
    };
    let mut ended = None;
    let length = window.to.saturating_sub(window.from);
    for line in text.lines() {
        let stamp = line.split_once(' ');
        let Some((Ok(stamp), line)) = stamp.map(|(ms, line)| (ms.parse::<u64>(), line)) else {
            // Where a log was cut there stands a remark.
            found.cut |= line.starts_with(CUT);
            found.unreadable += usize::from(!line.trim().is_empty());
            continue;
        };
        let ours = |ms: u64| ms.saturating_add_signed(-ahead_ms);
        if let Some(code) = line.strip_prefix(ENDED) {
            ended = Some((ours(stamp), code.to_owned()));
            continue;
        }
        match reader.read(line, stamp) {
            Line::Header => {
                if reader.header_open {
                    found.header.push(line.trim_end().to_owned());
                }
            }
            Line::Nothing => {}
            Line::Unreadable => found.unreadable += 1,
            Line::Sample(at) => {
                reader.header_open = false;
                let at = ours(at);
                match window.from <= at && at <= window.to {
                    true => found.samples.push((at, line.trim_end().to_owned())),
                    false => found.outside += 1,
                }
            }
        }
    }
    let times = found.samples.iter().map(|(at, _)| *at);
    if let (Some(first), Some(last)) = (times.clone().min(), times.max()) {
        found.covered = match length {
            0 => 1.0,
            length => (last - first) as f64 / length as f64,
        };
    }
    found.problem = match ended {
        Some((at, code)) if at < window.to => Some(format!(
            "ended with exit code {code} before the measurement did"
        )),
        _ if found.samples.is_empty() && length > 0 => Some(match found.unreadable {
            0 => "gave no sample of the measurement".to_owned(),
            lines => format!("gave no sample of the measurement, and {lines} lines without a time"),
        }),
        _ if found.cut => Some("said more than a log holds: samples are missing in between".into()),
        _ => None,
    };
    found
}

enum Line {
    Header,
    Nothing,
    Unreadable,
    Sample(u64),
}

struct Reader<'t> {
    time: &'t SampleTime,
    column: Option<usize>,
    /// The header is repeated by some tools: once is enough.
    header_open: bool,
}

impl Reader<'_> {
    fn read(&mut self, line: &str, stamp: u64) -> Line {
        if line.trim().is_empty() {
            return Line::Nothing;
        }
        if line.trim_start().starts_with('#') {
            return Line::Header;
        }
        let SampleTime::Column(name) = self.time else {
            return Line::Sample(stamp);
        };
        let mut cells = line.split(',').map(str::trim);
        let Some(column) = self.column else {
            self.column = cells.position(|cell| cell == name);
            return match self.column {
                Some(_) => Line::Header,
                None => Line::Unreadable,
            };
        };
        match cells.nth(column).and_then(time_of) {
            Some(at) => Line::Sample(at),
            None => Line::Unreadable,
        }
    }
}

/// Unix seconds, Unix milliseconds or RFC 3339, as Unix ms.
fn time_of(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse::<f64>() {
        // Milliseconds since 1973 are more than seconds until 5138.
        let ms = if number < 1e11 {
            number * 1000.0
        } else {
            number
        };
        return (ms.is_finite() && ms >= 0.0).then_some(ms as u64);
    }
    let time = humantime::parse_rfc3339_weak(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// What is stored of a monitor: one line a sample, so that people can read it too.
pub(super) fn document(
    monitor: &Monitor,
    simulated: bool,
    window: Window,
    hosts: &[(String, Samples)],
) -> Vec<u8> {
    let mut text = format!(
        "{{\"schema\":{},\"monitor\":{},\"run\":{},\"simulated\":{simulated},\n\"window\":{},\n\"hosts\":{{",
        json!(SCHEMA),
        json!(monitor.name),
        json!(monitor.run),
        json!({"from_unix_ms": window.from, "to_unix_ms": window.to}),
    );
    for (at, (host, found)) in hosts.iter().enumerate() {
        let Samples {
            header,
            samples,
            outside,
            unreadable,
            covered,
            cut,
            problem,
        } = found;
        let comma = if at > 0 { "," } else { "" };
        text.push_str(&format!(
            "{comma}\n{}:{{\"header\":{},\"outside\":{outside},\"unreadable\":{unreadable},\
             \"covered\":{},\"partial\":{},\"problem\":{},\"samples\":[",
            json!(host),
            json!(header),
            json!(covered),
            json!(*cut || *covered < LEAST_COVERED),
            json!(problem),
        ));
        for (at, (time, line)) in samples.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            text.push_str(&format!("{comma}\n[{time},{}]", json!(line)));
        }
        text.push_str("]}");
    }
    text.push_str("}}\n");
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window {
        from: 1000,
        to: 2000,
    };

    #[test]
    fn samples_of_the_measurement_are_kept_with_their_header() {
        let text = "900 # gpu  pwr\n901 # Idx    W\n902     0   35\n1003     0   40\n1500 # gpu  pwr\n1501 # Idx    W\n1990     0   41\n2100     0   35\n";
        let found = cut(&SampleTime::Arrival, WINDOW, 0, text);
        assert_eq!(found.header, ["# gpu  pwr", "# Idx    W"]);
        let times: Vec<_> = found.samples.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [1003, 1990]);
        assert_eq!((found.outside, found.unreadable), (2, 0));
        assert!((found.covered - 0.987).abs() < 1e-9 && found.problem.is_none());
        // The host's clock is 100 ms ahead of ours.
        let found = cut(&SampleTime::Arrival, WINDOW, 100, text);
        assert_eq!(
            found.samples,
            [
                (1890, "    0   41".to_owned()),
                (2000, "    0   35".to_owned())
            ]
        );
        let document = document(
            &Monitor {
                name: "gpu".into(),
                run: "nvidia-smi dmon".into(),
                roles: Vec::new(),
                rules: Vec::new(),
                time: SampleTime::Arrival,
                during: None,
                output: false,
                in_key: false,
                site: crate::error::Site {
                    file: std::sync::Arc::new(crate::error::SourceFile::new("t", "")),
                    range: 0..0,
                },
            },
            true,
            WINDOW,
            &[("h1".into(), found.clone()), ("h2".into(), found)],
        );
        let read: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(read["schema"], SCHEMA);
        assert_eq!(read["simulated"], true);
        assert_eq!(
            read["hosts"]["h2"]["samples"][1],
            json!([2000, "    0   35"])
        );
        assert_eq!(read["hosts"]["h1"]["partial"], true);
    }

    #[test]
    fn a_column_says_when() {
        let time = SampleTime::Column("time".into());
        let text = "1 host, time, load\n2 a, 0.9, 1\n3 a, 1.5, 2\n4 a, 1970-01-01T00:00:01.700Z, 3\n5 a, soon, 4\n";
        let found = cut(&time, WINDOW, 0, text);
        assert_eq!(found.header, ["host, time, load"]);
        assert_eq!(
            found.samples,
            [
                (1500, "a, 1.5, 2".to_owned()),
                (1700, "a, 1970-01-01T00:00:01.700Z, 3".to_owned())
            ]
        );
        assert_eq!((found.outside, found.unreadable), (1, 1));
        assert_eq!(time_of("1700000000123"), Some(1_700_000_000_123));
        let none = cut(&time, WINDOW, 0, "1 a, b\n2 c, d\n");
        assert!(none.problem.unwrap().contains("2 lines without a time"));
    }

    #[test]
    fn an_early_end_and_silence_are_problems() {
        let early = format!("1100 x\n1200 {ENDED}9\n");
        let found = cut(&SampleTime::Arrival, WINDOW, 0, &early);
        assert_eq!(
            found.problem.as_deref(),
            Some("ended with exit code 9 before the measurement did")
        );
        assert_eq!(found.samples.len(), 1);
        let late = format!("1100 x\n2001 {ENDED}143\n");
        assert_eq!(cut(&SampleTime::Arrival, WINDOW, 0, &late).problem, None);
        // Head and tail are there, and a hole between them.
        let hole = "1001 x\n\n[doe: 9 bytes or a few more were cut here: the log is limited]\n9 x\n1999 x\n";
        let found = cut(&SampleTime::Arrival, WINDOW, 0, hole);
        assert!(found.covered > LEAST_COVERED && found.cut, "{found:?}");
        assert!(found.problem.unwrap().contains("samples are missing"));
        let silent = cut(&SampleTime::Arrival, WINDOW, 0, "");
        assert_eq!(
            silent.problem.as_deref(),
            Some("gave no sample of the measurement")
        );
    }
}
