//! The one place that opens the SQLite index, so that every connection has the same settings:
//! durability is a property of the connection in SQLite, not of the file. The index holds nothing
//! that cannot be made again from the records.

use crate::durable;
use crate::error::{self, Error, Result};
use crate::layout::Layout;
use crate::schema;
use rusqlite::{Connection, OpenFlags};
use std::env;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long to wait for another process's transaction. Ours are short; a rebuild is not.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading and writing; makes and migrates the file as needed.
    Write,
    /// Reading only; an absent index is an empty one.
    Read,
}

/// Opens the index.
pub(crate) fn open(layout: &Layout, access: Access) -> Result<Connection> {
    let path = layout.index();
    match access {
        Access::Write => {
            durable::create_dir(layout.root())?;
            let new = !path.exists();
            let mut connection = connect(&path, OpenFlags::default())?;
            let journal = if wal_works(layout.root()) {
                "WAL"
            } else {
                "TRUNCATE"
            };
            connection.pragma_update(None, "journal_mode", journal)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            schema::migrate(&mut connection)?;
            if new {
                durable::sync_one(layout.root())?;
            }
            Ok(connection)
        }
        Access::Read if !path.exists() => scratch(),
        Access::Read => open_for_reading(layout, &path),
    }
}

/// An empty index in memory.
pub(crate) fn scratch() -> Result<Connection> {
    let mut connection = connect(Path::new(":memory:"), OpenFlags::default())?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// For those who only read. A connection is used by one thread at a time (it sits behind a lock):
/// SQLite need not lock again for every column it hands out.
fn read_only() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn open_for_reading(layout: &Layout, path: &Path) -> Result<Connection> {
    let flags = read_only();
    let attempt = connect(path, flags).and_then(|c| Ok((schema::version(&c)?, c)));
    let (version, connection) = match attempt {
        Ok(found) => found,
        // In WAL mode even a reader needs the files beside the index, or the right to make them.
        // Where they cannot be made, for lack of rights or of room, nobody else writes either.
        Err(error) if is_unwritable(layout, &error) => {
            let connection = open_unwritable(path)?;
            (schema::version(&connection)?, connection)
        }
        // Who made or changed it died half-way: only who may write can put that right.
        Err(Error::Database { .. }) => {
            drop(open(layout, Access::Write)?);
            let connection = connect(path, flags)?;
            (schema::version(&connection)?, connection)
        }
        Err(error) => return Err(error),
    };
    if version == schema::VERSION {
        return Ok(connection);
    }
    // Older: views are part of the schema, so even a reader needs it moved forward.
    drop(connection);
    drop(open(layout, Access::Write)?);
    connect(path, flags)
}

/// Opens an index that nobody is writing for one look, without the shared memory and the locks
/// that cost more than the look; `None` where that is not safe. In WAL mode the file itself changes
/// only by checkpoints, which take whole transactions out of a log that is then not empty.
pub(crate) fn open_at_rest(layout: &Layout) -> Option<Connection> {
    let path = layout.index();
    let mut header = [0; 20];
    File::open(&path).ok()?.read_exact(&mut header).ok()?;
    // SQLite file format, "File format version numbers": 2 stands for WAL.
    let in_wal_mode = header[18..] == [2, 2];
    if !(in_wal_mode && is_empty(&beside(&path, "-wal"))) {
        return None;
    }
    connect(&immutable(&path), read_only()).ok()
}

/// Opens an index beside which nothing can be made. Opened as it is SQLite would not look at a
/// log beside it, where the last commits may lie, or what takes half of one back: where there is
/// one a copy is opened. It has no name any more when this returns, and goes with the connection.
fn open_unwritable(path: &Path) -> Result<Connection> {
    let logs = LOGS.map(|log| beside(path, log));
    if logs.iter().all(|log| is_empty(log)) {
        return connect(&immutable(path), read_only());
    }
    let dir = own_folder()?;
    let opened = open_copy(path, &logs, &dir);
    // What cannot be removed is in nobody's way.
    let _ = fs::remove_dir_all(&dir);
    opened
}

fn open_copy(path: &Path, logs: &[PathBuf], dir: &Path) -> Result<Connection> {
    let io = |e: io::Error| Error::io(COPY, dir, &e);
    let mut copy = PathBuf::new();
    let there = logs.iter().map(PathBuf::as_path).filter(|log| log.exists());
    for file in there.chain([path]) {
        copy = dir.join(file.file_name().unwrap_or_default());
        fs::copy(file, &copy).map_err(io)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o600)).map_err(io)?;
    }
    // This takes the log in, or what the journal says back.
    let whole = connect(&copy, OpenFlags::default())?;
    whole.pragma_update(None, "journal_mode", "DELETE")?;
    drop(whole);
    let connection = connect(&immutable(&copy), read_only())?;
    schema::version(&connection)?;
    Ok(connection)
}

