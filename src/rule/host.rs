//! Probes of hosts: a rule of the kind `probe` says which facts a host has, of which type each is
//! and by which command it is read. A probe that exists is complete: every fact is read in exactly
//! one way. It has no templates: what a host is depends on no setting.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use doe_cache::{Digest, KeyEncoder, Value};

use super::model::RuleId;
use super::{params, parts, shell};
use crate::error::{Diagnostic, Site};
use crate::source::{Entry, Item, ItemValue, Table, Text};

pub use super::fact::FactType;

/// Probes by id.
pub type Probes = BTreeMap<RuleId, Arc<HostProbe>>;

/// Seconds that a probe may take when the file does not say.
const TIMEOUT_S: f64 = 60.0;

/// Stands between what the commands of facts say and what the probe's own script prints.
pub const OWN_OUTPUT: &str = "--- doe: the script of the probe";

/// Begins what the command of a fact writes to standard error; its name follows.
pub const STDERR_OF: &str = "--- doe: fact ";

/// Stands for the end of a line inside a value.
pub const LINE_END: char = '\u{1e}';

/// How the facts of a host are read.
#[derive(Debug, Clone)]
pub struct HostProbe {
    /// `file.table`.
    pub id: RuleId,
    /// For people.
    pub doc: String,
    /// Facts by name.
    pub facts: BTreeMap<String, FactDef>,
    /// A script that prints the facts that have no command: `name=value` lines, or one JSON object.
    pub run: Option<String>,
    /// Environment of all of it.
    pub env: BTreeMap<String, String>,
    /// Limit in seconds.
    pub timeout_s: f64,
    /// Where the table starts.
    pub site: Site,
}

/// One fact.
#[derive(Debug, Clone)]
pub struct FactDef {
    /// What it must look like.
    pub ty: FactType,
    /// The command whose output it is.
    pub run: Option<String>,
    /// Whether a host may not have it.
    pub optional: bool,
    /// For people.
    pub doc: String,
}

/// Whether a table of a rule file is a probe.
pub(super) fn is_probe(item: &Item) -> bool {
    let ItemValue::Table(entries) = &item.value else {
        return false;
    };
    let kind = entries.iter().find(|entry| entry.key.text == "kind");
    kind.is_some_and(|kind| matches!(&kind.item.value, ItemValue::Str(text) if text == "probe"))
}

/// Reads the table of a probe.
pub(super) fn read(stem: &str, entry: &Entry, diags: &mut Vec<Diagnostic>) -> Option<HostProbe> {
    let name = &entry.key.text;
    if !crate::label::is_valid_name(name) || name.contains('.') {
        diags.push(
            Diagnostic::error(
                "bad-name",
                format!("`{name}` cannot be the name of a probe"),
            )
            .at(entry.key.site.clone(), "")
            .hint("names are letters, digits and `_+=,-`"),
        );
    }
    let what = format!("probe `{stem}.{name}`");
    let mut table = entry.item.as_table(&what, diags)?.named(what.clone());
    table.item("kind");
    let mut probe = HostProbe {
        id: RuleId(format!("{stem}.{name}")),
        doc: text(table.opt_str("doc", diags)),
        facts: BTreeMap::new(),
        run: table.opt_str("run", diags).map(|text| text.text),
        env: BTreeMap::new(),
        timeout_s: table
            .opt_duration("timeout", diags)
            .map_or(TIMEOUT_S, |limit| limit.value),
        site: entry.key.site.clone(),
    };
    if let Some(env) = table.opt_table("env", diags) {
        let env = parts::texts(env, "an environment variable", diags);
        probe.env = env.into_iter().map(|(k, v)| (k, v.text)).collect();
    }
    if let Some(facts) = table.opt_table("fact", diags) {
        for entry in facts.entries() {
            let named = parts::check_identifier(&entry.key, "a fact", diags);
            if let Some(fact) = fact(entry, diags).filter(|_| named) {
                if fact.run.is_none() && probe.run.is_none() {
                    let found = Diagnostic::error(
                        "missing-part",
                        format!("nothing says how fact `{}` is read", entry.key.text),
                    );
                    diags.push(found.at(entry.key.site.clone(), "").hint(
                        "give it a command, as in `run = \"uname -r\"`, or the probe a `run` that prints `name=value` lines",
                    ));
                }
                probe.facts.insert(entry.key.text.clone(), fact);
            }
        }
    }
    table.remaining(diags, "in a probe");
    let all_have_commands = probe.facts.values().all(|fact| fact.run.is_some());
    if probe.facts.is_empty() {
        diags.push(
            Diagnostic::error("missing-part", format!("{what} reads no facts"))
                .at(entry.key.site.clone(), "")
                .hint("add one, as in `fact.kernel = { run = \"uname -r\" }`"),
        );
    } else if probe.run.is_some() && all_have_commands {
        diags.push(
            Diagnostic::error(
                "missing-part",
                format!("no fact is read from the `run` of {what}: each has a command of its own"),
            )
            .at(entry.key.site.clone(), "")
            .hint("take it away, or declare what it prints, as in `fact.gpu = { type = \"str\" }`"),
        );
    }
    Some(probe)
}

fn text(text: Option<Text>) -> String {
    text.map(|text| text.text).unwrap_or_default()
}

