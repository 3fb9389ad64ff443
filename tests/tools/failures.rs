//! How simulated tools fail: without hardware, without a peer, with a wrong command line, with a
//! peer that is none. Each in the real tool's words and with its exit status.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use doe::measure::parse::{self, Context};
use doe::measure::sim::SimProfile;

use crate::{close, free_port, profile, read, run};

/// Connects as soon as someone listens.
fn connect(port: &str) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match TcpStream::connect(format!("127.0.0.1:{port}")) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_busy_iperf3_turns_others_away() {
    let (port, profile) = (free_port(), profile());
    std::thread::scope(|scope| {
        let server = scope.spawn(|| run(&profile, &[], &["iperf3", "-s", "-1", "-J", "-p", &port]));
        // A client that takes its time, step by step.
        let mut stream = connect(&port);
        stream
            .write_all(b"{\"tool\":\"iperf3\",\"streams\":1,\"duration_s\":1}\n")
            .unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = String::new();
        reader.read_line(&mut lines).unwrap();
        reader.read_line(&mut lines).unwrap();
        assert!(lines.contains("{\"busy\":false}"), "{lines}");
        let other = run(&profile, &[], &["iperf3", "-c", "127.0.0.1", "-p", &port]);
        assert_eq!(other.status, 1);
        assert!(
            other
                .err
                .contains("the server is busy running a test. try again later"),
            "{}",
            other.err
        );
        stream
            .write_all(b"{\"seconds\":[[[1250000000,0]]],\"tail_s\":0.0001}\n")
            .unwrap();
        let server = server.join().unwrap();
        close(&read("iperf3", &server.out)["bandwidth_gbps"], 10.0);
    });
}

#[test]
fn a_bare_connection_ends_a_one_off_server_as_it_ends_the_real_one() {
    let profile = profile();
    for (words, status, says) in [
        (
            &["iperf3", "-s", "-1", "-J", "-p"][..],
            0,
            "unable to receive parameters from client",
        ),
        (
            &["fi_pingpong", "-p", "efa", "-B"],
            141,
            "probe it without connecting",
        ),
        (
            &["fi_rdm_bw", "-p", "efa", "-B"],
            107,
            "probe it without connecting",
        ),
        (&["ucx_perftest", "-p"], 255, "remote connection lost"),
    ] {
        let port = free_port();
        let words = [words, &[&port]].concat();
        let server = std::thread::scope(|scope| {
            let server = scope.spawn(|| run(&profile, &[], &words));
            drop(connect(&port));
            server.join().unwrap()
        });
        assert_eq!(server.status, status, "{words:?}");
        let all = format!("{}{}", server.out, server.err);
        assert!(all.contains(says), "{words:?}: {all}");
    }
}

#[test]
fn a_tool_that_the_profile_fails_fails_as_the_real_one_and_is_no_result() {
    let failing = |tool: &str| SimProfile {
        fail: vec![tool.to_owned()],
        ..profile()
    };
    for (words, status, says, reader) in [
        (
            &["iperf3", "-c", "127.0.0.1", "-J"][..],
            1,
            "Connection refused",
            "iperf3",
        ),
        (&["fi_info", "-p", "efa"], 61, "fi_getinfo: -61", "fi_info"),
        (
            &["fi_pingpong", "-p", "efa", "x"],
            61,
            "No data available",
            "fi_pingpong",
        ),
        (
            &["fi_rdm_bw", "-p", "efa", "-E"],
            61,
            "ret=-61",
            "fi_rdm_bw",
        ),
        (
            &["nvidia-smi", "-L"],
            9,
            "couldn't communicate with the NVIDIA driver",
            "nvidia-smi",
        ),
        (
            &["all_reduce_perf", "-g", "4"],
            2,
            "Test CUDA failure",
            "nccl-tests",
        ),
        (
            &["nixlbench"],
            1,
            "Failed to create NIXL backend",
            "nixlbench",
        ),
        (
            &["ucx_perftest", "-t", "tag_bw", "127.0.0.1"],
            255,
            "Connection timed out",
            "ucx_perftest",
        ),
        (&["etcd"], 1, "address already in use", "nixlbench"),
    ] {
        let ran = run(&failing(words[0]), &[], words);
        assert_eq!(ran.status, status, "{words:?}: {}{}", ran.out, ran.err);
        let all = format!("{}{}", ran.out, ran.err);
        assert!(all.contains(says), "{words:?}: {all}");
        assert!(
            parse::parse(reader, &all, &Context::default()).is_err(),
            "{words:?}"
        );
    }
}

