//! Simulated external tools: programs that take the real tools' command lines and answer in the
//! real tools' formats, so that a plan runs unchanged where there is no cluster. Whatever a
//! simulated tool prints or serves says `simulated`.

pub mod profile;
pub mod shims;
pub mod tools;
pub mod vllm;

pub use profile::SimProfile;

use crate::error::Result;

/// The variable that tells the steps of a further replicate its number, from 2; a simulated tool
/// draws other noise for each.
pub const REPLICATE: &str = "DOE_REPLICATE";

/// Runs a simulated tool as the program of that name would run, with this process' environment
/// and output, and gives the status to exit with.
///
/// # Errors
/// Usage for a bad profile, infra when the process cannot do its part.
pub fn sim_main(tool: &str, args: Vec<String>) -> Result<u8> {
    let profile = SimProfile::from_env()?;
    let (out, err) = (std::io::stdout(), std::io::stderr());
    if tool != "vllm" {
        return Ok(tools::main(
            tool,
            &args,
            &profile,
            &mut out.lock(),
            &mut err.lock(),
        ));
    }
    let vars: vllm::Vars = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    vllm::main(&args, &vars, &profile, &vllm::Log::new(out))
}
