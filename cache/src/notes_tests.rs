//! Notes tell what the index tells, and damage to them is seen.

use super::*;
use crate::store::tests::{put, run_info};

fn info(run_id: &str, started_unix_ms: u64) -> RunInfo {
    RunInfo {
        started_unix_ms,
        ..run_info(run_id)
    }
}

fn told(store: &Store) -> Vec<(Run, Vec<RunNode>)> {
    let runs = store.runs(100).unwrap();
    let nodes = |run: &Run| store.run_nodes(&run.info.run_id).unwrap();
    runs.into_iter()
        .map(|run| (run.clone(), nodes(&run)))
        .collect()
}

#[test]
fn runs_are_told_from_their_notes_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = put(&store, "//t:a", 1);
    // The clock was set back between them: the order is that of their begins.
    store.begin_run(&info("one", 2000)).unwrap();
    store.begin_run(&info("two", 1000)).unwrap();
    store
        .set_node("one", "//t:a", NodeState::Planned, None, None)
        .unwrap();
    store
        .set_node("one", "//t:a", NodeState::Ok, None, Some(record))
        .unwrap();
    store
        .set_node("one", "//t:b", NodeState::Failed, Some("no\nluck"), None)
        .unwrap();
    store.end_run("one", RunStatus::Failed).unwrap();
    store
        .set_node("two", "//t:a", NodeState::Running, None, None)
        .unwrap();
    let before = told(&store);
    drop(store);
    fs::remove_file(root.path().join("index.sqlite")).unwrap();
    let (store, report) = Store::rebuild(root.path()).unwrap();
    assert_eq!((report.runs, report.skipped.len()), (2, 0));
    assert_eq!(told(&store), before);

    store.end_run("two", RunStatus::Abandoned).unwrap();
    let before = told(&store);
    drop(store);
    fs::remove_file(root.path().join("index.sqlite")).unwrap();
    let store = Store::open(root.path()).unwrap();
    assert_eq!(
        told(&store),
        before,
        "a lost index is made again by the next writer"
    );
}

#[test]
fn runs_without_notes_get_them_from_the_old_index() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&info("one", 1)).unwrap();
    store
        .set_node("one", "//t:a", NodeState::Blocked, Some("why"), None)
        .unwrap();
    store.end_run("one", RunStatus::Failed).unwrap();
    let before = told(&store);
    fs::remove_dir_all(store.layout().runs()).unwrap();
    drop(store);
    let (store, _) = Store::rebuild(root.path()).unwrap();
    assert_eq!(told(&store), before);
    assert!(store.layout().notes("one").exists());
}

#[test]
fn names_that_are_no_folder_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for name in ["", "..", "a/b", "../x"] {
        assert!(store.begin_run(&info(name, 1)).is_err(), "{name}");
    }
}

#[test]
fn any_flipped_byte_is_seen_and_a_torn_line_takes_no_other_with_it() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&info("one", 1)).unwrap();
    store
        .set_node("one", "//t:a", NodeState::Ok, None, None)
        .unwrap();
    let path = store.layout().notes("one");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        let seen = match read(&path).unwrap() {
            Ok(told) => told.damage.is_some(),
            Err(_) => true,
        };
        assert!(seen, "byte {at}");
    }
    fs::write(&path, &good[..good.len() - 3]).unwrap();
    store
        .set_node("one", "//t:b", NodeState::Ok, None, None)
        .unwrap();
    let told = read(&path).unwrap().unwrap();
    assert_eq!(told.damage.as_deref(), Some("line 2 is damaged"));
    assert!(
        matches!(&told.notes[..], [Note::Node { label, .. }] if label == "//t:b"),
        "{told:?}"
    );
    // At its end all is written anew from what was committed.
    store.end_run("one", RunStatus::Ok).unwrap();
    let told = read(&path).unwrap().unwrap();
    assert_eq!((told.damage, told.notes.len()), (None, 3));
}

