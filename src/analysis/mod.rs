//! Statistics and campaign analyses: pure functions from results to results. Knows no cluster, no
//! plan and no file format but its own inputs; the same inputs give the same bytes, and an
//! analysis that lacks an input fails instead of concluding from nothing.

pub mod bimodality;
pub mod bootstrap;
pub mod changepoint;
pub mod dip;
pub mod input;
pub mod mixture;
pub mod moments;
pub mod padjust;
pub mod proxy_overhead;
pub mod quantile;
pub mod sample;
pub mod summary;
pub mod ties;
pub mod tpot_separation;
pub mod warmup;

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

pub use input::Input;

use crate::error::{Error, Kind, Result, nearest};

/// Version of the code behind every analysis. It enters the key of every analysis action, so a
/// stored answer is never taken for one that this code would give. It must be raised whenever any
/// result can change: a formula, a threshold, a default option, a seed, a tolerance, the order of
/// a sum, a field of an answer.
pub const CODE_VERSION: u32 = 1;

/// Names of the campaign analyses, for [`run`].
pub const NAMES: [&str; 3] = ["bimodality", "tpot-separation", "proxy-overhead"];

/// Runs the analysis called `name` on the results of some patterns.
///
/// The answer is a JSON document with `schema` (`bimodality-v1`, `tpot-separation-v1`,
/// `proxy-overhead-v1`) and `simulated`, true when any input was simulated.
///
/// Errors: an unknown name (with the nearest one as a hint), no inputs, the same label twice, an
/// input without the document that the analysis reads, and whatever the analysis itself refuses.
pub fn run(name: &str, inputs: &[Input]) -> Result<Value> {
    if !NAMES.contains(&name) {
        let error = Error::new(
            Kind::Plan,
            "unknown-analysis",
            format!("no analysis is called `{name}`"),
        );
        return Err(match nearest(name, NAMES) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("the analyses are {}", NAMES.join(", "))),
        });
    }
    if inputs.is_empty() {
        return Err(input::bad_input(format!("{name}: no inputs were given"))
            .hint("an analysis reads the results of the patterns and layers that it needs"));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = inputs.iter().find(|input| !seen.insert(&input.label)) {
        return Err(input::bad_input(format!(
            "{name}: {} was given twice, every pattern may count once",
            twice.label
        )));
    }
    let simulated = inputs.iter().any(Input::simulated);
    match name {
        "bimodality" => {
            let series = bimodality::series(inputs)?;
            to_value(&bimodality::analyse(
                &series,
                simulated,
                &bimodality::Options::default(),
            )?)
        }
        "tpot-separation" => to_value(&tpot_separation::analyse(
            &tpot_separation::series(inputs)?,
            simulated,
        )?),
        _ => to_value(&proxy_overhead::analyse(
            &proxy_overhead::series(inputs)?,
            simulated,
        )?),
    }
}

fn to_value(answer: &impl Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|e| {
        Error::new(
            Kind::Bug,
            "analysis-answer",
            "an analysis made an answer that is not JSON",
        )
        .cause(e)
    })
}

#[cfg(test)]
mod tests;
