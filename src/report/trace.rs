//! A run as a Chrome trace (`chrome://tracing`, Perfetto): a lane for every host, spans for nodes
//! and their phases, lanes for services. Spans of one lane never overlap but by nesting.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::view::ServiceName;
use crate::engine::event::{Body, Event, NodeState, ServiceState};

const NODES: u32 = 1;
const SERVICES: u32 = 2;

/// The trace of a run's events.
pub fn trace<'e>(events: impl IntoIterator<Item = &'e Event>) -> Value {
    let mut trace = Trace::default();
    for event in events {
        trace.take(event);
    }
    trace.finish()
}

#[derive(Default)]
struct Trace {
    spans: Vec<Value>,
    lanes: Lanes,
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<ServiceName, Phase>,
    last_us: u64,
}

/// Since when, on which lane, in which phase, since when in it (microseconds).
type Phase = (u64, u32, &'static str, u64);

struct Node {
    began_us: u64,
    lane: u32,
    phase: Option<(NodeState, u64)>,
}

/// Threads of the trace. A lane of a group is taken by one span at a time.
#[derive(Default)]
struct Lanes {
    groups: BTreeMap<(u32, String), Vec<(u32, bool)>>,
    next: u32,
}

impl Lanes {
    fn take(&mut self, process: u32, name: &str) -> u32 {
        let lanes = self.groups.entry((process, name.to_owned())).or_default();
        if let Some(free) = lanes.iter_mut().find(|(_, taken)| !taken) {
            free.1 = true;
            return free.0;
        }
        self.next += 1;
        lanes.push((self.next, true));
        self.next
    }

    fn give(&mut self, lane: u32) {
        for (id, taken) in self.groups.values_mut().flatten() {
            if *id == lane {
                *taken = false;
            }
        }
    }
}

impl Trace {
    fn take(&mut self, event: &Event) {
        let at = event.at_unix_ms.map_or(self.last_us, |ms| ms * 1000);
        self.last_us = self.last_us.max(at);
        match &event.body {
            Body::NodeState {
                label,
                state,
                hosts,
                ..
            } if *state >= NodeState::Acquiring => self.node_state(label, *state, hosts, at),
            Body::NodeFinished(node) => {
                let args = json!({ "outcome": node.outcome, "reason": node.reason });
                self.end_node(&node.label, at, &args);
            }
            Body::Retrying(spoiled) => {
                let args = json!({
                    "outcome": "retrying", "reason": spoiled.reason,
                    "attempt": spoiled.attempt, "class": spoiled.class,
                });
                self.end_node(&spoiled.label, at, &args);
            }
            Body::Service {
                name,
                key,
                host,
                state,
                ..
            } => self.service((name, key, host), *state, at),
            _ => {}
        }
    }

    fn node_state(&mut self, label: &str, state: NodeState, hosts: &[String], at: u64) {
        if !self.nodes.contains_key(label) {
            let lane = hosts.first().map_or("doe", String::as_str);
            let node = Node {
                began_us: at,
                lane: self.lanes.take(NODES, lane),
                phase: None,
            };
            self.nodes.insert(label.to_owned(), node);
        }
        self.end_phase(label, at);
        if let Some(node) = self.nodes.get_mut(label) {
            node.phase = Some((state, at));
        }
    }

    fn end_phase(&mut self, label: &str, at: u64) {
        let Some(node) = self.nodes.get_mut(label) else {
            return;
        };
        if let Some((state, since)) = node.phase.take() {
            let lane = node.lane;
            let name = json!(state);
            self.span(NODES, lane, name, since, at, &json!({}));
        }
    }

    fn end_node(&mut self, label: &str, at: u64, args: &Value) {
        self.end_phase(label, at);
        if let Some(node) = self.nodes.remove(label) {
            self.span(NODES, node.lane, json!(label), node.began_us, at, args);
            self.lanes.give(node.lane);
        }
    }

    fn service(&mut self, id: (&String, &String, &String), state: ServiceState, at: u64) {
        let (name, key, host) = id;
        let full = (name.clone(), key.clone(), host.clone());
        let word = match state {
            ServiceState::Starting => "starting",
            ServiceState::Ready => "ready",
            ServiceState::Stopped | ServiceState::Failed => "",
        };
        let before = self.services.remove(&full);
        let (began, lane) = match &before {
            Some((began, lane, ..)) => (*began, *lane),
            None if word.is_empty() => return,
            None => (at, self.lanes.take(SERVICES, host)),
        };
        if let Some((_, _, phase, since)) = before {
            self.span(SERVICES, lane, json!(phase), since, at, &json!({}));
        }
        if word.is_empty() {
            let args = json!({ "key": key, "end": state });
            self.span(SERVICES, lane, json!(name), began, at, &args);
            self.lanes.give(lane);
        } else {
            self.services.insert(full, (began, lane, word, at));
        }
    }

    fn span(&mut self, process: u32, lane: u32, name: Value, from: u64, to: u64, args: &Value) {
        self.spans.push(json!({
            "name": name, "ph": "X", "pid": process, "tid": lane,
            "ts": from, "dur": to.saturating_sub(from), "args": args,
        }));
    }

    fn finish(mut self) -> Value {
        let at = self.last_us;
        let open: Vec<String> = self.nodes.keys().cloned().collect();
        for label in open {
            self.end_node(&label, at, &json!({ "outcome": null }));
        }
        let open: Vec<_> = self.services.keys().cloned().collect();
        for (name, key, host) in open {
            self.service((&name, &key, &host), ServiceState::Stopped, at);
        }
        let mut events = vec![
            json!({"name": "process_name", "ph": "M", "pid": NODES, "args": {"name": "nodes"}}),
            json!({"name": "process_name", "ph": "M", "pid": SERVICES, "args": {"name": "services"}}),
        ];
        for ((process, name), lanes) in &self.lanes.groups {
            for (lane, _) in lanes {
                events.push(json!({
                    "name": "thread_name", "ph": "M", "pid": process, "tid": lane,
                    "args": {"name": name},
                }));
            }
        }
        events.extend(self.spans);
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }
}
