//! Readers of what a rule leaves behind and how it is read: outputs, metrics, samples, classes of
//! failures. Paths stay inside the node's folder and pointers are well formed.

use std::collections::BTreeMap;

use super::classes;
use super::draft::{Draft, Ref, Target};
use super::model::{FailureDef, MetricDef, OutputDef, SampleDef};
use super::params::not_one_of;
use super::parts::{check_identifier, check_regex};
use crate::error::Diagnostic;
use crate::source::{Spanned, Table, Text};

/// `[RULE.output]`.
pub(super) fn outputs(
    table: Table<'_>,
    draft: &mut Draft,
    diags: &mut Vec<Diagnostic>,
) -> BTreeMap<String, OutputDef> {
    let mut outputs = BTreeMap::new();
    for entry in table.entries() {
        let what = format!("output `{}`", entry.key.text);
        let Some(table) = entry.item.as_table(&what, diags) else {
            continue;
        };
        let mut table = table.named(what);
        let path = table.req_str("path", diags);
        let role = table.opt_str("role", diags);
        let schema = table.opt_str("schema", diags);
        table.remaining(diags, "of an output");
        draft
            .refs
            .extend(role.clone().map(|role| Ref::new(Target::Role, role)));
        if !check_identifier(&entry.key, "an output", diags) {
            continue;
        }
        let Some(path) = path else { continue };
        let safe = |part: &str| crate::label::is_valid_name(part) && part != "..";
        if !path.text.split('/').all(safe) {
            diags.push(
                Diagnostic::error(
                    "bad-path",
                    format!("`{}` cannot be the path of an output", path.text),
                )
                .at(path.site, "")
                .hint("it is a path inside the node's own folder: names joined by `/`, as in `result.json`"),
            );
            continue;
        }
        outputs.insert(
            entry.key.text.clone(),
            OutputDef {
                path: path.text,
                role: role.map(|text| text.text),
                schema: schema.map(|text| text.text),
                site: entry.key.site.clone(),
            },
        );
    }
    outputs
}

/// Whether a text is a JSON pointer (RFC 6901) in which `*` may run over arrays.
fn check_pointer(at: &Text, stars: bool, diags: &mut Vec<Diagnostic>) -> bool {
    let text = at.text.as_str();
    let mut escapes = text.match_indices('~').map(|(i, _)| &text[i + 1..]);
    let has_star = text.split('/').any(|part| part == "*");
    let (wrong, hint) = if !text.starts_with('/') {
        ("it must start with `/`", "write it as in `/ttft_ms/p50`")
    } else if !escapes.all(|rest| rest.starts_with(['0', '1'])) {
        (
            "`~` must be followed by 0 or 1",
            "write `~0` for `~` and `~1` for `/`",
        )
    } else if has_star && !stars {
        (
            "a metric is one number, and `*` runs over many",
            "series belong into `sample`",
        )
    } else if stars && !has_star {
        (
            "a sample is a series, and no `*` runs over an array",
            "single numbers belong into `metric`",
        )
    } else {
        return true;
    };
    diags.push(
        Diagnostic::error("bad-pointer", format!("`{text}` does not fit: {wrong}"))
            .at(at.site.clone(), "")
            .hint(hint),
    );
    false
}

/// `[RULE.metric]`.
pub(super) fn metrics(
    table: Table<'_>,
    draft: &mut Draft,
    diags: &mut Vec<Diagnostic>,
) -> BTreeMap<String, MetricDef> {
    let mut metrics = BTreeMap::new();
    for entry in table.entries() {
        let what = format!("metric `{}`", entry.key.text);
        let Some(table) = entry.item.as_table(&what, diags) else {
            continue;
        };
        let mut table = table.named(what);
        let from = table.req_str("from", diags);
        let at = table.req_str("at", diags);
        let unit = table
            .opt_str("unit", diags)
            .map_or_else(String::new, |text| text.text);
        let better = table.opt_str("better", diags);
        let optional = table.opt_bool("optional", diags).is_some_and(|s| s.value);
        table.remaining(diags, "of a metric");
        draft
            .refs
            .extend(from.clone().map(|from| Ref::new(Target::Document, from)));
        let lower_is_better = better.and_then(|text| match text.text.as_str() {
            "lower" => Some(true),
            "higher" => Some(false),
            other => {
                diags.push(not_one_of(
                    "`better`",
                    other,
                    &["lower", "higher"],
                    &text.site,
                ));
                None
            }
        });
        let (Some(from), Some(at)) = (from, at) else {
            continue;
        };
        if check_identifier(&entry.key, "a metric", diags) && check_pointer(&at, false, diags) {
            metrics.insert(
                entry.key.text.clone(),
                MetricDef {
                    from: from.text,
                    at: at.text,
                    unit,
                    lower_is_better,
                    optional,
                    site: entry.key.site.clone(),
                },
            );
        }
    }
    metrics
}

