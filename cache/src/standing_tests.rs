//! A standing changes with everything that is written, and with everything that other hands do.

use super::*;
use crate::batch::{Batch, Link};
use crate::runs::{NodeState, NodeUpdate, RunStatus};
use crate::store::Store;
use crate::store::tests::{put, run_info};
use rusqlite::Connection;

fn standing(root: &Path) -> Standing {
    Standing::of(root).unwrap().unwrap()
}

#[test]
fn every_write_is_seen_and_no_reading_is() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(Standing::of(root.path()).unwrap(), None);
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&run_info("r")).unwrap();
    let mut seen = vec![standing(root.path())];
    let mut changed = |what: &str, store: &Store| {
        let now = standing(root.path());
        assert!(!seen.contains(&now), "{what}");
        assert_eq!(now, standing(root.path()));
        store.bulk().unwrap();
        store.runs(5).unwrap();
        Store::open_read_only(root.path()).unwrap().bulk().unwrap();
        drop(Store::open(root.path()).unwrap());
        assert_eq!(now, standing(root.path()), "{what}, then read");
        seen.push(now);
    };
    let digest = put(&store, "//t:a", 1);
    changed("a record", &store);
    let link = Link {
        spec_key: Digest::of("another"),
        record: digest,
        label: "//a:b".into(),
    };
    store
        .write(&Batch {
            links: &[link],
            ..Batch::default()
        })
        .unwrap();
    changed("a link", &store);
    let node = NodeUpdate {
        run_id: "r".into(),
        label: "//a:b".into(),
        state: NodeState::Failed,
        reason: None,
        record: None,
    };
    store.set_nodes(&[node]).unwrap();
    changed("a node", &store);
    store.end_run("r", RunStatus::Ok).unwrap();
    changed("the end of a run", &store);
    drop(store);
    let (store, _) = Store::rebuild(root.path()).unwrap();
    changed("a rebuild", &store);
    let path = store.layout().record(&digest);
    std::fs::remove_file(&path).unwrap();
    changed("a record that was deleted by hand", &store);
    drop(store);
    let others = Connection::open(root.path().join("index.sqlite")).unwrap();
    others.execute("DELETE FROM spec_link", []).unwrap();
    drop(others);
    let store = Store::open(root.path()).unwrap();
    changed("an index that was edited by hand", &store);
}

#[test]
fn what_lies_elsewhere_and_what_was_refused_is_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let digest = put(&store, "//t:a", 1);
    let path = store.layout().record(&digest);
    let folder = path.parent().unwrap();
    let moved = elsewhere.path().join("moved");
    std::fs::rename(folder, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, folder).unwrap();
    let before = standing(root.path());
    assert_eq!(before, standing(root.path()));
    std::fs::remove_file(&path).unwrap();
    let after = standing(root.path());
    assert_ne!(before.folders(), after.folders());
    assert_ne!(before.digest(), after.digest());
    let refused = put(&store, "//t:b", 2);
    store.quarantine(&refused, "no").unwrap();
    let before = standing(root.path());
    std::fs::remove_dir_all(store.layout().quarantine()).unwrap();
    assert_ne!(before, standing(root.path()));
    // A link to nothing is looked at as it is.
    std::fs::remove_dir(&moved).unwrap();
    assert_ne!(standing(root.path()), after);
}

#[test]
fn an_index_that_was_put_back_does_not_stand_as_another_did() {
    let root = tempfile::tempdir().unwrap();
    let index = root.path().join("index.sqlite");
    let kept = root.path().join("kept");
    drop(Store::open(root.path()).unwrap());
    std::fs::copy(&index, &kept).unwrap();
    let mut seen = Vec::new();
    for run in ["a", "b", "c"] {
        std::fs::copy(&kept, &index).unwrap();
        // As many writes as before, and of the same length: the count alone is the same.
        Store::open(root.path())
            .unwrap()
            .begin_run(&run_info(run))
            .unwrap();
        let now = standing(root.path());
        assert!(!seen.contains(&now));
        assert_eq!(now.generation().count, 2, "its birth and the run");
        seen.push(now);
    }
}

#[test]
fn rubbish_has_no_standing_that_could_be_equal() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("index.sqlite"), "no database at all").unwrap();
    assert!(Standing::of(root.path()).is_err());
}
