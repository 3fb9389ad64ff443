//! `doe build`: runs what is not up to date. This file joins the parts: workspace, lock, store,
//! executor, simulation, signals, readers of the events.

use std::sync::Arc;

use clap::Args;
use doe_cache::{Store, WriterLock};
use indicatif::ProgressDrawTarget;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::args::{Global, Targets};
use super::out::Out;
use super::{detach, fleet, plan, results, session};
use crate::engine::decide::{Decider, Decision};
use crate::engine::event::{Event, Sink};
use crate::engine::preflight;
use crate::engine::remote::{Source, warm};
use crate::engine::run::{Ended, Options, Request, run as run_engine};
use crate::error::{Error, Kind, Result, Severity};
use crate::exec::HostSpec;
use crate::graph::{Graph, NodeId};
use crate::plan::model::{Platform, Workspace};
use crate::report::jsonl::JsonLines;
use crate::report::live::Live;
use crate::report::plain::Plain;
use crate::report::style::Style;
use crate::report::view::View;
use crate::report::{summary, trace};
use crate::rule::model::RuleKind;

/// Run what is not up to date
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe build //phase2:L2-EFA
  doe build //... -//phase2:L5-LowLevel --jobs 4
  doe build @failed
  doe build //phase2:p2-efa-4k-c1 --rerun

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
    /// Make the build a job of the cluster, so that it goes on when this machine is gone (Slurm)
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,
    /// Begin nothing new after the first failure
    #[arg(long, conflicts_with = "keep_going")]
    pub fail_fast: bool,
    /// Go on with everything that does not depend on a failure (the default)
    #[arg(long)]
    pub keep_going: bool,
    /// Run at most so many patterns at a time (default: as many as hosts allow)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
}

/// Runs the command.
pub fn run(global: &Global, args: &BuildArgs, out: &mut Out) -> Result<u8> {
    let workspace = session::workspace(global)?;
    let graph = session::graph(&workspace)?;
    let platform = session::platform(global, &workspace)?;
    if args.dry_run {
        let store = session::store(&workspace)?;
        let mut decider = session::decider(&graph, platform, &store)?;
        let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
        session::warn(out, &workspace, &graph, &nodes);
        if args.rerun {
            decider = decider.rerun(nodes.iter().copied());
        }
        session::look_into_mirror(global, &workspace, &mut decider, &store, &nodes, out)?;
        let planned = decider.plan(&nodes)?;
        plan::show(out, &decider, &planned)?;
        return Ok(0);
    }

    if args.detach {
        return detach::run(out, &workspace, platform);
    }
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let lock = WriterLock::acquire(&workspace.state_dir, &command)?;
    let store = Arc::new(Store::open(&workspace.state_dir)?);
    store.sweep_tmp(&lock)?;
    let mut decider = session::decider(&graph, platform, &store)?;
    let nodes = session::targets(&graph, &args.targets.targets, &decider, &store)?;
    session::warn(out, &workspace, &graph, &nodes);
    let needed = graph.closure(&nodes, false);
    let findings = preflight::check(&graph, &needed, platform);
    if findings.iter().any(|d| d.severity == Severity::Error) {
        return Err(Error::from_diagnostics(findings));
    }
    if args.rerun {
        decider = decider.rerun(nodes.iter().copied());
    }

    let mirror = session::mirror(global, &workspace)?;
    let source = Source {
        mirror: mirror.as_deref(),
        store: &store,
        keep: true,
    };
    let warmed = warm(&mut decider, source, &nodes)?;
    if let Some(mirror) = &mirror {
        store.attach(mirror.clone());
    }

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(Kind::Infra, "runtime", "could not start threads").cause(e))?;
    let mut console = Console::new(out);
    let ended = runtime.block_on(async {
        let doe = std::env::current_exe()
            .map_err(|e| Error::new(Kind::Infra, "io", "cannot tell where `doe` is").cause(e))?;
        let hosts = hosts_of(&graph, &needed, platform);
        let fleet = fleet::make(&workspace, platform, &hosts, &doe).await?;
        let request = Request {
            decider: &mut decider,
            targets: &nodes,
            store: store.clone(),
            executor: fleet.executor,
            local: fleet.local,
            options: Options {
                command: command.clone(),
                jobs: args.jobs.map(usize::from),
                fail_fast: args.fail_fast,
                doe,
                path_prefix: fleet.path_prefix,
                env: fleet.env,
                site: fleet.site,
                notices: fleet.notices,
                mirror: mirror.filter(|mirror| mirror.mode().writes()),
                warmed,
            },
            interrupt: interrupts()?,
            sink: &mut console,
        };
        run_engine(request).await
    })?;
    // A third Ctrl-C leaves at once: do not wait for what hangs.
    runtime.shutdown_background();
    let view = console.into_view();
    close(out, &workspace, &decider, &store, &nodes, &ended, &view)?;
    Ok(match (ended.interrupted, ended.summary.is_good()) {
        (true, _) => Kind::Interrupted.exit_code(),
        (false, true) => 0,
        (false, false) => Kind::NodeFailed.exit_code(),
    })
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

/// Counts Ctrl-C; being told to terminate, or losing the terminal, counts as the second.
fn interrupts() -> Result<watch::Receiver<u8>> {
    let failed = |e| Error::new(Kind::Infra, "signals", "could not listen for Ctrl-C").cause(e);
    let (count, interrupts) = watch::channel(0);
    for (kind, least) in [
        (SignalKind::interrupt(), 1),
        (SignalKind::terminate(), 2),
        (SignalKind::hangup(), 2),
    ] {
        let mut signals = signal(kind).map_err(failed)?;
        let count = count.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                count.send_modify(|count| *count = (*count + 1).max(least));
            }
        });
    }
    Ok(interrupts)
}

/// The last words: what happened, the analyses' numbers, where everything is.
fn close(
    out: &mut Out,
    workspace: &Workspace,
    decider: &Decider<'_>,
    store: &Store,
    nodes: &[NodeId],
    ended: &Ended,
    view: &View,
) -> Result<()> {
    if ended.begun {
        trace::write(&store.layout().runs().join(&ended.run_id))?;
    }
    if out.json {
        return Ok(());
    }
    let mut analyses = Vec::new();
    for (node, decision) in decider.plan(nodes)? {
        let pattern = decider.graph().pattern(node);
        if let (RuleKind::Analysis, Decision::Reuse { record, .. }) = (pattern.rule.kind, decision)
        {
            analyses.push((pattern.label.to_string(), store.record(&record)?));
        }
    }
    if !analyses.is_empty() {
        out.line("")?;
        results::as_table_of(out, &analyses)?;
    }
    let style = Style { colour: out.color };
    out.line(summary::summary(view, style).trim_end())?;
    let index = workspace.state_dir.join("index.sqlite");
    out.line(format!(
        "results: {} (views: runs, results, metrics, samples); `doe results` prints them",
        index.display()
    ))
}

/// What shows the events while they happen.
struct Console {
    reader: Box<dyn Sink>,
    view: View,
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
        }
    }

    fn into_view(self) -> View {
        self.view
    }
}

impl Sink for Console {
    fn event(&mut self, event: &Event) {
        self.view.event(event);
        self.reader.event(event);
    }
}
