//! Named points on the way to the disk, where a test can make the process die or the disk refuse.
//! Free when not armed: a point is then one read of a value that was set at the first point.
//! Nothing but the environment variable `DOE_FAULT` arms them, and a wrong value of it makes
//! every point fail rather than pass for an armed one.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that arms points: `POINT:COUNT:ACTION`, several separated by commas. COUNT is
/// the how-manieth passage of the process, from 1; `3+` is the third and all after it. ACTION is
/// `kill` (the process dies as by SIGKILL), `error` (the call fails: no room left for writes,
/// input/output error for everything else) or, where bytes are about to be written, `torn` (half
/// of them are written, then the process dies; `torn=N`: so many percent of them).
pub const FAULT_VAR: &str = "DOE_FAULT";

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $word:literal),+ $(,)?) => {
        /// A place in the store's writing. The name says what is next, or what was just done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $name),+
        }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name in `DOE_FAULT`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word),+
                }
            }
        }
    };
}

points! {
    /// A temporary file is about to be made.
    BeforeTmpWrite = "before-tmp-write",
    /// A temporary file is complete, and in memory only.
    AfterTmpWrite = "after-tmp-write",
    /// Complete temporary files are about to be synced.
    BeforeFsync = "before-fsync",
    /// They are on disk, under their temporary names.
    AfterFsync = "after-fsync",
    /// A synced file is about to get its final name.
    BeforeRename = "before-rename",
    /// It has it, in memory.
    AfterRename = "after-rename",
    /// Folders with new names are about to be synced.
    BeforeDirSync = "before-dir-sync",
    /// The new names are on disk.
    AfterDirSync = "after-dir-sync",
    /// Lines are about to be appended to the announcements of a run.
    BeforeAnnounce = "before-announce",
    /// They are appended and, where somebody waits for them, on disk.
    AfterAnnounce = "after-announce",
    /// Lines are about to be appended to a run's notes.
    BeforeAppend = "before-append",
    /// They are appended and on disk.
    AfterAppend = "after-append",
    /// A transaction of the index is about to be committed.
    BeforeCommit = "before-commit",
    /// It is committed.
    AfterCommit = "after-commit",
    /// A damaged or refused file is about to be moved to quarantine.
    BeforeQuarantine = "before-quarantine",
    /// It lies there.
    AfterQuarantine = "after-quarantine",
    /// A file is about to be removed by a collection.
    BeforeRemove = "before-remove",
    /// It is gone.
    AfterRemove = "after-remove",
}

impl Point {
    /// Whether bytes are written next, which may be torn.
    pub const fn tears(self) -> bool {
        matches!(
            self,
            Self::BeforeTmpWrite | Self::BeforeAnnounce | Self::BeforeAppend
        )
    }

    /// Whether the disk is asked for room here.
    const fn writes(self) -> bool {
        self.tears() || matches!(self, Self::AfterTmpWrite)
    }
}

/// What is to become of the bytes that a point announces: all are written, or a part of them is
/// and the process dies.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Tear(Option<u8>);

impl Tear {
    /// Writes the bytes to the end of a file.
    ///
    /// # Errors
    /// As writing.
    pub fn write(self, bytes: &[u8], file: &mut File) -> io::Result<()> {
        let Some(percent) = self.0 else {
            return file.write_all(bytes);
        };
        let part = bytes.len() * usize::from(percent) / 100;
        file.write_all(&bytes[..part])?;
        kill()
    }

    /// Leaves a part of a file that was written whole.
    pub(crate) fn cut(self, path: &Path) -> io::Result<()> {
        let Some(percent) = self.0 else {
            return Ok(());
        };
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(file.metadata()?.len() * u64::from(percent) / 100)?;
        kill()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Error,
    Torn(u8),
}

#[derive(Debug)]
struct Fault {
    point: Point,
    from: u64,
    /// Whether it strikes at every later passage too.
    on: bool,
    action: Action,
    passed: AtomicU64,
}

type Armed = Result<Vec<Fault>, String>;

/// Passes a point.
///
/// # Errors
/// What `DOE_FAULT` asks for, or that it cannot be understood.
#[inline]
pub fn hit(point: Point) -> io::Result<()> {
    match before_write(point)? {
        Tear(None) => Ok(()),
        // Of no bytes there is no part.
        Tear(Some(_)) => kill(),
    }
}

/// Passes a point behind which bytes are written; what is to become of them.
///
/// # Errors
/// As [`hit`].
#[inline]
pub fn before_write(point: Point) -> io::Result<Tear> {
    #[cfg(test)]
    let _ = here::strike(point)?;
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var(FAULT_VAR).ok().map(|text| parse(&text)));
    match armed {
        None => Ok(Tear(None)),
        Some(armed) => strike(armed, point),
    }
}

