//! x

mod cells;
mod id;
mod memo;
