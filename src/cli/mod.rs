//! One file a command: typed arguments become a request, the engine answers, and only this room
//! prints or knows a terminal.

mod analyze;
mod args;
mod attach;
mod build;
mod cache;
mod cancel;
mod check;
mod completions;
mod diagnose;
mod driving;
mod explain;
mod facts;
mod fleet;
mod graph;
pub mod import;
mod init;
mod jobs;
mod list;
mod log;
mod logs;
mod looking;
mod measure;
mod mirror;
mod out;
mod parse;
mod plan;
mod probe;
mod proxy;
mod query;
mod recall;
mod results;
mod session;
mod sim;
mod stamp;
mod status;

use std::io::Write;
use std::process::ExitCode;

use args::{Cli, Command, Global};
use out::Out;

use crate::engine::monitor::STAMP_COMMAND;
use crate::exec::reaper::{REAPER_COMMAND, reaper_main};
use crate::exec::session::{SESSION_COMMAND, session_main};

/// Parses the command line, runs the command and maps the outcome to an exit code.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let Some(code) = hidden() {
        return code;
    }
    let words: Vec<String> = words.into_iter().map(args::subtraction).collect();
    let cli = match Cli::of(&words) {
        Ok(cli) => cli,
        Err(error) => return args::refuse(&error),
    };
    let Cli { global, command } = cli;
    let mut out = Out::new(global.color, global.json);
    let outcome = run(&global, command, &mut out);
    let outcome = outcome.and_then(|code| {
        out::leave_with(code);
        match out.flush() {
            // What went wrong goes before what could not be told.
            Err(_) if code != 0 => Ok(code),
            flushed => flushed.map(|()| code),
        }
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            diagnose::report(&mut out, &error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// What executors run this program as: not commands, so they are looked at before the parser.
fn hidden() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    let outcome = if command == SESSION_COMMAND {
        session_main(arguments)
    } else if command == REAPER_COMMAND {
        reaper_main(arguments)
    } else if command == STAMP_COMMAND {
        stamp::stamp_main()
    } else {
        return None;
    };
    Some(match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "doe: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    })
}

fn run(global: &Global, command: Command, out: &mut Out) -> crate::error::Result<u8> {
    match command {
        Command::Build(args) => build::run(global, &args, out),
        Command::Plan(args) => recall::through(global, out, |out| plan::run(global, &args, out)),
        Command::Check(args) => recall::through(global, out, |out| check::run(global, &args, out)),
        Command::Explain(args) => explain::run(global, &args, out),
        Command::Status(args) => {
            recall::through(global, out, |out| status::run(global, &args, out))
        }
        Command::List(args) => list::run(global, &args, out),
        Command::Query(args) => query::run(global, &args, out),
        Command::Graph(args) => graph::run(global, &args, out),
        Command::Results(args) => results::run(global, &args, out),
        Command::Logs(args) => logs::run(global, &args, out),
        Command::Log(args) => log::run(global, &args, out),
        Command::Jobs(args) => jobs::run(global, &args, out),
        Command::Attach(args) => attach::run(global, &args, out),
        Command::Cancel(args) => cancel::run(global, &args, out),
        Command::Cache(args) => cache::run(global, &args, out),
        Command::Init(args) => init::run(global, &args, out),
        Command::Import(args) => {
            let (root, options) = session::place(global)?;
            import::run(&args, global.json, &root, &options, out).map(|_| 0)
        }
        Command::Measure(args) => measure::run(args).map(|()| 0),
        Command::Proxy(args) => proxy::run(args).map(|()| 0),
        Command::Parse(args) => parse::run(&args),
        Command::Analyze(args) => analyze::run(&args, out),
        Command::Sim(args) => sim::run(&args),
        Command::Probe(args) => probe::run(global, &args, out),
        Command::Completions(args) => completions::run(&args, out),
    }
}
