//! What the network does to a message, and the noise on it. A message of `n` bytes is there after
//! `latency + n / bandwidth`; with `w` messages in flight the latency is paid once for all of
//! them. Noise is at most [`NOISE`] of the value, uniform, and repeatable.

use crate::measure::sim::profile::{Link, SimProfile};

/// Largest relative deviation of a simulated number from its model.
pub(super) const NOISE: f64 = 0.01;

/// Time of one message on its own, in microseconds.
#[allow(clippy::cast_precision_loss)] // sizes are far below 2^53
pub(super) fn one_way_us(link: &Link, size_bytes: u64) -> f64 {
    link.latency_us + size_bytes as f64 * 8.0 / (link.bandwidth_gbps * 1e3)
}

/// Time per message with `window` messages in flight, in microseconds.
#[allow(clippy::cast_precision_loss)] // as above
pub(super) fn streamed_us(link: &Link, size_bytes: u64, window: u32) -> f64 {
    link.latency_us / f64::from(window) + size_bytes as f64 * 8.0 / (link.bandwidth_gbps * 1e3)
}

/// The link that UCX takes for its transports (`UCX_TLS`): RDMA transports go over EFA's SRD,
/// everything else over TCP.
pub(super) fn ucx_link<'p>(profile: &'p SimProfile, tls: Option<&str>) -> &'p Link {
    let rdma = |t: &str| {
        ["srd", "rc", "dc", "ud", "ib"]
            .iter()
            .any(|r| t.starts_with(r))
    };
    match tls {
        Some(list) if list.split(',').any(|t| rdma(t.trim())) => &profile.efa,
        _ => &profile.tcp,
    }
}

/// A repeatable noise source.
#[derive(Debug, Clone)]
pub(super) struct Noise {
    state: u64,
}

impl Noise {
    /// Seeded by the profile, the tool and its command line.
    pub(super) fn new(seed: u64, tool: &str, args: &[String]) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        for word in std::iter::once(tool).chain(args.iter().map(String::as_str)) {
            hash.update(&(word.len() as u64).to_le_bytes());
            hash.update(word.as_bytes());
        }
        let mut state = [0; 8];
        state.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        Self {
            state: u64::from_le_bytes(state),
        }
    }

    /// The next number, uniform in [0, 1): SplitMix64 (Steele, Lea, Flood 2014).
    #[allow(clippy::cast_precision_loss)] // 53 bits
    pub(super) fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The value with noise.
    pub(super) fn on(&mut self, value: f64) -> f64 {
        value * (1.0 + NOISE * (2.0 * self.uniform() - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_repeatable_small_and_different_for_other_seeds_and_lines() {
        let draw = |seed, args: &[&str]| {
            let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            let mut noise = Noise::new(seed, "tool", &args);
            (0..100).map(|_| noise.on(100.0)).collect::<Vec<_>>()
        };
        let first = draw(1, &["a", "b"]);
        assert_eq!(first, draw(1, &["a", "b"]));
        assert_ne!(first, draw(2, &["a", "b"]));
        assert_ne!(first, draw(1, &["ab"]));
        assert!(first.iter().all(|v| (99.0..=101.0).contains(v)));
        let mean = first.iter().sum::<f64>() / 100.0;
        assert!((mean - 100.0).abs() < 0.3, "{mean}");
    }

    #[test]
    fn large_messages_reach_the_bandwidth_and_small_ones_the_latency() {
        let link = Link {
            bandwidth_gbps: 40.0,
            latency_us: 10.0,
        };
        assert!((one_way_us(&link, 0) - 10.0).abs() < 1e-12);
        // 1 GB at 40 Gbit/s takes 0.2 s.
        assert!((streamed_us(&link, 1_000_000_000, 64) - 200_000.0).abs() < 1.0);
    }

    #[test]
    fn ucx_goes_over_efa_only_with_an_rdma_transport() {
        let profile = SimProfile::default();
        assert_eq!(ucx_link(&profile, Some("srd,self,sm")), &profile.efa);
        assert_eq!(ucx_link(&profile, Some("tcp,self,sm")), &profile.tcp);
        assert_eq!(ucx_link(&profile, None), &profile.tcp);
    }
}
