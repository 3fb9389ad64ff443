//! The one way out to an HTTP server. Plain HTTP/1.1, one connection unless its owner keeps it,
//! `TCP_NODELAY` always on, every answer read up to a stated limit and within a stated time. A
//! failure has a stable name that reports and counters use.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::error::{Error, Kind, Result};

/// Why an exchange failed: a stable name and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Failure {
    /// Stable name: `connect`, `timeout`, `connection_closed`, `transport`, `http_503`, ...
    pub(crate) kind: String,
    /// What happened, at most a few hundred characters.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            message: message.into(),
        }
    }

    pub(crate) fn timeout(limit: Duration) -> Self {
        Self::new("timeout", format!("no complete answer within {limit:?}"))
    }

    pub(crate) fn connect(authority: &str, cause: &std::io::Error) -> Self {
        Self::new(
            "connect",
            format!("could not connect to {authority}: {cause}"),
        )
    }

    /// Names a failure of the HTTP layer.
    pub(crate) fn transport(cause: &hyper::Error) -> Self {
        use std::error::Error as _;
        let closed = cause.is_incomplete_message()
            || cause.is_closed()
            || cause.is_canceled()
            || cause
                .source()
                .and_then(|s| s.downcast_ref::<std::io::Error>())
                .is_some_and(is_closed);
        let why = match cause.source() {
            Some(source) => format!("{cause}: {source}"),
            None => cause.to_string(),
        };
        if closed {
            Self::new(
                "connection_closed",
                format!("the server closed the connection before the answer was complete ({why})"),
            )
        } else {
            Self::new("transport", why)
        }
    }

    /// Names an answer that is not 200.
    pub(crate) fn status(status: StatusCode, body: &[u8]) -> Self {
        Self::new(
            format!("http_{}", status.as_u16()),
            format!("HTTP {}: {}", status.as_u16(), excerpt(body)),
        )
    }
}

fn is_closed(cause: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        cause.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// The first 200 characters of a body, for messages.
pub(crate) fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(1024)]);
    text.trim().chars().take(200).collect()
}

/// A server by base URL: `http://host:port[/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    prefix: String,
    authority: String,
}

impl Endpoint {
    /// Parses a base URL. A trailing `/` or `/v1` is taken off, as the paths bring their own.
    ///
    /// # Errors
    /// Usage, when it is not an `http://` URL with a host.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(Kind::Usage, "bad-url", format!("`{url}` {why}"))
                .hint("expected a base URL like `http://10.0.0.1:8000`")
        };
        let uri: Uri = url.parse().map_err(|_| bad("is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("is https; only plain http is spoken")),
            _ => return Err(bad("does not start with `http://`")),
        }
        let host = uri.host().filter(|h| !h.is_empty());
        let host = host.ok_or_else(|| bad("names no host"))?;
        if uri.query().is_some() {
            return Err(bad("has a query"));
        }
        let port = uri.port_u16().unwrap_or(80);
        let path = uri.path().trim_end_matches('/');
        let prefix = path.strip_suffix("/v1").unwrap_or(path);
        Ok(Self {
            authority: format!("{host}:{port}"),
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            prefix: prefix.to_owned(),
        })
    }

    /// `host:port`, for the Host header and for messages.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The request target of a path that starts with `/`.
    pub(crate) fn target(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// Opens a TCP connection with Nagle's algorithm off.
    pub(crate) async fn connect(&self) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|e| Failure::connect(&self.authority, &e))?;
        stream
            .set_nodelay(true)
            .map_err(|e| Failure::connect(&self.authority, &e))?;
        Ok(stream)
    }

    /// A request with a JSON body (or none) to a path of this server.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut builder = Request::builder()
            .method(method)
            .uri(self.target(path))
            .header("host", &self.authority)
            .header("content-type", "application/json");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder
            .body(Full::new(body))
            .map_err(|e| Failure::new("bad_request", format!("could not form the request: {e}")))
    }

    /// Opens a connection, runs it in the background and returns its sending half.
    pub(crate) async fn open(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = self.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Failure::transport(&e))?;
        tokio::spawn(async move {
            // Its error also reaches the request that waits on it, which reports it.
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// One whole exchange on its own connection.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        limits: Limits,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let request = self.request(method, path, headers, body)?;
        let work = async {
            let mut sender = self.open().await?;
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| Failure::transport(&e))?;
            let (head, body) = response.into_parts();
            Ok((head.status, read_all(body, limits.bytes).await?))
        };
        match tokio::time::timeout(limits.time, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::timeout(limits.time)),
        }
    }
}

/// What one exchange may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Wall-clock time for all of it.
    pub(crate) time: Duration,
    /// Bytes of the answer's body.
    pub(crate) bytes: usize,
}

/// Reads a body to its end.
pub(crate) async fn read_all(mut body: Incoming, limit_bytes: usize) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::transport(&e))?;
        if let Some(data) = frame.data_ref() {
            if all.len() + data.len() > limit_bytes {
                return Err(Failure::new(
                    "answer_too_large",
                    format!("the answer is longer than {limit_bytes} bytes"),
                ));
            }
            all.extend_from_slice(data);
        }
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_normalised() {
        let e = Endpoint::parse("http://127.0.0.1:8000/v1/").unwrap();
        assert_eq!(e.authority(), "127.0.0.1:8000");
        assert_eq!(e.target("/v1/completions"), "/v1/completions");
        let e = Endpoint::parse("http://host/some/prefix").unwrap();
        assert_eq!(e.authority(), "host:80");
        assert_eq!(e.target("/health"), "/some/prefix/health");
        let e = Endpoint::parse("http://[::1]:9").unwrap();
        assert_eq!((e.host.as_str(), e.authority()), ("::1", "[::1]:9"));
    }

    #[test]
    fn what_is_no_base_url_is_refused_with_a_hint() {
        for url in [
            "",
            "127.0.0.1:8000",
            "https://h",
            "ftp://h",
            "http://h/?q=1",
            "http://",
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert_eq!(error.code, "bad-url", "{url}");
            assert!(!error.hints.is_empty());
        }
    }

    #[test]
    fn excerpts_are_short_and_never_split_a_character() {
        let body = "é".repeat(2000);
        assert_eq!(excerpt(body.as_bytes()).chars().count(), 200);
    }
}
