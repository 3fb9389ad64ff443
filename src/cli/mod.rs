//! One file a command: typed arguments become a request, the engine answers, and only this room prints or knows a terminal.

pub mod import;
pub mod measure;
pub mod parse;
pub mod proxy;

use std::process::ExitCode;

/// Parses the command line, runs the command and maps the outcome to an exit code.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
