//! Sends the load. In rounds all streams send at once and nobody goes on before all are answered;
//! in a closed loop each stream goes on at once. What costs time (making bodies, opening
//! connections, understanding answers) happens outside of the timed part: before the send, or
//! after the last answer of the round, or on another thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use http_body_util::Full;
use hyper::{Method, Request};

use super::client::{Capture, Clock, Nanos, Ready};
use super::decode::{Place, Sample, decode};
use super::prompt::{self, Lengths, Purpose};
use super::sources::{self, Sources, Watch};
use super::{Loop, Progress, Settings};
use crate::measure::http::{Endpoint, Failure};

type Prepared = Result<Request<Full<bytes::Bytes>>, Failure>;

/// The samples of one phase, in order of index, and the first send.
pub(super) struct Phase {
    pub(super) samples: Vec<Sample>,
    pub(super) start: Nanos,
    pub(super) end: Nanos,
}

/// One phase of a run: all warm-up requests, or all measured ones.
pub(super) struct Driver {
    pub(super) settings: Arc<Settings>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) clock: Clock,
    pub(super) purpose: Purpose,
    /// Words of each request's prompt.
    pub(super) words: Arc<Vec<u32>>,
}

/// What a run gave.
pub(super) struct Run {
    pub(super) warmup: Phase,
    pub(super) measured: Phase,
    /// What the watched servers counted for the measured requests.
    pub(super) sources: Result<BTreeMap<String, Sources>, Failure>,
}

/// Runs warm-up and measurement.
pub(super) async fn run(
    settings: &Arc<Settings>,
    endpoint: &Arc<Endpoint>,
    watch: &Watch,
    lengths: Lengths,
    progress: &mut dyn FnMut(Progress),
) -> Run {
    let clock = Clock::start();
    let driver = |purpose, words| Driver {
        settings: Arc::clone(settings),
        endpoint: Arc::clone(endpoint),
        clock,
        purpose,
        words: Arc::new(words),
    };
    let warmup = driver(Purpose::Warmup, lengths.warmup)
        .phase(progress)
        .await;
    if !warmup.samples.is_empty() {
        tokio::time::sleep(settings.pause).await;
    }
    let before = watch.read().await;
    let measured = driver(Purpose::Measured, lengths.measured);
    let measured = measured.phase(progress).await;
    let sources = match (before, watch.read().await) {
        (Ok(before), Ok(after)) => sources::between(&before, &after),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    };
    Run {
        warmup,
        measured,
        sources,
    }
}

impl Driver {
    async fn phase(self, progress: &mut dyn FnMut(Progress)) -> Phase {
        let driver = Arc::new(self);
        let mut samples = match driver.settings.pacing {
            Loop::Rounds => driver.rounds(progress).await,
            Loop::Closed => driver.closed(progress).await,
        };
        samples.sort_by_key(|s| s.place.index);
        let start = samples.iter().map(|s| s.sent).min().unwrap_or(0);
        for sample in &mut samples {
            sample.starts_in(start);
        }
        let end = samples.iter().map(|s| s.ended).max().unwrap_or(start);
        Phase {
            samples,
            start,
            end,
        }
    }

    async fn rounds(self: &Arc<Self>, progress: &mut dyn FnMut(Progress)) -> Vec<Sample> {
        let total = self.words.len() as u32;
        let streams = self.settings.concurrency;
        let mut samples = Vec::with_capacity(total as usize);
        for round in 0..total / streams {
            if round > 0 {
                tokio::time::sleep(self.settings.pause).await;
            }
            let places = (0..streams).map(|stream| Place {
                index: round * streams + stream,
                round,
                stream,
            });
            let places: Vec<Place> = places.collect();
            let requests = self.prepare(places.iter().map(|p| p.index).collect()).await;
            let connections = join_all(places.iter().map(|_| self.open())).await;
            let fired: Vec<_> = connections
                .into_iter()
                .zip(requests)
                .map(|(connection, request)| {
                    let limit = self.settings.request_timeout;
                    tokio::spawn(async move {
                        match connection {
                            Ok(ready) => ready.fire(request, limit).await,
                            Err(capture) => capture,
                        }
                    })
                })
                .collect();
            let mut captures = Vec::with_capacity(fired.len());
            for task in fired {
                captures.push(task.await.unwrap_or_else(|e| lost(&e, self.clock)));
            }
            for (place, capture) in places.into_iter().zip(&captures) {
                samples.push(self.understand(place, capture));
            }
            progress(self.progress(&samples));
        }
        samples
    }

