//! End to end over loopback: load generator, proxy and simulated servers in every combination
//! that a campaign uses, and what each does when another one fails.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use doe::measure::load::{self, Api, Loop, Report, Settings, Tokenize};
use doe::measure::proxy;
use doe::measure::server::Running;
use doe::measure::sim::profile::SimProfile;
use doe::measure::sim::vllm::{self, Log, Server};
use serde_json::{Value, json};

const MODEL: &str = "Qwen/Qwen2.5-7B-Instruct";

/// Fast enough for a test; times are not asserted, only their order and their sums.
fn profile() -> SimProfile {
    SimProfile {
        startup_s: 0.0,
        time_scale: 0.002,
        ..SimProfile::default()
    }
}

fn serve_with(profile: &SimProfile, line: &str, vars: &[(&str, &str)]) -> Server {
    let base = format!("{MODEL} --host 127.0.0.1 --port 0 --tensor-parallel-size 4 {line}");
    let words: Vec<String> = base.split_whitespace().map(str::to_owned).collect();
    let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    vllm::start(&words, &vars.collect(), profile, &Log::new(std::io::sink()))
        .map_err(|refused| refused.text)
        .expect("the simulated server starts")
}

fn serve(line: &str) -> Server {
    serve_with(&profile(), line, &[])
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn settings(address: SocketAddr) -> Settings {
    Settings {
        url: url(address),
        api: Api::Completions,
        model: MODEL.into(),
        prompt_tokens: 100,
        max_tokens: 8,
        warmup_iterations: 1,
        iterations: 3,
        concurrency: 2,
        seed: 5,
        temperature: 0.0,
        ignore_eos: true,
        pacing: Loop::Rounds,
        pause: Duration::ZERO,
        request_timeout: Duration::from_secs(20),
        tokenize: Tokenize::Auto,
        session: None,
        watched: Vec::new(),
    }
}

fn measure(settings: &Settings) -> (Report, Value) {
    let report = load::run(settings, &mut |_| {}).expect("the client works");
    let value = serde_json::to_value(&report).unwrap();
    (report, value)
}

fn kv(role: &str, extra: &str) -> String {
    format!(
        "--no-enable-prefix-caching --kv-transfer-config \
         {{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"{role}\"{extra}}}"
    )
}

const SIDE: [(&str, &str); 3] = [
    ("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1"),
    ("VLLM_NIXL_SIDE_CHANNEL_PORT", "0"),
    ("UCX_TLS", "srd,self,sm"),
];

struct Pair {
    prefill: Server,
    decode: Server,
    proxy: Running,
}

fn pair_of(prefill: Server, decode: Server, allow_recompute: bool, keep_alive: bool) -> Pair {
    let proxy = proxy::start(proxy::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        prefill: url(prefill.address()),
        decode: url(decode.address()),
        log: None,
        handover: proxy::Handover::Params,
        allow_recompute,
        keep_alive,
        prefill_timeout: Duration::from_secs(20),
        decode_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
    })
    .unwrap();
    Pair {
        prefill,
        decode,
        proxy,
    }
}

fn pair() -> Pair {
    pair_of(
        serve_with(&profile(), &kv("kv_producer", ""), &SIDE),
        serve_with(&profile(), &kv("kv_consumer", ""), &SIDE),
        false,
        false,
    )
}

/// One exchange by hand: status and body, or none when the connection broke.
fn http(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).unwrap_or("0").parse().unwrap();
    (
        status,
        answer
            .split_once("\r\n\r\n")
            .map_or(String::new(), |(_, b)| b.to_owned()),
    )
}

