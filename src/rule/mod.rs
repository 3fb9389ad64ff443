//! How a kind of pattern is measured: rule files with typed parameters and strict templates, one
//! expression language, rendering to actions. Whatever is wrong with a rule is said when it is
//! loaded; what is left to fail later depends on settings or on the world.

pub mod action;
mod check;
pub mod classes;
pub mod clear;
mod define;
pub mod digest;
mod draft;
pub mod expr;
pub mod fact;
pub mod host;
mod jinja;
mod lex;
pub mod load;
pub mod model;
pub mod names;
mod order;
pub mod params;
mod parts;
mod places;
pub mod render;
mod results;
pub mod retry;
pub mod scope;
pub mod script;
pub mod settings;
mod sh_reader;
pub mod shell;
pub mod template;
pub mod variables;

pub use expr::Expr;
pub use names::Names;
pub use scope::Scope;
pub use template::{Mode, Template};

#[cfg(test)]
mod tests;
