//! The rebuilt index says the same as the one that grew, and damage is told.

use super::*;
use crate::fault;
use crate::record::tests::sample;
use crate::store::tests::{flip, put, query, run_info, stage};
use crate::summary::{Snapshot, Summary};
use crate::verdict::ExecutionStatus;
use crate::verify::VerifyOptions;
use proptest::prelude::*;

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
    ["attempts", "results", "metrics", "samples", "runs"]
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

    /// Whatever happens to a store, the index made from its files alone is the one that grew:
    /// commits, links, records refused, blobs damaged, blobs that come back.
    #[test]
    fn a_life_can_be_told_from_the_files(
        life in prop::collection::vec((0..6_u8, 0..3_u8, 0..3_u8, 0..4_u8), 1..16),
    ) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut ids: Vec<Digest> = Vec::new();
        for (what, label, seed, outcome) in life {
            let seed32 = u32::from(seed);
            let pick = |n: u8| (!ids.is_empty()).then(|| ids[usize::from(n) % ids.len()]);
            let name = format!("//t:p{label}");
            match what {
                0..=2 => {
                    stage(&store, seed32);
                    let mut record = sample(&name, seed32);
                    record.recorded_unix_ms = store.stamp_unix_ms();
                    match outcome {
                        0 => record.verdicts.execution.status = ExecutionStatus::Failed,
                        1 => record.reusable = false,
                        _ => {}
                    }
                    ids.push(store.commit(&record).unwrap());
                }
                3 => {
                    // Refused when the record may not be reused; then nothing is linked.
                    if let Some(id) = pick(outcome) {
                        let _ = store.link_spec(sample("", seed32).spec_key, id, &name);
                    }
                }
                4 => {
                    let blob = sample("", seed32).outputs["result"].digest;
                    if store.layout().blob(&blob).exists() {
                        flip(&store.layout().blob(&blob));
                        // Another process, which has not verified it yet.
                        let other = Store::open(root.path()).unwrap();
                        let found = other.blob(&blob);
                        prop_assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
                    }
                }
                _ => {
                    if let Some(id) = pick(outcome) && store.layout().record(&id).exists() {
                        flip(&store.layout().record(&id));
                        let found = store.record(&id);
                        prop_assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
                    }
                }
            }
        }
        let before = dump(&store);
        drop(store);
        fs::remove_file(root.path().join("index.sqlite")).unwrap();
        let (store, _) = Store::rebuild(root.path()).unwrap();
        prop_assert_eq!(dump(&store), before);
    }
}

fn loaded_count(ids: &[Digest]) -> u64 {
    ids.iter().collect::<std::collections::BTreeSet<_>>().len() as u64
}

/// A record that lacked an output counts again when a write that died had brought it back; the
/// index then says what one made from the files says.
#[test]
fn what_a_crash_brought_back_counts_again() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let one = put(&store, "//t:one", 1);
    let record = store.record(&one).unwrap();
    let output = record.outputs.values().next().unwrap().digest;
    fs::remove_file(store.layout().blob(&output)).unwrap();
    assert!(!store.verify(&VerifyOptions::ALL).unwrap().damage.is_empty());
    assert!(store.by_spec(&record.spec_key).unwrap().is_none());
    // Another node makes the same output again, and the writer dies before the index knows.
    let lock = WriterLock::acquire(root.path(), "x").unwrap();
    stage(&store, 1);
    let mut other = sample("//t:other", 2);
    other.outputs = record.outputs.clone();
    other.output_digest = record.output_digest;
    other.logs = record.logs.clone();
    let commit = || store.commit(&other);
    fault::here::with("before-commit:1:error", commit).unwrap_err();
    drop(lock);
    let lock = WriterLock::acquire(root.path(), "y").unwrap();
    assert!(store.recover(&lock).unwrap().died.is_some());
    assert!(store.by_spec(&record.spec_key).unwrap().is_some());
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
}

/// A blob that somebody puts back into its place counts again from the next look on.
#[test]
fn what_was_put_back_counts_again() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let one = put(&store, "//t:one", 1);
    let record = store.record(&one).unwrap();
    let blob = store
        .layout()
        .blob(&record.outputs.values().next().unwrap().digest);
    let away = root.path().join("away");
    fs::rename(&blob, &away).unwrap();
    assert!(!store.verify(&VerifyOptions::ALL).unwrap().damage.is_empty());
    fs::rename(&away, &blob).unwrap();
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
    assert!(store.by_spec(&record.spec_key).unwrap().is_some());
}