/// A run that the index lost is told by its notes; one that only began never came to be.
#[test]
fn what_the_index_lost_is_taken_from_the_notes_and_not_put_aside() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = put(&store, "//t:a", 1);
    for run in ["one", "two", "three"] {
        store.begin_run(&info(run, 1)).unwrap();
    }
    for (run, state) in [("one", NodeState::Ok), ("two", NodeState::Reused)] {
        store
            .set_node(run, "//t:a", state, Some("why"), Some(record))
            .unwrap();
    }
    store.end_run("one", RunStatus::Ok).unwrap();
    let mut before = told(&store);
    before.retain(|(run, _)| run.info.run_id != "three");
    store
        .transaction(|db| Ok(db.execute_batch("DELETE FROM run_node; DELETE FROM run")?))
        .unwrap();
    fs::write(store.layout().unsettled(), "").unwrap();
    let lock = crate::WriterLock::acquire(root.path(), "x").unwrap();
    store.recover(&lock).unwrap();
    assert_eq!(told(&store), before);
    let aside = store.quarantined().unwrap();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(aside[0].path.ends_with("notes-three"));
    drop(store);
    let (store, _) = Store::rebuild(root.path()).unwrap();
    assert_eq!(told(&store), before);
}

/// A run that recorded nothing is lost with the index like any other.
#[test]
fn runs_without_records_are_told_again_too() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&info("one", 1)).unwrap();
    store
        .set_node("one", "//t:a", NodeState::Running, None, None)
        .unwrap();
    let before = told(&store);
    drop(store);
    fs::remove_file(root.path().join("index.sqlite")).unwrap();
    assert_eq!(told(&Store::open(root.path()).unwrap()), before);
}

/// A folder that somebody copied or renamed tells no run: it is told, and is in nobody's way.
#[test]
fn notes_in_a_folder_of_another_name_are_strays() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&info("one", 1)).unwrap();
    store
        .set_node("one", "//t:a", NodeState::Ok, None, None)
        .unwrap();
    store.end_run("one", RunStatus::Ok).unwrap();
    let before = told(&store);
    let copy = store.layout().runs().join("one (copy)");
    fs::create_dir(&copy).unwrap();
    let copy = copy.join("notes");
    fs::copy(store.layout().notes("one"), &copy).unwrap();
    fs::write(store.layout().unsettled(), "").unwrap();
    let lock = crate::WriterLock::acquire(root.path(), "x").unwrap();
    store.recover(&lock).unwrap();
    assert!(copy.exists() && told(&store) == before);
    let report = store.verify(&crate::VerifyOptions::ALL).unwrap();
    let damage: Vec<_> = report.damage.iter().map(|d| (d.kind, &*d.name)).collect();
    assert_eq!(damage, [("notes", "one (copy)")]);
    assert!(report.damage[0].detail.contains("of the run `one`"));
    drop(store);
    let (store, report) = Store::rebuild(root.path()).unwrap();
    assert_eq!((report.runs, report.skipped.len()), (1, 1));
    assert_eq!(
        (report.skipped[0].0.as_path(), told(&store)),
        (&*copy, before.clone())
    );
    drop(store);
    fs::remove_file(root.path().join("index.sqlite")).unwrap();
    assert_eq!(told(&Store::open(root.path()).unwrap()), before);
    assert!(copy.exists());
}

/// What was appended is not synced, and the index is: after a power cut it may know more, and the
/// first to come may be who makes it again.
#[test]
fn a_rebuild_keeps_what_a_power_cut_left_in_the_index_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    store.begin_run(&info("one", 1)).unwrap();
    let path = store.layout().notes("one");
    let begun = fs::read(&path).unwrap();
    for label in ["//t:a", "//t:b"] {
        store
            .set_node("one", label, NodeState::Ok, None, None)
            .unwrap();
    }
    let before = told(&store);
    drop(store);
    fs::write(&path, &begun).unwrap();
    let (store, report) = Store::rebuild(root.path()).unwrap();
    assert_eq!(told(&store), before);
    assert_eq!((report.skipped.len(), report.quarantined.len()), (0, 0));

    // An index that is behind takes nothing from notes that are whole.
    store.end_run("one", RunStatus::Ok).unwrap();
    let before = told(&store);
    let older = "UPDATE run SET status = 'running', ended_unix_ms = NULL; DELETE FROM run_node";
    store
        .transaction(|db| Ok(db.execute_batch(older)?))
        .unwrap();
    drop(store);
    let (store, _) = Store::rebuild(root.path()).unwrap();
    assert_eq!(told(&store), before);
}
