//! Ends whole trees of processes, and nothing else. A process belongs to a tree when it is in
//! the session of the tree's living leader, carries the tree's token in its environment, or
//! descends from one that does. Each is signalled through a handle that was checked to be that
//! very process, so a recycled number is never hit, and nothing is ever found by its name.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::folder::write_private;
use super::procfs::{self, Process, ProcessId};
use super::{Handle, Token};
use crate::error::{Error, Kind, Result};

/// The variable that every process of a tree carries.
pub const TOKEN_VARIABLE: &str = "DOE_TOKEN";
/// One more that stands for many trees: ended together, they are told of once.
pub const GROUP_VARIABLE: &str = "DOE_GROUP";

/// File that keeps a wrapper from running a script that it is about to run.
const UNWANTED: &str = "unwanted";
/// How long the wrapper may prepare the script that it is then not going to run.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long the wrapper may write its record once the rest of the tree is gone.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// How long the helpers of the wrapper outlive the hard end of the rest.
const HELPER_PATIENCE: Duration = Duration::from_secs(2);
/// When to give up, counted from the hard end.
const LIMIT: Duration = Duration::from_secs(15);

/// The variables that are looked at.
const NAMES: [&str; 2] = [TOKEN_VARIABLE, GROUP_VARIABLE];

/// A tree to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its token, or the name of a group.
    pub token: Token,
    /// Its session leader, where known.
    pub leader: Option<ProcessId>,
    /// The folder of the execution: the wrapper names its helpers there.
    pub dir: PathBuf,
}

impl From<&Handle> for Target {
    fn from(handle: &Handle) -> Self {
        Self {
            token: handle.token.clone(),
            leader: Some(ProcessId {
                pid: handle.pid,
                start_ticks: handle.start_ticks,
            }),
            dir: handle.dir.clone(),
        }
    }
}

/// All processes at one moment, with the tokens of those that were asked for.
#[derive(Debug)]
pub struct Snapshot {
    processes: Vec<Process>,
    tokens: HashMap<ProcessId, Vec<Vec<u8>>>,
}

impl Snapshot {
    /// Looks once. The environments of processes older than `oldest_ticks` are left alone:
    /// nobody is older than the leader it descends from.
    pub fn take(oldest_ticks: u64) -> Result<Self> {
        let processes = procfs::all()?;
        let tokens = processes
            .iter()
            .filter(|p| p.id.start_ticks >= oldest_ticks)
            .map(|p| (p.id, procfs::variables(p.id.pid, &NAMES)))
            .filter(|(_, tokens)| !tokens.is_empty())
            .collect();
        Ok(Self { processes, tokens })
    }

    /// What lives of a tree, its leader included. `known` are members seen before: they stay
    /// members, whatever became of their environment and parents.
    pub fn members(&self, target: &Target, known: &HashSet<ProcessId>) -> HashSet<ProcessId> {
        // Without its leader a session's number proves nothing: it may have been given away.
        let session = target
            .leader
            .filter(|leader| self.processes.iter().any(|p| p.id == *leader))
            .map(|leader| leader.pid);
        let mut members: HashSet<ProcessId> = self
            .processes
            .iter()
            .filter(|p| {
                Some(p.session) == session
                    || known.contains(&p.id)
                    || self
                        .tokens
                        .get(&p.id)
                        .is_some_and(|t| t.iter().any(|t| *t == target.token.0.as_bytes()))
            })
            .map(|p| p.id)
            .collect();
        loop {
            let parents: HashSet<u32> = members.iter().map(|m| m.pid).collect();
            let before = members.len();
            members.extend(
                self.processes
                    .iter()
                    .filter(|p| parents.contains(&p.parent))
                    .map(|p| p.id),
            );
            if members.len() == before {
                return members;
            }
        }
    }

    /// The wrapper's own processes among the members: leader, helpers and what these run.
    fn wrapper(
        &self,
        leader: ProcessId,
        helpers: &[u32],
        members: &HashSet<ProcessId>,
    ) -> HashSet<ProcessId> {
        self.processes
            .iter()
            .filter(|p| {
                p.id == leader
                    || (p.parent == leader.pid && helpers.contains(&p.id.pid))
                    || helpers.contains(&p.parent)
            })
            .map(|p| p.id)
            .filter(|id| members.contains(id))
            .collect()
    }

