//! What a user writes: schema, loading, matrix expansion, import, each value with the place it came from.

pub mod expect;
pub mod import;
pub mod model;
mod read;
mod schema;
pub mod values;
