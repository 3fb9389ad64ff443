//! The store as a whole: what is committed is found, what is damaged is noticed, and the index
//! that was rebuilt says the same as the one that grew.

use super::*;
use crate::record::tests::sample;
use crate::verdict::{CriterionStatus, ExecutionStatus, ValidityStatus};
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

/// Stages the blobs of [`sample`]'s record.
fn stage(store: &Store, seed: u32) {
    store
        .cas()
        .stage_bytes(format!("output {seed}").as_bytes())
        .unwrap();
    store
        .cas()
        .stage_bytes(format!("log {seed}").as_bytes())
        .unwrap();
}

fn put(store: &Store, label: &str, seed: u32) -> Digest {
    put_with(store, label, seed, |_| {})
}

fn put_with(store: &Store, label: &str, seed: u32, change: impl FnOnce(&mut Record)) -> Digest {
    stage(store, seed);
    let mut record = sample(label, seed);
    change(&mut record);
    store.commit(&record).unwrap()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn query(store: &Store, sql: &str) -> Vec<String> {
    let db = store.index();
    let mut statement = db.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let cell = |i| match row.get_ref(i).unwrap() {
            rusqlite::types::ValueRef::Null => "-".to_owned(),
            rusqlite::types::ValueRef::Integer(int) => int.to_string(),
            rusqlite::types::ValueRef::Real(real) => format!("{real:?}"),
            rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            rusqlite::types::ValueRef::Blob(blob) => format!("blob of {}", blob.len()),
        };
        Ok((0..columns).map(cell).collect::<Vec<_>>().join("|"))
    });
    rows.unwrap().map(|row| row.unwrap()).collect()
}

#[test]
fn what_is_committed_is_found_by_every_way() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = sample("//t:p", 1);
    stage(&store, 1);
    let id = store.commit(&record).unwrap();
    assert_eq!(id, record.id().unwrap());
    assert_eq!(
        store.commit(&record).unwrap(),
        id,
        "committing twice is committing once"
    );
    let file = root
        .path()
        .join(format!("records/{}/{id}.json", &id.hex()[..2]));
    assert_eq!(Digest::of_file(&file).unwrap(), id);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o222, 0);
    let expected = record.summary(id);
    for store in [
        store,
        Store::open(root.path()).unwrap(),
        Store::open_read_only(root.path()).unwrap(),
    ] {
        assert_eq!(
            store.by_spec(&record.spec_key).unwrap().as_ref(),
            Some(&expected)
        );
        assert_eq!(
            store.by_action(&record.action_key).unwrap().as_ref(),
            Some(&expected)
        );
        assert_eq!(store.by_spec(&record.action_key).unwrap(), None);
        assert_eq!(
            store.list(&Filter::default()).unwrap(),
            std::slice::from_ref(&expected)
        );
        assert_eq!(store.record(&id).unwrap(), record);
        assert_eq!(
            store.blob(&record.outputs["result"].digest).unwrap(),
            b"output 1"
        );
        assert_eq!(store.resolve(&id.hex()[..6]).unwrap(), id);
        let snapshot = store.bulk().unwrap();
        assert_eq!(snapshot.by_spec(&record.spec_key), Some(&expected));
        assert_eq!(snapshot.by_action(&record.action_key), Some(&expected));
        assert_eq!(snapshot.latest("//t:p"), Some(&expected));
        assert_eq!(snapshot.current("//t:p"), Some(&expected));
        assert_eq!(snapshot.record(&id), Some(&expected));
    }
}

