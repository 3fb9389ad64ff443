//! Stands between us and a server and spoils some of the requests. Each connection carries one
//! request, so that every request meets its fault and none hides in a pool of good connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The answer comes late.
    Late(Duration),
    /// The connection is reset before an answer.
    Reset,
    /// The connection is reset half-way through the answer.
    ResetInside,
    /// Not the server answers, but one that has no time.
    Unavailable,
    /// The connection ends half-way through the answer's body.
    Truncated,
    /// A byte of the answer's body is another one.
    WrongBytes,
    /// A byte of the request's body is another one.
    WrongRequest,
    /// There is no answer as long as anybody waits.
    Silence,
}

/// Decides by the number of the request and its first line.
pub type Plan = Arc<dyn Fn(u64, &str) -> Fault + Send + Sync>;

pub struct Proxy {
    pub port: u16,
    requests: Arc<AtomicU64>,
    spoilt: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    pub fn start(server: u16, plan: impl Fn(u64, &str) -> Fault + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let plan: Plan = Arc::new(plan);
        let (requests, spoilt) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = SocketAddr::from(([127, 0, 0, 1], server));
        let counts = (requests.clone(), spoilt.clone());
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (plan, counts) = (plan.clone(), counts.clone());
                tokio::spawn(async move {
                    // A client or a server that goes away ends it.
                    let _ = serve(client, server, &plan, &counts.0, &counts.1).await;
                });
            }
        });
        Self {
            port,
            requests,
            spoilt,
            _runtime: runtime,
        }
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn spoilt(&self) -> u64 {
        self.spoilt.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    plan: &Plan,
    requests: &AtomicU64,
    spoilt: &AtomicU64,
) -> std::io::Result<()> {
    let Some((head, mut body)) = read_request(&mut client).await? else {
        return Ok(());
    };
    let number = requests.fetch_add(1, Ordering::SeqCst);
    let first = head.lines().next().unwrap_or_default();
    let fault = plan(number, first);
    if fault != Fault::None {
        spoilt.fetch_add(1, Ordering::SeqCst);
    }
    match fault {
        Fault::Reset => return client.set_zero_linger(),
        Fault::Silence => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            return Ok(());
        }
        Fault::Unavailable => {
            let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        Fault::Late(time) => tokio::time::sleep(time).await,
        Fault::WrongRequest => {
            if let Some(byte) = body.last_mut() {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(with_close(&head).as_bytes()).await?;
    upstream.write_all(&body).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    let cut = head_end(&answer).unwrap_or(answer.len());
    let (answer_head, answer_body) = answer.split_at(cut);
    let answer_head = with_close(&String::from_utf8_lossy(answer_head));
    let mut answer_body = answer_body.to_vec();
    let half = answer_body.len() / 2;
    client.write_all(answer_head.as_bytes()).await?;
    match fault {
        Fault::WrongBytes if !answer_body.is_empty() => answer_body[half] ^= 1,
        Fault::Truncated => answer_body.truncate(half),
        Fault::ResetInside => {
            client.write_all(&answer_body[..half]).await?;
            return client.set_zero_linger();
        }
        _ => {}
    }
    client.write_all(&answer_body).await?;
    client.shutdown().await
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Head and body of a request; nothing when the client sent none.
async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = head_end(&bytes) {
            break end;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let value = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    if value("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let length: usize = value("content-length").map_or(0, |n| n.parse().unwrap());
    let mut body = bytes[end..].to_vec();
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, body)))
}

/// The head with the connection ending after this exchange.
fn with_close(head: &str) -> String {
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    lines.retain(|line| {
        let key = line.split(':').next().unwrap_or_default();
        !key.eq_ignore_ascii_case("connection") && !key.eq_ignore_ascii_case("expect")
    });
    lines.push("Connection: close");
    lines.join("\r\n") + "\r\n\r\n"
}
