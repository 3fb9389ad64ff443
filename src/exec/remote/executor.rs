//! The calls of the trait, each one command on the host. What a host has not said is not claimed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use doe_cache::Digest;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::call::{Request, refused};
use super::clock::now_ms;
use super::{Collect, RemoteExecutor, utf8};
use crate::error::Result;
use crate::exec::{
    CLOCK_AHEAD, Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token, folder,
    look,
};

impl Executor for RemoteExecutor {
    fn name(&self) -> &'static str {
        self.link.name()
    }

    fn probe<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>> {
        async move {
            let asked_ms = now_ms();
            let request = Request::new("facts", vec![&self.wrapper]);
            let text = self.done(host, "read facts", &request).await?;
            let mut facts: BTreeMap<_, _> = folder::parse_facts(&text);
            // Its clock against ours, which stood in the middle while it was read.
            let theirs = facts
                .remove("unix_ms")
                .and_then(|ms| ms.parse::<i64>().ok());
            if let Some(theirs) = theirs {
                let half_ms = (now_ms() - asked_ms) / 2;
                let ahead_ms = theirs - (asked_ms + half_ms);
                // What the way there and back can have made is nothing that is known.
                let known_ms = if ahead_ms.abs() > half_ms {
                    ahead_ms
                } else {
                    0
                };
                facts.insert(CLOCK_AHEAD.into(), known_ms.to_string());
            }
            Ok(facts)
        }
        .boxed()
    }

    fn stage<'a>(
        &'a self,
        host: &'a HostSpec,
        files: &'a [(Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        self.stager.stage(&self.caller, &host.name, files).boxed()
    }

    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        script: &'a Script,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>> {
        self.start_once(host, script, token).boxed()
    }

    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        async move {
            folder::check_token(token)?;
            let request = Request::new("find", vec![&token.0]);
            let text = self.done(host, "look for a script", &request).await?;
            Ok(folder::Claim::parse(&text).map(|claim| self.handle(host, token, &claim)))
        }
        .boxed()
    }

    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        async move {
            folder::check_token(token)?;
            let grace_ms = grace.as_millis().to_string();
            let request = Request::new("revoke", vec![&token.0, &self.wrapper, &grace_ms]);
            let text = self.done(host, "take a script back", &request).await?;
            Ok(folder::Claim::parse(&text).map(|claim| self.handle(host, token, &claim)))
        }
        .boxed()
    }

    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>> {
        async move { Ok(self.state(handle).await?.ended_unix_ms) }.boxed()
    }

    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        async move { Ok(self.state(handle).await?.status) }.boxed()
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        async move {
            self.check(handle)?;
            let status = self
                .watches
                .wait(&self.caller, &self.wrapper, &handle.host, &handle.token)
                .await?;
            if matches!(status, Status::Lost { .. }) {
                // Lost means gone: what its wrapper cannot end any more is ended from here.
                self.end(handle, self.grace).await?;
            }
            Ok(status)
        }
        .boxed()
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
        async move {
            self.check(handle)?;
            let name = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            let offset = offset.to_string();
            let request = Request::new("log", vec![&handle.token.0, name, &offset]);
            let answer = self.caller.call(&handle.host, &request).await?;
            match answer.code {
                0 => Ok(answer.payload),
                _ => Err(refused(&handle.host, "read a log", &answer)),
            }
        }
        .boxed()
    }

    fn tells_our_time(&self) -> bool {
        true
    }

    fn look_every(&self) -> Duration {
        self.link.pace().look_every
    }

    fn look<'a>(&'a self, host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        async move {
            match sign {
                Sign::Http(url) => {
                    let limit = look::LIMIT;
                    self.link.http(&self.caller, host, url, limit).await
                }
                Sign::Answers(url) => {
                    let limit = look::BUSY;
                    self.link.http(&self.caller, host, url, limit).await
                }
                Sign::Tcp(address) => {
                    look::check_address(address)?;
                    self.link.tcp(&self.caller, host, address).await
                }
                Sign::Listen(port) => {
                    let request = Request::new("sockets", vec![]);
                    let text = self.done(host, "look at sockets", &request).await?;
                    let address = host.address.parse().into_iter().collect::<Vec<_>>();
                    Ok(look::listens_in(&text, &address, *port))
                }
                Sign::File(path) => {
                    let path = utf8(path, "the file")?;
                    let request = Request::new("exists", vec![path]);
                    Ok(self.caller.call(&host.name, &request).await?.code == 0)
                }
            }
        }
        .boxed()
    }

    fn await_sign<'a>(
        &'a self,
        host: &'a HostSpec,
        sign: &'a Sign,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool>> {
        let link = &self.link;
        match link.await_sign(&self.caller, &self.wrapper, host, sign, limit) {
            None => self.look(host, sign),
            Some(seen) => async move {
                let seen = seen.await?;
                // At whose address somebody listens is seen here.
                let closer = matches!(sign, Sign::Listen(_));
                Ok(seen && (!closer || self.look(host, sign).await?))
            }
            .boxed(),
        }
    }

    fn collect<'a>(
        &'a self,
        host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        async move {
            let from = utf8(from, "the folder")?;
            for name in names {
                folder::check_inside(name)?;
            }
            if let Some(collecting) = self.link.collect(Collect {
                caller: &self.caller,
                host,
                from,
                names,
                into,
            }) {
                return collecting.await;
            }
            let mut found = Vec::new();
            for name in names {
                found.extend(self.fetch(host, from, name, into).await?);
            }
            Ok(found)
        }
        .boxed()
    }

    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        async move {
            let text = self
                .done(host, "look at sockets", &Request::new("sockets", vec![]))
                .await?;
            self.ports.take(&host.name, &text)
        }
        .boxed()
    }

    fn discard<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        async move {
            self.check(handle)?;
            let request = Request::new("discard", vec![&handle.token.0]);
            let answer = self.caller.call(&handle.host, &request).await?;
            match answer.code {
                0 => Ok(()),
                _ => Err(refused(&handle.host, "remove a folder", &answer)),
            }
        }
        .boxed()
    }
}
