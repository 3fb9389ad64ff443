//! Why a wrapper has ended its script before the script ended, as its watcher marks it.

use std::path::Path;

use super::read_if_there;
use crate::error::Result;

/// What the watcher beside a script has marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// Nothing that makes its record none of the script.
    No,
    /// It thinks about whether somebody still attends to it.
    Thinks,
    /// Nobody did, so it was ended.
    Forsaken,
    /// It was stopped in the middle, so it was ended.
    Stopped,
}

impl Late {
    /// Why the script counts as lost, in the words of the wrapper.
    pub fn is_lost(self) -> Option<&'static str> {
        match self {
            Self::No | Self::Thinks => None,
            Self::Forsaken => {
                Some("nobody attended to it for longer than it may survive, so it was ended")
            }
            Self::Stopped => {
                Some("its host slept or all of it was stopped in the middle, so it was ended")
            }
        }
    }
}

/// What the watcher has marked in a folder. To be looked for after the record: it is there before.
pub fn late(dir: &Path) -> Result<Late> {
    let text = read_if_there(&dir.join(".late"))?.unwrap_or_default();
    Ok(match text.as_bytes().first() {
        Some(b'2') => Late::Thinks,
        Some(b'3') => Late::Forsaken,
        Some(b'4') => Late::Stopped,
        _ => Late::No,
    })
}
