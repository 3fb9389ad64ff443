//! Rule files: typed parameters, strict templates, rendering to actions.

pub mod action;
mod check;
pub mod digest;
mod draft;
pub mod expr;
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
pub mod scope;
mod script;
pub mod settings;
mod sh_reader;
pub mod shell;
pub mod template;

pub use expr::Expr;
pub use names::Names;
pub use scope::Scope;
pub use template::{Mode, Template};

#[cfg(test)]
mod tests;
