//! Decides what must run, runs it, and keeps every result: decide (pure), schedule, services, resources, interrupt.

mod commit;
mod context;
pub mod decide;
mod drive;
pub mod event;
pub mod instruments;
pub mod intent;
mod journal;
pub mod judge;
pub mod key;
mod live;
mod node_run;
pub mod preflight;
mod prepare;
mod ready;
mod record;
pub mod remains;
pub mod remote;
pub mod request;
mod resolve;
pub mod resources;
mod resume;
pub mod run;
pub mod schedule;
mod scratch;
mod services;
mod steps;
