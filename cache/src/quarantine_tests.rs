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
    let mut refused = refused.iter();
    refused.try_for_each(|record| store.restore(record).map(|_| ()))
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
    let works: [(&str, Work, Work); 5] = [
        ("quarantine", nothing, refuse),
        ("quarantine of three", chain_of_three, refuse),
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

/// Three records of one execution, each read anew out of the outputs of the one before, and one
/// that is of another and later than the first.
fn chain(store: &Store) -> [Digest; 4] {
    let put = |from: Option<Digest>, at: u64| {
        put_with(store, "//t:c", 7, |r| {
            r.rejudged_from = from;
            r.judge = Digest::of(at.to_be_bytes());
            r.recorded_unix_ms = at;
        })
    };
    let root = put(None, 100);
    let other = put_with(store, "//t:c", 8, |r| r.recorded_unix_ms = 50);
    let middle = put(Some(root), 101);
    [root, middle, put(Some(middle), 102), other]
}

fn chain_of_three(store: &Store, _: &Path) -> Result<()> {
    chain(store);
    Ok(())
}

#[test]
fn a_refusal_is_of_the_execution() {
    for named in 0..3 {
        let root = quick();
        let store = Store::open(root.path()).unwrap();
        let all = chain(&store);
        let (chain, other) = (&all[..3], all[3]);
        let bundle = root.path().join("bundle");
        store.export(&all, &bundle, "", "0").unwrap();
        let current = |store: &Store| store.bulk().unwrap().current("//t:c").unwrap().record;
        assert_eq!(current(&store), chain[2]);
        for record in chain {
            assert_eq!(store.execution(record).unwrap(), chain);
        }
        assert_eq!(store.execution(&other).unwrap(), [other]);
        assert_eq!(store.quarantine(&chain[named], "no").unwrap(), chain);
        let aside = store.quarantined().unwrap();
        let whys: Vec<_> = aside.iter().map(|it| it.why.as_deref()).collect();
        assert_eq!(whys, [Some("no"); 3]);
        assert_eq!(current(&store), other);
        // Nothing is left to refuse.
        let again = store.quarantine(&chain[named], "no").unwrap_err();
        assert!(matches!(again, Error::NotFound { .. }), "{again}");
        let mut refused = store.import_bundle(&bundle).unwrap().refused;
        refused.sort_unstable();
        let mut expected = chain.to_vec();
        expected.sort_unstable();
        assert_eq!(refused, expected);
        drop(store);
        let (store, _) = Store::rebuild(root.path()).unwrap();
        assert_eq!(current(&store), other);
        assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
        // Any of them takes all back.
        assert_eq!(store.restore(&chain[(named + 1) % 3]).unwrap(), chain);
        assert_eq!(current(&store), chain[2]);
        assert_eq!(store.quarantined().unwrap(), []);
        assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
        assert!(matches!(
            store.restore(&chain[named]),
            Err(Error::NotFound { .. })
        ));
    }
}

/// Whoever refused an execution does not get it back under what was read anew out of it elsewhere.
#[test]
fn what_was_read_anew_elsewhere_is_refused_too() {
    let root = quick();
    let elsewhere = Store::open(root.path().join("a")).unwrap();
    let all = chain(&elsewhere);
    let (first, whole) = (root.path().join("first"), root.path().join("whole"));
    elsewhere.export(&all[..1], &first, "", "0").unwrap();
    elsewhere.export(&all, &whole, "", "0").unwrap();
    let here = Store::open(root.path().join("b")).unwrap();
    here.import_bundle(&first).unwrap();
    assert_eq!(here.quarantine(&all[0], "no").unwrap(), [all[0]]);
    let mut refused = here.import_bundle(&whole).unwrap().refused;
    refused.sort_unstable();
    let mut expected = all[..3].to_vec();
    expected.sort_unstable();
    assert_eq!(refused, expected);
    assert_eq!(
        here.bulk().unwrap().current("//t:c").unwrap().record,
        all[3]
    );
}

/// After a crash the label has the record that it had, or none of the execution; asking again does
/// the rest, for taking back too.
#[test]
fn half_a_refusal_is_completed_by_the_same_command() {
    for undo in [false, true] {
        let mut struck = 0;
        let before_step = |point: &&Point| point.as_str().starts_with("before");
        for point in Point::ALL.iter().filter(before_step) {
            for count in 1.. {
                let dir = quick();
                let root = dir.path();
                let store = Store::open(root).unwrap();
                let all = chain(&store);
                let (chain, other) = (&all[..3], all[3]);
                if undo {
                    store.quarantine(&chain[1], "no").unwrap();
                }
                let work = |store: &Store| match undo {
                    false => store.quarantine(&chain[1], "no"),
                    true => store.restore(&chain[1]),
                };
                let fault = format!("{point}:{count}:error");
                if fault::here::with(&fault, || work(&store)).is_ok() {
                    break;
                }
                struck += 1;
                drop(store);
                let store = Store::open(root).unwrap();
                let lock = WriterLock::acquire(root, "next").unwrap();
                store.recover(&lock).unwrap();
                let current = || store.bulk().unwrap().current("//t:c").unwrap().record;
                if !undo {
                    assert!([chain[2], other].contains(&current()), "{fault}");
                }
                match work(&store) {
                    Ok(_) | Err(Error::NotFound { .. }) => {}
                    Err(error) => panic!("{fault}: {error}"),
                }
                let expected = if undo { chain[2] } else { other };
                assert_eq!(current(), expected, "{fault}");
                let refused = all_refused(store.layout()).unwrap();
                assert_eq!(refused.len(), if undo { 0 } else { 3 }, "{fault}");
                let damage = store.verify(&VerifyOptions::ALL).unwrap().damage;
                assert_eq!(damage, [], "{fault}");
            }
        }
        assert!(struck > 5, "{struck}");
    }
}

/// What was damaged is put aside alone, and the others of its execution stay.
#[test]
fn damage_is_of_one_record() {
    let root = quick();
    let store = Store::open(root.path()).unwrap();
    let [one, middle, last, _] = chain(&store);
    flip(&store.layout().record(&middle));
    assert!(store.record(&middle).is_err());
    assert!(store.record(&one).is_ok() && store.record(&last).is_ok());
    assert!(!store.is_refused(&middle).unwrap());
}

#[test]
fn a_refusal_outlives_damage_to_its_file_or_its_note() {
    let empty: fn(&Path) = |path| {
        fs::remove_file(path).unwrap();
        fs::write(path, "").unwrap();
    };
    for (what, harm) in [("flipped", flip as fn(&Path)), ("emptied", empty)] {
        for of_note in [false, true] {
            let root = quick();
            let store = Store::open(root.path()).unwrap();
            let record = put(&store, "//t:p", 1);
            let bundle = root.path().join("bundle");
            store.export(&[record], &bundle, "", "0").unwrap();
            store.quarantine(&record, "no").unwrap();
            let file = store.layout().quarantine().join(name_of(&record));
            let harmed = if of_note {
                note_of(&file)
            } else {
                file.clone()
            };
            harm(&harmed);
            assert!(store.is_refused(&record).unwrap(), "{what}");
            assert_eq!(store.import_bundle(&bundle).unwrap().refused, [record]);
            let damage = store.verify(&VerifyOptions::ALL).unwrap().damage;
            assert_eq!(damage.len(), 1, "{what}: {damage:?}");
            assert_eq!(damage[0].kind, "file");
            assert_eq!(damage[0].name, harmed.display().to_string());
            let back = store.restore(&record);
            if of_note {
                assert_eq!(back.unwrap(), [record]);
                continue;
            }
            assert!(matches!(back, Err(Error::Corrupt { .. })), "{what}");
            // One that came back under an earlier program goes to quarantine again, whole.
            let aside = root.path().join("aside");
            fs::rename(&file, &aside).unwrap();
            store.import_bundle(&bundle).unwrap();
            fs::rename(&aside, &file).unwrap();
            drop(store);
            let (store, _) = Store::rebuild(root.path()).unwrap();
            assert!(store.record(&record).is_err(), "{what}");
            assert_eq!(store.restore(&record).unwrap(), [record]);
            assert!(store.record(&record).is_ok() && !store.is_refused(&record).unwrap());
            assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
        }
    }
}
