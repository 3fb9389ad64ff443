//! The store as a whole: what is committed is found, what is damaged is noticed, and the index
//! that was rebuilt says the same as the one that grew.

use super::*;
use crate::fault;
use crate::record::tests::sample;
use crate::runs::RunInfo;
use crate::verdict::{CriterionStatus, ExecutionStatus, ValidityStatus};
use std::os::unix::fs::PermissionsExt;

/// Stages the blobs of [`sample`]'s record.
pub(crate) fn stage(store: &Store, seed: u32) {
    store
        .cas()
        .stage_bytes(format!("output {seed}").as_bytes())
        .unwrap();
    store
        .cas()
        .stage_bytes(format!("log {seed}").as_bytes())
        .unwrap();
}

pub(crate) fn put(store: &Store, label: &str, seed: u32) -> Digest {
    put_with(store, label, seed, |_| {})
}

pub(crate) fn put_with(
    store: &Store,
    label: &str,
    seed: u32,
    change: impl FnOnce(&mut Record),
) -> Digest {
    stage(store, seed);
    let mut record = sample(label, seed);
    change(&mut record);
    store.commit(&record).unwrap()
}

/// What a run says of itself at its begin.
pub(crate) fn run_info(run_id: &str) -> RunInfo {
    RunInfo {
        run_id: run_id.to_owned(),
        command: "doe build //t:all".to_owned(),
        platform: "sim".to_owned(),
        simulated: true,
        doe_version: "0.1.0".to_owned(),
        host: "h".to_owned(),
        pid: 1,
        started_unix_ms: 1,
    }
}

pub(crate) fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

pub(crate) fn query(store: &Store, sql: &str) -> Vec<String> {
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
        store.end_run("r", crate::runs::RunStatus::Ok).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    }
    assert!(!root.exists());
}

#[test]
fn the_dead_are_swept_and_the_living_are_not() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let lock = WriterLock::acquire(root.path(), "test").unwrap();
    assert_eq!(store.sweep_tmp(&lock).unwrap(), 0);
    let staged = store.cas().stage_bytes(b"still needed").unwrap();
    fs::write(store.layout().tmp().join("1-7"), "left behind").unwrap();
    assert_eq!(store.sweep_tmp(&lock).unwrap(), 1);
    assert_eq!(store.blob(&staged.digest).unwrap(), b"still needed");
}

/// Blobs wait for the next try whatever the first one died of, so a record is not lost with it.
#[test]
fn a_disk_that_refuses_once_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for (seed, point) in [
        "before-fsync",
        "after-fsync",
        "before-rename",
        "after-rename",
    ]
    .into_iter()
    .chain([
        "before-dir-sync",
        "after-dir-sync",
        "before-commit",
        "after-commit",
    ])
    .enumerate()
    {
        let seed = u32::try_from(seed).unwrap() + 1;
        stage(&store, seed);
        let record = sample("//t:p", seed);
        let fault = format!("{point}:1:error");
        let error = fault::here::with(&fault, || store.commit(&record)).unwrap_err();
        assert_eq!(error.code(), "store-io", "{point}: {error}");
        assert!(store.layout().unsettled().exists(), "{point}");
        let digest = store.commit(&record).unwrap();
        assert_eq!(store.record(&digest).unwrap(), record);
        let output = record.outputs["result"].digest;
        assert_eq!(
            store.blob(&output).unwrap(),
            format!("output {seed}").as_bytes()
        );
    }
}

/// What was renamed and never synced is there for whoever looks, and gone after a power cut.
#[test]
fn nothing_is_built_on_names_that_were_never_synced() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    stage(&store, 1);
    let record = sample("//t:p", 1);
    // The first passage is that of the blobs, the second that of the record.
    for fault in ["before-dir-sync:2:error", "before-dir-sync:1:error"] {
        let tried = fault::here::with(fault, || store.commit(&record));
        assert!(
            tried.is_err(),
            "{fault}: all is in place, and nothing was synced"
        );
        assert!(store.layout().record(&record.id().unwrap()).exists());
    }
    store.commit(&record).unwrap();
    // The same for the next process, when this one did not live to try again.
    drop(store);
    let store = Store::open(root.path()).unwrap();
    let lock = WriterLock::acquire(root.path(), "x").unwrap();
    let sync =
        |store: &Store| fault::here::with("before-dir-sync:1:error", || store.recover(&lock));
    assert!(sync(&store).is_err());
    store.recover(&lock).unwrap();
    sync(&store).unwrap();
}

/// Where no mark can be made that a write failed, the lock says it.
#[test]
fn a_failure_is_handed_on_with_or_without_a_mark() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let lock = WriterLock::acquire(root.path(), "doe build").unwrap();
    fs::create_dir(store.layout().unsettled()).unwrap();
    stage(&store, 1);
    let commit = || store.commit(&sample("//t:p", 1));
    fault::here::with("before-commit:1:error", commit).unwrap_err();
    drop(lock);
    let left = fs::read_to_string(store.layout().lock()).unwrap();
    assert!(left.contains("command doe build"), "{left}");
    fs::remove_dir(store.layout().unsettled()).unwrap();
    let lock = WriterLock::acquire(root.path(), "x").unwrap();
    assert_eq!(store.recover(&lock).unwrap().records, 1);
    drop(lock);
    assert_eq!(fs::read_to_string(store.layout().lock()).unwrap(), "");
}
