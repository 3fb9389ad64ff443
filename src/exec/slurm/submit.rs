//! Submission. What will be submitted is on the shared disk before the controller hears of it,
//! so a submission whose answer was lost is found again by its comment; starts that come together
//! go as one array.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::limits::Limits;
use super::queue::{JobKey, Queue, SILENT, unreachable};
use crate::error::{Error, Kind, Result};
use crate::exec::folder;
use crate::exec::remote::call::nonce;
use crate::exec::{Ask, HostSpec, Token};

/// File of an execution that names its array and its place there.
const PLACE: &str = "slurm";
/// Starts that come within this time of each other go together,
const GATHER: Duration = Duration::from_millis(25);
/// unless the first of them has waited this long: where the disk is slow they come one by one.
const GATHER_MOST: Duration = Duration::from_millis(500);
/// Most tasks of one array; controllers allow 1001 by default.
const MOST: usize = 1000;
/// Between two tries to submit.
const AGAIN: Duration = Duration::from_secs(1);
/// File of an execution that says how many minutes its job has.
pub const LIMIT: &str = "limit";

/// One start.
#[derive(Debug)]
pub struct Start {
    /// Node.
    pub host: HostSpec,
    /// Submission.
    pub token: Token,
    /// Limit of its script.
    pub timeout: Option<Duration>,
    /// What it asks for beside its node.
    pub ask: Ask,
}

type Asked = (Start, oneshot::Sender<Result<JobKey>>);

/// Gathers starts and submits them.
#[derive(Debug)]
pub struct Submitter(mpsc::UnboundedSender<Asked>);

/// What a submission needs to know.
pub struct Place {
    /// Shared folder.
    pub root: PathBuf,
    /// The batch script there.
    pub batch: PathBuf,
    /// The wrapper there.
    pub wrapper: PathBuf,
    /// What all jobs have in common: `--partition=…` and the like.
    pub common: Vec<String>,
    /// The kind of resource that GPUs are.
    pub gres: Option<String>,
    /// The limits of jobs.
    pub limits: Limits,
}

/// What the tasks of one array have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    host: String,
    minutes: u64,
    gpus: u32,
}

impl Submitter {
    /// Starts the one task that submits.
    pub fn new(queue: std::sync::Arc<Queue>, place: Place) -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel::<Asked>();
        tokio::spawn(async move {
            while let Some(first) = inbox.recv().await {
                let asked = gather(first, &mut inbox).await;
                let mut arrays: BTreeMap<Shape, Vec<Asked>> = BTreeMap::new();
                for one in asked {
                    let start = &one.0;
                    let minutes = place.limits.minutes(&queue, start.timeout, start.ask);
                    let kind = Shape {
                        host: start.host.name.clone(),
                        minutes: minutes.await,
                        gpus: place.gres.as_ref().map_or(0, |_| start.ask.gpus),
                    };
                    arrays.entry(kind).or_default().push(one);
                }
                for (kind, mut array) in arrays {
                    while !array.is_empty() {
                        let rest = array.split_off(array.len().min(MOST));
                        submit(&queue, &place, &kind, array).await;
                        array = rest;
                    }
                }
            }
        });
        Self(sender)
    }

    /// Submits; returns when the controller has acknowledged.
    pub async fn submit(&self, start: Start) -> Result<JobKey> {
        let broken = || Error::new(Kind::Bug, "task-failed", "a task of the executor broke off");
        let (sender, receiver) = oneshot::channel();
        self.0.send((start, sender)).map_err(|_| broken())?;
        receiver.await.map_err(|_| broken())?
    }
}

/// What comes together with a start.
async fn gather(first: Asked, inbox: &mut mpsc::UnboundedReceiver<Asked>) -> Vec<Asked> {
    let begun = Instant::now();
    let mut asked = vec![first];
    while let Some(left) = GATHER_MOST.checked_sub(begun.elapsed()) {
        match tokio::time::timeout(GATHER.min(left), inbox.recv()).await {
            Ok(Some(more)) => asked.push(more),
            Ok(None) | Err(_) => break,
        }
    }
    asked
}

