//! Where everything lies below the root of a store. Nothing else in the crate builds a path.
//!
//! ```text
//! lock                     held by the one writing process
//! unsettled                there after a write failed, until the next writer has looked
//! index.sqlite             the index, rebuildable
//! cas/ab/cdef…             blobs by digest
//! records/ab/abcdef….json  records by digest
//! imported/ab/abcdef…      where a record came from that was not made here
//! links/ab/abcdef….json    links by digest
//! pins/abcdef….json        records that no collection removes
//! imports/abcdef….json     where imported records come from
//! runs/ID/notes            what each run did with each node, line by line
//! runs/                    whatever else the engine keeps of each run
//! tmp/                     half-written files; never referred to
//! quarantine/              damaged files, kept for inspection
//! ```

use crate::digest::Digest;
use std::path::{Path, PathBuf};

/// The paths of one store.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lock file.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// There while files may say more than the index: a write of a process that lived on failed.
    pub fn unsettled(&self) -> PathBuf {
        self.root.join("unsettled")
    }

    /// The SQLite index.
    pub fn index(&self) -> PathBuf {
        self.root.join("index.sqlite")
    }

    /// Folder of the blobs.
    pub fn cas(&self) -> PathBuf {
        self.root.join("cas")
    }

    /// Folder of the records.
    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    /// Folder of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Folder of the pins.
    pub fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    /// Folder of the accounts of imports.
    pub fn imports(&self) -> PathBuf {
        self.root.join("imports")
    }

    /// Folder that the engine keeps its runs in.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Folder of half-written files.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Folder of damaged files.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Where a blob lies, once it is durable.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.cas().join(&hex[..2]).join(&hex[2..])
    }

    /// Folder of the notes about records from a mirror.
    pub fn imported(&self) -> PathBuf {
        self.root.join("imported")
    }

    /// The note that says which mirror a record came from.
    pub fn imported_note(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.imported().join(&hex[..2]).join(hex)
    }

    /// Where a record lies, once it is durable.
    pub fn record(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.records().join(&hex[..2]).join(format!("{hex}.json"))
    }

    /// Where a file of links lies, once it is durable.
    pub fn link(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.links().join(&hex[..2]).join(format!("{hex}.json"))
    }

    /// Where the pin of a record lies.
    pub fn pin(&self, record: &Digest) -> PathBuf {
        self.pins().join(format!("{record}.json"))
    }

    /// Where the notes of a run lie.
    pub fn notes(&self, run_id: &str) -> PathBuf {
        self.runs().join(run_id).join("notes")
    }
}
