//! One run: decides, schedules, executes, records, tells. Every node of it ends in exactly one
//! way and is told exactly once; when this returns, no process that it started is left, whatever
//! happened (but when the user leaves at the third Ctrl-C: then the next run clears up).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use doe_cache::remote::{Mirror, Uploader};
use doe_cache::{NodeUpdate, RunInfo, RunStatus, Store};
use tokio::sync::{mpsc, watch};

use super::caps::{Caps, Gate};
use super::commit::Committer;
use super::context::{Context, new_run_id, now_unix_ms};
use super::decide::Decider;
use super::drive::Drive;
use super::event::{Body, Sink, Summary};
use super::followup::{Choice, Watch, at_the_begin, tell_left_out, tell_opening};
use super::forecast::expected_s;
use super::intent::{Home, Intents};
use super::journal::Journal;
use super::moved::Program;
use super::order::Line;
use super::prepare::{Prepared, prepare};
use super::record::stored_state;
use super::reference;
use super::remains::Remains;
use super::remote::{self, Warmed};
use super::resolve::Final;
use super::retry::Retries;
use super::schedule::{Limits, Scheduler, TaskId};
use super::scratch::Scratch;
use super::search_path::search_path;
use super::survey::{Survey, survey};
use super::unended;
use crate::error::{Error, Result};
use crate::exec::{Executor, Site, secrets::Secrets};
use crate::graph::{Graph, NodeId};
use crate::plan::model::Platform;

/// How a run behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the user asked for, in words, for the record of the run.
    pub command: String,
    /// Nodes that run at once at most; `None` bounds measurements by their hosts and analyses by
    /// the cores and one more.
    pub jobs: Option<usize>,
    /// Whether nothing new is begun after the first node that ends badly.
    pub fail_fast: bool,
    /// The `doe` program, for scripts that call it.
    pub doe: PathBuf,
    /// Folders put first on the path of scripts: the simulated tools.
    pub path_prefix: Vec<PathBuf>,
    /// Environment of every script: `DOE_SIM_PROFILE`.
    pub env: BTreeMap<String, String>,
    /// What scripts with a role get beside it.
    pub secrets: Secrets,
    /// Where things are on the platform's hosts, when these are not this machine.
    pub site: Option<Site>,
    /// What the user is told at the begin.
    pub notices: Vec<String>,
    /// The mirror that new results go to, when it may be written.
    pub mirror: Option<Arc<Mirror>>,
    /// What came of asking the mirror.
    pub warmed: Warmed,
    /// Whose follow-ups it begins.
    pub followups: Choice,
    /// What it may take and cost.
    pub caps: Caps,
}

/// All that a run needs.
pub struct Request<'a, 'w> {
    /// Decides; knows the graph, the platform and the state of the store.
    pub decider: &'a mut Decider<'w>,
    /// What is asked for; what it depends on is added.
    pub targets: &'a [NodeId],
    /// Whose results the caller reads at the end: what is damaged of them is made again.
    pub shown: &'a [NodeId],
    /// Results.
    pub store: Arc<Store>,
    /// Runs what has a role.
    pub executor: Arc<dyn Executor>,
    /// Runs what has none, beside `doe`.
    pub local: Arc<dyn Executor>,
    /// How to behave.
    pub options: Options,
    /// What a killed run left.
    pub remains: Remains,
    /// Number of times that the user asked to stop.
    pub interrupt: watch::Receiver<u8>,
    /// Takes the events.
    pub sink: &'a mut dyn Sink,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Counts.
    pub summary: Summary,
    /// Whether the user stopped it.
    pub interrupted: bool,
    /// Whether the user left before it was over: something may still be writing.
    pub left: bool,
    /// Its name.
    pub run_id: String,
    /// Whether anything was executed or noted, so that there is a folder and an entry of it.
    pub begun: bool,
}

