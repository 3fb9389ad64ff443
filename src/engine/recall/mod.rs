//! What a command answered, kept so that the same question over the same world need not be worked
//! out again. It judges nothing: an answer was the judge's own, and it is given again only when
//! everything that the judge could have looked at is what it was. The slightest doubt (a file that
//! reads differently, another program, a store that anybody touched, bytes that do not match their
//! digest) and there is no answer: the long way is taken, which is always right.

mod file;
mod nothing;
mod outline;
mod outline_file;
#[cfg(test)]
mod tests;
mod world;

use std::path::{Path, PathBuf};

use doe_cache::{Digest, KeyEncoder, Value};
use serde::{Deserialize, Serialize};

use super::event::Body;

pub use nothing::Gather;
pub use outline::{Fate, Outline};
pub use world::{Places, World};

/// Folder of the answers, inside the store's.
const FOLDER: &str = "recall";
/// Answers that are kept.
const MOST_ANSWERS: usize = 32;
/// Bytes of all of them together.
const MOST_BYTES: u64 = 96 << 20;

/// What was asked: everything that the answer depends on beside the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question(Digest);

impl Question {
    /// The words of the command line as they are, the folder it was asked from, the workspace, and
    /// how the answer is shown (colours, width).
    pub fn new(words: &[String], here: &Path, root: &Path, shown: &[i64]) -> Self {
        let text = |path: &Path| Value::from(path.to_string_lossy().into_owned());
        let mut key = KeyEncoder::new("doe.question", 1);
        key.entry("here", &text(here));
        key.entry("root", &text(root));
        let shown = shown.iter().map(|number| Value::Int(*number));
        key.entry("shown", &Value::List(shown.collect()));
        let words = words.iter().map(|word| Value::from(word.as_str()));
        key.entry("words", &Value::List(words.collect()));
        Self(key.finish())
    }
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// A command that only looks: what it printed and its exit code. The body is what went to
    /// standard output.
    Printed {
        /// What went to standard error.
        notes: String,
        /// Exit code.
        code: u8,
    },
    /// A build that had nothing to do. The body holds its events in the middle, one a line, each
    /// without its last words, the time; it is empty when nobody asked for events.
    Nothing(Box<Nothing>),
}

/// A build that had nothing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nothing {
    /// The event that says what is known before anything runs.
    pub planned: Body,
    /// What went to standard error before it began.
    pub notes: String,
    /// Platform by name.
    pub platform: String,
    /// Whether its tools are simulated.
    pub simulated: bool,
    /// Number of nodes, all of them reused.
    pub nodes: u64,
    /// Seconds that the reused results once took.
    pub time_saved_s: f64,
    /// Simulated results among them.
    pub simulated_results: u64,
    /// Missed expectations by label.
    pub missed: Vec<(String, Vec<String>)>,
    /// What follow-ups had to say: those that hold, and what their budgets leave out.
    pub told: Vec<Body>,
    /// Number of their nodes, all of them reused.
    pub followups: u64,
    /// Label and record of the analyses whose numbers are shown at the end.
    pub analyses: Vec<(String, String)>,
    /// How many more analyses have numbers.
    pub more_analyses: u64,
}

/// Where answers are kept, for one question.
#[derive(Debug, Clone)]
pub struct Memory {
    folder: PathBuf,
    path: PathBuf,
}

impl Memory {
    /// The memory of a store.
    pub fn new(state_dir: &Path, question: &Question) -> Self {
        let folder = state_dir.join(FOLDER);
        let path = folder.join(&question.0.hex()[..24]);
        Self { folder, path }
    }

    /// Whether there may be an answer: if not, there is no need to look at the world.
    pub fn may_know(&self) -> bool {
        self.path.exists()
    }

    /// The answer, and its body, when the world is as it was. Why there is none is left in a file
    /// beside the answers.
    pub fn answer(&self, world: &World) -> Option<(Answer, Vec<u8>)> {
        let found = match file::read(&self.path) {
            Ok(found) => found,
            Err(why) => {
                self.note(&why);
                return None;
            }
        };
        if let Some(part) = found.world.differences(world).next() {
            self.note(&format!("`{part}` is not what it was"));
            return None;
        }
        Some((found.answer, found.body))
    }

    /// Keeps an answer. Not to be able to is no error: the next time takes the long way.
    pub fn keep(&self, world: &World, answer: &Answer, body: &[u8]) {
        if body.len() as u64 > MOST_BYTES / 2 {
            return;
        }
        if let Err(error) = file::write(&self.folder, &self.path, world, answer, body) {
            self.note(&format!("could not be kept: {error}"));
        }
        self.tidy();
    }

    /// The outline that was kept here, in whatever world.
    pub fn outline(&self) -> Option<Outline> {
        let bytes = std::fs::read(&self.path).ok()?;
        let outline = outline_file::decode(&bytes);
        if outline.is_none() {
            self.note("the outline that was kept is damaged");
        }
        outline
    }

    /// Keeps an outline; see [`Self::keep`].
    pub fn keep_outline(&self, outline: &Outline) {
        let written = outline_file::encode(outline);
        let written = written.and_then(|bytes| file::replace(&self.folder, &self.path, &bytes));
        if let Err(error) = written {
            self.note(&format!("the outline could not be kept: {error}"));
        }
        self.tidy();
    }

    /// Says how the last look into the memory ended (why the long way was taken, most often), for
    /// who wonders. Nobody waits for it.
    pub fn note(&self, why: &str) {
        let _ = std::fs::write(self.folder.join("last-look.txt"), format!("{why}\n"));
    }

    /// The oldest answers go when there are too many or too much.
    fn tidy(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let meta = entry.metadata().ok()?;
                Some((meta.modified().ok()?, meta.len(), entry.path()))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        for (at, (_, size, path)) in found.iter().enumerate() {
            bytes += size;
            if (at >= MOST_ANSWERS || bytes > MOST_BYTES) && *path != self.path {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}