#[test]
fn only_good_records_stand_for_a_key() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    type Change = fn(&mut Record);
    let bad: [Change; 5] = [
        |r| r.verdicts.execution.status = ExecutionStatus::Failed,
        |r| r.verdicts.execution.status = ExecutionStatus::Timeout,
        |r| r.verdicts.validity.status = ValidityStatus::Invalid,
        |r| r.verdicts.validity.status = ValidityStatus::Unknown,
        |r| r.reusable = false,
    ];
    let key = sample("//t:p", 1).spec_key;
    let action = sample("//t:p", 1).action_key;
    let check = |expected: Option<Digest>, latest: Digest| {
        let snapshot = store.bulk().unwrap();
        let id = |s: Option<&Summary>| s.map(|s| s.record);
        assert_eq!(id(store.by_spec(&key).unwrap().as_ref()), expected);
        assert_eq!(id(store.by_action(&action).unwrap().as_ref()), expected);
        assert_eq!(id(snapshot.by_spec(&key)), expected);
        assert_eq!(id(snapshot.by_action(&action)), expected);
        assert_eq!(id(snapshot.current("//t:p")), expected);
        assert_eq!(id(snapshot.latest("//t:p")), Some(latest));
    };
    for (i, change) in bad.iter().enumerate() {
        let id = put_with(&store, "//t:p", 1, |r| {
            change(r);
            r.recorded_unix_ms = 10 + i as u64;
        });
        check(None, id);
        assert!(store.link_spec(key, id, "//t:p").is_err());
    }
    let good = put_with(&store, "//t:p", 1, |r| r.recorded_unix_ms = 100);
    check(Some(good), good);
    // A later failure is what happened last; the good result still stands.
    let failed = put_with(&store, "//t:p", 1, |r| {
        bad[0](r);
        r.recorded_unix_ms = 200;
    });
    check(Some(good), failed);
    // A missed expectation is a result like any other, and the later one.
    let missed = put_with(&store, "//t:p", 1, |r| {
        r.verdicts.criterion.status = CriterionStatus::Missed;
        r.recorded_unix_ms = 300;
    });
    check(Some(missed), missed);
    // Something older that arrives late changes nothing.
    put_with(&store, "//t:p", 1, |r| r.recorded_unix_ms = 150);
    check(Some(missed), missed);
    assert_eq!(
        query(
            &store,
            "SELECT label, record, execution, latest_execution FROM results"
        ),
        [format!("//t:p|{missed}|ok|ok")]
    );
}

#[test]
fn a_record_without_its_blobs_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = sample("//t:p", 1);
    let error = store.commit(&record).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(
        error.to_string().contains("output `result` of `//t:p`"),
        "{error}"
    );
    store.put_bytes(b"output 1").unwrap();
    let error = store.commit(&record).unwrap_err();
    assert!(
        error.to_string().contains("log `step-measure.stdout`"),
        "{error}"
    );
    store.put_bytes(b"log 1").unwrap();
    let mut lying = record.clone();
    lying.outputs.get_mut("result").unwrap().size_bytes = 9;
    let error = store.commit(&lying).unwrap_err();
    assert!(
        error.to_string().contains("9 bytes") && error.to_string().contains("has 8"),
        "{error}"
    );
    // One bad record keeps the whole batch out.
    assert!(
        store
            .commit_batch(&[record.clone(), sample("//t:q", 2)])
            .is_err()
    );
    assert_eq!(store.stats().unwrap().records, 0);
    assert!(!root.path().join("records").exists());
    store.commit(&record).unwrap();
}

#[test]
fn a_flipped_byte_in_a_record_is_found_and_an_older_record_takes_its_place() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let older = put_with(&store, "//t:p", 1, |r| r.recorded_unix_ms = 1);
    let newer = put_with(&store, "//t:p", 1, |r| r.recorded_unix_ms = 2);
    let path = store.layout().record(&newer);
    flip(&path);

    let reader = Store::open_read_only(root.path()).unwrap();
    assert!(matches!(
        reader.record(&newer),
        Err(Error::Corrupt {
            quarantined: None,
            ..
        })
    ));
    assert!(path.exists(), "readers move nothing");

    let error = store.record(&newer).unwrap_err();
    let Error::Corrupt {
        quarantined: Some(moved),
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert!(moved.exists() && !path.exists());
    let key = sample("//t:p", 1).spec_key;
    assert_eq!(store.by_spec(&key).unwrap().unwrap().record, older);
    let snapshot = store.bulk().unwrap();
    assert_eq!(snapshot.len(), 1);
    assert_eq!(snapshot.latest("//t:p").unwrap().record, older);
    assert_eq!(snapshot.current("//t:p").unwrap().record, older);
    assert!(matches!(store.record(&newer), Err(Error::NotFound { .. })));

    // The last one goes: nothing is known any more.
    flip(&store.layout().record(&older));
    assert!(store.record(&older).is_err());
    assert!(store.bulk().unwrap().is_empty());
    assert_eq!(query(&store, "SELECT * FROM results"), [""; 0]);
}

#[test]
fn a_link_leads_another_key_and_label_to_the_record() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = put(&store, "//t:p", 1);
    let key = Digest::of(b"another spec");
    store.link_spec(key, record, "//t:other").unwrap();
    assert_eq!(store.by_spec(&key).unwrap().unwrap().record, record);
    let snapshot = store.bulk().unwrap();
    assert_eq!(snapshot.by_spec(&key).unwrap().record, record);
    assert_eq!(snapshot.current("//t:other").unwrap().record, record);
    assert_eq!(
        query(
            &store,
            "SELECT label, recorded_as, execution FROM results ORDER BY label"
        ),
        ["//t:other|//t:p|ok", "//t:p|//t:p|ok"]
    );
    // A label that went elsewhere comes back, although the record is older than what it had.
    let second = put(&store, "//t:p", 2);
    assert_eq!(
        store.bulk().unwrap().current("//t:p").unwrap().record,
        second
    );
    store
        .link_spec(sample("//t:p", 1).spec_key, record, "//t:p")
        .unwrap();
    assert_eq!(
        store.bulk().unwrap().current("//t:p").unwrap().record,
        record
    );
    // And a result recorded after that is the latest again.
    let third = put_with(&store, "//t:p", 3, |r| {
        r.recorded_unix_ms = store.stamp_unix_ms()
    });
    assert_eq!(
        store.bulk().unwrap().current("//t:p").unwrap().record,
        third
    );

    let error = store
        .link_spec(key, Digest::of(b"none"), "//t:p")
        .unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[test]
