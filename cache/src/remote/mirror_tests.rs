//! The protocol over a store in memory that obeys every whim: what is served, what is refused, in
//! what order things are sent, and what is left when something fails half-way.

use super::super::testing::Memory;
use super::*;
use crate::record::tests::sample;
use crate::store::tests::{flip, put, put_with, stage};
use proptest::prelude::*;
use std::sync::Arc;

struct Lab {
    _root: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        Self { _root: root, store }
    }
}

fn mirror(memory: &Memory) -> Mirror {
    Mirror::over(
        Box::new(memory.clone()),
        "s3://test".into(),
        RemoteMode::ReadWrite,
    )
}

/// A mirror with the records of these seeds, and their digests.
fn filled(memory: &Memory, seeds: std::ops::Range<u32>) -> Vec<Digest> {
    let lab = Lab::new();
    let mirror = mirror(memory);
    seeds
        .map(|seed| {
            let digest = put(&lab.store, &format!("//t:p{seed}"), seed);
            assert_eq!(mirror.send(&lab.store, &digest), Ok(true));
            digest
        })
        .collect()
}

fn refusals(lookup: &Lookup) -> Vec<String> {
    lookup.refused.iter().map(|(_, why)| why.clone()).collect()
}

#[test]
fn what_was_sent_is_found_by_either_key_and_read_when_needed() {
    let memory = Memory::default();
    let [digest] = filled(&memory, 1..2)[..] else {
        unreachable!("one")
    };
    let record = sample("//t:p1", 1);
    for key in [record.spec_key, record.action_key] {
        let lab = Lab::new();
        let mirror = Arc::new(mirror(&memory));
        let lookup = mirror.lookup(&lab.store, &[key, Digest::of(b"another")]);
        assert_eq!((lookup.asked, lookup.refused.len()), (2, 0));
        assert_eq!(lookup.trouble, None);
        lab.store.import(&lookup.found, mirror.place()).unwrap();
        assert_eq!(
            lab.store.by_spec(&record.spec_key).unwrap().unwrap().record,
            digest
        );
        assert_eq!(lab.store.record(&digest).unwrap(), record);
        assert!(lab.store.is_imported(&digest));
        assert_eq!(lab.store.count_imported().unwrap(), 1);

        // Its blobs stayed there until somebody reads them.
        let output = record.outputs["result"].digest;
        assert_eq!(lab.store.cas().size(&output), None);
        let error = lab.store.blob(&output).unwrap_err();
        assert!(matches!(error, Error::Mirror { .. }), "{error}");
        lab.store.attach(mirror.clone());
        assert_eq!(lab.store.blob(&output).unwrap(), b"output 1");

        // A second question moves nothing.
        let before = mirror.traffic().received_bytes;
        let again = mirror.lookup(&lab.store, &[key]);
        assert!(again.found.is_empty() && again.refused.is_empty());
        assert_eq!(mirror.traffic().received_bytes, before);

        // The index made again from the files knows it as well.
        drop(lab.store);
        let (store, report) = Store::rebuild(lab._root.path()).unwrap();
        assert!(report.incomplete.is_empty(), "{report:?}");
        assert!(store.has_usable(&digest).unwrap());
    }
}

