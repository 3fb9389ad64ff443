//! What the views, lists and runs say, held against the records they were made from.

use super::*;
use crate::record::tests::sample;
use crate::runs::{NodeState, RunInfo, RunStatus};
use crate::store::Store;
use crate::store::tests::{put, put_with, query, run_info};
use std::fs;

#[test]
fn runs_remember_what_happened_to_each_node() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let info = |id: &str| RunInfo {
        pid: 7,
        started_unix_ms: 1_000,
        ..run_info(id)
    };
    store.begin_run(&info("r1")).unwrap();
    assert!(
        store
            .begin_run(&info("r1"))
            .unwrap_err()
            .to_string()
            .contains("exists already")
    );
    let record = put(&store, "//t:a", 1);
    store
        .set_node("r1", "//t:a", NodeState::Running, None, None)
        .unwrap();
    store
        .set_node("r1", "//t:a", NodeState::Ok, None, Some(record))
        .unwrap();
    store
        .set_node(
            "r1",
            "//t:b",
            NodeState::Failed,
            Some("out of memory"),
            None,
        )
        .unwrap();
    store
        .set_node("r1", "//t:c", NodeState::Blocked, Some("needs //t:b"), None)
        .unwrap();
    store.end_run("r1", RunStatus::Failed).unwrap();
    store.begin_run(&info("r2")).unwrap();
    store
        .set_node("r2", "//t:b", NodeState::Reused, None, Some(record))
        .unwrap();

    let run = store.last_run().unwrap().unwrap();
    assert_eq!(
        (run.info, run.status, run.ended_unix_ms),
        (info("r2"), RunStatus::Running, None)
    );
    let runs = store.runs(9).unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(
        runs[1].nodes,
        BTreeMap::from([
            (NodeState::Ok, 1),
            (NodeState::Failed, 1),
            (NodeState::Blocked, 1)
        ])
    );
    let nodes = store.run_nodes("r1").unwrap();
    assert_eq!(nodes[0].record, Some(record));
    assert_eq!(nodes[1].reason.as_deref(), Some("out of memory"));
    let states = store.latest_states().unwrap();
    let failed: Vec<&str> = states
        .iter()
        .filter(|(_, state)| state.is_failure())
        .map(|(label, _)| label.as_str())
        .collect();
    assert_eq!(failed, ["//t:c"], "the later run speaks for //t:b");
    for error in [
        store
            .set_node("r9", "//t:a", NodeState::Ok, None, None)
            .unwrap_err(),
        store.end_run("r9", RunStatus::Ok).unwrap_err(),
        store.run_nodes("r9").unwrap_err(),
    ] {
        assert_eq!(error, Error::not_found("run `r9`"));
    }
    assert_eq!(
        query(
            &store,
            "SELECT run_id, status, nodes, nodes_ok, nodes_failed, nodes_blocked FROM runs ORDER BY run_id"
        ),
        ["r1|failed|3|1|1|1", "r2|running|1|0|0|0"]
    );
}

#[test]
fn the_views_say_what_the_records_say() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let good = put(&store, "//t:p", 1);
    let failed = put_with(&store, "//t:p", 2, |r| {
        r.verdicts.execution.status = ExecutionStatus::Failed;
        r.verdicts.execution.reason = Some("step `measure` exited with 3".to_owned());
    });
    let never = put_with(&store, "//t:q", 3, |r| {
        r.verdicts.execution.status = ExecutionStatus::Timeout;
    });
    assert_eq!(
        query(
            &store,
            "SELECT label, record, layer, validity, criterion, simulated, settings, duration_ms,
                 latest_record, latest_execution, latest_reason FROM results ORDER BY label"
        ),
        [
            format!(
                "//t:p|{good}|L1|valid|met|1|{{\"seed\":1}}|250|{failed}|failed|step `measure` exited with 3"
            ),
            format!("//t:q|-|L1|-|-|-|-|-|{never}|timeout|-"),
        ]
    );
    assert_eq!(
        query(
            &store,
            "SELECT label, metric, value, unit, better, record FROM metrics"
        ),
        [format!("//t:p|ttft_median_ms|1.5|ms|lower|{good}")],
        "numbers of failed executions are not in the table of numbers"
    );
    assert_eq!(
        query(
            &store,
            "SELECT label, series, position, value FROM samples ORDER BY position"
        ),
        ["//t:p|ttft_ms|0|0.1", "//t:p|ttft_ms|1|1.2"]
    );
    assert_eq!(
        query(
            &store,
            "SELECT record, usable FROM attempts ORDER BY recorded_unix_ms"
        ),
        [
            format!("{good}|1"),
            format!("{failed}|0"),
            format!("{never}|0")
        ]
    );
    assert_eq!(
        query(
            &store,
            "SELECT json_extract(settings, '$.seed') FROM results WHERE record NOT NULL"
        ),
        ["1"]
    );
}

