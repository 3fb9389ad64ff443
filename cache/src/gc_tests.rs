//! A collection takes what nobody wants and nothing else, and what it plans is what it does.

use super::*;
use crate::Class;
use crate::record::tests::sample;
use crate::store::tests::{put_with, query, run_info};
use crate::verify::VerifyOptions;
use proptest::prelude::*;

fn sweep(store: &Store, limits: &GcLimits) -> GcPlan {
    let lock = WriterLock::acquire(store.layout().root(), "gc").unwrap();
    let plan = store.gc_plan(limits, &NONE).unwrap();
    store.gc_sweep(&lock, &plan).unwrap();
    plan
}

const NONE: BTreeSet<String> = BTreeSet::new();

const ALL_OLD: GcLimits = GcLimits {
    before_unix_ms: Some(u64::MAX),
    max_bytes: None,
    keep: BTreeSet::new(),
};

#[test]
fn rubbish_goes_and_everything_else_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let old = put_with(&store, "//t:p", 1, |r| r.recorded_unix_ms = 1);
    let new = put_with(&store, "//t:p", 2, |r| r.recorded_unix_ms = 2);
    let rubbish = store.put_bytes(b"nobody's").unwrap();
    let plan = store.gc_plan(&GcLimits::default(), &NONE).unwrap();
    assert_eq!(plan.blobs, [(rubbish.digest, 8)]);
    assert!(
        store.cas().contains(&rubbish.digest),
        "a plan changes nothing"
    );
    assert_eq!(sweep(&store, &GcLimits::default()), plan);
    assert!(!store.cas().contains(&rubbish.digest));

    // With an age: what stands for a label stays however old it is.
    let plan = sweep(&store, &ALL_OLD);
    let gone: Vec<Digest> = plan.records.iter().map(|doomed| doomed.record).collect();
    assert_eq!((gone, plan.kept_records), (vec![old], 1));
    assert!(matches!(store.record(&old), Err(Error::NotFound { .. })));
    assert_eq!(store.bulk().unwrap().current("//t:p").unwrap().record, new);
    assert!(store.blob(&sample("", 2).outputs["result"].digest).is_ok());
    assert!(
        !store
            .cas()
            .contains(&sample("", 1).outputs["result"].digest)
    );
    assert_eq!(
        sweep(&store, &ALL_OLD).freed_bytes,
        0,
        "a second one finds nothing"
    );
}

#[test]
fn a_pin_keeps_a_record_and_what_it_was_made_from() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let source = put_with(&store, "//t:source", 1, |r| r.recorded_unix_ms = 1);
    let output = sample("", 1).output_digest;
    let made = put_with(&store, "//t:made", 2, |r| {
        r.recorded_unix_ms = 2;
        r.spec_manifest
            .set("need.//t:source.output", output, Class::Result);
        r.seal();
    });
    let other = put_with(&store, "//t:other", 3, |r| r.recorded_unix_ms = 3);
    for (label, seed) in [("//t:source", 11), ("//t:made", 12), ("//t:other", 13)] {
        put_with(&store, label, seed, |r| {
            r.recorded_unix_ms = u64::from(seed)
        });
    }
    store.pin(&made, "figure 3").unwrap();
    let plan = sweep(&store, &ALL_OLD);
    let gone: Vec<Digest> = plan.records.iter().map(|doomed| doomed.record).collect();
    assert_eq!((gone, plan.kept_pinned), (vec![other], 2));
    assert!(store.record(&source).is_ok() && store.record(&made).is_ok());
    assert!(store.unpin(&made).unwrap() && !store.unpin(&made).unwrap());
    assert_eq!(sweep(&store, &ALL_OLD).records.len(), 2);

    // A pin that cannot be read could have been any: nothing is collected.
    store
        .pin(
            &store
                .resolve(&store.list(&Default::default()).unwrap()[0].record.hex())
                .unwrap(),
            "x",
        )
        .unwrap();
    let pin = checked::files(&store.layout().pins(), ".json")
        .unwrap()
        .remove(0);
    let mut bytes = fs::read(&pin).unwrap();
    bytes[30] ^= 1;
    fs::remove_file(&pin).unwrap();
    fs::write(&pin, bytes).unwrap();
    assert!(matches!(
        store.gc_plan(&ALL_OLD, &NONE),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn a_size_takes_the_oldest_first_and_shared_blobs_last() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for (age, seed) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
        put_with(&store, "//t:p", seed, |r| r.recorded_unix_ms = age);
    }
    let all = store.gc_plan(&GcLimits::default(), &NONE).unwrap();
    let limit = |max_bytes| GcLimits {
        max_bytes: Some(max_bytes),
        ..GcLimits::default()
    };
    assert!(
        store
            .gc_plan(&limit(all.kept_bytes), &NONE)
            .unwrap()
            .records
            .is_empty()
    );
    let plan = store.gc_plan(&limit(all.kept_bytes - 1), &NONE).unwrap();
    assert_eq!(
        (
            plan.records.len(),
            plan.records[0].recorded_unix_ms,
            plan.blobs.len()
        ),
        (1, 1, 0)
    );
    let plan = sweep(&store, &limit(0));
    assert_eq!((plan.records.len(), plan.kept_records), (3, 1));
    assert!(plan.kept_bytes > 0, "what stands for the label stays");
    let stats = store.stats().unwrap();
    assert_eq!(stats.record_bytes + stats.blob_bytes, plan.kept_bytes);
}

