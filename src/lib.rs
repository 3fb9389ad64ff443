//! The map of the house. Data flows down this list and a room uses only rooms below it:
//! `cli` (typed arguments to requests; the only place that prints), `report` (events and their
//! readers), `engine` (decide, schedule, services, resources), `exec` (where processes run),
//! `measure` (instruments and the simulated tools), `analysis` (statistics), `query`, `graph`,
//! `plan` (what a user writes), `rule` (how a kind of pattern is measured), `source` (TOML with
//! places), `label`, `error`;
//! below all of them stands the crate `doe_cache` (keys, manifests, store).
pub mod analysis;
pub mod cli;
pub mod engine;
pub mod error;
pub mod exec;
pub mod graph;
pub mod label;
pub mod measure;
pub mod plan;
pub mod query;
pub mod report;
pub mod rule;
pub mod source;
