//! Lines that know their number, numbers that know their rounding, and errors that point at
//! both. A [`Span`] holds every value that prints as the digits that were read, so two columns
//! agree exactly when their spans meet.

use crate::error::{Error, Kind, Result};

use super::Context;

/// The mark that simulated tools put in front of what the real tool would not say.
pub(super) const SIMULATED_MARK: &str = "[doe-sim]";

/// One line of the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    /// Counted from 1.
    pub number: usize,
    /// Without its line end.
    pub text: &'a str,
}

impl<'a> Line<'a> {
    /// The words of the line.
    pub(super) fn words(&self) -> Vec<&'a str> {
        self.text.split_whitespace().collect()
    }

    /// Whether there is nothing but space on it.
    pub(super) fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// The text of one tool run.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub tool: &'a str,
    pub context: &'a Context,
    /// All lines but those that a simulated tool marked as its own.
    pub lines: Vec<Line<'a>>,
    /// Whether such a mark was there.
    pub simulated: bool,
    /// How many lines the text has.
    pub count: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(tool: &'a str, text: &'a str, context: &'a Context) -> Self {
        let mut lines = Vec::new();
        let (mut simulated, mut count) = (false, 0);
        for (at, text) in text.lines().enumerate() {
            count = at + 1;
            if text.trim_start().starts_with(SIMULATED_MARK) {
                simulated = true;
            } else {
                lines.push(Line {
                    number: count,
                    text,
                });
            }
        }
        Self {
            tool,
            context,
            lines,
            simulated,
            count,
        }
    }

    /// The schema name of the answer.
    pub(super) fn schema(&self) -> String {
        format!("{}-v1", self.tool)
    }

    /// An error on a line.
    pub(super) fn fault(&self, line: usize, expected: &str, found: &str) -> Error {
        let place = match self.context.source.as_str() {
            "" => format!("the output of {}", self.tool),
            source => format!("`{source}`"),
        };
        let error = Error::new(
            Kind::NodeFailed,
            "tool-output",
            format!(
                "{place}, line {line}: expected {expected}, found {}",
                shown(found)
            ),
        );
        match known(found) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    /// An error for something that should have followed the last line.
    pub(super) fn missing(&self, expected: &str) -> Error {
        self.fault(self.count.max(1), expected, "the end of the text")
            .hint("the text is incomplete: look at the tool's exit status and its standard error")
    }

    pub(super) fn refuse_empty(&self) -> Result<()> {
        if self.lines.iter().all(Line::is_blank) {
            return Err(self
                .fault(1, &format!("the output of {}", self.tool), "nothing")
                .hint("the tool printed nothing: look at its exit status and its standard error"));
        }
        Ok(())
    }

    /// A plain decimal number (no `nan`, no `inf`).
    pub(super) fn number(&self, line: Line<'_>, what: &str, word: &str) -> Result<f64> {
        Span::printed(word)
            .map(|span| span.value)
            .ok_or_else(|| self.fault(line.number, &format!("{what} as a number"), word))
    }

    /// A decimal number that is not below zero, with the span of its rounding.
    pub(super) fn span(&self, line: Line<'_>, what: &str, word: &str) -> Result<Span> {
        match Span::printed(word) {
            Some(span) if span.value >= 0.0 && !word.starts_with('-') => Ok(span),
            _ => Err(self.fault(
                line.number,
                &format!("{what} as a number that is not negative"),
                word,
            )),
        }
    }

    /// A whole number that is not below zero.
    pub(super) fn whole(&self, line: Line<'_>, what: &str, word: &str) -> Result<u64> {
        if !word.is_empty()
            && word.bytes().all(|b| b.is_ascii_digit())
            && let Ok(value) = word.parse()
        {
            return Ok(value);
        }
        Err(self.fault(line.number, &format!("{what} as a whole number"), word))
    }

    /// Whether two columns agree; an error that names both when they do not.
    pub(super) fn agree(
        &self,
        line: Line<'_>,
        what: &str,
        computed: Span,
        printed: Span,
    ) -> Result<()> {
        if computed.meets(printed) {
            return Ok(());
        }
        Err(self
            .fault(
                line.number,
                &format!("{what} near {:.6}", computed.value),
                &format!("{:.6}", printed.value),
            )
            .hint("columns of one row contradict each other: the text was damaged or edited"))
    }
}

