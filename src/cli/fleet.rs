//! What runs the scripts of a platform: its executor, the one of this machine, and where things
//! are on the hosts. Made in one place for every command, so that nothing else knows which
//! executors there are.

mod callers;
mod connect;
mod ground;
pub mod secrets;
mod ship;
pub mod slurm;
mod ssm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe_cache::{Run, RunStatus, Store};

pub use self::callers::Callers;
pub use self::connect::file;
use self::ground::Ground;
use crate::engine::facts::ask as facts;
use crate::engine::intent::{self, Open};
use crate::engine::remains::{Away, Remains, Within};
use crate::error::Result;
use crate::exec::local::{LocalExecutor, LocalOptions};
use crate::exec::nobody::Nobody;
use crate::exec::{Executor, HostSpec, Site};
use crate::plan::model::{Platform, Workspace};

/// Executors that there are.
pub const EXECUTORS: [&str; 4] = ["local", "ssh", "slurm", "ssm"];

/// See the module.
pub struct Fleet {
    /// Runs what has a role.
    pub executor: Arc<dyn Executor>,
    /// Runs what has none.
    pub local: Arc<LocalExecutor>,
    /// Where things are on the hosts, when these are not this machine.
    pub site: Option<Site>,
    /// Folders put first on the path of scripts on this machine: the simulated tools.
    pub path_prefix: Vec<PathBuf>,
    /// Environment of scripts on this machine.
    pub env: BTreeMap<String, String>,
    /// What killed runs left.
    pub remains: Remains,
}

/// The hosts of a platform, connected to, with everything there that scripts call. Nothing of what
/// killed runs left is touched: who looks, or only asks, may stop here.
pub struct Near {
    ground: Option<Ground>,
    site: Option<Site>,
    path_prefix: Vec<PathBuf>,
    env: BTreeMap<String, String>,
}

impl Near {
    /// Connects to the `needed` hosts. `doe` is this program, and shipped for the `callers`. Who is
    /// about to go on with what a killed run left there, and holds the writer's lock, attends to it
    /// from here on.
    pub async fn new(
        workspace: &Workspace,
        platform: &Platform,
        needed: &[HostSpec],
        (doe, callers): (&Path, &Callers),
        attends: bool,
    ) -> Result<Self> {
        let ground = Ground::new(workspace, platform, needed).await?;
        if let (true, Some(ground)) = (attends, &ground) {
            // Before anybody looks, and before what takes its time: what is seen to run must not
            // end for want of us.
            let name = connect::lease_of(workspace, platform)?;
            ground.guard(&name, workspace.survive).await?;
        }
        let mut near = Self {
            ground,
            site: None,
            path_prefix: Vec::new(),
            env: BTreeMap::new(),
        };
        match &near.ground {
            Some(ground) => {
                let site = ship::settle(ground, workspace, platform, (doe, callers)).await?;
                near.site = Some(site);
            }
            None => (near.path_prefix, near.env) = ship::surroundings(workspace, platform, doe)?,
        }
        Ok(near)
    }

    /// What asks these hosts what they are, now.
    pub async fn ask(
        &self,
        workspace: &Workspace,
        platform: &Platform,
        hosts: &[HostSpec],
        doe: &Path,
    ) -> Result<Option<Platform>> {
        let executor: Arc<dyn Executor> = match &self.ground {
            Some(ground) => ground.executor(),
            None => {
                // Without a reaper of its own: who guards what a killed run left goes on to do so.
                let options = LocalOptions {
                    keep_on_death: true,
                    ..LocalOptions::new(doe)
                };
                let root = workspace.state_dir.join("exec");
                Arc::new(LocalExecutor::new(root, options)?)
            }
        };
        let ground = facts::Ground {
            executor: &*executor,
            site: self.site.as_ref(),
            path_prefix: &self.path_prefix,
            env: &self.env,
            doe,
            state: &workspace.state_dir,
        };
        facts::ask(&ground, platform, hosts).await
    }
}

/// Whether a build with this platform that needs no host has to ask one all the same: a killed run
/// left something there.
pub fn is_left(platform: &Platform, store: &Store) -> Result<bool> {
    let killed = |run: &Run, _: &Open| run.status == RunStatus::Running;
    Ok(!left_by(killed, platform, store)?.is_empty())
}