/// Runs what is asked for and all it depends on.
///
/// # Errors
/// What keeps a run from beginning: a rule that does not render, an impossible demand, a store
/// that cannot be written. Failures of nodes are no errors of the run.
pub async fn run(request: Request<'_, '_>) -> Result<Ended> {
    let Request {
        decider,
        targets,
        shown,
        store,
        executor,
        local,
        options,
        mut remains,
        interrupt,
        sink,
    } = request;
    let (started, run_id) = (Instant::now(), new_run_id());
    let (graph, platform) = (decider.graph(), decider.platform());
    let wanted: BTreeSet<NodeId> = graph.closure(targets, false).into_iter().collect();
    let mut journal = Journal::new(sink);
    journal.remote.clone_from(&options.warmed.imported);
    // First what needs nothing: with luck that is all.
    let Survey {
        mut finals,
        ended: reused,
        tasks,
        planned,
        mut rejudged,
        made,
        warnings: damaged,
    } = survey(&store, decider, &run_id, &wanted, shown)?;
    let mut watch = Watch::new(graph, &options.followups, &wanted);
    let opening = at_the_begin(&mut watch, &store, decider, &run_id, &mut finals)?;
    rejudged.extend(&opening.rejudged);
    let works = !tasks.is_empty() || opening.begins;
    let candidates = Some(&opening.candidates).filter(|_| works);
    let (mut prepared, line, unfit) = line_up(graph, platform, &run_id, &tasks, candidates)?;
    prepared.wait(&reference::waits(graph, &line.nodes, &tasks));
    let ended: Vec<NodeId> = reused.iter().chain(&opening.reused).copied().collect();

    let news = news(&store, graph, &finals, &ended)?;
    let begun = works || !news.is_empty();
    let run_dir = store.layout().runs().join(&run_id);
    let homes = remains.homes();
    let mut intents = None;
    let mut retries = Retries::default();
    if begun {
        begin(&store, &run_id, &options, platform)?;
        std::fs::create_dir_all(&run_dir).map_err(|e| Error::io("make", &run_dir, &e))?;
        journal.write_to(&run_dir.join("events.jsonl"))?;
    }
    let mut cleared = Vec::new();
    if !works {
        let gone = remains.clear(&store, &*executor, &*local, &mut cleared);
        gone.await
            .inspect_err(|_| journal.warn_all("leftovers", &cleared))?;
    } else {
        unended::mark(&store, &run_id)?;
        // First the new run answers for what was left, then the old one need not any more.
        let announced = Intents::new(&run_dir)?;
        announced.announce(remains.intents()).await?;
        intents = Some(announced);
        let dead = (&*remains.runs, &remains.recorded);
        retries = Retries::take_over(&store, dead, &run_id, graph, &tasks)?;
    }
    for dead in &remains.runs {
        store.end_run(dead, RunStatus::Abandoned)?;
    }
    if remains.stuck.is_empty() {
        remains.settle(&store);
    }
    journal.tell(Body::RunStarted {
        run_id: run_id.clone(),
        platform: platform.name.clone(),
        simulated: platform.simulated,
        nodes: wanted.len(),
        run_dir: run_dir.display().to_string(),
        command: options.command.clone(),
    });
    journal.warn_all("leftovers", options.notices.iter().chain(&cleared));
    journal.warn_all("damaged", damaged.iter().chain(&opening.damaged));
    let probing = platform.probing.iter();
    journal.warn_all("facts", probing.flat_map(|probing| &probing.news));
    remote::tell_asked(&mut journal, &options);
    let estimates: BTreeMap<NodeId, f64> = prepared
        .tasks
        .iter()
        .filter_map(|task| Some((task.node, expected_s(decider, task.node)?)))
        .collect();
    let estimated = tasks.iter().map(|node| estimates.get(node).copied());
    journal.tell(Body::Planned {
        run: planned.0,
        may_run: planned.1,
        reuse: reused.len(),
        estimate_s: estimated.sum::<Option<f64>>().map(|sum| sum + 0.0), // of nothing it is -0.0
    });
    for (plan, seed, nodes) in line.seeds(graph) {
        journal.tell(Body::Ordered { plan, seed, nodes });
    }
    for &node in &reused {
        if let Some(ended) = &finals[node.index()] {
            journal.finished(graph.label(node), ended);
        }
    }
    tell_opening(&mut watch, &mut journal, decider, &finals, &opening);
    let mut level = 0;
    if begun {
        // When something runs, the run's account is complete; else only what is new is noted.
        let noted: Vec<NodeId> = if works { ended } else { news };
        store.set_nodes(&updates(&run_id, graph, &finals, &noted))?;
    }
    let something = works || !rejudged.is_empty();
    let mirror = options.mirror.as_ref().filter(|_| something);
    let uploads = mirror.map(|mirror| Arc::new(Uploader::start(mirror, &store)));
    for record in rejudged {
        uploads.iter().for_each(|uploads| uploads.offer(record));
    }
    let asked = interrupt.clone();
    if let Some(intents) = intents {
        let (abort, aborted) = watch::channel(false);
        let context = context(
            &store,
            executor,
            local,
            &options,
            platform,
            &run_id,
            run_dir,
            aborted,
            uploads.clone(),
            intents,
        )?;
        let limits = limits(&options);
        let mut scheduler = Scheduler::new(prepared.problem, &prepared.inventory, limits);
        for (at, task) in prepared.tasks.iter().enumerate() {
            if tasks.binary_search(&task.node).is_err() {
                scheduler.hold(TaskId(at as u32));
            }
        }
        let price = platform.cost_per_hour.as_ref();
        let currency = price.map_or("", |price| &price.currency);
        let (reports, inbox) = mpsc::unbounded_channel();
        let mut drive = Drive {
            context: Arc::new(context),
            decider,
            scheduler,
            tasks: prepared.tasks,
            services: prepared.services.into_iter().map(Into::into).collect(),
            finals,
            coming: HashMap::new(),
            journal: &mut journal,
            estimates,
            fail_fast: options.fail_fast,
            abort,
            reports,
            outstanding: 0,
            executing: 0,
            level: 0,
            jobs: Default::default(),
            leaders: Default::default(),
            followers: Default::default(),
            doomed: Default::default(),
            ports: Default::default(),
            cancels: Default::default(),
            scratches: Default::default(),
            remains,
            gate: Gate::new(options.caps, currency),
            start_times: None,
            watch,
            unfit,
            brought_starts: 0,
            held_back: None,
            made,
            tainted: Default::default(),
            has_taken_over: false,
            retries,
            line,
        };
        let driven = drive.run(inbox, interrupt).await;
        level = drive.level;
        if !drive.scheduler.is_draining() {
            tell_left_out(&mut drive.watch, drive.journal);
        }
        let starts = drive.scheduler.starts() - drive.brought_starts;
        let in_use = |run: &&String| !drive.has_taken_over || drive.scratches.contains_key(*run);
        for run in homes.iter().filter(|run| !in_use(run)) {
            Scratch::forget(run);
        }
        // After an error there may be more than it knows of: the next one looks.
        if driven.is_ok() && drive.is_all_over() {
            unended::settle(&store, &run_id);
        }
        if let Err(error) = driven {
            // The run's own account must not stay open because of it, unless it answers for what it
            // could not take over: then the next one does so, as after a kill.
            if drive.has_taken_over {
                let _ = store.end_run(&run_id, RunStatus::Failed);
            }
            journal.summary.service_starts = starts;
            journal.summary.wall_s = seconds_since(started);
            let summary = journal.summary.clone();
            journal.tell(Body::Summary(summary));
            return Err(error);
        }
        journal.summary.service_starts = starts;
    } else {
        homes.iter().for_each(|run| Scratch::forget(run));
        tell_left_out(&mut watch, &mut journal);
    }
    let interrupted = level > 0;
    // Who leaves does not wait for the mirror either.
    if let (Some(mirror), Some(uploads), 0..=2) = (mirror, uploads, level) {
        remote::finish(&mut journal, mirror, uploads, asked).await;
    }
    journal.summary.wall_s = seconds_since(started);
    let summary = journal.summary.clone();
    // That it cannot be noted does not keep it from being told.
    let noted = match begun {
        true => store.end_run(&run_id, status_of(interrupted, &summary)),
        false => Ok(()),
    };
    journal.tell(Body::Summary(summary.clone()));
    noted?;
    Ok(Ended {
        summary,
        interrupted,
        left: level > 2,
        run_id,
        begun,
    })
}

