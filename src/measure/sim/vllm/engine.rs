//! The engine's schedule in virtual time: continuous batching with chunked prefill, as vLLM's V1
//! scheduler does it. Pure: it knows no clock and no thread. Tokens of the KV cache in use never
//! exceed the capacity, each job emits exactly its outputs unless it is aborted, and time only
//! goes forward.

use std::collections::{HashMap, HashSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::link::FluidLink;
use super::model::Cost;

/// What bounds a step and the cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Tokens of one step.
    pub(super) batched_tokens: u64,
    /// Sequences that run at once.
    pub(super) seqs: usize,
    /// Whether a prompt may be prefilled in parts.
    pub(super) chunked: bool,
    /// Tokens of one cache block.
    pub(super) block: u64,
    /// Tokens that the KV cache holds.
    pub(super) capacity: u64,
}

/// KV cache that comes from another server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    pub(super) bytes: f64,
    /// Before the first byte flows, in seconds.
    pub(super) setup: f64,
}

/// KV cache that is read from a folder, or written to it, in the step that takes the job in:
/// nothing else is computed meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stored {
    /// Tokens that are read; none when the cache is written.
    pub(super) tokens: u64,
    /// How long it takes.
    pub(super) seconds: f64,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: u64,
    /// Tokens of the prompt, at least 1.
    pub(super) prompt: u64,
    /// Tokens that will be put out, at least 1.
    pub(super) outputs: u64,
    /// Tokens that may be put out; this many are reserved.
    pub(super) most_outputs: u64,
    /// Chained hashes of the prompt's full blocks; empty without prefix caching.
    pub(super) blocks: Vec<u64>,
    pub(super) fetch: Option<Fetch>,
    pub(super) stored: Option<Stored>,
    /// Keep the KV cache when done, until it is released.
    pub(super) hold: bool,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Event {
    /// A token came out.
    Token { id: u64, at: f64, last: bool },
    /// The KV cache arrived from the other server.
    Fetched { id: u64, at: f64 },
}

/// Sums since the start, for `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) computed_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) fetched_tokens: u64,
    pub(super) queried_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) fetched_bytes: f64,
    pub(super) fetches: u64,
    pub(super) steps: u64,
    pub(super) finished: u64,
    pub(super) aborted: u64,
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) used_tokens: u64,
}

#[derive(Debug)]
struct Seq {
    job: Job,
    /// Tokens of the prompt whose KV is there.
    computed: u64,
    emitted: u64,
    aborted: bool,
}

#[derive(Debug)]
struct Step {
    ends: f64,
    /// Tokens that each of `running` gets in this step, by position.
    work: Vec<u64>,
}

/// The schedule.
pub(super) struct Engine {
    limits: Limits,
    cost: Cost,
    noise: ChaCha8Rng,
    link: FluidLink,
    waiting: VecDeque<Job>,
    fetching: HashMap<u64, Job>,
    running: Vec<Seq>,
    held: HashMap<u64, u64>,
    step: Option<Step>,
    prefixes: Prefixes,
    counters: Counters,
}

impl Engine {
    pub(super) fn new(limits: Limits, cost: Cost, link: FluidLink, seed: u64) -> Self {
        Self {
            limits,
            cost,
            noise: ChaCha8Rng::seed_from_u64(seed),
            link,
            waiting: VecDeque::new(),
            fetching: HashMap::new(),
            running: Vec::new(),
            held: HashMap::new(),
            step: None,
            prefixes: Prefixes::new((limits.capacity / limits.block) as usize),
            counters: Counters::default(),
        }
    }

    /// Takes a job in; it is looked at when time next advances.
    pub(super) fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Forgets a job, wherever it is.
    pub(super) fn abort(&mut self, id: u64) {
        let before = self.waiting.len();
        self.waiting.retain(|job| job.id != id);
        let mut found = self.waiting.len() < before;
        if let Some(job) = self.fetching.remove(&id) {
            self.link.cancel(id);
            self.counters.used_tokens -= self.reserved(&job);
            found = true;
        }
        // A running step still refers to it by position; it leaves when the step ends.
        for seq in self.running.iter_mut().filter(|s| s.job.id == id) {
            found |= !std::mem::replace(&mut seq.aborted, true);
        }
        if self.step.is_none() {
            self.sweep();
        }
        self.counters.aborted += u64::from(found);
    }

