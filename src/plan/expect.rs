//! What a metric is held against, in a grammar small enough to have one reading: `30..40`,
//! `< 80`, `<= 80`, `> 1`, `>= 1`, a number, or texts joined by `or`. Numbers are finite, carry no
//! unit (the metric has one) and compare exactly; every text that this module refuses comes back
//! with the way to write it.

use std::fmt;

use super::model::Condition;

/// A text that is not an expectation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, as the end of "`TEXT` is not an expectation: …".
    pub why: String,
    /// What to write, when it can be guessed.
    pub write: Option<String>,
}

/// What an expectation is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Got<'a> {
    /// A number.
    Number(f64),
    /// A text.
    Text(&'a str),
}

/// The outcome of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// As expected.
    Met,
    /// Not as expected.
    Missed,
    /// A number was held against texts, a text against a number, or the number is not finite.
    Incomparable,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Range { low, high } => write!(f, "{low}..{high}"),
            Condition::Less(x) => write!(f, "< {x}"),
            Condition::AtMost(x) => write!(f, "<= {x}"),
            Condition::Greater(x) => write!(f, "> {x}"),
            Condition::AtLeast(x) => write!(f, ">= {x}"),
            Condition::Equal(x) => write!(f, "{x}"),
            Condition::OneOf(texts) => f.write_str(&texts.join(" or ")),
        }
    }
}

/// Reads an expectation written as text.
///
/// # Errors
/// A [`Refusal`] with the way to write it, where one can be guessed.
pub fn parse(text: &str) -> Result<Condition, Refusal> {
    let text = text.trim();
    if text.is_empty() {
        return refuse("it is empty", None);
    }
    if let Some(compared) = comparison(text) {
        return compared;
    }
    if let Some(ranged) = range(text) {
        return ranged;
    }
    match number(text) {
        Number::Finite(x) => return Ok(Condition::Equal(x)),
        Number::WithUnit(x, unit) => return refuse_unit(&unit, Some(x.to_string())),
        Number::Infinite => return refuse("it is not a finite number", None),
        Number::Not => {}
    }
    let texts: Vec<&str> = alternatives(text);
    if texts.iter().any(|t| t.is_empty()) {
        return refuse(
            "`or` needs a text on both sides",
            Some("PHB or NODE".into()),
        );
    }
    if texts.len() > 1 && texts.iter().any(|t| !matches!(number(t), Number::Not)) {
        return refuse(
            "alternatives are texts; numbers are compared as a range",
            None,
        );
    }
    Ok(Condition::OneOf(
        texts.into_iter().map(str::to_owned).collect(),
    ))
}

/// Holds a value against a condition. Ranges include both ends; `<` and `>` do not include theirs.
pub fn judge(condition: &Condition, got: Got<'_>) -> Judgement {
    let met = match (condition, got) {
        (Condition::OneOf(texts), Got::Text(text)) => texts.iter().any(|t| t == text),
        (Condition::OneOf(_), Got::Number(_)) | (_, Got::Text(_)) => {
            return Judgement::Incomparable;
        }
        (_, Got::Number(x)) if !x.is_finite() => return Judgement::Incomparable,
        (Condition::Range { low, high }, Got::Number(x)) => *low <= x && x <= *high,
        (Condition::Less(limit), Got::Number(x)) => x < *limit,
        (Condition::AtMost(limit), Got::Number(x)) => x <= *limit,
        (Condition::Greater(limit), Got::Number(x)) => x > *limit,
        (Condition::AtLeast(limit), Got::Number(x)) => x >= *limit,
        (Condition::Equal(value), Got::Number(x)) => x == *value,
    };
    if met {
        Judgement::Met
    } else {
        Judgement::Missed
    }
}

fn refuse<T>(why: impl Into<String>, write: Option<String>) -> Result<T, Refusal> {
    Err(Refusal {
        why: why.into(),
        write,
    })
}

fn refuse_unit<T>(unit: &str, write: Option<String>) -> Result<T, Refusal> {
    refuse(
        format!("a number carries no unit here (`{unit}`): the metric has its own"),
        write,
    )
}

/// `< 80` and its kin; `None` when no comparison sign leads.
fn comparison(text: &str) -> Option<Result<Condition, Refusal>> {
    type Make = fn(f64) -> Condition;
    const SIGNS: [(&str, &str, Option<Make>); 12] = [
        ("<=", "<=", Some(Condition::AtMost)),
        (">=", ">=", Some(Condition::AtLeast)),
        ("=<", "<=", None),
        ("=>", ">=", None),
        ("\u{2264}", "<=", None),
        ("\u{2265}", ">=", None),
        ("==", "", None),
        ("!=", "!=", None),
        ("~", "~", None),
        ("<", "<", Some(Condition::Less)),
        (">", ">", Some(Condition::Greater)),
        ("=", "", None),
    ];
    let (sign, meant, make) = SIGNS.iter().find(|(sign, _, _)| text.starts_with(sign))?;
    let rest = text[sign.len()..].trim();
    let value = match number(rest) {
        Number::Finite(x) => x,
        Number::WithUnit(x, unit) => {
            return Some(refuse_unit(&unit, Some(format!("{meant} {x}"))));
        }
        Number::Infinite => return Some(refuse("it is not a finite number", None)),
        Number::Not => {
            return Some(refuse(
                format!("`{sign}` needs one number after it"),
                two_sided(text),
            ));
        }
    };
    Some(match (make, *meant) {
        (Some(make), _) => Ok(make(value)),
        (None, "!=" | "~") => refuse(
            format!(
                "there is no `{sign}`; expectations are ranges, `<`, `<=`, `>`, `>=`, numbers or texts"
            ),
            None,
        ),
        (None, "") => refuse("equality has no sign", Some(value.to_string())),
        (None, meant) => refuse(
            format!("`{sign}` is not a comparison"),
            Some(format!("{meant} {value}")),
        ),
    })
}

