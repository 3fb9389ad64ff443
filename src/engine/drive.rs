//! The loop of a run: obeys the scheduler's commands, tells it what happened, and lets go of
//! nothing before its end was reported. It alone changes the state of the run; everything that
//! takes time runs beside it and reports by a message.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use doe_cache::{Digest, NodeState as StoredState, NodeUpdate};
use tokio::sync::{mpsc, watch};

use super::caps::Gate;
use super::caps::drive::StartTimes;
use super::context::{Context, now_unix_ms};
use super::decide::{Decider, Hit, Keyed, Why};
use super::early::Coming;
use super::event::{Body, NodeState, Outcome};
use super::followup::Watch;
use super::job::Job;
use super::journal::Journal;
use super::live::{Live, Report};
use super::made::Known;
use super::order::Line;
use super::prepare::Task;
use super::record::{NodeEnd, stored_state};
use super::remains::Remains;
use super::resolve::{Final, Resolution, Told, final_of, is_damage, resolve, reuse};
use super::retry::{Retries, wait_for};
use super::schedule::{Command, Scheduler, TaskId};
use super::scratch::Scratch;
use super::services::PortBook;
use crate::error::{Error, Kind, Result};
use crate::graph::{Graph, NodeId};

/// See the module.
pub(super) struct Drive<'d, 's, 'w> {
    pub(super) context: Arc<Context>,
    pub(super) decider: &'d mut Decider<'w>,
    pub(super) scheduler: Scheduler,
    /// By task.
    pub(super) tasks: Vec<Task>,
    /// By service.
    pub(super) services: Vec<Live>,
    /// By node.
    pub(super) finals: Vec<Option<Final>>,
    pub(super) journal: &'d mut Journal<'s>,
    pub(super) estimates: BTreeMap<NodeId, f64>,
    pub(super) fail_fast: bool,
    pub(super) abort: watch::Sender<bool>,
    pub(super) reports: mpsc::UnboundedSender<Report>,
    /// Pieces of work whose last report has not come.
    pub(super) outstanding: usize,
    /// Those of them that end with a record.
    pub(super) executing: usize,
    /// How often the user asked to stop.
    pub(super) level: u8,
    /// Tasks that are to be executed and have not ended.
    pub(super) jobs: HashMap<TaskId, Arc<Job>>,
    /// By action key: the task that executes it.
    pub(super) leaders: HashMap<Digest, TaskId>,
    /// By leader: tasks that would execute the same.
    pub(super) followers: HashMap<TaskId, Vec<(TaskId, Box<Keyed>)>>,
    /// Tasks whose failure is being recorded: they do not run any more.
    pub(super) doomed: HashSet<TaskId>,
    pub(super) ports: Arc<PortBook>,
    /// By task: raised to end it alone.
    pub(super) cancels: HashMap<TaskId, watch::Sender<bool>>,
    /// By killed run: its short link, kept as long as something of it goes on.
    pub(super) scratches: HashMap<String, Arc<Scratch>>,
    /// Limits and canaries.
    pub(super) gate: Gate,
    /// Read when the gate first needs it.
    pub(super) start_times: Option<StartTimes>,
    /// What finished results may call for.
    pub(super) watch: Watch<'w>,
    /// Service starts for what they called for.
    pub(super) brought_starts: u64,
    /// Why what they call for cannot run here, when it cannot.
    pub(super) unfit: Option<String>,
    /// What a killed run left and nobody has dealt with yet.
    pub(super) remains: Remains,
    /// The order in which nodes stand in line.
    pub(super) line: Line,
    /// Further attempts.
    pub(super) retries: Retries,
    /// Tasks that are to run, held back until what a killed run left has found its place.
    pub(super) held_back: Option<Vec<TaskId>>,
    /// What those made that others need.
    pub(super) made: Known,
    /// What is on its way to the disk and may be read already.
    pub(super) coming: HashMap<NodeId, Coming>,
    /// By host: why nothing more is begun on it.
    pub(super) tainted: BTreeMap<String, String>,
    /// Whether everything that a killed run left is gone on with, or gone.
    pub(super) has_taken_over: bool,
}

