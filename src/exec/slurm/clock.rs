//! When something ended, by our clock. A node's clock may be off; the shared disk stamps the exit
//! record by a clock that we can read too, and who waits sees it come. What a record says is left
//! as it is while that can be true; else it is moved as a whole, and by how much is noted in its
//! folder, so that whoever asks later is told the same.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::SlurmExecutor;
use crate::error::Result;
use crate::exec::Exit;
use crate::exec::folder::{self, Record};
use crate::exec::remote::call::nonce;

/// What a stamp may be off by: disks count in seconds, and nodes write late.
const STAMP_MS: i64 = 2000;
/// By how much an end may be off whose record is left as it is.
pub(super) const AS_IT_IS: Duration = Duration::from_millis(STAMP_MS.unsigned_abs());
/// How much later than it is there a record may be seen on another machine.
const SIGHT_MS: i64 = 60_000;
/// How long the clock of the shared disk is taken to be where it was seen.
const HOLDS: Duration = Duration::from_secs(10);
/// File of an execution: how many ms its record is ahead of our clock.
const AHEAD: &str = "ahead_ms";

/// How far the clock of the shared disk is ahead of ours, as of then.
#[derive(Debug, Default)]
pub(super) struct DiskClock(Mutex<Option<(Instant, i64)>>);

impl SlurmExecutor {
    /// A record by our clock. Who waited for it says between which two moments it came into sight,
    /// Unix ms.
    pub(super) fn by_our_clock(
        &self,
        dir: &Path,
        exit: Exit,
        seen: Option<(i64, i64)>,
    ) -> Result<Exit> {
        let path = dir.join(AHEAD);
        let known = folder::read_if_there(&path)?;
        let ahead = match known.and_then(|text| text.trim_end().parse().ok()) {
            Some(ahead) => ahead,
            None => {
                let ended = i64::try_from(exit.ended_unix_ms).unwrap_or(i64::MAX);
                let ahead = ahead_ms(ended, self.stamped_ms(&dir.join(folder::EXIT)), seen);
                // That it may be right is worth noting by who saw it come, for others know less.
                if ahead != 0 || seen.is_some() {
                    // Where it cannot be written the next one finds out as we did.
                    let _ = folder::replace(&path, format!("{ahead}\n").as_bytes());
                }
                ahead
            }
        };
        let ours = |unix_ms: u64| unix_ms.saturating_add_signed(ahead.saturating_neg());
        Ok(Exit {
            started_unix_ms: ours(exit.started_unix_ms),
            ended_unix_ms: ours(exit.ended_unix_ms),
            ..exit
        })
    }

    /// When an execution ended, if it left a whole record.
    pub(super) fn end_by_our_clock(&self, dir: &Path) -> Result<Option<u64>> {
        match Record::read(dir)? {
            Record::Whole(exit) => {
                let exit = self.by_our_clock(dir, exit, None)?;
                Ok(Some(exit.ended_unix_ms))
            }
            _ => Ok(None),
        }
    }

    /// When a file was written, as the disk says, by our clock.
    fn stamped_ms(&self, path: &Path) -> Option<i64> {
        let stamp = stamp_ms(path)?;
        let mut known = self.disk.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = match *known {
            Some((at, ahead)) if at.elapsed() < HOLDS => ahead,
            _ => {
                let ahead = Moment::read(self.root())?.ahead_ms;
                *known = Some((Instant::now(), ahead));
                ahead
            }
        };
        Some(stamp - ahead)
    }

    /// How old a file of the shared folder is, by the clock that stamps the files there.
    pub(super) fn age(&self, path: &Path) -> Option<Duration> {
        let age_ms = Moment::read(self.root())?.disk_ms - stamp_ms(path)?;
        u64::try_from(age_ms).ok().map(Duration::from_millis)
    }
}

/// A moment, as the clock of a disk shows it.
#[derive(Debug, PartialEq, Eq)]
struct Moment {
    /// By that clock, Unix ms.
    disk_ms: i64,
    /// How far it is ahead of ours.
    ahead_ms: i64,
}

