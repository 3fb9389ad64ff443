//! The connection that a platform's table in `doe.toml` describes. Every key of the tables is
//! taken up here, so that none can be said in vain.

use std::path::{Path, PathBuf};
use std::time::Duration;

use doe_cache::Digest;

use crate::error::{Error, Result};
use crate::exec::HostSpec;
use crate::exec::folder;
use crate::exec::remote::call::nonce;
use crate::exec::remote::ssh::{Ssh, SshOptions};
use crate::exec::remote::{RemoteExecutor, RemoteOptions};
use crate::plan::model::{Platform, SshTable, Workspace};

/// Between the polite and the hard end when a script's limit is up.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A file that `doe.toml` names: absolute, below the home, or beside it.
pub fn file(workspace: &Workspace, path: &str) -> PathBuf {
    match path.strip_prefix("~/").zip(std::env::var_os("HOME")) {
        Some((below, home)) => Path::new(&home).join(below),
        None => workspace.root.join(path),
    }
}

/// What tells this workspace from others, of other machines too.
fn mark_of(workspace: &Workspace) -> Result<String> {
    let state = workspace.state_dir.canonicalize();
    let state = state.map_err(|e| Error::io("find", &workspace.state_dir, &e))?;
    Ok(format!("{}:{}", doe_cache::host(), state.display()))
}

/// The folder on the hosts: `%w` is what tells this workspace from all others.
pub(super) fn root_of(workspace: &Workspace, root: &str) -> Result<String> {
    let mark = Digest::of(mark_of(workspace)?);
    Ok(root.replace("%w", &mark.short()[..12]))
}

/// The name under which builds of this workspace with this platform attend to what runs on hosts:
/// one of another platform takes nothing over, so it does not keep it alive either. It goes with the
/// state folder, whatever that and this machine are called by then. The caller holds the lock.
pub(super) fn lease_of(workspace: &Workspace, platform: &Platform) -> Result<String> {
    let path = workspace.state_dir.join("lease");
    let word = match folder::read_if_there(&path)? {
        Some(word) if !word.trim().is_empty() => word,
        _ => {
            let word = nonce();
            // Half a word, or another one after a power cut, would attend to nothing that runs.
            folder::durable(&path, word.as_bytes())?;
            word
        }
    };
    let mark = Digest::of(format!("{}:{}", word.trim(), platform.name));
    Ok(mark.short()[..12].to_owned())
}

/// Connects to hosts by ssh.
pub async fn ssh(
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
