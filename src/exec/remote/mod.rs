//! Runs scripts on hosts that are reached over a connection. Everything on the host is under one
//! private folder; the wrapper leads a session of its own there, so whatever becomes of the
//! connection or of `doe`, it goes on, and a handle finds it again. What cannot be known while a
//! host does not answer is not claimed: it is asked again, and at last an error.

pub mod call;
mod clock;
mod executor;
mod greet;
mod guard;
#[cfg(test)]
mod host_tests;
mod link;
mod ports;
pub mod ssh;
mod ssh_link;
mod stage;
mod state;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use doe_cache::Digest;
use futures_util::future::try_join_all;

use self::call::{Caller, Input, Request, refused};
use self::greet::greet;
use self::guard::Guard;
pub use self::link::{Collect, Link, Pace};
pub(super) use self::ports::RemotePorts;
use self::stage::Stager;
use self::state::State;
use self::watch::Watches;
use super::files::{hex, sha256_of};
use super::folder::{self, Claim, Job, WRAPPER};
use super::{Executor, Handle, HostSpec, Script, Token};
use crate::error::{Error, Kind, Result};

/// Its half on the hosts.
const PROGRAM: &str = include_str!("host.sh");
/// How often a start is tried again when the process was killed before it had begun.
const START_TRIES: u32 = 3;

/// How it behaves.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// Folder on every host, absolute or below `~/`; made if missing, private.
    pub root: String,
    /// How long a host that does not answer is waited for.
    pub patience: Duration,
    /// Time between TERM and KILL when a script's limit is up or it leaves processes behind.
    pub grace: Duration,
}

/// Runs scripts on other machines.
pub struct RemoteExecutor {
    link: Arc<dyn Link>,
    caller: Arc<Caller>,
    stager: Stager,
    watches: Watches,
    ports: RemotePorts,
    wrapper: String,
    path: String,
    grace: Duration,
    guard: OnceLock<Guard>,
}

impl RemoteExecutor {
    /// Connects to all hosts at once and puts the host program and the wrapper there.
    ///
    /// # Errors
    /// `Infra`, when a host cannot be reached or used; all of them are named.
    pub async fn connect(
        link: impl Link + 'static,
        options: &RemoteOptions,
        hosts: &[HostSpec],
    ) -> Result<Self> {
        let link: Arc<dyn Link> = Arc::new(link);
        let program = format!("host-{}.sh", &sha256_of(PROGRAM.as_bytes())[..16]);
        let greetings = hosts
            .iter()
            .map(|host| greet(&*link, host, options, &program));
        let mut hellos = Vec::new();
        let mut failures = Vec::new();
        for (host, hello) in hosts
            .iter()
            .zip(futures_util::future::join_all(greetings).await)
        {
            match hello {
                Ok(hello) => hellos.push((host, hello)),
                Err(error) => failures.push(error),
            }
        }
        if let Some(mut first) = failures.pop() {
            for other in failures {
                first = first.cause(other);
            }
            return Err(first);
        }
        let Some((first, hello)) = hellos.first().cloned() else {
            return Err(Error::new(
                Kind::Bug,
                "no-hosts",
                "there is no host to connect to",
            ));
        };
        if let Some((other, its)) = hellos.iter().find(|(_, its)| its.root != hello.root) {
            return Err(Error::new(
                Kind::Infra,
                "roots-differ",
                format!(
                    "the folder of doe is `{}` on host `{}` and `{}` on `{}`",
                    hello.root, first.name, its.root, other.name
                ),
            )
            .hint(format!("set `root` in the platform's `{}` table to an absolute folder that can be made on every host", link.name())));
        }
        let caller = Arc::new(Caller::new(
            link.clone(),
            hello.root.clone(),
            format!("{}/{program}", hello.root),
            options.patience,
        ));
        let pace = link.pace();
        let mut executor = Self {
            link,
            caller,
            stager: Stager::default(),
            watches: Watches::new(pace),
            ports: RemotePorts::default(),
            wrapper: String::new(),
            path: hello.path,
            grace: options.grace,
            guard: OnceLock::new(),
        };
        executor.wrapper = executor.put_wrapper(hosts).await?;
        Ok(executor)
    }

    async fn put_wrapper(&self, hosts: &[HostSpec]) -> Result<String> {
        let digest = Digest(*blake3::hash(WRAPPER.as_bytes()).as_bytes());
        let source = std::env::temp_dir().join(format!("doe-wrapper-{}", call::nonce()));
        folder::write_private(&source, WRAPPER.as_bytes())?;
        let files = [(digest, source.clone())];
        let staged = try_join_all(hosts.iter().map(|host| self.stage(host, &files))).await;
        let _ = std::fs::remove_file(&source);
        let staged = staged?;
        let path = staged.first().and_then(|paths| paths.first());
        Ok(path.map(|p| p.display().to_string()).unwrap_or_default())
    }