fn status_of(interrupted: bool, summary: &Summary) -> RunStatus {
    match (interrupted, summary.is_good()) {
        (true, _) => RunStatus::Interrupted,
        (false, true) => RunStatus::Ok,
        (false, false) => RunStatus::Failed,
    }
}

fn seconds_since(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

/// Nodes whose end differs from what the store knows of them: they failed before and are reused
/// now, or are blocked.
fn news(
    store: &Store,
    graph: &Graph<'_>,
    finals: &[Option<Final>],
    ended: &[NodeId],
) -> Result<Vec<NodeId>> {
    let latest = store.latest_states()?;
    let is_news = |node: &&NodeId| {
        let Some(now) = &finals[node.index()] else {
            return false;
        };
        let before = latest.get(&graph.label(**node).to_string());
        let failed = before.is_some_and(|state| state.is_failure());
        failed || !now.outcome.is_good()
    };
    Ok(ended.iter().filter(is_news).copied().collect())
}

fn updates(
    run_id: &str,
    graph: &Graph<'_>,
    finals: &[Option<Final>],
    nodes: &[NodeId],
) -> Vec<NodeUpdate> {
    let ended = nodes
        .iter()
        .filter_map(|node| Some((node, finals[node.index()].as_ref()?)));
    ended
        .map(|(node, ended)| NodeUpdate {
            run_id: run_id.to_owned(),
            label: graph.label(*node).to_string(),
            state: stored_state(ended.outcome),
            reason: ended.reason.clone(),
            record: ended.record,
        })
        .collect()
}

fn begin(store: &Store, run_id: &str, options: &Options, platform: &Platform) -> Result<()> {
    store.begin_run(&RunInfo {
        run_id: run_id.to_owned(),
        command: options.command.clone(),
        platform: platform.name.clone(),
        simulated: platform.simulated,
        doe_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: doe_cache::host(),
        pid: std::process::id(),
        started_unix_ms: now_unix_ms(),
    })?;
    Ok(())
}

/// Prepares what runs together with what follow-ups may bring in. What cannot be had here keeps
/// nothing else from running: then there are only the first, and why.
fn line_up(
    graph: &Graph<'_>,
    platform: &Platform,
    run_id: &str,
    tasks: &[NodeId],
    candidates: Option<&BTreeSet<NodeId>>,
) -> Result<(Prepared, Line, Option<String>)> {
    let alone = Line::up(graph, tasks, run_id);
    let candidates = candidates.filter(|candidates| !candidates.is_empty());
    let Some(candidates) = candidates else {
        return Ok((prepare(graph, platform, &alone.nodes)?, alone, None));
    };
    let all: BTreeSet<NodeId> = tasks.iter().chain(candidates).copied().collect();
    let all: Vec<NodeId> = all.into_iter().collect();
    let line = Line::up(graph, &all, run_id);
    match prepare(graph, platform, &line.nodes) {
        Ok(prepared) => Ok((prepared, line, None)),
        Err(error) => {
            let prepared = prepare(graph, platform, &alone.nodes)?;
            Ok((prepared, alone, Some(error.to_string())))
        }
    }
}

fn limits(options: &Options) -> Limits {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match options.jobs {
        Some(jobs) => Limits {
            tasks: jobs.max(1),
            hostless: jobs.max(1),
        },
        // One more: while one is begun, or what it made is taken in, nobody uses its core.
        None => Limits {
            tasks: usize::MAX,
            hostless: cores + 1,
        },
    }
}

#[allow(clippy::too_many_arguments)] // all of it is one context
fn context(
    store: &Arc<Store>,
    executor: Arc<dyn Executor>,
    local: Arc<dyn Executor>,
    options: &Options,
    platform: &Platform,
    run_id: &str,
    run_dir: PathBuf,
    abort: watch::Receiver<bool>,
    uploads: Option<Arc<Uploader>>,
    intents: Intents,
) -> Result<Context> {
    let run_dir = run_dir
        .canonicalize()
        .map_err(|e| Error::io("find", &run_dir, &e))?;
    let path = search_path(&run_dir.join("bin"), &options.path_prefix, &options.doe)?;
    let mut env = options.env.clone();
    env.insert("PATH".into(), path);
    Ok(Context {
        executor,
        local,
        platform: platform.clone(),
        committer: Committer::new(store.clone(), uploads),
        store: store.clone(),
        intents,
        unended: Default::default(),
        scratch: Scratch::new(run_id, &run_dir),
        home: Home {
            run_id: run_id.to_owned(),
            host_dir: match &options.site {
                Some(site) => site.root.join("work").join(run_id),
                None => run_dir.clone(),
            },
            run_dir,
        },
        doe: options.doe.clone(),
        site: options.site.clone(),
        env,
        secrets: options.secrets.clone(),
        abort,
        facts: Default::default(),
        probed: Default::default(),
        program: Program::of(&options.doe),
    })
}