/// The `needed` hosts, those that killed runs left something on, and those of an ended run that left
/// something on a needed one: what is on several hosts is ended as a whole. None when none is needed.
pub fn with_left(platform: &Platform, needed: &[HostSpec], store: &Store) -> Result<Vec<HostSpec>> {
    let mut hosts = needed.to_vec();
    if !hosts.is_empty() {
        // What a run that ended could not end keeps nobody off other hosts: it is told of.
        let is_needed = |host: &str| needed.iter().any(|known| known.name == host);
        let in_the_way = |run: &Run, open: &Open| {
            let mut places = open.on_hosts().filter(|(_, home)| home.is_away());
            run.status == RunStatus::Running || places.any(|(place, _)| is_needed(&place.host))
        };
        let left = left_by(in_the_way, platform, store)?.into_iter();
        hosts.extend(left.filter(|host| !needed.iter().any(|known| known.name == host.name)));
    }
    Ok(hosts)
}

/// Makes what runs the scripts of a platform on its hosts, and looks for what killed runs left.
/// The caller holds the writer's lock.
pub async fn make(
    workspace: &Workspace,
    platform: &Platform,
    near: Near,
    store: &Store,
    doe: &Path,
) -> Result<Fleet> {
    let options = LocalOptions {
        survive: workspace.survive,
        ..LocalOptions::new(doe)
    };
    let local = LocalExecutor::new(workspace.state_dir.join("exec"), options)?;
    let reached = Reached::with(platform, near.ground, local);
    if let Some(ground) = &reached.ground {
        // What is on its way to a host could begin after we have looked.
        let open = intent::open_runs(store)?;
        let tokens = open.iter().flat_map(|(_, open)| open.tokens().cloned());
        ground.recall(&tokens.collect(), reached.private).await?;
    }
    // From here on our reaper guards what a killed run left on this machine.
    let remains = reached.remains(store).await?;
    Ok(Fleet {
        executor: reached.executor(),
        local: reached.local,
        site: near.site,
        path_prefix: near.path_prefix,
        env: near.env,
        remains,
    })
}

/// The hosts of a platform that runs left something on, as far as the platform has them.
pub fn left_on(platform: &Platform, store: &Store) -> Result<Vec<HostSpec>> {
    left_by(|_, _| true, platform, store)
}

fn left_by(
    counts: impl Fn(&Run, &Open) -> bool,
    platform: &Platform,
    store: &Store,
) -> Result<Vec<HostSpec>> {
    let mut hosts: Vec<HostSpec> = Vec::new();
    for (run, open) in intent::open_runs(store)? {
        if run.info.platform != platform.name || !counts(&run, &open) {
            continue;
        }
        for (place, _) in open.on_hosts().filter(|(_, home)| home.is_away()) {
            let known = hosts.iter().any(|host| host.name == place.host);
            if let (false, Some(host)) = (known, platform.hosts.get(&place.host)) {
                hosts.push(HostSpec {
                    name: host.name.clone(),
                    address: host.address.clone(),
                    gpus: host.gpus,
                });
            }
        }
    }
    Ok(hosts)
}

/// The executors of a platform, before anything is shipped.
pub struct Reached {
    /// Of this machine.
    pub local: Arc<LocalExecutor>,
    ground: Option<Ground>,
    platform: String,
    /// Whether the hosts are other machines.
    elsewhere: bool,
    /// Whether what nobody announced can only be this workspace's.
    private: bool,
}

impl Reached {
    /// Connects to these hosts of the platform; to none where they are this machine.
    pub async fn new(
        workspace: &Workspace,
        platform: &Platform,
        hosts: &[HostSpec],
        local: LocalExecutor,
    ) -> Result<Self> {
        let ground = Ground::new(workspace, platform, hosts).await?;
        Ok(Self::with(platform, ground, local))
    }

    fn with(platform: &Platform, ground: Option<Ground>, local: LocalExecutor) -> Self {
        Self {
            local: Arc::new(local),
            platform: platform.name.clone(),
            elsewhere: platform.executor != "local",
            private: root_in_plan(platform).contains("%w"),
            ground,
        }
    }

