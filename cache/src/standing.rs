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
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    generation: Generation,
    folders: Digest,
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
        let sides = [layout.records(), layout.cas()];
        let (generation, sides) = std::thread::scope(|scope| {
            let looking = sides.each_ref().map(|folder| {
                let look = move || folders(folder);
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
        // Who deletes a record or a blob changes the folder it was in, and who deletes what was refused
        // ends the refusal.
        let mut seen = Vec::new();
        for (look, folder) in sides {
            // Here, where no thread was to be had.
            let look = look.unwrap_or_else(|| folders(folder))?;
            seen.extend_from_slice(Digest::of(look).as_ref());
        }
        let refused = folders(&layout.quarantine())?;
        seen.extend_from_slice(Digest::of(refused).as_ref());
        let seen = Digest::of(seen);
        looks.push(Value::from(seen.hex()));
        let mut key = KeyEncoder::new("doe.standing", 2);
        key.entry("looks", &Value::List(looks));
        Ok(Some(Self {
            generation,
            folders: seen,
            digest: key.finish(),
        }))
    }

    /// What every transaction moves on: equal ones mean that nothing was written in between by a
    /// program that goes through this crate.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What is in the folders of records, blobs and refusals, as they look from outside.
    pub fn folders(&self) -> Digest {
        self.folders
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

/// How a folder and what is in it look, in bytes that only that look has. It is asked of five hundred
/// folders whenever nothing is to do, so it makes no more of them than that.
fn folders(dir: &Path) -> Result<Vec<u8>> {
    let failed = |e: Errno| Error::io("look at", dir, &e.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match rustix::fs::open(dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    let own = rustix::fs::fstat(&opened).map_err(failed)?;
    let mut inside = Vec::with_capacity(256);
    for entry in Dir::read_from(&opened).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            // A folder may lie elsewhere; a link to nothing is what it is.
            let look = |flags| rustix::fs::statat(&opened, name.as_c_str(), flags);
            let below = look(AtFlags::empty()).or_else(|_| look(AtFlags::SYMLINK_NOFOLLOW));
            inside.push((name, below.map_err(failed)?));
        }
    }
    inside.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut looks = Vec::with_capacity(128 * (inside.len() + 1));
    write_look(&mut looks, &own);
    for (name, below) in &inside {
        // With its end, which no name has within.
        looks.extend_from_slice(name.as_bytes_with_nul());
        write_look(&mut looks, below);
    }
    Ok(looks)
}

/// Always as many bytes.
fn write_look(looks: &mut Vec<u8>, stat: &Stat) {
    // Systems differ in how wide these are.
    let numbers: [i128; 7] = [
        stat.st_dev.into(),
        stat.st_ino.into(),
        stat.st_size.into(),
        stat.st_mtime.into(),
        stat.st_mtime_nsec.into(),
        stat.st_ctime.into(),
        stat.st_ctime_nsec.into(),
    ];
    for number in numbers {
        looks.extend_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
