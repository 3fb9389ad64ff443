//! Members of a gang as one heterogeneous job: a component for each node, which Slurm hands out
//! together or not at all. Each member is a step of its component and runs what a job of its own
//! would; the job ends with the last of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::OVER;
use super::queue::{Job, JobKey, Queue};
use super::submit::{Asked, Place, go, nonce_of, placed};
use crate::exec::folder::{self, Claim};

/// Between components, for `sbatch`.
const AND: &str = ":";

/// Whether starts that came together go as one job: they need more than one node, and none sees the
/// GPUs of another. A step has all those of its component, which is one for each node.
pub fn is_gang(place: &Place, asked: &[Asked]) -> bool {
    let hosts: BTreeSet<&str> = asked.iter().map(host).collect();
    let alone = hosts.len() == asked.len();
    hosts.len() > 1 && (alone || asked.iter().all(|(start, _)| place.gpus(start) == 0))
}

fn host(asked: &Asked) -> &str {
    &asked.0.host.name
}

/// Submits them as one job. Its components are over when it is, so all have the longest limit.
pub async fn submit_gang(queue: &Queue, place: &Place, asked: Vec<Asked>) {
    let mut hosts: Vec<String> = Vec::new();
    let (mut places, mut minutes, mut unlimited) = (Vec::new(), 0, false);
    for one in &asked {
        let start = &one.0;
        let known = hosts.iter().position(|name| name == host(one));
        let at = known.unwrap_or_else(|| {
            hosts.push(host(one).to_owned());
            hosts.len() - 1
        });
        places.push(u32::try_from(at).unwrap_or(u32::MAX));
        let limit = place.limits.minutes(queue, start.timeout, &start.ask).await;
        unlimited |= limit == 0;
        minutes = limit.max(minutes);
    }
    let minutes = if unlimited { 0 } else { minutes };
    // How many a node has, and their GPUs.
    let mut on: Vec<(u32, u32)> = vec![(0, 0); hosts.len()];
    for (at, (start, _)) in places.iter().zip(&asked) {
        let (count, gpus) = &mut on[*at as usize];
        *count += 1;
        *gpus += place.gpus(start);
    }
    let line = |nonce: &str, comment: &str| {
        let mut arguments = Vec::new();
        for (host, (count, gpus)) in hosts.iter().zip(on) {
            if !arguments.is_empty() {
                arguments.push(AND.to_owned());
            }
            arguments.extend(place.options(comment, host, minutes, gpus));
            arguments.push(format!("--ntasks={count}"));
        }
        let path = |path: &Path| path.display().to_string();
        arguments.extend([path(&place.together), path(&place.root), nonce.to_owned()]);
        arguments.extend([path(&place.wrapper), path(&place.batch)]);
        arguments.extend(places.iter().map(u32::to_string));
        arguments
    };
    go(queue, place, asked, &places, minutes, line).await;
}

/// The number by which a job is ended that one of its members does not want any more. Nothing as
/// long as that would end others.
pub(super) fn to_end(root: &Path, key: &JobKey, job: &Job) -> Option<String> {
    let Some((whole, _)) = job.number.split_once('+') else {
        return Some(job.number.clone());
    };
    let list = fs::read_to_string(root.join("arrays").join(nonce_of(key))).ok()?;
    let dirs = list.lines().map(|token| root.join("runs").join(token));
    let users: Vec<u32> = dirs.filter_map(|dir| uses(&dir, key)).collect();
    // Slurm takes none out of what waits, and all end with the first, which runs the job itself.
    let alone = key.index > 0 && !job.waits() && !users.contains(&key.index);
    match users.is_empty() {
        true => Some(whole.to_owned()),
        false => alone.then(|| job.number.clone()),
    }
}

/// The component that an execution still wants; none when it ended, is to end, never begins, or is
/// elsewhere.
fn uses(dir: &Path, key: &JobKey) -> Option<u32> {
    let has = |name: &str| dir.join(name).exists();
    let claim = Claim::read(dir).ok().flatten();
    let revoked = claim.is_some_and(|claim| claim.boot_id == folder::REVOKED);
    if !dir.exists() || has(OVER) || has("unwanted") || revoked {
        return None;
    }
    let place = placed(dir).ok()??;
    (place.comment == key.comment).then_some(place.index)
}
