//! From a script to a process: its folder, its token, its session. The folder appears whole, the
//! reaper knows the token before anything can carry it, and only the wrapper's own claim decides
//! who runs: however often and from wherever a token is started, its script runs once.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{ABOUT, About, Inner, NAME, blocking, locked, unique};
use crate::error::{Error, Kind, Result};
use crate::exec::children::{self, Ended};
use crate::exec::folder::{self, Claim, Job, Record};
use crate::exec::procfs::ProcessId;
use crate::exec::session::SESSION_COMMAND;
use crate::exec::tree::{TOKEN_VARIABLE, Target};
use crate::exec::{Handle, HostSpec, Script, Token};

/// A script that has not begun after this time does not begin any more.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often a start is tried again when the process was killed before it had begun.
const START_TRIES: u32 = 3;

/// What a look into the folder, and a launch where nobody had claimed it, gave.
enum Launch {
    Claimed(Claim),
    Child(u32, Ended),
}

/// What a script has of the environment of `doe`.
pub(super) fn inherit(command: &mut Command) {
    for (name, otherwise) in [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/")] {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        command.env(name, value.unwrap_or_else(|| otherwise.into()));
    }
}

impl Inner {
    pub(super) fn handle(&self, host: &str, token: &Token, leader: ProcessId) -> Handle {
        Handle {
            executor: NAME.to_string(),
            host: host.to_string(),
            token: token.clone(),
            dir: self.layout.run(token),
            pid: leader.pid,
            start_ticks: leader.start_ticks,
        }
    }

    /// Puts the folder of an execution in place, whole or not at all. The first one stays.
    fn prepare(&self, host: &HostSpec, script: &Script, token: &Token) -> Result<PathBuf> {
        let files = folder::files(&Job {
            token,
            script,
            grace: self.options.grace,
            adopts: true,
        })?;
        let dir = self.layout.run(token);
        if dir.exists() {
            return Ok(dir);
        }
        let about = About {
            host: host.name.clone(),
            script: script.name.clone(),
        };
        let about = serde_json::to_vec(&about).map_err(|e| {
            Error::new(Kind::Bug, "json", "could not describe an execution").cause(e)
        })?;
        let name = format!("{}{}-{}", folder::UNPLACED, std::process::id(), unique());
        let temporary = self.layout.runs().join(name);
        let files = files.iter().map(|(name, text)| (*name, text.as_bytes()));
        folder::make_filled(&temporary, files.chain([(ABOUT, &about[..])]))?;
        if let Err(cause) = fs::rename(&temporary, &dir) {
            let _ = fs::remove_dir_all(&temporary);
            if !dir.exists() {
                return Err(Error::io("make the folder", &dir, &cause));
            }
        }
        Ok(dir)
    }

    /// Puts the folder in place and launches the wrapper, unless somebody did. Blocks.
    fn launch(&self, host: &HostSpec, script: &Script, token: &Token) -> Result<Launch> {
        let dir = self.prepare(host, script, token)?;
        if let Some(claim) = Claim::read(&dir)? {
            self.guard_again(&dir, token, &claim)?;
            return Ok(Launch::Claimed(claim));
        }
        if let Some(reaper) = &self.reaper {
            reaper.watch(Target {
                token: token.clone(),
                leader: None,
                dir: dir.clone(),
            })?;
        }
        // The wrapper would make it too; one process less to start.
        let _ = folder::make_private(&script.work);
        let log = dir.join(folder::WRAPPER_LOG);
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log)
            .map_err(|e| Error::io("write", &log, &e))?;
        let mut command = Command::new(&self.options.doe);
        command
            .arg(SESSION_COMMAND)
            .arg(self.layout.wrapper())
            .arg(&dir)
            .env_clear()
            .env(TOKEN_VARIABLE, &token.0)
            .env("LANG", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        inherit(&mut command);
        let child = command.spawn().map_err(|e| {
            Error::io("run", &self.options.doe, &e)
                .hint("the executor needs the `doe` program to start sessions")
        })?;
        let pid = child.id();
        Ok(Launch::Child(pid, self.children.adopt(child)?))
    }

    /// What an earlier `doe` started and did not see end is guarded by our reaper too.
    fn guard_again(&self, dir: &Path, token: &Token, claim: &Claim) -> Result<()> {
        match &self.reaper {
            Some(reaper) if Record::read(dir)? == Record::Missing => reaper.watch(Target {
                token: token.clone(),
                leader: Some(claim.leader),
                dir: dir.to_path_buf(),
            }),
            _ => Ok(()),
        }
    }

