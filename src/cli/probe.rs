//! `doe probe`: asks the hosts of a platform what they are, now, and keeps the answer for all
//! other commands. Nothing else runs there.

use std::collections::BTreeMap;

use clap::Args;
use doe_cache::{Value, WriterLock};
use serde_json::json;

use super::args::Global;
use super::fleet::{Callers, Near};
use super::out::Out;
use super::{diagnose, session};
use crate::engine::facts::check;
use crate::error::{Error, Kind, Result, Severity, nearest};
use crate::exec::HostSpec;
use crate::plan::model::{Host, Platform};

/// Read what the hosts of a platform are, now
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe probe
  doe probe gpu1 gpu2 --platform lab --json

Which facts there are and how each is read stands in the rule file that the platform names:
`probe = \"hosts.gpu\"`. Exit code 3: a host is not what the platform or a plan says.")]
pub struct ProbeArgs {
    /// Hosts (default: all of the platform)
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,
}

/// Runs the command.
pub fn run(global: &Global, args: &ProbeArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let platform = session::platform(global, &workspace)?;
    if platform.probing.is_none() {
        let text = format!("platform `{}` has no probe", platform.name);
        return Err(Error::new(Kind::Usage, "no-probe", text).hint(
            "name one in `doe.toml`, as in `probe = \"hosts.gpu\"`; rules/hosts.toml has it",
        ));
    }
    let hosts = hosts(platform, &args.hosts)?;
    let lock = WriterLock::acquire(&workspace.state_dir, "doe probe")?;
    let doe = std::env::current_exe()
        .map_err(|e| Error::new(Kind::Infra, "io", "cannot tell where `doe` is").cause(e))?;
    let runtime = session::runtime()?;
    let read = runtime.block_on(async {
        let callers = Callers::of_probe(platform);
        let near = Near::new(&workspace, platform, &hosts, (&doe, &callers), false).await?;
        near.ask(&workspace, platform, &hosts, &doe).await
    });
    drop(lock);
    let platform = read?.unwrap_or_else(|| platform.clone());
    show(out, &platform, &hosts)?;
    let graph = session::graph(&workspace)?;
    let all: Vec<_> = graph.nodes().collect();
    let mut found = check::check(&graph, &all, &platform);
    found.retain(|d| ["unmet-requirement", "fact-mismatch"].contains(&d.code));
    for diagnostic in &found {
        out.note(diagnose::render(diagnostic, out.color_err));
    }
    let refused = found.iter().any(|d| d.severity == Severity::Error);
    Ok(if refused { Kind::Plan.exit_code() } else { 0 })
}

fn hosts(platform: &Platform, named: &[String]) -> Result<Vec<HostSpec>> {
    let spec = |host: &Host| HostSpec {
        name: host.name.clone(),
        address: host.address.clone(),
        gpus: host.gpus,
    };
    if named.is_empty() {
        return Ok(platform.hosts.values().map(spec).collect());
    }
    let found = named.iter().map(|name| match platform.hosts.get(name) {
        Some(host) => Ok(spec(host)),
        None => {
            let text = format!("platform `{}` has no host `{name}`", platform.name);
            let error = Error::new(Kind::Usage, "unknown-host", text);
            let known = platform.hosts.keys().map(String::as_str);
            Err(match nearest(name, known) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            })
        }
    });
    found.collect()
}

fn show(out: &mut Out, platform: &Platform, hosts: &[HostSpec]) -> Result<()> {
    let Some(probing) = &platform.probing else {
        return Ok(());
    };
    let in_keys = probing.in_keys(&platform.facts);
    if out.json {
        let known = hosts.iter().filter_map(|host| {
            let known = probing.known.get(&host.name)?;
            let facts: BTreeMap<_, _> = known.facts.iter().map(|(k, v)| (k, v.to_json())).collect();
            Some((
                host.name.clone(),
                json!({"read_unix_ms": known.read_unix_ms, "facts": facts}),
            ))
        });
        return out.json(&json!({
            "platform": platform.name, "simulated": platform.simulated,
            "probe": probing.name.text, "facts_in_key": in_keys, "moved": probing.news,
            "hosts": known.collect::<serde_json::Map<_, _>>(),
        }));
    }
    let mut table = super::out::table(["host", "fact", "value", ""]);
    for host in hosts {
        for (fact, value) in probing.known.get(&host.name).iter().flat_map(|k| &k.facts) {
            let role = match (in_keys.contains(&fact.as_str()), platform.facts.get(fact)) {
                (true, _) => "in keys",
                (false, Some(_)) => "declared",
                (false, None) => "",
            };
            let value = match value {
                Value::Str(text) => text.clone(),
                other => other.to_string(),
            };
            table.add_row([&host.name, fact, &value, role]);
        }
    }
    out.line(table)?;
    for news in &probing.news {
        out.line(news)?;
    }
    if platform.simulated {
        out.line("simulated: no host was asked what it really is")?;
    }
    Ok(())
}
