//! From rule files to rules. A rule that comes out of here is complete and passed every check that
//! needs no settings; one that has an error does not come out, and neither does any that extends it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::check;
use super::draft::Draft;
use super::host::{self, Probes};
use super::model::{Rule, RuleId};
use crate::error::{Diagnostic, Severity, Site, nearest};
use crate::source::Doc;

/// Rules by id.
pub type Rules = BTreeMap<RuleId, Arc<Rule>>;

/// A rule file's text.
#[derive(Debug, Clone, Copy)]
pub struct RuleFile<'a> {
    /// How messages call it.
    pub name: &'a str,
    /// The part of the rules' ids before the dot: the file's name without `.toml`.
    pub stem: &'a str,
    /// The whole text.
    pub text: &'a str,
}

/// What rule files hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Rules by id.
    pub rules: Rules,
    /// Probes of hosts by id.
    pub probes: Probes,
    /// Findings.
    pub diags: Vec<Diagnostic>,
}

/// Loads one file that extends nothing outside itself. `instruments` are the ones that scripts may
/// call: `measure openai`, `parse iperf3`, `proxy`.
pub fn load_file(
    path: &Path,
    name: &str,
    stem: &str,
    instruments: &[&str],
) -> (Rules, Vec<Diagnostic>) {
    let mut loader = Loader::new(instruments);
    loader.read(path, name, stem);
    let loaded = loader.finish();
    (loaded.rules, loaded.diags)
}

/// Loads texts together; a rule may extend one of another file.
pub fn load_texts(files: &[RuleFile<'_>], instruments: &[&str]) -> (Rules, Vec<Diagnostic>) {
    let loaded = load_all(files, instruments);
    (loaded.rules, loaded.diags)
}

/// Loads texts together, probes of hosts included.
pub fn load_all(files: &[RuleFile<'_>], instruments: &[&str]) -> Loaded {
    let mut loader = Loader::new(instruments);
    for file in files {
        let (doc, diags) = Doc::parse(file.name, file.text);
        loader.add(file.stem, &doc, diags);
    }
    loader.finish()
}

/// Loads all `*.toml` files of a folder together, in the order of their names. `shown` is how
/// messages call the folder.
pub fn load_dir(dir: &Path, shown: &str, instruments: &[&str]) -> Loaded {
    let mut loader = Loader::new(instruments);
    let names = std::fs::read_dir(dir).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<_>>>()
    });
    match names {
        Ok(mut names) => {
            names.sort();
            for name in &names {
                if let Some(stem) = name.strip_suffix(".toml") {
                    loader.read(&dir.join(name), &format!("{shown}/{name}"), stem);
                }
            }
        }
        Err(error) => loader.diags.push(
            Diagnostic::error(
                "io",
                format!("could not read the folder `{shown}`: {error}"),
            )
            .hint("rule files live there; `rules` in doe.toml names another folder"),
        ),
    }
    loader.finish()
}

struct Loader<'a> {
    instruments: &'a [&'a str],
    drafts: BTreeMap<RuleId, Draft>,
    /// Rules that others extend: what they do not use themselves is for those.
    extended: BTreeSet<RuleId>,
    rules: Rules,
    probes: Probes,
    diags: Vec<Diagnostic>,
}

