//! What one store exports is a hit in another; what is not exactly a bundle is refused whole.

use super::*;
use crate::named::tests::{fifo, is_fifo};
use crate::record::tests::sample;
use crate::store::tests::{put, query};
use crate::verify::VerifyOptions;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use std::fs;

type Entries = Vec<(String, Vec<u8>)>;

struct World {
    root: tempfile::TempDir,
    from: Store,
    bundle: std::path::PathBuf,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    let from = Store::open(root.path().join("from")).unwrap();
    let ids = [1, 2].map(|seed| put(&from, &format!("//t:p{seed}"), seed));
    put(&from, "//t:private", 3);
    from.link_spec(sample("", 9).spec_key, ids[1], "//t:other")
        .unwrap();
    let bundle = root.path().join("x.tar.gz");
    let exported = from.export(&ids, &bundle, "for a friend", "0.1").unwrap();
    assert_eq!(
        (exported.records, exported.blobs, exported.left_out.len()),
        (2, 4, 0)
    );
    World { root, from, bundle }
}

impl World {
    fn fresh(&self) -> Store {
        let count = fs::read_dir(self.root.path()).unwrap().count();
        Store::open(self.root.path().join(format!("to{count}"))).unwrap()
    }

    /// The bundle's entries, to be made into another one.
    fn entries(&self) -> Entries {
        let file = BufReader::new(File::open(&self.bundle).unwrap());
        let mut tar = tar::Archive::new(GzDecoder::new(file));
        let entries = tar.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (name, bytes)
        });
        entries.collect()
    }

    fn refused(&self, name: &str, bytes: &[u8], why: &str) {
        let path = self.root.path().join("bad.tar.gz");
        fs::write(&path, bytes).unwrap();
        let to = self.fresh();
        let error = to.import_bundle(&path).unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
        // It is not the store that is to be looked at.
        let hint = error.hint().unwrap_or_default();
        assert!(!hint.contains("doe cache verify"), "{name}: {hint}");
        assert_eq!(
            to.stats().unwrap(),
            Default::default(),
            "{name}: something was stored"
        );
        assert!(!self.root.path().join("evil").exists());
    }
}

fn pack(entries: &[(String, Vec<u8>)], kind: impl Fn(&str) -> tar::EntryType) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(kind(name));
        // `set_path` would refuse what we want to try.
        let field = &mut header.as_mut_bytes()[..100];
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn plain(_: &str) -> tar::EntryType {
    tar::EntryType::Regular
}