    /// What runs scripts that have a role.
    pub fn executor(&self) -> Arc<dyn Executor> {
        match &self.ground {
            Some(ground) => ground.executor(),
            // Nobody was connected to: nothing of theirs may run here instead.
            None if self.elsewhere => Arc::new(Nobody),
            None => self.local.clone(),
        }
    }

    /// What killed runs left.
    pub async fn remains(&self, store: &Store) -> Result<Remains> {
        let mut living = self.local.sweep().await?;
        if let (true, Some(ground)) = (self.private, &self.ground) {
            living.extend(ground.living().await?);
        }
        let executor = self.executor();
        let within = Within {
            executor: &*executor,
            local: &*self.local,
            away: self.ground.as_ref().map(|ground| Away {
                platform: &self.platform,
                root: ground.root(),
                hosts: &ground.hosts,
            }),
        };
        Remains::find(store, within, living).await
    }
}

/// The folder on the hosts, as the platform says it.
fn root_in_plan(platform: &Platform) -> &str {
    match platform.executor.as_str() {
        "ssm" => &platform.ssm.root,
        "slurm" => &platform.slurm.root,
        _ => &platform.ssh.root,
    }
}

/// What runs scripts on these hosts, for somebody who only looks; none where they are this machine.
pub async fn look(
    workspace: &Workspace,
    platform: &Platform,
    hosts: &[HostSpec],
) -> Result<Option<Arc<dyn Executor>>> {
    let ground = Ground::new(workspace, platform, hosts).await?;
    Ok(ground.map(|ground| ground.executor()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::workspace::LoadOptions;
    use doe_cache::RunInfo;

    /// Two hosts elsewhere; an ended run left a node on both.
    #[test]
    fn what_an_ended_run_left_on_a_needed_host_is_looked_for_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("doe.toml"),
            "[workspace]\nplatform = \"pair\"\n[platform.pair]\nexecutor = \"ssh\"\nroles = { \"*\" = \"h1\" }\n\
             [platform.pair.host.\"h[1-3]\"]\naddress = \"10.0.0.[1-3]\"\n",
        )
        .unwrap();
        std::fs::create_dir(dir.path().join("plans")).unwrap();
        let workspace = Workspace::load(dir.path(), &LoadOptions::default())
            .unwrap_or_else(|error| panic!("{:#?}", error.diagnostics));
        let platform = &workspace.platforms["pair"];
        let store = Store::open(dir.path().join(".doe")).unwrap();
        let began = RunInfo {
            run_id: "r".into(),
            command: "test".into(),
            platform: "pair".into(),
            simulated: false,
            doe_version: "0".into(),
            host: "here".into(),
            pid: 1,
            started_unix_ms: 1,
        };
        store.begin_run(&began).unwrap();
        store.end_run("r", RunStatus::Failed).unwrap();
        let runs = store.layout().runs();
        std::fs::create_dir_all(runs.join("r")).unwrap();
        let marks = runs.with_file_name("left");
        std::fs::create_dir_all(&marks).unwrap();
        std::fs::write(marks.join("r"), "").unwrap();
        let step = |host: &str| {
            format!(
                r#"{{"name":"{host}","token":"r.{host}","place":{{"role":"a","host":"{host}","address":"x"}}}}"#
            )
        };
        let node = format!(
            r#"{{"intent":"node","token":"r.n","label":"//t:p","action":"{}","home":{{"run_id":"r","run_dir":"/r","host_dir":"/h/r"}},"scratch":"n0","ports":{{}},"attempt":1,"services":[],"steps":[{},{}],"acquired_unix_ms":1}}"#,
            doe_cache::Digest::of("a"),
            step("h1"),
            step("h2")
        );
        std::fs::write(runs.join("r/intents.jsonl"), node).unwrap();
        let spec = |name: &str| HostSpec {
            name: name.into(),
            address: format!("10.0.0.{}", &name[1..]),
            gpus: 0,
        };
        let names = |needed: &[HostSpec]| -> Vec<String> {
            let hosts = with_left(platform, needed, &store).unwrap();
            hosts.into_iter().map(|host| host.name).collect()
        };
        assert_eq!(names(&[spec("h1")]), ["h1", "h2"]);
        assert_eq!(names(&[spec("h3")]), ["h3"], "it is in nobody's way");
        assert_eq!(names(&[]), Vec::<String>::new());
    }
}
