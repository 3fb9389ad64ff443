//! What keeps a node that is decided to run from being begun: limits on hours and cost, and the
//! canary of its services. A limit is never crossed by what was expected: whatever is begun has its
//! time set aside until it has ended and counts as what it took; the time that its services need to
//! come up is that of the first that begins. One of which nobody knows how long
//! it takes is begun only while nothing else is under way, so that it alone can cross a limit.

pub(super) mod drive;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use super::schedule::{ServiceId, TaskId};

/// What the user set.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Caps {
    /// Seconds of work, and seconds since the begin.
    pub max_s: Option<f64>,
    /// In the currency of the platform.
    pub max_cost: Option<f64>,
    /// Whether the first pattern of each set of services must have succeeded before others of it
    /// begin.
    pub canary: bool,
}

/// A node as far as limits go.
#[derive(Debug, Clone, Default)]
pub(super) struct Asks {
    /// Seconds that it is expected to take once its services are up, when anybody knows.
    pub seconds: Option<f64>,
    /// Seconds that those of its services that are down are expected to take to come up.
    pub starts: Vec<(ServiceId, f64)>,
    /// What an hour of its hosts costs.
    pub per_hour: f64,
    /// Its services.
    pub services: Vec<ServiceId>,
}

/// What is to be done with a node that asked.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It begins.
    Begin(TaskId),
    /// It is not begun at all, for this reason.
    Refuse(TaskId, String),
    /// It cannot begin, since its canary failed.
    Block(TaskId, TaskId),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    caps: Caps,
    currency: String,
    started: Instant,
    waiting: BTreeMap<TaskId, Asks>,
    begun: HashMap<TaskId, Asks>,
    spent_s: f64,
    spent_cost: f64,
    canaries: HashMap<Vec<ServiceId>, Canary>,
    /// Services whose start is set aside or spent.
    charged: BTreeSet<ServiceId>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Canary {
    Sent(TaskId),
    Back,
    Dead(TaskId),
}

impl Gate {
    /// A gate of a run that begins now.
    pub(super) fn new(caps: Caps, currency: &str) -> Self {
        Self {
            caps,
            currency: currency.to_owned(),
            started: Instant::now(),
            waiting: BTreeMap::new(),
            begun: HashMap::new(),
            spent_s: 0.0,
            spent_cost: 0.0,
            canaries: HashMap::new(),
            charged: BTreeSet::new(),
        }
    }

    /// Whether it never keeps anything.
    pub(super) fn is_open(&self) -> bool {
        self.caps == Caps::default()
    }

    /// A node is decided to run.
    pub(super) fn ask(&mut self, task: TaskId, asks: Asks) {
        self.waiting.insert(task, asks);
    }

    /// A node was begun without asking.
    pub(super) fn pass(&mut self, task: TaskId, asks: Asks) {
        self.begun.insert(task, asks);
    }

    /// A node is tried again: what it took counts, and it asks once more.
    pub(super) fn put_off(&mut self, task: TaskId, seconds: f64) {
        if let Some(asks) = self.begun.remove(&task) {
            self.spent_s += seconds;
            self.spent_cost += asks.per_hour * seconds / 3600.0;
        }
    }

    /// A node has ended; nothing when it had not asked.
    pub(super) fn ended(&mut self, task: TaskId, seconds: f64, good: bool) {
        self.waiting.remove(&task);
        // Also of one that ends while it is put off: others wait for it, whether it runs or not.
        for canary in self.canaries.values_mut() {
            if *canary == Canary::Sent(task) {
                *canary = match good {
                    true => Canary::Back,
                    false => Canary::Dead(task),
                };
            }
        }
        if let Some(asks) = self.begun.remove(&task) {
            self.spent_s += seconds;
            self.spent_cost += asks.per_hour * seconds / 3600.0;
        }
    }

