//! A run goes on with what a killed one left, before it begins anything of its own: finished nodes
//! are recorded, services and nodes under way keep what they hold, and everything else is ended.
//! Only then does anybody else get a host.

use std::collections::HashMap;
use std::sync::Arc;

use doe_cache::Digest;
use tokio::sync::mpsc;

use super::drive::Drive;
use super::job::{Job, Resumed};
use super::live::Report;
use super::remains::Standing;
use super::schedule::{ServiceId, TaskId};
use super::scratch::Scratch;
use super::services::Instance;
use super::steps::Used;
use crate::error::Result;
use crate::exec::Token;

/// What a killed run had begun of a task, and the services it used when it is over.
pub(super) type Begun = (Arc<Resumed>, Option<Vec<Used>>);

impl Drive<'_, '_, '_> {
    /// See the module.
    pub(super) async fn resume(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Report>,
    ) -> Result<()> {
        if self.remains.is_empty() {
            return Ok(());
        }
        self.held_back = Some(Vec::new());
        loop {
            while let Some(task) = self.scheduler.next_undecided() {
                self.decide(task)?;
            }
            if self.outstanding == 0 {
                break;
            }
            // What was finished is recorded first: others may need its outputs.
            if let Some(report) = inbox.recv().await {
                self.take(report)?;
            }
        }
        let held_back = self.held_back.take().unwrap_or_default();
        let adopted = self.adopt_services();
        let (begun, mut fresh): (Vec<TaskId>, Vec<TaskId>) = held_back
            .into_iter()
            .filter(|task| self.jobs.contains_key(task))
            .partition(|task| self.is_resumed(*task));
        let mut resumed = Vec::new();
        for task in begun {
            if self.has_its_services(task, &adopted) {
                self.go_on(task);
                resumed.push(task);
            } else {
                self.give_up(task, "a service that it uses could not be taken over");
                fresh.push(task);
            }
        }
        // What nobody goes on with is gone before anybody gets its hosts.
        self.end_what_is_left().await?;
        if !resumed.is_empty() {
            for command in self.scheduler.commands() {
                self.obey(command);
            }
        }
        resumed.retain(|task| !self.scheduler.is_active(*task));
        for &task in &resumed {
            self.give_up(task, "its hosts are given to others now");
            self.hold_up(task);
        }
        if !resumed.is_empty() {
            self.end_what_is_left().await?;
        }
        for task in fresh {
            self.ask(task);
        }
        for task in resumed {
            self.ask_again(task);
        }
        Ok(())
    }

    async fn end_what_is_left(&mut self) -> Result<()> {
        let (executor, local) = (self.context.executor.clone(), self.context.local.clone());
        let (mut said, mut over) = (Vec::new(), Vec::new());
        let ended = self.remains.end(&*executor, &*local, &mut said, &mut over);
        let ended = ended.await;
        for message in said {
            self.journal.warn("leftovers", message, None);
        }
        for token in over {
            self.context.intents.done(&token);
        }
        let stuck = std::mem::take(&mut self.remains.stuck);
        self.context.unended.of_others(&self.context, stuck);
        ended
    }

    /// What a killed run had begun of a task that would execute this.
    pub(super) fn begun_before(&mut self, task: TaskId, action: &Digest) -> Option<Begun> {
        let left = self.remains.take_node(action)?;
        let planned = &self.tasks[task.index()];
        let label = self.decider.graph().label(planned.node).clone();
        let moved = left.intent.steps.iter().find(|step| {
            let host = self.context.host(step.place.role.as_deref());
            !host.is_ok_and(|host| {
                host.name == step.place.host && host.address == step.place.address
            })
        });
        if let Some(step) = moved {
            let why = format!("its step `{}` is to run elsewhere now", step.name);
            self.remains.put_back(left.intent, &why);
            return None;
        }
        if left.intent.label != label.to_string() {
            // Its folder and its steps' tokens bear that name.
            self.remains
                .put_back(left.intent, "its pattern has another name now");
            return None;
        }
        if left.intent.work.is_none() {
            self.remains
                .put_back(left.intent, "another version of doe had begun it");
            return None;
        }
        let is_over = left.standing == Standing::Over;
        let used = is_over.then(|| self.used_by(task, &left.intent.services));
        let used = match used {
            Some(None) => {
                self.remains
                    .put_back(left.intent, "its rule uses other services now");
                return None;
            }
            Some(Some(used)) => Some(used),
            None => None,
        };
        let run_id = &left.intent.home.run_id;
        let message = match is_over {
            true => format!("takes the result of the killed run {run_id}"),
            false => format!("goes on where the killed run {run_id} was"),
        };
        self.journal.warn("re-attached", message, Some(&label));
        let scratch = self
            .scratches
            .entry(run_id.clone())
            .or_insert_with(|| Arc::new(Scratch::new(run_id, &left.intent.home.run_dir)));
        let resumed = Resumed {
            scratch: scratch.clone(),
            intent: left.intent,
        };
        Some((Arc::new(resumed), used))
    }

    /// The services of a node that is over, each by the definition of this run.
    fn used_by(&self, task: TaskId, before: &[super::intent::UseIntent]) -> Option<Vec<Used>> {
        let planned = &self.tasks[task.index()].services;
        if planned.len() != before.len() {
            return None;
        }
        let mut used = Vec::with_capacity(before.len());
        for before in before {
            let services = &self.remains.services;
            let left = services.iter().find(|s| s.intent.token == before.token)?;
            let (_, id) = planned.iter().find(|(name, _)| *name == left.intent.name)?;
            let def = self.services[id.index()].def.clone();
            if def.key != left.intent.key {
                return None;
            }
            used.push(Used {
                instance: Arc::new(Instance::left(def, left)),
                started_for_this: before.started_for_this,
                log_from: before.log_from,
            });
        }
        Some(used)
    }

    /// Collects, judges and records what a killed run had finished.
    pub(super) fn record_finished(&mut self, task: TaskId, used: Vec<Used>) {
        let Some(shared) = self.jobs.get_mut(&task) else {
            return;
        };
        let job = Arc::make_mut(shared);
        job.running = true;
        if let Some(resumed) = &job.resumed {
            job.acquired_unix_ms = resumed.intent.acquired_unix_ms;
        }
        let job = shared.clone();
        self.execute(task, job, used);
    }

    fn is_resumed(&self, task: TaskId) -> bool {
        self.jobs
            .get(&task)
            .is_some_and(|job| job.resumed.is_some())
    }

    /// A task has ended before anything was gone on with: what a killed run had begun of it is ended
    /// with the rest.
    pub(super) fn leave_behind(&mut self, job: &Job) {
        let resumed = job.resumed.as_ref().filter(|_| !job.running);
        if let (Some(resumed), true) = (resumed, self.held_back.is_some()) {
            let why = "its pattern has ended otherwise";
            self.remains.put_back(resumed.intent.clone(), why);
        }
    }

    /// The task runs anew; what a killed run had begun of it is ended.
    fn give_up(&mut self, task: TaskId, why: &str) {
        let job = self.jobs.get_mut(&task).map(Arc::make_mut);
        if let Some(resumed) = job.and_then(|job| job.resumed.take()) {
            self.remains.put_back(resumed.intent.clone(), why);
        }
    }

    fn has_its_services(&self, task: TaskId, adopted: &HashMap<ServiceId, Token>) -> bool {
        let Some(resumed) = self.jobs.get(&task).and_then(|job| job.resumed.as_ref()) else {
            return false;
        };
        let before = &resumed.intent.services;
        let planned = &self.tasks[task.index()].services;
        planned.len() == before.len()
            && planned.iter().all(|(_, id)| {
                let token = adopted.get(id);
                token.is_some_and(|token| before.iter().any(|before| before.token == *token))
            })
    }

    /// Services that live, are needed and stand on nothing that is gone.
    fn adopt_services(&mut self) -> HashMap<ServiceId, Token> {
        let mut adopted: HashMap<ServiceId, Token> = HashMap::new();
        for at in 0..self.services.len() {
            let (id, def) = (ServiceId(at as u32), self.services[at].def.clone());
            if self.scheduler.pending_users_of(id).is_empty() {
                continue;
            }
            let Some(left) = self.remains.take_service(&def.key, &def.host.name) else {
                continue;
            };
            let stands = self
                .scheduler
                .stands_on_all(id, |below| adopted.contains_key(&below));
            let told = def.siblings.iter().all(|(name, sibling, _)| {
                let ports = left.intent.ports.get(name);
                ports.is_some_and(|ports| self.ports.seed(*sibling, ports))
            });
            if !stands || !told || !self.scheduler.adopt(id) {
                self.remains.put_service_back(left);
                continue;
            }
            let run_id = &left.intent.home.run_id;
            let pid = left.handle.pid;
            let message = format!(
                "service `{}` of the killed run {run_id} goes on (pid {pid})",
                def.name
            );
            self.journal.warn("re-attached", message, None);
            let run_dir = &left.intent.home.run_dir;
            self.scratches
                .entry(run_id.clone())
                .or_insert_with(|| Arc::new(Scratch::new(run_id, run_dir)));
            adopted.insert(id, left.intent.token.clone());
            self.resume_service(id, left);
        }
        adopted
    }
}
