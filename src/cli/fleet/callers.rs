//! Which hosts need `doe`: those on which a script calls an instrument of it, or a monitor's lines
//! are stamped. It is shipped to no other, so a host that it does not run on can do all the rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::{monitor, preflight};
use crate::graph::{Graph, NodeId};
use crate::plan::model::Platform;
use crate::rule::script;

/// See the module.
#[derive(Debug, Default)]
pub struct Callers {
    /// By host: who calls it there, in words. It must run there.
    calling: BTreeMap<String, String>,
    /// Hosts whose scripts name it where reading does not see what for, as in quotes.
    naming: BTreeSet<String>,
}

impl Callers {
    /// What the nodes call on the hosts of a platform.
    pub fn of(graph: &Graph<'_>, nodes: &[NodeId], platform: &Platform) -> Self {
        let mut callers = Self::of_probe(platform);
        let host = |role: &str| preflight::host_of(platform, role).map(|host| host.name.clone());
        for &node in nodes {
            let rule = &graph.pattern(node).rule;
            let services = rule.services.iter().map(|s| (Some(&s.role), &s.run));
            let steps = rule.steps.iter().map(|s| (s.role.as_ref(), &s.run));
            for (role, run) in services.chain(steps) {
                let Some(host) = role.and_then(|role| host(role)) else {
                    continue;
                };
                if script::calls(rule, run) {
                    let who = || format!("rule `{}` calls it there", rule.id);
                    callers.calling.entry(host).or_insert_with(who);
                } else if script::names_doe(&run.text) {
                    callers.naming.insert(host);
                }
            }
            for monitor in monitor::of_rule(platform, rule) {
                let wanted = |role: &&String| monitor.watches_role(role);
                for host in rule
                    .roles
                    .keys()
                    .filter(wanted)
                    .filter_map(|role| host(role))
                {
                    let who = || format!("monitor `{}` calls it there", monitor.name);
                    callers.calling.entry(host).or_insert_with(who);
                }
            }
        }
        callers
    }

    /// What the probe of a platform calls on its hosts.
    pub fn of_probe(platform: &Platform) -> Self {
        let mut callers = Self::default();
        let probe = platform
            .probing
            .as_ref()
            .and_then(|probing| probing.probe.as_ref());
        if probe.is_some_and(|probe| script::names_doe(&probe.script())) {
            callers.naming.extend(platform.hosts.keys().cloned());
        }
        callers
    }

    /// Who calls it on a host, in words.
    pub(super) fn on(&self, host: &str) -> Option<&str> {
        self.calling.get(host).map(String::as_str)
    }

    /// Whether anything may call it on a host.
    pub(super) fn perhaps_on(&self, host: &str) -> bool {
        self.calling.contains_key(host) || self.naming.contains(host)
    }
}