    /// Frees what a finished job held.
    pub(super) fn release(&mut self, id: u64) {
        if let Some(tokens) = self.held.remove(&id) {
            self.counters.used_tokens -= tokens;
        }
    }

    /// When something happens next, if nothing is submitted before.
    pub(super) fn next(&self) -> Option<f64> {
        let step = self.step.as_ref().map(|s| s.ends);
        match (step, self.link.next()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether a step is being computed; then nothing that is submitted matters before its end.
    pub(super) fn is_stepping(&self) -> bool {
        self.step.is_some()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            running: self.running.len(),
            waiting: self.waiting.len() + self.fetching.len(),
            ..self.counters
        }
    }

    /// Moves time to `now`, appending all that happens until then in order.
    pub(super) fn advance(&mut self, now: f64, events: &mut Vec<Event>) {
        while let Some(at) = self.next().filter(|at| *at <= now) {
            for id in self.link.advance(at) {
                self.fetched(id, at, events);
            }
            if self.step.as_ref().is_some_and(|s| s.ends <= at) {
                self.end_step(at, events);
            }
            self.begin_step(at);
        }
        self.link.advance(now);
        self.begin_step(now);
    }

    fn fetched(&mut self, id: u64, at: f64, events: &mut Vec<Event>) {
        let Some(job) = self.fetching.remove(&id) else {
            return;
        };
        self.counters.fetches += 1;
        self.counters.fetched_bytes += job.fetch.map_or(0.0, |f| f.bytes);
        self.counters.fetched_tokens += job.prompt - 1;
        events.push(Event::Fetched { id, at });
        // The last token of the prompt is computed here, as its output is the first token.
        self.running.push(Seq {
            computed: job.prompt - 1,
            job,
            emitted: 0,
            aborted: false,
        });
        if let Some(step) = &mut self.step {
            step.work.push(0); // it joins the next step
        }
    }

    fn end_step(&mut self, at: f64, events: &mut Vec<Event>) {
        let Some(step) = self.step.take() else {
            return;
        };
        for (seq, tokens) in self.running.iter_mut().zip(step.work) {
            if seq.aborted || tokens == 0 {
                continue;
            }
            if seq.computed < seq.job.prompt {
                seq.computed += tokens;
                self.counters.computed_tokens += tokens;
                if seq.computed < seq.job.prompt {
                    continue;
                }
                self.prefixes.insert(&seq.job.blocks);
            }
            seq.emitted += 1;
            self.counters.output_tokens += 1;
            events.push(Event::Token {
                id: seq.job.id,
                at,
                last: seq.emitted == seq.job.outputs,
            });
        }
        self.sweep();
    }

    /// Takes out what is finished or aborted.
    fn sweep(&mut self) {
        let running = std::mem::take(&mut self.running);
        for seq in running {
            let done = seq.emitted == seq.job.outputs;
            if !done && !seq.aborted {
                self.running.push(seq);
                continue;
            }
            let tokens = self.reserved(&seq.job);
            if done && seq.job.hold && !seq.aborted {
                self.held.insert(seq.job.id, tokens);
            } else {
                self.counters.used_tokens -= tokens;
            }
            self.counters.finished += u64::from(done);
        }
    }

    fn begin_step(&mut self, at: f64) {
        if self.step.is_some() {
            return;
        }
        let mut budget = self.limits.batched_tokens;
        let mut work = Vec::with_capacity(self.running.len() + 1);
        for seq in &self.running {
            let left = seq.job.prompt - seq.computed;
            let tokens = match left {
                0 => budget.min(1),
                _ if self.limits.chunked || left <= budget => left.min(budget),
                _ => 0,
            };
            budget -= tokens;
            work.push(tokens);
        }
        let storing = self.admit(at, &mut budget, &mut work);
        if work.iter().all(|tokens| *tokens == 0) {
            return;
        }
        let share = || {
            self.running
                .iter()
                .zip(&work)
                .filter(|(_, tokens)| **tokens > 0)
        };
        let prefill = share().filter(|(s, _)| s.computed < s.job.prompt);
        let prefill = prefill.map(|(s, tokens)| (*tokens, s.computed));
        let decode = share().filter(|(s, _)| s.computed == s.job.prompt);
        let decode = decode.map(|(s, _)| s.job.prompt + s.emitted);
        let time = self.cost.step(prefill, decode) + storing;
        let ends = at + time * step_noise(&mut self.noise);
        self.counters.steps += 1;
        self.step = Some(Step { ends, work });
    }

    /// Lets waiting jobs in, in order, as long as they fit. Gives the time that a folder takes.
    fn admit(&mut self, at: f64, budget: &mut u64, work: &mut Vec<u64>) -> f64 {
        let mut storing = 0.0;
        while let Some(job) = self.waiting.front() {
            let reserved = self.reserved(job);
            let fits = self.counters.used_tokens + reserved <= self.limits.capacity;
            let seats = self.running.len() + self.fetching.len() < self.limits.seqs;
            if !fits || !seats {
                break;
            }
            let cached = match job.fetch {
                Some(_) => 0,
                // A whole hit still computes its last token.
                None => (self.prefixes.hits(&job.blocks) * self.limits.block).min(job.prompt - 1),
            };
            let read = job.stored.map_or(0, |s| s.tokens.saturating_sub(cached));
            let left = job.prompt - cached - read;
            if job.fetch.is_none() && (*budget == 0 || (!self.limits.chunked && left > *budget)) {
                break;
            }
            let Some(job) = self.waiting.pop_front() else {
                break;
            };
            self.counters.used_tokens += reserved;
            if let Some(fetch) = job.fetch {
                // A path's rate varies as the steps do; more bytes stand for a slower one.
                let bytes = fetch.bytes * step_noise(&mut self.noise);
                self.link.begin(job.id, at + fetch.setup, bytes);
                self.fetching.insert(job.id, job);
                continue;
            }
            if !job.blocks.is_empty() {
                self.counters.queried_tokens += job.prompt;
            }
            self.counters.cached_tokens += cached;
            self.counters.fetched_tokens += read;
            storing += job.stored.map_or(0.0, |s| s.seconds);
            let tokens = left.min(*budget);
            *budget -= tokens;
            work.push(tokens);
            self.running.push(Seq {
                job,
                computed: cached + read,
                emitted: 0,
                aborted: false,
            });
        }
        storing
    }

    /// Tokens that a job takes from the cache, in whole blocks. All are taken at once, so that a
    /// job that began is never preempted.
    fn reserved(&self, job: &Job) -> u64 {
        (job.prompt + job.most_outputs).next_multiple_of(self.limits.block)
    }
}

/// Steps vary by 1.5 % (a sum of uniforms is near enough to normal and the same everywhere), and
/// one in 500 takes a third longer, as host-side work now and then does.
fn step_noise(rng: &mut ChaCha8Rng) -> f64 {
    let uniform = |rng: &mut ChaCha8Rng| f64::from(rng.next_u32()) / f64::from(u32::MAX);
    let sum: f64 = (0..12).map(|_| uniform(rng)).sum();
    let hiccup = if uniform(rng) < 0.002 { 1.33 } else { 1.0 };
    (1.0 + 0.015 * (sum - 6.0)) * hiccup
}

/// Blocks whose KV cache is still around, oldest out first.
struct Prefixes {
    known: HashSet<u64>,
    order: VecDeque<u64>,
    capacity: usize,
}

impl Prefixes {
    fn new(capacity: usize) -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            capacity,
        }
    }

    fn hits(&self, blocks: &[u64]) -> u64 {
        let hits = blocks.iter().take_while(|b| self.known.contains(b));
        hits.count() as u64
    }

    fn insert(&mut self, blocks: &[u64]) {
        for block in blocks {
            if self.known.insert(*block) {
                self.order.push_back(*block);
            }
        }
        while self.order.len() > self.capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
