//! Commands that may have been answered before. What was answered is given again only when the
//! world is what it was (see [`crate::engine::recall`]); otherwise the command runs, and its
//! answer is kept when nothing moved meanwhile.

pub mod outline;

use std::io::Write;
use std::path::{Path, PathBuf};

use super::args::Global;
use super::out::Out;
use super::session;
use crate::engine::recall::{Answer, Memory, Places, Question, World};
use crate::error::Result;
use crate::plan::workspace::folders;

/// One question, before and after it is answered.
pub struct Recall {
    memory: Memory,
    places: Places,
    state: PathBuf,
    before: Option<World>,
}

impl Recall {
    /// The question that the command line asks; nothing where answers are not to be recalled or
    /// where it is not even clear what is asked: the command itself will tell.
    pub fn new(global: &Global, out: &Out) -> Option<Self> {
        // What a mirror has may change without anything here doing so.
        let mirrored = global.remote_cache.is_some()
            || std::env::var_os(session::MODE_VARIABLE).is_some_and(|mode| !mode.is_empty());
        if global.no_recall || mirrored {
            return None;
        }
        let (root, _) = session::place(global).ok()?;
        let folders = folders(&root)?;
        let here = std::env::current_dir().ok()?;
        let words: Vec<String> = std::env::args_os()
            .skip(1)
            .map(|word| word.into_string().ok())
            .collect::<Option<_>>()?;
        let flags = [out.color, out.color_err, out.terminal].map(i64::from);
        let shown = [&flags[..], &[out.width() as i64]].concat();
        let question = Question::new(&words, &here, &root, &shown);
        let state = root.join(&folders.state);
        // Commands that only look make no store.
        if !state.is_dir() {
            return None;
        }
        Some(Self {
            memory: Memory::new(&state, &question),
            places: Places {
                platform: (global.platform.clone()).unwrap_or_else(|| folders.platform.clone()),
                root,
                folders,
                program: std::env::current_exe().ok()?,
            },
            state,
            before: None,
        })
    }

    /// Folder of the store.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Whether it is worth asking.
    pub fn may_know(&self) -> bool {
        self.memory.may_know()
    }

    /// Looks at the world and gives the answer that stands for it, with its body.
    pub fn answer(&mut self) -> Option<(Answer, Vec<u8>)> {
        let world = World::look(&self.places).ok()?;
        let answer = match self.memory.may_know() {
            true => self.memory.answer(&world),
            false => None,
        };
        self.before = Some(world);
        answer
    }

    /// The world now, when nothing has moved since [`Self::answer`] looked.
    fn still(&self) -> Option<World> {
        let after = World::look(&self.places).ok()?;
        self.before.as_ref()?.holds(&after).then_some(after)
    }

    /// Keeps an answer, when nothing has moved since [`Self::answer`] looked.
    pub fn keep(&self, answer: &Answer, body: &[u8]) {
        if let Some(world) = self.still() {
            self.memory.keep(&world, answer, body);
        }
    }
}

/// Runs a command that only looks and prints, unless its answer is known.
pub fn through(
    global: &Global,
    out: &mut Out,
    run: impl FnOnce(&mut Out) -> Result<u8>,
) -> Result<u8> {
    let Some(mut recall) = Recall::new(global, out) else {
        return run(out);
    };
    if let Some((Answer::Printed { notes, code }, body)) = recall.answer() {
        out.notes_again(&notes);
        out.write_all(&body).map_err(super::out::closed)?;
        return Ok(code);
    }
    out.copy();
    let code = run(out)?;
    if let Some(copy) = out.copied() {
        let notes = copy.notes;
        recall.keep(&Answer::Printed { notes, code }, &copy.printed);
    }
    Ok(code)
}
