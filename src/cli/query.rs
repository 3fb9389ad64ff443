//! `doe query`: what depends on what.

use clap::{Args, Subcommand};

use super::args::{Global, Targets};
use super::out::Out;
use super::session;
use crate::error::Result;
use crate::query::{Direction, walk as walk_from};

/// Ask the graph: what depends on what
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe query deps //phase2:L4\n  doe query rdeps //phase2:p2-efa-4k-c1 --direct"
)]
pub struct QueryArgs {
    /// The question.
    #[command(subcommand)]
    pub question: Question,
}

/// A question to the graph.
#[derive(Debug, Subcommand)]
pub enum Question {
    /// What the targets need, themselves included
    Deps(Walk),
    /// What needs the targets, themselves included
    Rdeps(Walk),
}

/// How far to walk.
#[derive(Debug, Args)]
pub struct Walk {
    /// From where.
    #[command(flatten)]
    pub targets: Targets,
    /// One step only, the targets themselves left out
    #[arg(long)]
    pub direct: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &QueryArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let store = session::store(&workspace)?;
    let decider = session::decider(&graph, session::platform(global, &workspace)?, &store)?;
    let (walk, direction) = match &args.question {
        Question::Deps(walk) => (walk, Direction::Needs),
        Question::Rdeps(walk) => (walk, Direction::NeededBy),
    };
    let seeds = session::targets(&graph, &walk.targets.targets, &decider, &store)?;
    let found = walk_from(&graph, &seeds, direction, walk.direct);
    let labels: Vec<String> = found.iter().map(|&n| graph.label(n).to_string()).collect();
    if out.json {
        out.json(&labels)?;
    } else {
        for label in labels {
            out.line(label)?;
        }
    }
    Ok(0)
}
