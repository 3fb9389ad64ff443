//! The tools that meet at the simulated etcd: numbers against the profile, both ranks, failures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::*;
use crate::measure::parse::{self, Context};

fn profile() -> SimProfile {
    SimProfile {
        time_scale: 1e-5,
        seed: 3,
        ..SimProfile::default()
    }
}

fn run_tool(env: &[(&str, &str)], words: &[&str]) -> (u8, String, String) {
    let args: Vec<String> = words[1..].iter().map(|w| (*w).to_owned()).collect();
    let lookup = |name: &str| {
        let found = env.iter().find(|(k, _)| *k == name);
        found.map(|(_, v)| (*v).to_owned())
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = run(words[0], &args, &profile(), &lookup, &mut out, &mut err);
    (
        status,
        String::from_utf8(out).unwrap(),
        String::from_utf8(err).unwrap(),
    )
}

/// Runs `test` with the endpoint of a simulated etcd that stops after it.
fn with_etcd(test: impl FnOnce(&str)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = AtomicBool::new(false);
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| etcd::serve(&listener, &stop));
        let _stop = Stop(&stop);
        test(&format!("http://{address}"));
    });
}

fn read(tool: &str, text: &str) -> Value {
    parse::parse(tool, text, &Context::default())
        .unwrap_or_else(|e| panic!("{tool}: {e} {:?}\n{text}", e.hints))
}

/// Runs a target and an initiator; answers with what the initiator printed.
fn transfer(env: &[(&str, &str)], endpoint: &str, words: &[&str]) -> (String, String) {
    let command = |role: &'static str| {
        let mut all = vec!["nixlbench", "--etcd_endpoints", endpoint, "--role", role];
        all.extend(words);
        all
    };
    std::thread::scope(|scope| {
        let target = scope.spawn(|| run_tool(env, &command("target")));
        let (status, out, err) = run_tool(env, &command("initiator"));
        assert_eq!(status, 0, "{err}");
        let (status, target_out, err) = target.join().unwrap();
        assert_eq!(status, 0, "{err}");
        assert!(target_out.contains("Registered as rank 1"), "{target_out}");
        let error = parse::parse("nixlbench", &target_out, &Context::default()).unwrap_err();
        assert!(error.message.contains("Block Size (B)"), "{error}");
        (out, err)
    })
}

#[test]
fn etcd_answers_its_health_and_nothing_else() {
    with_etcd(|endpoint| {
        for (path, status, body) in [
            ("/health", "HTTP/1.1 200 OK", r#"{"health":"true"}"#),
            ("/v3/kv", "HTTP/1.1 404 Not Found", "404 page not found\n"),
        ] {
            let mut stream = TcpStream::connect(&endpoint["http://".len()..]).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line.trim(), status);
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            assert!(rest.ends_with(body), "{rest}");
        }
    });
}

#[test]
fn nixlbench_gives_the_link_of_its_backend() {
    let profile = profile();
    with_etcd(|endpoint| {
        for (backend, tls, link) in [
            ("LIBFABRIC", "tcp", &profile.efa),
            ("UCX", "tcp,self,sm", &profile.tcp),
            ("UCX", "srd,self,sm", &profile.efa),
        ] {
            let (out, _) = transfer(
                &[("UCX_TLS", tls)],
                endpoint,
                &[
                    "--backend",
                    backend,
                    "--initiator_seg_type=VRAM",
                    "--target-seg-type=VRAM",
                    "--start_block_size=268435456",
                    "--max_block_size=1073741824",
                    "--num_iter=100",
                    "--num_threads=4",
                ],
            );
            // The released tool rounds up to threads x 16.
            assert!(out.contains("WARNING: Adjusting num_iter to 128"), "{out}");
            let answer = read("nixlbench", &out);
            let gbps = answer["bandwidth_gbps"].as_f64().unwrap();
            assert!((gbps / link.bandwidth_gbps - 1.0).abs() < 0.011, "{gbps}");
            let ms = answer["transfer_time_ms"].as_f64().unwrap();
            let expected = 8.0 * 1024.0 * 1.048_576 / link.bandwidth_gbps;
            assert!((ms / expected - 1.0).abs() < 0.011, "{ms} {expected}");
            assert_eq!(answer["rows"].as_array().unwrap().len(), 3);
            assert_eq!(answer["config"]["backend"], backend);
            assert_eq!(answer["config"]["target_seg_type"], "VRAM");
        }
    });
}

