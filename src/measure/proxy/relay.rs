//! The decode server's answer on its way to the client. Bytes are passed on as they come, none is
//! held back; and an answer that did not end properly never looks as if it had: the client's
//! body is aborted.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::backend::Lease;
use super::record::Trace;
use crate::measure::http::Failure;

/// An error that aborts the client's body.
#[derive(Debug)]
pub(super) struct Aborted(String);

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Aborted {}

/// A body that is being relayed.
pub(super) struct Relay {
    inner: Incoming,
    trace: Trace,
    lease: Option<Lease>,
    idle: Pin<Box<Sleep>>,
    idle_limit: Duration,
    /// The last bytes, kept only when nothing else tells the end from a broken connection.
    tail: Option<Vec<u8>>,
    over: bool,
}

const DONE: &[u8] = b"[DONE]";

impl Relay {
    pub(super) fn new(
        inner: Incoming,
        trace: Trace,
        lease: Lease,
        idle_limit: Duration,
        delimited: bool,
    ) -> Self {
        Self {
            inner,
            trace,
            lease: Some(lease),
            idle: Box::pin(tokio::time::sleep(idle_limit)),
            idle_limit,
            tail: (!delimited).then(Vec::new),
            over: false,
        }
    }

    fn remember(&mut self, data: &[u8]) {
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(&data[data.len().saturating_sub(32)..]);
            tail.drain(..tail.len().saturating_sub(32));
        }
    }

    fn abort(&mut self, status: &str, why: String) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        self.over = true;
        self.trace.stamp(|r| &mut r.decode_done_ms);
        self.trace.finish(status);
        Poll::Ready(Some(Err(Aborted(why))))
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        if self.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => {
                if self.idle.as_mut().poll(cx).is_ready() {
                    let why = format!("the decode server was silent for {:?}", self.idle_limit);
                    return self.abort("decode_timeout", why);
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.trace.stamp(|r| &mut r.decode_first_byte_ms);
                let limit = self.idle_limit;
                self.idle.as_mut().reset(Instant::now() + limit);
                if let Some(data) = frame.data_ref() {
                    self.remember(data);
                }
                self.trace.stamp(|r| &mut r.first_byte_relayed_ms);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(cause))) => {
                let failure = Failure::transport(&cause);
                self.abort("decode_aborted", failure.message)
            }
            Poll::Ready(None) => {
                let ends = |tail: &Vec<u8>| tail.windows(DONE.len()).any(|w| w == DONE);
                if self.tail.as_ref().is_some_and(|tail| !ends(tail)) {
                    let why = "the decode server's stream ended without [DONE]".to_owned();
                    return self.abort("decode_aborted", why);
                }
                self.over = true;
                self.trace.stamp(|r| &mut r.decode_done_ms);
                self.trace.finish("ok");
                if let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
                Poll::Ready(None)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