/// What became durable just before a crash is not executed twice.
#[test]
fn what_a_crash_left_out_of_the_index_is_taken_in() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let [one, two] = [1, 2].map(|seed| put(&store, &format!("//t:p{seed}"), seed));
    let key = sample("", 3).spec_key;
    store.link_spec(key, two, "//t:other").unwrap();
    let before = dump(&store);
    // As if the process had died between the rename and the commit of the second record.
    store
        .transaction(|db| candidates::forget(db, &two))
        .unwrap();
    fs::create_dir_all(store.layout().tmp()).unwrap();
    fs::write(store.layout().tmp().join("1-0"), "half").unwrap();
    let lock = WriterLock::acquire(root.path(), "a").unwrap();
    let recovered = store.recover(&lock).unwrap();
    assert_eq!(
        (recovered.died, recovered.records, recovered.swept),
        (None, 0, 1)
    );
    drop(lock);
    fs::write(
        store.layout().lock(),
        "pid 7\nhost h\nsince then\ncommand doe build\n",
    )
    .unwrap();
    // Somebody who takes the lock in between and does not clear up takes nothing away.
    let lock = WriterLock::acquire(root.path(), "b").unwrap();
    assert!(lock.predecessor().unwrap().contains("running `doe build`"));
    drop(lock);
    let lock = WriterLock::acquire(root.path(), "c").unwrap();
    let recovered = store.recover(&lock).unwrap();
    assert_eq!((recovered.records, recovered.died.is_some()), (1, true));
    drop(lock);
    let lock = WriterLock::acquire(root.path(), "d").unwrap();
    assert_eq!(store.recover(&lock).unwrap(), Recovered::default());
    assert_eq!(dump(&store), before);
    assert!(
        store
            .by_spec(&sample("", 1).spec_key)
            .unwrap()
            .is_some_and(|s| s.record == one)
    );
}

/// A missing index is not an empty store.
#[test]
fn a_lost_index_is_told_to_readers_and_made_again_by_writers() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = put(&store, "//t:p", 1);
    drop(store);
    fs::remove_file(root.path().join("index.sqlite")).unwrap();
    let error = Store::open_read_only(root.path()).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(
        error.hint().unwrap().contains("doe cache rebuild"),
        "{error}"
    );
    let store = Store::open(root.path()).unwrap();
    assert_eq!(
        store.bulk().unwrap().latest("//t:p").unwrap().record,
        record
    );
}

/// Nor is one that was cut to nothing, or one that somebody made and died before it was full.
#[test]
fn an_empty_index_is_no_empty_store() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = put(&store, "//t:p", 1);
    let before = dump(&store);
    drop(store);
    let made: [fn(&Path); 2] = [
        |root| fs::write(root.join("index.sqlite"), "").unwrap(),
        |root| {
            fs::remove_file(root.join("index.sqlite")).unwrap();
            drop(Store::open_index(root).unwrap());
        },
    ];
    for make in made {
        make(root.path());
        for _ in 0..2 {
            let error = Store::open_read_only(root.path()).unwrap_err();
            assert!(error.to_string().contains("empty"), "{error}");
            assert_eq!(error.code(), "index-corrupt");
        }
        let store = Store::open(root.path()).unwrap();
        let found = store.bulk().unwrap().latest("//t:p").unwrap().record;
        assert_eq!((found, dump(&store)), (record, before.clone()));
    }
}

/// Between the moment a first record is durable and that in which it is indexed nothing is lost:
/// whoever looks then sees a store that is being written.
#[test]
fn a_first_record_on_its_way_into_the_index_is_no_damage() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&run_info("r")).unwrap();
    let record = put(&store, "//t:p", 1);
    store
        .transaction(|db| candidates::forget(db, &record))
        .unwrap();
    assert!(
        Store::open_read_only(root.path())
            .unwrap()
            .bulk()
            .unwrap()
            .latest("//t:p")
            .is_none()
    );
}

/// A time that an older program believed stands above nothing once the index is made again.
#[test]
fn a_record_from_beyond_the_calendar_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    stage(&store, 1);
    let mut record = sample("//t:p", 1);
    record.recorded_unix_ms = 400_000_000_000_000;
    let error = store.commit(&record).unwrap_err();
    assert!(error.to_string().contains("year 9999"), "{error}");
    let good = put(&store, "//t:p", 2);
    let bytes = crate::canonical_json(&record).unwrap();
    let path = store.layout().record(&Digest::of(&bytes));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &bytes).unwrap();
    drop(store);
    let (store, report) = Store::rebuild(root.path()).unwrap();
    assert_eq!(report.skipped.len(), 1, "{report:?}");
    assert_eq!(store.bulk().unwrap().latest("//t:p").unwrap().record, good);
    assert!(store.stamp_unix_ms() < 400_000_000_000_000);
}

/// Files of links outlive their records; a bundle that brings one back brings only its own.
#[test]
fn links_that_waited_for_a_record_count_when_a_bundle_brings_it() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path().join("here")).unwrap();
    let one = put(&store, "//t:one", 1);
    let bundle = root.path().join("bundle");
    store.export(&[one], &bundle, "", "0").unwrap();
    let key = sample("", 9).spec_key;
    store.link_spec(key, one, "//t:other").unwrap();
    flip(&store.layout().record(&one));
    assert!(store.record(&one).is_err() && store.by_spec(&key).unwrap().is_none());
    store.import_bundle(&bundle).unwrap();
    assert_eq!(store.by_spec(&key).unwrap().unwrap().record, one);
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
}
