//! How an execution stands, how it ends, and what earlier lives left. What is lost is gone: its
//! tree is ended before anyone is told that it was lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::{ABOUT, About, Inner, NAME, locked};
use crate::error::{Error, Kind, Result};
use crate::exec::folder::{self, Claim, REVOKED, Record};
use crate::exec::procfs::{self, ProcessId};
use crate::exec::reaper::REAPED;
use crate::exec::tree::{self, Target};
use crate::exec::{Handle, HostSpec, Status, Token};

/// Looks at a process that is not our child, while one waits for it.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(50);

impl Inner {
    pub(super) fn poll(&self, handle: &Handle) -> Result<Status> {
        self.check(handle)?;
        if let Some(status) = self.attached.poll(&handle.token) {
            return Ok(status);
        }
        let leader = ProcessId {
            pid: handle.pid,
            start_ticks: handle.start_ticks,
        };
        let boot_id = procfs::boot_id();
        let claim = Claim::read(&handle.dir)?;
        let same_boot = claim.as_ref().is_some_and(|claim| claim.boot_id == boot_id);
        let alive = same_boot && procfs::lives(leader);
        // Looked for after the process: a record that comes in between is seen.
        let lost = |why: String| Ok(Status::Lost { why });
        match Record::read(&handle.dir)? {
            Record::Missing | Record::Torn if alive => Ok(Status::Running),
            _ if handle.dir.join(REAPED).exists() => {
                lost("it was ended because the doe that had started it died".to_string())
            }
            Record::Whole(exit) => match folder::late(&handle.dir)?.is_lost() {
                Some(why) => lost(why.to_string()),
                None => Ok(Status::Exited(exit)),
            },
            Record::Torn => lost("its exit record is not whole".to_string()),
            Record::Missing if claim.is_none() => {
                lost(format!("its folder `{}` is gone", handle.dir.display()))
            }
            Record::Missing if !same_boot => lost("the machine was restarted".to_string()),
            Record::Missing => lost(format!(
                "process {} is gone and left no exit record",
                handle.pid
            )),
        }
    }

