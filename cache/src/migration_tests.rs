//! Indexes of earlier versions with something in them: made by the steps that were shipped as each
//! version, which must never change, and rows for all that it kept (`cache/tests/index/rows.sql`).
//! Moved forward they have the shape of a new one and give the answers of one made from the records.

use crate::index;
use crate::layout::Layout;
use crate::schema::{self, VERSION};
use crate::store::Store;
use crate::verify::{SAYINGS, saying};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The index of an earlier version.
struct Earlier {
    version: u32,
    /// What that version alone kept.
    more: &'static str,
}

const EARLIER: [Earlier; 2] = [
    Earlier {
        version: 1,
        more: "",
    },
    Earlier {
        version: 2,
        more: "UPDATE meta SET value = -6148914691236517206 WHERE name = 'epoch';
               UPDATE meta SET value = 11 WHERE name = 'generation';",
    },
];

const ROWS: &str = include_str!("../tests/index/rows.sql");

/// The records that they were made of.
const RECORDS: [&str; 4] = [
    include_str!("../tests/index/1.json"),
    include_str!("../tests/index/2.json"),
    include_str!("../tests/index/3.json"),
    include_str!("../tests/index/4.json"),
];

/// A link that only the index knew then.
const LINKED: &str = "//t:linked";

/// A store without an index.
fn files(root: &Path) {
    let layout = Layout::new(root);
    let write = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for record in RECORDS {
        write(
            &layout.record(&crate::Digest::of(record)),
            record.as_bytes(),
        );
    }
    for seed in 1..=4 {
        for text in [format!("output {seed}"), format!("log {seed}")] {
            write(&layout.blob(&crate::Digest::of(&text)), text.as_bytes());
        }
    }
}

impl Earlier {
    /// A store with this index.
    fn store(&self, root: &Path) {
        files(root);
        let mut db = Connection::open(root.join("index.sqlite")).unwrap();
        let steps = &schema::STEPS[..self.version as usize];
        schema::migrate_with(&mut db, steps, schema::VIEWS).unwrap();
        let rows = format!("BEGIN; {ROWS} {} COMMIT;", self.more);
        db.execute_batch(&rows).unwrap();
        assert_eq!(schema::version(&db).unwrap(), self.version);
    }
}

/// What an index says, without what only it can know.
fn answers(store: &Store, runs: bool) -> BTreeMap<&'static str, String> {
    let db = store.index();
    let mut found = BTreeMap::new();
    for (name, sql) in SAYINGS {
        if runs || !name.contains("runs") {
            found.insert(*name, saying(&db, sql).unwrap().to_string());
        }
    }
    found
}

/// Tables, indexes and views, as they were written down.
fn shape(db: &Connection) -> Vec<String> {
    let sql = "SELECT type || ' ' || name || ': ' || coalesce(sql, '') FROM sqlite_schema
               WHERE name NOT LIKE 'sqlite_%' ORDER BY 1";
    let mut statement = db.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn without_the_link(store: &Store) {
    let sql = format!(
        "DELETE FROM spec_link WHERE spec_key NOT IN (SELECT spec_key FROM record);
         DELETE FROM label_state WHERE label = '{LINKED}'"
    );
    store.index().execute_batch(&sql).unwrap();
}

#[test]
fn every_version_that_was_shipped_is_here() {
    let versions: Vec<u32> = EARLIER.iter().map(|earlier| earlier.version).collect();
    assert_eq!(versions, (1..VERSION).collect::<Vec<_>>());
}

/// A step that was shipped and changed afterwards would leave two shapes under one version.
#[test]
fn a_step_that_was_shipped_stays_as_it_was() {
    let steps: Vec<_> = schema::STEPS.iter().map(crate::Digest::of).collect();
    let steps: Vec<_> = steps.iter().map(|step| step.short().to_string()).collect();
    assert_eq!(steps, ["659d41d6a38a", "4fca1403df33", "6d8351cdd4f2"]);
}

#[test]
fn an_index_moved_forward_has_the_shape_of_a_new_one() {
    let new = shape(&index::scratch().unwrap());
    for earlier in EARLIER {
        let root = tempfile::tempdir().unwrap();
        earlier.store(root.path());
        let store = Store::open(root.path()).unwrap();
        assert_eq!(shape(&store.index()), new, "version {}", earlier.version);
    }
}

#[test]
fn an_index_moved_forward_says_what_one_made_from_the_records_says() {
    for earlier in EARLIER {
        let version = earlier.version;
        // Readers move it as writers do.
        for reading in [false, true] {
            let [grown, made] = [0, 1].map(|_| tempfile::tempdir().unwrap());
            earlier.store(grown.path());
            files(made.path());
            if reading {
                let reader = Store::open_read_only(grown.path()).unwrap();
                assert_eq!(schema::version(&reader.index()).unwrap(), VERSION);
                assert!(reader.by_spec(&link_key(&reader)).unwrap().is_some());
            }
            let grown = Store::open(grown.path()).unwrap();
            let made = Store::open(made.path()).unwrap();
            assert_eq!(made.bulk().unwrap().len(), 4);
            // What it alone knew, it still knows.
            let key = link_key(&grown);
            let linked = grown.by_spec(&key).unwrap().unwrap();
            let snapshot = grown.bulk().unwrap();
            assert_eq!(snapshot.current(LINKED), Some(&linked));
            assert_eq!(snapshot.current("//t:p1"), Some(&linked));
            assert_eq!(grown.runs(9).unwrap().len(), 2);
            assert_eq!(grown.run_nodes("r1").unwrap().len(), 2);

            without_the_link(&grown);
            assert_eq!(answers(&grown, false), answers(&made, false), "{version}");
        }
    }
}

/// The spec key that no record has by itself.
fn link_key(store: &Store) -> crate::Digest {
    let sql = "SELECT spec_key FROM spec_link WHERE spec_key NOT IN (SELECT spec_key FROM record)";
    let key = |row: &rusqlite::Row<'_>| row.get(0).map(crate::Digest::from_bytes);
    store.index().query_row(sql, [], key).unwrap()
}

/// After the move it grows, is made again and is looked over like any other; runs that only an
/// index knew stay as long as that index can be read.
#[test]
fn an_index_moved_forward_goes_on_as_any_other() {
    for earlier in EARLIER {
        let root = tempfile::tempdir().unwrap();
        earlier.store(root.path());
        let store = Store::open(root.path()).unwrap();
        without_the_link(&store);
        crate::store::tests::put(&store, "//t:p9", 9);
        let before = answers(&store, true);
        drop(store);
        let (store, report) = Store::rebuild(root.path()).unwrap();
        assert_eq!((report.indexed, report.skipped.len()), (5, 0));
        assert_eq!(answers(&store, true), before, "version {}", earlier.version);
        let damage = store.verify(&crate::VerifyOptions::ALL).unwrap().damage;
        assert_eq!(damage, [], "version {}", earlier.version);
    }
}