/// `[RULE.sample]`.
pub(super) fn samples(
    table: Table<'_>,
    draft: &mut Draft,
    diags: &mut Vec<Diagnostic>,
) -> BTreeMap<String, SampleDef> {
    let mut samples = BTreeMap::new();
    for entry in table.entries() {
        let what = format!("sample `{}`", entry.key.text);
        let Some(table) = entry.item.as_table(&what, diags) else {
            continue;
        };
        let mut table = table.named(what);
        let from = table.req_str("from", diags);
        let at = table.req_str("at", diags);
        let unit = table
            .opt_str("unit", diags)
            .map_or_else(String::new, |text| text.text);
        table.remaining(diags, "of a sample");
        draft
            .refs
            .extend(from.clone().map(|from| Ref::new(Target::Document, from)));
        let (Some(from), Some(at)) = (from, at) else {
            continue;
        };
        if check_identifier(&entry.key, "a sample", diags) && check_pointer(&at, true, diags) {
            samples.insert(
                entry.key.text.clone(),
                SampleDef {
                    from: from.text,
                    at: at.text,
                    unit,
                    site: entry.key.site.clone(),
                },
            );
        }
    }
    samples
}

/// `failure = [{ class = …, log = …, exit_code = … }]`.
pub(super) fn failures(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Vec<FailureDef> {
    let mut failures = Vec::new();
    for entry in table.tables("failure", diags) {
        let mut entry = entry.named("a failure class");
        let class = entry.req_str("class", diags);
        let log = entry.opt_str("log", diags);
        let exit_code = entry.opt_int("exit_code", diags);
        let infrastructure = entry.opt_bool("infrastructure", diags);
        entry.remaining(diags, "of a failure class");
        if let Some(log) = &log {
            check_regex(log, diags);
        }
        if !entry.has("log") && !entry.has("exit_code") {
            diags.push(
                Diagnostic::error(
                    "missing-key",
                    "a failure class needs `log` or `exit_code` to be told by",
                )
                .at(entry.site().clone(), "")
                .hint(
                    "as in `log = \"out of memory\"`, a regular expression, or `exit_code = 137`",
                ),
            );
        }
        let exit_code = exit_code.and_then(|code| match u8::try_from(code.value) {
            Ok(small) => Some(i32::from(small)),
            Err(_) => {
                diags.push(
                    Diagnostic::error(
                        "out-of-bounds",
                        format!("`exit_code` must be from 0 to 255; found {}", code.value),
                    )
                    .at(code.site, ""),
                );
                None
            }
        });
        let Some(class) = class else { continue };
        if let Some(said) = &infrastructure {
            contradiction(&class, said, diags);
        }
        if is_class(&class, diags) {
            failures.push(FailureDef {
                class: class.text,
                log,
                exit_code,
                infrastructure: infrastructure.is_some_and(|said| said.value),
            });
        }
    }
    failures
}

/// The classes that `doe` gives itself may be given by a rule too; others are plain names.
fn is_class(class: &Text, diags: &mut Vec<Diagnostic>) -> bool {
    let given = classes::OWN.iter().chain(classes::INFRASTRUCTURE);
    let mut given = given.copied();
    given.any(|name| name == class.text) || check_identifier(class, "a failure class", diags)
}

/// `bad-class`: a class whose cause is known is said to have another.
fn contradiction(class: &Text, said: &Spanned<bool>, diags: &mut Vec<Diagnostic>) {
    let name = class.text.as_str();
    let (wrong, hint) = match said.value {
        true if classes::OWN.contains(&name) => (
            format!("failures of class `{name}` are never tried again"),
            format!(
                "`{name}` has its cause in what was run: give what the infrastructure causes a class of its own"
            ),
        ),
        false if classes::INFRASTRUCTURE.contains(&name) => (
            format!("`{name}` is a class of the infrastructure"),
            "give what must not be tried again a class of its own, or `retry = 0`".to_owned(),
        ),
        _ => return,
    };
    diags.push(
        Diagnostic::error("bad-class", wrong)
            .at(said.site.clone(), "")
            .hint(hint),
    );
}
