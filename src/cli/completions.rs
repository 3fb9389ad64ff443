//! `doe completions`: shell completions.

use clap::{Args, CommandFactory};

use super::args::Cli;
use super::out::Out;
use crate::error::Result;

/// Print shell completions
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  doe completions bash > ~/.local/share/bash-completion/completions/doe"
)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs, out: &mut Out) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "doe", &mut script);
    out.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(0)
}