async fn submit(queue: &Queue, place: &Place, kind: &Shape, array: Vec<Asked>) {
    let nonce = nonce();
    let tokens: Vec<Token> = array.iter().map(|(start, _)| start.token.clone()).collect();
    let done = async {
        write_ahead(&place.root, &nonce, &tokens, kind.minutes)?;
        let comment = comment_of(&nonce);
        let mut arguments = place.common.clone();
        // One alone is no array: a controller begins it without waiting for its scheduler's turn.
        if tokens.len() > 1 {
            arguments.push(format!("--array=0-{}", tokens.len() - 1));
        }
        arguments.extend(of_every_job(&comment));
        arguments.push(format!("--nodelist={}", kind.host));
        if kind.minutes > 0 {
            arguments.push(format!("--time={}", kind.minutes));
        }
        if let (Some(gres), 1..) = (&place.gres, kind.gpus) {
            arguments.push(format!("--gres={gres}:{}", kind.gpus));
        }
        for path in [&place.batch, &place.root] {
            arguments.push(path.display().to_string());
        }
        arguments.push(nonce.clone());
        arguments.push(place.wrapper.display().to_string());
        once(queue, &arguments, &comment).await.map(|_| comment)
    };
    let done: Result<String> = done.await;
    if done.is_err() {
        for token in &tokens {
            // Nobody knows this array: the next start of the token makes another.
            unplace(&place.root.join("runs").join(&token.0));
        }
    }
    for (index, (_, answer)) in array.into_iter().enumerate() {
        let key = done.clone().map(|comment| JobKey {
            comment,
            index: u32::try_from(index).unwrap_or(u32::MAX),
        });
        // Who asked may be gone; the job is found by its token.
        let _ = answer.send(key);
    }
}

/// What every job of ours is asked for with: one task, known by its comment, that leaves nothing
/// where nobody looks.
pub fn of_every_job(comment: &str) -> [String; 10] {
    [
        "--parsable".into(),
        format!("--comment={comment}"),
        format!("--job-name={comment}"),
        "--nodes=1".into(),
        "--ntasks=1".into(),
        // A measurement that begins anew in the middle is none; doe decides what runs again.
        "--no-requeue".into(),
        "--output=/dev/null".into(),
        "--error=/dev/null".into(),
        "--chdir=/".into(),
        "--export=ALL".into(),
    ]
}

/// Submits a job, unless one with its comment is with the controller although the answer was lost;
/// its number.
pub async fn once(queue: &Queue, arguments: &[String], comment: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let submitted = queue.ask("sbatch", arguments).await;
        queue.outdate().await;
        let error = match submitted {
            // `NUMBER`, or `NUMBER;CLUSTER`.
            Ok(said) => return Ok(said.trim().split(';').next().unwrap_or("").to_owned()),
            Err(error) if error.code != SILENT => return Err(error),
            Err(error) => error,
        };
        // It may have heard us although we did not hear it.
        let key = JobKey {
            comment: comment.to_owned(),
            index: 0,
        };
        match queue.jobs(true).await {
            Ok(Some(jobs)) if jobs.contains_key(&key) => {
                let number = &jobs[&key].number;
                return Ok(number.split('_').next().unwrap_or("").to_owned());
            }
            // Arrays go one after the other: the patience is one for all.
            Err(unreachable) => return Err(unreachable),
            _ if begun.elapsed() > queue.patience() => {
                return Err(unreachable(begun.elapsed(), error));
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn comment_of(nonce: &str) -> String {
    format!("doe:{nonce}")
}

/// Puts down which tokens the array has, then in each execution's folder where it is.
fn write_ahead(root: &Path, nonce: &str, tokens: &[Token], minutes: u64) -> Result<()> {
    let arrays = root.join("arrays");
    folder::make_private(&arrays)?;
    let list: String = tokens
        .iter()
        .map(|token| format!("{}\n", token.0))
        .collect();
    folder::durable(&arrays.join(nonce), list.as_bytes())?;
    for (index, token) in tokens.iter().enumerate() {
        let dir = root.join("runs").join(&token.0);
        folder::write_private(&dir.join(LIMIT), format!("{minutes}\n").as_bytes())?;
        let path = dir.join(PLACE);
        folder::durable(&path, format!("{nonce} {index}\n").as_bytes())?;
    }
    Ok(())
}

/// Forgets that an execution was submitted: nothing of it will come.
pub fn unplace(dir: &Path) {
    let _ = fs::remove_file(dir.join(PLACE));
}

/// Where an execution was submitted to; `None` when it never was.
pub fn placed(dir: &Path) -> Result<Option<JobKey>> {
    let path = dir.join(PLACE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", &path, &e)),
    };
    let found = text.trim_end().split_once(' ').and_then(|(nonce, index)| {
        Some(JobKey {
            comment: comment_of(nonce),
            index: index.parse().ok()?,
        })
    });
    Ok(found)
}
