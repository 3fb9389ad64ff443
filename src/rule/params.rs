//! Values of parameters. A value that passed [`check`] is canonical: the same setting written in two ways (`15m` and `900`, `2` and `2.0`)
//! is one value from here on.

use std::sync::Arc;

use doe_cache::Value;
use regex::Regex;

use super::expr::describe;
use super::jinja::Compiled;
use super::model::{Param, ParamType};
use super::shell;
use crate::error::{Diagnostic, Site, nearest};
use crate::source::{Doc, format_duration, parse_duration};

/// A regular expression for whole texts.
pub(super) fn whole_match(pattern: &str) -> Result<Arc<Regex>, Diagnostic> {
    regex(pattern)?;
    regex(&format!("^(?:{pattern})$"))
}

/// Compiles a regular expression, once for each text; the finding has no place yet.
pub(super) fn regex(pattern: &str) -> Result<Arc<Regex>, Diagnostic> {
    static KNOWN: Compiled<Regex> = Compiled::new();
    KNOWN.get(pattern, || {
        Regex::new(pattern).map_err(|error| {
            let text = error.to_string();
            // The crate draws its own caret over several lines; the last one says what is wrong.
            let why = text.lines().last().unwrap_or_default().trim();
            let why = why.strip_prefix("error: ").unwrap_or(why);
            Diagnostic::error("bad-regex", format!("not a regular expression: {why}")).hint(
                "the syntax is that of Rust's regex crate: no look-around, no back-references",
            )
        })
    })
}

/// `not-one-of`: names what is allowed and the nearest of it.
pub fn not_one_of(what: &str, found: &str, allowed: &[&str], site: &Site) -> Diagnostic {
    near_hint(
        Diagnostic::error(
            "not-one-of",
            format!(
                "{what} must be one of {}; found `{found}`",
                allowed.join(", ")
            ),
        )
        .at(site.clone(), ""),
        found,
        allowed.iter().copied(),
    )
}

fn near_hint<'a>(
    diagnostic: Diagnostic,
    found: &str,
    allowed: impl Iterator<Item = &'a str> + Clone,
) -> Diagnostic {
    let same = (allowed.clone()).find(|name| name.eq_ignore_ascii_case(found));
    // `integer` for `int`, `string` for `str`.
    let start = (allowed.clone()).find(|name| name.len() >= 3 && found.starts_with(name));
    match same.or(start).or_else(|| nearest(found, allowed)) {
        Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
        None => diagnostic,
    }
}

/// Holds a value against a parameter and makes it canonical: durations become seconds, numbers
/// take the parameter's kind. `site` is where the value was written, if it was in a file.
///
/// # Errors
/// `wrong-type`, `out-of-bounds`, `not-one-of`, `bad-duration` or `pattern-mismatch`; each names
/// the parameter, what was expected and what was found.
pub fn check(
    name: &str,
    param: &Param,
    value: &Value,
    site: Option<&Site>,
) -> Result<Value, Diagnostic> {
    check_type(name, &param.ty, param.unit.as_deref(), value).map_err(|mut diagnostic| {
        if let Some(site) = site {
            diagnostic.sites.insert(0, (site.clone(), String::new()));
            diagnostic = diagnostic.at(param.site.clone(), "the parameter is defined here");
        }
        if !param.doc.is_empty() {
            diagnostic = diagnostic.hint(format!("`{name}`: {}", param.doc));
        }
        diagnostic
    })
}

/// A value as the command line gives it: read as the parameter's type wants it, then checked.
///
/// # Errors
/// As for [`check`].
pub fn from_text(name: &str, param: &Param, text: &str) -> Result<Value, Diagnostic> {
    let value = match &param.ty {
        ParamType::Str { .. } | ParamType::Enum { .. } => Value::Str(text.to_owned()),
        _ => toml_value(text).unwrap_or_else(|| Value::Str(text.to_owned())),
    };
    check(name, param, &value, None)
}

/// `[1, 2]`, `{ a = 1 }`, `3`, `true` as TOML writes them.
fn toml_value(text: &str) -> Option<Value> {
    let (doc, diags) = Doc::parse("", &format!("v = {text}"));
    let [entry] = doc.table().entries() else {
        return None;
    };
    let mut wrong = Vec::new();
    let value = entry.item.to_value("", &mut wrong)?;
    (diags.is_empty() && wrong.is_empty() && entry.key.text == "v").then_some(value)
}

