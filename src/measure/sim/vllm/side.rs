//! The side channel between two servers: a consumer shows who it is and claims the blocks that a
//! producer holds for it, over a real connection. Blocks are handed out once, only to a peer whose
//! configuration is compatible, and are freed when the peer says that it has them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

/// What a producer puts into its answer, and a consumer gets with its request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TransferParams {
    #[serde(default)]
    pub(super) do_remote_prefill: bool,
    #[serde(default)]
    pub(super) do_remote_decode: bool,
    #[serde(default)]
    pub(super) remote_engine_id: Option<String>,
    #[serde(default)]
    pub(super) remote_block_ids: Option<Vec<u64>>,
    #[serde(default)]
    pub(super) remote_host: Option<String>,
    #[serde(default)]
    pub(super) remote_port: Option<u16>,
    #[serde(default)]
    pub(super) remote_request_id: Option<String>,
    #[serde(default)]
    pub(super) tp_size: Option<u32>,
}

/// What both sides must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Digest of versions, model, KV layout.
    pub(super) compatibility_hash: String,
    /// What carries the bytes.
    pub(super) transport: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    engine_id: String,
    request_id: String,
    block_ids: Vec<u64>,
    identity: Identity,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Granted { tokens: u64 },
    Refused { why: String },
}

/// A prompt's cache that waits to be fetched.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) job: u64,
    pub(super) block_ids: Vec<u64>,
    pub(super) tokens: u64,
    pub(super) since: Instant,
}

/// A listening producer. It stops when the handle is dropped.
pub(super) struct SideChannel {
    address: SocketAddr,
    desk: Arc<Desk>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Tells the engine that a job's cache may go.
pub(super) type Release = Arc<dyn Fn(u64) + Send + Sync>;

/// How long a peer may take for a line, and how long held blocks wait for a peer.
const LINE_TIMEOUT: Duration = Duration::from_secs(30);

impl SideChannel {
    /// Listens; port 0 takes a free one.
    pub(super) fn start(
        host: &str,
        port: u16,
        engine_id: String,
        identity: Identity,
        abort_after: Duration,
        release: Release,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((host, port))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let desk = Arc::new(Desk {
            engine_id,
            identity,
            holdings: Mutex::default(),
            abort_after,
            release,
        });
        let stopping = Arc::clone(&stop);
        let answering = Arc::clone(&desk);
        let thread = std::thread::Builder::new()
            .name("side-channel".into())
            .spawn(move || {
                for peer in listener.incoming() {
                    if stopping.load(Ordering::Acquire) {
                        return;
                    }
                    let (Ok(peer), desk) = (peer, Arc::clone(&answering)) else {
                        continue;
                    };
                    // A thread a peer: a slow one must not keep the others waiting. A peer that
                    // cannot be served sees its connection closed.
                    let _ = std::thread::Builder::new().spawn(move || desk.serve(peer));
                }
            })?;
        Ok(Self {
            address,
            desk,
            stop,
            thread: Some(thread),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Holds a prompt's cache until it is fetched.
    pub(super) fn hold(&self, request_id: &str, held: Held) {
        self.desk.expire();
        self.desk.lock().insert(request_id.to_owned(), held);
    }
}

impl Drop for SideChannel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address); // wakes the thread that accepts
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it cannot panic
        }
    }
}