    /// Starts a script, or finds that it was started.
    pub(super) async fn start(
        self: &Arc<Self>,
        host: &HostSpec,
        script: &Script,
        token: &Token,
    ) -> Result<Handle> {
        folder::check_token(token)?;
        // More at a time would only wait for each other.
        let _turn = self.turns.acquire().await;
        let dir = self.layout.run(token);
        let mut tries = 0;
        loop {
            tries += 1;
            let (inner, host_copy) = (self.clone(), host.clone());
            let (script_copy, token_copy) = (script.clone(), token.clone());
            let launch =
                blocking(move || inner.launch(&host_copy, &script_copy, &token_copy)).await;
            if launch.is_err() && dir.exists() {
                // Unless somebody has it, nobody will: its environment may hold secrets.
                let _ = folder::revoke_claim(&dir);
            }
            let (pid, child) = match launch? {
                Launch::Claimed(claim) => {
                    return Ok(self.handle(&host.name, token, claim.leader));
                }
                Launch::Child(pid, child) => (pid, child),
            };
            let settled = self.attend(&dir, token, pid, child.clone());
            if let Some(claim) = self.claimed(&dir, &child).await? {
                if claim.leader.pid == pid {
                    locked(&self.running).insert(token.clone(), settled.clone());
                    // It may have ended, and been taken out, before it was put in.
                    if *settled.borrow() {
                        locked(&self.running).remove(token);
                    }
                }
                if let Some(reaper) = self.reaper.clone() {
                    let token = token.clone();
                    blocking(move || reaper.leader(&token, claim.leader)).await?;
                }
                return Ok(self.handle(&host.name, token, claim.leader));
            }
            // Killed before it had begun: by a Ctrl-C that came before it had left our session.
            let killed = (*child.borrow()).is_some_and(|status| status.code().is_none());
            if !killed || tries == START_TRIES {
                return Err(self.not_started(&dir, script, token).await);
            }
        }
    }

    async fn claimed(&self, dir: &Path, child: &Ended) -> Result<Option<Claim>> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            // One that ends well came second: the first is about to write its claim.
            let ended = *child.borrow();
            let over = ended.map_or(child.has_changed().is_err(), |status| !status.success());
            // Looked for after the child: a claim that it made before it ended is seen.
            let claim = Claim::read(dir)?;
            if claim.is_some() || over || begun.elapsed() > START_LIMIT {
                return Ok(claim);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(8));
        }
    }

    async fn not_started(&self, dir: &Path, script: &Script, token: &Token) -> Error {
        let target = Target {
            token: token.clone(),
            leader: None,
            dir: dir.to_path_buf(),
        };
        let ended = self.killer.end(target, Duration::ZERO).await;
        folder::forget_environment(dir);
        let why = folder::read_if_there(&dir.join(folder::WRAPPER_LOG))
            .ok()
            .flatten();
        let mut error = Error::new(
            Kind::Infra,
            "not-started",
            format!("the script `{}` did not start", script.name),
        )
        .cause(why.as_deref().map_or("it left no word", str::trim));
        match ended {
            Ok(()) => self.forget(token).await,
            Err(cause) => error = error.cause(cause),
        }
        error.hint(format!("look into `{}`", dir.display()))
    }

    /// Settles the end of our child: when it was the leader and left no record, the rest of its
    /// tree is ended, for lost must mean gone.
    fn attend(
        self: &Arc<Self>,
        dir: &Path,
        token: &Token,
        pid: u32,
        child: Ended,
    ) -> watch::Receiver<bool> {
        let (settled, receiver) = watch::channel(false);
        let (inner, dir, token) = (self.clone(), dir.to_path_buf(), token.clone());
        tokio::spawn(async move {
            children::ended(child).await;
            // A child that came second, or died before it had begun, settles nothing.
            let claim = Claim::read(&dir).ok().flatten();
            if let Some(claim) = claim.filter(|claim| claim.leader.pid == pid) {
                let whole = matches!(Record::read(&dir), Ok(Record::Whole(_)));
                let target = Target {
                    token: token.clone(),
                    leader: Some(claim.leader),
                    dir,
                };
                if whole || inner.killer.end(target, inner.options.grace).await.is_ok() {
                    inner.forget(&token).await;
                }
                locked(&inner.running).remove(&token);
            }
            settled.send_replace(true);
        });
        receiver
    }

    /// Tells the reaper that nothing of a token is left.
    pub(super) async fn forget(&self, token: &Token) {
        if let Some(reaper) = self.reaper.clone() {
            let token = token.clone();
            // Only a runtime that shuts down fails here; then the reaper looks for itself.
            let _ = blocking(move || {
                reaper.forget(&token);
                Ok(())
            })
            .await;
        }
    }
}
