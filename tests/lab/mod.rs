//! A small workspace with an executor and a store, in which tests let the engine run for real.
//! Services and steps are shell scripts; nothing waits for a time to pass.

#![allow(dead_code)] // each test program uses a part of it

pub(crate) mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doe::engine::caps::Caps;
use doe::engine::decide::Decider;
use doe::engine::event::{Body, Event, NodeFinished, Outcome, Sink, Summary};
use doe::engine::followup::Choice;
use doe::engine::remains::{Remains, Within};
use doe::engine::run::{Ended, Options, Request, run};
use doe::error::Result;
use doe::exec::Executor;
use doe::exec::local::{LocalExecutor, LocalOptions};
use doe::graph::{Graph, NodeId};
use doe::plan::model::Workspace;
use doe::plan::workspace::LoadOptions;
use doe_cache::{Record, Store};
use tokio::sync::watch;

/// The head of every workspace: one platform with two hosts of one GPU each.
const HEAD: &str = r#"
[workspace]
platform = "lab"
[platform.lab]
dynamic_ports = true
cost_per_hour = "3600 EUR"
roles = { "*" = "h1", second = "h2" }
[platform.lab.host.h1]
address = "127.0.0.1"
gpus = 1
[platform.lab.host.h2]
address = "127.0.0.2"
gpus = 1
"#;

/// See the module.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) executor: Arc<LocalExecutor>,
    /// What stands between a build and it, when something does.
    pub(crate) through: Option<Arc<dyn Executor>>,
}

/// How one build is done.
#[derive(Default)]
pub(crate) struct Build<'t> {
    pub(crate) targets: &'t [&'t str],
    pub(crate) rerun: &'t [&'t str],
    pub(crate) fail_fast: bool,
    pub(crate) jobs: Option<usize>,
    /// Limits.
    pub(crate) caps: Caps,
    /// Whether follow-ups are begun; the targets are then everything that is not ad-hoc.
    pub(crate) followups: bool,
    /// Whether it looks for what earlier runs left.
    pub(crate) takes_over: bool,
    /// Whether its judge looks for the files of records, as the program's does.
    pub(crate) looks: bool,
    /// Told every event; may ask to stop.
    pub(crate) watch: Option<Watcher<'t>>,
}

/// Sees every event and may raise the number of interrupts.
pub(crate) type Watcher<'t> = Box<dyn FnMut(&Event, &watch::Sender<u8>) + Send + 't>;

/// What one build did.
pub(crate) struct Built {
    pub(crate) ended: Ended,
    pub(crate) events: Vec<Event>,
}

impl Lab {
    /// A workspace with these rules (file `t.toml`) and this plan (package `//t`).
    pub(crate) fn new(rules: &str, plan: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["rules", "plans"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("doe.toml"), HEAD).unwrap();
        let state = dir.path().join(".doe");
        let options = LocalOptions {
            grace: std::time::Duration::from_millis(500),
            ..LocalOptions::new(env!("CARGO_BIN_EXE_doe"))
        };
        let lab = Self {
            store: Arc::new(Store::open(&state).unwrap()),
            executor: Arc::new(LocalExecutor::new(state.join("exec"), options).unwrap()),
            through: None,
            dir,
        };
        lab.rules(rules);
        lab.plan(plan);
        lab
    }

    /// Writes the rules anew. `SCRATCH` stands for a folder that outlives nodes.
    pub(crate) fn rules(&self, rules: &str) {
        let scratch = self.scratch();
        std::fs::create_dir_all(&scratch).unwrap();
        let text = rules.replace("SCRATCH", scratch.to_str().unwrap());
        std::fs::write(self.dir.path().join("rules/t.toml"), text).unwrap();
    }

    /// Writes the plan anew.
    pub(crate) fn plan(&self, plan: &str) {
        let text = format!("[plan]\ntitle = \"test\"\nrules = [\"t\"]\n{plan}");
        std::fs::write(self.dir.path().join("plans/t.toml"), text).unwrap();
    }

