//! `doe sim`: this process becomes one of the simulated external tools.

use clap::Args;

use crate::error::Result;
use crate::measure::sim::sim_main;

/// Be one of the simulated external tools
#[derive(Debug, Args)]
pub struct SimArgs {
    /// The tool's name
    pub tool: String,
    /// The tool's own arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Runs the command.
pub fn run(args: &SimArgs) -> Result<u8> {
    sim_main(&args.tool, args.args.clone())
}
