//! `doe init`: a small workspace that runs, from the very files that ship with `doe` and are
//! tested in its repository.

use std::path::{Path, PathBuf};

use clap::Args;

use super::out::Out;
use crate::error::{Error, Kind, Result};

/// Write a small workspace that runs
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  doe init my-campaign && cd my-campaign && doe build //hello:all\n  doe init efa --example phase2"
)]
pub struct InitArgs {
    /// Where: a new or empty folder
    #[arg(default_value = ".")]
    pub dir: PathBuf,
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
];

/// Runs the command.
pub fn run(args: &InitArgs, out: &mut Out) -> Result<u8> {
    let (files, target) = match args.example {
        Example::Hello => (HELLO, "//hello:all"),
        Example::Phase2 => (PHASE2, "//phase2:all"),
    };
    // All or nothing: look before anything is written.
    for (name, _) in files {
        let path = args.dir.join(name);
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
        write(&args.dir.join(name), text)?;
    }
    write(&args.dir.join(".gitignore"), ".doe/\n")?;
    for (name, _) in files {
        out.line(args.dir.join(name).display())?;
    }
    out.line("")?;
    let dir = args.dir.display();
    out.line(format!("next: doe build {target} --workspace {dir}"))?;
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, &e))?;
    }
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}
