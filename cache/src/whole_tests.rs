//! Whatever becomes of an index: it is told, whatever meets it names the way out, and a rebuild
//! gives the answers of before.

use super::*;
use crate::digest::Digest;
use crate::runs::RunStatus;
use crate::store::tests::{flip, run_info};
use crate::verify::tests::life;
use crate::verify::{SAYINGS, saying};
use std::fs;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn answers(store: &Store) -> (Vec<Digest>, u64) {
    let db = store.index();
    let said = SAYINGS.iter().map(|(_, sql)| saying(&db, sql).unwrap());
    (said.collect(), crate::write::last_stamp(&db).unwrap())
}

/// A store at rest, to be damaged in one way after the other.
struct Whole {
    root: tempfile::TempDir,
    answers: (Vec<Digest>, u64),
}

impl Whole {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = life(root.path());
        let answers = answers(&store);
        assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
        drop(store);
        assert!(!root.path().join("index.sqlite-wal").exists());
        Self { root, answers }
    }

    /// All that is promised of a store whose index was damaged.
    fn survives(&self, what: &str, damage: impl Fn(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        copy(self.root.path(), &root);
        damage(&root.join("index.sqlite"));
        let lock = WriterLock::acquire(&root, "verify").unwrap();
        // One that is lost or empty is no damage to who may write: it is made again. SQLite takes
        // a single byte for nothing.
        let lost = fs::metadata(root.join("index.sqlite")).map_or(0, |file| file.len()) <= 1;
        for lock in [None, Some(&lock)] {
            let store = Store::open_to_verify(&root, lock).unwrap();
            let report = store.verify(&VerifyOptions::ALL).unwrap();
            match &report.damage[..] {
                [] => assert!(lost && lock.is_some(), "{what}"),
                [damage] => {
                    assert_eq!((damage.kind, &*damage.name), ("index", "index.sqlite"));
                    assert!(damage.detail.contains("doe cache rebuild"), "{damage:?}");
                }
                _ => panic!("{what}: {:?}", report.damage),
            }
            let seen = (report.records, report.blobs, report.others, report.index);
            assert_eq!(seen, (3, 6, 5, true), "{what}");
        }
        let other = dir.path().join("other");
        copy(&root, &other);
        for result in [reads(&root), writes(&other)] {
            let Err(error) = result else { continue };
            assert_eq!(error.code(), "index-corrupt", "{what}: {error:?}");
            assert!(error.to_string().starts_with("the index is damaged"));
            assert!(error.hint().unwrap().contains("doe cache rebuild"));
        }
        let (store, report) = Store::rebuild(&root).unwrap();
        assert_eq!((report.indexed, report.runs), (3, 1), "{what}");
        assert_eq!(answers(&store), self.answers, "{what}");
        assert_eq!(store.verify(&VerifyOptions::ALL).unwrap().damage, []);
        drop(store);
        reads(&root).unwrap();
    }

    fn sql(&self, sql: &str) {
        self.survives(sql, |file| edit(file, sql));
    }

    fn objects(&self) -> Vec<(String, String, Option<String>)> {
        let db = index::scratch().unwrap();
        let mut found = db
            .prepare("SELECT type, name, sql FROM sqlite_schema")
            .unwrap();
        let rows = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        rows.unwrap().map(Result::unwrap).collect()
    }
}

fn edit(file: &Path, sql: &str) {
    let db = Connection::open(file).unwrap();
    let sql = format!("PRAGMA foreign_keys = OFF; PRAGMA writable_schema = ON; {sql}");
    db.execute_batch(&sql).unwrap();
}

fn reads(root: &Path) -> Result<()> {
    crate::Generation::of(root)?;
    let store = Store::open_read_only(root)?;
    store.bulk()?;
    store.list(&Default::default())?;
    store.stats()?;
    store.runs(9)?;
    store.run_nodes("r")?;
    Ok(())
}

fn writes(root: &Path) -> Result<()> {
    let store = Store::open(root)?;
    store.begin_run(&run_info("new"))?;
    store.end_run("new", RunStatus::Ok)?;
    let record = store.bulk()?.current("//t:p1").unwrap().record;
    store.link_spec(Digest::of("other"), record, "//t:new")?;
    store.gc_plan(&Default::default(), &Default::default())?;
    Ok(())
}

