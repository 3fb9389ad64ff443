//! Makes results durable. Whoever commits waits until it is on disk; those who wait at the same
//! time share the price, since one thread writes everything that has come in meanwhile in one go.
//! It waits a moment for those that are about to come: a sync costs the same for one and for many.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use doe_cache::remote::Uploader;
use doe_cache::{Batch, Digest, Encoded, NodeUpdate, Record, Store};
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};

/// Records that are written together at most.
const MOST: usize = 256;
/// How long a record waits for company: 96 ms in all. Nothing beside what a measurement takes, and
/// many short analyses come in meanwhile, none of which waits for it.
const PAUSE: Duration = Duration::from_millis(8);
const LOOKS: u32 = 12;

struct Order {
    record: Option<Encoded>,
    node: Option<NodeUpdate>,
    done: Option<oneshot::Sender<Result<Option<Digest>>>>,
}

/// A record that is being stored.
pub(super) struct Stored {
    /// Its digest.
    pub(super) digest: Digest,
    answer: oneshot::Receiver<Result<Option<Digest>>>,
}

/// See the module.
pub(super) struct Committer {
    orders: Option<mpsc::Sender<Order>>,
    writer: Option<JoinHandle<()>>,
    /// Pieces of work that may bring a record.
    under_way: Arc<AtomicUsize>,
    uploads: Option<Arc<Uploader>>,
}

impl Committer {
    /// Starts the writer. What is durable is offered to the mirror.
    pub(super) fn new(store: Arc<Store>, uploads: Option<Arc<Uploader>>) -> Self {
        let (orders, inbox) = mpsc::channel();
        let under_way = Arc::new(AtomicUsize::new(0));
        let expected = under_way.clone();
        Self {
            orders: Some(orders),
            writer: Some(std::thread::spawn(move || {
                write_all(&store, &inbox, &expected);
            })),
            under_way,
            uploads,
        }
    }

    /// Says how many pieces of work are under way: more than wait here means that more may come.
    pub(super) fn expect(&self, under_way: usize) {
        self.under_way.store(under_way, Ordering::Relaxed);
    }

    /// Begins to store a record and how its node ended. Records become durable in this order.
    pub(super) fn begin(&self, record: Record, mut node: NodeUpdate) -> Result<Stored> {
        let record = record.encode()?;
        let digest = record.digest();
        node.record = Some(digest);
        let (done, answer) = oneshot::channel();
        self.send(Order {
            record: Some(record),
            node: Some(node),
            done: Some(done),
        })?;
        Ok(Stored { digest, answer })
    }

    /// Waits until a record and how its node ended are durable.
    pub(super) async fn end(&self, stored: Stored) -> Result<()> {
        stored.answer.await.map_err(|_| gone())??;
        self.share(stored.digest);
        Ok(())
    }

    /// Offers a stored record to the mirror. Does not wait.
    pub(super) fn share(&self, record: Digest) {
        if let Some(uploads) = &self.uploads {
            uploads.offer(record);
        }
    }

    /// Notes how a node stands. Does not wait.
    pub(super) fn note(&self, node: NodeUpdate) -> Result<()> {
        self.send(Order {
            record: None,
            node: Some(node),
            done: None,
        })
    }

    /// Waits until everything that was noted before is durable.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(Order {
            record: None,
            node: None,
            done: Some(done),
        })?;
        answer.await.map_err(|_| gone())??;
        Ok(())
    }

    fn send(&self, order: Order) -> Result<()> {
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(order).map_err(|_| gone())
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was answered to those who waited for it.
            let _ = writer.join();
        }
    }
}

fn gone() -> Error {
    Error::new(Kind::Bug, "committer-gone", "the writer of results is gone")
}

