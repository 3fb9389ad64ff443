//! The graph query language.