    /// Who begins now, and who never does. To be asked again after every end.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut order: Vec<TaskId> = self.waiting.keys().copied().collect();
        if self.caps.canary {
            // The cheapest of each set is its canary, in the order of the files among equals.
            let seconds = |task: &TaskId| self.waiting[task].seconds.unwrap_or(f64::INFINITY);
            order.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        }
        for task in order {
            let mut asks = self.waiting[&task].clone();
            let starts = asks.starts.iter();
            let starts = starts.filter(|(service, _)| !self.charged.contains(service));
            let start_s = starts.map(|(_, seconds)| *seconds).fold(0.0, f64::max);
            asks.seconds = asks.seconds.map(|seconds| seconds + start_s);
            let canary = match self.caps.canary && !asks.services.is_empty() {
                true => self.canaries.get(&asks.services).copied(),
                false => Some(Canary::Back),
            };
            match canary {
                // One that is tried again is still the canary.
                Some(Canary::Sent(canary)) if canary != task => continue,
                Some(Canary::Dead(canary)) => {
                    self.waiting.remove(&task);
                    answers.push(Answer::Block(task, canary));
                    continue;
                }
                Some(Canary::Sent(_) | Canary::Back) | None => {}
            }
            match self.judge(&asks) {
                Judged::Begins => {
                    if canary.is_none() {
                        self.canaries
                            .insert(asks.services.clone(), Canary::Sent(task));
                    }
                    self.waiting.remove(&task);
                    self.charged.extend(&asks.services);
                    self.begun.insert(task, asks);
                    answers.push(Answer::Begin(task));
                }
                Judged::Waits => {}
                Judged::Never(why) => {
                    self.waiting.remove(&task);
                    answers.push(Answer::Refuse(task, why));
                }
            }
        }
        answers
    }

    fn judge(&self, asks: &Asks) -> Judged {
        let alone = self.begun.is_empty();
        let elapsed_s = self.started.elapsed().as_secs_f64();
        let own_s = asks.seconds.unwrap_or(0.0);
        let mut known = asks.seconds.is_some();
        let (mut aside_s, mut aside_cost) = (0.0, 0.0);
        for begun in self.begun.values() {
            known &= begun.seconds.is_some();
            let seconds = begun.seconds.unwrap_or(0.0);
            aside_s += seconds;
            aside_cost += begun.per_hour * seconds / 3600.0;
        }
        let own_cost = asks.per_hour * own_s / 3600.0;
        let limits = [
            (self.caps.max_s, self.spent_s, aside_s, own_s),
            (self.caps.max_s, elapsed_s, 0.0, own_s),
            (self.caps.max_cost, self.spent_cost, aside_cost, own_cost),
        ];
        let mut waits = false;
        for (at, (limit, spent, aside, own)) in limits.into_iter().enumerate() {
            let Some(limit) = limit else { continue };
            // What nobody knows needs at least something to be left.
            let crosses = |before: f64| match asks.seconds {
                Some(_) => before + own > limit,
                None => before >= limit,
            };
            if crosses(spent) {
                return Judged::Never(self.why(at, limit, spent, asks.seconds.map(|_| own)));
            }
            waits |= crosses(spent + aside) || (!known && !alone);
        }
        match waits {
            true => Judged::Waits,
            false => Judged::Begins,
        }
    }

    fn why(&self, at: usize, limit: f64, spent: f64, own: Option<f64>) -> String {
        let text = |amount: f64| match at {
            2 => format!("{amount:.2} {}", self.currency),
            _ => crate::engine::ready::human_s(amount.round()),
        };
        let (flag, spent_word) = match at {
            0 => ("--max-hours", "worked"),
            1 => ("--max-hours", "passed"),
            _ => ("--max-cost", "spent"),
        };
        let own = own.map_or_else(
            || "how much it takes is not known".to_owned(),
            |own| format!("it is expected to take {}", text(own)),
        );
        format!(
            "not begun: {flag} ({}) would be crossed: {} {spent_word}, {own}",
            text(limit),
            text(spent)
        )
    }
}