/// What is written together with the first. Looks again and again instead of waiting for a deadline:
/// that would be a time of the clock, and clocks jump.
fn gather(first: Order, inbox: &mpsc::Receiver<Order>, under_way: &AtomicUsize) -> Vec<Order> {
    let mut orders = vec![first];
    for _ in 0..LOOKS {
        orders.extend(inbox.try_iter().take(MOST - orders.len()));
        let waiting = orders.iter().filter(|order| order.done.is_some()).count();
        let flush = |order: &Order| order.done.is_some() && order.record.is_none();
        let all_here = waiting >= under_way.load(Ordering::Relaxed);
        if orders.len() >= MOST || all_here || orders.iter().any(flush) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    orders
}

/// The last note of each node, in the order of these: what is overtaken in the same breath nobody
/// would ever see.
fn latest(nodes: Vec<NodeUpdate>) -> Vec<NodeUpdate> {
    let mut seen = HashSet::new();
    let backwards = nodes.iter().rev();
    let mut stays: Vec<bool> = backwards
        .map(|node| seen.insert((node.run_id.as_str(), node.label.as_str())))
        .collect();
    let nodes = nodes.into_iter();
    nodes.filter(|_| stays.pop().unwrap_or(true)).collect()
}

fn write_all(store: &Store, inbox: &mpsc::Receiver<Order>, under_way: &AtomicUsize) {
    // Of notes for whose end nobody waits: whoever flushes is told.
    let mut lost = None;
    while let Ok(first) = inbox.recv() {
        let orders = gather(first, inbox, under_way);
        let mut records = Vec::new();
        let mut nodes = Vec::new();
        let mut waiting = Vec::new();
        for order in orders {
            let digest = order.node.as_ref().and_then(|node| node.record);
            nodes.extend(order.node.clone());
            let at = order.record.map(|record| {
                records.push(record);
                records.len() - 1
            });
            waiting.push((at, order.node, digest, order.done));
        }
        let batch = Batch {
            records: &records,
            nodes: &latest(nodes),
            ..Batch::default()
        };
        let all = store.write(&batch);
        for (at, node, digest, done) in waiting {
            let is_empty = node.is_none();
            let result = match &all {
                Ok(_) => Ok(digest),
                // One bad record must not take the others with it.
                Err(first) => {
                    let alone = Batch {
                        records: at.map_or(&[], |at| &records[at..=at]),
                        nodes: node.as_slice(),
                        ..Batch::default()
                    };
                    let written = store.write(&alone).map(|_| digest);
                    // When the disk refused, that is the cause of whatever is missing now.
                    let cause = |error| match first {
                        doe_cache::Error::Io { .. } => first.clone(),
                        _ => error,
                    };
                    written.map_err(|error| Error::from(cause(error)))
                }
            };
            let Some(done) = done else {
                lost = lost.or(result.err());
                continue;
            };
            let is_flush = at.is_none() && is_empty;
            let result = match lost.take_if(|_| is_flush) {
                Some(error) => Err(error),
                None => result,
            };
            // Whoever asked may have gone.
            let _ = done.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use doe_cache::NodeState;

    use super::*;

    /// The note of a run that is not there: as one that the disk refuses, nobody waits for it.
    #[tokio::test]
    async fn who_flushes_is_told_of_a_note_that_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let committer = Committer::new(store, None);
        committer.flush().await.unwrap();
        let note = NodeUpdate {
            run_id: "nowhere".to_owned(),
            label: "//t:a".to_owned(),
            state: NodeState::Blocked,
            reason: None,
            record: None,
        };
        committer.note(note).unwrap();
        committer.flush().await.unwrap_err();
        committer.flush().await.unwrap();
    }

    #[test]
    fn only_the_last_note_of_a_node_is_written() {
        let note = |label: &str, state| NodeUpdate {
            run_id: "r".to_owned(),
            label: label.to_owned(),
            state,
            reason: None,
            record: None,
        };
        let notes = vec![
            note("//t:a", NodeState::Running),
            note("//t:b", NodeState::Running),
            note("//t:a", NodeState::Ok),
            note("//t:c", NodeState::Failed),
        ];
        let left = latest(notes.clone());
        assert_eq!(left, notes[1..]);
        assert_eq!(latest(Vec::new()), []);
    }
}