#[test]
fn an_object_that_is_gone_is_damage() {
    let whole = Whole::new();
    for (kind, name, sql) in whole.objects() {
        match sql.is_some() && !name.starts_with("sqlite_") {
            true => whole.sql(&format!("DROP {kind} {name}")),
            false => whole.sql(&format!("DELETE FROM sqlite_schema WHERE name = '{name}'")),
        }
    }
    whole.sql("CREATE TRIGGER more AFTER INSERT ON run BEGIN SELECT 1; END");
}

/// A bit that flips in the text of a table, an index or a view makes another letter of one.
#[test]
fn an_object_of_another_shape_is_damage() {
    let whole = Whole::new();
    for (nth, (_, name, sql)) in whole.objects().into_iter().enumerate() {
        let Some(sql) = sql else { continue };
        let letters: Vec<usize> = (0..sql.len())
            .filter(|at| sql.as_bytes()[*at].is_ascii_lowercase())
            .collect();
        // Here in a keyword, there in a name, a condition or a remark.
        let at = letters[letters.len() * (nth % 7) / 7];
        let mut bytes = sql.into_bytes();
        bytes[at] ^= 1;
        let text = String::from_utf8(bytes).unwrap().replace('\'', "''");
        whole.sql(&format!(
            "UPDATE sqlite_schema SET sql = '{text}' WHERE name = '{name}'"
        ));
    }
    whole.sql("UPDATE sqlite_schema SET sql = replace(sql, ' host ', ' iost ') WHERE name = 'run'");
    whole.sql("ALTER TABLE run RENAME TO rum");
    whole.sql("PRAGMA user_version = 2");
    whole.sql("PRAGMA user_version = 0");
    whole.sql("PRAGMA application_id = 1");
}

#[test]
fn a_row_that_must_be_there_is_damage() {
    let whole = Whole::new();
    for name in ["epoch", "generation", "last_stamp"] {
        whole.sql(&format!("DELETE FROM meta WHERE name = '{name}'"));
    }
    whole.sql("DELETE FROM meta");
    whole.sql("UPDATE meta SET value = 1 WHERE name = 'last_stamp'");
}

#[test]
fn a_file_that_is_no_index_is_damage() {
    let whole = Whole::new();
    let write = |what: &str, bytes: &[u8]| {
        whole.survives(what, |file| fs::write(file, bytes).unwrap());
    };
    write("garbage", "no database at all ".repeat(1000).as_bytes());
    write("a word", b"x");
    write("nothing", b"");
    whole.survives("none", |file| fs::remove_file(file).unwrap());
    let good = fs::read(whole.root.path().join("index.sqlite")).unwrap();
    for length in [50, 100, 1000, 4096, good.len() / 2, good.len() - 1] {
        write(&format!("the first {length} bytes"), &good[..length]);
    }
    for page in 1..good.len() / 4096 {
        let mut bytes = good.clone();
        bytes[page * 4096..][..4096].fill(0x5a);
        write(&format!("page {page}"), &bytes);
    }
}

/// Without the index the files are looked at all the same; nothing is moved that the index may
/// count on until there is one that can be told.
#[test]
fn other_damage_is_told_beside_that_of_the_index() {
    let root = tempfile::tempdir().unwrap();
    let store = life(root.path());
    let layout = store.layout().clone();
    let [blob, gone] = ["output 1", "output 3"].map(Digest::of);
    flip(&layout.blob(&blob));
    fs::remove_file(layout.blob(&gone)).unwrap();
    flip(&layout.notes("r"));
    drop(store);
    edit(&layout.index(), "DROP VIEW runs");
    let lock = WriterLock::acquire(root.path(), "verify").unwrap();
    let kinds = || {
        let store = Store::open_to_verify(root.path(), Some(&lock)).unwrap();
        let found = store.verify(&VerifyOptions::ALL).unwrap().damage;
        let mut kinds: Vec<_> = found.iter().map(|damage| damage.kind).collect();
        kinds.sort_unstable();
        kinds
    };
    for _ in 0..2 {
        assert_eq!(kinds(), ["blob", "blob", "index", "notes"]);
        assert!(layout.blob(&blob).exists());
    }
    Store::rebuild(root.path()).unwrap();
    assert!(kinds().contains(&"blob"));
    assert!(!layout.blob(&blob).exists());
}
