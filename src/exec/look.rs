//! Looks for signs of readiness over the network, once and with a short limit. No answer, a
//! wrong one and a late one are all the same `false`; only a sign that cannot be looked for is
//! an error.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::error::{Error, Kind, Result};

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether a GET of the URL answers 200.
pub async fn http(url: &str) -> Result<bool> {
    let refused = |why: &str| {
        Error::new(
            Kind::Plan,
            "bad-probe",
            format!("`{url}` cannot be asked for readiness: {why}"),
        )
        .hint("expected a URL such as `http://10.0.0.1:8000/health`")
    };
    let uri: Uri = url.parse().map_err(|_| refused("it is no URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(refused("only http is spoken here"));
    }
    let host = uri.host().ok_or_else(|| refused("it names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let authority = uri.authority().map_or("", |a| a.as_str());
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::get(path)
        .header("host", authority)
        .header("connection", "close")
        .header("user-agent", concat!("doe/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| refused("it is no URL"))?;
    let ask = async {
        let stream = TcpStream::connect((host, port)).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .ok()?;
        // The connection is driven right here: when the look is over, so is it. Its end may be
        // noticed before the answer that came with it; without one the answer is an error.
        let driven = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = sender.send_request(request) => Some(answer.ok()?.status()),
            () = driven => None,
        }
    };
    let status = tokio::time::timeout(LIMIT, ask).await;
    Ok(matches!(status, Ok(Some(StatusCode::OK))))
}

/// Whether `host:port` accepts a connection.
pub async fn tcp(address: &str) -> Result<bool> {
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
    let connected = tokio::time::timeout(LIMIT, TcpStream::connect(address)).await;
    Ok(matches!(connected, Ok(Ok(_))))
}

/// Whether something on this machine listens on a TCP port, from the kernel's socket table: no
/// connection is made, so a server that serves one client does not take the look for it.
pub fn listens(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .any(|table| has_listener(&table, port))
}

/// Looks for a listening socket (state `0A`) in a table of `/proc/net/tcp`'s form: number, local
/// address `HEX:PORT` with the port in hexadecimal, remote address, state.
fn has_listener(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|address| address.rsplit_once(':'));
        let state = fields.nth(1);
        let found = local.and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok());
        found == Some(port) && state == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

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
        assert!(http(&url).await.unwrap());
        for _ in 0..5 {
            assert!(!http(&url).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!http(&format!("http://{address}/")).await.unwrap());
        assert!(tcp(&address.to_string()).await.unwrap());
        drop(listener);
        assert!(!tcp(&address.to_string()).await.unwrap());
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_an_error() {
        for url in ["", "not a url", "/health", "https://127.0.0.1/", "ftp://x/"] {
            assert_eq!(http(url).await.unwrap_err().code, "bad-probe", "{url}");
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
    fn a_listener_is_seen_without_connecting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(port));
        listener.set_nonblocking(true).unwrap();
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
        drop(listener);
        assert!(!listens(port));
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A 0\n   1: 0100007F:0050 0100007F:1F91 01 0\n torn";
        assert!(has_listener(table, 8080));
        assert!(!has_listener(table, 80));
        assert!(!has_listener(table, 8081));
        assert!(!has_listener("", 8080));
    }
}
