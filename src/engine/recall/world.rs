//! Everything that an answer can depend on, by name: the program, `doe.toml`, every rule file and
//! plan (and which of them there are), the facts of hosts, this machine, the store. Files count by their bytes, which is what they
//! say; how they look from outside is only asked to be sure that nothing moved while the answer
//! was worked out.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use doe_cache::{Digest, Generation, KeyEncoder, Standing, Value};
use serde::{Deserialize, Serialize};

use crate::engine::{facts, instruments};
use crate::error::{Error, Kind, Result};
use crate::plan::workspace::{Folders, WORKSPACE_FILE};

/// Deeper than anything the loaders follow: beyond it nothing is known.
const MAX_DEPTH: usize = 17;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folder with `doe.toml`.
    pub root: PathBuf,
    /// The other folders, as `doe.toml` names them.
    pub folders: Folders,
    /// This program.
    pub program: PathBuf,
    /// The platform that is asked about: what is known of its hosts counts.
    pub platform: String,
}

/// Digests by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    parts: BTreeMap<String, String>,
    /// Not compared with another time's: a touched file is the same file.
    #[serde(skip)]
    looks: Option<Digest>,
    #[serde(skip)]
    generation: Option<Generation>,
    /// What is in the folders of the store.
    #[serde(skip)]
    folders: Option<Digest>,
}

impl World {
    /// Looks at everything.
    ///
    /// # Errors
    /// What cannot be looked at: then nothing is known.
    pub fn look(places: &Places) -> Result<Self> {
        let mut look = Look {
            parts: BTreeMap::new(),
            looks: KeyEncoder::new("doe.looks", 1),
            count: 0,
        };
        look.parts.insert("doe".into(), program(&places.program)?);
        look.file(&places.root.join(WORKSPACE_FILE), WORKSPACE_FILE)?;
        let Folders {
            plans,
            rules,
            state,
            platform: _, // unless somebody names one
        } = &places.folders;
        for (name, folder) in [("plans", plans), ("rules", rules)] {
            look.folder(&places.root.join(folder), name, 0)?;
        }
        let known = facts::file::standing(&places.root.join(state), &places.platform);
        look.parts.insert("facts".into(), known);
        // A reading of the host that is this machine is none on another one.
        look.parts.insert("machine".into(), doe_cache::host());
        let standing = Standing::of(places.root.join(state))?;
        let said = standing.as_ref().map(|s| s.digest().hex());
        look.parts
            .insert("store".into(), said.unwrap_or_else(|| "none".into()));
        Ok(Self {
            parts: look.parts,
            looks: Some(look.looks.finish()),
            generation: standing.as_ref().map(Standing::generation),
            folders: standing.map(|standing| standing.folders()),
        })
    }

    /// Whether nothing moved since this was looked at: the files were not even touched, and the
    /// store was not written, neither by a program that goes through it nor by hand. How its index
    /// looks does not count, for who reads it may leave an empty log beside it.
    pub fn holds(&self, later: &Self) -> bool {
        let files = |world: &Self| {
            let mut parts = world.parts.clone();
            parts.remove("store");
            parts
        };
        self.looks.is_some()
            && self.looks == later.looks
            && self.generation == later.generation
            && self.folders == later.folders
            && files(self) == files(later)
    }

    /// The names of the parts that differ; none when all is what it was.
    pub fn differences<'a>(&'a self, now: &'a Self) -> impl Iterator<Item = &'a str> {
        let gone = now
            .parts
            .keys()
            .filter(|name| !self.parts.contains_key(*name));
        let names = self.parts.keys().chain(gone).map(String::as_str);
        names.filter(|name| self.parts.get(*name) != now.parts.get(*name))
    }

    /// Whether a file of this name reads so.
    pub fn reads(&self, name: &str, text: &str) -> bool {
        self.parts.get(name) == Some(&Digest::of(text).hex())
    }
}

/// The program: its version, what its instruments measure by, and the file it was started from.
fn program(path: &Path) -> Result<String> {
    let mut key = KeyEncoder::new("doe.program", 1);
    let number = |number: u32| Value::Int(i64::from(number));
    key.entry("encoding", &number(doe_cache::canon::ENCODING_VERSION));
    let meta = std::fs::metadata(path).map_err(|e| Error::io("look at", path, &e))?;
    key.entry("file", &mark(&meta));
    let versions = instruments::known().into_iter().map(|name| {
        let version = instruments::version(&name).unwrap_or(0);
        Value::List(vec![Value::from(name), number(version)])
    });
    key.entry("instruments", &Value::List(versions.collect()));
    key.entry("keys", &number(crate::engine::key::KEY_SCHEMA));
    key.entry("simulation", &number(instruments::sim_version()));
    key.text("version", env!("CARGO_PKG_VERSION"));
    Ok(key.finish().hex())
}

fn mark(meta: &Metadata) -> Value {
    Value::List(vec![
        Value::Int(meta.dev() as i64),
        Value::Int(meta.ino() as i64),
        Value::Int(meta.size() as i64),
        Value::Int(meta.mtime()),
        Value::Int(meta.mtime_nsec()),
        Value::Int(meta.ctime()),
        Value::Int(meta.ctime_nsec()),
    ])
}

struct Look {
    parts: BTreeMap<String, String>,
    looks: KeyEncoder,
    count: u64,
}

impl Look {
    fn looked(&mut self, meta: &Metadata) {
        // Entries of a key ascend.
        self.looks
            .entry(&format!("{:020}", self.count), &mark(meta));
        self.count += 1;
    }

    fn file(&mut self, path: &Path, name: &str) -> Result<()> {
        let failed = |e| Error::io("read", path, &e);
        let meta = std::fs::metadata(path).map_err(failed)?;
        self.looked(&meta);
        if !meta.is_file() {
            // To read a pipe is to wait for whoever writes.
            return Err(Error::new(
                Kind::Infra,
                "not-regular",
                format!("`{}` is no regular file", path.display()),
            ));
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        self.parts.insert(name.to_owned(), Digest::of(bytes).hex());
        Ok(())
    }

    /// Every name below a folder, and the bytes of what a loader could read.
    fn folder(&mut self, path: &Path, name: &str, depth: usize) -> Result<()> {
        let failed = |e| Error::io("read", path, &e);
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.parts.insert(format!("{name}/"), "none".into());
                return Ok(());
            }
            Err(e) => return Err(failed(e)),
        };
        if depth > MAX_DEPTH {
            return Err(Error::new(
                Kind::Infra,
                "too-deep",
                format!("`{}` is nested too deeply", path.display()),
            ));
        }
        self.looked(&meta);
        let entries = std::fs::read_dir(path).map_err(failed)?;
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort();
        let mut inside = KeyEncoder::new("doe.folder", 1);
        let listed = names.iter().map(|name| {
            // A name that is no text is told from others by its bytes.
            Value::from(format!("{name:?}"))
        });
        inside.entry("names", &Value::List(listed.collect()));
        self.parts.insert(format!("{name}/"), inside.finish().hex());
        for entry in names {
            let shown = entry.to_string_lossy();
            let (below, name) = (path.join(&entry), format!("{name}/{shown}"));
            if below.is_dir() {
                // Hidden folders are editors' and version control's; no loader looks into them.
                if !shown.starts_with('.') {
                    self.folder(&below, &name, depth + 1)?;
                }
            } else if shown.ends_with(".toml") && !shown.starts_with('.') {
                self.file(&below, &name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl World {
    /// A world of which nothing is known.
    pub(super) fn none() -> Self {
        Self {
            parts: BTreeMap::new(),
            looks: None,
            generation: None,
            folders: None,
        }
    }
}
