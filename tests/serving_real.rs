//! What real vLLM 0.32 on a CPU was seen to do, held against the parts that must cope with it:
//! bytes that it sent, replayed; and the campaign of `examples/vllm-cpu`, which it ran, on `sim`.
//! `tests/data/vllm/README.md` says where the bytes come from.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use doe::measure::load::{self, Api, Loop, Report, Settings, Tokenize, Watched};
use doe::measure::proxy;
use doe::measure::sim::profile::{Link, Shape, SimProfile};
use doe::measure::sim::vllm::{self, Log, Server};
use serde_json::{Value, json};
use support::{Workspace, repository};

fn settings(url: String) -> Settings {
    Settings {
        url,
        api: Api::Completions,
        model: "tiny".into(),
        prompt_tokens: 400,
        max_tokens: 3,
        warmup_iterations: 0,
        iterations: 4,
        concurrency: 1,
        seed: 5,
        temperature: 0.0,
        ignore_eos: true,
        pacing: Loop::Rounds,
        pause: Duration::ZERO,
        request_timeout: Duration::from_secs(20),
        tokenize: Tokenize::Words,
        session: None,
        watched: Vec::new(),
    }
}

fn measure(settings: &Settings) -> (Report, Value) {
    let report = load::run(settings, &mut |_| {}).expect("the client works");
    let value = serde_json::to_value(&report).unwrap();
    (report, value)
}

fn recorded(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/data/vllm").join(name)).unwrap()
}

/// Answers one connection with each of these, then is gone, as a process that ended is.
fn replay(answers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter().peekable();
        while let Some(answer) = answers.next() {
            let Ok((mut peer, _)) = listener.accept() else {
                return;
            };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && peer.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let length = text.split("content-length: ").nth(1).unwrap_or("0");
            let length: usize = length.lines().next().unwrap_or("0").parse().unwrap();
            let _ = peer.read_exact(&mut vec![0; length]);
            if answers.peek().is_none() {
                // Who has read the last answer finds nobody afterwards.
                drop(listener);
                let _ = peer.write_all(&answer);
                return;
            }
            let _ = peer.write_all(&answer);
        }
    });
    address
}

#[test]
fn a_real_engine_that_died_under_a_status_of_200_is_a_failure_by_name() {
    let (first, next) = ("engine-dead-first.http", "engine-dead-next.http");
    assert!(recorded(first).starts_with(b"HTTP/1.1 200 OK\r\n"));
    let address = replay(vec![recorded(first), recorded(next), recorded(next)]);
    let (report, r) = measure(&settings(format!("http://{address}")));
    let errors = json!({"server_error": 1, "http_500": 2, "connect": 1});
    assert_eq!(r["errors"], errors);
    let first = &r["requests"][0];
    let message = first["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("EngineCore encountered an issue"),
        "{message}"
    );
    assert!(message.ends_with("(code 500)"), "{message}");
    for none in ["ttft_ms", "e2e_ms", "tpot_ms", "output_tokens"] {
        assert_eq!(first[none], Value::Null, "{none}");
    }
    let none = (&json!(0), &Value::Null);
    assert_eq!((&r["ttft_ms"]["n"], &r["ttft_ms"]["p50"]), none);
    let verdict = report.verdict().unwrap_err();
    assert_eq!(verdict.code, "no-successful-request");
    assert!(
        verdict.to_string().contains("server_error x 1"),
        "{verdict}"
    );
}

#[test]
fn a_real_answer_has_the_tokens_that_its_usage_says() {
    let answer = recorded("completion.http");
    let one = Settings {
        iterations: 1,
        ..settings(format!("http://{}", replay(vec![answer])))
    };
    let (report, r) = measure(&one);
    report.verdict().unwrap();
    let request = &r["requests"][0];
    assert_eq!(request["prompt_tokens"], 4);
    assert_eq!(request["output_tokens"], 3);
    assert_eq!(request["tokens_from"], "usage");
    assert_eq!(request["itl_ms"].as_array().unwrap().len(), 2);
    assert_eq!(request["finish_reason"], "length");
}

