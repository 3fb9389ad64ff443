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
        // To look at all of this is most of what nothing to do costs, so it is done side by side.
        let sides = [("records", layout.records()), ("blobs", layout.cas())];
        let (generation, sides) = std::thread::scope(|scope| {
            let looking = sides.each_ref().map(|(name, folder)| {
                let look = move || folders(name, folder);
                std::thread::Builder::new().spawn_scoped(scope, look).ok()
            });
            let generation = Generation::of(layout.root());
            let seen = looking.map(|thread| thread.and_then(|thread| thread.join().ok()));
            (generation, seen.into_iter().zip(&sides))
        });
        let Some(generation) = generation? else {
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
        // Who deletes a record or a blob changes the folder it was in.
        for (seen, (name, folder)) in sides {
            // Here, where no thread was to be had.
            looks.extend(seen.unwrap_or_else(|| folders(name, folder))?);
        }
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
