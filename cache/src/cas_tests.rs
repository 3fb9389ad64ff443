//! Blobs: what is put is what is got, and damage never goes unnoticed.

use super::*;
use crate::Store;
use crate::fault;
use crate::record::tests::sample;
use crate::store::tests::stage;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

fn cas(root: &Path) -> Cas {
    Cas::new(Layout::new(root), false)
}

/// Overwrites a published file, read-only or not.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_blob_lies_under_its_digest_once() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let source = root.path().join("source");
    fs::write(&source, vec![3; 400_000]).unwrap();
    let blob = cas.put_file(&source).unwrap();
    assert_eq!(blob.size_bytes, 400_000);
    assert_eq!(blob.digest, Digest::of(vec![3; 400_000]));
    assert_eq!(cas.put_bytes(&[3; 400_000]).unwrap(), blob);
    let hex = blob.digest.hex();
    let path = root.path().join("cas").join(&hex[..2]).join(&hex[2..]);
    assert_eq!(cas.path(&blob.digest).unwrap(), path);
    assert_eq!(
        files_below(&root.path().join("cas")),
        std::slice::from_ref(&path)
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0);
    assert!(files_below(&root.path().join("tmp")).is_empty());
    assert_eq!(cas.get(&blob.digest).unwrap().len(), 400_000);
    assert_eq!(cas.size(&blob.digest), Some(400_000));
}

#[test]
fn staged_blobs_are_readable_here_and_durable_after_a_flush() {
    let root = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (cas(root.path()), cas(root.path()));
    let blobs: Vec<Blob> = (0..20)
        .map(|i| here.stage_bytes(format!("blob {i}").as_bytes()).unwrap())
        .collect();
    for blob in &blobs {
        assert!(here.contains(&blob.digest) && !elsewhere.contains(&blob.digest));
        assert_eq!(Digest::of(here.get(&blob.digest).unwrap()), blob.digest);
    }
    here.flush().unwrap();
    for blob in &blobs {
        assert_eq!(
            Digest::of(elsewhere.get(&blob.digest).unwrap()),
            blob.digest
        );
    }
    assert!(files_below(&root.path().join("tmp")).is_empty());
    // Staged and forgotten: nothing stays behind.
    here.stage_bytes(b"lost").unwrap();
    drop(here);
    assert!(!elsewhere.contains(&Digest::of(b"lost")));
    assert!(files_below(&root.path().join("tmp")).is_empty());
}

#[test]
fn a_damaged_blob_is_moved_away_and_can_be_put_again() {
    let root = tempfile::tempdir().unwrap();
    let blob = cas(root.path()).put_bytes(b"precious").unwrap();
    let path = Layout::new(root.path()).blob(&blob.digest);
    damage(&path, |bytes| bytes[3] ^= 1);

    // A reader reports it and leaves it where it is.
    let reader = Cas::new(Layout::new(root.path()), true);
    let error = reader.get(&blob.digest).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Corrupt {
                quarantined: None,
                ..
            }
        ),
        "{error}"
    );
    assert!(path.exists());

    let cas = cas(root.path());
    let error = cas.open(&blob.digest).unwrap_err();
    let Error::Corrupt {
        quarantined: Some(moved),
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        moved,
        &root.path().join("quarantine").join(blob.digest.hex())
    );
    assert!(moved.exists() && !path.exists());
    assert!(error.hint().unwrap().contains("quarantine"));
    assert!(matches!(cas.get(&blob.digest), Err(Error::NotFound { .. })));
    cas.put_bytes(b"precious").unwrap();
    assert_eq!(cas.get(&blob.digest).unwrap(), b"precious");
}

#[test]
fn a_blob_cut_short_is_replaced_by_the_next_put() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let blob = cas.put_bytes(b"precious").unwrap();
    damage(&Layout::new(root.path()).blob(&blob.digest), Vec::clear);
    assert_eq!(cas.put_bytes(b"precious").unwrap(), blob);
    assert_eq!(cas.get(&blob.digest).unwrap(), b"precious");
}

