//! `doe build --detach`: the build itself becomes a job of the cluster, so that the campaign goes
//! on when this machine is gone. It is the same command in the same workspace; what it does is
//! read there, by any `doe` that sees the workspace.

use std::path::Path;
use std::process::{Command, Stdio};

use super::out::Out;
use crate::error::{Error, Kind, Result};
use crate::exec::folder::quote;
use crate::plan::model::{Platform, Workspace};

/// Submits this very command, less `--detach`, as a job.
pub fn run(out: &mut Out, workspace: &Workspace, platform: &Platform) -> Result<u8> {
    if platform.executor != "slurm" {
        return Err(Error::new(
            Kind::Usage,
            "cannot-detach",
            format!("platform `{}` has the executor `{}`, which has no place for a build of its own", platform.name, platform.executor),
        )
        .hint("`--detach` needs a platform with `executor = \"slurm\"`; elsewhere use `nohup` or `tmux`"));
    }
    let io =
        |what: &str, e: std::io::Error| Error::new(Kind::Infra, "io", what.to_owned()).cause(e);
    let doe = std::env::current_exe().map_err(|e| io("cannot tell where `doe` is", e))?;
    let here = std::env::current_dir().map_err(|e| io("there is no working folder", e))?;
    let root = workspace
        .root
        .canonicalize()
        .map_err(|e| Error::io("find", &workspace.root, &e))?;
    std::fs::create_dir_all(&workspace.state_dir)
        .map_err(|e| Error::io("make", &workspace.state_dir, &e))?;
    let state = workspace
        .state_dir
        .canonicalize()
        .map_err(|e| Error::io("find", &workspace.state_dir, &e))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let script = script(&doe, &here, &arguments);
    let path = state.join("detached.sh");
    std::fs::write(&path, script).map_err(|e| Error::io("write", &path, &e))?;
    let slurm = &platform.slurm;
    let mut sbatch = Command::new("sbatch");
    if let Some(config) = &slurm.config {
        sbatch.env("SLURM_CONF", root.join(config));
    }
    for (name, value) in [
        ("partition", &slurm.partition),
        ("account", &slurm.account),
        ("qos", &slurm.qos),
        ("reservation", &slurm.reservation),
    ] {
        sbatch.args(value.iter().map(|value| format!("--{name}={value}")));
    }
    let log = state.join("detached-%j.log");
    let output = sbatch
        .args([
            "--parsable",
            "--job-name=doe-build",
            "--nodes=1",
            "--ntasks=1",
            "--no-requeue",
            "--signal=B:INT@120",
        ])
        .arg(format!("--output={}", log.display()))
        .arg("--export=PATH,HOME,SLURM_CONF")
        .arg("--chdir=/")
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io("could not run `sbatch`", e))?;
    if !output.status.success() {
        return Err(Error::new(
            Kind::Infra,
            "slurm-refused",
            "the build could not be submitted",
        )
        .cause(String::from_utf8_lossy(&output.stderr).trim()));
    }
    let number = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let log = log.display().to_string().replace("%j", &number);
    if out.json {
        let line = serde_json::json!({ "event": "detached", "job": number, "log": log });
        out.line(line.to_string())?;
    } else {
        out.line(format!(
            "the build goes on as job {number}; its lines are in {log}"
        ))?;
        out.line("`doe status` tells how far it is, `scancel` ends it and what it runs")?;
    }
    Ok(0)
}

/// Runs the command as it was given, from where it was given.
fn script(doe: &Path, here: &Path, arguments: &[String]) -> String {
    let words: Vec<String> = arguments
        .iter()
        .filter(|argument| *argument != "--detach")
        .map(|argument| quote(argument))
        .collect();
    format!(
        "#!/bin/sh\ncd {} || exit 73\nexec {} {}\n",
        quote(&here.display().to_string()),
        quote(&doe.display().to_string()),
        words.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_the_same_less_the_flag() {
        let arguments = ["build", "//it's:x", "--detach", "--json"].map(str::to_owned);
        let text = script(Path::new("/opt/my doe"), Path::new("/w"), &arguments);
        assert_eq!(
            text,
            "#!/bin/sh\ncd '/w' || exit 73\nexec '/opt/my doe' 'build' '//it'\\''s:x' '--json'\n"
        );
    }
}
