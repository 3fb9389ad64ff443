//! `doe build`: runs what is not up to date. This file joins the parts: workspace, lock, store,
//! executor, simulation, signals, readers of the events.

mod detach;
mod nothing;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use doe_cache::{Record, Store};
use indicatif::ProgressDrawTarget;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::args::{Global, Targets, Waiting};
use super::fleet::{Callers, Near};
use super::out::Out;
use super::recall::Recall;
use super::recall::outline::Outlined;
use super::{facts, fleet, plan, results, session};
use crate::engine::caps::Caps;
use crate::engine::decide::{Decider, Decision};
use crate::engine::event::{Event, Sink};
use crate::engine::facts::{check, file};
use crate::engine::followup::Choice;
use crate::engine::preflight;
use crate::engine::recall::Gather;
use crate::engine::remote::{Source, warm};
use crate::engine::run::{Options, Request, run as run_engine};
use crate::error::{Error, Kind, Result, Severity};
use crate::exec::HostSpec;
use crate::exec::masked::masked;
use crate::exec::slurm::DRIVER_VAR;
use crate::graph::{Graph, NodeId};
use crate::plan::model::Platform;
use crate::report::jsonl::JsonLines;
use crate::report::live::Live;
use crate::report::plain::Plain;
use crate::report::style::Style;
use crate::report::summary;
use crate::report::view::View;
use crate::rule::model::RuleKind;

/// Analyses whose numbers are shown at the end. Each is read for it, also when there was nothing to
/// do, and nobody looks through more.
const MOST_SHOWN: usize = 40;
/// Exit code of a driver that was told to go.
const LEFT: i32 = 143;

/// Run what is not up to date
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe build //phase2:L2-EFA
  doe build //... -//phase2:L5-LowLevel --jobs 4
  doe build @failed
  doe build //phase2:p2-efa-4k-c1 --rerun
  doe build //... --wait=2h              wait at most so long for another build (0: not at all)
  doe build //... --detach               as a job of Slurm, which goes on without you

