//! The one set of filters, tests and functions that every expression and template has, with the
//! limits they run under. Evaluation is a pure function of the text and the scope: nothing here
//! reads a clock, a file, the environment or a random number.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value as Jinja, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};

use super::lex::{self, Mentions};
use super::scope::from_jinja;
use super::shell;
use crate::error::{Diagnostic, nearest};
use crate::source::Text;

/// Longest text of an expression or template.
const MAX_BYTES: usize = 256 << 10;

/// Instructions that one evaluation may take; the largest shipped template needs under a
/// thousandth of it.
const FUEL: u64 = 1_000_000;

/// Every filter that code may use.
pub(super) const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "bool",
    "capitalize",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "join",
    "json",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "raw",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "select",
    "selectattr",
    "size",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
    "zip",
];

/// minijinja's filters that are left out: they depend on escaping for other languages, or turn a
/// small text into a huge one.
const NO_FILTERS: &[&str] = &[
    "safe", "escape", "e", "batch", "slice", "indent", "pprint", "format",
];

/// Every test that code may use after `is`.
pub(super) const TESTS: &[&str] = &[
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "equalto",
    "even",
    "false",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "int",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "startingwith",
    "string",
    "true",
    "undefined",
    "upper",
];

/// Every function that code may call.
pub(super) const FUNCTIONS: &[&str] = &["range"];

/// How values print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As they are: environment values, URLs, ids.
    Plain,
    /// As words of a shell script: quoted when they need it.
    Shell,
}

/// The environment of a mode; it lives as long as the program.
pub(super) fn environment(mode: Mode) -> &'static Environment<'static> {
    static PLAIN: LazyLock<Environment<'static>> = LazyLock::new(|| build(Mode::Plain));
    static SHELL: LazyLock<Environment<'static>> = LazyLock::new(|| build(Mode::Shell));
    match mode {
        Mode::Plain => &PLAIN,
        Mode::Shell => &SHELL,
    }
}

fn build(mode: Mode) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL));
    env.set_debug(true); // places of errors
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true);
    if let Ok(syntax) = syntax.build() {
        env.set_syntax(syntax);
    }
    // Texts marked as safe are those of `| raw` and of captured blocks, whose values are quoted
    // already. Without an escaping mode captures would not carry the mark.
    env.set_auto_escape_callback(|_| AutoEscape::Custom("doe".into()));
    env.set_formatter(move |out, state, value| print(mode, out, state, value));
    for name in NO_FILTERS {
        env.remove_filter(name);
    }
    for name in ["safe", "escaped", "filter", "test"] {
        env.remove_test(name);
    }
    for name in ["debug", "dict", "namespace"] {
        env.remove_global(name);
    }
    env.add_filter("raw", |value: Jinja| -> Result<Jinja, Error> {
        Ok(Jinja::from_safe_string(plain(&value)?.into_owned()))
    });
    env.add_filter("json", |value: Jinja| -> Result<String, Error> {
        serde_json::to_string(&value)
            .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
    });
    env.add_filter("size", size);
    env
}

fn print(mode: Mode, out: &mut Output, _: &mut State, value: &Jinja) -> Result<(), Error> {
    let written = match mode {
        Mode::Plain => out.write_str(&plain(value)?),
        Mode::Shell if value.is_safe() => out.write_str(&plain(value)?),
        Mode::Shell => match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let mut words = Vec::new();
                for item in value.try_iter()? {
                    words.push(shell::quote(&plain(&item)?).into_owned());
                }
                out.write_str(&words.join(" "))
            }
            // The silence of an `if` without `else` is no word, not an empty one.
            ValueKind::Undefined => Ok(()),
            _ => out.write_str(&shell::quote(&plain(value)?)),
        },
    };
    written.map_err(Error::from)
}

/// A value as text. Whole numbers print without a fraction whatever they were made by; tables and
/// lists have no one obvious form and are refused.
fn plain(value: &Jinja) -> Result<Cow<'_, str>, Error> {
    let refuse = |what: &str, how: &str| {
        let message = format!("{what} has no one way to be printed\n{how}");
        Err(Error::new(ErrorKind::InvalidOperation, message))
    };
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone())?;
            if number.is_finite() {
                Ok(format!("{number}").into())
            } else {
                let message = format!("{value} is not a finite number");
                Err(Error::new(ErrorKind::InvalidOperation, message))
            }
        }
        ValueKind::Seq | ValueKind::Iterable => refuse("a list", "add `| join(',')` or `| json`"),
        ValueKind::Map => refuse("a table", "add `| json`"),
        ValueKind::Bool => Ok(value.is_true().to_string().into()),
        ValueKind::None => refuse("none", "test it with `is none` first"),
        ValueKind::Plain | ValueKind::Invalid => refuse("this value", "name one of its parts"),
        _ => {
            let text = match value.as_str() {
                Some(text) => Cow::Borrowed(text),
                None => value.to_string().into(),
            };
            if text.contains('\0') {
                let message = "a value holds a NUL character, which no program can be given";
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
            Ok(text)
        }
    }
}

