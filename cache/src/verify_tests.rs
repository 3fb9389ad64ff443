//! No byte of anything stored can change, and nothing can be cut short, without being found.

use super::*;
use crate::layout::Layout;
use crate::lock::WriterLock;
use crate::record::tests::sample;
use crate::runs::{NodeState, RunStatus};
use crate::store::tests::{flip, put, run_info, stage};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A store with some of everything.
pub(crate) fn life(root: &Path) -> Store {
    let store = Store::open(root).unwrap();
    store.begin_run(&run_info("r")).unwrap();
    let [one, two] = [1, 2].map(|seed| put(&store, &format!("//t:p{seed}"), seed));
    store
        .set_node("r", "//t:p1", NodeState::Ok, None, Some(one))
        .unwrap();
    store.end_run("r", RunStatus::Ok).unwrap();
    store
        .link_spec(sample("", 9).spec_key, two, "//t:other")
        .unwrap();
    store.pin(&one, "paper").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Store::open(elsewhere.path()).unwrap();
    let three = put(&other, "//t:p3", 3);
    let bundle = elsewhere.path().join("bundle");
    other.export(&[three], &bundle, "", "0").unwrap();
    store.import_bundle(&bundle).unwrap();
    let note = store.layout().imported_note(&two);
    checked::write(store.layout(), note, &"s3://bucket/prefix").unwrap();
    store
}

/// Every file that holds something, the index apart.
fn objects(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = file_name(&path);
            if path.is_dir() {
                folders.push(path);
            } else if !name.starts_with("index.sqlite") && name != "lock" {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A log cannot be made again: the record says what it was, and its loss is told when it is found.
#[test]
fn a_damaged_log_is_told_once() {
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    let snapshot = store.bulk().unwrap();
    let record = snapshot.current("//t:p1").unwrap().record;
    let log = store.record(&record).unwrap().logs[0].digest;
    let path = store.layout().blob(&log);
    overwrite(&path, b"something else");
    let damage = store.verify(&VerifyOptions::ALL).unwrap().damage;
    assert!(damage.iter().any(|d| d.name == log.hex()), "{damage:?}");
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
    assert!(store.record(&record).unwrap().usable());
}

/// One finding for one file, whoever looks at it, and it says what is wrong.
#[test]
fn a_blob_of_another_length_is_one_finding() {
    for (seed, whole, what) in [
        (1, "output 1", "output `result` of `//t:p1`"),
        (2, "log 2", "log `step-measure.stdout` of `//t:p2`"),
    ] {
        let blob = Digest::of(whole);
        for sampled in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let store = life(root.path());
            let path = store.layout().blob(&blob);
            overwrite(&path, &whole.as_bytes()[..3]);
            // A share that has the record and not the blob: the length shows all the same.
            let record = store.by_spec(&sample("", seed).spec_key).unwrap();
            let record = record.unwrap().record;
            let mut shares = (0..1000).map(|seed| VerifyOptions {
                share: 0.5,
                seed,
                index: true,
            });
            let options = match sampled {
                true => shares.find(|some| some.picks(&record) && !some.picks(&blob)),
                false => Some(VerifyOptions::ALL),
            };
            let options = options.unwrap();
            let reader = Store::open_read_only(root.path()).unwrap();
            for store in [&reader, &store] {
                let mut damage = store.verify(&options).unwrap().damage;
                damage.retain(|damage| damage.kind == "blob");
                let [damage] = &damage[..] else {
                    panic!("{damage:?}")
                };
                assert_eq!(damage.name, blob.hex());
                let words = format!(
                    "{what} is shorter than it was: 3 bytes, not {}",
                    whole.len()
                );
                assert_eq!(damage.detail, words);
            }
            // It was told, and is not told again.
            assert!(!path.exists());
            assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
        }
    }
    // A missing one is gone, not short.
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    fs::remove_file(store.layout().blob(&Digest::of("output 1"))).unwrap();
    let damage = store.verify(&VerifyOptions::ALL).unwrap().damage;
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!(damage[0].detail, "output `result` of `//t:p1` is gone");
}

#[test]
fn a_whole_store_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    let report = store.verify(&VerifyOptions::ALL).unwrap();
    assert_eq!(report.damage, []);
    assert_eq!((report.records, report.blobs, report.others), (3, 6, 5));
    let none = VerifyOptions {
        share: 0.0,
        ..VerifyOptions::ALL
    };
    assert_eq!(store.verify(&none).unwrap().blobs, 0);
}

#[test]
fn the_damaged_is_put_aside_and_the_next_look_finds_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    let output = sample("", 1).outputs["result"].digest;
    flip(&store.layout().blob(&output));
    let reader = Store::open_read_only(root.path()).unwrap();
    let seen = reader.verify(&VerifyOptions::ALL).unwrap();
    assert_eq!(seen.damage.len(), 1, "{:?}", seen.damage);
    assert!(
        store.layout().blob(&output).exists(),
        "a reader moves nothing"
    );
    let report = store.verify(&VerifyOptions::ALL).unwrap();
    let [damage] = &report.damage[..] else {
        panic!("{:?}", report.damage)
    };
    assert_eq!(
        (damage.kind, damage.name.as_str()),
        ("blob", output.hex().as_str())
    );
    assert!(damage.quarantined.as_ref().unwrap().exists());
    assert_eq!(
        store.by_spec(&sample("", 1).spec_key).unwrap(),
        None,
        "it is reused no more"
    );
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
    let quarantined = store.quarantined().unwrap();
    assert_eq!(quarantined.len(), 1);
    assert_eq!(quarantined[0].why.as_deref(), Some(MISMATCH));
    // Made again, it is whole again, and so is the record that lacked it.
    stage(&store, 1);
    put(&store, "//t:again", 1);
    assert!(store.by_spec(&sample("", 1).spec_key).unwrap().is_some());
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
}