struct Desk {
    engine_id: String,
    identity: Identity,
    /// By request id.
    holdings: Mutex<HashMap<String, Held>>,
    abort_after: Duration,
    release: Release,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, peer: TcpStream) {
        // An error here is a peer that went away; what it claimed stays held until it expires.
        let _ = self.converse(peer);
        self.expire();
    }

    fn converse(&self, peer: TcpStream) -> std::io::Result<()> {
        peer.set_read_timeout(Some(LINE_TIMEOUT))?;
        peer.set_nodelay(true)?;
        let mut out = peer.try_clone()?;
        let mut lines = BufReader::new(peer).lines();
        let Some(line) = lines.next().transpose()? else {
            return Ok(());
        };
        let (request, reply) = match serde_json::from_str::<Claim>(&line) {
            Ok(claim) => (claim.request_id.clone(), self.judge(&claim)),
            Err(e) => (
                String::new(),
                Reply::Refused {
                    why: format!("not a claim: {e}"),
                },
            ),
        };
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        // The peer closes its half when it has the blocks, or says so first.
        if let (Reply::Granted { .. }, Some(Ok(line))) = (reply, lines.next())
            && line == "done"
            && let Some(held) = self.lock().remove(&request)
        {
            (self.release)(held.job);
        }
        Ok(())
    }

    fn judge(&self, claim: &Claim) -> Reply {
        let refused = |why: String| Reply::Refused { why };
        if claim.engine_id != self.engine_id {
            return refused(format!(
                "Remote NIXL agent engine ID mismatch. Expected {}, received {}.",
                claim.engine_id, self.engine_id
            ));
        }
        if claim.identity.compatibility_hash != self.identity.compatibility_hash {
            return refused(format!(
                "NIXL compatibility hash mismatch. Local: {}, Remote: {}. Prefill and decode \
                 instances have incompatible configurations.",
                claim.identity.compatibility_hash, self.identity.compatibility_hash
            ));
        }
        if claim.identity.transport != self.identity.transport {
            return refused(format!(
                "NIXL_ERR_NOT_FOUND: no common backend: {} here, {} there",
                claim.identity.transport, self.identity.transport
            ));
        }
        match self.lock().get(&claim.request_id) {
            Some(held) if held.block_ids == claim.block_ids => Reply::Granted {
                tokens: held.tokens,
            },
            Some(_) => refused(format!("request {} holds other blocks", claim.request_id)),
            None => refused(format!(
                "no blocks are held for request {}",
                claim.request_id
            )),
        }
    }

    /// Frees what nobody fetched in time.
    fn expire(&self) {
        let mut holdings = self.lock();
        holdings.retain(|_, held| {
            let keep = held.since.elapsed() < self.abort_after;
            if !keep {
                (self.release)(held.job);
            }
            keep
        });
    }
}

/// A consumer's claim that was granted.
pub(super) struct Granted {
    stream: tokio::io::BufReader<tokio::net::TcpStream>,
    pub(super) tokens: u64,
}

impl Granted {
    /// Tells the producer that the blocks have arrived.
    pub(super) async fn done(mut self) {
        // A producer that is gone has nothing left to free.
        let _ = self.stream.write_all(b"done\n").await;
        let _ = self.stream.shutdown().await;
    }
}

/// Claims the blocks that a request's parameters name.
///
/// # Errors
/// One sentence: what is missing, that nobody answers, or why the producer refused.
pub(super) async fn claim(params: &TransferParams, identity: &Identity) -> Result<Granted, String> {
    let missing = |what: &str| format!("kv_transfer_params has no {what}");
    let host = params
        .remote_host
        .as_deref()
        .ok_or_else(|| missing("remote_host"))?;
    let port = params.remote_port.ok_or_else(|| missing("remote_port"))?;
    let ask = Claim {
        engine_id: params
            .remote_engine_id
            .clone()
            .ok_or_else(|| missing("remote_engine_id"))?,
        request_id: params
            .remote_request_id
            .clone()
            .ok_or_else(|| missing("remote_request_id"))?,
        block_ids: params
            .remote_block_ids
            .clone()
            .ok_or_else(|| missing("remote_block_ids"))?,
        identity: identity.clone(),
    };
    let work = async {
        let failed = |e: std::io::Error| format!("NIXL handshake with {host}:{port} failed: {e}");
        let stream = tokio::net::TcpStream::connect((host, port))
            .await
            .map_err(failed)?;
        let mut stream = tokio::io::BufReader::new(stream);
        let mut line = serde_json::to_string(&ask).map_err(|e| e.to_string())?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await.map_err(failed)?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await.map_err(failed)?;
        match serde_json::from_str(&answer) {
            Ok(Reply::Granted { tokens }) => Ok(Granted { stream, tokens }),
            Ok(Reply::Refused { why }) => Err(why),
            Err(e) => Err(format!("NIXL handshake with {host}:{port} failed: {e}")),
        }
    };
    let outcome = tokio::time::timeout(LINE_TIMEOUT, work).await;
    outcome.unwrap_or_else(|_| Err(format!("NIXL handshake with {host}:{port} timed out")))
}

/// Whether an address can be listened on, told before the weights are loaded.
pub(super) fn can_listen(host: &str, port: u16) -> std::io::Result<()> {
    let address = (host, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| std::io::Error::other("no address"))?;
    TcpListener::bind(address).map(drop)
}
