//! The cluster of a platform whose nodes are had from Slurm, from what `doe.toml` says.

use std::path::PathBuf;
use std::time::Duration;

use super::connect::{GRACE, file, root_of};
use crate::error::Result;
use crate::exec::slurm::{SlurmExecutor, SlurmOptions};
use crate::plan::model::{Platform, SlurmTable, Workspace};

/// How long a start waits for its job. What waits longer is waited for like what runs, and so can
/// be interrupted.
const QUEUE: Duration = Duration::from_secs(10);

/// Finds the controller, and makes the shared folder.
pub(super) async fn connect(workspace: &Workspace, platform: &Platform) -> Result<SlurmExecutor> {
    let SlurmTable {
        partition,
        account,
        qos,
        reservation,
        constraint,
        cpus,
        config,
        root,
        patience_s,
        path: _,
        doe: _,
    } = &platform.slurm;
    let words = [
        ("partition", partition),
        ("account", account),
        ("qos", qos),
        ("reservation", reservation),
        ("constraint", constraint),
    ];
    let words = words.into_iter().filter_map(|(option, word)| {
        let word = word.as_ref()?;
        Some(format!("--{option}={word}"))
    });
    let cpus = cpus.map(|cpus| format!("--cpus-per-task={cpus}"));
    // It is a folder of this machine too.
    let root = root_of(workspace, root)?;
    let options = SlurmOptions {
        root: match root.strip_prefix("~/") {
            Some(_) => file(workspace, &root),
            None => PathBuf::from(root),
        },
        config: config.as_ref().map(|path| file(workspace, path)),
        common: words.chain(cpus).collect(),
        patience: Duration::try_from_secs_f64(*patience_s).unwrap_or(Duration::MAX),
        queue: QUEUE,
        grace: GRACE,
    };
    SlurmExecutor::new(options).await
}
