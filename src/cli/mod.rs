//! One file a command: typed arguments become a request, the engine answers, and only this room prints or knows a terminal.

use std::io::Write;
use std::process::ExitCode;

use crate::exec::reaper::{REAPER_COMMAND, reaper_main};
use crate::exec::session::{SESSION_COMMAND, session_main};

/// Parses the command line, runs the command and maps the outcome to an exit code.
pub fn main() -> ExitCode {
    if let Some(code) = hidden() {
        return code;
    }
    ExitCode::SUCCESS
}

/// Commands that `doe` runs itself as; they are looked at before anything else.
fn hidden() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    let outcome = if command == SESSION_COMMAND {
        session_main(arguments)
    } else if command == REAPER_COMMAND {
        reaper_main(arguments)
    } else {
        return None;
    };
    Some(match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "doe: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    })
}
