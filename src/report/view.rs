//! A run as its events have told it so far. The same events always give the same view, whether
//! they come from a live run or from a file.

use std::collections::BTreeMap;

use crate::engine::event::{
    Body, Event, NodeFinished, NodeState, Outcome, ServiceState, Sink, Summary,
};

/// A node that has begun and not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    /// Where it is.
    pub state: NodeState,
    /// Since when, Unix ms.
    pub since_unix_ms: u64,
    /// When it got its hosts, Unix ms.
    pub acquired_unix_ms: Option<u64>,
    /// Hosts that it holds.
    pub hosts: Vec<String>,
}

/// How fast the work of known length goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pace {
    /// Whether every length is known.
    known: bool,
    started_unix_ms: u64,
    /// Expected seconds of what has ended.
    done_s: f64,
    /// Expected seconds of what has not begun.
    waiting_s: f64,
    /// Since when what runs does, with its expected seconds.
    running: Vec<(u64, f64)>,
}

impl Pace {
    /// Seconds to the end, from how fast the work of known length went so far. Nothing when a
    /// length is unknown or nothing of known length has ended: it is never made up. What runs
    /// counts for the time it has run, at most for what was expected of it.
    pub fn eta_s(&self, now_unix_ms: u64) -> Option<f64> {
        if !self.known || self.done_s <= 0.0 {
            return None;
        }
        let since = |then: u64| now_unix_ms.saturating_sub(then) as f64 / 1000.0;
        let running = self.running.iter();
        let begun: f64 = running.clone().map(|(at, s)| since(*at).min(*s)).sum();
        let left = self.waiting_s + running.map(|(_, s)| s).sum::<f64>() - begun;
        Some(left * since(self.started_unix_ms) / (self.done_s + begun))
    }
}

/// A service as last told.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// Where it is.
    pub state: ServiceState,
    /// Since when, Unix ms.
    pub since_unix_ms: u64,
}

/// A follow-up that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowupView {
    /// Plan and id.
    pub name: String,
    /// Why, in words.
    pub cause: String,
    /// Number of patterns that it brings in, as far as its budget goes.
    pub patterns: usize,
}

/// Name, first digits of the key, host.
pub type ServiceName = (String, String, String);

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Names the run.
    pub run_id: String,
    /// What the user asked for.
    pub command: String,
    /// Folder of the run.
    pub run_dir: String,
    /// Platform.
    pub platform: String,
    /// Whether its tools are simulated.
    pub simulated: bool,
    /// Number of nodes.
    pub nodes: usize,
    /// When it began, Unix ms.
    pub started_unix_ms: u64,
    /// The latest time that was told, Unix ms.
    pub now_unix_ms: u64,
    /// Counts so far, then those of the summary.
    pub counts: Summary,
    /// Nodes that have ended, in order; reused ones are only counted.
    pub finished: Vec<NodeFinished>,
    /// Missed expectations of reused and new results, by label.
    pub missed: Vec<(String, Vec<String>)>,
    /// Nodes under way, by label.
    pub active: BTreeMap<String, Active>,
    /// Last lines of logs by label: name of the log and lines.
    pub tails: BTreeMap<String, (String, Vec<String>)>,
    /// Services by name, key and host.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// Code and text of warnings.
    pub warnings: Vec<(String, String)>,
    /// Follow-ups that hold, in the order told.
    pub followups: Vec<FollowupView>,
    /// Whether the last event was told.
    pub is_over: bool,
    /// Expected seconds by label, of nodes that have not ended.
    estimates: BTreeMap<String, f64>,
    /// Whether every node that may run has an estimate.
    estimated: bool,
    /// Expected seconds of what has ended by running.
    done_estimate_s: f64,
    /// Simulated results among those that stand for a node.
    pub simulated_results: u64,
}

impl View {
    /// Nodes that have ended.
    pub fn ended(&self) -> u64 {
        let Summary {
            ok,
            reused,
            failed,
            invalid,
            blocked,
            cancelled,
            skipped,
            ..
        } = self.counts;
        ok + reused + failed + invalid + blocked + cancelled + skipped
    }

    /// Seconds to the end, as [`Pace::eta_s`].
    pub fn eta_s(&self, now_unix_ms: u64) -> Option<f64> {
        self.pace().eta_s(now_unix_ms)
    }