    /// Sorted so that a shell has its own signal before it sees a child die of one.
    fn parents_first(&self, mut ids: Vec<ProcessId>) -> Vec<ProcessId> {
        let parents: HashMap<u32, u32> = self
            .processes
            .iter()
            .map(|p| (p.id.pid, p.parent))
            .collect();
        ids.sort_by_cached_key(|id| {
            // The links lead to the parent of the first process; a look that was torn by a
            // change may run in a circle.
            let line = std::iter::successors(Some(id.pid), |pid| parents.get(pid).copied());
            (line.take(self.processes.len() + 1).count(), *id)
        });
        ids
    }

    /// Whether a process is a child of the leader, as the script is.
    fn is_child_of(&self, id: ProcessId, leader: Option<ProcessId>) -> bool {
        leader.is_some_and(|leader| {
            self.processes
                .iter()
                .any(|p| p.id == id && p.parent == leader.pid)
        })
    }
}

/// The wrapper's helpers, once it has named them: right before it runs the script.
fn helpers(target: &Target) -> Option<Vec<u32>> {
    let text = std::fs::read_to_string(target.dir.join("helpers")).ok()?;
    text.ends_with('\n')
        .then(|| text.split_whitespace().flat_map(str::parse).collect())
}

/// How an ending stands after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left.
    Done,
    /// Look again soon.
    Again,
    /// These would not go within the limit.
    Stuck(Vec<u32>),
}

/// One tree on its way to its end. Step it with fresh snapshots until it is done.
#[derive(Debug)]
pub struct Ending {
    target: Target,
    grace: Duration,
    asked_for: Instant,
    begun: Instant,
    alone_since: Option<Instant>,
    told: HashSet<ProcessId>,
    is_unwanted: bool,
    has_asked: bool,
    known: HashSet<ProcessId>,
    clean_looks: u32,
}

impl Ending {
    /// Begins to end a tree: politely, after `grace` hard.
    pub fn new(target: Target, grace: Duration) -> Self {
        Self {
            target,
            grace,
            asked_for: Instant::now(),
            begun: Instant::now(),
            alone_since: None,
            told: HashSet::new(),
            is_unwanted: false,
            has_asked: false,
            known: HashSet::new(),
            clean_looks: 0,
        }
    }

    /// Processes older than this cannot belong to the tree.
    pub fn oldest_ticks(&self) -> u64 {
        self.target.leader.map_or(0, |leader| leader.start_ticks)
    }

    /// Signals what the snapshot shows of the tree.
    pub fn step(&mut self, snapshot: &Snapshot) -> Progress {
        let members = snapshot.members(&self.target, &self.known);
        if members.is_empty() {
            // A look takes time and a process can fork behind its back: look twice.
            self.clean_looks += 1;
            return if self.clean_looks >= 2 {
                Progress::Done
            } else {
                Progress::Again
            };
        }
        self.clean_looks = 0;
        self.known.extend(&members);
        let waited = self.begun.elapsed();
        let leader = self.target.leader.filter(|l| members.contains(l));
        if !std::mem::replace(&mut self.is_unwanted, true) && leader.is_some() {
            // Where this cannot be written, a script that is just starting is ended hard.
            let _ = write_private(&self.target.dir.join(UNWANTED), b"");
        }
        let helpers = helpers(&self.target);
        if leader.is_some() && helpers.is_none() && self.asked_for.elapsed() < START_PATIENCE {
            // It is about to run the script and will not: nothing is ended under its hands, for
            // it is going to write this down.
            self.begun = Instant::now();
            return Progress::Again;
        }
        let wrapper = leader.map_or_else(HashSet::new, |leader| {
            snapshot.wrapper(leader, helpers.as_deref().unwrap_or(&[]), &members)
        });
        let script: Vec<ProcessId> = members.difference(&wrapper).copied().collect();
        if script.is_empty() {
            let since = *self.alone_since.get_or_insert_with(Instant::now);
            if since.elapsed() > LEADER_PATIENCE || waited > self.grace + LEADER_PATIENCE {
                members.iter().for_each(|id| send(*id, Signal::KILL));
            }
        } else {
            self.alone_since = None;
        }
        if waited < self.grace {
            // Later only the script itself is told, if it had not begun yet: what it starts to
            // tidy up shall be able to.
            let first = !self.has_asked;
            self.has_asked |= !script.is_empty();
            for id in snapshot.parents_first(script) {
                if first || snapshot.is_child_of(id, leader) {
                    self.tell(id);
                }
            }
        } else {
            script.iter().for_each(|id| send(*id, Signal::KILL));
            if waited > self.grace + HELPER_PATIENCE && !script.is_empty() {
                wrapper.iter().for_each(|id| send(*id, Signal::KILL));
            }
        }
        if waited > self.grace + LIMIT {
            let mut left: Vec<u32> = members.iter().map(|m| m.pid).collect();
            left.sort_unstable();
            return Progress::Stuck(left);
        }
        Progress::Again
    }

