//! The platforms of `doe.toml`. A platform that loads has at least one host, and every role that
//! it binds is bound to one of its hosts; `sim` always exists, because the file is read over an
//! embedded one.

use std::collections::BTreeMap;

use doe_cache::Value;

use super::model::{Host, Platform, Price};
use super::{hosts, monitor, probing, reach, reach_slurm, reach_ssm, secrets, uses};
use crate::error::{Diagnostic, Site, nearest};
use crate::source::{Doc, Entry, Item, ItemValue, Table, Text};

/// Name of the platform that always exists.
pub const SIM: &str = "sim";

/// Most GPUs that one host may declare; a slip of the keyboard is more likely than a larger host.
const MAX_GPUS: i64 = 4096;

type Diags = Vec<Diagnostic>;

/// Whether a table is a profile of simulated hosts; the reason if not. Given from above: what the
/// simulated tools understand is theirs to say.
pub type SimCheck = fn(&BTreeMap<String, Value>) -> Result<(), String>;

/// Places that later checks point at.
#[derive(Debug, Default)]
struct Sites {
    executor: Option<Site>,
    roles: BTreeMap<String, Site>,
}

/// The embedded `sim` platform.
pub(super) fn sim() -> Platform {
    let (doc, mut found) = Doc::parse("sim.toml", include_str!("sim.toml"));
    let mut platform = empty(SIM);
    apply(&mut platform, doc.table(), None, &mut found);
    debug_assert!(
        found.is_empty(),
        "the embedded platform is valid: {found:?}"
    );
    platform
}

/// Reads `[platform.NAME]` over what is known of it: a new platform, or the embedded one. `key` is
/// the name's place. The place of `executor` comes back when it is written.
pub(super) fn read(
    platforms: &mut BTreeMap<String, Platform>,
    key: &Text,
    table: Table<'_>,
    sim_check: Option<SimCheck>,
    diags: &mut Diags,
) -> Option<Site> {
    let site = key.site.clone();
    let platform = platforms
        .entry(key.text.clone())
        .or_insert_with(|| empty(&key.text));
    let sites = apply(platform, table, sim_check, diags);
    check(platform, &site, &sites.roles, diags);
    reach_ssm::check(platform, &site, diags);
    sites.executor
}

fn empty(name: &str) -> Platform {
    Platform {
        name: name.to_owned(),
        executor: "local".to_owned(),
        simulated: false,
        hosts: BTreeMap::new(),
        roles: BTreeMap::new(),
        facts: BTreeMap::new(),
        fact_sites: BTreeMap::new(),
        tokens: BTreeMap::new(),
        probing: None,
        monitors: Vec::new(),
        dynamic_ports: false,
        cost_per_hour: None,
        sim: BTreeMap::new(),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        ssh: Default::default(),
        ssm: Default::default(),
        slurm: Default::default(),
    }
}

