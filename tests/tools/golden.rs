//! The readers against samples: golden pairs of text and answer, and damaged texts.
//!
//! `tests/data/tools/TOOL-WHAT.txt` (or `.json`) stands beside `TOOL-WHAT.golden`, which holds the
//! answer or, after `error:`, the message. `UPDATE_GOLDEN=1` writes the second from the first.

use std::path::{Path, PathBuf};

use doe::measure::parse::{self, Context};
use proptest::prelude::*;

use crate::check_sound;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tools")
}

/// Name, tool and text of every sample.
fn samples() -> Vec<(String, &'static str, String)> {
    let mut samples = Vec::new();
    for entry in std::fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".golden") {
            continue;
        }
        let tool = parse::NAMES
            .iter()
            .find(|tool| name.starts_with(&format!("{tool}-")))
            .unwrap_or_else(|| panic!("{name} names no tool"));
        samples.push((name, *tool, std::fs::read_to_string(&path).unwrap()));
    }
    samples.sort();
    samples
}

fn context(name: &str) -> Context {
    Context {
        source: name.to_owned(),
        size_bytes: match name {
            "ucx_perftest-tag_bw.txt" | "ucx_perftest-tag_lat.txt" => Some(1 << 20),
            "ucx_perftest-cuda-srd.txt" => Some(100 << 20),
            _ => None,
        },
        columns: Vec::new(),
    }
}

#[test]
fn every_sample_reads_as_its_golden_says() {
    let samples = samples();
    for tool in parse::NAMES.iter().filter(|t| !t.starts_with("fi_rma_")) {
        let count = samples.iter().filter(|(_, t, _)| t == tool).count();
        assert!(count > 0, "no sample of {tool}");
    }
    let mut wrong = Vec::new();
    for (name, tool, text) in samples {
        let answer = match parse::parse(tool, &text, &context(&name)) {
            Ok(answer) => format!("{answer:#}\n"),
            Err(error) => {
                let hints: String = error.hints.iter().map(|h| format!("hint: {h}\n")).collect();
                format!("error: {error}\n{hints}")
            }
        };
        let golden = data().join(&name).with_extension("golden");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &answer).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if answer != expected {
            wrong.push(format!("{name}: expected\n{expected}found\n{answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_text_cut_anywhere_before_its_end_is_no_result() {
    // The tools whose output has an end of its own; of the others a shorter table is a table.
    let ended = [
        "iperf3-client-p2.json",
        "nccl-tests-all_reduce-4.txt",
        "nvidia-smi-report.txt",
        "ucx_perftest-tag_bw.txt",
        "kvbench-profile.txt",
        "nixlbench-libfabric.txt",
        "fi_pingpong-1m.txt",
    ];
    for (name, tool, text) in samples() {
        if !ended.contains(&name.as_str()) {
            continue;
        }
        let whole = parse::parse(tool, &text, &context(&name)).unwrap();
        for (at, _) in text.char_indices() {
            let cut = parse::parse(tool, &text[..at], &context(&name));
            match (name.as_str(), cut) {
                (_, Err(error)) => assert!(!error.message.is_empty()),
                // Only what carries no number may be missing.
                ("kvbench-profile.txt", Ok(cut)) if cut["kind"] == "plan" => {}
                ("nixlbench-libfabric.txt", Ok(cut)) => {
                    let rows = cut["rows"].as_array().unwrap();
                    let all = whole["rows"].as_array().unwrap();
                    assert!(rows.len() <= all.len());
                    // A row is there with all its columns; the last column alone may have lost
                    // digits at the very end.
                    for (row, full) in rows.iter().zip(all) {
                        for key in ["block_size_bytes", "bandwidth_gbps", "latency_us"] {
                            assert_eq!(row[key], full[key], "{name} cut at {at}");
                        }
                    }
                }
                ("nvidia-smi-report.txt", Ok(cut)) => {
                    for key in ["name", "memory_total_mib", "pstate"] {
                        assert_eq!(cut[key], whole[key], "{name} cut at {at}");
                    }
                }
                (_, Ok(cut)) => {
                    assert_eq!(
                        cut["bandwidth_gbps"], whole["bandwidth_gbps"],
                        "{name} cut at {at}"
                    );
                    assert_eq!(
                        cut["busbw_max_gbps"], whole["busbw_max_gbps"],
                        "{name} cut at {at}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_lost_from_the_middle_of_nccl_tests_is_noticed() {
    let text = std::fs::read_to_string(data().join("nccl-tests-all_reduce-4.txt")).unwrap();
    let rows: Vec<usize> = (text.lines().enumerate())
        .filter(|(_, l)| l.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        .map(|(at, _)| at)
        .collect();
    assert_eq!(rows.len(), 11);
    for lost in rows {
        let kept: Vec<&str> = text
            .lines()
            .enumerate()
            .filter(|(at, _)| *at != lost)
            .map(|(_, l)| l)
            .collect();
        let error = parse::parse("nccl-tests", &kept.join("\n"), &Context::default()).unwrap_err();
        assert!(error.message.contains("mean of the rows"), "{error}");
    }
}

#[test]
fn a_digit_changed_in_a_measured_column_is_noticed() {
    // Column by column: the digit before the point, so that the change is beyond rounding.
    for (name, tool, columns) in [
        ("fi_rdm_bw-efa.txt", "fi_rdm_bw", &[4, 5][..]),
        ("fi_pingpong-1m.txt", "fi_pingpong", &[5, 6]),
        (
            "nccl-tests-all_reduce-8.txt",
            "nccl-tests",
            &[0, 5, 6, 9, 10],
        ),
        ("nixlbench-libfabric.txt", "nixlbench", &[0, 2, 3]),
    ] {
        let text = std::fs::read_to_string(data().join(name)).unwrap();
        let last = text
            .lines()
            .rfind(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit()))
            .unwrap();
        for column in columns {
            let word = last.split_whitespace().nth(*column).unwrap();
            let whole = word.split('.').next().unwrap();
            let digit = whole.as_bytes()[0];
            let other = if digit == b'9' { b'8' } else { digit + 1 };
            let changed = format!("{}{}", char::from(other), &word[1..]);
            let row = last.replacen(word, &changed, 1);
            let error = parse::parse(tool, &text.replace(last, &row), &Context::default());
            assert!(
                error.is_err(),
                "{name}: {word} -> {changed} in column {column}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_a_reader_panic(text in "(\\PC|[ \t\n0-9.]){0,200}", tool in prop::sample::select(parse::NAMES)) {
        if let Ok(answer) = parse::parse(tool, &text, &Context::default()) {
            check_sound(tool, &answer);
        }
    }

    #[test]
    fn a_damaged_sample_is_refused_or_still_sound(
        pick in any::<prop::sample::Index>(),
        deleted in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..7), 0..4),
        doubled in any::<Option<prop::sample::Index>>(),
    ) {
        let samples = samples();
        let (name, tool, text) = pick.get(&samples);
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        for index in deleted {
            if !lines.is_empty() {
                lines.remove(index.index(lines.len()));
            }
        }
        if let (Some(index), false) = (doubled, lines.is_empty()) {
            let at = index.index(lines.len());
            lines.insert(at, lines[at]);
        }
        let mut bytes = lines.concat().into_bytes();
        for (index, bit) in flips {
            if !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match parse::parse(tool, &text, &context(name)) {
            Ok(answer) => check_sound(tool, &answer),
            Err(error) => {
                prop_assert_eq!(error.code, "tool-output");
                prop_assert!(error.message.contains("line "), "{}", error.message);
            }
        }
    }
}
