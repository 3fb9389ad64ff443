//! What a user writes: schema, loading, matrix expansion, import, each value with the place it came from.

mod alias;
pub mod claim;
mod compare;
mod expand;
pub mod expect;
mod files;
pub mod followup;
mod hosts;
pub mod import;
pub mod model;
pub mod monitor;
mod order;
pub mod part;
pub mod parts;
pub mod platform;
pub mod probing;
mod reach;
mod reach_slurm;
mod reach_ssm;
mod read;
mod remote;
mod repeat;
mod resolve;
mod schema;
pub mod uses;
pub mod values;
pub mod workspace;