fn stamps_never_repeat_and_never_go_back() {
    let root = tempfile::tempdir().unwrap();
    let future = now_unix_ms() + 3_600_000;
    let store = Store::open(root.path()).unwrap();
    let (a, b) = (store.stamp_unix_ms(), store.stamp_unix_ms());
    assert!(a < b);
    put_with(&store, "//t:p", 1, |r| r.recorded_unix_ms = future);
    assert!(store.stamp_unix_ms() > future, "the clock was set back");
    drop(store);
    assert!(Store::open(root.path()).unwrap().stamp_unix_ms() > future);
}

#[test]
fn two_stores_write_at_the_same_time() {
    let root = tempfile::tempdir().unwrap();
    let stores = [
        Store::open(root.path()).unwrap(),
        Store::open(root.path()).unwrap(),
    ];
    std::thread::scope(|scope| {
        for (i, store) in stores.iter().enumerate() {
            for thread in 0..2 {
                scope.spawn(move || {
                    for round in 0..10_u32 {
                        let seed = (i as u32) * 1000 + thread * 100 + round;
                        put(store, &format!("//t:p{seed}"), seed);
                        // The same result from everywhere.
                        put(store, "//t:shared", 9999);
                        let found = store.by_spec(&sample("x", seed).spec_key).unwrap();
                        assert!(found.is_some());
                    }
                });
            }
        }
    });
    for store in &stores {
        assert_eq!(store.bulk().unwrap().len(), 41);
    }
    let stats = stores[0].stats().unwrap();
    assert_eq!((stats.records, stats.usable, stats.blobs), (41, 41, 82));
    assert_eq!(query(&stores[0], "PRAGMA integrity_check"), ["ok"]);
}

#[test]
fn reading_asks_for_nothing_and_makes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("not/there");
    let store = Store::open_read_only(&root).unwrap();
    assert!(store.bulk().unwrap().is_empty());
    assert_eq!(store.by_spec(&Digest::of(b"x")).unwrap(), None);
    assert_eq!(store.stats().unwrap(), Stats::default());
    assert_eq!(store.last_run().unwrap(), None);
    assert!(store.latest_states().unwrap().is_empty());
    assert!(matches!(
        store.record(&Digest::of(b"x")),
        Err(Error::NotFound { .. })
    ));
    let refused = [
        store.commit(&sample("//t:p", 1)).unwrap_err(),
        store.put_bytes(b"x").unwrap_err(),
        store.end_run("r", RunStatus::Ok).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    }
    assert!(!root.exists());
}

#[test]
fn runs_remember_what_happened_to_each_node() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let info = |id: &str| RunInfo {
        run_id: id.to_owned(),
        command: "doe build //t:all".to_owned(),
        platform: "sim".to_owned(),
        simulated: true,
        doe_version: "0.1.0".to_owned(),
        host: "h".to_owned(),
        pid: 7,
        started_unix_ms: 1_000,
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

#[test]
fn a_rebuild_reports_what_it_could_not_use() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let [good, bad, bare] = [1, 2, 3].map(|seed| put(&store, &format!("//t:p{seed}"), seed));
    flip(&store.layout().record(&bad));
    let output = sample("x", 3).outputs["result"].digest;
    fs::remove_file(store.layout().blob(&output)).unwrap();
    let newer = br#"{"schema":2}"#;
    let newer_path = store.layout().record(&Digest::of(newer));
    fs::create_dir_all(newer_path.parent().unwrap()).unwrap();
    fs::write(&newer_path, newer).unwrap();
    let odd = root
        .path()
        .join("records")
        .join(&good.hex()[..2])
        .join("notes.txt");
    fs::write(&odd, "hello").unwrap();
    drop(store);
    fs::write(root.path().join("index.sqlite"), "rubbish".repeat(1000)).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(root.path().join(format!("index.sqlite{suffix}")));
    }

    let error = Store::open(root.path()).unwrap_err();
    assert!(
        error.hint().unwrap().contains("doe cache rebuild"),
        "{error}"
    );
    let (store, report) = Store::rebuild(root.path()).unwrap();
    assert_eq!(report.indexed, 2);
    assert_eq!(report.incomplete, [bare]);
    let skipped: Vec<&Path> = report.skipped.iter().map(|(p, _)| p.as_path()).collect();
    assert!(skipped.contains(&newer_path.as_path()) && skipped.contains(&odd.as_path()));
    assert_eq!(skipped.len(), 2);
    assert!(newer_path.exists());
    assert_eq!(report.quarantined.len(), 2, "{report:?}");
    assert!(report.quarantined.iter().all(|(path, _)| path.exists()));
    let snapshot = store.bulk().unwrap();
    assert!(snapshot.by_spec(&sample("x", 1).spec_key).is_some());
    assert!(snapshot.by_spec(&sample("x", 2).spec_key).is_none());
    assert!(
        snapshot.by_spec(&sample("x", 3).spec_key).is_none(),
        "its output is gone"
    );
    assert_eq!(snapshot.latest("//t:p3").unwrap().record, bare);
}