const COPY: &str = "copy the index, with the log beside it, to";

/// A temporary folder that nobody else can read, as they may not be allowed to read the index.
fn own_folder() -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = env::temp_dir().join(format!("doe-index-{}-{count}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            // Of a process with our number that died.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(COPY, &dir, &e)),
        }
    }
}

/// What SQLite keeps beside a database of what is not in it yet, or no longer.
const LOGS: [&str; 2] = ["-wal", "-journal"];

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn is_empty(log: &Path) -> bool {
    match fs::metadata(log) {
        Ok(log) => log.len() == 0,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn immutable(path: &Path) -> PathBuf {
    PathBuf::from(format!("file:{}?immutable=1", uri_path(path)))
}

/// The one `open` of SQLite there is; `tests/house.rs` finds any other.
fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Whether an error says that the index itself is beyond use.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt { what, .. } if what == error::INDEX)
}

/// Moves a damaged index and the files beside it out of the way.
pub(crate) fn set_aside(layout: &Layout) -> Result<Vec<PathBuf>> {
    let mut moved = Vec::new();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let name = format!("index.sqlite{suffix}");
        let path = layout.index().with_file_name(&name);
        if path.exists() {
            moved.push(durable::quarantine(&path, &layout.quarantine(), &name)?);
        }
    }
    Ok(moved)
}

/// Escapes a path for a `file:` URI of SQLite.
fn uri_path(path: &Path) -> String {
    path.to_string_lossy()
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23")
}