    pub(super) async fn wait(&self, handle: &Handle) -> Result<Status> {
        if let Some(status) = self.attached.wait(&handle.token).await {
            return Ok(status);
        }
        let mut pause = FIRST_LOOK;
        loop {
            let settled = locked(&self.running).get(&handle.token).cloned();
            match settled {
                Some(mut settled) => {
                    // An error means that the task is gone with its runtime: then look ourselves.
                    let _ = settled.wait_for(|settled| *settled).await;
                    locked(&self.running).remove(&handle.token);
                }
                None => match self.poll(handle)? {
                    Status::Running => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LAST_LOOK);
                    }
                    ended => {
                        if matches!(ended, Status::Lost { .. }) {
                            self.cancel(handle, self.options.grace).await?;
                        }
                        self.forget(&handle.token).await;
                        return Ok(ended);
                    }
                },
            }
        }
    }

    pub(super) async fn cancel(&self, handle: &Handle, grace: Duration) -> Result<()> {
        self.check(handle)?;
        if self.attached.find(&handle.token).is_some() {
            self.end_attached(&handle.token, grace).await?;
            return Ok(());
        }
        self.killer.end(Target::from(handle), grace).await?;
        self.forget(&handle.token).await;
        Ok(())
    }

    pub(super) fn find(&self, host: &HostSpec, token: &Token) -> Result<Option<Handle>> {
        folder::check_token(token)?;
        if let Some(handle) = self.attached.find(token) {
            return Ok(Some(handle));
        }
        let claim = Claim::read(&self.layout.run(token))?;
        Ok(claim
            .filter(|claim| claim.boot_id != REVOKED)
            .map(|claim| self.handle(&host.name, token, claim.leader)))
    }

    /// Who makes the claim has the token: made here, no wrapper on its way will run the script.
    pub(super) async fn revoke(
        &self,
        host: &HostSpec,
        token: &Token,
        grace: Duration,
    ) -> Result<Option<Handle>> {
        folder::check_token(token)?;
        let dir = self.layout.run(token);
        if !dir.exists() {
            // Attached, or never begun. Whoever would begin it is gone, or is us.
            let ended = self.end_attached(token, grace).await?;
            return Ok(self.attached.find(token).filter(|_| ended));
        }
        if folder::revoke_claim(&dir)? {
            return Ok(None);
        }
        // Whoever has just made the claim is about to write it.
        let mut claim = Claim::read(&dir)?;
        for _ in 0..100 {
            if claim.is_some() {
                break;
            }
            tokio::time::sleep(FIRST_LOOK).await;
            claim = Claim::read(&dir)?;
        }
        let leader = match claim {
            Some(claim) if claim.boot_id == REVOKED => return Ok(None),
            // A claim of another boot names nobody.
            Some(claim) if claim.boot_id != procfs::boot_id() => return Ok(None),
            claim => claim.map(|claim| claim.leader),
        };
        let target = Target {
            token: token.clone(),
            leader,
            dir: dir.clone(),
        };
        let alive = !tree::alive(std::slice::from_ref(&target))?.is_empty();
        if alive {
            self.killer.end(target, grace).await?;
        }
        self.forget(token).await;
        Ok(leader
            .filter(|_| alive)
            .map(|leader| self.handle(&host.name, token, leader)))
    }

    fn check(&self, handle: &Handle) -> Result<()> {
        if handle.executor == NAME {
            return Ok(());
        }
        Err(Error::new(
            Kind::Bug,
            "foreign-handle",
            format!(
                "a handle of the executor `{}` was given to `{NAME}`",
                handle.executor
            ),
        ))
    }

    pub(super) fn sweep(&self) -> Result<Vec<Handle>> {
        let runs = self.layout.runs();
        folder::remove_unplaced(&runs, |rest, _| {
            // Who only looks may be about to run a script of its own here.
            let pid = rest.split('-').next().unwrap_or_default();
            !Path::new("/proc").join(pid).exists()
        });
        let entries = fs::read_dir(&runs).map_err(|e| Error::io("read", &runs, &e))?;
        let boot_id = procfs::boot_id();
        let mut open = BTreeMap::new();
        for entry in entries.flatten() {
            let (dir, name) = (entry.path(), entry.file_name());
            let Some(token) = name.to_str().map(|name| Token(name.to_string())) else {
                continue;
            };
            if folder::check_token(&token).is_err()
                || matches!(Record::read(&dir)?, Record::Whole(_))
            {
                continue;
            }
            let claim = Claim::read(&dir)?.filter(|claim| claim.boot_id == boot_id);
            let about = folder::read_if_there(&dir.join(ABOUT))?
                .and_then(|text| serde_json::from_str::<About>(&text).ok());
            if let (Some(claim), Some(about)) = (claim, about) {
                open.insert(
                    token.0.clone(),
                    self.handle(&about.host, &token, claim.leader),
                );
            }
        }
        let targets: Vec<Target> = open.values().map(Target::from).collect();
        let alive = tree::alive(&targets)?;
        open.retain(|token, _| alive.contains(&Token(token.clone())));
        if let Some(reaper) = &self.reaper {
            reaper.take_over(open.values().map(Target::from).collect())?;
        }
        Ok(open.into_values().collect())
    }

    pub(super) fn discard(&self, handle: &Handle) -> Result<()> {
        if self.poll(handle)? == Status::Running {
            return Err(Error::new(
                Kind::Bug,
                "still-running",
                format!(
                    "`{}` still runs: cancel it before its folder is removed",
                    handle.token.0
                ),
            ));
        }
        // Not what the handle says: it may come from a file that someone changed.
        let dir = self.layout.run(&handle.token);
        folder::check_token(&handle.token)?;
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &dir, &e)),
            _ => Ok(()),
        }
    }
}
