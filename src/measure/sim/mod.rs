//! Simulated external tools: programs that take the real tools' command lines and answer in the
//! real tools' formats, so that a plan runs unchanged where there is no cluster. Whatever a
//! simulated tool prints or serves says `simulated`.

pub mod profile;

pub use profile::SimProfile;
