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
    clap_complete::generate(args.shell, &mut Cli::command(), "doe", out);
    Ok(0)
}
