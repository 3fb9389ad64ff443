//! From the tree of a plan file to its declarations: every key that a plan may have is known here
//! and nowhere else, and what has the wrong shape is a finding and left out. Nothing here knows
//! parameters, expressions or other plans.

use super::model::{Condition, Expectation};
use super::repeat::RepeatDecl;
use super::schema::{
    CellPick, Common, CompareDecl, EstimateDecl, ExpectDecl, FactorDecl, FollowupDecl, LayerDecl,
    OverrideDecl, PatternDecl, Pick, PlanDecl, SettingDecl,
};
use super::{claim, expect, uses};
use crate::error::{Diagnostic, Severity};
use crate::rule::retry::RetryDef;
use crate::source::{Doc, Entry, Item, ItemValue, Spanned, Table, Text};

type Diags = Vec<Diagnostic>;

/// Reads the file of a plan.
pub(super) fn read(doc: &Doc, package: &str, diags: &mut Diags) -> PlanDecl {
    let mut root = doc.table();
    let mut plan = PlanDecl::default();
    if let Some(mut head) = root.opt_table("plan", diags) {
        plan.title = head.opt_str("title", diags);
        let before = diags.len();
        plan.rules = head.str_list("rules", diags);
        plan.rules_unknown = diags.len() > before;
        plan.expect_patterns = head.opt_int("expect_patterns", diags);
        plan.tags = head.str_list("tags", diags);
        plan.retry = RetryDef::read(&mut head, diags);
        plan.uses = uses::read(&mut head, diags);
        plan.repeat = RepeatDecl::read(&mut head, diags);
        plan.repeat.of_many(diags);
        head.remaining(diags, "of `[plan]`");
    }
    if let Some(settings) = root.opt_table("settings", diags) {
        plan.settings = settings_of(&settings, diags);
    }
    if let Some(requires) = root.opt_table("requires", diags) {
        plan.requires = claim::read(&requires, diags);
    }
    for table in root.tables("layer", diags) {
        plan.layers.extend(layer(table, package, diags));
    }
    for table in root.tables("followup", diags) {
        plan.followups.extend(followup(table, diags));
    }
    for table in root.tables("compare", diags) {
        plan.compares.extend(compare(table, diags));
    }
    root.remaining(diags, "at the top of a plan");
    plan
}

fn layer(mut table: Table<'_>, package: &str, diags: &mut Diags) -> Option<LayerDecl> {
    let id = table.req_str("id", diags);
    let found = diags.len();
    // `pattern` is the template of the matrix's ids when it is a text, and the list of explicit
    // patterns when it is tables; TOML lets it be only one of them.
    let mut pattern = None;
    let mut patterns = Vec::new();
    match table.item("pattern") {
        Some(item) if matches!(item.value, ItemValue::Array(_)) => {
            for table in item.as_tables("`pattern`", diags) {
                patterns.extend(pattern_entry(table, diags));
            }
        }
        Some(item) => pattern = item.as_text("`pattern`", diags),
        None => {}
    }
    let mut common = common(&mut table, diags);
    if pattern.is_none() {
        common.repeat.of_many(diags);
    }
    let site = table.site().clone();
    table.remaining(diags, "of a layer");
    if let Some(id) = &id {
        for diagnostic in &mut diags[found..] {
            let label = || format!("//{package}:{}", id.text);
            diagnostic.label.get_or_insert_with(label);
        }
    }
    let broken = diags[found..]
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error);
    Some(LayerDecl {
        id: id?,
        pattern,
        common,
        patterns,
        site,
        broken,
    })
}

fn pattern_entry(mut table: Table<'_>, diags: &mut Diags) -> Option<PatternDecl> {
    let site = table.site().clone();
    let id = table.req_str("id", diags);
    let common = common(&mut table, diags);
    table.remaining(diags, "of a pattern");
    Some(PatternDecl {
        id: id?,
        common,
        site,
    })
}

