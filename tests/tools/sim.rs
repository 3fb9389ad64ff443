//! Simulated output through the readers: the numbers are the profile's.

use doe::measure::parse::{self, Context};
use doe::measure::sim::SimProfile;

use crate::{check_sound, close, free_port, pair, profile, read, run};

#[test]
fn iperf3_gives_the_tcp_bandwidth_for_any_number_of_streams() {
    for streams in [1u32, 4, 8] {
        let port = free_port();
        let (server, client) = pair(
            &[],
            &["iperf3", "-s", "-1", "-J", "-p", &port],
            &[
                "iperf3",
                "-c",
                "127.0.0.1",
                "-P",
                &streams.to_string(),
                "-t",
                "30",
                "-J",
                "-p",
                &port,
            ],
        );
        let expected = profile().tcp.bandwidth_gbps * (1.0 - 0.05 / f64::from(streams));
        let answer = read("iperf3", &client.out);
        close(&answer["bandwidth_gbps"], expected);
        close(&answer["sent_gbps"], expected);
        assert_eq!(answer["streams"], streams);
        assert_eq!(answer["interval_gbps"].as_array().unwrap().len(), 30);
        assert_eq!(client.err, "[doe-sim] iperf3: simulated\n");
        let answer = read("iperf3", &server.out);
        assert_eq!(answer["role"], "server");
        close(&answer["bandwidth_gbps"], expected);
        assert!(answer.get("sent_gbps").is_none());
    }
}

#[test]
fn fabtests_give_bandwidth_and_latency_of_their_provider() {
    for (provider, link) in [("efa", profile().efa), ("tcp", profile().tcp)] {
        let port = free_port();
        let out_of_band = format!("-E={port}");
        let (server, client) = pair(
            &[],
            &["fi_rdm_bw", "-p", provider, &out_of_band, "-S", "all"],
            &[
                "fi_rdm_bw",
                "-p",
                provider,
                &out_of_band,
                "-S",
                "all",
                "127.0.0.1",
            ],
        );
        for side in [&client, &server] {
            let answer = read("fi_rdm_bw", &side.out);
            close(&answer["bandwidth_gbps"], link.bandwidth_gbps);
            assert_eq!(answer["rows"].as_array().unwrap().len(), 46);
        }
        for tool in ["fi_pingpong", "fi_rdm_pingpong", "fi_rma_pingpong"] {
            let port = free_port();
            let (server, client) = pair(
                &[("FI_PROVIDER", provider)],
                &[tool, "-B", &port, "-I", "1000"],
                &[tool, "-P", &port, "-I", "1000", "127.0.0.1"],
            );
            for side in [&client, &server] {
                let answer = read(tool, &side.out);
                let by_size = &answer["latency_us_by_size_bytes"];
                close(
                    &by_size["64"],
                    link.latency_us + 64.0 * 8e-3 / link.bandwidth_gbps,
                );
                close(&answer["latency_us"], by_size["64"].as_f64().unwrap());
                close(
                    &by_size["1048576"],
                    link.latency_us + 8.0 * 1048.576 / link.bandwidth_gbps,
                );
            }
        }
    }
}

#[test]
fn a_size_that_prints_rounded_is_exact_when_it_is_known() {
    let port = free_port();
    let (_, client) = pair(
        &[],
        &[
            "fi_pingpong",
            "-p",
            "efa",
            "-B",
            &port,
            "-S",
            "57344000",
            "-I",
            "100",
        ],
        &[
            "fi_pingpong",
            "-p",
            "efa",
            "-P",
            &port,
            "-S",
            "57344000",
            "-I",
            "100",
            "127.0.0.1",
        ],
    );
    let text = client.out;
    let answer = read("fi_pingpong", &text);
    assert_eq!(answer["rows"][0]["size_text"], "54m");
    assert!(answer["rows"][0].get("size_bytes").is_none());
    let asked = |size| Context {
        size_bytes: Some(size),
        ..Context::default()
    };
    let answer = parse::parse("fi_pingpong", &text, &asked(57_344_000)).unwrap();
    assert_eq!(answer["rows"][0]["size_bytes"], 57_344_000);
    assert!(parse::parse("fi_pingpong", &text, &asked(64)).is_err());
    // Near enough to print the same, but not what was measured.
    assert!(parse::parse("fi_pingpong", &text, &asked(56_700_000)).is_err());
}

#[test]
fn ucx_perftest_gives_the_link_of_its_transport() {
    for (tls, link) in [
        ("srd,self,sm", profile().efa),
        ("tcp,self,sm", profile().tcp),
    ] {
        for (test, memory) in [("tag_bw", "cuda"), ("tag_lat", "host")] {
            let port = free_port();
            let (server, client) = pair(
                &[("UCX_TLS", tls)],
                &["ucx_perftest", "-p", &port],
                &[
                    "ucx_perftest",
                    "-m",
                    memory,
                    "127.0.0.1",
                    "-t",
                    test,
                    "-s",
                    "104857600",
                    "-n",
                    "30",
                    "-p",
                    &port,
                ],
            );
            assert!(
                server.out.contains("| Message size: 104857600  "),
                "{}",
                server.out
            );
            assert!(
                server
                    .out
                    .lines()
                    .all(|l| !l.starts_with('|') || l.len() == 108),
                "{}",
                server.out
            );
            let context = Context {
                size_bytes: Some(100 << 20),
                ..Context::default()
            };
            let answer = parse::parse("ucx_perftest", &client.out, &context).unwrap();
            check_sound("ucx_perftest", &answer);
            // 100 MiB at the link's rate; the latency is within the noise.
            close(&answer["bandwidth_gbps"], link.bandwidth_gbps);
            if test == "tag_lat" {
                close(
                    &answer["latency_us"],
                    link.latency_us + 838_860.8 / link.bandwidth_gbps,
                );
            }
            // Both sides in one text, as a shell's redirection may leave them.
            let both = format!("{}{}", server.out, client.out);
            let answer = read("ucx_perftest", &both);
            assert_eq!(answer["size_bytes"], 104_857_600);
            assert_eq!(answer["send_memory"], memory);
            assert!(
                read("ucx_perftest", &client.out)
                    .get("size_bytes")
                    .is_none()
            );
        }
    }
}

