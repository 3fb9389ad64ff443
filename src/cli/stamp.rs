//! The hidden command `doe __stamp`: every line of standard input goes to standard output behind
//! the time at which it came, at once. Monitors are read through it on their hosts.

use std::io::{BufRead, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Kind, Result};

/// Runs until there is no more input.
pub fn stamp_main() -> Result<u8> {
    let failed = |e| Error::new(Kind::Infra, "io", "could not stamp lines").cause(e);
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut stamped = format!("{} ", now.unwrap_or_default().as_millis()).into_bytes();
        stamped.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(&line));
        stamped.push(b'\n');
        // One write a line: whoever is ended in between leaves whole lines.
        output.write_all(&stamped).map_err(failed)?;
        output.flush().map_err(failed)?;
        line.clear();
    }
    Ok(0)
}
