//! Durations and counts for people.

/// Seconds in at most two units: `420 ms`, `3.2 s`, `4m 05s`, `2h 03m`.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    match hours {
        0 => format!("{minutes}m {rest:02}s"),
        _ => format!("{hours}h {minutes:02}m"),
    }
}

/// Milliseconds as [`seconds`].
pub fn milliseconds(ms: u64) -> String {
    seconds(ms as f64 / 1000.0)
}

/// `1 node`, `2 nodes`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// A text cut to a number of characters, with `…` where something is missing.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well_and_round_into_the_next_unit() {
        for (value, text) in [
            (0.0, "0 ms"),
            (0.4204, "420 ms"),
            (0.9996, "1.0 s"),
            (3.21, "3.2 s"),
            (59.94, "59.9 s"),
            (59.96, "1m 00s"),
            (245.4, "4m 05s"),
            (3599.6, "1h 00m"),
            (7380.0, "2h 03m"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }

    #[test]
    fn cutting_never_splits_a_character() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
