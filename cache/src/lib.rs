//! Canonical keys, manifests, content-addressed blobs and the SQLite index. Knows no cluster and no TOML.

mod batch;
mod blobs;
mod bundle;
mod candidates;
pub mod canon;
mod cas;
mod checked;
mod digest;
mod durable;
mod error;
mod execution;
pub mod fault;
mod gc;
mod generation;
mod import;
mod index;
mod json;
mod layout;
mod links;
mod lock;
mod manifest;
#[cfg(test)]
mod migration_tests;
mod named;
mod notes;
mod pins;
mod quarantine;
mod read;
mod rebuild;
mod record;
pub mod remote;
mod runs;
mod schema;
mod standing;
mod store;
mod summary;
#[cfg(test)]
mod testing;
mod value;
mod verdict;
mod verify;
mod whole;
mod write;

pub use batch::{Batch, Link};
pub use bundle::{Exported, Origin};
pub use canon::KeyEncoder;
pub use cas::{Blob, Cas};
pub use digest::{Digest, DigestHasher, DigestState};
pub use error::{Error, Result};
pub use gc::{Doomed, GcLimits, GcPlan};
pub use generation::Generation;
pub use import::{Import, Imported};
pub use json::canonical_json;
pub use layout::Layout;
pub use links::Linked;
pub use lock::{WriterLock, host, lock_holder};
pub use manifest::{Change, Class, Entry, Manifest};
pub use named::{STREAM, replace};
pub use pins::Pin;
pub use quarantine::Quarantined;
pub use read::{Filter, Stats};
pub use rebuild::{RebuildReport, Recovered};
pub use record::{
    Better, CpuTime, Encoded, Log, Metric, Output, Provenance, RECORD_SCHEMA, Record, RecordKind,
    ServiceUse, Timings, outputs_digest,
};
pub use runs::{NodeState, NodeUpdate, Run, RunInfo, RunNode, RunStatus};
pub use standing::Standing;
pub use store::Store;
pub use summary::{Snapshot, Summary};
pub use value::Value;
pub use verdict::{
    Check, Criterion, CriterionStatus, Execution, ExecutionStatus, Validity, ValidityStatus,
    Verdicts,
};
pub use verify::{Damage, VerifyOptions, VerifyReport};
