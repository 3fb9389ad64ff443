//! The results that a node reads, put where its scripts can read them: as they lie in the store,
//! or, when its scripts run elsewhere, as verified copies under their digests.

use std::path::{Path, PathBuf};

use doe_cache::Digest;

use super::context::Context;
use super::job::{InputRef, Job};
use crate::error::{Error, Kind, Result};

/// Writes the list of a node's inputs, where its scripts name it; its path as they see it.
pub(super) async fn put(context: &Context, job: &Job, list: PathBuf) -> Result<PathBuf> {
    if !job.rule.mentions_inputs() {
        return Ok(list);
    }
    let folder = list.parent().unwrap_or(&list);
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, &e))?;
    let elsewhere = context.site(!job.roles.is_empty()).is_some();
    if job.resumed.is_some() && !elsewhere {
        // Written by the run that was killed; its steps may be reading it.
        return Ok(list);
    }
    let mut inputs = job.inputs.clone();
    for path in inputs
        .iter_mut()
        .flat_map(|input| input.outputs.values_mut())
    {
        // Scripts work elsewhere than `doe` does.
        *path = std::path::absolute(&*path).map_err(|e| Error::io("find", path, &e))?;
    }
    if !elsewhere || job.inputs.is_empty() {
        write(&list, &inputs)?;
        return Ok(list);
    }
    let mut files = Vec::new();
    for path in inputs.iter().flat_map(|input| input.outputs.values()) {
        files.push((Digest::of_file(path)?, path.clone()));
    }
    let mut staged = PathBuf::new();
    for role in &job.roles {
        let host = context.host(Some(role))?;
        let paths = context.executor.stage(&host, &files).await?;
        // The same on every host: they are named by their content.
        let mut paths = paths.into_iter();
        for path in inputs
            .iter_mut()
            .flat_map(|input| input.outputs.values_mut())
        {
            *path = paths.next().ok_or_else(|| {
                Error::new(Kind::Bug, "not-staged", "an input has no path on its host")
            })?;
        }
        write(&list, &inputs)?;
        let one = [(Digest::of_file(&list)?, list.clone())];
        if let Some(path) = context.executor.stage(&host, &one).await?.pop() {
            staged = path;
        }
    }
    Ok(staged)
}

fn write(path: &Path, inputs: &[InputRef]) -> Result<()> {
    let text = serde_json::to_vec_pretty(inputs)
        .map_err(|e| Error::new(Kind::Bug, "inputs", "inputs are not JSON").cause(e))?;
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}
