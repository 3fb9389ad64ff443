//! The executor of hosts that nobody has connected to, because there was nothing to do on them.
//! Whatever is asked of it is an error: nothing that belongs on a host runs anywhere else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use doe_cache::Digest;
use futures_util::future::BoxFuture;

use super::{Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token};
use crate::error::{Error, Kind, Result};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

fn refused<'a, T: Send + 'a>(host: &str) -> BoxFuture<'a, Result<T>> {
    let error = Error::new(
        Kind::Infra,
        "not-connected",
        format!("something is to be done on host `{host}` although all was up to date"),
    )
    .hint("run again: what was stored may have been damaged or removed meanwhile");
    Box::pin(std::future::ready(Err(error)))
}

impl Executor for Nobody {
    fn name(&self) -> &'static str {
        "nobody"
    }

    fn probe<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>> {
        refused(&host.name)
    }

    fn stage<'a>(
        &'a self,
        host: &'a HostSpec,
        _files: &'a [(Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        refused(&host.name)
    }

    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        _script: &'a Script,
        _token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>> {
        refused(&host.name)
    }

    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        _token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        refused(&host.name)
    }

    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        _token: &'a Token,
        _grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        refused(&host.name)
    }

    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>> {
        refused(&handle.host)
    }

    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        refused(&handle.host)
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        refused(&handle.host)
    }

    fn cancel<'a>(&'a self, handle: &'a Handle, _grace: Duration) -> BoxFuture<'a, Result<()>> {
        refused(&handle.host)
    }

    fn log<'a>(
        &'a self,
        handle: &'a Handle,
        _stream: Stream,
        _offset: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        refused(&handle.host)
    }

    fn look<'a>(&'a self, host: &'a HostSpec, _sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        refused(&host.name)
    }

    fn collect<'a>(
        &'a self,
        host: &'a HostSpec,
        _from: &'a Path,
        _names: &'a [String],
        _into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        refused(&host.name)
    }

    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        refused(&host.name)
    }
}
