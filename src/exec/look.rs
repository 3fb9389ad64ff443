//! Looks for signs of readiness over the network, once and with a short limit. No answer, a
//! wrong one and a late one are all the same `false`; only a sign that cannot be looked for is
//! an error.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout};

use super::Sign;
use super::folder::read_if_there;
use crate::error::{Error, Kind, Result};

/// How long one look may take.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// How long a server that was ready may take to answer: it may have much to do.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// Whether a sign shows, seen from this machine; who listens on a host is for `listens` to say.
pub(super) async fn from_here(
    sign: &Sign,
    listens: impl AsyncFnOnce(u16) -> Result<bool>,
) -> Result<bool> {
    match sign {
        Sign::Http(url) => http(url, LIMIT).await,
        Sign::Answers(url) => http(url, BUSY).await,
        Sign::Tcp(address) => tcp(address).await,
        Sign::Listen(port) => listens(*port).await,
        Sign::File(path) => Ok(path.exists()),
    }
}

/// Whether a GET of the URL answers 200 within this time.
pub async fn http(url: &str, limit: Duration) -> Result<bool> {
    http_over(url, limit, async |address: String| {
        Ok(TcpStream::connect(address).await.ok())
    })
    .await
}

/// Whether a GET of the URL answers 200 over a connection that `connect` makes to `host:port`;
/// `None` of it means that nobody was there.
pub async fn http_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    url: &str,
    limit: Duration,
    connect: impl AsyncFnOnce(String) -> Result<Option<S>>,
) -> Result<bool> {
    let uri = check_url(url)?;
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(80);
    let authority = uri.authority().map_or("", |a| a.as_str());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::get(path)
        .header("host", authority)
        .header("connection", "close")
        .header("user-agent", concat!("doe/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad_probe(url, "it is no URL"))?;
    let ask = async {
        let Some(stream) = connect(format!("{host}:{port}")).await? else {
            return Ok(None);
        };
        let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let Ok((mut sender, connection)) = made else {
            return Ok(None);
        };
        // The connection is driven right here: when the look is over, so is it. Its end may be
        // noticed before the answer that came with it; without one the answer is an error.
        let driven = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = sender.send_request(request) => Ok(answer.ok().map(|answer| answer.status())),
            () = driven => Ok(None),
        }
    };
    match tokio::time::timeout(limit, ask).await {
        Ok(Ok(status)) => Ok(status == Some(StatusCode::OK)),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

fn bad_probe(url: &str, why: &str) -> Error {
    Error::new(
        Kind::Plan,
        "bad-probe",
        format!("`{url}` cannot be asked for readiness: {why}"),
    )
    .hint("expected a URL such as `http://10.0.0.1:8000/health`")
}

/// Checks that a URL can be asked for readiness.
pub(super) fn check_url(url: &str) -> Result<Uri> {
    let uri: Uri = url.parse().map_err(|_| bad_probe(url, "it is no URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad_probe(url, "only http is spoken here"));
    }
    if uri.host().is_none() {
        return Err(bad_probe(url, "it names no host"));
    }
    Ok(uri)
}

/// A connection made of the two ends of a program, which ends with it.
#[derive(Debug)]
pub struct Pipes {
    both: tokio::io::Join<ChildStdout, ChildStdin>,
    _program: Child,
}

impl Pipes {
    /// What the program says and hears.
    pub fn new(from: ChildStdout, to: ChildStdin, program: Child) -> Self {
        Self {
            both: tokio::io::join(from, to),
            _program: program,
        }
    }
}

impl AsyncRead for Pipes {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.both).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Pipes {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.both).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.both).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.both).poll_shutdown(cx)
    }
}

/// Whether `host:port` accepts a connection.
pub async fn tcp(address: &str) -> Result<bool> {
    check_address(address)?;
    let connected = tokio::time::timeout(LIMIT, TcpStream::connect(address)).await;
    Ok(matches!(connected, Ok(Ok(_))))
}

