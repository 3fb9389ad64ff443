//! One line for each thing that ends, for logs and pipes. Nothing is ever taken back, so every
//! line is worth reading by itself.

use std::io::Write;

use super::Quiet;
use super::style::Style;
use super::text::{count, milliseconds, seconds};
use super::view::View;
use crate::engine::event::{Body, Event, NodeFinished, Outcome, Retrying, ServiceState, Sink};

/// See the module.
pub struct Plain<W: Write> {
    out: Quiet<W>,
    style: Style,
    view: View,
}

impl<W: Write> Plain<W> {
    /// Writes to `out`.
    pub fn new(out: W, style: Style) -> Self {
        Self {
            out: Quiet::new(out),
            style,
            view: View::default(),
        }
    }
}

impl<W: Write + Send> Sink for Plain<W> {
    fn event(&mut self, event: &Event) {
        self.view.event(event);
        if let Some(line) = line(&event.body, &self.view, self.style) {
            self.out.text(&line);
            self.out.text("\n");
        }
    }

    fn flush(&mut self) {
        self.out.flush();
    }

    fn broken(&self) -> Option<&std::io::Error> {
        self.out.error()
    }
}

/// The line for an event, when it is worth one. The view has taken the event in.
pub fn line(body: &Body, view: &View, style: Style) -> Option<String> {
    match body {
        Body::Planned {
            run,
            may_run,
            reuse,
            estimate_s,
        } => planned(
            *run as u64,
            *may_run as u64,
            *reuse as u64,
            *estimate_s,
            view,
        ),
        // The last block says of all together what was not needed.
        Body::NodeFinished(node) if !matches!(node.outcome, Outcome::Reused | Outcome::Skipped) => {
            Some(finished(node, view, style))
        }
        Body::Ordered { plan, seed, nodes } => Some(format!(
            "order of //{plan}: {} drawn with seed {seed}",
            count(*nodes as u64, "node")
        )),
        Body::Retrying(spoiled) => Some(retrying(spoiled, view, style)),
        Body::Service {
            host,
            state: ServiceState::Failed,
            reason,
            ..
        } => {
            let reason = reason.as_deref().unwrap_or("failed");
            let what = style.bad("service failed");
            Some(format!("{what} on {host}: {reason}"))
        }
        Body::Followup {
            followup,
            cause,
            patterns,
            ..
        } => Some(format!(
            "{} {followup} (exploratory): {}, because {cause}",
            style.warn("follow-up"),
            count(patterns.len() as u64, "pattern")
        )),
        Body::MirrorAsked { place, found, .. } if *found > 0 => {
            let found = count(*found as u64, "result");
            Some(format!("{found} taken from the mirror {place}"))
        }
        Body::MirrorSent { place, sent, .. } if *sent > 0 => Some(format!(
            "{} sent to the mirror {place}",
            count(*sent, "result")
        )),
        Body::Warning { message, .. } => Some(format!("{} {message}", style.warn("warning:"))),
        _ => None,
    }
}

fn planned(
    run: u64,
    may_run: u64,
    reuse: u64,
    estimate_s: Option<f64>,
    view: &View,
) -> Option<String> {
    if run + may_run == 0 {
        return None;
    }
    let mut parts = vec![format!("{run} to run")];
    if may_run > 0 {
        parts.push(format!("{may_run} that may run"));
    }
    if reuse > 0 {
        parts.push(format!("{reuse} at hand"));
    }
    let simulated = if view.simulated { " (simulated)" } else { "" };
    let estimate = estimate_s.map(|s| format!(", about {} of work", seconds(s)));
    Some(format!(
        "{} on {}{simulated}: {}{}",
        count(view.nodes as u64, "node"),
        view.platform,
        parts.join(", "),
        estimate.unwrap_or_default()
    ))
}

fn retrying(spoiled: &Retrying, view: &View, style: Style) -> String {
    let width = 2 * view.nodes.to_string().len() + 1;
    let Retrying {
        label,
        attempt,
        attempts,
        class,
        reason,
        delay_ms,
        ..
    } = spoiled;
    let what = style.warn("retrying ");
    let class = style.dim(&format!("({class})"));
    format!(
        "[{:>width$}] {what} {label}  attempt {attempt} of {attempts}: {reason} {class}, again in {}",
        "",
        milliseconds(*delay_ms)
    )
}

fn finished(node: &NodeFinished, view: &View, style: Style) -> String {
    let width = view.nodes.to_string().len();
    let outcome = style.outcome(node.outcome, &format!("{:<9}", node.outcome));
    let mut line = match &node.followup {
        None => format!(
            "[{:>width$}/{}] {outcome} {}",
            view.ended(),
            view.nodes,
            node.label
        ),
        Some(_) => format!("[{:>1$}] {outcome} {2}", "+", 2 * width + 1, node.label),
    };
    if let Some(ms) = node.duration_ms {
        line.push_str(&style.dim(&format!("  {}", milliseconds(ms))));
    }
    if let (Some(attempt @ 2..), Some(of)) = (node.attempt, node.attempts) {
        line.push_str(&format!("  attempt {attempt} of {of}"));
    }
    if let Some(reason) = &node.reason {
        line.push_str(&format!("  {reason}"));
    }
    if let Some(class) = &node.class {
        line.push_str(&style.dim(&format!(" ({class})")));
    }
    if let Some(followup) = &node.followup {
        line.push_str(&style.dim(&format!("  exploratory, by {followup}")));
    }
    for missed in &node.missed {
        line.push_str(&format!("  {} {missed}", style.warn("missed:")));
    }
    line
}