fn metric(address: SocketAddr, name: &str) -> f64 {
    let (status, page) = http(address, "GET /metrics", "");
    assert_eq!(status, 200);
    let line = page
        .lines()
        .find(|l| !l.starts_with('#') && l.contains(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_unified_server_under_load_gives_a_whole_result() {
    let server = serve("--no-enable-prefix-caching");
    for (api, pacing, concurrency) in [
        (Api::Completions, Loop::Rounds, 1),
        (Api::Completions, Loop::Closed, 3),
        (Api::Chat, Loop::Rounds, 2),
    ] {
        let settings = Settings {
            api,
            pacing,
            concurrency,
            ..settings(server.address())
        };
        let (report, r) = measure(&settings);
        report.verdict().unwrap();
        let n = 3 * concurrency as usize;
        assert_eq!(r["schema"], "load-v1");
        assert_eq!(r["counts"], json!({"attempted": n, "ok": n, "failed": 0}));
        assert_eq!(r["calibration"]["method"], "tokenizer");
        assert_eq!(
            (&r["prompt_tokens_off"], &r["prompt_tokens_unknown"]),
            (&json!(0), &json!(0))
        );
        assert_eq!(
            r["tokens"],
            json!({"prompt_total": 100 * n, "output_total": 8 * n})
        );
        assert_eq!(r["itl_ms"]["n"], 7 * n);
        assert_eq!(r["warmup"].as_array().unwrap().len(), concurrency as usize);
        assert!(r["warmup"][0].get("itl_ms").is_none());
        assert!(r["settings"].get("url").is_none());
        let requests = r["requests"].as_array().unwrap();
        for (index, request) in requests.iter().enumerate() {
            assert_eq!(request["index"], index);
            assert_eq!(request["tokens_from"], "usage");
            assert_eq!(request["error"], Value::Null);
            let number = |key: &str| request[key].as_f64().unwrap();
            let gaps: f64 = request["itl_ms"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(Value::as_f64)
                .sum();
            assert!(
                (number("ttft_ms") + gaps - number("e2e_ms")).abs() < 0.01,
                "{request}"
            );
            assert!((number("tpot_ms") * 7.0 - gaps).abs() < 0.01);
            assert!(number("ttft_ms") > 0.0 && number("start_ms") >= 0.0);
        }
        // Nothing is faster than the window: tokens/s times window is what was counted.
        let window = r["throughput"]["window_s"].as_f64().unwrap();
        let rate = r["throughput"]["output_tokens_per_s"].as_f64().unwrap();
        assert!((rate * window - (8 * n) as f64).abs() < 1e-6);
    }
}

#[test]
fn rounds_wait_for_each_other_and_a_closed_loop_does_not() {
    let server = serve("");
    let spans = |pacing| {
        let settings = Settings {
            pacing,
            iterations: 6,
            concurrency: 3,
            ..settings(server.address())
        };
        let (_, r) = measure(&settings);
        let requests = r["requests"].as_array().unwrap().clone();
        let span = |q: &Value| {
            let start = q["start_ms"].as_f64().unwrap();
            (
                q["round"].as_u64().unwrap(),
                start,
                start + q["e2e_ms"].as_f64().unwrap(),
            )
        };
        requests.iter().map(span).collect::<Vec<_>>()
    };
    let rounds = spans(Loop::Rounds);
    for a in &rounds {
        for b in rounds.iter().filter(|b| b.0 > a.0) {
            assert!(
                b.1 > a.2,
                "round {} began before round {} was over",
                b.0,
                a.0
            );
        }
    }
    let turns: Vec<u64> = spans(Loop::Closed).iter().map(|s| s.0).collect();
    assert_eq!(turns.len(), 18);
}

#[test]
fn a_seed_asks_the_same_and_a_prefix_cache_finds_nothing() {
    let server = serve("--enable-prefix-caching");
    let settings = settings(server.address());
    measure(&settings);
    assert_eq!(metric(server.address(), "prefix_cache_hits_total"), 0.0);
    let queried = metric(server.address(), "prefix_cache_queries_total");
    assert_eq!(queried, 8.0 * 100.0);
    // The same seed asks the same again, and now all full blocks are known.
    measure(&settings);
    assert_eq!(
        metric(server.address(), "prefix_cache_hits_total"),
        8.0 * 96.0
    );
}

#[test]
fn words_serve_where_there_is_no_tokenizer_and_a_wrong_length_is_told() {
    let server = serve("");
    let chat = Settings {
        api: Api::Chat,
        tokenize: Tokenize::Words,
        ..settings(server.address())
    };
    let (_, r) = measure(&chat);
    assert_eq!(r["calibration"]["method"], "words");
    assert_eq!(
        r["prompt_tokens_off"], 6,
        "the chat template adds 8 tokens to 100"
    );
}

#[test]
fn requests_that_are_refused_are_failures_with_the_servers_words() {
    let server = serve("--max-model-len 128");
    let long = Settings {
        prompt_tokens: 124,
        ..settings(server.address())
    };
    let (report, r) = measure(&long);
    assert_eq!(r["errors"], json!({"http_400": 6}));
    let message = r["requests"][0]["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("This model's maximum context length is 128 tokens"),
        "{message}"
    );
    let error = report.verdict().unwrap_err();
    assert_eq!(
        (error.code, error.kind.exit_code()),
        ("no-successful-request", 1)
    );

    let unknown = Settings {
        model: "gpt-9".into(),
        ..settings(server.address())
    };
    assert_eq!(measure(&unknown).1["errors"], json!({"http_404": 6}));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    report.write(&path).unwrap();
    let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        written["counts"]["failed"], 6,
        "the file is there although all failed"
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );
}

#[test]
fn nobody_there_is_a_failure_by_name() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (report, r) = measure(&settings(free));
    assert_eq!(r["errors"], json!({"connect": 6}));
    assert!(report.verdict().is_err());
    let demand = Settings {
        tokenize: Tokenize::Server,
        ..settings(free)
    };
    assert_eq!(
        load::run(&demand, &mut |_| {}).unwrap_err().code,
        "no-tokenizer"
    );
}

#[test]
fn an_engine_that_dies_at_the_first_request_is_told_by_its_error_event() {
    let broken = SimProfile {
        fail: vec!["vllm:engine-dead".into()],
        ..profile()
    };
    let server = serve_with(&broken, "", &[]);
    assert_eq!(http(server.address(), "GET /health", "").0, 200);
    let settings = Settings {
        warmup_iterations: 0,
        concurrency: 1,
        tokenize: Tokenize::Words,
        ..settings(server.address())
    };
    let (report, r) = measure(&settings);
    assert_eq!(r["errors"], json!({"server_error": 1, "http_500": 2}));
    assert!(report.verdict().is_err());
    assert_eq!(http(server.address(), "GET /health", "").0, 503);
}

#[test]
fn a_server_that_dies_while_it_streams_is_not_taken_for_an_answer() {
    let mortal = SimProfile {
        fail: vec!["vllm:die-after-tokens=20".into()],
        ..profile()
    };
    let server = serve_with(&mortal, "", &[]);
    let settings = Settings {
        warmup_iterations: 0,
        iterations: 2,
        concurrency: 1,
        max_tokens: 15,
        ..settings(server.address())
    };
    let (_, r) = measure(&settings);
    assert_eq!(r["counts"]["ok"], 1);
    assert_eq!(r["errors"], json!({"connection_closed": 1}));
    let broken = &r["requests"][1];
    assert_eq!(
        (&broken["e2e_ms"], &broken["tpot_ms"]),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn a_pair_moves_the_cache_and_answers_as_one_server_would() {
    let pair = pair();
    let (status, health) = http(pair.proxy.address(), "GET /health", "");
    assert_eq!(status, 200, "{health}");
    let settings = Settings {
        session: Some("run-7".into()),
        ..settings(pair.proxy.address())
    };
    let (report, r) = measure(&settings);
    report.verdict().unwrap();
    assert_eq!(r["counts"]["ok"], 6);
    assert_eq!(r["prompt_tokens_off"], 0);

    // The cache really moved: all but the last token of 8 prompts, warm-up included.
    let decode = pair.decode.address();
    assert_eq!(
        metric(decode, "source=\"external_kv_transfer\""),
        8.0 * 99.0
    );
    assert_eq!(metric(decode, "source=\"local_compute\""), 8.0);
    assert_eq!(
        metric(pair.prefill.address(), "source=\"local_compute\""),
        8.0 * 100.0
    );

    // One record for each measured request, none of the warm-up, all stamps in order.
    let stats = load::proxy_stats(&url(pair.proxy.address()), "run-7").unwrap();
    assert_eq!(stats["schema"], "proxy-v1");
    let records = stats["requests"].as_array().unwrap();
    assert_eq!(records.len(), 6);
    for record in records {
        assert_eq!(record["status"], "ok");
        let names = [
            "received_ms",
            "prefill_sent_ms",
            "prefill_done_ms",
            "decode_sent_ms",
            "decode_first_byte_ms",
            "first_byte_relayed_ms",
            "decode_done_ms",
            "done_ms",
        ];
        let stamps: Vec<f64> = names.iter().map(|n| record[n].as_f64().unwrap()).collect();
        assert!(stamps.windows(2).all(|w| w[0] <= w[1]), "{record}");
    }
    let mut ids: Vec<_> = records.iter().map(|r| r["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(
        ids,
        [
            "run-7-0", "run-7-1", "run-7-2", "run-7-3", "run-7-4", "run-7-5"
        ]
    );
    let warmup = load::proxy_stats(&url(pair.proxy.address()), "run-7-warmup").unwrap();
    assert_eq!(warmup["requests"].as_array().unwrap().len(), 2);

    // Semantic probe: the greedy answer through the pair is the unified one.
    let ask = json!({"model": MODEL, "prompt": "one two three", "max_tokens": 12, "temperature": 0, "ignore_eos": true}).to_string();
    let text = |address| {
        let (status, body) = http(address, "POST /v1/completions", &ask);
        assert_eq!(status, 200, "{body}");
        let body: Value =
            serde_json::from_str(&body[body.find('{').unwrap()..=body.rfind('}').unwrap()])
                .unwrap();
        body["choices"][0]["text"].clone()
    };
    assert_eq!(text(pair.proxy.address()), text(serve("").address()));

    let (_, cleared) = http(pair.proxy.address(), "POST /stats/reset", "");
    assert!(cleared.contains("\"cleared\":9"), "{cleared}");
}

#[test]
fn held_caches_are_freed_when_they_were_fetched() {
    let pair = pair();
    measure(&settings(pair.proxy.address()));
    let used = || metric(pair.prefill.address(), "kv_cache_usage_perc");
    // The producer hears of it in its own time.
    let freed = (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        used() == 0.0
    });
    assert!(freed, "{} of the cache is still held", used());
}

#[test]
fn kept_connections_give_the_same_answers() {
    let pair = pair_of(
        serve_with(&profile(), &kv("kv_producer", ""), &SIDE),
        serve_with(&profile(), &kv("kv_consumer", ""), &SIDE),
        false,
        true,
    );
    let (_, r) = measure(&settings(pair.proxy.address()));
    assert_eq!(r["counts"]["ok"], 6, "{}", r["errors"]);
}

#[test]
fn a_prefill_without_transfer_parameters_is_an_error_unless_recomputing_is_allowed() {
    let mute = SimProfile {
        fail: vec!["vllm:no-kv-params".into()],
        ..profile()
    };
    let pair_that = |allow| {
        pair_of(
            serve_with(&mute, &kv("kv_producer", ""), &SIDE),
            serve_with(&profile(), &kv("kv_consumer", ""), &SIDE),
            allow,
            false,
        )
    };
    let strict = pair_that(false);
    let (_, r) = measure(&settings(strict.proxy.address()));
    assert_eq!(r["errors"], json!({"http_502": 6}));
    let message = r["requests"][0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("kv_transfer_params_missing"), "{message}");
    assert_eq!(
        metric(strict.decode.address(), "generation_tokens_total"),
        0.0
    );

    let lax = pair_that(true);
    let settings = Settings {
        session: Some("x".into()),
        ..settings(lax.proxy.address())
    };
    let (_, r) = measure(&settings);
    assert_eq!(r["counts"]["ok"], 6);
    let stats = load::proxy_stats(&url(lax.proxy.address()), "x").unwrap();
    assert!(
        stats["requests"]
            .as_array()
            .unwrap()
            .iter()
            .all(|r| r["recomputed"] == true)
    );
}

#[test]
fn a_pair_that_does_not_fit_together_fails_every_request() {
    let other_layout = ",\"kv_connector_extra_config\":{\"enable_cross_layers_blocks\":\"True\"}";
    let tcp = [SIDE[0], SIDE[1], ("UCX_TLS", "tcp,self,sm")];
    let bad_pairs = [
        (kv("kv_consumer", other_layout), SIDE),
        (kv("kv_consumer", ""), tcp),
    ];
    for (line, vars) in bad_pairs {
        let pair = pair_of(
            serve_with(&profile(), &kv("kv_producer", ""), &SIDE),
            serve_with(&profile(), &line, &vars),
            false,
            false,
        );
        let (_, r) = measure(&settings(pair.proxy.address()));
        assert_eq!(r["errors"], json!({"server_error": 6}));
        assert_eq!(
            metric(pair.decode.address(), "nixl_num_transfers_total"),
            0.0
        );
    }
}

#[test]
fn a_recomputing_consumer_answers_and_only_its_metric_tells() {
    let line = kv("kv_consumer", ",\"kv_load_failure_policy\":\"recompute\"");
    let tcp = [SIDE[0], SIDE[1], ("UCX_TLS", "tcp,self,sm")];
    let pair = pair_of(
        serve_with(&profile(), &kv("kv_producer", ""), &SIDE),
        serve_with(&profile(), &line, &tcp),
        false,
        false,
    );
    let (_, r) = measure(&settings(pair.proxy.address()));
    assert_eq!(r["counts"]["ok"], 6);
    assert_eq!(
        metric(pair.decode.address(), "source=\"external_kv_transfer\""),
        0.0
    );
    assert_eq!(
        metric(pair.decode.address(), "source=\"local_compute\""),
        800.0
    );
}

#[test]
fn blocks_that_nobody_holds_are_not_handed_out() {
    let decode = serve_with(&profile(), &kv("kv_consumer", ""), &SIDE);
    let prefill = serve_with(&profile(), &kv("kv_producer", ""), &SIDE);
    let ask = json!({
        "model": MODEL, "prompt": "a b c", "max_tokens": 1,
        "kv_transfer_params": {"do_remote_decode": true, "do_remote_prefill": false},
    });
    let (status, body) = http(prefill.address(), "POST /v1/completions", &ask.to_string());
    assert_eq!(status, 200);
    let body: Value = serde_json::from_str(body.trim()).unwrap();
    let params = &body["kv_transfer_params"];
    let decode_with = |change: &dyn Fn(&mut Value)| {
        let mut params = params.clone();
        change(&mut params);
        let ask = json!({"model": MODEL, "prompt": "a b c", "max_tokens": 2, "kv_transfer_params": params});
        http(decode.address(), "POST /v1/completions", &ask.to_string()).0
    };
    assert_eq!(
        decode_with(&|p| p["remote_request_id"] = "other".into()),
        500
    );
    assert_eq!(decode_with(&|p| p["remote_block_ids"] = json!([4, 5])), 500);
    assert_eq!(
        decode_with(&|p| p["remote_engine_id"] = "other".into()),
        500
    );
    assert_eq!(decode_with(&|p| p["remote_port"] = 1.into()), 500);
    assert_eq!(decode_with(&|p| p["remote_host"] = Value::Null), 500);
    assert_eq!(decode_with(&|_| {}), 200);
}

#[test]
fn a_decode_server_that_dies_aborts_the_clients_body() {
    let mortal = SimProfile {
        fail: vec!["vllm:die-after-tokens=20".into()],
        ..profile()
    };
    let pair = pair_of(
        serve_with(&profile(), &kv("kv_producer", ""), &SIDE),
        serve_with(&mortal, &kv("kv_consumer", ""), &SIDE),
        false,
        false,
    );
    let settings = Settings {
        warmup_iterations: 0,
        iterations: 3,
        concurrency: 1,
        max_tokens: 15,
        session: Some("m".into()),
        ..settings(pair.proxy.address())
    };
    let (_, r) = measure(&settings);
    assert_eq!(r["counts"], json!({"attempted": 3, "ok": 1, "failed": 2}));
    assert_eq!(r["requests"][1]["error"]["kind"], "connection_closed");
    let stats = load::proxy_stats(&url(pair.proxy.address()), "m").unwrap();
    let ends: Vec<_> = stats["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["status"].clone())
        .collect();
    assert_eq!(ends[..2], ["ok", "decode_aborted"]);
    assert_eq!(http(pair.proxy.address(), "GET /health", "").0, 503);
}

#[test]
fn servers_behind_the_proxy_that_are_gone_or_refuse_are_told_apart() {
    let pair = pair();
    let address = pair.proxy.address();
    let long = json!({"model": MODEL, "prompt": "w ".repeat(40_000)}).to_string();
    let (status, body) = http(address, "POST /v1/completions", &long);
    assert_eq!(status, 400, "the prefill server's own refusal is passed on");
    assert!(body.contains("maximum context length"), "{body}");
    assert_eq!(http(address, "POST /v1/completions", "nonsense").0, 400);

    let Pair {
        prefill,
        decode,
        proxy,
    } = pair;
    let ask = json!({"model": MODEL, "prompt": "a b", "max_tokens": 2}).to_string();
    drop(decode);
    let (status, body) = http(proxy.address(), "POST /v1/completions", &ask);
    assert!(
        status == 502 && body.contains("decode_unreachable"),
        "{status} {body}"
    );
    drop(prefill);
    let (status, body) = http(proxy.address(), "POST /v1/completions", &ask);
    assert!(
        status == 502 && body.contains("prefill_unreachable"),
        "{status} {body}"
    );
    assert_eq!(http(proxy.address(), "GET /health", "").0, 503);
    assert_eq!(http(proxy.address(), "GET /stats?clinet=x", "").0, 400);
}

/// Answers one connection at a time with fixed bytes, whatever is asked.
fn canned(answer: &'static [u8], wait: Duration) -> SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = peer.read(&mut [0; 65536]);
                let _ = peer.write_all(answer);
                let _ = peer.flush();
                std::thread::sleep(wait);
            });
        }
    });
    address
}

