//! What can be known of a platform before anything starts: every pattern renders, every role has
//! a host, and no demand is larger than what there is.

use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Value;
use rayon::prelude::*;

use super::resources::own_gpus;
use super::uses;
use crate::error::Diagnostic;
use crate::graph::{Graph, NodeId};
use crate::measure::sim::SimProfile;
use crate::plan::model::{Host, Platform};
use crate::rule::action::{Action, Binding};
use crate::rule::render::render;

/// The host that a role is bound to: by its name, else by the platform's fallback `*`.
pub fn host_of<'p>(platform: &'p Platform, role: &str) -> Option<&'p Host> {
    let name = platform
        .roles
        .get(role)
        .or_else(|| platform.roles.get("*"))?;
    platform.hosts.get(name)
}

/// Whether the `sim` table of a platform is a profile that the simulated tools take.
///
/// # Errors
/// What is wrong with it, naming the field.
pub fn sim_profile(values: &BTreeMap<String, Value>) -> Result<(), String> {
    let text = serde_json::to_string(values).map_err(|cause| cause.to_string())?;
    SimProfile::parse(&text).map(drop).map_err(|error| {
        let Some(why) = error.causes.first() else {
            return error.message;
        };
        // The place is one in a text that nobody wrote.
        let end = why.rfind(" at line ").unwrap_or(why.len());
        format!("this is no profile of simulated hosts: {}", &why[..end])
    })
}

/// Findings about nodes on a platform.
pub fn check(graph: &Graph<'_>, nodes: &[NodeId], platform: &Platform) -> Vec<Diagnostic> {
    let each = nodes.par_iter();
    let mut found: Vec<_> = each
        .flat_map_iter(|&node| of_node(graph, node, platform))
        .collect();
    found.dedup_by(|a, b| a.code == b.code && a.message == b.message && a.sites == b.sites);
    found
}

fn of_node(graph: &Graph<'_>, node: NodeId, platform: &Platform) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let pattern = graph.pattern(node);
    let settings = pattern.settings.plain();
    let action = match render(&pattern.rule, &settings, &Binding::Symbolic) {
        Ok(action) => action,
        Err(error) => {
            if error.diagnostics.is_empty() {
                let message = error.to_string();
                found.push(
                    Diagnostic::error("render", message).at(pattern.site.clone(), "this pattern"),
                );
            }
            found.extend(
                error
                    .diagnostics
                    .into_iter()
                    .map(|d| d.label(&pattern.label)),
            );
            return found;
        }
    };
    found.extend(uses::taken(pattern, platform).1);
    let services = action.services.iter().map(|s| (&s.name, &s.env));
    let steps = action.steps.iter().map(|s| (&s.name, &s.env));
    for (part, env) in services.chain(steps) {
        let secret = |name: &&String| platform.secrets.contains_key(*name);
        for name in env.keys().filter(secret) {
            let message = format!(
                "`{name}` is a secret of platform `{}` and a variable of `{part}`",
                platform.name
            );
            found.push(
                Diagnostic::error("secret-in-env", message)
                    .label(&pattern.label)
                    .at(pattern.site.clone(), "this pattern"),
            );
        }
    }
    let mut gpus: BTreeMap<&str, (u32, &Host)> = BTreeMap::new();
    for (role, demand) in &action.roles {
        let Some(host) = host_of(platform, role) else {
            let hosts: Vec<_> = platform.hosts.keys().map(String::as_str).collect();
            found.push(
                Diagnostic::error(
                    "no-host",
                    format!("platform `{}` has no host for role `{role}`", platform.name),
                )
                .label(&pattern.label)
                .at(pattern.site.clone(), format!("needs role `{role}`"))
                .hint(format!(
                    "bind it: `roles = {{ {role} = \"HOST\" }}`, hosts: {}",
                    hosts.join(", ")
                )),
            );
            continue;
        };
        gpus.entry(&host.name).or_insert((0, host)).0 += demand.gpus;
    }
    for (host, port, users) in ports_twice(&action, platform) {
        let message = format!("port {port} of host `{host}` is wanted by {users} at once");
        found.push(
            Diagnostic::error("port-twice", message)
                .label(&pattern.label)
                .at(pattern.site.clone(), "asked here")
                .hint("bind their roles to different hosts, or give the rule other ports"),
        );
    }
    for (gang, role, asked) in gpus_twice(&action, platform) {
        let message = format!(
            "members of gang `{gang}` would each ask Slurm for the {asked} GPUs of role `{role}`"
        );
        found.push(
            Diagnostic::error("too-many-gpus", message)
                .label(&pattern.label)
                .at(pattern.site.clone(), "asked here")
                .hint("give each member a role of its own, or leave out `gres` of the platform's table `slurm`"),
        );
    }
    for (needed, host) in gpus.into_values() {
        if needed > host.gpus {
            found.push(
                Diagnostic::error(
                    "too-many-gpus",
                    format!(
                        "{needed} GPUs are asked of host `{}`, which has {}",
                        host.name, host.gpus
                    ),
                )
                .label(&pattern.label)
                .at(pattern.site.clone(), "asked here")
                .hint("lower the demand of the roles on that host, or bind a role to another host"),
            );
        }
    }
    found
}