Ctrl-C: the first stops beginning anything new, the second cancels what runs, the third leaves.")]
pub struct BuildArgs {
    /// What to build.
    #[command(flatten)]
    pub targets: Targets,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Run the targets again although their results are stored
    #[arg(long)]
    pub rerun: bool,
    /// Begin nothing new after the first failure
    #[arg(long, conflicts_with = "keep_going")]
    pub fail_fast: bool,
    /// Go on with everything that does not depend on a failure (the default)
    #[arg(long)]
    pub keep_going: bool,
    /// Begin no follow-ups, whatever the results are
    #[arg(long)]
    pub no_followups: bool,
    /// Begin nothing that would make it more hours of work, or let more hours pass
    #[arg(long, value_name = "H", value_parser = amount)]
    pub max_hours: Option<f64>,
    /// Begin nothing that would make it cost more, in the currency of the platform's `cost_per_hour`
    #[arg(long, value_name = "X", value_parser = amount)]
    pub max_cost: Option<f64>,
    /// Let one pattern of each set of services succeed before others of it begin
    #[arg(long)]
    pub canary: bool,
    /// Let jobs of the cluster drive the build, and leave (platforms of Slurm)
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,
    /// Run at most so many patterns at a time (default: as many as hosts allow, of analyses one more
    /// than cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// When another doe holds the workspace.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Runs the command.
pub fn run(global: &Global, args: &BuildArgs, out: &mut Out) -> Result<u8> {
    let started = Instant::now();
    // What is asked to run again has an answer of its own.
    let mut recall = match args.dry_run || args.rerun || args.detach {
        true => None,
        false => Recall::new(global, out),
    };
    if let Some(recall) = &mut recall
        && let Some(code) = nothing::again(recall, &args.waiting.of_build(), out, started)?
    {
        return Ok(code);
    }
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let platform = session::platform(global, &workspace)?;
    if args.detach {
        return detach::run(global, args, (&workspace, &graph, platform), out);
    }
    if args.dry_run {
        let store = session::store(&workspace)?;
        facts::tell_age(out, platform);
        let mut decider = session::decider(&graph, platform, &store)?;
        let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
        session::warn(out, &workspace, &graph, &nodes);
        if args.rerun {
            decider = decider.rerun(nodes.iter().copied());
        }
        session::look_into_mirror(global, &workspace, &mut decider, &store, &nodes, out)?;
        let planned = decider.plan(&nodes)?;
        let followups = match args.no_followups {
            true => Choice::default(),
            false => session::followups(&graph, &args.targets.targets, &nodes, &decider, &store)?,
        };
        plan::show(out, &decider, &store, &followups, &planned)?;
        return Ok(0);
    }

    let caps = caps(args, platform)?;
    let command = command_line();
    let lock = session::lock(&workspace.state_dir, &args.waiting.of_build(), out)?;
    let store = Arc::new(Store::open(&workspace.state_dir)?);
    let recovered = store.recover(&lock)?;
    let mut decider = session::decider(&graph, platform, &store)?;
    let mut nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    let followups = match args.no_followups {
        true => Choice::default(),
        false => session::followups(&graph, &args.targets.targets, &nodes, &decider, &store)?,
    };
    out.copy();
    session::warn(out, &workspace, &graph, &nodes);
    let notes = out.copied().map(|copy| copy.notes);
    let needed = graph.closure(&nodes, false);
    let findings = preflight::check(&graph, &needed, platform);
    if findings.iter().any(|d| d.severity == Severity::Error) {
        return Err(Error::from_diagnostics(findings));
    }
    if args.rerun {
        decider = decider.rerun(nodes.iter().copied());
    }

    let runtime = session::runtime()?;
    let doe = std::env::current_exe()
        .map_err(|e| Error::new(Kind::Infra, "io", "cannot tell where `doe` is").cause(e))?;
    let concerned = facts::concerned(&decider, &args.targets.targets, &nodes, &followups);
    let hosts = hosts_of(&graph, &concerned, platform);
    let elsewhere = platform.executor != "local";
    let secrets = fleet::secrets::read(&workspace, platform);
    let mirror = session::mirror(global, &workspace)?;
    if mirror.is_none() {
        fleet::secrets::demand(&secrets, &decider, &store, (&nodes, &followups))?;
    }
    let is_done = !args.rerun
        && (elsewhere || platform.probing.is_some())
        && facts::nothing_to_do(&decider, &nodes, &hosts, &followups)?;
    let reached = match is_done && !fleet::is_left(platform, &store)? {
        true => Vec::new(),
        false => fleet::with_left(platform, &hosts, &store)?,
    };
    let callers = Callers::of(&graph, &concerned, platform);
    let near = Near::new(&workspace, platform, &reached, (&doe, &callers), true);
    let near = runtime.block_on(near)?;
    // Before anything is paid for: what the hosts are, and whether that is what was said of them.
    let as_read = match is_done || platform.probing.is_none() {
        true => None,
        false => runtime.block_on(near.ask(&workspace, platform, &hosts, &doe))?,
    };
    file::forget(&workspace.state_dir, platform);
    let platform = as_read.as_ref().unwrap_or(platform);
    let mut decider = decider;
    if as_read.is_some() {
        decider = session::decider(&graph, platform, &store)?;
        nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
        if args.rerun {
            decider = decider.rerun(nodes.iter().copied());
        }
    }
    let needed = graph.closure(&nodes, false);
    let findings = check::check(&graph, &needed, platform);
    if findings.iter().any(|d| d.severity == Severity::Error) {
        return Err(Error::from_diagnostics(findings));
    }
    // What fails from here to the run leaves what a killed run began as it was.
    let fleet = runtime.block_on(fleet::make(&workspace, platform, near, &store, &doe))?;

    let source = Source {
        mirror: mirror.as_deref(),
        store: &store,
        keep: true,
    };
    let warmed = warm(&mut decider, source, &nodes)?;
    fleet::secrets::demand(&secrets, &decider, &store, (&nodes, &followups))?;
    if let Some(mirror) = &mirror {
        store.attach(mirror.clone());
    }

    let shown = match out.json {
        true => Vec::new(),
        false => shown(&graph, &nodes, &needed),
    };
    let mut console = Console::new(out);
    console.gather = recall.is_some().then(|| Gather::new(out.json));
    let ended = runtime.block_on(async {
        let local = fleet.local.clone();
        let mut notices = fleet.remains.notices();
        notices.extend(taken_in(&recovered));
        let request = Request {
            decider: &mut decider,
            targets: &nodes,
            shown: &shown,
            store: store.clone(),
            executor: masked(fleet.executor, &secrets),
            local: fleet.local,
            options: Options {
                command: command.clone(),
                jobs: args.jobs.map(usize::from),
                fail_fast: args.fail_fast,
                doe,
                path_prefix: fleet.path_prefix,
                env: fleet.env,
                secrets,
                site: fleet.site,
                notices,
                mirror: mirror.filter(|mirror| mirror.mode().writes()),
                warmed,
                followups,
                caps,
            },
            remains: fleet.remains,
            interrupt: interrupts()?,
            sink: &mut console,
        };
        let ended = run_engine(request).await;
        // Whatever goes on now, nobody wants it: the user has left.
        local.leave();
        ended
    })?;
    // A third Ctrl-C leaves at once: do not wait for what hangs.
    runtime.shutdown_background();
    if ended.left {
        // What hangs may be writing: who comes next must see that nobody gave the lock back.
        std::mem::forget(lock);
    }
    let broken = console.broken().map(ToString::to_string);
    let Console { view, gather, .. } = console;
    let numbers = (!out.json).then(|| numbers(&decider, &store, &nodes));
    let numbers = numbers.transpose()?;
    let code = match (ended.interrupted, ended.summary.is_good()) {
        (true, _) => Kind::Interrupted.exit_code(),
        (false, true) => 0,
        (false, false) => Kind::NodeFailed.exit_code(),
    };
    super::out::leave_with(code);
    let told = last_words(out, &workspace.state_dir, numbers.as_ref(), &view);
    let gathered = gather.filter(|_| !ended.begun && !ended.interrupted);
    if let (Some(recall), Some(notes), Some(gathered)) = (recall, notes, gathered) {
        let outlined = Outlined::new(global, &args.targets.targets, out);
        let outline = outlined.as_ref().and_then(|outlined| {
            let is_needed = |node: &&NodeId| needed.binary_search(node).is_ok();
            let order = graph.order().iter().filter(is_needed);
            let records = gathered.records()?;
            let plan: Vec<_> = order.copied().zip(records).collect();
            outlined.of(&decider, &plan)
        });
        // The last connection tidies the index: it is to be seen as it will be found.
        drop(decider);
        drop(store);
        nothing::keep(&recall, notes, gathered, &view, numbers.as_ref());
        if let Some(outlined) = outlined {
            outlined.keep(outline);
        }
    }
    // All is stored; but who reads this must not take what is missing for the end. What went wrong goes
    // before that; and nobody reads what a driver tells, while another one would begin.
    if code != 0 || std::env::var_os(DRIVER_VAR).is_some() {
        return Ok(code);
    }
    let broken = broken.map(|why| super::out::closed(std::io::Error::other(why)));
    broken.map_or(told, Err).map(|()| code)
}

/// A number that is not negative.
fn amount(text: &str) -> std::result::Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number is wanted".to_owned())?;
    match number.is_finite() && number >= 0.0 {
        true => Ok(number),
        false => Err("a number that is not negative is wanted".to_owned()),
    }
}

