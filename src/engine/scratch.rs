//! Short paths for temporary files. Programs make sockets below `TMPDIR`, whose paths may have
//! 107 bytes; the folder of a run alone can be longer. So each run has one short link to its
//! folder, gone when the run is; a link that a killed run left behind goes with the next run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use doe_cache::Digest;

use crate::error::{Error, Result};

/// The link to a run's folder, removed on drop.
#[derive(Debug)]
pub(crate) struct Scratch {
    run_dir: PathBuf,
    link: PathBuf,
    /// Empty folders that were given back.
    free: Mutex<Vec<PathBuf>>,
    made: AtomicU64,
}

impl Scratch {
    /// Makes the link. Where none can be made the long path is used.
    pub(crate) fn new(run_id: &str, run_dir: &Path) -> Self {
        let link = link_of(run_id);
        // One that a killed run left leads to the same folder: what goes on of it uses it.
        let made = std::os::unix::fs::symlink(run_dir, &link).is_ok()
            || std::fs::read_link(&link).is_ok_and(|to| to == run_dir);
        Self {
            link: if made { link } else { run_dir.to_owned() },
            run_dir: run_dir.to_owned(),
            free: Mutex::default(),
            made: AtomicU64::new(0),
        }
    }

    /// A folder for the temporary files of one process.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let below = Path::new("tmp").join(name);
        let real = self.run_dir.join(&below);
        std::fs::create_dir_all(&real).map_err(|e| Error::io("make", &real, &e))?;
        Ok(self.link.join(below))
    }

    /// An empty folder for the temporary files of one process that ends with this program, under a
    /// name that no other process was ever told.
    pub(crate) fn borrow(&self) -> Result<PathBuf> {
        let name = || format!("b{}", self.made.fetch_add(1, Ordering::Relaxed));
        let free = locked(&self.free).pop();
        if let Some(free) = free {
            // Making and removing one for each process is what file systems are slow at.
            let folder = free.with_file_name(name());
            if std::fs::rename(&free, &folder).is_ok() && is_empty(&folder) {
                return Ok(folder);
            }
        }
        self.folder(&name())
    }

    /// Gives a borrowed folder back. Another process may get it under another name: what this one
    /// has left running does not find it any more. One with something in it stays, for whoever
    /// looks closer.
    pub(crate) fn give_back(&self, folder: PathBuf) {
        if is_empty(&folder) {
            locked(&self.free).push(folder);
        }
    }

    /// Removes the link of a run that was killed.
    pub(crate) fn forget(run_id: &str) {
        remove(&link_of(run_id));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.link != self.run_dir {
            remove(&self.link);
        }
    }
}

fn locked(free: &Mutex<Vec<PathBuf>>) -> MutexGuard<'_, Vec<PathBuf>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn link_of(run_id: &str) -> PathBuf {
    let name = format!("doe-{}", &Digest::of(run_id).short()[..10]);
    std::env::temp_dir().join(name)
}

fn remove(link: &Path) {
    // Never anything but a link; one that is gone already is fine.
    if std::fs::symlink_metadata(link).is_ok_and(|meta| meta.file_type().is_symlink()) {
        let _ = std::fs::remove_file(link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_short_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("a-long-name".repeat(9)).join("run");
        std::fs::create_dir_all(&run_dir).unwrap();
        let id = format!("scratch-test-{}", std::process::id());
        let scratch = Scratch::new(&id, &run_dir);
        let borrowed = [scratch.borrow().unwrap(), scratch.borrow().unwrap()];
        assert_ne!(borrowed[0], borrowed[1]);
        std::fs::write(borrowed[0].join("left"), "").unwrap();
        let [used, clean] = borrowed;
        scratch.give_back(used.clone());
        scratch.give_back(clean.clone());
        // The empty one, but what may still run does not find it; then a new one.
        let again = [scratch.borrow().unwrap(), scratch.borrow().unwrap()];
        assert!(again.iter().all(|folder| is_empty(folder)));
        assert!(!again.contains(&used) && !again.contains(&clean));
        assert_eq!((used.exists(), clean.exists()), (true, false));
        // One that was written to after it was given back is nobody's.
        scratch.give_back(again[0].clone());
        std::fs::write(again[0].join("late"), "").unwrap();
        assert!(is_empty(&scratch.borrow().unwrap()));
        let folder = scratch.folder("n17").unwrap();
        assert!(folder.as_os_str().len() < 60, "{folder:?}");
        std::os::unix::net::UnixListener::bind(folder.join("x".repeat(36))).unwrap();
        assert!(run_dir.join("tmp/n17").is_dir());
        let link = scratch.link.clone();
        drop(scratch);
        assert!(std::fs::symlink_metadata(&link).is_err());
        assert!(run_dir.join("tmp/n17").is_dir());
        std::mem::forget(Scratch::new(&id, &run_dir));
        Scratch::forget(&id);
        assert!(std::fs::symlink_metadata(&link).is_err());
    }
}