#[test]
fn only_a_file_is_replaced_by_a_bundle() {
    let world = world();
    let whole = fs::read(&world.bundle).unwrap();
    let records = world.fresh().import_bundle(&world.bundle).unwrap().import;
    let export = |to: &Path| {
        let exported = world.from.export(&records.records, to, "", "0.1");
        exported.unwrap().bundle_bytes
    };
    let pipe = world.root.path().join("pipe");
    let read = fifo(&pipe);
    let bytes = export(&pipe);
    let through = read.join().unwrap();
    assert_eq!(through.len() as u64, bytes);
    assert!(is_fifo(&pipe));
    let copy = world.root.path().join("copy.tar.gz");
    fs::write(&copy, &through).unwrap();
    let link = world.root.path().join("latest");
    std::os::unix::fs::symlink("copy.tar.gz", &link).unwrap();
    let imported = world.fresh().import_bundle(&link).unwrap();
    assert_eq!((imported.import.records.len(), imported.blobs), (2, 4));
    export(&link);
    assert!(link.is_symlink());
    assert_eq!(fs::read(&world.bundle).unwrap(), whole);
    world.fresh().import_bundle(&copy).unwrap();
    let left = fs::read_dir(world.from.layout().tmp()).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn what_is_exported_is_a_hit_elsewhere() {
    let world = world();
    let to = world.fresh();
    let generation = to.generation().unwrap();
    let imported = to.import_bundle(&world.bundle).unwrap();
    assert_eq!(
        (
            imported.import.records.len(),
            imported.known,
            imported.blobs
        ),
        (2, 0, 4)
    );
    assert_ne!(to.generation().unwrap(), generation);
    for seed in [1, 2, 9] {
        let key = sample("", seed).spec_key;
        let (here, there) = (to.by_spec(&key).unwrap(), world.from.by_spec(&key).unwrap());
        assert_eq!(here, there);
        assert_eq!(
            to.record(&here.unwrap().record),
            world.from.record(&there.unwrap().record)
        );
    }
    assert_eq!(
        to.by_spec(&sample("", 3).spec_key).unwrap(),
        None,
        "it was not exported"
    );
    assert_eq!(
        to.bulk()
            .unwrap()
            .current("//t:other")
            .unwrap()
            .label
            .as_ref(),
        "//t:p2"
    );
    let import = &to.imports().unwrap()[0];
    assert_eq!(
        (import.origin.comment.as_str(), &import.records),
        ("for a friend", &imported.import.records)
    );
    assert_eq!(to.verify(&VerifyOptions::ALL).unwrap().damage, []);
    // A second time brings nothing, and is no second import.
    let again = to.import_bundle(&world.bundle).unwrap();
    assert_eq!(
        (again.import.records.len(), again.known, again.blobs),
        (0, 2, 0)
    );
    assert_eq!(to.imports().unwrap().len(), 1);
    let before = query(&to, "SELECT * FROM results ORDER BY label");
    let root = to.layout().root().to_owned();
    drop(to);
    fs::remove_file(root.join("index.sqlite")).unwrap();
    let (to, _) = Store::rebuild(&root).unwrap();
    assert_eq!(query(&to, "SELECT * FROM results ORDER BY label"), before);
}

#[test]
fn what_was_refused_here_stays_out() {
    let world = world();
    let to = world.fresh();
    let imported = to.import_bundle(&world.bundle).unwrap();
    let refused = imported.import.records[0];
    to.quarantine(&refused, "no").unwrap();
    let again = to.import_bundle(&world.bundle).unwrap();
    assert_eq!((again.refused, again.known), (vec![refused], 1));
    assert!(to.record(&refused).is_err());
}

#[test]
fn hostile_bundles_are_refused_whole() {
    let world = world();
    let good = world.entries();
    let header: serde_json::Value = serde_json::from_slice(&good[0].1).unwrap();
    let with_header = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut header = header.clone();
        change(&mut header);
        let mut entries = good.clone();
        entries[0].1 = serde_json::to_vec(&header).unwrap();
        pack(&entries, plain)
    };
    let with = |change: &dyn Fn(&mut Entries)| {
        let mut entries = good.clone();
        change(&mut entries);
        pack(&entries, plain)
    };
    let list = [
        ("not a bundle", b"hello".to_vec(), "cut short"),
        ("empty", pack(&[], plain), "empty"),
        ("no header", with(&|e| drop(e.remove(0))), "first entry"),
        (
            "traversal",
            with(&|e| e[1].0 = "../../evil".into()),
            "does not list",
        ),
        (
            "absolute",
            with(&|e| e[1].0 = "/tmp/evil".into()),
            "does not list",
        ),
        (
            "inner dots",
            with(&|e| e[1].0 = format!("records/../{}", e[1].0)),
            "does not list",
        ),
        (
            "extra",
            with(&|e| e.push(("cas/evil".into(), vec![1]))),
            "does not list",
        ),
        ("twice", with(&|e| e.push(e[1].clone())), "does not list"),
        (
            "wrong content",
            with(&|e| e.last_mut().unwrap().1[0] ^= 1),
            "has the digest",
        ),
        ("wrong record", with(&|e| e[1].1[9] ^= 1), "has the digest"),
        ("longer", with(&|e| e[1].1.push(b' ')), "another length"),
        ("missing", with(&|e| drop(e.pop())), "is missing"),
        (
            "a link",
            pack(&good, |name| match name.starts_with("cas/") {
                true => tar::EntryType::Symlink,
                false => tar::EntryType::Regular,
            }),
            "not a plain file",
        ),
        (
            "blob not listed",
            { with_header(&|h| drop(h["blobs"].as_array_mut().unwrap().pop())) },
            "does not list",
        ),
        (
            "listed twice",
            {
                with_header(&|h| {
                    let blobs = h["blobs"].as_array_mut().unwrap();
                    blobs.push(blobs[0].clone());
                })
            },
            "twice",
        ),
        (
            "newer",
            with_header(&|h| h["schema"] = 99.into()),
            "schema version 99",
        ),
        (
            "trailing",
            {
                let mut bytes = pack(&good, plain);
                bytes.extend(b"more");
                bytes
            },
            "follows its end",
        ),
    ];
    for (name, bytes, why) in list {
        world.refused(name, &bytes, why);
    }
}

