//! Rule files: typed parameters, strict templates, rendering to actions.

pub mod action;
pub mod model;
