//! The shape of the index and how it moves forward. The version lives in the file; a newer one is
//! refused, an older one is migrated in one transaction, step by step, and the documented views
//! are made anew with every move. Nothing is ever deleted to get out of a mismatch.

use crate::error::{Error, Result};
use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as an index of ours (`doe` and the format's era), for `file(1)` and for refusal
/// of databases that are not.
const APPLICATION_ID: i32 = 0x646f_6531;

/// Step `i` leads from version `i` to `i + 1`.
pub(crate) const STEPS: &[&str] = &[
    include_str!("sql/v1.sql"),
    include_str!("sql/v2.sql"),
    include_str!("sql/v3.sql"),
];

pub(crate) const VIEWS: &str = include_str!("sql/views.sql");

/// The version this program writes.
pub(crate) const VERSION: u32 = STEPS.len() as u32;

/// Reads the version of the file: 0 for an empty one.
pub(crate) fn version(connection: &Connection) -> Result<u32> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (version, application) = (pragma("user_version")?, pragma("application_id")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != i64::from(APPLICATION_ID) && (version != 0 || tables != 0) {
        return Err(Error::index("it is a database of another program"));
    }
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    if version > VERSION {
        return Err(Error::SchemaTooNew {
            what: "index",
            found: version,
            supported: VERSION,
        });
    }
    Ok(version)
}

/// Brings the file to the version of this program.
pub(crate) fn migrate(connection: &mut Connection) -> Result<()> {
    migrate_with(connection, STEPS, VIEWS)
}

pub(crate) fn migrate_with(connection: &mut Connection, steps: &[&str], views: &str) -> Result<()> {
    let target = steps.len() as u32;
    if version(connection)? == target {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been quicker: look again now that nobody else writes.
    let found = version(&transaction)?;
    for step in steps.iter().skip(found as usize) {
        transaction.execute_batch(step)?;
    }
    if found < target {
        transaction.execute_batch(views)?;
        transaction.pragma_update(None, "user_version", target)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(connection: &Connection, view: &str) -> Vec<String> {
        let sql = format!("SELECT * FROM {view} LIMIT 0");
        let statement = connection.prepare(&sql).unwrap();
        statement.column_names().map(str::to_owned).collect()
    }

    /// People's scripts depend on these columns: a change here raises the schema version and is
    /// told in `docs/store.md`, which must name every one of them.
    #[test]
    fn the_documented_views_have_the_documented_columns() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let views: Vec<String> = connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'view' ORDER BY name")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let found: String = views
            .iter()
            .map(|view| format!("{view}: {}\n", columns(&connection, view).join(" ")))
            .collect();
        crate::testing::golden("views.txt", &found);
        let manual = include_str!("../../docs/store.md");
        for view in &views {
            let section = manual.split(&format!("\n### `{view}`")).nth(1);
            let section = section.and_then(|s| s.split("\n##").next()).unwrap_or("");
            for column in columns(&connection, view) {
                let cell = format!("`{column}`");
                assert!(section.contains(&cell), "docs/store.md: {view}.{column}");
            }
        }
    }

    #[test]
    fn an_older_index_is_migrated_and_keeps_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        let first = "CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (7);";
        migrate_with(
            &mut connection,
            &[first],
            "CREATE VIEW v AS SELECT x FROM a;",
        )
        .unwrap();
        assert_eq!(version(&connection).unwrap(), 1);
        let second = "ALTER TABLE a ADD COLUMN y INTEGER DEFAULT 3;";
        let views = "DROP VIEW v; CREATE VIEW v AS SELECT x + y AS z FROM a;";
        // Version 2 is beyond this program's own, so read it as that future program would.
        migrate_with(&mut connection, &[first, second], views).unwrap();
        let z: i64 = connection
            .query_row("SELECT z FROM v", [], |r| r.get(0))
            .unwrap();
        assert_eq!(z, 10);
    }

    #[test]
    fn a_step_that_fails_leaves_everything_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = [
            "CREATE TABLE a (x INTEGER);",
            "CREATE TABLE b (y INTEGER); nonsense;",
        ];
        assert!(migrate_with(&mut connection, &steps, "").is_err());
        assert_eq!(version(&connection).unwrap(), 0);
        migrate(&mut connection).unwrap();
        assert_eq!(version(&connection).unwrap(), VERSION);
    }

    #[test]
    fn newer_and_foreign_databases_are_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection
            .pragma_update(None, "user_version", VERSION + 1)
            .unwrap();
        let error = migrate(&mut connection).unwrap_err();
        assert_eq!(
            error,
            Error::SchemaTooNew {
                what: "index",
                found: VERSION + 1,
                supported: VERSION
            }
        );
        assert!(error.hint().is_some());

        let mut foreign = Connection::open_in_memory().unwrap();
        foreign.execute_batch("CREATE TABLE theirs (x)").unwrap();
        let error = migrate(&mut foreign).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
    }
}
