//! What a user writes: schema, loading, matrix expansion, import, each value with the place it came from.

mod expand;
pub mod expect;
pub mod import;
pub mod model;
pub mod platform;
mod read;
mod schema;
pub mod values;
