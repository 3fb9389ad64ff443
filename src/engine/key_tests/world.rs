//! One pattern with everything around it, as a workspace gives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use doe_cache::{Digest, Manifest, Value};

use crate::engine::instruments;
use crate::engine::key::{self, Need, Needs};
use crate::graph::Graph;
use crate::plan::model::{
    HostFacts, Monitor, Pattern, Platform, Probing, Setting, Settings, Workspace,
};
use crate::plan::workspace::LoadOptions;
use crate::rule::action::{Action, Binding};
use crate::rule::host::HostProbe;
use crate::rule::model::{Rule, RuleId};
use crate::rule::render::render;

const HEAD: &str = r#"[workspace]
platform = "lab"
[platform.lab]
roles = { "*" = "h1", far = "h2" }
facts = { gpu = "none" }
env = { HF_HOME = "/data" }
sim = { seed = 1 }
probe = "r.hosts"
facts_in_key = ["driver", "kernel"]
facts_max_age = "5m"
tokens = { license = 2 }
secrets = ["HF_TOKEN"]
cost_per_hour = "1.50 EUR"
[platform.lab.host.h1]
address = "127.0.0.1"
gpus = 2
[platform.lab.host.h2]
address = "127.0.0.2"
gpus = 2
[platform.lab.host.spare]
address = "127.0.0.3"
[platform.lab.link.wire]
hosts = ["h1", "h2"]
[[platform.lab.monitor]]
name = "seen"
run = "date"
rules = ["r.*"]
roles = ["here"]
time_column = "time"
during = "load"
in_key = true
[[platform.lab.monitor]]
name = "apart"
run = "uptime"
rules = ["r.*"]
roles = ["here"]
during = "load"
"#;

const RULES: &str = r#"[hosts]
kind = "probe"
fact.driver = { run = "cat driver" }
fact.kernel = { run = "uname -r", optional = true }
fact.other = { run = "true" }

[go]
doc = "d"
param.word = { type = "str", default = "a", unit = "1", doc = "w" }
param.patience = { type = "int", default = 60, affects = "scheduling", doc = "p" }
param.least = { type = "int", default = 1, affects = "scheduling", doc = "l" }
param.note = { type = "str", default = "n", affects = "cosmetic", doc = "n" }
require = [{ that = "word != ''", why = "there must be one" }]
let.twice = "word ~ word"
let.bound = "least * 2"
env.MODE = "{{ twice }}"
roles = { here = { gpus = 1 }, far = {} }
compare_only_on = ["word"]
failure = [{ class = "oom", log = "out of memory" }]
retry = { times = 1 }
[[go.service]]
name = "web"
role = "here"
ports = { http = 8000 }
env.KIND = "one"
run = "exec serve {{ word }} --port {{ self.port.http }}"
ready = { log = "is up", within = "1m", fail_on_log = ["FATAL"] }
stop_grace = "5s"
health = { every = "10s", misses = 5 }
released = { run = "true", within = "20s" }
[[go.step]]
name = "load"
role = "here"
gang = "pair"
timeout = "patience"
env.SIZE = "{{ word }}"
ports = { data = 7000 }
ready = { listen = "{{ self.port.data }}", within = "10s", fail_on_log = ["FATAL"] }
run = "doe measure openai --url http://{{ service.web.ip }} --out {{ out.result }}; echo {{ note }}"
[[go.step]]
name = "pull"
role = "far"
gang = "pair"
after = ["load"]
timeout = "1m"
run = "true"
[go.output]
result = { path = "result.json", role = "here", schema = "load-v1" }
[go.metric]
speed = { from = "result", at = "/speed", unit = "1/s", better = "higher" }
[go.sample]
laps = { from = "result", at = "/laps/*/s", unit = "s" }
[go.valid]
that = ["result.errors == 0", "speed >= bound"]
"#;

const PLAN: &str = r#"[plan]
title = "t"
rules = ["r"]
tags = ["nightly"]
uses = { license = 1 }
[[layer]]
id = "L0"
rule = "r.go"
[[layer.pattern]]
id = "first"
[[layer]]
id = "L1"
rule = "r.go"
gate = ["L0"]
expect = { speed = "> 1" }
retry = 2
[[layer.pattern]]
id = "second"
title = "The second"
settings = { word = "b" }
needs = ["first"]
"#;

/// All that the keys of a pattern are made of.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) pattern: Pattern,
    pub(super) action: Action,
    pub(super) platform: Platform,
    pub(super) needs: Needs,
    /// Where the roles of its services are.
    pub(super) hosts: BTreeMap<String, String>,
    /// Keys of the services that its service stands on.
    pub(super) after: BTreeMap<String, Digest>,
}

