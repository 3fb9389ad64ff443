//! `doe build --detach`: the same build as a job of the cluster, and others behind it that go on
//! when it is killed. What can be found wrong without a cluster is found before anything is
//! submitted; what a node does not see is told by name as soon as it looked.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use doe_cache::Digest;
use serde_json::json;

use super::super::args::Global;
use super::super::driving::Driving;
use super::super::fleet::slurm;
use super::super::out::Out;
use super::super::session;
use super::BuildArgs;
use crate::engine::preflight;
use crate::error::{Error, Kind, Result, Severity};
use crate::exec::slurm::{Chain, Driver, Drivers, Order};
use crate::graph::Graph;
use crate::plan::model::{Platform, Workspace};
use crate::plan::secrets::Origin;

/// How long the first driver is waited for; it may wait in the queue for hours.
const FIRST_LOOK: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long it is watched once it has begun: what is wrong with its node or its arguments shows.
const FIRST_STEPS: Duration = Duration::from_secs(2);

/// Submits the build.
pub fn run(
    global: &Global,
    args: &BuildArgs,
    (workspace, graph, platform): (&Workspace, &Graph<'_>, &Platform),
    out: &mut Out,
) -> Result<u8> {
    if platform.executor != "slurm" {
        let text = format!(
            "a build on platform `{}` cannot go on without its client: its executor is `{}`",
            platform.name, platform.executor
        );
        return Err(Error::new(Kind::Usage, "no-detach", text)
            .hint("only Slurm has jobs that can drive a build; elsewhere begin it where it can stay, in `tmux` or with `nohup doe build … &`, and follow it with `doe attach`"));
    }
    check(args, workspace, graph, platform, out)?;
    if let Some(driving) = Driving::find(workspace)? {
        let text = format!("a build is driven already: {}", driving.in_words()?);
        return Err(Error::new(Kind::Lock, "driven", text)
            .hint("`doe attach` follows it, `doe cancel --all` ends it"));
    }
    let runtime = session::runtime()?;
    let (drivers, shorter) = runtime.block_on(submit(global, workspace, platform))?;
    let seen = match runtime.block_on(first_look(&drivers)) {
        Ok(seen) => seen,
        Err(error) => {
            // It would fail everywhere the same way.
            if let Ok(Some(all)) = runtime.block_on(drivers.look()) {
                runtime.block_on(drivers.end(&all))?;
            }
            return Err(error);
        }
    };
    tell(&drivers, seen.as_ref(), shorter, out)
}

fn check(
    args: &BuildArgs,
    workspace: &Workspace,
    graph: &Graph<'_>,
    platform: &Platform,
    out: &mut Out,
) -> Result<()> {
    let again = "every job that drives it would run everything again";
    let anew = "every job that drives it would count from nothing";
    for (given, option, why) in [
        (args.rerun, "--rerun", again),
        (args.max_hours.is_some(), "--max-hours", anew),
        (args.max_cost.is_some(), "--max-cost", anew),
    ] {
        if given {
            let text = format!("`{option}` does not go with `--detach`: {why}");
            return Err(Error::new(Kind::Usage, "no-detach", text)
                .hint("leave one of the two out; `driver.time` and `driver.count` of the platform bound what a detached build may take"));
        }
    }
    for (name, secret) in &platform.secrets {
        if let Origin::Variable(variable) = &secret.from {
            let text = format!(
                "`--detach`: the secret `{name}` comes from `{variable}` of this environment, which a job does not have"
            );
            return Err(Error::new(Kind::Usage, "no-detach", text).hint(format!(
                "let it come from a file that the nodes of drivers see: `secrets = {{ {name} = {{ file = \"~/.{}\" }} }}`",
                name.to_ascii_lowercase().replace('_', "-")
            )));
        }
    }
    let store = session::store(workspace)?;
    let decider = session::decider(graph, platform, &store)?;
    let nodes = session::targets(graph, &args.targets.targets, &decider, &store)?;
    session::warn(out, workspace, graph, &nodes);
    let findings = preflight::check(graph, &graph.closure(&nodes, false), platform);
    match findings.iter().any(|d| d.severity == Severity::Error) {
        true => Err(Error::from_diagnostics(findings)),
        false => Ok(()),
    }
}

async fn submit(
    global: &Global,
    workspace: &Workspace,
    platform: &Platform,
) -> Result<(Drivers, Option<Error>)> {
    let io = |path: &Path, e: &std::io::Error| Error::io("find", path, e);
    std::fs::create_dir_all(&workspace.state_dir).map_err(|e| io(&workspace.state_dir, &e))?;
    let real = |path: &Path| path.canonicalize().map_err(|e| io(path, &e));
    let executor = slurm::connect(workspace, platform).await?;
    let own = platform.slurm.doe.as_ref();
    let doe = match own {
        Some(doe) => super::super::fleet::file(workspace, doe),
        None => std::env::current_exe()
            .map_err(|e| Error::new(Kind::Infra, "io", "cannot tell where `doe` is").cause(e))?,
    };
    let programs = [("doe".to_owned(), Digest::of_file(&doe)?, doe)];
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let order = Order {
        platform: platform.name.clone(),
        workspace: real(&workspace.root)?,
        state: real(&workspace.state_dir)?,
        doe: executor.install(&programs)?.join("doe"),
        words: words(global),
        count: platform.slurm.driver.count,
        at_unix_ms: now.map_or(0, |now| now.as_millis() as u64),
    };
    let options = slurm::driver_options(platform);
    let (chain, shorter) = executor.detach(order, &options).await?;
    Ok((slurm::drivers(workspace, platform, chain), shorter))
}

/// What this build was asked for, for one that runs in the workspace itself.
fn words(global: &Global) -> Vec<String> {
    let mut words = Vec::new();
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        match word.as_str() {
            "--detach" => {}
            "--workspace" => drop(given.next()),
            word if word.starts_with("--workspace=") => {}
            _ => words.push(word),
        }
    }
    // What follows `--` are targets.
    let end = words.iter().position(|word| word == "--");
    let targets = words.split_off(end.unwrap_or(words.len()));
    // The environment of the client is not that of a job.
    if let (None, Ok(mode)) = (global.remote_cache, std::env::var(session::MODE_VARIABLE))
        && !mode.is_empty()
    {
        words.push(format!("--remote-cache={mode}"));
    }
    words.extend(targets);
    words
}

