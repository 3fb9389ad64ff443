//! What Linux tells about processes. A process is named by its number and its start time in
//! clock ticks since boot: a number that was given away again is never mistaken for the old one.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// Process number.
    pub pid: u32,
    /// Start time, clock ticks since boot.
    pub start_ticks: u64,
}

/// One line of `/proc/PID/stat`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Who it is.
    pub id: ProcessId,
    /// Its parent's number.
    pub parent: u32,
    /// Its session: the number of the session's leader.
    pub session: u32,
    /// State letter: `R`, `S`, `Z`, ...
    pub state: u8,
    /// Number of threads.
    pub threads: u32,
}

impl Process {
    /// Takes a line of `/proc/PID/stat` apart. The command's name in it may hold any byte,
    /// spaces and brackets too; after the last bracket there are only numbers.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|b| *b == b'(')?;
        let close = line.iter().rposition(|b| *b == b')')?;
        let pid = std::str::from_utf8(line.get(..open)?)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(20).collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<i64>().ok());
        Some(Self {
            id: ProcessId {
                pid,
                start_ticks: fields.get(19)?.parse().ok()?,
            },
            parent: u32::try_from(number(1)?).ok()?,
            session: u32::try_from(number(3)?).ok()?,
            state: *fields.first()?.as_bytes().first()?,
            threads: u32::try_from(number(17)?).ok()?,
        })
    }

    /// Reads one process; `None` when there is none of that number.
    pub fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it still runs: a zombie only does when threads outlived its first one.
    pub fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x') || self.threads > 1
    }
}

/// Whether exactly this process still runs.
pub fn lives(id: ProcessId) -> bool {
    Process::read(id.pid).is_some_and(|p| p.id == id && p.lives())
}

/// All processes that run now.
pub fn all() -> Result<Vec<Process>> {
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(|e| Error::io("read", proc, &e))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .filter(Process::lives)
        .collect())
}

/// The values of these variables in the environment that a process was started with. None when it
/// has none of them, is gone, or belongs to someone else.
pub fn variables(pid: u32, names: &[&str]) -> Vec<Vec<u8>> {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let value = |entry: &[u8]| {
        let of = |name: &&str| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=");
        names.iter().find_map(of).map(<[u8]>::to_vec)
    };
    environ.split(|b| *b == 0).filter_map(value).collect()
}

/// Names this boot of the host. Empty where the kernel does not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_is_no_trouble() {
        let line =
            b"4242 (tmux: (a) b) S 17 4242 99 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 3 0 136682 9 9";
        let process = Process::parse(line).unwrap();
        assert_eq!(process.id.pid, 4242);
        assert_eq!(process.id.start_ticks, 136_682);
        assert_eq!(process.parent, 17);
        assert_eq!(process.session, 99);
        assert_eq!(process.threads, 3);
        assert!(process.lives());
    }

    #[test]
    fn a_zombie_lives_only_through_its_threads() {
        let line = |threads: u32| {
            format!("7 (x) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 5 0").into_bytes()
        };
        assert!(!Process::parse(&line(1)).unwrap().lives());
        assert!(Process::parse(&line(2)).unwrap().lives());
    }

    #[test]
    fn this_very_process_is_found_and_carries_its_environment() {
        let me = Process::read(std::process::id()).unwrap();
        assert!(all().unwrap().iter().any(|p| p.id == me.id));
        assert!(lives(me.id));
        assert!(!lives(ProcessId {
            start_ticks: me.id.start_ticks + 1,
            ..me.id
        }));
        let path = std::env::var_os("PATH").unwrap();
        assert_eq!(variables(me.id.pid, &["PATH"])[0], path.as_encoded_bytes());
        assert!(variables(me.id.pid, &["PAT"]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Process::parse(&line);
        }

        #[test]
        fn any_name_is_survived(name in "[ -~]{0,15}", pid in 1u32..4_000_000, ticks in 0u64..u64::MAX) {
            let line = format!("{pid} ({name}) R 1 2 3 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {ticks} 0");
            let process = Process::parse(line.as_bytes()).unwrap();
            proptest::prop_assert_eq!(process.id, ProcessId { pid, start_ticks: ticks });
            proptest::prop_assert_eq!(process.session, 3);
        }
    }
}