    /// What an estimate of the end is made of.
    pub fn pace(&self) -> Pace {
        let mut pace = Pace {
            known: self.estimated,
            started_unix_ms: self.started_unix_ms,
            done_s: self.done_estimate_s,
            ..Pace::default()
        };
        for (label, estimate_s) in &self.estimates {
            let active = self.active.get(label);
            match active.and_then(|active| active.acquired_unix_ms) {
                Some(since) => pace.running.push((since, *estimate_s)),
                None => pace.waiting_s += estimate_s,
            }
        }
        pace
    }

    /// Services that are starting or ready.
    pub fn services_up(&self) -> impl Iterator<Item = (&ServiceName, &ServiceView)> {
        self.services.iter().filter(|(_, service)| {
            matches!(service.state, ServiceState::Starting | ServiceState::Ready)
        })
    }

    fn finish(&mut self, node: &NodeFinished) {
        self.active.remove(&node.label);
        match &node.followup {
            None => self.counts.count(node.outcome),
            Some(_) => self.counts.count_followup(node.outcome),
        }
        let estimate = self.estimates.remove(&node.label);
        if matches!(
            node.outcome,
            Outcome::Ok | Outcome::Failed | Outcome::Invalid
        ) {
            self.done_estimate_s += estimate.unwrap_or(0.0);
        }
        if node.outcome.is_good() && node.simulated {
            self.simulated_results += 1;
        }
        if !node.missed.is_empty() {
            self.missed.push((node.label.clone(), node.missed.clone()));
        }
        if node.outcome != Outcome::Reused {
            self.finished.push(node.clone());
        }
    }
}

impl Sink for View {
    fn event(&mut self, event: &Event) {
        let at = event.at_unix_ms.unwrap_or(self.now_unix_ms);
        self.now_unix_ms = self.now_unix_ms.max(at);
        match &event.body {
            Body::RunStarted {
                run_id,
                platform,
                simulated,
                nodes,
                run_dir,
                command,
            } => {
                self.run_id.clone_from(run_id);
                self.platform.clone_from(platform);
                self.run_dir.clone_from(run_dir);
                self.command.clone_from(command);
                self.simulated = *simulated;
                self.nodes = *nodes;
                self.started_unix_ms = at;
            }
            Body::Planned { estimate_s, .. } => self.estimated = estimate_s.is_some(),
            Body::NodeState {
                label,
                state,
                hosts,
                estimate_s,
                ..
            } => {
                if let Some(estimate) = estimate_s {
                    self.estimates.insert(label.clone(), *estimate);
                }
                let before = self.active.get(label).and_then(|a| a.acquired_unix_ms);
                let acquired = before.or((*state >= NodeState::Acquiring).then_some(at));
                self.active.insert(
                    label.clone(),
                    Active {
                        state: *state,
                        since_unix_ms: at,
                        acquired_unix_ms: acquired,
                        hosts: hosts.clone(),
                    },
                );
            }
            Body::NodeFinished(node) => self.finish(node),
            Body::Retrying(retrying) => {
                self.counts.retries += 1;
                self.active.insert(
                    retrying.label.clone(),
                    Active {
                        state: NodeState::Blocked,
                        since_unix_ms: at,
                        acquired_unix_ms: None,
                        hosts: Vec::new(),
                    },
                );
            }
            Body::Service {
                name,
                key,
                host,
                state,
                ..
            } => {
                if *state == ServiceState::Starting {
                    self.counts.service_starts += 1;
                }
                self.services.insert(
                    (name.clone(), key.clone(), host.clone()),
                    ServiceView {
                        state: *state,
                        since_unix_ms: at,
                    },
                );
            }
            Body::LogTail { label, log, lines } => {
                self.tails
                    .insert(label.clone(), (log.clone(), lines.clone()));
            }
            Body::Warning { code, message, .. } => {
                self.warnings.push((code.clone(), message.clone()));
            }
            Body::Followup {
                followup,
                cause,
                patterns,
                ..
            } => self.followups.push(FollowupView {
                name: followup.clone(),
                cause: cause.clone(),
                patterns: patterns.len(),
            }),
            Body::Ordered { .. } | Body::MirrorAsked { .. } | Body::MirrorSent { .. } => {}
            Body::Summary(summary) => {
                self.counts = summary.clone();
                self.is_over = true;
            }
        }
    }
}
