//! Rule files: typed parameters, strict templates, rendering to actions.

pub mod action;
pub mod expr;
mod jinja;
mod lex;
pub mod model;
pub mod params;
pub mod scope;
pub mod shell;
pub mod template;

pub use expr::Expr;
pub use scope::Scope;
pub use template::{Mode, Template};
