//! What the keys of all nodes of one rule have in common on one platform. It depends on no node,
//! so it is made once and every manifest begins as a copy of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use doe_cache::{Class, Digest, Entry, KeyEncoder, Manifest, Value};

use super::key::KEY_SCHEMA;
use super::{facts, instruments, monitor, platform_key};
use crate::error::{Error, Kind, Result, Site};
use crate::plan::model::{Pattern, Platform};
use crate::rule::model::{Rule, RuleKind};
use crate::rule::{digest, settings};

/// The part of a rule and a platform in the keys of the rule's nodes.
pub(super) struct RuleKey {
    /// Of a spec: the rule's definition, and what surrounds an execution, its inputs apart.
    pub(super) entries: BTreeMap<String, Entry>,
    /// How results are judged.
    pub(super) judge: RuleJudge,
}

impl RuleKey {
    /// That of a rule on a platform.
    ///
    /// # Errors
    /// The rule calls an instrument that there is not.
    pub(super) fn new(rule: &Rule, platform: &Platform) -> Result<Self> {
        let mut manifest = Manifest::new("doe.spec", KEY_SCHEMA);
        let origin = line_of(&rule.site);
        let definition = definition_digest(rule);
        manifest.set_from("rule.definition", definition, Class::Result, &*origin);
        manifest.set_from("rule.version", rule.version, Class::Result, origin);
        surroundings(&mut manifest, rule, platform)?;
        Ok(Self {
            entries: manifest.entries,
            judge: RuleJudge::new(rule),
        })
    }
}

/// How the results of a rule's nodes are judged.
pub(super) struct RuleJudge {
    described: Value,
    /// The settings that it looks at.
    settings: BTreeSet<String>,
}

impl RuleJudge {
    /// That of a rule.
    pub(super) fn new(rule: &Rule) -> Self {
        Self {
            described: digest::judge_describe(rule),
            settings: settings::judging(rule),
        }
    }

    /// The digest for one of the rule's nodes.
    pub(super) fn digest(&self, pattern: &Pattern) -> Digest {
        let mut encoder = KeyEncoder::new("doe.judge", KEY_SCHEMA);
        encoder.entry("judge", &self.described);
        for name in &self.settings {
            if let Some(setting) = pattern.settings.get(name) {
                encoder.entry(&["setting.", name].concat(), &setting.value);
            }
        }
        encoder.finish()
    }
}

/// The digest of a rule's definition, comments and documentation apart.
fn definition_digest(rule: &Rule) -> Digest {
    let mut encoder = KeyEncoder::new("doe.rule", KEY_SCHEMA);
    encoder.entry("rule", &digest::describe(rule));
    encoder.finish()
}

/// What surrounds an execution: instruments and platform.
fn surroundings(manifest: &mut Manifest, rule: &Rule, platform: &Platform) -> Result<()> {
    for name in &rule.instruments {
        let version = instruments::version(name).ok_or_else(|| {
            Error::new(
                Kind::Bug,
                "unknown-instrument",
                format!("`doe {name}` has no version"),
            )
        })?;
        manifest.set_from(
            format!("instrument.{}", name.replace(' ', ".")),
            i64::from(version),
            Class::Result,
            concat!("doe ", env!("CARGO_PKG_VERSION")),
        );
    }
    // Given to every script, those of analyses included.
    for (variable, value) in &platform.env {
        manifest.set(
            format!("platform.env.{variable}"),
            value.as_str(),
            Class::Result,
        );
    }
    if rule.kind == RuleKind::Measure {
        platform_key::entries(manifest, rule, platform);
        facts::key::entries(manifest, rule, platform);
        monitor::entries(manifest, rule, platform);
    }
    Ok(())
}

/// `plans/phase2.toml:12`.
pub(super) fn line_of(site: &Site) -> String {
    let name = &site.file.name;
    let mut text = String::with_capacity(name.len() + 8);
    text.push_str(name);
    // Writing to a text does not fail.
    let _ = write!(text, ":{}", site.file.line(site.range.start));
    text
}