impl<'a> Loader<'a> {
    fn new(instruments: &'a [&'a str]) -> Self {
        Self {
            instruments,
            drafts: BTreeMap::new(),
            extended: BTreeSet::new(),
            rules: BTreeMap::new(),
            probes: BTreeMap::new(),
            diags: Vec::new(),
        }
    }

    fn read(&mut self, path: &Path, name: &str, stem: &str) {
        match Doc::read(path, name) {
            Ok((doc, diags)) => self.add(stem, &doc, diags),
            Err(error) => {
                let mut diagnostic = Diagnostic::error(error.code, error.to_string());
                diagnostic.hints = error.hints;
                self.diags.push(diagnostic);
            }
        }
    }

    fn add(&mut self, stem: &str, doc: &Doc, diags: Vec<Diagnostic>) {
        // Of a text that is not TOML nothing more is said: the rest would follow from that.
        let broken = !diags.is_empty();
        self.diags.extend(diags);
        if broken {
            return;
        }
        if !crate::label::is_valid_name(stem) || stem.contains('.') {
            self.diags.push(
                Diagnostic::error(
                    "bad-name",
                    format!("`{stem}.toml` cannot be the name of a rule file"),
                )
                .at(doc.table().site().clone(), "this file")
                .hint("names are letters, digits and `_+=,-`"),
            );
            return;
        }
        for entry in doc.table().entries() {
            let before = self.diags.len();
            if host::is_probe(&entry.item) {
                if let Some(probe) = host::read(stem, entry, &mut self.diags) {
                    label(&mut self.diags[before..], &probe.id);
                    self.probes.insert(probe.id.clone(), Arc::new(probe));
                }
                continue;
            }
            if let Some(draft) = Draft::read(stem, entry, &mut self.diags) {
                label(&mut self.diags[before..], &draft.id);
                self.drafts.insert(draft.id.clone(), draft);
            }
        }
    }

    fn finish(mut self) -> Loaded {
        let ids: Vec<_> = self.drafts.keys().cloned().collect();
        self.extended = self.drafts.values().filter_map(parent).collect();
        for id in &ids {
            self.resolve(id, &ids, &mut Vec::new());
        }
        self.unread_by_all();
        Loaded {
            rules: self.rules,
            probes: self.probes,
            diags: self.diags,
        }
    }

    /// What a rule that others extend does not read may be theirs to read; what none of them reads
    /// either is told here. With errors about, a reader may be missing.
    fn unread_by_all(&mut self) {
        if self.diags.iter().any(|d| d.severity == Severity::Error) {
            return;
        }
        let mut told: Vec<&Site> = Vec::new();
        let mut found = Vec::new();
        for rule in self
            .rules
            .values()
            .filter(|rule| self.extended.contains(&rule.id))
        {
            for name in &rule.unread {
                let Some(param) = rule.params.get(name).filter(|p| !told.contains(&&p.site)) else {
                    continue;
                };
                let same = |other: &&Arc<Rule>| {
                    (other.params.get(name)).is_some_and(|theirs| theirs.site == param.site)
                };
                if (self.rules.values().filter(same)).all(|other| other.unread.contains(name)) {
                    told.push(&param.site);
                    found.push(check::shape::unused_parameter(name, param).label(&rule.id));
                }
            }
        }
        self.diags.extend(found);
    }

    /// Makes the rule of a draft, after the one that it extends.
    fn resolve(&mut self, id: &RuleId, ids: &[RuleId], chain: &mut Vec<RuleId>) {
        let Some(mut draft) = self.drafts.remove(id) else {
            return;
        };
        let before = self.diags.len();
        let mut base = None;
        if let Some((extends, parent)) = draft.extends.clone().zip(parent(&draft)) {
            chain.push(id.clone());
            if chain.contains(&parent) {
                let names: Vec<_> = chain.iter().map(|id| id.0.as_str()).collect();
                self.diags.push(
                    Diagnostic::error(
                        "extends-cycle",
                        format!(
                            "a rule cannot extend itself: {} → {parent}",
                            names.join(" → ")
                        ),
                    )
                    .at(extends.site, "")
                    .label(id),
                );
                return;
            }
            self.resolve(&parent, ids, chain);
            chain.pop();
            base = self.rules.get(&parent).cloned();
            if base.is_none() {
                if !ids.contains(&parent) {
                    let diagnostic = Diagnostic::error(
                        "unknown-rule",
                        format!("there is no rule `{parent}` to extend"),
                    )
                    .at(extends.site, "")
                    .label(id);
                    let near = nearest(&parent.0, ids.iter().map(|id| id.0.as_str()));
                    self.diags.push(match near {
                        Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
                        None => diagnostic,
                    });
                }
                // The parent's own errors are said already.
                return;
            }
            if let (Some(base), Some(kind)) = (&base, &draft.kind)
                && base.kind != kind.value
            {
                self.diags.push(
                    Diagnostic::error("wrong-type", "a rule is of the kind of the one it extends")
                        .at(kind.site.clone(), "")
                        .hint("take `kind` away, or extend another rule"),
                );
            }
        }
        let refs = std::mem::take(&mut draft.refs);
        let names = std::mem::take(&mut draft.name_sites);
        let sound = draft.sound;
        let mut rule = draft.into_rule(base.as_deref());
        let mut found = Vec::new();
        check::rule(&mut rule, &refs, &names, self.instruments, &mut found);
        if !sound {
            // Parts that were not understood are missing; what may follow from that is not said.
            found.retain(|diagnostic| !check::may_follow(diagnostic));
        }
        found.retain(|diagnostic| {
            let inherited = || {
                let site = diagnostic.sites.first().map(|(site, _)| site);
                base.as_ref().zip(site).is_some_and(|(base, site)| {
                    base.params.values().any(|param| param.site == *site)
                        || base.roles.values().any(|role| role.site == *site)
                        || base.lets.values().any(|text| text.site == *site)
                })
            };
            let unused = diagnostic.code.starts_with("unused-");
            !(unused && (self.extended.contains(id) || inherited()))
        });
        for diagnostic in found {
            let said = |d: &Diagnostic| {
                d.code == diagnostic.code
                    && d.message == diagnostic.message
                    && d.sites == diagnostic.sites
            };
            // An inherited part was judged with the rule it comes from.
            if !self.diags.iter().any(said) {
                self.diags.push(diagnostic);
            }
        }
        label(&mut self.diags[before..], id);
        let failed = self.diags[before..]
            .iter()
            .any(|d| d.severity == Severity::Error);
        if sound && !failed {
            self.rules.insert(id.clone(), Arc::new(rule));
        }
    }
}

/// The rule that a draft extends: of its own file when the name has no dot.
fn parent(draft: &Draft) -> Option<RuleId> {
    let name = draft.extends.as_ref()?.text.as_str();
    if name.contains('.') {
        return Some(RuleId(name.to_owned()));
    }
    let (stem, _) = draft.id.0.split_once('.')?;
    Some(RuleId(format!("{stem}.{name}")))
}

fn label(diags: &mut [Diagnostic], id: &RuleId) {
    for diagnostic in diags {
        diagnostic.label.get_or_insert_with(|| id.to_string());
    }
}
