//! `doe measure`: runs an instrument and writes its result file. The result goes to the named
//! file and only there; the terminal gets one line, and a run without a single success fails.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::error::{Error, Kind, Result};
use crate::measure::load::{self, Api, Loop, Settings, Tokenize, Watched};

/// Run an instrument by hand or from a step.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    #[command(subcommand)]
    instrument: Instrument,
}

#[derive(Debug, Subcommand)]
enum Instrument {
    /// Load a server that speaks OpenAI's streaming API and time its answers (load-v1)
    Openai(OpenaiArgs),
}

/// Load a server that speaks OpenAI's streaming API.
#[derive(Debug, Args)]
pub struct OpenaiArgs {
    /// Base URL of the server or proxy, like http://10.0.0.1:8000
    #[arg(long)]
    url: String,
    /// Which API to ask
    #[arg(long, value_enum, default_value_t = ApiArg::Completions)]
    endpoint: ApiArg,
    /// The model's name as the server knows it
    #[arg(long)]
    model: String,
    /// Length of each prompt in the server's tokens
    #[arg(long, value_name = "N")]
    prompt_tokens: u32,
    /// Most output tokens of each request
    #[arg(long, value_name = "N")]
    max_tokens: u32,
    /// Rounds before the measured ones, with the same prompt length and concurrency
    #[arg(long, value_name = "N", default_value_t = 10)]
    warmup_iterations: u32,
    /// Measured rounds of one request a stream
    #[arg(long, value_name = "N", default_value_t = 30)]
    iterations: u32,
    /// Concurrent streams
    #[arg(long, value_name = "C", default_value_t = 1)]
    concurrency: u32,
    /// Seeds the prompts
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Sampling temperature
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    temperature: f64,
    /// Make the server go on to --max-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// rounds: all streams send together, then wait for each other; closed: each goes on at once
    #[arg(long = "loop", value_enum, default_value_t = LoopArg::Rounds)]
    pacing: LoopArg,
    /// Pause between rounds, like 500ms
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = duration)]
    pause: Duration,
    /// Most time for one request, connecting included
    #[arg(long, value_name = "DUR", default_value = "10min", value_parser = duration)]
    request_timeout: Duration,
    /// How prompt lengths are found: the server's tokenizer, words, or whatever works
    #[arg(long, value_enum, default_value_t = TokenizeArg::Auto)]
    tokenize: TokenizeArg,
    /// Where the result goes (JSON, schema load-v1)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name of this run for a proxy's records; made up when --proxy-stats asks for them
    #[arg(long, value_name = "TOKEN")]
    session: Option<String>,
    /// Base URL of a `doe proxy` whose records of this run are wanted
    #[arg(long, value_name = "URL", requires = "proxy_out")]
    proxy_stats: Option<String>,
    /// Where the proxy's records go (JSON, schema proxy-v1)
    #[arg(long, value_name = "FILE", requires = "proxy_stats")]
    proxy_out: Option<PathBuf>,
    /// A vLLM server that is asked where it had the measured prompts' KV cache from; may be repeated
    #[arg(long, value_name = "NAME=URL", value_parser = watched)]
    prompt_sources: Vec<Watched>,
    /// Say nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ApiArg {
    Completions,
    Chat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LoopArg {
    Rounds,
    Closed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TokenizeArg {
    Auto,
    Words,
    Server,
}

/// Runs `doe measure`.
///
/// # Errors
/// What the instrument says; node failed when nothing succeeded (the result file is written all
/// the same).
pub fn run(args: MeasureArgs) -> Result<()> {
    match args.instrument {
        Instrument::Openai(args) => openai(args),
    }
}

fn openai(args: OpenaiArgs) -> Result<()> {
    let session = match (args.session, &args.proxy_stats) {
        (Some(session), _) => Some(check_session(session)?),
        (None, Some(_)) => Some(fresh_session()),
        (None, None) => None,
    };
    let settings = Settings {
        url: args.url,
        api: match args.endpoint {
            ApiArg::Completions => Api::Completions,
            ApiArg::Chat => Api::Chat,
        },
        model: args.model,
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
        warmup_iterations: args.warmup_iterations,
        iterations: args.iterations,
        concurrency: args.concurrency,
        seed: args.seed,
        temperature: args.temperature,
        ignore_eos: args.ignore_eos,
        pacing: match args.pacing {
            LoopArg::Rounds => Loop::Rounds,
            LoopArg::Closed => Loop::Closed,
        },
        pause: args.pause,
        request_timeout: args.request_timeout,
        tokenize: match args.tokenize {
            TokenizeArg::Auto => Tokenize::Auto,
            TokenizeArg::Words => Tokenize::Words,
            TokenizeArg::Server => Tokenize::Server,
        },
        session: session.clone(),
        watched: args.prompt_sources,
    };
    let terminal = std::io::stderr().is_terminal() && !args.quiet;
    let mut shown = |p: load::Progress| {
        if terminal {
            let phase = if p.warmup { "warm-up" } else { "measuring" };
            let mut err = std::io::stderr().lock();
            // A progress line that cannot be shown must not end a measurement.
            let _ = write!(err, "\r\x1b[K{phase} {}/{}", p.done, p.total);
            if p.failed > 0 {
                let _ = write!(err, ", {} failed", p.failed);
            }
            let _ = err.flush();
        }
    };
    let report = load::run(&settings, &mut shown)?;
    if terminal {
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
    report.write(&args.out)?;
    if !args.quiet {
        let _ = writeln!(std::io::stdout().lock(), "{}", report.line());
    }
    // The proxy's records are wanted most when things went wrong, so they are fetched first.
    let fetched = match (args.proxy_stats, args.proxy_out, session) {
        (Some(url), Some(out), Some(session)) => {
            load::proxy_stats(&url, &session).and_then(|stats| load::write_json(&out, &stats))
        }
        _ => Ok(()),
    };
    report.verdict()?;
    fetched
}

/// `decode=http://10.0.0.2:8200`.
fn watched(text: &str) -> std::result::Result<Watched, String> {
    let (name, url) = text.split_once('=').unwrap_or_default();
    if !crate::label::is_valid_name(name) || url.is_empty() {
        return Err(format!(
            "`{text}` names no server, expected one like decode=http://10.0.0.2:8200"
        ));
    }
    Ok(Watched {
        name: name.to_owned(),
        url: url.to_owned(),
    })
}

/// A session travels in headers and in a URL.
fn check_session(session: String) -> Result<String> {
    if crate::label::is_valid_name(&session) {
        return Ok(session);
    }
    Err(Error::new(
        Kind::Usage,
        "bad-session",
        format!("`{session}` is no session name"),
    )
    .hint("expected letters, digits and `._+=,-`, starting with a letter or digit"))
}

/// Unique among the runs that one proxy sees: the process, its host's clock.
fn fresh_session() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |d| d.as_nanos());
    format!("s{:x}-{:x}", nanos, std::process::id())
}

