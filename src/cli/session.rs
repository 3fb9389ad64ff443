//! What most commands start from: the workspace, its graph, the store as it stands and the judge.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doe_cache::remote::Mirror;
use doe_cache::{Snapshot, Store, WriterLock};

use super::args::{Global, Wait, Waiting};
use super::out::Out;
use crate::engine::decide::Decider;
use crate::engine::followup::Choice;
use crate::engine::remote::{Source, warm};
use crate::engine::{instruments, preflight};
use crate::error::{Diagnostic, Error, Kind, Result, nearest};
use crate::graph::{Graph, NodeId, Oracle, select};
use crate::label::Selector;
use crate::plan::model::{Platform, Workspace};
use crate::plan::workspace::{LoadOptions, find_root};

/// Reads the workspace that the global options name.
pub fn workspace(global: &Global) -> Result<Workspace> {
    let (root, options) = place(global)?;
    let mut workspace = Workspace::load(&root, &options)?;
    super::facts::recall(&mut workspace);
    Ok(workspace)
}

/// Where the workspace is, and with what it is read.
pub fn place(global: &Global) -> Result<(PathBuf, LoadOptions)> {
    let here = std::env::current_dir()
        .map_err(|e| Error::new(Kind::Infra, "io", "there is no working folder").cause(e))?;
    let root = find_root(&here, global.workspace.as_deref())?;
    let mut sets = Vec::new();
    for set in &global.sets {
        let Some((key, value)) = set.split_once('=') else {
            return Err(Error::new(
                Kind::Usage,
                "bad-set",
                format!("`--set {set}` is not KEY=VALUE"),
            )
            .hint("for example `--set max_tokens=64`"));
        };
        sets.push((key.trim().to_string(), value.trim().to_string()));
    }
    let options = LoadOptions {
        sets,
        known_instruments: instruments::known(),
        known_executors: super::fleet::EXECUTORS.map(str::to_owned).to_vec(),
        sim_profile: Some(preflight::sim_profile),
    };
    Ok((root, options))
}

/// Builds the graph; a cycle is an error of the plan.
pub fn graph(workspace: &Workspace) -> Result<Graph<'_>> {
    Graph::build(workspace).map_err(Error::from_diagnostics)
}

/// The platform that the options or the workspace name.
pub fn platform<'w>(global: &Global, workspace: &'w Workspace) -> Result<&'w Platform> {
    let name = global
        .platform
        .as_deref()
        .unwrap_or(&workspace.default_platform);
    workspace.platforms.get(name).ok_or_else(|| {
        let names = workspace.platforms.keys().map(String::as_str);
        let all: Vec<_> = names.clone().collect();
        let mut error = Error::new(
            Kind::Usage,
            "unknown-platform",
            format!("there is no platform `{name}`"),
        );
        if let Some(near) = nearest(name, names) {
            error = error.hint(format!("did you mean `{near}`?"));
        }
        error.hint(format!("platforms: {}", all.join(", ")))
    })
}

/// The store for reading; an empty one when nothing ran yet.
pub fn store(workspace: &Workspace) -> Result<Store> {
    Ok(Store::open_read_only(&workspace.state_dir)?)
}

/// The store for reading, blobs that are only in the mirror included.
pub fn store_with_mirror(global: &Global, workspace: &Workspace) -> Result<Store> {
    let store = store(workspace)?;
    if let Some(mirror) = mirror(global, workspace)? {
        store.attach(mirror);
    }
    Ok(store)
}

/// Says what to do with the mirror when the command line does not.
pub const MODE_VARIABLE: &str = "DOE_REMOTE_CACHE";

/// The mirror that the workspace names, unless it is off. Nothing is connected yet.
pub fn mirror(global: &Global, workspace: &Workspace) -> Result<Option<Arc<Mirror>>> {
    let given = match (global.remote_cache, std::env::var(MODE_VARIABLE)) {
        (Some(mode), _) => Some(mode),
        (None, Ok(text)) if !text.is_empty() => Some(text.parse().map_err(|error| {
            Error::new(Kind::Usage, "bad-mode", format!("{MODE_VARIABLE}: {error}"))
        })?),
        (None, _) => None,
    };
    let Some(target) = &workspace.remote else {
        return match global.remote_cache {
            Some(mode) if mode.reads() => Err(Error::new(
                Kind::Usage,
                "no-remote",
                format!("--remote-cache {mode}: this workspace names no mirror"),
            )
            .hint("add `[cache]` with `remote = \"s3://BUCKET/PREFIX\"` to `doe.toml`")),
            _ => Ok(None),
        };
    };
    let mut target = target.clone();
    target.mode = given.unwrap_or(target.mode);
    if !target.mode.reads() {
        return Ok(None);
    }
    Ok(Some(Arc::new(Mirror::open(&target)?)))
}

/// Lets the judge know what the mirror has, without keeping it; tells what went wrong.
pub fn look_into_mirror(
    global: &Global,
    workspace: &Workspace,
    decider: &mut Decider<'_>,
    store: &Store,
    nodes: &[NodeId],
    out: &mut Out,
) -> Result<()> {
    let mirror = mirror(global, workspace)?;
    let source = Source {
        mirror: mirror.as_deref(),
        store,
        keep: false,
    };
    for warning in warm(decider, source, nodes)?.warnings {
        out.note(format!("warning: {warning}"));
    }
    Ok(())
}

/// Takes the writer's lock; waits for it as asked to, and says for whom.
pub fn lock(state_dir: &Path, waiting: &Waiting, out: &mut Out) -> Result<WriterLock> {
    let lock = hold(state_dir, waiting, out)?;
    lock.settle()?;
    Ok(lock)
}