/// All numbers that a printed number can stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    /// As printed.
    pub value: f64,
    lo: f64,
    hi: f64,
}

impl Span {
    /// From a number as `printf` writes it: `264.72`, `-1`, `1e+06`.
    pub(super) fn printed(word: &str) -> Option<Self> {
        let bytes = word.as_bytes();
        let plain = !bytes.is_empty()
            && bytes
                .iter()
                .all(|b| b.is_ascii_digit() || b"+-.eE".contains(b))
            && bytes[0] != b'+'
            && bytes[0] != b'.'
            && bytes.last().is_some_and(u8::is_ascii_digit);
        if !plain {
            return None;
        }
        let value: f64 = word.parse().ok().filter(|v: &f64| v.is_finite())?;
        let (mantissa, exponent) = match word.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (word, 0),
        };
        let decimals = mantissa.split_once('.').map_or(0, |(_, d)| d.len());
        let unit = 10f64.powi(exponent.saturating_sub(i32::try_from(decimals).ok()?));
        // Half a unit, and a little for tools that compute in 32-bit floats.
        let slack = 0.5 * unit + value.abs() * 1e-6;
        Some(Self {
            value,
            lo: value - slack,
            hi: value + slack,
        })
    }

    /// A value that is known exactly.
    pub(super) fn exact(value: f64) -> Self {
        Self {
            value,
            lo: value,
            hi: value,
        }
    }

    /// A value that was rounded down in steps of `unit`.
    pub(super) fn floored(value: f64, unit: f64) -> Self {
        Self {
            value,
            lo: value,
            hi: value + unit,
        }
    }

    /// Product of two spans that are not negative.
    pub(super) fn times(self, other: Self) -> Self {
        Self {
            value: self.value * other.value,
            lo: self.lo.max(0.0) * other.lo.max(0.0),
            hi: self.hi * other.hi,
        }
    }

    /// Multiplied by a known factor above zero.
    pub(super) fn scaled(self, factor: f64) -> Self {
        self.times(Self::exact(factor))
    }

    /// Mean of spans; `None` for none.
    pub(super) fn mean(spans: &[Self]) -> Option<Self> {
        if spans.is_empty() {
            return None;
        }
        #[allow(clippy::cast_precision_loss)] // a table has few rows
        let n = spans.len() as f64;
        let sum = |part: fn(&Self) -> f64| spans.iter().map(part).sum::<f64>() / n;
        Some(Self {
            value: sum(|s| s.value),
            lo: sum(|s| s.lo),
            hi: sum(|s| s.hi),
        })
    }

    /// Whether some number is in both.
    pub(super) fn meets(self, other: Self) -> bool {
        self.lo <= other.hi && other.lo <= self.hi
    }

    /// Widened by a share of its value.
    pub(super) fn widened(self, share: f64) -> Self {
        let slack = self.value.abs() * share;
        Self {
            value: self.value,
            lo: self.lo - slack,
            hi: self.hi + slack,
        }
    }
}

/// What was found, short and printable.
fn shown(text: &str) -> String {
    if matches!(text, "nothing" | "the end of the text") {
        return text.into();
    }
    let clean: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(120)
        .collect();
    format!("`{clean}`")
}

/// What to do about failures that the tools are known to report.
fn known(text: &str) -> Option<&'static str> {
    const KNOWN: &[(&str, &str)] = &[
        (
            "onnection refused",
            "the server side was not listening: start it first and check the port and the address",
        ),
        (
            "ddress already in use",
            "another server holds the port: wait for it to end or choose another port",
        ),
        (
            "busy running a test",
            "the server serves one client at a time: run the clients one after the other",
        ),
        (
            "timed out",
            "the other side did not answer: check the address, the route and the security group",
        ),
        (
            "fi_getinfo",
            "no libfabric provider matches: check that the EFA device and its driver are there (`fi_info -p efa`)",
        ),
        (
            "unable to create QP",
            "verbs perftest tools cannot run on EFA: use fi_rdm_bw or fi_pingpong",
        ),
        (
            "couldn't communicate with the NVIDIA driver",
            "the NVIDIA driver is not loaded on this host",
        ),
        (
            "out of memory",
            "the GPU's memory was taken: look for processes left on it",
        ),
        (
            "not found",
            "the tool is not installed or not on the path of this step",
        ),
    ];
    KNOWN
        .iter()
        .find(|(part, _)| text.contains(part))
        .map(|(_, hint)| *hint)
}
