//! Decides what must run, runs it, and keeps every result: decide (pure), schedule, services, resources, interrupt.

mod commit;
mod context;
pub mod decide;
mod drive;
pub mod event;
mod inputs;
pub mod instruments;
mod journal;
pub mod judge;
pub mod key;
mod live;
mod node_run;
pub mod preflight;
mod prepare;
mod ready;
mod record;
pub mod remote;
mod resolve;
pub mod resources;
pub mod run;
pub mod schedule;
mod scratch;
mod services;
mod steps;
