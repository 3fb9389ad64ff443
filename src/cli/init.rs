//! `doe init`: a small workspace that runs, from the very files that ship with `doe` and are
//! tested in its repository.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::Global;
use super::out::Out;
use crate::error::{Error, Kind, Result};

/// Write a small workspace that runs
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe init my-campaign && cd my-campaign && doe build //hello:all\n  doe init efa --example phase2"
)]
pub struct InitArgs {
    /// Where: a new or empty folder [default: that of --workspace, else this one]
    pub dir: Option<PathBuf>,
    /// What to start from
    #[arg(long, value_enum, default_value_t = Example::Hello)]
    pub example: Example,
}

/// What to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Example {
    /// Six real measurements of `sort` on this machine, and how to declare them.
    Hello,
    /// The campaign of 50 patterns on the simulated platform, with the shipped rules.
    Phase2,
}

const HELLO: &[(&str, &str)] = &[
    ("doe.toml", include_str!("../../examples/hello/doe.toml")),
    (
        "plans/hello.toml",
        include_str!("../../examples/hello/plans/hello.toml"),
    ),
    (
        "rules/sort.toml",
        include_str!("../../examples/hello/rules/sort.toml"),
    ),
];

const PHASE2: &[(&str, &str)] = &[
    ("doe.toml", include_str!("../../doe.toml")),
    ("plans/phase2.toml", include_str!("../../plans/phase2.toml")),
    (
        "rules/network.toml",
        include_str!("../../rules/network.toml"),
    ),
    (
        "rules/serving.toml",
        include_str!("../../rules/serving.toml"),
    ),
    (
        "rules/analysis.toml",
        include_str!("../../rules/analysis.toml"),
    ),
    ("rules/hosts.toml", include_str!("../../rules/hosts.toml")),
];

/// Runs the command.
pub fn run(global: &Global, args: &InitArgs, out: &mut Out) -> Result<u8> {
    let here = Path::new(".");
    let dir = args.dir.as_deref().or(global.workspace.as_deref());
    let dir = dir.unwrap_or(here);
    let (files, target) = match args.example {
        Example::Hello => (HELLO, "//hello:all"),
        Example::Phase2 => (PHASE2, "//phase2:all"),
    };
    // All or nothing: look before anything is written.
    for (name, _) in files {
        let path = dir.join(name);
        if path.exists() {
            return Err(Error::new(
                Kind::Usage,
                "exists",
                format!("`{}` is there already", path.display()),
            )
            .hint("name another folder: `doe init DIR`"));
        }
    }
    for (name, text) in files {
        write(&dir.join(name), text)?;
    }
    write(&dir.join(".gitignore"), ".doe/\n")?;
    let written: Vec<PathBuf> = files.iter().map(|(name, _)| dir.join(name)).collect();
    let next = match dir == here {
        true => format!("doe build {target}"),
        false => format!("doe build {target} --workspace {}", dir.display()),
    };
    if out.json {
        out.json(&serde_json::json!({"written": written, "next": next}))?;
        return Ok(0);
    }
    for path in written {
        out.line(path.display())?;
    }
    out.line("")?;
    out.line(format!("next: {next}"))?;
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, &e))?;
    }
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}