    /// The folder that outlives nodes.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir.path().join("scratch")
    }

    /// Lines of a file in the scratch folder; none when it is not there.
    pub(crate) fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.scratch().join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn workspace(&self) -> Workspace {
        let root: &Path = self.dir.path();
        Workspace::load(root, &LoadOptions::default())
            .unwrap_or_else(|error| panic!("{:#?}", error.diagnostics))
    }

    /// Builds everything.
    pub(crate) async fn build(&self) -> Built {
        self.build_with(Build::default()).await
    }

    /// Builds; no targets mean all.
    pub(crate) async fn build_with(&self, build: Build<'_>) -> Built {
        let (ended, events) = self.attempt(build).await;
        let ended = ended.unwrap();
        let built = Built { ended, events };
        built.check();
        // Whoever has just written its exit record may still be on its way out.
        for _ in 0..9000 {
            if left_over(&built.ended.run_id).is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(left_over(&built.ended.run_id), Vec::<String>::new());
        built
    }

    /// Builds, and may fail as a whole. What it told in any case.
    pub(crate) async fn attempt(&self, build: Build<'_>) -> (Result<Ended>, Vec<Event>) {
        let workspace = self.workspace();
        let graph = Graph::build(&workspace).unwrap();
        let node = |label: &&str| graph.node(&label.parse().unwrap()).expect(label);
        let targets: Vec<NodeId> = match build.targets {
            [] if build.followups => {
                let planned = graph.nodes().filter(|node| !graph.pattern(*node).adhoc);
                planned.collect()
            }
            [] => graph.nodes().collect(),
            some => some.iter().map(node).collect(),
        };
        let store = self.store.clone();
        let history = {
            let store = store.clone();
            Box::new(move |digest: &_| store.record(digest).ok())
        };
        let platform = &workspace.platforms["lab"];
        let mut decider = Decider::new(&graph, platform, store.bulk().unwrap(), history)
            .rerun(build.rerun.iter().map(node));
        let executor: Arc<dyn Executor> = match &self.through {
            Some(through) => through.clone(),
            None => self.executor.clone(),
        };
        let within = Within {
            executor: &*executor,
            local: &*executor,
            away: None,
        };
        let remains = match build.takes_over {
            true => Remains::find(&store, within, Vec::new()).await.unwrap(),
            false => Remains::default(),
        };
        let (interrupts, interrupt) = watch::channel(0);
        let layout = store.layout().clone();
        if build.looks {
            decider = decider.looking(Box::new(move |digest| layout.record(digest).exists()));
        }
        let mut recorder = Recorder {
            events: Vec::new(),
            watch: build.watch,
            interrupts,
        };
        let ended = run(Request {
            decider: &mut decider,
            targets: &targets,
            shown: &[],
            store,
            executor: executor.clone(),
            local: executor.clone(),
            options: Options {
                command: "test".into(),
                jobs: build.jobs,
                fail_fast: build.fail_fast,
                doe: env!("CARGO_BIN_EXE_doe").into(),
                path_prefix: Vec::new(),
                secrets: Default::default(),
                env: BTreeMap::new(),
                site: None,
                notices: Vec::new(),
                mirror: None,
                warmed: Default::default(),
                caps: build.caps,
                followups: Choice {
                    plans: build
                        .followups
                        .then(|| "t".to_owned())
                        .into_iter()
                        .collect(),
                    ..Choice::default()
                },
            },
            remains,
            interrupt,
            sink: &mut recorder,
        })
        .await;
        (ended, recorder.events)
    }

    /// The stored record of a label's last attempt.
    pub(crate) fn record(&self, label: &str) -> Record {
        let bulk = self.store.bulk().unwrap();
        let latest = bulk
            .latest(label)
            .unwrap_or_else(|| panic!("{label} has no record"));
        self.store.record(&latest.record).unwrap()
    }

    /// The content of a log of a record.
    pub(crate) fn log(&self, record: &Record, name: &str) -> String {
        let log = record.logs.iter().find(|log| log.name == name);
        let log = log.unwrap_or_else(|| panic!("no log {name} among {:?}", record.logs));
        String::from_utf8(self.store.blob(&log.digest).unwrap()).unwrap()
    }
}

