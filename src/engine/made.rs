//! What finished nodes made, for those that need it: read from the store once, however many need
//! it. Nothing here is trusted: what a node has read is held against its digest when it has run.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use doe_cache::{Digest, Store};

use crate::error::Result;

/// Records that are remembered; those of a wide layer and of the one before it.
const MOST: usize = 4096;

/// What one record says to those that need it.
#[derive(Debug)]
pub(super) struct Made {
    /// Name, digest and file of every output, by name.
    pub outputs: Vec<(String, Digest, PathBuf)>,
    /// Whether any tool was simulated.
    pub simulated: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Digest, Arc<Made>>);

impl Known {
    /// What a stored record made.
    pub(super) fn of(&mut self, store: &Store, record: Digest) -> Result<Arc<Made>> {
        if let Some(made) = self.0.get(&record) {
            return Ok(made.clone());
        }
        let stored = store.record(&record)?;
        let outputs = stored.outputs.into_iter().map(|(name, output)| {
            let path = match store.blob_path(&output.digest) {
                // What came from a mirror may have left its outputs there.
                Err(lacks @ doe_cache::Error::NotFound { .. }) if store.is_imported(&record) => {
                    // Where the mirror cannot give it either, it is gone.
                    let fetched = store.blob(&output.digest).map_err(|_| lacks)?;
                    store.put_bytes(&fetched)?;
                    store.blob_path(&output.digest)?
                }
                found => found?,
            };
            Ok((name, output.digest, path))
        });
        let made = Arc::new(Made {
            outputs: outputs.collect::<Result<_>>()?,
            simulated: stored.provenance.simulated,
        });
        self.remember(record, made.clone());
        Ok(made)
    }

    /// What a record made that has just become durable: where it lies from now on.
    pub(super) fn insert(&mut self, store: &Store, record: Digest, made: &Made) {
        let outputs = made.outputs.iter().map(|(name, digest, _)| {
            let path = store.cas().path(digest)?;
            Ok::<_, doe_cache::Error>((name.clone(), *digest, path))
        });
        // What cannot be found is looked for again by whoever needs it.
        if let Ok(outputs) = outputs.collect() {
            let simulated = made.simulated;
            self.remember(record, Arc::new(Made { outputs, simulated }));
        }
    }

    fn remember(&mut self, record: Digest, made: Arc<Made>) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(record, made);
    }
}
