//! Decides what must run, runs it, and keeps every result: decide (pure), schedule, services, resources, interrupt.

pub mod decide;
pub mod event;
pub mod instruments;
pub mod key;
pub mod preflight;
pub mod resources;
pub mod schedule;