/// `>= 1 and <= 2` was meant as a range.
fn two_sided(text: &str) -> Option<String> {
    let (one, other) = text.split_once(" and ").or_else(|| text.split_once(','))?;
    let bound = |part: &str| {
        let part = part.trim();
        let rest = part.trim_start_matches(['<', '>', '=']);
        match number(rest.trim()) {
            Number::Finite(x) if rest.len() < part.len() => Some((part.starts_with('<'), x)),
            _ => None,
        }
    };
    match (bound(one)?, bound(other)?) {
        ((false, low), (true, high)) | ((true, high), (false, low)) if low <= high => {
            Some(format!("{low}..{high}"))
        }
        _ => None,
    }
}

/// `30..40`, and what was meant to be one; `None` when it does not look like a range.
fn range(text: &str) -> Option<Result<Condition, Refusal>> {
    const DOTS: [&str; 4] = ["..=", "...", "\u{2026}", ".."];
    if let Some((dots, at)) = DOTS.iter().find_map(|d| text.find(d).map(|at| (*d, at))) {
        let (left, right) = (text[..at].trim(), text[at + dots.len()..].trim());
        return Some(match (number(left), number(right)) {
            (Number::Finite(low), Number::Finite(high)) if low > high => refuse(
                "the lower end of a range comes first",
                Some(format!("{high}..{low}")),
            ),
            (Number::Finite(low), Number::Finite(high)) if dots == ".." => {
                Ok(Condition::Range { low, high })
            }
            (Number::Finite(low), Number::Finite(high)) => refuse(
                "a range has two dots and includes both ends",
                Some(format!("{low}..{high}")),
            ),
            (Number::Finite(low), Number::Not) if right.is_empty() => {
                refuse("a range has two ends", Some(format!(">= {low}")))
            }
            (Number::Not, Number::Finite(high)) if left.is_empty() => {
                refuse("a range has two ends", Some(format!("<= {high}")))
            }
            (Number::WithUnit(low, unit), Number::Finite(high) | Number::WithUnit(high, _))
            | (Number::Finite(low), Number::WithUnit(high, unit)) => {
                refuse_unit(&unit, Some(format!("{low}..{high}")))
            }
            _ => refuse("the ends of a range are finite numbers", None),
        });
    }
    // "30-40": is it a range, or minus ten? Nobody can tell, so it is never read.
    const DASHES: [&str; 5] = ["-", "\u{2013}", "\u{2014}", "~", " to "];
    for dash in DASHES {
        for (at, _) in text.match_indices(dash) {
            let low = number(text[..at].trim());
            let high = number(text[at + dash.len()..].trim());
            if let (
                Number::Finite(low) | Number::WithUnit(low, _),
                Number::Finite(high) | Number::WithUnit(high, _),
            ) = (low, high)
            {
                return Some(refuse(
                    format!("`{}` does not make a range", dash.trim()),
                    Some(format!("{}..{}", low.min(high), low.max(high))),
                ));
            }
        }
    }
    None
}

enum Number {
    Finite(f64),
    Infinite,
    WithUnit(f64, String),
    Not,
}

/// Reads a decimal number, perhaps followed by a unit that does not belong there.
fn number(text: &str) -> Number {
    let digits = number_length(text);
    let Some(digits) = digits else {
        let bare = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
        return if ["nan", "inf", "infinity"].contains(&bare.as_str()) {
            Number::Infinite
        } else {
            Number::Not
        };
    };
    let Ok(value) = text[..digits].parse::<f64>() else {
        return Number::Not;
    };
    let rest = text[digits..].trim_start();
    if rest.is_empty() {
        // Adding zero turns -0 into 0, so that what is printed is one text.
        return if value.is_finite() {
            Number::Finite(value + 0.0)
        } else {
            Number::Infinite
        };
    }
    let unit = |c: char| c.is_alphabetic() || "%/\u{b5}\u{b0}^".contains(c);
    if rest.starts_with(unit)
        && value.is_finite()
        && rest.chars().all(|c| unit(c) || c.is_ascii_digit())
    {
        return Number::WithUnit(value + 0.0, rest.to_owned());
    }
    Number::Not
}

/// Bytes of the decimal number that a text starts with.
fn number_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let run = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let start = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    let whole = run(start);
    if whole == start {
        return None;
    }
    let mut end = whole;
    if bytes.get(end) == Some(&b'.') && run(end + 1) > end + 1 {
        end = run(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = run(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    Some(end)
}

/// Splits at the word `or`.
fn alternatives(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut word_start = None;
    for (at, c) in text
        .char_indices()
        .chain(std::iter::once((text.len(), ' ')))
    {
        if !c.is_whitespace() {
            word_start = word_start.or(Some(at));
        } else if let Some(word) = word_start.take()
            && &text[word..at] == "or"
        {
            parts.push(text[start..word].trim());
            start = at;
        }
    }
    parts.push(text[start..].trim());
    parts
}

#[cfg(test)]
mod tests;
