//! One error type for the crate. A variant says what kind of thing went wrong (callers map it to
//! an exit code), its text says what was expected, and `hint()` says what to do. Causes are kept
//! as text so that an error can be cloned and sent between threads.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The result type of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What [`Error::Corrupt`] calls the index.
pub(crate) const INDEX: &str = "the index";

/// What the store could not do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    Io {
        /// What was being done, as in "could not {what}".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        cause: String,
        /// What kind of refusal that is.
        kind: std::io::ErrorKind,
    },
    /// Something stored is not what its digest or its format says (integrity).
    Corrupt {
        /// What is damaged, for example ``blob `af13…` ``.
        what: String,
        /// How it was noticed.
        detail: String,
        /// Where the damaged file lies now, when it was moved out of the way.
        quarantined: Option<PathBuf>,
    },
    /// Another process holds the workspace or kept the index busy.
    Locked {
        /// Who, in words: process id, host, start time, command.
        holder: String,
    },
    /// The index or a record was written by a newer version.
    SchemaTooNew {
        /// What is too new, for example `index`.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version this program reads.
        supported: u32,
    },
    /// A record, blob or run that was asked for by name is not in the store.
    NotFound {
        /// What, for example ``record `af13…` ``.
        what: String,
    },
    /// A text is not a digest.
    BadDigest {
        /// The text.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value, manifest or record breaks a rule of the format.
    Invalid {
        /// What, with what was expected.
        what: String,
    },
    /// A write was asked of a store that was opened for reading.
    ReadOnly {
        /// Root of the store.
        root: PathBuf,
    },
    /// A bundle is damaged, cut short, or not what it says. Nothing of it was taken in.
    Bundle {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The mirror could not be used, or does not have what it should.
    Mirror {
        /// What, and why.
        what: String,
    },
    /// SQLite refused, for a reason that is none of the above.
    Database {
        /// SQLite's own words.
        cause: String,
    },
}

impl Error {
    /// An input or output failure on a path.
    pub fn io(what: &'static str, path: impl AsRef<Path>, cause: &std::io::Error) -> Self {
        Self::Io {
            what,
            path: path.as_ref().to_owned(),
            cause: cause.to_string(),
            kind: cause.kind(),
        }
    }

    /// A breach of the format.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// An index that is not what it must be: the records make it again.
    pub(crate) fn index(detail: impl Into<String>) -> Self {
        Self::Corrupt {
            what: INDEX.to_owned(),
            detail: detail.into(),
            quarantined: None,
        }
    }

    /// Something that is not there.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// A stable kebab-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "store-io",
            Self::Corrupt { what, .. } if what == INDEX => "index-corrupt",
            Self::Corrupt { .. } => "store-corrupt",
            Self::Locked { .. } => "store-locked",
            Self::SchemaTooNew { .. } => "store-too-new",
            Self::NotFound { .. } => "store-not-found",
            Self::BadDigest { .. } => "bad-digest",
            Self::Invalid { .. } => "store-invalid",
            Self::ReadOnly { .. } => "store-read-only",
            Self::Bundle { .. } => "bad-bundle",
            Self::Mirror { .. } => "mirror",
            Self::Database { .. } => "store-database",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io {
                kind: ErrorKind::NotFound,
                ..
            } => "check that the path is right and that nobody removed it meanwhile".to_owned(),
            Self::Io {
                kind: ErrorKind::PermissionDenied,
                ..
            } => "check who owns the folder and who may write there".to_owned(),
            Self::Io { .. } => {
                "check that the disk has room and that the folder is writable".to_owned()
            }
            Self::Corrupt {
                quarantined: Some(path),
                ..
            } => format!(
                "the damaged file was kept at `{}`; `doe build` makes the result again, \
                 `doe cache verify` looks for more",
                path.display()
            ),
            Self::Corrupt { .. } => {
                "`doe cache verify` lists all damage, `doe cache rebuild` makes the index again \
                 from the records"
                    .to_owned()
            }
            Self::Locked { .. } => {
                "`--wait` waits for it to finish; reading commands (status, results, explain) need \
                 no lock"
                    .to_owned()
            }
            Self::SchemaTooNew { .. } => {
                "use the newer `doe`, or point this one at another cache folder".to_owned()
            }
            Self::NotFound { .. } => {
                "`doe cache ls` lists what is stored; it may have been collected or belong to \
                 another cache"
                    .to_owned()
            }
            Self::BadDigest { .. } => {
                "a digest is 64 lowercase hexadecimal digits, as `doe cache ls --json` prints it"
                    .to_owned()
            }
            Self::ReadOnly { .. } => "open the store for writing".to_owned(),
            Self::Bundle { .. } => {
                "nothing of it was taken in; copy it again, or write it again with `doe cache export` \
                 where it comes from"
                    .to_owned()
            }
            Self::Mirror { .. } => {
                "check the mirror in `doe.toml` and the credentials; `--remote-cache off` does \
                 without it"
                    .to_owned()
            }
            Self::Invalid { .. } | Self::Database { .. } => return None,
        })
    }
}

