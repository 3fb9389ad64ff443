//! Port numbers for services that will listen later. They come from below the range that the
//! kernel gives to outgoing connections, so that a port which was free when it was handed out is
//! still free when a slow server gets round to it; none is handed out twice.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use super::HostSpec;
use crate::error::{Error, Kind, Result};

/// Below this live the well-known ones.
const LOWEST: u16 = 10_000;
/// Where outgoing connections begin on Linux, unless the machine says otherwise.
const USUAL_END: u16 = 32_768;

/// The ports that one executor hands out.
#[derive(Debug)]
pub struct Ports {
    end: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u16,
    given: HashSet<u16>,
}

impl Ports {
    /// Begins at a random place: several `doe` on one machine rarely meet.
    pub fn new() -> Self {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let end = range
            .ok()
            .and_then(|range| range.split_whitespace().next()?.parse().ok())
            .filter(|end| *end >= LOWEST + 1000)
            .unwrap_or(USUAL_END);
        let random = RandomState::new().build_hasher().finish();
        // The remainder is below `end - LOWEST` and so fits.
        let offset = u16::try_from(random % u64::from(end - LOWEST)).unwrap_or(0);
        Self {
            end,
            state: Mutex::new(State {
                next: LOWEST + offset,
                given: HashSet::new(),
            }),
        }
    }

    /// A port that nobody listens on at the host's address, which is one of this machine. Blocks
    /// for the time of a name lookup when the address is a name.
    pub fn take(&self, host: &HostSpec) -> Result<u16> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = String::from("all of them were handed out before");
        for _ in LOWEST..self.end {
            let port = state.next;
            state.next = if port + 1 < self.end {
                port + 1
            } else {
                LOWEST
            };
            if state.given.contains(&port) {
                continue;
            }
            match TcpListener::bind((host.address.as_str(), port)) {
                Ok(_) => {
                    state.given.insert(port);
                    return Ok(port);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => last = e.to_string(),
                Err(e) => return Err(failed(host, &e.to_string())),
            }
        }
        Err(failed(host, &last))
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self::new()
    }
}

fn failed(host: &HostSpec, cause: &str) -> Error {
    Error::new(
        Kind::Infra,
        "no-port",
        format!(
            "found no free port at the address `{}` of host `{}`",
            host.address, host.name
        ),
    )
    .cause(cause)
    .hint("a local host needs an address of this machine, such as 127.0.0.1 or 127.0.0.2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str) -> HostSpec {
        HostSpec {
            name: "h".into(),
            address: address.into(),
            gpus: 0,
        }
    }

    #[test]
    fn a_port_in_use_is_passed_over_and_none_is_given_twice() {
        let ports = Ports::new();
        let here = host("127.0.0.3");
        let first = ports.take(&here).unwrap();
        // Whoever holds the next ones, they are not handed out while they are held.
        let held: Vec<_> = (1..20)
            .filter_map(|more| TcpListener::bind(("127.0.0.3", first.checked_add(more)?)).ok())
            .collect();
        let held_ports: HashSet<u16> = held
            .iter()
            .map(|l| l.local_addr().unwrap().port())
            .collect();
        let mut seen = HashSet::from([first]);
        for _ in 0..200 {
            let port = ports.take(&here).unwrap();
            assert!(seen.insert(port) && !held_ports.contains(&port));
            assert!((LOWEST..ports.end).contains(&port));
        }
    }

    #[test]
    fn when_all_are_given_it_says_so() {
        let ports = Ports {
            end: LOWEST + 1,
            state: Mutex::new(State {
                next: LOWEST,
                given: HashSet::from([LOWEST]),
            }),
        };
        assert_eq!(ports.take(&host("127.0.0.1")).unwrap_err().code, "no-port");
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let error = Ports::new().take(&host("192.0.2.1")).unwrap_err();
        assert_eq!(error.code, "no-port");
    }
}