#[test]
fn nccl_tests_give_the_bus_bandwidth() {
    for (tool, gpus) in [
        ("all_reduce_perf", 4u32),
        ("all_gather_perf", 2),
        ("reduce_scatter_perf", 4),
    ] {
        let ran = run(
            &profile(),
            &[],
            &[
                tool,
                "-b",
                "1M",
                "-e",
                "1G",
                "-f",
                "2",
                "-g",
                &gpus.to_string(),
            ],
        );
        assert_eq!(ran.status, 0);
        let answer = read("nccl-tests", &ran.out);
        close(
            &answer["busbw_gbps_by_size_bytes"]["1073741824"],
            profile().efa.bandwidth_gbps,
        );
        assert_eq!(answer["ranks"], gpus);
        assert_eq!(answer["collective"], tool);
        assert_eq!(answer["rows"].as_array().unwrap().len(), 11);
    }
    // The real tool ends with status 0 here: only the reader tells.
    let ran = run(&profile(), &[], &["all_reduce_perf", "--frob"]);
    assert_eq!(ran.status, 0);
    assert!(parse::parse("nccl-tests", &ran.out, &Context::default()).is_err());
    let ran = run(&profile(), &[], &["all_reduce_perf", "-g", "9"]);
    assert_eq!(ran.status, 2);
    assert!(parse::parse("nccl-tests", &ran.out, &Context::default()).is_err());
}

#[test]
fn fi_info_and_nvidia_smi_show_the_profile() {
    let profile = profile();
    let out = |words: &[&str]| {
        let ran = run(&profile, &[], words);
        assert_eq!(ran.status, 0, "{}", ran.out);
        ran.out
    };
    let answer = read("fi_info", &out(&["fi_info", "-p", "efa"]));
    assert_eq!(
        (&answer["efa_device_count"], &answer["provider_count"]),
        (&1.into(), &2.into())
    );
    let gpu = &profile.gpu;
    let query = "--query-gpu=index,name,driver_version,memory.total,memory.used,temperature.gpu,pstate,power.draw";
    for words in [
        &["nvidia-smi", query, "--format=csv"][..],
        &["nvidia-smi", query, "--format=csv,nounits"],
        &["nvidia-smi", "-q"],
    ] {
        let answer = read("nvidia-smi", &out(words));
        assert_eq!(answer["gpu_count"], gpu.count, "{words:?}");
        assert_eq!(answer["name"], gpu.name, "{words:?}");
        assert_eq!(answer["memory_total_mib"], gpu.memory_mib, "{words:?}");
        assert_eq!(answer["driver_version"], gpu.driver, "{words:?}");
        assert_eq!(
            answer["temperature_celsius"].as_f64(),
            Some(gpu.temperature_c),
            "{words:?}"
        );
        assert_eq!(answer["pstate"], "P0", "{words:?}");
    }
    let bare = out(&["nvidia-smi", query, "--format=csv,noheader,nounits"]);
    let error = parse::parse("nvidia-smi", &bare, &Context::default()).unwrap_err();
    assert!(
        error.hints.iter().any(|h| h.contains("--columns")),
        "{:?}",
        error.hints
    );
    let columns = query
        .split_once('=')
        .unwrap()
        .1
        .split(',')
        .map(str::to_owned)
        .collect();
    let context = Context {
        columns,
        ..Context::default()
    };
    let answer = parse::parse("nvidia-smi", &bare, &context).unwrap();
    assert_eq!(answer["memory_total_mib"], gpu.memory_mib);
    assert_eq!(
        read("nvidia-smi", &out(&["nvidia-smi", "-L"]))["gpu_count"],
        gpu.count
    );
    let answer = read("nvidia-smi", &out(&["nvidia-smi", "topo", "-m"]));
    assert_eq!(
        (&answer["gpu_nic_topology"], &answer["gpu_count"]),
        (&"PHB".into(), &gpu.count.into())
    );
    let answer = read(
        "nvidia-smi",
        &out(&["nvidia-smi", "dmon", "-s", "pucvmet", "-d", "1", "-c", "7"]),
    );
    assert_eq!(answer["gpu_count"], gpu.count);
    assert_eq!(answer["sample_count"], 7 * gpu.count);
    assert_eq!(
        answer["temperature_celsius"].as_f64(),
        Some(gpu.temperature_c)
    );
    assert!(out(&["nvidia-smi", "-q", "-x"]).contains("<product_name>NVIDIA L40S</product_name>"));
    assert_eq!(
        out(&[
            "nvidia-smi",
            "--query-compute-apps=pid",
            "--format=csv,noheader"
        ]),
        ""
    );
}

#[test]
fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
    let out = |seed| {
        let profile = SimProfile { seed, ..profile() };
        run(
            &profile,
            &[],
            &[
                "all_reduce_perf",
                "-b",
                "1M",
                "-e",
                "8M",
                "-f",
                "2",
                "-g",
                "4",
            ],
        )
        .out
    };
    let rows = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(rows(&out(1)), rows(&out(1)));
    assert_ne!(rows(&out(1)), rows(&out(2)));
}