fn fact(entry: &Entry, diags: &mut Vec<Diagnostic>) -> Option<FactDef> {
    let what = format!("fact `{}`", entry.key.text);
    let mut table: Table<'_> = entry.item.as_table(&what, diags)?.named(what);
    let mut ty = FactType::Str;
    if let Some(given) = table.opt_str("type", diags) {
        match FactType::parse(&given.text) {
            Some(known) => ty = known,
            None => {
                let found = &given.text;
                diags.push(params::not_one_of(
                    "`type` of a fact",
                    found,
                    FactType::NAMES,
                    &given.site,
                ));
            }
        }
    }
    let fact = FactDef {
        ty,
        run: table.opt_str("run", diags).map(|text| text.text),
        optional: table.opt_bool("optional", diags).is_some_and(|b| b.value),
        doc: text(table.opt_str("doc", diags)),
    };
    table.remaining(diags, "of a fact");
    Some(fact)
}

impl HostProbe {
    /// The one script that reads all facts. Every command is a shell of its own, so that none can
    /// spoil another; what it prints stands on one line whatever it is.
    pub fn script(&self) -> String {
        let mut script = String::new();
        for (name, fact) in &self.facts {
            let Some(run) = &fact.run else { continue };
            let command = shell::quote(run);
            // Writing to a text cannot fail.
            let _ = writeln!(
                script,
                "echo '{STDERR_OF}{name}' >&2\nif doe_value=$(/bin/sh -eu -c {command}); then doe_ended=0; else doe_ended=$?; fi\n\
                 printf '%s %s ' {name} \"$doe_ended\"; printf %s \"$doe_value\" | tr '\\n' '\\036'; echo"
            );
        }
        if let Some(run) = &self.run {
            let command = shell::quote(run);
            let _ = writeln!(
                script,
                "echo {}\n/bin/sh -eu -c {command}",
                shell::quote(OWN_OUTPUT)
            );
        }
        script
    }

    /// What the facts that it reads mean: another one when anything about it changes.
    pub fn digest(&self) -> Digest {
        let mut key = KeyEncoder::new("doe.probe", 1);
        let env = self.env.iter();
        let env = env.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
        key.entry("env", &Value::Map(env.collect()));
        let facts = self.facts.iter().map(|(name, fact)| {
            let FactDef {
                ty,
                run: _, // in the script
                optional,
                doc: _,
            } = fact;
            let how = vec![Value::from(ty.name()), Value::Bool(*optional)];
            (name.clone(), Value::List(how))
        });
        key.entry("facts", &Value::Map(facts.collect()));
        key.text("script", &self.script());
        key.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::{RuleFile, load_all};
    use super::*;

    fn load(text: &str) -> (Probes, Vec<Diagnostic>) {
        let file = RuleFile {
            name: "rules/h.toml",
            stem: "h",
            text,
        };
        let loaded = load_all(&[file], &[]);
        (loaded.probes, loaded.diags)
    }

    #[test]
    fn a_probe_says_how_each_fact_is_read() {
        let (probes, diags) = load(
            "[gpu]\nkind = \"probe\"\ntimeout = \"5s\"\nenv.A = \"b\"\nrun = \"echo cores=4\"\n\
             fact.kernel = { run = \"uname -r\", doc = \"d\" }\nfact.cores = { type = \"int\", optional = true }\n",
        );
        assert_eq!(diags, []);
        let probe = &probes[&RuleId("h.gpu".into())];
        assert_eq!(probe.timeout_s, 5.0);
        assert_eq!(probe.facts["cores"].ty, FactType::Int);
        let script = probe.script();
        assert!(script.contains("-c 'uname -r'") && script.contains("-c 'echo cores=4'"));
        // Words for people change nothing.
        let (other, _) = load(
            "[gpu]\nkind = \"probe\"\nenv.A = \"b\"\nrun = \"echo cores=4\"\n\
             fact.kernel = { run = \"uname -r\" }\nfact.cores = { type = \"int\", optional = true }\n",
        );
        let other = &other[&probe.id];
        assert_eq!(other.digest(), probe.digest());
        let mut typed = (**probe).clone();
        typed.facts.get_mut("cores").unwrap().ty = FactType::Str;
        assert_ne!(typed.digest(), probe.digest());
    }

    #[test]
    fn what_is_no_probe_is_refused() {
        for (text, code, message) in [
            ("kind = \"probe\"", "missing-part", "reads no facts"),
            (
                "kind = \"probe\"\nfact.a = {}",
                "missing-part",
                "nothing says how fact `a` is read",
            ),
            (
                "kind = \"probe\"\nrun = \"x\"\nfact.a = { run = \"y\" }",
                "missing-part",
                "no fact is read from the `run`",
            ),
            (
                "kind = \"probe\"\nfact.a = { run = \"x\", type = \"integer\" }",
                "not-one-of",
                "`type` of a fact must be one of",
            ),
            (
                "kind = \"probe\"\nfact.a-b = { run = \"x\" }",
                "bad-name",
                "cannot be the name of a fact",
            ),
            (
                "kind = \"probe\"\nsteps = 1\nfact.a = { run = \"x\" }",
                "unknown-key",
                "`steps` is not a key in a probe",
            ),
        ] {
            let (_, diags) = load(&format!("[gpu]\n{text}\n"));
            let told = diags.iter().find(|d| d.message.contains(message));
            let told = told.unwrap_or_else(|| panic!("{text}: {diags:?}"));
            assert_eq!(told.code, code, "{text}");
            assert!(!told.advice().is_empty());
        }
    }
}