/// How long everybody waits for another who is not asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How long nobody is told for whom he waits: builds with nothing to do hold it for milliseconds.
const SILENCE: Duration = Duration::from_millis(300);

/// The right to write, for somebody who most likely will not: see [`WriterLock::hold`].
pub fn hold(state_dir: &Path, waiting: &Waiting, out: &mut Out) -> Result<WriterLock> {
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let hold = |limit, tell: &mut dyn FnMut(&str)| {
        WriterLock::hold_within(state_dir, &command, limit, tell)
    };
    let Some(Wait(limit)) = waiting.wait else {
        return Ok(hold(Some(GRACE), &mut |_| {})?);
    };
    let quiet = limit.map_or(SILENCE, |limit| limit.min(SILENCE));
    match hold(Some(quiet), &mut |_| {}) {
        Err(doe_cache::Error::Locked { .. }) => {}
        held => return Ok(held?),
    }
    let mut tell =
        |holder: &str| out.note(format!("waiting for {holder} (--wait=0 does not wait)"));
    Ok(hold(limit.map(|limit| limit - quiet), &mut tell)?)
}

/// Threads for what waits for hosts.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Kind::Infra, "runtime", "could not start threads").cause(e))
}

/// The nodes that a list of targets names.
pub fn targets(
    graph: &Graph<'_>,
    selectors: &[Selector],
    decider: &Decider<'_>,
    store: &Store,
) -> Result<Vec<NodeId>> {
    select(
        graph,
        selectors,
        &StoreOracle {
            decider,
            store,
            graph,
        },
    )
}

/// Whose follow-ups belong to a list of targets: those of a plan that one of them names as a whole
/// (`//plan:all`, `//plan/...`, `//...`, or a list that only takes away). Who names layers, patterns
/// or tags wants these and nothing else.
pub fn followups(
    graph: &Graph<'_>,
    selectors: &[Selector],
    chosen: &[NodeId],
    decider: &Decider<'_>,
    store: &Store,
) -> Result<Choice> {
    let from_all = selectors.first().is_some_and(|first| first.subtract);
    let whole = |package: &str| {
        let mut added = selectors.iter().filter(|selector| !selector.subtract);
        from_all || added.any(|selector| selector.target.has_whole(package))
    };
    let plans = graph.workspace().plans.values();
    let plans = plans.filter(|plan| !plan.followups.is_empty() && whole(&plan.package));
    let mut choice = Choice {
        plans: plans.map(|plan| plan.package.clone()).collect(),
        ..Choice::default()
    };
    let taken_away = selectors.iter().filter(|selector| selector.subtract);
    let taken_away: Vec<Selector> = taken_away
        .map(|selector| Selector {
            subtract: false,
            target: selector.target.clone(),
        })
        .collect();
    if !choice.plans.is_empty() && !taken_away.is_empty() {
        choice.excluded = targets(graph, &taken_away, decider, store)?
            .into_iter()
            .collect();
        choice.excluded.retain(|node| !chosen.contains(node));
    }
    Ok(choice)
}

/// Tells the warnings that concern the targets, on standard error: those of their plans and of no
/// plan. `doe check` tells all.
pub fn warn(out: &mut Out, workspace: &Workspace, graph: &Graph<'_>, targets: &[NodeId]) {
    let packages = targets.iter().map(|&node| graph.label(node).package());
    let packages: BTreeSet<&str> = packages.collect();
    let concerns = |warning: &&Diagnostic| {
        let Some((site, _)) = warning.sites.first() else {
            return true;
        };
        let plan = site.file.name.strip_prefix("plans/");
        let package = plan.and_then(|name| name.strip_suffix(".toml"));
        package.is_none_or(|package| packages.contains(package))
    };
    for warning in workspace.warnings.iter().filter(concerns) {
        let text = super::diagnose::render(warning, out.color_err);
        out.note(text);
    }
}

/// A judge over the store as it stands.
pub fn decider<'w>(
    graph: &'w Graph<'w>,
    platform: &'w Platform,
    store: &'w Store,
) -> Result<Decider<'w>> {
    let snapshot: Snapshot = store.bulk()?;
    // A record that cannot be read only makes the reason less exact.
    let history = move |digest: &doe_cache::Digest| store.record(digest).ok();
    let present = move |digest: &doe_cache::Digest| store.layout().record(digest).is_file();
    let decider = Decider::new(graph, platform, snapshot, Box::new(history));
    Ok(decider.looking(Box::new(present)))
}

struct StoreOracle<'a> {
    decider: &'a Decider<'a>,
    store: &'a Store,
    graph: &'a Graph<'a>,
}

impl Oracle for StoreOracle<'_> {
    fn failed(&self) -> Result<BTreeSet<NodeId>> {
        let states = self.store.latest_states()?;
        Ok(self
            .graph
            .nodes()
            .filter(|&node| {
                let state = states.get(&self.graph.label(node).to_string());
                state.is_some_and(|s| s.is_failure())
            })
            .collect())
    }

    fn stale(&self) -> Result<BTreeSet<NodeId>> {
        let all: Vec<NodeId> = self
            .graph
            .nodes()
            .filter(|&n| !self.graph.pattern(n).adhoc)
            .collect();
        let plan = self.decider.plan(&all)?;
        Ok(plan
            .into_iter()
            .filter(|(_, decision)| decision.may_run() || decision.is_read_anew())
            .map(|(node, _)| node)
            .collect())
    }
}
