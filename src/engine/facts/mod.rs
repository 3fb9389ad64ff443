//! What hosts are: read by the platform's probe before anything is paid for, kept with the time
//! of the reading, part of the keys, held against what plans and platform claim, and read again
//! when something has run. A fact that nobody has read is never taken for one that is not there.

pub mod again;
pub mod ask;
pub mod check;
pub mod file;
pub(super) mod key;
mod parse;
