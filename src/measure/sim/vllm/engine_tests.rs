//! The schedule's promises, in virtual time.

use super::super::model::{Cost, Layout, gpu, model};
use super::*;
use proptest::prelude::*;

fn engine(capacity: u64, chunked: bool) -> Engine {
    let layout = Layout {
        tensor_parallel: 4,
        weight_bytes: 2.0,
        kv_bytes: 2.0,
        eager: true,
        overhead_s: 0.0,
    };
    let cost = Cost::of(
        &model("qwen2.5-32b").unwrap(),
        &gpu(&crate::measure::sim::profile::Gpu::default()).unwrap(),
        &layout,
    );
    let limits = Limits {
        batched_tokens: 4096,
        seqs: 256,
        chunked,
        block: 16,
        capacity,
    };
    Engine::new(limits, cost, FluidLink::new(1e9, |_| 1.0), 1)
}

fn job(id: u64, prompt: u64, outputs: u64) -> Job {
    Job {
        id,
        prompt,
        outputs,
        most_outputs: outputs,
        blocks: vec![],
        fetch: None,
        stored: None,
        hold: false,
    }
}

fn drain(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    engine.advance(0.0, &mut events);
    while let Some(at) = engine.next() {
        engine.advance(at, &mut events);
    }
    events
}

fn tokens(events: &[Event], of: u64) -> Vec<f64> {
    let times = events.iter().filter_map(|e| match e {
        Event::Token { id, at, .. } if *id == of => Some(*at),
        _ => None,
    });
    times.collect()
}

#[test]
fn a_lone_request_prefills_in_chunks_and_then_decodes_step_by_step() {
    let mut e = engine(400_000, true);
    e.submit(job(1, 12_288, 5));
    let times = tokens(&drain(&mut e), 1);
    assert_eq!(times.len(), 5);
    assert!((3.0..3.7).contains(&times[0]), "TTFT {}", times[0]);
    assert!(
        times
            .windows(2)
            .all(|w| (0.02..0.05).contains(&(w[1] - w[0]))),
        "{times:?}"
    );
    assert_eq!(e.counters().steps, 3 + 4);
    assert_eq!(e.counters().computed_tokens, 12_288);
}

#[test]
fn a_long_prefill_slows_streams_that_decode_meanwhile() {
    let mut e = engine(400_000, true);
    e.submit(job(1, 16, 60));
    let mut events = Vec::new();
    e.advance(0.3, &mut events);
    e.submit(job(2, 12_288, 1));
    while let Some(at) = e.next() {
        e.advance(at, &mut events);
    }
    let times = tokens(&events, 1);
    let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    let slow = gaps.iter().filter(|g| **g > 0.1).count();
    assert_eq!(
        slow, 4,
        "12288 tokens in chunks of 4096 less one for the decoding stream: {gaps:?}"
    );
}

#[test]
fn a_cache_that_came_over_the_network_is_not_computed() {
    let mut e = engine(400_000, true);
    let fetch = Fetch {
        bytes: 2e9,
        setup: 0.5,
    };
    e.submit(Job {
        fetch: Some(fetch),
        ..job(1, 12_288, 3)
    });
    let events = drain(&mut e);
    let Event::Fetched { at, .. } = events[0] else {
        panic!("{events:?}");
    };
    assert!((at / 2.5 - 1.0).abs() < 0.06, "{at}");
    let ttft = tokens(&events, 1)[0];
    assert!(
        ttft > at && ttft < at + 0.06,
        "one step after the transfer, not a prefill: {ttft}"
    );
    let counters = e.counters();
    assert_eq!(
        (counters.fetched_tokens, counters.computed_tokens),
        (12_287, 1)
    );
}