/// A server of another make: `tokens_a_word` of its own in every word and `fixed` around them,
/// with llama.cpp's `/tokenize` (which does not count what is fixed) or with none.
fn other_make(tokens_a_word: usize, fixed: usize, tokenizer: bool) -> SocketAddr {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |path: &str, ask: &Value| -> (u16, String) {
        let count = |text: &Value| text.as_str().unwrap_or("").split(' ').count() * tokens_a_word;
        if path == "/tokenize" {
            return match (tokenizer, ask.get("content")) {
                (false, _) => (404, "{}".into()),
                (true, None) => (200, json!({"tokens": []}).to_string()),
                (true, Some(text)) => (200, json!({"tokens": vec![1; count(text)]}).to_string()),
            };
        }
        let tokens = count(&ask["messages"][0]["content"]) + fixed;
        let usage = json!({"prompt_tokens": tokens, "completion_tokens": 1});
        if ask["stream"] != true {
            return (200, json!({"choices": [], "usage": usage}).to_string());
        }
        let token = json!({"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]});
        let last = json!({"choices": [], "usage": usage});
        (
            200,
            format!("data: {token}\n\ndata: {last}\n\ndata: [DONE]\n\n"),
        )
    };
    std::thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            let mut reader = BufReader::new(peer.try_clone().unwrap());
            let (mut first, mut length) = (String::new(), 0);
            let _ = reader.read_line(&mut first);
            loop {
                let mut line = String::new();
                let _ = reader.read_line(&mut line);
                if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            let _ = reader.read_exact(&mut body);
            let ask = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let (status, text) = answer(first.split(' ').nth(1).unwrap_or(""), &ask);
            let length = text.len();
            let _ = write!(
                peer,
                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{text}"
            );
        }
    });
    address
}

