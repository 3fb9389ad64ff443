//! Looks at what runs, on this machine and on the hosts of platforms that are elsewhere: starts
//! nothing, ends nothing, takes no lock. A host is called when something may run on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use doe_cache::{Run, Store};

use super::fleet;
use crate::engine::intent::{Home, Place};
use crate::error::{Error, Kind, Result};
use crate::exec::local::{LocalExecutor, LocalOptions};
use crate::exec::secrets::Secrets;
use crate::exec::trouble;
use crate::exec::{Executor, Handle, Status, Stream, Token};
use crate::plan::model::Workspace;

/// How long a host that does not answer is waited for by somebody who only looks.
const PATIENCE_S: f64 = 10.0;

/// See the module.
pub struct Looking<'w> {
    workspace: &'w Workspace,
    runtime: tokio::runtime::Runtime,
    local: Option<LocalExecutor>,
    /// By platform; none where nobody can look.
    away: BTreeMap<String, Option<Arc<dyn Executor>>>,
    /// What is not to be shown, as far as it is known here.
    secrets: Secrets,
    /// What could not be looked at, in words.
    pub blind: Vec<String>,
}

impl<'w> Looking<'w> {
    /// Nobody is called yet.
    pub fn new(workspace: &'w Workspace) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| Error::new(Kind::Infra, "runtime", "could not start threads").cause(e))?;
        Ok(Self {
            workspace,
            runtime,
            local: local(workspace)?,
            away: BTreeMap::new(),
            secrets: fleet::secrets::of_all(workspace),
            blind: Vec::new(),
        })
    }

    /// The process of a token, while it runs.
    pub fn running(
        &mut self,
        store: &Store,
        run: &Run,
        (place, home): (&Place, &Home),
        token: &Token,
    ) -> Result<Option<Handle>> {
        let away = match place.role {
            Some(_) if home.is_away() => Some(self.executor(store, run)?),
            _ => None,
        };
        let executor: &dyn Executor = match (&away, &self.local) {
            (Some(Some(executor)), _) => &**executor,
            (None, Some(local)) => local,
            (Some(None), _) | (None, None) => return Ok(None),
        };
        let host = place.spec();
        self.runtime.block_on(async {
            let Some(handle) = executor.find(&host, token).await? else {
                return Ok(None);
            };
            let runs = executor.poll(&handle).await? == Status::Running;
            Ok(runs.then_some(handle))
        })
    }

    /// What was written from there on; nothing any more once its record is stored.
    pub fn log(&self, handle: &Handle, stream: Stream, offset: u64) -> Result<Vec<u8>> {
        let away = self.away.values().flatten();
        let mut all = away
            .map(|away| &**away)
            .chain(self.local.iter().map(|local| local as &dyn Executor));
        let Some(executor) = all.find(|executor| executor.name() == handle.executor) else {
            return Ok(Vec::new());
        };
        let log = self.secrets.log(executor, handle, stream, offset);
        match self.runtime.block_on(log) {
            Err(error) if trouble::of(&error).is_some() => Err(error),
            read => Ok(read.unwrap_or_default()),
        }
    }

    fn executor(&mut self, store: &Store, run: &Run) -> Result<Option<Arc<dyn Executor>>> {
        let name = &run.info.platform;
        if let Some(known) = self.away.get(name) {
            return Ok(known.clone());
        }
        let mut found = None;
        if let Some(platform) = self.workspace.platforms.get(name) {
            let mut platform = platform.clone();
            platform.ssh.patience_s = platform.ssh.patience_s.min(PATIENCE_S);
            platform.slurm.patience_s = platform.slurm.patience_s.min(PATIENCE_S);
            let hosts = fleet::left_on(&platform, store)?;
            let looking = fleet::look(self.workspace, &platform, &hosts);
            found = self.runtime.block_on(looking)?;
        }
        if found.is_none() {
            self.blind.push(format!(
                "run {} left something on hosts that platform `{name}` does not have any more: it is not shown",
                run.info.run_id
            ));
        }
        self.away.insert(name.clone(), found.clone());
        Ok(found)
    }
}

/// An executor that only looks; none where nothing was ever started.
pub fn local(workspace: &Workspace) -> Result<Option<LocalExecutor>> {
    let root = workspace.state_dir.join("exec");
    if !root.is_dir() {
        return Ok(None);
    }
    let doe = std::env::current_exe()
        .map_err(|e| Error::new(Kind::Infra, "io", "cannot tell where `doe` is").cause(e))?;
    let options = LocalOptions {
        keep_on_death: true,
        ..LocalOptions::new(doe)
    };
    LocalExecutor::new(root, options).map(Some)
}
