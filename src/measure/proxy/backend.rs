//! One of the two servers behind the proxy. A connection serves one request at a time; it is
//! reused only if that was asked for, and a request is sent a second time only when a reused
//! connection turned out to be dead before a single byte of an answer came.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Response, StatusCode};

use crate::measure::http::{Endpoint, Failure, Limits, read_all};

type Sender = SendRequest<Full<Bytes>>;

/// Most bytes of an answer that is read as a whole.
const WHOLE_ANSWER_BYTES: usize = 64 << 20;

/// A prefill or decode server.
pub(super) struct Backend {
    endpoint: Endpoint,
    idle: Option<Arc<Mutex<Vec<Sender>>>>,
}

/// Returns a connection to its pool when the answer's body has been read to its end.
pub(super) struct Lease {
    sender: Sender,
    idle: Option<Arc<Mutex<Vec<Sender>>>>,
}

impl Lease {
    pub(super) fn give_back(self) {
        if let Some(idle) = self.idle {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(self.sender);
        }
    }
}

impl Backend {
    pub(super) fn new(endpoint: Endpoint, keep_alive: bool) -> Self {
        Self {
            endpoint,
            idle: keep_alive.then(Arc::default),
        }
    }

    pub(super) fn authority(&self) -> &str {
        self.endpoint.authority()
    }

    /// Sends a request and returns the answer's head with its body still to come.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let mut request = self.endpoint.request(method, path, headers, body)?;
        if let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, self.lease(sender))),
                Err(mut error) => match error.take_message() {
                    // It was never sent: a new connection may.
                    Some(unsent) => request = unsent,
                    None => return Err(Failure::transport(error.error())),
                },
            }
        }
        let mut sender = self.endpoint.open().await?;
        let response: Response<Incoming> = sender
            .send_request(request)
            .await
            .map_err(|e| Failure::transport(&e))?;
        Ok((response, self.lease(sender)))
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn whole(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, Option<String>, Bytes), Failure> {
        let work = async {
            let (response, lease) = self.send(Method::POST, path, headers, body).await?;
            let status = response.status();
            let kind = content_type(&response);
            let all = read_all(response.into_body(), WHOLE_ANSWER_BYTES).await?;
            lease.give_back();
            Ok((status, kind, all))
        };
        let outcome = tokio::time::timeout(limit, work).await;
        outcome.unwrap_or_else(|_| Err(Failure::timeout(limit)))
    }

    /// One GET on its own connection.
    pub(super) async fn get(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let limits = Limits {
            time: limit,
            bytes: WHOLE_ANSWER_BYTES,
        };
        let exchange = self
            .endpoint
            .exchange(Method::GET, path, &[], Bytes::new(), limits);
        exchange.await
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self
            .idle
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn lease(&self, sender: Sender) -> Lease {
        Lease {
            sender,
            idle: self.idle.clone(),
        }
    }
}

/// The content type of an answer.
pub(super) fn content_type<B>(response: &Response<B>) -> Option<String> {
    let value = response.headers().get("content-type")?;
    value.to_str().ok().map(str::to_owned)
}

/// Whether the end of an answer's body can be told from a connection that broke.
pub(super) fn is_delimited<B: hyper::body::Body>(response: &Response<B>) -> bool {
    let chunked = response.headers().get("transfer-encoding");
    chunked.is_some() || response.body().size_hint().exact().is_some()
}
