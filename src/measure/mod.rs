//! Instruments: streaming load generator, prefill/decode proxy, tool-output parsers, and the simulated tools.

pub(crate) mod http;
pub mod load;
pub mod parse;
pub mod proxy;
pub mod server;
pub mod sim;
pub(crate) mod words;