/// A record that says it is the answer to a key which its manifest does not make.
#[test]
fn a_record_that_lies_about_its_key_is_refused() {
    let world = world();
    let lie = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut entries = world.entries();
        let mut record: serde_json::Value = serde_json::from_slice(&entries[1].1).unwrap();
        change(&mut record);
        let bytes = crate::canonical_json(&record).unwrap();
        let mut header: serde_json::Value = serde_json::from_slice(&entries[0].1).unwrap();
        let digest = Digest::of(&bytes).hex();
        header["records"][0] = serde_json::json!({"digest": digest, "size_bytes": bytes.len()});
        header["links"] = serde_json::json!([]);
        entries.retain(|(name, _)| !name.starts_with("links/"));
        entries[0].1 = serde_json::to_vec(&header).unwrap();
        entries[1] = (format!("records/{digest}.json"), bytes);
        pack(&entries, plain)
    };
    let key = lie(&|record| record["spec_key"] = sample("", 7).spec_key.hex().into());
    world.refused("lie", &key, "does not follow");
    // A time like these would stand above everything that is still to come.
    let time = lie(&|record| record["recorded_unix_ms"] = 400_000_000_000_000_u64.into());
    world.refused("far", &time, "beyond the year 9999");
    let soon = now_unix_ms() + 90_000_000;
    let time = lie(&|record| record["timings"]["ended_unix_ms"] = soon.into());
    world.refused("ahead", &time, "a day ahead");
}

/// What a file of one compressed stream and nothing else says; `None` when it is none.
fn content(mut file: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(&mut file).read_to_end(&mut bytes).ok()?;
    file.is_empty().then_some(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Cut anywhere or with any bits of a byte turned over, a bundle brings everything or nothing,
    /// and never anything else. Everything, only when it still says the same: a few bits say
    /// nothing (the time in the header of the compression, the codes of what it does not use).
    #[test]
    fn a_damaged_bundle_brings_nothing_wrong(
        place in any::<prop::sample::Index>(), mask in 1..=255_u8, cut in any::<bool>(),
    ) {
        let world = world();
        let mut bytes = fs::read(&world.bundle).unwrap();
        let at = place.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= mask }
        let same = content(&bytes).is_some_and(|it| Some(it) == content(&fs::read(&world.bundle).unwrap()));
        prop_assert!(!(cut && same));
        let path = world.root.path().join("bad.tar.gz");
        fs::write(&path, bytes).unwrap();
        let to = world.fresh();
        match to.import_bundle(&path) {
            Ok(imported) => prop_assert!(same && imported.import.records.len() == 2, "byte {at}"),
            Err(error) => {
                prop_assert!(!same, "byte {at}: {error}");
                prop_assert_eq!(to.stats().unwrap(), Default::default());
            }
        }
        prop_assert_eq!(to.verify(&VerifyOptions::ALL).unwrap().damage, []);
    }
}