/// How long an output or a log may be is what its record says, not what a record may be.
#[test]
fn a_blob_longer_than_any_record_can_be_shown() {
    let long = vec![b'x'; MOST_RECORD_BYTES as usize + 1];
    let memory = Memory::default();
    let from = Lab::new();
    let staged = from.store.cas().stage_bytes(&long).unwrap();
    let digest = put_with(&from.store, "//t:long", 1, |record| {
        let output = record.outputs.get_mut("result").unwrap();
        (output.digest, output.size_bytes) = (staged.digest, staged.size_bytes);
        let log = &mut record.logs[0];
        (log.digest, log.size_bytes) = (staged.digest, staged.size_bytes);
        record.seal();
    });
    let sent = mirror(&memory);
    assert_eq!(sent.send(&from.store, &digest), Ok(true));

    let to = Lab::new();
    let mirror = Arc::new(mirror(&memory));
    let lookup = mirror.lookup(&to.store, &[from.store.record(&digest).unwrap().spec_key]);
    to.store.import(&lookup.found, mirror.place()).unwrap();
    to.store.attach(mirror.clone());
    assert!(to.store.blob(&staged.digest).unwrap() == long);
    // One that is longer than its record says is not even fetched.
    let before = mirror.traffic().received_bytes;
    memory.set(&names::object(&staged.digest), &[&long[..], b"y"].concat());
    let error = to.store.blob(&staged.digest).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    assert_eq!(mirror.traffic().received_bytes, before);
    // What no record names was never put there for us.
    memory.set(&names::object(&Digest::of(b"theirs")), b"theirs");
    let error = to.store.blob(&Digest::of(b"theirs")).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

/// What a person refused here does not come back because somebody else believes it.
#[test]
fn what_was_refused_here_is_not_fetched_again() {
    let memory = Memory::default();
    let [digest] = filled(&memory, 1..2)[..] else {
        unreachable!("one")
    };
    let lab = Lab::new();
    let mirror = mirror(&memory);
    let key = sample("//t:p1", 1).spec_key;
    let found = mirror.lookup(&lab.store, &[key]).found;
    lab.store.import(&found, mirror.place()).unwrap();
    lab.store.quarantine(&digest, "the fan was off").unwrap();
    assert!(mirror.lookup(&lab.store, &[key]).found.is_empty());
    assert!(mirror.lookup_all(&lab.store).found.is_empty());
    // Not even when it was looked up before.
    assert_eq!(lab.store.import(&found, mirror.place()).unwrap(), []);
    assert_eq!(lab.store.by_spec(&key).unwrap(), None);
    lab.store.restore(&digest).unwrap();
    assert!(lab.store.by_spec(&key).unwrap().is_some());
    // A copy that was damaged here is another matter: a good one heals it.
    flip(&lab.store.layout().record(&digest));
    assert!(lab.store.record(&digest).is_err());
    assert_eq!(mirror.lookup(&lab.store, &[key]).found.len(), 1);
}

/// A disk that refuses between the files and the index leaves a mark for the next writer.
#[test]
fn an_import_that_fails_half_way_is_taken_in_by_the_next_writer() {
    let memory = Memory::default();
    filled(&memory, 1..2);
    let mirror = mirror(&memory);
    let key = sample("//t:p1", 1).spec_key;
    for point in [
        "before-dir-sync:2:error",
        "after-dir-sync:2:error",
        "before-commit:1:error",
    ] {
        let lab = Lab::new();
        let found = mirror.lookup(&lab.store, &[key]).found;
        let import = || lab.store.import(&found, mirror.place());
        crate::fault::here::with(point, import).unwrap_err();
        assert_eq!(lab.store.by_spec(&key).unwrap(), None);
        let lock = crate::WriterLock::acquire(lab._root.path(), "next").unwrap();
        assert_eq!(lab.store.recover(&lock).unwrap().records, 1, "{point}");
        assert!(lab.store.by_spec(&key).unwrap().is_some());
    }
}

#[test]
fn blobs_are_fetched_verified_and_kept() {
    let memory = Memory::default();
    filled(&memory, 1..2);
    let record = sample("//t:p1", 1);
    let blobs = blobs_of(&record);
    assert_eq!(blobs.len(), 2);
    let lab = Lab::new();
    assert_eq!(mirror(&memory).fetch(&lab.store, &blobs), []);
    for blob in &blobs {
        assert_eq!(lab.store.cas().size(&blob.digest), Some(blob.size_bytes));
    }
    let lab = Lab::new();
    let name = names::object(&blobs[0].digest);
    let content = memory.content(&name).unwrap();
    memory.set(&name, &vec![b'x'; content.len()]);
    let mirror = mirror(&memory);
    let faults = mirror.fetch(&lab.store, &blobs);
    assert!(matches!(faults[..], [(blob, Fault::Damaged(_))] if blob == blobs[0]));
    assert_eq!(lab.store.cas().size(&blobs[0].digest), None);
    assert!(lab.store.cas().contains(&blobs[1].digest), "the others are");
}

/// Every way to poison the mirror that does not break BLAKE3: nothing of it is served, the reason
/// is told, and an honest record beside it is.
#[test]
fn poison_is_refused() {
    let good = sample("//t:p1", 1);
    let other = sample("//t:p2", 2);
    type Poison = fn(&Memory, &Record, &Record, &Digest);
    let cases: [(&str, Poison); 8] = [
        ("another key", |memory, good, other, _| {
            // An entry that leads to the record of another key.
            let id = other.id().unwrap();
            memory.set(&names::entry(&good.action_key, &id), b"");
            memory.remove(&names::entry(&good.spec_key, &good.id().unwrap()));
            memory.remove(&names::entry(&good.action_key, &good.id().unwrap()));
        }),
        ("not there", |memory, _, _, id| {
            memory.remove(&names::object(id));
        }),
        ("has a content", |memory, _, _, id| {
            let name = names::object(id);
            let mut bytes = memory.content(&name).unwrap();
            let at = bytes.iter().position(|b| *b == b'1').unwrap();
            bytes[at] = b'2';
            memory.set(&name, &bytes);
        }),
        ("has a content", |memory, _, _, id| {
            let name = names::object(id);
            let bytes = memory.content(&name).unwrap();
            memory.set(&name, &bytes[..bytes.len() / 2]);
        }),
        ("which is not there", |memory, good, _, _| {
            memory.remove(&names::object(&good.outputs["result"].digest));
        }),
        ("which is not there", |memory, good, _, _| {
            memory.remove(&names::object(&good.logs[0].digest));
        }),
        ("which is not there", |memory, good, _, _| {
            memory.set(&names::object(&good.outputs["result"].digest), b"short");
        }),
        ("cannot be read", |memory, good, _, _| {
            let rubbish = b"no record at all";
            memory.set(&names::object(&Digest::of(rubbish)), rubbish);
            memory.set(&names::entry(&good.action_key, &Digest::of(rubbish)), b"");
            memory.remove(&names::entry(&good.spec_key, &good.id().unwrap()));
            memory.remove(&names::entry(&good.action_key, &good.id().unwrap()));
        }),
    ];
    for (why, poison) in cases {
        let memory = Memory::default();
        let ids = filled(&memory, 1..4);
        poison(&memory, &good, &other, &ids[0]);
        let honest = sample("//t:p3", 3);
        let lab = Lab::new();
        let lookup = mirror(&memory).lookup(&lab.store, &[good.action_key, honest.action_key]);
        let found: Vec<Digest> = lookup.found.iter().map(|f| f.digest).collect();
        assert_eq!(found, [ids[2]], "{why}");
        assert!(refusals(&lookup)[0].contains(why), "{why}: {lookup:?}");
        assert_eq!(lookup.trouble, None);
    }
}

/// A record that is true to its name and yet says something it may not.
#[test]
fn consistent_lies_are_refused() {
    type Lie = fn(&mut Record);
    let lies: [(&str, Lie); 6] = [
        ("does not follow", |r| r.spec_key = Digest::of(b"x")),
        ("does not follow", |r| r.action_key = Digest::of(b"x")),
        ("does not follow", |r| r.output_digest = Digest::of(b"x")),
        ("beyond the year 9999", |r| {
            r.recorded_unix_ms = 400_000_000_000_000
        }),
        ("a day ahead", |r| {
            r.recorded_unix_ms = crate::store::now_unix_ms() + 90_000_000
        }),
        ("may not be reused", |r| r.reusable = false),
    ];
    for (why, lie) in lies {
        let memory = Memory::default();
        filled(&memory, 1..2);
        let honest = sample("//t:p1", 1);
        let mut record = honest.clone();
        lie(&mut record);
        let bytes = serde_json::to_vec(&record).unwrap();
        let id = Digest::of(&bytes);
        memory.set(&names::object(&id), &bytes);
        memory.set(&names::entry(&honest.spec_key, &id), b"");
        memory.set(&names::entry(&honest.action_key, &id), b"");
        let lab = Lab::new();
        let keys = [honest.spec_key, honest.action_key];
        let lookup = mirror(&memory).lookup(&lab.store, &keys);
        assert_eq!(lookup.found.len(), 1, "the honest one is served");
        assert!(refusals(&lookup)[0].contains(why), "{lookup:?}");
    }
}

#[test]
fn entries_come_last_and_nothing_twice() {
    for careless in [false, true] {
        let memory = Memory::default();
        if careless {
            memory.careless();
        }
        let [digest] = filled(&memory, 1..2)[..] else {
            unreachable!("one")
        };
        let puts = memory.puts();
        assert_eq!(puts.len(), 2 + 1 + 2);
        assert_eq!(puts[2], names::object(&digest), "{puts:?}");
        assert!(puts[..3].iter().all(|name| name.starts_with("cas/")));
        assert!(puts[3..].iter().all(|name| name.starts_with("ac/")));

        // Another checkout sends the same: the mirror holds the same as before.
        let (names, lab) = (memory.names(), Lab::new());
        let again = put(&lab.store, "//t:p1", 1);
        assert_eq!(again, digest);
        assert_eq!(mirror(&memory).send(&lab.store, &again), Ok(true));
        assert_eq!(memory.names(), names);
        if !careless {
            assert_eq!(memory.puts(), puts, "and took nothing anew");
        }
    }
}

#[test]
fn what_is_wrong_there_is_replaced_by_the_next_who_has_it() {
    let memory = Memory::default();
    let [digest] = filled(&memory, 1..2)[..] else {
        unreachable!("one")
    };
    let record = sample("//t:p1", 1);
    let name = names::object(&record.outputs["result"].digest);
    memory.set(&name, b"cut");
    let lab = Lab::new();
    assert_eq!(put(&lab.store, "//t:p1", 1), digest);
    assert_eq!(mirror(&memory).send(&lab.store, &digest), Ok(true));
    assert_eq!(memory.content(&name).unwrap(), b"output 1");

    // Of the right length and wrong all the same: noticed by who reads it.
    memory.set(&name, b"OUTPUT 1");
    let far = mirror(&memory);
    let blob = blobs_of(&record)
        .into_iter()
        .find(|b| names::object(&b.digest) == name);
    let reader = Lab::new();
    assert_eq!(far.fetch(&reader.store, &[blob.unwrap()]).len(), 1);
    assert_eq!(far.send(&lab.store, &digest), Ok(true));
    assert_eq!(memory.content(&name).unwrap(), b"output 1");
}

#[test]
fn damage_here_and_what_may_not_be_reused_stay_here() {
    let (memory, lab) = (Memory::default(), Lab::new());
    let failed = put_with(&lab.store, "//t:p1", 1, |record| record.reusable = false);
    assert_eq!(mirror(&memory).send(&lab.store, &failed), Ok(false));
    let digest = put(&lab.store, "//t:p2", 2);
    let output = sample("x", 2).outputs["result"].digest;
    flip(&lab.store.layout().blob(&output));
    let store = Store::open(lab._root.path()).unwrap();
    let fault = mirror(&memory).send(&store, &digest).unwrap_err();
    assert!(matches!(fault, Fault::Local(_)), "{fault}");
    assert!(memory.names().iter().all(|name| !name.starts_with("ac/")));
}

#[test]
fn an_outage_is_trouble_and_not_poison() {
    let memory = Memory::default();
    filled(&memory, 1..2);
    let record = sample("//t:p1", 1);
    // The listing, the record, each of the blobs: any of them may be the first to fail.
    for good in 0..=4 {
        let lab = Lab::new();
        memory.fail_always(Some(Fault::Down("gone".into())));
        memory.pass_next(good);
        let before = memory.requests();
        let lookup = mirror(&memory).lookup(&lab.store, &[record.spec_key]);
        assert!(lookup.refused.is_empty());
        if good == 4 {
            assert_eq!((lookup.found.len(), lookup.trouble), (1, None));
            assert_eq!(memory.requests() - before, 4);
        } else {
            assert!(lookup.found.is_empty());
            assert!(lookup.trouble.is_some_and(|fault| fault.is_outage()));
        }
    }
}

#[test]
fn push_and_pull_move_what_is_missing() {
    let (memory, here, there) = (Memory::default(), Lab::new(), Lab::new());
    for seed in 0..30 {
        put(&here.store, &format!("//t:p{seed}"), seed);
    }
    put_with(&here.store, "//t:bad", 99, |record| record.reusable = false);
    let pushed = mirror(&memory).push(&here.store).unwrap();
    assert_eq!((pushed.records, pushed.moved), (30, 30));
    assert!(pushed.failed.is_empty() && pushed.outage.is_none());
    let pulled = mirror(&memory).pull(&there.store, true).unwrap();
    assert_eq!((pulled.records, pulled.moved), (30, 30));
    assert_eq!(there.store.stats().unwrap().blobs, 60);
    let pulled = mirror(&memory).pull(&there.store, true).unwrap();
    assert_eq!((pulled.moved, pulled.failed.len()), (0, 0));

    memory.fail_always(Some(Fault::Down("gone".into())));
    let before = memory.requests();
    let pushed = mirror(&memory).push(&here.store).unwrap();
    assert_eq!(pushed.failed.len(), 30);
    assert!(matches!(pushed.outage, Some(Fault::Down(_))), "{pushed:?}");
    assert!(memory.requests() - before <= 16 + 3);
}

#[test]
fn uploads_are_finished_counted_and_given_up() {
    let (memory, lab) = (Memory::default(), Lab::new());
    let records: Vec<Digest> = (0..20)
        .map(|seed| put(&lab.store, &format!("//t:p{seed}"), seed))
        .collect();
    let store = Arc::new(Store::open(lab._root.path()).unwrap());
    let uploads = super::super::Uploader::start(&Arc::new(mirror(&memory)), &store);
    records.iter().for_each(|record| uploads.offer(*record));
    let done = uploads.finish();
    assert_eq!((done.sent, done.left, done.fault), (20, 0, None));
    uploads.offer(records[0]);
    assert_eq!(uploads.finish().left, 1, "too late");

    memory.fail_always(Some(Fault::Refused("403 AccessDenied".into())));
    let before = memory.requests();
    let uploads = super::super::Uploader::start(&Arc::new(mirror(&memory)), &store);
    records.iter().for_each(|record| uploads.offer(*record));
    let done = uploads.finish();
    assert_eq!((done.sent, done.left), (0, 20));
    assert!(matches!(done.fault, Some(Fault::Refused(_))));
    assert!(memory.requests() - before < 20, "it said no");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever stands in the mirror and whatever is asked for: a look-up finds exactly the
    /// entries of the keys, as a look at all names does, and with no more requests than keys.
    #[test]
    fn the_walk_finds_every_entry(
        there in prop::collection::btree_map(any::<[u8; 2]>(), 1..4_u8, 0..3000),
        asked in prop::collection::btree_set(any::<[u8; 2]>(), 1..200),
        some in prop::collection::vec(any::<prop::sample::Index>(), 0..50),
    ) {
        let key = |seed: &[u8; 2]| {
            let mut bytes = [7; 32];
            bytes[..2].copy_from_slice(seed);
            Digest::from_bytes(bytes)
        };
        let memory = Memory::default();
        for (seed, count) in &there {
            for number in 0..*count {
                memory.set(&names::entry(&key(seed), &Digest::of([number])), b"");
            }
        }
        let mut keys: BTreeSet<Digest> = asked.iter().map(key).collect();
        let present: Vec<Digest> = there.keys().map(key).collect();
        if !present.is_empty() {
            keys.extend(some.iter().map(|index| present[index.index(present.len())]));
        }
        let keys: Vec<Digest> = keys.into_iter().collect();
        let mut found = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(3600);
        mirror(&memory).entries_of(&keys, deadline, &mut found).unwrap();
        found.sort();
        found.dedup();
        let mut expected: Vec<(Digest, Digest)> = memory
            .names()
            .iter()
            .filter_map(|name| names::parse_entry(name))
            .filter(|(key, _)| keys.binary_search(key).is_ok())
            .collect();
        expected.sort();
        prop_assert_eq!(found, expected);
        prop_assert!(memory.requests() <= keys.len() as u64 + 1);
    }
}

#[test]
fn what_is_not_committed_is_not_sent() {
    let (memory, lab) = (Memory::default(), Lab::new());
    stage(&lab.store, 1);
    let unknown = sample("//t:p1", 1).id().unwrap();
    assert!(matches!(
        mirror(&memory).send(&lab.store, &unknown),
        Err(Fault::Local(_))
    ));
    assert!(memory.names().is_empty());
}
