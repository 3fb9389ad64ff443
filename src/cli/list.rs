//! `doe list`: labels, as a table for people, one a line for scripts, or as JSON.

use clap::Args;
use serde_json::json;

use super::args::{Global, Targets};
use super::out::Out;
use super::session;
use crate::error::Result;

/// List labels
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe list //phase2/...\n  doe list //phase2:L2 --format label | wc -l"
)]
pub struct ListArgs {
    /// What to list.
    #[command(flatten)]
    pub targets: Targets,
    /// How: a table, or one label a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// How to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table with layer, rule, tags and factors.
    Table,
    /// One label a line.
    Label,
}

/// Runs the command.
pub fn run(global: &Global, args: &ListArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let decider = session::decider(&graph, session::platform(global, &workspace)?, &store)?;
    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    if out.json {
        let items: Vec<_> = nodes
            .iter()
            .map(|&node| {
                let pattern = graph.pattern(node);
                json!({
                    "label": pattern.label.to_string(),
                    "layer": graph.layer(node).label.to_string(),
                    "rule": pattern.rule.id.to_string(),
                    "adhoc": pattern.adhoc,
                    "tags": &*pattern.tags,
                    "factors": pattern.factors.iter().filter_map(|name| {
                        Some((name.to_string(), pattern.settings.get(name)?.value.to_json()))
                    }).collect::<serde_json::Map<_, _>>(),
                })
            })
            .collect();
        out.json(&items)?;
        return Ok(0);
    }
    if args.format == Format::Label {
        for node in nodes {
            out.line(graph.label(node))?;
        }
        return Ok(0);
    }
    let mut table = super::out::table(["label", "layer", "rule", "factors", "tags"]);
    for node in nodes {
        let pattern = graph.pattern(node);
        let factors: Vec<String> = pattern
            .factors
            .iter()
            .filter_map(|name| Some(format!("{name}={}", pattern.settings.get(name)?.value)))
            .collect();
        let mut tags: Vec<&str> = pattern.tags.iter().map(String::as_str).collect();
        if pattern.adhoc {
            tags.push("(ad hoc)");
        }
        table.add_row([
            pattern.label.to_string(),
            graph.layer(node).label.name().to_string(),
            pattern.rule.id.to_string(),
            factors.join(" "),
            tags.join(" "),
        ]);
    }
    out.line(table)?;
    Ok(0)
}