#[cold]
fn strike(armed: &Armed, point: Point) -> io::Result<Tear> {
    let faults = armed
        .as_ref()
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why.as_str()))?;
    for fault in faults.iter().filter(|fault| fault.point == point) {
        let count = fault.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if count != fault.from && !(fault.on && count > fault.from) {
            continue;
        }
        match fault.action {
            Action::Kill => kill(),
            Action::Error => {
                let errno = match point.writes() {
                    true => rustix::io::Errno::NOSPC,
                    false => rustix::io::Errno::IO,
                };
                return Err(errno.into());
            }
            Action::Torn(percent) => return Ok(Tear(Some(percent))),
        }
    }
    Ok(Tear(None))
}

/// Ends this process as a power cut would: nothing is dropped, flushed or told.
fn kill() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

fn parse(text: &str) -> Armed {
    text.split(',').map(|part| one(part.trim())).collect()
}

fn one(text: &str) -> Result<Fault, String> {
    let refuse = |why: String| Err(format!("{FAULT_VAR}: `{text}`: {why}"));
    let words: Vec<&str> = text.split(':').collect();
    let [point, count, action] = words[..] else {
        return refuse("POINT:COUNT:ACTION was expected".to_owned());
    };
    let known = |p: &&Point| p.as_str() == point;
    let Some(point) = Point::ALL.iter().find(known) else {
        let all: Vec<&str> = Point::ALL.iter().map(|p| p.as_str()).collect();
        return refuse(format!(
            "there is no such point; points: {}",
            all.join(", ")
        ));
    };
    let (number, on) = match count.strip_suffix('+') {
        Some(number) => (number, true),
        None => (count, false),
    };
    let from = match number.parse::<u64>() {
        Ok(from) if from > 0 => from,
        _ => return refuse("COUNT is a number from 1, with `+` for all after it".to_owned()),
    };
    let part = |text: &str| match text.strip_prefix("torn")? {
        "" => Some(50),
        percent => percent.strip_prefix('=')?.parse().ok().filter(|p| *p < 100),
    };
    let action = match (action, part(action)) {
        ("kill", _) => Action::Kill,
        ("error", _) => Action::Error,
        (_, Some(percent)) if point.tears() => Action::Torn(percent),
        (_, Some(_)) => return refuse(format!("nothing is written at {point}")),
        _ => return refuse("ACTION is `kill`, `error`, `torn` or `torn=PERCENT`".to_owned()),
    };
    Ok(Fault {
        point: *point,
        from,
        on,
        action,
        passed: AtomicU64::new(0),
    })
}

/// Faults of one thread, for tests that share a process.
#[cfg(test)]
pub(crate) mod here {
    use super::{Armed, Point, Tear, parse};
    use std::cell::RefCell;
    use std::io;

    thread_local! {
        static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
    }

    /// Does something while this thread's points are armed so.
    pub(crate) fn with<T>(faults: &str, work: impl FnOnce() -> T) -> T {
        ARMED.set(Some(parse(faults)));
        let done = work();
        ARMED.set(None);
        done
    }

    pub(super) fn strike(point: Point) -> io::Result<Tear> {
        ARMED.with_borrow(|armed| match armed {
            Some(armed) => super::strike(armed, point),
            None => Ok(Tear(None)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_strike_at_their_passage_and_no_other() {
        let armed = parse("before-fsync:2:error, after-rename:3+:error,before-tmp-write:1:error");
        let passes = |point: Point| -> Vec<Option<i32>> {
            let pass = |_| strike(&armed, point).err().and_then(|e| e.raw_os_error());
            (0..5).map(pass).collect()
        };
        let io = Some(rustix::io::Errno::IO.raw_os_error());
        let room = Some(rustix::io::Errno::NOSPC.raw_os_error());
        assert_eq!(passes(Point::BeforeFsync), [None, io, None, None, None]);
        assert_eq!(passes(Point::AfterRename), [None, None, io, io, io]);
        assert_eq!(
            passes(Point::BeforeTmpWrite),
            [room, None, None, None, None]
        );
        assert_eq!(passes(Point::AfterCommit), [None; 5]);
    }

    #[test]
    fn a_wrong_value_fails_everywhere() {
        for (text, why) in [
            ("", "POINT:COUNT:ACTION"),
            ("before-fsync:1", "POINT:COUNT:ACTION"),
            ("before-lunch:1:kill", "before-fsync"),
            ("before-fsync:0:kill", "from 1"),
            ("before-fsync:x:kill", "from 1"),
            ("before-fsync:1:explode", "`kill`, `error`"),
            ("before-fsync:1:torn", "nothing is written at before-fsync"),
            ("before-append:1:torn=100", "`torn=PERCENT`"),
            ("before-append:1:tornado", "`torn=PERCENT`"),
        ] {
            let armed = parse(text);
            let error = strike(&armed, Point::BeforeCommit).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_torn_is_told_to_who_writes() {
        let armed = parse("before-append:2:torn=30, before-announce:1:torn");
        let pass = |point| strike(&armed, point).unwrap();
        assert_eq!(pass(Point::BeforeAppend), Tear(None));
        assert_eq!(pass(Point::BeforeAppend), Tear(Some(30)));
        assert_eq!(pass(Point::BeforeAnnounce), Tear(Some(50)));
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|p| p.as_str()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
