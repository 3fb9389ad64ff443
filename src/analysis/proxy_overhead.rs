//! What the proxy itself adds to a request, from its own clock: the time it holds a request before
//! and between its two upstream calls and before it passes on the first byte. Waiting for prefill
//! and decode is not counted. Requests whose stamps are missing or run backwards are counted and
//! reported, never used and never dropped in silence.

use serde::{Deserialize, Serialize};

use crate::analysis::input::{Input, bad_input};
use crate::analysis::summary::Summary;
use crate::error::Result;

/// Schema of the answer.
pub const SCHEMA: &str = "proxy-overhead-v1";

/// The proxy's stamps of one request: milliseconds of one monotonic clock with any origin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stamps {
    /// The request had arrived.
    pub received_ms: Option<f64>,
    /// The request to prefill went out.
    pub prefill_sent_ms: Option<f64>,
    /// Prefill had answered.
    pub prefill_done_ms: Option<f64>,
    /// The request to decode went out.
    pub decode_sent_ms: Option<f64>,
    /// The first byte of decode had arrived.
    pub decode_first_byte_ms: Option<f64>,
    /// That byte had been passed on.
    pub first_byte_relayed_ms: Option<f64>,
    /// Decode had ended. May be absent.
    pub decode_done_ms: Option<f64>,
    /// The answer had been passed on. May be absent.
    pub done_ms: Option<f64>,
    /// How the proxy says it ended: `ok`, or the name of the failure; absent means `ok`.
    pub status: Option<String>,
}

/// The stamps of one pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Label of the pattern.
    pub label: String,
    /// One entry per request that the proxy saw.
    pub requests: Vec<Stamps>,
}

/// Overheads of a set of requests, each summarised in ms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overheads {
    /// received → prefill sent.
    pub proxy_overhead_prefill_ms: Summary,
    /// prefill done → decode sent, plus decode's first byte → first byte relayed.
    pub proxy_overhead_decode_ms: Summary,
    /// The sum of both, request by request.
    pub proxy_overhead_total_ms: Summary,
    /// prefill done → decode sent alone.
    pub between_ms: Summary,
    /// decode's first byte → first byte relayed alone.
    pub relay_ms: Summary,
}

/// How many requests could be used and why others could not. A request counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All requests that the proxy saw.
    pub requests: usize,
    /// Those used.
    pub valid: usize,
    /// Those with another status than `ok`.
    pub failed: usize,
    /// Those without one of the six stamps that are needed, or with one that is not finite.
    pub missing_stamps: usize,
    /// Those whose stamps run backwards.
    pub not_monotonic: usize,
}

/// What was found in one pattern.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    /// Label of the pattern.
    pub label: String,
    /// Requests used and not used.
    pub counts: Counts,
    /// Overheads over the valid requests.
    #[serde(flatten)]
    pub overheads: Overheads,
}

/// The answer of the analysis, schema `proxy-overhead-v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyOverhead {
    /// `proxy-overhead-v1`.
    pub schema: String,
    /// Whether any input was simulated.
    pub simulated: bool,
    /// Requests used and not used, all patterns together.
    pub counts: Counts,
    /// Overheads over the valid requests of all patterns.
    #[serde(flatten)]
    pub overheads: Overheads,
    /// Every pattern, in the order given.
    pub patterns: Vec<Pattern>,
}

#[derive(Deserialize)]
struct ProxyDocument {
    requests: Vec<Stamps>,
}

/// Reads the stamps out of the inputs. Errors: no `proxy-v1` output or a malformed one.
pub fn series(inputs: &[Input]) -> Result<Vec<Series>> {
    inputs
        .iter()
        .map(|input| {
            let document: ProxyDocument = input.proxy()?;
            Ok(Series {
                label: input.label.clone(),
                requests: document.requests,
            })
        })
        .collect()
}