/// Who has read a damaged file and comes late finds the good one that has taken its place.
#[test]
fn a_good_blob_is_not_put_aside_for_a_bad_one_that_was_there_before() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let blob = cas.put_bytes(b"whole").unwrap();
    let path = cas.path(&blob.digest).unwrap();
    damage(&path, |bytes| bytes[0] ^= 1);
    let late = File::open(&path).unwrap();
    // Meanwhile another has found the damage and made the blob again.
    assert_eq!(cas.put_bytes(b"whole").unwrap(), blob);
    let read = Digest::of(b"vhole");
    let aside = root.path().join("quarantine");
    let before = files_below(&aside);
    assert!(!cas.is_good(&blob.digest, read, &late, &path).unwrap());
    assert_eq!(files_below(&aside), before);
    assert_eq!(cas.get(&blob.digest).unwrap(), b"whole");
}

#[test]
fn each_blob_is_verified_once_a_process() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let blob = cas.put_bytes(b"precious").unwrap();
    cas.get(&blob.digest).unwrap();
    damage(&Layout::new(root.path()).blob(&blob.digest), |b| b[0] ^= 1);
    assert!(cas.get(&blob.digest).is_ok(), "verified before");
    let fresh = Cas::new(Layout::new(root.path()), false);
    assert!(matches!(
        fresh.get(&blob.digest),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn what_is_not_there_is_said_to_be_so() {
    let root = tempfile::tempdir().unwrap();
    let none = Digest::of(b"none");
    let cas = cas(root.path());
    assert!(!cas.contains(&none));
    for error in [
        cas.get(&none).unwrap_err(),
        cas.open(&none).unwrap_err(),
        cas.path(&none).unwrap_err(),
    ] {
        assert_eq!(error, Error::not_found(format!("blob `{none}`")));
    }
    let error = cas.put_file(root.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::Io { what: "open", .. }), "{error}");
    let reader = Cas::new(Layout::new(root.path()), true);
    assert!(matches!(
        reader.put_bytes(b"x"),
        Err(Error::ReadOnly { .. })
    ));
}

#[test]
fn threads_may_put_the_same_blob() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..25_u8 {
                    let blob = cas.put_bytes(&[i; 100]).unwrap();
                    assert_eq!(cas.get(&blob.digest).unwrap(), [i; 100]);
                }
            });
        }
    });
    assert_eq!(files_below(&root.path().join("cas")).len(), 25);
    assert!(files_below(&root.path().join("tmp")).is_empty());
}

/// Whoever was told where a blob lies finds it there, whatever is flushed meanwhile.
#[test]
fn a_blob_lies_for_good_where_it_is_said_to_lie() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let staged = cas.stage_bytes(b"staged").unwrap();
    let path = cas.path(&staged.digest).unwrap();
    cas.flush().unwrap();
    assert_eq!(fs::read(path).unwrap(), b"staged");
    // Two have looked for the same blob before either had staged it; the second comes when the
    // first one's is in its place.
    let late = Temp::with(&cas.layout.tmp(), b"twice").unwrap();
    let blob = cas.put_bytes(b"twice").unwrap();
    cas.stage(blob, late);
    let path = cas.path(&blob.digest).unwrap();
    cas.flush().unwrap();
    assert_eq!(fs::read(path).unwrap(), b"twice");
}

/// A staged blob is never out of sight, not even on its way to its place.
#[test]
fn a_blob_stays_in_sight_while_others_flush() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let cas = &cas;
            scope.spawn(move || {
                for i in 0..40_u8 {
                    let bytes = [thread, i, 7];
                    let blob = cas.stage_bytes(&bytes).unwrap();
                    assert!(cas.contains(&blob.digest));
                    assert_eq!(cas.get(&blob.digest).unwrap(), bytes);
                    if i % 5 == 0 {
                        cas.flush().unwrap();
                    }
                }
            });
        }
    });
    cas.flush().unwrap();
    assert_eq!(files_below(&root.path().join("cas")).len(), 120);
}

