//! `doe analyze`: an analysis over the list of inputs that the engine wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::out::Out;
use crate::analysis::{self, Input};
use crate::error::{Error, Kind, Result};

/// Compute an analysis from finished results
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  doe analyze bimodality --inputs inputs.json --out result.json")]
pub struct AnalyzeArgs {
    /// Which analysis
    pub name: String,
    /// JSON list of {label, settings, outputs: {name: file}}
    #[arg(long, value_name = "FILE")]
    pub inputs: PathBuf,
    /// Where the result goes
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Deserialize)]
struct Listed {
    label: String,
    settings: serde_json::Map<String, serde_json::Value>,
    outputs: BTreeMap<String, PathBuf>,
}

/// Runs the command.
pub fn run(args: &AnalyzeArgs, out: &mut Out) -> Result<u8> {
    let listed: Vec<Listed> = read(&args.inputs)?;
    let mut inputs = Vec::with_capacity(listed.len());
    for item in listed {
        let mut outputs = BTreeMap::new();
        for (name, path) in item.outputs {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
            // A raw file (a tool's own text) is no document, and no analysis reads one.
            if let Ok(document) = serde_json::from_slice(&bytes) {
                outputs.insert(name, document);
            }
        }
        inputs.push(Input {
            label: item.label,
            settings: item.settings,
            outputs,
        });
    }
    let result = analysis::run(&args.name, &inputs)?;
    super::out::write_json(&args.out, &result)?;
    out.note(format!("{} over {} inputs", args.name, inputs.len()));
    Ok(0)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::new(
            Kind::NodeFailed,
            "bad-input",
            format!("`{}` is not what was expected", path.display()),
        )
        .cause(e)
    })
}