fn check_type(
    name: &str,
    ty: &ParamType,
    unit: Option<&str>,
    value: &Value,
) -> Result<Value, Diagnostic> {
    let wrong = |expected: &str| {
        let diagnostic = Diagnostic::error(
            "wrong-type",
            format!("`{name}` must be {expected}; found {}", describe(value)),
        );
        if let Value::Str(text) = value
            && (text.parse::<f64>().is_ok() || matches!(text.as_str(), "true" | "false"))
        {
            return diagnostic.hint(format!("write {text} without quotes"));
        }
        match expected {
            "an integer" => diagnostic.hint("write a whole number, such as 8"),
            "a number" => diagnostic.hint("write a number, such as 0.7"),
            "true or false" => diagnostic.hint("write true or false, without quotes"),
            "a list" => diagnostic.hint("write a list, such as [1, 2]"),
            "a table" => diagnostic.hint("write a table, such as { name = \"value\" }"),
            _ => diagnostic,
        }
    };
    match ty {
        ParamType::Int { min, max } => {
            let whole = match value {
                Value::Int(whole) => *whole,
                // Exact below 2^53.
                Value::Float(real) if real.fract() == 0.0 && real.abs() <= 9.0e15 => *real as i64,
                _ => return Err(wrong("an integer")),
            };
            let low = min.is_some_and(|min| whole < min);
            if low || max.is_some_and(|max| whole > max) {
                return Err(outside(name, min.as_ref(), max.as_ref(), unit, &whole));
            }
            Ok(Value::Int(whole))
        }
        ParamType::Float { min, max } => {
            let real = match value {
                Value::Int(whole) => *whole as f64,
                Value::Float(real) if real.is_finite() => *real,
                _ => return Err(wrong("a number")),
            };
            let low = min.is_some_and(|min| real < min);
            if low || max.is_some_and(|max| real > max) {
                return Err(outside(name, min.as_ref(), max.as_ref(), unit, &real));
            }
            // -0.0 and 0.0 are equal, so they are one value.
            Ok(Value::Float(if real == 0.0 { 0.0 } else { real }))
        }
        ParamType::Bool => match value {
            Value::Bool(_) => Ok(value.clone()),
            _ => Err(wrong("true or false")),
        },
        ParamType::Str { pattern } => {
            let Value::Str(text) = value else {
                return Err(match value {
                    Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
                        wrong("a string").hint("put it in quotes")
                    }
                    _ => wrong("a string"),
                });
            };
            no_nul(name, text)?;
            if let Some(pattern) = pattern
                && !whole_match(pattern)?.is_match(text)
            {
                return Err(Diagnostic::error(
                    "pattern-mismatch",
                    format!("`{name}` must match `{pattern}`; found {text:?}"),
                ));
            }
            Ok(value.clone())
        }
        ParamType::Enum { of } => match value {
            Value::Str(text) if of.contains(text) => Ok(value.clone()),
            _ => {
                let found = match value {
                    Value::Str(text) => format!("`{text}`"),
                    other => describe(other),
                };
                let diagnostic = Diagnostic::error(
                    "not-one-of",
                    format!("`{name}` must be one of {}; found {found}", of.join(", ")),
                );
                let word = found.trim_matches('`');
                Err(near_hint(diagnostic, word, of.iter().map(String::as_str)))
            }
        },
        ParamType::Duration => {
            let hint =
                "write a duration such as \"90s\", \"15m\" or \"1h30m\", or a number of seconds";
            let seconds = match value {
                Value::Int(whole) => *whole as f64,
                Value::Float(real) => *real,
                Value::Str(text) => parse_duration(text).ok_or_else(|| {
                    Diagnostic::error(
                        "bad-duration",
                        format!("`{name}` must be a duration; found `{text}`"),
                    )
                    .hint(hint)
                })?,
                _ => return Err(wrong("a duration").hint(hint)),
            };
            if !seconds.is_finite() || seconds < 0.0 {
                return Err(Diagnostic::error(
                    "out-of-bounds",
                    format!("`{name}` must be a duration of 0 or more; found {seconds} seconds"),
                ));
            }
            Ok(Value::Float(seconds))
        }
        ParamType::List(of) => match value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(at, item)| check_type(&format!("{name}[{at}]"), of, unit, item))
                .collect::<Result<_, _>>()
                .map(Value::List),
            _ => Err(wrong("a list")),
        },
        ParamType::Table => match value {
            Value::Map(_) => Ok(value.clone()),
            _ => Err(wrong("a table")),
        },
    }
}

