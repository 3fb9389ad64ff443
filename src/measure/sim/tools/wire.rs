//! How the two sides of a simulated tool meet: a real TCP connection, lines of JSON, bounded
//! waits. A connection that closes before it says who it is, or that speaks for another tool, is
//! told apart from a client, since the real tools do not survive it either.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

/// How long a side waits for a connection to open, or for the first line on it.
const GREETING: Duration = Duration::from_secs(5);
/// How long a side waits for the other to finish its measurement.
const RESULT: Duration = Duration::from_secs(3600);
/// Longest line that is read; a peer that sends more is no peer.
const LONGEST: u64 = 1 << 20;

/// One side of an open connection.
pub(super) struct Peer {
    reader: BufReader<TcpStream>,
    /// `address:port` of the other side.
    pub remote: std::net::SocketAddr,
    /// `address:port` of this side.
    pub local: std::net::SocketAddr,
}

/// Why a client got no test.
pub(super) enum Refusal {
    /// The connection could not be made.
    Connect(io::Error),
    /// The name does not resolve.
    Resolve,
    /// Connected, but the other side is no server of this tool.
    Stranger,
}

/// Listens on all addresses, as the real tools do.
pub(super) fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port))
}

/// Waits for a connection. `None` when whoever connected left without a greeting for this tool.
pub(super) fn accept(listener: &TcpListener, tool: &str) -> io::Result<Option<(Peer, Value)>> {
    let (stream, remote) = listener.accept()?;
    let local = stream.local_addr()?;
    let mut peer = Peer {
        reader: BufReader::new(stream),
        remote,
        local,
    };
    let greeting = match peer.receive(GREETING) {
        Ok(greeting) if greeting["tool"] == tool => greeting,
        _ => return Ok(None),
    };
    if peer.send(&serde_json::json!({ "tool": tool })).is_err() {
        return Ok(None);
    }
    Ok(Some((peer, greeting)))
}

/// Connects and greets.
pub(super) fn connect(host: &str, port: u16, greeting: &Value) -> Result<Peer, Refusal> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|_| Refusal::Resolve)?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, GREETING) {
            Ok(stream) => return greet(stream, greeting).map_err(|_| Refusal::Stranger),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(Refusal::Resolve, Refusal::Connect))
}

fn greet(stream: TcpStream, greeting: &Value) -> io::Result<Peer> {
    let mut peer = Peer {
        remote: stream.peer_addr()?,
        local: stream.local_addr()?,
        reader: BufReader::new(stream),
    };
    peer.send(greeting)?;
    let answer = peer.receive(GREETING)?;
    if answer["tool"] != greeting["tool"] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(peer)
}

impl Peer {
    /// Sends one message.
    pub(super) fn send(&mut self, message: &Value) -> io::Result<()> {
        let mut line = message.to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())
    }

    /// Waits for what the other side measured.
    pub(super) fn result(&mut self) -> io::Result<Value> {
        self.receive(RESULT)
    }

    fn receive(&mut self, within: Duration) -> io::Result<Value> {
        self.reader.get_ref().set_read_timeout(Some(within))?;
        let mut line = String::new();
        let read = io::Read::take(&mut self.reader, LONGEST).read_line(&mut line)?;
        if read == 0 || !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// The text of an operating system error without Rust's ending (`Connection refused`).
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_owned(),
        None if error.kind() == io::ErrorKind::TimedOut => "Connection timed out".to_owned(),
        None => text,
    }
}

/// The `errno` of an error, as tools that exit with it do.
pub(super) fn errno(error: &io::Error) -> u8 {
    let code = error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::TimedOut => 110,
        _ => 1,
    });
    u8::try_from(code).unwrap_or(1)
}