/// Overrides key by key; tables are merged, so that one fact or one role can be changed alone.
fn apply(
    platform: &mut Platform,
    mut table: Table<'_>,
    sim_check: Option<SimCheck>,
    diags: &mut Diags,
) -> Sites {
    let mut sites = Sites::default();
    if let Some(executor) = table.opt_str("executor", diags) {
        sites.executor = Some(executor.site);
        platform.executor = executor.text;
    }
    if let Some(simulated) = table.opt_bool("simulated", diags) {
        platform.simulated = simulated.value;
    }
    if let Some(dynamic) = table.opt_bool("dynamic_ports", diags) {
        platform.dynamic_ports = dynamic.value;
    }
    if let Some(price) = table.opt_str("cost_per_hour", diags) {
        platform.cost_per_hour = read_price(&price, diags);
    }
    if let Some(roles) = table.opt_table("roles", diags) {
        for entry in roles.entries() {
            let what = format!("the host of role `{}`", entry.key.text);
            if let Some(host) = entry.item.as_text(&what, diags) {
                sites.roles.insert(entry.key.text.clone(), host.site);
                platform.roles.insert(entry.key.text.clone(), host.text);
            }
        }
    }
    if let (Some(check), Some(sim)) = (sim_check, table.item("sim")) {
        profile(&platform.sim, sim, check, diags);
    }
    for (key, values) in [("facts", &mut platform.facts), ("sim", &mut platform.sim)] {
        if let Some(table) = table.opt_table(key, diags) {
            for entry in table.entries() {
                let what = format!("`{}`", entry.key.text);
                if let Some(value) = entry.item.to_value(&what, diags) {
                    merge(values, &entry.key.text, value);
                    if key == "facts" {
                        let site = entry.item.site.clone();
                        platform.fact_sites.insert(entry.key.text.clone(), site);
                    }
                }
            }
        }
    }
    probing::read(&mut table, diags).apply(platform, diags);
    monitor::read(&mut table, platform, diags);
    secrets::read(&mut table, platform, diags);
    if let Some(env) = table.opt_table("env", diags) {
        secrets::check(platform, env.entries(), diags);
        for entry in env.entries() {
            let what = format!("the variable `{}`", entry.key.text);
            if let Some(value) = entry.item.as_text(&what, diags) {
                platform.env.insert(entry.key.text.clone(), value.text);
            }
        }
    }
    if let Some(hosts) = table.opt_table("host", diags) {
        for entry in hosts.entries() {
            let what = format!("host `{}`", entry.key.text);
            if let Some(table) = entry.item.as_table(&what, diags) {
                host_entry(platform, &entry.key, table, diags);
            }
        }
    }
    uses::declared(&mut table, platform, diags);
    let mut tables = Vec::new();
    if let Some(found) = table.opt_table("ssh", diags) {
        tables.push(("ssh", found.site().clone()));
        reach::ssh(&mut platform.ssh, found, diags);
    }
    if let Some(found) = table.opt_table("ssm", diags) {
        tables.push(("ssm", found.site().clone()));
        reach_ssm::ssm(&mut platform.ssm, found, diags);
    }
    if let Some(found) = table.opt_table("slurm", diags) {
        tables.push(("slurm", found.site().clone()));
        reach_slurm::slurm(&mut platform.slurm, found, diags);
    }
    reach::check(platform, &tables, diags);
    table.remaining(diags, "of a platform");
    sites
}

/// `10.49 USD`: an amount that is not negative, and its currency.
fn read_price(text: &Text, diags: &mut Diags) -> Option<Price> {
    let (amount, currency) = text.text.trim().split_once(' ').unwrap_or_default();
    let amount = amount.parse::<f64>().ok();
    match amount.filter(|amount| amount.is_finite() && *amount >= 0.0) {
        Some(amount) if !currency.trim().is_empty() => Some(Price {
            amount,
            currency: currency.trim().to_owned(),
        }),
        _ => {
            diags.push(
                Diagnostic::error(
                    "bad-price",
                    format!(
                        "`cost_per_hour` is an amount and a currency, not `{}`",
                        text.text
                    ),
                )
                .at(text.site.clone(), ""),
            );
            None
        }
    }
}

/// Findings about a `sim` table over what is known of it: each at the key that makes the profile
/// wrong, or at the table when only all together do.
fn profile(base: &BTreeMap<String, Value>, sim: &Item, check: SimCheck, diags: &mut Diags) {
    let ItemValue::Table(entries) = &sim.value else {
        return; // told as a wrong type
    };
    let before = diags.len();
    profile_part(base, entries, &[], check, diags);
    let mut whole = base.clone();
    // What has no value has its finding elsewhere.
    let mut told = Vec::new();
    if let Some(Value::Map(values)) = sim.to_value("`sim`", &mut told) {
        for (key, value) in values {
            merge(&mut whole, &key, value);
        }
    }
    if let Err(why) = check(&whole)
        && diags.len() == before
        && told.is_empty()
    {
        diags.push(Diagnostic::error("sim-profile", why).at(sim.site.clone(), ""));
    }
}

