//! Sends results to the mirror while the run goes on. A run never waits for it before its end and
//! never fails because of it: what did not go over is counted and told, and `push` sends it later.

use super::fault::Fault;
use super::mirror::Mirror;
use crate::digest::Digest;
use crate::store::Store;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Records that wait at most. More is left for later rather than held back here.
const QUEUE: usize = 4096;

/// Records that are sent at a time.
const SENDERS: usize = 4;

/// What went over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Records that are in the mirror now.
    pub sent: u64,
    /// Records that are not.
    pub left: u64,
    /// Why, as far as it was the mirror's doing: the first reason.
    pub fault: Option<Fault>,
}

/// See the module.
#[derive(Debug)]
pub struct Uploader {
    queue: Mutex<Option<SyncSender<Digest>>>,
    senders: Mutex<Vec<JoinHandle<()>>>,
    count: Arc<Mutex<Uploaded>>,
}

impl Uploader {
    /// Starts the senders.
    pub fn start(mirror: &Arc<Mirror>, store: &Arc<Store>) -> Self {
        let (queue, inbox) = sync_channel(QUEUE);
        let inbox = Arc::new(Mutex::new(inbox));
        let count = Arc::new(Mutex::new(Uploaded::default()));
        let senders = (0..SENDERS)
            .map(|_| {
                let (mirror, store) = (mirror.clone(), store.clone());
                let (inbox, count) = (inbox.clone(), count.clone());
                std::thread::spawn(move || send_all(&mirror, &store, &inbox, &count))
            })
            .collect();
        Self {
            queue: Mutex::new(Some(queue)),
            senders: Mutex::new(senders),
            count,
        }
    }

    /// Sends a record some time soon. Never waits.
    pub fn offer(&self, record: Digest) {
        let queue = lock(&self.queue);
        let sent = queue.as_ref().map(|queue| queue.try_send(record));
        if !matches!(sent, Some(Ok(()))) {
            lock(&self.count).left += 1;
        }
    }

    /// Waits until everything that was offered went over or was given up. What is offered later
    /// is left.
    pub fn finish(&self) -> Uploaded {
        drop(lock(&self.queue).take());
        for sender in lock(&self.senders).drain(..) {
            // A panic there leaves its record uncounted; nothing is lost locally.
            let _ = sender.join();
        }
        lock(&self.count).clone()
    }
}

/// What is behind the locks is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send_all(
    mirror: &Mirror,
    store: &Store,
    inbox: &Mutex<Receiver<Digest>>,
    count: &Mutex<Uploaded>,
) {
    loop {
        let next = lock(inbox).recv();
        let Ok(record) = next else { return };
        let refused = matches!(lock(count).fault, Some(Fault::Refused(_)));
        let sent = match refused {
            // It said no: it would say so every time.
            true => Err(Fault::Paused),
            false => mirror.send(store, &record),
        };
        let mut count = lock(count);
        match sent {
            Ok(sent) => count.sent += u64::from(sent),
            Err(fault) => {
                count.left += 1;
                count.fault.get_or_insert(fault);
            }
        }
    }
}
