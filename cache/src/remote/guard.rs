//! Stands between the mirror's protocol and the server: tries again what may pass, asks nothing
//! while the breaker is open, and counts what went over the wire.

use super::breaker::Breaker;
use super::fault::Fault;
use super::objects::{Body, Objects, Page, Put};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a request is made that fails in a way that may pass.
const ATTEMPTS: u32 = 4;

/// Pause before the second attempt; doubled with every further one.
const PAUSE: Duration = Duration::from_millis(50);

/// What went over the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests, further attempts included.
    pub requests: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Bytes of objects received.
    pub received_bytes: u64,
    /// Bytes of objects that were stored.
    pub sent_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Guard {
    objects: Box<dyn Objects>,
    breaker: Breaker,
    requests: AtomicU64,
    failures: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

impl Guard {
    pub(super) fn new(objects: Box<dyn Objects>, breaker: Breaker) -> Self {
        Self {
            objects,
            breaker,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Traffic {
            requests: read(&self.requests),
            failures: read(&self.failures),
            received_bytes: read(&self.received_bytes),
            sent_bytes: read(&self.sent_bytes),
        }
    }

    /// Whether nothing is asked just now.
    pub(super) fn is_open(&self) -> bool {
        self.breaker.is_open(Instant::now())
    }

    pub(super) fn head(&self, name: &str) -> Result<Option<u64>, Fault> {
        self.ask(|objects| objects.head(name))
    }

    pub(super) fn get(&self, name: &str, most_bytes: u64) -> Result<Vec<u8>, Fault> {
        let bytes = self.ask(|objects| objects.get(name, most_bytes))?;
        self.received_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Writes an object to a path, where every attempt begins anew.
    pub(super) fn get_into(&self, name: &str, path: &Path, most_bytes: u64) -> Result<u64, Fault> {
        let size_bytes = self.ask(|objects| {
            let file = File::create(path)
                .map_err(|e| Fault::Local(format!("could not write `{}`: {e}", path.display())))?;
            objects.get_into(name, file, most_bytes)
        })?;
        self.received_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        Ok(size_bytes)
    }

    pub(super) fn put(&self, name: &str, body: Body<'_>, only_new: bool) -> Result<Put, Fault> {
        let put = self.ask(|objects| objects.put(name, body, only_new))?;
        if put == Put::Stored {
            self.sent_bytes
                .fetch_add(body.size_bytes(), Ordering::Relaxed);
        }
        Ok(put)
    }

    pub(super) fn list(&self, prefix: &str, after: Option<&str>, most: u16) -> Result<Page, Fault> {
        self.ask(|objects| objects.list(prefix, after, most))
    }

    /// Makes a request until it is answered, refused or given up. What the breaker counts is a
    /// request given up, or a single one that found nobody.
    fn ask<T>(&self, request: impl Fn(&dyn Objects) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            if !self.breaker.admit(Instant::now()) {
                return Err(Fault::Paused);
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            let answer = request(self.objects.as_ref());
            match &answer {
                Err(Fault::Passing(_)) if attempt < ATTEMPTS && !self.is_open() => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(pause);
                    pause *= 2;
                    continue;
                }
                Err(Fault::Passing(_) | Fault::Down(_)) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    self.breaker.failed(Instant::now());
                }
                // It answered, whatever it said.
                _ => self.breaker.succeeded(),
            }
            return answer;
        }
        unreachable!("the last attempt returns")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Memory;
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_is_down_is_left_alone() {
        let memory = Memory::default();
        let guard = Guard::new(Box::new(memory.clone()), Breaker::default());
        guard.put("a", Body::Bytes(b"1"), false).unwrap();

        memory.fail_next([Fault::Passing("503".into()), Fault::Passing("reset".into())]);
        assert_eq!(guard.get("a", 9).unwrap(), b"1");
        assert_eq!(guard.traffic().failures, 2);
        assert_eq!(guard.traffic().received_bytes, 1);

        memory.fail_always(Some(Fault::Down("refused".into())));
        let before = memory.requests();
        for _ in 0..10 {
            assert!(guard.head("a").unwrap_err().is_outage());
        }
        assert_eq!(memory.requests() - before, 3, "then the breaker was open");
        assert_eq!(guard.head("a"), Err(Fault::Paused));
        assert!(guard.is_open());
    }

    #[test]
    fn one_given_up_request_is_one_failure() {
        let memory = Memory::default();
        let guard = Guard::new(Box::new(memory.clone()), Breaker::default());
        memory.fail_always(Some(Fault::Passing("503".into())));
        assert!(matches!(guard.head("a"), Err(Fault::Passing(_))));
        assert_eq!(memory.requests(), u64::from(ATTEMPTS));
        assert!(!guard.is_open());
        memory.fail_always(None);
        assert_eq!(guard.head("a"), Ok(None));
    }

    #[test]
    fn refusals_and_absence_are_answers() {
        let memory = Memory::default();
        let guard = Guard::new(Box::new(memory.clone()), Breaker::default());
        memory.fail_always(Some(Fault::Refused("AccessDenied".into())));
        for _ in 0..5 {
            assert!(matches!(guard.head("a"), Err(Fault::Refused(_))));
        }
        assert!(!guard.is_open());
    }
}
