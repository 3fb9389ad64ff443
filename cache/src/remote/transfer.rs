//! The whole store to the mirror and the whole mirror to the store, for people who ask for it.
//! What is there already is not moved.

use super::fault::Fault;
use super::mirror::{Lookup, Mirror, blobs_of};
use super::pool;
use crate::digest::Digest;
use crate::error::Result;
use crate::read::Filter;
use crate::store::Store;
use std::collections::BTreeMap;

/// What was moved, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Records looked at.
    pub records: u64,
    /// Records that are now on both sides and were made so by this.
    pub moved: u64,
    /// What could not be moved, and why.
    pub failed: Vec<(Digest, String)>,
    /// Whether the mirror itself failed, rather than single objects.
    pub outage: Option<Fault>,
}

impl Mirror {
    /// Sends every record that may be reused. Objects are looked for one by one, so that one that
    /// got lost there is sent again.
    ///
    /// # Errors
    /// What reading the store's index gives; faults of the mirror are in the answer.
    pub fn push(&self, store: &Store) -> Result<Synced> {
        let filter = Filter {
            usable: Some(true),
            ..Filter::default()
        };
        let records: Vec<Digest> = store.list(&filter)?.iter().map(|s| s.record).collect();
        let mut synced = Synced {
            records: records.len() as u64,
            ..Synced::default()
        };
        let answers = pool::each(&records, None, |record| self.send(store, record));
        for (record, answer) in records.iter().zip(answers) {
            match answer {
                Some(Ok(sent)) => synced.moved += u64::from(sent),
                Some(Err(fault)) => {
                    synced.failed.push((*record, fault.to_string()));
                    // The first word says more than that it is left alone now.
                    let worth = synced.outage.is_none() || synced.outage == Some(Fault::Paused);
                    if worth && fault.is_outage() {
                        synced.outage = Some(fault);
                    }
                }
                None => {}
            }
        }
        Ok(synced)
    }

    /// Takes every record that may be served; with `blobs` all that they need too.
    ///
    /// # Errors
    /// What writing the store gives; faults of the mirror are in the answer.
    pub fn pull(&self, store: &Store, blobs: bool) -> Result<Synced> {
        let Lookup {
            asked: _,
            found,
            refused,
            trouble,
        } = self.lookup_all(store);
        let imported = store.import(&found, self.place())?;
        let mut synced = Synced {
            records: (found.len() + refused.len()) as u64,
            moved: imported.len() as u64,
            failed: refused,
            outage: trouble,
        };
        if blobs {
            let mut wanted = BTreeMap::new();
            for summary in store.list(&Filter {
                usable: Some(true),
                ..Filter::default()
            })? {
                if store.is_imported(&summary.record) {
                    let record = store.record(&summary.record)?;
                    wanted.extend(
                        blobs_of(&record)
                            .into_iter()
                            .map(|blob| (blob.digest, blob)),
                    );
                }
            }
            let wanted: Vec<_> = wanted.into_values().collect();
            for (blob, fault) in self.fetch(store, &wanted) {
                synced.failed.push((blob.digest, fault.to_string()));
                if fault.is_outage() {
                    synced.outage = Some(fault);
                }
            }
        }
        Ok(synced)
    }
}