fn common(table: &mut Table<'_>, diags: &mut Diags) -> Common {
    let mut common = Common {
        title: table.opt_str("title", diags),
        rule: table.opt_str("rule", diags),
        needs: table.str_list("needs", diags),
        gate: table.str_list("gate", diags),
        tags: table.str_list("tags", diags),
        estimate: table
            .item("estimate")
            .and_then(|item| estimate(item, diags)),
        adhoc: table.opt_bool("adhoc", diags).map(|adhoc| adhoc.value),
        retry: RetryDef::read(table, diags),
        uses: uses::read(table, diags),
        repeat: RepeatDecl::read(table, diags),
        ..Common::default()
    };
    if let Some(settings) = table.opt_table("settings", diags) {
        common.settings = settings_of(&settings, diags);
    }
    if let Some(matrix) = table.opt_table("matrix", diags) {
        common.matrix = matrix
            .entries()
            .iter()
            .filter_map(|entry| factor(entry, diags))
            .collect();
    }
    for mut table in table.tables("override", diags) {
        let when = table.req_str("when", diags);
        let settings = match table.opt_table("settings", diags) {
            Some(settings) => settings_of(&settings, diags),
            None => Vec::new(),
        };
        table.remaining(diags, "of an override");
        common
            .overrides
            .extend(when.map(|when| OverrideDecl { when, settings }));
    }
    if let Some(mut select) = table.opt_table("select", diags) {
        common.keep = select
            .opt_array("keep", diags)
            .map(|items| items.iter().filter_map(|item| pick(item, diags)).collect());
        common.drop = select
            .opt_array("drop", diags)
            .unwrap_or_default()
            .iter()
            .filter_map(|item| pick(item, diags))
            .collect();
        select.remaining(diags, "of a selection");
    }
    common.expect = table
        .item("expect")
        .and_then(|item| expectations(item, diags));
    common
}

fn settings_of(table: &Table<'_>, diags: &mut Diags) -> Vec<SettingDecl> {
    table
        .entries()
        .iter()
        .filter_map(|entry| {
            let what = format!("`{}`", entry.key.text);
            Some(SettingDecl {
                key: entry.key.clone(),
                value: entry.item.to_value(&what, diags)?,
                site: entry.item.site.clone(),
            })
        })
        .collect()
}

fn factor(entry: &Entry, diags: &mut Diags) -> Option<FactorDecl> {
    let what = format!("`{}` in a matrix", entry.key.text);
    let items = entry.item.as_array(&what, diags)?;
    if items.is_empty() {
        diags.push(
            Diagnostic::error("empty-list", format!("{what} needs at least one level"))
                .at(entry.item.site.clone(), "")
                .hint("list its levels, or take the key away"),
        );
        return None;
    }
    let levels: Vec<_> = items
        .iter()
        .map(|item| {
            Some(Spanned {
                value: item.to_value(&what, diags)?,
                site: item.site.clone(),
            })
        })
        .collect();
    Some(FactorDecl {
        key: entry.key.clone(),
        levels: levels.into_iter().collect::<Option<_>>()?,
    })
}

fn pick(item: &Item, diags: &mut Diags) -> Option<Pick> {
    match &item.value {
        ItemValue::Str(text) => Some(Pick::Where(Text {
            text: text.clone(),
            site: item.site.clone(),
        })),
        ItemValue::Table(entries) => {
            let wanted: Vec<_> = entries
                .iter()
                .map(|entry| match &entry.item.value {
                    ItemValue::Array(_) => factor(entry, diags),
                    _ => {
                        let what = format!("`{}`", entry.key.text);
                        Some(FactorDecl {
                            key: entry.key.clone(),
                            levels: vec![Spanned {
                                value: entry.item.to_value(&what, diags)?,
                                site: entry.item.site.clone(),
                            }],
                        })
                    }
                })
                .collect();
            let wanted: Vec<_> = wanted.into_iter().collect::<Option<_>>()?;
            if wanted.is_empty() {
                diags.push(
                    Diagnostic::error("empty-list", "a selected cell needs at least one key")
                        .at(item.site.clone(), ""),
                );
                return None;
            }
            Some(Pick::Cell(CellPick {
                wanted,
                site: item.site.clone(),
            }))
        }
        _ => {
            diags.push(
                item.wrong_type("a selection", "an expression or a table of settings")
                    .hint("write \"concurrency == 1\" or { concurrency = 1 }"),
            );
            None
        }
    }
}

