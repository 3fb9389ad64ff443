//! Canonical keys, manifests, content-addressed blobs and the SQLite index. Knows no cluster and no TOML.

mod value;
pub use value::Value;

mod digest;
pub use digest::Digest;
