//! Files that go: by a damage that was found, or by other hands. The index never counts on them,
//! whatever whoever found it died of.

use super::*;
use crate::fault;
use crate::lock::WriterLock;
use crate::record::tests::sample;
use crate::store::tests::{flip, put};
use crate::verify::VerifyOptions;
use std::fs;

struct Lab {
    root: tempfile::TempDir,
    store: Store,
    record: Digest,
    output: Digest,
}

fn lab() -> Lab {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    let record = put(&store, "//t:p", 1);
    drop(store);
    Lab {
        record,
        output: sample("", 1).outputs["result"].digest,
        // One that has verified nothing yet.
        store: Store::open(root.path()).unwrap(),
        root,
    }
}

impl Lab {
    fn is_reused(&self) -> bool {
        let key = sample("", 1).spec_key;
        self.store.by_spec(&key).unwrap().is_some()
    }

    /// As the next writer after one that died.
    fn recover(&self) {
        fs::write(self.store.layout().unsettled(), "").unwrap();
        let lock = WriterLock::acquire(self.root.path(), "next").unwrap();
        self.store.recover(&lock).unwrap();
        assert_eq!(self.store.verify(&VerifyOptions::ALL).unwrap().damage, []);
    }
}

#[test]
fn a_damaged_record_is_put_aside_only_when_the_index_knows() {
    let lab = lab();
    let path = lab.store.layout().record(&lab.record);
    flip(&path);
    let read = || lab.store.record(&lab.record);
    let error = fault::here::with("before-commit:1:error", read).unwrap_err();
    assert_eq!(error.code(), "store-io");
    assert!(path.exists() && lab.is_reused());
    let error = fault::here::with("before-quarantine:1:error", read).unwrap_err();
    assert_eq!(error.code(), "store-io");
    assert!(path.exists() && !lab.is_reused());
    lab.recover();
    assert!(!path.exists() && !lab.is_reused());
}

#[test]
fn a_blob_that_was_put_aside_untold_is_missed_by_the_next_writer() {
    for point in ["before-commit", "after-quarantine"] {
        let lab = lab();
        flip(&lab.store.layout().blob(&lab.output));
        let read = || lab.store.blob(&lab.output);
        let error = fault::here::with(&format!("{point}:1:error"), read).unwrap_err();
        assert_eq!(error.code(), "store-io");
        assert!(lab.store.layout().unsettled().exists(), "{point}");
        let _ = fs::remove_file(lab.store.layout().blob(&lab.output));
        lab.recover();
        assert!(!lab.is_reused(), "{point}");
    }
}

#[test]
fn what_is_gone_is_told_by_whoever_misses_it() {
    let lab = lab();
    let generation = || lab.store.generation().unwrap();
    fs::remove_file(lab.store.layout().blob(&lab.output)).unwrap();
    assert!(lab.store.blob(&lab.output).is_err() && !lab.is_reused());
    // Once.
    let told = generation();
    assert!(!lab.store.unchanged(&lab.output).unwrap());
    assert_eq!(generation(), told);
    fs::remove_file(lab.store.layout().record(&lab.record)).unwrap();
    let list = || lab.store.list(&Default::default()).unwrap().len();
    assert_eq!(list(), 1);
    assert!(lab.store.record(&lab.record).is_err());
    assert_eq!(list(), 0);
    assert_ne!(generation(), told);
}

#[test]
fn the_next_writer_misses_what_is_gone() {
    for what in ["record", "output"] {
        let lab = lab();
        let layout = lab.store.layout();
        fs::remove_file(match what {
            "record" => layout.record(&lab.record),
            _ => layout.blob(&lab.output),
        })
        .unwrap();
        lab.recover();
        assert!(!lab.is_reused(), "{what}");
    }
}
