//! The tree of a file, free of the parser's types. Numbers that do not fit are findings, not
//! items; everything else of the file is in the tree, keys in file order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use doe_cache::Value;
use toml::de::{DeTable, DeValue};

use super::form;
use super::table::Table;
use super::text::{Spanned, Text};
use super::{format_duration, parse_duration};
use crate::error::{Diagnostic, Site, SourceFile};

/// A key with its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key, where it is first written.
    pub key: Text,
    /// The value.
    pub item: Item,
}

/// A value of any type with its place. For a table with a header the place is the header, for one
/// that only dotted keys make it is the key.
#[derive(Debug, Clone)]
pub struct Item {
    /// The value.
    pub value: ItemValue,
    /// Where it stands.
    pub site: Site,
}

/// A value of any type.
#[derive(Debug, Clone)]
pub enum ItemValue {
    /// Text.
    Str(String),
    /// Whole number.
    Int(i64),
    /// Real number, NaN and infinities included as TOML allows them.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// A date or time as written; no setting takes one.
    Datetime(String),
    /// A list or an array of tables.
    Array(Vec<Item>),
    /// A table: entries in file order.
    Table(Vec<Entry>),
}

/// Longest length of time that is accepted: a hundred years of 365.25 days, in seconds.
const MAX_DURATION_S: f64 = 100.0 * 365.25 * 86400.0;