/// A build that only looks how it would go must not cost what was measured.
#[test]
fn what_stands_on_any_platform_stays_and_what_is_still_wanted() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let mut at = 0;
    let mut made = |label: &str, platform: &str, simulated, usable| {
        at += 1;
        put_with(&store, label, at, |r| {
            r.provenance.platform = platform.to_owned();
            r.provenance.simulated = simulated;
            r.reusable = usable;
            r.recorded_unix_ms = u64::from(at);
        })
    };
    let older = made("//t:p", "lab", false, true);
    let wanted = made("//t:p", "lab", false, true);
    let shared = made("//t:p", "lab", false, true);
    let lab = made("//t:p", "lab", false, true);
    let bad = made("//t:p", "lab", false, false);
    let other = made("//t:p", "other", false, true);
    let simulated = made("//t:p", "lab", true, true);
    let latest = made("//t:p", "sim", true, true);
    let key = sample("", 99).spec_key;
    store.link_spec(key, shared, "//t:shared").unwrap();
    made("//t:shared", "sim", true, true);
    let limits = GcLimits {
        keep: BTreeSet::from([wanted]),
        ..ALL_OLD
    };
    let plan = sweep(&store, &limits);
    let gone: Vec<Digest> = plan.records.iter().map(|doomed| doomed.record).collect();
    assert_eq!(gone, [older, bad]);
    for stays in [wanted, shared, lab, other, simulated, latest] {
        assert!(store.record(&stays).is_ok());
    }
    assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
    let gone = sweep(&store, &ALL_OLD).records;
    assert_eq!((gone.len(), gone[0].record), (1, wanted));
}

/// What a newer version recorded is not known to the index, and keeps what it mentions.
#[test]
fn what_strangers_mention_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let blob = store.put_bytes(b"of a newer record").unwrap();
    let newer = format!(r#"{{"schema":99,"things":["{}"]}}"#, blob.digest);
    let path = store.layout().record(&Digest::of(&newer));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &newer).unwrap();
    let to = |record: Digest| {
        let links = LinkFile::new(vec![crate::Linked {
            spec_key: sample("", 1).spec_key,
            record,
            label: "//t:p".to_owned(),
            linked_unix_ms: 1,
        }]);
        let bytes = links.to_bytes().unwrap();
        let path = store.layout().link(&Digest::of(&bytes));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    let (its, nobodys) = (to(Digest::of(&newer)), to(Digest::of("nothing")));
    let plan = sweep(&store, &ALL_OLD);
    assert!(store.cas().contains(&blob.digest) && path.exists());
    assert!(its.exists() && plan.links == [nobodys]);
}

#[test]
fn old_runs_keep_their_notes() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for run in ["old", "running"] {
        store.begin_run(&run_info(run)).unwrap();
        let work = store.layout().runs().join(run).join("nodes/a");
        fs::create_dir_all(&work).unwrap();
        fs::write(work.join("big"), [0; 1000]).unwrap();
    }
    store.end_run("old", RunStatus::Ok).unwrap();
    // Another run went on with what this one had started, in the folder where it was.
    let in_use = BTreeSet::from(["old".to_owned()]);
    assert_eq!(store.gc_plan(&ALL_OLD, &in_use).unwrap().runs, []);
    let plan = sweep(&store, &ALL_OLD);
    assert_eq!((plan.runs.len(), plan.freed_bytes), (1, 1000));
    assert!(store.layout().notes("old").exists());
    assert!(!store.layout().runs().join("old/nodes").exists());
    assert!(store.layout().runs().join("running/nodes/a/big").exists());
    assert_eq!(query(&store, "SELECT count(*) FROM runs"), ["2"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// After any collection the store is whole, what stands stands, and the index is the one
    /// that the files make.
    #[test]
    fn a_collection_leaves_a_whole_store(
        records in prop::collection::vec((0..3_u8, 0..4_u8, any::<bool>()), 1..10),
        before in 0..12_u64, cap in prop::option::of(0..20_000_u64),
    ) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut pinned = Vec::new();
        for (at, (label, seed, pin)) in records.iter().enumerate() {
            let label = format!("//t:p{label}");
            let id = put_with(&store, &label, u32::from(*seed), |r| r.recorded_unix_ms = at as u64);
            if *pin && at % 3 == 0 {
                store.pin(&id, "").unwrap();
                pinned.push(id);
            }
        }
        let standing = |store: &Store| {
            let snapshot = store.bulk().unwrap();
            (0..3).map(|l| snapshot.current(&format!("//t:p{l}")).map(|s| s.record)).collect::<Vec<_>>()
        };
        let stood = standing(&store);
        let plan = sweep(&store, &GcLimits { before_unix_ms: Some(before), max_bytes: cap, ..GcLimits::default() });
        prop_assert_eq!(standing(&store), stood);
        for id in &pinned {
            prop_assert!(store.record(id).is_ok());
        }
        let stats = store.stats().unwrap();
        prop_assert_eq!(stats.records, plan.kept_records);
        prop_assert_eq!(stats.record_bytes + stats.blob_bytes, plan.kept_bytes);
        let report = store.verify(&VerifyOptions::ALL).unwrap();
        prop_assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
}
