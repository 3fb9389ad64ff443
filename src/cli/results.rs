//! `doe results`: the numbers that stand for each pattern, with what must be known to read them:
//! whether they are up to date, valid, simulated.

mod over;

use std::collections::BTreeSet;

use clap::Args;
use doe_cache::Record;
use serde_json::json;

use super::args::{Global, Targets};
use super::out::Out;
use super::session;
use crate::engine::decide::Decision;
use crate::engine::followup;
use crate::error::{Error, Kind, Result};

/// Show the numbers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe results //phase2:all\n  doe results //phase2:L2 --format csv --metric ttft_median_ms > l2.csv"
)]
pub struct ResultsArgs {
    /// Whose numbers.
    #[command(flatten)]
    pub targets: Targets,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Only these metrics (repeatable); default: all in CSV and JSON, the main ones in the table
    #[arg(long = "metric", value_name = "NAME")]
    pub metrics: Vec<String>,
    /// One row a pattern: the mean over its replicates, and how well it is known
    #[arg(long)]
    pub over_replicates: bool,
}

/// How to print results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for each rule.
    Table,
    /// One row a pattern.
    Csv,
    /// A list of objects.
    Json,
}

struct Row {
    label: String,
    rule: String,
    state: &'static str,
    record: Option<Record>,
}

/// Runs the command.
pub fn run(global: &Global, args: &ResultsArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let decider = session::decider(&graph, session::platform(global, &workspace)?, &store)?;
    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    let plan = decider.plan(&nodes)?;
    let mut rows = Vec::new();
    for &node in &nodes {
        let label = graph.label(node).to_string();
        let current = match plan.iter().find(|(n, _)| *n == node) {
            // As they were defined before.
            Some((_, decision @ Decision::Reuse { record, .. })) if decision.is_read_anew() => {
                Some((*record, "stale"))
            }
            Some((_, Decision::Reuse { record, .. })) => Some((*record, "current")),
            _ => decider
                .snapshot()
                .current(&label)
                .map(|summary| (summary.record, "stale")),
        };
        rows.push(Row {
            rule: graph.pattern(node).rule.id.to_string(),
            state: current.map_or("missing", |(_, state)| state),
            record: match current {
                None => None,
                // Somebody deleted it by hand.
                Some((digest, "stale")) if !store.layout().record(&digest).is_file() => None,
                Some((digest, state)) => {
                    let mut record = store.record(&digest)?;
                    if state == "current" {
                        // As it is expected now, which need not be as it was when it was judged.
                        let judged = decider.criterion_of(node, || Ok(record.clone()))?;
                        record.verdicts.criterion = judged;
                        // It may have been recorded for another pattern that comes to the same.
                        let pattern = graph.pattern(node);
                        record.settings = pattern.settings.plain();
                        record.exploratory = pattern.adhoc;
                    }
                    Some(record)
                }
            },
            label,
        });
    }
    for row in rows.iter_mut().filter(|row| row.record.is_none()) {
        row.state = "missing";
    }
    let format = if out.json { Format::Json } else { args.format };
    if args.over_replicates {
        over::print(out, &rows, format, &args.metrics)?;
        return Ok(0);
    }
    match format {
        Format::Json => as_json(out, &rows, &args.metrics)?,
        Format::Csv => as_csv(out, &rows, &args.metrics)?,
        Format::Table => as_table(out, &rows, &args.metrics)?,
    }
    Ok(0)
}

fn wanted(names: &[String], metric: &str) -> bool {
    names.is_empty() || names.iter().any(|n| n == metric)
}

fn as_json(out: &mut Out, rows: &[Row], metrics: &[String]) -> Result<()> {
    let list: Vec<_> = rows
        .iter()
        .map(|row| match &row.record {
            None => json!({"label": row.label, "rule": row.rule, "state": row.state}),
            Some(record) => json!({
                "label": row.label, "rule": row.rule, "state": row.state,
                "simulated": record.provenance.simulated,
                "exploratory": record.exploratory,
                "followup": followup::cause_in(record),
                "validity": record.verdicts.validity.status,
                "criterion": record.verdicts.criterion,
                "metrics": record.metrics.iter().filter(|(n, _)| wanted(metrics, n)).collect::<std::collections::BTreeMap<_, _>>(),
                "texts": record.texts,
                "settings": record.settings,
                "run_id": record.run_id,
                "class": record.verdicts.execution.class,
                "attempt": record.attempt,
                "attempts": record.attempts,
                "ended_unix_ms": record.timings.ended_unix_ms,
            }),
        })
        .collect();
    out.json(&list)
}

