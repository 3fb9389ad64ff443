//! What a host says of an execution, taken apart. A record that does not count still tells when it
//! ended.

use super::clock::{Clocks, Said};
use crate::exec::Status;
use crate::exec::folder::Record;

/// How an execution stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) status: Status,
    /// When it ended, if it left a whole record, by our clock.
    pub(super) ended_unix_ms: Option<u64>,
}

impl State {
    /// Reads what the wrapper says, which it said on this host at that time.
    pub(super) fn read(text: &str, (clocks, host, said): (&Clocks, &str, Said)) -> Self {
        let lost = |why: &str| Status::Lost {
            why: why.to_owned(),
        };
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        let (word, more) = first.split_once(' ').unwrap_or((first, ""));
        let exit = match Record::parse(rest) {
            Record::Whole(exit) => {
                let age_ms = more.parse().ok().map(|cs: i64| cs * 10);
                Some(clocks.ours(host, exit, age_ms, said))
            }
            _ => None,
        };
        let ended_unix_ms = exit.as_ref().map(|exit| exit.ended_unix_ms);
        let status = match (word, exit) {
            ("running", _) => Status::Running,
            ("exited", Some(exit)) => Status::Exited(exit),
            ("exited", None) => lost("its exit record is not whole"),
            ("lost", _) => lost(more),
            _ => {
                lost("nothing is known of it on the host: its folder is gone or was never claimed")
            }
        };
        Self {
            status,
            ended_unix_ms,
        }
    }
}
