//! The measuring tools: what their readers make of real and damaged texts, and what the simulated
//! ones print, whose numbers are known.

mod failures;
mod golden;
mod sim;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use doe::measure::parse::{self, Context};
use doe::measure::sim::{SimProfile, tools};
use serde_json::Value;

/// Every number of an answer, and every headline above zero.
fn check_sound(tool: &str, answer: &Value) {
    assert_eq!(answer["schema"], format!("{tool}-v1"));
    fn walk(value: &Value) {
        match value {
            Value::Number(number) => assert!(number.as_f64().unwrap().is_finite()),
            Value::Array(values) => values.iter().for_each(walk),
            Value::Object(map) => map.values().for_each(walk),
            _ => {}
        }
    }
    walk(answer);
    for field in [
        "bandwidth_gbps",
        "busbw_avg_gbps",
        "latency_us",
        "transfer_time_ms",
        "gpu_count",
        "received_gbps",
    ] {
        if let Some(value) = answer.get(field) {
            let value = value.as_f64().unwrap();
            assert!(value > 0.0, "{tool}: {field} = {value}");
        }
    }
}

fn profile() -> SimProfile {
    SimProfile {
        time_scale: 1e-4,
        seed: 7,
        ..SimProfile::default()
    }
}

struct Ran {
    status: u8,
    out: String,
    err: String,
}

fn run(profile: &SimProfile, env: &[(&str, &str)], words: &[&str]) -> Ran {
    let env: BTreeMap<String, String> = (env.iter())
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let args: Vec<String> = words[1..].iter().map(|w| (*w).to_owned()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let lookup = |name: &str| env.get(name).cloned();
    let status = tools::run(words[0], &args, profile, &lookup, &mut out, &mut err);
    Ran {
        status,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}

fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// Runs a server and, as soon as it listens, a client; both must end well.
fn pair(env: &[(&str, &str)], server: &[&str], client: &[&str]) -> (Ran, Ran) {
    let profile = profile();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| run(&profile, env, server));
        let deadline = Instant::now() + Duration::from_secs(120);
        let client = loop {
            let client = run(&profile, env, client);
            let refused = client.out.contains("refused") || client.err.contains("refused");
            if !refused || Instant::now() > deadline || server.is_finished() {
                break client;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let server = server.join().unwrap();
        assert_eq!(client.status, 0, "client: {}{}", client.out, client.err);
        assert_eq!(server.status, 0, "server: {}{}", server.out, server.err);
        (server, client)
    })
}

fn read(tool: &str, text: &str) -> Value {
    let answer = parse::parse(tool, text, &Context::default());
    let answer = answer.unwrap_or_else(|e| panic!("{tool}: {e} {:?}\n{text}", e.hints));
    check_sound(tool, &answer);
    answer
}

/// Within the noise of the simulation and a little for rounding.
fn close(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap();
    assert!(
        (value / expected - 1.0).abs() < 0.012,
        "{value} is not near {expected}"
    );
}