    /// The folder on the hosts.
    pub fn root(&self) -> &Path {
        Path::new(self.caller.root())
    }

    /// The search path that a login finds on the hosts.
    pub fn login_path(&self) -> &str {
        &self.path
    }

    /// Puts programs on all hosts, each under a name of its own in one folder, which is returned.
    /// The folder is named by its content: others are never disturbed.
    pub async fn install(
        &self,
        hosts: &[HostSpec],
        programs: &[(String, Digest, PathBuf)],
    ) -> Result<PathBuf> {
        let list: String = programs
            .iter()
            .map(|(name, digest, _)| format!("{name} {}\n", hex(*digest)))
            .collect();
        let name = Digest::of(&list).short().to_string();
        let files: Vec<(Digest, PathBuf)> = programs
            .iter()
            .map(|(_, digest, path)| (*digest, path.clone()))
            .collect();
        try_join_all(hosts.iter().map(|host| async {
            self.stage(host, &files).await?;
            let request = Request::new("link", vec![name.as_str()])
                .reading(Input::Bytes(list.clone().into_bytes()));
            self.done(host, "link programs", &request).await
        }))
        .await?;
        Ok(self.root().join("links").join(&name))
    }

    /// Finds out whether a program of the hosts runs there.
    pub async fn try_program(
        &self,
        hosts: &[HostSpec],
        program: &Path,
        arguments: &[&str],
    ) -> Result<()> {
        let program = utf8(program, "the program")?;
        let mut words = vec![program];
        words.extend(arguments);
        try_join_all(hosts.iter().map(|host| {
            let request = Request::new("try", words.clone());
            async move { self.done(host, "run a program", &request).await }
        }))
        .await?;
        Ok(())
    }

    /// Executions on a host that left no exit record but living processes.
    pub async fn sweep(&self, host: &HostSpec) -> Result<Vec<Handle>> {
        let answer = self
            .done(host, "look for executions", &Request::new("open", vec![]))
            .await?;
        let claims = answer.lines().filter_map(|line| {
            let (token, claim) = line.split_once(' ')?;
            let token = Token(token.to_owned());
            folder::check_token(&token).ok()?;
            Some((token, Claim::parse(&format!("{claim}\n"))?))
        });
        Ok(claims
            .map(|(token, claim)| self.handle(host, &token, &claim))
            .collect())
    }

    /// Takes back what an earlier `doe` had submitted and what is still on its way to these
    /// hosts, so that nothing begins behind the back of who looks next. Only for who may write.
    pub async fn recall(&self, hosts: &[HostSpec]) -> Result<()> {
        let inputs_that_stay = self.link.remove_inputs().await?;
        for (name, token) in self.link.pending()? {
            // A host that is not needed now keeps its note for the run that needs it.
            let Some(host) = hosts.iter().find(|host| host.name == name) else {
                continue;
            };
            self.link.recall(&token).await?;
            if self.find(host, &token).await?.is_none() {
                self.revoke(host, &token, self.grace).await?;
            }
            if !inputs_that_stay.contains(&token) {
                self.link.recalled(&token);
            }
        }
        Ok(())
    }

    fn handle(&self, host: &HostSpec, token: &Token, claim: &Claim) -> Handle {
        Handle {
            executor: self.link.name().to_owned(),
            host: host.name.clone(),
            token: token.clone(),
            dir: self.root().join("runs").join(&token.0),
            pid: claim.leader.pid,
            start_ticks: claim.leader.start_ticks,
        }
    }

    /// Runs a command that must end well; its payload as text.
    async fn done(&self, host: &HostSpec, what: &str, request: &Request<'_>) -> Result<String> {
        let answer = self.caller.call(&host.name, request).await?;
        match answer.code {
            0 => Ok(answer.text()),
            _ => Err(refused(&host.name, what, &answer)),
        }
    }

    async fn start_once(&self, host: &HostSpec, script: &Script, token: &Token) -> Result<Handle> {
        let mut files = folder::files(&Job {
            token,
            script,
            grace: self.grace,
            adopts: false,
        })?;
        if let Some(guard) = self.guard.get() {
            files[0].1.push_str(guard.settings());
        }
        let payload = payload(&files);
        let bytes = payload.len().to_string();
        let not_started = |why: String| {
            Error::new(
                Kind::Infra,
                "not-started",
                format!(
                    "the script `{}` did not start on host `{}`",
                    script.name, host.name
                ),
            )
            .cause(why)
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let request = Request {
                limit: script.timeout.map(|limit| limit + self.grace),
                private: script.is_private(),
                ..Request::new("start", vec![&token.0, &self.wrapper, &bytes])
                    .reading(Input::Bytes(payload.clone()))
            };
            let answer = self.caller.call(&host.name, &request).await?;
            if answer.code == 0 {
                let claim = Claim::parse(&answer.text());
                let claim = claim.ok_or_else(|| not_started("its claim is not whole".into()))?;
                if claim.boot_id == folder::REVOKED {
                    return Err(not_started("its token was taken back".into()));
                }
                return Ok(self.handle(host, token, &claim));
            }
            let why = answer.stderr.trim().to_owned();
            // Killed before it had begun, or cut off on its way: once more does no harm.
            let again = answer.code == 65 || why == "doe: it did not begin";
            if !again || tries == START_TRIES {
                if script.is_private() {
                    // What came of it there is of no use any more, and holds secrets.
                    let _ = self.revoke(host, token, self.grace).await;
                }
                return Err(not_started(why));
            }
        }
    }

