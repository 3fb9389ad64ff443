//! One streamed request, captured and not yet understood. Every piece of the answer carries the
//! monotonic time at which its bytes were read from the socket; nothing is parsed here, and the
//! connection and its reader are one task, so no other task stands between socket and stamp.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::measure::http::{Endpoint, Failure};

/// Nanoseconds of the monotonic clock since the run began.
pub(super) type Nanos = u64;

/// The clock of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(&self) -> Nanos {
        // 2^64 ns are 584 years.
        self.0.elapsed().as_nanos() as Nanos
    }
}

/// All that was seen of one request.
#[derive(Debug, Default)]
pub(super) struct Capture {
    /// How long the connection took to open; outside of all other times.
    pub(super) connect: Nanos,
    /// Just before the request was written.
    pub(super) sent: Nanos,
    /// The body's pieces, each with the time its bytes were read.
    pub(super) pieces: Vec<(Nanos, Bytes)>,
    /// When the answer was over, well or not.
    pub(super) ended: Nanos,
    /// Why it is not a complete answer with status 200.
    pub(super) failure: Option<Failure>,
}

/// A socket that remembers when it was last read from.
struct Stamped {
    io: TokioIo<TcpStream>,
    clock: Clock,
    last_read: Arc<AtomicU64>,
}

impl Read for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        if outcome.is_ready() {
            self.last_read.store(self.clock.now(), Ordering::Relaxed);
        }
        outcome
    }
}

impl Write for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// An open connection that waits for its one request.
pub(super) struct Ready {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<Stamped, Full<Bytes>>,
    last_read: Arc<AtomicU64>,
    connect: Nanos,
    clock: Clock,
}

impl Ready {
    /// Opens a connection.
    pub(super) async fn open(
        endpoint: &Endpoint,
        clock: Clock,
        limit: Duration,
    ) -> Result<Self, Capture> {
        let begun = clock.now();
        let work = async {
            let stream = endpoint.connect().await?;
            let last_read = Arc::new(AtomicU64::new(0));
            let io = Stamped {
                io: TokioIo::new(stream),
                clock,
                last_read: Arc::clone(&last_read),
            };
            let (sender, connection) = http1::handshake(io)
                .await
                .map_err(|e| Failure::transport(&e))?;
            Ok(Self {
                sender,
                connection,
                last_read,
                connect: clock.now() - begun,
                clock,
            })
        };
        let outcome = tokio::time::timeout(limit, work).await;
        outcome
            .unwrap_or_else(|_| Err(Failure::timeout(limit)))
            .map_err(|failure| Capture {
                connect: clock.now() - begun,
                sent: clock.now(),
                ended: clock.now(),
                failure: Some(failure),
                ..Capture::default()
            })
    }

    /// Sends the request and captures the answer to its end or to `limit`.
    pub(super) async fn fire(
        self,
        request: Result<hyper::Request<Full<Bytes>>, Failure>,
        limit: Duration,
    ) -> Capture {
        let clock = self.clock;
        let mut capture = Capture {
            connect: self.connect,
            sent: clock.now(),
            ..Capture::default()
        };
        let failure = match request {
            Err(failure) => Some(failure),
            Ok(request) => {
                match tokio::time::timeout(limit, self.drive(request, &mut capture)).await {
                    Ok(Ok(())) => None,
                    Ok(Err(failure)) => Some(failure),
                    Err(_) => Some(Failure::timeout(limit)),
                }
            }
        };
        capture.ended = clock.now();
        capture.failure = failure;
        capture
    }

    async fn drive(
        self,
        request: hyper::Request<Full<Bytes>>,
        capture: &mut Capture,
    ) -> Result<(), Failure> {
        let Self {
            mut sender,
            mut connection,
            last_read,
            ..
        } = self;
        let exchange = exchange(&mut sender, request, &last_read, capture);
        let mut exchange = std::pin::pin!(exchange);
        let mut open = true;
        std::future::poll_fn(move |cx| {
            // The connection first: what it reads is then taken up in this same poll.
            if open && Pin::new(&mut connection).poll(cx).is_ready() {
                // Its error, if any, also reaches the exchange, which names it.
                open = false;
            }
            exchange.as_mut().poll(cx)
        })
        .await
    }
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: hyper::Request<Full<Bytes>>,
    last_read: &AtomicU64,
    capture: &mut Capture,
) -> Result<(), Failure> {
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| Failure::transport(&e))?;
    let status = response.status();
    let mut body = response.into_body();
    let ok = status == hyper::StatusCode::OK;
    let mut refused = Vec::new();
    while let Some(frame) = body.frame().await {
        // hyper holds at most one piece that was read and not taken, and reads no further until
        // it is taken: the last read is the one that brought this piece.
        let read = last_read.load(Ordering::Relaxed);
        let frame = frame.map_err(|e| Failure::transport(&e))?;
        match frame.into_data() {
            Ok(data) if ok => capture.pieces.push((read, data)),
            Ok(data) if refused.len() < 4096 => refused.extend_from_slice(&data),
            _ => {}
        }
    }
    if ok {
        Ok(())
    } else {
        Err(Failure::status(status, &refused))
    }
}