/// `1024` as `1k`, `131072` as `128k`, `1000` as `1000`: the largest binary unit that divides.
fn size(value: Jinja) -> Result<String, Error> {
    let whole = match from_jinja(&value) {
        Ok(doe_cache::Value::Int(whole)) => Some(whole),
        Ok(doe_cache::Value::Float(real)) if real.fract() == 0.0 && real.abs() < 9e15 => {
            Some(real as i64)
        }
        _ => None,
    };
    let Some(whole) = whole else {
        let message = format!("`size` takes a whole number, found {value}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    };
    for (shift, unit) in [(30, "g"), (20, "m"), (10, "k")] {
        if whole != 0 && whole % (1 << shift) == 0 {
            return Ok(format!("{}{unit}", whole >> shift));
        }
    }
    Ok(whole.to_string())
}

/// Texts compiled once, by text. Texts and code stay for the life of the program: they come from
/// files that were read, so there are as many as people wrote.
pub(super) struct Compiled<T: 'static> {
    known: LazyLock<RwLock<HashMap<String, Arc<T>>>>,
}

impl<T> Compiled<T> {
    pub(super) const fn new() -> Self {
        Self {
            known: LazyLock::new(RwLock::default),
        }
    }

    pub(super) fn get<E>(
        &self,
        text: &str,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(text) {
            return Ok(found.clone());
        }
        drop(known);
        let made = Arc::new(make()?);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(text.to_owned(), made.clone());
        Ok(made)
    }
}

/// Refuses a text that is too long to be meant.
pub(super) fn check_length(text: &Text, what: &str) -> Result<(), Diagnostic> {
    if text.text.len() <= MAX_BYTES {
        return Ok(());
    }
    Err(Diagnostic::error(
        "too-long",
        format!(
            "{what} has {} bytes; at most {MAX_BYTES} are read",
            text.text.len()
        ),
    )
    .at(text.site.clone(), ""))
}

/// Runs the engine; should it panic on a text that nobody thought of, that is an error like others.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        let message = "the expression engine could not work this out";
        Err(Error::new(ErrorKind::InvalidOperation, message))
    })
}

/// An engine error as a finding at its place in the file. `what` is `expression` or `template`.
pub(super) fn finding(text: &Text, what: &str, error: &Error) -> Diagnostic {
    let code = match error.kind() {
        ErrorKind::SyntaxError | ErrorKind::BadEscape => "bad-expression",
        ErrorKind::UndefinedError => "undefined-variable",
        _ => "expression-failed",
    };
    let detail = error.detail().unwrap_or("it makes no sense here");
    let (detail, hint) = match detail.split_once('\n') {
        Some((detail, hint)) => (detail, Some(hint)),
        None => (detail, None),
    };
    let message = match (code, error.kind()) {
        ("bad-expression", _) => format!("this {what} cannot be read: {detail}"),
        ("undefined-variable", _) => detail.to_owned(),
        (_, ErrorKind::OutOfFuel) => format!("this {what} takes too long to work out"),
        (_, ErrorKind::InvalidOperation | ErrorKind::BadSerialization) => {
            format!("this {what} failed: {detail}")
        }
        (_, kind) => format!("this {what} failed: {kind}: {detail}"),
    };
    let part = (error.range())
        .and_then(|range| Some((text.text.get(range.clone())?, range)))
        .filter(|(part, _)| !part.is_empty());
    let site = match part {
        // `.counts.faild`: the attribute that is not there is the last.
        Some((part, range)) if error.kind() == ErrorKind::UndefinedError => {
            let last = part.rfind('.').map_or(0, |dot| dot + 1);
            text.locate(range.start + last..range.end)
        }
        Some((_, range)) => text.locate(range),
        None => text.site.clone(),
    };
    let mut diagnostic = Diagnostic::error(code, message).at(site, "");
    if let Some(hint) = hint {
        diagnostic = diagnostic.hint(hint);
    }
    if what == "expression" && text.text.trim_start().starts_with("{{") {
        diagnostic = diagnostic.hint("an expression stands without `{{` and `}}`");
    }
    diagnostic
}

/// Findings about filters and tests that do not exist.
pub(super) fn check_words(text: &Text, mentions: &Mentions) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let kinds = [
        ("filter", &mentions.filters, FILTERS),
        ("test", &mentions.tests, TESTS),
    ];
    for (kind, mentioned, known) in kinds {
        for mention in mentioned {
            if known.contains(&mention.name.as_str()) || lex::is_keyword(&mention.name) {
                continue;
            }
            let mut diagnostic = Diagnostic::error(
                "bad-expression",
                format!("there is no {kind} `{}`", mention.name),
            )
            .at(text.locate(mention.range.clone()), "");
            diagnostic = match nearest(&mention.name, known.iter().copied()) {
                Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
                None => diagnostic.hint(format!("{kind}s: {}", known.join(", "))),
            };
            found.push(diagnostic);
        }
    }
    found
}

/// `undefined-variable` at the place where a name is first mentioned.
pub(super) fn undefined<'a>(
    text: &Text,
    mentions: &Mentions,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Diagnostic {
    let path = mentions.paths.iter().find(|path| path.names[0] == name);
    let site = match path {
        Some(path) => text.locate(path.places[0].clone()),
        None => text.site.clone(),
    };
    let known: BTreeSet<&str> = known.collect();
    let diagnostic =
        Diagnostic::error("undefined-variable", format!("`{name}` is not defined")).at(site, "");
    name_hint(diagnostic, name, &known)
}

/// Adds the nearest of the known names, or the list when it is short.
pub(super) fn name_hint(diagnostic: Diagnostic, name: &str, known: &BTreeSet<&str>) -> Diagnostic {
    let list = || known.iter().copied().collect::<Vec<_>>().join(", ");
    match nearest(name, known.iter().copied()) {
        Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
        None if known.is_empty() => diagnostic.hint("nothing is defined here"),
        None if known.len() <= 20 => diagnostic.hint(format!("defined here: {}", list())),
        None => diagnostic,
    }
}