#[test]
fn an_index_that_says_something_else_is_found() {
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    for lie in [
        "UPDATE record_metric SET value = value + 1",
        "UPDATE record SET criterion = 'missed' WHERE id = 2",
        "UPDATE run SET status = 'failed'",
        "DELETE FROM spec_link WHERE spec_key = (SELECT max(spec_key) FROM spec_link)",
        "DELETE FROM record WHERE id = 1",
    ] {
        store.transaction(|db| Ok(db.execute_batch(lie)?)).unwrap();
        let report = store.verify(&VerifyOptions::ALL).unwrap();
        assert!(
            report.damage.iter().any(|d| d.kind == "index"),
            "{lie}: {:?}",
            report.damage
        );
        store.fill(&mut RebuildReport::default()).unwrap();
        assert_eq!(
            store.verify(&VerifyOptions::ALL).unwrap().damage,
            [],
            "{lie}"
        );
    }
}

#[test]
fn what_is_refused_can_be_taken_back() {
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    let two = store.bulk().unwrap().current("//t:p2").unwrap().record;
    assert_eq!(store.quarantine(&two, "the fan was off").unwrap(), [two]);
    let path = store.layout().quarantine().join(format!("{two}.json"));
    assert!(path.exists() && matches!(store.record(&two), Err(Error::NotFound { .. })));
    assert_eq!(store.bulk().unwrap().current("//t:other"), None);
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
    assert_eq!(
        store.quarantined().unwrap()[0].why.as_deref(),
        Some("the fan was off")
    );
    // A collection meanwhile must not take its links.
    let lock = WriterLock::acquire(root.path(), "gc").unwrap();
    store
        .gc_sweep(
            &lock,
            &store
                .gc_plan(&Default::default(), &Default::default())
                .unwrap(),
        )
        .unwrap();
    store.restore(&two).unwrap();
    assert_eq!(
        store.bulk().unwrap().current("//t:other").unwrap().record,
        two
    );
    assert_eq!(store.quarantined().unwrap(), []);
    assert!(matches!(store.restore(&two), Err(Error::NotFound { .. })));
}

/// A healthy index knows what damaged files said: neither looking nor making it again loses that.
#[test]
fn what_the_index_knows_of_damaged_files_is_kept() {
    let says = |store: &Store| {
        let (runs, nodes) = (store.runs(9).unwrap(), store.run_nodes("r").unwrap());
        let links = crate::links::all(&store.index()).unwrap();
        (
            runs,
            nodes,
            links,
            store.bulk().unwrap().current("//t:other").cloned(),
        )
    };
    let damage: [fn(&Layout); 5] = [
        |layout| flip(&links_in(layout)[0]),
        |layout| overwrite(&links_in(layout)[0], b""),
        // The first line, the last one, and one that is gone without a trace.
        |layout| {
            change(layout, |text| {
                text.replacen("doe_version", "doe-version", 1)
            })
        },
        |layout| change(layout, |text| text.replace("\"end\"", "\"eng\"")),
        |layout| {
            change(layout, |text| {
                text.lines().next().unwrap().to_owned() + "\n"
            })
        },
    ];
    for (at, damage) in damage.into_iter().enumerate() {
        for rebuilt in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let store = life(root.path());
            let before = says(&store);
            damage(store.layout());
            let store = match rebuilt {
                true => {
                    drop(store);
                    let (store, report) = Store::rebuild(root.path()).unwrap();
                    assert_eq!(report.quarantined.len(), 1, "{at}");
                    store
                }
                false => {
                    assert_ne!(
                        store.verify(&VerifyOptions::ALL).unwrap().damage,
                        [],
                        "{at}"
                    );
                    store
                }
            };
            assert_eq!(says(&store), before, "{at}, rebuilt: {rebuilt}");
            assert_eq!(
                store.verify(&VerifyOptions::ALL).unwrap().damage,
                [],
                "{at}"
            );
            assert_eq!(store.quarantined().unwrap().len(), 1, "{at}");
            drop(store);
            fs::remove_file(root.path().join("index.sqlite")).unwrap();
            assert_eq!(says(&Store::open(root.path()).unwrap()), before, "{at}");
        }
    }
}

fn links_in(layout: &Layout) -> Vec<PathBuf> {
    let mut files = Vec::new();
    durable::files_below(&layout.links(), &mut |path, _| files.push(path.to_owned())).unwrap();
    files
}

fn change(layout: &Layout, change: impl FnOnce(&str) -> String) {
    let path = layout.notes("r");
    let text = change(&fs::read_to_string(&path).unwrap());
    overwrite(&path, text.as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_flipped_byte_and_any_cut_is_found(
        which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(),
        mask in 1..=255_u8, cut in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let store = life(root.path());
        drop(store);
        let all = objects(root.path());
        // Records, blobs, links, notes, pins, imports, notes about what came from a mirror.
        prop_assert_eq!(all.len(), 3 + 6 + 1 + 1 + 1 + 1 + 1);
        let path = which.get(&all);
        let good = fs::read(path).unwrap();
        let at = place.index(good.len());
        let mut bad = good.clone();
        if cut {
            bad.truncate(at);
        } else {
            bad[at] ^= mask;
        }
        overwrite(path, &bad);
        let store = Store::open(root.path()).unwrap();
        let report = store.verify(&VerifyOptions::ALL).unwrap();
        prop_assert!(!report.damage.is_empty(), "{} at {at}", path.display());
        // Once told it is over, but for what only a person can put right.
        let again = store.verify(&VerifyOptions::ALL).unwrap().damage;
        prop_assert!(again.iter().all(|damage| damage.kind == "pin"), "{again:?}");
    }
}