/// Gangs of which two members stand on one role that has GPUs: where each script is a job that asks
/// for them, the second would wait for the first, which waits for it.
fn gpus_twice<'a>(action: &'a Action, platform: &Platform) -> BTreeSet<(&'a str, &'a str, u32)> {
    if platform.slurm.gres.is_none() || platform.executor != "slurm" {
        return BTreeSet::new();
    }
    let members = action.steps.iter();
    let members = members.filter_map(|step| Some((step.gang.as_deref()?, step.role.as_deref()?)));
    let mut seen = BTreeSet::new();
    let twice = members.filter(|member| !seen.insert(*member));
    let asked = twice.map(|(gang, role)| (gang, role, own_gpus(action, role)));
    asked.filter(|(_, _, gpus)| *gpus > 0).collect()
}

/// Ports that two parts of one node want on the same host at the same time, by host and number,
/// with who they are. Steps run one after another, but for those of one gang.
fn ports_twice(action: &Action, platform: &Platform) -> Vec<(String, u16, String)> {
    // Name, and of steps with whom they run at once.
    type User<'a> = (&'a str, Option<&'a str>);
    let mut users: BTreeMap<(&str, u16), Vec<User<'_>>> = BTreeMap::new();
    let services = action.services.iter();
    let services = services.map(|s| (s.name.as_str(), None, Some(s.role.as_str()), &s.ports));
    let steps = action.steps.iter().map(|s| {
        let beside = s.gang.as_deref().unwrap_or(&s.name);
        (s.name.as_str(), Some(beside), s.role.as_deref(), &s.ports)
    });
    for (name, gang, role, ports) in services.chain(steps).filter(|_| !platform.dynamic_ports) {
        let Some(host) = role.and_then(|role| host_of(platform, role)) else {
            continue;
        };
        for &port in ports.values() {
            let users = users.entry((&host.name, port)).or_default();
            users.push((name, gang));
        }
    }
    let mut twice = Vec::new();
    for ((host, port), users) in users {
        let at_once = |a: Option<&str>, b: Option<&str>| a.is_none() || b.is_none() || a == b;
        let pairs = users.iter().enumerate();
        let mut pairs =
            pairs.flat_map(|(at, (_, a))| users[..at].iter().map(move |(_, b)| (*a, *b)));
        if pairs.any(|(a, b)| at_once(a, b)) {
            let names: Vec<_> = users.iter().map(|(name, _)| format!("`{name}`")).collect();
            twice.push((host.to_owned(), port, names.join(" and ")));
        }
    }
    twice
}