    async fn closed(self: &Arc<Self>, progress: &mut dyn FnMut(Progress)) -> Vec<Sample> {
        let next = Arc::new(AtomicU32::new(0));
        let (captures, mut captured) = tokio::sync::mpsc::unbounded_channel();
        for stream in 0..self.settings.concurrency.min(self.words.len() as u32) {
            let (driver, next, captures) = (Arc::clone(self), Arc::clone(&next), captures.clone());
            tokio::spawn(async move {
                for round in 0.. {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index as usize >= driver.words.len() {
                        break;
                    }
                    let request = driver.prepare(vec![index]).await.pop();
                    let request = request.unwrap_or_else(|| Err(unprepared()));
                    let capture = match driver.open().await {
                        Ok(ready) => ready.fire(request, driver.settings.request_timeout).await,
                        Err(capture) => capture,
                    };
                    let place = Place {
                        index,
                        round,
                        stream,
                    };
                    if captures.send((place, capture)).is_err() {
                        break; // nobody collects any more
                    }
                }
            });
        }
        drop(captures);
        let (hand, taken) = std::sync::mpsc::channel::<(Place, Capture)>();
        let driver = Arc::clone(self);
        let decoder = std::thread::spawn(move || {
            let samples = taken.iter().map(|(place, c)| driver.understand(place, &c));
            samples.collect::<Vec<Sample>>()
        });
        let mut seen = self.progress(&[]);
        while let Some((place, capture)) = captured.recv().await {
            seen.done += 1;
            seen.failed += u32::from(capture.failure.is_some());
            progress(seen);
            // The decoder lives until `hand` is dropped.
            let _ = hand.send((place, capture));
        }
        drop(hand);
        decoder.join().unwrap_or_default()
    }

    /// Makes requests away from the thread that takes the stamps.
    async fn prepare(self: &Arc<Self>, indices: Vec<u32>) -> Vec<Prepared> {
        let driver = Arc::clone(self);
        let count = indices.len();
        let work = move || indices.iter().map(|i| driver.request(*i)).collect();
        let made: Result<Vec<Prepared>, _> = tokio::task::spawn_blocking(work).await;
        made.unwrap_or_else(|_| (0..count).map(|_| Err(unprepared())).collect())
    }

    fn request(&self, index: u32) -> Prepared {
        let settings = &self.settings;
        let words = self.words[index as usize];
        let text = prompt::text(settings.seed, self.purpose, index, words);
        let body = prompt::body(settings, &text);
        let path = settings.api.path();
        let phase = match self.purpose {
            Purpose::Measured => "",
            Purpose::Probe | Purpose::Warmup => "-warmup",
        };
        match &settings.session {
            None => self.endpoint.request(Method::POST, path, &[], body),
            Some(session) => {
                let session = format!("{session}{phase}");
                let id = format!("{session}-{index}");
                let headers = [("x-doe-session", &*session), ("x-request-id", &*id)];
                self.endpoint.request(Method::POST, path, &headers, body)
            }
        }
    }

    async fn open(&self) -> Result<Ready, Capture> {
        Ready::open(&self.endpoint, self.clock, self.settings.request_timeout).await
    }

    fn understand(&self, place: Place, capture: &Capture) -> Sample {
        decode(place, capture, self.purpose == Purpose::Measured)
    }

    fn progress(&self, samples: &[Sample]) -> Progress {
        Progress {
            warmup: self.purpose == Purpose::Warmup,
            done: samples.len() as u32,
            failed: samples.iter().filter(|s| !s.ok()).count() as u32,
            total: self.words.len() as u32,
        }
    }
}

fn unprepared() -> Failure {
    Failure::new("client", "the request could not be prepared")
}

/// A task that ended without its capture: a defect of the client, told as such.
fn lost(cause: &tokio::task::JoinError, clock: Clock) -> Capture {
    Capture {
        sent: clock.now(),
        ended: clock.now(),
        failure: Some(Failure::new("client", cause.to_string())),
        ..Capture::default()
    }
}
