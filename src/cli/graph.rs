//! `doe graph`: the graph as a picture's source or as data.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::json;

use super::args::{Global, Targets};
use super::out::Out;
use super::session;
use crate::error::Result;
use crate::graph::{EdgeKind, Graph, NodeId};

/// Draw the graph
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe graph //phase2/... | dot -Tsvg > phase2.svg\n  doe graph //phase2/... --format mermaid --layers"
)]
pub struct GraphArgs {
    /// What to draw.
    #[command(flatten)]
    pub targets: Targets,
    /// For graphviz, for programs, or for Markdown
    #[arg(long, value_enum, default_value_t = Format::Dot)]
    pub format: Format,
    /// One vertex a layer instead of one a pattern
    #[arg(long)]
    pub layers: bool,
}

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Graphviz.
    Dot,
    /// `{nodes, edges}`.
    Json,
    /// Mermaid flowchart.
    Mermaid,
}

/// Vertices with their cluster, and edges between positions.
struct Picture {
    vertices: Vec<(String, String)>,
    edges: BTreeSet<(usize, usize, EdgeKind)>,
}

/// Runs the command.
pub fn run(global: &Global, args: &GraphArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let decider = session::decider(&graph, session::platform(global, &workspace)?, &store)?;
    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    let picture = draw(&graph, &nodes, args.layers);
    let format = if out.json { Format::Json } else { args.format };
    match format {
        Format::Json => {
            let kind = |k: EdgeKind| match k {
                EdgeKind::Data => "data",
                EdgeKind::Gate => "gate",
                EdgeKind::Series => "series",
            };
            out.json(&json!({
                "nodes": picture.vertices.iter().map(|(label, layer)| json!({"label": label, "layer": layer})).collect::<Vec<_>>(),
                "edges": picture.edges.iter().map(|(from, to, k)| json!({
                    "from": picture.vertices[*from].0, "to": picture.vertices[*to].0, "kind": kind(*k),
                })).collect::<Vec<_>>(),
            }))?;
        }
        Format::Dot => dot(out, &picture)?,
        Format::Mermaid => mermaid(out, &picture)?,
    }
    Ok(0)
}

fn draw(graph: &Graph<'_>, nodes: &[NodeId], layers: bool) -> Picture {
    let name = |n: NodeId| {
        let layer = graph.layer(n).label.to_string();
        if layers {
            (layer.clone(), layer)
        } else {
            (graph.label(n).to_string(), layer)
        }
    };
    let mut vertices: Vec<(String, String)> = Vec::new();
    let mut at = std::collections::HashMap::new();
    for &node in nodes {
        let vertex = name(node);
        at.entry(vertex.0.clone()).or_insert_with(|| {
            vertices.push(vertex);
            vertices.len() - 1
        });
    }
    let mut edges = BTreeSet::new();
    for &node in nodes {
        for (dep, kind) in graph.deps(node) {
            if let (Some(&from), Some(&to)) = (at.get(&name(dep).0), at.get(&name(node).0))
                && from != to
            {
                edges.insert((from, to, kind));
            }
        }
    }
    Picture { vertices, edges }
}

fn dot(out: &mut Out, picture: &Picture) -> Result<()> {
    out.line(
        "digraph doe {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\", fontsize=10];",
    )?;
    let layers: BTreeSet<&String> = picture.vertices.iter().map(|(_, layer)| layer).collect();
    for (number, layer) in layers.into_iter().enumerate() {
        out.line(format!(
            "  subgraph cluster_{number} {{\n    label=\"{layer}\";"
        ))?;
        for (at, (label, _)) in picture
            .vertices
            .iter()
            .enumerate()
            .filter(|(_, v)| v.1 == *layer)
        {
            out.line(format!("    n{at} [label=\"{label}\"];"))?;
        }
        out.line("  }")?;
    }
    for (from, to, kind) in &picture.edges {
        let style = if *kind != EdgeKind::Data {
            " [style=dashed]"
        } else {
            ""
        };
        out.line(format!("  n{from} -> n{to}{style};"))?;
    }
    out.line("}")
}

fn mermaid(out: &mut Out, picture: &Picture) -> Result<()> {
    out.line("flowchart LR")?;
    for (at, (label, _)) in picture.vertices.iter().enumerate() {
        out.line(format!("  n{at}[\"{label}\"]"))?;
    }
    for (from, to, kind) in &picture.edges {
        let arrow = if *kind != EdgeKind::Data {
            "-.->"
        } else {
            "-->"
        };
        out.line(format!("  n{from} {arrow} n{to}"))?;
    }
    Ok(())
}
