//! The calls of the trait over the shared folder; jobs are the business of the module above.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use doe_cache::Digest;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::clock::AS_IT_IS;
use super::state::is_over;
use super::{NAME, SlurmExecutor};
use crate::error::{Error, Kind, Result};
use crate::exec::folder::{self, Claim};
use crate::exec::remote::blocking;
use crate::exec::{
    Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token, files, local, look,
};

impl Executor for SlurmExecutor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>> {
        self.facts(host).boxed()
    }

    fn stage<'a>(
        &'a self,
        _host: &'a HostSpec,
        files: &'a [(Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        let (staged, files) = (self.staged.clone(), files.to_vec());
        blocking(move || {
            files
                .iter()
                .map(|(digest, source)| staged.put(*digest, source))
                .collect()
        })
        .boxed()
    }

    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        script: &'a Script,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>> {
        async move {
            let handle = self.begin(host, script, token).await?;
            let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            there.insert(host.name.clone(), token.clone());
            Ok(handle)
        }
        .boxed()
    }

    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        self.found(host, token).boxed()
    }

    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        self.take_back(host, token, grace).boxed()
    }

    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>> {
        async move {
            self.check(handle)?;
            self.end_by_our_clock(&handle.dir)
        }
        .boxed()
    }

    fn has_begun<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<bool>> {
        async move {
            self.check(handle)?;
            let claim = Claim::read(&self.layout.run(&handle.token))?;
            Ok(claim.is_some_and(|claim| claim.boot_id != folder::REVOKED))
        }
        .boxed()
    }

    fn tells_our_time(&self) -> bool {
        true
    }

    fn ends_differ_by(&self) -> Duration {
        AS_IT_IS * 2
    }

    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        self.status(handle, None).boxed()
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        self.ended(handle).boxed()
    }

    fn cancel<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.end(handle, grace).boxed()
    }

    fn log<'a>(
        &'a self,
        handle: &'a Handle,
        stream: Stream,
        offset: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        let handle = handle.clone();
        blocking(move || local::read_log(&handle, stream, offset)).boxed()
    }

    fn look<'a>(&'a self, host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        look::from_here(sign, async |port| self.listens(host, port).await).boxed()
    }

    fn look_every(&self) -> Duration {
        // A look at a listening port may be a job.
        Duration::from_secs(30)
    }

    fn collect<'a>(
        &'a self,
        _host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        _into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        // A look at each of a few files: not worth a thread.
        std::future::ready(files::found(from, names)).boxed()
    }

    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        async move {
            loop {
                let port = self.ports.take(&host.name, "")?;
                // The tables of a node are not to be seen from here; who listens answers.
                if !look::tcp(&format!("{}:{port}", host.address)).await? {
                    return Ok(port);
                }
            }
        }
        .boxed()
    }

    fn discard<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        async move {
            self.check(handle)?;
            // Not what the handle says: it may come from a file that someone changed.
            let (dir, token) = (self.layout.run(&handle.token), handle.token.clone());
            blocking(move || {
                // With the folder would go the claim that keeps others from running it, and what
                // its task is told to do.
                if dir.exists() && !is_over(&dir)? {
                    let text = format!("`{}` may still run: its folder stays", token.0);
                    return Err(Error::new(Kind::Infra, "still-running", text));
                }
                match fs::remove_dir_all(&dir) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        Err(Error::io("remove", &dir, &e))
                    }
                    _ => Ok(()),
                }
            })
            .await
        }
        .boxed()
    }
}
