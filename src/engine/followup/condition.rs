//! A follow-up's condition held against finished results. It either holds, with the values that
//! it was held against, or it does not: a result that lacks what the condition asks for makes it
//! neither true nor an error.

use std::collections::BTreeMap;
use std::fmt;

use doe_cache::{Record, Value};

use crate::error::Diagnostic;
use crate::plan::followup::{EXPECTED, OFF, SIMULATED};
use crate::plan::model::{Condition, Followup, Pattern};
use crate::rule::{Names, Scope};

/// Why a follow-up was begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// Plan and id of the follow-up: `//phase2#tpot-apart`.
    pub followup: String,
    /// The condition.
    pub when: String,
    /// Labels of the results for which it holds.
    pub results: Vec<String>,
    /// What it mentions, with the values found.
    pub values: BTreeMap<String, Value>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` holds for {}",
            self.when,
            self.results.join(" and ")
        )?;
        for (at, (name, value)) in self.values.iter().enumerate() {
            let sign = if at == 0 { ": " } else { ", " };
            write!(f, "{sign}{name} = {}", shown(value))?;
        }
        Ok(())
    }
}

/// A finished pattern: what a pair's condition calls its side (nothing when it stands alone), the
/// pattern, its record.
pub(super) type Result<'a> = (Option<&'a str>, &'a Pattern, &'a Record);

/// The cause when the condition holds for these results.
///
/// # Errors
/// The condition has no value for them.
pub(super) fn holds(
    name: &str,
    followup: &Followup,
    results: &[Result<'_>],
) -> std::result::Result<Option<Cause>, Diagnostic> {
    let given = Given::of(results);
    if !followup.when.check_names(&given.names()).is_empty() {
        return Ok(None);
    }
    if !followup.when.eval_bool(&given.scope())? {
        return Ok(None);
    }
    let paths = followup.when.paths().into_iter();
    Ok(Some(Cause {
        followup: name.to_owned(),
        when: followup.when.text().text.clone(),
        results: results
            .iter()
            .map(|(_, p, _)| p.label.to_string())
            .collect(),
        values: paths
            .filter_map(|path| Some((path.clone(), given.value(&path)?.clone())))
            .collect(),
    }))
}

/// What a condition may ask for.
#[derive(Default)]
struct Given {
    plain: BTreeMap<String, Value>,
    groups: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Given {
    fn of(results: &[Result<'_>]) -> Self {
        let mut given = Self::default();
        let simulated = results.iter().any(|(_, _, r)| r.provenance.simulated);
        match results {
            [(None, pattern, record)] => {
                given.plain = own(pattern, record);
                let (mut expected, mut off) = (BTreeMap::new(), BTreeMap::new());
                for expectation in pattern.expect.iter() {
                    let metric = record.metrics.get(&expectation.metric);
                    let Some(metric) = metric.map(|metric| metric.value) else {
                        continue;
                    };
                    if let Some(end) = nearest_end(&expectation.condition, metric) {
                        expected.insert(expectation.metric.clone(), Value::Float(end));
                    }
                    if let Some(off_by) = off_by(&expectation.condition, metric) {
                        off.insert(expectation.metric.clone(), Value::Float(off_by));
                    }
                }
                given.groups.insert(EXPECTED.into(), expected);
                given.groups.insert(OFF.into(), off);
            }
            pair => {
                for (at, (side, pattern, record)) in pair.iter().enumerate() {
                    // By itself stands what all sides agree in.
                    let settings = settings(pattern);
                    match at {
                        0 => given.plain = settings,
                        _ => given
                            .plain
                            .retain(|name, value| settings.get(name) == Some(value)),
                    }
                    let side = side.unwrap_or_default().to_owned();
                    given.groups.insert(side, own(pattern, record));
                }
            }
        }
        let simulated = Value::Bool(simulated);
        given.plain.entry(SIMULATED.into()).or_insert(simulated);
        given
    }

    fn names(&self) -> Names {
        let mut names: Names = self.plain.keys().collect();
        for (group, values) in &self.groups {
            names.group(group, values.keys().collect());
        }
        names
    }

    fn scope(&self) -> Scope {
        let mut scope: Scope = self.plain.iter().collect();
        for (group, values) in &self.groups {
            scope.set(group, &Value::Map(values.clone()));
        }
        scope
    }

    fn value(&self, path: &str) -> Option<&Value> {
        match path.split_once('.') {
            Some((group, name)) if self.groups.contains_key(group) => {
                self.groups.get(group)?.get(name)
            }
            _ => self.plain.get(path.split('.').next()?),
        }
    }
}

fn settings(pattern: &Pattern) -> BTreeMap<String, Value> {
    let settings = pattern.settings.iter();
    settings
        .map(|(name, setting)| (name.to_string(), setting.value.clone()))
        .collect()
}

/// Settings and metrics.
fn own(pattern: &Pattern, record: &Record) -> BTreeMap<String, Value> {
    let mut own = settings(pattern);
    let finite = record.metrics.iter().filter(|(_, m)| m.value.is_finite());
    own.extend(finite.map(|(name, metric)| (name.clone(), Value::Float(metric.value))));
    let texts = record.texts.iter();
    own.extend(texts.map(|(name, text)| (name.clone(), Value::Str(text.clone()))));
    own
}

/// The number that a metric is held against: the one expected, or the end of the range that is
/// nearer.
fn nearest_end(condition: &Condition, metric: f64) -> Option<f64> {
    match condition {
        Condition::Range { low, high } => {
            let low_is_nearer = (metric - low).abs() <= (metric - high).abs();
            Some(if low_is_nearer { *low } else { *high })
        }
        Condition::Less(end)
        | Condition::AtMost(end)
        | Condition::Greater(end)
        | Condition::AtLeast(end)
        | Condition::Equal(end) => Some(*end),
        Condition::OneOf(_) => None,
    }
}

/// How far a metric is from what is expected, as a share of that: 0 when it is met, 0.3 when it is
/// 30 % beyond the nearer end. Of an expected 0 there are no shares.
fn off_by(condition: &Condition, metric: f64) -> Option<f64> {
    use crate::plan::expect::{Got, Judgement, judge};
    let end = nearest_end(condition, metric)?;
    match judge(condition, Got::Number(metric)) {
        Judgement::Met => Some(0.0),
        Judgement::Missed if end != 0.0 => Some((metric - end).abs() / end.abs()),
        _ => None,
    }
}

/// A value for people: four significant digits are enough to see why.
fn shown(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && number.is_finite() => {
            let digits = 3 - number.abs().log10().floor() as i32;
            let text = format!("{number:.*}", digits.clamp(0, 9) as usize);
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            }
        }
        Value::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_off_is_a_share_of_the_nearer_end() {
        let range = Condition::Range {
            low: 30.0,
            high: 40.0,
        };
        for (condition, metric, end, off) in [
            (&range, 35.0, 30.0, Some(0.0)),
            (&range, 39.0, 40.0, Some(0.0)),
            (&range, 21.0, 30.0, Some(0.3)),
            (&range, 60.0, 40.0, Some(0.5)),
            (&Condition::Less(80.0), 80.0, 80.0, Some(0.0)),
            (&Condition::Less(80.0), 100.0, 80.0, Some(0.25)),
            (&Condition::AtLeast(4.0), 1.0, 4.0, Some(0.75)),
            (&Condition::Equal(-10.0), -13.0, -10.0, Some(0.3)),
            (&Condition::Equal(0.0), 1.0, 0.0, None),
        ] {
            assert_eq!(
                nearest_end(condition, metric),
                Some(end),
                "{condition} {metric}"
            );
            let got = off_by(condition, metric);
            assert_eq!(
                got.map(|o| (o * 1e9).round()),
                off.map(|o| o * 1e9),
                "{condition} {metric}"
            );
        }
        let texts = Condition::OneOf(vec!["PHB".into()]);
        assert_eq!(
            (nearest_end(&texts, 1.0), off_by(&texts, 1.0)),
            (None, None)
        );
    }

    #[test]
    fn values_are_short() {
        for (value, text) in [
            (Value::Float(1234.5678), "1235"),
            (Value::Float(0.001_234_56), "0.001235"),
            (Value::Float(93.10), "93.1"),
            (Value::Int(16), "16"),
            (Value::from("efa"), "efa"),
        ] {
            assert_eq!(shown(&value), text);
        }
    }
}
