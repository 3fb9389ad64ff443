//! What starts and what is refused, in vLLM's words.

use super::*;

const QWEN: &str = "Qwen/Qwen2.5-32B-Instruct --tensor-parallel-size 4 --port 0 --host 127.0.0.1";

fn profile() -> SimProfile {
    SimProfile {
        startup_s: 0.0,
        time_scale: 0.001,
        ..SimProfile::default()
    }
}

fn try_start(line: &str, vars: &[(&str, &str)], profile: &SimProfile) -> Result<Server, Refused> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let pairs = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    start(
        &words,
        &pairs.collect(),
        profile,
        &Log::new(std::io::sink()),
    )
}

fn refused(line: &str, vars: &[(&str, &str)], profile: &SimProfile) -> Refused {
    match try_start(line, vars, profile) {
        Ok(_) => panic!("`{line}` started"),
        Err(refused) => refused,
    }
}

#[test]
fn contexts_that_do_not_fit_the_model_or_the_memory_do_not_start() {
    let line = format!("{QWEN} --max-model-len 131072");
    let why = refused(&line, &[], &profile());
    assert_eq!(why.status, 1);
    assert!(
        why.text
            .contains("max_model_len (131072) is greater than the derived"),
        "{}",
        why.text
    );

    let long = [("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")];
    assert!(try_start(&line, &long, &profile()).is_ok());
    let yarn = format!(
        "{line} --hf-overrides {{\"rope_parameters\":{{\"rope_type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}}}}"
    );
    assert!(try_start(&yarn, &[], &profile()).is_ok());

    let why = refused(
        &format!("{line} --gpu-memory-utilization 0.5"),
        &long,
        &profile(),
    );
    assert!(why.text.contains("Traceback (most recent call last)"));
    let words = "ValueError: To serve at least one request with the models's max seq len (131072), (8.00 GiB KV cache is needed, which is larger than the available KV cache memory (";
    assert!(why.text.contains(words), "{}", why.text);
    let estimate = why.text.split("maximum model length is ").nth(1).unwrap();
    let estimate: u64 = estimate.split('.').next().unwrap().parse().unwrap();
    let fits = format!("{QWEN} --gpu-memory-utilization 0.5 --max-model-len {estimate}");
    assert!(
        try_start(&fits, &long, &profile()).is_ok(),
        "vLLM's estimate must hold"
    );
    let auto = format!("{QWEN} --gpu-memory-utilization 0.4 --max-model-len auto");
    assert!(try_start(&auto, &[], &profile()).is_ok());
}

#[test]
fn models_gpus_and_faults_are_checked() {
    for (line, vars, part) in [
        (
            "meta/unknown --port 0",
            vec![],
            "OSError: meta/unknown is not a local folder",
        ),
        (
            "Qwen/Qwen2.5-32B-Instruct --port 0",
            vec![],
            "CUDA out of memory",
        ),
        (
            "Qwen/Qwen2.5-7B-Instruct -tp 8 --port 0",
            vec![],
            "World size (8) is larger than the number of available GPUs (4)",
        ),
        (
            "Qwen/Qwen2.5-7B-Instruct -tp 3 --port 0",
            vec![],
            "attention heads (28) must be divisible",
        ),
        (
            "Qwen/Qwen2.5-7B-Instruct --no-enable-chunked-prefill --port 0",
            vec![],
            "max_num_batched_tokens (2048) is smaller",
        ),
        (
            "Qwen/Qwen2.5-7B-Instruct --port 0 --kv-transfer-config {\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_consumer\"}",
            vec![("UCX_TLS", "self,sm")],
            "no usable transports",
        ),
    ] {
        let why = refused(line, &vars, &profile());
        assert_eq!(why.status, 1, "{line}");
        assert!(why.text.contains(part), "{line}: {}", why.text);
    }
    let with = |fault: &str| SimProfile {
        fail: vec![fault.to_owned(), "iperf3".to_owned()],
        ..profile()
    };
    assert!(
        refused(QWEN, &[], &with("vllm:oom"))
            .text
            .contains("CUDA out of memory")
    );
    assert_eq!(refused(QWEN, &[], &with("vllm:omo")).status, 2);
}

#[test]
fn a_taken_port_is_refused_as_uvicorn_does() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!(
        "Qwen/Qwen2.5-7B-Instruct --host 127.0.0.1 --port {}",
        taken.local_addr().unwrap().port()
    );
    let why = refused(&line, &[], &profile());
    assert!(why.text.contains("OSError: [Errno 98]"), "{}", why.text);
}

#[test]
fn the_log_says_simulated_first_and_ready_last() {
    let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    struct Keep(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Keep {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::new(Keep(Arc::clone(&lines)));
    let words: Vec<String> = QWEN.split_whitespace().map(str::to_owned).collect();
    let _server = start(&words, &Vars::new(), &profile(), &log)
        .map_err(|r| r.text)
        .unwrap();
    let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    assert!(text.lines().next().unwrap().contains("simulated"));
    assert!(text.contains("INFO:     Application startup complete."));
    assert!(
        text.lines()
            .last()
            .unwrap()
            .contains("Uvicorn running on http://127.0.0.1:")
    );
    assert_eq!(with_commas(1_234_567), "1,234,567");
    assert_eq!(with_commas(12), "12");
}
