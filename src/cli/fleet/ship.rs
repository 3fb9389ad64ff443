//! What scripts call is shipped to where they call it: `doe` and the simulated tools, under their
//! digests, and found out to run there before anything depends on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use doe_cache::Digest;

use super::callers::Callers;
use super::connect::file;
use super::ground::Ground;
use crate::error::{Error, Kind, Result};
use crate::exec::{HostSpec, Site};
use crate::measure::sim::{profile, shims};
use crate::plan::model::{Platform, Workspace};

/// The search path behind what doe puts in front of it, where a host tells none.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Ships what scripts call, `doe` and the simulated tools, and finds out whether it runs there.
pub(super) async fn settle(
    ground: &Ground,
    workspace: &Workspace,
    platform: &Platform,
    (doe, callers): (&Path, &Callers),
) -> Result<Site> {
    let (own, more) = match platform.executor.as_str() {
        "ssm" => (platform.ssm.doe.as_ref(), &platform.ssm.path),
        "slurm" => (platform.slurm.doe.as_ref(), &platform.slurm.path),
        _ => (platform.ssh.doe.as_ref(), &platform.ssh.path),
    };
    let own = own.map(|doe| file(workspace, doe));
    let hosts = ground.hosts.iter();
    let wanting = hosts.filter(|host| platform.simulated || callers.perhaps_on(&host.name));
    let wanting: Vec<HostSpec> = wanting.cloned().collect();
    let mut path = Vec::new();
    let mut env = BTreeMap::new();
    // Where nobody calls it there is nothing to name.
    let mut there = PathBuf::from("doe");
    if !wanting.is_empty() {
        let doe = own.as_deref().unwrap_or(doe);
        let programs = [("doe".to_owned(), digest_of(doe)?, doe.to_owned())];
        let bin = ground.install(&wanting, &programs).await?;
        there = bin.join("doe");
        find_out(ground, platform, &wanting, (&there, callers)).await?;
        if platform.simulated {
            let (tools, variables) = simulation(ground, workspace, platform, &there).await?;
            path.push(tools.display().to_string());
            env.extend(variables);
        }
        path.push(bin.display().to_string());
    }
    path.extend(more.iter().cloned());
    path.push(match ground.login_path() {
        "" => USUAL_PATH.to_owned(),
        login => login.to_owned(),
    });
    env.insert("PATH".into(), path.join(":"));
    Ok(Site {
        root: ground.root().to_owned(),
        doe: there,
        env,
    })
}

/// Finds out whether `doe` runs on the hosts where somebody calls it.
async fn find_out(
    ground: &Ground,
    platform: &Platform,
    hosts: &[HostSpec],
    (there, callers): (&Path, &Callers),
) -> Result<()> {
    let tries = hosts.iter().map(|host| async move {
        let who = match callers.on(&host.name) {
            Some(who) => who.to_owned(),
            None if platform.simulated => "simulated tools are made of it".to_owned(),
            None => return Ok(()),
        };
        let tried = ground.try_program(host, there, &["--version"]).await;
        tried.map_err(|cause| {
            let text = format!(
                "the doe program that was shipped does not run on a host: on `{}`, and {who}",
                host.name
            );
            Error::new(Kind::Infra, "doe-does-not-run", text)
                .cause(cause)
                .hint("build a static one for the hosts (`.ci/static-doe` of the sources does it) and name it as `doe` in the platform's table `ssh`, `slurm` or `ssm`")
        })
    });
    futures_util::future::try_join_all(tries).await.map(drop)
}

fn digest_of(path: &Path) -> Result<Digest> {
    Ok(Digest::of_file(path)?)
}

/// Ships the simulated tools and their profile.
async fn simulation(
    ground: &Ground,
    workspace: &Workspace,
    platform: &Platform,
    doe: &Path,
) -> Result<(PathBuf, BTreeMap<String, String>)> {
    let dir = workspace.state_dir.join("sim").join("hosts");
    shims::install(&dir, doe)?;
    let mut programs = Vec::new();
    for name in shims::names() {
        let path = dir.join(name);
        programs.push((name.to_owned(), digest_of(&path)?, path));
    }
    let tools = ground.install(&ground.hosts, &programs).await?;
    let profile = write_profile(workspace, platform)?;
    let programs = [("profile.json".to_owned(), digest_of(&profile)?, profile)];
    let there = ground.install(&ground.hosts, &programs).await?;
    let there = there.join("profile.json");
    let variable = profile::PROFILE_VAR.to_owned();
    Ok((
        tools,
        BTreeMap::from([(variable, there.display().to_string())]),
    ))
}

/// The simulated tools and their profile on this machine, when the platform is a simulation.
pub(super) fn surroundings(
    workspace: &Workspace,
    platform: &Platform,
    doe: &Path,
) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    if !platform.simulated {
        return Ok((Vec::new(), BTreeMap::new()));
    }
    let shim_dir = workspace.state_dir.join("sim").join("bin");
    shims::install(&shim_dir, doe)?;
    let path = write_profile(workspace, platform)?;
    let path = path
        .canonicalize()
        .map_err(|e| Error::io("read", &path, &e))?;
    let shim_dir = shim_dir
        .canonicalize()
        .map_err(|e| Error::io("read", &shim_dir, &e))?;
    let env = BTreeMap::from([(profile::PROFILE_VAR.to_string(), path.display().to_string())]);
    Ok((vec![shim_dir], env))
}

/// One file a profile: a run that still goes on keeps its own.
fn write_profile(workspace: &Workspace, platform: &Platform) -> Result<PathBuf> {
    let options: serde_json::Map<String, serde_json::Value> = platform
        .sim
        .iter()
        .map(|(name, value)| (name.clone(), value.to_json()))
        .collect();
    let text = serde_json::Value::Object(options).to_string();
    let name = format!("profile-{}.json", Digest::of(&text).short());
    let path = workspace.state_dir.join("sim").join(name);
    std::fs::write(&path, text).map_err(|e| Error::io("write", &path, &e))?;
    profile::SimProfile::load(&path)?;
    Ok(path)
}
