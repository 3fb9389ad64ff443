//! What the load generator adds to what it measures. A server in the same process notes when it
//! writes each first token; the difference to when the client says it came is the client's bias.
//! Run: `cargo bench --bench load_client -- [STREAMS] [EVENTS] [INTERVAL_US]`. Linux only (reads
//! the client's CPU time from /proc).

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use doe::measure::load::{self, Api, Loop, Settings, Tokenize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// When each request's first token was written, by request id.
type Written = Arc<Mutex<HashMap<String, Instant>>>;

const EVENT: &str = "data: {\"id\":\"cmpl-bench\",\"object\":\"text_completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

async fn serve(mut peer: TcpStream, events: u32, interval: Duration, written: Written) {
    let _ = peer.set_nodelay(true);
    let mut head = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let (end, length) = loop {
        match peer.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => head.extend_from_slice(&buffer[..n]),
        }
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
            let field = |name: &str| {
                text.lines()
                    .find_map(|l| l.strip_prefix(name))
                    .map(|v| v.trim().to_owned())
            };
            let id = field("x-request-id:").unwrap_or_default();
            let length: usize = field("content-length:")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            break ((end + 4, id), length);
        }
    };
    let (end, id) = end;
    let mut left = (end + length).saturating_sub(head.len());
    while left > 0 {
        match peer.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => left = left.saturating_sub(n),
        }
    }
    let event = chunk(EVENT);
    // First tokens spread over one length of a stream, as prefills spread them: a thousand that
    // come in the same microsecond would measure the queue and not the client.
    let spread = u64::from(events) * interval.as_micros() as u64;
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let mut next = tokio::time::Instant::now() + Duration::from_micros(hash % spread.max(1));
    let ok =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    if peer.write_all(ok).await.is_err() {
        return;
    }
    for i in 0..events {
        next += interval;
        tokio::time::sleep_until(next).await;
        if i == 0 {
            written
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .insert(id.clone(), Instant::now());
        }
        if peer.write_all(&event).await.is_err() {
            return;
        }
    }
    let mut last = chunk(LAST);
    last.extend_from_slice(b"0\r\n\r\n");
    let _ = peer.write_all(&last).await;
}

fn start(events: u32, interval: Duration, written: Written) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                if let Ok((peer, _)) = listener.accept().await {
                    tokio::spawn(serve(peer, events, interval, Arc::clone(&written)));
                }
            }
        });
    });
    address
}

/// CPU seconds of the calling thread.
fn thread_cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    ns.unwrap_or(f64::NAN) / 1e9
}

fn quantile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p).round() as usize]
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let at = |i: usize, default: u64| numbers.get(i).copied().unwrap_or(default);
    let (streams, events, interval_us) = (at(0, 16) as u32, at(1, 128) as u32, at(2, 10_000));
    let written = Written::default();
    let address = start(
        events,
        Duration::from_micros(interval_us),
        Arc::clone(&written),
    );
    let settings = Settings {
        url: format!("http://{address}"),
        api: Api::Completions,
        model: "m".into(),
        prompt_tokens: 1000,
        max_tokens: events,
        warmup_iterations: 1,
        iterations: 3,
        concurrency: streams,
        seed: 1,
        temperature: 0.0,
        ignore_eos: true,
        pacing: Loop::Closed,
        pause: Duration::ZERO,
        request_timeout: Duration::from_secs(60),
        tokenize: Tokenize::Words,
        session: Some("bench".into()),
        watched: Vec::new(),
    };
    let (wall, cpu) = (Instant::now(), thread_cpu_s());
    let report = load::run(&settings, &mut |_| {}).expect("the client works");
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), thread_cpu_s() - cpu);
    let report = serde_json::to_value(&report).expect("JSON");
    let written = written.lock().unwrap_or_else(|e| e.into_inner());
    let origin = *written.values().min().expect("requests");
    let mut bias: Vec<f64> = Vec::new();
    for request in report["requests"].as_array().expect("requests") {
        let number = |key: &str| request[key].as_f64().unwrap_or(f64::NAN);
        let id = format!("bench-{}", request["index"]);
        let Some(at) = written.get(&id) else { continue };
        let seen_ms = number("start_ms") + number("ttft_ms");
        bias.push(seen_ms - at.duration_since(origin).as_secs_f64() * 1e3);
    }
    // The two clocks' origins differ by a constant; the quickest first token sets it.
    bias.sort_unstable_by(f64::total_cmp);
    let least = bias[0];
    let of = |p: f64| (quantile(&bias, p) - least) * 1e3;
    let total = f64::from(streams) * f64::from(events) * 4.0;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "{streams} streams, {events} events each, one every {interval_us} us: {} of {} ok; TTFT bias over the \
         quickest p50 {:.0} us, p99 {:.0} us, max {:.0} us; client thread {:.2} us of CPU an event, {:.0} % of a \
         core",
        report["counts"]["ok"],
        report["counts"]["attempted"],
        of(0.5),
        of(0.99),
        of(1.0),
        cpu * 1e6 / total,
        cpu / wall * 100.0,
    );
    let itl = &report["itl_ms"];
    let _ = writeln!(
        out,
        "ITL asked {:.3} ms; mean {:.3}, p50 {:.3}, p99 {:.3}",
        interval_us as f64 / 1e3,
        itl["mean"].as_f64().unwrap_or(f64::NAN),
        itl["p50"].as_f64().unwrap_or(f64::NAN),
        itl["p99"].as_f64().unwrap_or(f64::NAN),
    );
}
