//! The cluster of a platform whose nodes are had from Slurm, from what `doe.toml` says.

use std::path::PathBuf;
use std::time::Duration;

use super::connect::{GRACE, file, root_of};
use crate::error::Result;
use crate::exec::slurm::{Chain, Drivers, SlurmExecutor, SlurmOptions};
use crate::plan::model::{DriverTable, Platform, SlurmTable, Workspace};

/// How long a start waits for its job. What waits longer is waited for like what runs, and so can
/// be interrupted.
const QUEUE: Duration = Duration::from_secs(10);

/// Finds the controller, and makes the shared folder.
pub async fn connect(workspace: &Workspace, platform: &Platform) -> Result<SlurmExecutor> {
    let SlurmTable {
        partition,
        account,
        qos,
        reservation,
        constraint,
        cpus,
        gres,
        service_time_s,
        together,
        config: _,
        driver: _,
        root: _,
        patience_s,
        path: _,
        doe: _,
    } = &platform.slurm;
    let words = options([
        ("partition", partition),
        ("account", account),
        ("qos", qos),
        ("reservation", reservation),
        ("constraint", constraint),
    ]);
    let cpus = cpus.map(|cpus| format!("--cpus-per-task={cpus}"));
    let options = SlurmOptions {
        root: shared_root(workspace, platform)?,
        config: config(workspace, platform),
        common: words.chain(cpus).collect(),
        gres: gres.clone(),
        service_time: service_time_s.and_then(|s| Duration::try_from_secs_f64(s).ok()),
        together: *together,
        patience: Duration::try_from_secs_f64(*patience_s).unwrap_or(Duration::MAX),
        queue: QUEUE,
        grace: GRACE,
    };
    SlurmExecutor::new(options).await
}

/// What `sbatch` is told of the jobs that drive.
pub fn driver_options(platform: &Platform) -> Vec<String> {
    let (all, driver) = (&platform.slurm, &platform.slurm.driver);
    let DriverTable {
        partition,
        account,
        qos,
        constraint,
        time_s,
        count: _,
    } = driver;
    let or = |own: &Option<String>, all: &Option<String>| own.clone().or_else(|| all.clone());
    // A reservation is of nodes, and these need not be in it.
    let reservation = match partition {
        Some(_) => None,
        None => all.reservation.clone(),
    };
    let words = options([
        ("partition", &or(partition, &all.partition)),
        ("account", &or(account, &all.account)),
        ("qos", &or(qos, &all.qos)),
        ("reservation", &reservation),
        ("constraint", constraint),
    ])
    .collect::<Vec<_>>();
    let minutes = time_s.map(|time_s| (time_s / 60.0).ceil() as u64);
    let limit = minutes.map(|minutes| format!("--time={}", minutes.max(1)));
    words.into_iter().chain(limit).collect()
}

/// What looks at a chain of drivers.
pub fn drivers(workspace: &Workspace, platform: &Platform, chain: Chain) -> Drivers {
    let patience = Duration::try_from_secs_f64(platform.slurm.patience_s);
    let patience = patience.unwrap_or(Duration::MAX);
    Drivers::new(chain, config(workspace, platform), patience)
}

fn options<const N: usize>(
    words: [(&'static str, &Option<String>); N],
) -> impl Iterator<Item = String> {
    let set = |(option, word): (&str, &Option<String>)| {
        let word = word.as_ref()?;
        Some(format!("--{option}={word}"))
    };
    let words: Vec<String> = words.into_iter().filter_map(set).collect();
    words.into_iter()
}

/// Whether a folder is what a platform says, with anything for `%w`.
fn is_of(said: &str, root: &str) -> bool {
    let said = said.strip_prefix("~/").unwrap_or(said);
    match said.split_once("%w") {
        Some((before, after)) => root.contains(before) && root.ends_with(after),
        None => root.ends_with(said),
    }
}

fn config(workspace: &Workspace, platform: &Platform) -> Option<PathBuf> {
    let config = platform.slurm.config.as_ref();
    config.map(|path| file(workspace, path))
}

fn shared_root(workspace: &Workspace, platform: &Platform) -> Result<PathBuf> {
    // Who drives on a node, or looks at that from elsewhere, uses the folder that the client had;
    // the name of the machine is a part of what tells workspaces apart.
    let chain = match Chain::own()? {
        Some(own) => Some(own),
        None => {
            Chain::last(&workspace.state_dir)?.filter(|chain| !matches!(chain.over(), Ok(Some(_))))
        }
    };
    if let Some(chain) = chain
        && chain.order.platform == platform.name
        && is_of(&platform.slurm.root, &chain.root.display().to_string())
    {
        return Ok(chain.root);
    }
    // It is a folder of this machine too.
    let root = root_of(workspace, &platform.slurm.root)?;
    Ok(match root.strip_prefix("~/") {
        Some(_) => file(workspace, &root),
        None => PathBuf::from(root),
    })
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn a_folder_that_the_platform_does_not_say_any_more_is_not_used() {
        assert!(is_of("/shared/me/%w", "/shared/me/0123456789ab"));
        assert!(is_of("~/.doe-host/%w", "/home/me/.doe-host/0123456789ab"));
        assert!(!is_of("/scratch/me/%w", "/shared/me/0123456789ab"));
        assert!(!is_of("/shared/me/%w/x", "/shared/me/0123456789ab"));
        assert!(is_of("/shared/all", "/shared/all") && !is_of("/shared/all", "/shared/one"));
    }
}
