//! The parts of `doe` that scripts call on hosts, each with the version of its code. A version is
//! raised by hand when results can change; it enters the key of every node whose scripts call it.

use crate::analysis;
use crate::measure::{load, parse, proxy, sim};

/// All instruments by the words that follow `doe` in a script.
pub fn known() -> Vec<String> {
    let mut names = vec!["measure openai".to_string(), "proxy".to_string()];
    names.extend(analysis::NAMES.iter().map(|name| format!("analyze {name}")));
    names.extend(parse::NAMES.iter().map(|name| format!("parse {name}")));
    names
}

/// The code version of an instrument; `None` when there is none of that name.
pub fn version(name: &str) -> Option<u32> {
    if !known().iter().any(|known| known == name) {
        return None;
    }
    match name.split(' ').next()? {
        "measure" => Some(load::VERSION),
        "proxy" => Some(proxy::VERSION),
        "analyze" => Some(analysis::CODE_VERSION),
        "parse" => Some(parse::VERSION),
        _ => None,
    }
}

/// The version of the simulated tools' model.
pub fn sim_version() -> u32 {
    sim::profile::MODEL_VERSION
}
