//! Runs a program and says how long it took and how much memory it had at most.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program with its words and where it runs.
pub struct Tool<'a> {
    /// For people.
    pub name: &'a str,
    /// Path or name.
    pub program: &'a str,
    /// Arguments.
    pub words: Vec<String>,
    /// Working folder.
    pub dir: &'a Path,
}

impl Tool<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command
            .args(&self.words)
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Milliseconds from start to end; a failure ends the bench, for its figures would be void.
    pub fn time_ms(&self) -> f64 {
        let started = Instant::now();
        let output = self.command().output();
        let elapsed = started.elapsed();
        match output {
            Ok(output) if output.status.success() => elapsed.as_secs_f64() * 1000.0,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                panic!("{} failed with {}: {said}", self.name, output.status)
            }
            Err(error) => panic!("{} could not be started: {error}", self.name),
        }
    }

    /// The most memory that it had resident, in MiB, by looking at it every millisecond: what is
    /// in `VmHWM` only grows.
    pub fn peak_mib(&self) -> f64 {
        let mut command = self.command();
        let child = command.stderr(Stdio::null()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let status = format!("/proc/{}/status", child.id());
        let mut peak_kib = 0.0_f64;
        while matches!(child.try_wait(), Ok(None)) {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            peak_kib = peak_kib.max(kib.unwrap_or(0.0));
            std::thread::sleep(Duration::from_millis(1));
        }
        peak_kib / 1024.0
    }
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