impl Moment {
    /// Now, by the disk of a folder. A file of its own each time, and with something in it: one
    /// that is emptied anew although it is empty keeps its stamp on some (NFSv4).
    fn read(folder: &Path) -> Option<Self> {
        let file = folder.join(format!(".now-{}", nonce()));
        let before = now_ms();
        // On a full disk it is there, if empty.
        let _ = folder::write_private(&file, b"\n");
        let disk_ms = stamp_ms(&file);
        let after = now_ms();
        let _ = fs::remove_file(&file);
        Self::between(before, disk_ms?, after)
    }

    /// What took long tells nothing: the stamp may be from any moment of it.
    fn between(before: i64, disk_ms: i64, after: i64) -> Option<Self> {
        (0..STAMP_MS / 2).contains(&(after - before)).then(|| Self {
            disk_ms,
            ahead_ms: disk_ms - before.midpoint(after),
        })
    }
}

/// How far a record that says it ended then is ahead of our clock; 0 where it may be right. The disk
/// is believed unless who waited saw otherwise: on some the machine that writes stamps the file.
fn ahead_ms(ended: i64, stamped: Option<i64>, seen: Option<(i64, i64)>) -> i64 {
    let stamped = stamped.map(|at| (at - STAMP_MS, at + STAMP_MS));
    let seen_ms = seen.map(|(from, to)| (from - SIGHT_MS, to + STAMP_MS));
    let meet = |a: (i64, i64), b: (i64, i64)| a.0 <= b.1 && b.0 <= a.1;
    let span = match (stamped, seen_ms) {
        (Some(stamped), Some(seen)) if !meet(stamped, seen) => seen,
        (Some(stamped), _) => stamped,
        (None, Some(seen)) => seen,
        (None, None) => return 0,
    };
    if (span.0..=span.1).contains(&ended) {
        return 0;
    }
    // What comes into sight mostly does so at once.
    let likely = match seen {
        Some(seen) if Some(span) == seen_ms => seen,
        _ => span,
    };
    ended - likely.0.midpoint(likely.1)
}

fn stamp_ms(path: &Path) -> Option<i64> {
    fs::metadata(path).ok()?.modified().ok().map(unix_ms)
}

/// Now, by our clock.
pub(super) fn now_ms() -> i64 {
    unix_ms(SystemTime::now())
}

fn unix_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const AT: i64 = 1_800_000_000_000;

    #[test]
    fn a_record_that_can_be_true_is_left_alone() {
        let seen = Some((AT - 300, AT + 200));
        for ended in [AT - 1900, AT, AT + 1900] {
            assert_eq!(ahead_ms(ended, Some(AT), seen), 0);
            assert_eq!(ahead_ms(ended, Some(AT), None), 0);
        }
        // Seen late, as on a disk whose clients look seldom.
        assert_eq!(ahead_ms(AT - 50_000, None, seen), 0);
        // Nothing is known.
        assert_eq!(ahead_ms(AT - HOUR, None, None), 0);
    }

    #[test]
    fn the_clock_of_a_disk_is_read_anew_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let begun = now_ms();
        let moment = Moment::read(dir.path()).unwrap();
        // A kernel stamps by a clock that ticks.
        assert!(
            (begun - 20..=now_ms()).contains(&moment.disk_ms),
            "{moment:?}"
        );
        assert!(moment.ahead_ms.abs() < STAMP_MS, "{moment:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(Moment::read(&dir.path().join("none")), None);

        let (disk_ms, ahead_ms) = (AT + HOUR, HOUR - 100);
        let read = Some(Moment { disk_ms, ahead_ms });
        assert_eq!(Moment::between(AT, disk_ms, AT + 200), read);
        assert_eq!(Moment::between(AT, disk_ms, AT + STAMP_MS), None);
        assert_eq!(Moment::between(AT, disk_ms, AT - 1), None);
    }

    #[test]
    fn a_clock_that_is_off_is_put_right() {
        let seen = Some((AT - 300, AT + 300));
        for off in [-26 * HOUR, -420_000, 7000, 3 * HOUR] {
            assert_eq!(ahead_ms(AT + off, Some(AT), None), off);
            assert_eq!(ahead_ms(AT + off, Some(AT), seen), off);
        }
        // The node stamps its files itself: only who waited knows.
        let (stamped, ended) = (Some(AT + HOUR), AT + HOUR);
        assert_eq!(ahead_ms(ended, stamped, None), 0);
        assert_eq!(ahead_ms(ended, stamped, seen), HOUR);
    }
}
