//! The rebuilt index says the same as the one that grew, and damage is told.

use super::*;
use crate::record::tests::sample;
use crate::store::tests::{flip, put, query, stage};
use crate::summary::{Snapshot, Summary};
use crate::verdict::ExecutionStatus;
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