/// Looks whether the first driver begins; nothing when it waits.
async fn first_look(drivers: &Drivers) -> Result<Option<Driver>> {
    let since = Instant::now();
    let mut begun = None;
    loop {
        let all = drivers.look().await?.unwrap_or_default();
        let first = all.into_iter().next();
        let has_ended = drivers.chain.over()?.is_some();
        if let Some(first) = &first {
            if let Some(why) = &first.failed {
                return Err(Error::new(Kind::Infra, "workspace-not-shared", why)
                    .hint("the workspace and its state folder must lie on a file system that the nodes share; `doe.toml` may name another `state`"));
            }
            if let Some(code) = drivers.chain.ended(1)?.filter(|code| *code > 125) {
                return Err(did_not_run(drivers, code));
            }
            begun = begun.or(first.begun.as_ref().map(|_| Instant::now()));
            if has_ended || begun.is_some_and(|begun| begun.elapsed() > FIRST_STEPS) {
                return Ok(Some(first.clone()));
            }
            let job = first.job.as_ref().filter(|job| !job.is_open());
            let vain = first.job.as_ref().filter(|job| job.waits_in_vain());
            if let Some(job) = job.or(vain) {
                let text = format!(
                    "no job will drive the build: Slurm says {} ({})",
                    job.state, job.reason
                );
                return Err(Error::new(Kind::Infra, "not-started", text).hint(
                    "`root` of the platform's table `slurm` must be a folder that the nodes share; its table `driver` says where drivers run",
                ));
            }
        }
        if begun.is_none() && since.elapsed() > FIRST_LOOK {
            return Ok(first);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The program could not be run there, so no driver can.
fn did_not_run(drivers: &Drivers, code: u8) -> Error {
    let log = drivers.chain.log(1);
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().last().unwrap_or("it left no word").to_owned();
    let text = format!("`doe` does not run where the build would be driven (exit code {code})");
    Error::new(Kind::Infra, "doe-does-not-run", text)
        .cause(last)
        .hint("`doe` of the platform's table `slurm` names one that runs there; `driver` says where drivers run")
}

fn tell(
    drivers: &Drivers,
    first: Option<&Driver>,
    shorter: Option<Error>,
    out: &mut Out,
) -> Result<u8> {
    let chain: &Chain = &drivers.chain;
    let job = first.and_then(|first| first.job.as_ref());
    let number = job.map(|job| job.number.clone());
    let state = job.map(|job| job.state.clone());
    if let Some(error) = &shorter {
        let why = error.causes.first().unwrap_or(&error.message);
        out.note(format!(
            "warning: not all jobs that would take over were submitted: {why}"
        ));
    }
    if out.json {
        let log = chain.log(1);
        out.json(&json!({
            "chain": chain.nonce, "job": number, "state": state,
            "node": first.and_then(|first| first.begun.as_ref()).map(|begun| &begun.node),
            "drivers": chain.order.count, "log": log,
        }))?;
        return Ok(0);
    }
    let number = number.unwrap_or_else(|| "?".into());
    if let Some((driver, code)) = chain.over()? {
        let log = chain.log(driver);
        out.line(format!(
            "job {number} ended the build with exit code {code}: {}",
            log.display()
        ))?;
        return Ok(code);
    }
    out.line(match first.and_then(|first| first.begun.as_ref()) {
        Some(begun) => format!("job {number} drives the build on {}", begun.node),
        None => format!(
            "job {number} will drive the build: {}",
            job.map_or("the controller does not answer".into(), |job| format!(
                "{} ({})",
                job.state, job.reason
            ))
        ),
    })?;
    out.line("`doe attach` follows it, `doe jobs` shows it, `doe cancel --all` ends it")?;
    Ok(0)
}