#[test]
fn no_peer_is_a_refused_connection_in_the_words_of_the_tool() {
    let port = free_port();
    let out_of_band = format!("-E={port}");
    for (words, status, says) in [
        (
            &["iperf3", "-c", "127.0.0.1", "-p", &port][..],
            1,
            "iperf3: error - unable to connect to server: Connection refused",
        ),
        (
            &["fi_pingpong", "-p", "efa", "-P", &port, "127.0.0.1"],
            111,
            "failed to connect: Connection refused",
        ),
        (
            &["fi_rdm_bw", "-p", "efa", &out_of_band, "127.0.0.1"],
            111,
            "ret=-111 (Connection refused)",
        ),
        (
            &["ucx_perftest", "-t", "tag_bw", "-p", &port, "127.0.0.1"],
            255,
            "client failed. connect() failed: Connection refused",
        ),
    ] {
        let ran = run(&profile(), &[], words);
        assert_eq!(ran.status, status, "{words:?}");
        let all = format!("{}{}", ran.out, ran.err);
        assert!(all.contains(says), "{words:?}: {all}");
    }
}

#[test]
fn what_the_real_tools_refuse_is_refused() {
    for (words, status, says) in [
        (
            &["iperf3", "--frob"][..],
            1,
            "iperf3: unrecognized option '--frob'",
        ),
        (
            &["iperf3", "-s", "-c", "x"],
            1,
            "cannot be both server and client",
        ),
        (
            &["iperf3", "-s", "-P", "3"],
            1,
            "some option you are trying to set is client only",
        ),
        (
            &["iperf3"],
            1,
            "must either be a client (-c) or server (-s)",
        ),
        (
            &["fi_pingpong", "--frob"],
            1,
            "fi_pingpong: invalid option -- '-'",
        ),
        (&["fi_rdm_bw", "--frob"], 1, "unrecognized option '--frob'"),
        (
            &["fi_info", "--frob"],
            1,
            "fi_info: unrecognized option '--frob'",
        ),
        (&["fi_info", "-p", "verbs"], 61, "fi_getinfo: -61"),
        (
            &["ucx_perftest", "-Q"],
            129,
            "ucx_perftest: invalid option -- 'Q'",
        ),
        (
            &["ucx_perftest", "-t", "nope", "x"],
            129,
            "Invalid option argument for -t",
        ),
        (
            &["ucx_perftest", "-m", "fpga", "-t", "tag_bw", "x"],
            129,
            "unsupported memory type",
        ),
        (
            &["nvidia-smi", "--frob"],
            2,
            "Invalid combination of input arguments",
        ),
        (
            &["nvidia-smi", "--query-gpu=bogus.field", "--format=csv"],
            2,
            "Field \"bogus.field\" is not a valid field to query.",
        ),
        (
            &["nvidia-smi", "-i", "17", "-L"],
            6,
            "No devices were found",
        ),
        (
            &["etcd", "--frob"],
            2,
            "flag provided but not defined: -frob",
        ),
        (
            &["nixlbench", "--frob=1"],
            1,
            "ERROR: unknown command line flag 'frob'",
        ),
        (
            &["nixlbench", "--backend", "TCP"],
            1,
            "Invalid backend: TCP",
        ),
        (
            &[
                "nixlbench",
                "--max_block_size=4294967296",
                "--num_threads=4",
            ],
            1,
            "Incorrect buffer size configuration",
        ),
        (
            &["kvbench", "profile", "--frob"],
            2,
            "Error: No such option: --frob",
        ),
        (&["kvbench", "frob"], 2, "Error: No such command 'frob'."),
        (&["frobnicate"], 127, "command not found"),
    ] {
        let ran = run(&profile(), &[], words);
        assert_eq!(ran.status, status, "{words:?}: {}{}", ran.out, ran.err);
        let all = format!("{}{}", ran.out, ran.err);
        assert!(all.contains(says), "{words:?}: {all}");
        assert!(
            ran.err
                .starts_with(&format!("[doe-sim] {}: simulated\n", words[0])),
            "{}",
            ran.err
        );
    }
}