fn is_unwritable(layout: &Layout, error: &Error) -> bool {
    match error {
        Error::Database { .. } => !writable(layout.root()),
        Error::Io { kind, .. } => *kind == io::ErrorKind::StorageFull,
        _ => false,
    }
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whether write-ahead logging is safe here: it shares memory between processes, which file
/// systems that span machines cannot offer. There the classic journal does, a little slower.
#[cfg(target_os = "linux")]
fn wal_works(dir: &Path) -> bool {
    /// From `linux/magic.h` and the file systems' own headers: NFS, SMB, CIFS, SMB2, Lustre,
    /// GPFS, BeeGFS, Ceph, FUSE, 9P, AFS, GFS2, OCFS2, PanFS.
    const SHARED: [u32; 14] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x0bd0_0bd0,
        0x4750_4653,
        0x1983_0326,
        0x00c3_6400,
        0x6573_5546,
        0x0102_1997,
        0x5346_414f,
        0x0116_1970,
        0x7461_636f,
        0xaad7_aaea,
    ];
    // A file system that does not say what it is gets the benefit of the doubt.
    rustix::fs::statfs(dir).map_or(true, |s| !SHARED.contains(&(s.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn wal_works(_dir: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pragma(connection: &Connection, name: &str) -> String {
        let value = connection
            .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        match value.unwrap() {
            rusqlite::types::Value::Integer(int) => int.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_connection_has_the_same_settings() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        for _ in 0..2 {
            let connection = open(&layout, Access::Write).unwrap();
            let wal = if wal_works(root.path()) {
                "wal"
            } else {
                "truncate"
            };
            assert_eq!(pragma(&connection, "journal_mode"), wal);
            assert_eq!(pragma(&connection, "synchronous"), "2", "FULL");
            assert_eq!(pragma(&connection, "foreign_keys"), "1");
            assert_eq!(pragma(&connection, "busy_timeout"), "20000");
        }
        let reader = open(&layout, Access::Read).unwrap();
        assert_eq!(pragma(&reader, "busy_timeout"), "20000");
        assert!(reader.execute("DELETE FROM record", []).is_err());
    }

    #[test]
    fn an_absent_index_reads_as_empty_and_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().join("never"));
        let reader = open(&layout, Access::Read).unwrap();
        let count: i64 = reader
            .query_row("SELECT count(*) FROM results", [], |r| r.get(0))
            .unwrap();
        assert_eq!(count, 0);
        assert!(!layout.root().exists());
    }

    /// A process that dies while it makes the index leaves a journal that is to be rolled back,
    /// which a connection for reading cannot.
    #[test]
    fn a_reader_gets_past_what_a_dead_writer_left() {
        let dir = tempfile::tempdir().unwrap();
        let [alive, dead] = ["alive", "dead"].map(|name| Layout::new(dir.path().join(name)));
        let writer = open(&alive, Access::Write).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode = DELETE; PRAGMA cache_size = 2; BEGIN;
                 WITH RECURSIVE many (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM many LIMIT 500)
                 INSERT INTO meta SELECT hex(randomblob(500)), i FROM many",
            )
            .unwrap();
        fs::create_dir(dead.root()).unwrap();
        for name in ["index.sqlite", "index.sqlite-journal"] {
            fs::copy(alive.root().join(name), dead.root().join(name)).unwrap();
        }
        let reader = open(&dead, Access::Read).unwrap();
        let rows = reader.query_row("SELECT count(*) FROM meta", [], |row| row.get::<_, i64>(0));
        assert_eq!(rows.unwrap(), 2, "what was never committed is gone");
    }

    /// On a read-only medium: the shared memory is not part of a copy, and cannot be made.
    #[test]
    fn what_is_committed_is_seen_where_nothing_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let [alive, copied] = ["alive", "copied"].map(|name| Layout::new(dir.path().join(name)));
        fs::create_dir(copied.root()).unwrap();
        let add = |sql: &str| {
            let writer = open(&alive, Access::Write).unwrap();
            writer.execute_batch(sql).unwrap();
            writer
        };
        let rows = || -> i64 { rows_of(&open_unwritable(&copied.index()).unwrap()) };
        let names = || fs::read_dir(copied.root()).unwrap().count();
        let copy = |names: &[&str]| {
            for name in names {
                let (from, to) = (alive.root().join(name), copied.root().join(name));
                fs::copy(from, to).unwrap();
            }
        };
        let before = rows_of(&add("PRAGMA journal_mode = WAL"));
        copy(&["index.sqlite"]);
        assert_eq!(rows(), before);
        let writer = add("INSERT INTO meta VALUES ('one more', 1)");
        copy(&["index.sqlite", "index.sqlite-wal"]);
        assert!(!is_empty(&beside(&copied.index(), "-wal")));
        assert_eq!((rows(), names()), (before + 1, 2));
        drop(writer);
        // The same for a journal, which says what is to be taken back.
        fs::remove_file(beside(&copied.index(), "-wal")).unwrap();
        let writer = add("PRAGMA journal_mode = DELETE; PRAGMA cache_size = 2; BEGIN;
             WITH RECURSIVE many (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM many LIMIT 500)
             INSERT INTO meta SELECT hex(randomblob(500)), i FROM many");
        copy(&["index.sqlite", "index.sqlite-journal"]);
        assert_eq!((rows(), names()), (before + 1, 2));
        drop(writer);
    }

    fn rows_of(db: &Connection) -> i64 {
        let count = db.query_row("SELECT count(*) FROM meta", [], |row| row.get(0));
        count.unwrap()
    }

    #[test]
    fn rubbish_is_damage_and_can_be_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        std::fs::write(layout.index(), "no database at all ".repeat(100)).unwrap();
        for access in [Access::Read, Access::Write] {
            let error = open(&layout, access).unwrap_err();
            assert!(is_damage(&error), "{error:?}");
        }
        let moved = set_aside(&layout).unwrap();
        assert_eq!(moved, [layout.quarantine().join("index.sqlite")]);
        open(&layout, Access::Write).unwrap();
    }

    #[test]
    fn odd_paths_are_escaped() {
        assert_eq!(uri_path(Path::new("/a b/50%?#x")), "/a b/50%25%3f%23x");
    }
}
