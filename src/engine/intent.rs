//! What a run is about to start, on disk before it starts: a process that no line of this file
//! announces was not started by the run. Those who announce at the same time share the price, since
//! one thread writes everything that has come in meanwhile with one sync.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use doe_cache::Digest;
use doe_cache::fault::{self, Point};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::exec::{HostSpec, Token};

pub use super::unended::{in_use, open_runs};

/// Name of the file in the folder of a run.
const FILE: &str = "intents.jsonl";

/// Where a run keeps its folders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The run that started it.
    pub run_id: String,
    /// Folder of that run on this machine.
    pub run_dir: PathBuf,
    /// Folder of that run on the platform's hosts.
    pub host_dir: PathBuf,
}

impl Home {
    /// Whether the hosts have folders of their own, and not those of this machine.
    pub fn is_away(&self) -> bool {
        self.host_dir != self.run_dir
    }
}

/// Where something runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Role in the rule; none: beside `doe` itself.
    pub role: Option<String>,
    /// Host.
    pub host: String,
    /// Its address.
    pub address: String,
}

impl Place {
    /// The host as executors know it.
    pub fn spec(&self) -> HostSpec {
        HostSpec {
            name: self.host.clone(),
            address: self.address.clone(),
            gpus: 0,
        }
    }
}

/// Numbers of ports by owner (a service or a step) and by name.
pub type PortMap = BTreeMap<String, BTreeMap<String, u16>>;

/// A service that is about to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceIntent {
    /// Its submission.
    pub token: Token,
    /// Name in the rule.
    pub name: String,
    /// Its key.
    pub key: Digest,
    /// Where.
    pub place: Place,
    /// Ports that it was told: its own and those of the services beside it.
    pub ports: PortMap,
    /// Its working folder.
    pub work: PathBuf,
    /// Whose folders it uses.
    pub home: Home,
    /// When.
    pub at_unix_ms: u64,
}

/// A service that a node uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseIntent {
    /// The service's submission.
    pub token: Token,
    /// Whether it was started for this node.
    pub started_for_this: bool,
    /// Where the node's part of its logs begins.
    pub log_from: [u64; 2],
}

/// A step of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepIntent {
    /// Name in the rule.
    pub name: String,
    /// Its submission.
    pub token: Token,
    /// Where.
    pub place: Place,
    /// Whom it runs together with, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<String>,
}

fn first() -> u32 {
    1
}

/// A node whose steps are about to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIntent {
    /// Names this execution.
    pub token: Token,
    /// The node.
    pub label: String,
    /// What is executed.
    pub action: Digest,
    /// Whose folders it uses.
    pub home: Home,
    /// Where its steps work: what was begun is gone on with there, wherever this program would work.
    /// Earlier versions did not say.
    #[serde(default)]
    pub work: Option<PathBuf>,
    /// Name of its folder for temporary files.
    pub scratch: String,
    /// Ports that its steps were told.
    pub ports: PortMap,
    /// Which attempt it is, from 1.
    #[serde(default = "first")]
    pub attempt: u32,
    /// The record of the attempt before.
    #[serde(default)]
    pub previous: Option<Digest>,
    /// Services in use.
    pub services: Vec<UseIntent>,
    /// Its steps in order.
    pub steps: Vec<StepIntent>,
    /// What runs beside them.
    #[serde(default)]
    pub monitors: Vec<StepIntent>,
    /// When it got its hosts.
    pub acquired_unix_ms: u64,
}

impl NodeIntent {
    /// Everything that may have been started for it, its services apart.
    pub fn all(&self) -> impl Iterator<Item = &StepIntent> {
        self.steps.iter().chain(&self.monitors)
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "intent", rename_all = "kebab-case")]
pub enum Intent {
    /// A service is about to be started.
    Service(ServiceIntent),
    /// Steps are about to be started.
    Node(NodeIntent),
    /// Nothing of this token is left to be taken over.
    Done {
        /// Of a service or a node.
        token: Token,
    },
    /// The node of this token has its record, and something of it could not be ended.
    Unended {
        /// Of the node.
        token: Token,
    },
}

