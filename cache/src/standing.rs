//! Where a store stands, told without asking it anything: two equal standings mean that every
//! question to the index has the same answer. A standing is made of the generation, which each
//! transaction moves on, and of how the files look from outside, so that a store that was edited,
//! restored or tidied by other hands does not look the same either.

use crate::canon::KeyEncoder;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::layout::Layout;
use crate::value::Value;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    generation: Generation,
    digest: Digest,
}

impl Standing {
    /// How the store at `root` stands; `None` where there is no index yet.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Corrupt`] from the index; [`Error::Io`].
    pub fn of(root: impl AsRef<Path>) -> Result<Option<Self>> {
        let layout = Layout::new(root.as_ref());
        let Some(file) = meta(&layout.index())? else {
            return Ok(None);
        };
        let Some(generation) = Generation::of(layout.root())? else {
            return Ok(None);
        };
        let Generation { epoch, count } = generation;
        let mut looks = vec![Value::Int(epoch), Value::Int(count), mark("index", &file)];
        // A log without content says as much as none: readers leave one behind.
        let log = meta(&layout.index().with_extension("sqlite-wal"))?;
        if let Some(log) = log.filter(|log| log.len() > 0) {
            // Who opens it as root sets its owner anew, which moves the time of its inode.
            let size = Value::Int(log.size() as i64);
            let (s, ns) = (Value::Int(log.mtime()), Value::Int(log.mtime_nsec()));
            looks.push(Value::List(vec![size, s, ns]));
        }
        // Who deletes a record or a blob changes the folder it was in. To look at all of them is
        // most of what nothing to do costs, so two threads do.
        let (records, blobs) = std::thread::scope(|scope| {
            let blobs =
                std::thread::Builder::new().spawn_scoped(scope, || folders("blobs", &layout.cas()));
            let records = folders("records", &layout.records());
            let blobs = blobs.ok().and_then(|thread| thread.join().ok());
            (records, blobs)
        });
        looks.extend(records?);
        // Where no thread is to be had.
        looks.extend(blobs.unwrap_or_else(|| folders("blobs", &layout.cas()))?);
        let mut key = KeyEncoder::new("doe.standing", 1);
        key.entry("looks", &Value::List(looks));
        Ok(Some(Self {
            generation,
            digest: key.finish(),
        }))
    }

    /// What every transaction moves on: equal ones mean that nothing was written in between by a
    /// program that goes through this crate.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The digest that stands for it.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

fn meta(path: &Path) -> Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look at", path, &e)),
    }
}

fn mark(name: &str, meta: &Metadata) -> Value {
    let whole = |number: u64| Value::Int(number as i64);
    Value::List(vec![
        Value::from(name),
        whole(meta.dev()),
        whole(meta.ino()),
        whole(meta.size()),
        Value::Int(meta.mtime()),
        Value::Int(meta.mtime_nsec()),
        Value::Int(meta.ctime()),
        Value::Int(meta.ctime_nsec()),
    ])
}

fn folders(name: &str, dir: &Path) -> Result<Vec<Value>> {
    let Some(own) = meta(dir)? else {
        return Ok(Vec::new());
    };
    let mut looks = vec![mark(name, &own)];
    let failed = |e| Error::io("look at", dir, &e);
    let mut inside = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        inside.push((entry.file_name(), entry.metadata().map_err(failed)?));
    }
    inside.sort_by(|a, b| a.0.cmp(&b.0));
    for (below, meta) in inside {
        looks.push(mark(&format!("{name}/{}", below.to_string_lossy()), &meta));
    }
    Ok(looks)
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
