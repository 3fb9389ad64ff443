//! `doe parse TOOL FILE... --out RESULT`: turns what a measuring tool printed into JSON with
//! units in the names. Nothing is written unless every input is a complete result.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};
use crate::measure::parse::{self, Context};

/// Turn what a measuring tool printed into JSON.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One FILE gives the tool's object (`TOOL-v1`, see docs/tools.md). Several, or any --input, give
{schema: TOOL-inputs-v1, inputs: {NAME: object}, best: {FIELD: value}, best_from: {FIELD: NAME}}:
NAME is the file's name up to its first dot, or what --input says; `best` holds the highest
bandwidth and the lowest latency of the inputs.

  doe parse iperf3 --input p1=p1.json --input p4=p4.json --out tcp.json
  doe parse nvidia-smi gpus.csv --out gpus.json")]
pub struct ParseArgs {
    /// The tool that printed it.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(parse::NAMES))]
    tool: String,
    /// What it printed; `-` is standard input.
    #[arg(value_name = "FILE", required_unless_present = "input")]
    files: Vec<PathBuf>,
    /// An input with a name of its own; may be repeated.
    #[arg(long, value_name = "NAME=FILE")]
    input: Vec<String>,
    /// Where the JSON goes; standard output without it.
    #[arg(long, value_name = "RESULT")]
    out: Option<PathBuf>,
    /// The message size that was asked for; checked against what was measured.
    #[arg(long, value_name = "BYTES")]
    size_bytes: Option<u64>,
    /// The fields of an `nvidia-smi --query-gpu` whose output has no header.
    #[arg(long, value_delimiter = ',', value_name = "FIELD,...")]
    columns: Vec<String>,
}

/// Runs the command and answers with its exit status.
///
/// # Errors
/// `NodeFailed`, when an input is not a complete result of the tool; `Usage`, for a name given
/// twice or an input that is not `NAME=FILE`; `Infra`, when a file cannot be read or written.
pub fn run(args: &ParseArgs) -> Result<u8> {
    let inputs = inputs(args)?;
    let mut read = Vec::with_capacity(inputs.len());
    for (name, file) in inputs {
        let context = Context {
            source: file.display().to_string(),
            size_bytes: args.size_bytes,
            columns: args.columns.clone(),
        };
        let text = text(&file)?;
        read.push((name, parse::parse(&args.tool, &text, &context)?));
    }
    let answer = if args.input.is_empty() && read.len() == 1 {
        read.remove(0).1
    } else {
        merge(&args.tool, read)
    };
    let mut bytes = format!("{answer:#}").into_bytes();
    bytes.push(b'\n');
    match &args.out {
        Some(path) => {
            doe_cache::replace(path, &bytes).map_err(|e| Error::io("write", path, &e))?;
        }
        None => std::io::stdout()
            .lock()
            .write_all(&bytes)
            .map_err(|e| Error::io("write", Path::new("standard output"), &e))?,
    }
    Ok(0)
}

/// Names and files in the order given.
fn inputs(args: &ParseArgs) -> Result<Vec<(String, PathBuf)>> {
    let mut inputs: Vec<(String, PathBuf)> = Vec::new();
    let plain = args.files.iter().map(|file| {
        let name = file.file_name().unwrap_or(file.as_os_str());
        let name = name.to_string_lossy();
        let stem = name.split('.').find(|part| !part.is_empty());
        Ok((stem.unwrap_or("input").to_owned(), file.clone()))
    });
    let named = args.input.iter().map(|word| match word.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(file)))
        }
        _ => Err(Error::new(
            Kind::Usage,
            "bad-input",
            format!("expected `--input NAME=FILE`, found `{word}`"),
        )),
    });
    for input in plain.chain(named) {
        let (name, file) = input?;
        if inputs.iter().any(|(other, _)| *other == name) {
            return Err(Error::new(
                Kind::Usage,
                "bad-input",
                format!("two inputs are named `{name}`"),
            )
            .hint("name them: `--input NAME=FILE`"));
        }
        inputs.push((name, file));
    }
    Ok(inputs)
}

fn text(file: &Path) -> Result<String> {
    let bytes = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut bytes);
        read.map(|_| bytes)
    } else {
        std::fs::read(file)
    }
    .map_err(|e| Error::io("read", file, &e))?;
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = good.iter().filter(|b| **b == b'\n').count() + 1;
        Error::new(
            Kind::NodeFailed,
            "tool-output",
            format!("`{}`, line {line}: expected text in UTF-8", file.display()),
        )
        .hint("the file was damaged, or it is not what the tool printed")
    })
}