/// What a run announced and did not close.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Open {
    /// Services.
    pub services: Vec<ServiceIntent>,
    /// Nodes.
    pub nodes: Vec<NodeIntent>,
    /// Nodes that nobody goes on with: what still runs of them is to be ended.
    pub unended: Vec<NodeIntent>,
}

impl Open {
    /// All nodes of which something may run.
    pub fn all_nodes(&self) -> impl Iterator<Item = &NodeIntent> {
        self.nodes.iter().chain(&self.unended)
    }

    /// Whether nothing is open.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && self.unended.is_empty()
    }

    /// Where what has a role runs, each with the folders that it uses.
    pub fn on_hosts(&self) -> impl Iterator<Item = (&Place, &Home)> {
        let steps = self.all_nodes().flat_map(|node| {
            let roles = node.all().filter(|step| step.place.role.is_some());
            roles.map(move |step| (&step.place, &node.home))
        });
        let services = self.services.iter();
        services
            .map(|service| (&service.place, &service.home))
            .chain(steps)
    }

    /// Whose folders are in use.
    pub fn homes(&self) -> impl Iterator<Item = &Home> {
        let services = self.services.iter().map(|service| &service.home);
        services.chain(self.all_nodes().map(|node| &node.home))
    }

    /// Everything that may have been started.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        let steps = self.all_nodes().flat_map(NodeIntent::all);
        let services = self.services.iter().map(|service| &service.token);
        services.chain(steps.map(|step| &step.token))
    }

    fn take(&mut self, intent: Intent) {
        match intent {
            Intent::Service(service) => {
                self.services.retain(|old| old.token != service.token);
                self.services.push(service);
            }
            Intent::Node(node) => {
                self.nodes.retain(|old| old.token != node.token);
                self.nodes.push(node);
            }
            Intent::Unended { token } => {
                let of_it = |node: &mut NodeIntent| node.token == token;
                self.unended.extend(self.nodes.extract_if(.., of_it));
            }
            Intent::Done { token } => {
                self.services.retain(|service| service.token != token);
                self.nodes.retain(|node| node.token != token);
                self.unended.retain(|node| node.token != token);
            }
        }
    }
}

/// What a run has open. A torn last line announced nothing: its sync never came back.
///
/// # Errors
/// The file cannot be read; a run that announced nothing has none.
pub fn read(run_dir: &Path) -> Result<Open> {
    let path = run_dir.join(FILE);
    let mut open = Open::default();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(open),
        Err(e) => return Err(Error::io("read", &path, &e)),
    };
    for line in text.split(|byte| *byte == b'\n') {
        if let Ok(intent) = serde_json::from_slice(line) {
            open.take(intent);
        }
    }
    Ok(open)
}

/// Closes something that an ended run announced.
///
/// # Errors
/// The file cannot be written.
pub fn close(run_dir: &Path, token: &Token) -> Result<()> {
    let mut file = open_file(run_dir)?;
    let done = Intent::Done {
        token: token.clone(),
    };
    append(&mut file, &[done]).map_err(|e| Error::io("write", &run_dir.join(FILE), &e))
}

fn open_file(run_dir: &Path) -> Result<File> {
    let path = run_dir.join(FILE);
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).open(&path);
    file.map_err(|e| Error::io("open", &path, &e))
}

fn append(file: &mut File, intents: &[Intent]) -> std::io::Result<()> {
    let mut text = Vec::new();
    for intent in intents {
        // Begins a line of its own even after a torn one.
        text.push(b'\n');
        serde_json::to_writer(&mut text, intent)?;
        text.push(b'\n');
    }
    fault::before_write(Point::BeforeAnnounce)?.write(&text, file)
}

struct Order {
    intents: Vec<Intent>,
    done: Option<oneshot::Sender<Result<()>>>,
}

