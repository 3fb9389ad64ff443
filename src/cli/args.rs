//! The command line as types. Words that subtract (`-//plan:layer`) are told from flags before
//! the parser sees them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use doe_cache::remote::RemoteMode;

use super::out::Color;
use crate::label::Selector;

/// Declarative, incremental measurement campaigns: every pattern is a content-hashed node, and
/// only what changed or failed runs again.
#[derive(Debug, Parser)]
#[command(name = "doe", version, max_term_width = 100, arg_required_else_help = true, after_help = AFTER)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
Targets: //plan:pattern, //plan:layer, //plan:all (without ad-hoc), //plan/..., //..., #tag, @failed, @stale;
a leading `-` takes away: doe build //... -//phase2:L5-LowLevel

Examples:
  doe check //...                    is everything that was written sound?
  doe plan //phase2:all              what would run, and why
  doe build //phase2:L2-EFA          run what is not up to date
  doe results //phase2:all           the numbers
  doe explain //phase2:p2-efa-4k-c1  why it would run, field by field

Exit codes: 0 ok, 1 a node failed, 2 usage, 3 plan invalid, 4 infrastructure, 5 lock held,
6 not up to date, 7 cache integrity, 70 bug, 130 interrupted.";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Folder with doe.toml (default: the nearest one upwards)
    #[arg(long, global = true, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// Platform to run on (default: the workspace's)
    #[arg(long, global = true, value_name = "NAME")]
    pub platform: Option<String>,
    /// Override a setting wherever a rule has it, for example --set max_tokens=64
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// What to do with the mirror: off, r (take results), rw (take and send them)
    #[arg(long, global = true, value_name = "MODE", value_parser = remote_mode)]
    pub remote_cache: Option<RemoteMode>,
    /// Machine-readable output
    #[arg(long, global = true)]
    pub json: bool,
    /// Work everything out anew, whatever was answered before
    #[arg(long, global = true, alias = "no-snapshot")]
    pub no_recall: bool,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run what is not up to date
    Build(super::build::BuildArgs),
    /// Show what would run, what may run and what is reused, and why
    Plan(super::plan::PlanArgs),
    /// Check plans, rules and the graph without a cluster
    Check(super::check::CheckArgs),
    /// Say why a pattern would run again, field by field
    Explain(super::explain::ExplainArgs),
    /// Show the state of every pattern
    Status(Targets),
    /// List labels
    List(super::list::ListArgs),
    /// Ask the graph: what depends on what
    Query(super::query::QueryArgs),
    /// Draw the graph
    Graph(super::graph::GraphArgs),
    /// Show the numbers
    Results(super::results::ResultsArgs),
    /// Show the logs of a pattern's last attempt
    Logs(super::logs::LogsArgs),
    /// Read what runs told: show, replay, what ran, what failed, how two differ
    Log(super::log::LogArgs),
    /// Show what runs now, for which run, where and since when
    Jobs(super::jobs::JobsArgs),
    /// Follow a running build, or what a running pattern writes
    Attach(super::attach::AttachArgs),
    /// Cancel a running pattern, or everything
    Cancel(super::cancel::CancelArgs),
    /// Read what the hosts of a platform are, now
    Probe(super::probe::ProbeArgs),
    /// Look into the store
    Cache(super::cache::CacheArgs),
    /// Write a small workspace that runs
    Init(super::init::InitArgs),
    /// Turn a plan of the predecessor (JSON) into a plan of ours (TOML)
    Import(super::import::Args),
    /// Measure a server (instrument, called by rules)
    Measure(super::measure::MeasureArgs),
    /// Put prefill and decode servers behind one address (instrument, called by rules)
    Proxy(super::proxy::ProxyArgs),
    /// Read the output of a tool strictly (instrument, called by rules)
    Parse(super::parse::ParseArgs),
    /// Compute an analysis from finished results (instrument, called by rules)
    Analyze(super::analyze::AnalyzeArgs),
    /// Be one of the simulated external tools
    #[command(disable_help_flag = true)]
    Sim(super::sim::SimArgs),
    /// Print shell completions
    Completions(super::completions::CompletionsArgs),
}

impl Cli {
    /// The command line as these words have it.
    ///
    /// # Errors
    /// What is wrong with them, or that only help was asked for.
    pub fn of(words: &[String]) -> Result<Self, clap::Error> {
        Brief::try_parse_from(words)
            .map_or_else(|_| Self::try_parse_from(words), |it| Ok(it.into()))
    }
}

