//! An endpoint of AWS Systems Manager on loopback that really executes what it is sent, as far as
//! Run Command goes: its wire, states, limits and errors are the service's documented ones.
//! Instances are given a way to run programs "there"; an agent for each fetches commands, runs
//! them five at a time and reports, as the real one does. Faults are switched on by tests.
#![allow(dead_code)] // each test program uses its own part

mod agent;
mod service;
mod state;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use state::State;
pub use state::{Command, Ping};

/// What goes wrong, for so many requests or commands to come.
#[derive(Debug, Default, Clone)]
pub struct Faults {
    /// Requests turned down with ThrottlingException.
    pub throttle: u32,
    /// SendCommand requests that are accepted and whose answer is lost.
    pub lose_answers: u32,
    /// SendCommand requests that fail with an internal error before anything is accepted.
    pub fail_before: u32,
    /// Commands that are carried out three times: twice at once and once more afterwards.
    pub duplicate: u32,
    /// How commands to come end, each without being run: status and details.
    pub spoil: Vec<(&'static str, &'static str)>,
    /// Commands beside these that end well and whose scripts are not run.
    pub swallow: u32,
    /// Commands with this comment are not delivered for now.
    pub hold: Option<String>,
    /// Commands not yet to be seen for so long after they were accepted.
    pub invisible: Duration,
    /// Commands come to their instances so much later.
    pub delay: Duration,
    /// An operation that the caller has no right to.
    pub deny: Option<&'static str>,
    /// Pages of listings have no more than this. Every other one is empty, as real ones may be.
    pub page: Option<usize>,
    /// Commands whose answer was lost are not delivered for now.
    pub hold_lost: bool,
    /// Nor to be seen in listings.
    pub hide_lost: bool,
    /// Commands of others that are accepted right after one whose answer is lost.
    pub clutter: u32,
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Spec {
    pub id: String,
    pub tags: HashMap<String, String>,
    /// Words in front of a program that run it on the instance.
    pub run: Vec<String>,
}

/// See the module. It and its agents end with this value.
pub struct Endpoint {
    pub port: u16,
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
    _dir: tempfile::TempDir,
}

impl Endpoint {
    /// Serves these instances.
    pub fn start(instances: Vec<Spec>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(State::new(dir.path().to_owned(), instances)));
        let listener = runtime
            .block_on_elsewhere(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(service::serve(listener, state.clone()));
        let ids: Vec<String> = state.lock().unwrap().instances.keys().cloned().collect();
        for id in ids {
            runtime.spawn(agent::run(id, state.clone()));
        }
        Self {
            port,
            state,
            runtime: Some(runtime),
            _dir: dir,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Switches faults on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().unwrap().faults);
    }

    /// Faults that are still to come.
    pub fn faults_left(&self) -> Faults {
        self.state.lock().unwrap().faults.clone()
    }

    /// How an instance answers from now on. One that is gone is not known any more.
    pub fn ping(&self, id: &str, ping: Ping) {
        self.state
            .lock()
            .unwrap()
            .instances
            .get_mut(id)
            .unwrap()
            .ping = ping;
    }

    /// One more instance, without an agent: somebody else's.
    pub fn add(&self, spec: Spec, ping: Ping) {
        let mut state = self.state.lock().unwrap();
        let id = spec.id.clone();
        state
            .instances
            .insert(id, state::InstanceState { spec, ping });
    }

    /// The region that requests must be signed for.
    pub fn region(&self, region: &str) {
        self.state.lock().unwrap().region = region.to_owned();
    }

    /// What was asked for, as IAM names it: actions and resources.
    pub fn uses(&self) -> std::collections::BTreeSet<(String, String)> {
        self.state.lock().unwrap().uses.clone()
    }

    /// Every command that was accepted, in order.
    pub fn commands(&self) -> Vec<Command> {
        self.state.lock().unwrap().commands.clone()
    }

    /// How often each operation was asked for.
    pub fn asked(&self, operation: &str) -> u32 {
        let state = self.state.lock().unwrap();
        state.asked.get(operation).copied().unwrap_or(0)
    }

    /// Folder of an instance's agent.
    pub fn orchestration(&self) -> PathBuf {
        self.state.lock().unwrap().dir.clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

trait Elsewhere {
    fn block_on_elsewhere<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T;
}

impl Elsewhere for tokio::runtime::Runtime {
    /// Like `block_on`, from inside another runtime too.
    fn block_on_elsewhere<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move { drop(answer.send(work.await)) });
        answered.recv().unwrap()
    }
}
