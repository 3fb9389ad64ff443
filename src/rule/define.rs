//! Definitions of parameters. A definition that is read has a type that makes sense and a default,
//! if any, that passed the same check as every other value.

use super::model::{Affects, Param, ParamType};
use super::params::{check, not_one_of, whole_match};
use crate::error::{Diagnostic, Site};
use crate::source::{Entry, Table};

/// Names of the types, as `type = "…"` takes them.
const TYPES: &[&str] = &[
    "int", "float", "bool", "str", "enum", "duration", "list", "table",
];

/// Reads one `param.NAME = { type = …, … }`. The default is held against the type.
pub(super) fn read(entry: &Entry, diags: &mut Vec<Diagnostic>) -> Option<Param> {
    let name = entry.key.text.as_str();
    let mut table = (entry.item)
        .as_table(&format!("parameter `{name}`"), diags)?
        .named(format!("parameter `{name}`"));
    let before = diags.len();
    let ty = param_type(&mut table, diags);
    let affects = match table.opt_str("affects", diags) {
        None => Affects::Result,
        Some(text) => match text.text.as_str() {
            "result" => Affects::Result,
            "scheduling" => Affects::Scheduling,
            "cosmetic" => Affects::Cosmetic,
            other => {
                diags.push(not_one_of(
                    "`affects`",
                    other,
                    &["result", "scheduling", "cosmetic"],
                    &text.site,
                ));
                Affects::Result
            }
        },
    };
    let unit = table.opt_str("unit", diags).map(|text| text.text);
    let doc = table
        .opt_str("doc", diags)
        .map_or_else(String::new, |t| t.text);
    let default = table.item("default");
    let ty = ty?;
    table.remaining(diags, &format!("of a parameter of type {}", type_word(&ty)));
    let mut param = Param {
        ty,
        default: None,
        unit,
        doc,
        affects,
        site: entry.key.site.clone(),
    };
    if let Some(item) = default {
        let value = item.to_value("a default", diags)?;
        match check(name, &param, &value, Some(&item.site)) {
            Ok(value) => param.default = Some(value),
            Err(mut diagnostic) => {
                // The definition is the place itself.
                diagnostic.sites.truncate(1);
                diagnostic.message = format!("the default of {}", diagnostic.message);
                diags.push(diagnostic);
            }
        }
    }
    (diags.len() == before).then_some(param)
}

fn type_word(ty: &ParamType) -> &'static str {
    match ty {
        ParamType::Int { .. } => "int",
        ParamType::Float { .. } => "float",
        ParamType::Bool => "bool",
        ParamType::Str { .. } => "str",
        ParamType::Enum { .. } => "enum",
        ParamType::Duration => "duration",
        ParamType::List(_) => "list",
        ParamType::Table => "table",
    }
}

fn param_type(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Option<ParamType> {
    let ty = table.req_str("type", diags)?;
    if ty.text == "list" {
        let of = table.req_str("of", diags)?;
        if matches!(of.text.as_str(), "list" | "enum" | "table") {
            diags.push(
                Diagnostic::error(
                    "wrong-type",
                    format!("a list cannot be of `{}`", of.text),
                )
                .at(of.site, "")
                .hint("lists are of int, float, bool, str or duration; structured options are a `table`"),
            );
            return None;
        }
        let item = scalar_type(&of.text, &of.site, table, diags)?;
        return Some(ParamType::List(Box::new(item)));
    }
    scalar_type(&ty.text, &ty.site, table, diags)
}

fn scalar_type(
    ty: &str,
    site: &Site,
    table: &mut Table<'_>,
    diags: &mut Vec<Diagnostic>,
) -> Option<ParamType> {
    let ty = match ty {
        "int" => {
            let min = table.opt_int("min", diags).map(|s| s.value);
            let max = table.opt_int("max", diags).map(|s| s.value);
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                diags.push(empty_bounds(table));
                return None;
            }
            ParamType::Int { min, max }
        }
        "float" => {
            let min = table.opt_float("min", diags).map(|s| s.value);
            let max = table.opt_float("max", diags).map(|s| s.value);
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                diags.push(empty_bounds(table));
                return None;
            }
            ParamType::Float { min, max }
        }
        "bool" => ParamType::Bool,
        "str" => {
            let pattern = table.opt_str("pattern", diags);
            if let Some(pattern) = &pattern
                && let Err(diagnostic) = whole_match(&pattern.text)
            {
                diags.push(diagnostic.at(pattern.site.clone(), ""));
                return None;
            }
            ParamType::Str {
                pattern: pattern.map(|text| text.text),
            }
        }
        "enum" => {
            let item = table.req("of", diags)?;
            let values = item.as_texts("`of`", diags);
            for (at, value) in values.iter().enumerate() {
                if let Some(first) = values[..at].iter().find(|v| v.text == value.text) {
                    diags.push(
                        Diagnostic::error(
                            "duplicate-name",
                            format!("`{}` is in `of` twice", value.text),
                        )
                        .at(value.site.clone(), "")
                        .at(first.site.clone(), "first here"),
                    );
                }
            }
            if values.is_empty() {
                diags.push(
                    Diagnostic::error("wrong-type", "`of` must name at least one value")
                        .at(item.site.clone(), "")
                        .hint("as in `of = [\"efa\", \"tcp\"]`"),
                );
                return None;
            }
            ParamType::Enum {
                of: values.into_iter().map(|text| text.text).collect(),
            }
        }
        "duration" => ParamType::Duration,
        "table" => ParamType::Table,
        other => {
            diags.push(not_one_of("`type`", other, TYPES, site));
            return None;
        }
    };
    Some(ty)
}

fn empty_bounds(table: &Table<'_>) -> Diagnostic {
    Diagnostic::error("out-of-bounds", "`min` is greater than `max`")
        .at(table.site().clone(), "")
        .hint("exchange them: `min` is the smallest value that is allowed, `max` the largest")
}
