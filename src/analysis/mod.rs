//! Statistics and campaign analyses: pure functions from results to results. Knows no cluster, no plan and no file format but its own inputs.

pub mod bootstrap;
pub mod changepoint;
pub mod dip;
pub mod mixture;
pub mod moments;
pub mod padjust;
pub mod quantile;
pub mod sample;
pub mod summary;
pub mod ties;
pub mod warmup;
