//! The console of a terminal: a bar over all nodes, a line for each node under way with where it
//! runs, a line of services, and above them what has ended. It draws from the view alone; times go
//! on between events.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::plain::line;
use super::style::Style;
use super::text::{count, cut, seconds};
use super::view::{Pace, View};
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
    /// With the time of the event that it is of, and when that came.
    pace: Arc<Mutex<(Pace, u64, Instant)>>,
    width: usize,
}

impl Live {
    /// Draws to the target, which is `width` characters wide.
    pub fn new(target: ProgressDrawTarget, width: usize, style: Style) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        let total = bars.add(ProgressBar::new(0));
        let pace = Arc::new(Mutex::new((Pace::default(), 0_u64, Instant::now())));
        let paced = pace.clone();
        let left = move |_: &ProgressState, to: &mut dyn Write| {
            let (pace, at, came) = &*paced.lock().unwrap_or_else(PoisonError::into_inner);
            let now = at.saturating_add(came.elapsed().as_millis() as u64);
            if let Some(eta) = pace.eta_s(now) {
                let _ = write!(to, ", about {} left", seconds(eta));
            }
        };
        let whole = template("{bar:30} {pos}/{len} {elapsed} {msg}{left}");
        total.set_style(whole.with_key("left", left));
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
            pace,
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
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) =
            (self.view.pace(), self.view.now_unix_ms, Instant::now());
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;
    use crate::engine::event::{Body, NodeFinished, Outcome, Summary};

    /// A terminal that keeps what is written to it.
    #[derive(Debug, Clone, Default)]
    struct Paper(Arc<Mutex<String>>);

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(&format!("{text}\n"));
            Ok(())
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_runs_where_is_drawn_and_what_ended_is_told() {
        let paper = Paper::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(paper.clone()), 255);
        let mut live = Live::new(target, 100, Style::PLAIN);
        let label = "//phase2:p2-efa-1k-c1".parse().unwrap();
        let drawn = |paper: &Paper| paper.0.lock().unwrap().clone();
        live.event(&Event::new(
            0,
            Body::RunStarted {
                run_id: "r".into(),
                platform: "sim".into(),
                simulated: true,
                nodes: 2,
                run_dir: "d".into(),
                command: "c".into(),
            },
        ));
        live.event(&Event::new(
            1,
            Body::Service {
                name: "decode".into(),
                key: "k".into(),
                host: "node2".into(),
                state: ServiceState::Starting,
                starts: 1,
                reason: None,
            },
        ));
        live.event(&Event::new(
            2,
            Body::NodeState {
                label: "//phase2:p2-efa-1k-c1".into(),
                state: NodeState::Running,
                hosts: vec!["node1".into(), "node2".into()],
                estimate_s: None,
                why: None,
            },
        ));
        live.total.tick();
        // The bars draw at most some hundred times a second.
        for _ in 0..1000 {
            if drawn(&paper).contains("node1, node2") {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            live.total.tick();
        }
        let text = drawn(&paper);
        assert!(
            text.contains("//phase2:p2-efa-1k-c1 runs on node1, node2"),
            "{text}"
        );
        assert!(
            text.contains("1 service: decode@node2 (starting)"),
            "{text}"
        );
        live.event(&Event::new(
            3,
            Body::NodeFinished(NodeFinished::new(&label, Outcome::Ok)),
        ));
        live.event(&Event::new(4, Body::Summary(Summary::default())));
        assert!(drawn(&paper).contains("[1/2] ok        //phase2:p2-efa-1k-c1"));
        assert!(live.slots.is_empty());
    }
}