    fn check(&self, handle: &Handle) -> Result<()> {
        folder::check_token(&handle.token)?;
        let name = self.link.name();
        if handle.executor == name {
            return Ok(());
        }
        Err(Error::new(
            Kind::Bug,
            "foreign-handle",
            format!(
                "a handle of the executor `{}` was given to `{name}`",
                handle.executor
            ),
        ))
    }

    async fn state(&self, handle: &Handle) -> Result<State> {
        self.check(handle)?;
        let request = Request::new("status", vec![&handle.token.0, &self.wrapper]);
        let answer = self.caller.call(&handle.host, &request).await?;
        let clock = (&self.caller.clocks, handle.host.as_str(), answer.said);
        match answer.code {
            0 => Ok(State::read(&answer.text(), clock)),
            _ => Err(refused(&handle.host, "read a state", &answer)),
        }
    }

    async fn end(&self, handle: &Handle, grace: Duration) -> Result<()> {
        self.check(handle)?;
        let grace_ms = grace.as_millis().to_string();
        let request = Request {
            limit: Some(grace),
            ..Request::new("end", vec![&handle.token.0, &self.wrapper, &grace_ms])
        };
        let answer = self.caller.call(&handle.host, &request).await?;
        match answer.code {
            0 => Ok(()),
            _ => Err(refused(&handle.host, "end everything of a script", &answer)),
        }
    }

    async fn fetch(
        &self,
        host: &HostSpec,
        from: &str,
        name: &str,
        into: &Path,
    ) -> Result<Option<PathBuf>> {
        std::fs::create_dir_all(into).map_err(|e| Error::io("make the folder", into, &e))?;
        let raw = into.join(format!(".doe-{}", call::nonce()));
        let request = Request {
            into: Some(&raw),
            ..Request::new("fetch", vec![from, name])
        };
        let answer = self.caller.call(&host.name, &request).await;
        let target = into.join(name);
        let fetched = match answer {
            Err(error) => Err(error),
            Ok(answer) => match (answer.code, answer.span) {
                (0, Some(span)) => {
                    let (raw, target) = (raw.clone(), target.clone());
                    blocking(move || stage::unpack(&raw, span, &target).map(|()| Some(target)))
                        .await
                }
                (66, _) => Ok(None),
                (67, _) => Err(bad_output(
                    name,
                    "it links to something outside the working folder",
                )),
                (68, _) => Err(bad_output(name, "it is no regular file")),
                _ => Err(refused(&host.name, &format!("fetch `{name}`"), &answer)),
            },
        };
        let _ = std::fs::remove_file(&raw);
        fetched
    }
}

/// Lengths and the SHA-256 of all that follows, then job, environment and script, in one piece. The
/// sum is no argument: it may be of a secret.
fn payload(files: &[(&'static str, String); 3]) -> Vec<u8> {
    let texts: String = files.iter().map(|(_, text)| text.as_str()).collect();
    let lengths = files.iter().map(|(_, text)| text.len().to_string());
    let lengths = lengths.chain([sha256_of(texts.as_bytes())]);
    let lengths = lengths.collect::<Vec<_>>().join(" ");
    // The line begins with its own length, line feed included.
    let mut head = lengths.len() + 4;
    let line = loop {
        let line = format!("{head} {lengths}\n");
        if line.len() == head {
            break line;
        }
        head = line.len();
    };
    (line + &texts).into_bytes()
}

pub(super) fn bad_output(name: &str, why: &str) -> Error {
    Error::new(
        Kind::NodeFailed,
        "bad-output",
        format!("the output `{name}` cannot be collected: {why}"),
    )
}

pub(in crate::exec) fn utf8<'p>(path: &'p Path, what: &str) -> Result<&'p str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            Kind::Plan,
            "bad-path",
            format!("{what} `{}` must be UTF-8", path.display()),
        )
    })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(cause) => Err(
            Error::new(Kind::Bug, "task-failed", "a task of the executor broke off").cause(cause),
        ),
    }
}
