//! What runs the scripts of a platform: its executor, the one of this machine, and where things
//! are on the hosts. Made in one place for every command, so that nothing else knows which
//! executors there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doe_cache::Digest;

use crate::error::{Error, Kind, Result};
use crate::exec::local::{LocalExecutor, LocalOptions};
use crate::exec::remote::ssh::{Ssh, SshOptions};
use crate::exec::remote::{RemoteExecutor, RemoteOptions};
use crate::exec::slurm::{Common, SlurmExecutor, SlurmOptions};
use crate::exec::{Executor, HostSpec, Site};
use crate::measure::sim::{profile, shims};
use crate::plan::model::{Platform, SlurmTable, SshTable, Workspace};

/// Executors that there are.
pub const EXECUTORS: [&str; 3] = ["local", "ssh", "slurm"];

/// Between the polite and the hard end of what a killed run left.
const GRACE: Duration = Duration::from_secs(5);
/// The search path behind what doe puts in front of it, where a host tells none.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// See the module.
pub struct Fleet {
    /// Runs what has a role.
    pub executor: Arc<dyn Executor>,
    /// Runs what has none.
    pub local: Arc<dyn Executor>,
    /// Where things are on the hosts, when these are not this machine.
    pub site: Option<Site>,
    /// Folders put first on the path of scripts on this machine: the simulated tools.
    pub path_prefix: Vec<PathBuf>,
    /// Environment of scripts on this machine.
    pub env: BTreeMap<String, String>,
    /// What the user is to be told.
    pub notices: Vec<String>,
}

/// Makes what runs the scripts of a platform on the `needed` hosts of it. `doe` is this program.
pub async fn make(
    workspace: &Workspace,
    platform: &Platform,
    needed: &[HostSpec],
    doe: &Path,
) -> Result<Fleet> {
    let local = LocalExecutor::new(
        workspace.state_dir.join("exec"),
        LocalOptions::new(doe.to_owned()),
    )?;
    let mut notices = Vec::new();
    for handle in local.sweep().await? {
        end(&local, &handle, &mut notices).await?;
    }
    let local: Arc<dyn Executor> = Arc::new(local);
    if platform.executor == "local" || needed.is_empty() {
        let (path_prefix, env) = surroundings(workspace, platform, doe)?;
        return Ok(Fleet {
            executor: local.clone(),
            local,
            site: None,
            path_prefix,
            env,
            notices,
        });
    }
    let (executor, site): (Arc<dyn Executor>, Site) = if platform.executor == "slurm" {
        let slurm = SlurmExecutor::new(slurm_options(workspace, &platform.slurm)?).await?;
        // Which node it was does not matter for ending it: the job is found by its comment.
        let node = needed[0].name.clone();
        for handle in slurm.sweep(|_| node.clone()).await? {
            end(&slurm, &handle, &mut notices).await?;
        }
        let own = platform.slurm.doe.as_ref().map(|doe| file(workspace, doe));
        let ground = Ground::Shared(&slurm);
        let site = settle(&ground, workspace, platform, own.as_deref().unwrap_or(doe)).await?;
        (Arc::new(slurm), site)
    } else {
        let ssh = connect(workspace, platform, needed).await?;
        for found in futures_util::future::join_all(needed.iter().map(|host| ssh.sweep(host))).await
        {
            for handle in found? {
                end(&ssh, &handle, &mut notices).await?;
            }
        }
        let own = platform.ssh.doe.as_ref().map(|doe| file(workspace, doe));
        let ground = Ground::Hosts(&ssh, needed);
        let site = settle(&ground, workspace, platform, own.as_deref().unwrap_or(doe)).await?;
        (Arc::new(ssh), site)
    };
    Ok(Fleet {
        executor,
        local,
        site: Some(site),
        path_prefix: Vec::new(),
        env: BTreeMap::new(),
        notices,
    })
}

/// Where programs for scripts are put.
enum Ground<'e> {
    /// On every host.
    Hosts(&'e RemoteExecutor, &'e [HostSpec]),
    /// Into a folder that all see.
    Shared(&'e SlurmExecutor),
}

impl Ground<'_> {
    async fn install(&self, programs: &[(String, Digest, PathBuf)]) -> Result<PathBuf> {
        match self {
            Ground::Hosts(ssh, hosts) => ssh.install(hosts, programs).await,
            Ground::Shared(slurm) => slurm.install(programs),
        }
    }

    fn root(&self) -> &Path {
        match self {
            Ground::Hosts(ssh, _) => ssh.root(),
            Ground::Shared(slurm) => slurm.root(),
        }
    }

    fn login_path(&self) -> String {
        match self {
            Ground::Hosts(ssh, _) => ssh.login_path().to_owned(),
            Ground::Shared(_) => std::env::var("PATH").unwrap_or_default(),
        }
    }
}

