//! The server's log, in the form of vLLM's and uvicorn's lines, so that what waits for a line or
//! scans for a failure works here as there. Lines are whole whoever writes them.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where log lines go.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Box<dyn Write + Send>>>);

impl Log {
    /// Lines go to `out`.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(out))))
    }

    /// Lines as they are.
    pub fn raw(&self, text: &str) {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written is no reason to stop serving.
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    /// One of vLLM's own lines.
    pub fn info(&self, place: &str, message: &str) {
        self.line("INFO", place, message);
    }

    /// One of vLLM's own lines.
    pub fn warning(&self, place: &str, message: &str) {
        self.line("WARNING", place, message);
    }

    /// One of vLLM's own lines.
    pub fn error(&self, place: &str, message: &str) {
        self.line("ERROR", place, message);
    }

    fn line(&self, level: &str, place: &str, message: &str) {
        let stamp = stamp(SystemTime::now());
        let pid = std::process::id();
        self.raw(&format!(
            "(APIServer pid={pid}) {level} {stamp} [{place}] {message}"
        ));
    }
}

/// `MM-DD hh:mm:ss` in UTC.
fn stamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (month, day) = month_and_day(days);
    format!(
        "{month:02}-{day:02} {:02}:{:02}:{:02}",
        clock / 3600,
        clock / 60 % 60,
        clock % 60
    )
}

/// Month and day of the Gregorian calendar, days counted from 1970-01-01. The year is taken to
/// begin in March, so that the leap day is its last (Hinnant's `civil_from_days`).
fn month_and_day(days: u64) -> (u64, u64) {
    let day_of_era = (days + 719_468) % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, want) in [
            (0, (1, 1)),
            (58, (2, 28)),
            (59, (3, 1)),
            (789, (2, 29)),
            (11_016, (2, 29)),
            (20_512, (2, 28)),
        ] {
            assert_eq!(month_and_day(days), want, "{days}");
        }
        let at = UNIX_EPOCH + Duration::from_secs(86_400 * 31 + 3_723);
        assert_eq!(stamp(at), "02-01 01:02:03");
    }
}