fn serve(folder: &Path, role: &str) -> Server {
    let shape = Shape {
        params: 139_456.0,
        layers: 2,
        hidden: 64,
        heads: 2,
        kv_heads: 2,
        head_dim: 32,
        max_len: 8192,
    };
    let mut profile = SimProfile {
        startup_s: 0.0,
        time_scale: 0.01,
        storage: Link {
            bandwidth_gbps: 4.0,
            latency_us: 100.0,
        },
        models: [("doe/tiny".to_owned(), shape)].into(),
        ..SimProfile::default()
    };
    profile.gpu.name = "two cores".into();
    profile.gpu.tflops = 0.05;
    profile.gpu.memory_gbytes_per_s = 10.0;
    let config = json!({
        "kv_connector": "ExampleConnector", "kv_role": role,
        "kv_connector_extra_config": {"shared_storage_path": folder},
    });
    let line = "doe/tiny --served-model-name tiny --host 127.0.0.1 --port 0 --block-size 128 \
                --max-num-batched-tokens 8192 --no-enable-prefix-caching --kv-transfer-config";
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    words.push(config.to_string());
    vllm::start(
        &words,
        &Default::default(),
        &profile,
        &Log::new(std::io::sink()),
    )
    .map_err(|refused| refused.text)
    .expect("the simulated server starts")
}

#[test]
fn what_a_pair_moves_through_a_folder_is_told_by_its_counters() {
    let folder = tempfile::tempdir().unwrap();
    let (prefill, decode) = (
        serve(folder.path(), "kv_producer"),
        serve(folder.path(), "kv_consumer"),
    );
    let url = |address: SocketAddr| format!("http://{address}");
    let proxy = proxy::start(proxy::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        prefill: url(prefill.address()),
        decode: url(decode.address()),
        log: None,
        handover: proxy::Handover::Storage,
        allow_recompute: false,
        keep_alive: false,
        prefill_timeout: Duration::from_secs(20),
        decode_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
    })
    .unwrap();
    let watch = |name: &str, address| Watched {
        name: name.into(),
        url: url(address),
    };
    let asked = Settings {
        warmup_iterations: 2,
        tokenize: Tokenize::Server,
        session: Some("s1".into()),
        watched: vec![
            watch("prefill", prefill.address()),
            watch("decode", decode.address()),
        ],
        ..settings(url(proxy.address()))
    };
    let (report, r) = measure(&asked);
    report.verdict().unwrap();
    // The measured requests only, as whole blocks: what the real pair counted for 400 tokens.
    let moved = json!({
        "prefill": {"local_compute": 1600, "local_cache_hit": 0, "external_kv_transfer": 0},
        "decode": {"local_compute": 64, "local_cache_hit": 0, "external_kv_transfer": 1536},
    });
    assert_eq!(r["prompt_sources"], moved);
    let stats = load::proxy_stats(&url(proxy.address()), "s1").unwrap();
    let records = stats["requests"].as_array().unwrap();
    assert_eq!(records.len(), 4);
    for record in records {
        assert_eq!(
            (&record["status"], &record["recomputed"]),
            (&json!("ok"), &json!(false))
        );
    }

    // The same prompts again are in the folder: prefill has nothing to compute, and it shows.
    let (_, again) = measure(&asked);
    let found = &again["prompt_sources"]["prefill"]["external_kv_transfer"];
    assert_eq!(found, &json!(1536));

    // What moves nothing says so, although every answer is complete.
    let odd = Settings {
        prompt_tokens: 385,
        ..asked.clone()
    };
    let (report, r) = measure(&odd);
    report.verdict().unwrap();
    assert_eq!(r["prompt_sources"]["decode"]["external_kv_transfer"], 0);

    // Counters that were asked for and are not there fail the measurement, and are no zeros.
    let elsewhere = Settings {
        watched: vec![watch("decode", proxy.address())],
        ..asked
    };
    let (report, r) = measure(&elsewhere);
    assert_eq!(r.get("prompt_sources"), None);
    assert_eq!(report.verdict().unwrap_err().code, "no-prompt-sources");
}

