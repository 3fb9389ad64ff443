//! Port numbers on other hosts: below the range of outgoing connections there, nobody listens on
//! them when they are handed out, and none is handed out twice.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::exec::look;

/// Below this live the well-known ones.
const LOWEST: u16 = 10_000;
/// Where outgoing connections begin on Linux, unless the host says otherwise.
const USUAL_END: u16 = 32_768;

/// The ports that one executor hands out.
#[derive(Debug, Default)]
pub(in crate::exec) struct RemotePorts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    given: HashSet<u16>,
    next: HashMap<String, u16>,
}

impl RemotePorts {
    /// A port of a host. `sockets` is what the host says: its range of outgoing connections, then
    /// the kernel's tables.
    pub(in crate::exec) fn take(&self, host: &str, sockets: &str) -> Result<u16> {
        let end = sockets
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        let end = end.filter(|end| *end >= LOWEST + 1000).unwrap_or(USUAL_END);
        let used = look::listening_ports(sockets);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let random = RandomState::new().build_hasher().finish();
        // The remainder is below `end - LOWEST` and so fits.
        let offset = u16::try_from(random % u64::from(end - LOWEST)).unwrap_or(0);
        let mut port = *state.next.get(host).unwrap_or(&(LOWEST + offset));
        for _ in LOWEST..end {
            port = if port + 1 < end { port + 1 } else { LOWEST };
            if !used.contains(&port) && state.given.insert(port) {
                state.next.insert(host.to_owned(), port);
                return Ok(port);
            }
        }
        Err(Error::new(
            Kind::Infra,
            "no-port",
            format!("found no free port on host `{host}`"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_ones_are_passed_over_and_none_is_given_twice() {
        let ports = RemotePorts::default();
        let mut text = "11000\t60999\n".to_owned();
        // Everything but 10500 and 10501 is taken.
        for port in (10_000..11_000).filter(|p| *p != 10_500 && *p != 10_501) {
            text.push_str(&format!("0: 00000000:{port:04X} 00000000:0000 0A 0\n"));
        }
        let mut got = [
            ports.take("a", &text).unwrap(),
            ports.take("b", &text).unwrap(),
        ];
        got.sort_unstable();
        assert_eq!(got, [10_500, 10_501]);
        assert_eq!(ports.take("a", &text).unwrap_err().code, "no-port");
    }
}