/// A length of time as people write it (`90s`, `1h 30m`) or as a template renders a number of
/// seconds (`0.5s`, `600.0s`).
pub(super) fn duration(text: &str) -> std::result::Result<Duration, String> {
    if let Ok(duration) = humantime::parse_duration(text) {
        return Ok(duration);
    }
    let expected =
        || format!("`{text}` is no length of time, expected one like 90s, 500ms or 1h30m");
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(expected)?;
    let (number, unit) = text.split_at(split);
    let unit_s = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.trim().parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MeasureArgs,
    }

    #[test]
    fn lengths_of_time_come_as_people_and_as_templates_write_them() {
        for (text, ms) in [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("0.5s", 500),
            ("600.0s", 600_000),
            ("0.0s", 0),
            ("1.5m", 90_000),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5x", "NaNs", "infs", "1e300h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_shipped_rules_command_line_parses() {
        let line = "measure openai --url http://h:1 --endpoint completions --model m \
            --prompt-tokens 1024 --max-tokens 128 --warmup-iterations 10 --iterations 30 \
            --concurrency 4 --temperature 0 --ignore-eos --seed 7 --pause 0.0s \
            --request-timeout 600.0s --session ab.1 --out r.json \
            --proxy-stats http://h:2/stats --proxy-out p.json";
        assert!(Line::try_parse_from(line.split_whitespace()).is_ok());
        let half = "measure openai --url u --model m --prompt-tokens 1 --max-tokens 1 --out r --proxy-out p";
        assert!(Line::try_parse_from(half.split_whitespace()).is_err());
    }

    #[test]
    fn sessions_are_names() {
        assert!(check_session(fresh_session()).is_ok());
        assert_eq!(check_session("a b".into()).unwrap_err().kind, Kind::Usage);
    }
}