fn caps(args: &BuildArgs, platform: &Platform) -> Result<Caps> {
    if args.max_cost.is_some() && platform.cost_per_hour.is_none() {
        let text = format!("platform `{}` does not say what it costs", platform.name);
        return Err(Error::new(Kind::Usage, "no-price", text)
            .hint("write `cost_per_hour = \"10.49 USD\"` into it in `doe.toml`"));
    }
    Ok(Caps {
        max_s: args.max_hours.map(|hours| hours * 3600.0),
        max_cost: args.max_cost,
        canary: args.canary,
    })
}

/// What was made durable and not noted, because a run was killed or the disk refused.
fn taken_in(recovered: &doe_cache::Recovered) -> Option<String> {
    let died = recovered.died.as_deref()?;
    let count = recovered.records;
    (count > 0)
        .then(|| format!("took in {count} results that were stored and not indexed ({died})"))
}

/// The hosts that the patterns use.
fn hosts_of(graph: &Graph<'_>, nodes: &[NodeId], platform: &Platform) -> Vec<HostSpec> {
    let roles = nodes
        .iter()
        .flat_map(|node| graph.pattern(*node).rule.roles.keys());
    let mut hosts: Vec<HostSpec> = Vec::new();
    for host in roles.filter_map(|role| preflight::host_of(platform, role)) {
        if !hosts.iter().any(|known| known.name == host.name) {
            hosts.push(HostSpec {
                name: host.name.clone(),
                address: host.address.clone(),
                gpus: host.gpus,
            });
        }
    }
    hosts
}

