//! Submission. What will be submitted is on the shared disk before the controller hears of it,
//! so a submission whose answer was lost is found again by its comment; starts that come together
//! go as one array, those that belong together as one heterogeneous job.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::limits::Limits;
use super::meeting::{Meeting, Seat};
use super::queue::{JobKey, Queue, SILENT, unreachable};
use super::together::{is_gang, submit_gang};
use crate::error::{Error, Kind, Result};
use crate::exec::folder;
use crate::exec::remote::call::nonce;
use crate::exec::{Ask, HostSpec, Token};

/// File of an execution that names its array, or heterogeneous job, and its place there.
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

/// A start and who waits for its submission.
pub type Asked = (Start, oneshot::Sender<Result<JobKey>>);

/// Gathers starts and submits them.
#[derive(Debug)]
pub struct Submitter {
    /// Those that are sent together go as one job, if they can.
    sender: mpsc::UnboundedSender<Vec<Asked>>,
    /// None where nothing waits for others.
    meeting: Option<Arc<Meeting>>,
}

/// What a submission needs to know.
pub struct Place {
    /// Shared folder.
    pub root: PathBuf,
    /// The batch script there.
    pub batch: PathBuf,
    /// The wrapper there.
    pub wrapper: PathBuf,
    /// The batch script of several together there.
    pub together: PathBuf,
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
    pub fn new(queue: Arc<Queue>, place: Place, gathers_gangs: bool) -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel::<Vec<Asked>>();
        tokio::spawn(async move {
            while let Some(first) = inbox.recv().await {
                let asked = gather(first, &mut inbox).await;
                let (gangs, others): (Vec<_>, Vec<_>) =
                    asked.into_iter().partition(|all| is_gang(&place, all));
                let mut arrays: BTreeMap<Shape, Vec<Asked>> = BTreeMap::new();
                for one in others.into_iter().flatten() {
                    let start = &one.0;
                    let minutes = place.limits.minutes(&queue, start.timeout, &start.ask);
                    let kind = Shape {
                        host: start.host.name.clone(),
                        minutes: minutes.await,
                        gpus: place.gpus(start),
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
                for gang in gangs {
                    submit_gang(&queue, &place, gang).await;
                }
            }
        });
        Self {
            sender,
            meeting: gathers_gangs.then(Arc::default),
        }
    }

    /// The place of a start among those that it is to go with, if there are any.
    pub fn seat(&self, ask: &Ask, token: &Token, round: u32) -> Option<Seat> {
        Seat::of(self.meeting.as_ref()?, &self.sender, ask, token, round)
    }

    /// Submits; returns when the controller has acknowledged.
    pub async fn submit(&self, start: Start, seat: Option<Seat>) -> Result<JobKey> {
        let broken = || Error::new(Kind::Bug, "task-failed", "a task of the executor broke off");
        let (sender, receiver) = oneshot::channel();
        match seat {
            Some(seat) => seat.take((start, sender)),
            None => {
                let alone = vec![(start, sender)];
                self.sender.send(alone).map_err(|_| broken())?;
            }
        }
        receiver.await.map_err(|_| broken())?
    }
}

impl Place {
    /// The GPUs that a start is given.
    pub fn gpus(&self, start: &Start) -> u32 {
        self.gres.as_ref().map_or(0, |_| start.ask.gpus)
    }

    /// What a job on a node is asked for with, if it may go on for so long; 0 where nothing is said.
    pub fn options(&self, comment: &str, host: &str, minutes: u64, gpus: u32) -> Vec<String> {
        let mut options = self.common.clone();
        options.extend(of_every_job(comment));
        options.push(format!("--nodelist={host}"));
        if minutes > 0 {
            options.push(format!("--time={minutes}"));
        }
        if let (Some(gres), 1..) = (&self.gres, gpus) {
            options.push(format!("--gres={gres}:{gpus}"));
        }
        options
    }
}

/// What comes together with a start.
async fn gather(
    first: Vec<Asked>,
    inbox: &mut mpsc::UnboundedReceiver<Vec<Asked>>,
) -> Vec<Vec<Asked>> {
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
    let count = array.len();
    let places = (0..).take(count).collect::<Vec<_>>();
    go(
        queue,
        place,
        array,
        &places,
        kind.minutes,
        |nonce, comment| {
            let mut arguments = place.options(comment, &kind.host, kind.minutes, kind.gpus);
            // One alone is no array: a controller begins it without waiting for its scheduler's turn.
            if count > 1 {
                arguments.push(format!("--array=0-{}", count - 1));
            }
            arguments.extend([&place.batch, &place.root].map(|path| path.display().to_string()));
            arguments.push(nonce.to_owned());
            arguments.push(place.wrapper.display().to_string());
            arguments
        },
    )
    .await;
}

/// Submits what has these places in one job, and tells those who asked.
pub async fn go(
    queue: &Queue,
    place: &Place,
    asked: Vec<Asked>,
    places: &[u32],
    minutes: u64,
    arguments: impl FnOnce(&str, &str) -> Vec<String>,
) {
    let nonce = nonce();
    let comment = comment_of(&nonce);
    let tokens: Vec<Token> = asked.iter().map(|(start, _)| start.token.clone()).collect();
    let done = async {
        write_ahead(&place.root, &nonce, &tokens, places, minutes)?;
        once(queue, &arguments(&nonce, &comment), &comment).await?;
        Ok(comment)
    };
    let done: Result<String> = done.await;
    if done.is_err() {
        for token in &tokens {
            // Nobody knows this array: the next start of the token makes another.
            unplace(&place.root.join("runs").join(&token.0));
        }
    }
    for ((_, answer), index) in asked.into_iter().zip(places) {
        let key = done.clone().map(|comment| JobKey {
            comment,
            index: *index,
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

/// The name of the list of a job's tokens.
pub fn nonce_of(key: &JobKey) -> &str {
    key.comment.trim_start_matches("doe:")
}

/// Puts down which tokens the job has, then in each execution's folder where it is.
fn write_ahead(
    root: &Path,
    nonce: &str,
    tokens: &[Token],
    places: &[u32],
    minutes: u64,
) -> Result<()> {
    let arrays = root.join("arrays");
    folder::make_private(&arrays)?;
    let list: String = tokens
        .iter()
        .map(|token| format!("{}\n", token.0))
        .collect();
    folder::durable(&arrays.join(nonce), list.as_bytes())?;
    for (token, index) in tokens.iter().zip(places) {
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