impl<'w> Drive<'_, '_, 'w> {
    /// Runs until every task has ended and every service is gone.
    pub(super) async fn run(
        &mut self,
        mut inbox: mpsc::UnboundedReceiver<Report>,
        mut interrupt: watch::Receiver<u8>,
    ) -> Result<()> {
        self.announce();
        self.begin_follow_ups();
        let driven = match self.resume(&mut inbox).await {
            Ok(()) => {
                self.has_taken_over = true;
                self.drive(&mut inbox, &mut interrupt).await
            }
            failed => failed,
        };
        if driven.is_err() {
            self.clear_up(&mut inbox).await;
        }
        let driven = driven.and(self.context.committer.flush().await);
        if let Err(error) = &driven {
            self.give_account(error);
        }
        self.journal.flush();
        driven
    }

    async fn drive(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Report>,
        interrupt: &mut watch::Receiver<u8>,
    ) -> Result<()> {
        let mut watching = true;
        let mut requests = tokio::time::interval(super::request::LOOK_EVERY);
        requests.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let level = *interrupt.borrow_and_update();
            if level > self.level && self.interrupted(level)? {
                return Ok(());
            }
            self.settle()?;
            if self.scheduler.is_over() && self.outstanding == 0 {
                return Ok(());
            }
            let due = self.retries.due();
            if self.outstanding == 0 && due.is_none() {
                return Err(Error::new(
                    Kind::Bug,
                    "stalled",
                    "nothing is under way and yet the run is not over",
                ));
            }
            self.journal.flush();
            self.context.committer.expect(self.executing);
            tokio::select! {
                report = inbox.recv() => {
                    let mut next = report;
                    // What has come in meanwhile is taken in the same breath.
                    while let Some(report) = next {
                        self.take(report)?;
                        next = inbox.try_recv().ok();
                    }
                }
                changed = interrupt.changed(), if watching => watching = changed.is_ok(),
                _ = requests.tick() => self.look_for_requests()?,
                () = wait_for(due) => {}
            }
        }
    }

    fn graph(&self) -> &'w Graph<'w> {
        self.decider.graph()
    }

    fn announce(&mut self) {
        for at in 0..self.tasks.len() {
            let task = TaskId(at as u32);
            if !self.scheduler.is_held(task) {
                self.announce_one(task);
            }
        }
        self.journal.flush();
    }

    pub(super) fn announce_one(&mut self, task: TaskId) {
        let node = self.tasks[task.index()].node;
        self.journal.tell_later(Body::NodeState {
            label: self.graph().label(node).to_string(),
            state: NodeState::Blocked,
            hosts: Vec::new(),
            estimate_s: self.estimates.get(&node).copied(),
            why: None,
        });
    }

    /// Decides and obeys until nothing more can be done without waiting.
    pub(super) fn settle(&mut self) -> Result<()> {
        loop {
            let mut moved = false;
            while let Some(task) = self.scheduler.next_undecided() {
                self.decide(task)?;
                moved = true;
            }
            moved |= self.readmit()?;
            moved |= self.pass_gate()?;
            for command in self.scheduler.commands() {
                self.obey(command);
                moved = true;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    pub(super) fn decide(&mut self, task: TaskId) -> Result<()> {
        let node = self.tasks[task.index()].node;
        let forgiven = self.forgiven(node);
        let of = |node: NodeId| match &forgiven {
            Some(finals) => finals[node.index()].as_ref().or_else(|| self.known(node)),
            None => self.known(node),
        };
        match resolve(self.graph(), self.decider, of, node)? {
            Resolution::Blocked(reason) => {
                self.end(task, Final::without_result(Outcome::Blocked, reason))
            }
            Resolution::Enough(why) => self.end(task, Final::without_result(Outcome::Skipped, why)),
            Resolution::Reuse { record, hit, keyed } => match self.maker_of(record) {
                // It is on its way to the disk: what becomes of it becomes of this one.
                Some(maker) => {
                    self.followers.entry(maker).or_default().push((task, keyed));
                    Ok(())
                }
                None => self.reuse(task, record, hit, &keyed),
            },
            Resolution::Run { keyed, why } => self.admit(task, keyed, &why),
            Resolution::Wait { .. } => Err(Error::new(
                Kind::Bug,
                "undecided",
                format!("{} was to be decided too early", self.graph().label(node)),
            )),
        }
    }

    fn reuse(&mut self, task: TaskId, record: Digest, hit: Hit, keyed: &Keyed) -> Result<()> {
        let node = self.tasks[task.index()].node;
        let readable = self.check_readable(node, record);
        let run_id = &self.context.home.run_id;
        let mut told = Told::new(&self.context.store);
        let ended = readable
            .and_then(|()| reuse(&mut told, self.decider, run_id, node, record, hit, keyed));
        let ended = match ended {
            Ok(ended) => ended,
            // As good as not there: the node is executed.
            Err(error) if is_damage(&error) && !self.decider.is_lost(&record) => {
                self.decider.lose(record);
                self.journal.warn("damaged", error.message, None);
                return self.decide(task);
            }
            Err(error) => return Err(error),
        };
        told.write()?;
        if let Some(record) = ended.record.filter(|_| hit == Hit::Rejudge) {
            self.context.committer.share(record);
        }
        self.end(task, ended)
    }

    fn admit(&mut self, task: TaskId, mut keyed: Box<Keyed>, why: &Why) -> Result<()> {
        let broken = self
            .broken_service(task)
            .map(|(name, why)| format!("service `{name}` could not be kept up: {why}"));
        if let Some(reason) = self.tainted_for(task).or(broken) {
            return self.end(task, Final::without_result(Outcome::Blocked, reason));
        }
        let label = self.graph().label(self.tasks[task.index()].node);
        let Some((_, action)) = keyed.action.take() else {
            return Err(Error::new(
                Kind::Bug,
                "no-action",
                format!("{label} has no action"),
            ));
        };
        let key = action.key();
        if let Some(&leader) = self.leaders.get(&key) {
            // The same is about to be executed: one execution stands for both.
            self.followers
                .entry(leader)
                .or_default()
                .push((task, keyed));
            return Ok(());
        }
        let mut job = match self.job(task, *keyed, action, key) {
            Ok(job) => job,
            // What it needs was damaged while the run went on. Others are not its concern.
            Err(error) if is_damage(&error) => {
                let what = error.message;
                let reason = format!("needs a result that was damaged meanwhile: {what}");
                return self.end(task, Final::without_result(Outcome::Blocked, reason));
            }
            Err(error) => return Err(error),
        };
        self.leaders.insert(key, task);
        let begun = self.begun_before(task, &key);
        job.resumed = begun.as_ref().map(|(resumed, _)| resumed.clone());
        self.count_on(label, &key, &mut job);
        self.jobs.insert(task, Arc::new(job));
        self.tell_state(task, NodeState::Ready, Some(why.to_string()));
        match (begun, &mut self.held_back) {
            (Some((_, Some(used))), _) => self.record_finished(task, used),
            (_, Some(held_back)) => held_back.push(task),
            (_, None) => self.ask(task),
        }
        Ok(())
    }

    pub(super) fn broken_service(&self, task: TaskId) -> Option<(String, String)> {
        let mut services = self.tasks[task.index()].services.iter();
        services.find_map(|(name, id)| {
            let why = self.services[id.index()].broken()?;
            Some((name.clone(), why.to_owned()))
        })
    }

    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Acquired(task) => {
                for (_, service) in &self.tasks[task.index()].services {
                    self.services[service.index()].wanted_by(task);
                }
                if let Some(job) = self.jobs.get_mut(&task).map(Arc::make_mut) {
                    job.acquired_unix_ms = match &job.resumed {
                        Some(resumed) => resumed.intent.acquired_unix_ms,
                        None => now_unix_ms(),
                    };
                }
                self.state(task, NodeState::Acquiring);
            }
            Command::Start(service) => self.start_service(service),
            Command::Stop(service) => self.stop_service(service),
            Command::Run(task) => self.start_task(task),
        }
    }

    /// A task has ended: told, noted, and others go on.
    pub(super) fn end(&mut self, task: TaskId, ended: Final) -> Result<()> {
        let node = self.tasks[task.index()].node;
        if self.finals[node.index()].is_some() {
            return Ok(());
        }
        let label = self.graph().label(node);
        // What was executed was noted together with its record.
        let unsettled = self.settle_attempts(task, &ended);
        if ended.record.is_none() || !self.jobs.contains_key(&task) || unsettled {
            self.context.committer.note(NodeUpdate {
                run_id: self.context.home.run_id.clone(),
                label: label.to_string(),
                state: stored_state(ended.outcome),
                reason: ended.reason.clone(),
                record: ended.record,
            })?;
        }
        self.journal.finished(label, &ended);
        let bad = !ended.outcome.is_good();
        for (_, service) in self.tasks[task.index()].services.iter().filter(|_| !bad) {
            self.services[service.index()].proved();
        }
        self.finals[node.index()] = Some(ended);
        if let Some(job) = self.jobs.remove(&task) {
            self.leaders.remove(&job.key);
            self.leave_behind(&job);
        }
        self.cancels.remove(&task);
        self.scheduler.finish(task);
        self.note_end(task);
        self.follow_up(node);
        if bad && self.fail_fast && !self.scheduler.is_draining() {
            self.stop_submitting("not begun: the run ends at the first failure")?;
        }
        self.end_followers(task)
    }

    /// Those who would have executed the same share the result of the one who has.
    fn end_followers(&mut self, leader: TaskId) -> Result<()> {
        let node = self.tasks[leader.index()].node;
        let Some(first) = self.finals[node.index()].clone() else {
            return Ok(());
        };
        let name = self.graph().label(node).to_string();
        for (task, keyed) in self.followers.remove(&leader).unwrap_or_default() {
            let known = (first.record).and_then(|it| self.decider.snapshot().record(&it));
            let same = known.is_some_and(|summary| summary.judge == keyed.judge);
            // What one refuses another may take.
            let stands = first.outcome.is_good() || first.outcome == Outcome::Invalid && !same;
            match first.record.filter(|_| stands) {
                Some(record) => {
                    let hit = if same { Hit::Action } else { Hit::Rejudge };
                    self.reuse(task, record, hit, &keyed)?;
                }
                None => {
                    let reason = first.reason.as_deref().unwrap_or("no reason is known");
                    let mut ended = first.clone();
                    ended.reason = Some(format!("the same as {name}: {reason}"));
                    self.end(task, ended)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn take(&mut self, report: Report) -> Result<()> {
        self.outstanding -= usize::from(report.is_last());
        self.executing -= usize::from(matches!(report, Report::Done(..)));
        self.tell_unended()?;
        match report {
            Report::State(task, state) => {
                // Whether it failed is not known yet.
                if state == NodeState::Collecting && !self.fail_fast {
                    self.scheduler.vacate(task);
                }
                self.state(task, state);
            }
            Report::Made(task, early) => self.made(task, *early),
            Report::Done(task, end) => self.done(task, *end)?,
            Report::ServiceUp(service, instance, sender) => {
                self.service_came_up(service, instance, sender);
            }
            Report::ServiceFailed(service, failure) => self.service_failed(service, &failure)?,
            Report::ServiceSilent(service, start) => self.service_fell_silent(service, start)?,
            Report::ServiceEnded(service, start) => self.service_ended(service, start)?,
            Report::ServiceStopped(service, unreleased) => {
                self.service_stopped(service, unreleased)?;
            }
        }
        Ok(())
    }

    pub(super) fn done(&mut self, task: TaskId, end: NodeEnd) -> Result<()> {
        self.doomed.remove(&task);
        self.arrived(task, &end);
        let node = self.tasks[task.index()].node;
        let label = self.graph().label(node);
        if let Some((log, lines)) = &end.tail {
            self.journal.tell(Body::LogTail {
                label: label.to_string(),
                log: log.clone(),
                lines: lines.clone(),
            });
        }
        for (code, note) in &end.notes {
            self.journal.warn(code, note.clone(), Some(label));
        }
        if end.again && self.put_off(task, &end)? {
            return Ok(());
        }
        let ended = final_of(&end);
        if end.again {
            // It was noted as one that a further attempt follows.
            self.retries.keep(task, ended.clone());
        }
        if let Some(summary) = end.summary {
            self.decider.learn(node, summary);
        }
        self.end(task, ended)
    }

    fn state(&mut self, task: TaskId, state: NodeState) {
        self.tell_state(task, state, None);
    }

    pub(super) fn tell_state(&mut self, task: TaskId, state: NodeState, why: Option<String>) {
        let planned = &self.tasks[task.index()];
        let label = self.decider.graph().label(planned.node);
        if state == NodeState::Running {
            // Nothing depends on this note; it says what a killed run was at.
            let noted = self.context.committer.note(NodeUpdate {
                run_id: self.context.home.run_id.clone(),
                label: label.to_string(),
                state: StoredState::Running,
                reason: None,
                // A further attempt keeps the one before it in sight.
                record: self
                    .jobs
                    .get(&task)
                    .and_then(|job| Some(job.previous.as_ref()?.record)),
            });
            if let Err(error) = noted {
                self.journal.warn("store", error.to_string(), Some(label));
            }
        }
        let held = state >= NodeState::Acquiring;
        self.journal.tell_later(Body::NodeState {
            label: label.to_string(),
            state,
            hosts: if held {
                planned.hosts.clone()
            } else {
                Vec::new()
            },
            estimate_s: self.estimates.get(&planned.node).copied(),
            why,
        });
    }
}