/// Counts Ctrl-C; being told to terminate, or losing the terminal, counts as the second. What drives
/// as a job of a cluster is told so by the end of its time or by others who need the node: nobody
/// wants the build to end, so it leaves as if killed, and the next driver goes on with what runs.
fn interrupts() -> Result<watch::Receiver<u8>> {
    let failed = |e| Error::new(Kind::Infra, "signals", "could not listen for Ctrl-C").cause(e);
    let (count, interrupts) = watch::channel(0);
    let drives = std::env::var_os(DRIVER_VAR).is_some();
    for (kind, least) in [
        (SignalKind::interrupt(), 1),
        (SignalKind::terminate(), 2),
        (SignalKind::hangup(), 2),
    ] {
        let mut signals = signal(kind).map_err(failed)?;
        let count = count.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if drives {
                    std::process::exit(LEFT);
                }
                count.send_modify(|count| *count = (*count + 1).max(least));
            }
        });
    }
    Ok(interrupts)
}

/// What the user asked for.
pub fn command_line() -> String {
    std::env::args().collect::<Vec<_>>().join(" ")
}

/// The numbers of analyses that are shown at the end.
pub struct Numbers {
    /// Labels and records.
    pub shown: Vec<(String, Record)>,
    /// How many more analyses have some.
    pub more: u64,
}

fn has_numbers(graph: &Graph<'_>, node: NodeId) -> bool {
    let rule = &graph.pattern(node).rule;
    rule.kind == RuleKind::Analysis && !rule.metrics.is_empty()
}

/// Whose numbers are shown when all goes well.
fn shown(graph: &Graph<'_>, nodes: &[NodeId], needed: &[NodeId]) -> Vec<NodeId> {
    if !nodes.iter().any(|node| has_numbers(graph, *node)) {
        return Vec::new();
    }
    let order = graph.order().iter().copied();
    let shown =
        order.filter(|node| has_numbers(graph, *node) && needed.binary_search(node).is_ok());
    shown.take(MOST_SHOWN).collect()
}

/// The first analyses among the nodes whose numbers are at hand.
fn numbers(decider: &Decider<'_>, store: &Store, nodes: &[NodeId]) -> Result<Numbers> {
    let graph = decider.graph();
    let has_numbers = |node: &NodeId| has_numbers(graph, *node);
    let mut numbers = Numbers {
        shown: Vec::new(),
        more: 0,
    };
    if !nodes.iter().any(has_numbers) {
        return Ok(numbers);
    }
    for (node, decision) in decider.plan(nodes)? {
        let (true, Decision::Reuse { record, .. }) = (has_numbers(&node), decision) else {
            continue;
        };
        match numbers.shown.len() < MOST_SHOWN {
            true => {
                let label = graph.label(node).to_string();
                numbers.shown.push((label, store.record(&record)?));
            }
            false => numbers.more += 1,
        }
    }
    Ok(numbers)
}

/// The last words: what happened, the analyses' numbers, where everything is.
pub fn last_words(
    out: &mut Out,
    state_dir: &Path,
    numbers: Option<&Numbers>,
    view: &View,
) -> Result<()> {
    if out.json {
        return Ok(());
    }
    if let Some(Numbers { shown, more }) = numbers.filter(|numbers| !numbers.shown.is_empty()) {
        out.line("")?;
        results::as_table_of(out, shown)?;
        if *more > 0 {
            out.line(format!("and {more} more analyses: `doe results`"))?;
        }
    }
    let style = Style { colour: out.color };
    out.line(summary::summary(view, style).trim_end())?;
    out.line(format!(
        "results: {} (views: runs, results, metrics, samples); `doe results` prints them",
        state_dir.join("index.sqlite").display()
    ))
}

/// What shows the events while they happen.
struct Console {
    reader: Box<dyn Sink>,
    view: View,
    gather: Option<Gather>,
}

impl Console {
    fn new(out: &mut Out) -> Self {
        let style = Style { colour: out.color };
        let reader: Box<dyn Sink> = if out.json {
            Box::new(JsonLines::new(std::io::stdout()))
        } else if out.terminal {
            Box::new(Live::new(ProgressDrawTarget::stdout(), out.width(), style))
        } else {
            Box::new(Plain::new(std::io::stdout(), style))
        };
        Self {
            reader,
            view: View::default(),
            gather: None,
        }
    }
}

impl Sink for Console {
    fn event(&mut self, event: &Event) {
        self.view.event(event);
        self.reader.event(event);
        if let Some(gather) = &mut self.gather {
            gather.event(event);
        }
    }

    fn flush(&mut self) {
        self.reader.flush();
    }

    fn broken(&self) -> Option<&std::io::Error> {
        self.reader.broken()
    }
}