    /// Asks a process to end; once, for to some programs a second TERM means to leave at once.
    fn tell(&mut self, id: ProcessId) {
        if self.told.insert(id) {
            send(id, Signal::TERM);
            send(id, Signal::CONT);
        }
    }
}

/// The error for a tree that would not go.
pub fn stuck(token: &Token, left: &[u32]) -> Error {
    let left: Vec<String> = left.iter().map(u32::to_string).collect();
    Error::new(
        Kind::Infra,
        "processes-survive",
        format!(
            "processes {} of `{}` could not be ended",
            left.join(", "),
            token.0
        ),
    )
    .hint("they hang in the kernel or belong to another user: look at them with `ps -o pid,user,stat,wchan,args -p`")
}

/// Ends several trees with common looks and returns when nothing of any is left. Blocks.
pub fn end_all(targets: impl IntoIterator<Item = Target>, grace: Duration) -> Result<()> {
    let mut endings: Vec<Ending> = targets.into_iter().map(|t| Ending::new(t, grace)).collect();
    let mut survivors = None;
    let mut pause = Duration::from_millis(2);
    while !endings.is_empty() {
        let oldest = endings.iter().map(Ending::oldest_ticks).min().unwrap_or(0);
        let snapshot = Snapshot::take(oldest)?;
        endings.retain_mut(|ending| match ending.step(&snapshot) {
            Progress::Done => false,
            Progress::Again => true,
            Progress::Stuck(left) => {
                survivors = Some(stuck(&ending.target.token, &left));
                false
            }
        });
        if !endings.is_empty() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(40));
        }
    }
    survivors.map_or(Ok(()), Err)
}

/// Of which of these trees anything lives.
pub fn alive(targets: &[Target]) -> Result<HashSet<Token>> {
    let oldest = |target: &Target| target.leader.map_or(0, |leader| leader.start_ticks);
    let Some(oldest) = targets.iter().map(oldest).min() else {
        return Ok(HashSet::new());
    };
    let snapshot = Snapshot::take(oldest)?;
    Ok(targets
        .iter()
        .filter(|target| !snapshot.members(target, &HashSet::new()).is_empty())
        .map(|target| target.token.clone())
        .collect())
}

