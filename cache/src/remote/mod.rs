//! The mirror: the same records and blobs as in the local store, kept in a bucket that several
//! checkouts share. Nothing that comes from it is believed: a name says what an object must be,
//! and what does not match its name is not served. Nothing that goes wrong with it fails a build.
//!
//! ```text
//! PREFIX/cas/ab/cdef…              records and blobs by digest, never changed
//! PREFIX/ac/KEY/RECORD             an action entry: the name is the whole statement
//! ```
//!
//! An entry says that the record of this digest answers to this key (a spec or an action key).
//! Entries are never overwritten and several may stand beside each other, so writers cannot take
//! each other's entries away, whatever the server makes of conditional requests.

mod breaker;
mod fault;
mod guard;
mod import;
mod mirror;
mod names;
mod objects;
mod place;
mod pool;
#[cfg(feature = "aws")]
mod s3;
#[cfg(feature = "aws")]
mod s3_put;
#[cfg(test)]
mod testing;
mod transfer;
mod upload;

pub use breaker::Breaker;
pub use fault::Fault;
pub use guard::Traffic;
pub use import::Imported;
pub use mirror::{Lookup, Mirror};
pub use objects::{Body, Objects, Page, Put};
pub use place::{Place, RemoteMode, Target};
pub use transfer::Synced;
pub use upload::{Uploaded, Uploader};
