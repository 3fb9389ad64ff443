//! The console of a terminal: a bar over all nodes, a line for each node under way with where it
//! runs, a line of services, and above them what has ended. It draws from the view alone.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plain::line;
use super::style::Style;
use super::text::{count, cut, seconds};
use super::view::View;
use crate::engine::event::{Event, NodeState, ServiceState, Sink};

/// Lines of nodes under way; further ones are counted.
const SLOTS: usize = 12;

/// See the module.
pub struct Live {
    bars: MultiProgress,
    total: ProgressBar,
    services: ProgressBar,
    slots: BTreeMap<String, ProgressBar>,
    style: Style,
    view: View,
    width: usize,
}

impl Live {
    /// Draws to the target, which is `width` characters wide.
    pub fn new(target: ProgressDrawTarget, width: usize, style: Style) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        let total = bars.add(ProgressBar::new(0));
        total.set_style(template("{bar:30} {pos}/{len} {elapsed} {msg}"));
        total.enable_steady_tick(Duration::from_millis(200));
        let services = bars.add(ProgressBar::new_spinner());
        services.set_style(template("{msg}"));
        Self {
            bars,
            total,
            services,
            slots: BTreeMap::new(),
            style,
            view: View::default(),
            width: width.max(40),
        }
    }

    /// The run as told so far.
    pub fn view(&self) -> &View {
        &self.view
    }

    fn draw(&mut self) {
        self.total.set_length(self.view.nodes as u64);
        self.total.set_position(self.view.ended());
        let busy = self.view.active.values();
        let busy = busy.filter(|a| a.state >= NodeState::Acquiring).count() as u64;
        let mut message = format!("{busy} running");
        let bad = self.view.counts.failed + self.view.counts.invalid;
        if bad > 0 {
            message.push_str(&self.style.bad(&format!(", {bad} failed")));
        }
        if let Some(eta) = self.view.eta_s(self.view.now_unix_ms) {
            message.push_str(&format!(", about {} left", seconds(eta)));
        }
        self.total.set_message(message);
        self.services
            .set_message(cut(&self.services_line(), self.width));
        self.draw_slots();
    }

    fn services_line(&self) -> String {
        let names = self
            .view
            .services_up()
            .map(|((name, _, host), service)| match service.state {
                ServiceState::Starting => format!("{name}@{host} (starting)"),
                _ => format!("{name}@{host}"),
            });
        let names: Vec<String> = names.collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(
                "{}: {}",
                count(names.len() as u64, "service"),
                names.join(", ")
            ),
        }
    }

    fn draw_slots(&mut self) {
        let view = &self.view;
        self.slots.retain(|label, bar| {
            let stays = view
                .active
                .get(label)
                .is_some_and(|a| a.state >= NodeState::Acquiring);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (label, active) in &view.active {
            if active.state < NodeState::Acquiring {
                continue;
            }
            if !self.slots.contains_key(label) {
                if self.slots.len() >= SLOTS {
                    continue;
                }
                let bar = self
                    .bars
                    .insert_before(&self.services, ProgressBar::new_spinner());
                bar.set_style(template("{spinner} {elapsed:>4} {msg}"));
                bar.enable_steady_tick(Duration::from_millis(200));
                self.slots.insert(label.clone(), bar);
            }
            let place = match active.hosts.is_empty() {
                true => String::new(),
                false => format!(" on {}", active.hosts.join(", ")),
            };
            let text = format!("{label} {}{place}", word(active.state));
            if let Some(bar) = self.slots.get(label) {
                bar.set_message(cut(&text, self.width - 8));
            }
        }
    }
}

fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::Blocked => "waits",
        NodeState::Ready => "is ready",
        NodeState::Acquiring => "brings up services",
        NodeState::Staging => "is staged",
        NodeState::Running => "runs",
        NodeState::Collecting => "is collected",
    }
}

fn template(text: &str) -> ProgressStyle {
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Sink for Live {
    fn event(&mut self, event: &Event) {
        self.view.event(event);
        if let Some(line) = line(&event.body, &self.view, self.style) {
            // A terminal that is gone stops no run.
            let _ = self.bars.println(line);
        }
        if self.view.is_over {
            self.total.finish_and_clear();
            self.services.finish_and_clear();
            let _ = self.bars.clear();
        } else {
            self.draw();
        }
    }
}