/// One step of a store's life: label, key, age, kind of outcome.
fn any_step() -> impl Strategy<Value = (u8, u8, u8, u8)> {
    (0..3_u8, 0..3_u8, 0..6_u8, 0..4_u8)
}

fn dump(store: &Store) -> Vec<Vec<String>> {
    ["attempts", "results", "metrics", "samples"]
        .map(|view| {
            query(
                store,
                &format!("SELECT * FROM {view} ORDER BY 1, 2, 3, 4, 5, 6"),
            )
        })
        .into_iter()
        .chain([query(
            store,
            "SELECT lower(hex(k.spec_key)), lower(hex(r.digest)) FROM spec_link k
             JOIN record r ON r.id = k.record_id ORDER BY 1",
        )])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the order of arrival: the index, its rebuild, its snapshot and a snapshot fed
    /// record by record all say the same as the naive reading of the list of records.
    #[test]
    fn all_ways_to_the_same_answer_agree(
        steps in prop::collection::vec(any_step(), 1..12), at_once in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let records: Vec<Record> = steps
            .iter()
            .map(|(label, seed, age, outcome)| {
                let mut record = sample(&format!("//t:p{label}"), u32::from(*seed));
                stage(&store, u32::from(*seed));
                record.recorded_unix_ms = u64::from(*age);
                match outcome {
                    0 => record.verdicts.execution.status = ExecutionStatus::Failed,
                    1 => record.reusable = false,
                    _ => {}
                }
                record
            })
            .collect();
        let mut fed = Snapshot::new();
        let ids = if at_once {
            store.commit_batch(&records).unwrap()
        } else {
            records.iter().map(|r| store.commit(r).unwrap()).collect()
        };
        for (record, id) in records.iter().zip(&ids) {
            fed.insert(record.summary(*id));
        }
        let all: Vec<Summary> = records.iter().zip(&ids).map(|(r, id)| r.summary(*id)).collect();
        let newest = |pick: &dyn Fn(&Summary) -> bool| {
            all.iter().filter(|s| pick(s)).max_by_key(|s| s.age()).cloned()
        };
        let loaded = store.bulk().unwrap();
        for label in 0..3 {
            let label = format!("//t:p{label}");
            let latest = newest(&|s| *s.label == *label);
            let current = newest(&|s| *s.label == *label && s.usable());
            for snapshot in [&fed, &loaded] {
                prop_assert_eq!(snapshot.latest(&label), latest.as_ref());
                prop_assert_eq!(snapshot.current(&label), current.as_ref());
            }
        }
        for seed in 0..3 {
            let (spec, action) = (sample("", seed).spec_key, sample("", seed).action_key);
            let best = newest(&|s| s.spec_key == spec && s.usable());
            prop_assert_eq!(&store.by_spec(&spec).unwrap(), &best);
            prop_assert_eq!(&store.by_action(&action).unwrap(), &best);
            for snapshot in [&fed, &loaded] {
                prop_assert_eq!(snapshot.by_spec(&spec), best.as_ref());
                prop_assert_eq!(snapshot.by_action(&action), best.as_ref());
            }
        }
        let before = dump(&store);
        drop(store);
        let (store, report) = Store::rebuild(root.path()).unwrap();
        prop_assert_eq!(report.indexed, loaded_count(&ids));
        prop_assert_eq!(dump(&store), before);
    }
}

fn loaded_count(ids: &[Digest]) -> u64 {
    ids.iter().collect::<std::collections::BTreeSet<_>>().len() as u64
}
