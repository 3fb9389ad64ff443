//! What can go wrong with the mirror, by what is to be done about it. No text here ever holds
//! credentials: only what a server or the network said.

use std::fmt;

/// Why an object could not be had or stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The object is not there.
    Missing,
    /// No connection, or no answer in time: asking again at once would only cost time.
    Down(String),
    /// An answer that may be another one the next time: overload, a connection cut short.
    Passing(String),
    /// The server understood and will not: no right, no such bucket.
    Refused(String),
    /// The object is there and is not what its name says.
    Damaged(String),
    /// Not asked: the mirror failed several times just now.
    Paused,
    /// This machine's own disk or store failed.
    Local(String),
}

impl Fault {
    /// Whether the mirror cannot be used at all just now.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Fault::Down(_) | Fault::Passing(_) | Fault::Paused | Fault::Refused(_)
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("it is not there"),
            Fault::Down(why) => write!(f, "it cannot be reached: {why}"),
            Fault::Passing(why) => write!(f, "it failed repeatedly: {why}"),
            Fault::Refused(why) => write!(f, "it refused: {why}"),
            Fault::Damaged(why) => write!(f, "the object is damaged: {why}"),
            Fault::Paused => f.write_str("it failed several times and is left alone for a while"),
            Fault::Local(why) => f.write_str(why),
        }
    }
}

impl From<crate::Error> for Fault {
    fn from(error: crate::Error) -> Self {
        Fault::Local(error.to_string())
    }
}