#[test]
fn lists_are_filtered_and_newest_first() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for seed in 1..=4 {
        put_with(&store, &format!("//t:p{}", seed % 2), seed, |r| {
            if seed == 3 {
                r.verdicts.execution.status = ExecutionStatus::Failed;
            }
            if seed == 4 {
                r.plan = "u".to_owned();
                r.verdicts.validity.status = ValidityStatus::Invalid;
            }
        });
    }
    let seeds = |filter: Filter| -> Vec<u64> {
        let found = store.list(&filter).unwrap();
        found.iter().map(|s| s.recorded_unix_ms - 2_000).collect()
    };
    let any = Filter::default;
    assert_eq!(seeds(any()), [4, 3, 2, 1]);
    assert_eq!(
        seeds(Filter {
            limit: Some(2),
            ..any()
        }),
        [4, 3]
    );
    assert_eq!(
        seeds(Filter {
            plan: Some("u".into()),
            ..any()
        }),
        [4]
    );
    assert_eq!(
        seeds(Filter {
            label: Some("//t:p1".into()),
            ..any()
        }),
        [3, 1]
    );
    assert_eq!(
        seeds(Filter {
            execution: Some(ExecutionStatus::Failed),
            ..any()
        }),
        [3]
    );
    assert_eq!(
        seeds(Filter {
            validity: Some(ValidityStatus::Invalid),
            ..any()
        }),
        [4]
    );
    assert_eq!(
        seeds(Filter {
            usable: Some(true),
            ..any()
        }),
        [2, 1]
    );
    assert_eq!(
        seeds(Filter {
            simulated: Some(false),
            ..any()
        }),
        [0; 0]
    );
    let stats = store.stats().unwrap();
    assert_eq!(
        (stats.records, stats.usable, stats.labels, stats.spec_keys),
        (4, 2, 2, 2)
    );
    assert_eq!(
        stats.by_plan,
        BTreeMap::from([("t".to_owned(), 3), ("u".to_owned(), 1)])
    );
    let expected = [("failed", 1), ("invalid", 1), ("ok", 2)];
    assert_eq!(
        stats.by_status,
        expected.map(|(k, v)| (k.to_owned(), v)).into()
    );
    let bytes: u64 = store
        .list(&any())
        .unwrap()
        .iter()
        .map(|s| {
            fs::metadata(store.layout().record(&s.record))
                .unwrap()
                .len()
        })
        .sum();
    assert_eq!(stats.record_bytes, bytes);
    assert_eq!((stats.blobs, stats.blob_bytes), (8, 4 * (8 + 5)));
}

#[test]
fn short_digests_are_resolved_or_explained() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let id = put(&store, "//t:p", 1);
    assert_eq!(store.resolve(&id.hex()).unwrap(), id);
    let other = if id.hex().starts_with('0') {
        "1111"
    } else {
        "0000"
    };
    assert!(matches!(store.resolve(other), Err(Error::NotFound { .. })));
    for bad in ["", "abc", "wxyz", &format!("{id}0"), "ab%d"] {
        assert!(
            matches!(store.resolve(bad), Err(Error::BadDigest { .. })),
            "{bad}"
        );
    }
}

/// In the middle of a commit everything is answered as before it, at once. With another journal
/// than the write-ahead log a reader would wait until it gave up.
#[test]
fn a_commit_holds_no_reader_up() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let one = put(&store, "//t:p1", 1);
    let early = Store::open_read_only(root.path()).unwrap();
    let asked = |reader: &Store| {
        (
            reader.bulk().unwrap().current("//t:p1").cloned(),
            reader.list(&Filter::default()).unwrap(),
            reader.stats().unwrap(),
            reader.generation().unwrap(),
            reader.runs(9).unwrap(),
            reader.record(&one).unwrap(),
        )
    };
    let before = asked(&early);
    let writer = store.index();
    writer
        .execute_batch(
            "BEGIN EXCLUSIVE; DELETE FROM label_state; UPDATE record SET reusable = 0;
             UPDATE meta SET value = value + 1 WHERE name = 'generation'",
        )
        .unwrap();
    for reader in [&early, &Store::open_read_only(root.path()).unwrap()] {
        assert_eq!(asked(reader), before);
    }
    writer.execute_batch("COMMIT").unwrap();
    drop(writer);
    let after = asked(&early);
    assert_eq!(after.0, None);
    assert_ne!(after.3, before.3);
}

/// Which of two keys was meant is not for us to guess.
#[test]
fn a_beginning_of_two_action_keys_is_ambiguous() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let mut begins: BTreeMap<String, u32> = BTreeMap::new();
    let (short, one, two) = (0..)
        .find_map(|seed| {
            let short = sample("", seed).action_key.hex()[..4].to_owned();
            let other = begins.insert(short.clone(), seed)?;
            Some((short, other, seed))
        })
        .unwrap();
    let key = sample("", one).action_key.hex();
    put(&store, "//t:p", one);
    let latest = put_with(&store, "//t:p", one, |r| r.recorded_unix_ms += 9);
    put_with(&store, "//t:p", one, |r| {
        r.recorded_unix_ms += 10;
        r.reusable = false;
    });
    // One key, however many records have it: the latest usable.
    assert_eq!(store.resolve(&short).unwrap(), latest);
    put(&store, "//t:q", two);
    let error = store.resolve(&short).unwrap_err();
    assert!(error.to_string().contains("several"), "{error}");
    assert_eq!(store.resolve(&key).unwrap(), latest);
}
