//! Staged files on the shared folder. Beside each lies what a node can hold it against: this machine
//! has verified it, but whether a node sees the same is the file system's business, so each node
//! looks for itself before the first use (`batch.sh`).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use doe_cache::Digest;

use crate::error::Result;
use crate::exec::files::{Blobs, changed, sums};
use crate::exec::folder;

/// Blobs with their SHA-256, which every node can make: none has BLAKE3.
#[derive(Debug)]
pub struct Staged {
    blobs: Blobs,
    noted: Mutex<HashSet<Digest>>,
}

impl Staged {
    /// The blobs of a folder.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            blobs: Blobs::new(dir),
            noted: Mutex::default(),
        }
    }

    /// Makes sure that a blob is there and right, and beside it its sum. Returns its path. Blocks.
    pub fn put(&self, digest: Digest, source: &Path) -> Result<PathBuf> {
        let blob = self.blobs.put(digest, source)?;
        let noted = || self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted().contains(&digest) {
            return Ok(blob);
        }
        let (found, sha256) = sums(&blob)?;
        if found != digest {
            return Err(changed(&blob));
        }
        let path = blob.with_extension("sha256");
        let text = format!("{sha256}\n");
        if folder::read_if_there(&path)?.as_ref() != Some(&text) {
            folder::replace(&path, text.as_bytes())?;
        }
        noted().insert(digest);
        Ok(blob)
    }
}