/// A flush takes as long as the disk does.
#[test]
fn who_stages_something_else_does_not_wait_for_a_flush() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let known = cas.stage_bytes(b"known").unwrap();
    let flush = locked(&cas.moving);
    let (staged, leaving) = cas.take(std::mem::take);
    let (done, answer) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let blob = cas.stage_bytes(b"new").unwrap();
            assert_eq!(cas.get(&blob.digest).unwrap(), b"new");
            assert_eq!(cas.size(&known.digest), Some(5));
            assert_eq!(cas.size(&Digest::of(b"none")), None);
            done.send(()).unwrap();
        });
        let waited = answer.recv_timeout(std::time::Duration::from_secs(60));
        // Who wants to read what leaves waits until it has arrived.
        let reading = scope.spawn(|| cas.get(&known.digest).unwrap());
        cas.publish(staged, Vec::new()).unwrap();
        drop(leaving);
        drop(flush);
        assert_eq!(reading.join().unwrap(), b"known");
        waited.unwrap();
    });
}

/// A blob that another flush fails to bring to its place is no reason to believe a record.
#[test]
fn a_record_waits_for_what_becomes_of_blobs_on_their_way() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let cas = store.cas();
    stage(&store, 1);
    let flush = locked(&cas.moving);
    let (staged, leaving) = cas.take(std::mem::take);
    let output = Digest::of(b"output 1");
    assert!(cas.contains(&output), "it is on its way");
    std::thread::scope(|scope| {
        let committing = scope.spawn(|| store.commit(&sample("//t:a", 1)));
        std::thread::sleep(std::time::Duration::from_millis(50));
        // The disk has refused them, and copies of them.
        drop(staged);
        drop(leaving);
        drop(flush);
        let refused = committing.join().unwrap().unwrap_err();
        assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
    });
    assert!(store.bulk().unwrap().is_empty());
    assert!(files_below(&root.path().join("records")).is_empty());
    crate::store::tests::put(&store, "//t:a", 1);
    assert_eq!(store.bulk().unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_flipped_bit_is_noticed(
        bytes in prop::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let root = tempfile::tempdir().unwrap();
        let blob = cas(root.path()).put_bytes(&bytes).unwrap();
        prop_assert_eq!(&cas(root.path()).get(&blob.digest).unwrap(), &bytes);
        damage(&Layout::new(root.path()).blob(&blob.digest), |b| b[at.index(bytes.len())] ^= 1_u8 << bit);
        let noticed = matches!(cas(root.path()).get(&blob.digest), Err(Error::Corrupt { .. }));
        prop_assert!(noticed);
    }
}

/// What a failed sync leaves of a file proves nothing: it is copied, and what cannot be copied or
/// is not the blob any more has to be put again.
#[test]
fn what_was_not_synced_is_staged_anew_or_missing() {
    let root = tempfile::tempdir().unwrap();
    let cas = cas(root.path());
    let fails = |faults: &str| fault::here::with(faults, || cas.flush()).unwrap_err();
    let blob = cas.stage_bytes(b"kept").unwrap();
    let lies = || cas.locate(&blob.digest).unwrap().0;
    let first = lies();
    fails("before-fsync:1:error");
    assert_ne!(lies(), first);
    assert!(!first.exists());
    assert_eq!(cas.get(&blob.digest).unwrap(), b"kept");
    // No room for a copy.
    fails("before-fsync:1:error,before-tmp-write:1:error");
    assert!(!cas.contains(&blob.digest));
    assert_eq!(cas.stage_bytes(b"kept").unwrap(), blob);
    // The copy is of something else, though the blob was held against its digest before.
    assert_eq!(cas.get(&blob.digest).unwrap(), b"kept");
    let path = lies();
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"torn").unwrap();
    fails("before-fsync:1:error");
    assert!(!cas.contains(&blob.digest));
    assert_eq!(cas.put_bytes(b"kept").unwrap(), blob);
    assert_eq!(cas.get(&blob.digest).unwrap(), b"kept");
}