#[test]
fn flags_that_the_released_nixlbench_lacks_are_understood_and_remarked() {
    with_etcd(|endpoint| {
        let (out, _) = transfer(
            &[],
            endpoint,
            &[
                "--message_size=8589934592",
                "--num_threads",
                "4",
                "--iterations=20",
                "--scheme=many_to_one",
            ],
        );
        let answer = read("nixlbench", &out);
        assert_eq!(answer["transfer_bytes"], 8_589_934_592u64);
        assert_eq!(answer["config"]["scheme"], "manytoone");
    });
    let (status, _, err) = run_tool(
        &[],
        &[
            "nixlbench",
            "--etcd_endpoints=http://127.0.0.1:1",
            "--message_size=1",
        ],
    );
    assert_eq!(status, 1);
    assert!(
        err.contains("the released nixlbench has no --message_size"),
        "{err}"
    );
    assert!(err.contains("Connection refused"), "{err}");
}

#[test]
fn the_first_worker_is_the_initiator_when_no_one_says_otherwise() {
    with_etcd(|endpoint| {
        let command = [
            "nixlbench",
            "--etcd-endpoints",
            endpoint,
            "--max_block_size=65536",
        ];
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| run_tool(&[], &command));
            let two = run_tool(&[], &command);
            (one.join().unwrap(), two)
        });
        assert_eq!((one.0, two.0), (0, 0), "{}{}", one.2, two.2);
        let readable = [&one.1, &two.1]
            .iter()
            .filter(|text| parse::parse("nixlbench", text, &Context::default()).is_ok())
            .count();
        assert_eq!(readable, 1);
    });
}

const MODEL: &str = "model: 'QWEN2.5_32B'\nnum_layers: 64\nnum_query_heads_with_mha: 40\nquery_head_dimension: 128\ngqa_num_queries_in_group: 5\nnum_model_params: 32000000000\n";
const CONFIG: &str = "strategy:\n  tp_size: 1\n  pp_size: 1\n  model_quant_mode: \"bf16\"\n  kvcache_quant_mode: \"bf16\"\n\nruntime:\n  isl: 1024\n  osl: 128\n  num_requests: 1\nsystem:\n  hardware: \"L40S\"\n  access_pattern: \"block\"\n  page_size: 16\n";

#[test]
fn kvbench_moves_the_kv_cache_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("model.yaml"), MODEL).unwrap();
    std::fs::write(path("config.yaml"), CONFIG).unwrap();
    let (model, config) = (path("model.yaml"), path("config.yaml"));
    let common = [
        "--model",
        &model,
        "--model_config",
        &config,
        "--isl",
        "4096",
    ];
    let (status, plan, _) = run_tool(&[], &[&["kvbench", "plan"][..], &common].concat());
    assert_eq!(status, 0);
    let answer = read("kvbench", &plan);
    // 2 x 64 layers x 8 heads x 128 x 2 bytes = 262144 bytes per token.
    assert_eq!(answer["kv_cache_size_bytes"], 4096 * 262_144);
    assert_eq!(answer["isl_tokens"], 4096);
    with_etcd(|endpoint| {
        let words = [
            &[
                "kvbench",
                "profile",
                "--backend",
                "LIBFABRIC",
                "--etcd-endpoints",
                endpoint,
            ][..],
            &common,
        ]
        .concat();
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| run_tool(&[], &words));
            (run_tool(&[], &words), one.join().unwrap())
        });
        let profile_text = [&one.1, &two.1]
            .into_iter()
            .find(|text| text.contains("Block Size"))
            .unwrap();
        let answer = read("kvbench", profile_text);
        assert_eq!(answer["kind"], "profile");
        assert_eq!(answer["kv_cache_size_bytes"], 1_073_741_824);
        let gbps = answer["bandwidth_gbps"].as_f64().unwrap();
        assert!(
            (gbps / profile().efa.bandwidth_gbps - 1.0).abs() < 0.011,
            "{gbps}"
        );
        let both = read("kvbench", &format!("{plan}{profile_text}"));
        assert_eq!(both["isl_tokens"], 4096);
        // A plan for another length is not what was measured.
        let other = plan.replace("--max_batch_size 256", "--max_batch_size 64");
        let error = parse::parse(
            "kvbench",
            &format!("{other}{profile_text}"),
            &Context::default(),
        );
        assert!(error.unwrap_err().message.contains("1073741824"));
    });
}

#[test]
fn kvbench_assumes_nothing_about_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("config.yaml"), CONFIG).unwrap();
    for missing in MODEL.lines().filter(|l| !l.starts_with("num_model_params")) {
        let model: String = MODEL
            .lines()
            .filter(|l| *l != missing)
            .map(|l| format!("{l}\n"))
            .collect();
        std::fs::write(path("model.yaml"), model).unwrap();
        let words = [
            "kvbench",
            "plan",
            "--model",
            &path("model.yaml"),
            "--model_config",
            &path("config.yaml"),
        ];
        let (status, _, err) = run_tool(&[], &words);
        assert_eq!(status, 1, "{missing}");
        assert!(err.contains("KeyError"), "{missing}: {err}");
    }
    // The real tool says 0 here.
    let (status, out, _) = run_tool(&[], &["kvbench", "profile"]);
    assert_eq!(status, 0);
    assert!(parse::parse("kvbench", &out, &Context::default()).is_err());
}