struct Recorder<'t> {
    events: Vec<Event>,
    watch: Option<Watcher<'t>>,
    interrupts: watch::Sender<u8>,
}

impl Sink for Recorder<'_> {
    fn event(&mut self, event: &Event) {
        self.events.push(event.clone());
        if let Some(watch) = &mut self.watch {
            watch(event, &self.interrupts);
        }
    }
}

impl Built {
    /// What holds of every run: its first and last event, and one end for every node.
    fn check(&self) {
        let first = &self.events.first().unwrap().body;
        let Body::RunStarted { nodes, .. } = first else {
            panic!("the first event is {first:?}");
        };
        let last = &self.events.last().unwrap().body;
        assert!(
            matches!(last, Body::Summary(_)),
            "the last event is {last:?}"
        );
        let (mut ended, mut brought) = (BTreeMap::new(), BTreeMap::new());
        let mut announced = BTreeSet::new();
        for event in &self.events {
            match &event.body {
                // What a follow-up brought in is counted apart.
                Body::NodeFinished(node) if node.followup.is_some() => {
                    assert!(node.exploratory);
                    *brought.entry(node.label.clone()).or_insert(0) += 1;
                }
                Body::NodeFinished(node) => {
                    *ended.entry(node.label.clone()).or_insert(0) += 1;
                }
                Body::NodeState { label, .. } => {
                    let goes_on = ended.contains_key(label) || brought.contains_key(label);
                    assert!(!goes_on, "{label} goes on after its end");
                    announced.insert(label.clone());
                }
                _ => {}
            }
        }
        assert!(ended.values().all(|times| *times == 1), "{ended:?}");
        assert!(brought.values().all(|times| *times == 1), "{brought:?}");
        assert_eq!(ended.len(), *nodes);
        assert_eq!(brought.len() as u64, self.ended.summary.followups);
        for label in announced {
            assert!(
                ended.contains_key(&label) || brought.contains_key(&label),
                "{label} was announced and has no end"
            );
        }
        let Summary {
            ok,
            reused,
            failed,
            invalid,
            blocked,
            cancelled,
            skipped,
            ..
        } = &self.ended.summary;
        assert_eq!(
            ok + reused + failed + invalid + blocked + cancelled + skipped,
            *nodes as u64
        );
    }

    /// How a node ended.
    pub(crate) fn node(&self, label: &str) -> &NodeFinished {
        let mut ends = self.events.iter().filter_map(|event| match &event.body {
            Body::NodeFinished(node) if node.label == label => Some(node),
            _ => None,
        });
        ends.next().unwrap_or_else(|| panic!("{label} has no end"))
    }

    /// How nodes ended, in the order in which they did.
    pub(crate) fn outcomes(&self) -> Vec<(&str, Outcome)> {
        let ends = self.events.iter().filter_map(|event| match &event.body {
            Body::NodeFinished(node) => Some((node.label.as_str(), node.outcome)),
            _ => None,
        });
        ends.collect()
    }

    /// The reason that a node ended badly.
    pub(crate) fn reason(&self, label: &str) -> &str {
        self.node(label).reason.as_deref().unwrap_or("")
    }

    /// The last lines that were told of a node.
    pub(crate) fn tail(&self, label: &str) -> String {
        let mut tails = self.events.iter().filter_map(|event| match &event.body {
            Body::LogTail {
                label: of, lines, ..
            } if of == label => Some(lines.join("\n")),
            _ => None,
        });
        tails.next().unwrap_or_default()
    }
}

/// Processes that carry a token of the run.
fn left_over(run_id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let token = format!("DOE_TOKEN={run_id}");
        if environ
            .split(|b| *b == 0)
            .any(|var| var.starts_with(token.as_bytes()))
        {
            found.push(entry.path().display().to_string());
        }
    }
    found
}
