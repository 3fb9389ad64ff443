//! The results that an analysis reads, put where its scripts can read them: as they lie in the store,
//! for analyses run beside `doe`.

use std::path::Path;

use super::job::{InputRef, Job};
use crate::error::{Error, Kind, Result};
use crate::rule::model::RuleKind;

/// Writes the list of a node's inputs, where its scripts name it.
pub(super) fn put(job: &Job, list: &Path) -> Result<()> {
    // Nobody else can name them.
    if job.rule.kind != RuleKind::Analysis || !job.rule.mentions_inputs() {
        return Ok(());
    }
    let folder = list.parent().unwrap_or(list);
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, &e))?;
    if job.resumed.is_some() {
        // Written by the run that was killed; its steps may be reading it.
        return Ok(());
    }
    let mut inputs = job.inputs.clone();
    for path in inputs
        .iter_mut()
        .flat_map(|input| input.outputs.values_mut())
    {
        // Scripts work elsewhere than `doe` does.
        *path = std::path::absolute(&*path).map_err(|e| Error::io("find", path, &e))?;
    }
    write(list, &inputs)
}

fn write(path: &Path, inputs: &[InputRef]) -> Result<()> {
    let text = serde_json::to_vec_pretty(inputs)
        .map_err(|e| Error::new(Kind::Bug, "inputs", "inputs are not JSON").cause(e))?;
    std::fs::write(path, text).map_err(|e| Error::io("write", path, &e))
}