fn profile_part(
    base: &BTreeMap<String, Value>,
    entries: &[Entry],
    path: &[&str],
    check: SimCheck,
    diags: &mut Diags,
) {
    // A value inside its tables.
    let alone = |path: &[&str], value: Value| {
        let mut all = base.clone();
        let (first, inner) = path.split_first().unwrap_or((&"", &[]));
        let value = inner.iter().rev().fold(value, |value, key| {
            Value::Map(BTreeMap::from([((*key).to_owned(), value)]))
        });
        merge(&mut all, first, value);
        check(&all)
    };
    for entry in entries {
        let mut path = path.to_vec();
        path.push(&entry.key.text);
        if let ItemValue::Table(inner) = &entry.item.value
            && alone(&path, Value::Map(BTreeMap::new())).is_ok()
        {
            profile_part(base, inner, &path, check, diags);
            continue;
        }
        let Some(value) = entry.item.to_value("", &mut Vec::new()) else {
            continue;
        };
        let Err(why) = alone(&path, value) else {
            continue;
        };
        // `unknown field `time_scal`, expected one of `schema`, `time_scale`, ...`
        let mut words = why.split('`').skip(1).step_by(2);
        let unknown =
            why.contains("unknown field") && words.next() == Some(entry.key.text.as_str());
        let site = if unknown {
            &entry.key.site
        } else {
            &entry.item.site
        };
        let mut found = Diagnostic::error("sim-profile", why.as_str()).at(site.clone(), "");
        if unknown && let Some(near) = nearest(&entry.key.text, words) {
            found = found.hint(format!("did you mean `{near}`?"));
        }
        diags.push(found);
    }
}

/// Sets a value; a table is merged into a table.
fn merge(values: &mut BTreeMap<String, Value>, key: &str, value: Value) {
    match (values.get_mut(key), value) {
        (Some(Value::Map(old)), Value::Map(new)) => {
            for (key, value) in new {
                merge(old, &key, value);
            }
        }
        (_, value) => {
            values.insert(key.to_owned(), value);
        }
    }
}

/// One host, or as many as the pattern in its name stands for.
fn host_entry(platform: &mut Platform, key: &Text, mut table: Table<'_>, diags: &mut Diags) {
    let mut names = |text: &str, site: &Site| {
        let names = hosts::expand(text);
        names.unwrap_or_else(|why| {
            diags.push(
                Diagnostic::error("bad-host-range", format!("`{text}` names no hosts: {why}"))
                    .at(site.clone(), "")
                    .hint("a range looks like `node[001-008]`, a list like `gpu[1,3-4]`"),
            );
            Vec::new()
        })
    };
    let all = names(&key.text, &key.site);
    let listed = |key, table: &mut Table<'_>, diags: &mut Diags| {
        let text = table.opt_str(key, diags)?;
        if !reach::is_word(&text.text) {
            diags.push(reach::no_word(key, &text));
            return None;
        }
        let values = hosts::expand(&text.text);
        match values {
            Ok(values) if values.len() == all.len() => Some(values),
            Ok(values) => {
                diags.push(
                    Diagnostic::error(
                        "bad-host-range",
                        format!(
                            "`{key}` stands for {} values, the name for {} hosts",
                            values.len(),
                            all.len()
                        ),
                    )
                    .at(text.site, ""),
                );
                None
            }
            Err(why) => {
                diags.push(
                    Diagnostic::error("bad-host-range", format!("`{}`: {why}", text.text))
                        .at(text.site, ""),
                );
                None
            }
        }
    };
    let given = table.has("address");
    let addresses = listed("address", &mut table, diags);
    let destinations = listed("ssh", &mut table, diags);
    let instances = listed("instance", &mut table, diags);
    // Elsewhere than on this machine a name is an address too.
    let known = all.iter().all(|name| platform.hosts.contains_key(name));
    if addresses.is_none() && !given && !known && platform.executor == "local" {
        // Says what is missing, and where.
        let _ = table.req_str("address", diags);
    }
    let mut gpus = None;
    if let Some(count) = table.opt_int("gpus", diags) {
        match u32::try_from(count.value) {
            Ok(value) if count.value <= MAX_GPUS => gpus = Some(value),
            _ => diags.push(
                Diagnostic::error(
                    "out-of-bounds",
                    format!("`gpus` must be from 0 to {MAX_GPUS}, found {}", count.value),
                )
                .at(count.site, ""),
            ),
        }
    }
    table.remaining(diags, "of a host");
    for (at, name) in all.iter().enumerate() {
        let host = platform.hosts.entry(name.clone()).or_insert_with(|| Host {
            name: name.clone(),
            address: name.clone(),
            gpus: 0,
            ssh: None,
            instance: None,
        });
        if let Some(addresses) = &addresses {
            host.address.clone_from(&addresses[at]);
        }
        if let Some(destinations) = &destinations {
            host.ssh = Some(destinations[at].clone());
        }
        if let Some(instances) = &instances {
            host.instance = Some(instances[at].clone());
        }
        host.gpus = gpus.unwrap_or(host.gpus);
    }
}

