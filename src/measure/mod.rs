//! Instruments: streaming load generator, prefill/decode proxy, tool-output parsers, and the simulated tools.

pub mod sim;
