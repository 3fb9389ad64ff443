//! At most one process writes a workspace. The lock belongs to the open file: the system takes it
//! back however the holder ends, `kill -9` included, so it is never stale. What the file says is
//! for people only.

use crate::durable;
use crate::error::{Error, Result};
use crate::layout::Layout;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The writer's lock; given back when dropped.
#[derive(Debug)]
pub struct WriterLock {
    file: File,
    predecessor: Option<String>,
    root: PathBuf,
}

/// How long to wait between two tries for a lock that another holds.
const TRY_EVERY: Duration = Duration::from_millis(100);

impl WriterLock {
    /// Takes the lock of the store at `root`, or fails at once. `command` is what the user
    /// asked for, to be shown to others who want the lock.
    ///
    /// # Errors
    /// [`Error::Locked`] with the holder in words; [`Error::Io`].
    pub fn acquire(root: impl AsRef<Path>, command: &str) -> Result<Self> {
        let lock = Self::hold(root, command)?;
        lock.settle()?;
        Ok(lock)
    }

    /// Takes the lock for somebody who only keeps others off and writes nothing. [`Self::settle`]
    /// comes before the first write.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub fn hold(root: impl AsRef<Path>, command: &str) -> Result<Self> {
        let layout = Layout::new(root.as_ref());
        durable::create_dir(layout.root())?;
        let path = layout.lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // it may be another's
            .open(&path)
            .map_err(|e| Error::io("open", &path, &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked {
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, &e)),
        }
        // Whoever gives the lock back empties the file: what is in it was left by the dead.
        let mut left = String::new();
        let _ = file.read_to_string(&mut left);
        let predecessor = (!left.trim().is_empty()).then(|| describe(&left));
        if predecessor.is_some() {
            // Whoever takes the lock and does not clear up hands that on.
            let unsettled = layout.unsettled();
            File::create(&unsettled).map_err(|e| Error::io("create", &unsettled, &e))?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let text = format!(
            "pid {}\nhost {}\nsince {}\ncommand {}\n",
            std::process::id(),
            host(),
            utc(now.unwrap_or_default()),
            command.replace('\n', " "),
        );
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(|e| Error::io("write", &path, &e))?;
        let lock = Self {
            file,
            predecessor,
            root: layout.root().to_owned(),
        };
        if lock.predecessor.is_some() {
            // What is said of the dead must not be lost with what they left.
            lock.settle()?;
        }
        Ok(lock)
    }

    /// Brings to disk that somebody is at work, before anything else of ours is: who comes after a
    /// power cut must see it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn settle(&self) -> Result<()> {
        let synced = self.file.sync_all();
        synced
            .and_then(|()| File::open(&self.root)?.sync_all())
            .map_err(|e| Error::io("sync the lock in", &self.root, &e))
    }

    /// [`Self::hold`], waiting for whoever holds it: at most `limit`, for ever without one.
    /// `waiting` is told who that is, at first and whenever it is somebody else.
    ///
    /// # Errors
    /// As [`Self::acquire`], once the limit is over.
    pub fn hold_within(
        root: impl AsRef<Path>,
        command: &str,
        limit: Option<Duration>,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let began = Instant::now();
        let mut told = String::new();
        loop {
            let holder = match Self::hold(root.as_ref(), command) {
                Err(Error::Locked { holder }) => holder,
                other => return other,
            };
            let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Error::Locked { holder });
            }
            if holder != told && holder != STARTING {
                waiting(&holder);
                told = holder;
            }
            std::thread::sleep(left.map_or(TRY_EVERY, |left| left.min(TRY_EVERY)));
        }
    }

    /// The last holder in words, when it died without giving the lock back.
    pub fn predecessor(&self) -> Option<&str> {
        self.predecessor.as_deref()
    }
}

/// The process that holds the lock of the store at `root`, seen from the kernel's table: looking
/// never gets into the way of who wants the lock.
pub fn lock_holder(root: impl AsRef<Path>) -> Option<u32> {
    let path = Layout::new(root.as_ref()).lock();
    let inode = fs::metadata(path).ok()?.ino().to_string();
    let table = fs::read_to_string("/proc/locks").ok()?;
    table.lines().find_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF`
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words.get(1) == Some(&"FLOCK")
            && words.get(3) == Some(&"WRITE")
            && words.get(5)?.rsplit(':').next() == Some(&inode);
        ours.then(|| words.get(4)?.parse().ok())?
    })
}

/// Stores whose lock is not to be given back in order: a write failed, and no mark could say so.
static HANDED_ON: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn handed_on() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    HANDED_ON.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the next holder of the lock find it as if this one had died.
pub(crate) fn hand_on(root: &Path) {
    handed_on().insert(root.to_owned());
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Best effort: who finds words looks for what is left over, which is never wrong.
        if !handed_on().remove(&self.root) {
            let _ = self.file.set_len(0);
        }
        let _ = self.file.unlock();
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // Unreadable or just being written: nothing to say about the holder.
    let _ = file.read_to_string(&mut text);
    describe(&text)
}

const STARTING: &str = "another process that is just starting";

fn describe(text: &str) -> String {
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))
    };
    match (
        field("pid"),
        field("host"),
        field("since"),
        field("command"),
    ) {
        (Some(pid), Some(host), Some(since), Some(command)) => {
            format!("process {pid} on `{host}` since {since}, running `{command}`")
        }
        _ => STARTING.to_owned(),
    }
}

/// Name of this machine, as the kernel has it.
pub fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "this machine".to_owned())
}

/// `2026-01-31T12:00:00Z`. Days to date after Howard Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`.
fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn one_holder_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("not/yet/there");
        let first = WriterLock::acquire(&root, "doe build //...").unwrap();
        assert_eq!(lock_holder(&root), Some(std::process::id()));
        let error = WriterLock::acquire(&root, "doe build //x").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Locked { .. }), "{error:?}");
        for part in [
            format!("process {} on", std::process::id()),
            format!("`{}`", host()),
            "running `doe build //...`".to_owned(),
        ] {
            assert!(text.contains(&part), "{text}");
        }
        drop(first);
        assert_eq!(lock_holder(&root), None);
        drop(WriterLock::acquire(&root, "doe build //x").unwrap());
    }

    #[test]
    fn old_content_is_not_a_lock() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        fs::write(
            &path,
            "pid 1\nhost gone\nsince ever\ncommand a much longer one than ours\n",
        )
        .unwrap();
        let lock = WriterLock::acquire(root.path(), "x\ny").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.ends_with("command x y\n") && !text.contains("gone"),
            "{text}"
        );
        drop(lock);
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    /// `flock(1)` takes the same lock as we do; killed without mercy, it holds nothing.
    #[test]
    fn a_killed_holder_holds_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let mut child = Command::new("flock")
            .arg("--no-fork")
            .arg(&path)
            .args(["sh", "-c", "echo held; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 5];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        let error = WriterLock::acquire(root.path(), "x").unwrap_err();
        assert!(error.to_string().contains("just starting"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
        WriterLock::acquire(root.path(), "x").unwrap();
    }

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), text);
        }
    }
}
