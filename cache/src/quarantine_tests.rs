//! What looks after the store may die of a refusing disk at any point: after the next writer has
//! looked, index and files say the same, and what was refused stays out.

use super::*;
use crate::fault::{self, Point};
use crate::gc::GcLimits;
use crate::lock::WriterLock;
use crate::record::tests::sample;
use crate::store::tests::{flip, put, put_with};
use crate::verify::VerifyOptions;

/// What is done to a store with two records.
type Work = fn(&Store, &Path) -> Result<()>;

/// In memory where that can be had: this is about what comes after what, not about the disk.
fn quick() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn filled(root: &Path) -> Store {
    let store = Store::open(root).unwrap();
    for seed in 1..4 {
        put_with(&store, "//t:p", seed, |r| {
            r.recorded_unix_ms = u64::from(seed)
        });
    }
    let latest = store.bulk().unwrap().current("//t:p").unwrap().record;
    let key = sample("", 9).spec_key;
    store.link_spec(key, latest, "//t:other").unwrap();
    store
}

fn latest(store: &Store) -> Digest {
    store.list(&Default::default()).unwrap()[0].record
}

fn refuse(store: &Store, _: &Path) -> Result<()> {
    store.quarantine(&latest(store), "no").map(|_| ())
}

fn take_back(store: &Store, _: &Path) -> Result<()> {
    let refused = all_refused(store.layout())?;
    refused.iter().try_for_each(|record| store.restore(record))
}

fn collect(store: &Store, root: &Path) -> Result<()> {
    let limits = GcLimits {
        before_unix_ms: Some(u64::MAX),
        ..GcLimits::default()
    };
    let lock = WriterLock::acquire(root, "gc")?;
    store.gc_sweep(&lock, &store.gc_plan(&limits, &Default::default())?)
}

fn take_in(store: &Store, root: &Path) -> Result<()> {
    store.import_bundle(&root.join("bundle")).map(|_| ())
}

#[test]
fn half_of_a_change_is_seen_by_the_next_writer() {
    let elsewhere = quick();
    let other = Store::open(elsewhere.path()).unwrap();
    let [one, two] = [5, 6].map(|seed| put(&other, "//t:new", seed));
    let nothing: Work = |_, _| Ok(());
    let works: [(&str, Work, Work); 4] = [
        ("quarantine", nothing, refuse),
        ("restore", refuse, take_back),
        ("gc", nothing, collect),
        ("import", nothing, take_in),
    ];
    for (name, before, work) in works {
        let mut struck = 0;
        // What fails after one step is what fails before the next.
        let before_step = |point: &&Point| point.as_str().starts_with("before");
        for point in Point::ALL.iter().filter(before_step) {
            for count in 1.. {
                let dir = quick();
                let root = dir.path();
                let store = filled(root);
                other
                    .export(&[one, two], &root.join("bundle"), "", "0")
                    .unwrap();
                before(&store, root).unwrap();
                let fault = format!("{point}:{count}:error");
                if fault::here::with(&fault, || work(&store, root)).is_ok() {
                    break;
                }
                struck += 1;
                drop(store);
                let store = Store::open(root).unwrap();
                let lock = WriterLock::acquire(root, "next").unwrap();
                store.recover(&lock).unwrap();
                let damage = store.verify(&VerifyOptions::ALL).unwrap().damage;
                assert_eq!(damage, [], "{name}, {fault}");
                let refused = all_refused(store.layout()).unwrap();
                drop(store);
                if !refused.is_empty() {
                    let (store, _) = Store::rebuild(root).unwrap();
                    let mut refused = refused.iter();
                    let back = refused.any(|record| store.has_usable(record).unwrap());
                    assert!(!back, "{name}, {fault}");
                }
            }
        }
        assert!(struck > 5, "{name}: {struck}");
    }
}

/// A damaged copy in quarantine is no refusal of the record that it should have been.
#[test]
fn a_damaged_copy_refuses_nothing() {
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Store::open(elsewhere.path()).unwrap();
    let record = put(&other, "//t:p", 1);
    let bundle = elsewhere.path().join("bundle");
    other.export(&[record], &bundle, "", "0").unwrap();
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.import_bundle(&bundle).unwrap();
    flip(&store.layout().record(&record));
    assert!(store.record(&record).is_err());
    assert!(!store.is_refused(&record).unwrap());
    store.import_bundle(&bundle).unwrap();
    assert!(store.record(&record).is_ok());
    // Refused now, beside the damaged one.
    store.quarantine(&record, "no").unwrap();
    assert!(store.is_refused(&record).unwrap());
    assert_eq!(store.import_bundle(&bundle).unwrap().refused, [record]);
    // Whoever has seen the damaged one takes it away; the refusal is not in that file.
    let damaged = store.layout().quarantine().join(name_of(&record));
    let aside = fs::read(&damaged).unwrap();
    fs::remove_file(&damaged).unwrap();
    assert_eq!(all_refused(store.layout()).unwrap().len(), 1);
    assert_eq!(store.import_bundle(&bundle).unwrap().refused, [record]);
    fs::write(&damaged, aside).unwrap();
    // Nor does a collection take what it needs to come back.
    collect(&store, root.path()).unwrap();
    let output = sample("", 1).outputs["result"].digest;
    assert!(store.cas().contains(&output));
    store.restore(&record).unwrap();
    assert!(store.record(&record).is_ok() && !store.is_refused(&record).unwrap());
    // What is left is no record to take back.
    let left = store.restore(&record).unwrap_err();
    assert!(matches!(left, Error::Corrupt { .. }), "{left}");
}
