//! Canonical keys, manifests, content-addressed blobs and the SQLite index. Knows no cluster and no TOML.

pub mod canon;
mod digest;
mod error;
mod manifest;
mod value;

pub use digest::{Digest, DigestHasher, DigestState};
pub use error::{Error, Result};
pub use manifest::{Change, Class, Entry, Manifest};
pub use value::Value;
