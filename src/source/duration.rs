//! Lengths of time as people write them. A duration that parses is a finite number of seconds,
//! zero or more.

/// Seconds in `90s`, `15m`, `1h30m`, `1h 30m`, `250ms`; a bare number in a text is refused, since
/// it says no unit.
pub fn parse_duration(text: &str) -> Option<f64> {
    humantime::parse_duration(text.trim())
        .ok()
        .map(|duration| duration.as_secs_f64())
}

/// Seconds as people write them: `15m`, `1h 30m`, `250ms`.
pub fn format_duration(seconds: f64) -> String {
    match std::time::Duration::try_from_secs_f64(seconds) {
        // Rounded to milliseconds: nobody writes a plan in nanoseconds.
        Ok(duration) => {
            let rounded = std::time::Duration::from_millis(
                u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            );
            humantime::format_duration(rounded).to_string()
        }
        Err(_) => format!("{seconds} s"),
    }
}
