//! Plans of the predecessor, read for what they really did.

pub mod json;