/// A text is the class of a failure, a table is what metrics should be.
fn expectations(item: &Item, diags: &mut Diags) -> Option<ExpectDecl> {
    if let ItemValue::Str(_) = item.value {
        return item.as_text("`expect`", diags).map(ExpectDecl::Class);
    }
    let table = item.as_table("`expect`", diags)?;
    let all = table.entries().iter();
    Some(ExpectDecl::Metrics(
        all.filter_map(|entry| expectation(entry, diags)).collect(),
    ))
}

fn expectation(entry: &Entry, diags: &mut Diags) -> Option<Expectation> {
    let metric = &entry.key.text;
    let (condition, text) = match &entry.item.value {
        ItemValue::Str(text) => (expect::parse(text), text.clone()),
        ItemValue::Int(value) => (Ok(Condition::Equal(*value as f64)), value.to_string()),
        ItemValue::Float(value) if value.is_finite() => {
            (Ok(Condition::Equal(*value + 0.0)), value.to_string())
        }
        // Instruments write booleans as texts where a metric is not a number.
        ItemValue::Bool(value) => (
            Ok(Condition::OneOf(vec![value.to_string()])),
            value.to_string(),
        ),
        _ => {
            diags.push(
                entry
                    .item
                    .wrong_type(&format!("the expectation of `{metric}`"), "a text or a number")
                    .hint("write `30..40`, `< 80`, `<= 80`, `> 1`, `>= 1`, a number, or texts joined by `or`"),
            );
            return None;
        }
    };
    match condition {
        Ok(condition) => Some(Expectation {
            metric: metric.clone(),
            condition,
            text,
            site: entry.item.site.clone(),
        }),
        Err(refusal) => {
            let mut diagnostic = Diagnostic::error(
                "bad-expectation",
                format!("`{text}` is not an expectation: {}", refusal.why),
            )
            .at(entry.item.site.clone(), "");
            if let Some(write) = refusal.write {
                diagnostic = diagnostic.hint(format!("write `{write}`"));
            }
            diags.push(diagnostic.hint(
                "an expectation is `30..40`, `< 80`, `<= 80`, `> 1`, `>= 1`, a number, or texts joined by `or`",
            ));
            None
        }
    }
}

/// A text that begins as a duration must be one; any other text is an expression in seconds.
fn estimate(item: &Item, diags: &mut Diags) -> Option<EstimateDecl> {
    if let ItemValue::Str(text) = &item.value
        && crate::source::parse_duration(text).is_none()
        && text
            .chars()
            .any(|c| c.is_alphabetic() || "+-*/(".contains(c))
        && !looks_like_duration(text)
    {
        return item
            .as_text("`estimate`", diags)
            .map(EstimateDecl::Expression);
    }
    item.as_duration("`estimate`", diags)
        .map(|seconds| EstimateDecl::Seconds(seconds.value))
}

/// Whether a text is only numbers and short words in turn, as in `5 minuts`.
fn looks_like_duration(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == ' ' || c == '.')
}

fn followup(mut table: Table<'_>, diags: &mut Diags) -> Option<FollowupDecl> {
    let site = table.site().clone();
    let id = table.opt_str("id", diags);
    let across = table.opt_str("across", diags);
    let patterns = table.req("patterns", diags);
    let patterns = patterns.map(|item| item.as_texts("`patterns`", diags));
    let when = table.req_str("when", diags);
    let budget_s = table
        .opt_duration("budget", diags)
        .map(|seconds| seconds.value);
    table.remaining(diags, "of a follow-up");
    Some(FollowupDecl {
        id,
        across,
        patterns: patterns?,
        when: when?,
        budget_s,
        site,
    })
}

fn compare(mut table: Table<'_>, diags: &mut Diags) -> Option<CompareDecl> {
    let site = table.site().clone();
    let id = table.req_str("id", diags);
    let title = table.opt_str("title", diags);
    let between = table.req("between", diags);
    let between = between.map(|item| item.as_texts("`between`", diags));
    let by = table.req("by", diags);
    let by = by.map(|item| item.as_texts("`by`", diags));
    let only_on = table.str_list("only_on", diags);
    table.remaining(diags, "of a comparison");
    Some(CompareDecl {
        id: id?,
        title,
        between: between?,
        by: by?,
        only_on,
        site,
    })
}
