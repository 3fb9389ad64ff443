//! Statistics and campaign analyses: pure functions from results to results. Knows no cluster, no plan and no file format but its own inputs.