fn slurm_options(workspace: &Workspace, table: &SlurmTable) -> Result<SlurmOptions> {
    let SlurmTable {
        partition,
        account,
        qos,
        reservation,
        constraint,
        config,
        root,
        patience_s,
        path: _,
        doe: _,
    } = table;
    let named = [
        ("partition", partition),
        ("account", account),
        ("qos", qos),
        ("reservation", reservation),
        ("constraint", constraint),
    ];
    let options = named.into_iter().filter_map(|(name, value)| {
        let value = value.as_ref()?;
        Some(format!("--{name}={value}"))
    });
    let root = root_of(workspace, root)?;
    Ok(SlurmOptions {
        root: file(workspace, &root),
        config: config.as_ref().map(|config| file(workspace, config)),
        common: Common {
            options: options.collect(),
        },
        patience: Duration::try_from_secs_f64(*patience_s).unwrap_or(Duration::MAX),
        grace: GRACE,
    })
}

/// What a killed run left running is ended before a new one begins.
async fn end(
    executor: &dyn Executor,
    handle: &crate::exec::Handle,
    notices: &mut Vec<String>,
) -> Result<()> {
    executor.cancel(handle, GRACE).await?;
    notices.push(format!(
        "ended what a killed run had left running: {} (pid {})",
        handle.token.0, handle.pid
    ));
    Ok(())
}

/// A file that `doe.toml` names: absolute, below the home, or beside it.
fn file(workspace: &Workspace, path: &str) -> PathBuf {
    match path.strip_prefix("~/").zip(std::env::var_os("HOME")) {
        Some((below, home)) => Path::new(&home).join(below),
        None => workspace.root.join(path),
    }
}

/// The folder on the hosts: `%w` is what tells this workspace from others, of other machines too.
fn root_of(workspace: &Workspace, root: &str) -> Result<String> {
    let state = workspace.state_dir.canonicalize();
    let state = state.map_err(|e| Error::io("find", &workspace.state_dir, &e))?;
    let mark = Digest::of(format!("{}:{}", doe_cache::host(), state.display()));
    Ok(root.replace("%w", &mark.short()[..12]))
}

async fn connect(
    workspace: &Workspace,
    platform: &Platform,
    needed: &[HostSpec],
) -> Result<RemoteExecutor> {
    let SshTable {
        user,
        port,
        config,
        identity,
        known_hosts,
        jump,
        root,
        patience_s,
        path: _,
        doe: _,
    } = &platform.ssh;
    let place = |path: &Option<String>| path.as_ref().map(|path| file(workspace, path));
    let options = SshOptions {
        config: place(config),
        user: user.clone(),
        port: *port,
        identity: place(identity),
        known_hosts: place(known_hosts),
        jump: jump.clone(),
    };
    let destinations = platform.hosts.values().map(|host| {
        let destination = host.ssh.as_ref().unwrap_or(&host.address);
        (host.name.clone(), destination.clone())
    });
    let ssh = Ssh::new(&options, destinations)?;
    let options = RemoteOptions {
        root: root_of(workspace, root)?,
        patience: Duration::try_from_secs_f64(*patience_s).unwrap_or(Duration::MAX),
        grace: GRACE,
    };
    RemoteExecutor::connect(ssh, &options, needed).await
}

/// Ships what scripts call, `doe` and the simulated tools, and finds out whether it runs there.
async fn settle(
    ground: &Ground<'_>,
    workspace: &Workspace,
    platform: &Platform,
    doe: &Path,
) -> Result<Site> {
    let programs = [("doe".to_owned(), digest_of(doe)?, doe.to_owned())];
    let bin = ground.install(&programs).await?;
    let there = bin.join("doe");
    if let Ground::Hosts(ssh, hosts) = ground {
        ssh.try_program(hosts, &there, &["--version"]).await.map_err(|cause| {
            Error::new(
                Kind::Infra,
                "doe-does-not-run",
                "the doe program that was shipped does not run on a host",
            )
            .cause(cause)
            .hint("build a static one for the hosts (`cargo build --release --target x86_64-unknown-linux-musl`) and name it: `ssh = { doe = \"PATH\" }`")
        })?;
    }
    let mut path = Vec::new();
    let mut env = BTreeMap::new();
    if platform.simulated {
        let (tools, variables) = simulation(ground, workspace, platform, &there).await?;
        path.push(tools.display().to_string());
        env.extend(variables);
    }
    path.push(bin.display().to_string());
    path.extend(
        platform
            .ssh
            .path
            .iter()
            .chain(&platform.slurm.path)
            .cloned(),
    );
    path.push(match ground.login_path() {
        login if login.is_empty() => USUAL_PATH.to_owned(),
        login => login,
    });
    env.insert("PATH".into(), path.join(":"));
    Ok(Site {
        root: ground.root().to_owned(),
        doe: there,
        env,
    })
}

fn digest_of(path: &Path) -> Result<Digest> {
    Ok(Digest::of_file(path)?)
}

/// Ships the simulated tools and their profile.
async fn simulation(
    ground: &Ground<'_>,
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
    let tools = ground.install(&programs).await?;
    let profile = write_profile(workspace, platform)?;
    let programs = [("profile.json".to_owned(), digest_of(&profile)?, profile)];
    let there = ground.install(&programs).await?.join("profile.json");
    let variable = profile::PROFILE_VAR.to_owned();
    Ok((
        tools,
        BTreeMap::from([(variable, there.display().to_string())]),
    ))
}

/// The simulated tools and their profile on this machine, when the platform is a simulation.
fn surroundings(
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