enum Judged {
    Begins,
    /// It may begin when something else has ended.
    Waits,
    Never(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(seconds: Option<f64>, per_hour: f64, service: Option<u32>) -> Asks {
        Asks {
            seconds,
            starts: Vec::new(),
            per_hour,
            services: service.map(ServiceId).into_iter().collect(),
        }
    }

    fn begun(gate: &mut Gate) -> Vec<u32> {
        let answers = gate.answers().into_iter();
        answers
            .map(|answer| match answer {
                Answer::Begin(task) => task.0,
                Answer::Refuse(task, _) => 100 + task.0,
                Answer::Block(task, _) => 200 + task.0,
            })
            .collect()
    }

    #[test]
    fn a_limit_is_not_crossed_by_what_is_expected() {
        let caps = Caps {
            max_s: Some(100.0),
            ..Caps::default()
        };
        let mut gate = Gate::new(caps, "");
        for (task, seconds) in [(0, 60.0), (1, 50.0), (2, 30.0), (3, 120.0)] {
            gate.ask(TaskId(task), asks(Some(seconds), 0.0, None));
        }
        // 60 and 30 fit together, 50 waits for what they really take, 120 never fits.
        assert_eq!(begun(&mut gate), [0, 2, 103]);
        gate.ended(TaskId(0), 40.0, true);
        assert_eq!(begun(&mut gate), [] as [u32; 0]);
        gate.ended(TaskId(2), 10.0, true);
        assert_eq!(begun(&mut gate), [1]);
        gate.ended(TaskId(1), 50.0, true);
        gate.ask(TaskId(4), asks(Some(0.1), 0.0, None));
        gate.ask(TaskId(5), asks(None, 0.0, None));
        assert_eq!(begun(&mut gate), [104, 105]);
    }

    #[test]
    fn what_nobody_knows_runs_alone_while_something_is_left() {
        let caps = Caps {
            max_cost: Some(10.0),
            ..Caps::default()
        };
        let mut gate = Gate::new(caps, "EUR");
        gate.ask(TaskId(0), asks(None, 3600.0, None));
        gate.ask(TaskId(1), asks(None, 3600.0, None));
        gate.ask(TaskId(2), asks(Some(4.0), 3600.0, None));
        assert_eq!(begun(&mut gate), [0]);
        gate.ended(TaskId(0), 5.0, true);
        assert_eq!(begun(&mut gate), [1]);
        gate.ended(TaskId(1), 2.0, true);
        let refused = gate.answers();
        assert_eq!(
            refused,
            [Answer::Refuse(
                TaskId(2),
                "not begun: --max-cost (10.00 EUR) would be crossed: 7.00 EUR spent, it is \
                 expected to take 4.00 EUR"
                    .into()
            )]
        );
    }

    #[test]
    fn the_first_that_begins_pays_for_its_services() {
        let caps = Caps {
            max_s: Some(100.0),
            ..Caps::default()
        };
        let mut gate = Gate::new(caps, "");
        let with_start = |seconds, start| Asks {
            starts: vec![(ServiceId(0), start)],
            ..asks(Some(seconds), 0.0, Some(0))
        };
        gate.ask(TaskId(0), with_start(50.0, 60.0));
        gate.ask(TaskId(1), with_start(10.0, 60.0));
        gate.ask(TaskId(2), with_start(30.0, 60.0));
        // 70 are set aside for the second, which leaves the others theirs alone.
        assert_eq!(begun(&mut gate), [100, 1, 2]);
    }

    #[test]
    fn one_canary_for_each_set_of_services() {
        let caps = Caps {
            canary: true,
            ..Caps::default()
        };
        let mut gate = Gate::new(caps, "");
        for (task, seconds, service) in [
            (0, Some(9.0), Some(0)),
            (1, Some(5.0), Some(0)),
            (2, None, Some(1)),
            (3, None, Some(1)),
            (4, None, None),
        ] {
            gate.ask(TaskId(task), asks(seconds, 0.0, service));
        }
        assert_eq!(begun(&mut gate), [1, 2, 4]);
        assert_eq!(begun(&mut gate), [] as [u32; 0]);
        gate.ended(TaskId(1), 5.0, true);
        assert_eq!(begun(&mut gate), [0]);
        gate.ended(TaskId(2), 5.0, false);
        assert_eq!(begun(&mut gate), [203]);
        assert!(!gate.is_open() && Gate::new(Caps::default(), "").is_open());
    }

    #[test]
    fn a_canary_that_ends_while_it_is_put_off_lets_nobody_wait() {
        let caps = Caps {
            canary: true,
            ..Caps::default()
        };
        let mut gate = Gate::new(caps, "");
        for task in [0, 1] {
            gate.ask(TaskId(task), asks(Some(1.0), 0.0, Some(0)));
        }
        assert_eq!(begun(&mut gate), [0]);
        gate.put_off(TaskId(0), 2.0);
        assert_eq!(begun(&mut gate), [] as [u32; 0]);
        gate.ended(TaskId(0), 0.0, false);
        assert_eq!(begun(&mut gate), [201]);
    }
}