/// The example with the shipped rules, in a folder of its own.
fn example() -> Workspace {
    let workspace = Workspace::empty();
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    for name in ["serving.toml", "analysis.toml"] {
        let linked = read(&format!("examples/vllm-cpu/rules/{name}"));
        assert_eq!(linked, read(&format!("rules/{name}")), "the shipped rules");
        workspace.write(&format!("rules/{name}"), &linked);
    }
    workspace.write("doe.toml", &read("examples/vllm-cpu/doe.toml"));
    let plan = read("examples/vllm-cpu/plans/serving.toml");
    workspace.write("plans/serving.toml", &plan);
    // Another test may use the same folder at the same time.
    let folder = workspace.path().join("kv").display().to_string();
    workspace.replace("plans/serving.toml", "/tmp/doe-vllm-cpu", &folder, 1);
    workspace.replace("doe.toml", "time_scale = 1\n", "time_scale = 0.05\n", 1);
    workspace
}

#[test]
fn the_campaign_of_the_real_server_runs_on_sim_by_its_platform_alone() {
    let workspace = example();
    for platform in ["sim", "cpu"] {
        workspace
            .doe(&["check", "//...", "--platform", platform])
            .ok();
    }
    let short = [
        "--set",
        "measurement_iterations=2",
        "--set",
        "warmup_iterations=1",
    ];
    let build = |target: &[&str], code| {
        let args = [&["build"], target, &short[..], &["--json"]].concat();
        workspace.doe(&args).exits(code).summary()
    };
    let summary = build(&["//serving:all"], 0);
    assert_eq!(
        (&summary["ok"], &summary["invalid"]),
        (&json!(10), &json!(0)),
        "{summary}"
    );
    assert_eq!(
        summary["service_starts"], 4,
        "one server, and a pair with its proxy"
    );

    let args = [&["results", "//serving:L2-Split"], &short[..], &["--json"]].concat();
    let results = workspace.doe(&args).ok().json();
    let moved = |label: &str| {
        let all = results.as_array().unwrap().iter();
        let mut of = all.filter(|r| r["label"] == format!("//serving:{label}"));
        of.next().unwrap()["metrics"]["kv_moved_tokens"].clone()
    };
    for (label, tokens) in [
        ("split-400-c1", 2 * 384),
        ("split-400-c4", 8 * 384),
        ("split-1200-c1", 2 * 1152),
        ("split-1200-c4", 8 * 1152),
    ] {
        let moved = moved(label);
        let value = moved.get("value").unwrap_or(&moved);
        assert_eq!(value.as_f64(), Some(f64::from(tokens)), "{label}: {moved}");
    }
}

#[test]
fn a_pair_that_moved_nothing_new_is_invalid_and_says_which_counter() {
    let workspace = example();
    // Both cells ask the same prompts, so the second finds them in the folder.
    workspace.replace(
        "plans/serving.toml",
        "prompt_seed = 20260304",
        "prompt_seed = 20260301",
        2,
    );
    let args = [
        "build",
        "//serving:split-400-c1",
        "//serving:split-400-c4",
        "--set",
        "measurement_iterations=2",
        "--set",
        "warmup_iterations=0",
        "--json",
    ];
    let ran = workspace.doe(&args).exits(1);
    let summary = ran.summary();
    assert_eq!(
        (&summary["ok"], &summary["invalid"]),
        (&json!(1), &json!(1)),
        "{summary}"
    );
    let events = ran.events();
    let invalid = events.iter().find(|e| e["outcome"] == "invalid").unwrap();
    let reason = invalid["reason"].as_str().unwrap();
    assert!(reason.contains("prefill.local_compute"), "{reason}");
}

#[test]
fn a_dead_engine_is_a_class_of_its_own() {
    let workspace = example();
    workspace.replace(
        "doe.toml",
        "startup_s = 1\n",
        "startup_s = 1\nfail = [\"vllm:engine-dead\"]\n",
        1,
    );
    let args = ["build", "//serving:unified-400-c1", "--json"];
    let events = workspace.doe(&args).exits(1).events();
    let ended = events
        .iter()
        .find(|e| e["event"] == "node-finished")
        .unwrap();
    assert_eq!(
        (&ended["outcome"], &ended["class"]),
        (&json!("failed"), &json!("engine_dead"))
    );
}