impl World {
    pub(super) fn new() -> Self {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(Self::load).clone()
    }

    fn load() -> Self {
        let root = tempfile::tempdir().unwrap();
        write(root.path());
        let options = LoadOptions {
            known_instruments: instruments::known(),
            ..LoadOptions::default()
        };
        let workspace = Workspace::load(root.path(), &options)
            .unwrap_or_else(|error| panic!("{:#?}", error.diagnostics));
        let graph = Graph::build(&workspace).unwrap();
        let node = graph.node(&"//p:second".parse().unwrap()).unwrap();
        let pattern = graph.pattern(node).clone();
        let settings = pattern.settings.plain();
        let action = render(&pattern.rule, &settings, &Binding::Symbolic).unwrap();
        let mut platform = workspace.platforms["lab"].clone();
        let fact = |name: &str| (name.to_owned(), Value::from("6.1"));
        let read = HostFacts {
            facts: ["driver", "kernel", "other"].map(fact).into(),
            read_unix_ms: 1,
            just_read: false,
        };
        let probing = platform.probing.as_mut().unwrap();
        for host in ["h1", "h2"] {
            probing
                .known
                .insert(host.to_owned(), Arc::new(read.clone()));
        }
        let needs = pattern.needs.iter().map(|label| {
            let needed = graph.pattern(graph.node(label).unwrap());
            (label.clone(), Need::of(needed, Digest::of("output")))
        });
        Self {
            needs: needs.collect(),
            hosts: BTreeMap::from([("here".to_owned(), "h1".to_owned())]),
            after: BTreeMap::from([("below".to_owned(), Digest::of("below"))]),
            pattern,
            action,
            platform,
        }
    }

    /// By letter: the keys of what was asked for, of what would be executed, of how it is judged,
    /// of its service, and what dependents see of its settings.
    pub(super) fn keys(&self) -> BTreeMap<char, Digest> {
        let (spec, manifest) = self.manifests();
        let Self {
            pattern,
            action,
            platform,
            needs: _,
            hosts,
            after,
        } = self;
        let service = key::service_key(&action.services[0], hosts, after, platform);
        BTreeMap::from([
            ('S', spec.key()),
            ('A', manifest.key()),
            ('J', key::judge_digest(pattern)),
            ('V', service),
            ('N', Need::of(pattern, Digest::of("")).settings),
        ])
    }

    /// Of what was asked for, and of what would be executed.
    pub(super) fn manifests(&self) -> (Manifest, Manifest) {
        let spec = key::spec_manifest(&self.pattern, &self.platform, &self.needs).unwrap();
        let action = key::action_manifest(&self.pattern, &self.action, &spec);
        (spec, action)
    }

    pub(super) fn rule(&mut self) -> &mut Rule {
        Arc::make_mut(&mut self.pattern.rule)
    }

    pub(super) fn probing(&mut self) -> &mut Probing {
        self.platform.probing.as_mut().unwrap()
    }

    pub(super) fn probe(&mut self) -> &mut HostProbe {
        Arc::make_mut(self.probing().probe.as_mut().unwrap())
    }

    /// Of the host that `far` is always bound to.
    pub(super) fn read(&mut self) -> &mut HostFacts {
        Arc::make_mut(self.probing().known.get_mut("h2").unwrap())
    }

    /// The monitor that is in the keys, or the one that is not.
    pub(super) fn monitor(&mut self, in_key: bool) -> &mut Monitor {
        &mut self.platform.monitors[usize::from(!in_key)]
    }

    /// Changes one setting; says whether it is another one now.
    pub(super) fn set(&mut self, name: &str, change: impl FnOnce(&mut Setting)) -> bool {
        let before = format!("{:?}", self.pattern.settings.get(name));
        self.pattern.settings = with(&self.pattern.settings, name, change);
        before != format!("{:?}", self.pattern.settings.get(name))
    }
}

/// The settings after a change of one.
pub(super) fn with(of: &Settings, name: &str, change: impl FnOnce(&mut Setting)) -> Settings {
    let settings = of.iter().map(|(name, setting)| (name, setting.clone()));
    let mut settings: BTreeMap<&str, Setting> = settings.collect();
    change(settings.get_mut(name).unwrap());
    settings.into_iter().collect()
}

/// Another rule's name, which no monitor asks for.
pub(super) fn other_id(word: &str) -> RuleId {
    RuleId(format!("r.{word}"))
}

fn write(root: &Path) {
    for (name, text) in [
        ("doe.toml", HEAD),
        ("rules/r.toml", RULES),
        ("plans/p.toml", PLAN),
    ] {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}
