//! What an executor needs of its connection beside commands: looks at the network from the host,
//! files on their way back, and how fast it may be asked.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::call::{Caller, Line};
use crate::error::Result;
use crate::exec::{HostSpec, Sign, Token};

/// How a host is waited at.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Those who come within this time are asked for together.
    pub gather: Duration,
    /// How long the first command stays with the host, hundredths of a second; it doubles.
    pub first_cs: u64,
    /// How long a command stays at most.
    pub last_cs: u64,
    /// How often a sign may be looked for all the time: each look is a round trip.
    pub look_every: Duration,
}

/// Files that are to be fetched.
pub struct Collect<'a> {
    /// For commands to the host.
    pub caller: &'a Caller,
    /// Where they are.
    pub host: &'a HostSpec,
    /// Folder there.
    pub from: &'a str,
    /// Names in it; none leads out of it.
    pub names: &'a [String],
    /// Folder here.
    pub into: &'a Path,
}

/// A connection to the hosts of one executor.
pub trait Link: Line {
    /// Name of the executor.
    fn name(&self) -> &'static str;

    /// Whether a GET of the URL from the host answers 200 within this time.
    fn http<'a>(
        &'a self,
        caller: &'a Caller,
        host: &'a HostSpec,
        url: &'a str,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool>>;

    /// Whether an address accepts a connection from the host.
    fn tcp<'a>(
        &'a self,
        caller: &'a Caller,
        host: &'a HostSpec,
        address: &'a str,
    ) -> BoxFuture<'a, Result<bool>>;

    /// Looks for a sign on the host itself, again and again until it shows or the limit is up;
    /// `None` where one look after the other costs little.
    fn await_sign<'a>(
        &'a self,
        _caller: &'a Caller,
        _wrapper: &'a str,
        _host: &'a HostSpec,
        _sign: &'a Sign,
        _limit: Duration,
    ) -> Option<BoxFuture<'a, Result<bool>>> {
        None
    }

    /// How a host is waited at.
    fn pace(&self) -> Pace;

    /// Starts that may still be on their way to a host: the host's name and the token.
    fn pending(&self) -> Result<Vec<(String, Token)>> {
        Ok(Vec::new())
    }

    /// Asks that a start does not come to its host any more; whether it does is not said.
    fn recall<'a>(&'a self, _token: &'a Token) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Removes what starts that were submitted by somebody who is dead would read on their way. The
    /// tokens of which it could not be removed.
    fn remove_inputs(&self) -> BoxFuture<'_, Result<HashSet<Token>>> {
        Box::pin(std::future::ready(Ok(HashSet::new())))
    }

    /// A start is on its way no more, or does no harm.
    fn recalled(&self, _token: &Token) {}

    /// Fetches files another way than as the output of a command; `None` when there is none.
    fn collect<'a>(&'a self, _what: Collect<'a>) -> Option<BoxFuture<'a, Result<Vec<PathBuf>>>> {
        None
    }
}
