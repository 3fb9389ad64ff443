//! Staged files on the shared folder. This machine has verified them; whether a node sees the same is
//! the file system's business, so each execution has a list of all that it is made of, with the
//! SHA-256 of each, and its task holds what it sees against that list before anything begins.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use doe_cache::Digest;

use crate::error::{Error, Result};
use crate::exec::files::{Blobs, changed, hex, sha256_of, sums};
use crate::exec::folder;
use crate::exec::remote::call::nonce;

/// Ends the list: one that a node sees in part is none.
const END: &str = "end\n";

/// Blobs of the shared folder.
#[derive(Debug)]
pub struct Staged {
    root: PathBuf,
    blobs: Blobs,
    /// What every node can make: none has BLAKE3.
    sums: Mutex<HashMap<String, String>>,
}

impl Staged {
    /// The blobs below a root.
    pub fn new(root: PathBuf) -> Self {
        Self {
            blobs: Blobs::new(root.join("blobs")),
            root,
            sums: Mutex::default(),
        }
    }

    /// Makes sure that a blob is there and right, and knows its sum. Returns its path. Blocks.
    pub fn put(&self, digest: Digest, source: &Path) -> Result<PathBuf> {
        let path = self.blobs.put(digest, source)?;
        // What is listed later is not read again, and is missed when it is gone.
        self.sum(&hex(digest))?;
        Ok(path)
    }

    /// The same of a text.
    pub fn put_text(&self, text: &str) -> Result<PathBuf> {
        let digest = Digest(*blake3::hash(text.as_bytes()).as_bytes());
        if let Some(path) = self.blobs.find(digest)? {
            self.sum(&hex(digest))?;
            return Ok(path);
        }
        let source = self.root.join(format!(".new-{}", nonce()));
        folder::write_private(&source, text.as_bytes())?;
        let path = self.put(digest, &source);
        let _ = fs::remove_file(&source);
        path
    }

    /// What an execution is made of: its own texts but its environment, which may hold secrets, its
    /// wrapper, and what was staged and is named in any of them. Blocks.
    pub fn list(&self, run: &Path, texts: &[(&str, String)], wrapper: &Path) -> Result<String> {
        let mut list = String::new();
        let mut named = BTreeSet::new();
        for (name, text) in texts {
            if matches!(*name, folder::JOB | folder::SCRIPT) {
                let path = run.join(name);
                let path = path.strip_prefix(&self.root).unwrap_or(&path);
                list.push_str(&format!(
                    "{} {}\n",
                    sha256_of(text.as_bytes()),
                    path.display()
                ));
            }
            named.extend(after(text, "/blobs/", 64).map(str::to_owned));
            for links in after(text, "/links/", 12) {
                named.extend(linked(&self.root.join("links").join(links))?);
            }
        }
        named.extend(
            wrapper
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
        for name in named {
            // What was never staged here is another's.
            if let Some(sum) = self.sum(&name)? {
                list.push_str(&format!("{sum} blobs/{name}\n"));
            }
        }
        list.push_str(END);
        Ok(list)
    }

    fn sum(&self, name: &str) -> Result<Option<String>> {
        let known = || self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sum) = known().get(name) {
            return Ok(Some(sum.clone()));
        }
        let blob = self.root.join("blobs").join(name);
        if !blob.is_file() {
            return Ok(None);
        }
        let (found, sum) = sums(&blob)?;
        if found.hex() != name {
            return Err(changed(&blob));
        }
        known().insert(name.to_owned(), sum.clone());
        Ok(Some(sum))
    }
}

/// The names of so many hexadecimal digits that follow a mark.
fn after<'t>(text: &'t str, mark: &'t str, digits: usize) -> impl Iterator<Item = &'t str> {
    text.match_indices(mark).filter_map(move |(at, _)| {
        let name = text.get(at + mark.len()..at + mark.len() + digits)?;
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        name.bytes().all(is_hex).then_some(name)
    })
}

/// The blobs that lie in a folder of links.
fn linked(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir, &e)),
    };
    let targets = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let name = |target: PathBuf| Some(target.file_name()?.to_string_lossy().into_owned());
    Ok(targets.filter_map(name).collect())
}