#[test]
fn a_known_prefix_is_not_computed_again() {
    let mut e = engine(400_000, true);
    let with = |id, blocks: &[u64]| Job {
        blocks: blocks.to_vec(),
        ..job(id, 40, 1)
    };
    e.submit(with(1, &[7, 8]));
    drain(&mut e);
    e.submit(with(2, &[7, 9]));
    e.submit(with(3, &[9, 8]));
    let mut events = Vec::new();
    e.advance(10.0, &mut events);
    while let Some(at) = e.next() {
        e.advance(at, &mut events);
    }
    assert_eq!(
        e.counters().cached_tokens,
        16,
        "only the first block of the second request"
    );
    assert_eq!(e.counters().computed_tokens, 40 + 24 + 40);
}

#[test]
fn held_blocks_stay_until_released_and_keep_others_out() {
    let mut e = engine(1024, true);
    e.submit(Job {
        hold: true,
        ..job(1, 1000, 1)
    });
    drain(&mut e);
    e.submit(job(2, 1000, 1));
    let mut events = Vec::new();
    e.advance(1e6, &mut events);
    assert!(events.is_empty() && e.next().is_none());
    e.release(1);
    e.advance(1e6, &mut events);
    while let Some(at) = e.next() {
        e.advance(at, &mut events);
    }
    assert_eq!(tokens(&events, 2).len(), 1);
    assert_eq!(e.counters().used_tokens, 0);
}

#[test]
fn without_chunks_a_prompt_waits_until_it_fits_a_step() {
    let mut e = engine(400_000, false);
    e.submit(job(1, 3000, 1));
    e.submit(job(2, 3000, 1));
    let events = drain(&mut e);
    assert_eq!(e.counters().steps, 2);
    assert!(tokens(&events, 1)[0] < tokens(&events, 2)[0]);
}

proptest! {
    #[test]
    fn every_job_puts_out_its_tokens_in_time_order_and_frees_its_cache(
        jobs in prop::collection::vec((1u64..6000, 1u64..30, any::<bool>(), 0.0..2.0f64), 1..20),
        aborted in prop::collection::vec(any::<bool>(), 20),
    ) {
        let mut e = engine(20_000, true);
        let mut events = Vec::new();
        let mut now = 0.0;
        for (id, (prompt, outputs, fetched, wait)) in (0..).zip(&jobs) {
            let fetch = fetched.then_some(Fetch { bytes: *prompt as f64 * 1e5, setup: 0.01 });
            e.submit(Job { fetch, ..job(id, *prompt, *outputs) });
            now += wait;
            e.advance(now, &mut events);
            prop_assert!(e.counters().used_tokens <= 20_000);
            if aborted[id as usize] {
                e.abort(id);
            }
        }
        while let Some(at) = e.next() {
            prop_assert!(at >= now);
            now = at;
            e.advance(at, &mut events);
        }
        prop_assert_eq!(e.counters().used_tokens, 0);
        for (id, (_, outputs, ..)) in (0..).zip(&jobs) {
            let got = tokens(&events, id);
            prop_assert!(got.windows(2).all(|w| w[0] < w[1]));
            if !aborted[id as usize] {
                prop_assert_eq!(got.len() as u64, *outputs);
            }
        }
    }
}

#[test]
fn what_is_read_from_a_folder_is_not_computed_and_takes_its_time_in_the_step() {
    let first_token = |stored| {
        let mut engine = engine(400_000, true);
        engine.submit(Job {
            stored,
            ..job(1, 400, 2)
        });
        (tokens(&drain(&mut engine), 1)[0], engine.counters())
    };
    let stored = |tokens, seconds| Some(Stored { tokens, seconds });
    let (plain, _) = first_token(None);
    let (written, counters) = first_token(stored(0, 5.0));
    assert_eq!(
        (counters.computed_tokens, counters.fetched_tokens),
        (400, 0)
    );
    assert!(written > plain + 4.0, "{written} after {plain}");
    let (read, counters) = first_token(stored(384, 0.0));
    assert_eq!(
        (counters.computed_tokens, counters.fetched_tokens),
        (16, 384)
    );
    assert!(read < plain, "{read} before {plain}");
}
