//! Files that a user has named: there whole or not at all, and nothing but a file is ever replaced.
//! A device or a pipe is written to, for to rename over it would put a file in its place (for root
//! even in that of `/dev/null`); a link stays, and what it leads to is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// In place of a file of a user's: standard input, or standard output.
pub const STREAM: &str = "-";

/// What stands where something is to be written.
#[derive(Debug)]
pub(crate) enum Target {
    /// A file, or nothing yet: who writes makes another beside it and renames that.
    File(PathBuf),
    /// Something else, open for writing.
    Stream(File),
}

impl Target {
    /// Looks at a path.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        match fs::metadata(path) {
            Ok(meta) if !meta.is_file() && !meta.is_dir() => {
                let opened = OpenOptions::new().write(true).open(path);
                opened.map(Self::Stream)
            }
            Ok(_) if is_link => fs::canonicalize(path).map(Self::File),
            // It leads to nothing yet. Links in a circle are another error.
            Err(e) if is_link && e.kind() == ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(path);
                Self::of(&folder.join(fs::read_link(path)?))
            }
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(Self::File(path.to_owned())),
        }
    }
}

/// Writes a file that a user has named: whole, synced, and in place of what was there, or not at all.
/// What is there and is no file gets the bytes as they are.
///
/// # Errors
/// What the system says; nothing is left beside the file then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let target = match Target::of(path)? {
        Target::File(target) => target,
        Target::Stream(mut stream) => return stream.write_all(bytes),
    };
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let beside = target.with_file_name(format!(".doe-{}-{count}.part", std::process::id()));
    let written = (|| {
        let mut file = File::create(&beside)?;
        if let Ok(meta) = fs::metadata(&target) {
            file.set_permissions(meta.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &target)
    })();
    if written.is_err() {
        // It may not even exist.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    /// A pipe with a name, and what comes through it.
    pub(crate) fn fifo(path: &Path) -> std::thread::JoinHandle<Vec<u8>> {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        let path = path.to_owned();
        std::thread::spawn(move || fs::read(path).unwrap())
    }

    pub(crate) fn is_fifo(path: &Path) -> bool {
        fs::symlink_metadata(path).unwrap().file_type().is_fifo()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_keeps_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        // As long as a name may be.
        let path = dir.path().join("x".repeat(255));
        replace(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(names(dir.path()).len(), 1);
    }

    #[test]
    fn links_stay_and_lead_to_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("data")).unwrap();
        symlink("data/one", at("latest")).unwrap();
        symlink("latest", at("again")).unwrap();
        for bytes in ["to nothing yet", "to a file"] {
            replace(&at("again"), bytes.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(at("data/one")).unwrap(), bytes);
        }
        assert!(at("latest").is_symlink() && at("again").is_symlink());
        assert_eq!(names(&at("data")), ["one"]);
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        replace(&at("a"), b"").unwrap_err();
        assert!(at("a").is_symlink() && at("b").is_symlink());
    }

    #[test]
    fn what_is_no_file_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let read = fifo(&pipe);
        replace(&pipe, b"through it").unwrap();
        assert_eq!(read.join().unwrap(), b"through it");
        assert!(is_fifo(&pipe));
        // A folder is neither.
        replace(dir.path(), b"").unwrap_err();
        replace(&dir.path().join("none/file"), b"").unwrap_err();
        assert_eq!(names(dir.path()), ["pipe"]);
    }
}
