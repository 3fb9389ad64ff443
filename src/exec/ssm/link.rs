//! What an executor over Systems Manager needs beside commands: looks at the network made on the
//! host, files through the bucket, and submissions that are taken back.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::api::{SKEW, Trouble};
use super::intents::Intent;
use super::line::private_input;
use super::{Ssm, carry};
use crate::error::{Error, Result};
use crate::exec::remote::call::{Answer, Caller, Request, refused};
use crate::exec::remote::{Collect, Link, Pace, utf8};
use crate::exec::{HostSpec, Sign, Token, look};

impl Link for Ssm {
    fn name(&self) -> &'static str {
        super::NAME
    }

    fn http<'a>(
        &'a self,
        caller: &'a Caller,
        host: &'a HostSpec,
        url: &'a str,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool>> {
        async move {
            let words = web(url, limit)?;
            let request = Request::new("web", words.iter().map(String::as_str).collect());
            let answer = caller.call(&host.name, &request).await?;
            seen(&host.name, &answer)
        }
        .boxed()
    }

    fn tcp<'a>(
        &'a self,
        caller: &'a Caller,
        host: &'a HostSpec,
        address: &'a str,
    ) -> BoxFuture<'a, Result<bool>> {
        async move {
            let words = end_point(address)?;
            let request = Request::new("tcp", words.iter().map(String::as_str).collect());
            let answer = caller.call(&host.name, &request).await?;
            seen(&host.name, &answer)
        }
        .boxed()
    }

    fn await_sign<'a>(
        &'a self,
        caller: &'a Caller,
        wrapper: &'a str,
        host: &'a HostSpec,
        sign: &'a Sign,
        limit: Duration,
    ) -> Option<BoxFuture<'a, Result<bool>>> {
        // Of what is in use one look is wanted.
        (!matches!(sign, Sign::Answers(_))).then(|| {
            async move {
                let (command, words) = asked(sign, wrapper)?;
                let request = Request {
                    limit: Some(limit + look::LIMIT),
                    again: Some(limit),
                    ..Request::new(command, words.iter().map(String::as_str).collect())
                };
                let answer = caller.call(&host.name, &request).await?;
                seen(&host.name, &answer)
            }
            .boxed()
        })
    }

    fn pace(&self) -> Pace {
        // A command costs seconds on its way, and requests are counted.
        Pace {
            gather: Duration::from_millis(300),
            first_cs: 200,
            last_cs: 3000,
            look_every: Duration::from_secs(60),
        }
    }

    fn pending(&self) -> Result<Vec<(String, Token)>> {
        let open = self.intents.open()?.into_iter();
        // Another platform may call another instance by the same name.
        let ours = |intent: &Intent| {
            let instance = self.instances.get(&intent.host);
            instance.is_some_and(|instance| instance.id == intent.instance)
        };
        Ok(open
            .filter(ours)
            .map(|intent| (intent.host, Token(intent.token)))
            .collect())
    }

    fn recall<'a>(&'a self, token: &'a Token) -> BoxFuture<'a, Result<()>> {
        async move {
            let open = self.intents.open()?.into_iter();
            let intent = open.filter(|intent| intent.token == token.0);
            for intent in intent {
                let after = intent.time() - SKEW;
                let commands = self.api.by_comment(&intent.comment, after);
                for command in commands.await.map_err(not_taken_back)? {
                    if let Some(id) = command.command_id() {
                        self.api.cancel(id).await.map_err(not_taken_back)?;
                    }
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn remove_inputs(&self) -> BoxFuture<'_, Result<HashSet<Token>>> {
        async move {
            let mut stay = HashSet::new();
            // Those of every instance, also of one that was replaced: nobody reads them any more.
            for intent in self.intents.open()?.into_iter().filter(|i| i.private) {
                if !self.bucket.remove(&private_input(&intent.token)).await {
                    stay.insert(Token(intent.token));
                }
            }
            Ok(stay)
        }
        .boxed()
    }

    fn recalled(&self, token: &Token) {
        self.intents.done(&token.0);
    }

    fn collect<'a>(&'a self, what: Collect<'a>) -> Option<BoxFuture<'a, Result<Vec<PathBuf>>>> {
        Some(carry::collect(&self.bucket, what).boxed())
    }
}

/// The command of the host program that looks for a sign, and its words.
fn asked(sign: &Sign, wrapper: &str) -> Result<(&'static str, Vec<String>)> {
    Ok(match sign {
        Sign::Http(url) => ("web", web(url, look::LIMIT)?),
        Sign::Answers(url) => ("web", web(url, look::BUSY)?),
        Sign::Tcp(address) => ("tcp", end_point(address)?),
        Sign::Listen(port) => {
            let words = ["/bin/sh", wrapper, "listens"].map(str::to_owned);
            ("try", [&words[..], &[port.to_string()]].concat())
        }
        Sign::File(path) => ("exists", vec![utf8(path, "the file")?.to_owned()]),
    })
}

fn web(url: &str, limit: Duration) -> Result<Vec<String>> {
    look::check_url(url)?;
    Ok(vec![url.to_owned(), limit.as_secs().to_string()])
}

fn end_point(address: &str) -> Result<Vec<String>> {
    look::check_address(address)?;
    let (name, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let name = name.trim_start_matches('[').trim_end_matches(']');
    Ok(vec![name.to_owned(), port.to_owned()])
}

fn not_taken_back(trouble: Trouble) -> Error {
    super::refused(trouble.broken().why)
}

fn seen(host: &str, answer: &Answer) -> Result<bool> {
    match answer.code {
        0 => Ok(true),
        64 => Err(refused(host, "look for a sign", answer)),
        _ => Ok(false),
    }
}
