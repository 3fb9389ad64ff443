//! Hosts that are not this machine, whichever way they are reached: what every way can do beside
//! the executor's calls.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doe_cache::Digest;

use super::{connect, slurm, ssm};
use crate::error::Result;
use crate::exec::remote::RemoteExecutor;
use crate::exec::slurm::{Chain, SlurmExecutor};
use crate::exec::{Executor, Handle, HostSpec, Token};
use crate::plan::model::{Platform, Workspace};

/// See the module.
pub(super) struct Ground {
    way: Way,
    pub(super) hosts: Vec<HostSpec>,
}

enum Way {
    /// Over a connection to each host.
    Remote(Arc<RemoteExecutor>),
    /// Over a shared folder and a controller.
    Slurm(Arc<SlurmExecutor>),
}

impl Ground {
    /// The hosts of a platform; none where they are this machine.
    pub(super) async fn new(
        workspace: &Workspace,
        platform: &Platform,
        hosts: &[HostSpec],
    ) -> Result<Option<Self>> {
        if hosts.is_empty() || platform.executor == "local" {
            return Ok(None);
        }
        let way = match platform.executor.as_str() {
            "slurm" => Way::Slurm(Arc::new(slurm::connect(workspace, platform).await?)),
            "ssm" => Way::Remote(Arc::new(ssm::connect(workspace, platform, hosts).await?)),
            _ => Way::Remote(Arc::new(connect::ssh(workspace, platform, hosts).await?)),
        };
        Ok(Some(Self {
            way,
            hosts: hosts.to_vec(),
        }))
    }

    pub(super) fn executor(&self) -> Arc<dyn Executor> {
        match &self.way {
            Way::Remote(remote) => remote.clone(),
            Way::Slurm(slurm) => slurm.clone(),
        }
    }

    /// The folder on the hosts.
    pub(super) fn root(&self) -> &Path {
        match &self.way {
            Way::Remote(remote) => remote.root(),
            Way::Slurm(slurm) => slurm.root(),
        }
    }

    /// The search path that the hosts tell; empty where they tell none.
    pub(super) fn login_path(&self) -> &str {
        match &self.way {
            Way::Remote(remote) => remote.login_path(),
            Way::Slurm(_) => "",
        }
    }

    /// Puts programs on hosts, each under its name in one folder, which is returned.
    pub(super) async fn install(
        &self,
        hosts: &[HostSpec],
        programs: &[(String, Digest, PathBuf)],
    ) -> Result<PathBuf> {
        match &self.way {
            Way::Remote(remote) => remote.install(hosts, programs).await,
            Way::Slurm(slurm) => slurm.install(programs),
        }
    }

    /// Finds out whether a program of a host runs there.
    pub(super) async fn try_program(
        &self,
        host: &HostSpec,
        program: &Path,
        arguments: &[&str],
    ) -> Result<()> {
        let host = std::slice::from_ref(host);
        match &self.way {
            Way::Remote(remote) => remote.try_program(host, program, arguments).await,
            Way::Slurm(slurm) => slurm.try_program(host, program, arguments).await,
        }
    }

    /// Attends to what runs there under this name from now on, as long as this value lives.
    pub(super) async fn guard(&self, name: &str, survive: Duration) -> Result<()> {
        match &self.way {
            Way::Remote(remote) => remote.guard(&self.hosts, name, survive).await,
            Way::Slurm(slurm) => slurm.guard(name, survive, Chain::own()?.is_some()),
        }
    }

    /// Takes back what an earlier `doe` had submitted and what would begin behind our back. What
    /// is `announced` and waits in a queue is found by its token like what runs; for the rest to be
    /// ours the folder on the hosts must be `private`.
    pub(super) async fn recall(&self, announced: &HashSet<Token>, private: bool) -> Result<()> {
        match &self.way {
            Way::Remote(remote) => remote.recall(&self.hosts).await,
            Way::Slurm(slurm) if private => slurm.recall(announced).await,
            Way::Slurm(_) => Ok(()),
        }
    }

    /// Executions that left no record and live.
    pub(super) async fn living(&self) -> Result<Vec<Handle>> {
        match &self.way {
            Way::Remote(remote) => {
                let sweeps = self.hosts.iter().map(|host| remote.sweep(host));
                let found = futures_util::future::try_join_all(sweeps).await?;
                Ok(found.into_iter().flatten().collect())
            }
            Way::Slurm(slurm) => slurm.sweep().await,
        }
    }
}
