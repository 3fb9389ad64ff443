//! How a platform's hosts are looked at before anything runs there: which probe, which of its facts
//! enter the keys, for how long a reading stands, and what is known of every host. A platform of a
//! workspace that loads names a probe that exists and lists only facts that it reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use doe_cache::Value;

use super::expand::name_hints;
use super::model::Platform;
use crate::error::{Diagnostic, Site};
use crate::rule::host::{HostProbe, Probes};
use crate::rule::model::RuleId;
use crate::source::{Table, Text};

/// How long a reading stands when the file does not say.
const MAX_AGE_S: f64 = 600.0;

/// See the module.
#[derive(Debug, Clone)]
pub struct Probing {
    /// Name of the probe, as written.
    pub name: Text,
    /// The probe; it is there once rules were read.
    pub probe: Option<Arc<HostProbe>>,
    /// Facts that enter the keys, as written; all of them when nothing is.
    pub in_key: Option<Vec<Text>>,
    /// For how long a reading stands while nothing is to run.
    pub max_age: Duration,
    /// What is known, by host.
    pub known: BTreeMap<String, Arc<HostFacts>>,
    /// What has moved since the reading before, in words.
    pub news: Vec<String>,
}

/// What a host said of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// Typed facts by name; those that the host does not have are left out.
    pub facts: BTreeMap<String, Value>,
    /// When.
    pub read_unix_ms: u64,
    /// Whether this very program has asked.
    pub just_read: bool,
}

/// Keys of a platform that say how it is probed.
#[derive(Debug, Default)]
pub(super) struct Keys {
    probe: Option<Text>,
    in_key: Option<Vec<Text>>,
    max_age_s: Option<f64>,
    site: Option<Site>,
}

/// Reads `probe`, `facts_in_key` and `facts_max_age`.
pub(super) fn read(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Keys {
    let mut keys = Keys {
        probe: table.opt_str("probe", diags),
        ..Keys::default()
    };
    if let Some(item) = table.item("facts_in_key") {
        keys.site = Some(item.site.clone());
        keys.in_key = Some(item.as_texts("`facts_in_key`", diags));
    }
    if let Some(item) = table.item("facts_max_age") {
        keys.site.get_or_insert_with(|| item.site.clone());
        let age = item.as_duration("`facts_max_age`", diags);
        keys.max_age_s = age.map(|age| age.value);
    }
    keys
}

impl Keys {
    /// Puts them over what is known of the platform.
    pub(super) fn apply(self, platform: &mut Platform, diags: &mut Vec<Diagnostic>) {
        if let Some(name) = self.probe {
            platform.probing = Some(Probing {
                name,
                probe: None,
                in_key: None,
                max_age: Duration::from_secs_f64(MAX_AGE_S),
                known: BTreeMap::new(),
                news: Vec::new(),
            });
        }
        let Some(probing) = &mut platform.probing else {
            if let Some(site) = self.site {
                let text = format!("platform `{}` has no probe that reads facts", platform.name);
                diags.push(Diagnostic::error("missing-key", text).at(site, "").hint(
                    "name one, as in `probe = \"hosts.gpu\"`: a table of a rule file with `kind = \"probe\"`",
                ));
            }
            return;
        };
        if self.in_key.is_some() {
            probing.in_key = self.in_key;
        }
        if let Some(age) = self
            .max_age_s
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
        {
            probing.max_age = age;
        }
    }
}

/// Finds the probes that platforms name.
pub(super) fn resolve(
    platforms: &mut BTreeMap<String, Platform>,
    probes: &Probes,
    diags: &mut Vec<Diagnostic>,
) {
    for platform in platforms.values_mut() {
        let Some(probing) = &mut platform.probing else {
            continue;
        };
        let name = &probing.name;
        let Some(probe) = probes.get(&RuleId(name.text.clone())) else {
            let text = format!("there is no probe `{}`", name.text);
            let found = Diagnostic::error("unknown-probe", text).at(name.site.clone(), "");
            let known = probes.keys().map(|id| id.0.as_str());
            diags.push(name_hints(found, &name.text, known, "probes"));
            continue;
        };
        for text in probing.in_key.iter().flatten() {
            if probe.facts.contains_key(&text.text) {
                continue;
            }
            let message = format!("probe `{}` reads no fact `{}`", probe.id, text.text);
            let found = Diagnostic::error("unknown-fact", message).at(text.site.clone(), "");
            let known = probe.facts.keys().map(String::as_str);
            diags.push(name_hints(found, &text.text, known, "facts"));
        }
        probing.probe = Some(probe.clone());
    }
}

impl Probing {
    /// Names of the facts that must stay what they are while something runs: those in keys, and
    /// those that the platform declares.
    pub fn fixed<'p>(&'p self, declared: &'p BTreeMap<String, Value>) -> Vec<&'p str> {
        let mut names = self.in_keys(declared);
        let probe = self.probe.iter().flat_map(|probe| probe.facts.keys());
        names.extend(
            probe
                .map(String::as_str)
                .filter(|name| declared.contains_key(*name)),
        );
        names
    }

    /// Names of the facts that enter the keys, in order: those that are listed, else all; without
    /// those that the platform declares, which are in the keys already and held against the probe.
    pub fn in_keys<'p>(&'p self, declared: &'p BTreeMap<String, Value>) -> Vec<&'p str> {
        let Some(probe) = &self.probe else {
            return Vec::new();
        };
        let listed = |name: &&str| match &self.in_key {
            Some(listed) => listed.iter().any(|text| text.text == *name),
            None => true,
        };
        let names = probe.facts.keys().map(String::as_str).filter(listed);
        names.filter(|name| !declared.contains_key(*name)).collect()
    }
}
