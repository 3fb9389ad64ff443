//! What of a platform enters the keys: not which machines they are, but what they are like and how
//! the parts of a measurement lie on them.

use std::collections::BTreeMap;

use doe_cache::{Class, Manifest, Value};

use super::instruments;
use super::preflight::host_of;
use crate::plan::model::{Host, Platform, SlurmTable};
use crate::plan::secrets::Secret;
use crate::rule::model::Rule;

/// What of a platform decides what is measured there; its `env` is of every script.
pub(super) fn entries(manifest: &mut Manifest, rule: &Rule, platform: &Platform) {
    let Platform {
        name: _,     // an alias
        executor: _, // how scripts get there; the facts say what is there
        simulated,
        hosts,
        roles: _, // placement is recorded; the hosts' facts say what they are, `together` who shares one
        facts,
        fact_sites: _,    // where they are written
        tokens: _,        // who may run beside it; `uses` tells them
        probing: _,       // what was read is in `facts::key`, by role
        monitors: _,      // `monitor::entries`, by rule
        dynamic_ports: _, // addresses
        cost_per_hour: _, // what it costs is no part of what comes out
        sim,
        env: _, // of every node: see `key::surroundings`
        secrets,
        ssh, // how scripts get there, the search path apart
        ssm, // likewise
        slurm,
    } = platform;
    manifest.set("platform.simulated", *simulated, Class::Result);
    for host in hosts.values() {
        let Host {
            name,
            address: _,
            gpus,
            ssh: _,
            instance: _,
        } = host;
        // Known for the record; which host it was does not decide what is measured.
        manifest.set(
            format!("platform.host.{name}.gpus"),
            i64::from(*gpus),
            Class::Scheduling,
        );
    }
    // A platform has the table of its executor only.
    let path = [&ssh.path[..], &ssm.path[..], &slurm.path[..]].concat();
    if !path.is_empty() {
        let path = path.iter().map(|folder| Value::from(folder.as_str()));
        manifest.set("platform.path", Value::List(path.collect()), Class::Result);
    }
    slurm_entries(manifest, slurm);
    let together = together(rule, platform);
    if !together.is_empty() {
        manifest.set("platform.same_host", Value::List(together), Class::Result);
    }
    for (fact, value) in facts {
        manifest.set(
            format!("platform.fact.{fact}"),
            value.clone(),
            Class::Result,
        );
    }
    for (option, value) in sim {
        manifest.set(
            format!("platform.sim.{option}"),
            value.clone(),
            Class::Result,
        );
    }
    if *simulated {
        manifest.set(
            "platform.sim.model_version",
            i64::from(instruments::sim_version()),
            Class::Result,
        );
    }
    // Who may fetch a model decides whether there is a number, never which: for the record.
    for (variable, Secret { from: _, site: _ }) in secrets {
        manifest.set(
            format!("platform.secret.{variable}"),
            "given",
            Class::Cosmetic,
        );
    }
}

/// What a job is given and what its nodes must have; what is not said is the cluster's.
fn slurm_entries(manifest: &mut Manifest, slurm: &SlurmTable) {
    let SlurmTable {
        partition: _,   // which of the cluster's nodes; as for hosts, facts say what they are
        account: _,     // who pays
        qos: _,         // when it begins
        reservation: _, // likewise
        constraint,
        cpus,
        config: _, // how jobs get there
        gres,
        service_time_s: _, // a limit
        together: _,       // how the members of a gang are asked for
        driver: _,         // where `doe` itself runs
        root: _,           // a place
        patience_s: _,     // how long one waits
        path: _,           // with those of the other executors
        doe: _,            // instruments have versions
    } = slurm;
    let words = [("constraint", constraint), ("gres", gres)];
    for (name, word) in words {
        if let Some(word) = word {
            let at = format!("platform.slurm.{name}");
            manifest.set(at, word.as_str(), Class::Result);
        }
    }
    if let Some(cpus) = cpus {
        manifest.set("platform.slurm.cpus", i64::from(*cpus), Class::Result);
    }
}

/// The roles of a rule that are on one host together, each such host a list of them: what goes over
/// the loopback there goes over the network elsewhere. Nothing where each has a host of its own.
fn together(rule: &Rule, platform: &Platform) -> Vec<Value> {
    let mut by_host: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for role in rule.roles.keys() {
        if let Some(host) = host_of(platform, role) {
            let on_it = by_host.entry(&host.name).or_default();
            on_it.push(Value::from(role.as_str()));
        }
    }
    let mut shared: Vec<Vec<Value>> = by_host.into_values().collect();
    shared.retain(|roles| roles.len() > 1);
    // Which host it is says nothing.
    shared.sort_by_cached_key(|roles| roles[0].to_string());
    shared.into_iter().map(Value::List).collect()
}