/// Nothing where a file is not there any more: what is only looked at may be removed meanwhile by
/// who holds the lock.
pub(crate) fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io {
            kind: ErrorKind::NotFound,
            ..
        }) => Ok(None),
        read => read.map(Some),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io {
                what, path, cause, ..
            } => {
                write!(f, "could not {what} `{}`: {cause}", path.display())
            }
            Self::Corrupt { what, detail, .. } => write!(f, "{what} is damaged: {detail}"),
            Self::Locked { holder } => write!(f, "the store is in use by {holder}"),
            Self::SchemaTooNew {
                what,
                found,
                supported,
            } => write!(
                f,
                "the {what} has schema version {found}, but this program knows versions up to \
                 {supported}"
            ),
            Self::NotFound { what } => write!(f, "{what} is not in the store"),
            Self::BadDigest { text, why } => write!(f, "`{text}` is not a digest: {why}"),
            Self::Invalid { what } | Self::Mirror { what } => f.write_str(what),
            Self::Bundle { path, detail } => {
                write!(
                    f,
                    "the bundle `{}` cannot be taken in: {detail}",
                    path.display()
                )
            }
            Self::ReadOnly { root } => {
                write!(
                    f,
                    "the store `{}` was opened for reading only",
                    root.display()
                )
            }
            Self::Database { cause } => write!(f, "the index refused: {cause}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::{Error as Sql, ErrorCode, ffi};
        let cause = error.to_string();
        let (code, words) = match &error {
            Sql::SqliteFailure(code, words) => (code, words.as_deref().unwrap_or_default()),
            Sql::SqlInputError { error, msg, .. } => (error, msg.as_str()),
            Sql::QueryReturnedNoRows => return Self::index("a row that must be there is missing"),
            Sql::InvalidColumnType(..)
            | Sql::FromSqlConversionFailure(..)
            | Sql::IntegralValueOutOfRange(..) => return Self::index(cause),
            _ => return Self::Database { cause },
        };
        match code.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Locked {
                holder: format!("another process that kept the index busy ({cause})"),
            },
            // What readers share is a file too, which is cut to its first length and then grown.
            _ if code.code == ErrorCode::DiskFull
                || [ffi::SQLITE_IOERR_SHMOPEN, ffi::SQLITE_IOERR_SHMSIZE]
                    .contains(&code.extended_code) =>
            {
                Self::Io {
                    what: "write beside the index",
                    path: PathBuf::from("index.sqlite"),
                    cause,
                    kind: ErrorKind::StorageFull,
                }
            }
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::TypeMismatch => {
                Self::index(cause)
            }
            // What is stored has the right types and lengths by the types of this crate.
            _ if [
                ffi::SQLITE_CONSTRAINT_DATATYPE,
                ffi::SQLITE_CONSTRAINT_CHECK,
            ]
            .contains(&code.extended_code) =>
            {
                Self::index(cause)
            }
            _ if code.extended_code == ffi::SQLITE_ERROR && is_of_shape(words) => {
                Self::index(words)
            }
            _ => Self::Database { cause },
        }
    }
}

/// Whether SQLite's words for a plain error say that a table, an index or a view has another shape
/// than the one the statements of this crate were written for. They are the same statements every
/// time, so that the fault is not theirs.
fn is_of_shape(words: &str) -> bool {
    const WORDS: [&str; 20] = [
        "no such column",
        "no such table",
        "no such view",
        "no such index",
        "no such function",
        "unknown function",
        "wrong number of arguments",
        "no such collation",
        "has no column named",
        "values for",
        "values were supplied",
        "generated column",
        "already exists",
        "malformed database schema",
        "foreign key mismatch",
        "ambiguous column name",
        "error in view",
        "because it is a view",
        "may not be modified",
        "ON CONFLICT clause does not match",
    ];
    WORDS.iter().any(|known| words.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_and_what_to_do() {
        let cases = [
            (
                Error::io(
                    "read",
                    "/x/y",
                    &std::io::Error::from(std::io::ErrorKind::NotFound),
                ),
                "could not read `/x/y`: entity not found",
                true,
            ),
            (
                Error::Locked {
                    holder: "process 7 on `a`".into(),
                },
                "the store is in use by process 7 on `a`",
                true,
            ),
            (
                Error::SchemaTooNew {
                    what: "index",
                    found: 9,
                    supported: 1,
                },
                "the index has schema version 9, but this program knows versions up to 1",
                true,
            ),
            (
                Error::not_found("record `ab`"),
                "record `ab` is not in the store",
                true,
            ),
            (
                Error::Bundle {
                    path: "b.doe".into(),
                    detail: "it is empty".into(),
                },
                "the bundle `b.doe` cannot be taken in: it is empty",
                true,
            ),
            (
                Error::invalid("a list was expected"),
                "a list was expected",
                false,
            ),
        ];
        for (error, text, hinted) in cases {
            assert_eq!(error.to_string(), text);
            assert_eq!(error.hint().is_some(), hinted, "{text}");
        }
    }

    #[test]
    fn sqlite_errors_keep_their_kind() {
        let sqlite = |code| {
            rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some("words".into()))
        };
        assert!(matches!(
            Error::from(sqlite(rusqlite::ffi::SQLITE_BUSY)),
            Error::Locked { .. }
        ));
        assert!(matches!(
            Error::from(sqlite(rusqlite::ffi::SQLITE_NOTADB)),
            Error::Corrupt { .. }
        ));
        assert!(matches!(
            Error::from(sqlite(rusqlite::ffi::SQLITE_CONSTRAINT)),
            Error::Database { .. }
        ));
        let db = crate::index::scratch().unwrap();
        for lacking in [
            "SELECT iost FROM run",
            "SELECT 1 FROM nowhere",
            "INSERT INTO meta (game) VALUES (1)",
            "CREATE TABLE run (x)",
            "INSERT INTO meta VALUES ('a', 'no number')",
        ] {
            let error = Error::from(db.execute_batch(lacking).unwrap_err());
            assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
            assert!(error.hint().unwrap().contains("rebuild"));
        }
        // What is asked wrongly says nothing about the index.
        for misuse in ["COMMIT", "SELEKT 1", "SELECT 1 +"] {
            let error = Error::from(db.execute_batch(misuse).unwrap_err());
            assert!(matches!(error, Error::Database { .. }), "{error:?}");
        }
    }
}
