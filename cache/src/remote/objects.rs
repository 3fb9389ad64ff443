//! All that the mirror asks of an object store. Every call blocks until it is answered or has
//! given up; none may be made while holding a lock of the store.

use super::fault::Fault;
use std::fmt;
use std::fs::File;
use std::path::Path;

/// What is to be stored.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The content of a file of this length.
    File(&'a Path, u64),
}

impl Body<'_> {
    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(_, size_bytes) => *size_bytes,
        }
    }
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Stored now.
    Stored,
    /// Somebody else had stored it. Only ever said when the put was conditional.
    WasThere,
}

/// A part of a listing, in byte order of the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Names.
    pub names: Vec<String>,
    /// Whether there are more after these.
    pub more: bool,
}

/// An object store, below one prefix.
pub trait Objects: fmt::Debug + Send + Sync {
    /// Length of an object, or nothing when it is not there.
    ///
    /// # Errors
    /// Any [`Fault`] but [`Fault::Missing`].
    fn head(&self, name: &str) -> Result<Option<u64>, Fault>;

    /// Content of an object of at most so many bytes.
    ///
    /// # Errors
    /// [`Fault`]; a longer one is [`Fault::Damaged`].
    fn get(&self, name: &str, most_bytes: u64) -> Result<Vec<u8>, Fault>;

    /// Writes an object of at most so many bytes into an empty file, and says how long it was.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn get_into(&self, name: &str, file: File, most_bytes: u64) -> Result<u64, Fault>;

    /// Stores an object; with `only_new` not over an existing one, if the server can do that.
    ///
    /// # Errors
    /// [`Fault`].
    fn put(&self, name: &str, body: Body<'_>, only_new: bool) -> Result<Put, Fault>;

    /// Names below a prefix and after a name, at most so many.
    ///
    /// # Errors
    /// [`Fault`].
    fn list(&self, prefix: &str, after: Option<&str>, most: u16) -> Result<Page, Fault>;
}