/// Sends a signal to exactly this process. What is gone meanwhile needs none; what may not be
/// signalled shows as a survivor.
fn send(id: ProcessId, signal: Signal) {
    let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Checked after the descriptor was opened: it holds on to that one process.
        Ok(fd) if procfs::lives(id) => drop(pidfd_send_signal(fd, signal)),
        Ok(_) | Err(rustix::io::Errno::SRCH) => {}
        // Kernels before 5.3 and a full descriptor table: check and signal right after.
        Err(_) if procfs::lives(id) => drop(kill_process(pid, signal)),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, session: u32, start_ticks: u64) -> Process {
        Process {
            id: ProcessId { pid, start_ticks },
            parent,
            session,
            state: b'S',
            threads: 1,
        }
    }

    fn target(leader: Option<(u32, u64)>) -> Target {
        Target {
            token: Token("t".into()),
            leader: leader.map(|(pid, start_ticks)| ProcessId { pid, start_ticks }),
            dir: PathBuf::from("/nonexistent"),
        }
    }

    fn pids(members: HashSet<ProcessId>) -> Vec<u32> {
        let mut pids: Vec<u32> = members.into_iter().map(|m| m.pid).collect();
        pids.sort_unstable();
        pids
    }

    fn snapshot(processes: Vec<Process>, tokens: &[(u32, &str)]) -> Snapshot {
        let tokens = tokens
            .iter()
            .map(|(pid, token)| {
                let id = processes.iter().find(|p| p.id.pid == *pid).unwrap().id;
                (id, vec![token.as_bytes().to_vec()])
            })
            .collect();
        Snapshot { processes, tokens }
    }

    #[test]
    fn session_token_and_descent_make_the_tree() {
        let snapshot = snapshot(
            vec![
                process(1, 0, 1, 1),
                process(50, 1, 50, 9),     // a stranger
                process(100, 50, 100, 10), // the leader
                process(101, 100, 100, 11),
                process(102, 1, 102, 12),   // a daemon with the token
                process(103, 102, 103, 13), // its child, with a clean environment
                process(104, 1, 104, 14),   // another token that begins alike
            ],
            &[(102, "t"), (104, "tt")],
        );
        let members = snapshot.members(&target(Some((100, 10))), &HashSet::new());
        assert_eq!(pids(members), [100, 101, 102, 103]);
    }

    #[test]
    fn the_session_of_a_recycled_number_is_left_alone() {
        let snapshot = snapshot(
            vec![
                process(100, 1, 100, 99), // not our leader: it started later
                process(101, 100, 100, 100),
                process(102, 1, 102, 50),
            ],
            &[(102, "t")],
        );
        let members = snapshot.members(&target(Some((100, 10))), &HashSet::new());
        assert_eq!(pids(members), [102]);
    }

    #[test]
    fn once_a_member_always_a_member() {
        let daemon = process(102, 1, 102, 12);
        let snapshot = snapshot(vec![daemon], &[]);
        let target = target(Some((100, 10)));
        assert!(snapshot.members(&target, &HashSet::new()).is_empty());
        let known = HashSet::from([daemon.id]);
        assert_eq!(pids(snapshot.members(&target, &known)), [102]);
        // The same number with another start time is someone else.
        let known = HashSet::from([ProcessId {
            start_ticks: 11,
            ..daemon.id
        }]);
        assert!(snapshot.members(&target, &known).is_empty());
    }

    #[test]
    fn parents_come_before_their_children() {
        let snapshot = snapshot(
            vec![
                process(1, 0, 1, 1),
                process(9, 1, 9, 5),
                process(5, 9, 9, 5),
                process(7, 5, 9, 5),
                process(3, 7, 9, 5),
            ],
            &[],
        );
        let ids = snapshot.processes[1..].iter().rev().map(|p| p.id).collect();
        let sorted: Vec<u32> = snapshot
            .parents_first(ids)
            .iter()
            .map(|id| id.pid)
            .collect();
        assert_eq!(sorted, [9, 5, 7, 3]);
    }

    #[test]
    fn the_tree_of_nobody_is_ended_at_once() {
        end_all([target(None)], Duration::from_secs(60)).unwrap();
        assert!(alive(&[target(None)]).unwrap().is_empty());
    }

    #[test]
    fn a_process_that_heeds_no_term_is_killed_after_the_grace() {
        let token = Token(format!("tree-test-{}", std::process::id()));
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; while :; do sleep 1; done"])
            .env(TOKEN_VARIABLE, &token.0)
            .spawn()
            .unwrap();
        let target = Target {
            token: token.clone(),
            leader: None,
            dir: PathBuf::from("/nonexistent"),
        };
        assert_eq!(
            alive(std::slice::from_ref(&target)).unwrap(),
            HashSet::from([token])
        );
        // The zombie is ours to collect: it does not count as alive.
        end_all([target.clone()], Duration::from_millis(50)).unwrap();
        assert!(alive(&[target]).unwrap().is_empty());
        assert!(!child.wait().unwrap().success());
    }
}