/// Summarises the overheads of every series and of all together.
///
/// Errors: no series, or one without a single valid request.
pub fn analyse(series: &[Series], simulated: bool) -> Result<ProxyOverhead> {
    if series.is_empty() {
        return Err(bad_input("proxy-overhead: no patterns were given"));
    }
    let mut patterns = Vec::with_capacity(series.len());
    let mut all = Split::default();
    let mut total = Counts::default();
    for one in series {
        let (split, counts) = collect(&one.requests);
        if counts.valid == 0 {
            return Err(bad_input(format!(
                "{}: none of its {} proxied requests can be used: {} failed, {} lack a stamp, \
                 {} have stamps that run backwards",
                one.label,
                counts.requests,
                counts.failed,
                counts.missing_stamps,
                counts.not_monotonic
            ))
            .hint("look at the proxy's log of that pattern and run it again"));
        }
        patterns.push(Pattern {
            label: one.label.clone(),
            counts,
            overheads: split.summarise(&one.label)?,
        });
        all.extend(split);
        total.requests += counts.requests;
        total.valid += counts.valid;
        total.failed += counts.failed;
        total.missing_stamps += counts.missing_stamps;
        total.not_monotonic += counts.not_monotonic;
    }
    Ok(ProxyOverhead {
        schema: SCHEMA.to_owned(),
        simulated,
        counts: total,
        overheads: all.summarise("all patterns")?,
        patterns,
    })
}

/// The three intervals of each valid request, ms.
#[derive(Default)]
struct Split {
    before: Vec<f64>,
    between: Vec<f64>,
    relay: Vec<f64>,
}

impl Split {
    fn extend(&mut self, other: Split) {
        self.before.extend(other.before);
        self.between.extend(other.between);
        self.relay.extend(other.relay);
    }

    fn summarise(&self, of: &str) -> Result<Overheads> {
        let named = |what: &str, x: &[f64]| Summary::named(&format!("{what} of {of}"), x);
        let decode: Vec<f64> = (self.between.iter().zip(&self.relay))
            .map(|(between, relay)| between + relay)
            .collect();
        let total: Vec<f64> = (self.before.iter().zip(&decode))
            .map(|(before, decode)| before + decode)
            .collect();
        Ok(Overheads {
            proxy_overhead_prefill_ms: named("prefill overhead", &self.before)?,
            proxy_overhead_decode_ms: named("decode overhead", &decode)?,
            proxy_overhead_total_ms: named("total overhead", &total)?,
            between_ms: named("time between the calls", &self.between)?,
            relay_ms: named("relay time", &self.relay)?,
        })
    }
}

fn collect(requests: &[Stamps]) -> (Split, Counts) {
    let mut split = Split::default();
    let mut counts = Counts {
        requests: requests.len(),
        ..Counts::default()
    };
    for request in requests {
        if request
            .status
            .as_deref()
            .is_some_and(|status| status != "ok")
        {
            counts.failed += 1;
            continue;
        }
        let Some(
            [
                received,
                prefill_sent,
                prefill_done,
                decode_sent,
                first_byte,
                relayed,
            ],
        ) = request.needed()
        else {
            counts.missing_stamps += 1;
            continue;
        };
        if !request.is_monotonic() {
            counts.not_monotonic += 1;
            continue;
        }
        counts.valid += 1;
        split.before.push(prefill_sent - received);
        split.between.push(decode_sent - prefill_done);
        split.relay.push(relayed - first_byte);
    }
    (split, counts)
}

impl Stamps {
    /// The six stamps without which there is no overhead.
    fn needed(&self) -> Option<[f64; 6]> {
        let finite = |stamp: Option<f64>| stamp.filter(|v| v.is_finite());
        Some([
            finite(self.received_ms)?,
            finite(self.prefill_sent_ms)?,
            finite(self.prefill_done_ms)?,
            finite(self.decode_sent_ms)?,
            finite(self.decode_first_byte_ms)?,
            finite(self.first_byte_relayed_ms)?,
        ])
    }