fn check(platform: &Platform, site: &Site, role_sites: &BTreeMap<String, Site>, diags: &mut Diags) {
    if platform.hosts.is_empty() {
        diags.push(
            Diagnostic::error(
                "missing-key",
                format!("platform `{}` has no hosts", platform.name),
            )
            .at(site.clone(), "")
            .hint(format!(
                "add [platform.{}.host.NAME] with `address = \"...\"`",
                platform.name
            )),
        );
        return;
    }
    for (role, host) in &platform.roles {
        if platform.hosts.contains_key(host) {
            continue;
        }
        let known = || platform.hosts.keys().map(String::as_str);
        let mut diagnostic = Diagnostic::error(
            "unknown-host",
            format!(
                "role `{role}` is bound to `{host}`, which is not a host of platform `{}`",
                platform.name
            ),
        )
        .at(role_sites.get(role).unwrap_or(site).clone(), "");
        if let Some(near) = nearest(host, known()) {
            diagnostic = diagnostic.hint(format!("did you mean `{near}`?"));
        }
        let hosts: Vec<_> = known().collect();
        diags.push(diagnostic.hint(format!("hosts: {}", hosts.join(", "))));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The platforms of a `doe.toml`, `sim` among them, and what was found wrong.
    pub(in crate::plan) fn load(text: &str) -> (BTreeMap<String, Platform>, Vec<Diagnostic>) {
        let (doc, mut diags) = Doc::parse("doe.toml", text);
        let mut platforms = BTreeMap::from([(SIM.to_owned(), sim())]);
        let mut root = doc.table();
        if let Some(table) = root.opt_table("platform", &mut diags) {
            for entry in table.entries() {
                let table = entry.item.as_table("a platform", &mut diags).unwrap();
                read(&mut platforms, &entry.key, table, None, &mut diags);
            }
        }
        (platforms, diags)
    }

    #[test]
    fn sim_is_embedded_and_overridden_key_by_key() {
        let (platforms, diags) = load(
            "[platform.sim]\nfacts = { gpu_count = 8, site = \"lab\" }\nroles = { peer = \"node3\" }\n\
             sim = { time_scale = 0.5, gpu = { driver = \"1\" } }\n[platform.sim.host.node3]\naddress = \"127.0.0.3\"\n\
             [platform.sim.host.node1]\ngpus = 8\n",
        );
        assert_eq!(diags, []);
        let sim = &platforms[SIM];
        assert!(sim.simulated && sim.dynamic_ports);
        assert_eq!(sim.facts["gpu_count"], Value::Int(8));
        assert_eq!(sim.facts["driver"], Value::Str("580.126.09".into()));
        assert_eq!(sim.facts["site"], Value::Str("lab".into()));
        assert_eq!(sim.roles["peer"], "node3");
        assert_eq!(sim.roles["decode"], "node2");
        assert_eq!(sim.roles["*"], "node1");
        assert_eq!(
            (sim.hosts["node1"].gpus, sim.hosts["node1"].address.as_str()),
            (8, "127.0.0.1")
        );
        assert_eq!(
            (sim.hosts["node3"].gpus, sim.hosts["node3"].address.as_str()),
            (0, "127.0.0.3")
        );
        assert_eq!(sim.sim["time_scale"], Value::Float(0.5));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let (platforms, diags) = load(
            "[platform.lab]\nroles = { prefill = \"gpo1\" }\n[platform.lab.host.gpu1]\naddress = \"10.0.0.1\"\ngpus = -1\ncolour = 1\n\
             [platform.bare]\nexecutor = \"ssh\"\n[platform.lab.host.x]\ngpus = 1\n",
        );
        assert!(!platforms["lab"].simulated && !platforms["lab"].dynamic_ports);
        let found: Vec<_> = diags
            .iter()
            .map(|d| (d.code, d.sites[0].0.short()))
            .collect();
        assert_eq!(
            found,
            [
                ("out-of-bounds", "doe.toml:5:8".to_owned()),
                ("unknown-key", "doe.toml:6:1".to_owned()),
                ("missing-key", "doe.toml:9:1".to_owned()),
                ("unknown-host", "doe.toml:2:21".to_owned()),
                ("missing-key", "doe.toml:7:11".to_owned()),
            ]
        );
        assert_eq!(diags[3].hints[0], "did you mean `gpu1`?");
    }
}