/// Whether no value of the type ever needs quotes in a shell script. Of patterns only a repeated
/// class of plain characters, as in `[A-Za-z0-9._-]+`, is known to be safe.
pub(super) fn never_quoted(ty: &ParamType) -> bool {
    match ty {
        ParamType::Int { .. } | ParamType::Float { .. } => true,
        ParamType::Bool | ParamType::Duration => true,
        ParamType::Enum { of } => of.iter().all(|value| shell::is_plain(value)),
        ParamType::Str { pattern } => {
            let class = (pattern.as_deref())
                .and_then(|pattern| pattern.strip_prefix('[')?.strip_suffix("]+"));
            class.is_some_and(|class| {
                let rest = ["A-Z", "a-z", "0-9"]
                    .iter()
                    .fold(class.to_owned(), |rest, range| rest.replace(range, "a"));
                // A dash between two characters would make another range.
                let dash = rest.find('-').is_none_or(|at| at == rest.len() - 1);
                dash && shell::is_plain(&rest)
            })
        }
        ParamType::List(_) | ParamType::Table => false,
    }
}

fn no_nul(name: &str, text: &str) -> Result<(), Diagnostic> {
    if text.contains('\0') {
        let message = format!("`{name}` holds a NUL character, which no program can be given");
        return Err(Diagnostic::error("wrong-type", message));
    }
    Ok(())
}

fn outside<T: std::fmt::Display>(
    name: &str,
    min: Option<&T>,
    max: Option<&T>,
    unit: Option<&str>,
    found: &T,
) -> Diagnostic {
    let bounds = match (min, max) {
        (Some(min), Some(max)) => format!("from {min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "finite".to_owned(),
    };
    let unit = unit.map_or_else(String::new, |unit| format!(" {unit}"));
    Diagnostic::error(
        "out-of-bounds",
        format!("`{name}` must be {bounds}{unit}; found {found}"),
    )
}

/// A type for people: `int from 1`, `one of efa, tcp`, `list of int`.
pub fn type_text(ty: &ParamType) -> String {
    fn bounds<T: std::fmt::Display>(min: Option<&T>, max: Option<&T>) -> String {
        let min = min.map_or_else(String::new, |min| format!(" from {min}"));
        let max = max.map_or_else(String::new, |max| format!(" to {max}"));
        min + &max
    }
    match ty {
        ParamType::Int { min, max } => format!("int{}", bounds(min.as_ref(), max.as_ref())),
        ParamType::Float { min, max } => format!("float{}", bounds(min.as_ref(), max.as_ref())),
        ParamType::Bool => "bool".to_owned(),
        ParamType::Str { pattern: None } => "str".to_owned(),
        ParamType::Str {
            pattern: Some(pattern),
        } => format!("str matching `{pattern}`"),
        ParamType::Enum { of } => format!("one of {}", of.join(", ")),
        ParamType::Duration => "duration".to_owned(),
        ParamType::List(of) => format!("list of {}", type_text(of)),
        ParamType::Table => "table".to_owned(),
    }
}

/// A canonical value for people: durations with their units, texts as they are.
pub fn value_text(ty: &ParamType, value: &Value) -> String {
    match (ty, value) {
        (ParamType::Duration, Value::Float(seconds)) => format_duration(*seconds),
        // A value that went through a key or a record is the whole number that it equals.
        (ParamType::Duration, Value::Int(seconds)) => format_duration(*seconds as f64),
        (_, Value::Str(text)) => text.clone(),
        (_, Value::Float(real)) => format!("{real}"),
        (ParamType::List(of), Value::List(items)) => {
            let items: Vec<_> = items.iter().map(|item| value_text(of, item)).collect();
            format!("[{}]", items.join(", "))
        }
        (_, value) => serde_json::to_string(value).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