    /// Whether the stamps stand in the order of the events. The end of decode may come before the
    /// first byte is passed on: a short answer arrives whole.
    fn is_monotonic(&self) -> bool {
        let ascending = |stamps: &[Option<f64>]| {
            let present: Vec<f64> = stamps.iter().copied().flatten().collect();
            present.windows(2).all(|pair| pair[0] <= pair[1])
        };
        ascending(&[
            self.received_ms,
            self.prefill_sent_ms,
            self.prefill_done_ms,
            self.decode_sent_ms,
            self.decode_first_byte_ms,
            self.first_byte_relayed_ms,
            self.done_ms,
        ]) && ascending(&[self.decode_first_byte_ms, self.decode_done_ms, self.done_ms])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamps(at: [f64; 6]) -> Stamps {
        Stamps {
            received_ms: Some(at[0]),
            prefill_sent_ms: Some(at[1]),
            prefill_done_ms: Some(at[2]),
            decode_sent_ms: Some(at[3]),
            decode_first_byte_ms: Some(at[4]),
            first_byte_relayed_ms: Some(at[5]),
            done_ms: Some(at[5] + 100.0),
            ..Stamps::default()
        }
    }

    fn series(requests: Vec<Stamps>) -> Series {
        Series {
            label: "//p:a".into(),
            requests,
        }
    }

    #[test]
    fn upstream_time_is_not_overhead() {
        let answer = analyse(
            &[series(vec![
                stamps([1000.0, 1001.0, 1500.0, 1502.0, 1600.0, 1600.5]),
                stamps([2000.0, 2003.0, 9000.0, 9004.0, 9500.0, 9501.5]),
            ])],
            false,
        )
        .unwrap();
        let o = &answer.overheads;
        assert_eq!(
            (
                o.proxy_overhead_prefill_ms.min,
                o.proxy_overhead_prefill_ms.max
            ),
            (1.0, 3.0)
        );
        assert_eq!((o.between_ms.mean, o.relay_ms.mean), (3.0, 1.0));
        assert_eq!(
            (
                o.proxy_overhead_decode_ms.min,
                o.proxy_overhead_decode_ms.max
            ),
            (2.5, 5.5)
        );
        assert_eq!(o.proxy_overhead_total_ms.mean, 6.0);
    }

    #[test]
    fn unusable_requests_are_counted_by_their_reason() {
        let good = stamps([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let failed = Stamps {
            status: Some("prefill_failed".into()),
            ..good.clone()
        };
        let missing = Stamps {
            decode_sent_ms: None,
            ..good.clone()
        };
        let backwards = stamps([0.0, 1.0, 2.0, 1.5, 4.0, 5.0]);
        let ends_early = Stamps {
            done_ms: Some(4.5),
            ..good.clone()
        };
        let short = Stamps {
            decode_done_ms: Some(4.2),
            ..good.clone()
        };
        let all = vec![good, failed, missing, backwards, ends_early, short];
        let answer = analyse(&[series(all)], false).unwrap();
        let expected = Counts {
            requests: 6,
            valid: 2,
            failed: 1,
            missing_stamps: 1,
            not_monotonic: 2,
        };
        assert_eq!(answer.counts, expected);
        assert_eq!(answer.patterns[0].counts, expected);
        assert_eq!(answer.overheads.relay_ms.n, 2);
    }

    #[test]
    fn a_pattern_without_a_valid_request_is_an_error_with_its_counts() {
        let good = series(vec![stamps([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])]);
        let bad = Series {
            label: "//p:bad".into(),
            requests: vec![Stamps::default(); 3],
        };
        let error = analyse(&[good, bad], false).unwrap_err();
        assert!(error.message.contains("//p:bad") && error.message.contains("3 lack a stamp"));
        assert!(analyse(&[], false).is_err());
        assert!(analyse(&[series(vec![])], false).is_err());
    }

    proptest! {
        /// Overheads and upstream waits together are the time to the first relayed byte.
        #[test]
        fn the_parts_add_up(start in 0.0..1e6_f64, steps in prop::collection::vec(0.0..1e3_f64, 5)) {
            let mut at = [start; 6];
            for i in 0..5 {
                at[i + 1] = at[i] + steps[i];
            }
            let answer = analyse(&[series(vec![stamps(at)])], false).unwrap();
            let o = &answer.overheads;
            prop_assert!((o.proxy_overhead_prefill_ms.mean - steps[0]).abs() < 1e-8);
            prop_assert!((o.proxy_overhead_decode_ms.mean - steps[2] - steps[4]).abs() < 1e-8);
            let upstream = steps[1] + steps[3];
            prop_assert!((o.proxy_overhead_total_ms.mean + upstream - (at[5] - at[0])).abs() < 1e-8);
        }

        /// The origin of the clock says nothing.
        #[test]
        fn the_origin_does_not_matter(shift in 0..1_000_000_u32) {
            let s = f64::from(shift);
            let plain = analyse(&[series(vec![stamps([0.0, 1.0, 20.0, 22.0, 40.0, 40.5])])], false).unwrap();
            let moved = [0.0, 1.0, 20.0, 22.0, 40.0, 40.5].map(|v| v + s);
            let moved = analyse(&[series(vec![stamps(moved)])], false).unwrap();
            prop_assert_eq!(plain, moved);
        }
    }
}
