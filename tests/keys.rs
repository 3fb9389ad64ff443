//! Golden keys: spec key, action key and judge of every pattern of what is shipped and of a
//! workspace with some of everything. Whoever changes one of them makes somebody measure again.
//! Nothing of a machine enters: the platform's facts are declared or given here, the outputs of
//! what a pattern needs are the digests of their labels. `UPDATE_GOLDEN=1` writes the files anew.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe::engine::instruments;
use doe::engine::key::{self, Need, Needs};
use doe::graph::Graph;
use doe::plan::model::{HostFacts, Platform, Workspace};
use doe::plan::workspace::LoadOptions;
use doe::rule::action::Binding;
use doe::rule::render::render;
use doe_cache::{Digest, Value};

/// Keys of one pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Keys {
    spec: Digest,
    action: Digest,
    judge: Digest,
}

fn load(root: &Path) -> Workspace {
    let options = LoadOptions {
        known_instruments: instruments::known(),
        ..LoadOptions::default()
    };
    Workspace::load(root, &options).unwrap_or_else(|error| panic!("{:#?}", error.diagnostics))
}

/// The platform as if its hosts had been looked at: every fact is its own name's length.
fn looked_at(workspace: &Workspace) -> Platform {
    let mut platform = workspace.platforms[&workspace.default_platform].clone();
    if let Some(probing) = &mut platform.probing {
        let facts = probing.probe.iter().flat_map(|probe| probe.facts.keys());
        let facts = facts.map(|name| (name.clone(), Value::from(name.len() as u32)));
        let read = Arc::new(HostFacts {
            facts: facts.collect(),
            read_unix_ms: 0,
            just_read: true,
        });
        for host in platform.hosts.keys() {
            probing.known.insert(host.clone(), read.clone());
        }
    }
    platform
}

/// All patterns of a workspace, by label.
fn keys_of(root: &Path) -> BTreeMap<String, Keys> {
    let workspace = load(root);
    let platform = looked_at(&workspace);
    let graph = Graph::build(&workspace).unwrap();
    let mut keys = BTreeMap::new();
    for node in graph.nodes() {
        let pattern = graph.pattern(node);
        let needs: Needs = pattern
            .needs
            .iter()
            .map(|label| {
                let needed = graph.pattern(graph.node(label).unwrap());
                let output = Digest::of(label.to_string());
                (label.clone(), Need::of(needed, output))
            })
            .collect();
        let action = render(&pattern.rule, &pattern.settings.plain(), &Binding::Symbolic);
        let spec = key::spec_manifest(pattern, &platform, &needs).unwrap();
        let action = key::action_manifest(pattern, &action.unwrap(), &spec);
        let found = Keys {
            spec: spec.key(),
            action: action.key(),
            judge: key::judge_digest(pattern),
        };
        keys.insert(pattern.label.to_string(), found);
    }
    keys
}

/// A line a pattern with the first digits of its keys, so that one sees which would be measured
/// again; the last line holds all of all.
fn told(keys: &BTreeMap<String, Keys>) -> String {
    let width = keys.keys().map(String::len).max().unwrap_or(0);
    let mut text = format!("{:width$} {:16} {:16} judge\n", "label", "spec", "action");
    let mut whole = String::new();
    for (
        label,
        Keys {
            spec,
            action,
            judge,
        },
    ) in keys
    {
        let [s, a, j] = [spec, action, judge].map(Digest::hex);
        let _ = writeln!(whole, "{label} {s} {a} {j}");
        let _ = writeln!(
            text,
            "{label:width$} {} {} {}",
            &s[..16],
            &a[..16],
            &j[..16]
        );
    }
    let _ = writeln!(
        text,
        "{} patterns, all digits: {}",
        keys.len(),
        Digest::of(whole)
    );
    text
}

fn golden() -> PathBuf {
    support::repository().join("tests/golden/keys")
}

#[test]
fn no_key_changes_unnoticed() {
    let wanted = [
        ("shipped", support::repository().to_owned()),
        ("hello", support::repository().join("examples/hello")),
        ("rich", golden().join("rich")),
    ];
    for (name, root) in wanted {
        let found = told(&keys_of(&root));
        let path = golden().join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &found).unwrap();
        }
        let was = std::fs::read_to_string(&path).unwrap_or_default();
        for (was, is) in was.lines().zip(found.lines()) {
            assert_eq!(
                is, was,
                "{name}: a key changed, so results are measured again; CONTRIBUTING.md says when \
                 that may be, UPDATE_GOLDEN=1 writes it"
            );
        }
        assert_eq!(found, was, "{name}");
    }
}

/// The keys of the files above are those that `doe` itself looks for, wherever the checkout is.
#[test]
fn the_golden_keys_are_those_of_the_program() {
    let golden = keys_of(support::repository());
    let elsewhere = support::Workspace::shipped("0.002");
    assert_eq!(keys_of(elsewhere.path()), golden);
    let explained = elsewhere.doe(&["explain", "//...", "--json"]).ok();
    let mut held = 0;
    for node in explained.events() {
        // The others wait for outputs that are not there yet.
        if node["decision"] == "run" {
            let keys = &golden[node["label"].as_str().unwrap()];
            assert_eq!(node["spec_key"], keys.spec.hex(), "{node}");
            assert_eq!(node["action_key"], keys.action.hex(), "{node}");
            held += 1;
        }
    }
    assert!(held > 40, "{held}");
}

/// The workspace with some of everything has some of everything.
#[test]
fn the_rich_workspace_is_rich() {
    let workspace = load(&golden().join("rich"));
    let plan = &workspace.plans["rich"];
    let platform = &workspace.platforms["lab"];
    let rule = |id: &str| {
        let pattern = plan.patterns.iter().find(|p| p.rule.id.0 == id);
        pattern.unwrap().rule.clone()
    };
    let serve = rule("rich.serve");
    let all = |what: &str, has: bool| assert!(has, "{what}");
    all(
        "services",
        serve.services.len() > 1 && !serve.services[1].after.is_empty(),
    );
    all(
        "gangs",
        serve
            .steps
            .iter()
            .filter(|step| step.gang.is_some())
            .count()
            > 1,
    );
    all("instruments", !serve.instruments.is_empty());
    all(
        "environment",
        !serve.env.is_empty() && !platform.env.is_empty(),
    );
    all(
        "probe",
        platform
            .probing
            .as_ref()
            .is_some_and(|p| p.in_key.is_some()),
    );
    all(
        "monitors",
        platform.monitors.iter().any(|m| m.in_key) && platform.monitors.iter().any(|m| !m.in_key),
    );
    all(
        "links",
        platform.tokens.values().any(|token| token.hosts.is_some()),
    );
    all(
        "retries",
        plan.patterns.iter().any(|p| p.retry.attempts == 4),
    );
    all("replicates", plan.patterns.iter().any(|p| p.replicate == 3));
    all(
        "expected failure",
        plan.patterns.iter().any(|p| p.expect_class.is_some()),
    );
    all("inputs", rule("rich.sum").mentions_inputs());
    let is_sum = |p: &&doe::plan::model::Pattern| p.rule.id.0 == "rich.sum";
    let sums = || plan.patterns.iter().filter(is_sum);
    let on_sums = |label: &doe::label::Label| sums().any(|sum| sum.label == *label);
    all(
        "analyses on analyses",
        sums().any(|p| p.needs.iter().any(on_sums)),
    );
    all("follow-ups", !plan.followups.is_empty());
}