/// Refuses what is not `host:port`.
pub(super) fn check_address(address: &str) -> Result<()> {
    let port = address.rsplit_once(':').and_then(|(host, port)| {
        (!host.is_empty())
            .then(|| port.parse::<u16>().ok())
            .flatten()
    });
    if port.is_none() {
        return Err(Error::new(
            Kind::Plan,
            "bad-probe",
            format!("`{address}` cannot be connected to: expected `host:port`"),
        ));
    }
    Ok(())
}

/// Whether something on this machine listens on a TCP port at one of the addresses or at all of
/// them, seen in the kernel's tables without connecting.
pub fn listens(addresses: &[IpAddr], port: u16) -> Result<bool> {
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A machine may know only one of the two.
        if let Some(text) = read_if_there(Path::new(table))?
            && listens_in(&text, addresses, port)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same in the tables of another machine. Without addresses any of its own counts.
pub fn listens_in(tables: &str, addresses: &[IpAddr], port: u16) -> bool {
    tables.lines().filter_map(listener).any(|listener| {
        let here = addresses.is_empty()
            || listener.ip().is_unspecified()
            || addresses.contains(&listener.ip());
        listener.port() == port && here
    })
}

/// The ports that somebody listens on, at whatever address.
pub(super) fn listening_ports(tables: &str) -> std::collections::HashSet<u16> {
    let listeners = tables.lines().filter_map(listener);
    listeners.map(|listener| listener.port()).collect()
}

/// The address of a line of `/proc/net/tcp` or `tcp6`, when it is of a listening socket. Both
/// write an address as the bytes in memory, four at a time as a number of the machine.
fn listener(line: &str) -> Option<SocketAddr> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv6Addr, TcpListener};

    use super::*;

    /// Answers each of the given connections with fixed bytes.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                assert!(
                    request.starts_with("GET /health?x=1 HTTP/1.1\r\n"),
                    "{request}"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        let address = server(&[
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 301 Moved\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "",
        ]);
        let url = format!("http://{address}/health?x=1");
        let limit = Duration::from_secs(60);
        assert!(http(&url, limit).await.unwrap());
        for _ in 0..5 {
            assert!(!http(&url, limit).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!http(&format!("http://{address}/"), LIMIT).await.unwrap());
        assert!(tcp(&address.to_string()).await.unwrap());
        drop(listener);
        assert!(!tcp(&address.to_string()).await.unwrap());
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_an_error() {
        for url in ["", "not a url", "/health", "https://127.0.0.1/", "ftp://x/"] {
            assert_eq!(
                http(url, LIMIT).await.unwrap_err().code,
                "bad-probe",
                "{url}"
            );
        }
        for address in ["", "host", ":80", "host:", "host:99999"] {
            assert_eq!(
                tcp(address).await.unwrap_err().code,
                "bad-probe",
                "{address}"
            );
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_read() {
        let v4 =
            "   0: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1";
        assert_eq!(listener(v4), Some("127.0.0.2:8080".parse().unwrap()));
        let v6 = "   1: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listener(v6), Some("[::]:22".parse().unwrap()));
        let mapped = "   1: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listener(mapped), Some("127.0.0.1:22".parse().unwrap()));
        let connected = v4.replace(" 0A ", " 01 ");
        assert_eq!(listener(&connected), None);
        for bad in [
            "",
            "  sl  local_address rem_address   st",
            "0: 0:0 0:0 0A",
            "0: zz00007F:1F90 0:0 0A",
        ] {
            assert_eq!(listener(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_listener_is_seen_at_its_address_only_and_not_connected_to() {
        let socket = TcpListener::bind("127.0.0.2:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap().port();
        let here: IpAddr = "127.0.0.2".parse().unwrap();
        let there: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(listens(&[here], port).unwrap());
        assert!(!listens(&[there], port).unwrap());
        assert!(socket.accept().is_err(), "nobody connected");
        drop(socket);
        assert!(!listens(&[here], port).unwrap());
        for all in [
            TcpListener::bind("0.0.0.0:0"),
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)),
        ] {
            // A machine without IPv6 has no second one.
            let Ok(all) = all else { continue };
            assert!(listens(&[there], all.local_addr().unwrap().port()).unwrap());
        }
    }
}
