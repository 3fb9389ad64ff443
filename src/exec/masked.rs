//! An executor whose logs have masks where secrets were. Everything else is the other executor's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::secrets::Secrets;
use super::{Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token};
use crate::error::Result;

/// See the module.
struct Masked {
    inner: Arc<dyn Executor>,
    secrets: Secrets,
}

/// An executor whose logs show none of these secrets; itself when there are none.
pub fn masked(inner: Arc<dyn Executor>, secrets: &Secrets) -> Arc<dyn Executor> {
    match secrets.is_empty() {
        true => inner,
        false => Arc::new(Masked {
            inner,
            secrets: secrets.clone(),
        }),
    }
}

impl Executor for Masked {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn probe<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>> {
        self.inner.probe(host)
    }

    fn stage<'a>(
        &'a self,
        host: &'a HostSpec,
        files: &'a [(doe_cache::Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        self.inner.stage(host, files)
    }

    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        script: &'a Script,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>> {
        self.inner.start(host, script, token)
    }

    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        self.inner.find(host, token)
    }

    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        self.inner.revoke(host, token, grace)
    }

    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>> {
        self.inner.ended_unix_ms(handle)
    }

    fn has_begun<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<bool>> {
        self.inner.has_begun(handle)
    }

    fn tells_our_time(&self) -> bool {
        self.inner.tells_our_time()
    }

    fn ends_differ_by(&self) -> Duration {
        self.inner.ends_differ_by()
    }

    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        self.inner.poll(handle)
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        self.inner.wait(handle)
    }

    fn cancel<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.inner.cancel(handle, grace)
    }

    fn log<'a>(
        &'a self,
        handle: &'a Handle,
        stream: Stream,
        offset: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        self.secrets
            .log(&*self.inner, handle, stream, offset)
            .boxed()
    }

    fn look<'a>(&'a self, host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        self.inner.look(host, sign)
    }

    fn await_sign<'a>(
        &'a self,
        host: &'a HostSpec,
        sign: &'a Sign,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool>> {
        self.inner.await_sign(host, sign, limit)
    }

    fn look_every(&self) -> Duration {
        self.inner.look_every()
    }

    fn collect<'a>(
        &'a self,
        host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        self.inner.collect(host, from, names, into)
    }

    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        self.inner.free_port(host)
    }

    fn discard<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        self.inner.discard(handle)
    }
}