/// The side that writes.
pub(super) struct Intents {
    orders: Option<mpsc::Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

impl Intents {
    /// Makes the file of a run and starts the writer.
    pub(super) fn new(run_dir: &Path) -> Result<Self> {
        let file = open_file(run_dir)?;
        // The name must last as well as the lines.
        File::open(run_dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| Error::io("sync", run_dir, &e))?;
        let (orders, inbox) = mpsc::channel();
        let path = run_dir.join(FILE);
        Ok(Self {
            orders: Some(orders),
            writer: Some(std::thread::spawn(move || write_all(file, &path, &inbox))),
        })
    }

    /// Announces; durable on return.
    pub(super) async fn announce(&self, intents: Vec<Intent>) -> Result<()> {
        if intents.is_empty() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        self.send(Order {
            intents,
            done: Some(done),
        })?;
        answer.await.map_err(|_| gone())?
    }

    /// Closes what was announced. Does not wait: that it is over can be seen otherwise.
    pub(super) fn done(&self, token: &Token) {
        let token = token.clone();
        // A writer that is gone has answered those who depend on it.
        let _ = self.send(Order {
            intents: vec![Intent::Done { token }],
            done: None,
        });
    }

    fn send(&self, order: Order) -> Result<()> {
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(order).map_err(|_| gone())
    }
}

impl Drop for Intents {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was answered to those who waited for it.
            let _ = writer.join();
        }
    }
}

fn gone() -> Error {
    let text = "the writer of intents is gone";
    Error::new(Kind::Bug, "intents-gone", text)
}

fn write_all(mut file: File, path: &Path, inbox: &mpsc::Receiver<Order>) {
    while let Ok(first) = inbox.recv() {
        let mut intents = Vec::new();
        let mut waiting = Vec::new();
        for order in std::iter::once(first).chain(inbox.try_iter()) {
            intents.extend(order.intents);
            waiting.extend(order.done);
        }
        let mut written = append(&mut file, &intents);
        if !waiting.is_empty() {
            written = written.and_then(|()| file.sync_data());
        }
        written = written.and_then(|()| fault::hit(Point::AfterAnnounce));
        for done in waiting {
            let result = match &written {
                Ok(()) => Ok(()),
                Err(e) => Err(Error::io("write", path, e)),
            };
            // Whoever asked may have gone.
            let _ = done.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn node(at: u32) -> Intent {
        Intent::Node(NodeIntent {
            token: Token(format!("t{at}")),
            label: format!("//p:{at}"),
            action: Digest::of(at.to_string()),
            home: Home {
                run_id: "r".into(),
                run_dir: "/r".into(),
                host_dir: "/h".into(),
            },
            work: Some("/w/n".into()),
            scratch: "n0".into(),
            ports: PortMap::new(),
            attempt: 1,
            previous: None,
            services: Vec::new(),
            steps: Vec::new(),
            monitors: Vec::new(),
            acquired_unix_ms: 7,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_announced_and_not_closed_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let intents = Intents::new(dir.path()).unwrap();
        let all = (0..40).map(|at| intents.announce(vec![node(at)]));
        for result in futures_util::future::join_all(all).await {
            result.unwrap();
        }
        for at in 1..40 {
            intents.done(&Token(format!("t{at}")));
        }
        let left = intents.announce(vec![Intent::Unended {
            token: Token("t0".into()),
        }]);
        left.await.unwrap();
        drop(intents);
        let mut open = read(dir.path()).unwrap();
        assert_eq!((open.nodes.len(), open.unended.len()), (0, 1));
        open.nodes.append(&mut open.unended);
        assert_eq!(open.nodes.len(), 1);
        assert_eq!(Intent::Node(open.nodes[0].clone()), node(0));
        close(dir.path(), &open.nodes[0].token).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Open::default());
    }

    #[test]
    fn a_torn_line_announces_nothing_and_spoils_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = open_file(dir.path()).unwrap();
        append(&mut file, &[node(1)]).unwrap();
        file.write_all(b"{\"intent\":\"node\",\"tok").unwrap();
        assert_eq!(read(dir.path()).unwrap().nodes.len(), 1);
        append(&mut file, &[node(2)]).unwrap();
        assert_eq!(read(dir.path()).unwrap().nodes.len(), 2);
        assert_eq!(read(&dir.path().join("none")).unwrap(), Open::default());
    }
}
