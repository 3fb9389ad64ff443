//! Fills a store as if every task of a workspace had run: the keys, the judge and the commits are
//! `doe`'s own, only the executions are left out. A hundred thousand of them would measure the
//! machine's shell.

use std::collections::BTreeMap;
use std::path::Path;

use doe::engine::decide::{Decider, Decision};
use doe::engine::instruments;
use doe::engine::key::Need;
use doe::graph::Graph;
use doe::plan::model::Workspace;
use doe::plan::workspace::LoadOptions;
use doe_cache::{
    Batch, Criterion, CriterionStatus, Execution, ExecutionStatus, NodeState, NodeUpdate, Output,
    Provenance, RECORD_SCHEMA, Record, RecordKind, RunInfo, RunStatus, Store, Timings, Validity,
    ValidityStatus, Verdicts,
};

/// Records that become durable together.
const BATCH: usize = 2000;

/// See the module.
pub fn fill(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let options = LoadOptions {
        known_instruments: instruments::known(),
        ..LoadOptions::default()
    };
    let workspace = Workspace::load(dir, &options)?;
    let graph = Graph::build(&workspace).map_err(|_| "the graph has a cycle")?;
    let platform = &workspace.platforms[&workspace.default_platform];
    let store = Store::open(&workspace.state_dir)?;
    let mut decider = Decider::new(&graph, platform, store.bulk()?, Box::new(|_| None));
    let blob = store.put_bytes(b"text\n")?;
    let run_id = "filled".to_owned();
    store.begin_run(&RunInfo {
        run_id: run_id.clone(),
        command: "bench".into(),
        platform: platform.name.clone(),
        simulated: false,
        doe_version: "bench".into(),
        host: doe_cache::host(),
        pid: std::process::id(),
        started_unix_ms: store.stamp_unix_ms(),
    })?;
    let mut outputs = BTreeMap::new();
    let mut records: Vec<Record> = Vec::new();
    for &node in graph.order() {
        let needs = graph.deps(node).into_iter();
        let needs = needs
            .map(|(dep, _)| (graph.label(dep).clone(), outputs[&dep]))
            .collect();
        let Decision::Run { keyed, .. } = decider.decide(node, &needs)? else {
            return Err("the store was not empty".into());
        };
        let keyed = *keyed;
        let (_, action) = keyed.action.ok_or("a node that runs has an action")?;
        let pattern = graph.pattern(node);
        let now = store.stamp_unix_ms();
        let mut record = Record {
            schema: RECORD_SCHEMA,
            kind: RecordKind::Analysis,
            label: pattern.label.to_string(),
            plan: pattern.label.package().into(),
            layer: graph.layer(node).label.name().into(),
            rule: pattern.rule.id.to_string(),
            run_id: run_id.clone(),
            attempt: 1,
            attempts: None,
            previous_attempt: None,
            spec_key: keyed.spec.key(),
            action_key: action.key(),
            judge: keyed.judge,
            rejudged_from: None,
            spec_manifest: keyed.spec,
            action_manifest: action,
            provenance: Provenance {
                platform: platform.name.clone(),
                executor: platform.executor.clone(),
                ..Provenance::default()
            },
            verdicts: Verdicts {
                execution: Execution {
                    status: ExecutionStatus::Ok,
                    class: None,
                    reason: None,
                    exit_code: Some(0),
                },
                validity: Validity {
                    status: ValidityStatus::Valid,
                    failed: Vec::new(),
                },
                criterion: Criterion {
                    status: CriterionStatus::None,
                    checks: Vec::new(),
                },
            },
            reusable: true,
            not_reusable_because: None,
            settings: pattern.settings.plain(),
            tags: Vec::new(),
            cpu: BTreeMap::new(),
            exploratory: false,
            outputs: BTreeMap::from([(
                "text".to_owned(),
                Output {
                    digest: blob.digest,
                    size_bytes: blob.size_bytes,
                    schema: None,
                },
            )]),
            output_digest: keyed.judge,
            metrics: BTreeMap::new(),
            texts: BTreeMap::new(),
            samples: BTreeMap::new(),
            logs: Vec::new(),
            services: Vec::new(),
            timings: Timings {
                started_unix_ms: now,
                ended_unix_ms: now + 2,
                phases: BTreeMap::new(),
            },
            recorded_unix_ms: now,
        };
        record.seal();
        outputs.insert(node, Need::of(pattern, record.output_digest));
        decider.learn(node, record.summary(record.id()?));
        records.push(record);
        if records.len() == BATCH {
            write(&store, &run_id, &mut records)?;
        }
    }
    write(&store, &run_id, &mut records)?;
    store.end_run(&run_id, RunStatus::Ok)?;
    Ok(())
}

fn write(store: &Store, run_id: &str, records: &mut Vec<Record>) -> doe_cache::Result<()> {
    let nodes: Vec<NodeUpdate> = records
        .iter()
        .map(|record| NodeUpdate {
            run_id: run_id.into(),
            label: record.label.clone(),
            state: NodeState::Ok,
            reason: None,
            record: None,
        })
        .collect();
    let encoded = records.drain(..).map(Record::encode);
    store.write(&Batch {
        records: &encoded.collect::<doe_cache::Result<Vec<_>>>()?,
        nodes: &nodes,
        ..Batch::default()
    })?;
    Ok(())
}