/// Which of several values of a field is the best.
fn better(field: &str) -> Option<fn(f64, f64) -> bool> {
    if field.ends_with("_gbps") {
        Some(|a, b| a > b)
    } else if field.starts_with("latency") && field.ends_with("_us") || field == "transfer_time_ms"
    {
        Some(|a, b| a < b)
    } else {
        None
    }
}

fn merge(tool: &str, read: Vec<(String, Value)>) -> Value {
    let mut best: BTreeMap<&str, (f64, &str)> = BTreeMap::new();
    for (name, object) in &read {
        for (field, value) in object.as_object().into_iter().flatten() {
            if let (Some(better), Some(value)) = (better(field), value.as_f64()) {
                match best.get(field.as_str()) {
                    Some((old, _)) if !better(value, *old) => {}
                    _ => {
                        best.insert(field, (value, name));
                    }
                }
            }
        }
    }
    let values: Map<String, Value> = best
        .iter()
        .map(|(field, (value, _))| ((*field).to_owned(), json!(value)))
        .collect();
    let from: Map<String, Value> = best
        .iter()
        .map(|(field, (_, name))| ((*field).to_owned(), json!(name)))
        .collect();
    let simulated = read.iter().any(|(_, object)| object["simulated"] == true);
    let mut answer = json!({
        "schema": format!("{tool}-inputs-v1"),
        "tool": tool,
        "best": values,
        "best_from": from,
    });
    if simulated {
        answer["simulated"] = json!(true);
    }
    answer["inputs"] = Value::Object(read.into_iter().collect());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: ParseArgs,
    }

    fn args(words: &[&str]) -> ParseArgs {
        let words = std::iter::once("parse").chain(words.iter().copied());
        Command::try_parse_from(words).unwrap().args
    }

    fn table(mb_per_s: &str, usec: &str) -> String {
        format!(
            "bytes   iters   total       time     MB/sec    usec/xfer   Mxfers/sec\n\
             1m      100     6.2g        1.00s   {mb_per_s}     {usec}       0.00\n"
        )
    }

    #[test]
    fn one_file_gives_the_object_and_several_give_the_best_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("a.txt"), table("4000.00", "262.14")).unwrap();
        std::fs::write(path("b.txt"), table("5000.00", "209.72")).unwrap();
        let out = path("out.json");
        let read = || -> Value {
            serde_json::from_slice(&std::fs::read(dir.path().join("out.json")).unwrap()).unwrap()
        };
        run(&args(&["fi_rdm_bw", &path("a.txt"), "--out", &out])).unwrap();
        assert_eq!(read()["schema"], "fi_rdm_bw-v1");
        assert_eq!(read()["bandwidth_gbps"], 32.0);
        let named = format!("second={}", path("b.txt"));
        run(&args(&[
            "fi_rdm_bw",
            &path("a.txt"),
            "--input",
            &named,
            "--out",
            &out,
        ]))
        .unwrap();
        let merged = read();
        assert_eq!(merged["schema"], "fi_rdm_bw-inputs-v1");
        assert_eq!(merged["best"]["bandwidth_gbps"], 40.0);
        assert_eq!(merged["best_from"]["bandwidth_gbps"], "second");
        assert_eq!(merged["inputs"]["a"]["bandwidth_gbps"], 32.0);
    }

    #[test]
    fn an_input_that_is_no_result_writes_nothing_and_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("a.txt"), "fi_rdm_bw: command not found\n").unwrap();
        std::fs::write(path("b.bin"), b"bytes\n\xff\xfe").unwrap();
        let out = path("out.json");
        for (file, line) in [("a.txt", "line 1"), ("b.bin", "line 2")] {
            let error = run(&args(&["fi_rdm_bw", &path(file), "--out", &out])).unwrap_err();
            assert_eq!(error.kind, Kind::NodeFailed);
            let text = error.to_string();
            assert!(text.contains(file) && text.contains(line), "{text}");
            assert!(!error.hints.is_empty());
            assert!(!Path::new(&out).exists());
        }
        let twice = args(&["fi_rdm_bw", &path("a.txt"), "--input", "a=x"]);
        assert_eq!(run(&twice).unwrap_err().kind, Kind::Usage);
        let missing = args(&["fi_rdm_bw", &path("none")]);
        assert_eq!(run(&missing).unwrap_err().kind, Kind::Infra);
    }

    #[test]
    fn an_unknown_tool_and_no_file_are_refused_by_the_command_line() {
        for words in [&["frobnicate", "x"][..], &["iperf3"]] {
            let words = std::iter::once("parse").chain(words.iter().copied());
            assert!(Command::try_parse_from(words).is_err());
        }
    }
}