#[test]
fn prompt_lengths_are_found_on_servers_of_other_makes() {
    for (tokenizer, method) in [(true, "tokenizer"), (false, "usage")] {
        let settings = Settings {
            api: Api::Chat,
            prompt_tokens: 317,
            ..settings(other_make(4, 17, tokenizer))
        };
        let (_, r) = measure(&settings);
        assert_eq!(r["calibration"]["method"], method);
        assert_eq!(r["prompt_tokens_off"], 0);
        let lengths: Vec<_> = r["requests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|q| &q["prompt_tokens"])
            .collect();
        assert_eq!(
            lengths,
            vec![&json!(317); 6],
            "75 words of 4 and 17 around them"
        );
    }
    let only_words = Settings {
        api: Api::Chat,
        tokenize: Tokenize::Server,
        ..settings(other_make(4, 17, false))
    };
    assert_eq!(
        load::run(&only_words, &mut |_| {}).unwrap_err().code,
        "no-tokenizer"
    );
}

#[test]
fn streams_of_other_servers_are_judged_by_how_they_end() {
    let once = |answer, limit_ms, wait| {
        let settings = Settings {
            warmup_iterations: 0,
            iterations: 1,
            concurrency: 1,
            tokenize: Tokenize::Words,
            request_timeout: Duration::from_millis(limit_ms),
            ..settings(canned(answer, wait))
        };
        let (_, r) = measure(&settings);
        r["requests"][0].clone()
    };
    let now = Duration::ZERO;
    let kind = |r: &Value| r["error"]["kind"].as_str().unwrap_or("ok").to_owned();

    let without_length = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n";
    let r = once(without_length, 60_000, now);
    assert_eq!(
        (kind(&r).as_str(), &r["tokens_from"]),
        ("ok", &json!("chunks"))
    );

    let cut_off = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    assert_eq!(kind(&once(cut_off, 60_000, now)), "truncated");

    let chunk_missing = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n24\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n\r\n";
    assert_eq!(kind(&once(chunk_missing, 60_000, now)), "connection_closed");

    // Up to the limit its peer keeps the connection, and has said the first token well before.
    let r = once(chunk_missing, 5000, Duration::from_secs(120));
    assert_eq!(kind(&r), "timeout");
    assert!(r["ttft_ms"].is_f64());
}

#[test]
fn a_proxy_does_not_take_a_broken_stream_without_length_for_a_whole_one() {
    let prefill = canned(
        b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{\"kv_transfer_params\":{\"remote_port\":1}} ",
        Duration::ZERO,
    );
    let decode = canned(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\n",
        Duration::ZERO,
    );
    let proxy = proxy::start(proxy::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        prefill: url(prefill),
        decode: url(decode),
        log: None,
        handover: proxy::Handover::Params,
        allow_recompute: false,
        keep_alive: false,
        prefill_timeout: Duration::from_secs(60),
        decode_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
    })
    .unwrap();
    let settings = Settings {
        warmup_iterations: 0,
        iterations: 1,
        concurrency: 1,
        tokenize: Tokenize::Words,
        ..settings(proxy.address())
    };
    assert_eq!(
        measure(&settings).1["errors"],
        json!({"connection_closed": 1})
    );
}

#[test]
fn progress_ends_at_the_total() {
    let server = serve("");
    for pacing in [Loop::Rounds, Loop::Closed] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let settings = Settings {
            pacing,
            ..settings(server.address())
        };
        load::run(&settings, &mut |p| seen.lock().unwrap().push(p)).unwrap();
        let last = *seen.lock().unwrap().last().unwrap();
        assert_eq!(
            (last.warmup, last.done, last.total, last.failed),
            (false, 6, 6, 0)
        );
    }
}