fn as_csv(out: &mut Out, rows: &[Row], metrics: &[String]) -> Result<()> {
    let names: BTreeSet<&String> = rows
        .iter()
        .filter_map(|row| row.record.as_ref())
        .flat_map(|record| record.metrics.keys())
        .filter(|name| wanted(metrics, name))
        .collect();
    let failed = |e: csv::Error| Error::new(Kind::Infra, "output", "could not write CSV").cause(e);
    let mut writer = csv::Writer::from_writer(out);
    let fixed = [
        "label",
        "rule",
        "state",
        "simulated",
        "validity",
        "criterion",
        "exploratory",
    ];
    let header = fixed.into_iter().chain(names.iter().map(|n| n.as_str()));
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        let mut cells = vec![row.label.clone(), row.rule.clone(), row.state.to_string()];
        match &row.record {
            None => cells.extend(["", "", "", ""].map(String::from)),
            Some(record) => cells.extend([
                record.provenance.simulated.to_string(),
                record.verdicts.validity.status.to_string(),
                record.verdicts.criterion.status.to_string(),
                record.exploratory.to_string(),
            ]),
        }
        for name in &names {
            let metric = row.record.as_ref().and_then(|r| r.metrics.get(*name));
            cells.push(metric.map_or(String::new(), |m| m.value.to_string()));
        }
        writer.write_record(&cells).map_err(failed)?;
    }
    writer
        .flush()
        .map_err(|e| Error::new(Kind::Infra, "output", "could not write CSV").cause(e))
}

/// One table a rule, as rules have different metrics. Units stand in the header.
pub fn as_table_of(out: &mut Out, records: &[(String, Record)]) -> Result<()> {
    let rows: Vec<Row> = records
        .iter()
        .map(|(label, record)| Row {
            label: label.clone(),
            rule: record.rule.clone(),
            state: "current",
            record: Some(record.clone()),
        })
        .collect();
    as_table(out, &rows, &[])
}

fn as_table(out: &mut Out, rows: &[Row], metrics: &[String]) -> Result<()> {
    let mut rules: Vec<&String> = Vec::new();
    for row in rows {
        if !rules.contains(&&row.rule) {
            rules.push(&row.rule);
        }
    }
    for rule in rules {
        let of: Vec<&Row> = rows.iter().filter(|r| r.rule == *rule).collect();
        let mut names: Vec<(&String, &String)> = Vec::new();
        for record in of.iter().filter_map(|r| r.record.as_ref()) {
            for (name, metric) in record.metrics.iter().filter(|(n, _)| wanted(metrics, n)) {
                if !names.iter().any(|(n, _)| *n == name) {
                    names.push((name, &metric.unit));
                }
            }
        }
        let texts: BTreeSet<&String> = of
            .iter()
            .filter_map(|r| r.record.as_ref())
            .flat_map(|r| r.texts.keys())
            .filter(|name| wanted(metrics, name))
            .collect();
        let mut table = super::out::table([]);
        let header = ["label".to_string(), "state".to_string()]
            .into_iter()
            .chain(names.iter().map(|(name, unit)| heading(name, unit)))
            .chain(texts.iter().map(|name| (*name).clone()));
        table.set_header(header);
        for row in of {
            let simulated = row.record.as_ref().is_some_and(|r| r.provenance.simulated);
            let mut state = row.state.to_string();
            if simulated {
                state.push_str(", simulated");
            }
            if row.record.as_ref().is_some_and(|r| r.exploratory) {
                state.push_str(", exploratory");
            }
            if let Some(record) = &row.record {
                if let Some(of) = record.attempts {
                    state.push_str(&format!(", attempt {} of {of}", record.attempt));
                }
                // A failure that is the result.
                if let Some(class) = &record.verdicts.execution.class {
                    state.push_str(&format!(", {class}"));
                }
            }
            let mut cells = vec![row.label.clone(), state];
            for (name, _) in &names {
                let metric = row.record.as_ref().and_then(|r| r.metrics.get(*name));
                cells.push(metric.map_or("-".to_string(), |m| significant(m.value)));
            }
            for name in &texts {
                let text = row.record.as_ref().and_then(|r| r.texts.get(*name));
                cells.push(text.cloned().unwrap_or("-".to_string()));
            }
            table.add_row(cells);
        }
        out.line(out.paint("1", rule))?;
        out.line(table)?;
        out.line("")?;
    }
    Ok(())
}

/// The unit, unless the name already ends in it.
fn heading(name: &str, unit: &str) -> String {
    let suffix = unit.to_lowercase().replace('/', "_per_");
    if unit.is_empty() || unit == "1" || name.ends_with(&format!("_{suffix}")) {
        name.to_string()
    } else {
        format!("{name} [{unit}]")
    }
}

/// Four significant digits: enough to compare, few enough to read.
fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (123456.7, "123457"),
            (12.3456, "12.35"),
            (0.00123456, "0.001235"),
            (-5.5, "-5.5"),
        ] {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn a_unit_is_said_once() {
        assert_eq!(heading("ttft_median_ms", "ms"), "ttft_median_ms");
        assert_eq!(
            heading("output_tokens_per_s", "tokens/s"),
            "output_tokens_per_s"
        );
        assert_eq!(heading("throughput", "tokens/s"), "throughput [tokens/s]");
        assert_eq!(heading("gpu_compute_ratio", "1"), "gpu_compute_ratio");
    }
}
