//! `doe results --over-replicates`: one row a pattern, each metric as the mean of its replicates
//! with the half width of its interval. Only current results count, and one replicate has no spread.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::out::{Out, table};
use super::{Format, Row, heading, significant, wanted};
use crate::analysis::summary::Summary;
use crate::error::{Error, Kind, Result};
use crate::label::Label;

/// Replicates of one pattern.
struct Group {
    label: String,
    rule: String,
    simulated: bool,
    replicates: usize,
    /// Values and unit by metric.
    metrics: BTreeMap<String, (String, Vec<f64>)>,
}

/// Prints the groups of these rows, which stand in the order of the files.
pub(super) fn print(out: &mut Out, rows: &[Row], format: Format, metrics: &[String]) -> Result<()> {
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let label: Label = row.label.parse()?;
        let base = label.replicate(1).to_string();
        if groups.last().is_none_or(|group| group.label != base) {
            groups.push(Group {
                label: base,
                rule: row.rule.clone(),
                simulated: false,
                replicates: 0,
                metrics: BTreeMap::new(),
            });
        }
        let (Some(record), Some(group)) = (&row.record, groups.last_mut()) else {
            continue;
        };
        if row.state != "current" {
            continue;
        }
        group.replicates += 1;
        group.simulated |= record.provenance.simulated;
        for (name, metric) in record.metrics.iter().filter(|(n, _)| wanted(metrics, n)) {
            let entry = group.metrics.entry(name.clone());
            let (_, values) = entry.or_insert_with(|| (metric.unit.clone(), Vec::new()));
            values.push(metric.value);
        }
    }
    match format {
        Format::Table => as_table(out, &groups),
        Format::Json => {
            let all: Result<Vec<Value>> = groups.iter().map(as_json).collect();
            out.json(&all?)
        }
        Format::Csv => as_csv(out, &groups),
    }
}

fn half_width(summary: &Summary) -> Option<f64> {
    Some((summary.mean_ci95_high? - summary.mean_ci95_low?) / 2.0)
}

fn as_json(group: &Group) -> Result<Value> {
    let mut metrics = serde_json::Map::new();
    for (name, (unit, values)) in &group.metrics {
        let summary = Summary::named(name, values)?;
        metrics.insert(
            name.clone(),
            json!({
                "unit": unit, "n": summary.n, "mean": summary.mean, "stdev": summary.stdev,
                "half_width_95": half_width(&summary), "min": summary.min, "max": summary.max,
            }),
        );
    }
    Ok(json!({
        "label": group.label, "rule": group.rule, "replicates": group.replicates,
        "simulated": group.simulated, "metrics": metrics,
    }))
}

fn as_csv(out: &mut Out, groups: &[Group]) -> Result<()> {
    let failed = |e: csv::Error| Error::new(Kind::Infra, "output", "could not write CSV").cause(e);
    let mut writer = csv::Writer::from_writer(out);
    let head = [
        "label",
        "rule",
        "simulated",
        "metric",
        "unit",
        "n",
        "mean",
        "stdev",
        "half_width_95",
    ];
    writer.write_record(head).map_err(failed)?;
    for group in groups {
        for (name, (unit, values)) in &group.metrics {
            let summary = Summary::named(name, values)?;
            let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
            let row = [
                group.label.clone(),
                group.rule.clone(),
                group.simulated.to_string(),
                name.clone(),
                unit.clone(),
                summary.n.to_string(),
                summary.mean.to_string(),
                number(summary.stdev),
                number(half_width(&summary)),
            ];
            writer.write_record(&row).map_err(failed)?;
        }
    }
    let flushed = writer.flush();
    flushed.map_err(|e| Error::new(Kind::Infra, "output", "could not write CSV").cause(e))
}

fn as_table(out: &mut Out, groups: &[Group]) -> Result<()> {
    let mut rules: Vec<&String> = Vec::new();
    for group in groups {
        if !rules.contains(&&group.rule) {
            rules.push(&group.rule);
        }
    }
    for rule in rules {
        let of: Vec<&Group> = groups.iter().filter(|g| g.rule == *rule).collect();
        let mut names: BTreeMap<&String, &String> = BTreeMap::new();
        for group in &of {
            names.extend(group.metrics.iter().map(|(name, (unit, _))| (name, unit)));
        }
        let mut rows = table([]);
        let head = ["label".to_owned(), "replicates".to_owned()].into_iter();
        rows.set_header(head.chain(names.iter().map(|(name, unit)| heading(name, unit))));
        for group in of {
            let simulated = if group.simulated { ", simulated" } else { "" };
            let mut cells = vec![
                group.label.clone(),
                format!("{}{simulated}", group.replicates),
            ];
            for name in names.keys() {
                cells.push(match group.metrics.get(*name) {
                    None => "-".to_owned(),
                    Some((_, values)) => {
                        let summary = Summary::named(name, values)?;
                        let mean = significant(summary.mean);
                        match half_width(&summary) {
                            Some(half) => format!("{mean} ± {}", significant(half)),
                            None => mean,
                        }
                    }
                });
            }
            rows.add_row(cells);
        }
        out.line(out.paint("1", rule))?;
        out.line(rows)?;
        out.line("")?;
    }
    out.line("mean ± half width of its 95 % t interval over replicates")
}