impl Item {
    /// What the value is, with its article: `a string`, `an integer`.
    pub fn type_name(&self) -> &'static str {
        match self.value {
            ItemValue::Str(_) => "a string",
            ItemValue::Int(_) => "an integer",
            ItemValue::Float(_) => "a float",
            ItemValue::Bool(_) => "a boolean",
            ItemValue::Datetime(_) => "a date",
            ItemValue::Array(_) => "a list",
            ItemValue::Table(_) => "a table",
        }
    }

    /// `wrong-type`: `what` must be `expected`, found this. The hint shows the right form, made of
    /// what was written where that is possible.
    pub fn wrong_type(&self, what: &str, expected: &str) -> Diagnostic {
        let found = Diagnostic::error(
            "wrong-type",
            format!("{what} must be {expected}, found {}", self.type_name()),
        )
        .at(self.site.clone(), "");
        match form::right_form(self, what, expected) {
            Some(hint) => found.hint(hint),
            None => found,
        }
    }

    /// The text of the file that this was read from.
    pub(super) fn raw(&self) -> &str {
        let text = &self.site.file.text;
        text.get(self.site.range.clone()).unwrap_or_default()
    }

    /// The text, or a finding. `what` opens the message: `` `title` ``.
    pub fn as_text(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Text> {
        match &self.value {
            ItemValue::Str(text) => Some(Text {
                text: text.clone(),
                site: self.site.clone(),
            }),
            _ => {
                diags.push(self.wrong_type(what, "a string"));
                None
            }
        }
    }

    /// The whole number, or a finding.
    pub fn as_int(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Spanned<i64>> {
        match self.value {
            ItemValue::Int(value) => Some(self.spanned(value)),
            _ => {
                diags.push(self.wrong_type(what, "an integer"));
                None
            }
        }
    }

    /// The finite number (a whole one is accepted), or a finding.
    pub fn as_float(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Spanned<f64>> {
        match self.value {
            ItemValue::Int(value) => Some(self.spanned(value as f64)),
            ItemValue::Float(value) if value.is_finite() => Some(self.spanned(value)),
            ItemValue::Float(_) => {
                diags.push(self.not_finite(what));
                None
            }
            _ => {
                diags.push(self.wrong_type(what, "a number"));
                None
            }
        }
    }

    /// The boolean, or a finding.
    pub fn as_bool(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Spanned<bool>> {
        match &self.value {
            ItemValue::Bool(value) => Some(self.spanned(*value)),
            _ => {
                diags.push(self.wrong_type(what, "`true` or `false`"));
                None
            }
        }
    }

    /// Seconds: a text such as `90s`, `15m`, `1h30m`, or a number of seconds; or a finding.
    pub fn as_duration(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Spanned<f64>> {
        let seconds = match &self.value {
            ItemValue::Int(value) => *value as f64,
            ItemValue::Float(value) => *value,
            ItemValue::Str(text) => match parse_duration(text) {
                Some(seconds) => seconds,
                None => {
                    let mut diagnostic = Diagnostic::error(
                        "bad-duration",
                        format!("{what} must be a duration, found `{text}`"),
                    )
                    .at(self.site.clone(), "");
                    if text.trim().parse::<f64>().is_ok() {
                        diagnostic = diagnostic.hint(format!(
                            "add a unit, as in \"{}s\", or take the quotes away",
                            text.trim()
                        ));
                    }
                    diags.push(diagnostic.hint(form::DURATION));
                    return None;
                }
            },
            _ => {
                diags.push(self.wrong_type(what, "a duration"));
                return None;
            }
        };
        if !(0.0..=MAX_DURATION_S).contains(&seconds) {
            let limit = format_duration(MAX_DURATION_S);
            diags.push(
                Diagnostic::error(
                    "bad-duration",
                    format!("{what} must be a duration from 0 to {limit}, found {seconds} seconds"),
                )
                .at(self.site.clone(), "")
                .hint(form::DURATION),
            );
            return None;
        }
        Some(self.spanned(seconds))
    }

    /// The items of a list, or a finding.
    pub fn as_array(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<&[Item]> {
        match &self.value {
            ItemValue::Array(items) => Some(items),
            _ => {
                diags.push(self.wrong_type(what, "a list"));
                None
            }
        }
    }

    /// A cursor over the table, or a finding.
    pub fn as_table<'a>(&'a self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Table<'a>> {
        match &self.value {
            ItemValue::Table(entries) => Some(Table::new(what, entries, self.site.clone())),
            _ => {
                diags.push(self.wrong_type(what, "a table"));
                None
            }
        }
    }

    /// Cursors over an array of tables, or findings.
    pub fn as_tables<'a>(&'a self, what: &str, diags: &mut Vec<Diagnostic>) -> Vec<Table<'a>> {
        match &self.value {
            ItemValue::Array(items) => items
                .iter()
                .filter_map(|item| item.as_table(&format!("each of {what}"), diags))
                .collect(),
            _ => {
                diags.push(self.wrong_type(what, "a list of tables"));
                Vec::new()
            }
        }
    }

    /// The texts of a list of strings, or findings.
    pub fn as_texts(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Vec<Text> {
        let each = format!("each of {what}");
        self.as_array(what, diags)
            .unwrap_or_default()
            .iter()
            .filter_map(|item| item.as_text(&each, diags))
            .collect()
    }

    /// The value without places. Dates and numbers that are not finite are findings.
    pub fn to_value(&self, what: &str, diags: &mut Vec<Diagnostic>) -> Option<Value> {
        match &self.value {
            ItemValue::Str(text) => Some(Value::Str(text.clone())),
            ItemValue::Int(value) => Some(Value::Int(*value)),
            ItemValue::Float(value) if value.is_finite() => Some(Value::Float(*value)),
            ItemValue::Float(_) => {
                diags.push(self.not_finite(what));
                None
            }
            ItemValue::Bool(value) => Some(Value::Bool(*value)),
            ItemValue::Datetime(text) => {
                diags.push(
                    Diagnostic::error("wrong-type", format!("{what} cannot be a date"))
                        .at(self.site.clone(), "")
                        .hint(format!("write it as a string: \"{text}\"")),
                );
                None
            }
            ItemValue::Array(items) => {
                // All items are looked at, so that all findings come at once.
                let values: Vec<_> = items.iter().map(|i| i.to_value(what, diags)).collect();
                Some(Value::List(values.into_iter().collect::<Option<_>>()?))
            }
            ItemValue::Table(entries) => {
                let values: Vec<_> = entries
                    .iter()
                    .map(|e| Some((e.key.text.clone(), e.item.to_value(what, diags)?)))
                    .collect();
                Some(Value::Map(
                    values.into_iter().collect::<Option<BTreeMap<_, _>>>()?,
                ))
            }
        }
    }

    fn not_finite(&self, what: &str) -> Diagnostic {
        Diagnostic::error("wrong-type", format!("{what} must be a finite number"))
            .at(self.site.clone(), "")
            .hint("write the number itself, such as 0.7; `nan` and `inf` measure nothing")
    }

    fn spanned<T>(&self, value: T) -> Spanned<T> {
        Spanned {
            value,
            site: self.site.clone(),
        }
    }
}

/// The entries of a parsed table in file order.
pub(super) fn entries(
    file: &Arc<SourceFile>,
    table: &DeTable<'_>,
    diags: &mut Vec<Diagnostic>,
) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        let Some(item) = item(file, value.get_ref(), value.span(), diags) else {
            continue;
        };
        entries.push(Entry {
            key: Text {
                text: key.get_ref().to_string(),
                site: site(file, key.span()),
            },
            item,
        });
    }
    entries.sort_by_key(|entry| entry.key.site.range.start);
    entries
}

fn item(
    file: &Arc<SourceFile>,
    value: &DeValue<'_>,
    span: Range<usize>,
    diags: &mut Vec<Diagnostic>,
) -> Option<Item> {
    let site = site(file, span);
    let value = match value {
        DeValue::String(text) => ItemValue::Str(text.to_string()),
        DeValue::Integer(digits) => {
            let Ok(value) = i64::from_str_radix(digits.as_str(), digits.radix()) else {
                diags.push(
                    Diagnostic::error(
                        "wrong-type",
                        format!(
                            "`{digits}` does not fit: whole numbers go from {} to {}",
                            i64::MIN,
                            i64::MAX
                        ),
                    )
                    .at(site, "")
                    .hint(
                        "write a smaller number, or the text in quotes if it only names something",
                    ),
                );
                return None;
            };
            ItemValue::Int(value)
        }
        DeValue::Float(digits) => {
            let Ok(value) = digits.as_str().parse::<f64>() else {
                diags.push(
                    Diagnostic::error("wrong-type", format!("`{digits}` is not a number"))
                        .at(site, "")
                        .hint("write a number such as 0.7 or 1e6"),
                );
                return None;
            };
            ItemValue::Float(value)
        }
        DeValue::Boolean(value) => ItemValue::Bool(*value),
        DeValue::Datetime(value) => ItemValue::Datetime(value.to_string()),
        DeValue::Array(items) => ItemValue::Array(
            items
                .iter()
                .filter_map(|value| item(file, value.get_ref(), value.span(), diags))
                .collect(),
        ),
        DeValue::Table(table) => ItemValue::Table(entries(file, table, diags)),
    };
    Some(Item { value, site })
}

fn site(file: &Arc<SourceFile>, range: Range<usize>) -> Site {
    Site {
        file: file.clone(),
        range,
    }
}