/// The commands that are repeated most. To make a parser of all of them takes a sixth of a build with
/// nothing to do, so this one comes first; what it does not take is for the other to tell.
#[derive(Debug, Parser)]
struct Brief {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Often,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Often {
    Build(super::build::BuildArgs),
    Plan(super::plan::PlanArgs),
    Check(super::check::CheckArgs),
    Status(Targets),
}

impl From<Brief> for Cli {
    fn from(Brief { global, command }: Brief) -> Self {
        let command = match command {
            Often::Build(args) => Command::Build(args),
            Often::Plan(args) => Command::Plan(args),
            Often::Check(args) => Command::Check(args),
            Often::Status(args) => Command::Status(args),
        };
        Self { global, command }
    }
}

/// A list of targets.
#[derive(Debug, Args)]
pub struct Targets {
    /// What: //plan:all, //plan:layer, //plan:pattern, //..., #tag, @failed, @stale
    #[arg(value_name = "TARGET", default_value = "//...", value_parser = selector)]
    pub targets: Vec<Selector>,
}

/// `off`, `r` or `rw`.
fn remote_mode(word: &str) -> Result<RemoteMode, String> {
    word.parse()
        .map_err(|error: doe_cache::Error| error.to_string())
}

/// What to do when another `doe` holds the workspace.
#[derive(Debug, Args)]
pub struct Waiting {
    /// Wait for another doe that holds the workspace; with a time (90, 15m) at most so long, with 0
    /// not at all (default: builds wait, all others give up after two seconds)
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = waiting)]
    pub wait: Option<Wait>,
}

impl Waiting {
    /// As builds have it: they wait for each other unless they are told not to.
    pub fn of_build(&self) -> Self {
        let wait = self.wait.or(Some(Wait(None)));
        Self { wait }
    }
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Wait(pub Option<std::time::Duration>);

fn waiting(text: &str) -> Result<Wait, String> {
    if text.is_empty() {
        return Ok(Wait(None));
    }
    let seconds = text
        .parse::<u32>()
        .ok()
        .map(|s| std::time::Duration::from_secs(s.into()));
    let limit = seconds.map_or_else(
        || humantime::parse_duration(text).map_err(|e| e.to_string()),
        Ok,
    )?;
    Ok(Wait(Some(limit)))
}

/// A target, with the hints of a wrong one.
pub fn selector(word: &str) -> Result<Selector, String> {
    word.parse().map_err(|error: crate::error::Error| {
        let hints = error.hints.iter().map(|hint| format!("\n  hint: {hint}"));
        hints.fold(error.to_string(), |text, hint| text + &hint)
    })
}

/// `-//phase2:L3` is a target that takes away, not a flag: told by its second character.
pub fn subtraction(word: String) -> String {
    match word.strip_prefix('-') {
        Some(rest) if rest.starts_with("//") || rest.starts_with(['#', '@']) => format!("!{rest}"),
        _ => word,
    }
}

/// Prints the parser's own answer: help and version are no errors.
pub fn refuse(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brief_parser_takes_what_the_whole_one_takes_and_nothing_else() {
        let lines = [
            ("doe build", true),
            (
                "doe --json build //a:b //c/... --jobs 4 --set x=1 --set y=2 --wait=15m",
                true,
            ),
            (
                "doe build --workspace w --platform p --color never --no-recall -- //a:b",
                true,
            ),
            ("doe plan //... --remote-cache r", true),
            ("doe check", true),
            ("doe status #tag --json", true),
            ("doe buidl", false),
            ("doe build --jobs 0", false),
            ("doe build --help", false),
            ("doe help build", false),
            ("doe --version", false),
            ("doe", false),
            ("doe cache ls", false),
        ];
        for (line, brief) in lines {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let whole = Cli::try_parse_from(&words).map(|cli| format!("{cli:?}"));
            let first = Brief::try_parse_from(&words).map(|it| format!("{:?}", Cli::from(it)));
            assert_eq!(first.is_ok(), brief, "{line}");
            let taken = Cli::of(&words).map(|cli| format!("{cli:?}"));
            match (&first, whole) {
                (Ok(first), whole) => assert_eq!(*first, whole.unwrap(), "{line}"),
                (Err(_), whole) => assert_eq!(
                    taken.map_err(|e| e.to_string()),
                    whole.map_err(|e| e.to_string())
                ),
            }
        }
    }
}
