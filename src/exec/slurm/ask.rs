//! Questions that only a node can answer: what it is, what listens there, whether a program runs.
//! A task of ours that runs there answers what is small; for the rest there is a job of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{LOOK, SlurmExecutor};
use crate::error::{Error, Kind, Result};
use crate::exec::folder::{self, quote};
use crate::exec::remote::call::nonce;
use crate::exec::{CLOCK_AHEAD, Executor, Facts, HostSpec, Script, Status, Stream, Token};

/// How long a task may take to answer before a job is sent.
const ANSWER: Duration = Duration::from_secs(5);
/// Limit of a job that answers a question.
const LIMIT: Duration = Duration::from_secs(60);

/// What a short script on a node came to.
struct Aside {
    /// Whether it ended well.
    good: bool,
    /// What it printed; of one that did not end well, what it complained of.
    said: String,
    status: Status,
    /// When it ended, by the clock of the node, Unix ms.
    theirs_ms: Option<u64>,
}

impl SlurmExecutor {
    /// Runs a short script on a node: whether it ended well, what it printed, and when it ended by
    /// the node's clock.
    async fn aside(&self, host: &HostSpec, text: String) -> Result<Aside> {
        let token = Token(format!("aside-{}", nonce()));
        let script = Script {
            name: "aside".into(),
            text,
            env: BTreeMap::new(),
            work: self.root().join("work"),
            timeout: Some(LIMIT),
            log_cap_bytes: 64 * 1024,
            attached: false,
            ask: Default::default(),
        };
        let handle = self.start(host, &script, &token).await?;
        let status = self.wait(&handle).await?;
        let stdout = self.log(&handle, Stream::Stdout, 0).await?;
        let stderr = self.log(&handle, Stream::Stderr, 0).await?;
        let theirs_ms = folder::ended_unix_ms(&handle.dir)?;
        let _ = self.discard(&handle).await;
        let good = matches!(&status, Status::Exited(exit) if exit.success());
        let said = if good { stdout } else { stderr };
        Ok(Aside {
            good,
            said: String::from_utf8_lossy(&said).into_owned(),
            status,
            theirs_ms,
        })
    }

    /// Facts of a node.
    pub(super) async fn facts(&self, host: &HostSpec) -> Result<Facts> {
        let wrapper = quote(&self.wrapper.display().to_string());
        let text = format!("exec /bin/sh {wrapper} facts");
        let aside = self.aside(host, text).await?;
        if !aside.good {
            return Err(failed(host, "its facts could not be read", &aside));
        }
        let mut facts = folder::parse_facts(&aside.said);
        if let (Status::Exited(exit), Some(theirs_ms)) = (&aside.status, aside.theirs_ms) {
            // 0 where the node's clock may be right.
            let signed = |unix_ms: u64| i64::try_from(unix_ms).unwrap_or(i64::MAX);
            let ahead = signed(theirs_ms) - signed(exit.ended_unix_ms);
            facts.insert(CLOCK_AHEAD.into(), ahead.to_string());
        }
        Ok(facts)
    }

    /// Finds out whether a program of the shared folder runs on nodes.
    ///
    /// # Errors
    /// `Infra`, when it does not, with what it said.
    pub async fn try_program(
        &self,
        hosts: &[HostSpec],
        program: &Path,
        arguments: &[&str],
    ) -> Result<()> {
        let mut text = format!("exec {}", quote(&program.display().to_string()));
        for argument in arguments {
            text.push(' ');
            text.push_str(&quote(argument));
        }
        let tries = hosts.iter().map(|host| async {
            let aside = self.aside(host, text.clone()).await?;
            match aside.good {
                true => Ok(()),
                false => Err(failed(host, "a program failed", &aside)),
            }
        });
        futures_util::future::try_join_all(tries).await.map(|_| ())
    }

    /// Whether something listens on a port of a node.
    pub(super) async fn listens(&self, host: &HostSpec, port: u16) -> Result<bool> {
        let _turn = self.turn(&format!("host {}", host.name)).await;
        let known = {
            let there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
            there.get(&host.name).cloned()
        };
        if let Some(token) = known
            && let Some(answer) = self.told(&token, port).await?
        {
            return Ok(answer);
        }
        let wrapper = quote(&self.wrapper.display().to_string());
        // Nothing that listens is an answer and no failure.
        let text = format!("/bin/sh {wrapper} listens {port} && echo yes || echo no");
        let aside = self.aside(host, text).await?;
        match aside.good {
            true => Ok(aside.said.trim() == "yes"),
            false => Err(failed(host, "its ports could not be seen", &aside)),
        }
    }

    /// What a task that runs on the node says; `None` when it does not.
    async fn told(&self, token: &Token, port: u16) -> Result<Option<bool>> {
        let dir = self.layout.run(token);
        let question = nonce();
        let ask = dir.join("ask");
        let is_up = || dir.is_dir() && !dir.join(super::OVER).exists();
        if !is_up() {
            return Ok(None);
        }
        let new = dir.join(".ask");
        folder::write_private(&new, format!("{question} {port}\n").as_bytes())?;
        std::fs::rename(&new, &ask).map_err(|e| Error::io("write", &ask, &e))?;
        let begun = Instant::now();
        while begun.elapsed() < ANSWER && is_up() {
            let told = folder::read_if_there(&dir.join("told"))?.unwrap_or_default();
            if let Some((answered, answer)) = told.trim_end().split_once(' ')
                && answered == question
            {
                return Ok(Some(answer == "yes"));
            }
            tokio::time::sleep(LOOK / 2).await;
        }
        Ok(None)
    }
}

fn failed(host: &HostSpec, what: &str, aside: &Aside) -> Error {
    let error = Error::new(
        Kind::Infra,
        "host-unusable",
        format!("the node `{}` cannot be used: {what}", host.name),
    );
    match (aside.said.trim(), &aside.status) {
        ("", Status::Lost { why }) => error.cause(why),
        ("", _) => error.cause("it left no word"),
        (said, _) => error.cause(said),
    }
}
