//! What tests say of themselves, for the table in `docs/conformance.md`. Each case of an executor
//! leaves a line when it has ended, so what was passed over, or failed, or was not run is never
//! taken for what has shown something. The lines lie in the build's folder for such files.
#![allow(dead_code)] // each test program uses its own part

use std::path::{Path, PathBuf};

/// A case that is being tested. Dropped by a test that goes on it has passed; by one that panics
/// it has failed.
pub struct Case {
    file: PathBuf,
    line: String,
}

/// What a function of a suite came to, if it came to its end.
pub enum Outcome {
    Passed,
    /// Passed, with so much of something.
    Of(String),
    /// Passed over, with the reason.
    Skipped(&'static str),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Passed
    }
}

/// Where the lines are: `EXECUTOR/CASE` holds `passed`, `passed SIZE`, `skipped WHY` or `failed`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance")
}

/// Whether the lines are those of one whole run, and of nothing since.
pub fn is_whole() -> bool {
    folder().join("whole").exists()
}

/// The line of a case, if it was begun.
pub fn line(executor: &str, case: &str) -> Option<String> {
    std::fs::read_to_string(file(executor, case)).ok()
}

/// Where the lines of one executor are.
pub fn folder_of(executor: &str) -> PathBuf {
    folder().join(executor.replace([' ', '/'], "_"))
}

fn file(executor: &str, case: &str) -> PathBuf {
    folder_of(executor).join(case.replace([' ', '/'], "_"))
}

/// The test that runs, by the name that the harness gives its thread; none where it gives none.
pub fn this_test() -> Option<String> {
    let thread = std::thread::current();
    let name = thread.name()?.rsplit("::").next()?;
    (name != "main").then(|| name.replace('_', " "))
}

impl Case {
    /// Begins a case. Until it has ended it counts as failed, also where it is killed.
    pub fn of(executor: &str, case: &str) -> Self {
        let file = file(executor, case);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        if std::env::var_os("DOE_LANES").is_none() {
            let _ = std::fs::remove_file(folder().join("whole"));
        }
        std::fs::write(&file, "failed").unwrap();
        let line = "passed".to_owned();
        Self { file, line }
    }

    /// Begins the test that runs, as a case of its own.
    pub fn own(executor: &str) -> Option<Self> {
        Some(Self::of(executor, &this_test()?))
    }

    /// How much it was that passes.
    pub fn size(&mut self, size: &str) {
        self.line = format!("passed {size}");
    }

    /// It is passed over.
    pub fn skip(mut self, why: &str) {
        self.line = format!("skipped {why}");
    }

    pub fn end(mut self, outcome: impl Into<Outcome>) {
        match outcome.into() {
            Outcome::Passed => {}
            Outcome::Of(size) => self.size(&size),
            Outcome::Skipped(why) => self.skip(why),
        }
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Whole or not at all: others may be reading.
            let new = self
                .file
                .with_extension(format!("new-{}", std::process::id()));
            let _ =
                std::fs::write(&new, &self.line).and_then(|()| std::fs::rename(&new, &self.file));
        }
    }
}
